"""The Lua scripts of canaries: each of their moves is one of these, done whole or not at all.

The hash of one served name:

    id, state       the canary's owner; "open", "promoted" (all new requests go to it) or "closed"
    stable, canary  artifact references;  share, sticky, opened, until (ms, server clock)
    asked, given    requests that were assigned, and those of them that the canary got
    most            requests that the canary is given at most, "" for any number
    evidence        what the step that watches it has concluded so far, in its own words
    counted         the last cohort that is in the evidence
    outcome         reason and words of its end
    patience        the longest that a gateway lets a request take, in ms
    cohort, cohort_until    the present cohort, and when its slot of time ends (ms, server clock)
    <role>.<what>   requests, errors, cancelled, unanswered, tokens, good, bad, ttft.<bucket>

A second hash has the cohorts (`canary_counts.py`) that are not in the evidence yet:

    <cohort>.until          when its slot ends
    <cohort>.<role>.<what>  given, settled, errors, cancelled, unanswered, ttft.<bucket>

A slot lasts a fiftieth of the canary's age, within bounds, and evidence waits for no cohort longer
than the patience, of which a slot is at least a 128th: so there are some hundreds of them at most.

OPEN, MOVE and NOTE are a leader's: they also compare the leader's lease (KEYS[2]) with what it
holds while that one leads, so that a coordinator that lost its lease changes nothing.
"""

from __future__ import annotations

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local h = redis.call('HMGET', KEYS[1], 'id', 'state', 'until', 'canary', 'share', 'sticky')
local live = h[1] and h[2] ~= 'closed' and tonumber(h[3]) > now
"""
# ARGV[1]: the lease's value, or "" where it is not compared.
_LEADS = """
local deposed = ARGV[1] ~= '' and redis.call('GET', KEYS[2]) ~= ARGV[1]
"""
# KEYS: canary, lease, cohorts. ARGV: lease's value, id, stable, canary, share, ttl in ms, kept in
# ms, "1" if sticky, most. Gives {state, opened}, {"taken", id} or {"deposed", ""}.
OPEN = (
    _NOW
    + _LEADS
    + """
if deposed then return {'deposed', ''} end
table.remove(ARGV, 1)
if h[1] ~= ARGV[1] then
  if live then return {'taken', h[1]} end
  redis.call('DEL', KEYS[1], KEYS[3])
  redis.call('HSET', KEYS[1], 'id', ARGV[1], 'state', 'open', 'stable', ARGV[2],
    'canary', ARGV[3], 'share', ARGV[4], 'sticky', ARGV[7], 'most', ARGV[8], 'opened', now)
elseif h[2] == 'closed' then return {'closed', '0'} end
redis.call('HSET', KEYS[1], 'until', now + ARGV[5])
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[3], ARGV[6])
return redis.call('HMGET', KEYS[1], 'state', 'opened')
"""
)
# KEYS: canary, lease. ARGV: lease's value, id, state, outcome or "". A closed one stays closed.
# Gives -1 to who was deposed.
MOVE = (
    _LEADS
    + """
if deposed then return -1 end
table.remove(ARGV, 1)
local h = redis.call('HMGET', KEYS[1], 'id', 'state')
if h[1] ~= ARGV[1] or h[2] == 'closed' then return 0 end
redis.call('HSET', KEYS[1], 'state', ARGV[2], 'outcome', ARGV[3])
return 1
"""
)
# KEYS: canary, lease, cohorts. ARGV: lease's value, id, evidence, counted. What led to a decision
# stays as it was. Gives -1 to who was deposed.
NOTE = (
    _LEADS
    + """
if deposed then return -1 end
table.remove(ARGV, 1)
local h = redis.call('HMGET', KEYS[1], 'id', 'state')
if h[1] ~= ARGV[1] or h[2] ~= 'open' then return 0 end
redis.call('HSET', KEYS[1], 'evidence', ARGV[2], 'counted', ARGV[3])
for _, field in ipairs(redis.call('HKEYS', KEYS[3])) do
  if tonumber(string.match(field, '^%d+')) <= tonumber(ARGV[3]) then
    redis.call('HDEL', KEYS[3], field)
  end
end
return 1
"""
)
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
# The cohort of a request that is assigned now. A slot's length depends on no outcome.
_COHORT = """
local function cohort_now(hash, cohorts, now, shortest, longest, within)
  local c = redis.call('HMGET', hash, 'cohort', 'cohort_until', 'patience', 'opened')
  local patience = math.max(tonumber(c[3] or '0'), within)
  if patience > tonumber(c[3] or '0') then redis.call('HSET', hash, 'patience', patience) end
  if c[1] and now < tonumber(c[2]) then return c[1] end
  longest = math.max(longest, patience / 128)
  local lasts = math.min(longest, math.max(shortest, (now - tonumber(c[4])) / 50))
  local cohort = string.format('%d', tonumber(c[1] or '0') + 1)
  local till = string.format('%d', now + lasts)
  redis.call('HSET', hash, 'cohort', cohort, 'cohort_until', till)
  redis.call('HSET', cohorts, cohort .. '.until', till)
  redis.call('PEXPIRE', cohorts, redis.call('PTTL', hash))
  return cohort
end
"""
# KEYS: canary, the choice (so that it can be asked twice), answers, their times, cohorts. ARGV: the
# canary's artifact, the user's point in [0, 1) or "", slack, seconds that the choice is kept, the
# answer, how long answers are kept in ms, how many, the shortest and the longest slot in ms, how
# long this request may take in ms. Gives {id, role, cohort}, or {} for none.
CHOOSE = (
    _NOW
    + _REMEMBER
    + _COHORT
    + """
if not live or h[4] ~= ARGV[1] then return {} end
if h[2] == 'promoted' then return {h[1], 'canary', '0'} end
local before = redis.call('GET', KEYS[2])
if before then
  local role, cohort = string.match(before, '^(%a+)|(%d+)$')
  return {h[1], role, cohort}
end
local share = tonumber(h[5])
local asked = redis.call('HINCRBY', KEYS[1], 'asked', 1)
local had = redis.call('HMGET', KEYS[1], 'given', 'most')
local given = tonumber(had[1] or '0')
local most = share * asked + 1e-9
local wanted = true
if ARGV[2] ~= '' and h[6] == '1' then
  wanted = tonumber(ARGV[2]) < share
  most = most + tonumber(ARGV[3]) * math.max(asked, 50)
end
if had[2] and had[2] ~= '' then most = math.min(most, tonumber(had[2])) end
local role = 'stable'
if wanted and given + 1 <= most then
  role = 'canary'
  redis.call('HINCRBY', KEYS[1], 'given', 1)
end
local cohort = cohort_now(KEYS[1], KEYS[5], now, tonumber(ARGV[8]), tonumber(ARGV[9]),
  tonumber(ARGV[10]))
redis.call('HINCRBY', KEYS[5], cohort .. '.' .. role .. '.given', 1)
redis.call('SET', KEYS[2], role .. '|' .. cohort, 'EX', ARGV[4])
remember(KEYS[3], KEYS[4], ARGV[5], h[1] .. '|' .. role, now, tonumber(ARGV[6]),
  tonumber(ARGV[7]))
return {h[1], role, cohort}
"""
)
# KEYS: canary, once, answers, their times, cohorts. ARGV: id, role, outcome, tokens, bucket or "",
# once in s, the answer, how long answers are kept in ms, how many, cohort.
SETTLE = (
    _NOW
    + _REMEMBER
    + """
if h[1] ~= ARGV[1] then return 0 end
if not redis.call('SET', KEYS[2], 1, 'NX', 'EX', ARGV[6]) then return 0 end
local of = ARGV[2] .. '.'
-- One that ends when its cohort is in the evidence was counted there as lost.
local open = tonumber(ARGV[10]) > tonumber(redis.call('HGET', KEYS[1], 'counted') or '0')
local function book(what, n)
  if open then redis.call('HINCRBY', KEYS[5], ARGV[10] .. '.' .. of .. what, n) end
end
local function add(what)
  redis.call('HINCRBY', KEYS[1], of .. what, 1)
  book(what, 1)
end
if ARGV[3] == 'refused' then
  book('given', -1)
  return 1
end
book('settled', 1)
if ARGV[3] == 'cancelled' then
  add('cancelled')
  if ARGV[5] == '' then add('unanswered') end
else
  redis.call('HINCRBY', KEYS[1], of .. 'requests', 1)
  if ARGV[3] == 'error' then add('errors') end
  if ARGV[3] == 'late' then
    redis.call('HINCRBY', KEYS[1], of .. 'errors', 1)
    book('unanswered', 1)
  end
end
if tonumber(ARGV[4]) > 0 then redis.call('HINCRBY', KEYS[1], of .. 'tokens', ARGV[4]) end
if ARGV[5] ~= '' then add('ttft.' .. ARGV[5]) end
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
