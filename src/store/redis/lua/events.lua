-- The audit trail of a key, oldest first, as JSON. ARGV: prefix, id.
return redis.call('LRANGE', A .. 'events:' .. ARGV[2], 0, -1)
