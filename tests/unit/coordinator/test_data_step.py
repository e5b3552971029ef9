"""What a data step asks of the trainer, what it tells of the answer, and when it is done again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from job_specs import prepare_spec
from plinth.coordinator.pipeline import parse
from plinth.coordinator.steps.contract import StepOutcome, Work
from plinth.coordinator.steps.data import DataStep, fingerprint
from plinth.shared.api.structs import struct
from plinth.shared.identity import Principal
from plinth.shared.intake import Intake, intakes_of
from plinth.v1 import jobs_pb2 as pb

SPEC = """
name: small
steps:
  corpus: {kind: data, corpus_dir: /texts, max_bytes: 9, validation_fraction: 0, max_left_out: 0.8}
"""
TOLD = Intake("files", 3, {"of kind .json": 2})


class Trainer:
    """Takes the job and says that it is done."""

    async def CreateJob(self, request: pb.CreateJobRequest) -> pb.CreateJobResponse:
        self.asked = request.job.spec.prepare
        status = pb.JobStatus(
            state=pb.JOB_STATE_SUCCEEDED,
            artifact="artifacts/small-corpus@1",
            metrics=struct({"intake": [TOLD.to_json()]}),
        )
        return pb.CreateJobResponse(job=pb.Job(status=status))


async def test_every_word_arrives_and_what_was_left_out_comes_back() -> None:
    trainer = Trainer()

    async def client(_principal: Principal) -> Trainer:
        return trainer

    tools: Any = SimpleNamespace(clients=SimpleNamespace(trainer=client))
    work = Work("run", "corpus", parse(SPEC).steps["corpus"], {}, "sha256:0", "small-corpus")
    events = [event async for event in DataStep().execute(work, tools)]
    assert isinstance(events[-1], StepOutcome)
    assert intakes_of(events[-1].metrics) == [TOLD]
    wanted = prepare_spec(corpus_dir="/texts", max_bytes=9)
    wanted.validation_fraction, wanted.max_left_out = 0, 0.8
    assert trainer.asked == wanted


def test_a_change_behind_a_link_is_a_change(tmp_path: Path) -> None:
    corpus, elsewhere = tmp_path / "corpus", tmp_path / "elsewhere"
    corpus.mkdir()
    elsewhere.mkdir()
    (corpus / "a.txt").write_text("a")
    (corpus / "linked").symlink_to(elsewhere)
    seen = [fingerprint(corpus)]
    (elsewhere / "b.TXT").write_text("b")
    seen.append(fingerprint(corpus))
    (elsewhere / "b.TXT").write_text("longer")
    seen.append(fingerprint(corpus))
    assert len(set(seen)) == 3
    # What is no part of the corpus changes nothing.
    (corpus / "picture.png").write_bytes(b"png")
    (corpus / ".hidden.txt").write_text("h")
    assert fingerprint(corpus) == seen[-1]
    assert fingerprint(tmp_path / "none") is None
