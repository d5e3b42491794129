-- Forgets of these keys what is older than it needs to be. ARGV: prefix, oldest event (RFC 3339 milliseconds), oldest deletion,
-- oldest end of a secret (all milliseconds), then ids.
local oldest, oldest_gone, oldest_end = tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
for i = 5, #ARGV do
  local id = ARGV[i]
  local key, events = T .. 'key:' .. id, A .. 'events:' .. id
  local gone = redis.call('ZSCORE', A .. 'gone', id)
  local row = redis.call('HMGET', key, 'record', 'secrets', 'former', 'former_use')
  if not row[1] then
    -- Removed by hand.
    redis.call('ZREM', A .. 'keys', id)
  elseif gone and tonumber(gone) < oldest_gone then
    for _, hash in ipairs(cjson.decode(row[3] or '[]')) do redis.call('HDEL', A .. 'used', hash) end
    redis.call('ZREM', A .. 'keys', id)
    redis.call('ZREM', A .. 'keys:' .. cjson.decode(row[1]).account_id, id)
    redis.call('ZREM', A .. 'gone', id)
    redis.call('DEL', key, events)
  else
    local kept, former, former_use, dropped = {}, cjson.decode(row[3] or '[]'), tonumber(row[4] or '0'), false
    for _, secret in ipairs(cjson.decode(row[2] or '[]')) do
      local ends = tonumber(secret.expires_at)
      if ends and ends < oldest_end then
        former_use = math.max(former_use, used(secret.hash))
        redis.call('DEL', T .. 'secret:' .. secret.hash)
        redis.call('HDEL', A .. 'used', secret.hash)
        dropped = true
      else
        kept[#kept + 1] = secret
      end
    end
    if dropped then
      redis.call('HSET', key, 'secrets', #kept > 0 and cjson.encode(kept) or '[]',
        'former_use', string.format('%.0f', former_use))
    end
    while true do
      local first = redis.call('LINDEX', events, 0)
      if not first then break end
      local at = string.match(first, '"at":"([^"]+)"')
      if not at or at >= ARGV[2] then break end
      redis.call('LPOP', events)
    end
  end
end
return 1
