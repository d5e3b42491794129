-- The key that a secret belongs to. ARGV: prefix, hash. Answers a row, or nothing.
local id = redis.call('GET', T .. 'secret:' .. ARGV[2])
return id and read(id) or false
