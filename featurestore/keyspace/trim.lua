-- Forget the entries below an offset, which are in the offline store. While a snapshot is read they only count as forgotten.
-- KEYS: meta, outbox, snapshots. ARGV: base of the shard's keys, offset.
-- Answers how many changes the outbox has lost: they are in the offline store, but the shard knows nothing of having given their
-- seqs. These are not given again.
-- The first write frees memory and is taken when memory is short; so are the others then.
local meta, outbox, snapshots = KEYS[1], KEYS[2], KEYS[3]
local state = redis.call('HMGET', meta, 'seq', 'trimmed', 'lease')
local offset, seq = tonumber(ARGV[2]), number(state[1])
local trimmed = math.max(tonumber(state[2] or '1'), offset)
if open_snapshots(state[3], snapshots, ARGV[1]) then
  redis.call('XTRIM', outbox, 'MINID', '0-0')
else
  redis.call('XTRIM', outbox, 'MINID', text(trimmed) .. '-0')
end
local lost = math.max(0, offset - 1 - seq)
redis.call('HSET', meta, 'trimmed', text(trimmed), 'seq', text(seq + lost))
return lost
