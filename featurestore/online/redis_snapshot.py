"""A snapshot of one group on Redis.

A server has no read transactions, so the scripts that write help: while a snapshot is open, the first change of a record
since it keeps what the record was in a hash of the snapshot (`keep` in common.lua), in the same step. Who reads a record looks
into that hash afterwards: what stands there was true at the moment, what does not has not changed since. The outbox is not cut
meanwhile, and entries after the moment are left out.

All shards have one moment, except in a cluster: there each shard has its own, all within the call that opens the snapshot.
A snapshot is leased, so a reader that dies does not hold up anything for long; one that loses its lease fails.
"""

from __future__ import annotations

import re
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import pyarrow as pa

from featurestore.changelog.redis import PAGE_ENTRIES, log_entry
from featurestore.errors import FeatureStoreError, StoreUnavailable
from featurestore.keyspace.layout import decode_record, load_script, record_pattern
from featurestore.keyspace.link import Call, RedisLink
from featurestore.keyspace.opening import Keyspace
from featurestore.model.change import LogEntry, PoisonChange
from featurestore.online.protocol import STATES, RecordState, Tally

LEASE_S: Final = 30
RENEW_S: Final = 5.0
SCAN_KEYS: Final = 2_000
"""Keys that one command looks at; the server does nothing else meanwhile."""

_READ: Final = "read online store"
_BEGIN, _RENEW, _END = map(load_script, ("snapshot_begin", "snapshot_renew", "snapshot_end"))


@dataclass(frozen=True, slots=True)
class _Moment:
    """One shard at the moment."""

    seq_last: int
    offset_first: int
    tally: Tally
    records: int


class RedisSnapshot:
    """See `online.protocol.OnlineSnapshot`. A thread renews the lease until `close`.

    Raises:
        StoreUnavailable
    """

    def __init__(self, keyspace: Keyspace, group_id: int) -> None:
        self._keyspace = keyspace
        self._group_id = group_id
        self._id = secrets.token_hex(8).encode()
        self._link = keyspace.link()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._failure: FeatureStoreError | None = None
        try:
            self._moments = self._begin()
        except BaseException:
            self._link.close()
            raise
        self._renewer = threading.Thread(target=self._renew_until_closed, name="online-snapshot", daemon=True)
        self._renewer.start()

    def tallies(self) -> Mapping[int, Tally]:
        return {shard: moment.tally for shard, moment in enumerate(self._moments)}

    def waiting(self) -> Iterator[LogEntry]:
        for shard, moment in enumerate(self._moments):
            offset = moment.offset_first
            while offset <= moment.seq_last:
                outbox = self._keyspace.keys[shard].outbox
                command = ("XRANGE", outbox, f"{offset}-0", f"{moment.seq_last}-0", "COUNT", PAGE_ENTRIES)
                (rows,) = self._run([Call(shard, command)])
                for row in rows:
                    entry = log_entry(shard, *row)
                    offset = entry.offset + 1
                    if isinstance(entry.item, PoisonChange) or entry.item.change.group_id == self._group_id:
                        yield entry
                if len(rows) < PAGE_ENTRIES:
                    break
            self._renew()

    def records(self) -> int:
        return sum(moment.records for moment in self._moments)

    def states(self) -> Iterator[pa.RecordBatch]:
        owners = self._link.owners()
        with closing(_Seen()) as seen:
            for page in scan_group(self._link, self._keyspace, self._group_id, lock=self._lock):
                yield from self._batch(self._as_they_were(page, seen))
            for shard in range(len(self._moments)):
                for rows in self._kept(shard):
                    yield from self._batch([(key, value) for key, value in rows if seen.add(key)])
        self._renew()
        if self._link.owners() != owners:
            raise StoreUnavailable(_READ, "shards were moved to other nodes meanwhile", hint="repeat the call")

    def close(self) -> None:
        self._ended.set()
        self._renewer.join()
        calls = [
            _END.call(shard, [keys.meta, keys.outbox, keys.snapshots], [keys.base, self._id])
            for shard, keys in enumerate(self._keyspace.keys)
        ]
        self._link.run("end snapshot", calls, repeatable=True)  # what fails ends with the lease
        self._link.close()

    def _begin(self) -> list[_Moment]:
        calls = [
            _BEGIN.call(shard, [keys.meta, keys.snapshots, keys.tally], [keys.base, self._id, self._group_id, LEASE_S])
            for shard, keys in enumerate(self._keyspace.keys)
        ]
        if self._link.is_cluster:
            replies = self._link.run_all("begin snapshot", calls)
        else:  # one transaction, which can't ask for the scripts' source
            load = [Call(0, ("SCRIPT", "LOAD", _BEGIN.source)), Call(0, ("MULTI",))]
            plain = [Call(call.shard, call.command) for call in calls]
            replies = self._link.run_all("begin snapshot", [*load, *plain, Call(0, ("EXEC",))])[-1]
            for reply in replies:
                if isinstance(reply, Exception):
                    raise StoreUnavailable("begin snapshot", str(reply)) from reply
        return [_Moment(int(seq), int(first), Tally(*map(int, counts)), int(records)) for seq, first, *counts, records in replies]

    def _as_they_were(self, page: Mapping[int, Sequence[tuple[bytes, str]]], seen: _Seen) -> list[tuple[bytes, bytes]]:
        """Keys and values at the moment, without records that came later and those seen before."""
        calls = []
        for shard, members in page.items():
            keys = [key for key, _ in members]
            calls += [
                Call(shard, ("MGET", *keys)),
                Call(shard, ("HMGET", self._keyspace.keys[shard].undo(self._id), *keys)),
            ]
        replies = self._run(calls)
        rows = []
        for members, values, kept in zip(page.values(), replies[::2], replies[1::2], strict=True):
            for (key, _), value, old in zip(members, values, kept, strict=True):
                then = value if old is None else old
                if then and seen.add(key):
                    rows.append((key, then))
        return rows

    def _kept(self, shard: int) -> Iterator[list[tuple[bytes, bytes]]]:
        """Records of the moment that changed since."""
        cursor = b"0"
        while True:
            command = ("HSCAN", self._keyspace.keys[shard].undo(self._id), cursor, "COUNT", SCAN_KEYS)
            ((cursor, cells),) = self._run([Call(shard, command)])
            yield [(key, value) for key, value in zip(cells[::2], cells[1::2], strict=True) if value]
            if cursor == b"0":
                return

    def _batch(self, rows: Sequence[tuple[bytes, bytes]]) -> Iterator[pa.RecordBatch]:
        if not rows:
            return
        pattern = _key_pattern(self._keyspace, self._group_id)
        records = [decode_record(value) for _, value in rows]
        columns: list[list[Any]] = [
            [_record_id(pattern, key) for key, _ in rows],
            [record.state for record in records],
            [record.event_time_us for record in records],
            [record.api_time_us for record in records],
            [record.expires_at_us for record in records],
            [record.grave_us for record in records],
            [record.is_online_only for record in records],
            [None if record.state == RecordState.GRAVE else record.values for record in records],
        ]
        arrays = [pa.array(cells, field.type) for cells, field in zip(columns, STATES, strict=True)]
        yield pa.RecordBatch.from_arrays(arrays, schema=STATES)

    def _run(self, calls: Sequence[Call]) -> list[Any]:
        with self._lock:
            if self._failure is not None:
                raise self._failure
            return self._link.run_all(_READ, calls, repeatable=True)

    def _renew(self) -> None:
        """Raises: StoreUnavailable: the lease had run out, or a server does not answer."""
        calls = [
            _RENEW.call(shard, [keys.meta, keys.snapshots, keys.undo(self._id)], [self._id, LEASE_S])
            for shard, keys in enumerate(self._keyspace.keys)
        ]
        if not all(self._run(calls)):
            raise StoreUnavailable(_READ, "the snapshot was held for too long without a word", hint="repeat the call")

    def _renew_until_closed(self) -> None:
        while not self._ended.wait(RENEW_S):
            try:
                self._renew()
            except FeatureStoreError as error:  # whoever reads gets it
                self._failure = error
                return


class _Seen:
    """Keys that were there before: a scan may name a key twice. Kept on disk beyond some megabytes, as hashes of 128 bits."""

    def __init__(self) -> None:
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode=OFF")
        self._database.execute("CREATE TABLE seen (key BLOB PRIMARY KEY) WITHOUT ROWID")

    def add(self, key: bytes) -> bool:
        """Whether it is new."""
        digest = blake2b(key, digest_size=16).digest()
        return self._database.execute("INSERT OR IGNORE INTO seen VALUES (?)", (digest,)).rowcount == 1

    def close(self) -> None:
        self._database.close()


def scan_group(
    link: RedisLink, keyspace: Keyspace, group_id: int, *, lock: threading.Lock | None = None
) -> Iterator[dict[int, list[tuple[bytes, str]]]]:
    """The records of a group, page by page: per shard (key, record id). One that is there all the time is named at least once.

    Args:
        lock: of the link, if threads share it; held for one page at a time.

    Raises:
        StoreUnavailable
    """
    pattern = _key_pattern(keyspace, group_id)
    match = record_pattern(keyspace.address.prefix, group_id)
    for node in link.nodes():
        cursor = b"0"
        while True:
            with lock or threading.Lock():
                (answer,) = link.on_node(_READ, node, ("SCAN", cursor, "MATCH", match, "COUNT", SCAN_KEYS))
            if isinstance(answer, Exception):
                raise StoreUnavailable(_READ, str(answer)) from answer
            cursor, names = answer
            page: dict[int, list[tuple[bytes, str]]] = {}
            for name in names:
                found = pattern.fullmatch(name)
                if found is not None and int(found[1]) < len(keyspace.keys):
                    page.setdefault(int(found[1]), []).append((name, found[2].decode()))
            if page:
                yield page
            if cursor == b"0":
                break


def _key_pattern(keyspace: Keyspace, group_id: int) -> re.Pattern[bytes]:
    """A record's key: shard and record id. The pattern that a server matches by can't tell a record id that looks like a key."""
    prefix = keyspace.address.prefix
    start = re.escape(f"{prefix}{':' if prefix else ''}{{fs:".encode())
    return re.compile(start + rb"([0-9]+)\}:r:%d:(.*)" % group_id, re.DOTALL)


def _record_id(pattern: re.Pattern[bytes], key: bytes) -> str:
    found = pattern.fullmatch(key)
    assert found is not None
    return found[2].decode()
