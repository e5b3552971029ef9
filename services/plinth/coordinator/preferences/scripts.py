"""The moves of a collection's tasks, each one atomic script (Lua), by the server's own clock.

A task is in exactly one state:

    sampling   its responses are still being made
    open       in OPEN: an annotator can be given it
    leased     in LEASES by the time the lease runs out; `fence` and `holder` name the annotator
    done       judged by as many people as were wanted, or closed
    failed     its responses could not be made

One annotator at a time: only `grant` makes a lease, it takes the task out of OPEN, and nothing
puts it back but `let_go`, which ends the lease in the same script. `by:<source>:<annotator>`
says what became of the task with this annotator: "skip", or "<fence>:<number of the judgement>".
"""

from __future__ import annotations

BATCH = 100  # lapsed leases swept by one call at most
SCAN = 500  # open tasks that one call looks at; the caller goes on from there
MAX_MACHINES = 16  # judgements of one task by rules and models

PRELUDE = f"""
local TASKS, OPEN, LEASES, HELD, JUDGEMENTS, COUNTERS = unpack(KEYS)
local PREFIX = ARGV[1]
local BATCH, SCAN, MAX_MACHINES = {BATCH}, {SCAN}, {MAX_MACHINES}
local call = redis.call

local function now_ms()
  local t = call('TIME')
  return t[1] * 1000 + math.floor(t[2] / 1000)
end

local function key(id) return PREFIX .. id end

local function get(id, field) return call('HGET', key(id), field) end

-- Ends the lease, if there is one, and puts the task where it belongs.
local function let_go(id)
  local holder = get(id, 'holder')
  if holder then
    call('ZREM', LEASES, id)
    call('HDEL', key(id), 'holder', 'order')
    call('HSET', key(id), 'fence', 0)
    if call('HINCRBY', HELD, holder, -1) <= 0 then call('HDEL', HELD, holder) end
  end
  if tonumber(get(id, 'judged')) < tonumber(get(id, 'wanted')) then
    call('HSET', key(id), 'state', 'open')
    call('ZADD', OPEN, get(id, 'number'), id)
  else
    call('HSET', key(id), 'state', 'done')
    call('ZREM', OPEN, id)
  end
end

local function lapse(id)
  call('HSET', key(id), 'lapsed', get(id, 'fence'))
  let_go(id)
end

-- 'ok', or why this annotator does not hold the task under this fence.
local function held(id, fence, annotator)
  if call('EXISTS', key(id)) == 0 then return 'unknown' end
  local holder = get(id, 'holder')
  if holder and get(id, 'fence') == fence then
    if holder ~= annotator then return 'taken' end
    if tonumber(call('ZSCORE', LEASES, id)) <= now_ms() then return 'expired' end
    return 'ok'
  end
  if get(id, 'lapsed') == fence then return 'expired' end
  if holder and holder ~= annotator then return 'taken' end
  return 'stale'
end
"""

# ARGV: prefix, id, digest of its spec, record, wanted, responses, state, most tasks, most bytes,
# tenant.
CREATE = """
local id = ARGV[2]
local there = get(id, 'digest')
if there then return there == ARGV[3] and 'known' or 'differs' end
if call('ZCARD', TASKS) >= tonumber(ARGV[8]) then return 'full' end
local bytes = tonumber(call('HGET', COUNTERS, 'bytes') or 0)
if bytes + #ARGV[4] > tonumber(ARGV[9]) then return 'full' end
call('HINCRBY', COUNTERS, 'bytes', #ARGV[4])
local number = call('HINCRBY', COUNTERS, 'number', 1)
call('HSET', key(id), 'digest', ARGV[3], 'record', ARGV[4], 'wanted', ARGV[5], 'responses', ARGV[6],
  'state', ARGV[7], 'number', number, 'judged', 0, 'machines', 0, 'fence', 0,
  'tenant', ARGV[10])
call('ZADD', TASKS, number, id)
if ARGV[7] ~= 'sampling' then let_go(id) end
return 'ok'
"""

# ARGV: prefix, id, record, responses. Gives 'ok' (also when it was filled before) or 'gone'.
# One that failed may be tried again (its work is requeued).
FILL = """
local id = ARGV[2]
local state = get(id, 'state')
if not state then return 'gone' end
if state ~= 'sampling' and state ~= 'failed' then return 'ok' end
call('HDEL', key(id), 'error')
call('HINCRBY', COUNTERS, 'bytes', #ARGV[3] - #get(id, 'record'))
call('HSET', key(id), 'record', ARGV[3], 'responses', ARGV[4])
let_go(id)
return 'ok'
"""

# ARGV: prefix, id, reason.
FAIL = """
if get(ARGV[2], 'state') == 'sampling' then
  call('HSET', key(ARGV[2]), 'state', 'failed', 'error', ARGV[3])
end
return 'ok'
"""

# KEYS[7]: nonce. ARGV: prefix, annotator, nonce or '', lease_ms, number to go on behind, a certain
# id or '', most held, 8 random keys, the tenant whose tasks alone are leased or ''. Gives
# {'ok', id, fence, order, until_ms, record}, {'more', number}, or {why not}.
LEASE = """
local annotator, nonce, lease_ms = ARGV[2], ARGV[3], tonumber(ARGV[4])
local mine = 'by:human:' .. annotator
local now, tenant = now_ms(), ARGV[16]

local function allowed(id)
  return tenant == '' or (get(id, 'tenant') or tenant) == tenant
end

local function answer(id)
  return {'ok', id, get(id, 'fence'), get(id, 'order'),
    string.format('%.0f', call('ZSCORE', LEASES, id)), get(id, 'record')}
end

local function grant(id)
  local order, count = {}, tonumber(get(id, 'responses'))
  for i = 1, count do order[i] = i end
  table.sort(order, function(a, b) return tonumber(ARGV[7 + a]) < tonumber(ARGV[7 + b]) end)
  local fence = call('HINCRBY', COUNTERS, 'fence', 1)
  call('ZREM', OPEN, id)
  call('ZADD', LEASES, now + lease_ms, id)
  call('HSET', key(id), 'state', 'leased', 'fence', fence, 'holder', annotator,
    'order', table.concat(order, ','))
  call('HINCRBY', HELD, annotator, 1)
  if nonce ~= '' then call('SET', KEYS[7], nonce .. ' ' .. fence .. ' ' .. id, 'PX', lease_ms) end
  return answer(id)
end

-- 1. The same call sent again gives the same lease.
local last = nonce ~= '' and call('GET', KEYS[7])
if last and string.sub(last, 1, #nonce + 1) == nonce .. ' ' then
  local fence, id = string.match(string.sub(last, #nonce + 2), '^(%d+) (.+)$')
  if held(id, fence, annotator) == 'ok' and allowed(id) then return answer(id) end
end

-- 2. Leases that ran out end.
for _, id in ipairs(call('ZRANGE', LEASES, '-inf', now, 'BYSCORE', 'LIMIT', 0, BATCH)) do
  lapse(id)
end

-- 3. A certain task …
local id = ARGV[6]
if id ~= '' then
  local state = get(id, 'state')
  if not state then return {'unknown'} end
  if state == 'leased' and tonumber(call('ZSCORE', LEASES, id)) <= now then
    lapse(id)
    state = get(id, 'state')
  end
  if state == 'leased' then
    if get(id, 'holder') ~= annotator then return {'taken'} end
    return answer(id)
  end
  local before = get(id, mine)
  if before and before ~= 'skip' then return {'judged'} end
  if state ~= 'open' then return {state} end
end
if tonumber(call('HGET', HELD, annotator) or 0) >= tonumber(ARGV[7]) then return {'held'} end
if id ~= '' then return grant(id) end

-- 4. … or the oldest that this annotator has neither judged nor skipped.
local from = '(' .. ARGV[5]
local found = call('ZRANGE', OPEN, from, '+inf', 'BYSCORE', 'LIMIT', 0, SCAN)
for _, one in ipairs(found) do
  if call('HEXISTS', key(one), mine) == 0 and allowed(one) then return grant(one) end
end
if #found == SCAN then return {'more', call('ZSCORE', OPEN, found[SCAN])} end
return {'none'}
"""

# ARGV: prefix, id, fence, annotator, lease_ms. Gives {'ok', until_ms} or {why not}.
RENEW = """
local why = held(ARGV[2], ARGV[3], ARGV[4])
if why ~= 'ok' then return {why} end
local until_ms = now_ms() + ARGV[5]
call('ZADD', LEASES, until_ms, ARGV[2])
return {'ok', string.format('%.0f', until_ms)}
"""

# ARGV: prefix, id, fence, annotator, skip (1/0).
RELEASE = """
local id = ARGV[2]
if get(id, 'settled') == ARGV[3] then return {'ok'} end
local why = held(id, ARGV[3], ARGV[4])
if why ~= 'ok' then return {why} end
if ARGV[5] == '1' then call('HSET', key(id), 'by:human:' .. ARGV[4], 'skip') end
call('HSET', key(id), 'settled', ARGV[3])
let_go(id)
return {'ok'}
"""

# ARGV: prefix, id, fence, annotator, judgement, whether there is room (1/0). Gives its number with
# 'ok' or 'known', or {why not}.
SUBMIT = """
local id, fence, annotator = ARGV[2], ARGV[3], ARGV[4]
local mine = 'by:human:' .. annotator
local before = get(id, mine)
if before and before ~= 'skip' then
  local of, number = string.match(before, '^(%d+):(%d+)$')
  if of == fence then return {'known', tonumber(number)} end
  return {'judged'}
end
local why = held(id, fence, annotator)
if why ~= 'ok' then return {why} end
if ARGV[6] == '0' then return {'no room'} end
local number = call('RPUSH', JUDGEMENTS, ARGV[5])
call('HINCRBY', COUNTERS, 'bytes', #ARGV[5])
call('HINCRBY', key(id), 'judged', 1)
call('HSET', key(id), mine, fence .. ':' .. number, 'settled', fence)
let_go(id)
return {'ok', number}
"""

# ARGV: prefix, id, field that names source and annotator, judgement, whether there is room (1/0).
ADD = """
local id, mine = ARGV[2], ARGV[3]
local state = get(id, 'state')
if not state then return {'unknown'} end
local before = get(id, mine)
if before and before ~= 'skip' then
  return {'known', tonumber(string.match(before, ':(%d+)$'))}
end
if state == 'sampling' or state == 'failed' then return {state} end
if tonumber(get(id, 'machines')) >= MAX_MACHINES then return {'full'} end
if ARGV[5] == '0' then return {'no room'} end
local number = call('RPUSH', JUDGEMENTS, ARGV[4])
call('HINCRBY', COUNTERS, 'bytes', #ARGV[4])
call('HINCRBY', key(id), 'machines', 1)
call('HSET', key(id), mine, '0:' .. number)
return {'ok', number}
"""

# ARGV: prefix, id. What is held may still be judged. Gives 'closed' or 'unknown'.
CLOSE = """
local id = ARGV[2]
local state = get(id, 'state')
if not state then return 'unknown' end
local judged, holder = tonumber(get(id, 'judged')), get(id, 'holder')
call('HSET', key(id), 'wanted', judged + (holder and 1 or 0))
if not holder then let_go(id) end
return 'closed'
"""

# ARGV: prefix, id. Its judgements are part of the collection's revisions, so one that is judged
# stays. Gives 'ok' or why not.
REMOVE = """
local id = ARGV[2]
local state = get(id, 'state')
if not state then return 'unknown' end
if state == 'leased' and tonumber(call('ZSCORE', LEASES, id)) <= now_ms() then lapse(id) end
if get(id, 'holder') then return 'kept by lease' end
local said = get(id, 'judged') + get(id, 'machines')
if said > 0 then return 'kept by judgement' end
call('HINCRBY', COUNTERS, 'bytes', -#get(id, 'record'))
call('ZREM', OPEN, id)
call('ZREM', TASKS, id)
call('DEL', key(id))
return 'ok'
"""
