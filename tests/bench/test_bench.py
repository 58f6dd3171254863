"""Every benchmark but those in FEAST in tiny size: it runs, its answers agree and its figures are there. How fast is no matter of
a test."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest

from tests.bench import machine, plots, report
from tests.bench.sheet import Result
from tests.bench.suite import BENCHMARKS, KINDS, run
from tests.redis_server import require_redis

TABLES = {
    "online": {
        "On Redis": 7,
        "Embedded, on SQLite": 6,
        "By one caller alone": 2,
        "redis-benchmark": 5,
        "HTTP servers that answer a constant": 2,
        "Bare SQLite": 3,
    },
    "ingest": {"Ingest": 3, "Steps of store.ingest": 5},
    "ingest_parts": {"Into files by hour": 2, "Into Redis, the newest row per identifier": 2},
    "training_set": {"Joins": 3, "Steps": 9},
    "compacted": {"Once, before the rounds": 2, "Training set": 5, "Steps": 5},
    "scaling": {"Took, s": 6, "Memory beyond spine and answer, MiB": 3},
    "appends": {"Appending": 2, "Compaction": 1, "Training sets": 3, "Live files": 4},
    "freshness": {"From PutRecord to training set": 3},
    "redis_memory": {"10 features": 8, "50 features": 8},
    "relay": {"From the outbox to the topic": 3},
    "offline_writer": {"From the topic to Parquet": 3, "Files": 2},
    "stream": {"From a topic to Redis and the outbox": 3},
    "freshness_steady": {"From PutRecord's answer to a training set": 2, "Meanwhile": 2, "One by one, with fresh=True": 2},
    "feast_online": {"Memory in Redis": 4, "Reads over HTTP": 16},
    "feast_history": {"Training sets": 4},
}
"""Tables of each benchmark, and how many rows they have."""
KAFKA = ("relay", "offline_writer", "stream", "freshness_steady")
REDIS = ("online", "ingest_parts", "redis_memory", *KAFKA)
LOAD = ("online", "freshness_steady")
FEAST = ("feast_online", "feast_history")
"""Not run here: Feast's environment takes 700 MB and, with pip, a minute to install, so `make services` leaves it out. In tiny
size they are run by hand: `python -m tests.bench feast_online feast_history --size tiny`."""


@pytest.fixture(scope="module", params=[name for name in BENCHMARKS if name not in FEAST])
def result(request: pytest.FixtureRequest) -> Iterator[Result]:
    """Its Redis is always its own. Of Kafka all of them use the one that the other tests do, since it takes long to start."""
    with pytest.MonkeyPatch.context() as patch:
        if request.param in REDIS:
            require_redis()
        if request.param in LOAD:
            request.getfixturevalue("load_generator")
        if request.param in KAFKA:
            patch.setenv("KAFKA_BOOTSTRAP_SERVERS", request.getfixturevalue("kafka_servers"))
        yield run(request.param, "tiny", 1)


def test_answers_agree(result: Result) -> None:
    assert result.checksums
    for question, answers in result.checksums.items():
        assert len(answers) >= 2, question
        assert len(set(answers.values())) == 1, question


def test_figures_are_there(result: Result) -> None:
    assert {title: len(rows) for title, rows in result.tables.items()} == TABLES[result.benchmark]
    cells = [figures for rows in result.tables.values() for row in rows.values() for figures in row.values()]
    for figures in (*cells, *result.ratios.values()):
        assert len(figures) == 1
        assert math.isfinite(figures[0])
        assert figures[0] >= 0


def test_plots_can_be_drawn(result: Result) -> None:
    files = plots.drawn({result.benchmark: result})
    assert len(files) == len(plots.PLOTS.get(result.benchmark, ()))
    assert plots.drawn({result.benchmark: result}) == files, "the same bytes each time"
    rows = {row for table in result.tables.values() for row in table}
    for name, content in files.items():
        assert sum(f">{row}".encode() in content for row in rows) >= 3, f"{name} tells what it shows"


def test_page_has_a_section_for_each_benchmark_and_the_newest_results() -> None:
    page = report.PAGE.read_text()
    assert {match["name"] for match in report.SECTION.finditer(page)} == {report.MACHINE, *BENCHMARKS}
    assert report.rewritten(page, report.newest()) == page, "run `python -m tests.bench report`"


def test_plots_are_of_the_newest_results() -> None:
    files = plots.drawn(report.newest())
    assert files, "there is something to see"
    assert {path.name: path.read_bytes() for path in plots.FOLDER.iterdir()} == files, "run `python -m tests.bench report`"


def test_each_kind_has_a_target_and_a_line_on_the_page() -> None:
    makefile, page = (machine.ROOT / "Makefile").read_text(), report.PAGE.read_text()
    for kind, names in KINDS.items():
        assert f"\nbench-{kind}: " in makefile
        assert f"| {kind} | {', '.join(names)} |" in page
    assert sum(len(names) for names in KINDS.values()) == len(BENCHMARKS), "each benchmark is of one kind"


def test_newest_results_are_of_the_benchmarks_as_they_are() -> None:
    """A benchmark that was changed says nothing until it is measured anew."""
    for name, result in report.newest().items():
        assert {title: len(rows) for title, rows in result.tables.items()} == TABLES[name], name
