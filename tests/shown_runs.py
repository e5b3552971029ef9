"""Steps of runs as a client gets them, in few words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from plinth.shared.api.structs import plain_values, struct
from plinth.shared.api.words import given
from plinth.v1 import runs_pb2 as pb


def step(
    kind: str,
    figures: Mapping[str, Any] | None = None,
    made: str = "",
    *,
    name: str = "",
    state: pb.StepState.ValueType = pb.STEP_STATE_SUCCEEDED,
    **fields: Any,
) -> pb.Step:
    """kind: its word. made: "chat@1". name: default its kind."""
    said = {"step_id": name or kind, "kind": kind, "artifact": made and f"artifacts/{made}"}
    told = given(pb.Step, {**said, **fields, "metrics": struct(figures) if figures else None})
    told.state = state
    return told


def run(*steps: pb.Step, run_id: str = "r", state: str = "running", pipeline: str = "") -> pb.Run:
    """state: its word."""
    status = given(pb.RunStatus, {"state": state, "steps": steps})
    return pb.Run(name=f"runs/{run_id}", spec=pb.RunSpec(pipeline_yaml=pipeline), status=status)


def create_run(
    run_id: str, pipeline: str, overrides: Mapping[str, str] | None = None
) -> pb.CreateRunRequest:
    spec = pb.RunSpec(pipeline_yaml=pipeline, overrides=overrides or {})
    return pb.CreateRunRequest(run_id=run_id, run=pb.Run(spec=spec))


def made(step: pb.Step) -> str:
    """What a step made, "mini@1"."""
    return step.artifact.removeprefix("artifacts/")


def figures(step: pb.Step) -> dict[str, Any]:
    return plain_values(step.metrics)
