"""Slots, and the newest change of each, against brute force; changes come in pieces of any size and order."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.query.radix import ascending
from featurestore.query.slots import SLOT, Newest, Slots

KEYS = 4
TIMES = st.integers(-3, 8)
ROWS = st.lists(st.tuples(st.integers(0, KEYS - 1), TIMES), min_size=1, max_size=40)
CHANGES = st.lists(st.tuples(st.integers(0, KEYS - 1), TIMES, st.integers(0, 2), st.integers(0, 9)), max_size=60)
RANK = ("at", "api")


@given(rows=ROWS, changes=CHANGES)
def test_a_change_falls_to_the_first_row_that_sees_it(
    rows: list[tuple[int, int]], changes: list[tuple[int, int, int, int]]
) -> None:
    slots = slots_of(rows)
    in_order = sorted(rows)
    found = slots.of(column(changes, 0), column(changes, 1)).tolist()
    for (key, from_us, *_), slot in zip(changes, found, strict=True):
        seeing = [place for place, row in enumerate(in_order) if row[0] == key and row[1] >= from_us]
        assert slot == (seeing[0] if seeing else -1)


@given(rows=ROWS, changes=CHANGES, pieces=st.integers(1, 5), pending_rows=st.integers(0, 6))
def test_each_row_sees_the_newest_change(
    rows: list[tuple[int, int]], changes: list[tuple[int, int, int, int]], pieces: int, pending_rows: int
) -> None:
    slots = slots_of(rows)
    newest = Newest(len(slots), RANK, ["mark"], pending_rows)
    for number in range(pieces):
        part = changes[number::pieces]
        keys, at, api, mark = (column(part, index) for index in range(4))
        newest.offer({SLOT: slots.of(keys, at), "at": at, "api": api, "mark": mark})
    found = newest.found()
    seen = slots.seen(found[SLOT], np.argsort(found[SLOT]))
    for (key, time_us), place in zip(rows, seen.tolist(), strict=True):
        visible = [(at, api, mark) for of, at, api, mark in changes if of == key and at <= time_us]
        if not visible:
            assert place == -1
            continue
        best = max(visible)[:2]
        assert tuple(found[name][place] for name in RANK) == best
        assert found["mark"][place] in {mark for *rank, mark in visible if tuple(rank) == best}


def slots_of(rows: list[tuple[int, int]]) -> Slots:
    times_us = column(rows, 1)
    return Slots(column(rows, 0), times_us, ascending(times_us), KEYS)


def column(rows: list[tuple[int, ...]], index: int) -> np.ndarray:
    return np.array([row[index] for row in rows], np.int64)
