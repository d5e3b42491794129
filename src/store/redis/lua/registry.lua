-- What every script of the registry begins with: names, the revision, and how a key is read.
--
-- ARGV[1] is store.prefix, KEYS a name of the registry and one that never exists (see `Names::never`). All keys of the registry share the hash tag {reg}, so that one script may touch any of them, in a
-- cluster too. Names under T are tracked: gateways are pushed every change of them. Nothing that is written often belongs there.
local P = ARGV[1]
local T = P .. '{reg}:'
local A = P .. 'aux{reg}:'

local function now_micros()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end

-- Gives the change that this script makes a revision, and tells everybody. The revision follows the clock where that is ahead,
-- so that it never falls back, not even on a replica that was promoted, or after FLUSHALL. The name `seq:REVISION` exists for
-- no time at all: it is pushed in one message with the names that changed, and says that they are all of this revision.
-- Subscribers of the channel are those whom the server lets not track keys.
local function announce(changes)
  local revision = math.max(tonumber(redis.call('GET', A .. 'rev') or '0') + 1, now_micros())
  local text = string.format('%.0f', revision)
  redis.call('SET', A .. 'rev', text)
  redis.call('SET', T .. 'seq:' .. text, '')
  redis.call('DEL', T .. 'seq:' .. text)
  redis.pcall('PUBLISH', P .. 'changes', text .. ' ' .. changes)
  return text
end

-- When a secret was last used, in milliseconds; 0 when never.
local function used(hash)
  return tonumber(redis.call('HGET', A .. 'used', hash) or '0')
end

-- A key with all that belongs to it: id, record, version, secrets, when each was used, former use, account. False when absent.
-- Of a row that somebody has damaged only the id: it must not take the others of its page with it.
local function read(id)
  local function whole()
    local row = redis.call('HMGET', T .. 'key:' .. id, 'record', 'version', 'secrets', 'former', 'former_use')
    if not row[1] then return false end
    local uses = {}
    for i, secret in ipairs(cjson.decode(row[3] or '[]')) do
      uses[i] = used(secret.hash)
    end
    local former = tonumber(row[5] or '0')
    for _, hash in ipairs(cjson.decode(row[4] or '[]')) do
      former = math.max(former, used(hash))
    end
    local account = redis.call('HGET', T .. 'acct:' .. cjson.decode(row[1]).account_id, 'account')
    return {id, row[1], row[2] or '0', row[3] or '[]', uses, former, account or ''}
  end
  local fine, row = pcall(whole)
  if fine then return row end
  return {id, '', '0', '[]', {}, 0, ''}
end
