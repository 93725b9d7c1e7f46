-- id -> 'done', also where the job has ended already
if not alive() then return 'wiped' end
local state = field(ARGV[1], 'state')
if not state then return 'missing' end
if not TERMINAL[state] then enter(ARGV[1], 'canceled') end
return 'done'
