-- A page of accounts, by id. ARGV: prefix, first, last. Answers how many ids the page had, and the accounts as JSON.
local ids = redis.call('ZRANGE', A .. 'accts', ARGV[2], ARGV[3])
local accounts = {}
for _, id in ipairs(ids) do
  local account = redis.call('HGET', T .. 'acct:' .. id, 'account')
  if account then accounts[#accounts + 1] = account end
end
return {#ids, accounts}
