-- id -> 'done' | 'missing'; needs no rebuilding first, since there is nothing to keep
return remove(ARGV[1]) and 'done' or 'missing'
