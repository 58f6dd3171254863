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
    ingest_parts,
    machine,
    offline_writer,
    online,
    redis_memory,
    relay,
    scaling,
    stream,
    training_set,
)
from tests.bench.sheet import Result, Sheet

Benchmark = Callable[[str, int, Path, Sheet, Callable[[str], None]], None]

KINDS: dict[str, dict[str, Benchmark]] = {
    "online": {
        "online": online.measure,
        "redis_memory": redis_memory.measure,
        "feast_online": feast_online.measure,
    },
    "offline": {
        "training_set": training_set.measure,
        "compacted": compacted.measure,
        "scaling": scaling.measure,
        "appends": appends.measure,
        "feast_history": feast_history.measure,
    },
    "ingest": {
        "ingest": ingest.measure,
        "ingest_parts": ingest_parts.measure,
    },
    "stream": {
        "relay": relay.measure,
        "offline_writer": offline_writer.measure,
        "stream": stream.measure,
        "freshness": freshness.measure,
        "freshness_steady": freshness_steady.measure,
    },
}
"""The benchmarks by what they look at; `make bench-<kind>` runs those of one."""
BENCHMARKS = {name: measure for benchmarks in KINDS.values() for name, measure in benchmarks.items()}
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
