"""The index of records on Redis: whatever enters and leaves, in whatever order, it holds what a sorted list would."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Coroutine, Sequence
from itertools import pairwise
from typing import Any

import pytest
import redis as driver
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import Keyspace, open_keyspace
from featurestore.model.change import OFFLINE, ONLINE, Change, LoggedChange, Op, Stamp
from featurestore.model.limits import RECORD_IDENTIFIER_BYTES_MAX
from featurestore.model.stamped_rows import StampedRows
from featurestore.online.redis import RedisOnlineStore
from tests.conftest import RunningRedis

GROUP = 1
LEAF_MAX = 128
"""Where Redis stops to keep a sorted set packed, unless it is told otherwise."""
STEP_CHANGES = 100

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
LONG = st.builds(lambda text, end: (text * RECORD_IDENTIFIER_BYTES_MAX)[:500] + end, TEXTS, TEXTS)
PREFIXES = st.sampled_from(["", "a", "ab", "b:", "\0", "é", "\U0010ffff", "x" * 70])


@st.composite
def runs(draw: st.DrawFn) -> list[str]:
    """Identifiers that a program would count up: ascending, descending or shuffled; of one width or not."""
    prefix, shape = draw(PREFIXES), draw(st.sampled_from(["{}", "{:05}"]))
    start, count = draw(st.integers(0, 400)), draw(st.integers(1, 200))
    ids = [prefix + shape.format(number) for number in range(start, start + count)]
    order = draw(st.sampled_from(["ascending", "descending", "shuffled"]))
    if order == "shuffled":
        random.Random(start).shuffle(ids)
    return ids[::-1] if order == "descending" else ids


IDS = st.one_of(runs(), st.lists(st.one_of(TEXTS, LONG), min_size=1, max_size=20))


def index_of(client: driver.Redis, keyspace: Keyspace) -> list[bytes]:
    """The ids in the index of the only shard, in its order, from the raw keys; whatever is wrong with their form fails."""
    directory = keyspace.keys[0].index(GROUP)
    bounds = client.zrange(directory, 0, -1)
    assert b"" not in bounds
    ids: list[bytes] = []
    for bound in [b"", *bounds]:
        leaf = client.zrange(directory + b":" + bound, 0, -1)
        assert len(leaf) <= LEAF_MAX
        assert bound == b"" or leaf[0] == bound, "a leaf is named by its least id"
        ids += leaf
    assert all(one < other for one, other in pairwise(ids))
    leaves = {directory + b":" + bound for bound in bounds}
    found = set(client.scan_iter(directory + b":*", count=10_000))
    assert found - {directory + b":"} == leaves, "a leaf that the directory does not know"
    return ids


class IndexMachine(RuleBasedStateMachine):
    url = ""

    @initialize()
    def open(self) -> None:
        self.client = driver.Redis.from_url(self.url)
        self.keyspace = open_keyspace(parse_redis_url(f"{self.url}?prefix={uuid.uuid4().hex}"), 1)
        self.store = RedisOnlineStore(self.keyspace, outbox_changes_max=1_000_000)
        self.loop = asyncio.new_event_loop()
        self.kept: set[str] = set()
        self.time_us = 0

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def changes(self, ids: Sequence[str], op: Op) -> list[Change]:
        self.time_us += 1
        return [Change(GROUP, 1, record_id, self.time_us, op, ONLINE | OFFLINE, None, b"v") for record_id in ids]

    def write(self, ids: Sequence[str], op: Op, step: int = STEP_CHANGES) -> None:
        for start in range(0, len(ids), step):
            self.run(self.store.apply(self.changes(ids[start : start + step], op)))

    @rule(ids=IDS, op=st.sampled_from([Op.PUT, Op.PUT, Op.SOFT_DELETE]), step=st.sampled_from([20, STEP_CHANGES]))
    def enter(self, ids: list[str], op: Op, step: int) -> None:
        self.write(ids, op, step)
        self.kept.update(ids)

    @rule(ids=IDS)
    def hard_delete(self, ids: list[str]) -> None:
        self.write(ids, Op.HARD_DELETE)
        self.kept.difference_update(ids)

    @rule(entering=IDS, leaving=IDS)
    def enter_and_hard_delete(self, entering: list[str], leaving: list[str]) -> None:
        """In one step."""
        entering, leaving = entering[:50], leaving[:50]
        self.run(self.store.apply(self.changes(entering, Op.PUT) + self.changes(leaving, Op.HARD_DELETE)))
        self.kept.update(entering)
        self.kept.difference_update(leaving)

    @rule(first=st.floats(0, 1), share=st.floats(0, 1), by_erasure=st.booleans())
    def remove_a_range(self, first: float, share: float, by_erasure: bool) -> None:
        """Whole leaves go."""
        ids = sorted(self.kept, key=str.encode)
        start = int(first * len(ids))
        ids = ids[start : start + int(share * len(ids)) + 1]
        if by_erasure:
            self.run(self.store.erase(uuid.uuid4().bytes, GROUP, ids))
        else:
            self.write(ids, Op.HARD_DELETE)
        self.kept.difference_update(ids)

    @rule(ids=IDS)
    def load(self, ids: list[str]) -> None:
        ids = list(dict.fromkeys(ids))
        first_us = self.run(self.store.reserve({0: len(ids)}))[0]
        changes = self.changes(ids, Op.PUT)
        rows = [LoggedChange(change, Stamp(0, 0, first_us + at)) for at, change in enumerate(changes)]
        self.run(self.store.load(StampedRows.of_changes(rows)))
        self.kept.update(ids)

    @rule()
    def drop_group(self) -> None:
        self.run(self.store.drop_group(GROUP))
        self.kept.clear()

    @rule(records_max=st.integers(1, 300), entering=IDS, leaving=IDS)
    def page(self, records_max: int, entering: list[str], leaving: list[str]) -> None:
        """What is there all the time is in exactly one page, whatever splits and goes meanwhile."""
        lasting, ever = self.kept - set(leaving), {*self.kept, *entering}
        seen: list[str] = []
        place, number = None, 0
        while True:
            page = self.run(self.store.page(GROUP, place, records_max, deleted=True))
            seen += [record_id for record_id, _ in page.records]
            place, number = page.end, number + 1
            if place is None:
                break
            if number == 1:
                self.enter(entering, Op.PUT, STEP_CHANGES)
            elif number == 2:
                self.hard_delete(leaving)
        assert [record_id.encode() for record_id in seen] == sorted({record_id.encode() for record_id in seen})
        assert lasting <= set(seen) <= ever

    @invariant()
    def is_a_sorted_list(self) -> None:
        if hasattr(self, "kept"):
            assert index_of(self.client, self.keyspace) == sorted(record_id.encode() for record_id in self.kept)

    def teardown(self) -> None:
        if not hasattr(self, "kept"):
            return
        try:
            self.run(self.store.drop_group(GROUP))
            left = list(self.client.scan_iter(self.keyspace.address.prefix.encode() + b":*", count=10_000))
            self.client.delete(*left)
            assert not [key for key in left if b":i:" in key or b":r:" in key]
        finally:
            self.store.close()
            self.run(self.loop.shutdown_default_executor())
            self.loop.close()
            self.client.close()


def test_the_index_is_a_sorted_list(redis: RunningRedis) -> None:
    machine = type("Machine", (IndexMachine,), {"url": redis.url})
    run_state_machine_as_test(machine, settings=settings(max_examples=25, stateful_step_count=20, deadline=None))


@pytest.mark.parametrize(("order", "leaves_max"), [("ascending", 8), ("descending", 8), ("shuffled", 15)])
def test_leaves_are_packed_and_full(redis: RunningRedis, order: str, leaves_max: int) -> None:
    ids = [f"customer-{number:07}" for number in range(1000)]
    if order == "shuffled":
        random.Random(1).shuffle(ids)
    machine = type("Machine", (IndexMachine,), {"url": redis.url})()
    machine.open()
    try:
        machine.write(ids[::-1] if order == "descending" else ids, Op.PUT)
        directory = machine.keyspace.keys[0].index(GROUP)
        leaves = [directory + b":" + bound for bound in [b"", *machine.client.zrange(directory, 0, -1)]]
        assert {machine.client.object("encoding", leaf) for leaf in leaves} <= {b"listpack", b"ziplist"}
        assert len(leaves) <= leaves_max
    finally:
        machine.teardown()
