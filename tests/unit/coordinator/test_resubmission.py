"""One id, one request: what is sent twice is done once, and nothing else is taken for it."""

from __future__ import annotations

import asyncio
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from coordinator_replica import PIPELINE, Coordinator
from plinth.cli.runs import tell_if_known
from plinth.shared.api.times import timestamp
from plinth.shared.errors import AlreadyExists
from plinth.v1 import runs_pb2 as pb
from scripted_stages import World


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ({"steps__vocabulary__vocab_size": "301"}, "steps.vocabulary.vocab_size"),
        ({"name": "other"}, "name"),
        ({"steps__exam__prompts": ""}, "steps.exam.prompts"),
        ({"steps__pretrain__batch_size": "3"}, "steps.pretrain.batch_size"),
    ],
)
async def test_other_settings_under_the_same_id_are_told(
    coordinator: Coordinator, overrides: dict[str, str], says: str
) -> None:
    await coordinator.submit("r1")
    for _ in range(2):  # while it runs, and when it has ended
        with pytest.raises(AlreadyExists, match="already") as caught:
            await coordinator.submit("r1", **overrides)
        assert f"({says}); give another run_id" in caught.value.message
        assert (await coordinator.end("r1")).status.state == pb.RUN_STATE_SUCCEEDED
    # As it advises.
    await coordinator.submit("r2", **overrides)
    assert (await coordinator.end("r2")).name == "runs/r2"


async def test_the_same_twice_is_one_run_even_if_an_alias_moved(
    world: World, coordinator: Coordinator, tmp_path: Path
) -> None:
    for version in ("1", "2"):
        (tmp_path / version).write_text(version)
        await asyncio.to_thread(world.store.publish, "m", "model", tmp_path / version)
    await asyncio.to_thread(world.store.set_alias, "m", "prod", 1)
    text = "{name: p, steps: {online: {kind: serve, model: 'm:prod', name: m}}}"
    first = await coordinator.submit("r", text)
    await asyncio.to_thread(world.store.set_alias, "m", "prod", 2)
    again = await coordinator.submit("r", f"# a comment\n{text}")
    assert "m@1" in again.spec.pipeline_yaml
    assert again.spec == first.spec
    other = text.replace("m:prod", "m@2")
    with pytest.raises(AlreadyExists, match=r"steps\.online\.model"):
        await coordinator.submit("r", other)
    await coordinator.end("r")


async def test_forks_are_told_apart_by_all_that_was_asked(coordinator: Coordinator) -> None:
    await coordinator.submit("r1")
    await coordinator.end("r1")
    asked = pb.ForkRunRequest(run_id="f", name="runs/r1", from_step="exam")
    first = await coordinator.fork(asked)
    assert (await coordinator.fork(asked)).name == first.name
    for other in (
        pb.ForkRunRequest(
            run_id="f",
            name="runs/r1",
            from_step="exam",
            overrides={"steps.exam.max_tokens": "5"},
        ),
        pb.ForkRunRequest(run_id="f", name="runs/r1", from_step="release"),
    ):
        with pytest.raises(AlreadyExists):
            await coordinator.fork(other)
    with pytest.raises(AlreadyExists, match="fork of r1"):
        await coordinator.submit("f", PIPELINE)
    await coordinator.end("f")


def test_a_person_is_told_that_nothing_was_run() -> None:
    out = StringIO()
    console = Console(file=out, width=40)
    tell_if_known(console, pb.Run(name="runs/r1", status=pb.RunStatus(state=pb.RUN_STATE_RUNNING)))
    assert out.getvalue() == ""
    ended = pb.Run(
        name="runs/r1",
        status=pb.RunStatus(state=pb.RUN_STATE_SUCCEEDED, end_time=timestamp(2)),
        create_time=timestamp(1),
    )
    tell_if_known(console, ended)
    assert "has succeeded: nothing is run; leave --run-id out" in out.getvalue()
