"""Work that waits: responses to be sampled, judgements to be made by a model.

Each piece is an item of one queue, done under a lease with heartbeats; a replica that dies in the
middle loses nothing, and what is done twice is recorded once. Every coordinator replica takes
part, whether it leads or not.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import time
from contextlib import suppress

from redis.asyncio import Redis

from plinth.coordinator.preferences.model_judge import ModelJudge, check_method, judge_name
from plinth.coordinator.preferences.ranking import tiers
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.sampling import ResponseSampler, find_served
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared import tracing
from plinth.shared.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PlinthError,
    ResourceExhausted,
    Unavailable,
    plain,
)
from plinth.shared.queue import Lease, LeaseLost, Queue
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger
from plinth.v1 import preferences_pb2 as pb

QUEUE = "preferences"
MAX_ATTEMPTS = 8
_LEASE_S = 30.0
_CLAIM_S = 5.0
_RETRY_S = 0.5
_SOON_S = 5.0  # between a piece of work and its task
_log = get_logger("plinth.preferences")


def work_queue(redis: Redis) -> Queue:
    """The queue as its producers and consumers open it."""
    return Queue(redis, QUEUE, lease_s=_LEASE_S, max_attempts=MAX_ATTEMPTS)


class PreferenceWork:
    """Adds pieces of work. Every call may be made again."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    async def sample(self, collection: str, task_id: str) -> str:
        """The task's samples are to be made. Gives the item's id."""
        return await self._add("sample", collection=collection, task_id=task_id)

    async def judge(self, collection: str, task_id: str, **judge: str) -> None:
        """The task is to be judged. judge: model, method, criteria, and annotator, the name under
        which the judgement is to appear."""
        await self._add("judge", collection=collection, task_id=task_id, **judge)

    async def cancel(self, item: str) -> None:
        await self._queue.cancel(item)

    async def _add(self, kind: str, **fields: str) -> str:
        payload = json.dumps({"kind": kind, **fields}, sort_keys=True).encode()
        item = f"{kind}-{hashlib.sha256(payload).hexdigest()[:40]}"
        if not await self._queue.add(item, payload):
            await self._queue.requeue(item)  # one that failed is tried anew
        return item


class PreferenceWorker:
    """One consumer of the queue."""

    def __init__(self, name: str, redis: Redis, registry: Registry, clients: StageClients) -> None:
        self._name = name
        self._redis = redis
        self._queue = work_queue(redis)
        self._registry = registry
        self._clients = clients

    async def run(self) -> None:
        """Until cancelled; waits while Redis is gone or full."""
        while True:
            try:
                lease = await self._queue.claim(self._name, wait_s=_CLAIM_S)
                if lease is None:
                    await self._notice_dead()
                else:
                    with lease.traced():
                        await self._attend_to_end(lease)
            except LeaseLost as lost:
                _log.info("a piece of work went on elsewhere", reason=lost.message)
            except PlinthError as error:  # Redis away or full, a piece of work cancelled
                _log.info("preference work waits", reason=error.message)
                await asyncio.sleep(_RETRY_S)

    async def _attend_to_end(self, lease: Lease) -> None:
        """What breaks while its end is told leaves the rest to its next attempt."""
        try:
            await self._attend(lease)
        except PlinthError:
            raise
        except Exception:  # noqa: BLE001 - one piece of work must not end the consumer
            _log.exception("the end of preference work was not told", item=lease.id)

    async def _attend(self, lease: Lease) -> None:
        """Does it, with heartbeats beside; a task that is cancelled gives it back."""
        work = asyncio.create_task(self._do(lease.payload))
        heart = asyncio.create_task(self._heartbeats(lease))
        try:
            await asyncio.wait({work, heart}, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await heart  # raises LeaseLost, or Cancelled
            await self._ended(lease, work)
        except asyncio.CancelledError:
            with suppress(PlinthError):  # then the lease lapses by itself
                await self._queue.release(lease)
            raise
        finally:
            await cancel_and_wait(work, heart)

    async def _ended(self, lease: Lease, work: asyncio.Task[None]) -> None:
        try:
            await work
        except PlinthError as error:
            again = _may_pass(error) and lease.attempts < MAX_ATTEMPTS
            tracing.failed(error.reason or error.code)
            _log.info("preference work failed", item=lease.id, again=again, reason=error.message)
            if not again:
                await self._give_up(lease.payload, error.message)
            await self._queue.fail(lease, error.message, retry=again)
        except Exception as error:  # noqa: BLE001 - one piece of work must not end the consumer
            _log.exception("preference work broke", item=lease.id)
            await self._give_up(lease.payload, f"internal error: {type(error).__name__}")
            await self._queue.fail(lease, type(error).__name__, retry=False)
        else:
            await self._queue.complete(lease, b"done")

    async def _heartbeats(self, lease: Lease) -> None:
        while True:
            with suppress(Unavailable):
                await self._queue.heartbeat(lease)
            await asyncio.sleep(_LEASE_S / 3)

    async def _do(self, payload: bytes) -> None:
        item = _item(payload)
        records = PreferenceRecords(self._redis, item["collection"])
        task = await _soon(records, item["task_id"])
        if item["kind"] == "sample":
            if task.state in (pb.PREFERENCE_TASK_STATE_SAMPLING, pb.PREFERENCE_TASK_STATE_FAILED):
                await records.check_room()
                await records.fill(
                    await ResponseSampler(self._clients, self._registry).filled(task)
                )
            return
        served = await find_served(self._clients, self._registry, item["model"])
        name = judge_name(served.artifact, item["method"], item["criteria"])
        if name != item["annotator"]:
            raise FailedPrecondition(
                f"{item['model']} serves {served.artifact} now; ask it for judgements anew"
            )
        judge = ModelJudge(served, *check_method(item["method"], item["criteria"]))
        order, reason = await judge.ranking(task)
        with suppress(AlreadyExists):  # by an earlier attempt
            await records.add(
                rec.JudgementRecord(
                    task_id=task.task_id,
                    ranking=tiers(order),
                    reason=reason,
                    annotator=name,
                    source=pb.JUDGEMENT_SOURCE_MODEL,
                    judged_unix_ms=time.time_ns() // 1_000_000,
                )
            )

    async def _give_up(self, payload: bytes, reason: str) -> None:
        try:
            item = _item(payload)
        except InvalidArgument:
            return  # there is no task that it could be told of
        if item["kind"] == "sample":
            records = PreferenceRecords(self._redis, item["collection"])
            await records.fail(item["task_id"], reason)

    async def _notice_dead(self) -> None:
        """The queue gives up what its consumers died of too often; the tasks must say so."""
        for letter in await self._queue.dead_letters(limit=50):
            await self._give_up(letter.payload, letter.reason)


def _may_pass(error: PlinthError) -> bool:
    # NotFound: a shard that has other weights by now, or a task whose creator goes on after a
    # crash. ResourceExhausted: a collection that is full until somebody judges.
    return error.transient or isinstance(error, NotFound | ResourceExhausted)


def _item(payload: bytes) -> dict[str, str]:
    try:
        item: dict[str, str] = json.loads(payload)
        _ = item["kind"], item["collection"], item["task_id"]
    except (ValueError, TypeError, KeyError) as error:
        raise InvalidArgument(f"no piece of preference work: {plain(error)}") from error
    return item


async def _soon(records: PreferenceRecords, task_id: str) -> rec.PreferenceTaskRecord:
    """The task, which is added right after its work. NotFound when it does not come: it was
    closed, or its creator died in between."""
    end = time.monotonic() + _SOON_S
    while True:
        try:
            return await records.get(task_id)
        except NotFound:
            if time.monotonic() > end:
                raise
        await asyncio.sleep(0.05)
