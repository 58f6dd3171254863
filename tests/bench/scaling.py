"""Training sets while the history grows: what another row of it costs in time and in memory."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from tests.bench import accounts, accounts_peers, data
from tests.bench.isolated import isolated
from tests.bench.sheet import Sheet

OURS = "create_training_set"
DUCKDB = "DuckDB: ASOF join by hand with the same files"
LIMITS = {"threads": 2, "memory_bytes": 4 << 30}
"""The same for the feature store's query engine and for DuckDB by hand."""
SMALL, FIXED, PROPORTIONAL = "small spine", "fixed spine", "proportional spine"


@dataclass(frozen=True, slots=True)
class Size:
    """`rows` in each ingest. The history is measured after so many ingests as `grown` says; the last is the number of all."""

    rows: int
    grown: tuple[int, ...]
    hours: int
    accounts: int
    small: int
    fixed: int
    history_per_row: int


SIZES = {
    "tiny": Size(200, (1, 5), 50, 100, 10, 500, 10),
    "canonical": Size(1_000_000, (1, 3, 10, 30, 50), 5 * 365 * 24, 500_000, 100, 1_000_000, 10),
}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    home, total = folder / "home", size.grown[-1]
    frames = {"frames": total, "rows": size.rows, "hours": size.hours, "accounts": size.accounts}
    took_s: dict[tuple[str, int], list[float]] = defaultdict(list)
    files = []
    ingested = 0
    for grown in size.grown:
        rows = grown * size.rows
        say(f"growing the history to {rows:,} rows")
        more = frames | {"first": ingested, "end": grown}
        live = isolated(accounts.grow, home=home, frames=more, memory_bytes=LIMITS["memory_bytes"]).answer
        ingested = grown
        files.append(f"{len(live['paths']):,}")
        spines = {SMALL: size.small, FIXED: size.fixed, PROPORTIONAL: rows // size.history_per_row}
        for name, spine_rows in spines.items():
            spine = folder / "spine.parquet"
            pq.write_table(data.account_spine(spine_rows, size.hours * grown // total, size.accounts), spine)
            by_duckdb = isolated(accounts_peers.join_files, paths=live["paths"], spine=spine, **LIMITS).answer
            sheet.add("Took, s", f"{DUCKDB}, {name} (once)", {f"{rows:,} rows": by_duckdb["took_s"]})
            for number in range(rounds):
                say(f"{name}, round {number + 1}/{rounds}")
                ours = isolated(accounts.join, home=home, spine=spine, **LIMITS).answer
                took_s[name, rows].append(ours["took_s"])
                sheet.add("Took, s", f"{OURS}, {name}", {f"{rows:,} rows": ours["took_s"]})
                beyond = {f"{rows:,} rows": max(0.0, ours["beyond_bytes"] / 2**20)}
                sheet.add("Memory beyond spine and answer, MiB", f"{OURS}, {name}", beyond)
                sheet.check(f"{name}, {rows:,} rows", {OURS: ours["checksum"], DUCKDB: by_duckdb["checksum"]})
    smallest = size.grown[0] * size.rows
    for name in (SMALL, FIXED, PROPORTIONAL):
        for rows in (grown * size.rows for grown in size.grown[1:]):
            label = f"{name}: time per n log n at {rows:,} rows / at {smallest:,} rows"
            for now_s, then_s in zip(took_s[name, rows], took_s[name, smallest], strict=True):
                sheet.ratio(label, now_s / (rows * math.log(rows)), then_s / (smallest * math.log(smallest)))
    sheet.parameters.update(
        {
            "history": f"{len(data.ACCOUNT_FEATURES)} features of {size.accounts:,} identifiers, "
            f"{size.rows:,} rows in each ingest; it grows in time, up to {size.hours:,} hours",
            "files": f"compacted before each measurement, to {', '.join(files)}",
            "spines": f"in no order over all of the history's time; small {size.small:,} rows, fixed {size.fixed:,} rows, "
            f"proportional one for each {size.history_per_row:,} rows of history",
            "limits": f"{LIMITS['threads']} threads, {LIMITS['memory_bytes'] >> 30} GiB for each query engine",
        }
    )
