"""Racing, killed and paused offline writers against one table, by seeded schedules: every change exactly once.

Checked in the manifest's view and in a plain listing of the data folder, which must never show a row twice either.
`SCHEDULES` sets how many.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from featurestore.changelog.sqlite import SqliteChangeLog
from featurestore.model.change import OFFLINE, ONLINE, Change, Op
from featurestore.model.codec import encode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import FeatureGroup, FeatureType, OfflineConfig, OnlineConfig, definitions
from featurestore.offline import layout
from featurestore.offline.local import LocalObjectStore
from featurestore.offline.table import OfflineStore
from featurestore.offline.writer import OfflineWriter
from featurestore.online.sqlite import SqliteOnlineStore
from featurestore.registry.protocol import WantedIdentity
from featurestore.registry.sql import SqlRegistry
from tests.crash.schedule import Actor, GatedChanges, GatedObjects, run_schedule

SCHEDULES = int(os.environ.get("SCHEDULES", "40"))
SHARDS = 2
WRITERS = 3
HOUR_US = 3_600_000_000


class World:
    """One store whose changes are produced while writers race."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.schedule = random.Random(seed)
        self.loop = asyncio.new_event_loop()
        self.registry = SqlRegistry(f"sqlite:///{folder}/registry.db", WantedIdentity(shards=SHARDS))
        self.groups = [self.registry.create(self._group(name)) for name in ("first", "second")]
        self.online = SqliteOnlineStore(folder / "online.db", SHARDS, outbox_changes_max=1_000_000)
        self.changes = SqliteChangeLog(folder / "online.db", SHARDS)
        self.objects = LocalObjectStore(folder / "offline")
        self.produced: list[tuple[str, int]] = []
        self.produce()

    @staticmethod
    def _group(name: str) -> FeatureGroup:
        features = definitions([("id", FeatureType.STRING), ("t", FeatureType.STRING), ("n", FeatureType.INTEGRAL)])
        return FeatureGroup(name, "id", "t", features, online=OnlineConfig(), offline=OfflineConfig("s3://bucket"))

    def produce(self) -> None:
        """A few more changes, each with its own number, over a few hours of event time."""
        changes = []
        for _ in range(self.schedule.randrange(1, 12)):
            number, group = len(self.produced), self.schedule.choice(self.groups)
            targets = self.schedule.choice([ONLINE | OFFLINE, ONLINE | OFFLINE, ONLINE])
            event_time_us = self.schedule.randrange(4) * HOUR_US + number
            key = f"key-{self.schedule.randrange(5)}"
            values = encode_values(1, [key, format_iso(event_time_us), str(number)])
            changes.append(Change(group.group_id, 1, key, event_time_us, Op.PUT, targets, None, values))
            self.produced.append((group.name if targets & OFFLINE else "", number))
        self.loop.run_until_complete(self.online.apply(changes))

    def writer(self, actor: Actor) -> None:
        objects = GatedObjects(self.objects, actor)
        offline = OfflineStore(objects)
        size = self.schedule.choice([1, 3, 1000])
        OfflineWriter(GatedChanges(self.changes, actor), offline, self.registry.get_by_id, changes_max=size).drain()

    def check_listing(self) -> None:
        """No row is in two files of the data folder, at any moment."""
        for group in self.groups:
            folder = f"{layout.group_root(group)}/data/"
            numbers = [number for key in self.objects.list(folder) for number in self._numbers(key)]
            assert [number for number, count in Counter(numbers).items() if count > 1] == []

    def check_end(self) -> None:
        """What was produced is in the manifest and in the listing, once."""
        offline = OfflineStore(self.objects)
        OfflineWriter(self.changes, offline, self.registry.get_by_id, changes_max=1000).drain()
        for group in self.groups:
            expected = sorted(number for name, number in self.produced if name == group.name)
            root = layout.group_root(group)
            entries = offline.manifest(group).current().files
            keys = [f"{root}/{entry.path}" for entry in entries]
            assert sorted(number for key in keys for number in self._numbers(key)) == expected
            assert sorted(keys) == self.objects.list(f"{root}/data/")
        assert all(not self.changes.read(shard, 1, 10) for shard in range(SHARDS)), "written changes are trimmed"

    def _numbers(self, key: str) -> list[int]:
        return pq.ParquetFile(self.objects.paths([key])[0]).read(["n"])["n"].to_pylist()

    def close(self) -> None:
        self.online.close()
        self.changes.close()
        self.registry.close()
        self.loop.close()


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_every_change_is_written_exactly_once(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path, seed)
    try:

        def meanwhile() -> None:
            if world.schedule.random() < 0.5:
                world.produce()
            world.check_listing()

        run_schedule(world.schedule, [world.writer] * WRITERS, steps=250, kill_share=0.03, meanwhile=meanwhile)
        world.check_listing()
        world.check_end()
    finally:
        world.close()
