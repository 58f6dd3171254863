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

One statement per group; several ASOF joins in one statement would multiply their memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import duckdb
import pyarrow as pa

from featurestore.engine import Engine, failed, identifier, instant
from featurestore.errors import FileVanished
from featurestore.offline import schema
from featurestore.query.sight import Sight

ROW: Final = "row"
KEY: Final = "key"
TIME: Final = "time"

INTERRUPTED: Final = "Query interrupted"
"""What the engine raises, as a RuntimeError, when a signal arrives while it runs."""


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


def join_group(engine: Engine, spine: pa.Table, join: GroupJoin, cut: Cut) -> pa.Table:
    """The output columns of one group, one row per spine row in spine order.

    Args:
        spine: columns `row` (int64, 0 to n-1 in order), `key` (of the record identifier's type), `time` (timestamp[us, UTC]);
            null keys or times match nothing.

    Raises:
        QueryFailed: the engine gave up, for example for want of disk space to spill to.
        FileVanished: the engine gave up, and one of the files is gone.
    """
    session = engine.session()
    try:
        session.register("spine", spine)
        return session.sql(join_sql(join, cut)).to_arrow_table()
    except duckdb.Error as error:
        if not all(map(os.path.exists, join.sight.paths)):
            raise FileVanished("training set") from error
        raise failed(error) from error
    except RuntimeError as error:
        if str(error) != INTERRUPTED:
            raise
        raise KeyboardInterrupt from error  # the engine swallows Ctrl-C's own exception
    finally:
        session.close()


def join_sql(join: GroupJoin, cut: Cut) -> str:
    """The statement of `join_group`."""
    values = [f"{_visible(join, f'f.{identifier(name)}')} AS {identifier(output)}" for name, output in join.features]
    if join.event_time_column is not None:
        values.append(f"{_visible(join, 'f._at')} AS {identifier(join.event_time_column)}")
    ctes = [f"changes AS MATERIALIZED ({_changes(join, cut)})"]
    if join.sight.hard_deletes:
        ctes += _with_graves(join, cut)
    elif cut.as_served:
        ctes.append(f"timeline AS ({_running_newest(join, 'changes', '_key')})")
    else:
        ctes = [f"timeline AS ({_changes(join, cut)})"]
    never = "'infinity'::TIMESTAMPTZ"
    last = f"struct_pack(a := {never}, b := {never})" if join.sight.api_times_repeat else never
    members = {"a": (f"s.{TIME}", "f._from"), "d": (last, "f._api")}
    if cut.as_served or join.sight.hard_deletes:  # otherwise a change is in sight from its event time on
        members["b"] = (never, "f._at")
    if join.sight.deletes:
        members["c"] = ("true", "NOT f._deleted")
    row_time, change_time = (", ".join(f"{name} := {members[name][side]}" for name in sorted(members)) for side in (0, 1))
    # A null inside a struct compares as the largest value; so a row without a time loses its key, and matches nothing.
    spine = f"SELECT {ROW}, CASE WHEN {TIME} IS NOT NULL THEN {KEY} END AS {KEY}, {TIME} FROM spine"
    return (
        f"WITH {', '.join(ctes)} SELECT {', '.join(values)} FROM ({spine}) s ASOF LEFT JOIN timeline f "
        f"ON s.{KEY} = f._key AND struct_pack({row_time}) >= struct_pack({change_time}) ORDER BY s.{ROW}"
    )


def _visible(join: GroupJoin, column: str) -> str:
    """A value of the matched record, if that record is neither a delete marker nor expired at the row's time."""
    conditions = []
    if join.sight.deletes:
        conditions.append("NOT f._deleted")
    if join.sight.expiries:
        conditions.append(f"(f._expires IS NULL OR f._expires > s.{TIME})")
    return f"CASE WHEN {' AND '.join(conditions)} THEN {column} END" if conditions else column


def _changes(join: GroupJoin, cut: Cut) -> str:
    """The changes that any row may see, with `_from`: the instant from which a row sees them."""
    available = f"greatest({schema.EVENT_TIME}, {schema.API_TIME})" if cut.as_served else schema.EVENT_TIME
    columns = [
        f"{identifier(join.sight.group.record_identifier)} AS _key",
        f"{schema.EVENT_TIME} AS _at",
        f"{join.sight.arrival} AS _api",
        f"{available} AS _from",
        *(identifier(name) for name in _columns(join)),
    ]
    if join.sight.deletes:
        columns.append(f"coalesce({schema.IS_DELETED}, false) AS _deleted")
    if join.sight.expiries:
        columns.append(f"{schema.EXPIRES_AT} AS _expires")
    if join.sight.hard_deletes:
        columns.append(f"coalesce({schema.HARD_DELETED}, false) AS _hard")
    known = [] if cut.known_by_us is None else [f"{schema.API_TIME} <= {instant(cut.known_by_us)}"]
    return f"SELECT {', '.join(columns)} FROM {join.sight.rows(*known)}"


def _columns(join: GroupJoin) -> list[str]:
    return list(dict.fromkeys(name for name, _ in join.features))


def _rank(join: GroupJoin, relation: str) -> str:
    """The place of a change in the order of a record's changes, see `model.change`."""
    is_put = f", b := NOT {relation}._deleted" if join.sight.deletes else ""
    return f"struct_pack(a := {relation}._at{is_put}, c := {relation}._api)"


def _running_newest(join: GroupJoin, relation: str, partition: str) -> str:
    """The changes of a relation that are the newest so far when they come into sight.

    A change that comes into sight after a newer one (it arrived late) never becomes the answer.
    """
    rank = _rank(join, "r")
    return (
        f"SELECT * EXCLUDE (_newest) FROM (SELECT *, max({rank}) OVER (PARTITION BY {partition} "
        f"ORDER BY _from, {rank} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS _newest "
        f"FROM {relation} r) r WHERE _newest = {rank}"
    )


def _with_graves(join: GroupJoin, cut: Cut) -> list[str]:
    """The timeline when some keys were hard deleted.

    For such a key let the barrier of an instant be the arrival of the latest hard delete in sight: only changes that arrived
    after it count. Between two changes of the barrier (an era) the answer is the running newest, beginning with the newest
    of what counts at the era's start, or with nothing.
    """
    columns = [*(["_expires"] if join.sight.expiries else []), *(identifier(name) for name in _columns(join))]
    carried = "".join(f", {name} := c.{name}" for name in columns)
    unpacked = "".join(f", _first.{name} AS {name}" for name in columns)
    first = f"struct_pack(_at := c._at, _api := c._api, _deleted := c._deleted{carried})"
    names = "_key, _from, _at, _api, _deleted" + "".join(f", {name}" for name in columns)
    plain = f"SELECT {names} FROM changes ANTI JOIN buried USING (_key)"
    if cut.as_served:
        plain = _running_newest(join, f"({plain})", "_key")
    return [
        "buried AS MATERIALIZED (SELECT DISTINCT _key FROM changes WHERE _hard)",
        "eras AS MATERIALIZED (SELECT *, max(CASE WHEN _hard THEN _api END) OVER (PARTITION BY _key ORDER BY _from "
        "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS _barrier FROM changes SEMI JOIN buried USING (_key))",
        "starts AS (SELECT _key, _barrier, min(_from) AS _from FROM eras WHERE _barrier IS NOT NULL GROUP BY ALL)",
        f"firsts AS (SELECT e._key, e._barrier, e._from, "
        f"arg_max({first}, {_rank(join, 'c')}) "
        "FILTER (c._key IS NOT NULL) AS _first FROM starts e LEFT JOIN changes c ON c._key = e._key AND NOT c._hard "
        "AND c._from <= e._from AND c._api > e._barrier GROUP BY ALL)",
        f"counting AS (SELECT {names}, _barrier FROM eras WHERE NOT _hard AND (_barrier IS NULL OR _api > _barrier) "
        "UNION ALL SELECT _key, _from, coalesce(_first._at, '-infinity'::TIMESTAMPTZ), coalesce(_first._api, _barrier), "
        f"coalesce(_first._deleted, true){unpacked}, _barrier FROM firsts)",
        f"timeline AS ({plain} UNION ALL BY NAME SELECT {names} FROM ({_running_newest(join, 'counting', '_key, _barrier')}))",
    ]
