-- The time that purging goes by. ARGV[4] a time that was believed, to be remembered, or ''
-- Answers: writes, time, the latest that was believed or ''
local believed = call('HGET', meta, 'believed')
if ARGV[4] ~= '' and not readonly and (not believed or tonumber(believed) < tonumber(ARGV[4])) then
  call('HSET', meta, 'believed', ARGV[4])
end
return {'A', int(writes), int(now), believed or ''}
