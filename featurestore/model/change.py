"""Changes: one write to one record, and the rule that decides which write wins.

`(event_time_us, is a put, api_time_us)` is the total order of the changes of one record, online and offline, and breaks every
tie: at equal event times a put stands above a soft delete, whichever came first, and of two puts the later arrival wins.
Source of the rules: the API's PutRecord and DeleteRecord pages; where they are silent, docs/guarantees.md.
"""

from __future__ import annotations

import hashlib
from enum import IntEnum, StrEnum
from typing import Final
from zlib import crc32

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.model.feature_group import TargetStore


class Op(IntEnum):
    """What a change does to the online record. Values are part of the stored format."""

    PUT = 1
    SOFT_DELETE = 2
    """The values go, the event time stays: an older put remains invisible."""
    HARD_DELETE = 3
    """The record goes with its event time: an older put becomes visible again."""


ONLINE: Final = 1
OFFLINE: Final = 2
_TARGET_BIT: Final = {TargetStore.ONLINE: ONLINE, TargetStore.OFFLINE: OFFLINE}


def target_bits(targets: frozenset[TargetStore]) -> int:
    return sum(_TARGET_BIT[target] for target in targets)


class Change(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One write, before the store has stamped it. Its msgpack form (an array in this order) is the body of a log entry.

    Attributes:
        group_id: registry key of the feature group.
        schema_version: of the group when the values were encoded, 1-based.
        record_id: key of the record identifier (`value.record_key`), at most 2 KiB.
        event_time_us: microseconds since 1970.
        targets: ONLINE, OFFLINE or both.
        expires_at_us: event time + TTL, or None for a record without expiry.
        values: encoded values (`codec.encode_values`); for deletes those of the identifier and event time alone.
        write_id: 16 bytes that repeat when a client repeats this call, or None when nobody can.
    """

    group_id: int
    schema_version: int
    record_id: str
    event_time_us: int
    op: Op
    targets: int
    expires_at_us: int | None
    values: bytes
    write_id: bytes | None = None


class Stamp(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The place of a change in its shard.

    Attributes:
        seq: dense per shard, from 1; 0 for changes that do not pass through the log (batch ingest).
        api_time_us: strictly increasing per shard; when the service took the change.
    """

    shard: int
    seq: int
    api_time_us: int


class LoggedChange(msgspec.Struct, frozen=True, gc=False):
    change: Change
    stamp: Stamp


class PoisonChange(msgspec.Struct, frozen=True, gc=False):
    """A log entry that is no change: its bytes do not decode.

    Attributes:
        stamp: its place in the shard, as far as the log knows that without its bytes.
        reason: why it does not decode.
    """

    body: bytes
    reason: str
    stamp: Stamp | None


class LogEntry(msgspec.Struct, frozen=True, gc=False):
    """What stands at one offset of a shard of the change log."""

    offset: int
    item: LoggedChange | PoisonChange


class Outcome(StrEnum):
    """What the online store did with a change."""

    NEWEST = "newest"
    """It is now the record's state (or was logged for a group without an online store)."""
    HISTORIC = "historic"
    """A newer record stands; the change is logged for the offline store only."""
    REFUSED = "refused"
    """A hard delete that is not later than the record: nothing was written or logged."""
    SUPERSEDED = "superseded"
    """The record is not what the change was made from any more: nothing was written or logged."""


class Applied(msgspec.Struct, frozen=True, gc=False):
    """The answer to one change. `stamp` is None when nothing was written."""

    outcome: Outcome
    stamp: Stamp | None


def wins(change: Change, stored_event_time_us: int | None) -> Outcome:
    """Decide a fresh change against the event time of the stored record or tombstone (None: nothing is stored).

    A put overwrites a record of equal event time; a delete must be strictly later, else a soft one changes nothing online and a
    hard one is refused (the API's DeleteRecord page).
    """
    if not change.targets & ONLINE:
        return Outcome.HISTORIC
    if stored_event_time_us is None:
        return Outcome.NEWEST
    if change.op is Op.PUT:
        return Outcome.NEWEST if change.event_time_us >= stored_event_time_us else Outcome.HISTORIC
    if change.event_time_us > stored_event_time_us:
        return Outcome.NEWEST
    return Outcome.REFUSED if change.op is Op.HARD_DELETE else Outcome.HISTORIC


def write_id(group_id: int, record_id: str, token: str) -> bytes:
    """The write id of a client's repeatable call: the token that its repeats share, scoped to one record."""
    return hashlib.blake2b(f"{group_id}\0{record_id}\0{token}".encode(), digest_size=16).digest()


def subject_of(group_id: int, record_id: str, salt: bytes) -> bytes:
    """The keyed hash that stands for an erased record, so that its identifier need not be kept."""
    return hashlib.blake2b(f"{group_id}\0{record_id}".encode(), key=salt, digest_size=16).digest()


def signing_secret(salt: bytes) -> bytes:
    """What a store signs with, from its salt: who knows one does not know the other."""
    return hashlib.blake2b(b"signing", key=salt, digest_size=32).digest()


def shard_of(record_id: str, shards: int) -> int:
    """The shard of a record key: its CRC-32 modulo the number of shards, the same in every process and release.

    The group takes no part, so all records of one entity share a shard and one round trip reads them.
    """
    return shard_of_bytes(record_id.encode(), shards)


def shard_of_bytes(record_id: bytes, shards: int) -> int:
    """`shard_of` of a record key as UTF-8."""
    return crc32(record_id) % shards


def shards_of(record_ids: pa.Array, shards: int) -> npt.NDArray[np.int64]:
    """`shard_of` of record keys, a string column without nulls."""
    keys = record_ids.cast(pa.large_binary()).to_pylist()
    return np.fromiter(map(crc32, keys), np.int64, len(keys)) % shards
