-- id, fence, problem -> 'done' | 'lost'
if not alive() then return 'wiped' end
local id, fence, problem = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if state == 'failed' and field(id, 'fence') == fence then return 'done' end -- said twice
if not mine(id, fence) then return 'lost' end
fail(id, problem)
return 'done'
