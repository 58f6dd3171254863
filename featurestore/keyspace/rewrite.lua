-- Copy the outbox into a new key, some entries per call, and put that in its place: a stream keeps the bytes of single entries that
-- were trimmed until all entries near them are. KEYS: meta, outbox, snapshots, the copy.
-- ARGV: base of the shard's keys, most entries of a call, where trimming was when the copy began ('' begins it).
-- Answers where trimming was; 'busy' if a snapshot is read; '' when done.
local meta, outbox, snapshots, copy = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local state = redis.call('HMGET', meta, 'trimmed', 'lease')
local trimmed = state[1] or '1'
if open_snapshots(state[2], snapshots, ARGV[1]) then
  redis.call('DEL', copy)
  return 'busy'
end
if ARGV[3] ~= trimmed then
  redis.call('DEL', copy)
  redis.call('XTRIM', outbox, 'MINID', trimmed .. '-0')
end
local first = trimmed .. '-0'
local last = redis.call('XREVRANGE', copy, '+', '-', 'COUNT', 1)[1]
if last then first = '(' .. last[1] end
local entries = redis.call('XRANGE', outbox, first, '+', 'COUNT', ARGV[2])
for _, entry in ipairs(entries) do redis.call('XADD', copy, entry[1], unpack(entry[2])) end
if #entries == tonumber(ARGV[2]) then return trimmed end
if redis.call('XLEN', copy) == 0 then redis.call('DEL', outbox, copy) else redis.call('RENAME', copy, outbox) end
return ''
