-- Queue jobs again whose lease has expired, and find the jobs whose message was lost.
-- most attempts, problem if they are used up, grace, the broker's list -> ids whose message must be sent
if not ready() then return 'state_lost' end
local most, problem, grace_us, list = unpack(ARGV)
local BATCH = 1000

for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', text(now), 'LIMIT', 0, BATCH)) do
  if field(id, 'state') == 'running' then
    queue_or_fail(id, most, problem)
  else -- canceled: its attempt has ended, so its files can be removed when job.json is written
    redis.call('ZREM', LEASES, id)
    redis.call('SADD', DIRTY, id)
  end
end

-- Messages are read in order. So a message is probably lost if the broker's list is empty, or if a job that
-- was created after it was sent has been claimed already.
local empty = redis.call('LLEN', list) == 0
local youngest_claimed = tonumber(redis.call('GET', YOUNGEST_CLAIMED) or 0)
local old = redis.call('ZRANGEBYSCORE', WAITING, '-inf', text(now - grace_us), 'WITHSCORES', 'LIMIT', 0, BATCH)
for i = 1, #old, 2 do
  if empty or tonumber(old[i + 1]) < youngest_claimed then redis.call('SADD', TO_SEND, old[i]) end
end

local due = {}
for _, id in ipairs(redis.call('SMEMBERS', TO_SEND)) do
  table.insert(due, { id = id, since = tonumber(redis.call('ZSCORE', WAITING, id)) })
end
table.sort(due, function(a, b) return a.since < b.since end)
local ids = {}
for i, entry in ipairs(due) do
  redis.call('ZADD', WAITING, text(now + i), entry.id)
  redis.call('SREM', TO_SEND, entry.id)
  ids[i] = entry.id
end
return ids
