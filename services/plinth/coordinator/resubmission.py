"""A run that is submitted twice under one id: the same request gives the run that there is, another
one is an error, since nobody would look at what was asked the second time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from plinth.coordinator.pipeline import Pipeline
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.errors import AlreadyExists
from plinth.v1 import runs_pb2 as pb

_NAMED = 5  # settings that are named in the error


def of_pipeline(pipeline: Pipeline) -> str:
    """Digest of a request to run a pipeline, before its references are fixed to versions: an alias
    that has moved since makes no other request of it."""
    return _digest({"pipeline": pipeline.text})


def of_fork(source: str, from_step: str, overrides: Mapping[str, str]) -> str:
    """Digest of a request to fork a run."""
    return _digest({"source": source, "from": from_step, "overrides": dict(overrides)})


def same(run: rec.RunRecord, asked: str, pipeline: Pipeline | None = None) -> rec.RunRecord:
    """`run`, if it was asked for by the same request. AlreadyExists, with what differs as far as
    `pipeline` tells it, when it was not. A run of a version that kept no digest passes."""
    if run.request_digest in ("", asked):
        return run
    state = pb.RunState.Name(run.state).removeprefix("RUN_STATE_").lower()
    differs = ""
    if run.forked_from and pipeline is not None:
        differs = f" (it is a fork of {run.forked_from})"
    elif pipeline is not None and (names := list(_differences(run, pipeline))):
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        differs = f" ({', '.join(names[:_NAMED])}{more})"
    raise AlreadyExists(
        f"there is a run {run.run_id!r} already ({state}), of other settings{differs}; give "
        "another run_id, or none for a new one",
        reason="RUN_EXISTS",
        metadata={"run_id": run.run_id},
    )


def _differences(run: rec.RunRecord, pipeline: Pipeline) -> Iterator[str]:
    """Paths of settings that differ. A reference differs from the version that it was fixed to, and
    counts only where nothing else does."""
    before = dict(_leaves(yaml.safe_load(run.pipeline_yaml)))
    after = dict(_leaves(yaml.safe_load(pipeline.text)))
    paths = [p for p in {**before, **after} if before.get(p) != after.get(p)]
    references = {
        f"steps.{step}.{name}" for step, spec in pipeline.steps.items() for name in spec.INPUTS
    }
    yield from [path for path in paths if path not in references] or paths


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, one in value.items():
            yield from _leaves(one, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def _digest(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False)
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
