-- What the scripts share. Numbers in Lua are doubles: API times and seqs are exact in them (below 2^53, until the year 2255), event
-- times need not be and are compared as two halves. Strings are not compared by order, which would depend on the locale.
-- A script does not roll back: each one reads all it needs, which finds every key of a wrong type, before it writes. The first
-- write is one that is refused when memory is short; a later one would not be.
local TOMBSTONE, LIVE, GRAVE = 0, 1, 2
local ONLINE_ONLY, HAS_EXPIRY, HAS_GRAVE = 4, 8, 16
local VERSION = 1
local HEAD_MAX = 34

local function text(number) return string.format('%.0f', number) end

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

-- What is kept of a record, without its values; nil and a reason if the key holds what the store has not written.
local function look(key)
  local raw = redis.pcall('GETRANGE', key, 0, HEAD_MAX - 1)
  if type(raw) == 'table' then return nil, raw.err end
  local record = {exists = raw ~= ''}
  if not record.exists then return record end
  if #raw < 18 or string.byte(raw, 1) ~= VERSION then return nil, 'a value of another format' end
  local flags = string.byte(raw, 2)
  record.state = flags % 4
  record.high, record.low, record.api_us = struct.unpack('>I4I4I8', string.sub(raw, 3, 18))
  local at = 19
  if math.floor(flags / HAS_EXPIRY) % 2 == 1 then at = at + 8 end
  if math.floor(flags / HAS_GRAVE) % 2 == 1 then record.grave = string.sub(raw, at, at + 7) end
  return record
end

-- The bytes of a record. `event` and `expiry` are 8 bytes, `expiry` and `grave` may be nil.
local function record_bytes(state, online_only, event, api_us, expiry, grave, values)
  local flags = state
  if online_only then flags = flags + ONLINE_ONLY end
  if expiry then flags = flags + HAS_EXPIRY end
  if grave then flags = flags + HAS_GRAVE end
  return string.char(VERSION, flags) .. event .. struct.pack('>I8', api_us) .. (expiry or '') .. (grave or '') .. values
end

-- The snapshots that are being read, as {[group] = {undo key, ...}}; nil without any. `lease_us` is the field of the shard's meta.
local function open_snapshots(lease_us, snapshots, base)
  if not lease_us then return nil end
  local now = server_us()
  if now >= tonumber(lease_us) then return nil end
  local open
  local rows = redis.call('HGETALL', snapshots)
  for i = 1, #rows, 2 do
    local group, until_us = string.match(rows[i + 1], '^(%d+) (%d+)$')
    if now < tonumber(until_us) then
      open = open or {}
      open[group] = open[group] or {}
      table.insert(open[group], base .. 'u:' .. rows[i])
    end
  end
  return open
end

-- The index of a group: the ids of its records that are live or tombstones, in the order of their bytes. Leaves hold them, at most
-- LEAF_MAX each, which is what Redis keeps packed; a leaf is named by its bound, the least id in it, but the first one by ''. The
-- directory holds the bounds, without ''.
local LEAF_MAX = 128
local leaves = {}

local function leaf_under(directory, bound)
  local key = directory .. ':' .. bound
  local leaf = leaves[key]
  if not leaf then
    leaf = {directory = directory, bound = bound, key = key, size = redis.call('ZCARD', key)}
    leaves[key] = leaf
  end
  return leaf
end

local function leaf_of(directory, id)
  return leaf_under(directory, redis.call('ZREVRANGEBYLEX', directory, '[' .. id, '-', 'LIMIT', 0, 1)[1] or '')
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
  elseif position == #ids and #redis.call('ZRANGEBYLEX', directory, '(' .. leaf.bound, '+', 'LIMIT', 0, 1) == 0 then
    first = #ids
  end
  -- A key that the store has not written is passed over.
  while first <= #ids and redis.call('EXISTS', directory .. ':' .. ids[first]) == 1 do first = first + 1 end
  leaf.is_split = true
  if first <= #ids then
    local upper = leaf_under(directory, ids[first])
    local moved = {}
    for i = first, #ids do
      table.insert(moved, 0)
      table.insert(moved, ids[i])
    end
    redis.call('ZADD', directory, 0, upper.bound)
    redis.call('ZADD', upper.key, unpack(moved))
    upper.size = #ids - first + 1
    leaf.size = first - 1
    redis.call('ZREMRANGEBYRANK', leaf.key, position < first and first - 2 or first - 1, -1)
  end
  if position < first then redis.call('ZADD', leaf.key, 0, id) end
end

local function enter(leaf, id)
  if leaf.is_split then leaf = leaf_of(leaf.directory, id) end
  if leaf.size < LEAF_MAX then
    leaf.size = leaf.size + redis.call('ZADD', leaf.key, 0, id)
  elseif not redis.call('ZSCORE', leaf.key, id) then
    split(leaf, id)
  end
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
    redis.call('ZADD', leaf.directory, 0, least)
    leaf.bound, leaf.key = least, key
    leaves[key] = leaf
  end
end

-- Entering comes first: it only makes leaves, so that every other one is among those that were read.
local function move_in_index(moves)
  for _, move in ipairs(moves) do
    if move.is_kept then enter(move.leaf, move.id) end
  end
  for _, move in ipairs(moves) do
    if not move.is_kept then take_out(move.leaf, move.id) end
  end
end

-- Keep what a record is, for the snapshots that have yet to read it. An empty text stands for no record.
local function keep(open, group, key)
  local undos = open and open[group]
  if not undos then return end
  local old = redis.call('GET', key) or ''
  for _, undo in ipairs(undos) do redis.call('HSETNX', undo, key, old) end
end
