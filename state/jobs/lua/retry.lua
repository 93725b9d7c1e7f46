-- Queue a job again after a pause, or fail it if its attempts are used up.
-- id, fence, most attempts, problem if they are used up, pause, '' or how long attempts need not count
-- -> 'done' | 'lost'; times in microseconds
if not ready() then return 'state_lost' end
local id, fence, most, problem, pause_us, uncounted_us = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
-- A repeated call.
if (state == 'queued' or state == 'failed') and field(id, 'fence') == fence then return 'done' end
if not owns(id, fence) then return 'lost' end
if uncounted_us == '' then
  queue_or_fail(id, most, problem, pause_us)
  return 'done'
end
count_attempt(id, -1)
note_progress(id)
redis.call('HSETNX', job(id), 'waits_since_us', text(now))
if now - field(id, 'waits_since_us') >= tonumber(uncounted_us) then
  fail(id, problem)
else
  enter(id, 'queued')
  pause(id, pause_us, problem)
end
return 'done'
