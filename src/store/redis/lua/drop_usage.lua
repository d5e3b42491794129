-- Forgets usage up to a day. KEYS: a name of the partition, one that never exists. ARGV: base, last day to go, then keys.
local U = ARGV[1]
for i = 3, #ARGV do
  local days = U .. 'days:' .. ARGV[i]
  for _, day in ipairs(redis.call('ZRANGEBYSCORE', days, '-inf', ARGV[2])) do
    redis.call('DEL', U .. 'k:' .. ARGV[i] .. ':' .. day)
    redis.call('ZREM', days, day)
  end
end
return 1
