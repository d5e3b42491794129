-- Which schema the store has, made or raised to ours when older. ARGV: prefix, ours, the oldest that may read ours.
-- Answers the version and the oldest reader.
local row = redis.call('HMGET', A .. 'schema', 'version', 'min_reader')
local version = tonumber(row[1] or '0')
if version < tonumber(ARGV[2]) then
  redis.call('HSET', A .. 'schema', 'version', ARGV[2], 'min_reader', ARGV[3])
  return {ARGV[2], ARGV[3]}
end
return {row[1], row[2] or row[1]}
