"""The offline writer: from the Kafka topic to Parquet, beside a bare consumer and a bare write of the same rows."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import schema
from featurestore.offline.opening import open_object_store
from featurestore.offline.table import OfflineStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data, kafka_peers, parquet_peers
from tests.bench.answers import table_checksum
from tests.bench.deployment import Deployment, Followed, followed, new_topic
from tests.bench.isolated import isolated
from tests.bench.sheet import Sheet
from tests.service import Worker

OURS = "worker offline"
CONSUMER = "kafka-python: reading the topic alone"
PARQUET = "pyarrow: one synced Parquet file"


@dataclass(frozen=True, slots=True)
class Size:
    changes: int


SIZES = {"tiny": Size(4000), "canonical": Size(100_000)}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    with Deployment(folder) as deployment:
        sheet.parameters.update(
            {
                "changes": f"{size.changes:,} of 10 features, in {data.SHARDS} partitions, relayed before",
                "settings": f"defaults, among them FEATURESTORE_FLUSH_CHANGES_MAX={Settings().flush_changes_max}",
            }
            | deployment.facts()
        )
        say("filling the topic")
        home, topic, rows = folder / "home", new_topic("changes"), folder / "rows.arrow"
        group = deployment.fill_outbox(home, size.changes)
        given = _write_rows(rows, group, deployment)
        _relay(Settings.load({}, home=home, **deployment.settings(kafka_topic=topic)))
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            offline, plain = folder / "offline", folder / "plain.parquet"
            settings = deployment.settings(kafka_topic=topic, offline_url=f"file://{offline}")
            ours = _write(Worker("offline", home, folder / "writer.log", **settings), offline, group, size.changes)
            reading = isolated(kafka_peers.consume, servers=deployment.brokers, topic=topic, partitions=data.SHARDS).answer
            writing = isolated(parquet_peers.write_file, rows=rows, target=plain).answer
            found = {
                OURS: ours,
                CONSUMER: Followed(reading["amount"], reading["took_s"], reading["cpu_s"]),
                PARQUET: Followed(writing["amount"], writing["took_s"], writing["cpu_s"]),
            }
            for name, outcome in found.items():
                sheet.add("From the topic to Parquet", name, outcome.figures("changes"))
            bare_s = found[CONSUMER].took_s + found[PARQUET].took_s
            sheet.ratio(f"{OURS} / reading the topic alone (time)", ours.took_s, found[CONSUMER].took_s)
            sheet.ratio(f"{OURS} / reading the topic alone + one Parquet file (time)", ours.took_s, bare_s)
            paths = _live_files(offline, group)
            sheet.add("Files", OURS, {"files": len(paths), "MiB": sum(Path(path).stat().st_size for path in paths) / 2**20})
            sheet.add("Files", PARQUET, {"files": 1, "MiB": plain.stat().st_size / 2**20})
            sheet.check("every row", {"given": given, OURS: _checksum(paths, group), PARQUET: _checksum([str(plain)], group)})
            sheet.check("changes read", {"given": str(size.changes), CONSUMER: str(reading["amount"])})
            shutil.rmtree(offline)
            plain.unlink()


def _write_rows(path: Path, group: FeatureGroup, deployment: Deployment) -> str:
    """What the changes are as rows, in memory form; answers their checksum."""
    items = [item for shard in deployment.logged() for item in shard]
    table = schema.table_of_changes(group, 1, items, [item.stamp.api_time_us for item in items])
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    return table_checksum(table.select(_columns(group)))


def _relay(settings: Settings) -> None:
    """Move all of the outbox to the topic."""
    store = FeatureStore(settings)
    try:
        relay = store.open_relay()
        try:
            while sum([relay.relay(shard) for shard in range(store.shards)]):
                pass
        finally:
            relay.close()
    finally:
        store.close(flush=False)


def _write(worker: Worker, offline: Path, group: FeatureGroup, changes: int) -> Followed:
    """Follow a worker from when it is ready, connected to everything, until the table has all rows."""
    worker.start()
    try:
        return followed(worker, lambda: sum(entry.rows for entry in _entries(offline, group)), changes, from_zero=True)
    finally:
        worker.stop()


def _entries(offline: Path, group: FeatureGroup) -> list:
    objects = open_object_store(f"file://{offline}", offline.parent / "cache", cache_bytes_max=1 << 30)
    return list(OfflineStore(objects).manifest(group).current().files)


def _live_files(offline: Path, group: FeatureGroup) -> list[str]:
    objects = open_object_store(f"file://{offline}", offline.parent / "cache", cache_bytes_max=1 << 30)
    store = OfflineStore(objects)
    return [str(path) for path in store.paths(group, store.manifest(group).current().files)]


def _checksum(paths: list[str], group: FeatureGroup) -> str:
    return table_checksum(ds.dataset(paths, format="parquet").to_table(_columns(group)))


def _columns(group: FeatureGroup) -> list[str]:
    """All but the write time, which the writer gives."""
    return [*(feature.name for feature in group.features), schema.API_TIME, schema.IS_DELETED, schema.EVENT_TIME]
