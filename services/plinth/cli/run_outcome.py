"""What came of a run's comparisons: which model its later steps promoted and serve, in words.

A run succeeds although no rival was better: then what it serves under the new name is the model
that it began with, and somebody who reads "succeeded" must be told so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import yaml

from plinth.shared.api.structs import plain_values
from plinth.v1 import runs_pb2 as pb

_VERBS = {
    pb.STEP_KIND_PUBLISH: "published as",
    pb.STEP_KIND_SERVE: "served as",
    pb.STEP_KIND_CANARY: "served as",
}


def promotions(run: pb.Run) -> Iterator[str]:
    """A line for each comparison whose winner other steps of the run published or serve."""
    steps = (yaml.safe_load(run.spec.pipeline_yaml) or {}).get("steps", {})
    for step in run.status.steps:
        if step.kind != pb.STEP_KIND_COMPARE or not step.HasField("metrics"):
            continue
        figures = plain_values(step.metrics)
        names = [
            f"{_VERBS[later.kind]} {_name(later)}"
            for later in run.status.steps
            if later.kind in _VERBS
            and later.HasField("metrics")
            and _comes_from(later.step_id, step.step_id, steps)
        ]
        if not names:
            continue
        baseline = figures["models"]["baseline"]["model"]
        if figures["winner"] == "baseline":
            yield (
                f"Nothing new was promoted: in {step.step_id} no rival was better than {baseline} "
                f"beyond chance, so {baseline}, the model that it began with, is "
                f"{' and '.join(names)}."
            )
        else:
            made = step.artifact.removeprefix("artifacts/")
            yield (
                f"{made} is promoted: in {step.step_id} it was better than {baseline} beyond "
                f"chance, and is {' and '.join(names)}."
            )


def _name(step: pb.Step) -> str:
    figures = plain_values(step.metrics)
    return str(figures["alias"] if step.kind == pb.STEP_KIND_PUBLISH else figures["name"])


def _comes_from(later: str, step: str, steps: dict[str, Any]) -> bool:
    """Whether what `later` takes as its model is what `step` made."""
    seen: set[str] = set()
    while later in steps and later not in seen:
        seen.add(later)
        later = str(steps[later].get("model", "")).removeprefix("$")
        if later == step:
            return True
    return False
