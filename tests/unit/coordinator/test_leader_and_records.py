"""The lease, the fence and compare-and-set on a real Redis; results fenced on the store."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from redis.asyncio import Redis

from patience import PATIENCE_S
from plinth.coordinator import machine
from plinth.coordinator.leader import LeaderLease, Leadership
from plinth.coordinator.machine import Wanted
from plinth.coordinator.pipeline import parse
from plinth.coordinator.results import StepResults
from plinth.coordinator.runs import MAX_ACTIVE, RunRecords
from plinth.coordinator.steps.contract import StepOutcome
from plinth.internal.v1 import run_records_pb2 as rec
from plinth.shared import redis_keys
from plinth.shared.api.listing import Damaged
from plinth.shared.change_feed import ChangeFeed
from plinth.shared.errors import Aborted, DataLoss, FailedPrecondition, NotFound, ResourceExhausted
from plinth.shared.store import ArtifactStore
from plinth.shared.tasks import cancel_and_wait
from plinth.v1 import runs_pb2 as pb

TTL_S = 2.0  # a busy machine must not keep a leader from renewing in time


class Candidate:
    """A coordinator's election, and what it led."""

    def __init__(self, redis: Redis, owner: str) -> None:
        self.led: list[Leadership] = []
        self.stopped = asyncio.Event()
        self.leading = asyncio.Event()
        self.lease = LeaderLease(redis, owner, ttl_s=TTL_S)
        self.task = asyncio.create_task(self.lease.lead(self._work))

    async def _work(self, leadership: Leadership) -> None:
        self.led.append(leadership)
        self.leading.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.leading.clear()
            self.stopped.set()

    async def stop(self) -> None:
        await cancel_and_wait(self.task)


async def test_one_leads_and_the_next_has_a_higher_fence(redis_client: Redis) -> None:
    first = Candidate(redis_client, "first")
    await asyncio.wait_for(first.leading.wait(), PATIENCE_S)
    second = Candidate(redis_client, "second")
    await asyncio.sleep(1.5 * TTL_S)  # several renewals: the second must not get in
    assert first.leading.is_set()
    assert second.led == []
    assert first.lease.leadership is first.led[0] and first.led[0].held
    await first.stop()  # gives the lease back
    await asyncio.wait_for(second.leading.wait(), PATIENCE_S)
    assert second.led[0].fence > first.led[0].fence
    await second.stop()


async def test_a_lost_lease_cancels_the_work(redis_client: Redis) -> None:
    candidate = Candidate(redis_client, "me")
    await asyncio.wait_for(candidate.leading.wait(), PATIENCE_S)
    await redis_client.set(redis_keys.lease("runs"), "other|99", px=int(TTL_S * 1000))
    await asyncio.wait_for(candidate.stopped.wait(), PATIENCE_S)
    assert candidate.lease.leadership is None
    await asyncio.wait_for(
        candidate.leading.wait(), PATIENCE_S
    )  # leads again once the other lapsed
    await candidate.stop()


async def test_by_its_own_clock_a_lease_ends(redis_client: Redis) -> None:
    leadership = Leadership("me|7", 0.05, time.monotonic())
    assert leadership.held and leadership.fence == 7
    await asyncio.sleep(0.06)
    assert not leadership.held


PIPELINE = parse("{name: p, steps: {a: {kind: data, builtin: stdlib}}}")


async def _lead(redis: Redis, fence: int = 1) -> Leadership:
    value = f"me|{fence}"
    await redis.set(redis_keys.lease("runs"), value)
    return Leadership(value, 10, time.monotonic())


async def test_submitting_twice_gives_the_first(redis_client: Redis) -> None:
    records = RunRecords(redis_client)
    first = await records.submit(machine.new_run("r", PIPELINE, 1))
    again = await records.submit(machine.new_run("r", PIPELINE, 2))
    assert first == again
    assert first.revision == 1
    assert await records.active() == ["r"]
    assert [
        run.run_id for _, run in await records.newest("", 10) if isinstance(run, rec.RunRecord)
    ] == ["r"]
    with pytest.raises(NotFound):
        await records.get("other")


async def test_only_the_leader_changes_and_only_what_it_saw(redis_client: Redis) -> None:
    records = RunRecords(redis_client)
    run = await records.submit(machine.new_run("r", PIPELINE, 1))
    leadership = await _lead(redis_client)
    run.state = pb.RUN_STATE_RUNNING
    await records.save(run, leadership)
    assert (await records.get("r")).revision == run.revision == 2
    stale = rec.RunRecord(run_id="r", state=pb.RUN_STATE_PAUSED, revision=1)
    with pytest.raises(Aborted, match="changed"):
        await records.save(stale, leadership)
    await _lead(redis_client, 2)
    with pytest.raises(Aborted, match="leads"):
        await records.save(run, leadership)
    assert (await records.get("r")).state == pb.RUN_STATE_RUNNING
    assert run.revision == 2
    run.revision = 1  # the answer to the save that made 2 was lost: the same save again
    await records.save(run, await _lead(redis_client, 1))
    assert run.revision == 2


async def test_wishes_and_ends(redis_client: Redis) -> None:
    records = RunRecords(redis_client)
    run = await records.submit(machine.new_run("r", PIPELINE, 1))
    await records.want("r", Wanted.PAUSE)
    assert (await records.load("r"))[1] is Wanted.PAUSE
    await records.want("r", Wanted.CANCEL)
    await records.want("r", Wanted.CANCEL)
    with pytest.raises(FailedPrecondition, match="cancelled"):
        await records.want("r", Wanted.RUN)
    machine.settle(run, Wanted.CANCEL, 5)
    await records.save(run, await _lead(redis_client))
    assert await records.active() == []
    await records.want("r", Wanted.CANCEL)
    with pytest.raises(FailedPrecondition, match="ended"):
        await records.want("r", Wanted.PAUSE)
    with pytest.raises(NotFound):
        await records.want("other", Wanted.PAUSE)


async def test_active_runs_are_bounded(redis_client: Redis) -> None:
    records = RunRecords(redis_client)
    for number in range(MAX_ACTIVE):
        await records.submit(machine.new_run(f"r{number}", PIPELINE, number))
    with pytest.raises(ResourceExhausted):
        await records.submit(machine.new_run("one-more", PIPELINE, 1))


async def test_ended_runs_are_forgotten_and_active_ones_never(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plinth.coordinator.runs.MAX_KEPT", 3)
    records, leadership = RunRecords(redis_client), await _lead(redis_client)
    for number in range(6):
        run = await records.submit(machine.new_run(f"r{number}", PIPELINE, number))
        if number % 2:
            machine.refuse(run, error="ends", now=1)
            await records.save(run, leadership)
    newest = await records.newest("", 10)
    left = {run.run_id for _, run in newest if isinstance(run, rec.RunRecord)}
    assert {"r0", "r2", "r4"} <= left
    assert "r1" not in left
    assert not await redis_client.exists(redis_keys.run("r1"))


async def test_the_feed_wakes_those_who_wait(
    redis_client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChangeFeed, "PATIENCE_S", 10 * PATIENCE_S)
    records = RunRecords(redis_client)
    feed = ChangeFeed(redis_client, redis_keys.run_events())
    await feed.open()
    follower = asyncio.create_task(feed.follow())
    seen = feed.seen("r")
    waiter = asyncio.create_task(feed.changed("r", seen))
    await records.submit(machine.new_run("other", PIPELINE, 1))
    await records.submit(machine.new_run("r", PIPELINE, 1))
    await asyncio.wait_for(waiter, PATIENCE_S)  # woken: it had not looked again yet
    assert feed.seen("r") > seen
    await cancel_and_wait(follower)


def _artifact(store: ArtifactStore, folder: Path, text: str) -> str:
    (folder / "f").mkdir(exist_ok=True)
    (folder / "f" / "x").write_text(text)
    return store.publish("thing", "report", folder / "f").ref


def test_results_are_published_once_and_fenced(store: ArtifactStore, tmp_path: Path) -> None:
    results = StepResults(store)
    one, two = _artifact(store, tmp_path, "one"), _artifact(store, tmp_path, "two")
    digest = "sha256:" + "a" * 64
    assert results.find(digest) is None
    assert results.publish(digest, StepOutcome(one, {"x": 1}), fence=5, origin={}).output == one
    # A rival comes second, whatever its fence: the first result stands.
    there = results.publish(digest, StepOutcome(two), fence=6, origin={})
    assert (there.output, there.metrics, there.reused) == (one, {"x": 1}, True)
    assert StepResults(store).find(digest) == there


def test_a_stale_fence_publishes_nothing(store: ArtifactStore, tmp_path: Path) -> None:
    one = _artifact(store, tmp_path, "one")
    digest = "sha256:" + "b" * 64
    StepResults(store).publish(digest, StepOutcome(one), fence=5, origin={})
    folder = Path(store.url.removeprefix("file://")) / "artifacts" / "thing"
    for path in sorted(folder.rglob("*"), reverse=True):  # somebody deleted the artifact
        path.chmod(0o700)
        path.rmdir() if path.is_dir() else path.unlink()
    fresh = ArtifactStore(store.url)
    two = _artifact(fresh, tmp_path, "two")
    assert StepResults(fresh).find(digest) is None
    with pytest.raises(Aborted, match="stale"):
        StepResults(fresh).publish(digest, StepOutcome(two), fence=4, origin={})
    assert StepResults(fresh).publish(digest, StepOutcome(two), fence=6, origin={}).output == two


async def test_a_damaged_run_hides_no_other(redis_client: Redis) -> None:
    records = RunRecords(redis_client)
    for run_id in ("a", "b"):
        await records.submit(machine.new_run(run_id, PIPELINE, 1))
    await redis_client.hset(redis_keys.run("a"), "record", b"\xff")
    told = dict(await records.newest("", 10))
    assert [getattr(one, "run_id", one) for one in told.values()] == ["b", Damaged("runs/a")]
    for look in (records.get, records.find, records.load):
        with pytest.raises(DataLoss, match="run a is damaged"):
            await look("a")
