"""The plain writes that an ingest is compared with. Nothing of ours is imported, so that none of it is measured."""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from tests.bench import data
from tests.bench.answers import table_checksum

UPSERT_ROWS = 4096
"""Rows per transaction."""


def write_parquet(frame: str, target: str) -> dict[str, Any]:
    """The frame as zstd Parquet in one folder per hour, no syncs, no statistics kept, no checks."""
    events = pd.read_parquet(frame)
    started_s = time.perf_counter()
    table = pa.Table.from_pandas(events, preserve_index=False)
    table = table.append_column("hour", events["at"].astype("int64") // data.HOUR_US)
    ds.write_dataset(
        table,
        target,
        format="parquet",
        partitioning=ds.partitioning(pa.schema([("hour", pa.int64())]), flavor="hive"),
        file_options=ds.ParquetFileFormat().make_write_options(compression="zstd"),
        max_partitions=data.HOURS + 1,
        max_open_files=data.HOURS + 1,
    )
    took_s = time.perf_counter() - started_s
    stored = pa.concat_tables([pq.ParquetFile(path).read() for path in Path(target).rglob("*.parquet")])
    return {"took_s": took_s, "rows": len(events), "offline": table_checksum(stored)}


def upsert_sqlite(frame: str, target: str) -> dict[str, Any]:
    """The newest row per identifier into a plain table: the values as one ready blob, durable transactions."""
    events = pd.read_parquet(frame)
    newest = events.loc[events.groupby("id")["n"].idxmax()]
    encode = msgspec.msgpack.Encoder().encode
    rows = [(row[0], encode([str(value) for value in row])) for row in newest.itertuples(index=False, name=None)]
    folder = Path(target)
    folder.mkdir()
    connection = sqlite3.connect(folder / "plain.db", isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE record (id TEXT PRIMARY KEY, value BLOB NOT NULL)")
        started_s = time.perf_counter()
        for start in range(0, len(rows), UPSERT_ROWS):
            connection.execute("BEGIN")
            connection.executemany(
                "INSERT INTO record VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET value = ?2", rows[start : start + UPSERT_ROWS]
            )
            connection.execute("COMMIT")
        took_s = time.perf_counter() - started_s
    finally:
        connection.close()
    return {"took_s": took_s, "rows": len(rows)}
