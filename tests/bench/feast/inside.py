"""What Feast is asked to do besides serving. Runs in Feast's environment and imports nothing that is not there.

As a program: `python -m tests.bench.feast.inside <step>`, arguments as JSON on stdin, the answer as JSON on stdout.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

from tests.bench import data
from tests.bench.answers import training_set_checksum

FEAST_TYPES = {"Fractional": Float64, "Integral": Int64, "String": String}
PANDAS_TYPES = {"Fractional": "float64", "Integral": "int64", "String": "object"}
ARROW_TYPES = {"Fractional": pa.float64(), "Integral": pa.int64(), "String": pa.string()}
WRITE_ROWS = 10_000
FOREVER = timedelta(0)
"""What Feast means by a time to live of nothing."""
REGISTRY_CACHE_S = 3600


def write_records(repositories: list[dict[str, Any]]) -> dict[str, Any]:
    """Make repositories with a feature view for each of their groups, and write the groups' records into their Redis.

    Each repository has a `folder`, the `redis` as host:port, and `groups` as triples of name, features and records. Of a record
    as `data.record` makes it, `id` is the join key `<name>_id` and `at` the event time.
    """
    for repository in repositories:
        folder, groups = Path(repository["folder"]), repository["groups"]
        store = _store(folder, f"online_store:\n  type: redis\n  connection_string: {repository['redis']}\n")
        for name, features, records in groups:
            types = {feature: kind for feature, kind in data.definitions(features).items() if feature not in ("id", "at")}
            # A feature view needs a source even if its rows are pushed; this one is empty.
            source = folder / f"{name}.parquet"
            pq.write_table(
                pa.table({f"{name}_id": pa.array([], pa.string()), "at": pa.array([], pa.timestamp("us", "UTC"))}), source
            )
            _apply(store, name, f"{name}_id", types, source)
            for first in range(0, records, WRITE_ROWS):
                numbers = range(first, min(first + WRITE_ROWS, records))
                frame = data.records_table([data.record(str(number), features, 0) for number in numbers]).to_pandas()
                frame = frame.rename(columns={"id": f"{name}_id"})
                frame["at"] = pd.to_datetime(frame["at"], utc=True)
                store.write_to_online_store(
                    name, df=frame.astype({feature: PANDAS_TYPES[kind] for feature, kind in types.items()})
                )
    return {"version": version("feast")}


def join(folder: str, offline_store: str, history: str, spine: str) -> dict[str, Any]:
    """A training set of all features of the accounts from one Parquet file, by the named offline store of Feast.

    The spine is a frame before the clock starts, since Feast asks for one, and the answer is compared after it stops.
    """
    store = _store(Path(folder), f"offline_store:\n  type: {offline_store}\n")
    types = {name: data.ACCOUNTS[name] for name in data.ACCOUNT_FEATURES}
    _apply(store, "accounts", "account", types, Path(history))
    frame = pq.read_table(spine).to_pandas()
    started_s = time.perf_counter()
    job = store.get_historical_features(entity_df=frame, features=[f"accounts:{name}" for name in types])
    answer = job.to_arrow()
    took_s = time.perf_counter() - started_s
    peak_bytes = _rss_bytes_max()
    answer = answer.sort_by("row")
    # Numbers with gaps may come back as doubles with NaN, by whatever means an offline store makes its table.
    features = [pa.Array.from_pandas(answer[name].to_pandas()).cast(ARROW_TYPES[kind]) for name, kind in types.items()]
    return {
        "took_s": took_s,
        "rss_bytes_max": peak_bytes,
        "checksum": training_set_checksum(answer, pa.table(features, names=list(types))),
        "version": version("feast"),
    }


def _rss_bytes_max() -> int:
    """The most memory this process has held, as Linux tells it."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def _store(folder: Path, stores: str) -> FeatureStore:
    """A repository with a registry in a file, which is read again once an hour."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "feature_store.yaml").write_text(
        f"project: bench\nprovider: local\nentity_key_serialization_version: 3\n{stores}"
        f"registry:\n  path: registry.db\n  cache_ttl_seconds: {REGISTRY_CACHE_S}\n"
    )
    return FeatureStore(repo_path=str(folder))


def _apply(store: FeatureStore, name: str, key: str, types: dict[str, str], source: Path) -> None:
    entity = Entity(name=name, join_keys=[key], value_type=ValueType.STRING)
    schema = [Field(name=key, dtype=String), *(Field(name=feature, dtype=FEAST_TYPES[kind]) for feature, kind in types.items())]
    source = FileSource(path=str(source), timestamp_field="at")
    store.apply([entity, FeatureView(name=name, entities=[entity], schema=schema, source=source, ttl=FOREVER, online=True)])


STEPS = {"write_records": write_records, "join": join}

if __name__ == "__main__":
    print(json.dumps(STEPS[sys.argv[1]](**json.load(sys.stdin))))
