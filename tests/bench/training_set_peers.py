"""The same training set by hand. Nothing of ours is imported, so that none of it is measured."""

from __future__ import annotations

import os
import time
from typing import Any

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench import data
from tests.bench.answers import training_set_checksum


def join_with_duckdb(files: dict[str, list[str]], spine: str) -> dict[str, Any]:
    """One ASOF join per group over tables loaded into memory, nothing but equal keys and times compared."""
    table = pq.read_table(spine)
    connection = duckdb.connect(":memory:", config={"threads": os.cpu_count() or 1})
    connection.execute("SET TimeZone = 'UTC'")
    started_s = time.perf_counter()
    for group, paths in files.items():
        names = [data.KEYS[group], "_event_time", *(name for of, name in data.FEATURES if of == group)]
        connection.execute(f"CREATE TABLE {group} AS SELECT {', '.join(names)} FROM read_parquet({paths!r})")
    scan_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    connection.register("spine", table)
    columns: list[pa.ChunkedArray] = []
    for group in files:
        names = ", ".join(f"f.{name}" for of, name in data.FEATURES if of == group)
        joined = connection.sql(
            f"SELECT {names} FROM spine s ASOF LEFT JOIN {group} f ON s.{data.KEYS[group]} = f.{data.KEYS[group]} "
            "AND s.at >= f._event_time ORDER BY s.row"
        ).to_arrow_table()
        columns += joined.columns
    join_s = time.perf_counter() - started_s
    connection.close()
    answer = pa.table(columns, names=data.COLUMNS)
    return {"took_s": scan_s + join_s, "scan_s": scan_s, "join_s": join_s, "checksum": training_set_checksum(table, answer)}


def join_with_pandas(files: dict[str, list[str]], spine: str) -> dict[str, Any]:
    """One `merge_asof` per group over frames; sorting, which it needs, is part of the join."""
    table = pq.read_table(spine)
    rows = table.to_pandas()
    frames = {}
    started_s = time.perf_counter()
    for group, paths in files.items():
        names = [data.KEYS[group], "_event_time", *(name for of, name in data.FEATURES if of == group)]
        frames[group] = pa.concat_tables([pq.ParquetFile(path).read(names) for path in paths]).to_pandas()
    scan_s = time.perf_counter() - started_s
    started_s = time.perf_counter()
    joined = rows.sort_values("at")
    for group, frame in frames.items():
        renamed = frame.rename(columns={name: f"{group}.{name}" for of, name in data.FEATURES if of == group})
        joined = pd.merge_asof(
            joined, renamed.sort_values("_event_time"), left_on="at", right_on="_event_time", by=data.KEYS[group]
        ).drop(columns="_event_time")
    joined = joined.sort_values("row")
    join_s = time.perf_counter() - started_s
    types = {"Integral": pa.int64(), "Fractional": pa.float64(), "String": pa.string()}
    columns = [
        pa.Array.from_pandas(joined[f"{group}.{name}"]).cast(types[data.GROUPS[group][name]]) for group, name in data.FEATURES
    ]
    answer = pa.table(columns, names=data.COLUMNS)
    return {"took_s": scan_s + join_s, "scan_s": scan_s, "join_s": join_s, "checksum": training_set_checksum(table, answer)}
