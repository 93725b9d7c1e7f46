-- Queue jobs again whose lease has expired, and find the jobs whose message was lost.
-- most attempts, problem if they are used up, lease, grace, the broker's list -> ids whose message must be sent
if not ready() then return 'state_lost' end
local most, problem, lease_us, grace_us, list = unpack(ARGV)
local BATCH = 1000
-- A time that much ahead is of a clock that has been set back since: nothing shall wait until it is caught up.
local AHEAD_US = 1000000
local LONGEST_PAUSE_US = 3600 * AHEAD_US

-- Other processes may be set to somewhat longer leases.
local longest_us = 2 * lease_us + 60 * AHEAD_US
for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, text(now + longest_us), '+inf', 'LIMIT', 0, BATCH)) do
  lease(id, lease_us)
end

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', text(now), 'LIMIT', 0, BATCH)) do
  if field(id, 'state') == 'running' then
    queue_or_fail(id, most, problem, 0)
  else -- canceled: its attempt has ended, so its files can be removed when job.json is written
    redis.call('ZREM', LEASES, id)
    redis.call('SADD', DIRTY, id)
  end
end

local function end_pauses(first, last)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', DELAYED, first, last, 'LIMIT', 0, BATCH)) do
    end_pause(id)
    wait(id, now, true)
  end
end
end_pauses('-inf', text(now))
end_pauses(text(now + LONGEST_PAUSE_US), '+inf')

-- Messages are read in order. So a message is probably lost if the broker's list is empty, or if a job that
-- was created after it was sent has been claimed already.
local empty = redis.call('LLEN', list) == 0
local newest_claimed = tonumber(redis.call('GET', NEWEST_CLAIMED) or 0)
local function find_lost(first, last)
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', WAITING, first, last, 'LIMIT', 0, BATCH)) do
    if empty or tonumber(field(id, 'sent') or 0) < newest_claimed then redis.call('SADD', TO_SEND, id) end
  end
end
find_lost('-inf', text(now - grace_us))
find_lost(text(now + AHEAD_US), '+inf')

local newest = redis.call('GET', CREATED) or 0
local due = {}
for _, id in ipairs(redis.call('SMEMBERS', TO_SEND)) do
  table.insert(due, { id = id, since = tonumber(redis.call('ZSCORE', WAITING, id)) })
end
table.sort(due, function(a, b) return a.since < b.since end)
local ids = {}
for i, entry in ipairs(due) do
  redis.call('ZADD', WAITING, text(now + i), entry.id)
  redis.call('HSET', job(entry.id), 'sent', newest)
  redis.call('SREM', TO_SEND, entry.id)
  ids[i] = entry.id
end
return ids
