"""A join reads what it needs and nothing else: the rest of the files is overwritten, and the answer stays."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.engine import Engine, EngineLimits
from featurestore.errors import QueryFailed
from featurestore.model.feature_group import (
    CollectionType,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    definitions,
)
from featurestore.offline import schema
from featurestore.query.join import join_group
from featurestore.query.matches import scan_sql
from featurestore.query.point_in_time import Cut, GroupJoin
from featurestore.query.sight import Sight
from featurestore.query.values import NOWHERE, ROW_BITS, values_at

KEYS, CHANGES, ROW_GROUPS = 20, 50, 10
FEATURES = [
    ("id", FeatureType.STRING),
    ("at", FeatureType.STRING),
    ("amount", FeatureType.FRACTIONAL),
    ("count", FeatureType.INTEGRAL),
    ("country", FeatureType.STRING),
]
GROUP = FeatureGroup(
    "payments",
    "id",
    "at",
    definitions(FEATURES),
    offline=OfflineConfig("s3://bucket", resolved_s3_uri="s3://bucket/data"),
    feature_counts=(len(FEATURES),),
)
DECIDING = {"id", schema.EVENT_TIME, schema.API_TIME}
"""The columns that tell which change is the newest, where nothing is deleted and nothing expires."""


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(EngineLimits(512 << 20, 1 << 30, 2), tmp_path_factory.mktemp("engine"))


def history() -> pa.Table:
    """CHANGES of each of KEYS, by key and time."""
    rows = np.arange(KEYS * CHANGES)
    times = schema.instants(rows % CHANGES * 10)
    countries = pa.array([f"country {row % 7}" for row in rows.tolist()])
    nothing = pa.nulls(len(rows), schema.INSTANT)
    no = pa.array(np.zeros(len(rows), np.bool_))
    keys = pa.array([f"key {row // CHANGES:02d}" for row in rows.tolist()])
    texts = pa.array([str(row) for row in rows.tolist()])
    columns = [keys, texts, pa.array(rows / 4), pa.array(rows), countries, times, times, no, times, nothing, no]
    return pa.table(columns, schema=schema.table_schema(GROUP.features))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "sorted.parquet"
    pq.write_table(history(), path, row_group_size=KEYS * CHANGES // ROW_GROUPS)
    return path


def overwrite(path: Path, unneeded: Callable[[int, str], bool]) -> int:
    """Make noise of the column chunks, given as row group and column; how many."""
    footer = pq.read_metadata(path)
    content = bytearray(path.read_bytes())
    count = 0
    for group in range(footer.num_row_groups):
        for index in range(footer.num_columns):
            chunk = footer.row_group(group).column(index)
            if unneeded(group, chunk.path_in_schema):
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                content[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
                count += 1
    path.write_bytes(content)
    return count


def spine(keys: list[int], time_us: int = 255) -> pa.Table:
    return pa.table({"key": [f"key {key:02d}" for key in keys], "time": schema.instants(np.full(len(keys), time_us))})


def join_of(path: Path, *features: str) -> GroupJoin:
    return GroupJoin(Sight(GROUP, [str(path)]), [(name, name) for name in features])


def test_only_the_features_asked_for_are_read(engine: Engine, file: Path) -> None:
    asked = (spine(list(range(KEYS))), join_of(file, "count"), Cut())
    expected = join_group(engine, *asked)
    assert expected["count"].to_pylist() == [key * CHANGES + 25 for key in range(KEYS)]
    assert overwrite(file, lambda _, name: name not in DECIDING | {"count"}) == ROW_GROUPS * 7
    assert join_group(engine, *asked) == expected
    with pytest.raises(QueryFailed):
        join_group(engine, spine([3]), join_of(file, "amount"), Cut())


def test_only_row_groups_with_keys_of_the_spine_are_read(engine: Engine, file: Path) -> None:
    asked = (spine([7, 7, 6]), join_of(file, "amount", "country"), Cut())
    expected = join_group(engine, *asked)
    assert expected["amount"].to_pylist() == [(key * CHANGES + 25) / 4 for key in (7, 7, 6)]
    assert overwrite(file, lambda group, _: group != 3) == 11 * (ROW_GROUPS - 1)
    assert join_group(engine, *asked) == expected
    with pytest.raises(QueryFailed):
        join_group(engine, spine([7, 8]), join_of(file, "amount"), Cut())


def test_features_are_only_read_where_an_answer_is(engine: Engine, file: Path) -> None:
    """The history of a key lies in many files; its answers in few of them."""
    early, late = pq.read_table(file).slice(0, CHANGES // 2), pq.read_table(file).slice(CHANGES // 2, CHANGES // 2)
    paths = [file.parent / "early.parquet", file.parent / "late.parquet"]
    for path, rows in zip(paths, (early, late), strict=True):
        pq.write_table(rows, path)
    overwrite(paths[0], lambda _, name: name not in DECIDING)
    join = GroupJoin(Sight(GROUP, list(map(str, paths))), [("count", "count")])
    assert join_group(engine, spine([0], time_us=490), join, Cut())["count"].to_pylist() == [49]
    with pytest.raises(QueryFailed):
        join_group(engine, spine([0], time_us=0), join, Cut())


@pytest.mark.parametrize("keys", [1, KEYS])
def test_the_engine_says_so_too(engine: Engine, file: Path, keys: int) -> None:
    session = engine.session()
    session.register("keys", pa.table({"id": np.arange(keys), "key": [f"key {key:02d}" for key in range(keys)]}))
    text = str(session.sql(f"EXPLAIN ANALYZE {scan_sql(join_of(file).sight, Cut())}").fetchall()[0][1])
    session.close()
    scan = text[text.index("READ_PARQUET") :]
    projections = " ".join(re.findall(r"[\w,]+", scan[scan.index("Projections:") : scan.index("Dynamic Filters:")]))
    assert set(re.split(r"[ ,]+", projections.removeprefix("Projections").strip())) == DECIDING | {"file_row_number"}
    read, of = re.findall(r"Row Groups Scanned: (\d+) / (\d+)", scan)[0]
    assert int(read) == (1 if keys == 1 else ROW_GROUPS)
    assert int(of) == ROW_GROUPS


@pytest.mark.parametrize("decoded_bytes", [1, 300, 64 << 20])
def test_values_are_those_of_the_whole_table_at_the_places(tmp_path: Path, decoded_bytes: int) -> None:
    """Row groups of several sizes, decoded in pieces; numbers, null and NaN among them; texts with and without a dictionary;
    lists; columns that a file lacks.
    """
    tags = FeatureDefinition("tags", FeatureType.FRACTIONAL, CollectionType.LIST)
    features = (*definitions([*FEATURES, ("later", FeatureType.INTEGRAL)]), tags)
    table = history()
    texts = [f"a text that is long, number {row}" for row in range(table.num_rows)]
    lists = pa.array([[row / 8] * (row % 4) if row % 5 else None for row in range(table.num_rows)])
    newer = table.set_column(4, "country", pa.array(texts))
    counts = [None if row % 3 == 0 else row for row in range(table.num_rows)]
    amounts = [None if row % 11 == 0 else math.nan if row % 2 else row / 8 for row in range(table.num_rows)]
    newer = newer.append_column("later", pa.array(counts)).set_column(2, "amount", pa.array(amounts))
    tables = [table, newer.append_column("tags", lists)]
    paths = []
    for number, (rows, size) in enumerate(zip(tables, (64, 333), strict=True)):
        paths.append(str(tmp_path / f"{number}.parquet"))
        pq.write_table(rows, paths[-1], row_group_size=size)
    names = [feature.name for feature in features]
    whole = pa.concat_tables(tables, promote_options="default").select(names)
    rng = np.random.default_rng(5)
    rows = rng.integers(-50, whole.num_rows, 400)
    places = np.where(rows < 0, NOWHERE, (rows // table.num_rows << ROW_BITS) | rows % table.num_rows)
    found = values_at(paths, places, features, 2, decoded_bytes=decoded_bytes)
    assert found.schema.types == whole.schema.types
    assert repr(found.to_pylist()) == repr(whole.take(pa.array(rows, mask=rows < 0)).to_pylist())  # NaN is not equal to itself
    nothing: Any = np.full(3, NOWHERE)
    assert values_at(paths, nothing, features, 2).to_pylist() == [dict.fromkeys(names)] * 3
