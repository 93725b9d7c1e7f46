-- id, lease, fingerprint or '', fields and values of job.json -> 'kept' | 'restored'
-- Runs before the marker is set. Only forwards: a record in Redis that is newer than job.json stays.
local id, lease_us, fingerprint = ARGV[1], ARGV[2], ARGV[3]
local shadow = {}
for i = 4, #ARGV, 2 do shadow[ARGV[i]] = ARGV[i + 1] end

local version = tonumber(field(id, 'version') or -1) - tonumber(shadow.version)
local same = field(id, 'state') == shadow.state and field(id, 'fence') == shadow.fence
if version > 0 or (version == 0 and same) then
  -- No lease could be renewed while the server was away.
  if field(id, 'state') == 'running' then lease(id, lease_us) end
  return 'kept'
end

forget(id)
redis.call('HSET', job(id), unpack(ARGV, 4))
redis.call('ZADD', ALL, shadow.created_us, id)
if shadow.idempotency then
  redis.call('HSET', PREFIX .. 'idempotency:' .. shadow.idempotency, 'job', id, 'fingerprint', fingerprint)
end
if TERMINAL[shadow.state] then
  redis.call('ZADD', index(shadow.state), shadow.created_us, id)
else
  -- Nobody knows whether its worker lives: it runs again, under a fence that the worker does not have.
  for _, needed in ipairs(needs(id)) do redis.call('SADD', users(needed), id) end
  enter(id, 'queued')
  wait(id, shadow.created_us, true)
end
return 'restored'
