"""One group's columns of a training set."""

from __future__ import annotations

import os
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.engine import Engine, failed
from featurestore.errors import FileVanished, QueryFailed
from featurestore.offline import schema
from featurestore.query.graves import buried_keys, find_matches_beside_graves
from featurestore.query.matches import Matches, find_matches
from featurestore.query.point_in_time import KEY, Cut, GroupJoin
from featurestore.query.sight import Sight
from featurestore.query.values import NOWHERE, values_at

INTERRUPTED: Final = "Query interrupted"
"""What the engine raises, as a RuntimeError, when a signal arrives while it runs."""


def join_group(engine: Engine, spine: pa.Table, join: GroupJoin, cut: Cut) -> pa.Table:
    """The output columns of one group, one row per spine row in spine order.

    Beside the engine's memory it takes a few numbers for each row of the spine, the answer twice, and a piece of a row group for
    each thread, however long the history is.

    Args:
        spine: columns `key` (of the record identifier's type) and `time` (timestamp[us, UTC]); null keys or times match nothing.

    Raises:
        QueryFailed: the engine gave up, for example for want of disk space to spill to, or a file can't be read.
        FileVanished: so it was, and one of the files is gone.
    """
    session = engine.session()
    try:
        matches = _matches(session, spine, join.sight, cut, engine.threads)
        features = [feature for feature in join.sight.group.features if feature.name in {name for name, _ in join.features}]
        values = values_at(join.sight.paths, matches.places, features, engine.threads)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if not all(map(os.path.exists, join.sight.paths)):
            raise FileVanished("training set") from error
        raise (failed(error) if isinstance(error, duckdb.Error) else QueryFailed(str(error))) from error
    except RuntimeError as error:
        if str(error) != INTERRUPTED:
            raise
        raise KeyboardInterrupt from error  # the engine swallows Ctrl-C's own exception
    finally:
        session.close()
    columns = {output: values[name] for name, output in join.features}
    if join.event_time_column is not None:
        times = pa.array(matches.event_times_us, mask=matches.places == NOWHERE).cast(schema.INSTANT)
        columns[join.event_time_column] = pa.chunked_array([times])
    return pa.table(columns)


def _matches(session: Any, spine: pa.Table, sight: Sight, cut: Cut, threads: int) -> Matches:
    """For each row of the spine the change that answers it, whether or not its key has a hard delete."""
    buried = buried_keys(session, spine, sight, cut) if sight.hard_deletes else ()
    if not len(buried):
        return find_matches(session, spine, sight, cut, threads)
    apart = pc.is_in(spine[KEY], value_set=buried).combine_chunks().to_numpy(zero_copy_only=False)
    alive = find_matches(session, spine.filter(pa.array(~apart)), sight, cut, threads)
    beside = find_matches_beside_graves(session, spine.filter(pa.array(apart)), buried, sight, cut)
    matches = Matches(np.empty(spine.num_rows, np.int64), np.empty(spine.num_rows, np.int64))
    for rows, part in ((~apart, alive), (apart, beside)):
        matches.places[rows], matches.event_times_us[rows] = part.places, part.event_times_us
    return matches
