"""A step `tokenizer`: on whose behalf the vocabulary is made."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from plinth.coordinator.steps import tokenizer as step
from plinth.coordinator.steps.contract import StepOutcome, Work
from plinth.internal.v1 import tokenizer_pb2 as pb
from plinth.shared.identity import Principal
from plinth.v1 import artifacts_pb2


async def test_the_tokenizer_is_the_runs_owners(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stage makes it for whom it is asked by; for another stage it would be nobody's."""
    asked: list[Any] = []

    async def watch(*_: Any, principal: Principal | None = None) -> AsyncIterator[pb.TrainResponse]:
        asked.append(principal)
        artifact = artifacts_pb2.Artifact(name="artifacts/mine@1", artifact_id="mine", version=1)
        yield pb.TrainResponse(artifact=artifact)

    monkeypatch.setattr(step, "watch", watch)
    owner = Principal("acme", "key", frozenset({"jobs"}))
    spec = step.TokenizerSpec(kind="tokenizer", corpus="texts@1", vocab_size=400)
    inputs: Any = {"corpus": SimpleNamespace(ref="texts@1")}
    work = Work(
        run_id="r",
        step="s",
        spec=spec,
        inputs=inputs,
        output_name="mine",
        input_digest="sha256:0",
        principal=owner,
    )
    tools: Any = SimpleNamespace(clients=None)
    *_, last = [one async for one in step.TokenizerStep().execute(work, tools)]
    assert isinstance(last, StepOutcome)
    assert asked == [owner]
