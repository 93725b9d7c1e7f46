-- Queue a job again, or fail it if its attempts are used up.
-- id, fence, most attempts, problem if they are used up -> 'done' | 'lost'
if not ready() then return 'state_lost' end
local id, fence, most, problem = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
-- A repeated call.
if (state == 'queued' or state == 'failed') and field(id, 'fence') == fence then return 'done' end
if not owns(id, fence) then return 'lost' end
queue_or_fail(id, most, problem)
return 'done'
