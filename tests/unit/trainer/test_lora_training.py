"""Adapters in the loops: every objective learns with a frozen base, and nothing else changes."""

from __future__ import annotations

import math
import shutil
import threading
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

import trainings
from job_specs import model_spec, policy_spec, train_spec
from killing import kill_at, processes_of
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.kernels.training import SdpaBackend
from plinth.models.adapters.lora import LoraConfig, adapters, attach, base_tensors
from plinth.models.families import new_config
from plinth.models.reward import load_reward_model
from plinth.models.weights import load_decoder, save_decoder
from plinth.shared.errors import InvalidArgument
from plinth.shared.settings import load_settings
from plinth.shared.settings_sections import TrainerSettings
from plinth.shared.store import ArtifactStore
from plinth.trainer.checkpoint import checkpoints
from plinth.trainer.data.shards import Split
from plinth.trainer.execution import Execution
from plinth.trainer.launch import ProcessLauncher
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.setup import set_up
from plinth.trainer.loop.train import take_step
from plinth.trainer.lora_specs import lora_fields
from plinth.trainer.objectives.dpo import DirectPreference
from plinth.trainer.objectives.pairs import PairOptions, Pairs, answer_logprobs
from plinth.trainer.objectives.reward import pair_scores
from plinth.trainer.planning import plan_train
from plinth.trainer.policy.job import PolicyJob
from plinth.trainer.policy.run import optimise_policy
from plinth.trainer.validation import check_spec
from plinth.v1 import jobs_pb2 as pb

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LENGTH = 64
LORA = asdict(LoraConfig(rank=4, alpha=16))


@pytest.fixture(scope="module")
def start(datasets, tmp_path_factory):
    """Family → a model to start from."""
    vocabulary = Split(datasets("pairs"), "train").info.vocab_size
    folders = {}
    for family in ("llama", "gpt2"):
        shape = {"context": LENGTH, "vocab_size": vocabulary, "family": family}
        if family == "gpt2":
            shape |= {"kv_heads": 4}
        decoder = trainings.decoder(3, **shape)
        with torch.no_grad():  # a head that is frozen must be able to say something
            decoder.embedding.weight.mul_(20)
        folders[family] = tmp_path_factory.mktemp(family) / "model"
        save_decoder(decoder, folders[family])
    return folders


def config(dataset, folder, objective, **changes):
    return trainings.config(
        dataset,
        **{
            "objective": objective,
            "init_from": str(folder),
            "model": None,
            "sequence_length": 32 if objective == "clm" else LENGTH,
            "steps": 30,
            "learning_rate": 2e-2,
            "weight_decay": 0.0,
            "lora": LORA,
            "base": "base@1",
            **changes,
        },
    )


def greedy(decoder, prompt, tokens=16):
    ids = list(prompt)
    for _ in range(tokens):
        backend = SdpaBackend(1, len(ids))
        with torch.no_grad():
            hidden = decoder(torch.tensor(ids), torch.arange(len(ids)), backend)
            ids.append(int(decoder.logits(hidden[-1:], backend).argmax()))
    return ids


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@pytest.mark.parametrize(
    ("objective", "form", "changes"),
    [
        ("clm", "text", {}),
        ("sft", "messages", {}),
        ("dpo", "pairs", {"pairs": {"beta": 0.1}}),
        # Its loss is a square: at the others' rate adapters grow until float32 tells on the sum.
        ("dpo", "pairs", {"pairs": {"loss": "ipo"}, "learning_rate": 5e-3}),
        ("dpo", "pairs", {"pairs": {"label_smoothing": 0.1, "likelihood_weight": 0.2}}),
    ],
    ids=["clm", "sft", "dpo", "ipo", "cdpo"],
)
def test_it_learns_and_peft_gives_the_same_answers(
    datasets, start, tmp_path, family, objective, form, changes
) -> None:
    peft = pytest.importorskip("peft")
    made = config(datasets(form), start[family], objective, **changes)
    job = JobFolder(trainings.job(tmp_path / "a", made))
    assert train(made, job, Group()) == "succeeded", job.outcome()
    metrics = job.outcome()["metrics"]
    assert metrics["trained_parameters"] < metrics["parameters"] / 3
    if objective == "dpo":
        assert metrics["validation_accuracy_low"] > 0.5
    else:
        assert metrics["train_loss"] < 4.7 < 5.7  # log 300 at the start
    merged = load_decoder(job.model)
    prompt = [5, 60, 7, 133, 20]
    model = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(start[family]), job.adapter
    )
    out = model.generate(
        input_ids=torch.tensor([prompt]),
        attention_mask=torch.ones(1, 5, dtype=torch.int64),
        max_new_tokens=16,
        min_new_tokens=16,
        do_sample=False,
        pad_token_id=0,
        eos_token_id=None,
    )
    assert out[0].tolist() == greedy(merged, prompt)
    ids = torch.arange(3, 43)[None]
    backend = SdpaBackend(1, 40)
    with torch.no_grad():
        ours = merged.logits(merged(ids[0], torch.arange(40), backend), backend)
        assert torch.allclose(model(ids).logits[0], ours, atol=2e-4)
        plain = load_decoder(start[family])
        before = plain.logits(plain(ids[0], torch.arange(40), backend), backend)
    assert not torch.allclose(before, ours, atol=1e-2)


def test_a_reward_models_adapter_keeps_its_head(datasets, start, tmp_path) -> None:
    peft = pytest.importorskip("peft")
    made = config(datasets("pairs"), start["llama"], "reward")
    job = JobFolder(trainings.job(tmp_path / "a", made))
    assert train(made, job, Group()) == "succeeded", job.outcome()
    assert job.outcome()["metrics"]["validation_accuracy_low"] > 0.5
    ours = load_reward_model(job.model)
    plain = load_decoder(start["llama"])
    assert torch.equal(ours.model.embed_tokens.weight, plain.model.embed_tokens.weight)
    base = AutoModelForSequenceClassification.from_pretrained(
        start["llama"], num_labels=1, pad_token_id=0
    )
    theirs = peft.PeftModel.from_pretrained(base, job.adapter).eval()
    batch = Pairs(Split(datasets("pairs"), "validation"), LENGTH, pad_id=0).batch([0, 1])
    with torch.no_grad():
        chosen, rejected = pair_scores(ours, batch)
        for row, score in enumerate([*chosen, *rejected]):
            ids = batch.ids_bt[row : row + 1, : int(batch.last_b[row]) + 1]
            assert float(theirs(ids).logits[0, 0]) == pytest.approx(float(score), abs=1e-3)


def test_the_base_keeps_every_bit_and_only_the_adapter_has_state(datasets, start, tmp_path) -> None:
    made = config(
        datasets("messages"), start["llama"], "sft", lora=LORA | {"dropout": 0.1}, weight_decay=0.1
    )
    run = set_up(made, JobFolder(trainings.job(tmp_path / "a", made)), Group())
    fresh = {name: adapter.b.clone() for name, adapter in adapters(run.decoder).items()}
    for _ in range(5):
        take_step(run, 1e-2)
    plain = load_decoder(start["llama"]).state_dict()
    kept = base_tensors(run.decoder)
    assert kept.keys() == plain.keys()
    assert all(torch.equal(kept[name], plain[name]) for name in plain)
    there = adapters(run.decoder)
    assert all(not torch.equal(fresh[name], there[name].b) for name in there)
    own = {id(p) for adapter in there.values() for p in adapter.parameters()}
    assert {id(p) for p in run.optimizer.state} == own
    run.save()
    (folder,) = checkpoints(run.folder.checkpoints)
    assert set(load_file(folder / "model.safetensors")) == {
        f"{name}.lora.{side}" for name in there for side in "ab"
    }


class Interrupted(JobFolder):
    """Asks for a pause when it has been looked at often enough."""

    looks, patience = 0, 4

    def requested(self):
        self.looks += 1
        return "pause" if self.looks >= self.patience else None


@pytest.mark.parametrize("objective", ["sft", "dpo", "reward"])
def test_stopped_and_resumed_is_bit_for_bit_the_same(datasets, start, tmp_path, objective) -> None:
    form = "messages" if objective == "sft" else "pairs"
    lora = LORA | {"dropout": 0.2}
    made = config(datasets(form), start["llama"], objective, steps=7, lora=lora, checkpoint_every=3)
    ends = []
    for name, folder in (("whole", JobFolder), ("parts", Interrupted)):
        job = folder(trainings.job(tmp_path / name, made))
        status = train(made, job, Group())
        assert status == ("succeeded" if name == "whole" else "paused")
        if status == "paused":
            job = JobFolder(job.path)
            job.begin()
            assert train(made, job, Group()) == "succeeded"
        files = (job.model / "model.safetensors", job.adapter / "adapter_model.safetensors")
        ends.append([file.read_bytes() for file in files])
    assert ends[0] == ends[1]
    # Dropout did something.
    still = replace(made, lora=LORA)
    job = JobFolder(trainings.job(tmp_path / "still", still))
    assert train(still, job, Group()) == "succeeded"
    assert (job.model / "model.safetensors").read_bytes() != ends[0][0]


def test_two_workers_one_killed_end_with_the_same_bits(datasets, start, tmp_path) -> None:
    made = config(
        datasets("messages"),
        start["llama"],
        "sft",
        workers=2,
        micro_batch_size=2,
        steps=40,
        checkpoint_every=5,
        lora=LORA | {"dropout": 0.1},
    )
    ends = []
    for name in ("undisturbed", "killed"):
        folder = trainings.job(tmp_path / name, made)
        find = lambda folder=folder: processes_of(folder)  # noqa: E731
        killer = threading.Thread(target=kill_at, args=(folder, [10], find))
        if name == "killed":
            killer.start()
        ProcessLauncher().run(folder, made)
        if name == "killed":
            killer.join()
        assert JobFolder(folder).outcome()["status"] == "succeeded", JobFolder(folder).outcome()
        ends.append((folder / "model" / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


def test_a_checkpoint_does_not_go_on_upon_another_base(datasets, start, tmp_path) -> None:
    base = tmp_path / "base"
    shutil.copytree(start["llama"], base)
    made = config(datasets("messages"), base, "sft", steps=7)
    job = Interrupted(trainings.job(tmp_path / "a", made))
    assert train(made, job, Group()) == "paused"
    other = load_decoder(base)
    other.init_weights(99)
    save_decoder(other, base)
    job = JobFolder(job.path)
    job.begin()
    assert train(made, job, Group()) == "failed"
    assert "another configuration or data" in job.error().message


def test_the_reference_of_dpo_is_the_base_whatever_the_adapter_says(
    datasets, start, tmp_path
) -> None:
    split, held_out = (Split(datasets("pairs"), name) for name in ("train", "validation"))
    decoder, plain = load_decoder(start["llama"]), load_decoder(start["llama"])
    attach(decoder, LoraConfig(rank=4), 1)
    with torch.no_grad():
        for adapter in adapters(decoder).values():
            adapter.b.normal_(0.0, 0.3)
    objective = DirectPreference(split, held_out, LENGTH, 0, PairOptions())
    objective.prepare(decoder, Group(), tmp_path, 4, None)
    reference = load_file(tmp_path / "reference.safetensors")["train"]
    pairs = Pairs(split, LENGTH + 1, pad_id=0)
    batch = pairs.batch([0, 1, 2, 3])
    with torch.no_grad():
        wanted = answer_logprobs(plain, batch)[0].view(2, 4).t()
        adapted = answer_logprobs(decoder, batch)[0].view(2, 4).t()
    assert torch.equal(reference[batch.numbers].float(), wanted)
    assert not torch.allclose(adapted, wanted, atol=0.1)


@pytest.mark.parametrize("lora", [LORA, None], ids=["adapters", "all"])
def test_a_policy_in_bf16_starts_from_a_reference_of_the_same_rounding(
    datasets, start, tmp_path, lora
) -> None:
    made = config(datasets("pairs"), start["llama"], "dpo", precision="bf16", lora=lora)
    run = set_up(made, JobFolder(trainings.job(tmp_path / "a", made)), Group())
    assert float(take_step(run, 0.0).loss) == pytest.approx(math.log(2), abs=1e-6)
    # The evaluation is in float32, and so is its reference: no lead before the first step.
    found = run.objective.evaluate(run.decoder, run.group, 4)
    assert found["validation_reward_margin"] == pytest.approx(0.0, abs=1e-5)
    assert found["validation_loss"] == pytest.approx(math.log(2), abs=1e-6)


# -- policies -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def judge(datasets, start, tmp_path_factory):
    """A reward model for the pairs."""
    made = config(
        datasets("pairs"), start["llama"], "reward", steps=20, lora=None, learning_rate=3e-3
    )
    job = JobFolder(trainings.job(tmp_path_factory.mktemp("judge") / "j", made))
    assert train(made, job, Group()) == "succeeded", job.outcome()
    return job.model


def spec(**changes):
    fields = {
        "objective": "grpo",
        "dataset": "d@1",
        "init_from": "m@1",
        "reward": "r@1",
        "batch_size": 16,
        "steps": 6,
        "learning_rate": 2e-2,
        "seed": 4,
        "checkpoint_every": 2,
        # So few updates learn something by leaps alone.
        "policy": policy_spec(samples=4, max_new_tokens=10, max_update_kl=0.0),
        "lora": pb.LoraSpec(rank=4, alpha=16),
        **changes,
    }
    return train_spec(**{name: value for name, value in fields.items() if value is not None})


def planned(datasets, start, judge, **changes):
    return plan_train(
        spec(**changes), datasets("pairs"), start["llama"], TrainerSettings(threads=1), judge
    )


PPO = {
    "objective": "ppo",
    "policy": policy_spec(samples=1, max_new_tokens=10, epochs=2),
    "learning_rate": 5e-3,
}


@pytest.mark.parametrize("change", [{}, {"objective": "rloo"}, PPO], ids=["grpo", "rloo", "ppo"])
def test_a_policys_adapter_learns(datasets, start, judge, tmp_path, change) -> None:
    made = planned(datasets, start, judge, steps=15, **change)
    job = JobFolder(trainings.job(tmp_path / "a", made))
    assert optimise_policy(made, job, Group()) == "succeeded", job.outcome()
    metrics = job.outcome()["metrics"]
    assert metrics["validation_reward"] > metrics["validation_reward_before"]
    merged, plain = load_file(job.model / "model.safetensors"), load_decoder(start["llama"])
    assert torch.equal(merged["model.embed_tokens.weight"], plain.model.embed_tokens.weight)
    assert (job.adapter / "adapter_config.json").is_file()


def test_a_policy_is_its_own_reference_and_its_critic_is_adapted_too(
    datasets, start, judge, tmp_path
) -> None:
    made = planned(datasets, start, judge, **PPO)
    job = PolicyJob.open(made, JobFolder(trainings.job(tmp_path / "a", made)), Group())
    assert job.reference is job.actor.policy
    assert adapters(job.actor.critic)
    assert job.actor.critic.score.weight.requires_grad
    frozen = [p for p in job.actor.parameters() if not p.requires_grad]
    before = [p.clone() for p in frozen]
    status = optimise_policy(made, JobFolder(trainings.job(tmp_path / "b", made)), Group())
    assert status == "succeeded"
    assert all(torch.equal(a, b) for a, b in zip(before, frozen, strict=True))


def test_a_policy_stopped_and_resumed_is_bit_for_bit_the_same(
    datasets, start, judge, tmp_path
) -> None:
    made = planned(datasets, start, judge, **PPO)

    class Soon(Interrupted):
        patience = 3

    ends = []
    for name, form in (("whole", JobFolder), ("parts", Soon)):
        job = form(trainings.job(tmp_path / name, made))
        status = optimise_policy(made, job, Group())
        assert status == ("succeeded" if name == "whole" else "paused")
        if status == "paused":
            job = JobFolder(job.path)
            job.begin()
            assert optimise_policy(made, job, Group()) == "succeeded"
        ends.append((job.model / "model.safetensors").read_bytes())
    assert ends[0] == ends[1]


# -- jobs -----------------------------------------------------------------------------------------


def test_a_job_publishes_the_merged_model_and_the_adapter_of_its_base(
    datasets, start, tmp_path
) -> None:
    store = ArtifactStore((tmp_path / "store").as_uri())
    dataset = store.publish("d", "dataset", datasets("pairs"))
    base = store.publish("base", "model", start["llama"], license="mit")
    settings = load_settings(
        data_dir=tmp_path / "data", trainer={"threads": 1, "background": False}
    )
    fields = {
        "objective": "dpo",
        "policy": None,
        "reward": None,
        "init_from": "base",
        "sequence_length": LENGTH,
    }
    job = rec.JobRecord(
        job_id="j",
        spec=pb.JobSpec(output_name="tuned", train=spec(dataset="d", batch_size=8, **fields)),
    )

    def attempt(made):
        return Execution(
            made,
            fence=1,
            settings=settings,
            store=store,
            launcher=ProcessLauncher(),
            renderer=None,
        ).run()

    record = attempt(job)
    adapter = store.get("tuned-adapter@1")
    assert record.kind == "model"
    assert record.parents == (dataset.ref, base.ref, adapter.ref)
    assert adapter.kind == "adapter"
    assert adapter.parents[0] == base.ref
    assert adapter.manifest["data_digests"][base.ref] == base.digest
    assert adapter.manifest["license"] == record.manifest["license"] == "mit"
    names = {path.name for path in store.fetch(adapter).iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert (
        b'"base_model_name_or_path": "base@1"'
        in (store.fetch(adapter) / "adapter_config.json").read_bytes()
    )
    assert attempt(job) == record  # found, not trained again
    assert len(store.list("adapter")) == 1


@pytest.mark.parametrize(
    ("change", "field", "says"),
    [
        ({"lora": pb.LoraSpec()}, "lora.rank", "is 0, must be 1 to"),
        ({"lora": pb.LoraSpec(rank=5000)}, "lora.rank", "must be 1 to"),
        ({"lora": pb.LoraSpec(rank=4, alpha=0.0)}, "lora.alpha", "is 0.0, must be"),
        ({"lora": pb.LoraSpec(rank=4, alpha=float("nan"))}, "lora.alpha", "is nan"),
        ({"lora": pb.LoraSpec(rank=4, dropout=1.0)}, "lora.dropout", "must be 0 to"),
        ({"lora": pb.LoraSpec(rank=4, dropout=0.1)}, "lora.dropout", "must compute the same"),
        ({"lora": pb.LoraSpec(rank=4, targets=[""])}, "lora.targets", "empty name"),
        ({"lora": pb.LoraSpec(rank=4, targets=["x"] * 65)}, "lora.targets", "at most 64"),
        (
            {
                "objective": "sft",
                "reward": None,
                "policy": None,
                "init_from": None,
                "sequence_length": LENGTH,
                "model": model_spec(family="llama"),
            },
            "lora",
            "give init_from instead",
        ),
    ],
)
def test_each_mistake_names_its_field(change, field, says) -> None:
    with pytest.raises(InvalidArgument, match=says) as caught:
        check_spec(pb.JobSpec(output_name="m", train=spec(**change)))
    assert caught.value.field == f"spec.train.{field}"


def test_a_reward_model_has_no_output_map_to_adapt() -> None:
    model = new_config(**trainings.MODEL, vocab_size=300, tie_embeddings=False)
    lora = pb.LoraSpec(rank=4, targets=["lm_head"])
    fields = lora_fields(train_spec(objective="sft", lora=lora), model)
    assert fields is not None
    assert fields["targets"] == ("lm_head",)
    with pytest.raises(InvalidArgument, match=r"lora\.targets: 'lm_head' is no linear map"):
        lora_fields(train_spec(objective="reward", lora=lora), model)


def test_targets_that_the_model_has_not_are_named(datasets, start, judge) -> None:
    lora = pb.LoraSpec(rank=4, targets=["q_proj", "c_attn"])
    with pytest.raises(
        InvalidArgument, match=r"lora\.targets: 'c_attn' is no linear map"
    ) as caught:
        planned(datasets, start, judge, lora=lora)
    assert caught.value.field == "spec.train.lora.targets"


def test_the_adapters_name_must_fit_too() -> None:
    with pytest.raises(InvalidArgument, match="at most 56 characters"):
        check_spec(pb.JobSpec(output_name="x" * 57, train=spec()))
