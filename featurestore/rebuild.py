"""Rebuild: the online store anew from the offline table and the change log.

    log       what the table has not got yet, change by change: the outbox, then the log
    graves    per record the last hard delete in the table
    newest    per record the newest row that came after it: a put or a soft delete

All of it goes through `OnlineStore.load`, which keeps whatever is newer: writers may go on, and repeating does no harm. What
the table does not hold can't come back: changes for the online store only, unless they are still in the log, and the exact
text of numbers (`1.50` returns as `1.5`). Rows of writes to the offline store only can't be told from others.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.batch_ingest import Run
from featurestore.changelog.protocol import ChangeSource
from featurestore.engine import Engine, failed, identifier
from featurestore.errors import FileVanished
from featurestore.model import stamped_rows
from featurestore.model.change import OFFLINE, ONLINE, LogEntry, Op, PoisonChange, shards_of
from featurestore.model.codec import encode_columns
from featurestore.model.columns import checked_columns
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.plain_column import TEXT
from featurestore.model.stamped_rows import StampedRows
from featurestore.model.value import key_of
from featurestore.offline import schema
from featurestore.offline.manifest import FileEntry, Version
from featurestore.offline.subjects import typed_key
from featurestore.offline.table import OfflineStore
from featurestore.online.protocol import OnlineStore
from featurestore.progress import Progress, silent
from featurestore.query.history import newest_sql
from featurestore.query.replan import replanned
from featurestore.query.sight import Sight, files_in_sight, sight_of

SAMPLE_RECORDS: Final = 500
"""Records that one check looks at."""
LEAST_US: Final = -(1 << 62)
RECORDS_HELD: Final = 65_536
ENTRIES_HELD: Final = 10_000


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """What a rebuild did.

    Attributes:
        version: of the offline table that was read.
        records: identifiers whose newest row was loaded, soft deleted ones included.
        hard_deletes: identifiers that were ever hard deleted.
        changed: of these and of what was on its way to the table, how many changed the online store.
        former_changes: how many changes are known of which another online store has logged, before this one took its place.
    """

    version: int
    records: int
    hard_deletes: int
    changed: int
    former_changes: int = 0


@dataclass(frozen=True, slots=True)
class Converged:
    """What a check of some records found: how many were looked at, and how many loads changed the online store."""

    checked: int
    repaired: int


class Rebuilder:
    """Rebuilds one online store from one offline store and the log between them."""

    def __init__(
        self, online: OnlineStore, offline: OfflineStore, changes: ChangeSource, engine: Engine, shards: int, run: Run
    ) -> None:
        self._online = online
        self._offline = offline
        self._changes = changes
        self._engine = engine
        self._shards = shards
        self._run = run

    def rebuild(self, group: FeatureGroup, *, progress: Progress = silent) -> Rebuilt:
        """Load all that is known of a group with both stores.

        Raises:
            StoreUnavailable, StoreCorrupt, QueryFailed: what was loaded stays; call again.
        """
        return replanned(lambda: self._rebuild(group, progress))

    def _rebuild(self, group: FeatureGroup, progress: Progress) -> Rebuilt:
        manifest = self._offline.manifest(group)
        # Changes go from the outbox to the log to the table: looked for in this order, none is missed on its way.
        changed = self._replay(group, manifest.current())
        version = manifest.current()
        # Rows of other tools are history only: they do not go online when they are adopted either.
        entries = [entry for entry in files_in_sight(version, None) if not entry.foreign_rows]
        sight = sight_of(group, version, entries, self._offline.paths(group, entries), None)
        hard_deletes = records = 0
        if sight.hard_deletes:
            for page in self._pages(sight, _graves_sql(sight)):
                hard_deletes += page.num_rows
                changed += self._run(self._online.load(self._graves(group, page)))
        total = sum(entry.rows for entry in entries)
        progress("records loaded", 0, total)
        for page in self._pages(sight, newest_sql(sight)):
            newest = self._newest(group, page)
            records += len(newest)
            changed += self._run(self._online.load(newest))
            progress("records loaded", records, total)
        progress("records loaded", total, total)
        return Rebuilt(version.version, records, hard_deletes, changed)

    def converge(self, group: FeatureGroup, *, records_max: int = SAMPLE_RECORDS) -> Converged:
        """Look whether some records, drawn at random, are online as they should be; load those that are missing or stale.

        Shards in which there are writes to the offline store only are left alone, since these can't be told from others. What the
        online store has and the offline one lacks is not looked for: that takes an audit.

        Raises:
            StoreUnavailable, StoreCorrupt, QueryFailed: call again.
        """
        return replanned(lambda: self._converge(group, records_max))

    def _converge(self, group: FeatureGroup, records_max: int) -> Converged:
        version = self._offline.manifest(group).current()
        entries = [entry for entry in files_in_sight(version, None) if not entry.foreign_rows]
        with self._online.snapshot(group.group_id) as snapshot:
            mixed = {shard for shard, tally in snapshot.tallies().items() if tally.offline_only}
        if not entries or len(mixed) == self._shards:
            return Converged(0, 0)
        sight = sight_of(group, version, entries, self._offline.paths(group, entries), None)
        drawn = self._newest(group, self._draw(sight, entries, records_max))
        is_ours = ~np.isin(drawn.int64s("shard"), sorted(mixed))
        drawn = drawn.where(is_ours & (drawn.int64s("event_time_us") >= (version.retained_from_us or LEAST_US)))
        names = drawn.columns["record_id"].to_pylist()
        found = self._run(self._online.get([(group.group_id, name) for name in names])) if names else []
        now_us = time.time_ns() // 1000
        is_live = (drawn.int64s("op") == Op.PUT) & np.array(
            pc.fill_null(pc.greater(drawn.columns["expires_at_us"], now_us), True)
        )
        rows = zip(names, found, is_live.tolist(), drawn.int64s("event_time_us").tolist(), strict=True)
        suspects = [
            name
            for name, record, should_be_there, event_time_us in rows
            if (should_be_there if record is None else record.event_time_us < event_time_us)
        ]
        repaired = 0
        if suspects:  # most are deleted since
            key = identifier(group.record_identifier)
            members = f"{key} IN (SELECT key FROM suspects)"
            named = pa.table({"key": pa.array([typed_key(group, record_id) for record_id in suspects])})
            if sight.hard_deletes:
                for page in self._pages(sight, _graves_sql(sight, members), suspects=named):
                    repaired += self._run(self._online.load(self._graves(group, page)))
            for page in self._pages(sight, newest_sql(sight, members), suspects=named):
                repaired += self._run(self._online.load(self._newest(group, page)))
        return Converged(len(drawn), repaired)

    def _draw(self, sight: Sight, entries: Sequence[FileEntry], records_max: int) -> pa.Table:
        """The newest rows of some records in a part of one file, drawn at random by its rows."""
        (path,) = random.choices(sight.paths, [entry.rows for entry in entries])  # noqa: S311 (no secret)
        path_sight = replace(sight, paths=[path])
        with _reading(path) as file:
            number = random.randrange(file.num_row_groups)  # noqa: S311
            names = pc.unique(file.read_row_group(number, columns=[sight.group.record_identifier])[0]).to_pylist()
        chosen = random.sample(names, min(records_max, len(names)))
        named = pa.table({"key": pa.array(chosen)})
        members = f"{identifier(sight.group.record_identifier)} IN (SELECT key FROM suspects)"
        pages = list(self._pages(path_sight, newest_sql(path_sight, members), suspects=named))
        return pa.concat_tables(pages) if pages else schema.table_schema(sight.group.features).empty_table()

    def _pages(self, sight: Sight, statement: str, *, suspects: pa.Table | None = None) -> Iterator[pa.Table]:
        session = self._engine.session()
        try:
            if suspects is not None:
                session.register("suspects", suspects)
            for batch in session.sql(statement).to_arrow_reader(RECORDS_HELD):
                if batch.num_rows:
                    yield pa.Table.from_batches([batch])
        except duckdb.Error as error:
            if not all(map(os.path.exists, sight.paths)):
                raise FileVanished("rebuild") from error
            raise failed(error) from error
        finally:
            session.close()

    def _newest(self, group: FeatureGroup, page: pa.Table) -> StampedRows:
        """Rows of the table as changes, with the texts that PutRecord would have been sent."""
        batch = checked_columns(group, page.select(list(group.feature_names)))
        ops = pc.if_else(
            pc.fill_null(page[schema.IS_DELETED], False), pa.scalar(Op.SOFT_DELETE, pa.uint8()), pa.scalar(Op.PUT, pa.uint8())
        )
        values = encode_columns(group.schema_version, batch.texts())
        return self._stamped(group, page, batch.record_ids.cast(TEXT), pa.array(batch.event_times_us), ops, values)

    def _graves(self, group: FeatureGroup, page: pa.Table) -> StampedRows:
        keys = pa.array([key_of(record) for record in page[group.record_identifier].to_pylist()], pa.large_string())
        ops = pa.array(np.full(page.num_rows, Op.HARD_DELETE, np.uint8))
        values = pa.array([b""] * page.num_rows, pa.large_binary())
        return self._stamped(group, page, keys, pa.array(np.zeros(page.num_rows, np.int64)), ops, values)

    def _stamped(
        self, group: FeatureGroup, page: pa.Table, keys: pa.Array, event_times_us: pa.Array, ops: pa.Array, values: pa.Array
    ) -> StampedRows:
        count = page.num_rows
        columns = [
            keys,
            pa.array(shards_of(keys, self._shards).astype(np.int32)),
            event_times_us,
            _us(page, schema.API_TIME),
            _us(page, schema.EXPIRES_AT) if schema.EXPIRES_AT in page.column_names else pa.nulls(count, pa.int64()),
            ops,
            pa.array(np.full(count, ONLINE | OFFLINE, np.uint8)),
            values,
        ]
        return StampedRows(group.group_id, pa.table(columns, schema=stamped_rows.SCHEMA))

    def _replay(self, group: FeatureGroup, version: Version) -> int:
        """Load what is on its way to the table beyond one of its versions; returns how many changes made a difference."""
        changed = 0
        with self._online.snapshot(group.group_id) as snapshot:
            outbox = snapshot.waiting()
            while entries := list(islice(outbox, ENTRIES_HELD)):
                changed += self._load(group, entries)
        for shard, end in self._changes.ends().items():
            offset = version.offset_next(shard)
            while offset < end and (entries := list(self._changes.read(shard, offset, ENTRIES_HELD))):
                offset = entries[-1].offset + 1
                changed += self._load(group, entries)
        return changed

    def _load(self, group: FeatureGroup, entries: Sequence[LogEntry]) -> int:
        items = [entry.item for entry in entries if not isinstance(entry.item, PoisonChange)]
        ours = [item for item in items if item.change.group_id == group.group_id and item.change.targets & ONLINE]
        return self._run(self._online.load(StampedRows.of_changes(ours))) if ours else 0


def _graves_sql(sight: Sight, *conditions: str) -> str:
    key, rows = identifier(sight.group.record_identifier), sight.rows(schema.HARD_DELETED, *conditions)
    return f"SELECT {key}, max({schema.API_TIME}) AS {schema.API_TIME} FROM {rows} GROUP BY {key}"


@contextmanager
def _reading(path: str) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path) as file:
            yield file
    except FileNotFoundError as error:
        raise FileVanished("converge") from error


def _us(table: pa.Table, name: str) -> pa.ChunkedArray:
    return table[name].cast(schema.INSTANT).cast(pa.int64())
