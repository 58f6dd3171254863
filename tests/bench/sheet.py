"""The sheet of one benchmark: what was measured in each round, and the result that is printed and kept."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping

import msgspec

SIGNIFICANT_DIGITS = 5

Rounds = list[float]


class Result(msgspec.Struct, frozen=True):
    """One run of one benchmark; a line of docs/benchmarks.ndjson.

    Attributes:
        at: when it ended, ISO-8601 in UTC.
        commit: of the code, with "+changes" if the working tree had others; None outside a repository.
        others_cores: cores that other processes kept busy meanwhile, on average; near zero in a run to be trusted.
        parameters: what was measured, in the benchmark's own words.
        tables: title, row, column to one figure per round. Units are in the column's name.
        ratios: label to one quotient per round.
        checksums: what was answered, who answered, checksum. Whoever answers the same question must agree.
    """

    benchmark: str
    size: str
    rounds: int
    at: str
    commit: str | None
    machine: dict[str, str]
    others_cores: float
    parameters: dict[str, str]
    tables: dict[str, dict[str, dict[str, Rounds]]]
    ratios: dict[str, Rounds]
    checksums: dict[str, dict[str, str]]


class Sheet:
    """Collects the figures of one run, a round after the other."""

    def __init__(self) -> None:
        self.parameters: dict[str, str] = {}
        self.tables: dict[str, dict[str, dict[str, Rounds]]] = {}
        self.ratios: dict[str, Rounds] = {}
        self.checksums: dict[str, dict[str, str]] = {}

    def add(self, table: str, row: str, figures: Mapping[str, float]) -> None:
        """The figures of one round."""
        cells = self.tables.setdefault(table, {}).setdefault(row, {})
        for column, figure in figures.items():
            cells.setdefault(column, []).append(_rounded(figure))

    def ratio(self, label: str, numerator: float, denominator: float) -> None:
        """A quotient of one round: both sides were measured in it, next to each other."""
        self.ratios.setdefault(label, []).append(_rounded(numerator / denominator))

    def check(self, question: str, answers: Mapping[str, str]) -> None:
        """The checksums of one round.

        Raises:
            AssertionError: they differ, from each other or from an earlier round.
        """
        known = self.checksums.setdefault(question, dict(answers))
        wrong = {**known, **answers}
        assert len({*known.values(), *answers.values()}) == 1, f"{question}: answers differ: {wrong}"
        known.update(answers)


def median(figures: Rounds) -> float:
    return statistics.median(figures)


def percentile(sorted_figures: list[float], percent: float) -> float:
    """The nearest-rank percentile of figures in rising order."""
    return sorted_figures[max(0, math.ceil(len(sorted_figures) * percent / 100) - 1)]


def _rounded(figure: float) -> float:
    return float(f"{figure:.{SIGNIFICANT_DIGITS}g}")
