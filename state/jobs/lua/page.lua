-- 'all' or a state, with @<owner> for the jobs of one, or @<owner>/<checkpoint>; highest creation time, count
-- -> [{id, fields, place in the queue or -1, whether its files are not up to date}], newest first
if not ready() then return 'state_lost' end
local jobs = {}
for _, id in ipairs(redis.call('ZREVRANGEBYSCORE', index(ARGV[1]), ARGV[2], '-inf', 'LIMIT', 0, ARGV[3])) do
  table.insert(jobs, { id, unpack(describe(id)) })
end
return jobs
