-- id, version of the record in job.json -> 'done'
redis.call('HDEL', job(ARGV[1]), 'unwritten')
if field(ARGV[1], 'version') == ARGV[2] then redis.call('SREM', DIRTY, ARGV[1]) end
return 'done'
