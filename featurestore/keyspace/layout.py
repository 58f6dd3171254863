"""Keys and bytes of a store on Redis; docs/formats.md describes them. The scripts beside this file know the same."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from importlib.resources import files
from typing import Final

from featurestore.errors import StoreCorrupt
from featurestore.keyspace.link import Script

FORMAT_VERSION: Final = 4
RECORD_VERSION: Final = 1
BIAS: Final = 1 << 63
"""Added to an event time, so that times before 1970 are in order as unsigned numbers, too."""

STATE_BITS: Final = 3
ONLINE_ONLY: Final = 4
HAS_EXPIRY: Final = 8
HAS_GRAVE: Final = 16

_HEAD: Final = struct.Struct(">BBQQ")
_INSTANT: Final = struct.Struct(">q")

PLAIN_LIVE: Final = bytes((RECORD_VERSION, 1))
"""How the value of a live record (state 1) begins that never expires, was never hard deleted and is offline, too."""
PLAIN_HEAD_BYTES: Final = _HEAD.size
"""What is before the values of such a record."""

EXPIRES: Final = 1
UPON: Final = 2

CHANGE_HEAD: Final = struct.Struct(">BBBQQIIIqQQ")
"""What `apply.lua` is told of a change: op, targets, whether it EXPIRES and is made UPON a record, biased event time, group id,
first and last place of the record values in the change's bytes, changes of the call it begins (0: it begins none), expiry, offset
in its source, API time of the record it is made upon. The write id follows, if any."""

APPLIED: Final = struct.Struct(">BQQ")
"""What the script answers of a change, and what a receipt holds: outcome, seq, API time."""


class ShardKeys:
    """The keys of one shard: all have the hash tag `{fs:<shard>}`, so a cluster keeps them on one node."""

    __slots__ = ("absent", "base", "copy", "erased", "erasures", "fixed", "meta", "outbox", "snapshots", "store", "tally")

    def __init__(self, prefix: str, shard: int) -> None:
        self.base = f"{prefix}{':' if prefix else ''}{{fs:{shard}}}:".encode()
        self.store = self.base + b"store"
        self.meta = self.base + b"m"
        self.outbox = self.base + b"o"
        self.tally = self.base + b"t"
        self.snapshots = self.base + b"s"
        self.erasures = self.base + b"y"
        self.erased = self.base + b"x"
        self.copy = self.base + b"c"
        self.absent = self.base + b"-"
        """Never there."""
        self.fixed = (self.meta, self.outbox, self.tally, self.snapshots, self.base + b"w0", self.base + b"w1")

    def record(self, group_id: int, record_id: str) -> bytes:
        return b"%br:%d:%b" % (self.base, group_id, record_id.encode())

    def index(self, group_id: int) -> bytes:
        """The directory of the index of a group's live records and tombstones. The keys of its leaves begin with this one."""
        return b"%bi:%d" % (self.base, group_id)

    def undo(self, snapshot_id: bytes) -> bytes:
        """What the records that changed since a snapshot were at it."""
        return self.base + b"u:" + snapshot_id


def record_pattern(prefix: str, group_id: int) -> bytes:
    """For SCAN: the records of a group, whichever shard."""
    return f"{prefix}{':' if prefix else ''}{{fs:*}}:r:{group_id}:*".encode()


@dataclass(frozen=True, slots=True)
class RecordBytes:
    """The value of a record's key, taken apart. `state` is a RecordState; `grave_us` is 0 without a hard delete."""

    state: int
    is_online_only: bool
    event_time_us: int
    api_time_us: int
    expires_at_us: int | None
    grave_us: int
    values: bytes


def decode_record(data: bytes) -> RecordBytes:
    """Raises: StoreCorrupt."""
    try:
        version, flags, event_time, api_time_us = _HEAD.unpack_from(data)
        at = _HEAD.size
        expires_at_us, grave_us = None, 0
        if flags & HAS_EXPIRY:
            (expires_at_us,) = _INSTANT.unpack_from(data, at)
            at += _INSTANT.size
        if flags & HAS_GRAVE:
            (grave_us,) = _INSTANT.unpack_from(data, at)
            at += _INSTANT.size
    except struct.error as error:
        raise StoreCorrupt("online record", str(error)) from error
    if version != RECORD_VERSION:
        raise StoreCorrupt("online record", f"version {version}, this release reads {RECORD_VERSION}")
    state = flags & STATE_BITS
    return RecordBytes(state, bool(flags & ONLINE_ONLY), event_time - BIAS, api_time_us, expires_at_us, grave_us, data[at:])


def load_script(name: str) -> Script:
    """A script of this folder, behind the functions that all of them share."""
    folder = files(__package__)
    return Script((folder / "common.lua").read_text() + (folder / f"{name}.lua").read_text())
