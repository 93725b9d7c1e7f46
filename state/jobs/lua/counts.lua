-- -> {state, count, ...}, {id and creation time of the oldest queued job}, now,
-- {id of the running job whose last step is longest ago, and when that began}; times in microseconds
if not ready() then return 'state_lost' end
local counts = {}
for _, state in ipairs({ 'queued', 'running', 'succeeded', 'failed', 'canceled' }) do
  table.insert(counts, state)
  table.insert(counts, redis.call('ZCARD', index(state)))
end
local oldest, last_step = redis.call('ZRANGE', index('queued'), 0, 0, 'WITHSCORES'),
  redis.call('ZRANGE', STEPS, 0, 0, 'WITHSCORES')
return { counts, oldest, text(now), last_step }
