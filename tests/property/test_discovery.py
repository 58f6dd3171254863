"""Adoption equals ingest: a table as a file and as a dataframe is taken with the same rows, or by neither."""

from __future__ import annotations

import os
from collections.abc import Iterator
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.errors import ValidationFailed
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout
from featurestore.offline.manifest import ForeignState
from featurestore.store import FeatureStore

NUMBERS = count()
TYPES = st.sampled_from(["String", "Integral", "Fractional"])
MICROS = st.integers(-(10**15), 4 * 10**15)
TEXTS = st.one_of(st.text(max_size=3), st.sampled_from(["0", "1", "-3", "1.5", "1e3", "+7", "n/a", "2024-05-01T00:00:00Z"]))
INT8, INT64, UINT64 = st.integers(-128, 127), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**64 - 1)
DECIMALS = st.decimals(-9999, 9999, places=2).map(Decimal)

COLUMNS: list[tuple[pa.DataType, st.SearchStrategy[Any]]] = [
    (pa.int8(), INT8),
    (pa.int64(), INT64),
    (pa.uint64(), UINT64),
    (pa.bool_(), st.booleans()),
    (pa.float32(), st.floats(width=32)),
    (pa.float64(), st.floats()),
    (pa.float64(), INT8.map(float)),
    (pa.decimal128(6, 2), DECIMALS),
    (pa.string(), TEXTS),
    (pa.large_string(), TEXTS),
    (pa.dictionary(pa.int32(), pa.string()), TEXTS),
    (pa.timestamp("us", "UTC"), MICROS),
    (pa.timestamp("ms", "UTC"), MICROS.map(lambda micros: micros // 1000)),
    (pa.timestamp("ns", "UTC"), INT64),
    (pa.timestamp("us"), MICROS),
    (pa.date32(), st.integers(0, 30_000)),
    (pa.binary(), st.binary(max_size=3)),
    (pa.list_(pa.int64()), st.lists(INT8, max_size=2)),
    (pa.null(), st.none()),
]


FITTING: dict[str, list[tuple[pa.DataType, st.SearchStrategy[Any]]]] = {
    "String": [(pa.string(), TEXTS), (pa.dictionary(pa.int8(), pa.large_string()), TEXTS), (pa.timestamp("us", "UTC"), MICROS)],
    "Integral": [(pa.int8(), INT8), (pa.int64(), INT64), (pa.bool_(), st.booleans()), (pa.float64(), INT8.map(float))],
    "Fractional": [(pa.float32(), st.floats(-9, 9, width=32)), (pa.int16(), INT8), (pa.decimal128(6, 2), DECIMALS)],
}
"""Columns that suit a feature type, mostly."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    with featurestore.open(tmp_path_factory.mktemp("home")) as store:
        yield store


@st.composite
def columns(draw: st.DrawFn, feature_type: str, rows: int) -> pa.Array:
    kind, values = draw(st.sampled_from(draw(st.sampled_from([FITTING[feature_type]] * 5 + [COLUMNS]))))
    nullable = draw(st.sampled_from([values, st.none() | values]))
    return pa.array(draw(st.lists(nullable, min_size=rows, max_size=rows)), kind)


@st.composite
def tables(draw: st.DrawFn) -> tuple[dict[str, str], pa.Table]:
    """Features, and a table that mostly suits some of them."""
    types = {name: draw(TYPES) for name in ("id", "a", "b", "c")} | {"at": draw(st.sampled_from(["String", "Fractional"]))}
    rows = draw(st.integers(1, 5))
    ids = st.lists(st.sampled_from(["1", "2", "3"]), min_size=rows, max_size=rows).map(pa.array)
    times = st.lists(MICROS, min_size=rows, max_size=rows).map(lambda micros: pa.array(micros, pa.timestamp("us", "UTC")))
    found = {
        "id": draw(st.one_of(ids, ids, ids, columns(types["id"], rows))),
        "at": draw(st.one_of(times, times, times, columns(types["at"], rows))),
    }
    for name in draw(st.lists(st.sampled_from(["a", "b", "c"]), unique=True)):
        found[name] = draw(columns(types[name], rows))
    for name in draw(st.sampled_from([[]] * 8 + [["id"], ["at"]])):
        del found[name]
    order = draw(st.permutations(list(found)))
    return types, pa.table({name: found[name] for name in order})


def stored(store: FeatureStore, group: FeatureGroup) -> list[dict[str, Any]]:
    """The rows of the table: the features, the event time as an instant, and the flags."""
    entries = store.offline.manifest(group).current().files
    rows: list[dict[str, Any]] = []
    for path in store.offline.paths(group, entries):
        found = pq.read_table(path, partitioning=None)
        kept = [name for name in found.column_names if name not in ("write_time", "api_invocation_time")]
        found = found.sort_by("write_time").select(kept)
        rows += found.set_column(kept.index("_event_time"), "_event_time", found["_event_time"].cast(pa.int64())).to_pylist()
    return sorted(rows, key=repr)


@settings(max_examples=150, deadline=None)
@given(example=tables(), data=st.data())
def test_adoption_equals_ingest(store: FeatureStore, example: tuple[dict[str, str], pa.Table], data: st.DataObject) -> None:
    features, frame = example
    by_file, by_frame = (
        store.create_feature_group(f"g{next(NUMBERS)}", record_identifier="id", event_time="at", features=features)
        for _ in range(2)
    )
    file = Path(store.settings.offline_location.removeprefix("file://")) / layout.group_root(by_file) / "data/part-0.parquet"
    file.parent.mkdir(parents=True)
    pq.write_table(
        frame,
        file,
        row_group_size=data.draw(st.integers(1, 5)),
        use_dictionary=data.draw(st.booleans()),
        store_schema=data.draw(st.booleans()),
        data_page_version=data.draw(st.sampled_from(["1.0", "2.0"])),
    )
    os.utime(file, (0, 0))

    found = store.discover(by_file.name)[by_file.name]

    if ingested(store, by_frame, pq.read_table(file, partitioning=None)):
        assert [(entry.state, entry.rows) for entry in found.adopted] == [(ForeignState.ADOPTED, frame.num_rows)]
    else:
        assert len(found.quarantined) == 1
    assert stored(store, by_file) == stored(store, by_frame)


def ingested(store: FeatureStore, group: FeatureGroup, frame: pa.Table) -> bool:
    try:
        store.ingest(group.name, frame, progress=False)
    except ValidationFailed:
        return False
    return True
