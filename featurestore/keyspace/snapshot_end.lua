-- Leave a snapshot, and forget those whose readers have died. The last one cuts the outbox to where it would be.
-- KEYS: meta, outbox, snapshots. ARGV: base of the shard's keys, snapshot id.
local meta, outbox, snapshots = KEYS[1], KEYS[2], KEYS[3]
local now, lease = server_us(), 0
redis.call('XLEN', outbox)
local rows = redis.call('HGETALL', snapshots)
for i = 1, #rows, 2 do
  local until_us = tonumber(string.match(rows[i + 1], ' (%d+)$'))
  if rows[i] == ARGV[2] or now >= until_us then
    redis.call('HDEL', snapshots, rows[i])
    redis.call('UNLINK', ARGV[1] .. 'u:' .. rows[i])
  else
    lease = math.max(lease, until_us)
  end
end
if lease > 0 then
  redis.call('HSET', meta, 'lease', text(lease))
else
  redis.call('HDEL', meta, 'lease')
  redis.call('XTRIM', outbox, 'MINID', (redis.call('HGET', meta, 'trimmed') or '1') .. '-0')
end
return 1
