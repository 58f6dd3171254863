-- Set aside API times that nothing else in the shard gets; they end now rather than begin now. Answers the first.
-- KEYS: meta. ARGV: time or '', how many.
local rows = tonumber(ARGV[2])
local first_us = math.max(clock_us(ARGV[1]) - rows + 1, number(redis.call('HGET', KEYS[1], 'api')) + 1)
redis.call('HSET', KEYS[1], 'api', text(first_us + rows - 1))
return text(first_us)
