-- One call of the quota ledger of one subject: charges the minute and the day, or neither. `policy::quota::Ledger::lease` in
-- Lua, number for number; a test runs both on random calls. The state is one packed string, 72 bytes.
--
-- KEYS: ledger rl:{SUBJECT}, and no other, so that a cluster can move it while it is in use.
-- ARGV: 1 target minute (-1: now)  2 want  3 need  4 limit of the minute  5 limit of the day  6 first call in this minute (1)
--       7 8 tokens given back: of which minute, how many  9 10 spent without a grant: in which minute, how many
--       11 12 13 14 seen: minute, granted, day, granted
-- Answers: granted, minute, microseconds now, left of the minute, left of the day, flags (1 scarce, 2 soft, 4 recall: the caller must),
--          granted so far in the minute, in the day, active replicas.
local FORMAT = '<I4I4I4I4I8I4I4I4I4I8I4I4I4I4I4I4'
local MOST = 4294967295
local arg = {}
for i = 1, 14 do arg[i] = tonumber(ARGV[i]) end
local target, want, need, per_minute, per_day = arg[1], arg[2], arg[3], arg[4], arg[5]

local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local raw = redis.call('GET', KEYS[1])
local h = raw and {struct.unpack(FORMAT, raw)} or {0,0,0,0,0, 0,0,0,0,0, 0,0,0, 0,0,0}

-- Where the slots of a minute and of a day begin: minute granted returned active recall; day granted returned.
local function minute_at(minute) return minute % 2 * 5 + 1 end
local function day_at(day) return 11 + day % 2 * 3 end
local function day_of(minute) return math.floor(minute / 1440) end

-- After the clock went backwards: the minute before the newest that was leased from.
local current = math.floor(now / 60000000)
local newest = math.max(h[1], h[6])
if newest > current + 1 then current = newest - 1 end
local minute = current
if target >= 0 then minute = math.min(math.max(target, current), current + 1) end
local reachable = target < 0 or target == minute

local m, d = minute_at(minute), day_at(day_of(minute))
if h[m] ~= minute then h[m], h[m+1], h[m+2], h[m+3], h[m+4] = minute, 0, 0, 0, 0 end
if h[d] ~= day_of(minute) then h[d], h[d+1], h[d+2] = day_of(minute), 0, 0 end

-- A ledger that lost its memory is lifted to what any replica remembers.
if arg[11] == minute then h[m+1] = math.max(h[m+1], arg[12]) end
if arg[13] == day_of(minute) then h[d+1] = math.max(h[d+1], arg[14]) end

local function give_back(at, tokens)
  h[at+2] = math.min(h[at+2] + tokens, h[at+1])
end
local function debit(at, tokens)
  h[at+1] = math.min(h[at+1] + tokens, MOST)
end
local function apply(change, of, tokens)
  if tokens <= 0 then return end
  local day = day_of(of)
  if h[minute_at(of)] == of then change(minute_at(of), tokens) end
  if h[day_at(day)] == day then change(day_at(day), tokens) end
end
apply(give_back, arg[7], arg[8])
apply(debit, arg[9], arg[10])

local function left(limit, at)
  return math.max(0, limit - math.max(0, h[at+1] - h[at+2]))
end

local granted, flags, active = 0, 0, 0
if want > 0 and reachable then
  local early = minute > current
  if arg[6] == 1 then h[m+3] = math.min(h[m+3] + 1, MOST) end
  local other = minute_at(minute + 1)
  active = math.max(h[m+3], 1)
  if h[other] + 1 == minute then active = math.max(active, h[other+3]) end

  local rest, limit = left(per_minute, m), per_minute
  if left(per_day, d) < rest then rest, limit = left(per_day, d), per_day end
  local share = math.floor(rest / (2 * active))
  if early then share = math.min(share, math.floor(per_minute / (4 * active))) end
  if share <= 1 then flags = flags + 1 end
  granted = math.min(want, math.max(share, need, 1), rest)
  if granted < need then granted = 0 end
  h[m+1] = math.min(h[m+1] + granted, MOST)
  h[d+1] = math.min(h[d+1] + granted, MOST)
  if granted > need and h[m+4] == 0 then h[m+4] = 1 end
  local little = rest <= math.min(2 * active, math.max(2, math.floor(limit / 16))) or granted == 0
  if not early and little then
    if h[m+4] == 1 then
      h[m+4] = now
      flags = flags + 4
    end
    if h[m+4] > 1 then
      local age = math.max(0, now - h[m+4])
      if age < 15000 then
        flags = flags + 2
      elseif age > 250000 then
        h[m+4] = granted > need and 1 or 0
      end
    end
  end
end

-- Kept for the day after the newest one it knows.
redis.call('SET', KEYS[1], struct.pack(FORMAT, unpack(h, 1, 16)), 'EXAT', (math.max(h[11], h[14]) + 2) * 86400)
return {granted, minute, now, left(per_minute, m), left(per_day, d), flags, h[m+1], h[d+1], active}
