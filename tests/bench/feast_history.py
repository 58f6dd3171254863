"""Training sets beside those of Feast's quickest local offline store, from the same history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.bench import accounts, data, feast_peer
from tests.bench.isolated import isolated
from tests.bench.sheet import Sheet

OURS = "create_training_set"
OFFLINE_STORE = "duckdb"
FEAST = "Feast on DuckDB"
GROUP_ROWS = 1 << 17
"""Rows of a row group, so that DuckDB can read a file with several threads."""


@dataclass(frozen=True, slots=True)
class Frames:
    """The arguments of `data.account_frames`."""

    frames: int
    rows: int
    hours: int
    accounts: int


@dataclass(frozen=True, slots=True)
class Size:
    spine: int
    history: Frames

    @property
    def name(self) -> str:
        return f"{self.spine:,} x {self.history.frames * self.history.rows:,}"


SIZES = {
    "tiny": (Size(500, Frames(2, 1000, 20, 100)), Size(2000, Frames(2, 5000, 50, 400))),
    "canonical": (
        Size(100_000, Frames(10, 100_000, 365 * 24, 50_000)),
        Size(1_000_000, Frames(10, 1_000_000, 365 * 24, 200_000)),
    ),
}
"""The larger history of the canonical size is that of the benchmark `compacted`."""


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    say("installing Feast, unless it is there")
    feast_peer.install()
    sizes = SIZES[size_name]
    for size in sizes:
        say(f"loading {size.name}")
        _load(folder / str(size.spine), size)
    for number in range(rounds):
        for size in sizes:
            say(f"round {number + 1}/{rounds}, {size.name}")
            version = _round(sheet, folder / str(size.spine), size)
    sheet.parameters.update(
        {
            "sizes": "rows of the spine x rows of the history: "
            + "; ".join(
                f"{size.name}, {size.history.accounts:,} identifiers over {size.history.hours:,} hours" for size in sizes
            ),
            "features": f"{len(data.ACCOUNT_FEATURES)} of one group, all of it",
            "ours": "ingested in several frames, compacted; defaults; spine and answer are Arrow tables",
            "Feast": f"{version}; offline store {OFFLINE_STORE} over one zstd Parquet file in order of time, with row groups of "
            f"{GROUP_ROWS:,}; defaults; no time to live; spine is a frame, answer an Arrow table",
        }
    )


def load(home: str, target: str, frames: dict[str, Any]) -> dict[str, Any]:
    """Ingest and compact the frames of `data.account_frames`, and write them as one Parquet file."""
    accounts.ingest(home, frames)
    accounts.compact(home)
    tables = (pa.Table.from_pandas(frame, preserve_index=False) for frame in data.account_frames(**frames))
    first = next(tables)
    with pq.ParquetWriter(target, first.schema, compression="zstd") as writer:
        for table in (first, *tables):
            writer.write_table(table, row_group_size=GROUP_ROWS)
    return {}


def _load(folder: Path, size: Size) -> None:
    folder.mkdir()
    frames = asdict(size.history)
    pq.write_table(data.account_spine(size.spine, size.history.hours, size.history.accounts), folder / "spine.parquet")
    isolated(load, home=folder / "home", target=folder / "history.parquet", frames=frames)


def _round(sheet: Sheet, folder: Path, size: Size) -> str:
    """Both training sets; answers Feast's version."""
    outcome = isolated(accounts.join, home=folder / "home", spine=folder / "spine.parquet")
    ours = outcome.answer | {"rss_bytes_max": outcome.rss_bytes_max}
    feast = feast_peer.step(
        "join",
        folder,
        folder=str(folder / "feast"),
        offline_store=OFFLINE_STORE,
        history=str(folder / "history.parquet"),
        spine=str(folder / "spine.parquet"),
    )
    for who, answer in ((OURS, ours), (FEAST, feast)):
        took_s = answer["took_s"]
        figures = {"spine rows/s": size.spine / took_s, "took, s": took_s, "peak memory, MiB": answer["rss_bytes_max"] / 2**20}
        sheet.add("Training sets", f"{size.name}, {who}", figures)
    sheet.ratio(f"{size.name}: {FEAST} / {OURS} (time)", feast["took_s"], ours["took_s"])
    sheet.ratio(f"{size.name}: {FEAST} / {OURS} (peak memory)", feast["rss_bytes_max"], ours["rss_bytes_max"])
    sheet.check(f"training set of {size.name}", {OURS: ours["checksum"], FEAST: feast["checksum"]})
    return str(feast["version"])
