"""What came of a run's comparisons: which model its later steps promoted and serve, in words.

A run succeeds although no rival was better: then what it serves under the new name is the model
that it began with, and somebody who reads "succeeded" must be told so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import yaml

from plinth.v1 import runs_pb2 as pb

_VERBS = {"publish": "published as", "serve": "served as", "canary": "served as"}


def promotions(run: pb.Run) -> Iterator[str]:
    """A line for each comparison whose winner other steps of the run published or serve."""
    steps = (yaml.safe_load(run.pipeline_yaml) or {}).get("steps", {})
    for step in run.steps:
        if step.kind != "compare" or not step.metrics_json:
            continue
        figures = json.loads(step.metrics_json)
        names = [
            f"{_VERBS[later.kind]} {_name(later)}"
            for later in run.steps
            if later.kind in _VERBS
            and later.metrics_json
            and _comes_from(later.name, step.name, steps)
        ]
        if not names:
            continue
        baseline = figures["models"]["baseline"]["model"]
        if figures["winner"] == "baseline":
            yield (
                f"Nothing new was promoted: in {step.name} no rival was better than {baseline} "
                f"beyond chance, so {baseline}, the model that it began with, is "
                f"{' and '.join(names)}."
            )
        else:
            yield (
                f"{step.output} is promoted: in {step.name} it was better than {baseline} beyond "
                f"chance, and is {' and '.join(names)}."
            )


def _name(step: pb.Step) -> str:
    figures = json.loads(step.metrics_json)
    return str(figures["alias"] if step.kind == "publish" else figures["name"])


def _comes_from(later: str, step: str, steps: dict[str, Any]) -> bool:
    """Whether what `later` takes as its model is what `step` made."""
    seen: set[str] = set()
    while later in steps and later not in seen:
        seen.add(later)
        later = str(steps[later].get("model", "")).removeprefix("$")
        if later == step:
            return True
    return False
