"""The column path against the record path: what a frame becomes is what its rows become one by one."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from featurestore.errors import ValidationFailed
from featurestore.model import event_time, value
from featurestore.model.column_text import (
    epoch_texts,
    epochs_of_floats,
    float_texts,
    iso_texts,
    parse_epochs,
    parse_fractionals,
    parse_integrals,
    parse_isos,
)
from featurestore.model.columns import ColumnBatch, checked_columns
from featurestore.model.event_time import EVENT_TIME_US_MAX, EVENT_TIME_US_MIN, format_epoch, format_iso
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureGroup, FeatureType
from featurestore.model.record import RecordPlan, Row
from featurestore.model.value import Value

INTEGRAL, FRACTIONAL, STRING = FeatureType.INTEGRAL, FeatureType.FRACTIONAL, FeatureType.STRING
EPOCH: Final = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)

TIMES_US: Final = st.integers(EVENT_TIME_US_MIN, EVENT_TIME_US_MAX) | st.integers(-(10**7), 10**7)
PYTHON_TIMES_US: Final = st.integers((-719_162 * 86_400) * 10**6, EVENT_TIME_US_MAX)
"""The years 1 to 9999, which `datetime` reaches."""
ISO_TEXTS: Final = TIMES_US.map(format_iso)
NEAR_ISO_TEXTS: Final = st.from_regex(
    r"\A(0000|1900|2000|2023|2024|9999)-(0[0-9]|1[0-3])-(0[0-9]|[12][0-9]|3[0-2])T(0[0-9]|1[0-9]|2[0-4]):[0-6][0-9]:[0-6][0-9]"
    r"(\.[0-9]{1,10})?(Z|\+00:00|)\Z"
)
NUMBER_TEXTS: Final = st.from_regex(r"\A[+-]?[0-9]{0,25}(\.[0-9]{0,25})?([eE][+-]?[0-9]{1,4})?\n?\Z")
FINITE: Final = st.floats(allow_nan=False, allow_infinity=False)
EPOCH_FLOATS: Final = (
    FINITE
    | TIMES_US.map(lambda time_us: time_us / 10**6)
    | st.integers(-(10**18), 10**18).map(lambda halves: (halves + 0.5) / 10**6)
    | st.floats(-1e12, 1e12)
)
FLOATS: Final = (
    FINITE
    | st.integers(-(10**18), 10**18).map(float)
    | st.builds(lambda digits, places: digits / 10**places, st.integers(-(10**17), 10**17), st.integers(0, 22))
    | st.sampled_from(
        [0.0, -0.0, 1e-4, 9.999999999999999e-5, 1e10, 9999999999.999998, 17246466959.26227, 1e15, 999999999999999.9, 1e16, 5e-324]
    )
)


def twin_of(typed: Sequence[Any], twin: Callable[[Any], object | None]) -> list[object | None]:
    return [None if item is None else twin(item) for item in typed]


@given(st.lists(st.none() | FLOATS))
def test_texts_of_floats_are_their_repr(numbers: list[float | None]) -> None:
    assert float_texts(pa.array(numbers, pa.float64())).to_pylist() == twin_of(numbers, repr)


@given(st.lists(st.none() | TIMES_US))
def test_texts_of_times_are_those_of_the_record_path(times_us: list[int | None]) -> None:
    column = pa.array(times_us, pa.int64())
    assert iso_texts(column).to_pylist() == twin_of(times_us, format_iso)
    assert epoch_texts(column).to_pylist() == twin_of(times_us, format_epoch)


@given(st.lists(st.none() | NUMBER_TEXTS | st.text(max_size=5) | st.integers().map(str) | FLOATS.map(repr)))
def test_numbers_are_parsed_as_by_the_record_path(texts: list[str | None]) -> None:
    column = pa.array(texts, pa.large_string())
    assert parse_integrals(column).to_pylist() == twin_of(texts, value.integral)
    assert parse_fractionals(column).to_pylist() == twin_of(texts, value.fractional)
    assert parse_epochs(column).to_pylist() == twin_of(texts, event_time.parse_epoch)


@given(st.lists(st.none() | ISO_TEXTS | NEAR_ISO_TEXTS | st.text(max_size=5)))
def test_times_are_parsed_as_by_the_record_path(texts: list[str | None]) -> None:
    assert parse_isos(pa.array(texts, pa.large_string())).to_pylist() == twin_of(texts, event_time.parse_iso)


def test_every_day_is_parsed_as_by_the_record_path() -> None:
    days = [(year, month, day) for year in (0, 1900, 2000, 2023, 2024) for month in range(14) for day in range(33)]
    texts = [f"{year:04d}-{month:02d}-{day:02d}T23:59:59.5Z" for year, month, day in days]
    assert parse_isos(pa.array(texts, pa.large_string())).to_pylist() == twin_of(texts, event_time.parse_iso)


@given(st.lists(st.none() | EPOCH_FLOATS))
def test_float_times_are_what_their_repr_says(seconds: list[float | None]) -> None:
    expected = twin_of(seconds, lambda second: event_time.parse_epoch(repr(second)))
    assert epochs_of_floats(pa.array(seconds, pa.float64())).to_pylist() == expected


def written(cell: Any, feature: FeatureDefinition, *, is_time: bool) -> Value:
    """What a client that follows the documented rules sends for a cell."""
    match cell:
        case None:
            return None
        case list():
            return [str(written(element, feature, is_time=False)) for element in cell]
        case bool():
            return str(int(cell))
        case float() if feature.type is INTEGRAL and abs(cell) <= 2**53 and cell.is_integer():
            return str(int(cell))
        case float():
            return repr(cell)
        case Decimal() if feature.type is INTEGRAL and cell == cell.to_integral_value():
            return str(int(cell))
        case dt.datetime():
            time_us = (cell - EPOCH) // dt.timedelta(microseconds=1)
            return format_epoch(time_us) if is_time and feature.type is FRACTIONAL else format_iso(time_us)
    return str(cell)


Build = Callable[[Sequence[Any]], Any]
"""A frame column of Python values, None for absent."""


def pandas_column(dtype: str) -> Build:
    return lambda cells: pd.Series(list(cells), dtype=dtype)


def pandas_objects(cells: Sequence[Any]) -> pd.Series:
    return pd.Series(list(cells), dtype=object)


def arrow_column(data_type: pa.DataType | None = None) -> Build:
    return lambda cells: pa.array(list(cells), data_type)


def chunked_column(cells: Sequence[Any]) -> pa.ChunkedArray:
    column = pa.array(list(cells))
    return pa.chunked_array([column[:1], column[1:1], column[1:]], column.type)


INTS: Final = st.integers(-(2**53), 2**53)
BYTES: Final = st.integers(0, 255)
FLOAT_CELLS: Final = FLOATS | st.sampled_from([math.inf, -math.inf, 2.0**53, 2.0**53 + 2]) | INTS.map(float)
DECIMALS: Final = st.decimals(-(10**6), 10**6, places=3)
TEXTS: Final = st.text(max_size=4) | NUMBER_TEXTS | ISO_TEXTS | NEAR_ISO_TEXTS
DATETIMES: Final = PYTHON_TIMES_US.map(lambda time_us: EPOCH + dt.timedelta(microseconds=time_us))
ZONED: Final = st.builds(
    lambda hours, time_us: (EPOCH + dt.timedelta(microseconds=time_us)).astimezone(dt.timezone(dt.timedelta(hours=hours))),
    st.integers(-12, 12),
    st.integers(-(10**16), 10**17),
)

INT_COLUMNS: Final[list[tuple[st.SearchStrategy[Any], Build]]] = [
    (INTS, pandas_column("Int64")),
    (INTS, pandas_objects),
    (INTS, arrow_column(pa.int64())),
    (BYTES, pandas_column("UInt8")),
    (BYTES, chunked_column),
    (BYTES, lambda cells: pd.Series(list(cells), dtype="Int64").astype("category")),
]
FLOAT_COLUMNS: Final[list[tuple[st.SearchStrategy[Any], Build]]] = [
    (FLOAT_CELLS, pandas_column("float64")),
    (FLOAT_CELLS, pandas_column("Float64")),
    (FLOAT_CELLS, pandas_objects),
    (FLOAT_CELLS, arrow_column(pa.float64())),
    (st.floats(width=32, allow_nan=False), pandas_column("float32")),
    (
        st.floats(width=16, allow_nan=False),
        lambda cells: pa.array([None if x is None else np.float16(x) for x in cells], pa.float16()),
    ),
]
DECIMAL_COLUMNS: Final[list[tuple[st.SearchStrategy[Any], Build]]] = [(DECIMALS, arrow_column(pa.decimal128(12, 3)))]
TEXT_COLUMNS: Final[list[tuple[st.SearchStrategy[Any], Build]]] = [
    (TEXTS, pandas_column("str")),
    (TEXTS, pandas_objects),
    (TEXTS, pandas_column("category")),
    (TEXTS, arrow_column(pa.string_view())),
    (TEXTS, chunked_column),
]
BOOL_COLUMNS: Final[list[tuple[st.SearchStrategy[Any], Build]]] = [
    (st.booleans(), pandas_column("boolean")),
    (st.booleans(), arrow_column(pa.bool_())),
]
TIME_COLUMNS: Final[list[tuple[st.SearchStrategy[Any], Build]]] = [
    (DATETIMES, pandas_column("datetime64[us, UTC]")),
    (DATETIMES, arrow_column(pa.timestamp("us", "Asia/Shanghai"))),
    (ZONED, pandas_objects),
]
COLUMNS: Final = {
    INTEGRAL: INT_COLUMNS + FLOAT_COLUMNS + DECIMAL_COLUMNS + TEXT_COLUMNS + BOOL_COLUMNS,
    FRACTIONAL: INT_COLUMNS + FLOAT_COLUMNS + DECIMAL_COLUMNS + TEXT_COLUMNS,
    STRING: TEXT_COLUMNS + TIME_COLUMNS,
}
EVENT_TIME_COLUMNS: Final = {
    FRACTIONAL: [
        *INT_COLUMNS,
        (EPOCH_FLOATS, pandas_column("float64")),
        *DECIMAL_COLUMNS,
        (TEXTS | EPOCH_FLOATS.map(repr), pandas_column("str")),
        *TIME_COLUMNS,
    ],
    STRING: [(ISO_TEXTS, pandas_column("str")), (ISO_TEXTS | NEAR_ISO_TEXTS, arrow_column()), *TIME_COLUMNS],
}


@st.composite
def frames(draw: st.DrawFn) -> tuple[FeatureGroup, dict[str, list[Any]], Any]:
    """A group, the cells of each column, and the frame of them: pandas, or Arrow where a column is Arrow's."""
    rows = draw(st.integers(0, 6))
    types = st.sampled_from([INTEGRAL, FRACTIONAL, STRING])
    features = [
        FeatureDefinition("id", draw(types)),
        FeatureDefinition("t", draw(st.sampled_from([FRACTIONAL, STRING]))),
        *(FeatureDefinition(f"x{number}", draw(types)) for number in range(draw(st.integers(0, 2)))),
    ]
    collection = draw(st.none() | st.sampled_from(list(CollectionType)))
    if collection is not None:
        dimension = draw(st.integers(1, 3)) if collection is CollectionType.VECTOR else None
        features.append(FeatureDefinition("c", FRACTIONAL if dimension else draw(types), collection, dimension))
    cells: dict[str, list[Any]] = {}
    columns: dict[str, Any] = {}
    for feature in draw(st.permutations(features)):
        if feature.collection is not None:
            element, data_type = {
                INTEGRAL: (INTS, pa.int64()),
                FRACTIONAL: (FLOATS | st.sampled_from([math.inf]), pa.float64()),
                STRING: (st.sampled_from("abc"), pa.string()),
            }[feature.type]
            cells[feature.name] = draw(st.lists(st.none() | st.lists(element, max_size=4), min_size=rows, max_size=rows))
            layouts = [pa.list_(data_type), pa.large_list(data_type), pa.list_view(data_type)]
            builds = [pandas_objects, *map(arrow_column, layouts)]
            columns[feature.name] = draw(st.sampled_from(builds))(cells[feature.name])
            continue
        pools = EVENT_TIME_COLUMNS if feature.name == "t" else COLUMNS
        cell, build = draw(st.sampled_from(pools[feature.type]))
        cells[feature.name] = draw(st.lists(st.none() | cell, min_size=rows, max_size=rows))
        columns[feature.name] = build(cells[feature.name])
    group = FeatureGroup("g", "id", "t", tuple(features), feature_counts=(len(features),))
    if any(isinstance(column, pa.Array | pa.ChunkedArray) for column in columns.values()):
        return group, cells, pa.table({name: as_arrow(column) for name, column in columns.items()})
    return group, cells, pd.DataFrame(columns)


def as_arrow(column: Any) -> Any:
    return pa.array(column, from_pandas=True) if isinstance(column, pd.Series) else column


def rows_one_by_one(group: FeatureGroup, cells: dict[str, list[Any]]) -> list[Row | None]:
    """What the record path makes of each row; None for a row that it refuses."""
    plan = RecordPlan(group)
    rows: list[Row | None] = []
    for cells_of_row in zip(*(cells[name] for name in group.feature_names), strict=True):
        pairs = [
            (feature.name, written(cell, feature, is_time=feature.name == group.event_time))
            for feature, cell in zip(group.features, cells_of_row, strict=True)
        ]
        try:
            rows.append(plan.row(pairs))
        except ValidationFailed:
            rows.append(None)
    return rows


def batch_texts(batch: ColumnBatch) -> list[list[Any]]:
    return [column.to_pylist() for column in batch.texts()]


@given(frames())
def test_a_frame_becomes_what_its_rows_become(drawn: tuple[FeatureGroup, dict[str, list[Any]], Any]) -> None:
    group, cells, frame = drawn
    expected = rows_one_by_one(group, cells)
    batch = checked_columns(group, frame, skip_faulty=True)
    assert batch.kept.tolist() == [position for position, row in enumerate(expected) if row is not None]
    kept = [row for row in expected if row is not None]
    assert batch.record_ids.to_pylist() == [row.record_id for row in kept]
    assert batch.event_times_us.tolist() == [row.event_time_us for row in kept]
    assert batch_texts(batch) == [[row.values[index] for row in kept] for index in range(len(group.features))]
    backwards = np.arange(batch.rows)[::-1]
    assert [column.to_pylist() for column in batch.texts(backwards)] == [texts[::-1] for texts in batch_texts(batch)]
    for feature, texts in zip(group.features, batch_texts(batch), strict=True):
        assert list(map(repr, batch.typed[feature.name].to_pylist())) == [repr(meant(feature, text)) for text in texts]


@given(frames())
def test_a_frame_is_refused_if_one_of_its_rows_is(drawn: tuple[FeatureGroup, dict[str, list[Any]], Any]) -> None:
    group, cells, frame = drawn
    faulty = [position for position, row in enumerate(rows_one_by_one(group, cells)) if row is None]
    assume(faulty)
    with pytest.raises(ValidationFailed) as raised:
        checked_columns(group, frame)
    named = {int(fault.path.removeprefix("rows[").partition("]")[0]) for fault in raised.value.faults}
    assert sorted(named) == faulty


def meant(feature: FeatureDefinition, text: Value) -> object:
    parse = value.PARSE[feature.type]
    if isinstance(text, list):
        return [parse(element) for element in text]
    return None if text is None else parse(text)
