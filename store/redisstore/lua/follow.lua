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
while true do
  local members = call('ZRANGEBYLEX', base .. 's', from, '+', 'LIMIT', 0, 256)
  for _, member in ipairs(members) do
    if found >= most or seen >= 5000 or bytes > 1048576 then
      out[5] = last
      return out
    end
    seen, last = seen + 1, sub(member, 1, 16)
    local nul = find(member, '\0', 17, true)
    local kind = sub(member, 17, nul - 1)
    if not kinds or kinds[kind] then
      local record = call('HGET', base .. 'r:' .. kind, sub(member, nul + 1))
      found = found + 1
      out[#out + 1] = member
      out[#out + 1] = record
      bytes = bytes + (record and #record or 0)
    end
  end
  if #members < 256 then
    return out
  end
  from = '(' .. members[#members]
end
