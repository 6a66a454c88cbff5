-- ARGV[4] kind, ARGV[5] id, and so on in pairs. Answers: writes, then for each the record or false
local out = {'A', int(writes)}
for i = 4, #ARGV, 2 do
  out[#out + 1] = call('HGET', base .. 'r:' .. ARGV[i], ARGV[i + 1])
end
return out
