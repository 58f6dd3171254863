"""The plain writes that an ingest is compared with. Nothing of ours is imported, so that none of it is measured."""

from __future__ import annotations

import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import Any

import hiredis
import msgspec
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import redis

from tests.bench import data
from tests.bench.answers import table_checksum

UPSERT_ROWS = 4096
"""Rows per transaction."""
RECEIVED_BYTES = 1 << 16


def write_parquet(frame: str, target: str) -> dict[str, Any]:
    """The frame as zstd Parquet in one folder per hour, no syncs, no statistics kept, no checks."""
    events = pd.read_parquet(frame)
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
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
    took_s, cpu_s = time.perf_counter() - started_s, time.process_time() - started_cpu_s
    stored = pa.concat_tables([pq.ParquetFile(path).read() for path in Path(target).rglob("*.parquet")])
    return {"took_s": took_s, "cpu_s": cpu_s, "rows": len(events), "offline": table_checksum(stored)}


def send_calls(calls: str, port: int) -> dict[str, Any]:
    """Script calls that are bytes already, over one connection, sent as fast as it takes them while answers are read."""
    script, *packed = msgspec.msgpack.decode(Path(calls).read_bytes())
    with redis.Redis(port=port) as client:
        client.script_load(script.decode())
    with socket.create_connection(("127.0.0.1", port)) as connection:
        sender = threading.Thread(target=lambda: [connection.sendall(call) for call in packed])
        answers = hiredis.Reader()
        count = records = 0
        started_s = time.perf_counter()
        sender.start()
        while count < len(packed):
            answers.feed(connection.recv(RECEIVED_BYTES))
            while (answer := answers.gets()) is not False:
                count += 1
                records += answer[0]
        took_s = time.perf_counter() - started_s
        sender.join()
    return {"took_s": took_s, "records": records}


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
