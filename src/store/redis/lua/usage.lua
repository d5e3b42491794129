-- Usage of a key from one day to another. KEYS: a name of the partition, one that never exists. ARGV: base, key, from, to.
-- Answers the names of endpoints with their numbers, then for each day its number and its fields with their counts.
local U, key = ARGV[1], ARGV[2]
local found = {redis.call('HGETALL', U .. 'names')}
for _, day in ipairs(redis.call('ZRANGEBYSCORE', U .. 'days:' .. key, ARGV[3], ARGV[4])) do
  found[#found + 1] = {day, redis.call('HGETALL', U .. 'k:' .. key .. ':' .. day)}
end
return found
