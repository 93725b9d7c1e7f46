-- id, fence, lease, progress or '' -> 'done' | 'lost'
if not ready() then return 'state_lost' end
local id, fence, lease_us, progress = unpack(ARGV)
if not field(id, 'state') then return 'missing' end
if not owns(id, fence) then return 'lost' end
-- A lease that has expired is renewed too: no other worker has claimed the job, so the attempt may go on.
lease(id, lease_us)
if progress ~= '' then redis.call('HSET', job(id), 'progress', progress) end
return 'done'
