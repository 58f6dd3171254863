"""What every online store promises, over every backend there is."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from featurestore.errors import OutboxFull, StoreCorrupt, StoreUnavailable
from featurestore.model.change import OFFLINE, ONLINE, Applied, Change, LoggedChange, Op, Outcome, PoisonChange, Stamp, shard_of
from featurestore.model.stamped_rows import StampedRows
from featurestore.online.protocol import APPLY_CHANGES_MAX, PAGE_LOOKED_AT_MAX, STATES, OnlineStore, RecordState, Tally
from featurestore.online.sqlite import SqliteOnlineStore
from tests.backends import BACKENDS, OUTBOX_MAX, SHARDS, Backend, Clock, make_backend, put
from tests.redis_server import wait_until

ERASURE = b"0123456789abcdef"
WAIT_S_MAX = 60.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, clock: Clock) -> Iterator[Backend]:
    backend = make_backend(request.param, request, tmp_path, clock)
    yield backend
    backend.close()


def test_newest_event_time_wins_and_everything_is_logged(backend: Backend) -> None:
    outcomes = [applied.outcome for applied in backend.apply(put("a", 10, b"10"), put("a", 5, b"5"), put("a", 20, b"20"))]
    assert outcomes == [Outcome.NEWEST, Outcome.HISTORIC, Outcome.NEWEST]
    assert backend.read("a") == b"20"
    assert [item.change.values for item in backend.logged("a")] == [b"10", b"5", b"20"]


def test_equal_event_time_is_overwritten_by_the_later_arrival(backend: Backend) -> None:
    backend.apply(put("a", 10, b"first"))
    assert backend.apply(put("a", 10, b"second"))[0].outcome is Outcome.NEWEST
    assert backend.read("a") == b"second"


def test_soft_delete_hides_and_remembers(backend: Backend) -> None:
    backend.apply(put("a", 10), put("a", 20, op=Op.SOFT_DELETE))
    assert backend.read("a") is None
    assert backend.apply(put("a", 15))[0].outcome is Outcome.HISTORIC
    assert backend.read("a") is None
    backend.apply(put("a", 20, b"again"))
    assert backend.read("a") == b"again"


@pytest.mark.parametrize("event_time_us", [5, 10])
def test_soft_delete_that_is_not_later_changes_nothing_online_and_is_logged(backend: Backend, event_time_us: int) -> None:
    backend.apply(put("a", 10, b"kept"))
    assert backend.apply(put("a", event_time_us, op=Op.SOFT_DELETE))[0].outcome is Outcome.HISTORIC
    assert backend.read("a") == b"kept"
    assert len(backend.logged("a")) == 2


def test_hard_delete_forgets_the_event_time(backend: Backend) -> None:
    backend.apply(put("a", 10), put("a", 20, op=Op.HARD_DELETE))
    assert backend.read("a") is None
    assert backend.apply(put("a", 1, b"older"))[0].outcome is Outcome.NEWEST
    assert backend.read("a") == b"older"


@pytest.mark.parametrize("event_time_us", [9, 10])
def test_hard_delete_that_is_not_later_is_refused_and_not_logged(backend: Backend, event_time_us: int) -> None:
    backend.apply(put("a", 10, b"kept"))
    (applied,) = backend.apply(put("a", event_time_us, op=Op.HARD_DELETE))
    assert applied == Applied(Outcome.REFUSED, None)
    assert backend.read("a") == b"kept"
    assert len(backend.logged("a")) == 1


def test_hard_delete_of_nothing_is_accepted(backend: Backend) -> None:
    assert backend.apply(put("a", 1, op=Op.HARD_DELETE))[0].outcome is Outcome.NEWEST
    assert backend.read("a") is None


def test_changes_for_the_offline_store_only_leave_the_record_alone(backend: Backend) -> None:
    backend.apply(put("a", 10, b"kept"))
    backend.apply(put("a", 99, targets=OFFLINE), put("a", 98, op=Op.HARD_DELETE, targets=OFFLINE))
    assert backend.read("a") == b"kept"
    assert len(backend.logged("a")) == 3


def test_expired_records_are_absent_from_the_very_moment_and_keep_their_time(backend: Backend, clock: Clock) -> None:
    backend.apply(put("a", 10, b"v", expires_at_us=2_000_000))
    clock.now_us = 1_999_999
    assert backend.read("a") == b"v"
    clock.now_us = 2_000_000
    assert backend.read("a") is None
    assert backend.apply(put("a", 9))[0].outcome is Outcome.HISTORIC
    assert backend.read("a") is None


def test_a_put_that_has_expired_already_still_replaces(backend: Backend, clock: Clock) -> None:
    backend.apply(put("a", 10, b"old"), put("a", 20, b"new", expires_at_us=clock.now_us - 1))
    assert backend.read("a") is None


def test_groups_are_separate(backend: Backend) -> None:
    backend.apply(put("a", 10, b"one"), put("a", 5, b"two", group_id=2))
    assert backend.read("a", 1) == b"one"
    assert backend.read("a", 2) == b"two"


def test_many_records_at_once_are_found_each_in_its_place(backend: Backend) -> None:
    """More than go in one command of Redis or one statement of SQLite, and other reads of the same turn beside them."""
    held = [f"held {number}" for number in range(40)]
    backend.run(backend.store.apply([put(key, 1, values=key.encode()) for key in held]))
    many = [held[number % 40] if number % 11 else f"absent {number}" for number in range(9000)]
    wanted = [(1, many[:4000]), (2, held), (1, many[4000:])]

    async def ask() -> list[Any]:
        loop = asyncio.get_running_loop()
        answers = [loop.create_future() for _ in range(3)]
        backend.store.read_one(1, held[0], answers[0].set_result)
        backend.store.read(wanted, answers[1].set_result)
        backend.store.read_one(1, "absent", answers[2].set_result)
        return await asyncio.wait_for(asyncio.gather(*answers), WAIT_S_MAX)

    first, found, last = backend.run(ask())
    assert (first, last) == ((held[0].encode(), None), None)
    expected = [*many[:4000], *([None] * len(held)), *many[4000:]]
    assert found == [(key.encode(), None) if key in held else None for key in expected]


def test_stamps_are_dense_and_rising_even_if_the_clock_is_not(backend: Backend, clock: Clock) -> None:
    keys = [f"key-{number}" for number in range(50)]
    backend.apply(*(put(key, 1) for key in keys))
    clock.now_us -= 500_000
    backend.apply(*(put(key, 2) for key in keys))
    for shard in range(SHARDS):
        stamps = [item.stamp for item in backend.changes(shard, 1, 1000)]
        assert [stamp.seq for stamp in stamps] == list(range(1, len(stamps) + 1))
        times = [stamp.api_time_us for stamp in stamps]
        assert times == sorted(set(times))
        assert backend.log.ends()[shard] == len(stamps) + 1


def test_a_repeated_write_id_gets_its_first_answer(backend: Backend) -> None:
    change = put("a", 10, b"once", write_id=b"0123456789abcdef")
    (first,) = backend.apply(change)
    backend.apply(put("a", 10, b"between"))
    (second,) = backend.apply(change)
    assert second == first
    assert backend.read("a") == b"between"
    assert len(backend.logged("a")) == 2
    refused = put("a", 1, op=Op.HARD_DELETE, write_id=b"fedcba9876543210")
    assert backend.apply(refused) == backend.apply(refused)


def test_two_handles_share_one_state(backend: Backend) -> None:
    other = backend.open()
    try:
        stamps = [backend.apply(put("a", 10))[0].stamp, backend.run(other.apply([put("a", 11, b"other")]))[0].stamp]
        assert [stamp.seq for stamp in stamps] == [1, 2]
        assert backend.read("a") == b"other"
    finally:
        other.close()


def test_concurrent_writers_keep_the_log_dense(backend: Backend) -> None:
    async def write() -> None:
        calls = [backend.store.apply([put(f"key-{number % 7}", number)]) for number in range(300)]
        await asyncio.gather(*calls)

    backend.run(write())
    assert sum(end - 1 for end in backend.log.ends().values()) == 300


def test_several_event_loops_use_one_store_at_once(backend: Backend) -> None:
    def work(name: str) -> list[bytes | None]:
        async def write_and_read() -> list[bytes | None]:
            keys = [f"{name}-{number}" for number in range(100)]
            await asyncio.gather(*(backend.store.apply([put(key, 1, key.encode())]) for key in keys))
            found = await asyncio.gather(*(backend.store.get([(1, key)]) for key in keys))
            return [record and record.values for (record,) in found]

        return asyncio.run(write_and_read())

    names = [f"loop{number}" for number in range(4)]
    with ThreadPoolExecutor(len(names)) as pool:
        for name, values in zip(names, pool.map(work, names), strict=True):
            assert values == [f"{name}-{number}".encode() for number in range(100)]
    assert sum(end - 1 for end in backend.log.ends().values()) == 400


def test_a_full_outbox_refuses_and_recovers(backend: Backend) -> None:
    for _ in range(OUTBOX_MAX // 1000):
        backend.apply(*(put("a", number) for number in range(1000)))
    other = next(key for key in map(str, range(100)) if shard_of(key, SHARDS) == shard_of("a", SHARDS))
    with pytest.raises(OutboxFull) as caught:
        backend.apply(put("a", 9999), put(other, 1, write_id=b"0123456789abcdef"))
    assert caught.value.entries == OUTBOX_MAX
    assert backend.read(other) is None
    backend.log.trim(shard_of("a", SHARDS), 500)
    backend.apply(put(other, 1, write_id=b"0123456789abcdef"))
    assert backend.read(other) == b"v"


def test_each_change_of_a_call_is_decided_by_itself(backend: Backend) -> None:
    backend.apply(put("b", 10, b"kept"))
    answers = backend.run(
        backend.store.apply_each([put("a", 1, b"1"), put("b", 5, op=Op.HARD_DELETE), put("a", 2, b"2"), put("c", 1, b"3")])
    )
    assert [answer.outcome for answer in answers] == [Outcome.NEWEST, Outcome.REFUSED, Outcome.NEWEST, Outcome.NEWEST]
    assert [backend.read(key) for key in "abc"] == [b"2", b"kept", b"3"]
    assert [item.change.values for item in backend.logged("a") if item.change.record_id == "a"] == [b"1", b"2"]


def test_of_a_call_the_changes_are_written_that_the_outbox_has_room_for(backend: Backend) -> None:
    mates = [key for key in map(str, range(1000)) if shard_of(key, SHARDS) == shard_of("a", SHARDS)][:6]
    for start in range(0, OUTBOX_MAX - 2, 1000):
        backend.apply(*(put("a", number) for number in range(start, min(start + 1000, OUTBOX_MAX - 2))))
    changes = [put(key, 1, write_id=b"%016d" % number) for number, key in enumerate(mates)]
    answers = backend.run(backend.store.apply_each(changes))
    assert [isinstance(answer, OutboxFull) for answer in answers] == [False, False, True, True, True, True]
    assert [answer.nothing_written for answer in answers[2:]] == [True] * 4
    assert [backend.read(key) for key in mates] == [b"v", b"v", None, None, None, None]
    backend.log.trim(shard_of("a", SHARDS), 1000)
    again = backend.run(backend.store.apply_each(changes))
    assert again[:2] == answers[:2]
    assert [answer.outcome for answer in again] == [Outcome.NEWEST] * 6
    assert backend.log.ends()[shard_of("a", SHARDS)] == OUTBOX_MAX - 2 + 6 + 1


def upon(backend: Backend, change: Change, api_time_us: int) -> Applied:
    applied: Applied = backend.run(backend.store.apply_upon(change, api_time_us))
    return applied


def api_time(backend: Backend, record_id: str) -> int:
    (found,) = backend.run(backend.store.get([(1, record_id)]))
    return int(found.api_time_us)


def test_a_change_upon_a_record_needs_it_as_it_was_read(backend: Backend) -> None:
    backend.apply(put("a", 10, b"read"))
    read_us = api_time(backend, "a")
    applied = upon(backend, put("a", 10, b"merged"), read_us)
    assert applied.outcome is Outcome.NEWEST
    assert backend.read("a") == b"merged"
    assert upon(backend, put("a", 11, b"late"), read_us) == Applied(Outcome.SUPERSEDED, None)
    assert backend.read("a") == b"merged"
    assert len(backend.logged("a")) == 2
    assert applied.stamp is not None
    assert upon(backend, put("a", 11, b"next"), applied.stamp.api_time_us).outcome is Outcome.NEWEST


@pytest.mark.parametrize("op", [Op.PUT, Op.SOFT_DELETE, Op.HARD_DELETE])
def test_whatever_came_between_supersedes_a_change(backend: Backend, op: Op) -> None:
    backend.apply(put("a", 10, b"read"))
    read_us = api_time(backend, "a")
    backend.apply(put("a", 20, b"between", op=op))
    assert upon(backend, put("a", 30, b"merged"), read_us).outcome is Outcome.SUPERSEDED
    assert backend.read("a") == (b"between" if op is Op.PUT else None)
    assert len(backend.logged("a")) == 2


def test_nothing_can_be_made_upon_a_record_that_is_not_there(backend: Backend) -> None:
    backend.apply(put("a", 10))
    read_us = api_time(backend, "a")
    assert upon(backend, put("b", 10), read_us).outcome is Outcome.SUPERSEDED
    backend.run(backend.store.erase(ERASURE, 1, ["a"]))
    assert upon(backend, put("a", 10), read_us).outcome is Outcome.SUPERSEDED
    assert backend.listed() == []


def test_a_repeated_change_upon_a_record_gets_its_first_answer(backend: Backend) -> None:
    write_id = b"0123456789abcdef"
    backend.apply(put("a", 10, b"read"))
    read_us = api_time(backend, "a")
    change = put("a", 10, b"merged", write_id=write_id)
    assert upon(backend, change, 0).outcome is Outcome.SUPERSEDED  # asking leaves nothing behind
    first = upon(backend, change, read_us)
    backend.apply(put("a", 20, b"between"))
    assert upon(backend, change, read_us) == upon(backend, change, 0) == first
    assert backend.read("a") == b"between"
    assert len(backend.logged("a")) == 3


def test_of_concurrent_changes_upon_one_record_one_takes_effect(backend: Backend) -> None:
    other = backend.open()
    backend.apply(put("a", 10, b"read"))
    read_us = api_time(backend, "a")

    async def write() -> list[Applied]:
        stores = [backend.store, other] * 20
        calls = [store.apply_upon(put("a", 10, b"%d" % number), read_us) for number, store in enumerate(stores)]
        return list(await asyncio.gather(*calls))

    outcomes = [applied.outcome for applied in backend.run(write())]
    assert sorted(set(outcomes)) == [Outcome.NEWEST, Outcome.SUPERSEDED]
    assert outcomes.count(Outcome.NEWEST) == 1
    assert backend.read("a") == b"%d" % outcomes.index(Outcome.NEWEST)
    assert len(backend.logged("a")) == 2


KEYS = ["a", "aa", "a:b", "b", "ä", "東京", "\U0001f980", "nul\0inside", "line\nfeed", "1", "10", "x" * 2048]


@pytest.mark.parametrize("records_max", [1, 3, 100])
def test_pages_name_every_live_record_once(backend: Backend, records_max: int) -> None:
    backend.apply(*(put(key, 1) for key in KEYS), put("other group", 1, group_id=11))
    pages = backend.pages(records_max)
    assert sorted(key for page in pages for key in page) == sorted(KEYS)
    assert all(len(page) == records_max for page in pages[:-1])
    assert len(pages[-1]) <= records_max
    assert backend.pages(records_max, group_id=111) == [[]]


def test_pages_leave_out_what_is_not_live(backend: Backend, clock: Clock) -> None:
    backend.apply(*(put(key, 10, key.encode()) for key in "abcdefg"))
    backend.apply(put("b", 20, op=Op.SOFT_DELETE), put("c", 20, op=Op.HARD_DELETE), put("d", 20, expires_at_us=2_000_000))
    backend.apply(put("e", 20, op=Op.SOFT_DELETE), put("e", 30), put("f", 20, op=Op.HARD_DELETE), put("f", 5))
    backend.run(backend.store.erase(ERASURE, 1, ["g"]))
    assert backend.listed() == ["a", "d", "e", "f"]
    assert backend.listed(deleted=True) == ["a", "b", "d", "e", "f"]
    clock.now_us = 2_000_000
    assert backend.listed() == ["a", "e", "f"]
    backend.apply(put("b", 30, op=Op.HARD_DELETE))
    assert backend.listed(deleted=True) == ["a", "e", "f"]
    backend.apply(put("z", 1, group_id=2))
    backend.run(backend.store.drop_group(1))
    assert backend.listed(deleted=True) == []
    assert backend.listed(2) == ["z"]


def test_pages_give_values_where_they_are_asked_for(backend: Backend) -> None:
    backend.apply(put("a", 10, b"live"), put("b", 10, b"marker", op=Op.SOFT_DELETE))
    page = backend.run(backend.store.page(1, None, 100, deleted=True, values=True))
    assert sorted(page.records) == [("a", b"live"), ("b", b"marker")]
    assert page.end is None


def test_loaded_records_are_in_pages(backend: Backend) -> None:
    shard_us = {shard: backend.run(backend.store.reserve({shard: 100}))[shard] for shard in range(SHARDS)}
    first = {key: shard_us[shard_of(key, SHARDS)] for key in "abcd"}
    load(backend, (put("a", 1), first["a"]), (put("b", 1, op=Op.SOFT_DELETE), first["b"]), (put("c", 1), first["c"]))
    assert (backend.listed(), backend.listed(deleted=True)) == (["a", "c"], ["a", "b", "c"])
    load(backend, (put("c", 0, op=Op.HARD_DELETE), first["c"] + 1), (put("d", 0, op=Op.HARD_DELETE), first["d"]))
    assert backend.listed(deleted=True) == ["a", "b"]
    load(backend, (put("c", 1), first["c"] + 2), (put("a", 0, op=Op.HARD_DELETE), first["a"] - 1))
    assert backend.listed(deleted=True) == ["a", "b", "c"]


def test_what_lives_all_the_time_is_in_exactly_one_page_whatever_is_written(backend: Backend) -> None:
    lasting = [f"lasting-{number}" for number in range(60)]
    passing = [f"{place}-{number}" for number in range(40) for place in ("a", "lasting-1", "z")]
    backend.apply(*(put(key, 1) for key in [*lasting, *passing[::2]]))
    seen: list[str] = []
    place, step = None, 0
    while True:
        page = backend.run(backend.store.page(1, place, 7))
        seen += [key for key, _ in page.records]
        place, step = page.end, step + 1
        if place is None:
            break
        backend.apply(*(put(key, 10 + step, op=Op.HARD_DELETE if step % 2 else Op.PUT) for key in passing[step % 3 :: 3]))
        backend.apply(*(put(key, 10 + step) for key in lasting[step::5]))
    assert len(seen) == len(set(seen))
    assert set(lasting) <= set(seen) <= {*lasting, *passing}


def test_a_page_looks_at_so_many_records(backend: Backend) -> None:
    """Expired ones in between do not make a page cost more, and do not end the listing."""
    rows = 2 * PAGE_LOOKED_AT_MAX
    first = {shard: backend.run(backend.store.reserve({shard: rows}))[shard] for shard in range(SHARDS)}
    gone = [put(f"m{number:06}", 1, expires_at_us=2) for number in range(rows)]
    load(backend, *((change, first[shard_of(change.record_id, SHARDS)] + number) for number, change in enumerate(gone)))
    backend.apply(put("a", 1), put("z", 1))
    pages = backend.pages(100)
    assert sorted(key for page in pages for key in page) == ["a", "z"]
    assert 2 <= len(pages) <= 3


def test_the_secret_is_the_stores(backend: Backend) -> None:
    assert len(backend.store.secret) == 32
    assert backend.open().secret == backend.store.secret


def test_reserved_api_times_lie_between_the_stamps_around_them(backend: Backend) -> None:
    shard = shard_of("a", SHARDS)
    before = backend.apply(put("a", 1))[0].stamp
    first_us = backend.run(backend.store.reserve({shard: 100}))[shard]
    after = backend.apply(put("a", 2))[0].stamp
    assert before.api_time_us < first_us
    assert first_us + 99 < after.api_time_us


def load(backend: Backend, *rows: tuple[Change, int]) -> int:
    stamped = [LoggedChange(change, Stamp(shard_of(change.record_id, SHARDS), 0, api_us)) for change, api_us in rows]
    return backend.run(backend.store.load(StampedRows.of_changes(stamped)))


def test_load_takes_the_greater_of_event_and_api_time(backend: Backend) -> None:
    stamp = backend.apply(put("a", 10, b"live"))[0].stamp
    assert load(backend, (put("a", 9, b"older"), stamp.api_time_us + 5)) == 0
    assert load(backend, (put("a", 10, b"earlier"), stamp.api_time_us - 1)) == 0
    assert backend.read("a") == b"live"
    assert load(backend, (put("a", 10, b"later"), stamp.api_time_us + 1)) == 1
    assert load(backend, (put("a", 10, b"later"), stamp.api_time_us + 1)) == 0
    assert backend.read("a") == b"later"
    assert len(backend.logged("a")) == 1


def test_load_does_not_resurrect_what_was_hard_deleted(backend: Backend) -> None:
    shard = shard_of("a", SHARDS)
    early_us = backend.run(backend.store.reserve({shard: 1}))[shard]
    backend.apply(put("a", 5, op=Op.HARD_DELETE))
    assert load(backend, (put("a", 100, b"dead"), early_us)) == 0
    assert backend.read("a") is None
    backend.apply(put("a", 1, b"new"))
    assert load(backend, (put("a", 100, b"dead"), early_us)) == 0
    assert backend.read("a") == b"new"
    late_us = backend.run(backend.store.reserve({shard: 1}))[shard]
    assert load(backend, (put("a", 100, b"alive"), late_us)) == 1
    assert backend.read("a") == b"alive"


def test_load_does_not_pass_a_tombstone(backend: Backend) -> None:
    stamp = backend.apply(put("a", 10, op=Op.SOFT_DELETE))[0].stamp
    assert load(backend, (put("a", 9), stamp.api_time_us + 1)) == 0
    assert backend.read("a") is None
    assert load(backend, (put("a", 10, b"same time"), stamp.api_time_us - 1)) == 1
    assert backend.read("a") == b"same time"
    assert load(backend, (put("a", 11, b"new"), stamp.api_time_us + 1)) == 1
    assert backend.read("a") == b"new"


def test_dropping_a_group_leaves_the_others_and_the_log(backend: Backend) -> None:
    backend.apply(*(put(f"key-{number}", 1) for number in range(20)), put("key-1", 1, b"two", group_id=2))
    backend.run(backend.store.drop_group(1))
    backend.run(backend.store.drop_group(1))
    assert backend.read("key-1", 1) is None
    assert backend.read("key-1", 2) == b"two"
    assert sum(end - 1 for end in backend.log.ends().values()) == 21


def test_erase_removes_whatever_had_arrived(backend: Backend) -> None:
    backend.apply(put("live", 10), put("deleted", 10), put("buried", 10), put("kept", 10), put("live", 10, b"2", group_id=2))
    backend.apply(put("deleted", 11, op=Op.SOFT_DELETE), put("buried", 11, op=Op.HARD_DELETE))
    logged, arrived_us = backend.log.ends(), {key: row["api_time_us"] for key, row in backend.states().items()}
    erased = backend.run(backend.store.erase(ERASURE, 1, ["live", "deleted", "buried", "unknown"]))
    assert erased.removed == 3
    assert backend.states().keys() == {"kept"}
    assert backend.read("live", 2) == b"2"
    assert all(erased.until_us[shard_of(key, SHARDS)] > arrived_us[key] for key in ("live", "deleted", "buried"))
    assert backend.log.ends() == logged
    assert [applied.outcome for applied in backend.apply(put("deleted", 1, b"anew"))] == [Outcome.NEWEST]
    assert backend.states()["deleted"]["api_time_us"] > erased.until_us[shard_of("deleted", SHARDS)]
    assert backend.run(backend.open().erase(ERASURE, 1, ["live", "deleted", "buried", "unknown"])) == erased
    assert backend.read("deleted") == b"anew", "an erasure that is repeated late spares what has come since"


def test_rows_of_erased_records_are_not_loaded(backend: Backend) -> None:
    shard = shard_of("a", SHARDS)

    def reserved(record_id: str, event_time_us: int, values: bytes, group_id: int = 1) -> StampedRows:
        first_us = backend.run(backend.store.reserve({shard_of(record_id, SHARDS): 1}))
        stamp = Stamp(shard_of(record_id, SHARDS), 0, first_us[shard_of(record_id, SHARDS)])
        return StampedRows.of_changes([LoggedChange(put(record_id, event_time_us, values, group_id=group_id), stamp)])

    def load(store: OnlineStore, *some: StampedRows) -> int:
        return sum(backend.run(store.load(rows)) for rows in some)

    before = [reserved("a", 9, b"late"), reserved("b", 9, b"b"), reserved("a", 9, b"other", group_id=2)]
    backend.run(backend.store.erase(ERASURE, 1, ["a"]))
    backend.apply(put("a", 1, b"put since"))
    assert load(backend.open(), *before) == 2
    assert [backend.read("a"), backend.read("b"), backend.read("a", 2)] == [b"put since", b"b", b"other"]
    assert load(backend.store, reserved("a", 2, b"loaded since")) == 1
    assert backend.read("a") == b"loaded since"
    backend.run(backend.store.erase(b"another erasure.", 1, ["a"]))
    assert load(backend.store, *before) == 0
    assert backend.read("a") is None
    assert backend.changes(shard, 1, 10)[-1].change.values == b"put since"


def test_purge_leaves_no_byte_of_what_is_gone(backend: Backend) -> None:
    gone = [b"overwritten-7c1f", b"soft-deleted-40aa", b"hard-deleted-e911", b"erased-03bd", b"dropped-5d2e", b"trimmed-aa07"]
    filler = b"filler" * 50

    if backend.files is None:
        pytest.skip("a running Redis server has its files elsewhere")

    def found(words: Sequence[bytes]) -> list[bytes]:
        files = [path.read_bytes() for path in backend.files.rglob("*") if path.is_file()]
        return [word for word in words if any(word in data for data in files)]

    for number in range(600):  # several pages, and several levels of them
        backend.apply(put(f"key-{number}", 1, gone[number % 6] + filler, group_id=2 if number % 6 == 4 else 1))
    for number in range(600):
        key = (1, f"key-{number}")
        match number % 6:
            case 0 | 5:
                backend.apply(put(key[1], 2, b"kept-91d4" + filler))
            case 1:
                backend.apply(put(key[1], 2, b"", op=Op.SOFT_DELETE))
            case 2:
                backend.apply(put(key[1], 2, b"", op=Op.HARD_DELETE))
            case 3:
                backend.run(backend.store.erase(b"%016d" % number, 1, [key[1]]))
    backend.run(backend.store.drop_group(2))
    for shard, end in backend.log.ends().items():
        backend.log.trim(shard, end)
    assert found([b"kept-91d4", *gone]) == [b"kept-91d4", *gone], "there is something to find"
    backend.run(backend.store.purge())
    wait_until(lambda: not found(gone), "the files of servers are replaced")
    assert found([b"kept-91d4"])
    assert backend.read("key-0") == b"kept-91d4" + filler
    backend.apply(put("key-0", 3, b"after"))
    assert backend.read("key-0") == b"after"


def test_writes_pass_between_the_steps_of_a_purge(backend: Backend) -> None:
    """Somebody looks at an old state, so the log can't be emptied; writes go on, and so does the purge when they leave."""
    backend.apply(put("a", 1))

    async def write_meanwhile() -> None:
        with backend.store.snapshot(1) as snapshot:
            purge = asyncio.create_task(backend.store.purge())
            for number in range(3):
                await backend.store.apply([put("b", number)])
            assert not purge.done()
            assert snapshot.records() == 1
        await purge

    backend.run(write_meanwhile())
    assert backend.read("b") == b"v"


def test_a_snapshot_stays_at_its_moment(backend: Backend) -> None:
    backend.apply(put("a", 1, b"old"), put("x", 1, group_id=2))
    with backend.store.snapshot(1) as snapshot:
        backend.apply(put("a", 2, b"new"), put("b", 1))
        backend.log.trim(shard_of("a", SHARDS), 10)
        (states,) = [batch.to_pylist() for batch in snapshot.states()]
        assert [(row["record_id"], row["values"]) for row in states] == [("a", b"old")]
        assert [entry.item.change.values for entry in snapshot.waiting()] == [b"old"]
        assert sum(tally.changes for tally in snapshot.tallies().values()) == 1
    assert backend.states()["a"]["values"] == b"new"


def test_a_snapshot_tells_all_that_is_kept(backend: Backend, clock: Clock) -> None:
    backend.apply(put("live", 10, b"l", expires_at_us=11), put("deleted", 10), put("buried", 10), put("again", 10))
    backend.apply(put("deleted", 11, b"d", op=Op.SOFT_DELETE), put("buried", 11, op=Op.HARD_DELETE))
    backend.apply(put("again", 11, op=Op.HARD_DELETE))
    buried_us = backend.states()["again"]["grave_us"]
    backend.apply(put("again", 3, b"a", targets=ONLINE), put("gone", 3, op=Op.HARD_DELETE, targets=ONLINE))
    states = backend.states()
    assert STATES.names[1:] == list(states["live"])
    shown = {key: (row["state"], row["event_time_us"], row["online_only"], row["values"]) for key, row in states.items()}
    assert shown == {
        "live": (RecordState.LIVE, 10, False, b"l"),
        "deleted": (RecordState.TOMBSTONE, 11, False, b"d"),
        "buried": (RecordState.GRAVE, 0, False, None),
        "again": (RecordState.LIVE, 3, True, b"a"),
        "gone": (RecordState.GRAVE, 0, True, None),
    }
    assert states["live"]["expires_at_us"] == 11
    assert states["again"]["grave_us"] == buried_us < states["again"]["api_time_us"]
    assert states["buried"]["grave_us"] == states["buried"]["api_time_us"]


def test_the_tally_counts_what_was_logged_for_ever(backend: Backend) -> None:
    backend.apply(put("a", 1), put("a", 2, targets=OFFLINE), put("a", 3, targets=ONLINE), put("a", 1, group_id=2))
    once = put("a", 9, write_id=b"0123456789abcdef")
    backend.apply(once)
    backend.apply(once, put("a", 1, op=Op.HARD_DELETE), put("a", 1, op=Op.SOFT_DELETE))
    assert backend.tally("a") == Tally(changes=4, offline_only=1, online_only=1)
    assert backend.tally("a", group_id=2) == Tally(changes=1)
    backend.log.trim(shard_of("a", SHARDS), 100)
    backend.run(backend.store.drop_group(1))
    backend.run(backend.store.count_offline_only(1, {shard_of("a", SHARDS): 5}))
    assert backend.tally("a") == Tally(changes=4, offline_only=6, online_only=1)
    for former in (3, 9, 4):
        backend.run(backend.store.count_former(1, {shard_of("a", SHARDS): former}))
    assert backend.tally("a") == Tally(changes=4, offline_only=6, online_only=1, former=9)
    assert backend.tally("a").acknowledged == 13
    backend.run(backend.store.count_former(3, {shard_of("a", SHARDS): 1}))
    assert backend.tally("a", group_id=3) == Tally(former=1)


def test_a_snapshot_shows_entries_of_its_group_and_those_of_none(backend: Backend) -> None:
    backend.apply(put("a", 1), put("a", 2, group_id=2), put("a", 3))
    backend.spoil_last(shard_of("a", SHARDS))
    with backend.store.snapshot(1) as snapshot:
        mine, poison = snapshot.waiting()
    assert (mine.offset, mine.item.change.event_time_us) == (1, 1)
    assert poison.offset == 3
    assert isinstance(poison.item, PoisonChange)


def test_state_and_log_survive_reopening(backend: Backend) -> None:
    backend.apply(put("a", 10, b"kept"))
    backend.store.close()
    backend.store = backend.open()
    assert backend.read("a") == b"kept"
    assert backend.apply(put("a", 11))[0].stamp.seq == 2


def test_calls_after_close_are_refused(backend: Backend) -> None:
    other = backend.open()
    other.close()
    other.close()
    with pytest.raises(StoreUnavailable):
        backend.run(other.apply([put("a", 1)]))


def test_too_many_changes_in_one_call(backend: Backend) -> None:
    with pytest.raises(ValueError, match=str(APPLY_CHANGES_MAX)):
        backend.apply(*(put("a", number) for number in range(APPLY_CHANGES_MAX + 1)))


def test_a_purge_that_is_kept_from_its_work_says_so(tmp_path: Path) -> None:
    path = tmp_path / "online.db"
    store = SqliteOnlineStore(path, SHARDS, outbox_changes_max=OUTBOX_MAX, purge_s_max=0.1)
    try:
        asyncio.run(store.apply([put("a", 1)]))
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN")
            other.execute("SELECT count(*) FROM record").fetchone()
            with pytest.raises(StoreUnavailable, match="busy for 0.1 s"):
                asyncio.run(store.purge())
        asyncio.run(store.purge())
    finally:
        store.close()


def test_a_database_of_another_format_is_refused(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "online.db")) as database:
        database.execute("PRAGMA user_version = 1")
    with pytest.raises(StoreCorrupt, match="format 1, this release reads 3"):
        SqliteOnlineStore(tmp_path / "online.db", SHARDS, outbox_changes_max=OUTBOX_MAX)
