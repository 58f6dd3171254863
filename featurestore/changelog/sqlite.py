"""The outbox of the embedded store: the change log as tables of the online store's own SQLite database.

Being in the same database is the point: a record and its outbox entry are written by one transaction. `OutboxTransaction` is
the writing half, used inside the online store's transactions; `SqliteChangeLog` is the reading half. The tally counts, in the
same transactions, what was ever appended, so that an audit can tell whether something is missing from what it became.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from featurestore.errors import OutboxFull, StoreCorrupt, StoreUnavailable
from featurestore.model.change import OFFLINE, ONLINE, Change, LogEntry, LoggedChange, PoisonChange, Stamp
from featurestore.model.codec import decode_change

BUSY_TIMEOUT_S: Final = 30.0

SEQ_BITS: Final = 48
SEQ_MASK: Final = (1 << SEQ_BITS) - 1
"""An outbox row's key is `shard << SEQ_BITS | seq`: one b-tree in log order, and room for 2^48 changes per shard."""

_DDL: Final = (
    "CREATE TABLE IF NOT EXISTS outbox (position INTEGER PRIMARY KEY, api_time_us INTEGER NOT NULL, body BLOB NOT NULL)",
    "CREATE TABLE IF NOT EXISTS shard (shard INTEGER PRIMARY KEY, seq_last INTEGER NOT NULL, "
    "api_time_us_last INTEGER NOT NULL, offset_trimmed INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS tally (group_id INTEGER NOT NULL, shard INTEGER NOT NULL, changes INTEGER NOT NULL, "
    "offline_only INTEGER NOT NULL, online_only INTEGER NOT NULL, PRIMARY KEY (group_id, shard)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS former (group_id INTEGER NOT NULL, shard INTEGER NOT NULL, changes INTEGER NOT NULL, "
    "PRIMARY KEY (group_id, shard)) WITHOUT ROWID",
)
_COUNT: Final = (
    "INSERT INTO tally VALUES (?1, ?2, ?3, ?4, ?5) ON CONFLICT (group_id, shard) DO UPDATE SET "
    "changes = changes + ?3, offline_only = offline_only + ?4, online_only = online_only + ?5"
)


def open_database(path: Path) -> sqlite3.Connection:
    """A connection that keeps the embedded store's promise: what is committed survives power loss.

    `synchronous=FULL` syncs the write-ahead log at each commit; the default NORMAL would lose acknowledged writes.

    Raises:
        StoreUnavailable: the file can't be opened as a database.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        (mode,) = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise StoreUnavailable("open online store", f"{path} can't use a write-ahead log, mode is {mode}")
        connection.execute("PRAGMA synchronous=FULL")
    except (OSError, sqlite3.Error) as error:
        raise StoreUnavailable("open online store", f"{path}: {error}", hint="see FEATURESTORE_ONLINE_URL") from error
    return connection


def create_outbox(connection: sqlite3.Connection, shards: int) -> None:
    """Make the outbox tables when missing. Inside the caller's transaction."""
    for statement in _DDL:
        connection.execute(statement)
    connection.executemany("INSERT OR IGNORE INTO shard VALUES (?, 0, 0, 1)", [(shard,) for shard in range(shards)])


@dataclass(slots=True)
class _ShardState:
    seq_last: int
    api_time_us_last: int
    offset_trimmed: int


class OutboxTransaction:
    """Stamps, appends and counts changes inside one open writing transaction; `close` writes the shards' state back."""

    def __init__(self, connection: sqlite3.Connection, *, clock_us: Callable[[], int], changes_max: int) -> None:
        self._connection = connection
        self._clock_us = clock_us
        self._changes_max = changes_max
        rows = connection.execute("SELECT shard, seq_last, api_time_us_last, offset_trimmed FROM shard").fetchall()
        self._shards = {shard: _ShardState(*state) for shard, *state in rows}
        self._waiting = sum(state.seq_last + 1 - state.offset_trimmed for state in self._shards.values())
        self._touched: set[int] = set()
        self._entries: list[tuple[int, int, bytes]] = []
        self._appended: list[tuple[int, int, int]] = []
        self._restarted: set[int] = set()
        self._offline_only: Counter[tuple[int, int]] = Counter()

    def require_room(self, changes: int) -> None:
        """Raises: OutboxFull."""
        if self._waiting + changes > self._changes_max:
            raise OutboxFull(self._waiting, self._changes_max)

    def append(self, shard: int, change: Change, body: bytes) -> Stamp:
        """Append one change (`body`: its `codec.encode_change` bytes) to its shard."""
        state = self._shards[shard]
        state.seq_last += 1
        state.api_time_us_last = max(self._clock_us(), state.api_time_us_last + 1)
        self._waiting += 1
        self._touched.add(shard)
        self._entries.append((shard << SEQ_BITS | state.seq_last, state.api_time_us_last, body))
        self._appended.append((change.group_id, shard, change.targets))
        return Stamp(shard, state.seq_last, state.api_time_us_last)

    def reserve(self, shard: int, rows: int) -> int:
        """The first of `rows` consecutive api times that nothing else in the shard gets.

        They end now rather than begin now, so that a large batch does not lie in the future.
        """
        state = self._shards[shard]
        first_us = max(self._clock_us() - rows + 1, state.api_time_us_last + 1)
        state.api_time_us_last = first_us + rows - 1
        self._touched.add(shard)
        return first_us

    def advance(self, stamp: Stamp) -> None:
        """Let later stamps of a shard lie after this one."""
        state = self._shards[stamp.shard]
        if stamp.seq > state.seq_last:
            state.seq_last = stamp.seq
            state.offset_trimmed = stamp.seq + 1
            self._restarted.add(stamp.shard)
        state.api_time_us_last = max(state.api_time_us_last, stamp.api_time_us)
        self._touched.add(stamp.shard)

    def count_offline_only(self, group_id: int, shard: int, rows: int) -> None:
        """Count rows that go to the offline store alone, and not through the log."""
        self._offline_only[group_id, shard] += rows

    def close(self) -> None:
        self._connection.executemany(
            "UPDATE shard SET offset_trimmed = ? WHERE shard = ?",
            [(self._shards[shard].offset_trimmed, shard) for shard in sorted(self._restarted)],
        )
        self._connection.executemany("INSERT INTO outbox VALUES (?, ?, ?)", self._entries)
        self._connection.executemany(_COUNT, self._counts())
        self._connection.executemany(
            "UPDATE shard SET seq_last = ?, api_time_us_last = ? WHERE shard = ?",
            [(self._shards[shard].seq_last, self._shards[shard].api_time_us_last, shard) for shard in sorted(self._touched)],
        )

    def _counts(self) -> Iterator[tuple[int, int, int, int, int]]:
        """Rows to add to `tally`."""
        for (group_id, shard, targets), count in Counter(self._appended).items():
            offline_only = 0 if targets & ONLINE else count
            yield (group_id, shard, count, offline_only, 0) if targets & OFFLINE else (group_id, shard, 0, 0, count)
        for (group_id, shard), count in self._offline_only.items():
            yield group_id, shard, 0, count, 0


def log_entry(position: int, api_time_us: int, body: bytes) -> LogEntry:
    """A row of `outbox`. The offset of an entry is its `seq`."""
    stamp = Stamp(position >> SEQ_BITS, position & SEQ_MASK, api_time_us)
    try:
        return LogEntry(stamp.seq, LoggedChange(decode_change(body), stamp))
    except StoreCorrupt as error:
        return LogEntry(stamp.seq, PoisonChange(body, str(error), stamp))


class SqliteChangeLog:
    """See `changelog.protocol.ChangeSource`. The online store has created the tables."""

    def __init__(self, path: Path, shards: int) -> None:
        self._shards = shards
        self._lock = threading.Lock()
        self._closed = False
        self._connection = open_database(path)

    def shards(self) -> int:
        return self._shards

    def ends(self) -> Mapping[int, int]:
        with self._session("read outbox ends") as connection:
            return {shard: seq + 1 for shard, seq in connection.execute("SELECT shard, seq_last FROM shard")}

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        first, end = shard << SEQ_BITS | offset_first, (shard + 1) << SEQ_BITS
        with self._session("read outbox") as connection:
            rows = connection.execute(
                "SELECT position, api_time_us, body FROM outbox WHERE position >= ? AND position < ? ORDER BY position LIMIT ?",
                (first, end, entries_max),
            ).fetchall()
        return [log_entry(*row) for row in rows]

    def trimmed(self) -> Mapping[int, int]:
        with self._session("read outbox") as connection:
            return dict(connection.execute("SELECT shard, offset_trimmed FROM shard").fetchall())

    def trim(self, shard: int, offset_next: int) -> None:
        with self._session("trim outbox") as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute(
                "DELETE FROM outbox WHERE position >= ? AND position < ?",
                (shard << SEQ_BITS, shard << SEQ_BITS | offset_next),
            )
            connection.execute("UPDATE shard SET offset_trimmed = max(offset_trimmed, ?) WHERE shard = ?", (offset_next, shard))
            connection.execute("COMMIT")

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._connection.close()

    @contextmanager
    def _session(self, operation: str) -> Iterator[sqlite3.Connection]:
        """The connection for one operation of one thread; a failed one leaves no transaction open."""
        with self._lock:
            if self._closed:
                raise StoreUnavailable(operation, "the change log is closed")
            try:
                yield self._connection
            except sqlite3.Error as error:
                raise StoreUnavailable(operation, str(error)) from error
            finally:
                if self._connection.in_transaction:
                    self._connection.rollback()
