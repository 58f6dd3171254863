"""Many small appends: what they cost, how many files they leave, and what compaction makes of them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from tests.bench import accounts, accounts_peers, data
from tests.bench.isolated import Outcome, isolated
from tests.bench.sheet import Sheet, percentile

OURS = "store.ingest"
PLAIN = "pyarrow: one synced Parquet file each"
BEFORE = "create_training_set before compaction"
AFTER = "create_training_set after compaction"
DUCKDB = "DuckDB: ASOF join by hand with one Parquet file"
LATE_SHARE = 0.01


@dataclass(frozen=True, slots=True)
class Size:
    appends: int
    rows: int
    hours: int
    accounts: int
    spine: int


SIZES = {"tiny": Size(20, 50, 30, 100, 500), "canonical": Size(1000, 1000, 60 * 24, 50_000, 100_000)}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    total = size.appends * size.rows
    frames = {"frames": size.appends, "rows": size.rows, "hours": size.hours, "accounts": size.accounts}
    frames |= {"late_share": LATE_SHARE}
    sheet.parameters.update(
        {
            "appends": f"{size.appends:,} pandas frames of {size.rows:,} rows into one group, the offline store alone",
            "history": f"{len(data.ACCOUNT_FEATURES)} features of {size.accounts:,} identifiers; event times advance over "
            f"{size.hours:,} hours, {LATE_SHARE:.0%} of the rows up to {data.LATE_HOURS} hours late",
            "training set": f"{size.spine:,} rows in no order, all features",
        }
    )
    spine = folder / "spine.parquet"
    pq.write_table(data.account_spine(size.spine, size.hours, size.accounts), spine)
    given = isolated(accounts_peers.given_checksum, frames=frames).answer["checksum"]
    home, plain, one_file = folder / "home", folder / "plain", folder / "one.parquet"
    for number in range(rounds):
        say(f"round {number + 1}/{rounds}")
        ours = isolated(accounts.ingest, home=home, frames=frames)
        by_pyarrow = isolated(accounts_peers.write_files, folder=plain, frames=frames)
        one = isolated(accounts_peers.write_one_file, folder=plain, target=one_file).answer
        small = isolated(accounts.live_files, home=home).answer
        before = isolated(accounts.join, home=home, spine=spine)
        compaction = isolated(accounts.compact, home=home)
        large = isolated(accounts.live_files, home=home).answer
        after = isolated(accounts.join, home=home, spine=spine)
        by_duckdb = isolated(accounts_peers.join_file, path=one_file, spine=spine)
        for name, outcome in ((OURS, ours), (PLAIN, by_pyarrow)):
            sheet.add("Appending", name, _appending(total, outcome))
        compact_s = compaction.answer["took_s"]
        sheet.add("Compaction", "store.compact", {"took, s": compact_s, "rows/s": total / compact_s} | _memory(compaction))
        for name, outcome in ((BEFORE, before), (AFTER, after), (DUCKDB, by_duckdb)):
            sheet.add("Training sets", name, {"took, s": outcome.answer["took_s"]} | _memory(outcome))
        for name, files in (("before compaction", small), ("after compaction", large)):
            sheet.add("Live files", name, {"files": len(files["paths"]), "MiB": files["bytes"] / 2**20})
        plain_bytes = sum(path.stat().st_size for path in plain.iterdir())
        sheet.add("Live files", PLAIN, {"files": size.appends, "MiB": plain_bytes / 2**20})
        sheet.add("Live files", "pyarrow: one Parquet file", {"files": 1, "MiB": one_file.stat().st_size / 2**20})
        each_s, tenth = ours.answer["took_s"], size.appends // 10
        sheet.ratio("appends / plain files (time)", sum(each_s), sum(by_pyarrow.answer["took_s"]))
        sheet.ratio("last tenth / first tenth of the appends (time)", sum(each_s[-tenth:]), sum(each_s[:tenth]))
        sheet.ratio("training set before / after compaction (time)", before.answer["took_s"], after.answer["took_s"])
        sheet.ratio("training set after compaction / DuckDB by hand (time)", after.answer["took_s"], by_duckdb.answer["took_s"])
        sheet.ratio("compaction / appends (time)", compact_s, sum(each_s))
        answers = {BEFORE: before, AFTER: after, DUCKDB: by_duckdb}
        sheet.check("training set", {name: outcome.answer["checksum"] for name, outcome in answers.items()})
        rows = {"given": given, PLAIN: one["checksum"]}
        for name, files in (("before compaction", small), ("after compaction", large)):
            rows[name] = isolated(accounts_peers.rows_checksum, paths=files["paths"]).answer["checksum"]
        sheet.check("every row", rows)
        shutil.rmtree(home)
        shutil.rmtree(plain)


def _appending(rows: int, outcome: Outcome) -> dict[str, float]:
    each_ms = sorted(took_s * 1e3 for took_s in outcome.answer["took_s"])
    all_s = sum(outcome.answer["took_s"])
    figures = {"rows/s": rows / all_s, "took, s": all_s}
    return figures | {"p50, ms": percentile(each_ms, 50), "p99, ms": percentile(each_ms, 99)} | _memory(outcome)


def _memory(outcome: Outcome) -> dict[str, Any]:
    return {"peak memory, MiB": outcome.rss_bytes_max / 2**20}
