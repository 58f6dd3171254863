-- Remove records and remember until when they are erased. Once per erasure: repeating it gives the first answer.
-- KEYS: meta, tally, snapshots, erasures, erased, then the records. ARGV: base of the shard's keys, time or '', erasure id, group,
-- then the subject of each record. Answers {API time until which they are erased, records removed}.
local meta, tally, snapshots, erasures, erased = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local id, group = ARGV[3], ARGV[4]
local state = redis.call('HMGET', meta, 'api', 'lease')
redis.call('HLEN', tally)
redis.call('HLEN', snapshots)
redis.call('HLEN', erased)
local keep = open_snapshots(state[2], snapshots, ARGV[1])
local until_us, removed = string.match(redis.call('HGET', erasures, id) or '', '^(%d+) (%d+)$')
local found, moves = {}, {}
local index_move, move_in_index = open_index()
if not until_us then
  for i = 6, #KEYS do
    if redis.call('EXISTS', KEYS[i]) == 1 then
      table.insert(found, KEYS[i])
      table.insert(moves, index_move(ARGV[1], group, KEYS[i], false))
    end
  end
  until_us, removed = text(math.max(clock_us(ARGV[2]), number(state[1]) + 1)), tostring(#found)
  redis.call('HSET', erasures, id, until_us .. ' ' .. removed)
  redis.call('HSET', meta, 'api', until_us)
end
for i = 6, #KEYS do
  local subject = ARGV[i - 1]
  if number(redis.call('HGET', erased, subject)) < tonumber(until_us) then redis.call('HSET', erased, subject, until_us) end
end
for _, key in ipairs(found) do
  if keep then keep(group, key) end
  redis.call('DEL', key)
end
move_in_index(moves)
if #found > 0 then redis.call('HINCRBY', tally, group .. ':records', -#found) end
return {until_us, tonumber(removed)}
