-- Writes a group of changes, one after the other, each whole or not at all.
-- ARGV[4] sender: process and flight, ARGV[5] number of the group, ARGV[6] channel, ARGV[7] message, ARGV[8] '1' when the
-- answer is waited for on replicas or disk; then for each change: id, number of puts, number of events;
--   for each put: kind, id, fixed, body, and as many terms as fixed says
--     fixed: expected version(16) expires(8) state(1) length of the selectors in body(3) number of terms(1)
--   for each event: row for the index (expires(6), five hashes(6)), body
-- Answers: one string: number, results (a letter for each change), place of the newest state, time, writes
--   k done, o done before, c conflict, r read only, f selectors changed, d damaged
--
-- The answer is kept for a while under the sender's name: when a connection breaks and the client sends the group
-- again, it gets the answer instead of a second write.
local sender = base .. 'f:' .. ARGV[4]
local number = tonumber(ARGV[5])
local kept = call('GET', sender)
if kept then
  local was = tonumber(string.match(kept, '^%d+'))
  if was == number then
    if ARGV[8] == '1' then
      call('SET', sender, kept, 'PX', 600000) -- what is waited for must be a write of this connection
    end
    return {'A', kept}
  elseif was > number then
    return {'Z'} -- sent long ago, delivered late: whoever sent it has given up
  end
end

local zero16, zero8 = string.rep('\0', 16), string.rep('\0', 8)
local w6 = pack('>I6', now)
local results, wrote, moved = {}, false, false
local block, rows, least = -1, {}, math.huge

-- The index of a block of events has a string for each column: when its events expire, and the hashes of each selector.
local function flush()
  if block < 0 then
    return
  end
  for column = 0, 5 do
    local part = {}
    for r = 1, #rows do
      part[r] = sub(rows[r], column * 6 + 1, column * 6 + 6)
    end
    call('APPEND', base .. 't:' .. int(block) .. ':' .. column, table.concat(part))
  end
  if least < math.huge then
    local score = call('ZSCORE', base .. 'g', int(block))
    if not score or tonumber(score) > least then
      call('ZADD', base .. 'g', int(least), int(block))
    end
  end
  rows, least = {}, math.huge
end

local i, n = 9, #ARGV
while i <= n do
  local id, puts, events = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2])
  i = i + 3
  local at, olds, result = i, {}, 'k'
  for p = 1, puts do
    local fixed = ARGV[i + 2]
    local old = call('HGET', base .. 'r:' .. ARGV[i], ARGV[i + 1])
    olds[p] = old
    local version = old and sub(old, 1, 16) or zero16
    if old and #old < 65 then
      result = 'd'
    elseif version == id then
      result = 'o'
      -- Whatever the other puts would say: it was done before.
    elseif result ~= 'o' and version ~= sub(fixed, 1, 16) then
      result = 'c'
    elseif old and result == 'k' then
      local length = unpack('>I3', fixed, 26)
      if sub(old, 51, 50 + length) ~= sub(ARGV[i + 3], 5, 4 + length) then
        result = 'f'
      end
    end
    i = i + 4 + string.byte(fixed, 29)
  end
  if readonly and result ~= 'o' then
    result = 'r'
  end
  results[#results + 1] = result
  if result ~= 'k' then
    i = i + 2 * events
  else
    for p = 1, puts do
      local kind, key, fixed, body, old = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], olds[p]
      local terms = string.byte(fixed, 29)
      local pos, due, expires = zero8, zero8, sub(fixed, 17, 24)
      local state = string.byte(fixed, 25) == 1
      if state then
        if now > ms then
          ms, low = now, 0
        elseif low < 65535 then
          low = low + 1
        else
          ms, low = ms + 1, 0
        end
        pos = pack('>I6I2', ms, low)
        moved = true
      end
      if old then
        due = sub(old, 39, 46)
      end
      -- Expiries stand in order under the earliest that a record had since it was looked at: rotation, which only ever
      -- makes a grant live longer, moves nothing.
      local expire = expires ~= zero8 and (due == zero8 or expires < due)
      if expire then
        due = expires
      end
      call('HSET', base .. 'r:' .. kind, key, id .. w6 .. pos .. expires .. due .. body)
      if expire then
        call('ZADD', base .. 'd:' .. kind, int(unpack('>I8', expires)), key)
      end
      if state then
        local name = kind .. '\0' .. key
        if old then
          local oms, olow = unpack('>I6I2', old, 23)
          call('ZREM', base .. 's', fmt('%012x%04x', oms, olow) .. name)
        end
        call('ZADD', base .. 's', 0, place() .. name)
      end
      if not old then
        local index = base .. 'x:' .. #kind .. ':' .. kind .. ':'
        call('ZADD', index, 0, key)
        for t = 1, terms do
          call('ZADD', index .. ARGV[at + 3 + t], 0, key)
        end
      end
      at = at + 4 + terms
    end
    if events > 0 and now > tick then
      tick = now
    end
    skew = math.max(skew, tick - now)
    for _ = 1, events do
      local row = ARGV[i]
      event = event + 1
      call('XADD', base .. 'e', int(event) .. '-0', 'v', id .. w6 .. ARGV[i + 1])
      local b = floor((event - 1) / 4096)
      if b ~= block then
        flush()
        block = b
        if (event - 1) % 4096 == 0 then
          call('ZADD', base .. 'b', int(b), int(tick) .. ':' .. int(b))
        end
      end
      rows[#rows + 1] = row
      local expires = unpack('>I6', row)
      if expires > 0 and expires < least then
        least = expires
      end
      i = i + 2
    end
    wrote = true
  end
end
flush()
if wrote then
  writes = writes + 1
  call('HSET', meta, 'writes', int(writes), 'ms', int(ms), 'low', int(low), 'event', int(event), 'tick', int(tick), 'skew', int(skew))
end
local answer = ARGV[5] .. ' ' .. table.concat(results) .. ' ' .. place() .. ' ' .. int(now) .. ' ' .. int(writes)
if wrote or ARGV[8] == '1' then
  call('SET', sender, answer, 'PX', 600000)
end
if moved then
  redis.pcall('PUBLISH', ARGV[6], ARGV[7]) -- a hint: that it may not be said is no reason to fail
end
return {'A', answer}
