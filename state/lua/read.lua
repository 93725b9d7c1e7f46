-- id -> {fields, place in the queue or -1}
if not alive() then return 'wiped' end
if not field(ARGV[1], 'state') then return 'missing' end
return look(ARGV[1])
