-- Opens the namespace: begins a history where there is none, or where writes may have been lost since the last one. A
-- server that was started again or promoted has a new replication id, whoever noticed; and a caller who has seen more
-- writes than there are proves a loss.
-- ARGV[1] the history it knew, or '', ARGV[4] a new history, ARGV[5] the layout's version, ARGV[6] '1' when a server that
-- was started again lost nothing, ARGV[7] replid of the server whose configuration was found safe,
-- ARGV[8] replid of the node that handed the slot over, as the caller has found out, '-' when none did, '' when it has not asked,
-- ARGV[9...] the kinds of state
-- Answers: writes, history, why it began, writes that are known to be lost, replid; {'V'}: it is another server by now; {'E'}: the
-- namespace was emptied; {'D', replid}: it was last on that other server
if m[11] and m[11] ~= ARGV[5] then
  return {'X', 'its records by layout ' .. ARGV[5] .. ' but ' .. m[11]}
end
if replid ~= ARGV[7] then
  return {'V'}
end
-- Nothing is left where a caller knows that there was something: FLUSHALL, or a server that came back with nothing. The mark
-- tells those who start later, and could not know.
if not history and (m[13] or ARGV[1] ~= '') then
  call('HSET', meta, 'emptied', '1')
  return {'E'}
end
-- A history that this one knows nothing of came from data that are gone, as when the namespace was emptied and begun anew.
local unknown = history and ARGV[1] ~= '' and history ~= ARGV[1] and call('HEXISTS', meta, 'end:' .. ARGV[1]) == 0
local why, lost = '', 0
if not history then
  why = 'new'
elseif unknown then
  why = 'lost'
elseif history == ARGV[1] and writes < tonumber(ARGV[2]) then
  why, lost = 'lost', tonumber(ARGV[2]) - writes
elseif m[2] ~= replid then
  -- One that was promoted still knows the replication id that it had followed; whoever restored a backup says so.
  local lossless = m[2] ~= 'restored' and string.match(info, 'master_replid2:(%w+)') ~= m[2]
  if lossless and ARGV[6] ~= '1' then
    if ARGV[8] == '' then
      return {'D', m[2]}
    end
    -- What was handed over must have arrived: every record of state stands in the order of state.
    local states = 0
    for i = 9, #ARGV do
      states = states + call('HLEN', base .. 'r:' .. ARGV[i])
    end
    lossless = ARGV[8] == m[2] and states == call('ZCARD', base .. 's') and (states > 0 or ms == 0)
  end
  if lossless then
    call('HSET', meta, 'replid', replid)
  else
    why = 'replid'
  end
end
if why ~= '' then
  local set = {'history', ARGV[4], 'replid', replid, 'format', ARGV[5]}
  if history then
    -- Cursors of the feed that lead beyond what is left go on from here.
    local fields = call('HGETALL', meta)
    for i = 1, #fields, 2 do
      if sub(fields[i], 1, 4) == 'end:' and tonumber(fields[i + 1]) > event then
        set[#set + 1] = fields[i]
        set[#set + 1] = int(event)
      end
    end
    set[#set + 1] = 'end:' .. history
    set[#set + 1] = int(event)
    if unknown then
      set[#set + 1] = 'end:' .. ARGV[1]
      set[#set + 1] = int(event)
    end
  end
  history = ARGV[4]
  call('HSET', meta, lua_unpack(set))
end
return {'A', int(writes), history, why, int(lost), replid}
