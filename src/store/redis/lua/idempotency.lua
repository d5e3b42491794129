-- A row that says who carries a call out, and what it answered. KEYS[1]: the row. ARGV: what, …
if ARGV[1] == 'claim' then
  -- ARGV[2]: hash of the request, ARGV[3]: milliseconds to live.
  local row = redis.call('HMGET', KEYS[1], 'request', 'answer')
  if row[1] and row[1] ~= ARGV[2] then return {'mismatch'} end
  if row[1] and row[2] then return {'finished', row[2]} end
  if row[1] then return {'in progress'} end
  if tonumber(ARGV[3]) > 0 then
    redis.call('HSET', KEYS[1], 'request', ARGV[2])
    redis.call('PEXPIRE', KEYS[1], ARGV[3])
  end
  return {'claimed'}
elseif ARGV[1] == 'answer' then
  if redis.call('EXISTS', KEYS[1]) == 1 then redis.call('HSET', KEYS[1], 'answer', ARGV[2]) end
else
  redis.call('DEL', KEYS[1])
end
return {'done'}
