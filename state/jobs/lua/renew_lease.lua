-- id, fence, lease, progress or '', share of the work that is done, time since the last step
-- -> 'done' | 'lost'; times in microseconds
if not ready() then return 'state_lost' end
local id, fence, lease_us, progress, done, idle_us = unpack(ARGV)
if not field(id, 'state') then return 'missing' end
if not owns(id, fence) then return 'lost' end
-- A lease that has expired is renewed too: no other worker has claimed the job, so the attempt may go on.
lease(id, lease_us)
redis.call('ZADD', STEPS, text(now - idle_us), id)
if progress ~= '' then redis.call('HSET', job(id), 'progress', progress, 'done', done) end
return 'done'
