"""The embedded online store: SQLite with a write-ahead log, one writing thread, group commit.

Writes of all callers go through one queue. The writing thread takes whatever waits, runs it as one transaction and syncs
once, so that the cost of the sync is shared by concurrent writers (group commit). Reads run on the caller's own thread:
a point lookup takes microseconds, less than handing it to another thread would.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, closing, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa

from featurestore.changelog.sqlite import BUSY_TIMEOUT_S, OutboxTransaction, create_outbox, log_entry, open_database
from featurestore.errors import FeatureStoreError, OutboxFull, StoreCorrupt, StoreUnavailable
from featurestore.model.change import (
    OFFLINE,
    ONLINE,
    Applied,
    Change,
    LogEntry,
    Op,
    Outcome,
    PoisonChange,
    Stamp,
    shard_of,
    signing_secret,
    subject_of,
    wins,
)
from featurestore.model.codec import encode_change
from featurestore.model.stamped_rows import StampedRows
from featurestore.online.delivery import Waiting, deliver, resolve
from featurestore.online.protocol import (
    APPLY_CHANGES_MAX,
    PAGE_LOOKED_AT_MAX,
    STATES,
    AllTaken,
    Erased,
    Found,
    OneTaken,
    OnlineSnapshot,
    RecordKey,
    RecordPage,
    RecordPlace,
    RecordState,
    StoredRecord,
    Tally,
)

_log: Final = logging.getLogger(__name__)

FORMAT_VERSION: Final = 3
COMMIT_WEIGHT_MAX: Final = 4096
"""Changes of one transaction; bounds how long a caller waits for the company it commits in."""
LOAD_ROWS_MAX: Final = 4096
"""Rows of one step of a bulk load, so that single writes pass between the steps."""
RECEIPTS_MAX: Final = 1_000_000
"""Write ids remembered; at 1,000 repeatable writes a second, about a quarter of an hour of retries."""
DROP_ROWS_MAX: Final = 10_000
PURGE_S_MAX: Final = 600.0
"""How long a purge tries against other processes that read or write."""
PURGE_STEP_S_MAX: Final = 1.0
"""How long one step of a purge holds up writers while it waits for other processes."""
PURGE_PAUSE_S: Final = 0.1
"""Between such steps, for those who waited."""
PAGE_ROWS: Final = 16_384
"""Rows of a snapshot that are held at a time."""
_TOMBSTONE: Final = RecordState.TOMBSTONE.value
_LIVE: Final = RecordState.LIVE.value
"""As plain integers, which the driver binds faster than members of an enum."""

_DDL: Final = (
    "CREATE TABLE IF NOT EXISTS record (group_id INTEGER NOT NULL, record_id TEXT NOT NULL, "
    "event_time_us INTEGER NOT NULL, api_time_us INTEGER NOT NULL, state INTEGER NOT NULL, expires_at_us INTEGER, "
    "grave_us INTEGER NOT NULL DEFAULT 0, online_only INTEGER NOT NULL, value BLOB, PRIMARY KEY (group_id, record_id))",
    "CREATE TABLE IF NOT EXISTS receipt (id INTEGER PRIMARY KEY AUTOINCREMENT, write_id BLOB NOT NULL UNIQUE, "
    "outcome TEXT NOT NULL, shard INTEGER, seq INTEGER, api_time_us INTEGER)",
    "CREATE TABLE IF NOT EXISTS erasure (erasure_id BLOB NOT NULL, shard INTEGER NOT NULL, until_us INTEGER NOT NULL, "
    "removed INTEGER NOT NULL, PRIMARY KEY (erasure_id, shard)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS erased (group_id INTEGER NOT NULL, subject BLOB NOT NULL, until_us INTEGER NOT NULL, "
    "PRIMARY KEY (group_id, subject)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS mark (source TEXT NOT NULL, shard INTEGER NOT NULL, offset INTEGER NOT NULL, "
    "PRIMARY KEY (source, shard)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS salt (id INTEGER PRIMARY KEY CHECK (id = 1), salt BLOB NOT NULL)",
    "INSERT OR IGNORE INTO salt VALUES (1, randomblob(32))",
)
_GET: Final = (
    "SELECT event_time_us, api_time_us, expires_at_us, value FROM record "
    f"WHERE group_id = ? AND record_id = ? AND state = {RecordState.LIVE:d}"
)
_READ: Final = f"SELECT value, expires_at_us FROM record WHERE group_id = ? AND record_id = ? AND state = {RecordState.LIVE:d}"
_PAGE: Final = (
    "SELECT record_id, state, expires_at_us, CASE WHEN ?4 AND (state = 1 OR ?5) THEN value END FROM record "
    "WHERE group_id = ?1 AND record_id > ?2 ORDER BY record_id LIMIT ?3"
)
"""In the order of the primary key: by the bytes of the identifiers."""
_API_TIME: Final = f"SELECT api_time_us FROM record WHERE group_id = ? AND record_id = ? AND state = {RecordState.LIVE:d}"
_EVENT_TIME: Final = f"SELECT event_time_us FROM record WHERE group_id = ? AND record_id = ? AND state <> {RecordState.GRAVE:d}"
_SET: Final = (
    "INSERT INTO record (group_id, record_id, event_time_us, api_time_us, state, expires_at_us, online_only, value) "
    "VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (group_id, record_id) DO UPDATE SET "
    "event_time_us = ?3, api_time_us = ?4, state = ?5, expires_at_us = ?6, online_only = ?7, value = ?8"
)
_BURY: Final = (
    "INSERT INTO record (group_id, record_id, event_time_us, api_time_us, state, grave_us, online_only) "
    f"VALUES (?1, ?2, 0, ?3, {RecordState.GRAVE:d}, ?3, ?4) ON CONFLICT (group_id, record_id) DO UPDATE SET "
    f"event_time_us = 0, api_time_us = ?3, state = {RecordState.GRAVE:d}, expires_at_us = NULL, grave_us = ?3, "
    "online_only = ?4, value = NULL"
)
_LOAD: Final = (
    f"{_SET} WHERE ?4 > record.grave_us AND (record.state = {RecordState.GRAVE:d} "
    "OR (?3, ?5, ?4) > (record.event_time_us, record.state, record.api_time_us))"
)
"""A live record's state is greater than a tombstone's."""
_LOAD_GRAVE: Final = (
    "INSERT INTO record (group_id, record_id, event_time_us, api_time_us, state, grave_us, online_only) "
    f"VALUES (?1, ?2, 0, ?4, {RecordState.GRAVE:d}, ?4, ?3) ON CONFLICT (group_id, record_id) DO UPDATE SET "
    "grave_us = max(record.grave_us, ?4), "
    f"state = CASE WHEN record.api_time_us <= ?4 THEN {RecordState.GRAVE:d} ELSE record.state END, "
    "event_time_us = CASE WHEN record.api_time_us <= ?4 THEN 0 ELSE record.event_time_us END, "
    "expires_at_us = CASE WHEN record.api_time_us <= ?4 THEN NULL ELSE record.expires_at_us END, "
    "value = CASE WHEN record.api_time_us <= ?4 THEN NULL ELSE record.value END, "
    "online_only = CASE WHEN record.api_time_us <= ?4 THEN ?3 ELSE record.online_only END, "
    "api_time_us = max(record.api_time_us, ?4) WHERE ?4 > record.grave_us"
)
_REMOVE: Final = "DELETE FROM record WHERE group_id = ? AND record_id = ?"
_MARK_ERASED: Final = (
    "INSERT INTO erased VALUES (?1, ?2, ?3) ON CONFLICT (group_id, subject) DO UPDATE SET until_us = max(until_us, ?3)"
)
_COUNT_FORMER: Final = (
    "INSERT INTO former VALUES (?1, ?2, ?3) ON CONFLICT (group_id, shard) DO UPDATE SET changes = max(changes, ?3)"
)
_TALLIES: Final = (
    "SELECT shard, sum(changes), sum(offline_only), sum(online_only), sum(former) FROM ("
    "SELECT shard, changes, offline_only, online_only, 0 AS former FROM tally WHERE group_id = ?1 "
    "UNION ALL SELECT shard, 0, 0, 0, changes FROM former WHERE group_id = ?1) GROUP BY shard"
)
_HAS_ERASED: Final = "SELECT 1 FROM erased WHERE group_id = ? LIMIT 1"
_ERASED_UNTIL: Final = "SELECT until_us FROM erased WHERE group_id = ? AND subject = ?"


_Parameters: TypeAlias = Iterable[tuple[Any, ...]]


def _now_us() -> int:
    return time.time_ns() // 1000


def _grave_parameters(rows: StampedRows) -> _Parameters:
    """Of `_LOAD_GRAVE`."""
    columns = [rows.columns["record_id"].to_pylist(), _online_only(rows), rows.int64s("api_time_us").tolist()]
    return zip(repeat(rows.group_id), *columns, strict=False)


def _record_parameters(rows: StampedRows) -> _Parameters:
    """Of `_LOAD`."""
    columns = [
        rows.columns["record_id"].to_pylist(),
        rows.int64s("event_time_us").tolist(),
        rows.int64s("api_time_us").tolist(),
        np.where(rows.int64s("op") == Op.PUT, _LIVE, _TOMBSTONE).tolist(),
        rows.columns["expires_at_us"].to_pylist(),
        _online_only(rows),
        rows.columns["values"].to_pylist(),
    ]
    return zip(repeat(rows.group_id), *columns, strict=False)


def _online_only(rows: StampedRows) -> list[int]:
    flags: list[int] = np.where(rows.int64s("targets") & OFFLINE, 0, 1).tolist()
    return flags


_Work: TypeAlias = Callable[[sqlite3.Connection, OutboxTransaction], Any]
_LoneWork: TypeAlias = Callable[[sqlite3.Connection], Any]


@dataclass(slots=True, kw_only=True)
class _Job(Waiting):
    """Work for the writing thread: `run` within a transaction, or `run_alone` outside."""

    run: _Work | None
    run_alone: _LoneWork | None
    weight: int


class SqliteOnlineStore:
    """See `online.protocol.OnlineStore`.

    Raises:
        StoreUnavailable: the database can't be opened.
        StoreCorrupt: it has another format.
    """

    def __init__(
        self,
        path: Path,
        shards: int,
        *,
        outbox_changes_max: int,
        purge_s_max: float = PURGE_S_MAX,
        clock_us: Callable[[], int] = _now_us,
    ) -> None:
        self._path = path
        self._shards = shards
        self._outbox_changes_max = outbox_changes_max
        self._purge_s_max = purge_s_max
        self._clock_us = clock_us
        self._readers = threading.local()
        self._open_readers: list[sqlite3.Connection] = []
        self._lock = threading.Lock()
        self._closed = False
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._writer = open_database(path)
        self._salt = _create_tables(self._writer, shards)
        self._thread = threading.Thread(target=self._write_jobs, name="online-writer", daemon=True)
        self._thread.start()

    async def apply(self, changes: Sequence[Change]) -> Sequence[Applied]:
        if len(changes) > APPLY_CHANGES_MAX:
            raise ValueError(f"at most {APPLY_CHANGES_MAX} changes per call, got {len(changes)}")
        # Encoded here and not on the writing thread, so that bytes which can't be made fail this call and no other's.
        prepared = [(change, shard_of(change.record_id, self._shards), encode_change(change)) for change in changes]

        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> list[Applied]:
            outbox.require_room(len(prepared))
            return [_apply_one(connection, outbox, *item) for item in prepared]

        result: list[Applied] = await self._submit(run, len(changes))
        return result

    def apply_soon(self, change: Change, done: Callable[[Applied | Exception], None]) -> None:
        shard, body = shard_of(change.record_id, self._shards), encode_change(change)

        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> Applied:
            outbox.require_room(1)
            return _apply_one(connection, outbox, change, shard, body)

        try:
            self._enqueue(run, None, 1, done)
        except StoreUnavailable as error:
            asyncio.get_running_loop().call_soon(done, error)

    async def apply_each(self, changes: Sequence[Change]) -> Sequence[Applied | FeatureStoreError]:
        if len(changes) > APPLY_CHANGES_MAX:
            raise ValueError(f"at most {APPLY_CHANGES_MAX} changes per call, got {len(changes)}")
        prepared = [(change, shard_of(change.record_id, self._shards), encode_change(change)) for change in changes]

        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> list[Applied | FeatureStoreError]:
            answers: list[Applied | FeatureStoreError] = []
            for item in prepared:
                try:
                    outbox.require_room(1)
                except OutboxFull as full:
                    answers.append(full)
                else:
                    answers.append(_apply_one(connection, outbox, *item))
            return answers

        result: list[Applied | FeatureStoreError] = await self._submit(run, len(changes))
        return result

    async def apply_upon(self, change: Change, api_time_us: int) -> Applied:
        shard, body = shard_of(change.record_id, self._shards), encode_change(change)

        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> Applied:
            outbox.require_room(1)
            return _apply_one(connection, outbox, change, shard, body, upon_us=api_time_us)

        result: Applied = await self._submit(run, 1)
        return result

    async def page(
        self, group_id: int, after: RecordPlace | None, records_max: int, *, deleted: bool = False, values: bool = False
    ) -> RecordPage:
        return await asyncio.to_thread(self._page, group_id, after, records_max, deleted, values)

    @property
    def secret(self) -> bytes:
        return signing_secret(self._salt)

    async def apply_from(self, source: str, changes: Sequence[tuple[int, Change]]) -> Sequence[Applied | None]:
        if len(changes) > APPLY_CHANGES_MAX:
            raise ValueError(f"at most {APPLY_CHANGES_MAX} changes per call, got {len(changes)}")
        prepared = [
            (offset, change, shard_of(change.record_id, self._shards), encode_change(change)) for offset, change in changes
        ]

        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> list[Applied | None]:
            marks = dict(connection.execute("SELECT shard, offset FROM mark WHERE source = ?", (source,)).fetchall())
            outbox.require_room(sum(offset > marks.get(shard, -1) for offset, _, shard, _ in prepared))
            answers: list[Applied | None] = []
            for offset, change, shard, body in prepared:
                if offset <= marks.get(shard, -1):
                    answers.append(None)
                    continue
                answers.append(_apply_one(connection, outbox, change, shard, body))
                marks[shard] = offset
            connection.executemany(
                "INSERT OR REPLACE INTO mark VALUES (?, ?, ?)", [(source, shard, offset) for shard, offset in marks.items()]
            )
            return answers

        result: list[Applied | None] = await self._submit(run, len(changes))
        return result

    async def get(self, keys: Sequence[RecordKey]) -> Sequence[StoredRecord | None]:
        now_us = self._clock_us()
        execute = self._reader().execute
        found: list[StoredRecord | None] = []
        try:
            for key in keys:
                row = execute(_GET, key).fetchone()
                expired = row is not None and row[2] is not None and row[2] <= now_us
                found.append(None if row is None or expired else StoredRecord(*row))
        except sqlite3.Error as error:
            raise StoreUnavailable("read online store", str(error)) from error
        return found

    def read_one(self, group_id: int, record_id: str, done: OneTaken) -> None:
        found = self._read([(group_id, [record_id])])
        done(found if isinstance(found, Exception) else found[0])

    def read(self, wanted: Sequence[tuple[int, Sequence[str]]], done: AllTaken) -> None:
        done(self._read(wanted))

    def _read(self, wanted: Sequence[tuple[int, Sequence[str]]]) -> list[Found] | StoreUnavailable:
        now_us = self._clock_us()
        execute = self._reader().execute
        found: list[Found] = []
        try:
            for group_id, record_ids in wanted:
                for record_id in record_ids:
                    row = execute(_READ, (group_id, record_id)).fetchone()
                    found.append(None if row is None or (row[1] is not None and row[1] <= now_us) else row)
        except sqlite3.Error as error:
            failure = StoreUnavailable("read online store", str(error))
            failure.__cause__ = error
            return failure
        return found

    def serving(self) -> AbstractAsyncContextManager[None]:
        return nullcontext()

    async def reserve(self, rows: Mapping[int, int]) -> Mapping[int, int]:
        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> dict[int, int]:
            return {shard: outbox.reserve(shard, count) for shard, count in rows.items()}

        result: dict[int, int] = await self._submit(run, 1)
        return result

    async def load(self, rows: StampedRows) -> int:
        is_grave = rows.int64s("op") == Op.HARD_DELETE
        graves = await self._load(_LOAD_GRAVE, rows.where(is_grave), _grave_parameters) if is_grave.any() else 0
        return graves + await self._load(_LOAD, rows.where(~is_grave), _record_parameters)

    async def _load(self, statement: str, rows: StampedRows, parameters: Callable[[StampedRows], _Parameters]) -> int:
        loaded = 0
        for start in range(0, len(rows), LOAD_ROWS_MAX):
            page = rows.slice(start, LOAD_ROWS_MAX)

            def run(connection: sqlite3.Connection, outbox: OutboxTransaction, page: StampedRows = page) -> int:
                before = connection.total_changes
                connection.executemany(statement, self._without_erased(connection, page.group_id, parameters(page)))
                return connection.total_changes - before

            loaded += await self._submit(run, len(page))
        return loaded

    async def advance(self, stamps: Mapping[int, Stamp]) -> None:
        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> None:
            for stamp in stamps.values():
                outbox.advance(stamp)

        await self._submit(run, 1)

    async def drop_group(self, group_id: int) -> None:
        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> int:
            cursor = connection.execute(
                "DELETE FROM record WHERE rowid IN (SELECT rowid FROM record WHERE group_id = ? LIMIT ?)",
                (group_id, DROP_ROWS_MAX),
            )
            return cursor.rowcount

        while await self._submit(run, DROP_ROWS_MAX):
            pass

    async def erase(self, erasure_id: bytes, group_id: int, record_ids: Sequence[str]) -> Erased:
        shards: dict[int, list[str]] = {}
        for record_id in record_ids:
            shards.setdefault(shard_of(record_id, self._shards), []).append(record_id)

        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> Erased:
            known = connection.execute("SELECT shard, until_us, removed FROM erasure WHERE erasure_id = ?", (erasure_id,))
            rows = known.fetchall() or [
                (shard, outbox.reserve(shard, 1), connection.executemany(_REMOVE, [(group_id, one) for one in members]).rowcount)
                for shard, members in shards.items()
            ]
            connection.executemany("INSERT OR IGNORE INTO erasure VALUES (?, ?, ?, ?)", [(erasure_id, *row) for row in rows])
            for shard, until_us, _ in rows:
                subjects = [subject_of(group_id, record_id, self._salt) for record_id in shards[shard]]
                connection.executemany(_MARK_ERASED, [(group_id, subject, until_us) for subject in subjects])
            return Erased({shard: until_us for shard, until_us, _ in rows}, sum(removed for _, _, removed in rows))

        result: Erased = await self._submit(run, len(record_ids))
        return result

    async def purge(self) -> None:
        deadline_s = time.monotonic() + self._purge_s_max
        for step in (_vacuum, _empty_log):
            while not await self._submit_alone(step):
                if time.monotonic() > deadline_s:
                    detail = f"others have kept the database busy for {self._purge_s_max:g} s"
                    raise StoreUnavailable("purge online store", detail, hint="repeat the call")
                await asyncio.sleep(PURGE_PAUSE_S)

    async def count_offline_only(self, group_id: int, rows: Mapping[int, int]) -> None:
        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> None:
            for shard, count in rows.items():
                outbox.count_offline_only(group_id, shard, count)

        await self._submit(run, 1)

    async def count_former(self, group_id: int, changes: Mapping[int, int]) -> None:
        def run(connection: sqlite3.Connection, outbox: OutboxTransaction) -> None:
            connection.executemany(_COUNT_FORMER, [(group_id, shard, count) for shard, count in changes.items()])

        await self._submit(run, 1)

    @contextmanager
    def snapshot(self, group_id: int) -> Iterator[OnlineSnapshot]:
        with closing(open_database(self._path)) as connection:
            yield _Snapshot(connection, group_id)

    def close(self) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._jobs.put(None)
        self._thread.join()
        self._writer.close()
        for reader in self._open_readers:
            reader.close()

    def _page(self, group_id: int, after: RecordPlace | None, records_max: int, deleted: bool, values: bool) -> RecordPage:
        now_us = self._clock_us()
        first = after.record_id if after is not None else ""
        looked_at, last = 0, first
        found: list[tuple[str, bytes | None]] = []
        try:
            with closing(self._reader().execute(_PAGE, (group_id, first, PAGE_LOOKED_AT_MAX, values, deleted))) as rows:
                for last, state, expires_at_us, data in rows:
                    looked_at += 1
                    is_live = state == _LIVE and (expires_at_us is None or expires_at_us > now_us)
                    if is_live or (deleted and state == _TOMBSTONE):
                        if len(found) == records_max:
                            return RecordPage(found, RecordPlace(0, found[-1][0]))
                        found.append((last, data))
        except sqlite3.Error as error:
            raise StoreUnavailable("read online store", str(error)) from error
        return RecordPage(found, RecordPlace(0, last) if looked_at == PAGE_LOOKED_AT_MAX else None)

    def _without_erased(self, connection: sqlite3.Connection, group_id: int, rows: _Parameters) -> _Parameters:
        """Rows of `_LOAD_GRAVE` or `_LOAD` without those of records that were erased since the rows had got their api times."""
        if not connection.execute(_HAS_ERASED, (group_id,)).fetchone():
            return rows
        kept = []
        for row in rows:
            _, record_id, _, api_time_us, *_ = row
            found = connection.execute(_ERASED_UNTIL, (group_id, subject_of(group_id, record_id, self._salt))).fetchone()
            if found is None or api_time_us > found[0]:
                kept.append(row)
        return kept

    async def _submit(self, run: _Work, weight: int) -> Any:
        answer = asyncio.get_running_loop().create_future()
        self._enqueue(run, None, weight, partial(resolve, answer))
        return await answer

    async def _submit_alone(self, run: _LoneWork) -> Any:
        """As heavy as a transaction may be, so that it is the last of what is taken at a time."""
        answer = asyncio.get_running_loop().create_future()
        self._enqueue(None, run, COMMIT_WEIGHT_MAX, partial(resolve, answer))
        return await answer

    def _enqueue(self, run: _Work | None, run_alone: _LoneWork | None, weight: int, done: Callable[[Any], None]) -> None:
        job = _Job(run=run, run_alone=run_alone, weight=weight, loop=asyncio.get_running_loop(), done=done)
        with self._lock:
            if self._closed:
                raise StoreUnavailable("write online store", "the store is closed")
            self._jobs.put(job)

    def _reader(self) -> sqlite3.Connection:
        reader: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if reader is None:
            reader = self._readers.connection = open_database(self._path)
            reader.execute("PRAGMA query_only=ON")
            with self._lock:
                self._open_readers.append(reader)
        return reader

    def _write_jobs(self) -> None:
        """The writing thread: everything that waits becomes one transaction, until `close`."""
        stop = False
        while not stop:
            job = self._jobs.get()
            batch: list[_Job] = []
            weight = 0
            while job is not None:
                batch.append(job)
                weight += job.weight
                if weight >= COMMIT_WEIGHT_MAX:
                    break
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            stop = job is None
            together = [item for item in batch if item.run is not None]
            if together:
                self._commit(together)
            for item in batch:
                if item.run_alone is not None:
                    self._run_alone(item)
            if batch:
                deliver(batch)

    def _commit(self, batch: Sequence[_Job]) -> None:
        """Run a batch as one transaction. A job's own refusal (made before it wrote) fails it alone, anything else all."""
        is_committing = False
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            outbox = OutboxTransaction(self._writer, clock_us=self._clock_us, changes_max=self._outbox_changes_max)
            for job in batch:
                assert job.run is not None
                try:
                    job.result = job.run(self._writer, outbox)
                except FeatureStoreError as refusal:
                    job.error = refusal
            outbox.close()
            self._writer.execute("DELETE FROM receipt WHERE id <= (SELECT max(id) FROM receipt) - ?", (RECEIPTS_MAX,))
            is_committing = True
            self._writer.execute("COMMIT")
        except Exception as error:  # the callers wait: whatever it is, each of them gets it, and the thread lives on
            _log.exception("a commit of %d jobs failed", len(batch))
            failure: BaseException = error
            if isinstance(error, sqlite3.Error):
                failure = StoreUnavailable("write online store", str(error), nothing_written=not is_committing)
                failure.__cause__ = error
            for job in batch:
                job.error = failure
        finally:
            if self._writer.in_transaction:
                self._writer.rollback()

    def _run_alone(self, job: _Job) -> None:
        assert job.run_alone is not None
        try:
            job.result = job.run_alone(self._writer)
        except Exception as error:  # as in `_commit`
            job.error = error
            if isinstance(error, sqlite3.Error):
                job.error = StoreUnavailable("write online store", str(error))
                job.error.__cause__ = error


class _Snapshot:
    """See `online.protocol.OnlineSnapshot`: one read transaction on a connection of its own."""

    def __init__(self, connection: sqlite3.Connection, group_id: int) -> None:
        self._connection = connection
        self._group_id = group_id
        connection.execute("PRAGMA query_only=ON")
        connection.execute("BEGIN")
        self._tallies = {
            shard: Tally(*counts)
            for rows in self._pages(_TALLIES, group_id)  # the first read: the transaction sees what is committed now
            for shard, *counts in rows
        }

    def tallies(self) -> Mapping[int, Tally]:
        return self._tallies

    def waiting(self) -> Iterator[LogEntry]:
        pages = self._pages("SELECT position, api_time_us, body FROM outbox ORDER BY position")
        for entry in (log_entry(*row) for rows in pages for row in rows):
            if isinstance(entry.item, PoisonChange) or entry.item.change.group_id == self._group_id:
                yield entry

    def records(self) -> int:
        ((rows,),) = next(self._pages("SELECT count(*) FROM record WHERE group_id = ?", self._group_id))
        return int(rows)

    def states(self) -> Iterator[pa.RecordBatch]:
        names = "record_id, state, event_time_us, api_time_us, expires_at_us, grave_us, online_only, value"
        for rows in self._pages(f"SELECT {names} FROM record WHERE group_id = ?", self._group_id):
            try:
                columns = [pa.array(cells).cast(field.type) for cells, field in zip(zip(*rows, strict=True), STATES, strict=True)]
            except pa.ArrowException as error:
                raise StoreCorrupt("records of the online store", str(error)) from error
            yield pa.RecordBatch.from_arrays(columns, schema=STATES)

    def _pages(self, statement: str, *values: int) -> Iterator[list[tuple[Any, ...]]]:
        try:
            cursor = self._connection.execute(statement, values)
            while rows := cursor.fetchmany(PAGE_ROWS):
                yield rows
        except sqlite3.Error as error:
            raise StoreUnavailable("read online store", str(error)) from error


def _apply_one(
    connection: sqlite3.Connection,
    outbox: OutboxTransaction,
    change: Change,
    shard: int,
    body: bytes,
    *,
    upon_us: int | None = None,
) -> Applied:
    """Decide, write and log one change; with `upon_us` only if the record is live with that api time."""
    if change.write_id is not None:
        row = connection.execute(
            "SELECT outcome, shard, seq, api_time_us FROM receipt WHERE write_id = ?", (change.write_id,)
        ).fetchone()
        if row is not None:
            return Applied(Outcome(row[0]), None if row[1] is None else Stamp(*row[1:]))
    key = (change.group_id, change.record_id)
    if upon_us is not None and connection.execute(_API_TIME, key).fetchone() != (upon_us,):
        return Applied(Outcome.SUPERSEDED, None)
    stored = connection.execute(_EVENT_TIME, key).fetchone() if change.targets & ONLINE else None
    outcome = wins(change, None if stored is None else stored[0])
    stamp = None if outcome is Outcome.REFUSED else outbox.append(shard, change, body)
    if outcome is Outcome.NEWEST:
        assert stamp is not None
        online_only = 0 if change.targets & OFFLINE else 1
        if change.op is Op.HARD_DELETE:
            connection.execute(_BURY, (*key, stamp.api_time_us, online_only))
        elif change.op is Op.SOFT_DELETE:
            row = (*key, change.event_time_us, stamp.api_time_us, _TOMBSTONE, None, online_only, change.values)
            connection.execute(_SET, row)
        else:
            row = (*key, change.event_time_us, stamp.api_time_us, _LIVE, change.expires_at_us, online_only, change.values)
            connection.execute(_SET, row)
    if change.write_id is not None:
        place = (None, None, None) if stamp is None else (stamp.shard, stamp.seq, stamp.api_time_us)
        connection.execute(
            "INSERT INTO receipt (write_id, outcome, shard, seq, api_time_us) VALUES (?, ?, ?, ?, ?)",
            (change.write_id, outcome.value, *place),
        )
    return Applied(outcome, stamp)


def _vacuum(connection: sqlite3.Connection) -> bool:
    """Write the database anew, without what was removed; False if others are in the way."""
    return not _is_busy(connection, "VACUUM")


def _empty_log(connection: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the database and cut it to nothing; False if others are in the way."""
    return not _is_busy(connection, "PRAGMA wal_checkpoint(TRUNCATE)")


def _is_busy(connection: sqlite3.Connection, statement: str) -> bool:
    connection.execute(f"PRAGMA busy_timeout = {int(PURGE_STEP_S_MAX * 1000)}")
    try:
        row = connection.execute(statement).fetchone()
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
            raise
        return True
    finally:
        connection.execute(f"PRAGMA busy_timeout = {int(BUSY_TIMEOUT_S * 1000)}")
    return row is not None and row[0] != 0  # what a checkpoint answers begins with whether it was kept from finishing


def _create_tables(connection: sqlite3.Connection, shards: int) -> bytes:
    """Make the tables when missing; returns the store's salt for `subject_of`."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version not in (0, FORMAT_VERSION):
            raise StoreCorrupt("online store", f"format {version}, this release reads {FORMAT_VERSION}")
        for statement in _DDL:
            connection.execute(statement)
        create_outbox(connection, shards)
        connection.execute(f"PRAGMA user_version = {FORMAT_VERSION}")
        salt: bytes = connection.execute("SELECT salt FROM salt").fetchone()[0]
        connection.execute("COMMIT")
        return salt
    finally:
        if connection.in_transaction:
            connection.rollback()
