-- Answers: writes, place of the newest state
return {'A', int(writes), place()}
