"""The rows of a spine by key and time, and of changes that come in any order the newest that each row sees.

A change falls into the slot of the first row of its key that sees it; every later row of that key sees it too. So of the
changes in a slot only the newest can be an answer, and what is kept is bounded by the rows of the spine, however long the
history is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

import numpy as np

from featurestore.query.radix import Int64s, ascending

Columns: TypeAlias = Mapping[str, Int64s]
"""Changes as columns of one length."""

SLOT: Final = "slot"

_LEAST: Final = np.iinfo(np.int64).min


class Slots:
    """One slot for each row.

    Args:
        ids: the number of each row's key, from 0 to `keys` - 1.
        times_us: each row's time.
        by_time: `radix.ascending` of the times.
    """

    def __init__(self, ids: Int64s, times_us: Int64s, by_time: Int64s, keys: int) -> None:
        self._rows = ascending(ids, by_time)
        self._ids, self._times_us = ids[self._rows], times_us[self._rows]
        self._starts = np.zeros(keys + 1, np.int64)
        np.cumsum(np.bincount(ids, minlength=keys), out=self._starts[1:])
        rows_max = int(np.diff(self._starts).max(initial=0))
        self._strides = [1 << bit for bit in reversed(range(rows_max.bit_length()))]

    def __len__(self) -> int:
        return len(self._rows)

    def of(self, ids: Int64s, from_us: Int64s) -> Int64s:
        """The slot of each change, given its key and the instant from which it is in sight; -1 where no row sees it."""
        # A binary search of all changes at once, each among the rows of its key: `before` is the last row known to be too early.
        before, end = self._starts[ids] - 1, self._starts[ids + 1]
        for stride in self._strides:
            further = before + stride
            before += stride * ((further < end) & (self._times_us.take(further, mode="clip") < from_us))
        found: Int64s = np.where(before + 1 < end, before + 1, -1)
        return found

    def seen(self, slots: Int64s, order: Int64s) -> Int64s:
        """For each row the newest change that it sees, as a place among the changes given; -1 where there is none.

        Args:
            slots: of each change; no two share one.
            order: places of the changes, the oldest first.
        """
        count = len(slots)
        scores = np.full(len(self), -1, np.int64)
        scores[slots[order]] = self._ids[slots[order]] * count + np.arange(count)
        ids, ranks = np.divmod(np.maximum.accumulate(scores), max(1, count))
        places = np.full(len(self), -1, np.int64)
        mine = ids == self._ids
        places[self._rows[mine]] = order[ranks[mine]]
        return places


class Newest:
    """The newest change of each slot.

    Args:
        slots: how many there are.
        rank: names of the columns that order changes, the most significant first.
        carried: names of further columns.
        pending_rows: changes that may wait before those are dropped that a newer one has outdone.
    """

    def __init__(self, slots: int, rank: Sequence[str], carried: Sequence[str], pending_rows: int) -> None:
        self._rank = rank
        self._names = (SLOT, *rank, *carried)
        self._pending: list[dict[str, Int64s]] = []
        self._pending_rows = 0
        self._pending_rows_max = pending_rows
        self._best = self._worst(slots)

    def offer(self, changes: Columns) -> None:
        """Take changes into account, but for those in no slot (-1)."""
        slots, first = changes[SLOT], changes[self._rank[0]]
        np.maximum.at(self._best, slots, first)
        kept = np.flatnonzero((first == self._best[slots]) & (slots >= 0))
        self._pending.append({name: changes[name][kept] for name in self._names})
        self._pending_rows += len(kept)
        if self._pending_rows > self._pending_rows_max:
            self._pending = [self.found()]
            self._pending_rows = len(self._pending[0][SLOT])

    def found(self) -> dict[str, Int64s]:
        """The newest change of every slot that has one, in no order."""
        none = np.empty(0, np.int64)
        changes = {name: np.concatenate([none, *(part[name] for part in self._pending)]) for name in self._names}
        best = self._best
        for name in self._rank:
            if name != self._rank[0]:
                best = self._worst(len(best) - 1)
                np.maximum.at(best, changes[SLOT], changes[name])
            kept = np.flatnonzero(changes[name] == best[changes[SLOT]])
            changes = {each: column[kept] for each, column in changes.items()}
            if len(kept) == np.count_nonzero(best[:-1] != _LEAST):
                break  # one for each slot: nothing is tied
        return changes

    @staticmethod
    def _worst(slots: int) -> Int64s:
        """Less than any value of a column, for each slot and for none: index -1 is the last."""
        return np.full(slots + 1, _LEAST, np.int64)
