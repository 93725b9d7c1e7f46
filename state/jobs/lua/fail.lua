-- id, fence, problem -> 'done' | 'lost'
if not ready() then return 'state_lost' end
local id, fence, problem = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if state == 'failed' and field(id, 'fence') == fence then return 'done' end -- a repeated call
if not owns(id, fence) then return 'lost' end
fail(id, problem)
return 'done'
