"""Training sets: a point-in-time join of two groups, beside DuckDB's ASOF join and pandas' merge_asof by hand."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data, training_set_peers
from tests.bench.answers import training_set_checksum
from tests.bench.isolated import isolated
from tests.bench.sheet import Sheet

OURS = "create_training_set"
DUCKDB = "DuckDB: scan + ASOF join by hand"
PANDAS = "pandas: scan + merge_asof by hand"


@dataclass(frozen=True, slots=True)
class Size:
    """`history` rows over both groups, half in each, ingested in `pieces`."""

    spine: int
    history: int
    pieces: int
    customers: int
    zones: int


SIZES = {
    "tiny": Size(2000, 5000, 2, 200, 20),
    "canonical": Size(1_000_000, 5_000_000, 10, 200_000, 20_000),
}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    keys = {"customers": size.customers, "zones": size.zones}
    sheet.parameters.update(
        {
            "spine": f"{size.spine:,} rows in no order, times over {data.HOURS} hours",
            "history": f"{size.history:,} rows over 2 groups, of {size.customers:,} and {size.zones:,} identifiers, "
            f"ingested in {size.pieces} pieces",
            "features": f"{len(data.FEATURES)}, five of each group",
        }
    )
    spine = folder / "spine.parquet"
    pq.write_table(data.spine(size.spine, keys), spine)
    say("loading the history")
    loaded = isolated(
        load_history, home=folder / "home", rows=size.history // len(keys), pieces=size.pieces // len(keys), keys=keys
    ).answer
    sheet.parameters["files"] = f"{sum(map(len, loaded['files'].values())):,} Parquet files"
    for number in range(rounds):
        say(f"round {number + 1}/{rounds}")
        ours = isolated(join_with_featurestore, home=folder / "home", spine=spine)
        by_duckdb = isolated(training_set_peers.join_with_duckdb, files=loaded["files"], spine=spine)
        by_pandas = isolated(training_set_peers.join_with_pandas, files=loaded["files"], spine=spine)
        for name, outcome in ((OURS, ours), (DUCKDB, by_duckdb), (PANDAS, by_pandas)):
            figures = {"spine rows/s": size.spine / outcome.answer["took_s"], "took, s": outcome.answer["took_s"]}
            sheet.add("Joins", name, figures | {"peak memory, MiB": outcome.rss_bytes_max / 2**20})
        for step, took_s in (ours.answer["steps"] | {"to pandas": ours.answer["to_pandas_s"]}).items():
            sheet.add("Steps", f"{OURS}: {step}", {"took, s": took_s})
        for peer, outcome in (("DuckDB", by_duckdb), ("pandas", by_pandas)):
            for step in ("scan", "join"):
                sheet.add("Steps", f"{peer}: {step}", {"took, s": outcome.answer[f"{step}_s"]})
        sheet.ratio(f"{OURS} / DuckDB's join of loaded tables (time)", ours.answer["took_s"], by_duckdb.answer["join_s"])
        sheet.ratio(f"{OURS} / DuckDB's scan + join (time)", ours.answer["took_s"], by_duckdb.answer["took_s"])
        sheet.ratio(f"{OURS} / pandas' scan + join (time)", ours.answer["took_s"], by_pandas.answer["took_s"])
        answers = {OURS: ours, DUCKDB: by_duckdb, PANDAS: by_pandas}
        sheet.check("training set", {name: outcome.answer["checksum"] for name, outcome in answers.items()})


def load_history(home: str, rows: int, pieces: int, keys: dict[str, int]) -> dict[str, Any]:
    """Ingest the history in pieces of rising time; answers the data files of each group."""
    files: dict[str, list[str]] = {}
    with FeatureStore(Settings(home=Path(home))) as store:
        for group, features in data.GROUPS.items():
            store.create_feature_group(group, record_identifier=data.KEYS[group], event_time="at", features=features)
            for piece in range(pieces):
                first, end = rows * piece // pieces, rows * (piece + 1) // pieces
                store.ingest(group, data.history(group, first, end - first, rows, keys[group]), progress=False)
    for group in data.GROUPS:
        files[group] = sorted(str(path) for path in Path(home).rglob(f"offline-store/{group}-*/data/**/*.parquet"))
    return {"files": files}


def join_with_featurestore(home: str, spine: str) -> dict[str, Any]:
    table = pq.read_table(spine)
    with FeatureStore(Settings(home=Path(home))) as store:
        started_s = time.perf_counter()
        result = store.create_training_set(table, data.COLUMNS, event_time="at", keys=data.KEYS, progress=False)
        took_s = time.perf_counter() - started_s
        started_s = time.perf_counter()
        result.to_pandas()
        to_pandas_s = time.perf_counter() - started_s
    return {
        "took_s": took_s,
        "steps": dict(result.took_s),
        "to_pandas_s": to_pandas_s,
        "checksum": training_set_checksum(table, result.features),
    }
