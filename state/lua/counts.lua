-- -> {state, how many, ...}, {since when the oldest queued job waits, if there is one}, now; in microseconds
if not ready() then return 'state_lost' end
local counts = {}
for _, state in ipairs({ 'queued', 'running', 'succeeded', 'failed', 'canceled' }) do
  table.insert(counts, state)
  table.insert(counts, redis.call('ZCARD', index(state)))
end
return { counts, redis.call('ZRANGE', index('queued'), 0, 0, 'WITHSCORES'), text(now) }
