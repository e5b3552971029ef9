"""Queues and dead letters at a real front door."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from redis.asyncio import Redis

from gateway_stages import Stack, plinth, running_stack
from patience import PATIENCE_S
from plinth.shared.errors import PlinthError
from plinth.shared.queue import Queue
from plinth.shared.redis_keys import QueueKeys
from plinth.shared.rpc.status import from_rpc_error
from plinth.v1 import operations_pb2 as pb
from plinth.v1 import operations_pb2_grpc

Call = Callable[[str, Any], Any]


@pytest.fixture
async def stack(tmp_path: Path, redis_server: str, redis_client: Redis) -> AsyncIterator[Stack]:
    async with running_stack(tmp_path, redis_server) as running:
        yield running


@pytest.fixture
async def call(stack: Stack) -> AsyncIterator[Call]:
    async with grpc.aio.insecure_channel(stack.grpc_address) as channel:
        stub = operations_pb2_grpc.OperationsServiceStub(channel)
        metadata = (("authorization", f"Bearer {stack.key}"),)

        async def one(method: str, request: Any) -> Any:
            try:
                return await getattr(stub, method)(request, metadata=metadata, timeout=PATIENCE_S)
            except grpc.aio.AioRpcError as error:
                raise from_rpc_error(error) from error

        yield one


async def buried(redis: Redis, name: str, *ids: str, reason: str = "[no] corpus") -> Queue:
    """Dead letters, in that order."""
    queue = Queue(redis, name)
    for id in ids:
        await queue.add(id, b"12345")
        lease = await queue.claim("a", wait_s=1)
        assert lease is not None
        await queue.fail(lease, reason, retry=False)
    return queue


async def refused(answer: Any) -> PlinthError:
    with pytest.raises(PlinthError) as caught:
        await answer
    return caught.value


async def test_a_dead_letters_life(call: Call, redis_client: Redis) -> None:
    queue = await buried(redis_client, "trainer-jobs", "job-1", "team/job-2")
    (one,) = (await call("ListQueues", pb.ListQueuesRequest())).queues
    assert (one.name, one.dead, one.waiting) == ("queues/trainer-jobs", 2, 0)
    assert (await call("GetQueue", pb.GetQueueRequest(name=one.name))).queue == one
    letters = await call("ListDeadLetters", pb.ListDeadLettersRequest(parent=one.name))
    newest, oldest = letters.dead_letters
    assert newest.name == "queues/trainer-jobs/deadLetters/team/job-2"
    assert (newest.reason, newest.attempts, newest.payload_size_bytes) == ("[no] corpus", 1, 5)
    assert newest.death_time.ToNanoseconds() >= oldest.death_time.ToNanoseconds() > 0

    item = (await call("RequeueDeadLetter", pb.RequeueDeadLetterRequest(name=newest.name))).item
    assert item.name == "queues/trainer-jobs/items/team/job-2"
    assert (item.state, item.attempts) == (pb.QUEUE_ITEM_STATE_WAITING, 0)
    again = pb.RequeueDeadLetterRequest(name=newest.name)
    error = await refused(call("RequeueDeadLetter", again))
    assert (error.code, error.reason) == ("NOT_FOUND", "DEAD_LETTER_NOT_FOUND")
    lease = await queue.claim("b", wait_s=1)
    assert lease is not None and (lease.id, lease.payload) == ("team/job-2", b"12345")

    await call("DeleteDeadLetter", pb.DeleteDeadLetterRequest(name=oldest.name))
    assert (await queue.inspect()).dead == 0
    assert not await queue.add("job-1", b"late"), "a late repetition must not bring it back"
    assert await redis_client.hexists(QueueKeys("trainer-jobs").payloads, "job-1") == 0
    found = await call("GetQueueItem", pb.GetQueueItemRequest(name=f"{one.name}/items/job-1"))
    assert found.item.state == pb.QUEUE_ITEM_STATE_CANCELLED
    gone = pb.DeleteDeadLetterRequest(name=oldest.name)
    assert (await refused(call("DeleteDeadLetter", gone))).code == "NOT_FOUND"
    live = pb.DeleteDeadLetterRequest(name=newest.name)
    assert (await refused(call("DeleteDeadLetter", live))).code == "NOT_FOUND"


@pytest.mark.parametrize(
    ("method", "request_", "reason"),
    [
        ("GetQueue", pb.GetQueueRequest(name="queues/x"), "QUEUE_NOT_FOUND"),
        ("GetQueue", pb.GetQueueRequest(name="x"), "RESOURCE_NAME"),
        ("GetQueueItem", pb.GetQueueItemRequest(name="queues/q/items/x"), "ITEM_NOT_FOUND"),
        ("GetQueueItem", pb.GetQueueItemRequest(name="queues/x/items/x"), "QUEUE_NOT_FOUND"),
        ("GetQueueItem", pb.GetQueueItemRequest(name="queues/q/deadLetters/x"), "RESOURCE_NAME"),
        ("ListDeadLetters", pb.ListDeadLettersRequest(), "RESOURCE_NAME"),
        ("ListDeadLetters", pb.ListDeadLettersRequest(parent="queues/x"), "QUEUE_NOT_FOUND"),
        (
            "ListDeadLetters",
            pb.ListDeadLettersRequest(parent="queues/q", page_token="AAAA"),
            "PAGE_TOKEN",
        ),
        (
            "DeleteDeadLetter",
            pb.DeleteDeadLetterRequest(name="queues/x/deadLetters/i"),
            "QUEUE_NOT_FOUND",
        ),
    ],
)
async def test_what_is_not_there(
    call: Call, redis_client: Redis, method: str, request_: Any, reason: str
) -> None:
    await buried(redis_client, "q", "i")
    assert (await refused(call(method, request_))).reason == reason


async def test_pages_hold_every_dead_letter_once(call: Call, redis_client: Redis) -> None:
    """Of two queues, many of them in one millisecond, while others die and go."""
    await buried(redis_client, "a", *(f"i{at:03d}" for at in range(40)))
    await buried(redis_client, "b", *(f"j{at:03d}" for at in range(25)))
    for name in "ab":
        dead = QueueKeys(name).dead
        for id in await redis_client.zrange(dead, 0, -1):
            await redis_client.zadd(dead, {id: 1000 + int(id[1:]) // 11})
    there = {f"queues/a/deadLetters/i{at:03d}" for at in range(40)}
    there |= {f"queues/b/deadLetters/j{at:03d}" for at in range(25)}
    request, seen = pb.ListDeadLettersRequest(parent="queues/-", page_size=7), []
    while True:
        page = await call("ListDeadLetters", request)
        assert len(page.dead_letters) <= 7
        seen += [letter.name for letter in page.dead_letters]
        if not page.next_page_token:
            break
        await buried(redis_client, "a", f"new-{len(seen)}")
        discarded = pb.DeleteDeadLetterRequest(name=seen[-1])  # where the next page begins
        await call("DeleteDeadLetter", discarded)
        request.page_token = page.next_page_token
    assert len(seen) == len(set(seen))
    assert set(seen) == there
    order = sorted(seen, key=lambda name: (name.split("/")[1], [-ord(c) for c in name]))
    assert seen == order


async def test_the_command_line_goes_through_the_door(stack: Stack, redis_client: Redis) -> None:
    await buried(redis_client, "trainer-jobs", "job-1", "job-2")
    nowhere = {"PLINTH_REDIS_URL": "redis://127.0.0.1:1/0"}

    async def queue(*words: str) -> tuple[int, str, str]:
        return await plinth(stack, "queue", *words, **nowhere)

    code, out, err = await queue("list")
    assert code == 0 and "trainer-jobs" in out, err
    _, out, _ = await queue("dead", "trainer-jobs")
    assert "job-1" in out and "[no] corpus" in out
    # Whoever doesn't know the queue yet is told which one it is.
    code, out, _ = await queue("dead")
    assert code == 0 and "job-1" in out and "trainer-jobs" in out
    _, out, _ = await queue("inspect", "trainer-jobs", "job-1")
    assert "dead" in out
    assert (await queue("requeue", "trainer-jobs", "job-1"))[0] == 0
    _, out, _ = await queue("inspect", "trainer-jobs", "job-1")
    assert "waiting" in out
    code, _, err = await queue("requeue", "trainer-jobs", "job-1")
    assert code == 1 and "no dead letter" in err
    assert (await queue("discard", "trainer-jobs", "job-2"))[0] == 0
    _, out, _ = await queue("dead")
    assert "job-" not in out
    assert (await queue("inspect", "trainer-jobs", "job-3"))[0] == 1
