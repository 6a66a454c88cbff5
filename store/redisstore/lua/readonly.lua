-- ARGV[4] '1' or '0'. Answers: writes
call('HSET', meta, 'readonly', ARGV[4])
return {'A', int(writes)}
