"""The ledger of erased records: what no file may hold any more, whoever would write it.

Each erasure is one numbered object, put if absent, so all processes agree on their order. It holds a keyed hash of the record
identifier, not the identifier itself. Entries stay for ever: a log that is replayed, a batch that is completed late or a file
that is put back must not return what was erased.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from featurestore.decoding import decode_json
from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.model.change import subject_of
from featurestore.offline import layout
from featurestore.offline.protocol import ObjectStore

FORMAT_VERSION: Final = 1
SALT_BYTES: Final = 32


class Erasure(msgspec.Struct, frozen=True):
    """One erased record.

    Attributes:
        number: place in the ledger, from 1.
        subject: keyed hash of group and record identifier, see `Ledger.subject`.
        until_us: API time up to which the record's changes are erased; what arrives later is kept.
        requested_at_us: microseconds since 1970.
    """

    number: int
    group_id: int
    subject: str
    until_us: int
    requested_at_us: int
    format: int = FORMAT_VERSION


class Ledger:
    """The ledger of one store. Safe to use from several threads and processes."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects
        self._lock = threading.Lock()
        self._entries: list[Erasure] = []
        self._salt: bytes | None = None

    def entries(self) -> Sequence[Erasure]:
        """All entries there are by now, in order.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        with self._lock:
            while True:
                key = layout.erasure_key(len(self._entries) + 1)
                data = self._objects.get(key)
                if data is None:
                    return tuple(self._entries)
                self._entries.append(_decode(data, key))

    def append(self, group_id: int, subject: str, until_us: int) -> Erasure:
        """Enter an erasure; from now on every entry of the ledger holds for who looks."""
        while True:
            entry = Erasure(len(self.entries()) + 1, group_id, subject, until_us, time.time_ns() // 1000)
            if self._objects.put_if_absent(layout.erasure_key(entry.number), msgspec.json.encode(entry)):
                return entry

    def subject(self, group_id: int, record_id: str) -> str:
        """The keyed hash that stands for a record. The key is the store's own, so hashes tell nothing between stores."""
        return subject_of(group_id, record_id, self._key()).hex()

    def erased(self, group_id: int, *, count: int | None = None) -> ErasedRecords:
        """What is erased from a group, by the first `count` entries (default: all)."""
        until_us: dict[str, int] = {}
        for entry in self.entries()[:count]:
            if entry.group_id == group_id:
                until_us[entry.subject] = max(until_us.get(entry.subject, 0), entry.until_us)
        return ErasedRecords(self, group_id, until_us)

    def _key(self) -> bytes:
        if self._salt is None:
            self._objects.put_if_absent(layout.ERASURE_SALT_KEY, secrets.token_bytes(SALT_BYTES))
            self._salt = self._objects.get(layout.ERASURE_SALT_KEY)
            if self._salt is None:
                raise StoreUnavailable("read ledger of erasures", f"{layout.ERASURE_SALT_KEY} vanished")
        return self._salt


class ErasedRecords:
    """The erased records of one group. False when there are none."""

    def __init__(self, ledger: Ledger, group_id: int, until_us: Mapping[str, int]) -> None:
        self._ledger = ledger
        self._group_id = group_id
        self._until_us = until_us

    def __bool__(self) -> bool:
        return bool(self._until_us)

    def until_us(self, record_id: str) -> int | None:
        """The API time up to which a record's changes are erased; None if none are."""
        if not self._until_us:
            return None
        return self._until_us.get(self._ledger.subject(self._group_id, record_id))


def _decode(data: bytes, what: str) -> Erasure:
    try:
        entry = decode_json(data, Erasure)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(what, str(error)) from error
    if entry.format != FORMAT_VERSION:
        raise StoreCorrupt(what, f"format {entry.format}, this release reads {FORMAT_VERSION}")
    return entry
