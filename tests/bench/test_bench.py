"""Every benchmark in tiny size: it runs, its answers agree and its figures are there. How fast is no matter of a test."""

from __future__ import annotations

import math

import pytest

from tests.bench import report
from tests.bench.sheet import Result
from tests.bench.suite import BENCHMARKS, run

TABLES = {
    "online": {"The service": 5, "HTTP servers that answer a constant": 3, "Bare SQLite": 3},
    "ingest": {"Ingest": 3, "Steps of store.ingest": 5},
    "training_set": {"Joins": 3, "Steps": 9},
    "compacted": {"Once, before the rounds": 2, "Training set": 3, "Steps": 4},
    "appends": {"Appending": 2, "Compaction": 1, "Training sets": 3, "Live files": 4},
    "freshness": {"From PutRecord to training set": 3},
}
"""Tables of each benchmark, and how many rows they have."""


@pytest.fixture(scope="module", params=BENCHMARKS)
def result(request: pytest.FixtureRequest) -> Result:
    return run(request.param, "tiny", 1)


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


def test_page_has_a_section_for_each_benchmark_and_the_newest_results() -> None:
    page = report.PAGE.read_text()
    assert {match["name"] for match in report.SECTION.finditer(page)} == {report.MACHINE, *BENCHMARKS}
    assert report.rewritten(page, report.newest()) == page, "run `python -m tests.bench report`"
