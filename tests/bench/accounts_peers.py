"""The same done to plain files by hand. Nothing of ours is imported, so that none of it is measured."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.bench import data
from tests.bench.answers import table_checksum, training_set_checksum

EVENT_TIME = "_event_time"
"""In files of the feature store the event time feature is text; this column has the instant."""


def write_files(folder: str, frames: dict[str, Any]) -> dict[str, Any]:
    """One plain zstd Parquet file for each frame, synced; seconds of each. Nothing is checked, no list of the files is kept."""
    took_s = []
    Path(folder).mkdir()
    for number, frame in enumerate(data.account_frames(**frames)):
        started_s = time.perf_counter()
        with (Path(folder) / f"{number:06d}.parquet").open("xb") as file:
            pq.write_table(pa.Table.from_pandas(frame, preserve_index=False), file, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        took_s.append(time.perf_counter() - started_s)
    return {"took_s": took_s}


def write_one_file(folder: str, target: str) -> dict[str, Any]:
    """The rows of all files in one, in the order of the files."""
    table = ds.dataset(sorted(Path(folder).iterdir())).to_table()
    pq.write_table(table, target, compression="zstd")
    return {"checksum": table_checksum(table)}


def rows_checksum(paths: list[str]) -> dict[str, Any]:
    """Of all rows in files of the feature store."""
    columns = [EVENT_TIME if name == "at" else name for name in data.ACCOUNTS]
    return {"checksum": table_checksum(ds.dataset(paths, format="parquet").to_table(columns))}


def given_checksum(frames: dict[str, Any]) -> dict[str, Any]:
    """Of all rows that are to be written."""
    tables = [pa.Table.from_pandas(frame, preserve_index=False) for frame in data.account_frames(**frames)]
    return {"checksum": table_checksum(pa.concat_tables(tables))}


def join_file(path: str, spine: str) -> dict[str, Any]:
    """An ASOF join with the rows of one plain file."""
    table = pq.read_table(spine)
    with duckdb.connect(":memory:") as connection:
        connection.execute("SET TimeZone = 'UTC'")
        started_s = time.perf_counter()
        answer = _joined(connection, table, f"read_parquet('{path}')", "at")
        took_s = time.perf_counter() - started_s
    return {"took_s": took_s, "checksum": training_set_checksum(table, answer)}


def join_files(paths: list[str], spine: str, threads: int, memory_bytes: int) -> dict[str, Any]:
    """An ASOF join with the rows of files of the feature store, which DuckDB spills to disk beyond its memory."""
    table = pq.read_table(spine)
    with tempfile.TemporaryDirectory() as folder, _connect(threads, memory_bytes) as connection:
        connection.execute(f"SET temp_directory = '{folder}'")
        started_s = time.perf_counter()
        answer = _joined(connection, table, f"read_parquet({paths!r})", EVENT_TIME)
        took_s = time.perf_counter() - started_s
    return {"took_s": took_s, "checksum": training_set_checksum(table, answer)}


def join_with_polars(paths: list[str], spine: str) -> dict[str, Any]:
    """A `join_asof` of what the files hold; reading and sorting, which it needs, are part of it."""
    table = pq.read_table(spine)
    started_s = time.perf_counter()
    history = pl.scan_parquet(paths).select(_needed()).sort(EVENT_TIME)
    rows = pl.LazyFrame(table).sort("at")
    joined = rows.join_asof(history, left_on="at", right_on=EVENT_TIME, by="account", strategy="backward")
    features = joined.sort("row").select(data.ACCOUNT_FEATURES).collect().to_arrow(compat_level=pl.CompatLevel.oldest())
    return {"took_s": time.perf_counter() - started_s, "checksum": training_set_checksum(table, features)}


def join_with_pandas(paths: list[str], spine: str) -> dict[str, Any]:
    """A `merge_asof` of what the files hold; reading and sorting, which it needs, are part of it."""
    table = pq.read_table(spine)
    rows = table.to_pandas()
    started_s = time.perf_counter()
    history = pa.concat_tables([pq.ParquetFile(path).read(_needed()) for path in paths]).to_pandas()
    history = history.sort_values(EVENT_TIME)
    joined = pd.merge_asof(rows.sort_values("at"), history, left_on="at", right_on=EVENT_TIME, by="account").sort_values("row")
    took_s = time.perf_counter() - started_s
    types = {"Integral": pa.int64(), "Fractional": pa.float64(), "String": pa.string()}
    kinds = {name: types[data.ACCOUNTS[name]] for name in data.ACCOUNT_FEATURES}
    features = pa.table({name: pa.Array.from_pandas(joined[name]).cast(kind) for name, kind in kinds.items()})
    return {"took_s": took_s, "checksum": training_set_checksum(table, features)}


def join_tables(paths: list[str], spine: str, threads: int, memory_bytes: int) -> dict[str, Any]:
    """An ASOF join with a table that is in memory already; the seconds of loading it are told apart."""
    table = pq.read_table(spine)
    with _connect(threads, memory_bytes) as connection:
        started_s = time.perf_counter()
        connection.execute(f"CREATE TABLE accounts AS SELECT {', '.join(_needed())} FROM read_parquet({paths!r})")
        load_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        answer = _joined(connection, table, "accounts", EVENT_TIME)
        took_s = time.perf_counter() - started_s
    return {"load_s": load_s, "took_s": took_s, "checksum": training_set_checksum(table, answer)}


def scan(paths: list[str], threads: int, memory_bytes: int) -> dict[str, Any]:
    """Decode every value of the columns that the join needs, and keep none.

    A sum over each column is the least that can be asked: `count`, `min` and `max` may be answered from the files' statistics,
    and a table would be written besides. A text is asked for its length, which stands beside it, not for its characters.
    """
    kinds = {"Integral": "sum({})", "Fractional": "sum({})", "String": "sum(strlen({}))"}
    sums = [f"sum(epoch_us({EVENT_TIME}))", "sum(strlen(account))"]
    sums += [kinds[data.ACCOUNTS[name]].format(name) for name in data.ACCOUNT_FEATURES]
    with _connect(threads, memory_bytes) as connection:
        started_s = time.perf_counter()
        connection.execute(f"SELECT {', '.join(sums)} FROM read_parquet({paths!r})").fetchall()
        return {"took_s": time.perf_counter() - started_s}


def _needed() -> list[str]:
    return ["account", EVENT_TIME, *data.ACCOUNT_FEATURES]


def _connect(threads: int, memory_bytes: int) -> duckdb.DuckDBPyConnection:
    connection = duckdb.connect(":memory:", config={"threads": threads, "memory_limit": f"{memory_bytes >> 20}MiB"})
    connection.execute("SET TimeZone = 'UTC'")
    return connection


def _joined(connection: duckdb.DuckDBPyConnection, spine: pa.Table, relation: str, event_time: str) -> pa.Table:
    """For each row of the spine the newest row of its account that is not later, in the spine's order."""
    connection.register("spine", spine)
    names = ", ".join(f"f.{name}" for name in data.ACCOUNT_FEATURES)
    return connection.sql(
        f"SELECT {names} FROM spine s ASOF LEFT JOIN {relation} f ON s.account = f.account AND s.at >= f.{event_time} "
        "ORDER BY s.row"
    ).to_arrow_table()
