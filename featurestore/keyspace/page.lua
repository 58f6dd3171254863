-- The next live records of one group in the order of its index. Writes nothing.
-- KEYS: the directory of the index, and a key that is never there: while a cluster moves the slot it refuses a call with both, which
-- would see a part of the leaves. ARGV: base of the shard's keys, group, the id to begin behind or '', time or '', most records to
-- give, most to look at, whether soft deleted records are wanted, whether values are.
-- Answers {records looked at, the last of them, 1 at the end of the index, id and (where wanted) value of each record in turn}.
local directory, base, group, after = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
local now_us, most, looks = clock_us(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])
local deleted, values = ARGV[7] == '1', ARGV[8] == '1'
local looked_at, given, ended, answer = 0, 0, 0, {}
local bound = redis.call('ZREVRANGEBYLEX', directory, '[' .. after, '-', 'LIMIT', 0, 1)[1] or ''
local first = after == '' and '-' or '(' .. after
while given < most and looked_at < looks do
  local wanted = math.min(math.max(most - given, 32), looks - looked_at)
  local ids = redis.call('ZRANGEBYLEX', directory .. ':' .. bound, first, '+', 'LIMIT', 0, wanted)
  for _, id in ipairs(ids) do
    if given == most then break end
    looked_at, after = looked_at + 1, id
    local key = base .. 'r:' .. group .. ':' .. id
    local raw = redis.call('GETRANGE', key, 0, 25)
    local flags = #raw >= 18 and string.byte(raw, 2) or GRAVE
    local state = flags % 4
    local is_expired = has(flags, HAS_EXPIRY) and struct.unpack('>i8', string.sub(raw, 19, 26)) <= now_us
    if state == LIVE and not is_expired or deleted and state == TOMBSTONE then
      given = given + 1
      table.insert(answer, id)
      if values then table.insert(answer, redis.call('GET', key)) end
    end
  end
  first = '(' .. after
  if #ids < wanted and (#ids == 0 or ids[#ids] == after) then
    bound = redis.call('ZRANGEBYLEX', directory, '(' .. bound, '+', 'LIMIT', 0, 1)[1]
    if not bound then
      ended = 1
      break
    end
    first = '-'
  end
end
return {looked_at, after, ended, answer}
