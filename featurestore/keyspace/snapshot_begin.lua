-- Begin to look at one group: from here on, what its records were is kept when they change, and the outbox is not cut.
-- KEYS: meta, snapshots, tally. ARGV: base of the shard's keys, snapshot id, group, seconds of the lease.
-- Answers {last seq, first offset, changes, offline_only, online_only, former, records}.
local meta, snapshots, tally = KEYS[1], KEYS[2], KEYS[3]
local group = ARGV[3]
local state = redis.call('HMGET', meta, 'seq', 'trimmed', 'lease')
local until_us = server_us() + tonumber(ARGV[4]) * 1000000
local names = {':changes', ':offline_only', ':online_only', ':former', ':records'}
for i = 1, #names do names[i] = redis.call('HGET', tally, group .. names[i]) or '0' end
redis.call('HSET', snapshots, ARGV[2], group .. ' ' .. text(until_us))
redis.call('HSET', meta, 'lease', text(math.max(number(state[3]), until_us)))
return {state[1] or '0', state[2] or '1', unpack(names)}
