-- 'all' or a state, highest creation time, count -> [{fields, place in the queue or -1}], newest first
if not alive() then return 'wiped' end
local jobs = {}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', index(ARGV[1]), ARGV[2], '-inf', 'LIMIT', 0, ARGV[3])) do
  table.insert(jobs, look(id))
end
return jobs
