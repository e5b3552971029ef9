import importlib
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import trainings
from plinth.models.decoder import Decoder
from plinth.models.families import new_config
from plinth.models.rope import Rope, RopeScaling
from plinth.trainer import checkpoint as checkpoints
from plinth.trainer.data.shards import Split
from plinth.trainer.loop import Group, machine, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.loop.setup import set_up
from plinth.trainer.loop.train import take_step
from plinth.trainer.objectives.bits_per_byte import evaluate
from plinth.trainer.objectives.sft import SupervisedFineTuning


@pytest.fixture(scope="module")
def plain(datasets):
    return datasets("text")


@pytest.fixture(scope="module")
def chat(datasets):
    return datasets("messages")


def run(folder, config):
    job = JobFolder(trainings.job(folder, config))
    assert train(config, job, Group()) == "succeeded", job.outcome()
    return job


def weights(job):
    return load_file(job.model / "model.safetensors")


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def test_it_learns_and_transformers_agrees_on_the_loss(plain, tmp_path):
    job = run(tmp_path / "a", trainings.config(plain, steps=60))
    metrics = job.outcome()["metrics"]
    assert metrics["train_loss"] < 3.5 < math.log(300)
    assert metrics["tokens"] == 60 * 8 * 32
    # Independent truth: the same documents through transformers, each alone, in one window.
    model = AutoModelForCausalLM.from_pretrained(job.model)
    assert AutoTokenizer.from_pretrained(job.model).eos_token == "<|im_end|>"
    split = Split(plain, "validation")
    nats = size = 0.0
    for number in range(split.documents):
        ids, _ = split.document(number)
        text = torch.tensor([[0, *ids[:-1].tolist()]])[:, :33]
        with torch.no_grad():
            logp = model(text).logits[0].log_softmax(-1)
        nats -= float(logp[:-1].gather(1, text[0, 1:, None]).sum())
        size += text.shape[1] - 1
    short = evaluate_first_window(plain, job)
    assert short == pytest.approx(nats / size, rel=1e-4)


def evaluate_first_window(dataset, job):
    """Our own figure restricted to each document's first window of 32."""
    from plinth.models.weights import load_decoder
    from plinth.trainer.objectives import bits_per_byte as module
    from plinth.trainer.objectives.batch import nll_sum

    split = Split(dataset, "validation")
    windows, _, _ = module._windows(split, 32)
    first = [w for w in windows if w.ids_t1[0] == 0 and w.learn_t.all()]
    decoder = load_decoder(job.model)
    with torch.no_grad():
        total = sum(float(nll_sum(decoder, module._stack([w], 32))) for w in first)
    return total / sum(int(w.learn_t.sum()) for w in first)


def test_windows_score_every_target_once(plain, chat):
    from plinth.trainer.objectives import bits_per_byte as module

    for dataset in (plain, chat):
        split = Split(dataset, "validation")
        _, counted, size = module._windows(split, 16)
        if split.info.form == "text":
            assert counted == split.tokens - split.documents  # all but the closing end-of-text
        else:
            masks = [split.document(i)[1] for i in range(split.documents)]
            assert counted == sum(int(m[1:].sum()) for m in masks)
        assert size == int(split.document_bytes.sum())


def test_uniform_model_has_the_bits_per_byte_of_its_vocabulary(plain):
    config = new_config(**trainings.MODEL, vocab_size=300)
    decoder = Decoder(config)
    for parameter in decoder.parameters():
        torch.nn.init.zeros_(parameter)
    found = evaluate(decoder, Split(plain, "validation"), 32, 8, Group())
    assert found.bits_per_byte == pytest.approx(found.tokens * math.log2(300) / found.bytes)


def test_accumulation_and_padding_do_not_change_a_step(chat, tmp_path):
    """Token-averaged over the batch: micro-batches of unequal token counts give one gradient."""
    found = []
    for micro in (8, 2, 1):
        config = trainings.config(chat, objective="sft", micro_batch_size=micro, steps=1)
        made = set_up(config, JobFolder(trainings.job(tmp_path / str(micro), config)), Group())
        result = take_step(made, 1e-3)
        found.append((float(result.loss), float(result.grad_norm)))
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


@pytest.mark.parametrize("by_length", [False, True])
def test_packed_conversations_do_not_see_one_another(chat, by_length):
    """Each packed answer's loss equals that of the conversation alone: also where long ones turn
    otherwise, which the shorter ones of them are not."""
    split = Split(chat, "train")
    objective = SupervisedFineTuning(split, split, 200, seed=1, pad_id=0)
    lengths = sorted(len(split.document(number)[0]) - 1 for number in objective._packs[0])
    scaling = RopeScaling("dynamic", factor=8.0, original_context=lengths[0])
    rope = Rope(100.0, scaling=scaling if by_length else None)
    decoder = trainings.decoder(1, context=256, ropes=(rope,))
    assert lengths[0] < lengths[-1], "none is longer than the training's context"
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(8.0)  # new weights hardly attend
    batch = objective.batch([0])
    assert int(batch.segments_bt.max()) >= 2
    packed = objective.loss_sum(decoder, batch).item()
    alone = 0.0
    for number in objective._packs[0]:
        ids, mask = split.document(number)
        tokens = torch.from_numpy(ids)
        from plinth.kernels.training import SdpaBackend

        backend = SdpaBackend(1, len(ids) - 1)
        positions = torch.arange(len(ids) - 1) + decoder.config.rope_offset(len(ids) - 1)
        hidden = decoder(tokens[:-1], positions, backend)
        logp = decoder.logits(hidden, backend).log_softmax(-1)
        picked = logp.gather(1, tokens[1:, None])[:, 0]
        alone -= (picked * torch.from_numpy(mask[1:].copy())).sum().item()
    assert packed == pytest.approx(alone, rel=1e-5)


def test_long_conversations_are_cut_and_hopeless_ones_dropped(chat):
    split = Split(chat, "train")
    assert SupervisedFineTuning(split, split, 8, seed=0, pad_id=0).items == 0
    objective = SupervisedFineTuning(split, split, 40, seed=0, pad_id=0)
    assert sorted(n for pack in objective._packs for n in pack) == list(range(split.documents))


@pytest.mark.parametrize("objective", ["clm", "sft", "dpo", "reward"])
def test_with_nothing_held_out_a_training_ends_and_measures_nothing(tmp_path, plain, objective):
    documents = {"clm": trainings.texts(60), "sft": trainings.chats(60)}
    made = trainings.dataset(
        tmp_path / "data", documents.get(objective, trainings.pairs(60)), held_out=0
    )
    start = {}
    if objective in ("dpo", "reward"):
        start = {"init_from": str(run(tmp_path / "s", trainings.config(plain, steps=1)).model)}
        start["model"] = None
    job = run(tmp_path / "a", trainings.config(made, objective=objective, steps=2, **start))
    assert not [name for name in job.outcome()["metrics"] if name.startswith("validation")]


class Impatient(JobFolder):
    """Asks for a pause when it has been looked at `patience` times: once for each step."""

    def __init__(self, path, patience):
        super().__init__(path)
        self._patience = patience

    def requested(self):
        self._patience -= 1
        return "pause" if self._patience < 0 else None


def test_stopped_anywhere_and_resumed_is_bit_for_bit_the_same(plain, tmp_path):
    config = trainings.config(plain, steps=9)
    whole = run(tmp_path / "whole", config)
    folder = trainings.job(tmp_path / "parts", config)
    for patience in (0, 1, 4):
        job = Impatient(folder, patience)
        job.begin()
        assert train(config, job, Group()) == "paused"
    job = JobFolder(folder)
    job.begin()
    assert train(config, job, Group()) == "succeeded"
    assert job.progress().note.startswith("resumed at step 5")
    assert same(weights(whole), weights(job))


def test_a_damaged_checkpoint_is_deleted_and_the_one_before_it_gone_on_from(plain, tmp_path):
    """As the error says."""
    config = trainings.config(plain, steps=9)
    whole = run(tmp_path / "whole", config)
    job = Impatient(trainings.job(tmp_path / "parts", config), 7)
    assert train(config, job, Group()) == "paused"
    newest = checkpoints.checkpoints(job.checkpoints)[-1]
    (newest / "model.safetensors").write_bytes(b"")
    job = JobFolder(job.path)
    job.begin()
    assert train(config, job, Group()) == "failed"
    assert f"{newest} is damaged" in job.error().message
    assert "delete that folder to go on from the one before it" in job.error().message
    shutil.rmtree(newest)
    job.begin()
    assert train(config, job, Group()) == "succeeded"
    assert job.progress().note.startswith("resumed at step 6")
    assert same(weights(whole), weights(job))


def test_figures_of_a_run_that_was_interrupted_are_those_of_the_whole(plain, tmp_path, monkeypatch):
    """Killed after its last checkpoint and before its model: loss and rate are the run's all the
    same, not those of an attempt without a step."""
    module = importlib.import_module("plinth.trainer.loop.train")
    config = trainings.config(plain, steps=5)
    whole = run(tmp_path / "whole", config).outcome()["metrics"]
    job = JobFolder(trainings.job(tmp_path / "killed", config))
    with monkeypatch.context() as patch:
        patch.setattr(module, "_evaluate", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(config, job, Group())
    assert train(config, job, Group()) == "succeeded"
    metrics = job.outcome()["metrics"]
    assert metrics["train_loss"] == whole["train_loss"] > 0
    assert metrics["tokens_per_second"] > 0
    assert (job.progress().loss, job.progress().tokens_per_second) == (
        metrics["train_loss"],
        metrics["tokens_per_second"],
    )


def test_time_decides_the_steps_once(plain, tmp_path):
    config = trainings.config(plain, steps=0, max_seconds=1.0)
    job = run(tmp_path / "a", config)
    steps = job.outcome()["metrics"]["steps"]
    assert steps >= 1
    state = checkpoints.read_state(checkpoints.checkpoints(job.checkpoints)[-1], config.digest())
    assert state.total == state.step == steps
    # The trial steps left no trace: a run of that many steps is the same.
    counted = run(tmp_path / "b", trainings.config(plain, steps=int(steps)))
    assert same(weights(job), weights(counted))


def test_not_a_number_fails_clearly_and_keeps_the_last_good_checkpoint(plain, tmp_path):
    config = trainings.config(plain, learning_rate=1e12, clip_norm=0.0, steps=30)
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert train(config, job, Group()) == "failed"
    assert job.error().reason == "LOSS_NOT_FINITE"
    assert "Lower the learning rate" in job.error().message
    for folder in checkpoints.checkpoints(job.checkpoints):
        for tensor in load_file(folder / "model.safetensors").values():
            assert torch.isfinite(tensor).all()
    assert not job.model.exists()


def test_cancelled_runs_keep_their_checkpoint(plain, tmp_path):
    config = trainings.config(plain)
    job = JobFolder(trainings.job(tmp_path / "a", config))
    job.request("cancel")
    assert train(config, job, Group()) == "cancelled"
    assert checkpoints.checkpoints(job.checkpoints)
    assert train(config, job, Group()) == "cancelled"  # a restarted worker finds it ended


def test_too_little_data(plain, tmp_path):
    config = trainings.config(plain, batch_size=4000, micro_batch_size=4000)
    job = JobFolder(trainings.job(tmp_path / "a", config))
    assert train(config, job, Group()) == "failed"
    assert "fewer than one batch of 4000" in job.error().message


def test_fine_tuning_goes_on_from_a_model(plain, chat, tmp_path):
    wide = {"model": {**trainings.MODEL, "context": 64}, "sequence_length": 64}
    base = run(tmp_path / "base", trainings.config(plain, steps=3, **wide))
    config = trainings.config(
        chat,
        objective="sft",
        init_from=str(base.model),
        model=None,
        steps=60,
        eval_every=20,
        sequence_length=64,
    )
    job = run(tmp_path / "tuned", config)
    metrics = job.outcome()["metrics"]
    assert metrics["validation_loss"] < 3.0 < base.outcome()["metrics"]["validation_loss"]
    generation = AutoModelForCausalLM.from_pretrained(job.model).generation_config
    assert generation.eos_token_id == [2, 0]  # the turn's end, then the document's


def test_gpt2_trains_too(plain, tmp_path):
    shape = {**trainings.MODEL, "family": "gpt2", "kv_heads": 4}
    config = trainings.config(plain, model=new_config(**shape, vocab_size=1).to_json(), steps=5)
    job = run(tmp_path / "a", config)
    assert AutoModelForCausalLM.from_pretrained(job.model).config.model_type == "gpt2"


def test_bf16_is_taken_only_where_it_is_clearly_faster(monkeypatch, plain, tmp_path):
    times = {torch.float32: 1.0, torch.bfloat16: 0.9}
    monkeypatch.setattr(machine, "_matmul_seconds", lambda kind, *_: times[kind])
    assert machine.choose_precision("auto", "cpu", 8, 8) == "fp32"
    times[torch.bfloat16] = 0.2
    assert machine.choose_precision("auto", "cpu", 8, 8) == "bf16"
    assert machine.choose_precision("fp32", "cpu", 8, 8) == "fp32"
    job = run(tmp_path / "a", trainings.config(plain, precision="auto", steps=3))
    assert "bf16" in job.progress().note
    assert weights(job)["model.norm.weight"].dtype == torch.float32
