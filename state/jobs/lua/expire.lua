-- Delete a job that ended long enough ago, unless it was resumed or its attempt may still run.
-- id, how long ended jobs are kept -> 'done' | 'kept'; times in microseconds
if not ready() then return 'state_lost' end
local id, retention_us = unpack(ARGV)
local ended = redis.call('ZSCORE', ENDED, id)
if not ended then return field(id, 'state') and 'kept' or 'done' end -- also a repeated call
if tonumber(ended) > now - retention_us or redis.call('ZSCORE', LEASES, id) then return 'kept' end
delete(id)
return 'done'
