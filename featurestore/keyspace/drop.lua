-- Remove records of one group. KEYS: meta, tally, snapshots, then the records. ARGV: base of the shard's keys, group.
local meta, tally, snapshots = KEYS[1], KEYS[2], KEYS[3]
redis.call('HLEN', tally)
redis.call('ZCARD', index_of(ARGV[1], ARGV[2]))
local open = open_snapshots(redis.call('HGET', meta, 'lease'), snapshots, ARGV[1])
local removed = 0
for i = 4, #KEYS do
  keep(open, ARGV[2], KEYS[i])
  removed = removed + redis.call('DEL', KEYS[i])
  enter(ARGV[1], ARGV[2], KEYS[i], false)
end
if removed > 0 then redis.call('HINCRBY', tally, ARGV[2] .. ':records', -removed) end
return removed
