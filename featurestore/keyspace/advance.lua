-- Let later stamps lie after a given one. KEYS: meta. ARGV: seq, API time. The first write is refused when memory is short.
local state = redis.call('HMGET', KEYS[1], 'seq', 'api')
local seq, api_us = tonumber(ARGV[1]), tonumber(ARGV[2])
redis.call('HSET', KEYS[1], 'api', text(math.max(api_us, number(state[2]))))
if seq > number(state[1]) then redis.call('HSET', KEYS[1], 'seq', text(seq), 'trimmed', text(seq + 1)) end
return 1
