"""A checkpoint's way through Plinth, as a user goes it: made by transformers in bf16 and shards,
imported, tuned, exported, and opened again by transformers and PEFT."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file
from typer.testing import CliRunner

import trainings
from checkpoints import random_gpt2, random_llama
from plinth.cli.models import app
from plinth.kernels.training import SdpaBackend
from plinth.models.peft_format import put_on, read_adapter
from plinth.models.weights import load_decoder
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from plinth.trainer.data.shards import Split
from plinth.trainer.execution import Execution
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.policy.run import optimise_policy
from plinth.trainer.validation import plan_train
from plinth.v1 import trainer_pb2 as pb

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LENGTH = 64
IDS = torch.arange(3, 43)[None]
FAMILIES = {"llama": random_llama, "gpt2": random_gpt2}


def checkpoint(datasets, folder, family, dtype=torch.bfloat16):
    vocabulary = Split(datasets("messages"), "train").info.vocab_size
    made = FAMILIES[family](
        folder,
        layers=2,
        hidden=32,
        vocab_size=vocabulary,
        context=LENGTH,
        dtype=dtype,
        max_shard_size="30KB",
    )
    assert len(list(made.glob("model-*.safetensors"))) > 1
    shutil.copytree(datasets("messages") / "tokenizer", made, dirs_exist_ok=True)
    return made


class Here:
    """Does a job's work in this process."""

    def run(self, folder, config):
        train(config, JobFolder(folder), Group())


def logits(model):
    with torch.no_grad():
        return model.float().eval()(IDS).logits


def ours(decoder):
    backend = SdpaBackend(1, IDS.shape[1])
    with torch.no_grad():
        hidden = decoder(IDS[0], torch.arange(IDS.shape[1]), backend)
        return decoder.logits(hidden, backend)[None]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_bf16_checkpoint_tuned_by_lora_opens_elsewhere_with_equal_logits(
    datasets, tmp_path, family
) -> None:
    source = checkpoint(datasets, tmp_path / "source", family)

    def plinth(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments), "--data", str(tmp_path / "data")])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    plinth("import", source, "--name", "base")
    settings = load_settings(
        data_dir=tmp_path / "data", trainer={"threads": 1, "background": False}
    )
    store = ArtifactStore(settings.store())
    store.publish("d", "dataset", datasets("messages"))
    spec = pb.TrainSpec(
        objective="sft",
        dataset="d",
        init_from="base",
        sequence_length=LENGTH,
        batch_size=8,
        steps=15,
        learning_rate=2e-2,
        lora=pb.LoraSpec(rank=4, alpha=16),
    )
    job = pb.Job(job_id="j", spec=pb.JobSpec(output_name="tuned", train=spec))
    record = Execution(
        job, fence=1, settings=settings, store=store, launcher=Here(), renderer=None
    ).run()
    assert 0 < record.manifest["metrics"]["lost_to_rounding"] < 1
    served = ours(load_decoder(store.fetch(record)))
    adapted = load_decoder(store.fetch("base"))
    put_on(adapted, read_adapter(store.fetch("tuned-adapter")), "adapter")
    trained = ours(adapted)
    assert not torch.allclose(served, ours(load_decoder(source)), atol=0.1)

    assert "model, bf16" in plinth("export", "tuned", tmp_path / "tuned")
    whole = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "tuned")
    assert whole.dtype == torch.bfloat16
    assert torch.allclose(logits(whole), served, atol=2e-4)
    transformers.AutoTokenizer.from_pretrained(tmp_path / "tuned")

    plinth("export", "tuned-adapter", tmp_path / "adapter", "--with-base")
    by_peft = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert by_peft.get_base_model().dtype == torch.bfloat16
    assert torch.allclose(logits(by_peft), trained, atol=2e-4)
    onto_theirs = peft.PeftModel.from_pretrained(
        transformers.AutoModelForCausalLM.from_pretrained(source), tmp_path / "adapter"
    )
    assert torch.allclose(logits(onto_theirs), trained, atol=2e-4)

    assert "model, bf16" in plinth("export", "tuned-adapter", tmp_path / "merged", "--merge")
    merged, tuned = (load_file(tmp_path / name / "model.safetensors") for name in MADE)
    assert merged.keys() == tuned.keys()
    assert all(torch.equal(merged[name], tuned[name]) for name in merged)


MADE = ("merged", "tuned")
POLICY = pb.PolicySpec(samples=4, max_new_tokens=6)
JOBS = {
    "sft": ({"objective": "sft"}, "messages"),
    "dpo": ({"objective": "dpo"}, "pairs"),
    "reward": ({"objective": "reward"}, "pairs"),
    "reward-lora": ({"objective": "reward", "lora": pb.LoraSpec(rank=2)}, "pairs"),
    "grpo": ({"objective": "grpo", "policy": POLICY, "reward": "r"}, "pairs"),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("job", JOBS)
def test_every_objective_keeps_the_type_of_what_it_starts_from(
    datasets, tmp_path, job, dtype
) -> None:
    base = checkpoint(datasets, tmp_path / "base", "llama", dtype)
    changes, form = JOBS[job]
    fields = {"sequence_length": LENGTH, "batch_size": 8, "steps": 2, "learning_rate": 1e-3}
    said = {name: value for name, value in fields.items() if name != "sequence_length"}
    spec = pb.TrainSpec(
        dataset="d", init_from="b", **(said if changes.get("reward") else fields), **changes
    )
    settings = load_settings(trainer={"threads": 1}).trainer
    judge = None
    if changes.get("reward"):
        judge = judged(datasets, base, tmp_path, settings, fields)
    made = plan_train(spec, datasets(form), base, settings, judge)
    folder = JobFolder(trainings.job(tmp_path / "job", made))
    run = optimise_policy if judge else train
    assert run(made, folder, Group()) == "succeeded", folder.outcome()
    tensors = load_file(folder.model / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    stated = json.loads((folder.model / "config.json").read_text())["dtype"]
    assert f"torch.{stated}" == str(dtype)
    metrics = folder.outcome()["metrics"]
    assert ("lost_to_rounding" in metrics) == (dtype == torch.bfloat16)


def judged(datasets, base, tmp_path, settings, fields):
    spec = pb.TrainSpec(dataset="d", init_from="b", objective="reward", **fields)
    made = plan_train(spec, datasets("pairs"), base, settings, None)
    folder = JobFolder(trainings.job(tmp_path / "judge", made))
    assert train(made, folder, Group()) == "succeeded", folder.outcome()
    return folder.model
