-- Take in changes of one group that are stamped already, where they are greater in the order of changes. No outbox entry.
-- KEYS: meta, tally, snapshots, erased, then the record of each change in the order of their bytes, those of one record together.
-- ARGV: base of the shard's keys, group, then of each change the bytes that its record has if there was none before, then of all
-- changes or of none the hash of the subject.
-- Answers {changes that became or changed the state, faults as position and reason in turn}; nil, and does nothing, if it has to
-- know the subjects.
local meta, tally, snapshots, erased = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local base, group, count = ARGV[1], ARGV[2], #KEYS - 4
local ABSENT = {was_kept = false}
local directory = base .. 'i:' .. group
local lease = redis.call('HGET', meta, 'lease')
redis.call('HLEN', tally)
redis.call('HLEN', snapshots)
local has_erased = redis.call('HLEN', erased) > 0
if has_erased and #ARGV == 2 + count then return false end
local keep = open_snapshots(lease, snapshots, base)
local _, move_in_index, leaf_of = open_index()

-- Of moves in the order of their ids, the last from `first` to `last` whose id is in a leaf that the one of `first` is in.
local function last_in_leaf(moves, first, last, leaf)
  if leaf_of(directory, moves[last].id) == leaf then return last end
  while last - first > 1 do
    local middle = math.floor((first + last) / 2)
    if leaf_of(directory, moves[middle].id) == leaf then first = middle else last = middle end
  end
  return first
end

-- Before anything is written. Few records are in different leaves, so that few are looked up.
local all_new = redis.call('EXISTS', unpack(KEYS, 5)) == 0
local looks, found, movable = {}, nil, {}
for i = 1, count do
  local key = KEYS[4 + i]
  if key ~= KEYS[3 + i] or i == 1 then
    found = {record = ABSENT, was_kept = false}
    if not all_new then
      found.record, found.fault = look(key)
      found.was_kept = found.record and found.record.was_kept or false
    end
  end
  looks[i] = found
  if found.record and not found.id and (not found.was_kept or string.byte(ARGV[2 + i], 2) % 4 == GRAVE) then
    found.id = string.sub(key, #directory + 2)
    table.insert(movable, found)
  end
end
local at = 1
while at <= #movable do
  local leaf = leaf_of(directory, movable[at].id)
  local last = last_in_leaf(movable, at, #movable, leaf)
  for i = at, last do movable[i].leaf = leaf end
  at = last + 1
end

-- The bytes of a record after a hard delete of that API time.
local function buried(key, record, api_us, online_only)
  local grave = struct.pack('>I8', api_us)
  if not record.state or record.api_us <= api_us then
    return record_bytes(GRAVE, online_only, NO_TIME, 0, api_us, nil, grave, '')
  end
  local raw = redis.call('GET', key)
  local flags, after, expiry = string.byte(raw, 2), 19, nil
  if has(flags, HAS_EXPIRY) then
    expiry = string.sub(raw, after, after + 7)
    after = after + 8
  end
  if record.grave then after = after + 8 end
  local values = string.sub(raw, after)
  return record_bytes(record.state, has(flags, ONLINE_ONLY), record.high, record.low, record.api_us, expiry, grave, values)
end

-- The bytes of a record that replaces one which has a grave.
local function with_grave(raw, grave)
  local flags = string.byte(raw, 2)
  local head = has(flags, HAS_EXPIRY) and 26 or 18
  return string.char(VERSION, flags + HAS_GRAVE) .. string.sub(raw, 3, head) .. grave .. string.sub(raw, head + 1)
end

local loaded, new, faults, sets = 0, 0, {}, {}

local function write()
  if #sets > 0 then redis.call('MSET', unpack(sets)) end
  sets = {}
end

for i = 1, count do
  local key, raw, first = KEYS[4 + i], ARGV[2 + i], looks[i]
  local record, bytes = first.record, nil
  local flags = string.byte(raw, 2)
  local high, low, api_us = struct.unpack('>I4I4I8', raw, 3)
  local erased_us = has_erased and redis.call('HGET', erased, ARGV[2 + count + i])
  if not erased_us or api_us > tonumber(erased_us) then
    if first.is_written then
      write()
      record = look(key)
    end
    if first.fault then
      table.insert(faults, i)
      table.insert(faults, first.fault)
    elseif record.grave and api_us <= struct.unpack('>I8', record.grave) then
      bytes = nil
    elseif flags % 4 == GRAVE then
      bytes = buried(key, record, api_us, has(flags, ONLINE_ONLY))
    else
      local state = flags % 4
      local is_newer = not record.state or record.state == GRAVE or high > record.high
      if not is_newer and high == record.high and low >= record.low then
        is_newer = low > record.low or state > record.state or state == record.state and api_us > record.api_us
      end
      if is_newer then bytes = record.grave and with_grave(raw, record.grave) or raw end
    end
    if bytes then
      if keep then keep(group, key) end
      sets[#sets + 1] = key
      sets[#sets + 1] = bytes
      first.is_written = true
      first.is_kept = string.byte(bytes, 2) % 4 ~= GRAVE
      if not record.state then new = new + 1 end
      loaded = loaded + 1
    end
  end
end
write()

local moves = {}
for _, move in ipairs(movable) do
  if move.is_written and move.is_kept ~= move.was_kept then moves[#moves + 1] = move end
end
move_in_index(moves)
if new > 0 then redis.call('HINCRBY', tally, group .. ':records', new) end
return {loaded, faults}
