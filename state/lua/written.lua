-- id, version of the record in job.json -> 'done'
if field(ARGV[1], 'version') == ARGV[2] then redis.call('SREM', DIRTY, ARGV[1]) end
return 'done'
