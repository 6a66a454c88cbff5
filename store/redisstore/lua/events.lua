-- A page of events in their order. ARGV[4] history of the cursor or '', ARGV[5] its event, ARGV[6] '1' from the newest down,
-- ARGV[7] limit, ARGV[8] since, ARGV[9] until, ARGV[10] to ARGV[14] selectors, ARGV[15] purges that there had been when the
-- cursor was made; then for each selector that is set, the rarest first: its hash, its column in the index
-- Answers: writes, event to go on behind or '', purges so far, then events; {'T'}: the cursor is older than what is kept;
-- {'C', key}: a column of the index is missing
local newest, limit = ARGV[6] == '1', tonumber(ARGV[7])
local since, till = tonumber(ARGV[8]), tonumber(ARGV[9])
local blocks = base .. 'b'
local from, to = 1, event
if ARGV[4] ~= '' then
  local cursor = tonumber(ARGV[5])
  if ARGV[4] ~= history then
    -- What came behind the end of a history that lost its tail is gone, and other events stand there now.
    local finish = call('HGET', meta, 'end:' .. ARGV[4])
    if not finish then
      return {'T'}
    end
    finish = tonumber(finish)
    cursor = math.min(cursor, newest and finish + 1 or finish)
  end
  if newest then
    to = math.min(to, cursor - 1)
  else
    if cursor < trimmed and purges > tonumber(ARGV[15]) then
      local later = call('ZRANGEBYSCORE', base .. 'p', tonumber(ARGV[15]) + 1, '+inf')
      if #later < purges - tonumber(ARGV[15]) then
        return {'T'} -- too many to tell
      end
      for _, purge in ipairs(later) do
        if tonumber(string.match(purge, ':(%d+)$')) > cursor then
          return {'T'}
        end
      end
    end
    from = cursor + 1
  end
end

-- Blocks of 4096 events that still exist stand in order with the time at which each began, which never goes back.
local function began(rank)
  local member = call('ZRANGE', blocks, rank, rank)[1]
  local colon = find(member, ':', 1, true)
  return tonumber(sub(member, 1, colon - 1)), tonumber(sub(member, colon + 1))
end
-- first tells the rank of the first block that began at a time or later.
local function first(at)
  local lo, hi = 0, call('ZCARD', blocks)
  while lo < hi do
    local mid = floor((lo + hi) / 2)
    if began(mid) < at then
      lo = mid + 1
    else
      hi = mid
    end
  end
  return lo
end
if since ~= 0 then
  local rank = first(since)
  if rank > 0 then
    local _, b = began(rank - 1)
    from = math.max(from, b * 4096 + 1)
  end
end
if till ~= 0 then
  -- A clock that stepped back stamps events with less than their block's time; skew is by how much at most.
  local rank = first(till + skew)
  if rank < call('ZCARD', blocks) then
    local _, b = began(rank)
    to = math.min(to, b * 4096)
  end
end

local out, found, seen, bytes, last = {'A', int(writes), '', int(purges)}, 0, 0, 0, 0
-- take looks at one event; true: the page ends before it.
local function take(id, value)
  if seen >= 4000 then
    out[3] = int(last)
    return true
  end
  seen = seen + 1
  local written = unpack('>I6', value, 17)
  local good = not (since ~= 0 and written < since or till ~= 0 and written >= till)
  if good then
    local have = {unpack('>I3c0I3c0I3c0I3c0I3c0', value, 35)}
    for s = 1, 5 do
      if ARGV[9 + s] ~= '' and ARGV[9 + s] ~= have[s] then
        good = false
      end
    end
  end
  if good then
    if found >= limit or bytes > 1048576 then
      out[3] = int(last)
      return true
    end
    found, bytes = found + 1, bytes + #value
    out[#out + 1] = value
  end
  last = id
  return false
end

if from > to then
  return out
end
if #ARGV == 15 then
  while from <= to do
    local entries
    if newest then
      entries = call('XREVRANGE', base .. 'e', int(to) .. '-0', int(from) .. '-0', 'COUNT', 128)
    else
      entries = call('XRANGE', base .. 'e', int(from) .. '-0', int(to) .. '-0', 'COUNT', 128)
    end
    local id
    for _, entry in ipairs(entries) do
      id = tonumber(string.match(entry[1], '^%d+'))
      if take(id, entry[2][2]) then
        return out
      end
    end
    if #entries < 128 then
      return out
    end
    if newest then
      to = id - 1
    else
      from = id + 1
    end
  end
  return out
end

local terms, columns = {}, {}
for i = 16, #ARGV, 2 do
  terms[#terms + 1] = ARGV[i]
  columns[#columns + 1] = ':' .. ARGV[i + 1]
end
local gone = string.rep('\255', 6)
local fetched, steps = 0, 0
-- column gives one of a block's columns, which it keeps in rows, or nil and the name of one that is missing.
local function column(key, rows, name)
  if not rows[name] then
    rows[name] = call('GET', key .. name)
    if not rows[name] then
      return nil, key .. name
    end
    fetched = fetched + 1
  end
  return rows[name]
end
-- walk calls visit for the events of a block, from one to another, whose hashes are all those that are looked for, until it
-- answers true. The columns take turns: each moves on to its first match at or behind the place that the others have
-- reached. So the rarest hash rules how many steps there are, and no event is read that another column rules out. Answers
-- true when visit did, and the name of a column that is missing.
local function walk(b, rows, low, high, visit)
  local key = base .. 't:' .. int(b)
  local at, stop = (low - b * 4096 - 1) * 6 + 1, (high - b * 4096 - 1) * 6 + 1
  local s, agree = 0, 0
  while true do
    s = s % #terms + 1
    local row, missing = column(key, rows, columns[s])
    if not row then
      return true, missing
    end
    local a = at - 1
    repeat
      a = find(row, terms[s], a + 1, true)
    until not a or (a - 1) % 6 == 0
    if not a or a > stop then
      return false
    end
    steps = steps + 1
    if a > at then
      at, agree = a, 0
    end
    agree = agree + 1
    if agree == #terms then
      local expiries, missing = column(key, rows, ':0')
      if not expiries then
        return true, missing
      end
      if sub(expiries, at, at + 5) ~= gone and visit(b * 4096 + (at - 1) / 6 + 1) then
        return true
      end
      at, agree = at + 6, 0
    end
  end
end
-- read takes an event, unless it was purged; true: the page ends before it.
local function read(e)
  local entry = call('XRANGE', base .. 'e', int(e) .. '-0', int(e) .. '-0')[1]
  return entry and take(e, entry[2][2])
end
while true do
  local list
  if newest then
    list = call('ZREVRANGEBYSCORE', blocks, floor((to - 1) / 4096), '-inf', 'LIMIT', 0, 1)
  else
    list = call('ZRANGEBYSCORE', blocks, floor((from - 1) / 4096), '+inf', 'LIMIT', 0, 1)
  end
  if #list == 0 then
    return out
  end
  local b = tonumber(string.match(list[1], ':(%d+)$'))
  local low_, high = math.max(from, b * 4096 + 1), math.min(to, b * 4096 + 4096)
  if low_ > high then
    return out
  end
  if fetched >= 32 or steps >= 8192 then
    out[3] = int(last)
    return out
  end
  local rows, full, missing = {}
  if newest then
    -- A walk goes forwards: from the end in growing pieces, since the page may be full soon.
    local top, piece = high, 64
    while not full and top >= low_ do
      local bottom, hits = math.max(low_, top - piece + 1), {}
      full, missing = walk(b, rows, bottom, top, function(e) hits[#hits + 1] = e end)
      for h = #hits, 1, -1 do
        full = full or read(hits[h])
      end
      top, piece = bottom - 1, piece * 4
    end
  else
    full, missing = walk(b, rows, low_, high, read)
  end
  if missing then
    return {'C', missing}
  elseif full then
    return out
  end
  if newest then
    to, last = b * 4096, b * 4096 + 1
  else
    from, last = b * 4096 + 4097, math.min(b * 4096 + 4096, event)
  end
  if from > to then
    return out
  end
end
