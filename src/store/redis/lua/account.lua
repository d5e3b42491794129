-- An account and its version. ARGV: prefix, id.
return redis.call('HMGET', T .. 'acct:' .. ARGV[2], 'account', 'version')
