"""Racing, killed and paused relays over a topic that behaves as badly as one may, and offline writers that read it meanwhile.

A send that fails may have left any part of its messages, in any order, and some of them arrive after it has returned or after its
relay is dead. A send that succeeds has left all of them in order, with those of others in between. Nothing else is promised, and
every change must reach the table exactly once. `SCHEDULES` sets how many seeded schedules are run.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from featurestore.changelog.kafka import entry_of
from featurestore.changelog.kafka_client import Message
from featurestore.changelog.relay import Relay
from featurestore.changelog.sqlite import SqliteChangeLog
from featurestore.errors import StoreUnavailable
from featurestore.model.change import OFFLINE, ONLINE, Change, LogEntry, Op, Stamp
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

SCHEDULES = int(os.environ.get("SCHEDULES", "30"))
SHARDS = 2
RELAYS = 3
WRITERS = 2


class Topic:
    """Partitions in memory. See `changelog.protocol.ChangeSource`, and `changelog.relay.RelayLog`."""

    def __init__(self) -> None:
        self.partitions: list[list[bytes]] = [[] for _ in range(SHARDS)]
        self.late: list[tuple[int, Sequence[Message]]] = []
        """What failed sends have left on its way."""

    def append(self, partition: int, messages: Iterable[Message]) -> None:
        self.partitions[partition] += [message.value for message in messages]

    def shards(self) -> int:
        return SHARDS

    def ends(self) -> Mapping[int, int]:
        return {shard: len(messages) + 1 for shard, messages in enumerate(self.partitions)}

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        values = self.partitions[shard][offset_first - 1 : offset_first - 1 + entries_max]
        return [entry_of(shard, offset, value) for offset, value in enumerate(values, offset_first)]

    def recent_stamps(self, shard: int) -> Sequence[Stamp]:
        entries = self.read(shard, 1, len(self.partitions[shard]))
        return [entry.item.stamp for entry in entries if entry.item.stamp is not None]

    def trim(self, shard: int, offset_next: int) -> None:
        pass

    def close(self) -> None:
        pass


class Producer:
    """Sends in batches with a gate around each, and fails in every way there is. Its relay may die at each gate."""

    def __init__(self, topic: Topic, schedule: random.Random, actor: Actor) -> None:
        self._topic = topic
        self._schedule = schedule
        self._actor = actor

    def send(self, partition: int, messages: Sequence[Message]) -> None:
        batches = []
        start = 0
        while start < len(messages):
            size = self._schedule.randrange(1, 5)
            batches.append(messages[start : start + size])
            start += size
        fails = self._schedule.random() < 0.3
        if fails:
            self._schedule.shuffle(batches)
        for batch in batches:
            self._actor.gate()
            fate = self._schedule.choice(["there", "lost", "late", "twice"]) if fails else "there"
            if fate in ("there", "twice"):
                self._topic.append(partition, batch)
            if fate in ("late", "twice"):
                self._topic.late.append((partition, batch))
        self._actor.gate()
        if fails:
            raise StoreUnavailable("send", "failed")

    def close(self) -> None:
        pass


class NoLeases:
    """Everybody holds everything: nothing may rest on leases."""

    def claim(self, kind: str, owner: str, parts: Iterable[int], ttl_s: float) -> frozenset[int]:
        return frozenset(parts)

    def release(self, kind: str, owner: str) -> None:
        pass


class World:
    def __init__(self, folder: Path, seed: int) -> None:
        self.schedule = random.Random(seed)
        self.loop = asyncio.new_event_loop()
        self.registry = SqlRegistry(f"sqlite:///{folder}/registry.db", WantedIdentity(shards=SHARDS))
        features = definitions([("id", FeatureType.STRING), ("t", FeatureType.STRING), ("n", FeatureType.INTEGRAL)])
        group = FeatureGroup("group", "id", "t", features, online=OnlineConfig(), offline=OfflineConfig("s3://bucket"))
        self.group = self.registry.create(group)
        self.online = SqliteOnlineStore(folder / "online.db", SHARDS, outbox_changes_max=1_000_000)
        self.outbox = SqliteChangeLog(folder / "online.db", SHARDS)
        self.topic = Topic()
        self.objects = LocalObjectStore(folder / "offline")
        self.produced = 0
        self.produce()

    def produce(self) -> None:
        changes = []
        for _ in range(self.schedule.randrange(1, 15)):
            key = f"key-{self.schedule.randrange(6)}"
            values = encode_values(1, [key, format_iso(self.produced), str(self.produced)])
            changes.append(Change(self.group.group_id, 1, key, self.produced, Op.PUT, ONLINE | OFFLINE, None, values))
            self.produced += 1
        self.loop.run_until_complete(self.online.apply(changes))

    def meanwhile(self) -> None:
        if self.schedule.random() < 0.6:
            self.produce()
        if self.topic.late and self.schedule.random() < 0.5:
            self.topic.append(*self.topic.late.pop(self.schedule.randrange(len(self.topic.late))))

    def relay(self, actor: Actor) -> None:
        producer = Producer(self.topic, self.schedule, actor)
        relay = Relay(GatedChanges(self.outbox, actor), self.topic, producer, NoLeases(), "somebody")
        for _ in range(6):
            try:
                relay.relay(self.schedule.randrange(SHARDS), entries_max=self.schedule.choice([1, 4, 12]))
            except StoreUnavailable:
                relay.forget()

    def writer(self, actor: Actor) -> None:
        objects = GatedObjects(self.objects, actor)
        try:
            self._writer(OfflineStore(objects), GatedChanges(self.topic, actor), self.schedule.choice([1, 3, 100])).drain()
        except StoreUnavailable as error:
            if "is missing although later ones are there" not in str(error):
                raise

    def _writer(self, offline: OfflineStore, source: GatedChanges | Topic, changes_max: int) -> OfflineWriter:
        return OfflineWriter(source, offline, self.registry.get_by_id, changes_max=changes_max, log="topic")

    def rows(self) -> list[int]:
        """In a plain listing of the data folder."""
        keys = self.objects.list(f"{layout.group_root(self.group)}/data/")
        return [row["n"] for key in keys for row in pq.ParquetFile(self.objects.paths([key])[0]).read().to_pylist()]

    def check_end(self) -> None:
        actor_free = Relay(self.outbox, self.topic, _Reliable(self.topic), NoLeases(), "last")
        actor_free.relay_until(dict(self.outbox.ends()))
        for partition, messages in self.topic.late:
            self.topic.append(partition, messages)
        offline = OfflineStore(self.objects)
        self._writer(offline, self.topic, 7).drain()
        assert sorted(self.rows()) == list(range(self.produced))
        assert sum(offline.manifest(self.group).current().rows.values()) == self.produced
        assert all(not self.outbox.read(shard, 1, 1) for shard in range(SHARDS))

    def close(self) -> None:
        self.online.close()
        self.outbox.close()
        self.registry.close()
        self.loop.close()


class _Reliable:
    def __init__(self, topic: Topic) -> None:
        self._topic = topic

    def send(self, partition: int, messages: Sequence[Message]) -> None:
        self._topic.append(partition, messages)

    def close(self) -> None:
        pass


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_every_change_is_written_exactly_once(tmp_path: Path, seed: int) -> None:
    world = World(tmp_path, seed)
    try:

        def meanwhile() -> None:
            world.meanwhile()
            assert [number for number, count in Counter(world.rows()).items() if count > 1] == []

        actors = [world.relay] * RELAYS + [world.writer] * WRITERS
        run_schedule(world.schedule, actors, steps=500, kill_share=0.03, meanwhile=meanwhile)
        world.check_end()
    finally:
        world.close()
