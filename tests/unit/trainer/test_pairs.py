"""Preference pairs: read, split and tokenised; DPO and reward models against transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import trainings
from plinth.algos.intervals import wilson
from plinth.models.reward import RewardModel, load_reward_model
from plinth.models.weights import load_decoder, save_decoder
from plinth.shared.errors import InvalidArgument
from plinth.trainer.data.corpus import read_split, write_corpus
from plinth.trainer.data.documents import Document, parse_document
from plinth.trainer.data.shards import Split
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.objectives import pairs as pairs_module
from plinth.trainer.objectives.dpo import DirectPreference
from plinth.trainer.objectives.pairs import PairBatch, PairOptions, Pairs, answer_logprobs
from plinth.trainer.objectives.reward import RewardModelling, calibration_error, pair_scores

LENGTH = 64


@pytest.fixture(scope="module")
def dataset(datasets):
    return datasets("pairs")


@pytest.fixture(scope="module")
def start(dataset, tmp_path_factory):
    """A model to start from, with the dataset's tokenizer's vocabulary."""
    vocabulary = Split(dataset, "train").info.vocab_size
    folder = tmp_path_factory.mktemp("start") / "model"
    save_decoder(trainings.decoder(3, context=LENGTH, vocab_size=vocabulary), folder)
    return folder


# -- documents ----------------------------------------------------------------------------------

TURNS = [{"role": "user", "content": "Hi?"}]
GOOD = [{"role": "assistant", "content": "Yes."}]
BAD = [{"role": "assistant", "content": "No."}]


@pytest.mark.parametrize(
    "line",
    [
        {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."},
        {"prompt": TURNS, "chosen": GOOD, "rejected": BAD},
        {"chosen": TURNS + GOOD, "rejected": TURNS + BAD},
        {
            "chosen": "\n\nHuman: Hi?\n\nAssistant: Yes.",
            "rejected": "\n\nHuman: Hi?\n\nAssistant: No.",
        },
    ],
)
def test_each_shape_in_use_is_read(line):
    document = parse_document(json.dumps(line), "x:1")
    assert document.messages == (("user", "Hi?"), ("assistant", "Yes."))
    assert document.rejected == "No."
    assert parse_document(document.to_json(), "x:1") == document


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": "Yes."}, "the same answer"),
        ({"prompt": "Hi?", "chosen": "Yes.", "rejected": " "}, "'rejected' is empty"),
        ({"prompt": "Hi?", "chosen": "", "rejected": "No."}, "'chosen' is empty"),
        ({"chosen": TURNS, "rejected": TURNS}, "must answer one prompt|must end with an answer"),
        ([{"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}], "`jq -c"),
        ({"prompt": "Hi?", "rejected": "No."}, "a row with 'prompt', 'rejected' is none"),
        ({"chosen": "Yes.", "rejected": "No."}, "must answer one prompt"),
        ({"chosen": TURNS + GOOD, "rejected": BAD}, "must answer one prompt"),
        ({"prompt": [], "chosen": GOOD, "rejected": BAD}, "not empty"),
        ({"prompt": "Hi?", "chosen": "\ud800", "rejected": "No."}, "lone surrogate"),
        ({"text": "x", "chosen": "Yes.", "rejected": "No."}, "one of 'text'"),
    ],
)
def test_what_is_no_pair_is_refused(line, words):
    with pytest.raises(InvalidArgument, match=words) as caught:
        parse_document(json.dumps(line), "file.jsonl:7")
    assert "file.jsonl:7" in caught.value.message


def test_a_json_array_over_several_lines_is_told_how_to_become_rows():
    with pytest.raises(InvalidArgument, match=r"f\.jsonl:1: not JSON .*`jq -c '\.\[\]' FILE"):
        parse_document("[\n", "f.jsonl:1")


def test_pairs_that_contradict_others_are_counted(tmp_path):
    """As `preferences import` counts them; they stay, since which one is right can't be told."""

    def pair(number: int, swapped: bool) -> Document:
        sides = ["yes", "no"][:: -1 if swapped else 1]
        return Document(
            messages=(("user", f"q{number}"), ("assistant", sides[0])), rejected=sides[1]
        )

    documents = [pair(n, False) for n in range(50)] + [pair(n, True) for n in range(7)]
    counts = write_corpus(iter(documents), tmp_path / "c", source="t", validation_fraction=0.2)
    (told,) = counts.intake
    assert told.taken == 57
    assert told.noted == {"prefer the answer that another pair rejects": 7}
    alone = write_corpus(iter(documents[:50]), tmp_path / "d", source="t", validation_fraction=0.2)
    assert alone.intake[0].noted == {}


def test_pairs_of_one_prompt_are_held_out_together(tmp_path):
    documents = [
        Document(messages=(("user", f"q{i // 4}"), ("assistant", f"a{i}")), rejected="no")
        for i in range(400)
    ]
    write_corpus(iter(documents), tmp_path / "c", source="t", validation_fraction=0.3)
    sides = [
        {document.messages[0][1] for document in read_split(tmp_path / "c", split)}
        for split in ("train", "validation")
    ]
    assert len(sides[0]) > 40
    assert len(sides[1]) > 10
    assert not sides[0] & sides[1]


# -- DPO ----------------------------------------------------------------------------------------


@torch.no_grad()
def test_padding_is_neither_computed_nor_felt(start, monkeypatch):
    """Answers of very different lengths: what each gets is what it gets alone, and less is done."""
    generator = torch.Generator().manual_seed(1)
    lengths = [60, 9, 12, 7, 11, 8, 14, 10]
    ids_bt = torch.zeros(8, 60, dtype=torch.int64)
    answer_bt = torch.zeros(8, 60, dtype=torch.bool)
    for row, length in enumerate(lengths):
        ids_bt[row, :length] = torch.randint(1, 200, (length,), generator=generator)
        answer_bt[row, 4:length] = True
    batch = PairBatch([0, 1, 2, 3], ids_bt, answer_bt, torch.tensor(lengths) - 1)
    decoder, computed = load_decoder(start), []
    rewarder = RewardModel.of(load_decoder(start), 1)
    for model in (decoder, rewarder):
        forward = model.forward
        monkeypatch.setattr(
            model,
            "forward",
            lambda ids, *rest, f=forward: (computed.append(len(ids)), f(ids, *rest))[1],
        )
    sums_b, tokens_b = answer_logprobs(decoder, batch)
    assert sum(computed) < 0.6 * ids_bt.numel()
    scores_b = torch.cat(pair_scores(rewarder, batch))
    assert sum(computed) < 1.2 * ids_bt.numel()
    for row, length in enumerate(lengths):
        twice = torch.tensor([row, row])
        alone = PairBatch(
            [0], ids_bt[twice, :length], answer_bt[twice, :length], batch.last_b[twice]
        )
        assert sums_b[row] == pytest.approx(float(answer_logprobs(decoder, alone)[0][0]), rel=1e-5)
        assert tokens_b[row] == length - 4
        assert scores_b[row] == pytest.approx(float(pair_scores(rewarder, alone)[0]), abs=1e-5)


def test_log_probabilities_of_answers_are_those_of_transformers(dataset, start):
    batch = Pairs(Split(dataset, "train"), LENGTH, pad_id=0).batch([0, 5, 9])
    decoder = load_decoder(start)
    with torch.no_grad():
        sums, tokens = answer_logprobs(decoder, batch)
    model = AutoModelForCausalLM.from_pretrained(start)
    split = Split(dataset, "train")
    for row, number in enumerate([0, 10, 18, 1, 11, 19]):  # chosen, then rejected
        ids, mask = split.document(number)
        with torch.no_grad():
            logp = model(torch.tensor(ids[None])).logits[0].log_softmax(-1)
        wanted = [float(logp[i - 1, ids[i]]) for i in range(1, len(ids)) if mask[i]]
        assert len(wanted) == int(tokens[row])
        assert float(sums[row]) == pytest.approx(sum(wanted), abs=1e-3)


@pytest.mark.parametrize("options", [{}, {"loss": "ipo"}, {"label_smoothing": 0.1}])
def test_dpo_learns_what_is_preferred_and_starts_from_its_reference(
    dataset, start, tmp_path, options
):
    config = trainings.config(
        dataset,
        objective="dpo",
        init_from=str(start),
        model=None,
        sequence_length=LENGTH,
        steps=30,
        learning_rate=3e-3,
        pairs={"beta": 0.1, "likelihood_weight": 0.2, **options},
    )
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert train(config, job, Group()) == "succeeded", job.outcome()
    metrics = job.outcome()["metrics"]
    assert 0.5 < metrics["validation_accuracy_low"] < metrics["validation_accuracy"]
    assert metrics["validation_accuracy"] <= metrics["validation_accuracy_high"] <= 1
    # At the start the policy is the reference: no lead, and the loss is log 2 (IPO: 1/(2β)²).
    train_split, held_out = Split(dataset, "train"), Split(dataset, "validation")
    objective = DirectPreference(
        train_split, held_out, LENGTH, 0, PairOptions(**(config.pairs | {"likelihood_weight": 0}))
    )
    decoder = load_decoder(start)
    objective.prepare(decoder, Group(), tmp_path, 4, None)
    with torch.no_grad():
        loss = float(objective.loss_sum(decoder, objective.batch([0, 1]))) / 2
    assert loss == pytest.approx(25.0 if options.get("loss") == "ipo" else np.log(2), rel=1e-4)


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_dpo_that_ruins_what_is_preferred_fails_and_the_advice_helps(
    dataset, start, tmp_path, loss
):
    """Loss and accuracy are at their best when both answers have become impossible."""

    def run(name: str, **changes) -> JobFolder:
        pairs = {"loss": loss, **changes.pop("pairs", {})}
        config = trainings.config(
            dataset,
            objective="dpo",
            init_from=str(start),
            model=None,
            sequence_length=LENGTH,
            pairs=pairs,
            **({"steps": 15, "learning_rate": 0.3} | changes),
        )
        job = JobFolder(trainings.job(tmp_path / name, config))
        train(config, job, Group())
        return job

    job = run("a")
    error = job.error()
    assert error is not None
    assert (error.code, error.reason) == ("FAILED_PRECONDITION", "LIKELIHOOD_DISPLACEMENT")
    assert not job.model.exists()
    for name in ("learning rate", "likelihood_weight", "beta", "max_chosen_drop, 0 is off"):
        assert name in error.message
    # At the next evaluation, not only at the end.
    assert run("early", eval_every=5).progress().done < 15
    # What it advises: off, or a lower rate.
    off = run("off", pairs={"max_chosen_drop": 0.0}).outcome()
    assert off["status"] == "succeeded"
    fall = off["metrics"]["validation_chosen_logprob_before"]
    fall -= off["metrics"]["validation_chosen_logprob"]
    assert f"a fall of {fall:.2f}" in error.message
    assert fall > 2
    assert off["metrics"]["validation_chosen_fallen"] == 1
    assert run("lower", learning_rate=3e-3).outcome()["status"] == "succeeded"


@pytest.mark.parametrize("loss", ["sigmoid", "ipo"])
def test_held_out_figures_of_dpo_by_hand(dataset, start, tmp_path, loss):
    """Rewards as TRL's (β · the log-ratio, for IPO of means), log-probabilities per token."""
    split = Split(dataset, "validation")
    options = PairOptions(loss=loss, beta=0.3)
    objective = DirectPreference(Split(dataset, "train"), split, LENGTH, 0, options)
    before, now = load_decoder(start), load_decoder(start)
    with torch.no_grad():
        for tensor in now.parameters():
            noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(1))
            tensor.add_(0.03 * noise)
    objective.prepare(before, Group(), tmp_path, 4, [])
    found = objective.evaluate(now, Group(), 3)
    pairs = Pairs(split, LENGTH + 1, 0)
    batch = pairs.batch(list(range(len(pairs))))
    with torch.no_grad():
        old, tokens = (each.view(2, -1) for each in answer_logprobs(before, batch))
        new = answer_logprobs(now, batch)[0].view(2, -1)
    rewards = 0.3 * (new - old) / (tokens if loss == "ipo" else 1)
    for side, name in enumerate(("chosen", "rejected")):
        mean = float(rewards[side].mean())
        assert found[f"validation_reward_{name}"] == pytest.approx(mean, rel=1e-3, abs=1e-5)
        for when, sums in (("_before", old), ("", new)):
            per_token = float(sums[side].sum() / tokens[side].sum())
            assert found[f"validation_{name}_logprob{when}"] == pytest.approx(per_token, rel=1e-4)
    margin = rewards[0] - rewards[1]
    assert found["validation_reward_margin"] == pytest.approx(
        float(margin.mean()), rel=1e-3, abs=1e-5
    )
    assert found["validation_accuracy"] == pytest.approx(float((margin > 0).float().mean()))
    fallen = float((new[0] < old[0]).float().mean())
    assert 0 < found["validation_chosen_fallen"] == pytest.approx(fallen)


def test_a_run_that_ends_by_time_has_a_reference_for_every_pair(
    dataset, start, tmp_path, monkeypatch
):
    """How many pairs it will see is not known when the reference is asked."""
    monkeypatch.setattr(pairs_module, "MAX_JUDGED", 4)
    config = trainings.config(
        dataset,
        objective="dpo",
        init_from=str(start),
        model=None,
        sequence_length=LENGTH,
        steps=0,
        max_seconds=1.0,
    )
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert train(config, job, Group()) == "succeeded", job.outcome()
    assert job.outcome()["metrics"]["validation_pairs"] == 4
    reference = load_file(job.path / "reference.safetensors")["train"]
    assert torch.isfinite(reference).all()


def test_dpo_stopped_and_resumed_is_bit_for_bit_the_same(dataset, start, tmp_path):
    config = trainings.config(
        dataset, objective="dpo", init_from=str(start), model=None, sequence_length=LENGTH, steps=7
    )

    class Interrupted(JobFolder):
        looks = 0

        def requested(self):
            self.looks += 1
            return "pause" if self.looks >= 4 else None

    ends = []
    for name, kind in (("whole", JobFolder), ("parts", Interrupted)):
        job = kind(trainings.job(tmp_path / name, config))
        status = train(config, job, Group())
        if status == "paused":
            job = JobFolder(job.path)
            job.begin()
            status = train(config, job, Group())
        assert status == "succeeded"
        ends.append(load_file(job.model / "model.safetensors"))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def test_pairs_that_do_not_fit_are_left_out_and_none_is_an_error(dataset):
    split = Split(dataset, "train")
    longest = int(np.median(split.lengths()))
    assert 0 < len(Pairs(split, longest, pad_id=0)) < split.documents // 2
    with pytest.raises(InvalidArgument, match="raise sequence_length"):
        Pairs(split, 4, pad_id=0)


# -- reward -------------------------------------------------------------------------------------


def test_a_reward_model_learns_and_opens_in_transformers(dataset, start, tmp_path):
    config = trainings.config(
        dataset,
        objective="reward",
        init_from=str(start),
        model=None,
        sequence_length=LENGTH,
        steps=40,
        learning_rate=3e-3,
        pairs={"centring": 0.01},
    )
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert train(config, job, Group()) == "succeeded", job.outcome()
    metrics = job.outcome()["metrics"]
    assert 0.5 < metrics["validation_accuracy_low"] < metrics["validation_accuracy"]
    assert metrics["validation_accuracy"] <= metrics["validation_accuracy_high"] <= 1
    assert 0 <= metrics["validation_calibration_error"] <= 0.5
    ours = load_reward_model(job.model)
    theirs = AutoModelForSequenceClassification.from_pretrained(job.model, num_labels=1)
    batch = Pairs(Split(dataset, "validation"), LENGTH, pad_id=0).batch([0, 1])
    with torch.no_grad():
        chosen, rejected = pair_scores(ours, batch)
        for row, score in enumerate([*chosen, *rejected]):
            ids = batch.ids_bt[row : row + 1, : int(batch.last_b[row]) + 1]
            assert float(theirs(ids).logits[0, 0]) == pytest.approx(float(score), abs=1e-4)


def test_a_reward_model_begins_near_zero_and_differs_by_seed(start):
    decoder = load_decoder(start)
    one, other = RewardModel.of(decoder, 1), RewardModel.of(decoder, 2)
    assert not torch.equal(one.score.weight, other.score.weight)
    assert torch.equal(one.model.embed_tokens.weight, decoder.model.embed_tokens.weight)


def test_a_language_model_is_no_reward_model(start):
    with pytest.raises(InvalidArgument, match="no reward model"):
        load_reward_model(start)


def test_calibration_error_by_hand():
    # Two bins: confidence 0.95 right half of the time, confidence 0.55 always right.
    sure, unsure = float(torch.logit(torch.tensor(0.95))), float(torch.logit(torch.tensor(0.55)))
    leads = torch.tensor([sure, -sure, unsure, unsure], dtype=torch.float64)
    assert calibration_error(leads) == pytest.approx((0.45 * 2 + 0.45 * 2) / 4, abs=1e-6)


def test_wilson_interval_against_scipy():
    from scipy.stats import binomtest

    for wins, of in ((0, 10), (7, 10), (55, 100), (10, 10)):
        truth = binomtest(wins, of).proportion_ci(method="wilson")
        assert wilson(wins, of) == pytest.approx((truth.low, truth.high))


def test_nothing_held_out_is_no_error(tmp_path, start):
    made = trainings.dataset(tmp_path / "d", trainings.pairs(40))
    train_split = Split(made, "train")

    class Empty:
        documents = 0

        def lengths(self):
            return np.zeros(0, np.int64)

    objective = RewardModelling(train_split, Empty(), LENGTH, 0, PairOptions())
    model = RewardModel.of(load_decoder(start), 0)
    assert objective.evaluate(model, Group(), 4) == {}
