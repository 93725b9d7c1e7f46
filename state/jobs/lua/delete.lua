-- id -> 'done' | 'missing'. Does not require a ready server, since nothing is kept.
return delete(ARGV[1]) and 'done' or 'missing'
