-- The gateways on this store: who lives, and up to which revision each has caught up. ARGV: prefix, what, id, …
-- A row is `HEARTBEAT ACKNOWLEDGED NAME`.
local rows, what, id = A .. 'replicas', ARGV[2], ARGV[3]
local now = string.format('%.0f', now_micros())

local function split(row)
  return string.match(row, '^(%d+) (%d+) (.*)$')
end

local function each(visit)
  local flat = redis.call('HGETALL', rows)
  for i = 1, #flat, 2 do
    if split(flat[i + 1]) then
      visit(flat[i], split(flat[i + 1]))
    else
      redis.call('HDEL', rows, flat[i])
    end
  end
end

if what == 'register' then
  each(function(other, _, _, name)
    if name == ARGV[4] then redis.call('HDEL', rows, other) end
  end)
  local row = redis.call('HGET', rows, id)
  local revision = row and select(2, split(row)) or redis.call('GET', A .. 'rev') or '0'
  redis.call('HSET', rows, id, now .. ' ' .. revision .. ' ' .. ARGV[4])
  return revision
elseif what == 'heartbeat' then
  local row = redis.call('HGET', rows, id)
  if not row then return 0 end
  local _, acknowledged, name = split(row)
  redis.call('HSET', rows, id, now .. ' ' .. acknowledged .. ' ' .. name)
  return 1
elseif what == 'acknowledge' then
  local row = redis.call('HGET', rows, id)
  if not row then return 0 end
  local heartbeat, acknowledged, name = split(row)
  if tonumber(ARGV[4]) > tonumber(acknowledged) then
    redis.call('HSET', rows, id, heartbeat .. ' ' .. ARGV[4] .. ' ' .. name)
  end
  return 1
elseif what == 'deregister' then
  return redis.call('HDEL', rows, id)
end
-- List. ARGV[3]: microseconds after which a silent one is as good as gone.
local found = {}
each(function(other, heartbeat, acknowledged, name)
  local age = tonumber(now) - tonumber(heartbeat)
  if age > tonumber(ARGV[3]) then
    redis.call('HDEL', rows, other)
  else
    found[#found + 1] = {other, name, math.max(age, 0), acknowledged}
  end
end)
return found
