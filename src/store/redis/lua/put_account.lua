-- Writes an account. ARGV: prefix, id, expected version ('none': must not exist), account as JSON. Answers the revision, or
-- 'conflict'.
local key = T .. 'acct:' .. ARGV[2]
local old = redis.call('HMGET', key, 'account', 'version')
local version = old[1] and (old[2] or '0') or 'none'
if version ~= ARGV[3] then return 'conflict' end
redis.call('HSET', key, 'account', ARGV[4], 'version', tonumber(old[2] or '0') + 1)
redis.call('ZADD', A .. 'accts', 0, ARGV[2])
return announce('acct:' .. ARGV[2])
