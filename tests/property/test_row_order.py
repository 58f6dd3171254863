"""The order of rows within data files, and the columns that are given a dictionary there."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.offline import schema

IDENTIFIERS = st.sampled_from(
    [
        (st.text(max_size=3), pa.string()),
        (st.integers(-(2**63), 2**63 - 1), pa.int64()),
        (st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([0.0, -0.0]), pa.float64()),
    ]
)


@settings(deadline=None)
@given(st.data())
def test_rows_are_in_the_order_of_identifier_event_time_and_api_time(data: st.DataObject) -> None:
    element, kind = data.draw(IDENTIFIERS)
    rows = data.draw(st.lists(st.tuples(element, st.integers(-3, 3), st.integers(0, 3)), max_size=20))
    if data.draw(st.booleans()):
        rows.sort(key=lambda row: row[1:])
    table = pa.table(
        {"id": pa.array([row[0] for row in rows], kind), "event": [row[1] for row in rows], "api": [row[2] for row in rows]},
        schema=pa.schema([("id", kind), ("event", pa.int64()), ("api", pa.int64())]),
    )
    some = np.array(data.draw(st.permutations(range(len(rows))))[: len(rows) // 2 + 1], np.int64)
    ranks = schema.ranks_of(table["id"])
    found = schema.sorted_positions(some, ranks, table["event"].to_numpy(), table["api"].to_numpy())
    keys = [(name, "ascending") for name in ("id", "event", "api")]
    expected = table.take(pa.array(some)).take(pc.sort_indices(table.take(pa.array(some)), sort_keys=keys))
    assert table.take(pa.array(found)).to_pylist() == expected.to_pylist()
    assert sorted(found.tolist()) == sorted(some.tolist())


@pytest.mark.parametrize(
    ("distinct", "rows", "file_rows", "repeats"),
    [
        (1, 1, 1, False),
        (1, 2, 2, False),
        (1, 4, 4, True),
        (5, 100, 100, True),
        (50, 100, 100, False),
        (500, 100_000, 5_000, True),
        (4_000, 100_000, 5_000, False),
        (20_000, 1_000_000, 1_000_000, True),
        (1_000_000, 1_000_000, 1_000_000, False),
    ],
)
def test_columns_whose_values_repeat_get_a_dictionary(distinct: int, rows: int, file_rows: int, repeats: bool) -> None:
    values = np.random.default_rng(3).permutation(np.arange(rows) % distinct)
    lists = pa.array([[1]] * rows)
    table = pa.table({"x": pa.array(values), "y": pa.array(values).cast(pa.string()), "nothing": pa.nulls(rows), "lists": lists})
    found = schema.repeating_columns(table, file_rows)
    assert ("x" in found, "y" in found, "lists" in found) == (repeats, repeats, False)


def test_no_rows_have_no_dictionary_and_are_written() -> None:
    table = pa.table({"x": pa.array([], pa.int64())})
    assert schema.parquet_bytes(table)
