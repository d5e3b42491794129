-- A row as it is stored, and its version. ARGV: prefix, kind (key or acct), id, field.
return redis.call('HMGET', T .. ARGV[2] .. ':' .. ARGV[3], ARGV[4], 'version')
