-- The state in its order. ARGV[4] where to begin, ARGV[5] how many, ARGV[6...] the kinds that are wanted, none: all
-- Answers: writes, time, place of the newest state, place up to which this goes or '' for all; then member and record
local most, kinds = tonumber(ARGV[5]), nil
if #ARGV >= 6 then
  kinds = {}
  for k = 6, #ARGV do
    kinds[ARGV[k]] = true
  end
end
local out = {'A', int(writes), int(now), place(), ''}
local from, found, seen, bytes, last = '[' .. ARGV[4], 0, 0, 0, ''

-- fetch adds the records of some members that stand together and are of one kind.
local function fetch(kind, members, ids)
  if #ids == 0 then
    return
  end
  local records = call('HMGET', base .. 'r:' .. kind, lua_unpack(ids))
  for r = 1, #ids do
    out[#out + 1] = members[r]
    out[#out + 1] = records[r]
    bytes = bytes + (records[r] and #records[r] or 0)
  end
end

while true do
  local page = call('ZRANGEBYLEX', base .. 's', from, '+', 'LIMIT', 0, 128)
  if bytes > 1048576 and #page > 0 then
    out[5] = last
    return out
  end
  local same, members, ids = '', {}, {}
  for _, member in ipairs(page) do
    if found >= most or seen >= 5000 then
      fetch(same, members, ids)
      out[5] = last
      return out
    end
    seen, last = seen + 1, sub(member, 1, 16)
    local nul = find(member, '\0', 17, true)
    local kind = sub(member, 17, nul - 1)
    if not kinds or kinds[kind] then
      if kind ~= same then
        fetch(same, members, ids)
        same, members, ids = kind, {}, {}
      end
      found = found + 1
      members[#members + 1] = member
      ids[#ids + 1] = sub(member, nul + 1)
    end
  end
  fetch(same, members, ids)
  if #page < 128 then
    return out
  end
  from = '(' .. page[#page]
end
