-- id -> {fields, place in the queue or -1, whether its files are not up to date}
if not ready() then return 'state_lost' end
if not field(ARGV[1], 'state') then return 'missing' end
return describe(ARGV[1])
