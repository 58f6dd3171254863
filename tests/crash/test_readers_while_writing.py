"""Readers while ingests, puts, compactions, cleanings and erasures go on: no question fails, and every answer is that of one
version of the table.

One version means: of every batch all rows or none, no gap between the batches, never less than what was acknowledged before
the question, the number of rows of a version that was current meanwhile, and nothing of what was erased before.
`READER_SECONDS` sets for how long.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from featurestore.offline import layout
from featurestore.offline.manifest import Delta, Version
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.crash.test_readers_meanwhile import READER_SECONDS, Pace

KEPT = [f"kept-{number}" for number in range(20)]
GONE_PER_BATCH = 3
IDLE_S = 0.02
"""Who has nothing to do leaves the machine to the others for so long."""
DAY = datetime(2024, 5, 1, tzinfo=UTC)
GROUP = "events"


class World:
    """A store that is written to. Batch number b has one row per kept key and GONE_PER_BATCH records that will be erased."""

    def __init__(self, home: Path) -> None:
        self.store = FeatureStore(Settings.load({}, home=home, grace_s=0.5))
        self.store.create_feature_group(
            GROUP, record_identifier="key", event_time="at", features={"key": "String", "at": "String", "batch": "Integral"}
        )
        self.schedule = random.Random(7)
        self.begun = self.written = self.erasing = self.erased = 0

    def at(self, batch: int) -> datetime:
        return DAY + timedelta(minutes=batch)

    def gone(self, batch: int) -> list[str]:
        return [f"gone-{batch}-{number}" for number in range(GONE_PER_BATCH)]

    def write(self) -> None:
        batch = self.begun
        self.begun += 1
        keys = [*KEPT, *self.gone(batch)]
        frame = pd.DataFrame({"key": keys, "at": [self.at(batch)] * len(keys), "batch": [batch] * len(keys)})
        self.store.ingest(GROUP, frame, progress=False)
        self.written += 1

    def put(self) -> None:
        """Records that no question counts: they only make files."""
        for number in range(5):
            at = DAY - timedelta(hours=number + 1)
            self.store.put_record(GROUP, {"key": f"put-{number}", "at": at, "batch": -1})
        self.store.flush()

    def erase(self) -> None:
        if self.erasing < self.written:
            self.erasing += 1
            self.store.erase(GROUP, *self.gone(self.erasing - 1), progress=False)
            self.erased = self.erasing
        else:
            time.sleep(IDLE_S)

    def compact(self) -> None:
        done = self.store.compact(GROUP, full=self.schedule.random() < 0.5, progress=False)
        if not done.merged:
            time.sleep(IDLE_S)

    def maintain(self) -> None:
        self.store.maintain(GROUP)

    def versions(self, first: Version, last: Version) -> list[Version]:
        """Every version from one to another, from their objects."""
        root = layout.group_root(self.store.feature_group(GROUP))
        states = [first]
        while states[-1].version < last.version:
            data = self.store.offline.objects.get(layout.version_key(root, states[-1].version + 1))
            assert data is not None
            states.append(states[-1].after(msgspec.json.decode(data, type=Delta)))
        return states

    def current(self) -> Version:
        return self.store.offline.manifest(self.store.feature_group(GROUP)).current()

    def ask_batches(self) -> None:
        written, erased = self.written, self.erased
        rows = self.store.sql(
            f"SELECT batch, count(*) FILTER (key LIKE 'kept-%') AS kept, count(*) FILTER (key LIKE 'gone-%') AS gone "
            f"FROM {GROUP} WHERE batch >= 0 GROUP BY batch ORDER BY batch"
        ).to_pylist()
        assert [row["batch"] for row in rows] == list(range(len(rows))), "a gap between batches"
        assert written <= len(rows) <= self.begun
        assert {row["kept"] for row in rows} <= {len(KEPT)}, "part of a batch, or twice"
        for row in rows:
            assert row["gone"] <= GONE_PER_BATCH
            assert row["batch"] >= erased or row["gone"] == 0, "an erased record is back"
            assert row["batch"] < self.erasing or row["gone"] == GONE_PER_BATCH

    def ask_count(self) -> None:
        before = self.current()
        (answer,) = self.store.sql(f"SELECT count(*) AS n FROM {GROUP}", fresh=False).to_pylist()
        counts = {sum(entry.rows for entry in state.files) for state in self.versions(before, self.current())}
        assert answer["n"] in counts

    def ask_training_set(self) -> None:
        written = self.written
        if written == 0:
            time.sleep(IDLE_S)
            return
        past = self.schedule.randrange(written)
        moments = [self.at(past), DAY + timedelta(days=3650)]
        spine = pd.DataFrame({"key": KEPT * len(moments), "when": sorted(moments * len(KEPT))})
        made = self.store.create_training_set(spine, [f"{GROUP}.batch"], event_time="when", progress=False)
        values = made.to_pandas()[f"{GROUP}.batch"].tolist()
        assert values[: len(KEPT)] == [past] * len(KEPT)
        assert len(set(values[len(KEPT) :])) == 1, "features of different versions in one training set"
        assert written - 1 <= values[-1] < self.begun


def test_every_answer_is_that_of_one_version(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "featurestore.query.replan")
    world, pace = World(tmp_path / "home"), Pace()

    def asking(question: Callable[[], None]) -> Callable[[], None]:
        def ask() -> None:
            with pace.answer():
                question()
            pace.done[question.__name__] += 1

        return ask

    def acting(act: Callable[[], None], *, deletes: bool) -> Callable[[], None]:
        def run() -> None:
            if deletes:
                with pace.replacement():
                    act()
            else:
                act()
            pace.done[act.__name__] += 1

        return run

    works = [asking(question) for question in (world.ask_batches, world.ask_count, world.ask_training_set)]
    works += [acting(act, deletes=False) for act in (world.write, world.put, world.compact)]
    works += [acting(act, deletes=True) for act in (world.erase, world.maintain)]
    threads = [pace.run(work) for work in works]
    until_s = time.monotonic() + READER_SECONDS
    while time.monotonic() < until_s and not pace.stopped:
        threads[0].join(0.1)
    pace.stopped = True
    for thread in threads:
        thread.join()
    world.store.close()
    replans = sum(record.name == "featurestore.query.replan" for record in caplog.records)
    print(f"{dict(pace.done)}, {replans} replans, {world.written} batches, {world.erased} erased")
    assert pace.errors == []
    assert len(pace.done) == len(works), "everybody had a turn"
