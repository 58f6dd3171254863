"""Batch ingest of a dataframe, beside plain writes of the same rows: partitioned Parquet, and upserts into SQLite."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data, ingest_peers
from tests.bench.answers import table_checksum
from tests.bench.isolated import Outcome, isolated
from tests.bench.sheet import Sheet

GROUP = "events"
OURS = "store.ingest"
PARQUET = "pyarrow: Parquet files by hour"
UPSERTS = "SQLite: upserts of the newest row per identifier"
ONLINE_CHECKED = 10_000


@dataclass(frozen=True, slots=True)
class Size:
    rows: int
    identifiers: int


SIZES = {"tiny": Size(2000, 400), "canonical": Size(1_000_000, 200_000)}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    frame = data.events(size.rows, size.identifiers)
    path = folder / "events.parquet"
    frame.to_parquet(path, index=False)
    sheet.parameters.update(
        {
            "frame": f"pandas, {size.rows:,} rows x {len(frame.columns)} features (texts, integers, floats, times)",
            "identifiers": f"{frame['id'].nunique():,} distinct",
            "event times": f"{data.HOURS} hours",
            "steps": "check, encode, write, publish, load: IngestReport.took_s",
        }
    )
    table = pa.Table.from_pandas(frame, preserve_index=False)
    newest = pa.Table.from_pandas(frame.loc[frame.groupby("id")["n"].idxmax()], preserve_index=False)
    given, given_newest = table_checksum(table), table_checksum(newest)
    for number in range(rounds):
        say(f"round {number + 1}/{rounds}")
        ours = _step(ingest_with_featurestore, path, folder)
        parquet = _step(ingest_peers.write_parquet, path, folder)
        upserts = _step(ingest_peers.upsert_sqlite, path, folder)
        for name, outcome in ((OURS, ours), (PARQUET, parquet), (UPSERTS, upserts)):
            took_s = outcome.answer["took_s"]
            sheet.add(
                "Ingest",
                name,
                {"rows/s": outcome.answer["rows"] / took_s, "took, s": took_s, "peak memory, MiB": outcome.rss_bytes_max / 2**20},
            )
        for step, took_s in ours.answer["steps"].items():
            sheet.add("Steps of store.ingest", step, {"took, s": took_s, "share": took_s / ours.answer["took_s"]})
        plain_s = parquet.answer["took_s"] + upserts.answer["took_s"]
        sheet.ratio("store.ingest / plain Parquet write (time)", ours.answer["took_s"], parquet.answer["took_s"])
        sheet.ratio("store.ingest / plain Parquet write + plain upserts (time)", ours.answer["took_s"], plain_s)
        sheet.check("every row offline", {"given": given, OURS: ours.answer["offline"], PARQUET: parquet.answer["offline"]})
        sheet.check("newest rows online", {"given": given_newest, OURS: ours.answer["online"]})


def _step(step: Callable[..., dict[str, Any]], path: Path, folder: Path) -> Outcome:
    target = folder / "target"
    try:
        return isolated(step, frame=path, target=target)
    finally:
        shutil.rmtree(target, ignore_errors=True)


def ingest_with_featurestore(frame: str, target: str) -> dict[str, Any]:
    events = pd.read_parquet(frame)
    with FeatureStore(Settings(home=Path(target))) as store:
        store.create_feature_group(GROUP, record_identifier="id", event_time="at", features=events)
        started_s = time.perf_counter()
        report = store.ingest(GROUP, events, progress=False)
        took_s = time.perf_counter() - started_s
        online = online_checksum(store, events)
    assert report.online_newest == events["id"].nunique()
    offline = stored_rows(Path(target) / "offline", list(events.columns))
    return {
        "took_s": took_s,
        "rows": report.rows,
        "steps": dict(report.took_s),
        "offline": table_checksum(offline),
        "online": online,
    }


def online_checksum(store: FeatureStore, events: pd.DataFrame) -> str:
    """The checksum of all online records; only some are read, the others are taken from the frame."""
    newest = events.loc[events.groupby("id")["n"].idxmax()]
    stride = max(1, len(newest) // ONLINE_CHECKED)
    sample, others = newest.iloc[::stride], newest[[index % stride != 0 for index in range(len(newest))]]
    kinds = pa.Schema.from_pandas(events, preserve_index=False)
    records = [record or {} for record in store.batch_get_record(GROUP, sample["id"].tolist())]
    columns = [_typed([record.get(field.name) for record in records], field.type) for field in kinds]
    read = pa.table(columns, schema=kinds)
    return table_checksum(pa.concat_tables([read, pa.Table.from_pandas(others, schema=kinds, preserve_index=False)]))


def _typed(values: list[Any], kind: pa.DataType) -> pa.Array:
    if pa.types.is_timestamp(kind):
        return pa.array([None if value is None else pd.Timestamp(value) for value in values], kind)
    return pa.array(values, kind)


def stored_rows(folder: Path, columns: list[str]) -> pa.Table:
    """Rows of all data files; the event time feature is text there, so its instant is read in its place."""
    paths = [str(path) for path in folder.rglob("*.parquet")]
    stored = ds.dataset(paths, format="parquet").to_table([column if column != "at" else "_event_time" for column in columns])
    return stored.rename_columns(columns)
