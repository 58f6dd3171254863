"""Dataframes into checked columns: every row of docs/reference/dataframes.md, for every dtype that it names."""

from __future__ import annotations

import datetime as dt
import re
import subprocess
import sys
import uuid
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from featurestore.errors import ValidationFailed
from featurestore.model import event_time, limits
from featurestore.model.cells import arrow_type
from featurestore.model.columns import ColumnBatch, checked_columns, key_column, narrow, time_column
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureGroup, FeatureType
from featurestore.model.frame import arrow_table
from featurestore.model.row_faults import FAULTS_KEPT_MAX

DOCS: Final = Path(__file__).parents[2] / "docs/reference/dataframes.md"
UTC: Final = dt.UTC
NOON: Final = dt.datetime(2024, 5, 1, 12, tzinfo=UTC)
NOON_S: Final = 1_714_564_800

INTEGRAL, FRACTIONAL, STRING = FeatureType.INTEGRAL, FeatureType.FRACTIONAL, FeatureType.STRING
FEATURES: Final = {
    "Integral": FeatureDefinition("x", INTEGRAL),
    "Fractional": FeatureDefinition("x", FRACTIONAL),
    "String": FeatureDefinition("x", STRING),
    "event time, String": FeatureDefinition("t", STRING),
    "event time, Fractional": FeatureDefinition("t", FRACTIONAL),
    "List, Set, Vector": FeatureDefinition("x", FRACTIONAL, CollectionType.LIST),
}
REFUSED: Final = "refused"


def batch_texts(batch: ColumnBatch) -> list[list[Any]]:
    return [column.to_pylist() for column in batch.texts()]


def group_with(feature: FeatureDefinition) -> FeatureGroup:
    """A group with identifier `id` (Integral), event time `t` and, unless it is the event time, the feature."""
    event_time = feature if feature.name == "t" else FeatureDefinition("t", STRING)
    features = (FeatureDefinition("id", INTEGRAL), event_time, *([feature] if feature.name != "t" else []))
    return FeatureGroup("g", "id", "t", features, feature_counts=(len(features),))


def frame_with(feature: FeatureDefinition, column: Any) -> Any:
    """A frame for `group_with(feature)` whose feature column is `column`; Arrow if the column is, else pandas."""
    others: dict[str, list[Any]] = {"id": list(range(len(column)))}
    if feature.name != "t":
        others["t"] = [NOON] * len(column)
    if isinstance(column, pa.Array | pa.ChunkedArray):
        return pa.table({**others, feature.name: column})
    frame = pd.DataFrame(others, index=range(100, 100 + len(column)))
    column.index = frame.index
    return frame.assign(**{feature.name: column})


def texts_of(feature: FeatureDefinition, column: Any) -> list[Any]:
    batch = checked_columns(group_with(feature), frame_with(feature, column))
    return batch_texts(batch)[1 if feature.name == "t" else 2]


def faults_of(feature: FeatureDefinition, column: Any) -> list[str]:
    with pytest.raises(ValidationFailed) as raised:
        texts_of(feature, column)
    return [str(fault) for fault in raised.value.faults]


def pandas_of(dtype: Any) -> Callable[[Sequence[Any]], pd.Series]:
    return lambda values: pd.Series(list(values), dtype=dtype)


def objects_of(convert: Callable[[Any], Any]) -> Callable[[Sequence[Any]], pd.Series]:
    return lambda values: pd.Series([convert(value) for value in values], dtype=object)


def arrow_of(data_type: pa.DataType) -> Callable[[Sequence[Any]], pa.Array]:
    return lambda values: pa.array(list(values), data_type)


def times_of(dtype: Any) -> Callable[[Sequence[Any]], pd.Series]:
    return lambda values: pd.Series(pd.to_datetime(list(values), utc=True)).astype(dtype)


def numpy_integers_and_floats(values: Sequence[Any]) -> pd.Series:
    return pd.Series([int(value) if value == 0 else value for value in values], dtype=object)


def bool8(values: Sequence[Any]) -> pa.Array:
    return pa.ExtensionArray.from_storage(pa.bool8(), pa.array([int(value) for value in values], pa.int8()))


def tensors(values: Sequence[Any]) -> pa.Array:
    tensor = pa.fixed_shape_tensor(pa.float32(), (2,))
    return pa.ExtensionArray.from_storage(tensor, pa.array(list(values), pa.list_(pa.float32(), 2)))


def runs(values: Sequence[Any]) -> pa.Array:
    return pa.RunEndEncodedArray.from_arrays(list(range(1, len(values) + 1)), list(values))


COLUMNS: Final[dict[str, dict[str, Callable[[Sequence[Any]], Any]]]] = {
    "integers": {
        **{name: pandas_of(name) for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
        **{name: pandas_of(name) for name in ("Int8", "Int64", "UInt64", "int64[pyarrow]", "Sparse[int64]")},
        "object of int": objects_of(int),
        "object of numpy.int64": objects_of(np.int64),
        "object of numpy.uint64": objects_of(np.uint64),
        "category of int": lambda values: pd.Series(list(values)).astype("category"),
        "arrow int8": arrow_of(pa.int8()),
        "arrow uint64": arrow_of(pa.uint64()),
        "arrow dictionary of int64": lambda values: pa.array(list(values), pa.int64()).dictionary_encode(),
        "arrow run-end encoded": runs,
        "arrow chunks": lambda values: pa.chunked_array([[value] for value in values]),
    },
    "booleans": {
        **{name: pandas_of(name) for name in ("bool", "boolean", "bool[pyarrow]")},
        "object of bool": objects_of(bool),
        "object of numpy.bool": objects_of(np.bool_),
        "arrow bool": arrow_of(pa.bool_()),
        "arrow.bool8": bool8,
    },
    "floats": {
        **{name: pandas_of(name) for name in ("float16", "float32", "float64", "Float32", "Float64", "double[pyarrow]")},
        "object of float": objects_of(float),
        "object of numpy.float32": objects_of(np.float32),
        "object of int and float": numpy_integers_and_floats,
        "category of float": lambda values: pd.Series(list(values), dtype="float64").astype("category"),
        "arrow halffloat": lambda values: pa.array(np.array(values, dtype=np.float16)),
        "arrow float": arrow_of(pa.float32()),
        "arrow double": arrow_of(pa.float64()),
    },
    "decimals": {
        "decimal128(5, 2)[pyarrow]": lambda values: pd.Series(list(values), dtype=pd.ArrowDtype(pa.decimal128(12, 1))),
        "object of Decimal": objects_of(lambda value: value),
        "arrow decimal32": arrow_of(pa.decimal32(9, 0)),
        "arrow decimal256": arrow_of(pa.decimal256(40, 1)),
    },
    "text": {
        **{name: pandas_of(name) for name in ("str", "string[python]", "string[pyarrow]")},
        "object of str": objects_of(str),
        "object of numpy.str_": objects_of(np.str_),
        "category of str": lambda values: pd.Series(list(values), dtype="str").astype("category"),
        "category of object": lambda values: pd.Series(list(values), dtype=object).astype("category"),
        "arrow string": arrow_of(pa.string()),
        "arrow large_string": arrow_of(pa.large_string()),
        "arrow string_view": arrow_of(pa.string_view()),
        "arrow dictionary": lambda values: pa.array(list(values)).dictionary_encode(),
    },
    "times with a zone": {
        **{name: times_of(name) for name in ("datetime64[s, UTC]", "datetime64[ms, UTC]", "datetime64[us, UTC]")},
        **{name: times_of(name) for name in ("datetime64[ns, UTC]", "datetime64[us, Europe/Berlin]", "datetime64[us, +05:30]")},
        "timestamp[us, tz=UTC][pyarrow]": times_of("timestamp[us, tz=UTC][pyarrow]"),
        "object of datetime": objects_of(lambda value: value.astimezone(dt.timezone(dt.timedelta(hours=2)))),
        "object of Timestamp": objects_of(pd.Timestamp),
        "arrow timestamp": arrow_of(pa.timestamp("ms", "Asia/Shanghai")),
    },
    "times without a zone": {
        "datetime64[us]": lambda values: times_of("datetime64[us, UTC]")(values).dt.tz_localize(None),
        "datetime64[ns]": lambda values: times_of("datetime64[ns, UTC]")(values).dt.tz_localize(None),
        "timestamp[us][pyarrow]": lambda values: pd.Series(pa.array(values, pa.timestamp("us"))).astype("timestamp[us][pyarrow]"),
        "object of datetime": objects_of(lambda value: value.replace(tzinfo=None)),
        "arrow timestamp": arrow_of(pa.timestamp("us")),
    },
    "dates": {
        "date32[pyarrow]": lambda values: pd.Series(list(values), dtype=pd.ArrowDtype(pa.date32())),
        "object of date": objects_of(lambda value: value),
        "arrow date64": arrow_of(pa.date64()),
    },
    "durations": {
        "timedelta64[ns]": pandas_of("timedelta64[ns]"),
        "object of timedelta": objects_of(lambda value: value),
        "arrow duration": arrow_of(pa.duration("us")),
    },
    "periods": {"period[D]": lambda values: pd.Series(list(values), dtype="period[D]")},
    "bytes": {
        "object of bytes": objects_of(bytes),
        "arrow large_binary": arrow_of(pa.large_binary()),
        "arrow fixed_size_binary": arrow_of(pa.binary(1)),
    },
    "UUIDs": {
        "object of UUID": objects_of(lambda value: value),
        "arrow.uuid": lambda values: pa.array([value.bytes for value in values], pa.uuid()),
    },
    "lists": {
        "object of list": objects_of(list),
        "object of tuple": objects_of(tuple),
        "object of numpy.ndarray": objects_of(np.array),
        "arrow list": arrow_of(pa.list_(pa.float64())),
        "arrow large_list": arrow_of(pa.large_list(pa.float32())),
        "arrow fixed_size_list": arrow_of(pa.list_(pa.float64(), 2)),
        "arrow list_view": arrow_of(pa.list_view(pa.float64())),
        "arrow.fixed_shape_tensor": tensors,
    },
    "structs": {
        "object of dict": objects_of(dict),
        "arrow struct": arrow_of(pa.struct([("a", pa.int64())])),
        "arrow map": lambda values: pa.array([list(value.items()) for value in values], pa.map_(pa.string(), pa.int64())),
    },
}
"""Per kind of column, per dtype: a column of that dtype with the given values."""

VALUES: Final[dict[str, Sequence[Any]]] = {
    "integers": [1, 0, 7],
    "booleans": [True, False],
    "floats": [1.0, 0.0, 7.0],
    "decimals": [Decimal(1), Decimal(7)],
    "text": ["1", "007"],
    "times with a zone": [NOON, NOON + dt.timedelta(days=1)],
    "times without a zone": [NOON.replace(tzinfo=None)],
    "dates": [dt.date(2024, 5, 1)],
    "durations": [dt.timedelta(seconds=1)],
    "periods": ["2024-05-01"],
    "bytes": [b"1"],
    "UUIDs": [uuid.UUID(int=1)],
    "lists": [[0.5, 1.0], [2.0, 2.0]],
    "structs": [{"a": 1}],
}
TIME_TEXTS: Final = {STRING: ["2024-05-01T12:00:00Z", "2024-05-01T12:00:00.250Z"], FRACTIONAL: ["1714564800", "1714564800.25"]}

ISO: Final = ["2024-05-01T12:00:00Z", "2024-05-02T12:00:00Z"]
TAKEN: Final[dict[tuple[str, str], list[Any]]] = {
    ("integers", "Integral"): ["1", "0", "7"],
    ("integers", "Fractional"): ["1", "0", "7"],
    ("integers", "event time, Fractional"): ["1", "0", "7"],
    ("booleans", "Integral"): ["1", "0"],
    ("floats", "Integral"): ["1", "0", "7"],
    ("floats", "Fractional"): ["1.0", "0.0", "7.0"],
    ("floats", "event time, Fractional"): ["1.0", "0.0", "7.0"],
    ("decimals", "Integral"): ["1", "7"],
    ("decimals", "Fractional"): ["1", "7"],
    ("decimals", "event time, Fractional"): ["1", "7"],
    ("text", "Integral"): ["1", "007"],
    ("text", "Fractional"): ["1", "007"],
    ("text", "String"): ["1", "007"],
    ("text", "event time, String"): TIME_TEXTS[STRING],
    ("text", "event time, Fractional"): TIME_TEXTS[FRACTIONAL],
    ("times with a zone", "String"): ISO,
    ("times with a zone", "event time, String"): ISO,
    ("times with a zone", "event time, Fractional"): [str(NOON_S), str(NOON_S + 86_400)],
    ("lists", "List, Set, Vector"): [["0.5", "1.0"], ["2.0", "2.0"]],
}
"""Texts of VALUES; every pair that is not here is refused."""

EVERY: Final = [(kind, dtype, feature) for kind, columns in COLUMNS.items() for dtype in columns for feature in FEATURES]


def values_for(kind: str, feature: str) -> Sequence[Any]:
    if kind == "text" and feature.startswith("event time"):
        return TIME_TEXTS[FEATURES[feature].type]
    return VALUES[kind]


@pytest.mark.parametrize(("kind", "dtype", "feature"), EVERY)
def test_each_dtype_is_taken_or_refused_as_documented(kind: str, dtype: str, feature: str) -> None:
    column = COLUMNS[kind][dtype](values_for(kind, feature))
    expected = TAKEN.get((kind, feature))
    if expected is None:
        faults = faults_of(FEATURES[feature], column)
        assert len(faults) == 1
        assert faults[0].startswith(f"columns.{FEATURES[feature].name}: expected ")
    else:
        texts = texts_of(FEATURES[feature], column)
        if kind == "decimals":  # written with the column's scale
            texts = [text.removesuffix(".0") for text in texts]
        assert texts == expected


@pytest.mark.parametrize(
    ("kind", "dtype", "feature"),
    [
        (kind, dtype, feature)
        for kind, dtype, feature in EVERY
        if (kind, feature) not in TAKEN and feature != "List, Set, Vector" and not dtype.startswith("arrow")
    ],
)
def test_the_pandas_hint_of_a_refusal_works(kind: str, dtype: str, feature: str) -> None:
    definition = FEATURES[feature]
    column = COLUMNS[kind][dtype](values_for(kind, feature))
    hint = re.search(r"; convert the column, e\.g\. (.+), got", faults_of(definition, column)[0])
    no_way = {"lists", "structs", "booleans", "durations", "UUIDs"} if feature.startswith("event") else {"lists", "structs"}
    if feature in ("Integral", "Fractional"):
        no_way |= {"dates", "periods", "UUIDs"}
    if kind in no_way:
        assert hint is None
        return
    assert hint is not None
    df = pd.DataFrame({definition.name: column})
    converted = eval(hint[1], {"df": df, "pandas": pd})  # noqa: S307  # our own words, as a user would run them
    if kind == "bytes" and feature.startswith("event"):
        converted[:] = TIME_TEXTS[definition.type][0]
    assert all(isinstance(text, str) for text in texts_of(definition, converted))


def test_the_documentation_names_the_dtypes_tested() -> None:
    table = DOCS.read_text().split("## What a column holds")[1].split("##")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")]
    documented = {row[0]: row[1] for row in rows[2:]}
    assert list(documented) == list(COLUMNS)
    for kind, cell in documented.items():
        plain, _, objects = cell.partition("`object`")
        tested = {dtype for dtype in COLUMNS[kind] if not dtype.startswith(("arrow", "object", "category"))}
        assert set(re.findall(r"`([^`]+)`", plain)) == tested
        assert bool(objects) == any(dtype.startswith("object of") for dtype in COLUMNS[kind])


def test_the_documentation_refuses_what_is_refused() -> None:
    table = DOCS.read_text().split("## What becomes of it")[1].split("##")[0]
    header, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line.startswith("|")
    )
    assert header[1:] == list(FEATURES)
    documented = {(row[0], feature): cell for row in rows for feature, cell in zip(header[1:], row[1:], strict=True)}
    assert {pair for pair, cell in documented.items() if cell != REFUSED} == set(TAKEN)
    assert {kind for kind, _ in documented} == set(COLUMNS)


def pandas_objects(*values: Any) -> pd.Series:
    return objects_of(lambda value: value)(values)


@pytest.mark.parametrize(
    ("feature", "column", "texts", "faulty"),
    [
        # Integral
        ("Integral", pd.Series([2**64 - 1, 2**63 - 1], dtype="uint64"), ["9223372036854775807"], [0]),
        ("Integral", pd.Series([1.0, np.nan, 1.5, -0.0, np.inf]), ["1", None, "0"], [2, 4]),
        ("Integral", pd.Series([2.0**53, 2.0**53 + 2, -(2.0**53)]), ["9007199254740992", "-9007199254740992"], [1]),
        ("Integral", pandas_objects(2**63, 1), ["1"], [0]),
        ("Integral", pandas_objects(2**64, 1, -1), ["1", "-1"], [0]),
        ("Integral", pandas_objects(np.uint64(2**64 - 1), np.uint64(1)), ["1"], [0]),
        ("Integral", pandas_objects(Decimal("1.5"), Decimal("2.00"), Decimal("-0"), Decimal("1E+3")), ["2", "0", "1000"], [0]),
        (
            "Integral",
            pandas_objects("+5", "007", "x", "", " 1", "1" * 41, str(2**63), None),
            ["+5", "007", None],
            [2, 3, 4, 5, 6],
        ),
        ("Integral", pd.Series([True, None], dtype="boolean"), ["1", None], []),
        # Fractional
        ("Fractional", pd.Series([0.1, np.nan], dtype="float32"), ["0.10000000149011612", None], []),
        ("Fractional", pd.Series(pd.arrays.FloatingArray(np.array([1.0, np.nan]), np.array([False, False]))), ["1.0", None], []),
        ("Fractional", pd.Series([0.1, np.inf, -np.inf, 5e-324]), ["0.1", "5e-324"], [1, 2]),
        ("Fractional", pa.array([1.0, float("nan"), None]), ["1.0", None], [1]),
        ("Fractional", pd.Series([2**53 + 1, 2**60, 2**63 - 1, -(2**63)]), [str(2**60), str(-(2**63))], [0, 2]),
        ("Fractional", pd.Series([2**64 - 1, 2**63], dtype="uint64"), [str(2**63)], [0]),
        ("Fractional", pandas_objects(Decimal("1.5"), Decimal(2), Decimal("NaN")), ["1.5", "2.0", None], []),
        ("Fractional", pandas_objects(Decimal("Infinity"), Decimal(2)), ["2"], [0]),
        ("Fractional", pandas_objects(Decimal("1E60"), Decimal("1E-60")), [], [0, 1]),
        ("Fractional", pandas_objects("+.5", "1.", "1e400", "nan", "1e-7", "0x1"), ["+.5", "1.", "1e-7"], [2, 3, 5]),
        ("Fractional", pandas_objects(1, 2.5, None, float("nan")), ["1.0", "2.5", None, None], []),
        ("Fractional", pandas_objects(2**53 + 1, 2.5), ["2.5"], [0]),
        ("Fractional", pandas_objects(np.uint64(2**64 - 1), 2.5, 3.5), ["2.5", "3.5"], [0]),
        ("Fractional", pd.Series([1 + 1j]), [], [0]),
        ("Fractional", pd.Series([1.5], dtype=np.longdouble), [], [0]),
        # String
        ("String", pandas_objects("a" * limits.VALUE_CHARS_MAX, "b" * (limits.VALUE_CHARS_MAX + 1)), [], [0, 1]),
        ("String", pandas_objects("é" * 170_000, "é" * 180_000), ["é" * 170_000], [1]),
        ("String", pandas_objects("", None, pd.NA, float("nan"), pd.NaT), ["", None, None, None, None], []),
        ("String", pandas_objects("a", "\ud800"), ["a"], [1]),
        ("String", pd.Series(["a", "\ud800"], dtype="string[python]"), ["a"], [1]),
        ("String", pandas_objects("a", b"b", 1, uuid.UUID(int=1), "c"), ["a", "c"], [1, 2, 3]),
        ("String", pd.Series(["a", 1, "b"], dtype="category"), ["a", "b"], [1]),
        ("String", pandas_objects(NOON, NOON.replace(tzinfo=None), NOON), [ISO[0], ISO[0]], [1]),
        (
            "String",
            pd.Series([NOON, NOON + dt.timedelta(milliseconds=5), pd.NaT]),
            [ISO[0], "2024-05-01T12:00:00.005Z", None],
            [],
        ),
        ("String", pandas_objects(pd.Timestamp("2024-01-01T00:00:00.000000001Z"), pd.NaT), [None], [0]),
        (
            "String",
            pa.array([1, 1000, -1000], pa.timestamp("ns", "UTC")),
            ["1970-01-01T00:00:00.000001Z", "1969-12-31T23:59:59.999999Z"],
            [0],
        ),
        ("String", pa.array([-(2**63), 253_402_300_800, 0], pa.timestamp("s", "UTC")), ["1970-01-01T00:00:00Z"], [0, 1]),
        # event times
        (
            "event time, String",
            pandas_objects(ISO[0], "2024-05-01", "2023-02-29T00:00:00Z", "2024-02-29T00:00:00Z"),
            [ISO[0], "2024-02-29T00:00:00Z"],
            [1, 2],
        ),
        (
            "event time, String",
            pandas_objects("2024-05-01T12:00:00.000000000Z", ISO[0], None),
            ["2024-05-01T12:00:00.000000000Z", ISO[0]],
            [2],
        ),
        ("event time, String", pa.array([1, 2000], pa.timestamp("ns", "UTC")), ["1970-01-01T00:00:00.000002Z"], [0]),
        ("event time, Fractional", pd.Series([1714564800.25, np.nan, 1e12, np.inf, 1e-7]), ["1714564800.25", "1e-07"], [1, 2, 3]),
        ("event time, Fractional", pd.Series([0, 10**12, -5], dtype="int64"), ["0", "-5"], [1]),
        ("event time, Fractional", pd.Series([2**64 - 1, 5], dtype="uint64"), ["5"], [0]),
        (
            "event time, Fractional",
            pd.Series([dt.datetime(1969, 12, 31, 23, 59, 58, 500_000, UTC), NOON]),
            ["-1.5", str(NOON_S)],
            [],
        ),
        # lists
        (
            "List, Set, Vector",
            pandas_objects([1, 2.5], [None], [], None, np.array([1.5]), (3,)),
            [["1.0", "2.5"], None, None, ["1.5"], ["3.0"]],
            [1],
        ),
        (
            "List, Set, Vector",
            pandas_objects([0.5], ["a"], [1, "a"], [float("nan")], {1.0}, 0.5, [1.0]),
            [["0.5"], ["1.0"]],
            [1, 2, 3, 4, 5],
        ),
        (
            "List, Set, Vector",
            pa.array([[1.0], None, [float("inf")], [2.0]], pa.list_(pa.float64())),
            [["1.0"], None, ["2.0"]],
            [2],
        ),
        ("List, Set, Vector", pa.array([["1", "x"], ["+2"]]), [["+2"]], [0]),
        ("List, Set, Vector", pa.array([[], None], pa.list_(pa.bool_())), [None, None], []),
    ],
)
def test_faulty_values_are_left_out_and_named(feature: str, column: Any, texts: list[Any], faulty: list[int]) -> None:
    definition = FEATURES[feature]
    group, frame = group_with(definition), frame_with(definition, column)
    batch = checked_columns(group, frame, skip_faulty=True)
    assert batch_texts(batch)[group.feature_names.index(definition.name)] == texts
    assert sorted({int(re.match(r"rows\[(\d+)\]", fault.path)[1]) for fault in batch.faults}) == faulty  # type: ignore[index]
    assert (batch.faults_total, batch.faulty_rows) == (len(faulty), len(faulty))
    assert batch.kept.tolist() == [row for row in range(len(column)) if row not in faulty]
    assert batch.rows == len(batch.record_ids) == len(batch.event_times_us) == batch.typed.num_rows == len(texts)
    if faulty:
        with pytest.raises(ValidationFailed) as raised:
            checked_columns(group, frame)
        assert list(map(str, raised.value.faults)) == list(map(str, batch.faults))


@pytest.mark.parametrize(
    ("feature", "column", "message"),
    [
        ("Fractional", pandas_objects(1.5, 2.5, "n/a"), "rows[2].x: expected number as in rows[0], got 'n/a'"),
        ("Fractional", pandas_objects("n/a", 1.5, 2.5), "rows[0].x: expected number as in rows[1], got 'n/a'"),
        (
            "String",
            pandas_objects(NOON, NOON.replace(tzinfo=None)),
            "rows[1].x: expected time with a zone as in rows[0], got datetime.datetime(2024, 5, 1, 12, 0)",
        ),
        (
            "Integral",
            pd.Series([1.5]),
            "rows[0].x: expected Integral (in a float column a whole number within 2^53), got 1.5",
        ),
        (
            "List, Set, Vector",
            pandas_objects({1.0}),
            "rows[0].x: expected list (a set has no order), got {1.0}",
        ),
        (
            "event time, String",
            pandas_objects(None, ISO[0]),
            "rows[0].t: expected a value for the event time feature 't'",
        ),
        (
            "String",
            pa.array([1], pa.timestamp("ns", "UTC")),
            "rows[0].x: expected a time of the years 0 to 9999 in whole microseconds, got '1970-01-01 00:00:00.000000001Z'",
        ),
        (
            "List, Set, Vector",
            pa.array([[2**40]], pa.list_(pa.timestamp("s", "UTC"))),
            "columns.x: expected List of Fractional, got 'large_list<item: timestamp[s, tz=UTC]>'",
        ),
        (
            "event time, Fractional",
            pd.Series([NOON.replace(tzinfo=None)]),
            "columns.t: expected seconds since 1970-01-01T00:00:00Z such as 1714564800 or 1714564800.25; convert the column, "
            "e.g. pandas.to_datetime(df['t']).dt.tz_localize(\"UTC\"), got 'timestamp[us]'",
        ),
    ],
)
def test_messages_name_row_value_and_remedy(feature: str, column: Any, message: str) -> None:
    assert faults_of(FEATURES[feature], column) == [message]


def test_a_batch_holds_every_feature_in_definition_order() -> None:
    features = (
        FeatureDefinition("score", FRACTIONAL),
        FeatureDefinition("city", STRING),
        FeatureDefinition("at", STRING),
        FeatureDefinition("tags", STRING, CollectionType.SET),
        FeatureDefinition("count", INTEGRAL),
        FeatureDefinition("embedding", FRACTIONAL, CollectionType.VECTOR, 2),
    )
    group = FeatureGroup("g", "city", "at", features, feature_counts=(len(features),))
    frame = pa.table(
        {
            "at": pa.array([NOON, NOON], pa.timestamp("ns", "UTC")),
            "tags": pa.array([["b", "a", "b"], []]),
            "embedding": pa.array([None, [1.0, 0.5]], pa.list_(pa.float32(), 2)),
            "city": ["Oslo", "Bergen"],
            "score": [0.25, None],
        }
    )
    batch = checked_columns(group, frame)
    assert batch.typed.schema == pa.schema([(feature.name, arrow_type(feature)) for feature in features])
    assert batch.typed.to_pylist() == [
        {"score": 0.25, "city": "Oslo", "at": ISO[0], "tags": ["b", "a"], "count": None, "embedding": None},
        {"score": None, "city": "Bergen", "at": ISO[0], "tags": None, "count": None, "embedding": [1.0, 0.5]},
    ]
    assert batch_texts(batch) == [
        ["0.25", None],
        ["Oslo", "Bergen"],
        [ISO[0], ISO[0]],
        [["b", "a"], None],
        [None, None],
        [None, ["1.0", "0.5"]],
    ]
    assert batch.record_ids.to_pylist() == ["Oslo", "Bergen"]
    assert batch.event_times_us.tolist() == [NOON_S * 1_000_000] * 2
    assert batch.event_times_us.dtype == np.int64
    assert (batch.kept.tolist(), batch.faults, batch.faults_total, batch.faulty_rows) == ([0, 1], (), 0, 0)


@pytest.mark.parametrize(
    ("feature_type", "column", "keys"),
    [
        (INTEGRAL, ["007", "+7", "-0"], ["7", "7", "0"]),
        (FRACTIONAL, ["10", "10.0", "1e1", "-0.0"], ["10.0", "10.0", "10.0", "0.0"]),
        (FRACTIONAL, [10.0, -0.0, 1e16], ["10.0", "0.0", "1e+16"]),
        (STRING, ["007", " 7"], ["007", " 7"]),
    ],
)
def test_record_ids_are_record_keys(feature_type: FeatureType, column: list[Any], keys: list[str]) -> None:
    features = (FeatureDefinition("id", feature_type), FeatureDefinition("t", STRING))
    group = FeatureGroup("g", "id", "t", features, feature_counts=(2,))
    assert checked_columns(group, pd.DataFrame({"id": column, "t": NOON})).record_ids.to_pylist() == keys


def test_identifiers_are_neither_absent_nor_empty_nor_long() -> None:
    features = (FeatureDefinition("id", STRING), FeatureDefinition("t", STRING))
    group = FeatureGroup("g", "id", "t", features, feature_counts=(2,))
    longest = "é" * (limits.RECORD_IDENTIFIER_BYTES_MAX // 2)
    batch = checked_columns(group, pd.DataFrame({"id": [longest, longest + "x", "", None], "t": NOON}), skip_faulty=True)
    assert batch.record_ids.to_pylist() == [longest]
    assert [(fault.path, fault.expected) for fault in batch.faults] == [
        ("rows[1].id", "at most 2048 bytes"),
        ("rows[2].id", "a non-empty record identifier"),
        ("rows[3].id", "a value for the record identifier feature 'id'"),
    ]


@pytest.mark.parametrize(
    ("lists", "collection", "faulty"),
    [
        ([[0.5, 1.0], [0.5], [], None], CollectionType.VECTOR, [1]),
        ([[0.5, 1.0], [0.5], [], None], CollectionType.LIST, []),
        ([[0.5] * (limits.COLLECTION_ELEMENTS_MAX + 1), [0.5]], CollectionType.LIST, [0]),
    ],
)
def test_collections_keep_their_limits(lists: list[Any], collection: CollectionType, faulty: list[int]) -> None:
    dimension = 2 if collection is CollectionType.VECTOR else None
    feature = FeatureDefinition("x", FRACTIONAL, collection, dimension)
    frame = frame_with(feature, pa.array(lists, pa.list_(pa.float64())))
    batch = checked_columns(group_with(feature), frame, skip_faulty=True)
    assert [row for row in range(len(lists)) if row not in batch.kept.tolist()] == faulty


def test_sliced_arrow_columns_are_read_where_they_start() -> None:
    feature = FeatureDefinition("x", INTEGRAL, CollectionType.LIST)
    lists = pa.array([[9], [1, 2], None, [], [3]], pa.list_(pa.int64()))
    frame = frame_with(feature, lists)[1:]
    batch = checked_columns(group_with(feature), frame)
    assert batch_texts(batch)[0] == ["1", "2", "3", "4"]
    assert batch_texts(batch)[2] == [["1", "2"], None, None, ["3"]]
    assert batch.typed["x"].to_pylist() == [[1, 2], None, None, [3]]


@pytest.mark.parametrize(
    "frame", [pd.DataFrame({"id": [], "t": []}), pa.table({"id": [], "t": []}), pd.DataFrame(columns=["id", "t"])]
)
def test_a_frame_without_rows_is_a_batch_without_records(frame: Any) -> None:
    batch = checked_columns(group_with(FEATURES["Fractional"]), frame)
    assert (batch.rows, batch.record_ids.to_pylist(), batch_texts(batch)) == (0, [], [[], [], []])
    assert batch.typed.schema.names == ["id", "t", "x"]


@pytest.mark.parametrize(
    ("frame", "faults"),
    [
        (
            pd.DataFrame({"id": [1], "pm25": [1.0]}),
            [
                "columns[1]: expected a feature of 'g', got 'pm25'",
                "columns: expected a column 't', the event time feature of 'g'",
            ],
        ),
        (pd.DataFrame([[1, 2, 3]], columns=["id", "t", "t"]), ["columns[2]: expected each column name at most once, got 't'"]),
        (pd.DataFrame([[1, 2]], columns=["id", 7]), ["columns[1]: expected a column name that is text, got 7"]),
        (pa.table([[1], [2]], names=["id", "id"]), ["columns[1]: expected each column name at most once, got 'id'"]),
        (
            pd.DataFrame(),
            [
                "columns: expected a column 'id', the record identifier feature of 'g'",
                "columns: expected a column 't', the event time feature of 'g'",
            ],
        ),
        ({"id": [1]}, ["frame: expected a pandas or polars DataFrame or an Arrow table, got 'dict'"]),
        (
            pd.DataFrame({"id": [True], "t": [1], "x": ["a"]}),
            [
                f"columns.t: expected {event_time.ISO_EXPECTED}; convert the column, "
                "e.g. pandas.to_datetime(df['t'], unit=\"s\", utc=True), got 'int64'"
            ],
        ),
    ],
)
@pytest.mark.parametrize("skip_faulty", [False, True])
def test_faults_of_the_frame_are_raised_always(frame: Any, faults: list[str], skip_faulty: bool) -> None:
    with pytest.raises(ValidationFailed) as raised:
        checked_columns(group_with(FEATURES["Fractional"]), frame, skip_faulty=skip_faulty)
    assert [str(fault) for fault in raised.value.faults] == faults


def test_a_single_column_is_no_frame() -> None:
    with pytest.raises(ValidationFailed, match="frame: expected columns with names"):
        arrow_table(pa.chunked_array([[1]]))


def test_faults_are_counted_in_full_and_kept_in_row_order() -> None:
    rows = 3 * FAULTS_KEPT_MAX
    group = group_with(FEATURES["Integral"])
    frame = pd.DataFrame({"x": ["bad"] * rows, "t": ["worse"] * rows, "id": range(rows)})
    with pytest.raises(ValidationFailed) as raised:
        checked_columns(group, frame)
    assert raised.value.faults_total == 2 * rows
    expected = [f"rows[{row}].{name}" for row in range(FAULTS_KEPT_MAX // 2) for name in ("t", "x")]
    assert [fault.path for fault in raised.value.faults] == expected
    assert str(raised.value).endswith(f"and {2 * rows - 10} more")


class Exported:
    """A dataframe of another library: nothing but the Arrow PyCapsule interface."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


def test_any_exporter_of_arrow_is_a_frame() -> None:
    # polars exports text as string_view, which few of Arrow's functions know
    table = pa.table({"id": [1, 2], "t": pa.array(ISO, pa.string_view()), "x": pa.array(["a", None], pa.string_view())})
    for frame in (table, table.to_batches()[0], Exported(table)):
        assert arrow_table(frame).equals(table)
        assert batch_texts(checked_columns(group_with(FEATURES["String"]), frame))[2] == ["a", None]


def test_arrow_tables_of_pandas_frames_keep_order_and_types_but_no_index() -> None:
    frame = pd.DataFrame({"b": [1.5, np.nan], "a": pandas_objects("x", None), "n": pandas_objects([1], [])}).set_axis([7, 7])
    table = arrow_table(frame)
    assert table.schema.names == ["b", "a", "n"]
    assert table.to_pylist() == [{"b": 1.5, "a": "x", "n": [1]}, {"b": None, "a": None, "n": []}]
    assert arrow_table(pd.DataFrame(index=[1, 2])).num_columns == 0


def test_arrow_tables_have_columns_of_one_kind() -> None:
    frame = pd.DataFrame({"a": pandas_objects(1, "2", None, b"3", True), "b": pandas_objects(NOON, 1.5, NOON, NOON, NOON)})
    with pytest.raises(ValidationFailed) as raised:
        arrow_table(frame)
    assert [str(fault) for fault in raised.value.faults] == [
        "rows[1].a: expected number as in rows[0], got '2'",
        "rows[1].b: expected time with a zone as in rows[0], got 1.5",
        "rows[3].a: expected number as in rows[0], got b'3'",
        "rows[4].a: expected number as in rows[0], got True",
    ]


@pytest.mark.parametrize(
    ("column", "feature_type", "keys"),
    [
        (pd.Series([1, None, 3], dtype="Int64"), INTEGRAL, pa.array([1, None, 3], pa.int64())),
        (pd.Series([1.0, np.nan]), INTEGRAL, pa.array([1, None], pa.int64())),
        (pandas_objects("007", None), INTEGRAL, pa.array([7, None], pa.int64())),
        (pd.Series([-0.0, 1e16]), FRACTIONAL, pa.array([0.0, 1e16])),
        (pd.Series(["a", None], dtype="category"), STRING, pa.array(["a", None])),
        (pd.Series([np.nan, np.nan]), STRING, pa.array([None, None], pa.string())),
        (pd.Series([NOON]), STRING, pa.array([ISO[0]])),
    ],
)
def test_spine_keys_have_the_type_of_the_offline_column(column: pd.Series, feature_type: FeatureType, keys: pa.Array) -> None:
    key = key_column(arrow_table(pd.DataFrame({"k": column}))["k"], feature_type, path="k")
    assert key.type == keys.type
    assert key.equals(keys)
    assert "-0.0" not in map(repr, key.to_pylist())


@pytest.mark.parametrize(
    ("column", "feature_type", "message"),
    [
        (
            pd.Series([1, 2]),
            STRING,
            "columns.k: expected String; convert the column, e.g. df['k'].astype(\"string\"), got 'int64'",
        ),
        (pandas_objects("1", "x"), INTEGRAL, "rows[1].k: expected Integral (a whole number from -2^63 to 2^63-1), got 'x'"),
    ],
)
def test_spine_keys_that_are_none_are_named(column: pd.Series, feature_type: FeatureType, message: str) -> None:
    with pytest.raises(ValidationFailed, match=re.escape(message)):
        key_column(arrow_table(pd.DataFrame({"k": column}))["k"], feature_type, path="k")


@pytest.mark.parametrize(
    ("column", "times_us"),
    [
        (pa.array([1999, -1, None], pa.timestamp("ns", "Europe/Berlin")), [1, -1, None]),
        (pa.array([1, -1], pa.timestamp("s", "UTC")), [1_000_000, -1_000_000]),
        (pa.array(["1970-01-01T00:00:00.000001Z", None]), [1, None]),
        (pa.array([0.25, 1714564800.1, None]), [250_000, 1_714_564_800_100_000, None]),
        (pa.array([5, None], pa.uint8()), [5_000_000, None]),
        (pa.array([Decimal("0.5")]), [500_000]),
        (pa.nulls(2), [None, None]),
    ],
)
def test_spine_times_are_microseconds_in_utc(column: pa.Array, times_us: list[int | None]) -> None:
    times = time_column(column, path="at")
    assert times.type == pa.timestamp("us", tz="UTC")
    assert times.cast(pa.int64()).to_pylist() == times_us


@pytest.mark.parametrize(
    ("column", "path", "hint"),
    [
        (pa.array([0], pa.timestamp("us")), "columns.at", "pandas.to_datetime(df['at']).dt.tz_localize(\"UTC\")"),
        (pa.array([0], pa.date32()), "columns.at", "pandas.to_datetime(df['at'], utc=True)"),
        (pa.array([True]), "columns.at", ""),
        (pa.array([None, "2024-05-01"]), "rows[1].at", ""),
        (pa.array([0.0, float("nan")]), "rows[1].at", ""),
        (pa.array([10**12]), "rows[0].at", ""),
    ],
)
def test_spine_times_that_are_none_are_named(column: pa.Array, path: str, hint: str) -> None:
    with pytest.raises(ValidationFailed) as raised:
        time_column(column, path="at")
    assert [fault.path for fault in raised.value.faults] == [path]
    assert hint in raised.value.faults[0].expected


def test_text_beyond_32_bit_offsets_is_stored_in_chunks() -> None:
    column = pa.array(["aa", None, "bbbb", "c", ""], pa.large_string())
    stored = narrow(column, pa.string(), array_bytes_max=40)
    assert stored.type == pa.string()
    assert stored.num_chunks > 1
    assert stored.to_pylist() == column.to_pylist()


def test_pandas_is_not_imported_for_those_who_do_not_use_it() -> None:
    code = "import sys, featurestore.model.columns; sys.exit('pandas' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
