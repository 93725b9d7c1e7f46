-- Let all scripts run, unless Redis lost the mark of the restore that was to make it ready.
-- token of the restore, run id of the server -> 'done' | 'lost'
if redis.call('GET', RESTORING) ~= ARGV[1] then return 'lost' end
redis.call('DEL', RESTORING)
redis.call('SET', PREFIX .. 'ready', ARGV[2])
return 'done'
