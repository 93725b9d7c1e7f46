-- Create a job, unless the idempotency key has created one before or a checkpoint it needs is being deleted.
-- id, checkpoint, idempotency digest or '', fingerprint, owner or '', the most that the owner may have queued,
-- '1' if the checkpoint came with the job, then the field and the id of each other checkpoint that the spec names
-- -> 'created' | 'conflict' | 'gone' | 'full' | 'replay:<id of the first job>'
if not ready() then return 'state_lost' end
local id, checkpoint, key, fingerprint, owner, most, owns = unpack(ARGV)
if field(id, 'state') then return 'created' end -- a repeated call: the answer to the first was lost
if key ~= '' then
  local first, theirs = unpack(redis.call('HMGET', PREFIX .. 'idempotency:' .. key, 'job', 'fingerprint'))
  if first and field(first, 'state') then
    if theirs ~= fingerprint then return 'conflict' end
    return 'replay:' .. first
  end
end
local needed = { 'checkpoint', checkpoint, unpack(ARGV, 8) }
for i = 2, #needed, 2 do
  if redis.call('EXISTS', PREFIX .. 'deleting:' .. scoped(owner, needed[i])) == 1 then return 'gone' end
end

if redis.call('ZCARD', index('queued@' .. owner)) >= tonumber(most) then return 'full' end

-- Creation times are unique and increase even if the clock is set back, so that they can serve as cursors.
local newest = redis.call('ZREVRANGE', ALL, 0, 0, 'WITHSCORES')[2]
local created = math.max(now, (tonumber(newest) or 0) + 1)
local number = redis.call('INCR', CREATED)
redis.call('HSET', job(id), 'unwritten', 1, 'state', 'queued', 'created_us', text(created), 'version', 0,
  'attempt', 0, 'attempts_without_progress', 0, 'fence', 0, 'number', number, 'sent', number, unpack(needed))
if owner ~= '' then redis.call('HSET', job(id), 'owner', owner) end
if owns == '1' then redis.call('HSET', job(id), 'owns_checkpoint', 1) end
list(id, 'all', text(created))
for _, name in ipairs(needs(id)) do redis.call('SADD', dependents(name), id) end
if key ~= '' then
  redis.call('HSET', job(id), 'idempotency', key)
  redis.call('HSET', PREFIX .. 'idempotency:' .. key, 'job', id, 'fingerprint', fingerprint)
end
enter(id, 'queued')
wait(id, now, false)
return 'created'
