-- Take in changes that are stamped already, where they are greater in the order of changes. No outbox entry.
-- KEYS: meta, tally, snapshots, erased, then the record of each change.
-- ARGV: base of the shard's keys, then per change its head (layout.LOADED_HEAD) and its values.
-- Answers {changes that became or changed the state, faults as position and reason in turn}.
local meta, tally, snapshots, erased = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local lease = redis.call('HGET', meta, 'lease')
redis.call('HLEN', tally)
redis.call('HLEN', snapshots)
local has_erased = redis.call('HLEN', erased) > 0
local keep = open_snapshots(lease, snapshots, ARGV[1])
local loaded, faults, new, looks, moves = 0, {}, {}, {}, {}
local index_move, move_in_index = open_index()

-- Before anything is written. The flags are byte 1, the group is bytes 18 to 25 of a head.
for i = 1, #KEYS - 4 do
  local key, head = KEYS[4 + i], ARGV[2 * i]
  if not looks[key] then
    local record, fault = look(key)
    looks[key] = {record = record, fault = fault, was_kept = record and record.was_kept or false}
  end
  local first = looks[key]
  if first.record and not first.move and (not first.was_kept or string.byte(head, 1) % 4 == GRAVE) then
    first.move = index_move(ARGV[1], text(struct.unpack('>I8', string.sub(head, 18, 25))), key, first.was_kept)
  end
end

-- The bytes of a record after a hard delete of that API time.
local function buried(key, record, api_us, online_only)
  local grave = struct.pack('>I8', api_us)
  if not record.state or record.api_us <= api_us then
    return record_bytes(GRAVE, online_only, NO_TIME, 0, api_us, nil, grave, '')
  end
  local raw = redis.call('GET', key)
  local flags, at, expiry = string.byte(raw, 2), 19, nil
  if has(flags, HAS_EXPIRY) then
    expiry = string.sub(raw, at, at + 7)
    at = at + 8
  end
  if record.grave then at = at + 8 end
  local values = string.sub(raw, at)
  return record_bytes(record.state, has(flags, ONLINE_ONLY), record.high, record.low, record.api_us, expiry, grave, values)
end

for i = 1, #KEYS - 4 do
  local key, head, values = KEYS[4 + i], ARGV[2 * i], ARGV[1 + 2 * i]
  local flags, high, low, api_us, group = struct.unpack('>BI4I4I8I8', head)
  local state = flags % 4
  local online_only = has(flags, ONLINE_ONLY)
  group = text(group)
  local erased_us = has_erased and redis.call('HGET', erased, string.sub(head, 34))
  if not erased_us or api_us > tonumber(erased_us) then
    local first = looks[key]
    local record, fault, bytes = first.record, first.fault, nil
    if first.is_written then record = look(key) end
    if fault then
      table.insert(faults, i)
      table.insert(faults, fault)
    elseif record.grave and api_us <= struct.unpack('>I8', record.grave) then
      bytes = nil
    elseif state == GRAVE then
      bytes = buried(key, record, api_us, online_only)
    else
      local is_newer = not record.state or record.state == GRAVE or high > record.high
      if not is_newer and high == record.high and low >= record.low then
        is_newer = low > record.low or state > record.state or state == record.state and api_us > record.api_us
      end
      if is_newer then
        local expiry = has(flags, HAS_EXPIRY) and string.sub(head, 26, 33) or nil
        bytes = record_bytes(state, online_only, high, low, api_us, expiry, record.grave, values)
      end
    end
    if bytes then
      if keep then keep(group, key) end
      redis.call('SET', key, bytes)
      first.is_written = true
      if first.move then first.move.is_kept = string.byte(bytes, 2) % 4 ~= GRAVE end
      if not record.state then new[group] = (new[group] or 0) + 1 end
      loaded = loaded + 1
    end
  end
end
for i = 5, #KEYS do
  local first = looks[KEYS[i]]
  if first.move and first.move.is_kept ~= first.was_kept then table.insert(moves, first.move) end
  first.move = nil
end
move_in_index(moves)
for group, by in pairs(new) do redis.call('HINCRBY', tally, group .. ':records', by) end
return {loaded, faults}
