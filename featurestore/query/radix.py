"""Orders of whole numbers, digit by digit; docs/decisions/0025-joins-without-sorting-the-history.md has what that saves."""

from __future__ import annotations

from typing import Any, Final, TypeAlias

import numpy as np

Int64s: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

DIGIT_BITS: Final = 16
"""numpy sorts numbers of so many bits by counting, when it shall keep the order of equal ones."""


def ascending(numbers: Int64s, positions: Int64s | None = None) -> Int64s:
    """The positions of numbers, those of the least first.

    Args:
        positions: all of them, in the order in which those of equal numbers stay; by default as they come. So several columns are
            ordered by one call each, the least significant first.
    """
    if positions is None:
        positions = np.arange(len(numbers))
    if not len(numbers):
        return positions
    above_least = (numbers - numbers.min()).view(np.uint64)  # their distance, although it may be more than an int64 holds
    for shift in range(0, int(above_least.max()).bit_length(), DIGIT_BITS):
        digits = (above_least >> np.uint64(shift)).astype(np.uint16)
        positions = positions[np.argsort(digits[positions], kind="stable")]
    return positions
