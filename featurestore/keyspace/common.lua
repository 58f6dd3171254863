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

-- The index of a group: the ids of its records that are live or tombstones, in the order of their bytes.
local function index_of(base, group) return base .. 'i:' .. group end
local function id_of(base, group, key) return string.sub(key, #base + #group + 4) end

-- Enter a record into its group's index, or take it out. The index was read before, so it is known to be one.
local function enter(base, group, key, is_kept)
  if is_kept then
    redis.call('ZADD', index_of(base, group), 0, id_of(base, group, key))
  else
    redis.call('ZREM', index_of(base, group), id_of(base, group, key))
  end
end

-- Keep what a record is, for the snapshots that have yet to read it. An empty text stands for no record.
local function keep(open, group, key)
  local undos = open and open[group]
  if not undos then return end
  local old = redis.call('GET', key) or ''
  for _, undo in ipairs(undos) do redis.call('HSETNX', undo, key, old) end
end
