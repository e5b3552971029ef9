"""A new run that takes over what another one finished, and does the rest with other settings.

What is taken over: every finished step that neither is `from_step` nor needs it, whose settings the
overrides leave alone, and whose own inputs are taken over. Its artifact must still be on the store
with the digest that the step recorded. Blocks on the store; called in a thread.
"""

from __future__ import annotations

import difflib
import graphlib
from collections.abc import Mapping

from plinth.coordinator import machine
from plinth.coordinator.pipeline import STORED_BYTES, Pipeline, check_paths, parse, pinned
from plinth.coordinator.results import StepResults
from plinth.coordinator.steps import STEP_KINDS
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactStore
from plinth.v1 import runs_pb2 as pb


def fork(
    source: rec.RunRecord,
    *,
    run_id: str,
    from_step: str,
    overrides: Mapping[str, str],
    store: ArtifactStore,
    roots: SourceRoots,
    now: int,
) -> rec.RunRecord:
    """The new run; `now` in Unix milliseconds. InvalidArgument: no such step, or an override
    of a step that `from_step` needs. PermissionDenied: a path outside of the roots.
    FailedPrecondition: one of the needed steps is not finished, or what it made is gone."""
    before = parse(source.pipeline_yaml, most=STORED_BYTES)
    _check_step(from_step, before)
    after = parse(source.pipeline_yaml, overrides, most=STORED_BYTES)
    check_paths(after, roots)
    after = pinned(after, store)
    _check_step(from_step, after)
    needed = _ancestors(after, from_step)
    taken = _taken_over(source, before, after, from_step)
    for step in sorted(needed - taken):
        _refuse(step, source, before, after, from_step)
    run = machine.new_run(run_id, after, now)
    run.forked_from, run.forked_at = source.run_id, from_step
    results = StepResults(store)
    for step in taken:
        done = machine.step_of(source, step)
        _check_output(done, store, results)
        machine.take_over(run, done, source.run_id)
    return run


def _check_step(step: str, pipeline: Pipeline) -> None:
    if step in pipeline.steps:
        return
    near = difflib.get_close_matches(step, list(pipeline.steps), n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"there is {', '.join(pipeline.steps)}"
    raise InvalidArgument(
        f"from_step: the run has no step {step[:80]!r}; {hint}",
        reason="STEP_NOT_FOUND",
        field="from_step",
    )


def _ancestors(pipeline: Pipeline, step: str) -> set[str]:
    """Steps that `step` needs, and what those need."""
    found: set[str] = set()
    waiting = [step]
    while waiting:
        for other in pipeline.needs(waiting.pop()) - found:
            found.add(other)
            waiting.append(other)
    return found


def _taken_over(
    source: rec.RunRecord, before: Pipeline, after: Pipeline, from_step: str
) -> set[str]:
    done = {step.name for step in source.steps if step.state in machine.DONE}
    taken: set[str] = set()
    needs = {step: after.needs(step) for step in after.steps}
    for step in graphlib.TopologicalSorter(needs).static_order():
        same = step in before.steps and before.steps[step] == after.steps[step]
        if step != from_step and step in done and same and needs[step] <= taken:
            taken.add(step)
    return taken


def _refuse(
    step: str, source: rec.RunRecord, before: Pipeline, after: Pipeline, from_step: str
) -> None:
    """Raises why a step that `from_step` needs can't be taken over; returns when it is only
    because of another one, of which the same will be said."""
    if step not in before.steps or before.steps[step] != after.steps[step]:
        raise InvalidArgument(
            f"steps.{step}: {from_step} needs it, so it is taken over as it is; fork from {step} "
            "to change it",
            reason="FORK_OVERRIDE",
            field=f"steps.{step}",
        )
    state = machine.step_of(source, step).state
    if state not in machine.DONE:
        word = pb.StepState.Name(state).removeprefix("STEP_STATE_").lower()
        raise FailedPrecondition(
            f"{from_step} needs the step {step}, which is {word} in run {source.run_id}; fork "
            f"from {step} or wait for it",
            reason="STEP_UNFINISHED",
            field="from_step",
        )


def _check_output(step: rec.StepRecord, store: ArtifactStore, results: StepResults) -> None:
    """FailedPrecondition unless what the step made is there, with its digest."""
    try:
        made = store.get(step.output)
    except NotFound:
        made = None
    there = made is not None
    if made is not None and STEP_KINDS[step.kind].pure:
        there = results.stands(step.input_digest, made)
    if not there:
        raise FailedPrecondition(
            f"{step.output}, which the step {step.name} made, is on the store no more; fork from "
            f"{step.name} to make it again",
            reason="ARTIFACT_GONE",
            field="from_step",
        )
