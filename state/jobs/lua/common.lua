-- Prepended to every script. The scripts build their keys themselves, so all keys must be on one Redis node.
--
-- The head of a script lists its arguments and its answers. Two more answers are common to several scripts:
-- 'state_lost': the server is not ready, so nothing was done; 'missing': there is no job of this id.
--
-- job:<id>             hash: what changes of the record (state/jobs/records.py), and the checkpoints it needs; its
--                      progress; `done`, the share of the work that this attempt has done; `waits_since_us`,
--                      when trouble began for which attempts do not count; `waits_for` and `next_attempt_us`,
--                      while it pauses after trouble; `number`, its place in the order of creation; `sent`, the number of the newest job when its message was last sent; and
--                      `unwritten` until job.json is there, before which no client is told of the job
-- jobs:all, jobs:<state>  zset: ids by the microsecond they were created
-- jobs:all@<owner>, jobs:<state>@<owner>  zset: the same of one owner; '' without keys
-- jobs:all@<owner>/<checkpoint>, jobs:<state>@<owner>/<checkpoint>  zset: the same of one checkpoint
-- waiting              zset: queued ids by the microsecond their message was last sent
-- to_send              set: queued ids whose message is to be sent at the next sweep
-- created              how many jobs were ever created: the last one's `number`
-- newest_claimed       the highest `number` of a job that was ever claimed
-- delayed              zset: queued ids that pause after trouble, by the microsecond their message is to be
--                      sent; they are not in `waiting` until then
-- leases               zset: running ids, and canceled ids whose attempt may still run, by the microsecond
--                      their lease ends
-- steps                zset: running ids by the microsecond their last step began
-- ended                zset: ids of jobs that have ended, by the microsecond from which they are kept
-- unowned              set: checkpoints that came with a job which is deleted; they go when no job needs them
-- dependents:<checkpoint> set: unfinished ids that need the checkpoint, as their input or by their spec;
--                      <owner>/ goes before the name of a checkpoint that an owner has
-- deleting:<checkpoint>   exists while the checkpoint is being deleted: no new job may need it
-- idempotency:<digest> hash: job, fingerprint
-- dirty                set: ids whose files are not up to date: job.json, or files to be removed
-- restoring            token of the process that restores the records: state/jobs/scripts.py
-- workers              zset: names of workers by the second they count as dead: state/workers.py
-- workers:memory       hash: the bytes of memory that each of them may use
-- ready                run id of the server that all records were restored to; absent if it lost its data
local PREFIX = 'eckart:'
local ALL, WAITING, TO_SEND = PREFIX .. 'jobs:all', PREFIX .. 'waiting', PREFIX .. 'to_send'
local LEASES, DIRTY = PREFIX .. 'leases', PREFIX .. 'dirty'
-- Order is kept in numbers and not in times, since the clock may be set.
local CREATED, NEWEST_CLAIMED = PREFIX .. 'created', PREFIX .. 'newest_claimed'
local ENDED, UNOWNED = PREFIX .. 'ended', PREFIX .. 'unowned'
local RESTORING = PREFIX .. 'restoring'
local DELAYED, STEPS = PREFIX .. 'delayed', PREFIX .. 'steps'
local TERMINAL = { succeeded = true, failed = true, canceled = true }

local clock = redis.call('TIME')
local now = clock[1] * 1000000 + clock[2] -- microseconds; exact, since a double holds 53 bits

local function text(number) return string.format('%.0f', number) end
local function ready() return redis.call('EXISTS', PREFIX .. 'ready') == 1 end
local function job(id) return PREFIX .. 'job:' .. id end
local function index(state) return PREFIX .. 'jobs:' .. state end
local function dependents(checkpoint) return PREFIX .. 'dependents:' .. checkpoint end
local function field(id, name) return redis.call('HGET', job(id), name) end
local function owner_of(id) return field(id, 'owner') or '' end
local function scoped(owner, checkpoint) return owner == '' and checkpoint or owner .. '/' .. checkpoint end
local function lease(id, lease_us) redis.call('ZADD', LEASES, text(now + lease_us), id) end

local function owns(id, fence)
  return field(id, 'state') == 'running' and field(id, 'fence') == fence
end

-- Enter a job into the list of a state or 'all', and into its owner's and its checkpoint's, or take it out.
local function lists(id, state)
  local owner, checkpoint = unpack(redis.call('HMGET', job(id), 'owner', 'checkpoint'))
  local own = state .. '@' .. (owner or '')
  return { index(state), index(own), index(own .. '/' .. (checkpoint or '')) }
end
local function list(id, state, created)
  for _, each in ipairs(lists(id, state)) do redis.call('ZADD', each, created, id) end
end
local function unlist(id, state)
  for _, each in ipairs(lists(id, state)) do redis.call('ZREM', each, id) end
end

-- The checkpoints that must not be deleted while the job is unfinished: its input and those its spec names.
local function needs(id)
  local names = {}
  for _, name in ipairs({ 'checkpoint', 'calibration', 'base' }) do
    local named = field(id, name)
    if named then table.insert(names, scoped(owner_of(id), named)) end
  end
  return names
end

local function count_attempt(id, by)
  redis.call('HINCRBY', job(id), 'attempts_without_progress', by)
end

-- At the end of an attempt: one that got further than all before it starts the count of attempts anew.
local function note_progress(id)
  local done, furthest = unpack(redis.call('HMGET', job(id), 'done', 'furthest'))
  redis.call('HDEL', job(id), 'done')
  if tonumber(done or 0) > tonumber(furthest or 0) then
    redis.call('HSET', job(id), 'furthest', done, 'attempts_without_progress', 0)
    redis.call('HDEL', job(id), 'waits_since_us')
  end
end

local function used_up(id, most)
  -- A record of an earlier release has no such field.
  return tonumber(field(id, 'attempts_without_progress') or 0) >= tonumber(most)
end

local function wait(id, since, to_send)
  redis.call('ZADD', WAITING, text(since), id)
  if to_send then redis.call('SADD', TO_SEND, id) end
end

-- Queue a job again, whose message is to be sent after a pause; its clients are told of what it waits for.
local function pause(id, pause_us, problem)
  if tonumber(pause_us) > 0 then
    redis.call('ZADD', DELAYED, text(now + pause_us), id)
    local why = cjson.decode(problem)
    local waits_for = cjson.encode({ type = why.type, title = why.title })
    redis.call('HSET', job(id), 'waits_for', waits_for, 'next_attempt_us', text(now + pause_us))
  else
    wait(id, now, true)
  end
end

local function end_pause(id)
  if redis.call('ZREM', DELAYED, id) == 1 then
    redis.call('HDEL', job(id), 'waits_for', 'next_attempt_us')
  end
end

-- Everything that follows from a new state, in one place, so that no transition can forget a part of it.
-- Only `waiting` and `leases` are left to the transition that enters the state.
local function enter(id, state)
  unlist(id, field(id, 'state'))
  list(id, state, field(id, 'created_us'))
  redis.call('ZREM', WAITING, id)
  redis.call('SREM', TO_SEND, id)
  redis.call('ZREM', LEASES, id)
  end_pause(id)
  redis.call('ZREM', STEPS, id)
  redis.call('HSET', job(id), 'state', state)
  redis.call('HINCRBY', job(id), 'version', 1)
  if state ~= 'running' then redis.call('HDEL', job(id), 'claim_token') end
  redis.call('ZREM', ENDED, id)
  if TERMINAL[state] then
    redis.call('HSET', job(id), 'finished_us', text(now))
    redis.call('ZADD', ENDED, text(now), id)
    for _, checkpoint in ipairs(needs(id)) do redis.call('SREM', dependents(checkpoint), id) end
  end
  redis.call('SADD', DIRTY, id)
end

local function fail(id, problem)
  redis.call('HSET', job(id), 'error', problem)
  enter(id, 'failed')
end

-- After an attempt without result: queue the job again, after a pause, if it has attempts left, else fail it.
local function queue_or_fail(id, most, problem, pause_us)
  note_progress(id)
  if used_up(id, most) then return fail(id, problem) end
  enter(id, 'queued')
  pause(id, pause_us, problem)
end

-- Remove a job and everything that refers to it.
local function remove(id)
  local state, key = unpack(redis.call('HMGET', job(id), 'state', 'idempotency'))
  if not state then return false end
  unlist(id, state)
  unlist(id, 'all')
  redis.call('ZREM', WAITING, id)
  redis.call('ZREM', LEASES, id)
  redis.call('ZREM', DELAYED, id)
  redis.call('ZREM', STEPS, id)
  redis.call('ZREM', ENDED, id)
  redis.call('SREM', TO_SEND, id)
  redis.call('SREM', DIRTY, id)
  for _, checkpoint in ipairs(needs(id)) do redis.call('SREM', dependents(checkpoint), id) end
  if key and redis.call('HGET', PREFIX .. 'idempotency:' .. key, 'job') == id then
    redis.call('DEL', PREFIX .. 'idempotency:' .. key)
  end
  redis.call('DEL', job(id))
  return true
end

-- Remove a job for good, and note the checkpoint that came with it.
local function delete(id)
  local owned, checkpoint = unpack(redis.call('HMGET', job(id), 'owns_checkpoint', 'checkpoint'))
  local name = owned and scoped(owner_of(id), checkpoint)
  local removed = remove(id)
  if removed and name then redis.call('SADD', UNOWNED, name) end
  return removed
end

local function describe(id)
  return {
    redis.call('HGETALL', job(id)), redis.call('ZRANK', WAITING, id) or -1, redis.call('SISMEMBER', DIRTY, id)
  }
end
