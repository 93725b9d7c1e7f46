-- id -> 'done', also if the job has ended already
if not ready() then return 'state_lost' end
local state = field(ARGV[1], 'state')
if not state then return 'missing' end
if TERMINAL[state] then return 'done' end
local ends = redis.call('ZSCORE', LEASES, ARGV[1])
enter(ARGV[1], 'canceled')
-- The attempt goes on until it notices; its files stay until then.
if ends then redis.call('ZADD', LEASES, ends, ARGV[1]) end
return 'done'
