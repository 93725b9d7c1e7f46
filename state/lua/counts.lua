-- -> {state, count, ...}, {id and creation time of the oldest queued job}, now; times in microseconds
if not ready() then return 'state_lost' end
local counts = {}
for _, state in ipairs({ 'queued', 'running', 'succeeded', 'failed', 'canceled' }) do
  table.insert(counts, state)
  table.insert(counts, redis.call('ZCARD', index(state)))
end
return { counts, redis.call('ZRANGE', index('queued'), 0, 0, 'WITHSCORES'), text(now) }
