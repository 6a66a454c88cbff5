-- Removes records of a kind. ARGV[4] kind, ARGV[5] before, ARGV[6] how many, ARGV[7] the latest time to believe
-- Answers: writes, how many were removed, '1' when there may be more
if readonly then
  return {'R'}
end
local kind, most = ARGV[4], tonumber(ARGV[6])
local before = math.min(tonumber(ARGV[5]), now + 1, tonumber(ARGV[7]) + 1)
local due, records = base .. 'd:' .. kind, base .. 'r:' .. kind
local index = base .. 'x:' .. #kind .. ':' .. kind .. ':'
local removed, zero8 = 0, string.rep('\0', 8)
local ids = call('ZRANGEBYSCORE', due, '-inf', '(' .. int(before), 'LIMIT', 0, 256)
local letters = {'s', 'c', 'g', 't', 'y'}
for _, id in ipairs(ids) do
  if removed >= most then
    return {'A', int(writes), removed, '1'}
  end
  local record = call('HGET', records, id)
  local expires = record and sub(record, 31, 38)
  if not record then
    call('ZREM', due, id)
  elseif expires == zero8 then
    call('ZREM', due, id)
    call('HSET', records, id, sub(record, 1, 38) .. zero8 .. sub(record, 47))
  elseif unpack('>I8', expires) >= before then
    -- It was written again with a later expiry.
    call('ZADD', due, int(unpack('>I8', expires)), id)
    call('HSET', records, id, sub(record, 1, 38) .. expires .. sub(record, 47))
  else
    call('HDEL', records, id)
    call('ZREM', due, id)
    call('ZREM', index, id)
    local have = {unpack('>I3c0I3c0I3c0I3c0I3c0', record, 51)}
    for s = 1, 5 do
      if have[s] ~= '' then
        call('ZREM', index .. letters[s] .. have[s], id)
      end
    end
    local pms, plow = unpack('>I6I2', record, 23)
    if pms > 0 then
      call('ZREM', base .. 's', fmt('%012x%04x', pms, plow) .. kind .. '\0' .. id)
    end
    removed = removed + 1
  end
end
return {'A', int(writes), removed, #ids == 256 and '1' or '0'}
