"""What tenants' limits hold, over all gateways: one Redis hash for each tenant, its ledger.

A gateway leases slots (requests at a time) and tokens out of it, spends them without asking, and
settles by exchanges: what it spent since the last one, what it still needs, what it gives back. An
exchange is named by (process, number) and applied once, however often it is sent. The hash:

    level, at      tokens in the tenant's bucket at that time (ms, server clock); it refills by its
                   rate, up to a minute's worth, and may be in debt
    booked         tokens that were spent, since the ledger began
    hungry         "<time>|<process>": who last had to do without
    p:<process>    "<number>|<slots>|<used>|<tokens>|<forfeit>|<until>": what a gateway holds, under
                   the number of its last exchange, until the lease lapses

A lease that lapses gives its slots back; its tokens count as spent, since whoever held them can't
say how many were. A gateway that was only cut off takes that back with its next exchange (forfeit).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.asyncio import Redis

from plinth.shared import redis_keys
from plinth.shared.connection import redis_errors
from plinth.shared.errors import DataLoss, PlinthError

KEPT_S = 600.0  # how long an exchange is known again after its gateway was last heard of
HUNGRY_S = 2.0  # how long a gateway that had to do without is remembered

# KEYS: ledger. ARGV: process, number, spent, owed, used, keep slots, need slots, want slots, keep
# tokens, need tokens, want tokens, requests at a time, tokens per minute, lease in ms, kept in ms,
# hungry in ms. Answers {slots, tokens, unmet slots, unmet tokens, idle slots, idle tokens, ms until
# there is a token, 1 if they are scarce}.
_EXCHANGE = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local me = 'p:' .. ARGV[1]
local number, spent = tonumber(ARGV[2]), tonumber(ARGV[3])
local owed, used = tonumber(ARGV[4]), tonumber(ARGV[5])
local limit, rate, kept = tonumber(ARGV[12]), tonumber(ARGV[13]), tonumber(ARGV[15])
local level, at, booked, hungry = rate, now, 0, ''
local mine = {0, 0, 0, 0, 0, 0}
local others = {}
local raw = redis.call('HGETALL', KEYS[1])
for i = 1, #raw, 2 do
  local field, value = raw[i], raw[i + 1]
  if field == 'level' then level = tonumber(value)
  elseif field == 'at' then at = tonumber(value)
  elseif field == 'booked' then booked = tonumber(value)
  elseif field == 'hungry' then hungry = value
  else
    local r = {}
    for one in string.gmatch(value, '[^|]+') do r[#r + 1] = tonumber(one) end
    if field == me then mine = r else others[field] = r end
  end
end
-- A clock that was set back takes no tokens, and lengthens no lease.
local back = math.max(0, at - now)
mine[6] = mine[6] - back
for _, r in pairs(others) do r[6] = r[6] - back end
if back > 0 then
  redis.call('HDEL', KEYS[1], 'hungry')
  hungry = ''
end
level = math.min(rate, level + math.max(0, now - at) * rate / 60000)
local function write(field, r)
  for i = 1, 6 do r[i] = string.format('%.0f', r[i]) end
  redis.call('HSET', KEYS[1], field, table.concat(r, '|'))
end
local function lapse(r)
  if r[6] > now or r[2] + r[3] + r[4] == 0 then return false end
  level = level - r[4]
  r[2], r[3], r[5], r[4] = 0, 0, r[5] + r[4], 0
  return true
end
lapse(mine)
local processes, leased, reserved, idle = 1, 0, 0, 0
for field, r in pairs(others) do
  local changed = lapse(r)
  leased, reserved, idle = leased + r[2], reserved + r[4], idle + math.max(0, r[2] - r[3])
  if r[6] > now then processes = processes + 1 end
  if r[6] <= now - kept then redis.call('HDEL', KEYS[1], field)
  elseif changed or back > 0 then write(field, {unpack(r)}) end
end
-- What is asked for first; beyond it a share that gets smaller as less is left.
local function granted(free, need, want)
  local first = math.max(0, math.min(need, free))
  local more = math.floor(math.max(0, free - first) / (2 * processes))
  return first + math.max(0, math.min(want - need, more))
end
local need_slots, need_tokens = tonumber(ARGV[7]), tonumber(ARGV[10])
local unmet_slots, unmet_tokens = 0, 0
if number > mine[1] then
  local slots, tokens = 0, 0
  if limit > 0 then
    slots = math.max(used, math.min(tonumber(ARGV[6]), mine[2]))
    local more = granted(limit - leased - slots, need_slots, tonumber(ARGV[8]))
    slots, unmet_slots = slots + more, math.max(0, need_slots - more)
  end
  if rate > 0 then
    level = math.min(rate, level + mine[5] - owed)
    tokens = math.min(tonumber(ARGV[9]), mine[4])
    local more = granted(math.ceil(level - reserved - tokens), need_tokens, tonumber(ARGV[11]))
    tokens, unmet_tokens = tokens + more, math.max(0, need_tokens - more)
  end
  booked = booked + spent
  mine = {number, slots, used + need_slots - unmet_slots, tokens, 0, now + tonumber(ARGV[14])}
end
local answer = {mine[2], mine[4], unmet_slots, unmet_tokens, idle, math.floor(reserved), 0, 0}
if rate > 0 then
  answer[7] = math.max(0, math.ceil((1 - level + reserved) * 60000 / rate))
end
local since, who = string.match(hungry, '^(%d+)|(.*)$')
if who and who ~= ARGV[1] and tonumber(since) > now - tonumber(ARGV[16]) then answer[8] = 1 end
if processes > 1 and ((limit > 0 and limit - leased - mine[2] <= 0)
    or (rate > 0 and level - reserved - mine[4] <= 0)) then answer[8] = 1 end
if unmet_slots + unmet_tokens > 0 then
  redis.call('HSET', KEYS[1], 'hungry', string.format('%.0f|', now) .. ARGV[1])
end
write(me, {unpack(mine)})
redis.call('HSET', KEYS[1], 'level', string.format('%.17g', level),
  'at', string.format('%.0f', now), 'booked', string.format('%.0f', booked))
local refilled = rate > 0 and math.ceil((rate - level) * 60000 / rate) or 0
redis.call('PEXPIRE', KEYS[1], math.max(kept + tonumber(ARGV[14]), refilled))
return answer
"""


@dataclass(frozen=True)
class Exchange:
    """What one gateway says of one tenant. Its holdings before were at least `keep_*`.

    number: one more than the last that was answered. spent: tokens since that one (refunds may make
    it negative); owed: those of them that the bucket has not been refilled by since. used: requests
    that run. keep: of what is held. need: what requests wait for, and want: what would be good to
    have, `need` included; both beyond `keep`.
    """

    tenant: str
    number: int
    spent: int
    owed: int
    used: int
    keep_slots: int
    need_slots: int
    want_slots: int
    keep_tokens: int
    need_tokens: int
    want_tokens: int


@dataclass(frozen=True)
class Holding:
    """What the gateway holds from now on; what it needed and did not get; what others hold idle.

    wait_s: until the bucket has a token for it. scarce: nothing is left for other gateways, or one
    had to do without.
    """

    slots: int
    tokens: int
    unmet_slots: int
    unmet_tokens: int
    idle_slots: int
    idle_tokens: int
    wait_s: float
    scarce: bool


class QuotaLedger:
    """The ledgers, as one gateway process uses them. 0 requests or tokens is no limit."""

    def __init__(
        self, redis: Redis, process: str, *, concurrent: int, tokens_per_minute: int, lease_s: float
    ) -> None:
        """process: a name that no other process has, now or within KEPT_S."""
        self._redis = redis
        self._process = process
        self._script = redis.register_script(_EXCHANGE)
        self._limits = [
            concurrent,
            tokens_per_minute,
            int(lease_s * 1000),
            int(KEPT_S * 1000),
            int(HUNGRY_S * 1000),
        ]

    async def exchange(self, batch: Sequence[Exchange]) -> list[Holding | PlinthError]:
        """All of `batch` in one pipeline; answers in order, an error for a ledger that took none.
        Raises Unavailable when nobody knows which of them were applied. Either way the same ones
        may be sent again, beside others."""
        with redis_errors():
            async with self._redis.pipeline(transaction=False) as pipe:
                for one in batch:
                    await self._script(
                        keys=[redis_keys.quota(one.tenant)],
                        args=[self._process, *list(vars(one).values())[1:], *self._limits],
                        client=pipe,
                    )
                answers = await pipe.execute(raise_on_error=False)
        return [_answer(one, raw) for one, raw in zip(batch, answers, strict=True)]


def _answer(one: Exchange, raw: Any) -> Holding | PlinthError:
    if not isinstance(raw, Exception):
        slots, tokens, unmet_slots, unmet_tokens, idle_slots, idle_tokens, wait_ms, scarce = raw
        return Holding(
            slots,
            tokens,
            unmet_slots,
            unmet_tokens,
            idle_slots,
            idle_tokens,
            wait_ms / 1000,
            bool(scarce),
        )
    try:
        with redis_errors():
            raise raw
    except PlinthError as error:
        return error
    except Exception as error:  # noqa: BLE001 - one damaged ledger must not stop the others
        return DataLoss(f"the quota ledger of tenant {one.tenant!r} can't be used: {error}")
