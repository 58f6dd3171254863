"""Reading by others: pyarrow, Polars and DuckDB read the layout by path alone and see the rows of the SQL history, each once."""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from featurestore.engine import literal
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import (
    CollectionType,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
)
from featurestore.offline import layout, schema
from featurestore.settings import Settings
from featurestore.store import FeatureStore

NAME = "Air-Quality-NYC"
START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
AMAZON = (schema.WRITE_TIME, schema.API_TIME, schema.IS_DELETED)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    text = FeatureType.STRING
    with FeatureStore(Settings.load({}, home=tmp_path / "home", flush_changes_max=10)) as store:
        store.create(
            FeatureGroup(
                name=NAME,
                record_identifier="id",
                event_time="t",
                features=(
                    FeatureDefinition("id", text),
                    FeatureDefinition("t", text),
                    FeatureDefinition("pm25", FeatureType.FRACTIONAL),
                    FeatureDefinition("count", FeatureType.INTEGRAL),
                    FeatureDefinition("words", text, CollectionType.LIST),
                ),
                online=OnlineConfig(storage_type=StorageType.IN_MEMORY),
                offline=OfflineConfig(store.default_s3_uri),
            )
        )
        fill(store)
        yield store


def at(number: int) -> str:
    return format_iso(START_US + number * HOUR_US)


def fill(store: FeatureStore) -> None:
    """Puts over many hours, a backfill over years in shared files, both kinds of deletes, and features that came later."""
    chance = random.Random(7)
    for number in range(60):
        record = {"id": f"station-{number % 9}", "t": at(number), "pm25": chance.random(), "count": number}
        store.put_record(NAME, record if number % 5 else record | {"words": ["a", str(number)]})
    store.delete_record(NAME, "station-3", at(70))
    store.delete_record(NAME, "station-4", at(70), hard=True)
    store.flush()
    hours = np.arange("2010-01-01", "2023-01-01", 36, dtype="datetime64[h]").astype("datetime64[s]")
    backfill = pd.DataFrame({"id": [f"station-{number % 9}" for number in range(len(hours))], "t": hours})
    backfill["t"] = backfill["t"].dt.tz_localize("UTC")
    backfill["pm25"] = [chance.random() for _ in hours]
    store.ingest(NAME, backfill, progress=False)
    more = [
        FeatureDefinition("humidity", FeatureType.INTEGRAL),
        FeatureDefinition("tags", FeatureType.STRING, CollectionType.SET),
    ]
    store.add_features(NAME, more)
    for number in range(60, 75):
        store.put_record(NAME, {"id": f"station-{number % 9}", "t": at(number), "humidity": number, "tags": ["x", "y"]})
    store.delete_record(NAME, "station-5", at(80))
    store.flush()


def data_folder(store: FeatureStore) -> str:
    return store.offline.objects.paths([f"{layout.group_root(store.feature_group(NAME))}/data"])[0]


def with_pyarrow(folder: str, features: pa.Schema) -> pa.Table:
    """The columns of later files are null in earlier ones if the schema is given; pyarrow takes that of the first file else."""
    return ds.dataset(folder, schema=features, format="parquet", partitioning="hive").to_table()


def with_polars(folder: str, features: pa.Schema) -> pa.Table:
    columns = pl.Schema(pl.from_arrow(features.empty_table()).schema)  # type: ignore[union-attr]
    frame = pl.scan_parquet(
        f"{folder}/**/*.parquet",
        schema=columns,
        missing_columns="insert",
        extra_columns="ignore",
        hive_partitioning=False,
    )
    return frame.collect().to_arrow().cast(features)


def with_duckdb(folder: str, features: pa.Schema) -> pa.Table:
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        files = literal(f"{folder}/**/*.parquet")
        relation = connection.sql(f"SELECT * FROM read_parquet({files}, union_by_name = true, hive_partitioning = true)")
        table = relation.to_arrow_table()
    assert {"year", "month", "day", "hour"} <= set(table.column_names)
    return table.select(features.names).cast(features)


READERS = (with_pyarrow, with_polars, with_duckdb)


def columns_of(store: FeatureStore) -> pa.Schema:
    full = schema.table_schema(store.feature_group(NAME).features)
    return pa.schema([field for field in full if not field.name.startswith("_")])


def rows(table: pa.Table, columns: pa.Schema) -> Counter[str]:
    return Counter(repr(list(row.values())) for row in table.select(columns.names).to_pylist())


def check(store: FeatureStore, read: Callable[[str, pa.Schema], pa.Table]) -> None:
    columns = columns_of(store)
    assert set(AMAZON) <= set(columns.names)
    expected = rows(store.sql(f'SELECT * FROM history."{NAME}"'), columns)
    assert rows(read(data_folder(store), columns), columns) == expected
    assert set(expected.values()) == {1}


@pytest.mark.parametrize("read", READERS)
def test_a_reader_by_path_sees_every_row_once(store: FeatureStore, read: Callable[[str, pa.Schema], pa.Table]) -> None:
    check(store, read)


@pytest.mark.parametrize("read", READERS)
def test_it_does_after_compactions_too(store: FeatureStore, read: Callable[[str, pa.Schema], pa.Table]) -> None:
    assert store.compact(NAME).merged
    check(store, read)
    store.put_record(NAME, {"id": "station-1", "t": at(200), "pm25": 1.0})
    store.flush()
    assert store.compact(NAME).merged
    store.clean(NAME)
    check(store, read)


@pytest.mark.parametrize("read", READERS)
def test_it_does_after_an_erasure_too(store: FeatureStore, read: Callable[[str, pa.Schema], pa.Table]) -> None:
    store.compact(NAME)
    store.erase(NAME, "station-2", "station-3")
    check(store, read)
    assert store.sql(f"SELECT count(*) AS n FROM history.\"{NAME}\" WHERE id = 'station-2'")["n"].to_pylist() == [0]


def test_nothing_but_data_files_lies_in_the_layout(store: FeatureStore) -> None:
    store.compact(NAME)
    store.maintain(NAME)
    folder = Path(data_folder(store))
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 60
    root = layout.group_root(store.feature_group(NAME))
    for path in files:
        assert layout.kind_of(root, path.name) is not None
        parts = path.relative_to(folder).parent.as_posix()
        assert parts == layout.hour_folder(layout.latest_event_time_us(path.name))


def test_partition_directories_alone_are_no_filter(store: FeatureStore) -> None:
    """Rows of a backfill over years share files: who filters by directory misses some, who filters by event time does not."""
    files = literal(f"{data_folder(store)}/**/*.parquet")
    by_time = f"SELECT count(*) FROM read_parquet({files}) WHERE t >= '2015-03-02' AND t < '2015-03-10'"
    by_directory = (
        f"SELECT count(*) FROM read_parquet({files}, hive_partitioning = true) WHERE year = 2015 AND month = 3 AND day < 10"
    )
    with duckdb.connect() as connection:
        right, wrong = (connection.sql(query).fetchall()[0][0] for query in (by_time, by_directory))
    history = f"SELECT count(*) AS n FROM history.\"{NAME}\" WHERE t >= '2015-03-02' AND t < '2015-03-10'"
    assert right == store.sql(history)["n"][0].as_py() > 0
    assert wrong < right


def test_features_may_be_called_like_the_directories(store: FeatureStore) -> None:
    """Of a feature `hour` and a directory `hour=00` a reader takes one: the feature, once it does not look at directories."""
    name = "clicks"
    kinds = {"id": "Integral", "t": "Fractional", "hour": "Integral", "year": "Integral"}
    store.create_feature_group(name, record_identifier="id", event_time="t", features=kinds)
    first_s = START_US / 1e6 + 0.25
    for number in range(30):
        store.put_record(name, {"id": number % 4, "t": first_s + 3600 * number, "hour": -number, "year": number})
    store.delete_record(name, 3, first_s + 3600 * 40, hard=True)
    store.flush()
    since_s = first_s + 3600 * 20
    columns = pa.schema(
        [field for field in schema.table_schema(store.feature_group(name).features) if not field.name.startswith("_")]
    )
    expected = rows(store.sql(f"SELECT * FROM history.{name} WHERE t >= {since_s}"), columns)
    assert expected.total() == 11
    folder = store.offline.objects.paths([f"{layout.group_root(store.feature_group(name))}/data"])[0]
    files = f"{folder}/**/*.parquet"
    arrow = ds.dataset(folder, format="parquet").to_table(filter=ds.field("t") >= since_s)
    polars = pl.scan_parquet(files, hive_partitioning=False).filter(pl.col("t") >= since_s).collect().to_arrow()
    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        query = f"SELECT * FROM read_parquet({literal(files)}, hive_partitioning = false) WHERE t >= {since_s}"
        duck = connection.sql(query).to_arrow_table()
        ((hour,),) = connection.sql(f"SELECT min(hour) FROM read_parquet({literal(files)})").fetchall()
    for table in (arrow, polars, duck):
        assert rows(table.select(columns.names).cast(columns), columns) == expected
    assert hour == "00", "DuckDB looks at directories unless it is told not to, and hides the feature then"


def test_the_guide(store: FeatureStore) -> None:
    store.add_features(NAME, [FeatureDefinition("last", FeatureType.FRACTIONAL)])
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "other-readers.md").read_text().replace("humidity", "last")
    rows_total = store.sql(f'SELECT count(*) AS n FROM history."{NAME}"')["n"][0].as_py()
    names: dict[str, Any] = {"folder": data_folder(store)}
    for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
        exec(block, names)  # noqa: S102 - our own guide
    assert names["table"].num_rows == names["frame"].height == rows_total
    assert names["table"]["last"].null_count == rows_total
    (query,) = re.findall(r"```sql\n(.*?)```", guide, re.DOTALL)
    with duckdb.connect() as connection:
        assert connection.sql(query.replace("<folder>", data_folder(store))).to_arrow_table().num_rows == rows_total
