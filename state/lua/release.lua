-- id, fence -> 'done' | 'lost'
if not alive() then return 'wiped' end
local id, fence = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if state == 'queued' and field(id, 'fence') == fence then return 'done' end -- said twice
if not mine(id, fence) then return 'lost' end
redis.call('HINCRBY', job(id), 'attempt', -1)
enter(id, 'queued')
wait(id, now, true)
return 'done'
