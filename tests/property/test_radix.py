"""Orders of whole numbers, against Python's own sorting."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from featurestore.query.radix import ascending

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
NUMBERS = st.lists(st.one_of(st.integers(-2, 2), st.integers(65_534, 65_538), INT64), max_size=50)


@given(NUMBERS)
def test_positions_are_in_the_order_of_the_numbers(numbers: list[int]) -> None:
    assert ascending(np.array(numbers, np.int64)).tolist() == sorted(range(len(numbers)), key=numbers.__getitem__)


@given(st.lists(st.tuples(st.integers(-1, 1), INT64), max_size=50))
def test_several_columns_are_ordered_from_the_last_to_the_first(rows: list[tuple[int, int]]) -> None:
    first, second = (np.array([row[column] for row in rows], np.int64) for column in (0, 1))
    found = ascending(first, ascending(second))
    assert found.tolist() == sorted(range(len(rows)), key=rows.__getitem__)
