-- Writes a key: makes it, replaces it, gives it other secrets, deletes it, restores it. All of it or nothing.
--
-- ARGV: prefix, id, expected version ('none': must not exist; 'any'), record, created_at, account_id, deleted_at ('' is alive),
-- secrets as JSON ('' leaves them), former use, then events as JSON. With a former use ('' is none given) the key's past is replaced:
-- its events and its former secrets too. Answers the revision, or 'conflict'.
local id, expected, record, created, account = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local deleted, given, past = ARGV[7], ARGV[8], ARGV[9]
local key = T .. 'key:' .. id
local old = redis.call('HMGET', key, 'record', 'version', 'secrets', 'former', 'former_use')
local version = old[1] and (old[2] or '0') or 'none'
if expected ~= 'any' and expected ~= version then return 'conflict' end

local known, former = cjson.decode(old[3] or '[]'), cjson.decode(old[4] or '[]')
local former_use = tonumber(old[5] or '0')
local secrets, text = known, old[3] or '[]'
if deleted ~= '' then
  secrets, text = {}, '[]'
elseif given ~= '' then
  secrets, text = cjson.decode(given), given
end
local kept = {}
for _, secret in ipairs(secrets) do
  local owner = redis.call('GET', T .. 'secret:' .. secret.hash)
  if owner and owner ~= id then return 'conflict' end
  kept[secret.hash] = true
end

-- A secret that goes is remembered for a while: uses of it may be flushed late, and count for the key.
for _, secret in ipairs(known) do
  if not kept[secret.hash] then
    redis.call('DEL', T .. 'secret:' .. secret.hash)
    redis.call('HSETNX', A .. 'used', secret.hash, '0')
    former[#former + 1] = secret.hash
  end
end
if past ~= '' then
  for _, hash in ipairs(former) do redis.call('HDEL', A .. 'used', hash) end
  former, former_use = {}, tonumber(past)
  redis.call('DEL', A .. 'events:' .. id)
end
while #former > 8 do
  former_use = math.max(former_use, used(former[1]))
  redis.call('HDEL', A .. 'used', former[1])
  table.remove(former, 1)
end
local changes = 'key:' .. id
for _, secret in ipairs(secrets) do
  if past ~= '' or redis.call('GET', T .. 'secret:' .. secret.hash) ~= id then
    redis.call('SET', T .. 'secret:' .. secret.hash, id)
    changes = changes .. ' secret:' .. secret.hash
  end
  local last = tonumber(secret.last_used_at)
  if last and last > used(secret.hash) then
    redis.call('HSET', A .. 'used', secret.hash, string.format('%.0f', last))
  end
end

if old[1] then
  local before = cjson.decode(old[1]).account_id
  if before ~= account then redis.call('ZREM', A .. 'keys:' .. before, id) end
end
redis.call('ZADD', A .. 'keys', created, id)
redis.call('ZADD', A .. 'keys:' .. account, created, id)
if deleted ~= '' then
  redis.call('ZADD', A .. 'gone', deleted, id)
else
  redis.call('ZREM', A .. 'gone', id)
end
redis.call('HSET', key, 'record', record, 'version', tonumber(old[2] or '0') + 1, 'secrets', text,
  'former', #former > 0 and cjson.encode(former) or '[]', 'former_use', string.format('%.0f', former_use))
for i = 10, #ARGV do redis.call('RPUSH', A .. 'events:' .. id, ARGV[i]) end
return announce(changes)
