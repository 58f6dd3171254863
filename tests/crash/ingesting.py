"""A process that ingests dataframe after dataframe until it is killed: `python -m tests.crash.ingesting HOME FIRST`."""

from __future__ import annotations

import sys
from pathlib import Path

import pyarrow as pa

import featurestore

GROUP = "batches"
ROWS = 3000
SHARED_KEYS = 50


def frame(number: int) -> pa.Table:
    """Batch `number`: rows over a few hours, some keys shared by all batches, the number as value and as event time."""
    keys = [f"shared-{row}" if row < SHARED_KEYS else f"{number}-{row}" for row in range(ROWS)]
    times = [float(number * 10 + row % 5 * 3600) if row >= SHARED_KEYS else float(10**6 + number) for row in range(ROWS)]
    return pa.table({"key": keys, "t": times, "batch": [number] * ROWS})


def main(home: Path, first: int) -> None:
    with featurestore.open(home) as store:
        print("ready", flush=True)
        number = first
        while True:
            print(f"begin {number}", flush=True)
            store.ingest(GROUP, frame(number), progress=False)
            print(f"done {number}", flush=True)
            number += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
