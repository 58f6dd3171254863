"""The online store as a state machine: every sequence of calls leaves what a dictionary would hold."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from featurestore.changelog.protocol import ChangeSource
from featurestore.changelog.redis import RedisChangeLog
from featurestore.changelog.sqlite import SqliteChangeLog
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import open_keyspace
from featurestore.model.change import OFFLINE, ONLINE, Applied, Change, LoggedChange, Op, Outcome, Stamp, shard_of, wins
from featurestore.model.stamped_rows import StampedRows
from featurestore.online.protocol import Erased, OnlineStore, RecordState
from featurestore.online.redis import RedisOnlineStore
from featurestore.online.sqlite import SqliteOnlineStore

SHARDS = 2
KEYS = st.sampled_from(["a", "b", "c"])
TIMES_US = st.integers(0, 9)
TARGETS = st.sampled_from([ONLINE | OFFLINE, ONLINE | OFFLINE, ONLINE, OFFLINE])


@dataclass
class Held:
    """What the model knows of one record."""

    event_time_us: int
    api_time_us: int
    live: bool
    values: bytes
    expires_at_us: int | None


class OnlineStoreMachine(RuleBasedStateMachine):
    """The machine without a store: a subclass opens one of its own for each run."""

    def begin(self) -> None:
        """Before a run: nothing is stored."""
        raise NotImplementedError

    def open_stores(self) -> tuple[OnlineStore, ChangeSource]:
        raise NotImplementedError

    def end(self) -> None:
        """After a run."""

    @initialize()
    def open(self) -> None:
        self.begin()
        self.now_us = 1_000
        self.loop = asyncio.new_event_loop()
        self.held: dict[str, Held] = {}
        self.graves: dict[str, int] = {}
        self.erased: dict[str, int] = {}
        self.erasures: dict[bytes, tuple[list[str], Erased]] = {}
        self.logged: dict[int, list[bytes]] = {shard: [] for shard in range(SHARDS)}
        self.pending: list[LoggedChange] = []
        self.count = 0
        self.reopen()

    @rule()
    def reopen(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.log.close()
        self.store, self.log = self.open_stores()

    @rule(step_us=st.integers(-3, 10))
    def move_clock(self, step_us: int) -> None:
        self.now_us += step_us

    @rule(
        key=KEYS,
        event_time_us=TIMES_US,
        op=st.sampled_from([Op.PUT, Op.PUT, Op.SOFT_DELETE, Op.HARD_DELETE]),
        stores=TARGETS,
        ttl_us=st.one_of(st.none(), st.integers(990, 1010)),
    )
    def apply(self, key: str, event_time_us: int, op: Op, stores: int, ttl_us: int | None) -> None:
        self.count += 1
        values = b"%d" % self.count
        expires_at_us = event_time_us + ttl_us if ttl_us is not None and op is Op.PUT else None
        change = Change(1, 1, key, event_time_us, op, stores, expires_at_us, values)
        (applied,) = self.loop.run_until_complete(self.store.apply([change]))
        held = self.held.get(key)
        if not stores & ONLINE:
            expected = Outcome.HISTORIC
        elif held is None:
            expected = Outcome.NEWEST
        elif op is Op.PUT:
            expected = Outcome.NEWEST if event_time_us >= held.event_time_us else Outcome.HISTORIC
        elif event_time_us > held.event_time_us:
            expected = Outcome.NEWEST
        else:
            expected = Outcome.REFUSED if op is Op.HARD_DELETE else Outcome.HISTORIC
        assert applied.outcome is expected
        if expected is Outcome.REFUSED:
            return
        assert applied.stamp is not None
        self.logged[applied.stamp.shard].append(values)
        if expected is Outcome.NEWEST and op is Op.HARD_DELETE:
            self.held.pop(key, None)
            self.graves[key] = applied.stamp.api_time_us
        elif expected is Outcome.NEWEST:
            self.held[key] = Held(event_time_us, applied.stamp.api_time_us, op is Op.PUT, values, expires_at_us)

    @rule(key=KEYS, step_us=st.integers(0, 3), ttl_us=st.one_of(st.none(), st.integers(990, 1010)), stale=st.booleans())
    def update(self, key: str, step_us: int, ttl_us: int | None, stale: bool) -> None:
        """As UpdateRecord: read, merge, write upon what was read; or upon what was there before."""
        (record,) = self.loop.run_until_complete(self.store.get([(1, key)]))
        held = self.held.get(key)
        self.count += 1
        event_time_us = (0 if held is None else held.event_time_us) + step_us
        values = b"%d" % self.count
        expires_at_us = None if ttl_us is None else event_time_us + ttl_us
        change = Change(1, 1, key, event_time_us, Op.PUT, ONLINE | OFFLINE, expires_at_us, values, b"%016d" % self.count)
        read_us = 0 if record is None else record.api_time_us - stale
        applied = self.loop.run_until_complete(self.store.apply_upon(change, read_us))
        if record is None or stale:
            assert applied == Applied(Outcome.SUPERSEDED, None)
            return
        assert applied.outcome is Outcome.NEWEST
        assert applied.stamp is not None
        assert self.loop.run_until_complete(self.store.apply_upon(change, read_us)) == applied
        self.logged[applied.stamp.shard].append(values)
        self.held[key] = Held(event_time_us, applied.stamp.api_time_us, True, values, expires_at_us)

    @rule(rows=st.lists(st.tuples(KEYS, TIMES_US, st.sampled_from([Op.PUT, Op.SOFT_DELETE])), min_size=1, max_size=5))
    def apply_each(self, rows: list[tuple[str, int, Op]]) -> None:
        changes = []
        for key, event_time_us, op in rows:
            self.count += 1
            changes.append(Change(1, 1, key, event_time_us, op, ONLINE | OFFLINE, None, b"%d" % self.count))
        applied = self.loop.run_until_complete(self.store.apply_each(changes))
        for change, answer in zip(changes, applied, strict=True):
            assert isinstance(answer, Applied)
            assert answer.stamp is not None
            self.logged[answer.stamp.shard].append(change.values)
            held = self.held.get(change.record_id)
            outcome = wins(change, None if held is None else held.event_time_us)
            assert answer.outcome is outcome
            if outcome is Outcome.NEWEST:
                live = change.op is Op.PUT
                self.held[change.record_id] = Held(change.event_time_us, answer.stamp.api_time_us, live, change.values, None)

    @rule(records_max=st.integers(1, 4), deleted=st.booleans())
    def list_records(self, records_max: int, deleted: bool) -> None:
        found: list[tuple[str, bytes | None]] = []
        place, pages = None, 0
        while pages == 0 or place is not None:
            page = self.loop.run_until_complete(self.store.page(1, place, records_max, deleted=deleted, values=True))
            assert len(page.records) <= records_max
            found += page.records
            place, pages = page.end, pages + 1
            assert pages <= 4
        expected = {
            key: held.values
            for key, held in self.held.items()
            if (held.live and (held.expires_at_us is None or held.expires_at_us > self.now_us)) or (deleted and not held.live)
        }
        assert sorted(found) == sorted(expected.items())

    @rule(key=KEYS, event_time_us=TIMES_US, op=st.sampled_from([Op.PUT, Op.PUT, Op.SOFT_DELETE, Op.HARD_DELETE]))
    def reserve(self, key: str, event_time_us: int, op: Op) -> None:
        self.count += 1
        shard = shard_of(key, SHARDS)
        first_us = self.loop.run_until_complete(self.store.reserve({shard: 1}))[shard]
        change = Change(1, 1, key, event_time_us, op, ONLINE | OFFLINE, None, b"%d" % self.count)
        self.pending.append(LoggedChange(change, Stamp(shard, 0, first_us)))

    @rule(data=st.data())
    def load(self, data: st.DataObject) -> None:
        if not self.pending:
            return
        rows = data.draw(st.lists(st.sampled_from(self.pending), min_size=1, max_size=4))
        self.loop.run_until_complete(self.store.load(StampedRows.of_changes(rows)))
        for row in sorted(rows, key=lambda row: row.change.op is not Op.HARD_DELETE):
            change, api_us, key = row.change, row.stamp.api_time_us, row.change.record_id
            held = self.held.get(key)
            if api_us <= max(self.graves.get(key, 0), self.erased.get(key, 0)):
                continue
            if change.op is Op.HARD_DELETE:
                self.graves[key] = api_us
                if held is not None and held.api_time_us <= api_us:
                    del self.held[key]
                continue
            live = change.op is Op.PUT
            if held is None or (change.event_time_us, live, api_us) > (held.event_time_us, held.live, held.api_time_us):
                self.held[key] = Held(change.event_time_us, api_us, live, change.values, None)

    @rule(keys=st.sets(KEYS, min_size=1))
    def erase(self, keys: set[str]) -> None:
        erasure_id = b"%016d" % len(self.erasures)
        erased = self.loop.run_until_complete(self.store.erase(erasure_id, 1, sorted(keys)))
        assert erased.removed == len(keys & (self.held.keys() | self.graves.keys()))
        assert erased.until_us.keys() == {shard_of(key, SHARDS) for key in keys}
        self.erasures[erasure_id] = (sorted(keys), erased)
        for key in keys:
            self.held.pop(key, None)
            self.graves.pop(key, None)
            self.erased[key] = erased.until_us[shard_of(key, SHARDS)]

    @precondition(lambda self: self.erasures)
    @rule(data=st.data())
    def erase_again(self, data: st.DataObject) -> None:
        erasure_id = data.draw(st.sampled_from(sorted(self.erasures)))
        keys, erased = self.erasures[erasure_id]
        assert self.loop.run_until_complete(self.store.erase(erasure_id, 1, keys)) == erased

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "store"):
            return
        keys = ["a", "b", "c"]
        found = self.loop.run_until_complete(self.store.get([(1, key) for key in keys]))
        for key, record in zip(keys, found, strict=True):
            held = self.held.get(key)
            expired = held is not None and held.expires_at_us is not None and held.expires_at_us <= self.now_us
            expected = held.values if held is not None and held.live and not expired else None
            assert (None if record is None else record.values) == expected
        with self.store.snapshot(1) as snapshot:
            states = {row["record_id"]: row for batch in snapshot.states() for row in batch.to_pylist()}
            assert snapshot.records() == len(states)
        assert states.keys() == self.held.keys() | self.graves.keys()
        for key, row in states.items():
            assert (row["state"] == RecordState.GRAVE) == (key not in self.held)
            assert row["grave_us"] == self.graves.get(key, 0)
        for shard, values in self.logged.items():
            assert [entry.item.change.values for entry in self.log.read(shard, 1, 10_000)] == values

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close()
            self.log.close()
            self.loop.run_until_complete(self.loop.shutdown_default_executor())
            self.loop.close()
            self.end()


class SqliteMachine(OnlineStoreMachine):
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp())

    def open_stores(self) -> tuple[OnlineStore, ChangeSource]:
        path = self.folder / "online.db"
        store = SqliteOnlineStore(path, SHARDS, outbox_changes_max=10_000, clock_us=lambda: self.now_us)
        return store, SqliteChangeLog(path, SHARDS)

    def end(self) -> None:
        shutil.rmtree(self.folder)


class RedisMachine(OnlineStoreMachine):
    url = ""

    def begin(self) -> None:
        self.keyspace = open_keyspace(parse_redis_url(f"{self.url}?prefix={uuid.uuid4().hex}"), SHARDS)

    def open_stores(self) -> tuple[OnlineStore, ChangeSource]:
        store = RedisOnlineStore(self.keyspace, outbox_changes_max=10_000, clock_us=lambda: self.now_us)
        return store, RedisChangeLog(self.keyspace)


@pytest.mark.parametrize("kind", ["sqlite", "redis", "redis-cluster"])
def test_a_store_is_what_a_dictionary_would_be(request: pytest.FixtureRequest, kind: str) -> None:
    machine = SqliteMachine
    if kind != "sqlite":
        url = request.getfixturevalue(kind.replace("-", "_")).url
        machine = type("Machine", (RedisMachine,), {"url": url})
    run_state_machine_as_test(machine, settings=settings(max_examples=35, stateful_step_count=40, deadline=None))
