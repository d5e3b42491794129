-- When secrets were last used; the later time wins. The last piece of a batch says that all of it is in.
-- ARGV: prefix, replica, sequence ('' for a piece that is not the last), seconds the mark is kept, then (hash, milliseconds)…
-- Answers the sequence before, '' when none is known.
for i = 5, #ARGV, 2 do
  local hash, at = ARGV[i], ARGV[i + 1]
  -- Of a secret that nobody has or had, nothing is kept.
  if redis.call('EXISTS', T .. 'secret:' .. hash) == 1 or redis.call('HEXISTS', A .. 'used', hash) == 1 then
    if tonumber(at) > used(hash) then redis.call('HSET', A .. 'used', hash, at) end
  end
end
if ARGV[3] == '' then return '' end
local mark = A .. 'flushed:' .. ARGV[2]
local last = redis.call('GET', mark)
if not last or tonumber(ARGV[3]) > tonumber(last) then
  redis.call('SET', mark, ARGV[3], 'EX', ARGV[4])
end
return last or ''
