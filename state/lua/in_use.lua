-- checkpoint -> how many unfinished jobs need it
if not alive() then return 'wiped' end
return redis.call('SCARD', users(ARGV[1]))
