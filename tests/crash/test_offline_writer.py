"""Racing, killed and paused offline writers, compactions, cleanings and erasures against one table, by seeded schedules: every
change exactly once, whatever the log delivers again and whatever it holds that is no change; and no change that was erased.

Checked in the manifest's view and in a plain listing of the data folder, which must never show a row twice either.
`SCHEDULES` sets how many.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from featurestore.audit import Auditor, Kind
from featurestore.changelog.protocol import ChangeSource
from featurestore.changelog.sqlite import SqliteChangeLog
from featurestore.engine import Engine, EngineLimits
from featurestore.erase import Eraser, Parts
from featurestore.model.change import OFFLINE, ONLINE, Change, LogEntry, LoggedChange, Op, PoisonChange
from featurestore.model.codec import encode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import (
    CompactionMode,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    definitions,
)
from featurestore.offline import layout
from featurestore.offline.cleaning import Cleaner
from featurestore.offline.compaction import Compactor
from featurestore.offline.local import LocalObjectStore
from featurestore.offline.protocol import ObjectStore
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
NO_GROUP = 99


class RelayedLog:
    """A change log that a relay fills from the outbox, as a message broker would hold it.

    A relay that died before it stored its position sends the tail of what it had sent again; offsets then run ahead of `seq`.
    """

    def __init__(self, outbox: ChangeSource) -> None:
        self._outbox = outbox
        self._lock = threading.Lock()
        self._entries: dict[int, list[LogEntry]] = {shard: [] for shard in range(outbox.shards())}
        self._offset_next = dict.fromkeys(self._entries, 1)

    def relay(self, schedule: random.Random) -> None:
        for shard in self._entries:
            fresh = self._outbox.read(shard, 1, 1_000_000)
            cut = schedule.randrange(len(fresh) + 1)
            for entry in [*fresh[:cut], *fresh[schedule.randrange(cut + 1) :]]:
                self._append(shard, entry.item)
                if schedule.random() < 0.02:
                    self._append(shard, PoisonChange(b"not a change", "unknown bytes", None))
            if fresh:
                self._outbox.trim(shard, fresh[-1].offset + 1)

    def _append(self, shard: int, item: LoggedChange | PoisonChange) -> None:
        with self._lock:
            self._entries[shard].append(LogEntry(self._offset_next[shard], item))
            self._offset_next[shard] += 1

    def shards(self) -> int:
        return self._outbox.shards()

    def ends(self) -> Mapping[int, int]:
        with self._lock:
            return dict(self._offset_next)

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        with self._lock:
            return [entry for entry in self._entries[shard] if entry.offset >= offset_first][:entries_max]

    def trim(self, shard: int, offset_next: int) -> None:
        with self._lock:
            self._entries[shard] = [entry for entry in self._entries[shard] if entry.offset >= offset_next]

    def close(self) -> None:
        self._outbox.close()


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    engine = Engine(EngineLimits(512 << 20, 1 << 30, 1), tmp_path_factory.mktemp("engine"))
    yield engine
    engine.close()


class World:
    """One store whose changes are produced while writers race."""

    def __init__(self, folder: Path, seed: int, engine: Engine) -> None:
        self.schedule = random.Random(seed)
        self.engine = engine
        self.mode = self.schedule.choice(list(CompactionMode))
        self.loop = asyncio.new_event_loop()
        self.registry = SqlRegistry(f"sqlite:///{folder}/registry.db", WantedIdentity(shards=SHARDS))
        self.groups = [self.registry.create(self._group(name)) for name in ("first", "second")]
        self.online = SqliteOnlineStore(folder / "online.db", SHARDS, outbox_changes_max=1_000_000)
        outbox = SqliteChangeLog(folder / "online.db", SHARDS)
        self.relayed = RelayedLog(outbox) if self.schedule.random() < 0.5 else None
        self.changes: ChangeSource = self.relayed or outbox
        self.objects = LocalObjectStore(folder / "offline")
        self.produced: list[tuple[str, int]] = []
        self.arrived_us: dict[int, tuple[str, int]] = {}
        """Number to record and API time."""
        self.acknowledged: Counter[int] = Counter()
        """Group id to changes for the offline store."""
        self.poison: list[int] = []
        self.produce()

    @staticmethod
    def _group(name: str) -> FeatureGroup:
        features = definitions([("id", FeatureType.STRING), ("t", FeatureType.STRING), ("n", FeatureType.INTEGRAL)])
        return FeatureGroup(name, "id", "t", features, online=OnlineConfig(), offline=OfflineConfig("s3://bucket"))

    def produce(self) -> None:
        """A few more changes, each with its own number, over a few hours of event time. Some can't become rows."""
        changes = []
        for _ in range(self.schedule.randrange(1, 12)):
            number, group = len(self.produced), self.schedule.choice(self.groups)
            targets = self.schedule.choice([ONLINE | OFFLINE, ONLINE | OFFLINE, ONLINE])
            event_time_us = self.schedule.randrange(4) * HOUR_US + number
            key = self._key()
            fate = self.schedule.choice(["row"] * 18 + ["no group", "no number"])
            group_id = NO_GROUP if fate == "no group" else group.group_id
            text = f"{number} apples" if fate == "no number" else str(number)
            values = encode_values(1, [key, format_iso(event_time_us), text])
            changes.append(Change(group_id, 1, key, event_time_us, Op.PUT, targets, None, values))
            self.acknowledged[group_id] += bool(targets & OFFLINE)
            if fate != "row" and targets & OFFLINE:
                self.poison.append(number)
            self.produced.append((group.name if fate == "row" and targets & OFFLINE else "", number))
        first = len(self.produced) - len(changes)
        for number, applied in enumerate(self.loop.run_until_complete(self.online.apply(changes)), first):
            assert applied.stamp is not None
            self.arrived_us[number] = (changes[number - first].record_id, applied.stamp.api_time_us)
        if self.relayed is not None:
            self.relayed.relay(self.schedule)

    def writer(self, actor: Actor) -> None:
        offline = OfflineStore(GatedObjects(self.objects, actor))
        size = self.schedule.choice([1, 3, 1000])
        OfflineWriter(GatedChanges(self.changes, actor), offline, self.registry.get_by_id, changes_max=size).drain()

    def compactor(self, actor: Actor) -> None:
        offline = OfflineStore(GatedObjects(self.objects, actor))
        group = self.schedule.choice(self.groups)
        Compactor(offline, self.engine).compact(group, full=self.schedule.random() < 0.8)

    def cleaner(self, actor: Actor) -> None:
        offline = OfflineStore(GatedObjects(self.objects, actor))
        Cleaner(offline, SHARDS, mode=self.mode, grace_s=0).clean(self.schedule.choice(self.groups))

    def eraser(self, actor: Actor) -> None:
        self._eraser(GatedObjects(self.objects, actor)).erase(self.schedule.choice(self.groups), [self._key()])

    def _eraser(self, objects: ObjectStore) -> Eraser:
        offline = OfflineStore(objects)
        writer = OfflineWriter(self.changes, offline, self.registry.get_by_id, changes_max=1000)
        parts = Parts(lambda: None, writer.drain, lambda group: None)
        return Eraser(self.online, offline, SHARDS, self.loop.run_until_complete, parts)

    def _key(self) -> str:
        return f"key-{self.schedule.randrange(5)}"

    def expected(self, group: FeatureGroup) -> list[int]:
        """Numbers of the rows that must be there: all that were produced but the erased ones."""
        erased = OfflineStore(self.objects).ledger.erased(group.group_id)
        kept = []
        for name, number in self.produced:
            record_id, api_time_us = self.arrived_us[number]
            if name == group.name and api_time_us > (erased.until_us(record_id) or 0):
                kept.append(number)
        return kept

    def check_listing(self) -> None:
        """No row is in two files of the data folder, at any moment."""
        for group in self.groups:
            folder = f"{layout.group_root(group)}/data/"
            numbers = [number for key in self.objects.list(folder) for number in self._numbers(key)]
            assert [number for number, count in Counter(numbers).items() if count > 1] == []

    def check_end(self) -> None:
        """What was produced is in the manifest and in the listing, once; what can't be a row is in quarantine, once."""
        self._eraser(self.objects).recover(self.registry.get_by_id)
        offline = OfflineStore(self.objects)
        OfflineWriter(self.changes, offline, self.registry.get_by_id, changes_max=1000).drain()
        for group in self.groups:
            expected = self.expected(group)
            root = layout.group_root(group)
            state = offline.manifest(group).current()
            assert sorted(number for entry in state.files for number in self._numbers(f"{root}/{entry.path}")) == expected
            assert sum(state.rows.values()) == len(expected)
            report = Auditor(self.online, offline, self.engine, SHARDS).audit(group)
            damaged = [one for one in report.differences if one.kind is Kind.VALUE and "apples' is not Integral" in one.detail]
            assert list(report.differences) == damaged
            assert sum(shard.acknowledged for shard in report.shards) == self.acknowledged[group.group_id]
            listed = sorted(number for key in self.objects.list(f"{root}/data/") for number in self._numbers(key))
            if self.mode is CompactionMode.SHADOW:
                assert listed == expected
            else:
                assert set(listed) <= set(expected)
        assert all(not self.changes.read(shard, 1, 10) for shard in range(SHARDS)), "written changes are trimmed"
        poison = [row for key in self.objects.list("_writer/") if "/quarantine-" in key for row in self._rows(key)]
        assert all(row["reason"] for row in poison)
        bodies = Counter((row["seq"], row["body"]) for row in poison if row["seq"] is not None)
        assert not bodies or max(bodies.values()) == 1
        if not offline.ledger.entries():
            assert len(bodies) == len(self.poison)

    def _numbers(self, key: str) -> list[int]:
        return [row["n"] for row in self._rows(key)]

    def _rows(self, key: str) -> list[dict[str, int]]:
        data = self.objects.get(key)
        if data is None:
            return []  # cleaned since it was listed
        return pq.ParquetFile(self.objects.paths([key])[0]).read().to_pylist()

    def close(self) -> None:
        self.online.close()
        self.changes.close()
        self.registry.close()
        self.loop.close()


@pytest.mark.parametrize("seed", range(SCHEDULES))
def test_every_change_is_written_exactly_once(tmp_path: Path, seed: int, engine: Engine) -> None:
    world = World(tmp_path, seed, engine)
    try:

        def meanwhile() -> None:
            if world.schedule.random() < 0.5:
                world.produce()
            if not erasing:
                world.check_listing()

        erasing = seed % 3 == 2  # an erase puts the rewritten file beside the old one for a moment
        actors: list[Callable[[Actor], None]] = [world.writer] * WRITERS
        actors += [world.compactor, world.compactor, world.cleaner] if seed % 4 else []
        actors += [world.eraser] if erasing else []
        run_schedule(world.schedule, actors, steps=350, kill_share=0.03, meanwhile=meanwhile)
        world.check_end()
        world.check_listing()
    finally:
        world.close()
