"""Records by time in a sorted set of Redis, read newest first, piece by piece.

A position is the last entry that was read, its time and its id. What is added or removed meanwhile
moves nothing: what is there all the time is read once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Any, cast

from redis.asyncio import Redis

from plinth.shared.connection import redis_errors

# KEYS: sorted set. ARGV: time and id of the position ("" and "" at the start), how many. Gives id,
# time, id, time …. Where the position's entry has gone, its place is found by time and id; Lua
# compares strings by the server's locale, a sorted set by bytes.
_READ = """
local function less(a, b)
  for i = 1, math.min(#a, #b) do
    local x, y = string.byte(a, i), string.byte(b, i)
    if x ~= y then return x < y end
  end
  return #a < #b
end
local from = 0
if ARGV[1] ~= '' then
  local time = redis.call('ZSCORE', KEYS[1], ARGV[2])
  if time and tonumber(time) == tonumber(ARGV[1]) then
    from = redis.call('ZREVRANK', KEYS[1], ARGV[2]) + 1
  else
    from = redis.call('ZCOUNT', KEYS[1], '(' .. ARGV[1], '+inf')
    for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', KEYS[1], ARGV[1], ARGV[1])) do
      if less(id, ARGV[2]) then break end
      from = from + 1
    end
  end
end
return redis.call('ZREVRANGE', KEYS[1], from, from + ARGV[3] - 1, 'WITHSCORES')
"""


class TimeIndex:
    """One sorted set: ids by time, in milliseconds since 1970."""

    def __init__(self, redis: Redis, key: str) -> None:
        self._key = key
        self._read = redis.register_script(_READ)

    async def newest(self, position: str, count: int) -> list[tuple[str, str]]:
        """(position, id) of at most `count` entries behind a position ("": from the newest on).
        Unavailable while Redis is gone."""
        time, _, id_ = position.partition(" ")
        with redis_errors():
            found = await cast(
                Awaitable[Sequence[Any]], self._read(keys=[self._key], args=[time, id_, count])
            )
        entries = [raw.decode() for raw in found]
        return [
            (f"{time} {id_}", id_) for id_, time in zip(entries[::2], entries[1::2], strict=True)
        ]
