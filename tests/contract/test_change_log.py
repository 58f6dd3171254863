"""What every source of changes promises, over every backend of an online store's own outbox."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.errors import StoreUnavailable
from featurestore.model.change import PoisonChange, Stamp, shard_of
from tests.backends import BACKENDS, OUTBOX_MAX, SHARDS, Backend, Clock, make_backend, put

SHARD = shard_of("a", SHARDS)
CALL = 1000


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend = make_backend(request.param, request, tmp_path, Clock())
    yield backend
    backend.close()


def seqs(backend: Backend, offset_first: int, entries_max: int) -> list[int]:
    return [item.stamp.seq for item in backend.changes(SHARD, offset_first, entries_max)]


def test_an_empty_log(backend: Backend) -> None:
    assert backend.log.shards() == SHARDS
    assert backend.log.ends() == dict.fromkeys(range(SHARDS), 1)
    assert list(backend.log.read(SHARD, 1, 10)) == []
    backend.log.trim(SHARD, 1)
    assert backend.log.ends() == dict.fromkeys(range(SHARDS), 1)


def test_entries_are_what_was_applied_with_the_stamps_that_were_answered(backend: Backend) -> None:
    changes = [put("a", 3, b"\x00\xff\r\n"), put("a", -5, b"", write_id=b"0123456789abcdef"), put("ü", 1, expires_at_us=7)]
    changes += [put("a", -(2**62), targets=1), put("a", 2**62 + 1, targets=2)]
    stamps = [applied.stamp for applied in backend.apply(*changes)]
    for change, stamp in zip(changes, stamps, strict=True):
        (entry,) = backend.log.read(stamp.shard, stamp.seq, 1)
        assert (entry.offset, entry.item.change, entry.item.stamp) == (stamp.seq, change, stamp)


def test_reading_from_an_offset(backend: Backend) -> None:
    backend.apply(*(put("a", number) for number in range(10)))
    assert seqs(backend, 1, 100) == list(range(1, 11))
    assert seqs(backend, 4, 3) == [4, 5, 6]
    assert seqs(backend, 10, 3) == [10]
    assert seqs(backend, 11, 3) == []
    assert backend.log.ends()[SHARD] == 11


def test_many_entries_come_in_order_and_none_is_left_out(backend: Backend) -> None:
    for start in range(0, OUTBOX_MAX, CALL):
        backend.apply(*(put("a", number) for number in range(start, start + CALL)))
    assert seqs(backend, 1, 10 * OUTBOX_MAX) == list(range(1, OUTBOX_MAX + 1))
    assert seqs(backend, 7, OUTBOX_MAX - 100) == list(range(7, OUTBOX_MAX - 93))


def test_trimmed_entries_are_gone_and_offsets_stay(backend: Backend) -> None:
    backend.apply(*(put("a", number) for number in range(10)))
    backend.log.trim(SHARD, 4)
    backend.log.trim(SHARD, 2)
    assert seqs(backend, 1, 100) == [4, 5, 6, 7, 8, 9, 10]
    assert seqs(backend, 9, 1) == [9]
    assert backend.log.ends()[SHARD] == 11
    backend.log.trim(SHARD, 11)
    assert seqs(backend, 1, 100) == []
    assert backend.log.ends()[SHARD] == 11
    assert backend.apply(put("a", 99))[0].stamp.seq == 11


def test_trimming_waits_for_no_snapshot(backend: Backend) -> None:
    backend.apply(*(put("a", number) for number in range(10)))
    with backend.store.snapshot(1) as snapshot:
        backend.log.trim(SHARD, 6)
        assert seqs(backend, 1, 100) == [6, 7, 8, 9, 10]
        assert [entry.offset for entry in snapshot.waiting()] == list(range(1, 11))
    assert seqs(backend, 1, 100) == [6, 7, 8, 9, 10]


def test_a_shard_goes_on_behind_what_was_given_before(backend: Backend) -> None:
    backend.apply(put("a", 1))
    far_us = backend.clock.now_us + 1_000_000
    backend.run(backend.store.advance({SHARD: Stamp(SHARD, 100, far_us)}))
    backend.run(backend.store.advance({SHARD: Stamp(SHARD, 50, 5)}))
    stamp = backend.apply(put("a", 2))[0].stamp
    assert (stamp.seq, stamp.api_time_us > far_us) == (101, True)
    assert seqs(backend, 101, 10) == [101]
    assert backend.log.ends()[SHARD] == 102


def test_bytes_that_are_no_change_hold_nothing_up(backend: Backend) -> None:
    stamps = [applied.stamp for applied in backend.apply(put("a", 1), put("a", 2))]
    backend.spoil_last(SHARD)
    good, poison = backend.log.read(SHARD, 1, 10)
    assert (good.offset, good.item.stamp) == (1, stamps[0])
    assert (poison.offset, poison.item.stamp) == (2, stamps[1])
    assert isinstance(poison.item, PoisonChange)
    assert poison.item.body == b"\0"


def test_two_readers_see_the_same(backend: Backend) -> None:
    backend.apply(*(put("a", number) for number in range(5)))
    other = backend.open_log()
    try:
        assert [entry.offset for entry in other.read(SHARD, 1, 10)] == [1, 2, 3, 4, 5]
        other.trim(SHARD, 3)
        assert seqs(backend, 1, 10) == [3, 4, 5]
    finally:
        other.close()


def test_calls_after_close_are_refused(backend: Backend) -> None:
    other = backend.open_log()
    other.close()
    other.close()
    with pytest.raises(StoreUnavailable):
        other.ends()
