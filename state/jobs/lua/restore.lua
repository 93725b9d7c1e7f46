-- Put the records of job.json of some jobs into Redis, each unless Redis has a newer one.
-- token of the turn to restore all or '', how long that turn lasts from now on, then for each job its id, the
-- fingerprint of its idempotency key or '', and the fields of job.json as JSON -> 'done' | 'lost'
-- (many in one call, since each call is forced to the disk, and one text for each, since that is faster to send)
-- Does not require a ready server: it is what makes the server ready.
local function restore(id, fingerprint, document)
  local on_disk, pairs_on_disk = cjson.decode(document), {}
  for name, value in pairs(on_disk) do
    table.insert(pairs_on_disk, name)
    table.insert(pairs_on_disk, value)
  end

  local state, version, fence = unpack(redis.call('HMGET', job(id), 'state', 'version', 'fence'))
  local ahead = tonumber(version or -1) - tonumber(on_disk.version)
  local same = state == on_disk.state and fence == on_disk.fence
  if ahead > 0 or (ahead == 0 and same) then
    -- A release that knew no owners listed it without.
    for _, each in ipairs({ 'all', state }) do list(id, each, field(id, 'created_us')) end
    -- One that knew no retention noted neither this nor when it ended.
    if on_disk.owns_checkpoint then redis.call('HSET', job(id), 'owns_checkpoint', 1) end
    if TERMINAL[state] then redis.call('ZADD', ENDED, 'NX', field(id, 'finished_us') or text(now), id) end
    return
  end

  remove(id)
  redis.call('HSET', job(id), unpack(pairs_on_disk))
  list(id, 'all', on_disk.created_us)
  if on_disk.idempotency then
    redis.call('HSET', PREFIX .. 'idempotency:' .. on_disk.idempotency, 'job', id, 'fingerprint', fingerprint)
  end
  -- Nothing of it could be read: each sweep tries again, since a newer release or a repair may help.
  if tonumber(on_disk.version) < 0 then redis.call('SADD', DIRTY, id) end
  if TERMINAL[on_disk.state] then
    list(id, on_disk.state, on_disk.created_us)
    redis.call('ZADD', ENDED, on_disk.finished_us or text(now), id)
  else
    -- Its worker may be alive or not: the job runs again, under a fence that this worker does not have.
    for _, needed in ipairs(needs(id)) do redis.call('SADD', dependents(needed), id) end
    redis.call('HSET', job(id), 'number', redis.call('GET', CREATED) or 0)
    if on_disk.state == 'queued' then list(id, 'queued', on_disk.created_us)
    else enter(id, 'queued') end
    wait(id, math.min(on_disk.created_us, now), true)
  end
end

local token, turn_s = unpack(ARGV)
if token ~= '' then
  if redis.call('GET', RESTORING) ~= token then return 'lost' end
  redis.call('EXPIRE', RESTORING, turn_s)
end
for i = 3, #ARGV, 3 do restore(ARGV[i], ARGV[i + 1], ARGV[i + 2]) end
return 'done'
