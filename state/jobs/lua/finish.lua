-- id, fence, summary, single file or '', warnings of the work as a JSON list or '' -> 'done' | 'lost'
if not ready() then return 'state_lost' end
local id, fence, summary, single, warnings = unpack(ARGV)
local state = field(id, 'state')
if not state then return 'missing' end
if state == 'succeeded' and field(id, 'result_fence') == fence then return 'done' end -- a repeated call
if not owns(id, fence) then return 'lost' end
redis.call('HSET', job(id), 'summary', summary, 'result_fence', fence)
if single ~= '' then redis.call('HSET', job(id), 'single_file', single) end
if warnings ~= '' then redis.call('HSET', job(id), 'late_warnings', warnings) end
enter(id, 'succeeded')
return 'done'
