"""The state machine under random histories: no step begins early, a run ends once and only when
nothing is in flight."""

from __future__ import annotations

import random

import pytest

from plinth.coordinator import machine
from plinth.coordinator.machine import Wanted
from plinth.coordinator.pipeline import parse
from plinth.v1 import runs_pb2 as pb

PIPELINE = parse("""
name: p
steps:
  a: {kind: data, builtin: stdlib}
  b: {kind: tokenizer, corpus: $a, vocab_size: 300}
  c: {kind: data, corpus: $a, tokenizer: $b}
  d: {kind: data, builtin: stdlib-instruct}
  e: {kind: train, objective: clm, dataset: $c, init_from: base, steps: 1, after: [d]}
""")


@pytest.mark.parametrize("seed", range(200))
def test_random_histories(seed: int) -> None:
    rng = random.Random(seed)
    run, wanted = machine.new_run("r", PIPELINE, 1), Wanted.RUN
    for now in range(2, 400):
        if rng.random() < 0.1 and wanted is not Wanted.CANCEL:
            wanted = rng.choice([Wanted.RUN, Wanted.RUN, Wanted.PAUSE, Wanted.CANCEL])
        startable = machine.startable(run, PIPELINE, wanted)
        done = {step.name for step in run.steps if step.state in machine.DONE}
        for name in startable:
            assert wanted is Wanted.RUN
            assert PIPELINE.needs(name) <= done
            machine.begin(run, name, input_digest=f"sha256:{name}", job_id=name, now=now)
        for name in machine.in_flight(run):
            what = rng.random()
            if machine.stopping(run, wanted):
                machine.cancel(run, name, now=now)
            elif what < 0.3:
                output = f"{name}@1"
                machine.succeed(run, name, output=output, metrics={}, reused=what < 0.1, now=now)
            elif what < 0.33:
                machine.fail(run, name, error="broke", now=now)
            else:
                machine.advance(run, name, fraction=rng.random(), detail="goes on")
        machine.settle(run, wanted, now)
        if machine.ended(run):
            break
    assert machine.ended(run) or wanted is Wanted.PAUSE or machine.in_flight(run) == []
    if machine.ended(run):
        states = {step.state for step in run.steps}
        assert pb.STEP_STATE_RUNNING not in states
        assert pb.STEP_STATE_PENDING not in states
        assert run.finished_unix_ms > 0
        assert (run.state == pb.RUN_STATE_SUCCEEDED) == (states <= machine.DONE)
        assert (run.state == pb.RUN_STATE_FAILED) == (pb.STEP_STATE_FAILED in states)
        assert machine.startable(run, PIPELINE, Wanted.RUN) == []


def test_progress_never_runs_backwards() -> None:
    run = machine.new_run("r", PIPELINE, 1)
    machine.begin(run, "a", input_digest="x", job_id="j", now=2)
    machine.advance(run, "a", fraction=0.5, detail="half")
    machine.advance(run, "a", fraction=0.1, detail="taken up again")
    assert (run.steps[0].progress, run.steps[0].detail) == (0.5, "taken up again")


def test_illegal_moves_are_refused() -> None:
    run = machine.new_run("r", PIPELINE, 1)
    with pytest.raises(AssertionError):
        machine.succeed(run, "a", output="a@1", metrics={}, reused=False, now=2)
    machine.begin(run, "a", input_digest="x", job_id="j", now=2)
    with pytest.raises(AssertionError):
        machine.begin(run, "a", input_digest="x", job_id="j", now=2)
