-- A page of keys, newest first. ARGV: prefix, account ('' is all), first, last. Answers rows, and how many ids the page had.
local index = A .. 'keys'
if ARGV[2] ~= '' then index = index .. ':' .. ARGV[2] end
local ids = redis.call('ZREVRANGE', index, ARGV[3], ARGV[4])
local rows = {}
for _, id in ipairs(ids) do
  local row = read(id)
  if row then rows[#rows + 1] = row end
end
return {#ids, rows}
