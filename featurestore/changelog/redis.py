"""The outbox of a store on Redis: the change log as one stream per shard.

The online store's scripts append to it in the step that changes the record. The id of an entry is `<seq>-0`, so its offset is its
`seq` and reading from an offset is one range.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from typing import Any, Final

from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.keyspace.layout import load_script
from featurestore.keyspace.link import Call
from featurestore.keyspace.opening import Keyspace, shard_calls
from featurestore.model.change import LogEntry, LoggedChange, PoisonChange, Stamp
from featurestore.model.codec import decode_change

_log: Final = logging.getLogger(__name__)

PAGE_ENTRIES: Final = 512
"""Entries of one command; the server does nothing else while it answers one."""
_TRIM: Final = load_script("trim")


class RedisChangeLog:
    """See `changelog.protocol.ChangeSource`."""

    def __init__(self, keyspace: Keyspace) -> None:
        self._keyspace = keyspace
        self._link = keyspace.link()
        self._lock = threading.Lock()
        self._closed = False
        self._trimmed: dict[int, int] = {}

    def shards(self) -> int:
        return len(self._keyspace.keys)

    def ends(self) -> dict[int, int]:
        calls = shard_calls(self._keyspace, "HGET", "seq")
        ends = {shard: int(seq or 0) + 1 for shard, seq in enumerate(self._run("read outbox ends", calls, repeatable=True))}
        for shard, trimmed in list(self._trimmed.items()):
            if ends[shard] < trimmed:  # a server without its newest data is there: its next changes must not be taken for old
                self.trim(shard, trimmed)
                ends[shard] = trimmed
        return ends

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        keys = self._keyspace.keys[shard]
        entries: list[LogEntry] = []
        while len(entries) < entries_max:
            page = min(PAGE_ENTRIES, entries_max - len(entries))
            rows, trimmed = self._run(
                "read outbox",
                [
                    Call(shard, ("XRANGE", keys.outbox, f"{offset_first}-0", "+", "COUNT", page)),
                    Call(shard, ("HGET", keys.meta, "trimmed")),
                ],
                repeatable=True,
            )
            found = [entry for entry in (log_entry(shard, *row) for row in rows) if entry.offset >= int(trimmed or 1)]
            if entries and int(trimmed or 1) > offset_first:
                break  # what comes between was trimmed while we read; the reader asks again from there
            entries += found
            if len(rows) < page:
                break
            offset_first = int(rows[-1][0].partition(b"-")[0]) + 1
        return entries

    def trim(self, shard: int, offset_next: int) -> None:
        keys = self._keyspace.keys[shard]
        call = _TRIM.call(shard, [keys.meta, keys.outbox, keys.snapshots], [keys.base, offset_next])
        (lost,) = self._run("trim outbox", [call], repeatable=True)
        self._trimmed[shard] = max(offset_next, self._trimmed.get(shard, 0))
        if lost:
            _log.error(
                "shard %d of the online store has lost its last %d changes, which are in the offline store: the server was "
                "restarted without its newest data, or a replica took over that lacked it; see docs/guides/redis.md",
                shard,
                lost,
            )

    def trimmed(self) -> dict[int, int]:
        calls = shard_calls(self._keyspace, "HGET", "trimmed")
        found = self._run("read outbox", calls, repeatable=True)
        return {shard: int(trimmed or 1) for shard, trimmed in enumerate(found)}

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._link.close()

    def _run(self, operation: str, calls: Sequence[Call], *, repeatable: bool) -> list[Any]:
        with self._lock:
            if self._closed:
                raise StoreUnavailable(operation, "the change log is closed")
            return self._link.run_all(operation, calls, repeatable=repeatable)


def log_entry(shard: int, entry_id: bytes, fields: Sequence[bytes]) -> LogEntry:
    """An entry of the stream."""
    seq = int(entry_id.partition(b"-")[0])
    found = dict(zip(fields[::2], fields[1::2], strict=False))
    body = found.get(b"b", b"")
    try:
        stamp = Stamp(shard, seq, int(found[b"a"]))
        return LogEntry(seq, LoggedChange(decode_change(body), stamp))
    except (KeyError, ValueError):
        return LogEntry(seq, PoisonChange(body, "no API time", Stamp(shard, seq, 0)))
    except StoreCorrupt as error:
        return LogEntry(seq, PoisonChange(body, str(error), stamp))
