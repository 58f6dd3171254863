-- Go on looking. KEYS: meta, snapshots, undo. ARGV: snapshot id, seconds of the lease. Answers 0 if the lease had run out.
local meta, snapshots = KEYS[1], KEYS[2]
local now = server_us()
local group, until_us = string.match(redis.call('HGET', snapshots, ARGV[1]) or '', '^(%d+) (%d+)$')
if not group or now >= tonumber(until_us) then return 0 end
until_us = now + tonumber(ARGV[2]) * 1000000
redis.call('HSET', snapshots, ARGV[1], group .. ' ' .. text(until_us))
redis.call('HSET', meta, 'lease', text(math.max(number(redis.call('HGET', meta, 'lease')), until_us)))
redis.call('EXPIRE', KEYS[3], 4 * tonumber(ARGV[2]))
return 1
