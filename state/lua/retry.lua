-- id, fence, most attempts, problem if they are used up -> 'done' | 'lost'
if not alive() then return 'wiped' end
local id, fence, most, problem = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if (state == 'queued' or state == 'failed') and field(id, 'fence') == fence then return 'done' end -- said twice
if not mine(id, fence) then return 'lost' end
give_back(id, most, problem)
return 'done'
