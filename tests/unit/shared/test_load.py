"""One figure for how loaded a replica is."""

from __future__ import annotations

from redis.asyncio import Redis

from plinth.shared.load import FirstTokens, queue_load
from plinth.shared.queue import Queue


def test_first_tokens_are_told_of_lately_and_not_by_one_alone() -> None:
    now = [0.0]
    seen = FirstTokens(30.0, clock=lambda: now[0])
    for second, took in enumerate((9.0, 1.0, 2.0, 3.0)):
        now[0] = float(second)
        seen.add(took)
    assert seen.median_s() == 0.0, "four say nothing"
    now[0] = 4.0
    seen.add(4.0)
    assert seen.median_s() == 3.0
    now[0] = 30.0  # the first is too old now
    assert seen.median_s() == 0.0
    seen.add(5.0)
    assert seen.median_s() == 3.0


async def test_a_late_queue_or_a_busy_consumer(redis_client: Redis) -> None:
    queue = Queue(redis_client, "work")
    assert await queue_load(queue, oldest_s=10.0, running=3, slots=4) == 0.75
    await queue.add("a", b"")
    waited = 0.0
    while waited < 0.02:
        waited = (await queue.inspect()).oldest_s
    late = await queue_load(queue, oldest_s=0.01, running=3, slots=4)
    assert waited / 0.01 <= late <= (await queue.inspect()).oldest_s / 0.01
