-- how long ended jobs are kept, most ids -> ids of jobs that ended before that; times in microseconds
if not ready() then return 'state_lost' end
local retention_us, most = unpack(ARGV)
-- A time ahead of the clock is of a clock that has been set back since: the job is kept from now on. It is
-- removed first, since that is allowed at the limit of memory, and then so is the rest.
local AHEAD_US = 1000000
for _, id in ipairs(redis.call('ZRANGEBYSCORE', ENDED, text(now + AHEAD_US), '+inf', 'LIMIT', 0, most)) do
  redis.call('ZREM', ENDED, id)
  redis.call('ZADD', ENDED, text(now), id)
end
return redis.call('ZRANGEBYSCORE', ENDED, '-inf', text(now - retention_us), 'LIMIT', 0, most)
