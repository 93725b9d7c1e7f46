-- Queue a failed job again: it goes on with its finished layers, and its attempts are counted anew.
-- id, token of the call, the most that the owner may have queued
-- -> 'done' | 'gone' | 'full' | the state of a job that has not failed
if not ready() then return 'state_lost' end
local id, token, most = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if state ~= 'failed' then
  return field(id, 'resume_token') == token and 'done' or state -- a repeated call
end
for _, needed in ipairs(needs(id)) do
  if redis.call('EXISTS', PREFIX .. 'deleting:' .. needed) == 1 then return 'gone' end
end
if redis.call('ZCARD', index('queued@' .. owner_of(id))) >= tonumber(most) then return 'full' end
for _, needed in ipairs(needs(id)) do redis.call('SADD', dependents(needed), id) end
redis.call('HDEL', job(id), 'error', 'finished_us', 'waits_since_us')
redis.call('HSET', job(id), 'attempts_without_progress', 0, 'resume_token', token)
enter(id, 'queued')
wait(id, now, false)
return 'done'
