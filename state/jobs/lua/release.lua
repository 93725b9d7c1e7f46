-- Queue a job again without counting the attempt.
-- id, fence -> 'done' | 'lost'
if not ready() then return 'state_lost' end
local id, fence = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if state == 'queued' and field(id, 'fence') == fence then return 'done' end -- a repeated call
if not owns(id, fence) then return 'lost' end
redis.call('HINCRBY', job(id), 'attempt', -1)
count_attempt(id, -1)
note_progress(id)
enter(id, 'queued')
wait(id, now, true)
return 'done'
