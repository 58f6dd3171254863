"""Every online store with its change source there is, for suites that run over all of them."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AsyncExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pytest
import redis

from featurestore.changelog.protocol import ChangeSource
from featurestore.changelog.redis import RedisChangeLog
from featurestore.changelog.sqlite import SqliteChangeLog
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import open_keyspace
from featurestore.model.change import OFFLINE, ONLINE, Applied, Change, LoggedChange, Op, shard_of
from featurestore.online.protocol import OnlineStore, Tally
from featurestore.online.redis import RedisOnlineStore
from featurestore.online.sqlite import SqliteOnlineStore

SHARDS = 3
OUTBOX_MAX = 5000
"""Changes that may wait in the outbox of a single shard, if the others are empty."""
BOTH = ONLINE | OFFLINE
SERVED = "-served"
BACKENDS = ["sqlite", "redis", f"redis{SERVED}", "redis-cluster", f"redis-cluster{SERVED}"]
"""A served one has connections of its loop's own, and is used through the verbs that need no coroutine."""


class Clock:
    """A clock that tests move."""

    def __init__(self) -> None:
        self.now_us = 1_000_000

    def __call__(self) -> int:
        return self.now_us


class Running(Protocol):
    """A deployment of Redis."""

    url: str
    folder: Path | None


class Backend:
    """One online store with its change source, and a loop to run it on."""

    files: Path | None
    """The folder below which the store keeps its bytes; None where tests can't look."""

    def __init__(self, clock: Clock, *, served: bool = False) -> None:
        self.clock = clock
        self.served = served
        self._loop = asyncio.new_event_loop()
        self._opened: list[OnlineStore] = []
        self.store = self.open()
        self.log = self.open_log()
        self._serving = AsyncExitStack()
        if served:
            self.run(self._serving.enter_async_context(self.store.serving()))

    def open(self) -> OnlineStore:
        """Another handle on the same store, as another process would have. `close` closes it, too."""
        self._opened.append(self.make_store())
        return self._opened[-1]

    def make_store(self) -> OnlineStore:
        raise NotImplementedError

    def open_log(self) -> ChangeSource:
        raise NotImplementedError

    def spoil_last(self, shard: int) -> None:
        """Make the bytes of a shard's newest outbox entry undecodable."""
        raise NotImplementedError

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self._loop.run_until_complete(coroutine)

    def apply(self, *changes: Change) -> Sequence[Applied]:
        if self.served and len(changes) == 1:
            return [self.run(answer_of(partial(self.store.apply_soon, changes[0])))]
        return self.run(self.store.apply(changes))

    def read(self, record_id: str, group_id: int = 1) -> bytes | None:
        (stored,) = self.run(self.store.get([(group_id, record_id)]))
        expected = None if stored is None else (stored.values, stored.expires_at_us)
        assert self.run(answer_of(partial(self.store.read_one, group_id, record_id))) == expected
        wanted = [
            (group_id, [record_id, record_id]),
            (group_id + 1_000_000, [record_id]),
            (group_id, []),
            (group_id, [record_id]),
        ]
        assert self.run(answer_of(partial(self.store.read, wanted))) == [expected, expected, None, expected]
        return None if stored is None else stored.values

    def pages(self, records_max: int, group_id: int = 1, *, deleted: bool = False) -> list[list[str]]:
        """The identifiers of a group, page by page."""
        pages, place = [], None
        while True:
            page = self.run(self.store.page(group_id, place, records_max, deleted=deleted))
            pages.append([record_id for record_id, _ in page.records])
            place = page.end
            if place is None:
                return pages

    def listed(self, group_id: int = 1, *, deleted: bool = False) -> list[str]:
        """All of them, in order."""
        found = [record_id for page in self.pages(100, group_id, deleted=deleted) for record_id in page]
        assert len(found) == len(set(found))
        return sorted(found)

    def logged(self, record_id: str) -> list[LoggedChange]:
        return self.changes(shard_of(record_id, SHARDS), 1, 10_000)

    def changes(self, shard: int, offset_first: int, entries_max: int) -> list[LoggedChange]:
        return [entry.item for entry in self.log.read(shard, offset_first, entries_max) if isinstance(entry.item, LoggedChange)]

    def states(self, group_id: int = 1) -> dict[str, dict[str, Any]]:
        """The snapshot's rows by record."""
        with self.store.snapshot(group_id) as snapshot:
            rows = [row for batch in snapshot.states() for row in batch.to_pylist()]
            assert snapshot.records() == len(rows)
        return {row.pop("record_id"): row for row in rows}

    def tally(self, record_id: str, group_id: int = 1) -> Tally:
        """Of the record's shard."""
        with self.store.snapshot(group_id) as snapshot:
            return snapshot.tallies().get(shard_of(record_id, SHARDS), Tally())

    def close(self) -> None:
        self.run(self._serving.aclose())
        for store in self._opened:
            store.close()
        self.log.close()
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


class SqliteBackend(Backend):
    def __init__(self, folder: Path, clock: Clock) -> None:
        self.files = folder
        self._path = folder / "online.db"
        super().__init__(clock)

    def make_store(self) -> OnlineStore:
        return SqliteOnlineStore(self._path, SHARDS, outbox_changes_max=OUTBOX_MAX, clock_us=self.clock)

    def open_log(self) -> ChangeSource:
        return SqliteChangeLog(self._path, SHARDS)

    def spoil_last(self, shard: int) -> None:
        with closing(sqlite3.connect(self._path)) as database, database:
            database.execute("UPDATE outbox SET body = x'00' WHERE position = (SELECT max(position) FROM outbox)")


class RedisBackend(Backend):
    """A store of its own, by a prefix, in a deployment that tests share."""

    def __init__(self, running: Running, clock: Clock, *, served: bool = False) -> None:
        self.files = running.folder
        self.prefix = uuid.uuid4().hex[:8]
        self.url = f"{running.url}{'&' if '?' in running.url else '?'}prefix={self.prefix}"
        self.keyspace = open_keyspace(parse_redis_url(self.url), SHARDS)
        super().__init__(clock, served=served)

    def make_store(self) -> OnlineStore:
        return RedisOnlineStore(self.keyspace, outbox_changes_max=OUTBOX_MAX * SHARDS, clock_us=self.clock)

    def open_log(self) -> ChangeSource:
        return RedisChangeLog(self.keyspace)

    def spoil_last(self, shard: int) -> None:
        outbox = self.keyspace.keys[shard].outbox
        link = self.keyspace.link()
        with closing(link):
            (host, port) = link.owners()[shard]
            with closing(redis.Redis(host, port)) as client:
                entries = client.xrange(outbox)
                client.delete(outbox)
                for position, (entry_id, fields) in enumerate(entries, 1):
                    client.xadd(outbox, fields if position < len(entries) else {**fields, b"b": b"\0"}, entry_id)


def make_backend(name: str, request: pytest.FixtureRequest, folder: Path, clock: Clock) -> Backend:
    """The backend of one of BACKENDS; its servers are session fixtures, which skip the test where there are none."""
    if name == "sqlite":
        return SqliteBackend(folder, clock)
    fixture = name.removesuffix(SERVED).replace("-", "_")
    return RedisBackend(request.getfixturevalue(fixture), clock, served=name.endswith(SERVED))


async def answer_of(ask: Callable[[Callable[[Any], None]], None]) -> Any:
    """What a verb gives to its callback: returned, or raised if it is an exception. A second answer fails the test."""
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    ask(lambda found: answer.set_exception(found) if isinstance(found, Exception) else answer.set_result(found))
    return await answer


def put(record_id: str, event_time_us: int, values: bytes = b"v", **members: Any) -> Change:
    fields = {"op": Op.PUT, "targets": BOTH, "expires_at_us": None, "write_id": None, "group_id": 1} | members
    return Change(schema_version=1, record_id=record_id, event_time_us=event_time_us, values=values, **fields)
