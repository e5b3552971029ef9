"""What Redis does with runs, each one atomic script (Lua). See `runs` for the keys."""

from __future__ import annotations

# KEYS: counter. Gives the number of the next run: the next one, and the time (ms) at least, so that
# a Redis that lost its data gives none twice (the store remembers what earlier runs wrote).
NUMBER = """
local t = redis.call('TIME')
local number = math.max(tonumber(redis.call('GET', KEYS[1]) or '0') + 1,
  t[1] * 1000 + math.floor(t[2] / 1000))
redis.call('SET', KEYS[1], string.format('%.0f', number))
return number
"""
# KEYS: run, index, active, events. ARGV: id, record, now in ms, most active, most kept, most
# events, prefix of the runs' keys. Gives the record that stands, "" when too many are active.
SUBMIT = """
local there = redis.call('HGET', KEYS[1], 'record')
if there then return there end
if redis.call('SCARD', KEYS[3]) >= tonumber(ARGV[4]) then return '' end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'revision', 1, 'wanted', 'run')
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('SADD', KEYS[3], ARGV[1])
redis.call('XADD', KEYS[4], 'MAXLEN', '~', ARGV[6], '*', 'run', ARGV[1])
local extra = redis.call('ZCARD', KEYS[2]) - tonumber(ARGV[5])
if extra > 0 then
  for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, extra - 1)) do
    if redis.call('SISMEMBER', KEYS[3], id) == 0 then
      redis.call('ZREM', KEYS[2], id)
      redis.call('DEL', ARGV[7] .. id, ARGV[7] .. id .. ':log')
    end
  end
end
return ARGV[2]
"""
# KEYS: run, events. ARGV: id, wanted, most events. Gives 1 done, 0 unknown, -1 ended, -2 cancelled.
WANT = """
local wanted = redis.call('HGET', KEYS[1], 'wanted')
if not wanted then return 0 end
if redis.call('HGET', KEYS[1], 'ended') then return -1 end
if wanted == ARGV[2] then return 1 end
if wanted == 'cancel' then return -2 end
redis.call('HSET', KEYS[1], 'wanted', ARGV[2])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'run', ARGV[1])
return 1
"""
# KEYS: run, active, events, lease, log. ARGV: id, lease's value, revision before, record, "1" if
# ended, most events, entry of the log, the state in it, most of those, their life after the end in
# seconds. Gives 1 done, -1 not the leader, -2 another revision.
SAVE = """
if redis.call('GET', KEYS[4]) ~= ARGV[2] then return -1 end
if redis.call('HGET', KEYS[1], 'revision') ~= ARGV[3] then
  -- The same save sent twice (its answer got lost) is no conflict.
  if redis.call('HGET', KEYS[1], 'record') == ARGV[4] then return 1 end
  return -2
end
redis.call('HSET', KEYS[1], 'record', ARGV[4], 'revision', ARGV[3] + 1)
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[1], 'ended', '1')
  redis.call('SREM', KEYS[2], ARGV[1])
end
redis.call('XADD', KEYS[3], 'MAXLEN', '~', ARGV[6], '*', 'run', ARGV[1])
local last = redis.call('XREVRANGE', KEYS[5], '+', '-', 'COUNT', 1)[1]
redis.call('XADD', KEYS[5], 'MAXLEN', '~', ARGV[9], (ARGV[3] + 1) .. '-0',
  'state', ARGV[8], 'run', ARGV[7])
if last and last[2][2] == ARGV[8] then redis.call('XDEL', KEYS[5], last[1]) end
if ARGV[5] == '1' then redis.call('EXPIRE', KEYS[5], ARGV[10]) end
return 1
"""
# KEYS: run, index, log. ARGV: id. Gives 1 done, 0 unknown, -1 not ended.
DELETE = """
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
if not redis.call('HGET', KEYS[1], 'ended') then return -1 end
redis.call('DEL', KEYS[1], KEYS[3])
redis.call('ZREM', KEYS[2], ARGV[1])
return 1
"""
