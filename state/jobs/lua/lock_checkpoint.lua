-- Keep new jobs off a checkpoint for some time, unless an unfinished job needs it.
-- checkpoint, milliseconds -> 'done' | 'in_use'
if not ready() then return 'state_lost' end
if redis.call('SCARD', dependents(ARGV[1])) > 0 then return 'in_use' end
-- Redis lets a script go on at its memory limit once it has written: this frees what the job's end will free.
redis.call('DEL', PREFIX .. 'deleting:' .. ARGV[1])
redis.call('SET', PREFIX .. 'deleting:' .. ARGV[1], 1, 'PX', ARGV[2])
return 'done'
