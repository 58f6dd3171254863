-- What the scripts share. What `redis.call` is given is text, constants included: turning a number into it takes the server as long as
-- some commands do. Numbers in Lua are doubles: API times and seqs are exact in them (below 2^53, until the year 2255), event
-- times need not be and are compared as two halves. Strings are not compared by order, which would depend on the locale.
-- A script does not roll back: each one reads all it needs, which finds every key of a wrong type, before it writes; only the key that
-- is written first need not be read. The first write is one that is refused when memory is short; a later one would not be.
local TOMBSTONE, LIVE, GRAVE = 0, 1, 2
local ONLINE_ONLY, HAS_EXPIRY, HAS_GRAVE = 4, 8, 16
local VERSION = 1
local HEAD_LAST = '33'
local NO_TIME = 2147483648 -- the upper half of the event time that a grave has

-- A whole number from 0 below 2^53. In two parts that any server's `%d` can write, which takes it half as long as `%.0f`.
local function text(number)
  if number < 2147483648 then return string.format('%d', number) end
  local low = number % 100000000
  return string.format('%d%08d', (number - low) / 100000000, low)
end

local function server_us()
  local now = redis.call('TIME')
  return now[1] * 1000000 + now[2]
end

-- The time to stamp with: the server's, or the one that the caller gives (tests).
local function clock_us(given)
  if given == '' then return server_us() end
  return tonumber(given)
end

local function number(value) return tonumber(value or '0') end

local function has(flags, flag) return flags % (2 * flag) >= flag end

-- What is kept of a record, without its values and without a `state` if it is not there; nil and a reason if the key holds what the
-- store has not written. `was_kept` tells whether it is in the index.
local function look(key)
  local raw = redis.pcall('GETRANGE', key, '0', HEAD_LAST)
  if raw == '' then return {was_kept = false} end
  if type(raw) == 'table' then return nil, raw.err end
  if #raw < 18 then return nil, 'a value of another format' end
  local version, flags, high, low, api_us = struct.unpack('>BBI4I4I8', raw)
  if version ~= VERSION then return nil, 'a value of another format' end
  local state, grave = flags % 4, nil
  if has(flags, HAS_GRAVE) then
    local at = has(flags, HAS_EXPIRY) and 27 or 19
    grave = string.sub(raw, at, at + 7)
  end
  return {state = state, high = high, low = low, api_us = api_us, grave = grave, was_kept = state ~= GRAVE}
end

-- The bytes of a record. `expiry` and `grave` are 8 bytes or nil.
local function record_bytes(state, online_only, high, low, api_us, expiry, grave, values)
  local flags = state
  if online_only then flags = flags + ONLINE_ONLY end
  if expiry then flags = flags + HAS_EXPIRY end
  if grave then flags = flags + HAS_GRAVE end
  if flags >= HAS_EXPIRY then values = (expiry or '') .. (grave or '') .. values end
  return struct.pack('>BBI4I4I8c0', VERSION, flags, high, low, api_us, values)
end

-- What keeps a record as it is, given its group and key, for the snapshots that have yet to read it; nil if none is being read. An empty
-- text stands for no record. `lease_us` is the field of the shard's meta.
local function open_snapshots(lease_us, snapshots, base)
  if not lease_us then return nil end
  local now = server_us()
  if now >= tonumber(lease_us) then return nil end
  local open = {}
  local rows = redis.call('HGETALL', snapshots)
  for i = 1, #rows, 2 do
    local group, until_us = string.match(rows[i + 1], '^(%d+) (%d+)$')
    if now < tonumber(until_us) then
      open[group] = open[group] or {}
      table.insert(open[group], base .. 'u:' .. rows[i])
    end
  end
  if not next(open) then return nil end
  return function(group, key)
    if not open[group] then return end
    local old = redis.call('GET', key) or ''
    for _, undo in ipairs(open[group]) do redis.call('HSETNX', undo, key, old) end
  end
end

-- The index of a group: the ids of its records that are live or tombstones, in the order of their bytes. Leaves hold them, at most
-- LEAF_MAX each, which is what Redis keeps packed; a leaf is named by its bound, the least id in it, but the first one by ''. The
-- directory holds the bounds, without ''.
-- Answers what plans a move of a record, what carries moves out, and what finds the leaf of an id; all this is made only where it is
-- needed.
local function open_index()
  local LEAF_MAX = 128
  local leaves = {}

  local function leaf_under(directory, bound)
    local key = directory .. ':' .. bound
    local leaf = leaves[key]
    if not leaf then
      leaf = {directory = directory, bound = bound, key = key, size = redis.call('ZCARD', key), entering = {}}
      leaves[key] = leaf
    end
    return leaf
  end

  local function leaf_of(directory, id)
    return leaf_under(directory, redis.call('ZREVRANGEBYLEX', directory, '[' .. id, '-', 'LIMIT', '0', '1')[1] or '')
  end

  -- What it takes to enter a record into the index of its group, or to take it out. Only reads, and finds keys of a wrong type.
  local function index_move(base, group, key, is_kept)
    local directory, id = base .. 'i:' .. group, string.sub(key, #base + #group + 4)
    return {id = id, is_kept = is_kept, leaf = leaf_of(directory, id)}
  end

  -- Enter an id into a full leaf: the upper half goes to a new one. Ids that come in ascending or descending order fill their leaves.
  local function split(leaf, id)
    local directory = leaf.directory
    local ids = redis.call('ZRANGE', leaf.key, 0, -1)
    local position = redis.call('ZLEXCOUNT', leaf.key, '-', '(' .. id) + 1
    table.insert(ids, position, id)
    local first = math.floor(#ids / 2) + 1
    if position == 1 and leaf.bound == '' then
      first = 2
    elseif position == #ids and #redis.call('ZRANGEBYLEX', directory, '(' .. leaf.bound, '+', 'LIMIT', '0', '1') == 0 then
      first = #ids
    end
    -- A key that the store has not written is passed over.
    while first <= #ids and redis.call('EXISTS', directory .. ':' .. ids[first]) == 1 do first = first + 1 end
    leaf.is_split = true
    if first <= #ids then
      local upper = leaf_under(directory, ids[first])
      local moved = {}
      for i = first, #ids do
        table.insert(moved, '0')
        table.insert(moved, ids[i])
      end
      redis.call('ZADD', directory, '0', upper.bound)
      redis.call('ZADD', upper.key, unpack(moved))
      upper.size = #ids - first + 1
      leaf.size = first - 1
      redis.call('ZREMRANGEBYRANK', leaf.key, position < first and first - 2 or first - 1, -1)
    end
    if position < first then redis.call('ZADD', leaf.key, '0', id) end
  end

  -- What waits to be entered into a leaf, which has room for it. The last comes first: a packed set is searched from its least on for
  -- the place of each.
  local function add(leaf)
    if #leaf.entering == 0 then return end
    local members = {}
    for i = #leaf.entering, 1, -1 do
      members[#members + 1] = '0'
      members[#members + 1] = leaf.entering[i]
    end
    leaf.size = leaf.size + redis.call('ZADD', leaf.key, unpack(members))
    leaf.entering = {}
  end

  local function enter(leaf, id)
    if leaf.is_split then leaf = leaf_of(leaf.directory, id) end
    if leaf.size + #leaf.entering >= LEAF_MAX then add(leaf) end
    if leaf.size + #leaf.entering < LEAF_MAX then
      leaf.entering[#leaf.entering + 1] = id
    elseif not redis.call('ZSCORE', leaf.key, id) then
      split(leaf, id)
    end
    return leaf
  end

  -- An id that is taken out is no leaf's name any more, either.
  local function take_out(leaf, id)
    if leaf.is_split then leaf = leaf_of(leaf.directory, id) end
    leaf.size = leaf.size - redis.call('ZREM', leaf.key, id)
    if leaf.bound == '' or id ~= leaf.bound and leaf.size > 0 then return end
    local least = redis.call('ZRANGE', leaf.key, 0, 0)[1]
    local key = least and leaf.directory .. ':' .. least
    if least and redis.call('RENAMENX', leaf.key, key) == 0 then return end -- taken by a key that the store has not written
    redis.call('ZREM', leaf.directory, leaf.bound)
    leaves[leaf.key] = nil
    if least then
      redis.call('ZADD', leaf.directory, '0', least)
      leaf.bound, leaf.key = least, key
      leaves[key] = leaf
    end
  end

  -- Entering comes first: it only makes leaves, so that every other one is among those that were read.
  local function move_in_index(moves)
    for _, move in ipairs(moves) do
      if move.is_kept then move.leaf = enter(move.leaf, move.id) end
    end
    for _, move in ipairs(moves) do
      if move.is_kept then add(move.leaf) end
    end
    for _, move in ipairs(moves) do
      if not move.is_kept then take_out(move.leaf, move.id) end
    end
  end

  return index_move, move_in_index, leaf_of
end
