"""What is done to one group of ten features, `data.ACCOUNTS`: a history in many frames, its compaction, training sets."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

from featurestore.model.feature_group import TargetStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data
from tests.bench.answers import training_set_checksum
from tests.bench.isolated import rss_bytes_max

GROUP = "accounts"
COLUMNS = [f"{GROUP}.{name}" for name in data.ACCOUNT_FEATURES]


def ingest(home: str, frames: dict[str, Any]) -> dict[str, Any]:
    """Ingest the frames of `data.account_frames` offline, into a group that the first of them creates; seconds of each."""
    took_s = []
    with FeatureStore(Settings(home=Path(home))) as store:
        if not frames.get("first"):
            store.create_feature_group(GROUP, record_identifier="account", event_time="at", features=data.ACCOUNTS)
        for frame in data.account_frames(**frames):
            started_s = time.perf_counter()
            store.ingest(GROUP, frame, targets=frozenset({TargetStore.OFFLINE}), progress=False)
            took_s.append(time.perf_counter() - started_s)
    return {"took_s": took_s}


def compact(home: str, memory_bytes: int | None = None) -> dict[str, Any]:
    with FeatureStore(_settings(home, memory_bytes=memory_bytes)) as store:
        started_s = time.perf_counter()
        store.compact(GROUP, progress=False)
        return {"took_s": time.perf_counter() - started_s}


def grow(home: str, frames: dict[str, Any], memory_bytes: int) -> dict[str, Any]:
    """`ingest`, `compact` and `live_files` in one."""
    ingest(home, frames)
    compact(home, memory_bytes)
    return live_files(home)


def live_files(home: str) -> dict[str, Any]:
    """What the table consists of now."""
    with FeatureStore(Settings(home=Path(home))) as store:
        group = store.feature_group(GROUP)
        entries = store.offline.manifest(group).current().files
        return {"paths": list(store.offline.paths(group, entries)), "bytes": sum(entry.bytes for entry in entries)}


def join(home: str, spine: str, threads: int | None = None, memory_bytes: int | None = None) -> dict[str, Any]:
    """A training set of all features. Nothing waits in the outbox, so nothing is flushed first.

    `beyond_bytes` is the most memory that the process held until the answer was there, less what it held before it was asked (the
    spine is in that) and less the answer.
    """
    table = pq.read_table(spine)
    with FeatureStore(_settings(home, threads=threads, memory_bytes=memory_bytes)) as store:
        held_bytes = psutil.Process().memory_info().rss
        started_s = time.perf_counter()
        result = store.create_training_set(table, COLUMNS, event_time="at", fresh=False, progress=False)
        took_s = time.perf_counter() - started_s
        beyond_bytes = rss_bytes_max() - held_bytes - result.features.nbytes
        started_s = time.perf_counter()
        result.to_pandas()
        to_pandas_s = time.perf_counter() - started_s
    return {
        "took_s": took_s,
        "steps": dict(result.took_s),
        "to_pandas_s": to_pandas_s,
        "beyond_bytes": beyond_bytes,
        "checksum": training_set_checksum(table, result.features),
    }


def _settings(home: str, *, threads: int | None = None, memory_bytes: int | None = None) -> Settings:
    return Settings.load({}, home=Path(home), query_threads=threads, query_memory_bytes=memory_bytes)
