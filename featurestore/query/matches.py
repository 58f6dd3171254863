"""The newest change that each row of a spine sees, for keys without hard deletes.

    number    the keys of the spine, and its rows by key and time
    scan      of all changes of these keys the few columns that decide; the newest of each slot stays, see `slots`

The scan's join with the keys makes it short for a small spine: the engine skips row groups and rows by the keys that can match.
Nothing is sorted but the spine, and what is held is bounded by the spine.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engine import identifier
from featurestore.offline import schema
from featurestore.query.point_in_time import KEY, TIME, Cut, known
from featurestore.query.radix import Int64s, ascending
from featurestore.query.sight import Sight
from featurestore.query.slots import SLOT, Newest, Slots
from featurestore.query.values import NOWHERE, PLACE_SQL

BATCH_ROWS: Final = 1 << 17
"""Changes looked at together: enough that Python's share of the work is small, few enough to stay in the processor's caches."""
PENDING_ROWS_MIN: Final = 1 << 21
"""Changes that wait to be compared, 40 to 56 bytes each; of a large spine twice as many as it has rows."""
NEVER_US: Final = np.iinfo(np.int64).max

ID, AT, API, WRITTEN, IS_PUT, EXPIRES, PLACE = "id", "at", "api", "written", "is_put", "expires", "place"


@dataclass(frozen=True, slots=True)
class Matches:
    """For each row of a spine the change that answers it.

    Attributes:
        places: where it is in the files of a sight, see `values`; NOWHERE where a row has no answer.
        event_times_us: its event time; any number where a row has no answer.
    """

    places: Int64s
    event_times_us: Int64s


def find_matches(session: Any, spine: pa.Table, sight: Sight, cut: Cut, threads: int) -> Matches:
    """The matches of a spine none of whose keys has a hard delete in sight.

    Raises:
        duckdb.Error, pa.ArrowException, OSError: a file is missing or can't be read, or the engine gave up.
    """
    matches = Matches(np.full(spine.num_rows, NOWHERE, np.int64), np.zeros(spine.num_rows, np.int64))
    rows = np.flatnonzero(pc.and_(pc.is_valid(spine[KEY]), pc.is_valid(spine[TIME])).to_numpy())
    if not len(rows) or not sight.paths:
        return matches
    asking = spine.take(pa.array(rows)) if len(rows) < spine.num_rows else spine
    times_us = asking[TIME].cast(pa.int64()).to_numpy()
    with ThreadPoolExecutor(threads) as pool:
        ordering = pool.submit(ascending, times_us)
        keys, ids = pool.submit(_numbered, asking[KEY]).result()
        slots = Slots(ids, times_us, ordering.result(), len(keys))
    changes = _scan(session, keys, slots, sight, cut)

    least, *more = reversed(_rank(sight) if cut.as_served else [SLOT])
    order = ascending(changes[least])
    for name in more:
        order = ascending(changes[name], order)
    seen = slots.seen(changes[SLOT], order)
    matched = np.flatnonzero(seen >= 0)
    matched = matched[_visible(changes, seen[matched], times_us[matched])]
    matches.places[rows[matched]] = changes[PLACE][seen[matched]]
    matches.event_times_us[rows[matched]] = changes[AT][seen[matched]]
    return matches


def _numbered(column: pa.ChunkedArray) -> tuple[pa.Array, Int64s]:
    """The keys in order, and the number of each row's key among them.

    In order, because files are sorted by key: the changes of a batch then fall into neighbouring slots.
    """
    encoded = column.combine_chunks().dictionary_encode()
    order = pc.sort_indices(encoded.dictionary)
    numbers = np.empty(len(order), np.int64)
    numbers[order.to_numpy()] = np.arange(len(order))
    return encoded.dictionary.take(order), numbers[encoded.indices.to_numpy()]


def _rank(sight: Sight) -> list[str]:
    """The columns that order the changes of a record, see `model.change`."""
    return [AT, *([IS_PUT] if sight.deletes else []), API, *([WRITTEN] if sight.api_times_repeat else [])]


def _scan(session: Any, keys: pa.Array, slots: Slots, sight: Sight, cut: Cut) -> dict[str, Int64s]:
    """The newest change of every slot that has one."""
    carried = [PLACE, *([EXPIRES] if sight.expiries else [])]
    newest = Newest(len(slots), _rank(sight), carried, max(PENDING_ROWS_MIN, 2 * len(slots)))
    session.register("keys", pa.table({ID: np.arange(len(keys)), KEY: keys}))
    for batch in session.sql(scan_sql(sight, cut)).to_arrow_reader(BATCH_ROWS):
        changes = {name: batch[name].to_numpy() for name in batch.schema.names}
        from_us = np.maximum(changes[AT], changes[API]) if cut.as_served else changes[AT]
        changes[SLOT] = slots.of(changes.pop(ID), from_us)
        newest.offer(changes)
    return newest.found()


def scan_sql(sight: Sight, cut: Cut) -> str:
    """The changes that a row may see, of the keys in the table `keys`; all columns are integers."""
    columns = {AT: f"epoch_us({schema.EVENT_TIME})", API: f"epoch_us({schema.API_TIME})", PLACE: PLACE_SQL}
    if sight.api_times_repeat:
        columns[WRITTEN] = f"epoch_us({schema.WRITE_TIME})"
    if sight.deletes:
        columns[IS_PUT] = f"(NOT coalesce({schema.IS_DELETED}, false))::BIGINT"
    if sight.expiries:
        columns[EXPIRES] = f"coalesce(epoch_us({schema.EXPIRES_AT}), {NEVER_US})"
    selected = ", ".join(f"{sql} AS {name}" for name, sql in columns.items())
    key = identifier(sight.group.record_identifier)
    return (
        f"SELECT k.{ID}, c.* EXCLUDE (_key) FROM (SELECT {key} AS _key, {selected} "
        f"FROM {sight.numbered_rows(*known(cut))}) c JOIN keys k ON c._key = k.{KEY}"
    )


def _visible(changes: dict[str, Int64s], seen: Int64s, times_us: Int64s) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether the changes that rows see are neither delete markers nor expired at the rows' times."""
    visible = np.ones(len(seen), np.bool_)
    if IS_PUT in changes:
        visible &= changes[IS_PUT][seen] == 1
    if EXPIRES in changes:
        visible &= changes[EXPIRES][seen] > times_us
    return visible
