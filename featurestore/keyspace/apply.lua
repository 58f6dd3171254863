-- Decide changes by event time, keep the winners, append all that are not refused to the outbox.
-- KEYS: meta, outbox, tally, snapshots, two receipts, then the record of each change.
-- ARGV: base of the shard's keys, time or '', most changes in the outbox, most receipts of a generation, seconds a generation is
--       filled, the source of the changes or '', then per change its head (layout.CHANGE_HEAD) and its bytes.
-- Answers {changes that waited, answers of 17 bytes (layout.APPLIED), faults as position and reason in turn}.
local NEWEST, HISTORIC, REFUSED, DONE_BEFORE, SUPERSEDED, FULL, FAULTY = 0, 1, 2, 3, 4, 8, 9
local PUT, SOFT, HARD = 1, 2, 3
local meta, outbox, tally, snapshots = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local base, bound, receipts_max, generation_us = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5]) * 1000000

local source = ARGV[6] ~= '' and 'from:' .. ARGV[6]

local state = redis.call('HMGET', meta, 'seq', 'api', 'trimmed', 'generation', 'began', 'receipts', 'lease', source or '-')
redis.call('XLEN', outbox)
redis.call('HLEN', tally)
redis.call('HLEN', snapshots)
redis.call('HLEN', KEYS[5])
redis.call('HLEN', KEYS[6])
local seq, api_us, trimmed = number(state[1]), number(state[2]), tonumber(state[3] or '1')
local generation, began_us, receipts = number(state[4]), number(state[5]), number(state[6])
local now_us = clock_us(ARGV[2])
local open = open_snapshots(state[7], snapshots, base)
local current, former = KEYS[5 + generation % 2], KEYS[5 + (generation + 1) % 2]
local waiting = seq + 1 - trimmed
local mark = tonumber(state[8] or '-1')
local mark_before, halted = mark, nil

local records, changed, entries, fresh, fresh_count, counts = {}, {}, {}, {}, 0, {}
local answers, faults, moves = {}, {}, {}
local has_room = true

local function count(group, name, by)
  local field = group .. ':' .. name
  counts[field] = (counts[field] or 0) + by
end

local function answered(write_id)
  if write_id == '' then return nil end
  return fresh[write_id] or redis.call('HGET', current, write_id) or redis.call('HGET', former, write_id) or nil
end

for i = 1, #KEYS - 6 do
  local key, head, body = KEYS[6 + i], ARGV[5 + 2 * i], ARGV[6 + 2 * i]
  local op, targets, flags, high, low, group, first, last, call = struct.unpack('>BBBI4I4I8I4I4I4', head)
  local expires, upon = flags % 2 == 1, flags >= 2
  local write_id = string.sub(head, 56)
  local offset = struct.unpack('>I8', string.sub(head, 40, 47))
  local online, offline = targets % 2 == 1, targets >= 2
  group = text(group)
  if call > 0 then has_room = seq + 1 - trimmed + call <= bound end
  local is_done = source and offset <= mark
  local answer = has_room and not is_done and answered(write_id)
  local record, fault = records[key], nil
  if has_room and not is_done and not answer and online and not record then
    record, fault = look(key)
    records[key] = record
    if record then record.was_kept = record.exists and record.state ~= GRAVE end
  end
  if source then -- nothing of it may pass what has to be repeated
    halted = halted or fault
    fault = halted
  end
  if has_room and not is_done and not fault then mark = offset end
  if is_done then
    answer = struct.pack('>BI8I8', DONE_BEFORE, 0, 0)
  elseif not has_room then
    answer = struct.pack('>BI8I8', FULL, 0, 0)
  elseif fault then
    answer = struct.pack('>BI8I8', FAULTY, 0, 0)
    table.insert(faults, i)
    table.insert(faults, fault)
  elseif not answer and upon and not (record.exists and record.state == LIVE
    and record.api_us == struct.unpack('>I8', string.sub(head, 48, 55))) then
    answer = struct.pack('>BI8I8', SUPERSEDED, 0, 0)
  elseif not answer then
    local outcome
    if not online then
      outcome = HISTORIC
    elseif not record.exists or record.state == GRAVE then
      outcome = NEWEST
    elseif high > record.high or high == record.high and (low > record.low or low == record.low and op == PUT) then
      outcome = NEWEST
    else
      outcome = op == HARD and REFUSED or HISTORIC
    end
    if outcome == REFUSED then
      answer = struct.pack('>BI8I8', REFUSED, 0, 0)
    else
      seq = seq + 1
      api_us = math.max(now_us, api_us + 1)
      answer = struct.pack('>BI8I8', outcome, seq, api_us)
      table.insert(entries, {text(seq), text(api_us), body})
      count(group, offline and 'changes' or 'online_only', 1)
      if offline and not online then count(group, 'offline_only', 1) end
    end
    if outcome == NEWEST then
      if not record.exists then count(group, 'records', 1) end
      record.exists, record.group, record.api_us = true, group, api_us
      if op == HARD then
        record.state, record.high, record.low = GRAVE, 2147483648, 0
        record.grave = struct.pack('>I8', api_us)
        record.bytes = record_bytes(GRAVE, not offline, struct.pack('>I4I4', 2147483648, 0), api_us, nil, record.grave, '')
      else
        record.state, record.high, record.low = op == PUT and LIVE or TOMBSTONE, high, low
        local expiry = op == PUT and expires and string.sub(head, 32, 39) or nil
        local values = string.sub(body, first, last)
        record.bytes = record_bytes(record.state, not offline, string.sub(head, 4, 11), api_us, expiry, record.grave, values)
      end
      changed[key] = record
    end
    if write_id ~= '' then
      fresh[write_id] = answer
      fresh_count = fresh_count + 1
    end
  end
  answers[i] = answer
end

-- In the order of the call, so that ids that come in order fill the leaves of the index.
for i = 7, #KEYS do
  local record = changed[KEYS[i]]
  local is_kept = record and record.state ~= GRAVE
  if record and not record.move and is_kept ~= record.was_kept then
    record.move = index_move(base, record.group, KEYS[i], is_kept)
    table.insert(moves, record.move)
  end
end

-- From here on it is written. An entry of the outbox is the first write: what keeps it out keeps all out.
for _, entry in ipairs(entries) do redis.call('XADD', outbox, entry[1] .. '-0', 'a', entry[2], 'b', entry[3]) end
for key, record in pairs(changed) do
  keep(open, record.group, key)
  redis.call('SET', key, record.bytes)
end
move_in_index(moves)
for field, by in pairs(counts) do redis.call('HINCRBY', tally, field, by) end
if fresh_count > 0 then
  if receipts >= receipts_max or now_us >= began_us + generation_us then
    generation, began_us, receipts = generation + 1, now_us, 0
    current = KEYS[5 + generation % 2]
    redis.call('HSET', meta, 'generation', text(generation), 'began', text(began_us))
    redis.call('UNLINK', current)
  end
  for write_id, answer in pairs(fresh) do redis.call('HSET', current, write_id, answer) end
  if receipts == 0 then redis.call('EXPIRE', current, 2 * tonumber(ARGV[5])) end
  redis.call('HSET', meta, 'receipts', text(receipts + fresh_count))
end
if #entries > 0 then redis.call('HSET', meta, 'seq', text(seq), 'api', text(api_us)) end
if source and mark > mark_before then redis.call('HSET', meta, source, text(mark)) end
return {waiting, table.concat(answers), faults}
