"""A process is killed while it ingests dataframes: each batch is in both stores whole, once, or in neither."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path

import featurestore
from tests.crash.ingesting import GROUP, ROWS, SHARED_KEYS

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
ROUNDS_MAX = 5 * ROUNDS
ACKNOWLEDGED_MIN = 3
"""On a busy machine it takes more rounds, and longer ones, to see so many acknowledged."""
SEED = int(os.environ.get("CRASH_SEED", "20240501"))
START_S_MAX = 60.0


def run_and_kill(home: Path, first: int, wait_s: float) -> tuple[int, set[int]]:
    """Let a process ingest for `wait_s`, kill it; returns the next unused number and the numbers that were acknowledged."""
    command = [sys.executable, "-m", "tests.crash.ingesting", str(home), str(first)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
        assert process.stdout is not None
        watchdog = threading.Timer(START_S_MAX, process.kill)
        watchdog.start()
        assert process.stdout.readline() == "ready\n"
        watchdog.cancel()
        killer = threading.Timer(wait_s, process.kill)
        killer.start()
        begun, done = first, set()
        for line in process.stdout:
            word, number = line.split()
            if word == "begin":
                begun = int(number)
            else:
                done.add(int(number))
        killer.join()
    return begun + 1, done


def test_batches_are_all_or_nothing(tmp_path: Path) -> None:
    home, schedule = tmp_path / "home", random.Random(SEED)
    features = {"key": "String", "t": "Fractional", "batch": "Integral"}
    with featurestore.open(home) as store:
        store.create_feature_group(GROUP, record_identifier="key", event_time="t", features=features)
    following, acknowledged = 1, set()
    for number in range(ROUNDS_MAX):
        if number >= ROUNDS and len(acknowledged) >= ACKNOWLEDGED_MIN:
            break
        following, done = run_and_kill(home, following, schedule.uniform(0.01, 0.6) * (1 + number // ROUNDS))
        acknowledged |= done
    with featurestore.open(home) as store:
        counts = {
            row["batch"]: row["n"] for row in store.sql(f"SELECT batch, count(*) AS n FROM {GROUP} GROUP BY ALL").to_pylist()
        }
        assert set(counts.values()) <= {ROWS}, "a batch is in the table in part, or twice"
        assert acknowledged <= counts.keys(), "an acknowledged batch is lost"
        assert len(acknowledged) >= ACKNOWLEDGED_MIN, "too few batches to prove anything"
        assert store.audit(GROUP).differences == ()
        shared = store.batch_get_record(GROUP, [f"shared-{row}" for row in range(SHARED_KEYS)])
        assert {None if record is None else record["batch"] for record in shared} == {max(counts)}
        for number in counts:
            keys = [f"{number}-{row}" for row in range(SHARED_KEYS, ROWS)]
            found = store.batch_get_record(GROUP, keys)
            assert all(record is not None and record["batch"] == number for record in found), (
                f"batch {number} is not whole online"
            )
        listed = store.offline.objects.list("_batch/") + store.offline.objects.list("_staging/")
        unpromised = [key for key in listed if not key.startswith("_staging/")]
        assert unpromised == [], "an opened store has completed every promised batch"
        assert store.get_record(GROUP, f"{following + 1}-{SHARED_KEYS}") is None
