-- A page of what a kind has that expires, by the expiry index, which knows a time no later than each record's. ARGV[4] kind, ARGV[5] before, ARGV[6] limit, ARGV[7] since, ARGV[8] until, ARGV[9] score
-- and ARGV[10] id to go on behind, or '' and ''
-- Answers: writes, score and id to go on behind or '' and '', then id and record
local kind, before, limit = ARGV[4], tonumber(ARGV[5]), tonumber(ARGV[6])
local since, till = tonumber(ARGV[7]), tonumber(ARGV[8])
local due, out, found, seen, bytes = base .. 'd:' .. kind, {'A', int(writes), '', ''}, 0, 0, 0
local at = 0
if ARGV[9] ~= '' then
  local score = call('ZSCORE', due, ARGV[10])
  if score and tonumber(score) == tonumber(ARGV[9]) then
    at = call('ZRANK', due, ARGV[10]) + 1
  else -- it was moved or purged: again from the first of its time
    at = call('ZCOUNT', due, '-inf', '(' .. ARGV[9])
  end
end
local score, last = '', ''
while true do
  local rows = call('ZRANGE', due, at, at + 127, 'WITHSCORES')
  local ids = {}
  for p = 1, #rows, 2 do
    if tonumber(rows[p + 1]) >= before then
      break
    end
    ids[#ids + 1] = rows[p]
  end
  local records = #ids > 0 and call('HMGET', base .. 'r:' .. kind, lua_unpack(ids))
  for r, id in ipairs(ids) do
    local record = records[r]
    local expires, written = record and unpack('>I8', record, 31) or 0, record and unpack('>I6', record, 17) or 0
    if seen >= 4000 or found >= limit or bytes > 1048576 then
      out[3], out[4] = score, last
      return out
    end
    seen = seen + 1
    if expires > 0 and expires < before and (since == 0 or written >= since) and (till == 0 or written < till) then
      found, bytes = found + 1, bytes + #record
      out[#out + 1] = id
      out[#out + 1] = record
    end
    score, last = rows[2 * r], id
  end
  if #ids < 128 then
    return out
  end
  at = at + 128
end
