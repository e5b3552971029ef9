"""The Lua scripts of canaries: each of their moves is one of these, done whole or not at all.

The hash of one served name:

    id, state       the canary's owner; "open", "promoted" (all new requests go to it) or "closed"
    stable, canary  artifact references;  share, sticky, opened, until (ms, server clock)
    asked, given    requests that were assigned, and those of them that the canary got
    evidence        what the step that watches it has concluded so far, in its own words
    <role>.<what>   requests, errors, cancelled, tokens, good, bad, ttft.<bucket>
"""

from __future__ import annotations

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local h = redis.call('HMGET', KEYS[1], 'id', 'state', 'until', 'canary', 'share', 'sticky')
local live = h[1] and h[2] ~= 'closed' and tonumber(h[3]) > now
"""
# KEYS: canary. ARGV: id, stable, canary, share, ttl in ms, kept in ms, "1" if sticky. Gives
# {state, opened} or {"taken", id}.
OPEN = (
    _NOW
    + """
if h[1] ~= ARGV[1] then
  if live then return {'taken', h[1]} end
  redis.call('DEL', KEYS[1])
  redis.call('HSET', KEYS[1], 'id', ARGV[1], 'state', 'open', 'stable', ARGV[2],
    'canary', ARGV[3], 'share', ARGV[4], 'sticky', ARGV[7], 'opened', now)
elseif h[2] == 'closed' then return {'closed', '0'} end
redis.call('HSET', KEYS[1], 'until', now + ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
return redis.call('HMGET', KEYS[1], 'state', 'opened')
"""
)
# KEYS: canary. ARGV: id, state. A closed one stays closed.
MOVE = """
local h = redis.call('HMGET', KEYS[1], 'id', 'state')
if h[1] ~= ARGV[1] or h[2] == 'closed' then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2])
return 1
"""
# KEYS: canary. ARGV: id, evidence. What led to a decision stays as it was.
NOTE = """
local h = redis.call('HMGET', KEYS[1], 'id', 'state')
if h[1] ~= ARGV[1] or h[2] ~= 'open' then return 0 end
redis.call('HSET', KEYS[1], 'evidence', ARGV[2])
return 1
"""
# A bounded memory of answers, forgotten by age and by number.
_REMEMBER = """
local function remember(answers, times, answer, value, now, age, most)
  redis.call('HSET', answers, answer, value)
  redis.call('ZADD', times, now, answer)
  local old = redis.call('ZRANGEBYSCORE', times, '-inf', now - age, 'LIMIT', 0, 100)
  local extra = redis.call('ZCARD', times) - most - #old
  if extra > 0 then old = redis.call('ZRANGE', times, 0, #old + extra - 1) end
  for _, one in ipairs(old) do
    redis.call('ZREM', times, one)
    redis.call('HDEL', answers, one)
  end
  redis.call('PEXPIRE', answers, age)
  redis.call('PEXPIRE', times, age)
end
"""
# KEYS: canary, the choice (so that it can be asked twice), answers, their times. ARGV: the canary's
# artifact, the user's point in [0, 1) or "", slack, seconds that the choice is kept, the answer,
# how long answers are kept in ms, how many. Gives {id, role}, or {} for none.
CHOOSE = (
    _NOW
    + _REMEMBER
    + """
if not live or h[4] ~= ARGV[1] then return {} end
if h[2] == 'promoted' then return {h[1], 'canary'} end
local before = redis.call('GET', KEYS[2])
if before then return {h[1], before} end
local share = tonumber(h[5])
local asked = redis.call('HINCRBY', KEYS[1], 'asked', 1)
local given = tonumber(redis.call('HGET', KEYS[1], 'given') or '0')
local most = share * asked + 1e-9
local wanted = true
if ARGV[2] ~= '' and h[6] == '1' then
  wanted = tonumber(ARGV[2]) < share
  most = most + tonumber(ARGV[3]) * math.max(asked, 50)
end
local role = 'stable'
if wanted and given + 1 <= most then
  role = 'canary'
  redis.call('HINCRBY', KEYS[1], 'given', 1)
end
redis.call('SET', KEYS[2], role, 'EX', ARGV[4])
remember(KEYS[3], KEYS[4], ARGV[5], h[1] .. '|' .. role, now, tonumber(ARGV[6]),
  tonumber(ARGV[7]))
return {h[1], role}
"""
)
# KEYS: canary, once, answers, their times. ARGV: id, role, outcome, tokens, bucket or "", once in
# s, the answer, how long answers are kept in ms, how many.
SETTLE = (
    _NOW
    + _REMEMBER
    + """
if h[1] ~= ARGV[1] then return 0 end
if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[6]) then return 0 end
local function add(what, n) redis.call('HINCRBY', KEYS[1], ARGV[2] .. '.' .. what, n) end
if ARGV[3] == 'cancelled' then add('cancelled', 1) else add('requests', 1) end
if ARGV[3] == 'error' then add('errors', 1) end
if tonumber(ARGV[4]) > 0 then add('tokens', ARGV[4]) end
if ARGV[5] ~= '' then add('ttft.' .. ARGV[5], 1) end
-- Here because the other revision answered instead, or because the answer took very long.
local answer = ARGV[1] .. '|' .. ARGV[2]
local there = redis.call('HGET', KEYS[3], ARGV[7])
if not there or string.sub(there, 1, string.len(answer)) ~= answer then
  remember(KEYS[3], KEYS[4], ARGV[7], answer, now, tonumber(ARGV[8]), tonumber(ARGV[9]))
end
return 1
"""
)
# KEYS: canary, answers, their times. ARGV: "good" or "bad", the answer, how long answers are kept
# in ms. Gives the role, or "unknown" or "over".
REPORT = (
    _NOW
    + """
local answer = redis.call('HGET', KEYS[2], ARGV[2])
local came = redis.call('ZSCORE', KEYS[3], ARGV[2])
if not answer or not came or tonumber(came) < now - tonumber(ARGV[3]) then return 'unknown' end
local id, role, judged = string.match(answer, '^([^|]*)|([^|]*)(|?)')
if h[1] ~= id then return 'over' end
if judged == '' then
  redis.call('HSET', KEYS[2], ARGV[2], answer .. '|' .. ARGV[1])
  redis.call('HINCRBY', KEYS[1], role .. '.' .. ARGV[1], 1)
end
return role
"""
)
# KEYS: canary, once. ARGV: "good" or "bad", the judged artifact, once in s. Gives as above.
REPORT_REVISION = (
    _NOW
    + """
if not live then return 'over' end
local role = 'unknown'
if h[4] == ARGV[2] then role = 'canary'
elseif redis.call('HGET', KEYS[1], 'stable') == ARGV[2] then role = 'stable' end
if role ~= 'unknown' and redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[3]) then
  redis.call('HINCRBY', KEYS[1], role .. '.' .. ARGV[1], 1)
end
return role
"""
)
