"""What a training step asks of the trainer: every word of its spec arrives in the job."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from checkpoints import random_llama
from plinth.coordinator.pipeline import parse
from plinth.coordinator.steps.contract import StepOutcome, Work
from plinth.coordinator.steps.train import TrainStep
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import Principal
from plinth.v1 import jobs_pb2 as pb

SPEC = """
name: small
steps:
  tune:
    kind: train
    objective: dpo
    dataset: data
    init_from: base
    steps: 4
    lora: {rank: 16, alpha: 32, targets: [q_proj, v_proj]}
"""


class Trainer:
    """Takes the job and says that it is done."""

    def __init__(self) -> None:
        self.asked: list[pb.CreateJobRequest] = []

    async def CreateJob(self, request: pb.CreateJobRequest) -> pb.CreateJobResponse:
        self.asked.append(request)
        status = pb.JobStatus(state=pb.JOB_STATE_SUCCEEDED, artifact="artifacts/small-tune@1")
        return pb.CreateJobResponse(job=pb.Job(name=f"jobs/{request.job_id}", status=status))


async def submitted(store: Any, tmp_path: Any, text: str) -> pb.TrainSpec:
    base = store.publish("base", "model", random_llama(tmp_path / "base", layers=1, context=64))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "dataset.json").write_text("{}")
    data = store.publish("data", "dataset", tmp_path / "data")
    trainer = Trainer()

    async def client(_principal: Principal) -> Trainer:
        return trainer

    tools: Any = SimpleNamespace(store=store, clients=SimpleNamespace(trainer=client))
    spec = parse(text).steps["tune"]
    inputs = {"dataset": data, "init_from": base}
    work = Work("run", "tune", spec, inputs, "sha256:0", "small-tune")
    events = [event async for event in TrainStep().execute(work, tools)]
    assert isinstance(events[-1], StepOutcome)
    assert events[-1].output == "small-tune@1"
    return trainer.asked[0].job.spec.train


async def test_adapters_arrive(store: Any, tmp_path: Any) -> None:
    train = await submitted(store, tmp_path, SPEC)
    assert (train.init_from, train.dataset, train.sequence_length) == ("base@1", "data@1", 64)
    assert train.lora == pb.LoraSpec(rank=16, alpha=32, targets=["q_proj", "v_proj"])


async def test_what_is_not_said_is_left_to_the_trainer(store: Any, tmp_path: Any) -> None:
    text = SPEC.replace("{rank: 16, alpha: 32, targets: [q_proj, v_proj]}", "{rank: 8}")
    train = await submitted(store, tmp_path, text)
    assert train.lora == pb.LoraSpec(rank=8)
    assert not train.lora.HasField("alpha")


async def test_without_adapters_all_weights_are_trained(store: Any, tmp_path: Any) -> None:
    text = "\n".join(line for line in SPEC.splitlines() if "lora" not in line)
    assert not (await submitted(store, tmp_path, text)).HasField("lora")


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("rank: 16", "rank: 0", "greater than or equal to 1"),
        ("alpha: 32", "alhpa: 32", "did you mean alpha"),
        ("alpha: 32", "alpha: -1", "greater than 0"),
        ("alpha: 32", "dropout: 1", "less than or equal to"),
        (
            "init_from: base",
            "model: {layers: 1, hidden: 8, heads: 1, context: 8}",
            "dpo starts from a model",
        ),
    ],
)
def test_mistakes_are_named(old: str, new: str, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        parse(SPEC.replace(old, new))


def test_an_adapter_needs_a_model_that_there_is() -> None:
    text = SPEC.replace("init_from: base", "model: {layers: 1, hidden: 8, heads: 1, context: 8}")
    with pytest.raises(InvalidArgument, match="lora adapts a model that there is"):
        parse(text.replace("objective: dpo", "objective: clm"))
