-- Adds one piece of a usage batch to one partition, exactly once. KEYS: a name of the partition, one that never exists.
--
-- ARGV: base of the partition's names, replica, piece, seconds the mark is kept, how many resources a key may have a day, the
-- name for the rest, then (key, day, kind, name, class, count)… Kinds: e endpoint, s scope, m model, d dataset.
-- Pieces of one replica have growing numbers. Answers 1, or 0 when it was added before.
local U = ARGV[1]
local mark = U .. 'applied:' .. ARGV[2]
if tonumber(ARGV[3]) <= tonumber(redis.call('GET', mark) or '0') then return 0 end
local most, rest, names = tonumber(ARGV[5]), ARGV[6], U .. 'names'
for i = 7, #ARGV, 6 do
  local key, day, kind, name, class, count = ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], ARGV[i + 4], ARGV[i + 5]
  local counters = U .. 'k:' .. key .. ':' .. day
  local field = kind .. name
  if kind == 'e' then
    -- Endpoints are long and few: a number stands for each.
    local number = redis.call('HGET', names, name)
    if not number then
      number = redis.call('INCR', U .. 'endpoints')
      redis.call('HSET', names, name, number)
    end
    field = 'e' .. number .. ':' .. class
  elseif (kind == 'm' or kind == 'd') and name ~= rest and redis.call('HEXISTS', counters, field) == 0 then
    if tonumber(redis.call('HGET', counters, '#') or '0') >= most then
      field = kind .. rest
    else
      redis.call('HINCRBY', counters, '#', 1)
    end
  end
  redis.call('HINCRBY', counters, field, count)
  redis.call('ZADD', U .. 'days:' .. key, day, day)
end
redis.call('SET', mark, ARGV[3], 'EX', ARGV[4])
return 1
