"""What an error of the coordinator advises is done here, and helps."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis.asyncio import Redis

import trainings
from coordinator_replica import EXAMPLES, PIPELINE, Coordinator, states
from plinth.cli.corpus_option import corpus_overrides
from plinth.cli.runs import parse_overrides
from plinth.coordinator import gates, machine, runs
from plinth.coordinator.heldout import judge_by_ngram
from plinth.coordinator.machine import Wanted
from plinth.coordinator.pipeline import parse
from plinth.coordinator.runs import RunRecords
from plinth.shared.errors import (
    FailedPrecondition,
    InvalidArgument,
    PlinthError,
    ResourceExhausted,
)
from plinth.shared.manifest import check_name
from plinth.shared.storage_url import open_storage
from plinth.trainer.data.corpus import write_corpus
from plinth.v1 import runs_pb2 as pb
from scripted_stages import World


async def test_too_many_runs_wait_for_one_or_cancel_one(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch, world: World
) -> None:
    monkeypatch.setattr(runs, "MAX_ACTIVE", 1)
    records, pipeline = RunRecords(redis_client), parse(PIPELINE)
    await records.submit(machine.new_run("r1", pipeline, 1))
    with pytest.raises(ResourceExhausted, match="wait for one or cancel one"):
        await records.submit(machine.new_run("r2", pipeline, 1))
    coordinator = Coordinator(world, "one")
    await coordinator.start()
    await records.want("r1", Wanted.CANCEL)
    await coordinator.end("r1")
    assert (await records.submit(machine.new_run("r2", pipeline, 1))).run_id == "r2"
    await coordinator.stop()


async def test_a_run_that_has_ended_submit_a_new_one(coordinator: Coordinator) -> None:
    await coordinator.submit("r1")
    await coordinator.end("r1")
    with pytest.raises(FailedPrecondition, match=r"submit a new one \(finished steps are reused\)"):
        await coordinator.resume("r1")
    await coordinator.submit("r2")
    assert set(states(await coordinator.end("r2"))) == {"REUSED"}


async def test_forks(coordinator: Coordinator) -> None:
    def fork(run_id: str, step: str, **overrides: str) -> Any:
        request = pb.ForkRunRequest(
            run_id=run_id,
            name="runs/r1",
            from_step=step,
            overrides={k.replace("__", "."): v for k, v in overrides.items()},
        )
        return coordinator.fork(request)

    await coordinator.submit("r1")
    await coordinator.end("r1")
    sets = {"steps__vocabulary__vocab_size": "301"}
    with pytest.raises(InvalidArgument) as caught:
        await fork("f", "exam", **sets)
    advised = re.search(r"fork from (\S+) to change it", caught.value.message)
    assert advised is not None
    await fork("f", advised[1], **sets)
    assert (await coordinator.end("f")).status.state == pb.RUN_STATE_SUCCEEDED
    with pytest.raises(InvalidArgument) as caught:
        await fork("g", "exan")
    advised = re.search(r"did you mean (\S+)\?", caught.value.message)
    assert advised is not None
    await fork("g", advised[1])
    assert (await coordinator.end("g")).status.state == pb.RUN_STATE_SUCCEEDED


async def test_a_name_that_is_not_served_a_step_serve_puts_the_first_there(
    coordinator: Coordinator, world: World, tmp_path: Path
) -> None:
    (tmp_path / "model").write_text("m")
    await asyncio.to_thread(world.store.publish, "m", "model", tmp_path / "model")
    canary = "{kind: canary, model: m, name: chat}"
    await coordinator.submit("r1", f"{{name: p, steps: {{trial: {canary}}}}}")
    assert (
        "a step of kind serve puts the first revision there"
        in (await coordinator.end("r1")).status.error
    )
    serve = "{kind: serve, model: m, name: chat}"
    text = f"{{name: p, steps: {{first: {serve}, trial: {canary[:-1]}, after: [first]}}}}}}"
    await coordinator.submit("r2", text)
    assert (await coordinator.end("r2")).status.state == pb.RUN_STATE_SUCCEEDED


@pytest.mark.parametrize("below", [0.05, 0.0, -0.3])
def test_a_gate_that_is_not_met_is_lowered(below: float) -> None:
    found = {"bits_per_byte": 2.0, "ngram_bits_per_byte": 2.0, "below_ngram": below}
    with pytest.raises(FailedPrecondition, match=r"or lower require\.(\w+)") as caught:
        gates.check(gates.EvaluateRequire(bits_per_byte_below_ngram=0.06), found)
    (name,) = re.findall(r"or lower require\.(\w+)", caught.value.message)
    gates.check(gates.EvaluateRequire.model_validate({name: below}), found)
    better = {**found, "bits_per_byte": 1.8, "below_ngram": 0.1}  # trained longer
    gates.check(gates.EvaluateRequire(bits_per_byte_below_ngram=0.06), better)


def test_a_corpus_that_holds_nothing_out_is_made_with_a_fraction(tmp_path: Path) -> None:
    def corpus(fraction: float) -> Path:
        folder = tmp_path / f"{fraction}"
        write_corpus(iter(trainings.texts(4)), folder, source="test", validation_fraction=fraction)
        return folder

    with pytest.raises(FailedPrecondition, match="raise validation_fraction of its step"):
        judge_by_ngram(corpus(0.0), max_bytes=1000)
    assert judge_by_ngram(corpus(0.02), max_bytes=1000).documents


def _misspelt() -> Iterator[tuple[str, str, str]]:
    """(pipeline, path of the key, right key): one key of each step without its last letter."""
    raw = yaml.safe_load(EXAMPLES)
    for step, fields in raw["steps"].items():
        for key in fields:
            if key == "kind" or len(key) < 4 or key[:-1] == "reward":  # (a key of its own)
                continue
            wrong = {k[:-1] if k == key else k: v for k, v in fields.items()}
            steps = {**raw["steps"], step: wrong}
            text = yaml.safe_dump({**raw, "steps": steps}, sort_keys=False)
            yield text, f"steps.{step}.{key[:-1]}", key


@pytest.mark.parametrize(("text", "path", "right"), list(_misspelt()), ids=lambda one: one[:30])
def test_an_unknown_key_did_you_mean(text: str, path: str, right: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        parse(text)
    advised = re.search(
        re.escape(path) + r": unknown key; did you mean (\S+?)\?", str(caught.value)
    )
    assert advised is not None, caught.value
    assert advised[1] == right
    raw = yaml.safe_load(text)
    step, wrong = path.split(".")[1:]
    raw["steps"][step] = {
        (advised[1] if k == wrong else k): v for k, v in raw["steps"][step].items()
    }
    parse(yaml.safe_dump(raw))


def test_an_alias_in_the_file_write_the_value_out() -> None:
    text = "{name: p, steps: {a: {kind: data, builtin: &x stdlib}, b: {kind: data, builtin: %s}}}"
    with pytest.raises(InvalidArgument, match="write the value out"):
        parse(text % "*x")
    parse(text % "stdlib")


def test_a_corpus_without_its_step_say_which_one(tmp_path: Path) -> None:
    text = (
        "{name: p, steps: {one: {kind: data, builtin: stdlib}, two: {kind: data, builtin: stdlib}}}"
    )
    with pytest.raises(InvalidArgument) as caught:
        corpus_overrides(yaml.safe_load(text), tmp_path, {})
    advised = re.findall(r"--set (\S+)", caught.value.message)
    (first,) = re.findall(r"there is: (\w+),", caught.value.message)
    given = parse_overrides([one.replace("NAME", first) for one in advised])
    spec: Any = parse(text, given).steps[first]
    assert spec.corpus_dir == str(tmp_path)
    with pytest.raises(InvalidArgument, match="give path=value, such as name=mine"):
        parse_overrides(["name"])
    assert parse(text, parse_overrides(["name=mine"])).name == "mine"


@pytest.mark.parametrize(
    ("wrong", "advice"), [("here", "use file://"), ("file://here/x", "write file://")]
)
def test_a_store_url(wrong: str, advice: str, tmp_path: Path) -> None:
    with pytest.raises(PlinthError, match=advice):
        open_storage(wrong)
    assert open_storage(f"file://{tmp_path}/store").create("a", b"1")


def test_a_name() -> None:
    with pytest.raises(InvalidArgument) as caught:
        check_name("Caps Lock", "name")
    allowed = re.search(
        r"use 1 to 64 of (.*), starting with a letter or a digit", str(caught.value)
    )
    assert allowed is not None
    assert allowed[1] == "a-z 0-9 . _ -"
    assert check_name("a0._-", "name")
    assert check_name("0" * 64, "name")


@pytest.mark.parametrize(
    ("objective", "key", "value", "right"),
    [("dpo", "beta", 0.2, "pairs.beta"), ("ppo", "kl_coefficient", 0.1, "policy.kl_coefficient")],
)
def test_a_key_of_a_section_is_found_there(
    objective: str, key: str, value: float, right: str
) -> None:
    """As TRL's users write it, without the section."""
    train = {"kind": "train", "objective": objective, "dataset": "d", "init_from": "m", "steps": 2}
    train |= {"reward": "r"} if objective == "ppo" else {}

    def pipeline(step: dict[str, object]) -> str:
        return yaml.safe_dump({"name": "p", "steps": {"tune": step}})

    with pytest.raises(InvalidArgument, match=rf"tune\.{key}: unknown key; did you mean {right}\?"):
        parse(pipeline(train | {key: value}))
    section, _, inner = right.partition(".")
    parse(pipeline(train | {section: {inner: value}}))


def test_a_value_out_of_range_is_said_with_its_range() -> None:
    text = (
        "{name: p, steps: {tune: {kind: train, objective: dpo, dataset: d, init_from: m, "
        "steps: 2, pairs: {beta: 0}}}}"
    )
    with pytest.raises(InvalidArgument, match=r"pairs\.beta: should be greater than 0, not 0"):
        parse(text)
