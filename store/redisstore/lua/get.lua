-- ARGV[4] kind, ARGV[5] id. Answers: writes, the record or false
return {'A', int(writes), call('HGET', base .. 'r:' .. ARGV[4], ARGV[5])}
