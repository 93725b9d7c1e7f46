-- 'all' or a state, with @<owner> for the jobs of one; highest creation time, count
-- -> [{id, fields, place in the queue or -1}], newest first; without what never changes, which may be large
if not ready() then return 'state_lost' end
local jobs = {}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', index(ARGV[1]), ARGV[2], '-inf', 'LIMIT', 0, ARGV[3])) do
  local fields = {}
  for _, name in ipairs(redis.call('HKEYS', job(id))) do
    if name ~= 'fixed' then
      table.insert(fields, name)
      table.insert(fields, field(id, name))
    end
  end
  table.insert(jobs, { id, fields, redis.call('ZRANK', WAITING, id) or -1 })
end
return jobs
