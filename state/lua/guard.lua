-- checkpoint, milliseconds -> 'done' | 'in_use': from now on no new job may need the checkpoint
if not alive() then return 'wiped' end
if redis.call('SCARD', users(ARGV[1])) > 0 then return 'in_use' end
redis.call('SET', PREFIX .. 'deleting:' .. ARGV[1], 1, 'PX', ARGV[2])
return 'done'
