-- Remember how many changes of a group a former store has logged. KEYS: tally. ARGV: group, changes.
local field, changes = ARGV[1] .. ':former', tonumber(ARGV[2])
if changes > number(redis.call('HGET', KEYS[1], field)) then redis.call('HSET', KEYS[1], field, text(changes)) end
return 1
