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
from job_specs import policy_spec, train_spec
from plinth.cli.models import app
from plinth.internal.v1 import job_records_pb2 as rec
from plinth.kernels.training import SdpaBackend
from plinth.models.adapters.peft_format import put_on, read_adapter
from plinth.models.weights import load_decoder
from plinth.shared.settings import load_settings
from plinth.shared.store import ArtifactStore
from plinth.trainer.data.shards import Split
from plinth.trainer.execution import Execution
from plinth.trainer.loop import Group, train
from plinth.trainer.loop.job_folder import JobFolder
from plinth.trainer.planning import plan_train
from plinth.trainer.policy.run import optimise_policy
from plinth.v1 import jobs_pb2 as pb

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

LENGTH = 64
TEXT_END, TURN_END = 0, 2  # <|endoftext|>, the checkpoint's; <|im_end|>, the template's
IDS = torch.arange(3, 43)[None]
FAMILIES = {"llama": random_llama, "gpt2": random_gpt2}


def checkpoint(datasets, folder, family, dtype=torch.bfloat16):
    """With an output map of its own, and an end of text that is not what ends a turn."""
    vocabulary = Split(datasets("messages"), "train").info.vocab_size
    made = FAMILIES[family](
        folder,
        layers=2,
        hidden=32,
        vocab_size=vocabulary,
        context=LENGTH,
        tied=False,
        dtype=dtype,
        max_shard_size="30KB",
    )
    assert len(list(made.glob("model-*.safetensors"))) > 1
    shutil.copytree(datasets("messages") / "tokenizer", made, dirs_exist_ok=True)
    for name in ("config.json", "generation_config.json"):
        change(made / name, eos_token_id=TEXT_END)
    change(made / "tokenizer_config.json", eos_token="<|endoftext|>", pad_token="<|endoftext|>")
    return made


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def ends(folder):
    """By transformers: as its `generate` reads them, and as config.json says."""
    made = transformers.GenerationConfig.from_pretrained(folder).eos_token_id
    assert transformers.AutoConfig.from_pretrained(folder).eos_token_id == made
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


def commands(folder):
    def plinth(*arguments):
        done = CliRunner().invoke(app, [*map(str, arguments), "--data", str(folder)])
        assert done.exit_code == 0, done.output
        return " ".join(done.output.split())

    return plinth


def by_lora(folder, dataset, objective):
    """The store in `folder` and what a job makes there by LoRA of its model `base`."""
    settings = load_settings(data_dir=folder, trainer={"threads": 1, "background": False})
    store = ArtifactStore(settings.store())
    store.publish("d", "dataset", dataset)
    spec = train_spec(
        objective=objective,
        dataset="d",
        init_from="base",
        sequence_length=LENGTH,
        batch_size=8,
        steps=15,
        learning_rate=2e-2,
        lora=pb.LoraSpec(rank=4, alpha=16),
    )
    job = rec.JobRecord(job_id="j", spec=pb.JobSpec(output_name="tuned", train=spec))
    running = Execution(
        job, fence=1, settings=settings, store=store, launcher=Here(), renderer=None
    )
    return store, running.run()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sharded_bf16_checkpoint_tuned_by_lora_opens_elsewhere_with_equal_logits(
    datasets, tmp_path, family
) -> None:
    source = checkpoint(datasets, tmp_path / "source", family)

    plinth = commands(tmp_path / "data")
    plinth("import", source, "--name", "base")
    store, record = by_lora(tmp_path / "data", datasets("messages"), "sft")
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

    # Every way out ends an answer where the tuned model was taught to.
    plinth("import", tmp_path / "adapter", "--base", "base", "--name", "back")
    plinth("export", "back", tmp_path / "back")
    for name in ("tuned", "merged", "back", "adapter/base"):
        assert ends(tmp_path / name) == [TEXT_END, TURN_END], name
    assert by_peft.generation_config.eos_token_id == [TEXT_END, TURN_END]
    assert ends(source) == TEXT_END


@pytest.mark.parametrize("family", FAMILIES)
def test_a_reward_models_adapter_is_merged_into_its_base_as_its_job_did(
    datasets, tmp_path, family
) -> None:
    """Its base has an output map, and pads with what ends a turn; a reward model does neither."""
    source = checkpoint(datasets, tmp_path / "source", family)
    change(source / "config.json", pad_token_id=TURN_END)
    change(source / "tokenizer_config.json", pad_token="<|im_end|>", bos_token="<|endoftext|>")
    plinth = commands(tmp_path / "data")
    plinth("import", source, "--name", "base")
    assert by_lora(tmp_path / "data", datasets("pairs"), "reward")[1].kind == "reward"
    plinth("export", "tuned", tmp_path / "tuned")
    plinth("export", "tuned-adapter", tmp_path / "adapter", "--with-base")
    assert "reward, bf16" in plinth("export", "tuned-adapter", tmp_path / "merged", "--merge")
    plinth("import", tmp_path / "adapter", "--base", "base", "--name", "back")
    plinth("export", "back", tmp_path / "back")
    wanted = (tmp_path / "tuned" / "model.safetensors").read_bytes()
    for place in ("merged", "back", "adapter/base"):
        said = json.loads((tmp_path / place / "config.json").read_text())
        assert (said["pad_token_id"], said["eos_token_id"]) == (TEXT_END, [TEXT_END, TURN_END])
        if place != "adapter/base":
            assert (tmp_path / place / "model.safetensors").read_bytes() == wanted


MADE = ("merged", "tuned")
POLICY = policy_spec(samples=4, max_new_tokens=6)
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
    spec = train_spec(
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
    spec = train_spec(dataset="d", init_from="b", objective="reward", **fields)
    made = plan_train(spec, datasets("pairs"), base, settings, None)
    folder = JobFolder(trainings.job(tmp_path / "judge", made))
    assert train(made, folder, Group()) == "succeeded", folder.outcome()
    return folder.model
