"""A list in Redis, read piece by piece while others write: all that is there all the time, once."""

from __future__ import annotations

import random

from redis.asyncio import Redis

from plinth.shared.time_index import TimeIndex

KEY = "plinth:test:index"


async def read_all(index: TimeIndex, piece: int, between: object = None) -> list[str]:
    seen: list[str] = []
    position = ""
    while found := await index.newest(position, piece):
        seen += [id_ for _, id_ in found]
        position = found[-1][0]
        if callable(between):
            await between(seen)
    return seen


async def test_each_once_newest_first_also_of_one_moment(redis_client: Redis) -> None:
    rng = random.Random(1)
    times = {f"id-{number}": rng.randint(1, 40) for number in range(300)}
    await redis_client.zadd(KEY, times)
    wanted = sorted(times, key=lambda id_: (times[id_], id_), reverse=True)
    for piece in (1, 7, 300, 1000):
        assert await read_all(TimeIndex(redis_client, KEY), piece) == wanted


async def test_what_comes_and_goes_meanwhile_moves_nothing(redis_client: Redis) -> None:
    """Newer and older ones are added, and what was just read is removed, as the next position."""
    rng = random.Random(2)
    times = {f"id-{number:03}": rng.randint(100, 140) for number in range(200)}
    await redis_client.zadd(KEY, times)
    removed: set[str] = set()
    added = 0

    async def between(seen: list[str]) -> None:
        nonlocal added
        removed.add(seen[-1])
        await redis_client.zrem(KEY, seen[-1])
        await redis_client.zadd(KEY, {f"new-{added}": 1000 + added, f"same-{added}": 120})
        added += 1

    seen = await read_all(TimeIndex(redis_client, KEY), 9, between)
    old = [id_ for id_ in seen if id_ in times]
    assert old == sorted(times, key=lambda id_: (times[id_], id_), reverse=True)
    assert len(seen) == len(set(seen))
    assert len(removed) > 20
    assert not any(id_.startswith("new-") for id_ in seen)  # they are before the first position
