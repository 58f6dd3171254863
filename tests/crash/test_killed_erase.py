"""A process is killed while it erases: each record is gone from everything, or untouched; all others are as they were."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa

import featurestore
from featurestore.store import FeatureStore
from tests.crash.erasing import GROUP, identifier

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
SEED = int(os.environ.get("CRASH_SEED", "20240501"))
START_S_MAX = 120.0
PEOPLE = 40 + 20 * ROUNDS
DAY_S = 86_400


def run_and_kill(home: Path, first: int, wait_s: float) -> tuple[int, set[int]]:
    """Let a process erase for `wait_s`, kill it; returns the last number it began with and the acknowledged ones."""
    command = [sys.executable, "-m", "tests.crash.erasing", str(home), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(START_S_MAX, process.kill)
        watchdog.start()
        assert process.stdout.readline() == "ready\n"
        watchdog.cancel()
        killer = threading.Timer(wait_s, process.kill)
        killer.start()
        begun, done = first - 1, set()
        for line in process.stdout:
            word, number = line.split()
            begun = max(begun, int(number))
            if word == "done":
                done.add(int(number))
        killer.join()
    return begun, done


def fill(store: FeatureStore) -> None:
    """Each person in files of the writer and of ingests, merged and superseded ones, online, and in the outbox."""
    features = {"id": "String", "t": "Fractional", "n": "Integral"}
    store.create_feature_group(GROUP, record_identifier="id", event_time="t", features=features)
    people = [identifier(number) for number in range(PEOPLE)]
    for day in range(3):
        times = [float(day * DAY_S)] * PEOPLE
        store.ingest(GROUP, pa.table({"id": people, "t": times, "n": [day] * PEOPLE}), progress=False)
        if day == 1:
            store.compact(GROUP, progress=False)
    for number in range(0, PEOPLE, 3):
        store.put_record(GROUP, {"id": identifier(number), "t": 4.0 * DAY_S, "n": 4})


def test_an_erase_is_all_or_nothing(tmp_path: Path) -> None:
    home, schedule = tmp_path / "home", random.Random(SEED)
    with featurestore.open(home) as store:
        fill(store)
        before = store.sql(f"SELECT * EXCLUDE (write_time, api_invocation_time) FROM {GROUP} ORDER BY ALL").to_pylist()
    following, acknowledged, interrupted = 0, set(), set()
    for _ in range(ROUNDS):
        begun, done = run_and_kill(home, following, schedule.uniform(0.02, 1.0))
        acknowledged |= done
        interrupted |= set(range(following, begun + 1)) - done
        following = begun + 1
    assert following < PEOPLE, "every record has a turn at most once"
    with featurestore.open(home) as store:
        after = store.sql(f"SELECT * EXCLUDE (write_time, api_invocation_time) FROM {GROUP} ORDER BY ALL").to_pylist()
        offline = {row["id"] for row in after}
        gone = {number for number in range(PEOPLE) if identifier(number) not in offline}
        assert acknowledged <= gone <= acknowledged | interrupted
        assert after == [row for row in before if row["id"] in offline], "what stays is whole, and as it was"
        records = store.batch_get_record(GROUP, [identifier(number) for number in range(PEOPLE)])
        assert {number for number, record in enumerate(records) if record is None} == gone
        assert store.audit(GROUP).differences == ()
        assert not [key for key in store.offline.objects.list("_erase/") if "pending" in key]
    for path in home.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        assert not [number for number in gone if identifier(number).encode() in data], f"{path} remembers an erased record"
