"""Point-in-time joins: for each spine row, the record as it was at the row's time.

The rules (docs/guarantees.md, P6 and P7):

- The answer at time t is what the online store's rules make of the changes up to t: newest event time wins; at equal event
  times a put stands above a soft delete, and of two puts the later arrival wins; a hard delete forgets everything that
  arrived before it. Arrivals are ordered by API time, and by write time where rows of other tools may repeat API times.
- Delete markers and expiry are applied to the winner after the match, never before it: filtering them out first would bring
  an older value back to life.
- Every spine row stays, in its order; a row without an answer has nulls.

What "up to t" means is the cut:

- event time: changes whose event time is at or before t.
- known by T: of those, the ones the service had taken by the constant T.
- as served: of those, the ones the service had taken by t itself, row by row.

All of it happens within what the question sees of the table (`Sight`): what was written by a certain time and is retained.

Keys without a hard delete are joined by `matches`, the others by `graves`. One group after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from featurestore.engine import instant
from featurestore.offline import schema
from featurestore.query.sight import Sight

KEY: Final = "key"
TIME: Final = "time"


@dataclass(frozen=True, slots=True)
class Cut:
    """Which changes a row may see besides those of its own time. At most one of the two is set.

    Attributes:
        known_by_us: only what the service had taken by then, microseconds since 1970.
        as_served: only what the service had taken by the row's own time.
    """

    known_by_us: int | None = None
    as_served: bool = False


@dataclass(frozen=True, slots=True)
class GroupJoin:
    """One group's part of a training set.

    Attributes:
        features: (feature name, output column) pairs.
        event_time_column: output column for the event time of the matched record, or None.
    """

    sight: Sight
    features: Sequence[tuple[str, str]]
    event_time_column: str | None = None


def known(cut: Cut) -> list[str]:
    """The condition in SQL of `known_by_us`."""
    return [] if cut.known_by_us is None else [f"{schema.API_TIME} <= {instant(cut.known_by_us)}"]
