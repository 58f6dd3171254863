"""What every online store promises for changes of an ordered source: each takes effect once, whatever is delivered again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from featurestore.errors import OutboxFull, StoreUnavailable
from featurestore.model.change import Change, Outcome, shard_of
from featurestore.online.protocol import APPLY_CHANGES_MAX
from tests.backends import BACKENDS, OUTBOX_MAX, SHARDS, Backend, Clock, make_backend, put


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Backend]:
    backend = make_backend(request.param, request, tmp_path, Clock())
    yield backend
    backend.close()


KEYS = [f"key-{number}" for number in range(20)]


def numbered(first: int, end: int) -> list[tuple[int, Change]]:
    """Changes of the offsets `first` to `end` - 1, each told by its values."""
    return [(offset, put(KEYS[offset % len(KEYS)], offset, b"%d" % offset)) for offset in range(first, end)]


def logged(backend: Backend) -> Counter[bytes]:
    return Counter(item.change.values for shard in range(SHARDS) for item in backend.changes(shard, 1, 10_000))


def test_each_offset_takes_effect_once(backend: Backend) -> None:
    first = backend.run(backend.store.apply_from("topic/0", numbered(0, 10)))
    assert [answer.outcome for answer in first] == [Outcome.NEWEST] * 10
    again = backend.run(backend.open().apply_from("topic/0", numbered(3, 14)))
    assert [answer is None for answer in again] == [True] * 7 + [False] * 4
    assert logged(backend) == Counter(b"%d" % offset for offset in range(14))
    assert backend.run(backend.store.apply_from("topic/0", [])) == []


def test_sources_do_not_know_of_each_other(backend: Backend) -> None:
    for source in ("topic/0", "topic/1", "ü" * 200):
        answers = backend.run(backend.store.apply_from(source, numbered(0, 5)))
        assert None not in answers
    assert set(logged(backend).values()) == {3}
    assert backend.run(backend.store.apply_from("topic/0", numbered(0, 5))) == [None] * 5


def test_event_times_decide_as_ever(backend: Backend) -> None:
    changes = [(7, put("a", 10, b"new")), (8, put("a", 5, b"old"))]
    answers = backend.run(backend.store.apply_from("topic/0", changes))
    assert [answer.outcome for answer in answers] == [Outcome.NEWEST, Outcome.HISTORIC]
    assert backend.read("a") == b"new"
    assert backend.tally("a").changes == 2


def test_one_call_may_be_as_large_as_an_apply(backend: Backend) -> None:
    answers = backend.run(backend.store.apply_from("topic/0", numbered(0, APPLY_CHANGES_MAX)))
    assert None not in answers
    with pytest.raises(ValueError, match="at most"):
        backend.run(backend.store.apply_from("topic/0", numbered(0, APPLY_CHANGES_MAX + 1)))


def test_a_full_outbox_refuses_and_nothing_is_skipped_afterwards(backend: Backend) -> None:
    source, offset = "topic/0", 0
    with pytest.raises(StoreUnavailable) as refusal:
        while offset < 4 * OUTBOX_MAX:
            backend.run(backend.store.apply_from(source, numbered(offset, offset + 500)))
            offset += 500
    assert isinstance(refusal.value, OutboxFull | StoreUnavailable)
    before = logged_numbers(backend)
    for shard, end in backend.log.ends().items():
        backend.log.trim(shard, end)
    answers = backend.run(backend.store.apply_from(source, numbered(offset, offset + 500)))
    after = logged_numbers(backend)
    assert sorted([*before, *after]) == list(range(offset + 500))
    assert sum(answer is not None for answer in answers) == len(after)


def logged_numbers(backend: Backend) -> list[int]:
    return [int(values) for values in logged(backend).elements()]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rewinds=st.lists(st.tuples(st.integers(1, 12), st.integers(0, 12)), max_size=8))
def test_whatever_is_delivered_again(backend: Backend, rewinds: list[tuple[int, int]]) -> None:
    source = f"topic/{len(logged(backend))}/{rewinds}"[:200]
    before, end, total = logged(backend), 0, 0
    for length, back in rewinds:
        start = max(0, end - back)
        answers = backend.run(backend.store.apply_from(source, numbered(start, start + length)))
        assert [answer is None for answer in answers] == [offset < end for offset in range(start, start + length)]
        total += sum(answer is not None for answer in answers)
        end = max(end, start + length)
    assert (logged(backend) - before).total() == total == end
    assert {shard_of(key, SHARDS) for key in KEYS} == set(range(SHARDS)), "all shards take part"
