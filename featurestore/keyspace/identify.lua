-- Make or find the store. KEYS: its description. ARGV: format, shards, salt in case it is made. Answers what it is.
local found = redis.call('HMGET', KEYS[1], 'format', 'shards', 'salt')
if not found[1] then
  redis.call('HSET', KEYS[1], 'format', ARGV[1], 'shards', ARGV[2], 'salt', ARGV[3])
  return {ARGV[1], ARGV[2], ARGV[3]}
end
return found
