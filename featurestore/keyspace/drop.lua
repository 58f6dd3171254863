-- Remove records of one group. KEYS: meta, tally, snapshots, then the records. ARGV: base of the shard's keys, group.
local meta, tally, snapshots = KEYS[1], KEYS[2], KEYS[3]
redis.call('HLEN', tally)
local keep = open_snapshots(redis.call('HGET', meta, 'lease'), snapshots, ARGV[1])
local moves, removed = {}, 0
local index_move, move_in_index = open_index()
for i = 4, #KEYS do moves[i - 3] = index_move(ARGV[1], ARGV[2], KEYS[i], false) end
for i = 4, #KEYS do
  if keep then keep(ARGV[2], KEYS[i]) end
  removed = removed + redis.call('DEL', KEYS[i])
end
move_in_index(moves)
if removed > 0 then redis.call('HINCRBY', tally, ARGV[2] .. ':records', -removed) end
return removed
