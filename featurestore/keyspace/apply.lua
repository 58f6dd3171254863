-- Decide changes by event time, keep the winners, append all that are not refused to the outbox. At most 1,024 changes, two values of
-- each of which `unpack` can give to one command.
-- KEYS: meta, outbox, tally, snapshots, two receipts, then the record of each change.
-- ARGV: base of the shard's keys, time or '', most changes in the outbox, most receipts of a generation, seconds a generation is
--       filled, the source of the changes or '', then per change its head (layout.CHANGE_HEAD) and its bytes.
-- Answers {changes that waited, answers of 17 bytes (layout.APPLIED), faults as position and reason in turn}.
local NEWEST, HISTORIC, REFUSED, DONE_BEFORE, SUPERSEDED, FULL, FAULTY = 0, 1, 2, 3, 4, 8, 9
local PUT, HARD = 1, 3
local KEYS, ARGV, call, pack, unpacked, sub = KEYS, ARGV, redis.call, struct.pack, struct.unpack, string.sub
local meta, tally = KEYS[1], KEYS[3]
local source = ARGV[6] ~= '' and 'from:' .. ARGV[6]

local state = call('HMGET', meta, 'seq', 'api', 'trimmed', 'lease', 'generation', 'began', 'receipts')
local seq, api_us, trimmed = number(state[1]), number(state[2]), tonumber(state[3] or '1')
local generation = number(state[5])
local now_us = clock_us(ARGV[2])
local keep = open_snapshots(state[4], KEYS[4], ARGV[1])
local current, former = KEYS[5 + generation % 2], KEYS[5 + (generation + 1) % 2]
local waiting, entries_max = seq + 1 - trimmed, tonumber(ARGV[3])
local mark_before = source and number(call('HGET', meta, source) or '-1')
local mark, halted = mark_before, nil
call('HLEN', tally)

-- Of each change an answer; of each entry its API time as text and its bytes; of each record that changes its key and its bytes; of
-- each write id that is new its answer.
local answers, faults, entries, values, receipts = {}, {}, {}, {}, {}
local records, answered, counts = {}, {}, {}
local has_room = true

for i = 1, #KEYS - 6 do
  local key, head = KEYS[6 + i], ARGV[5 + 2 * i]
  local op, targets, flags, high, low, group, first, last, begun = unpacked('>BBBI4I4I8I4I4I4', head)
  local online, offline = targets % 2 == 1, targets >= 2
  local write_id = sub(head, 56)
  local offset = source and unpacked('>I8', sub(head, 40, 47))
  local answer, record, fault
  if begun > 0 then has_room = seq + 1 - trimmed + begun <= entries_max end
  if source and offset <= mark then
    answer = pack('>BI8I8', DONE_BEFORE, 0, 0)
  elseif not has_room then
    answer = pack('>BI8I8', FULL, 0, 0)
  else
    fault = halted
    if not fault then
      if write_id ~= '' then
        answer = answered[write_id] or call('HGET', current, write_id) or call('HGET', former, write_id)
      end
      record = records[key]
      if online and not answer and not record then
        record, fault = look(key)
        records[key] = record
      end
    end
    if fault then
      answer = pack('>BI8I8', FAULTY, 0, 0)
      faults[#faults + 1] = i
      faults[#faults + 1] = fault
      if source then halted = fault end -- nothing of it may pass what has to be repeated
    elseif source then
      mark = offset
    end
  end
  if not answer then
    local outcome = NEWEST
    if not online then
      outcome = HISTORIC
    elseif flags >= 2 and not (record.state == LIVE and record.api_us == unpacked('>I8', sub(head, 48, 55))) then
      outcome = SUPERSEDED
    elseif record.state and record.state ~= GRAVE
      and (high < record.high or high == record.high and (low < record.low or low == record.low and op ~= PUT)) then
      outcome = op == HARD and REFUSED or HISTORIC
    end
    if outcome == NEWEST or outcome == HISTORIC then
      local body, count = ARGV[6 + 2 * i], counts[group]
      seq = seq + 1
      api_us = now_us > api_us and now_us or api_us + 1
      answer = pack('>BI8I8', outcome, seq, api_us)
      entries[#entries + 1] = text(api_us)
      entries[#entries + 1] = body
      if not count then
        count = {group = text(group), changes = 0, offline_only = 0, online_only = 0, records = 0}
        counts[group] = count
      end
      if not offline then
        count.online_only = count.online_only + 1
      else
        count.changes = count.changes + 1
        if not online then count.offline_only = count.offline_only + 1 end
      end
      if outcome == NEWEST then
        if not record.state then count.records = count.records + 1 end
        if not record.at then
          record.group, record.at = count.group, #values + 2
          values[record.at - 1] = key
        end
        record.api_us = api_us
        if op == HARD then
          record.state, record.high, record.low, record.grave = GRAVE, NO_TIME, 0, pack('>I8', api_us)
          values[record.at] = record_bytes(GRAVE, not offline, NO_TIME, 0, api_us, nil, record.grave, '')
        else
          record.state, record.high, record.low = op == PUT and LIVE or TOMBSTONE, high, low
          local expiry = op == PUT and flags % 2 == 1 and sub(head, 32, 39) or nil
          values[record.at] =
            record_bytes(record.state, not offline, high, low, api_us, expiry, record.grave, sub(body, first, last))
        end
      end
    else
      answer = pack('>BI8I8', outcome, 0, 0)
    end
    if write_id ~= '' and outcome ~= SUPERSEDED then
      answered[write_id] = answer
      receipts[#receipts + 1] = write_id
      receipts[#receipts + 1] = answer
    end
  end
  answers[i] = answer
end

local moves, index_move, move_in_index
for i = 1, #values, 2 do
  local record = records[values[i]]
  local is_kept = record.state ~= GRAVE
  if is_kept ~= record.was_kept then
    if not moves then
      moves = {}
      index_move, move_in_index = open_index()
    end
    moves[#moves + 1] = index_move(ARGV[1], record.group, values[i], is_kept)
  end
end

-- From here on it is written. An entry of the outbox is the first write: what keeps it out keeps all out.
local seq_text
for i = 1, #entries, 2 do
  seq_text = text(seq - (#entries - i - 1) / 2)
  call('XADD', KEYS[2], seq_text .. '-0', 'a', entries[i], 'b', entries[i + 1])
end
if #values > 0 then
  if keep then
    for i = 1, #values, 2 do keep(records[values[i]].group, values[i]) end
  end
  call('MSET', unpack(values))
end
if moves then move_in_index(moves) end
for _, count in pairs(counts) do
  if count.changes > 0 then call('HINCRBY', tally, count.group .. ':changes', count.changes) end
  if count.offline_only > 0 then call('HINCRBY', tally, count.group .. ':offline_only', count.offline_only) end
  if count.online_only > 0 then call('HINCRBY', tally, count.group .. ':online_only', count.online_only) end
  if count.records > 0 then call('HINCRBY', tally, count.group .. ':records', count.records) end
end
local count
if #receipts > 0 then
  local began_us = number(state[6])
  count = number(state[7])
  if count >= tonumber(ARGV[4]) or now_us >= began_us + tonumber(ARGV[5]) * 1000000 then
    generation, count, current = generation + 1, 0, former
    call('HSET', meta, 'generation', generation, 'began', text(now_us))
    call('UNLINK', current)
  end
  call('HSET', current, unpack(receipts))
  if count == 0 then call('EXPIRE', current, 2 * tonumber(ARGV[5])) end
  count = text(count + #receipts / 2)
end
if not seq_text then
  if count then call('HSET', meta, 'receipts', count) end
elseif count then
  call('HSET', meta, 'seq', seq_text, 'api', entries[#entries - 1], 'receipts', count)
else
  call('HSET', meta, 'seq', seq_text, 'api', entries[#entries - 1])
end
if source and mark > mark_before then call('HSET', meta, source, text(mark)) end
return {waiting, table.concat(answers), faults}
