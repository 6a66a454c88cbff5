-- A page of records by id. ARGV[4] kind, ARGV[5] term of the index to walk or '' for all ids, ARGV[6] '1' from the highest
-- down, ARGV[7] bound to begin at, ARGV[8] limit, ARGV[9] since, ARGV[10] until, ARGV[11] to ARGV[15] selectors, ARGV[16] what
-- it must expire before or 0
-- Answers: writes, id to go on behind or '', then id and record
local newest, limit = ARGV[6] == '1', tonumber(ARGV[8])
local since, till, ends = tonumber(ARGV[9]), tonumber(ARGV[10]), tonumber(ARGV[16])
local index = base .. 'x:' .. #ARGV[4] .. ':' .. ARGV[4] .. ':' .. ARGV[5]
local from, out, found, seen, bytes, last = ARGV[7], {'A', int(writes), ''}, 0, 0, 0, ''

local function wants(record)
  local written = unpack('>I6', record, 17)
  if since ~= 0 and written < since or till ~= 0 and written >= till then
    return false
  end
  if ends ~= 0 then
    local expires = unpack('>I8', record, 31)
    if expires == 0 or expires >= ends then
      return false
    end
  end
  local have = {unpack('>I3c0I3c0I3c0I3c0I3c0', record, 51)}
  for s = 1, 5 do
    if ARGV[10 + s] ~= '' and ARGV[10 + s] ~= have[s] then
      return false
    end
  end
  return true
end

while true do
  local ids
  if newest then
    ids = call('ZREVRANGEBYLEX', index, from, '-', 'LIMIT', 0, 128)
  else
    ids = call('ZRANGEBYLEX', index, from, '+', 'LIMIT', 0, 128)
  end
  local records = #ids > 0 and call('HMGET', base .. 'r:' .. ARGV[4], lua_unpack(ids))
  for r, id in ipairs(ids) do
    if seen >= 4000 then
      out[3] = last
      return out
    end
    seen = seen + 1
    local record = records[r]
    if record and wants(record) then
      if found >= limit or bytes > 1048576 then
        out[3] = last
        return out
      end
      found, bytes = found + 1, bytes + #record
      out[#out + 1] = id
      out[#out + 1] = record
    end
    last = id
  end
  if #ids < 128 then
    return out
  end
  from = '(' .. ids[#ids]
end
