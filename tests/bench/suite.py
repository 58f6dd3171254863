"""The benchmarks by name, and one run of one of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from tests.bench import (
    appends,
    compacted,
    feast_history,
    feast_online,
    freshness,
    freshness_steady,
    ingest,
    machine,
    offline_writer,
    online,
    redis_memory,
    redis_online,
    relay,
    stream,
    training_set,
)
from tests.bench.sheet import Result, Sheet

Benchmark = Callable[[str, int, Path, Sheet, Callable[[str], None]], None]

BENCHMARKS: dict[str, Benchmark] = {
    "online": online.measure,
    "ingest": ingest.measure,
    "training_set": training_set.measure,
    "compacted": compacted.measure,
    "appends": appends.measure,
    "freshness": freshness.measure,
    "redis_online": redis_online.measure,
    "redis_memory": redis_memory.measure,
    "relay": relay.measure,
    "offline_writer": offline_writer.measure,
    "stream": stream.measure,
    "freshness_steady": freshness_steady.measure,
    "feast_online": feast_online.measure,
    "feast_history": feast_history.measure,
}
SIZES = ("tiny", "canonical")
ROUNDS = {"tiny": 1, "canonical": 5}


def run(name: str, size: str, rounds: int, say: Callable[[str], None] = lambda _: None) -> Result:
    """Run one benchmark in a temporary folder (below TMPDIR, which decides the disk).

    Raises:
        AssertionError: two answers to one question differ.
    """
    others = machine.OthersWatch()
    sheet = Sheet()
    with tempfile.TemporaryDirectory(prefix="featurestore-bench-") as folder:
        facts = machine.facts(Path(folder))
        BENCHMARKS[name](size, rounds, Path(folder), sheet, say)
    return Result(
        benchmark=name,
        size=size,
        rounds=rounds,
        at=datetime.now(UTC).isoformat(timespec="seconds"),
        commit=machine.commit(),
        machine=facts,
        others_cores=others.cores(),
        parameters=sheet.parameters,
        tables=sheet.tables,
        ratios=sheet.ratios,
        checksums=sheet.checksums,
    )
