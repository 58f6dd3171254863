"""A training set from a compacted history, beside the least it could cost (DuckDB's join of loaded tables and a plain scan), and
beside what dataframe libraries make of the same files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.bench import accounts, accounts_peers, data
from tests.bench.isolated import Outcome, isolated
from tests.bench.sheet import Sheet

OURS = "create_training_set"
JOIN = "DuckDB: ASOF join by hand of loaded tables"
SCAN = "DuckDB: plain scan of the needed columns"
POLARS = "Polars: scan + join_asof by hand"
PANDAS = "pandas: scan + merge_asof by hand"
LIMITS = {"threads": 2, "memory_bytes": 8 << 30}
"""The same for the feature store's query engine and for DuckDB by hand."""


@dataclass(frozen=True, slots=True)
class Size:
    """`rows` in each of `ingests`."""

    spine: int
    ingests: int
    rows: int
    hours: int
    accounts: int


SIZES = {
    "tiny": Size(2000, 10, 2000, 50, 400),
    "canonical": Size(1_000_000, 10, 1_000_000, 365 * 24, 200_000),
}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    total = size.ingests * size.rows
    home, spine = folder / "home", folder / "spine.parquet"
    pq.write_table(data.account_spine(size.spine, size.hours, size.accounts), spine)
    frames = {"frames": size.ingests, "rows": size.rows, "hours": size.hours, "accounts": size.accounts}
    say("loading the history")
    loaded = isolated(accounts.ingest, home=home, frames=frames)
    small = isolated(accounts.live_files, home=home).answer
    say("compacting it")
    compaction = isolated(accounts.compact, home=home, memory_bytes=LIMITS["memory_bytes"])
    large = isolated(accounts.live_files, home=home).answer
    sheet.parameters.update(
        {
            "spine": f"{size.spine:,} rows in no order",
            "history": f"{total:,} rows of {size.accounts:,} identifiers over {size.hours:,} hours, in {size.ingests} ingests",
            "features": f"{len(data.ACCOUNT_FEATURES)} of one group, all of it",
            "files": f"{len(small['paths']):,} of {small['bytes'] >> 20:,} MiB, compacted to {len(large['paths']):,} "
            f"of {large['bytes'] >> 20:,} MiB",
            "limits": f"{LIMITS['threads']} threads, {LIMITS['memory_bytes'] >> 30} GiB for DuckDB and ours; none for others",
        }
    )
    for name, took_s, outcome in (
        (f"store.ingest, {size.ingests} times", sum(loaded.answer["took_s"]), loaded),
        ("store.compact", compaction.answer["took_s"], compaction),
    ):
        sheet.add("Once, before the rounds", name, {"took, s": took_s, "rows/s": total / took_s} | _memory(outcome))
    # Memory that a virtual machine has not used for a while is slow at first, so the largest step goes before, unmeasured.
    isolated(accounts_peers.join_tables, paths=large["paths"], spine=spine, **LIMITS)
    for number in range(rounds):
        say(f"round {number + 1}/{rounds}")
        ours = isolated(accounts.join, home=home, spine=spine, **LIMITS)
        join = isolated(accounts_peers.join_tables, paths=large["paths"], spine=spine, **LIMITS)
        scan = isolated(accounts_peers.scan, paths=large["paths"], **LIMITS)
        by_polars = isolated(accounts_peers.join_with_polars, paths=large["paths"], spine=spine)
        by_pandas = isolated(accounts_peers.join_with_pandas, paths=large["paths"], spine=spine)
        for name, outcome in ((OURS, ours), (JOIN, join), (SCAN, scan), (POLARS, by_polars), (PANDAS, by_pandas)):
            sheet.add("Training set", name, {"took, s": outcome.answer["took_s"]} | _memory(outcome))
        for step, took_s in (ours.answer["steps"] | {"to pandas": ours.answer["to_pandas_s"]}).items():
            sheet.add("Steps", f"{OURS}: {step}", {"took, s": took_s})
        sheet.add("Steps", "DuckDB: loading the tables", {"took, s": join.answer["load_s"]})
        ours_s, join_s = ours.answer["took_s"], join.answer["took_s"]
        sheet.ratio(f"{OURS} / (join of loaded tables + plain scan) (time)", ours_s, join_s + scan.answer["took_s"])
        sheet.ratio(f"{OURS} / (join of loaded tables + loading them) (time)", ours_s, join_s + join.answer["load_s"])
        for name, outcome in ((POLARS, by_polars), (PANDAS, by_pandas)):
            sheet.ratio(f"{name} / {OURS} (time)", outcome.answer["took_s"], ours_s)
        answers = {OURS: ours, JOIN: join, POLARS: by_polars, PANDAS: by_pandas}
        sheet.check("training set", {name: outcome.answer["checksum"] for name, outcome in answers.items()})


def _memory(outcome: Outcome) -> dict[str, Any]:
    return {"peak memory, MiB": outcome.rss_bytes_max / 2**20}
