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
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import Fault, StoreUnavailable
from featurestore.model import stamped_rows
from featurestore.model.change import Op, shards_of, target_bits
from featurestore.model.codec import encode_columns
from featurestore.model.columns import ColumnBatch, checked_columns
from featurestore.model.feature_group import FeatureGroup, FeatureType, GroupStatus, TargetStore
from featurestore.model.plain_column import Int64s
from featurestore.model.stamped_rows import StampedRows
from featurestore.offline import schema
from featurestore.offline.batch import INACTIVE_S, BatchCancelled, BatchRows, Journal
from featurestore.offline.table import OfflineStore
from featurestore.online.protocol import OnlineStore
from featurestore.progress import Progress, silent
from featurestore.stopwatch import Stopwatch

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

LOAD_PROGRESS_ROWS: Final = 50_000
ENCODED_ROWS: Final = 16_384
"""Rows whose values are encoded at a time."""
STAGE_ATTEMPTS_MAX: Final = 10


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
            records = records_of(batch, self._shards)
            row_shards = records.shards[records.of_rows]
            first_us = self._run(self._online.reserve(rows_per_shard(row_shards)))
            rows = batch_rows(group, batch, records, api_times(row_shards, first_us), stores)
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
            rows = self._offline.batches.online_rows(journal) if group.status is GroupStatus.CREATED else None
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
        self, journal: Journal, group: FeatureGroup, online: StampedRows | None, progress: Progress, stopwatch: Stopwatch
    ) -> int:
        if journal.files:
            self._offline.batches.publish(journal, self._offline.manifest(group))
        stopwatch.lap("publish")
        newest = 0
        if online is not None:
            for start in range(0, len(online), LOAD_PROGRESS_ROWS):
                newest += self._run(self._online.load(online.slice(start, LOAD_PROGRESS_ROWS)))
                progress("records loaded", min(start + LOAD_PROGRESS_ROWS, len(online)), len(online))
        self._offline.batches.close(journal)
        stopwatch.lap("load")
        return newest


@dataclass(frozen=True, slots=True)
class Records:
    """The records of a batch, each once.

    Attributes:
        keys: large_string; their keys.
        of_rows: per row of the batch, the position of its record here.
        ranks: the records' places in the order of their keys.
        shards: of the records.
    """

    keys: pa.Array
    of_rows: Int64s
    ranks: Int64s
    shards: Int64s


def records_of(batch: ColumnBatch, shards: int) -> Records:
    found = batch.record_ids
    with ThreadPoolExecutor(1) as pool:
        sorting = pool.submit(pc.sort_indices, found.dictionary)
        key_shards = shards_of(found.dictionary, shards)  # holds the interpreter meanwhile
        order = sorting.result().to_numpy()
    ranks = np.empty(len(order), np.int64)
    ranks[order] = np.arange(len(order))
    return Records(found.dictionary, found.indices.to_numpy().astype(np.int64), ranks, key_shards)


def rows_per_shard(row_shards: Int64s) -> dict[int, int]:
    counts = np.bincount(row_shards)
    return {shard: int(counts[shard]) for shard in np.flatnonzero(counts).tolist()}


def api_times(row_shards: Int64s, first_us: Mapping[int, int]) -> Int64s:
    """The api time of each row: within a shard consecutive from `first_us[shard]`, in row order.

    So of rows with one record identifier and one event time the last wins, as if they had been put one after the other.
    """
    counts = np.bincount(row_shards)
    by_shard = np.argsort(row_shards.astype(np.min_scalar_type(len(counts))), kind="stable")
    firsts = np.array([first_us.get(shard, 0) for shard in range(len(counts))], np.int64)
    times_us = np.empty(len(row_shards), np.int64)
    times_us[by_shard] = np.arange(len(row_shards)) + np.repeat(firsts - (np.cumsum(counts) - counts), counts)
    return times_us


def batch_rows(
    group: FeatureGroup, batch: ColumnBatch, records: Records, api_times_us: Int64s, targets: frozenset[TargetStore]
) -> BatchRows:
    """The rows of both stores. A row's expiry is its event time plus the group's default TTL."""
    ttl = group.online.ttl if group.online is not None else None
    expires_at_us = None if ttl is None else batch.event_times_us + ttl.ttl_us
    if group.record_identifier_type is FeatureType.STRING:
        ranks = records.ranks[records.of_rows]
    else:  # the order of numbers is not that of their keys
        ranks = schema.ranks_of(batch.typed[group.record_identifier])
    online = None
    if TargetStore.ONLINE in targets:
        rows = newest_rows(records, batch.event_times_us)
        members = records.of_rows[rows]
        count = len(rows)
        columns = [
            records.keys.take(pa.array(members)),
            pa.array(records.shards[members].astype(np.int32)),
            pa.array(batch.event_times_us[rows]),
            pa.array(api_times_us[rows]),
            pa.nulls(count, pa.int64()) if expires_at_us is None else pa.array(expires_at_us[rows]),
            pa.array(np.full(count, Op.PUT, np.uint8)),
            pa.array(np.full(count, target_bits(targets), np.uint8)),
            encoded_rows(group.schema_version, batch, rows),
        ]
        online = StampedRows(group.group_id, pa.table(columns, schema=stamped_rows.SCHEMA))
    row_shards = records.shards[records.of_rows]
    return BatchRows(batch.typed, batch.event_times_us, api_times_us, expires_at_us, row_shards, ranks, online)


def encoded_rows(schema_version: int, batch: ColumnBatch, rows: Int64s) -> pa.ChunkedArray:
    """The values of some rows as the online store keeps them, in pieces: their texts are in memory for one piece at a time."""
    pieces = [rows[start : start + ENCODED_ROWS] for start in range(0, len(rows), ENCODED_ROWS)]
    return pa.chunked_array([encode_columns(schema_version, batch.texts(piece)) for piece in pieces], pa.large_binary())


def newest_rows(records: Records, event_times_us: Int64s) -> Int64s:
    """Per record the position of its newest row (greatest event time, then last in the frame), in the order of the keys.

    In that order stores take them fastest.
    """
    greatest_us = np.full(len(records.keys), np.iinfo(np.int64).min)
    np.maximum.at(greatest_us, records.of_rows, event_times_us)
    candidates = np.flatnonzero(event_times_us == greatest_us[records.of_rows])
    newest = np.zeros(len(records.keys), np.int64)
    np.maximum.at(newest, records.of_rows[candidates], candidates)
    in_order: Int64s = newest[np.argsort(records.ranks)]
    return in_order
