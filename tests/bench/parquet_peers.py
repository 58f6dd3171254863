"""A plain Parquet write. Nothing of ours is imported, so that none of it is measured."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


def write_file(rows: str, target: str) -> dict[str, Any]:
    """Rows of an Arrow file, read before, as one zstd Parquet file, synced. Nothing is sorted, no statistics are kept aside."""
    with pa.OSFile(rows, "rb") as file:
        table = pa.ipc.open_file(file).read_all()
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    with Path(target).open("xb") as file:
        pq.write_table(table, file, compression="zstd")
        file.flush()
        os.fsync(file.fileno())
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    return {"amount": table.num_rows, "took_s": took_s, "cpu_s": cpu_s}
