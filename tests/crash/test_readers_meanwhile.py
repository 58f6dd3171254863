"""Readers while the files under them are replaced and deleted: every answer is that of the content, which stays the same.

`READER_SECONDS` sets for how long.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

import featurestore
from featurestore.query.replan import REPLANS_MAX
from tests.rewriting import rewrite

READER_SECONDS = float(os.environ.get("READER_SECONDS", "6"))
GROUPS = ("orders", "visits")
KEYS = [f"customer-{number}" for number in range(20)]
DAY = datetime(2024, 5, 1, tzinfo=UTC)
ROUNDS = 3


class World:
    """A store with two groups that nobody writes to any more. Each round wrote puts, deletes and a dataframe to both."""

    def __init__(self, folder: Path) -> None:
        self.store = featurestore.open(folder)
        self.written_at: list[datetime] = []
        """Moments: after each round."""
        features = {"key": "String", "at": "String", "value": "Integral"}
        for name in GROUPS:
            self.store.create_feature_group(name, record_identifier="key", event_time="at", features=features)
        for number in range(ROUNDS):
            for name in GROUPS:
                self._write(name, number)
            self.store.flush()
            self.written_at.append(datetime.now(UTC))
        moments = [DAY + timedelta(hours=hour) for hour in range(-1, 30)] + self.written_at
        self.spine = pd.DataFrame({"key": KEYS * len(moments), "when": sorted(moments * len(KEYS))})
        self.numbers = count()
        """For actors: what they do differs from call to call."""

    def _write(self, name: str, number: int) -> None:
        at = [DAY + timedelta(hours=(7 * number + 5 * row) % 24) for row in range(len(KEYS))]
        frame = pd.DataFrame({"key": KEYS, "at": at, "value": range(100 * number, 100 * number + len(KEYS))})
        self.store.ingest(name, frame, progress=False)
        for row in range(number, len(KEYS), 3):
            self.store.put_record(name, {"key": KEYS[row], "at": DAY + timedelta(hours=row), "value": 1000 * number + row})
        self.store.delete_record(name, KEYS[number], DAY + timedelta(hours=25 + number))
        self.store.delete_record(name, KEYS[number + 5], DAY + timedelta(hours=25 + number), hard=True)

    def training_set(self, **options: object) -> pa.Table:
        wanted = [f"{name}.value" for name in GROUPS]
        made = self.store.create_training_set(self.spine, wanted, event_time="when", event_times=True, progress=False, **options)
        return made.to_arrow()


JOINED = """
    SELECT o.key, o.value, count(*) AS n, sum(v.value) AS total
    FROM latest.orders o JOIN history.visits v USING (key) JOIN orders h USING (key)
    GROUP BY ALL ORDER BY ALL
"""

READERS: list[list[Callable[[World], pa.Table]]] = [
    [
        lambda world: world.training_set(),
        lambda world: world.training_set(as_of=world.written_at[1]),
        lambda world: world.training_set(known_by=world.written_at[1], as_of=world.written_at[0], fresh=False),
        lambda world: world.training_set(as_served=True, fresh=False),
    ],
    [
        lambda world: world.store.sql(JOINED),
        lambda world: world.store.sql(JOINED, as_of=world.written_at[1]),
        lambda world: world.store.create_training_set(
            'SELECT key, "at"::TIMESTAMPTZ + INTERVAL 1 HOUR AS t FROM visits WHERE value IS NOT NULL ORDER BY ALL',
            ["orders.value"],
            event_time="t",
            as_of=world.written_at[0],
        ).to_arrow(),
    ],
]
"""Questions, by the thread that asks them in turn without pause. Each has one answer as long as the content is the same."""


def merge(world: World) -> None:
    rewrite(world.store.offline, world.store.feature_group(GROUPS[next(world.numbers) % 2]))


def spread(world: World) -> None:
    number = next(world.numbers)
    rewrite(world.store.offline, world.store.feature_group(GROUPS[number % 2]), files=number % 5 + 1, seed=number)


MEANWHILE: list[Callable[[World], None]] = [merge, spread]
"""What goes on under the readers, each in a thread of its own, over and over. One call replaces files once and leaves the
content as it is."""


class Pace:
    """Lets actors replace files as fast as they can, but under one answer no more often than it must survive."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._replacing = 0
        self._suffered: dict[int, int] = {}
        self.stopped = False
        self.errors: list[BaseException] = []
        self.done: Counter[str] = Counter()

    @contextmanager
    def answer(self) -> Iterator[None]:
        me = threading.get_ident()
        with self._changed:
            self._suffered[me] = self._replacing
        try:
            yield
        finally:
            with self._changed:
                del self._suffered[me]
                self._changed.notify_all()

    @contextmanager
    def replacement(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: all(times < REPLANS_MAX for times in self._suffered.values()))
            self._replacing += 1
            for reader in self._suffered:
                self._suffered[reader] += 1
        try:
            yield
        finally:
            with self._changed:
                self._replacing -= 1

    def run(self, work: Callable[[], None]) -> threading.Thread:
        """Repeat `work` in a thread until somebody stops; an error stops all."""

        def repeat() -> None:
            try:
                while not self.stopped:
                    work()
            except BaseException as error:  # whatever it is, the test has to hear of it
                self.errors.append(error)
                self.stopped = True

        thread = threading.Thread(target=repeat)
        thread.start()
        return thread


def test_every_answer_is_that_of_the_content(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "featurestore.query.replan")
    world, pace = World(tmp_path / "home"), Pace()

    def asking(questions: list[Callable[[World], pa.Table]]) -> Callable[[], None]:
        expected = [question(world) for question in questions]
        for answer in expected:
            assert answer[-1].null_count < answer.num_rows, "an answer that says something"

        def ask() -> None:
            for number, question in enumerate(questions):
                with pace.answer():
                    answer = question(world)
                assert answer.equals(expected[number]), f"question {number} has another answer"
                pace.done["answers"] += 1

        return ask

    def acting(act: Callable[[World], None]) -> Callable[[], None]:
        def replace() -> None:
            with pace.replacement():
                act(world)
            pace.done[act.__name__] += 1

        return replace

    works = [asking(questions) for questions in READERS] + [acting(act) for act in MEANWHILE]
    threads = [pace.run(work) for work in works]
    until_s = time.monotonic() + READER_SECONDS
    while time.monotonic() < until_s and not pace.stopped:
        threads[0].join(0.1)
    pace.stopped = True
    for thread in threads:
        thread.join()
    world.store.close()
    assert pace.errors == []
    replans = sum(record.name == "featurestore.query.replan" for record in caplog.records)
    print(f"{dict(pace.done)}, {replans} replans")
    assert replans > 0, "the readers never met a file that was gone"
    assert all(pace.done[act.__name__] for act in MEANWHILE)
