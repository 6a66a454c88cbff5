-- Every script begins with this. It looks at the server before it looks at the data: is this a primary, does it have the
-- replicas that the host wants, is it still the one whose history the caller knows, and does it have all that the caller
-- has seen? If not, nothing is read or written, and the caller is told why.
--
-- KEYS[1] is the hash with the namespace's counters. Every other key begins with the same hash tag, so all of them lie in
-- one slot and on one node.
-- ARGV[1] history the caller knows, ARGV[2] writes it has seen, ARGV[3] replicas the host wants
--
-- Answers: {'A', ...} done, {'H'} another history or fewer writes than seen, {'S', role} not a primary, {'L', n} only n
-- replicas, {'M', why} the slot moves to another node, {'X', what} the server does not tell what is needed
local meta = KEYS[1]
local base = string.sub(meta, 1, -2)
local lua_unpack = unpack
local call, sub, pack, unpack = redis.call, string.sub, struct.pack, struct.unpack
local fmt, floor, find = string.format, math.floor, string.find

local info = call('INFO', 'replication')
local role = string.match(info, 'role:(%w+)')
local replid = string.match(info, 'master_replid:(%w+)')
if not replid then
  return {'X', 'master_replid'}
end
if role ~= 'master' then
  return {'S', role}
end
local wanted = tonumber(ARGV[3])
if wanted > 0 then
  local n = 0
  for lag in string.gmatch(info, 'slave%d+:[^\r\n]*state=online[^\r\n]*lag=(%d+)') do
    if tonumber(lag) <= 10 then
      n = n + 1
    end
  end
  if n < wanted then
    return {'L', n}
  end
end
-- While a slot moves to another node of a cluster, keys that are not here may be there: a new one would be refused, in the
-- middle of a write. There is no key of this name, so it is refused now.
local probe = redis.pcall('EXISTS', base .. 'none')
if type(probe) == 'table' and probe.err then
  return {'M', probe.err}
end
local time = call('TIME')
local now = time[1] * 1000 + floor(time[2] / 1000)

local m = call('HMGET', meta, 'history', 'replid', 'writes', 'ms', 'low', 'event', 'readonly', 'tick', 'skew', 'trimmed', 'format', 'purges', 'emptied')
local history, writes = m[1], tonumber(m[3] or 0)
local ms, low, event = tonumber(m[4] or 0), tonumber(m[5] or 0), tonumber(m[6] or 0)
local readonly, tick, skew, trimmed, purges = m[7] == '1', tonumber(m[8] or 0), tonumber(m[9] or 0), tonumber(m[10] or 0), tonumber(m[12] or 0)

local function int(n) return fmt('%.0f', n) end
local function place() return fmt('%012x%04x', ms, low) end
