"""Faults of many rows: every one counted, the first ones spelled out."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
import numpy.typing as npt

from featurestore.errors import Fault, ValidationFailed

FAULTS_KEPT_MAX: Final = 100
"""Faults of one frame that are spelled out: enough to see the pattern, and a bound on the memory of a message."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Rows whose value in one column is wrong, for one reason.

    Attributes:
        rows: their positions in the frame, ascending, 0-based.
        expected: what would have been right.
    """

    rows: npt.NDArray[np.int64]
    expected: str


class RowFaults:
    """The faults found in a frame's rows so far.

    Attributes:
        faulty: bool, one per row of the frame: whether the row has a fault.
        total: number of faults.
    """

    def __init__(self, rows: int) -> None:
        self.faulty: npt.NDArray[np.bool_] = np.zeros(rows, dtype=np.bool_)
        self.total = 0
        self._first: list[tuple[int, Fault]] = []

    def add_refusals(self, column: str, refused: Iterable[Refusal], got: Callable[[int], object]) -> None:
        """Count refused values of a column; `got` gives the value at a row, and is asked for the first rows only."""
        for refusal in refused:
            self.add(refusal.rows, partial(_fault_at, column, refusal.expected, got))

    def add(self, rows: npt.NDArray[np.int64], fault: Callable[[int], Fault]) -> None:
        """Count one fault for each of `rows`, which ascend."""
        self.faulty[rows] = True
        self.total += len(rows)
        self._first.extend((row, fault(row)) for row in rows[:FAULTS_KEPT_MAX].tolist())
        # The sort is stable: faults of one row stay in the order of the columns.
        self._first.sort(key=lambda entry: entry[0])
        del self._first[FAULTS_KEPT_MAX:]

    @property
    def first(self) -> tuple[Fault, ...]:
        """The faults of the first rows, at most FAULTS_KEPT_MAX, in row order."""
        return tuple(fault for _, fault in self._first)

    def raise_any(self) -> None:
        """Raise what was found.

        Raises:
            ValidationFailed: there is a fault.
        """
        if self.total:
            raise ValidationFailed(self.first, faults_total=self.total)


def _fault_at(column: str, expected: str, got: Callable[[int], object], row: int) -> Fault:
    return Fault(f"rows[{row}].{column}", expected, got(row))
