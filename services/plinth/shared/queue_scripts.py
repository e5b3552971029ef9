"""The moves of a queue, each one atomic script on the server (Lua), by the server's own clock.

An item is in exactly one place at a time:

    waiting    its id is in the stream, not yet read by the group (or given back: see release)
    leased     read; in LEASES by the time at which the lease lapses; `fence` names the holder
    delayed    in DELAYED by the time at which its retry is due
    dead       in DEAD, with a reason, until somebody requeues it

and leaves by `complete` (its result stays a while), by `cancel`, or as the oldest of too many
dead letters. `fence` is 0 whenever nobody holds the item; `settled` is the fence of the last
holder who gave it up in order, so that a call sent twice is answered the same twice.
"""

from __future__ import annotations

GROUP = "workers"
MAX_DEAD = 10_000
BATCH = 100  # items moved by one claim at most, so that no script holds the server for long

PRELUDE = f"""
local STREAM, ITEMS, PAYLOADS, LEASES, DELAYED, DEAD, CANCELLED, FENCE = unpack(KEYS)
local GROUP, MAX_DEAD, BATCH = '{GROUP}', {MAX_DEAD}, {BATCH}
local call = redis.call

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function load(id)
  local raw = call('HGET', ITEMS, id)
  return raw and cjson.decode(raw)
end

local function save(id, item)
  call('HSET', ITEMS, id, cjson.encode(item))
end

local function ensure_group()
  if call('EXISTS', STREAM) == 0 then
    call('XGROUP', 'CREATE', STREAM, GROUP, '0', 'MKSTREAM')
  end
end

local function enqueue(id, item)
  ensure_group()
  item.entry = call('XADD', STREAM, '*', 'id', id)
  item.state = 'waiting'
  save(id, item)
end

-- Out of wherever it is.
local function pull(id, item)
  if item.entry then
    call('XACK', STREAM, GROUP, item.entry)
    call('XDEL', STREAM, item.entry)
    item.entry = nil
  end
  call('ZREM', LEASES, id)
  call('ZREM', DELAYED, id)
end

local function forget(id, item)
  pull(id, item)
  call('HDEL', ITEMS, id)
  call('HDEL', PAYLOADS, id)
end

local function bury(id, item, reason, now)
  pull(id, item)
  item.state, item.reason, item.fence = 'dead', reason, 0
  save(id, item)
  call('ZADD', DEAD, now, id)
  local over = call('ZCARD', DEAD) - MAX_DEAD
  if over > 0 then
    local oldest = call('ZPOPMIN', DEAD, over)
    for i = 1, #oldest, 2 do
      call('HDEL', ITEMS, oldest[i])
      call('HDEL', PAYLOADS, oldest[i])
    end
  end
end

-- Remembered for a while, so that an `add` that comes late does not bring it back.
local function drop_cancelled(id, item, now, keep_ms)
  forget(id, item)
  call('ZADD', CANCELLED, now + keep_ms, id)
end

local function full(max_length)
  return call('HLEN', ITEMS) - call('ZCARD', DEAD) >= max_length
end
"""

# KEYS[9]: result. ARGV: id, payload, deadline in ms or '', max_length, traceparent or ''.
ADD = """
local id = ARGV[1]
if call('HEXISTS', ITEMS, id) == 1 or call('EXISTS', KEYS[9]) == 1 then return 'known' end
local until_ms = call('ZSCORE', CANCELLED, id)
if until_ms and tonumber(until_ms) > now_ms() then return 'known' end
if full(tonumber(ARGV[4])) then return 'full' end
call('HSET', PAYLOADS, id, ARGV[2])
local trace = ARGV[5] ~= '' and ARGV[5] or nil
enqueue(id, {attempts = 0, fence = 0, deadline = tonumber(ARGV[3]), trace = trace})
return 'ok'
"""

# ARGV: consumer, lease_ms, max_attempts, keep_ms (cancelled), idle_ms or 0 (sweep consumers).
# Answers {id, payload, entry, fence, attempts, deadline or '', traceparent or ''}, or
# {'', last entry id, ms until something is due or -1}.
CLAIM = """
local consumer, lease_ms, max_attempts = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
local now = now_ms()
local id, item
ensure_group()
call('ZREMRANGEBYSCORE', CANCELLED, '-inf', now)

if tonumber(ARGV[5]) > 0 then
  for _, row in ipairs(call('XINFO', 'CONSUMERS', STREAM, GROUP)) do
    local info = {}
    for i = 1, #row, 2 do info[row[i]] = row[i + 1] end
    if info.pending == 0 and info.idle > tonumber(ARGV[5]) then
      call('XGROUP', 'DELCONSUMER', STREAM, GROUP, info.name)
    end
  end
end

-- 1. Retries that are due wait again.
for _, due in ipairs(call('ZRANGE', DELAYED, '-inf', now, 'BYSCORE', 'LIMIT', 0, BATCH)) do
  call('ZREM', DELAYED, due)
  enqueue(due, load(due))
end

-- 2. Leases that lapsed (or were given back) come first: these items waited longest.
for _, lapsed in ipairs(call('ZRANGE', LEASES, '-inf', now, 'BYSCORE', 'LIMIT', 0, BATCH)) do
  local found = load(lapsed)
  if found.cancelled then
    drop_cancelled(lapsed, found, now, tonumber(ARGV[4]))
  elseif found.attempts >= max_attempts then
    bury(lapsed, found, 'lease lapsed on attempt ' .. found.attempts .. ' (consumer ' ..
      (found.consumer or '?') .. ' died or hung)', now)
  elseif found.deadline and found.deadline <= now then
    bury(lapsed, found, 'deadline passed', now)
  else
    id, item = lapsed, found
    call('XCLAIM', STREAM, GROUP, consumer, 0, item.entry, 'FORCE', 'JUSTID')
    break
  end
end

-- 3. Else the oldest that waits.
local tries = 0
while not id and tries < BATCH do
  tries = tries + 1
  local read = call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', 1, 'STREAMS', STREAM, '>')
  if not read then break end
  local entry = read[1][2][1]
  local next_id = entry[2][2]
  local found = load(next_id)
  if found.deadline and found.deadline <= now then
    bury(next_id, found, 'deadline passed', now)
  else
    id, item = next_id, found
  end
end

if id then
  item.fence = call('INCR', FENCE)
  item.attempts = item.attempts + 1
  item.state, item.consumer = 'leased', consumer
  save(id, item)
  call('ZADD', LEASES, now + lease_ms, id)
  return {id, call('HGET', PAYLOADS, id), item.entry, item.fence, item.attempts,
    item.deadline and string.format('%.0f', item.deadline) or '', item.trace or ''}
end

local wait = -1
if tries == BATCH then wait = 0 end
for _, key in ipairs({DELAYED, LEASES}) do
  local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[2] then
    local due = math.max(0, tonumber(first[2]) - now)
    if wait < 0 or due < wait then wait = due end
  end
end
local info = call('XINFO', 'STREAM', STREAM)
for i = 1, #info, 2 do
  if info[i] == 'last-generated-id' then return {'', info[i + 1], wait} end
end
"""

# ARGV: id, fence, lease_ms.
HEARTBEAT = """
local item = load(ARGV[1])
if not item or item.fence ~= tonumber(ARGV[2]) then return 'lost' end
call('ZADD', LEASES, now_ms() + ARGV[3], ARGV[1])
return item.cancelled and 'cancelled' or 'ok'
"""

# KEYS[9]: result. ARGV: id, fence, result, ttl_ms.
COMPLETE = """
local item = load(ARGV[1])
if not item or item.fence ~= tonumber(ARGV[2]) then
  return call('HGET', KEYS[9], 'fence') == ARGV[2] and 'ok' or 'lost'
end
call('HSET', KEYS[9], 'value', ARGV[3], 'fence', ARGV[2])
call('PEXPIRE', KEYS[9], ARGV[4])
forget(ARGV[1], item)
return 'ok'
"""

# ARGV: id, fence, reason, retry (1/0), max_attempts, backoff_ms, longest back-off in ms, keep_ms.
FAIL = """
local id, fence = ARGV[1], tonumber(ARGV[2])
local item = load(id)
if not item or item.fence ~= fence then
  local twice = (item and item.settled == fence) or (not item and call('ZSCORE', CANCELLED, id))
  return twice and 'ok' or 'lost'
end
local now = now_ms()
item.settled = fence
if item.cancelled then
  drop_cancelled(id, item, now, tonumber(ARGV[8]))
elseif ARGV[4] == '1' and item.attempts < tonumber(ARGV[5]) then
  pull(id, item)
  item.state, item.reason, item.fence = 'delayed', ARGV[3], 0
  save(id, item)
  local wait = math.min(ARGV[6] * 2 ^ (item.attempts - 1), tonumber(ARGV[7]))
  call('ZADD', DELAYED, math.floor(now + wait), id)
else
  bury(id, item, ARGV[3], now)
end
return 'ok'
"""

# ARGV: id, fence, keep_ms. The entry stays the group's, with a lease that lapsed long ago.
RELEASE = """
local id, fence = ARGV[1], tonumber(ARGV[2])
local item = load(id)
if not item or item.fence ~= fence then
  local twice = (item and item.settled == fence) or (not item and call('ZSCORE', CANCELLED, id))
  return twice and 'ok' or 'lost'
end
if item.cancelled then
  drop_cancelled(id, item, now_ms(), tonumber(ARGV[3]))
  return 'ok'
end
item.settled, item.fence, item.state = fence, 0, 'waiting'
item.attempts = item.attempts - 1
save(id, item)
call('ZADD', LEASES, 0, id)
return 'ok'
"""

# ARGV: id, keep_ms.
CANCEL = """
local item = load(ARGV[1])
if not item or item.state == 'dead' then return 'unknown' end
if item.fence > 0 then
  item.cancelled = true
  save(ARGV[1], item)
  return 'marked'
end
drop_cancelled(ARGV[1], item, now_ms(), tonumber(ARGV[2]))
return 'removed'
"""

# ARGV: id, max_length.
REQUEUE = """
local item = load(ARGV[1])
if not item or item.state ~= 'dead' then return 'unknown' end
if full(tonumber(ARGV[2])) then return 'full' end
call('ZREM', DEAD, ARGV[1])
item.attempts, item.deadline = 0, nil
enqueue(ARGV[1], item)
return 'ok'
"""

# ARGV: id, keep_ms. Remembered as a cancelled item is.
DISCARD = """
local item = load(ARGV[1])
if not item or item.state ~= 'dead' then return 'unknown' end
call('ZREM', DEAD, ARGV[1])
drop_cancelled(ARGV[1], item, now_ms(), tonumber(ARGV[2]))
return 'ok'
"""

# ARGV: how many; behind which: the time at which it died in ms and its id, or '' and ''. Answers
# {id, ms, attempts, reason, bytes of payload, id, …}, newest first.
DEAD_PAGE = """
local wanted, before, behind = tonumber(ARGV[1]), ARGV[2], ARGV[3]
local found, offset = {}, 0
local newest = before == '' and '+inf' or before
while #found < 5 * wanted do
  local batch = call('ZRANGE', DEAD, newest, '-inf', 'BYSCORE', 'REV', 'LIMIT', offset, wanted,
    'WITHSCORES')
  if #batch == 0 then break end
  offset = offset + #batch / 2
  for i = 1, #batch, 2 do
    local id, died = batch[i], batch[i + 1]
    -- Of those that died in the same millisecond, the ids go down too.
    local shown = before ~= '' and tonumber(died) == tonumber(before) and id >= behind
    local item = load(id)
    if item and not shown and #found < 5 * wanted then
      local size = call('HSTRLEN', PAYLOADS, id)
      for _, value in ipairs({id, tonumber(died), item.attempts, item.reason or '', size}) do
        found[#found + 1] = value
      end
    end
  end
end
return found
"""

# Answers {waiting, leased, delayed, dead, ms since the oldest that waits began to}.
INSPECT = """
local now, oldest = now_ms(), nil
local function waits(entry)
  local since = tonumber(string.match(entry, '^%d+'))
  oldest = math.min(oldest or since, since)
end
if call('EXISTS', STREAM) == 1 then
  -- Not yet read by the group.
  for _, row in ipairs(call('XINFO', 'GROUPS', STREAM)) do
    local info = {}
    for i = 1, #row, 2 do info[row[i]] = row[i + 1] end
    if info.name == GROUP then
      local after = '(' .. info['last-delivered-id']
      local first = call('XRANGE', STREAM, after, '+', 'COUNT', 1)[1]
      if first then waits(first[1]) end
    end
  end
end
-- Given back, or held by somebody who died.
for _, id in ipairs(call('ZRANGE', LEASES, '-inf', now, 'BYSCORE', 'LIMIT', 0, BATCH)) do
  waits(load(id).entry)
end
local leased = call('ZCOUNT', LEASES, '(0', '+inf')
local delayed, dead = call('ZCARD', DELAYED), call('ZCARD', DEAD)
return {call('HLEN', ITEMS) - leased - delayed - dead, leased, delayed, dead,
  oldest and math.max(0, now - oldest) or 0}
"""

# KEYS[9]: result. ARGV: id. Answers {state, attempts, reason} or nothing.
FIND = """
local item = load(ARGV[1])
if item then
  return {item.cancelled and 'cancelling' or item.state, item.attempts, item.reason or ''}
end
if call('EXISTS', KEYS[9]) == 1 then return {'completed', 0, ''} end
if call('ZSCORE', CANCELLED, ARGV[1]) then return {'cancelled', 0, ''} end
return false
"""

# ARGV: how far to move the fence. For a queue whose holders are gone for good (a restored one):
# gives back, as RELEASE does, what up to BATCH of them held. Answers how many are left. The fence
# moves once, with the first call, so that no number given out since the backup comes again.
ADOPT = """
call('INCRBY', FENCE, ARGV[1])
local held = call('ZRANGE', LEASES, '(0', '+inf', 'BYSCORE', 'LIMIT', 0, BATCH)
for _, id in ipairs(held) do
  local item = load(id)
  if item and item.fence > 0 then
    item.fence, item.state, item.attempts = 0, 'waiting', item.attempts - 1
    save(id, item)
  end
  call('ZADD', LEASES, 0, id)
end
return call('ZCOUNT', LEASES, '(0', '+inf')
"""

# KEYS[9]: result. ARGV: id.
FORGET = """
local id = ARGV[1]
local item = load(id)
if item and item.state ~= 'dead' then return 'held' end
if item then
  forget(id, item)
  call('ZREM', DEAD, id)
end
call('ZREM', CANCELLED, id)
call('DEL', KEYS[9])
return 'ok'
"""
