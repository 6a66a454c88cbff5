-- Removes events, of one block. ARGV[4] before, ARGV[5] how many, ARGV[6] the latest time to believe
-- Answers: writes, how many were removed, '1' when there may be more
if readonly then
  return {'R'}
end
local most = tonumber(ARGV[5])
local before = math.min(tonumber(ARGV[4]), now + 1, tonumber(ARGV[6]) + 1)
local g = base .. 'g'
local b = most > 0 and before > 0 and call('ZRANGEBYSCORE', g, '-inf', '(' .. int(before), 'LIMIT', 0, 1)[1]
if not b then
  return {'A', int(writes), 0, '0'}
end
local block = tonumber(b)
local key = base .. 't:' .. b
local rows = call('GET', key .. ':0') or ''
local zero, gone = string.rep('\0', 6), string.rep('\255', 6)
local limit = pack('>I6', math.min(before, 281474976710655))
local removed, highest, least, alive, parts, kept = 0, 0, math.huge, false, {}, 1
for o = 1, #rows, 6 do
  local expires = sub(rows, o, o + 5)
  if expires == zero then
    alive = true
  elseif expires < limit and removed < most then
    local e = block * 4096 + (o - 1) / 6 + 1
    call('XDEL', base .. 'e', int(e) .. '-0')
    parts[#parts + 1] = sub(rows, kept, o - 1)
    parts[#parts + 1] = gone
    kept = o + 6
    highest = e
    removed = removed + 1
  elseif expires ~= gone then
    least = math.min(least, (unpack('>I6', expires)))
    alive = true
  end
end
if removed > 0 then
  -- Cursors before the highest must know. The last purges are kept one by one, so that a reader who began after one is
  -- not told of it.
  purges = purges + 1
  call('HSET', meta, 'trimmed', int(math.max(trimmed, highest)), 'purges', int(purges))
  call('ZADD', base .. 'p', int(purges), int(purges) .. ':' .. int(highest))
  call('ZREMRANGEBYRANK', base .. 'p', 0, -257)
end
if not alive and #rows == 4096 * 6 then
  for column = 0, 5 do
    call('DEL', key .. ':' .. column)
  end
  call('ZREMRANGEBYSCORE', base .. 'b', block, block)
elseif removed > 0 then
  parts[#parts + 1] = sub(rows, kept)
  call('SET', key .. ':0', table.concat(parts))
end
if least < math.huge then
  call('ZADD', g, int(least), b)
else
  call('ZREM', g, b)
end
return {'A', int(writes), removed, '1'}
