-- Take a job under a new fence.
-- id, token of the claim, lease, most attempts, problem if they are used up
-- -> 'claimed' | 'refused' | 'failed'
if not ready() then return 'state_lost' end
local id, token, lease_us, most, problem = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if TERMINAL[state] then return 'refused' end
if state == 'running' then
  if field(id, 'claim_token') == token then -- a repeated call: the answer to the first was lost
    lease(id, lease_us)
    return 'claimed'
  end
  local ends = redis.call('ZSCORE', LEASES, id)
  if ends and tonumber(ends) > now then return 'refused' end
  note_progress(id)
end
if used_up(id, most) then
  fail(id, problem)
  return 'failed'
end
-- Messages are read in order, so all that were sent before this job was created have been read by now.
local number = tonumber(field(id, 'number') or 0)
if number > tonumber(redis.call('GET', NEWEST_CLAIMED) or 0) then redis.call('SET', NEWEST_CLAIMED, number) end
enter(id, 'running')
redis.call('HINCRBY', job(id), 'attempt', 1)
count_attempt(id, 1)
redis.call('HINCRBY', job(id), 'fence', 1)
redis.call('HSET', job(id), 'claim_token', token, 'started_us', text(now))
redis.call('ZADD', STEPS, text(now), id)
lease(id, lease_us)
return 'claimed'
