-- The caller's history and what it has seen of it: all scripts but the one that opens a namespace.
if history ~= ARGV[1] or m[2] ~= replid or writes < tonumber(ARGV[2]) then
  return {'H'}
end
