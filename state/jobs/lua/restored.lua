-- All records on disk are restored.
-- lease, how many jobs were ever created, by the data directory -> 'done'
local lease_us, created = unpack(ARGV)
if tonumber(redis.call('GET', CREATED) or 0) < tonumber(created) then redis.call('SET', CREATED, created) end
-- While the server was not ready, no lease could be renewed.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', LEASES, '-inf', text(now + lease_us))) do lease(id, lease_us) end
return 'done'
