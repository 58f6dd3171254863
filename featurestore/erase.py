"""Erase: one record's values leave everything the store holds, and nothing that is repeated later brings them back.

    pending   one object that promises the erasure, so that it is completed even if this process dies
    online    the record's state goes, and with it the moment is set up to which changes are erased
    ledger    from here on the writer, batches and adoptions leave the record's earlier changes out
    batches   promised ones are completed, others made to begin again
    drain     what waits in the log reaches the table, or is left out
    files     every file that holds the record is written anew without it
    purge     freed pages of the online store, published tables and leftovers of dead processes go
    receipt   what was done; the promise is forgotten

Every step may be repeated. Changes that arrive after the erasure are kept: the record begins anew.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from featurestore.batch_ingest import Run
from featurestore.decoding import decode_json
from featurestore.errors import StoreCorrupt
from featurestore.model.change import shard_of
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout
from featurestore.offline.erasing import FileEraser, Rewriting, Rewritten, Subjects
from featurestore.offline.table import OfflineStore
from featurestore.online.protocol import OnlineStore
from featurestore.progress import Progress, silent

_log: Final = logging.getLogger(__name__)

FORMAT_VERSION: Final = 1


class PendingErasure(msgspec.Struct, frozen=True):
    """A promised erasure. The only place that holds the identifiers, and it goes last.

    Attributes:
        erasure_id: of `OnlineStore.erase`.
        record_ids: record keys.
    """

    erasure_id: bytes
    group_id: int
    record_ids: tuple[str, ...]
    requested_at_us: int
    format: int = FORMAT_VERSION


class ErasureReceipt(msgspec.Struct, frozen=True):
    """What an erasure did. It does not hold the identifiers.

    Attributes:
        number: of the erasure's first entry in the ledger.
        subjects: the keyed hashes that stand for the records in the ledger.
        requested_at_us, completed_at_us: microseconds since 1970.
        online: records whose state was removed from the online store.
        files: files that were rewritten, below the offline root.
        cancelled_batches: ingests under way that had to begin again.
        unreadable: files of other tools below the offline root that can't be read, and so could not be searched.
    """

    number: int
    group: str
    subjects: tuple[str, ...]
    requested_at_us: int
    completed_at_us: int
    online: int
    files: tuple[Rewritten, ...]
    cancelled_batches: int
    unreadable: tuple[str, ...]
    format: int = FORMAT_VERSION

    @property
    def rows(self) -> int:
        """Rows erased from files, copies counted."""
        return sum(file.rows for file in self.files)


@dataclass(frozen=True, slots=True)
class Parts:
    """What an erasure needs of the store around it.

    Attributes:
        complete_batches: complete every promised batch.
        drain: write what waits in the log to the table.
        forget_copies: drop what is published of a group elsewhere, and leftovers of dead processes.
    """

    complete_batches: Callable[[], None]
    drain: Callable[[], object]
    forget_copies: Callable[[FeatureGroup], None]


class Eraser:
    """Erases records from one online and one offline store."""

    def __init__(self, online: OnlineStore, offline: OfflineStore, shards: int, run: Run, parts: Parts) -> None:
        self._online = online
        self._offline = offline
        self._shards = shards
        self._run = run
        self._parts = parts
        self._files = FileEraser(offline, shards)

    def erase(self, group: FeatureGroup, record_ids: Sequence[str], *, progress: Progress = silent) -> ErasureReceipt:
        """Erase what arrived of these records (keys, see `value.record_key`) until now.

        Raises:
            StoreUnavailable, StoreCorrupt: the erasure is promised and not complete; the next start completes it.
        """
        erasure_id = uuid.uuid4()
        pending = PendingErasure(erasure_id.bytes, group.group_id, tuple(dict.fromkeys(record_ids)), _now_us())
        key = layout.pending_erasure_key(erasure_id.hex)
        self._offline.objects.put_if_absent(key, msgspec.json.encode(pending))
        return self._complete(key, pending, group, progress)

    def recover(self, group_by_id: Callable[[int], FeatureGroup]) -> None:
        """Complete every promised erasure, also of processes that still run: all steps may be done twice."""
        for key in self._offline.objects.list("_erase/"):
            data = self._offline.objects.get(key) if "/pending-" in key else None
            if data is None:
                continue
            try:
                pending = decode_json(data, PendingErasure)
            except msgspec.MsgspecError as error:
                raise StoreCorrupt(key, "not a promised erasure") from error
            if pending.format != FORMAT_VERSION:
                raise StoreCorrupt(key, f"format {pending.format}, this release reads {FORMAT_VERSION}")
            _log.warning("completing an erasure in feature group #%d", pending.group_id)
            self._complete(key, pending, group_by_id(pending.group_id), silent)

    def _complete(self, key: str, pending: PendingErasure, group: FeatureGroup, progress: Progress) -> ErasureReceipt:
        erased = self._run(self._online.erase(pending.erasure_id, group.group_id, pending.record_ids))
        until_us = {record_id: erased.until_us[shard_of(record_id, self._shards)] for record_id in pending.record_ids}
        numbers = self._enter(group, until_us)
        cancelled = self._offline.batches.cancel(inactive_s=0)
        self._parts.complete_batches()
        self._parts.drain()
        rewriting = Rewriting([], [])
        if group.offline is not None:
            rewriting = self._files.erase(group, Subjects(numbers[0], until_us), progress=progress)
            self._parts.forget_copies(group)
        self._run(self._online.purge())
        receipt = ErasureReceipt(
            numbers[0],
            group.name,
            tuple(self._offline.ledger.subject(group.group_id, record_id) for record_id in pending.record_ids),
            pending.requested_at_us,
            _now_us(),
            erased.removed,
            tuple(rewriting.files),
            cancelled,
            tuple(rewriting.unreadable),
        )
        self._offline.objects.put_if_absent(layout.receipt_key(receipt.number), msgspec.json.encode(receipt))
        self._offline.objects.delete(key)
        return receipt

    def _enter(self, group: FeatureGroup, until_us: Mapping[str, int]) -> list[int]:
        """Enter the records into the ledger, unless an attempt before has; returns their numbers."""
        ledger = self._offline.ledger
        known = {(entry.group_id, entry.subject, entry.until_us): entry.number for entry in reversed(ledger.entries())}
        numbers = []
        for record_id, until in until_us.items():
            subject = ledger.subject(group.group_id, record_id)
            number = known.get((group.group_id, subject, until))
            numbers.append(ledger.append(group.group_id, subject, until).number if number is None else number)
        return numbers


def _now_us() -> int:
    return time.time_ns() // 1000
