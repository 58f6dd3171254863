"""Batch ingest: a dataframe into both stores, all or nothing.

    check      columns, without a loop over rows (`model.columns`)
    reserve    api times in each shard, so that the rows have their place among all other changes
    stage      files and online rows, written aside and promised by a journal (`offline.batch`)
    publish    one manifest version shows all files
    load       the newest row per record goes online, by the same version check as every write

From the promise on the batch will happen: `BatchIngest.recover` completes what died, and every step may be repeated.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeAlias, TypeVar

import numpy as np

from featurestore.errors import Fault, StoreUnavailable
from featurestore.model.change import Change, LoggedChange, Op, Stamp, shard_of, target_bits
from featurestore.model.codec import encode_values
from featurestore.model.columns import ColumnBatch, checked_columns
from featurestore.model.feature_group import FeatureGroup, GroupStatus, TargetStore
from featurestore.offline.batch import INACTIVE_S, BatchCancelled, BatchRows, Journal
from featurestore.offline.table import OfflineStore
from featurestore.online.protocol import OnlineStore
from featurestore.progress import Progress, silent
from featurestore.stopwatch import Stopwatch

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

LOAD_PROGRESS_ROWS: Final = 20_000
STAGE_ATTEMPTS_MAX: Final = 10

Int64s: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What one ingest did.

    Attributes:
        rows: rows written.
        files: offline files written.
        online_newest: records that became the newest of their identifier online.
        skipped: rows left out because of `faults` (only when asked to skip).
        took_s: seconds per step: check, encode, write, publish, load.
    """

    rows: int
    files: int
    online_newest: int
    skipped: int
    faults: tuple[Fault, ...]
    took_s: Mapping[str, float]


class Run(Protocol):
    """Runs a coroutine of the online store to its end, from synchronous code."""

    def __call__(self, coroutine: Coroutine[Any, Any, _T], /) -> _T: ...


class BatchIngest:
    """Dataframes into one online and one offline store."""

    def __init__(self, online: OnlineStore, offline: OfflineStore, shards: int, run: Run) -> None:
        self._online = online
        self._offline = offline
        self._shards = shards
        self._run = run

    def ingest(
        self, group: FeatureGroup, frame: object, stores: frozenset[TargetStore], *, skip_faulty: bool, progress: Progress
    ) -> IngestReport:
        """See `FeatureStore.ingest`."""
        stopwatch = Stopwatch()
        progress("rows checked", 0, 1)
        batch = checked_columns(group, frame, skip_faulty=skip_faulty)
        progress("rows checked", 1, 1)
        stopwatch.lap("check")
        files = newest = 0
        if batch.rows:
            row_shards = shards_of(batch, self._shards)
            first_us = self._run(self._online.reserve(rows_per_shard(row_shards)))
            rows = batch_rows(group, batch, row_shards, api_times(row_shards, first_us), stores)
            stopwatch.lap("encode")
            journal = self._stage(group, rows, offline=TargetStore.OFFLINE in stores)
            stopwatch.lap("write")
            files = len(journal.files)
            newest = self._complete(journal, group, rows.online, progress, stopwatch)
        return IngestReport(batch.rows, files, newest, batch.faulty_rows, batch.faults, stopwatch.took_s)

    def recover(self, group_by_id: Callable[[int], FeatureGroup]) -> None:
        """Complete every promised batch, also of processes that still run: all steps may be done twice."""
        for journal in self._offline.batches.unfinished():
            _log.warning("completing batch %s of feature group #%d", journal.batch_id, journal.group_id)
            group = group_by_id(journal.group_id)
            rows = self._offline.batches.online_rows(journal) if group.status is GroupStatus.CREATED else []
            self._complete(journal, group, rows, silent, Stopwatch())
        self._offline.batches.cancel(inactive_s=INACTIVE_S)

    def _stage(self, group: FeatureGroup, rows: BatchRows, *, offline: bool) -> Journal:
        for _ in range(STAGE_ATTEMPTS_MAX):
            try:
                return self._offline.batches.stage(group, rows, offline=offline)
            except BatchCancelled:
                _log.warning("an ingest into feature group %s was cancelled before it was promised; beginning again", group.name)
        raise StoreUnavailable("ingest", f"the batch was cancelled {STAGE_ATTEMPTS_MAX} times", hint="nothing was written")

    def _complete(
        self, journal: Journal, group: FeatureGroup, online: Sequence[LoggedChange], progress: Progress, stopwatch: Stopwatch
    ) -> int:
        if journal.files:
            self._offline.batches.publish(journal, self._offline.manifest(group))
        stopwatch.lap("publish")
        newest = 0
        for start in range(0, len(online), LOAD_PROGRESS_ROWS):
            newest += self._run(self._online.load(online[start : start + LOAD_PROGRESS_ROWS]))
            progress("records loaded", min(start + LOAD_PROGRESS_ROWS, len(online)), len(online))
        self._offline.batches.close(journal)
        stopwatch.lap("load")
        return newest


def shards_of(batch: ColumnBatch, shards: int) -> Int64s:
    """The shard of each row."""
    by_key = {key: shard_of(key, shards) for key in set(batch.record_ids)}
    return np.fromiter((by_key[key] for key in batch.record_ids), np.int64, batch.rows)


def rows_per_shard(row_shards: Int64s) -> dict[int, int]:
    shards, counts = np.unique(row_shards, return_counts=True)
    return dict(zip(shards.tolist(), counts.tolist(), strict=True))


def api_times(row_shards: Int64s, first_us: Mapping[int, int]) -> Int64s:
    """The api time of each row: within a shard consecutive from `first_us[shard]`, in row order.

    So of rows with one record identifier and one event time the last wins, as if they had been put one after the other.
    """
    times_us = np.empty(len(row_shards), np.int64)
    for shard, first in first_us.items():
        rows = np.flatnonzero(row_shards == shard)
        times_us[rows] = first + np.arange(len(rows), dtype=np.int64)
    return times_us


def batch_rows(
    group: FeatureGroup, batch: ColumnBatch, row_shards: Int64s, api_times_us: Int64s, targets: frozenset[TargetStore]
) -> BatchRows:
    """The rows of both stores. A row's expiry is its event time plus the group's default TTL."""
    ttl = group.online.ttl if group.online is not None else None
    expires = None if ttl is None else batch.event_times_us + ttl.ttl_us
    online: list[LoggedChange] = []
    if TargetStore.ONLINE in targets:
        bits = target_bits(targets)
        event_times_us, stamps_us = batch.event_times_us.tolist(), api_times_us.tolist()
        for row in newest_rows(batch, event_times_us):
            change = Change(
                group.group_id,
                group.schema_version,
                batch.record_ids[row],
                event_times_us[row],
                Op.PUT,
                bits,
                None if expires is None else int(expires[row]),
                encode_values(group.schema_version, [column[row] for column in batch.texts]),
            )
            online.append(LoggedChange(change, Stamp(int(row_shards[row]), 0, stamps_us[row])))
    return BatchRows(batch.typed, batch.event_times_us, api_times_us, expires, row_shards, online)


def newest_rows(batch: ColumnBatch, event_times_us: list[int]) -> list[int]:
    """Per record the position of its newest row: greatest event time, then last in the frame."""
    newest: dict[str, int] = {}
    for row, key in enumerate(batch.record_ids):
        held = newest.setdefault(key, row)
        if event_times_us[row] >= event_times_us[held]:
            newest[key] = row
    return list(newest.values())
