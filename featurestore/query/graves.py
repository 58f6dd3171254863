"""The newest change that each row of a spine sees, for keys with a hard delete, which forgets what arrived before it.

No single order of the changes expresses that, so their timeline is built first and joined as a whole.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.engine import identifier
from featurestore.offline import schema
from featurestore.query.matches import Matches
from featurestore.query.point_in_time import KEY, TIME, Cut, known
from featurestore.query.sight import Sight
from featurestore.query.values import NOWHERE, PLACE_SQL

ROW: Final = "row"


def buried_keys(session: Any, spine: pa.Table, sight: Sight, cut: Cut) -> pa.Array:
    """The keys of a spine that have a hard delete in sight."""
    session.register("spine", spine)
    key = identifier(sight.group.record_identifier)
    deletes = f"SELECT {key} AS {KEY} FROM {sight.numbered_rows(schema.HARD_DELETED, *known(cut))}"
    found = session.sql(f"SELECT DISTINCT {KEY} FROM ({deletes}) SEMI JOIN spine USING ({KEY})").to_arrow_table()
    return found[KEY].cast(spine.schema.field(KEY).type).combine_chunks()


def find_matches_beside_graves(session: Any, spine: pa.Table, buried: pa.Array, sight: Sight, cut: Cut) -> Matches:
    """The matches of a spine whose keys are all among the buried ones.

    The engine holds all changes of these keys, and spills what does not fit.

    Raises:
        duckdb.Error: a file is missing or can't be read, or the engine gave up.
    """
    session.register("spine", spine.append_column(ROW, pa.array(np.arange(spine.num_rows))))
    session.register("buried", pa.table({"_key": buried}))
    found = session.sql(matches_sql(sight, cut)).to_arrow_table()
    return Matches(found["place"].to_numpy(), found["at"].to_numpy())


def matches_sql(sight: Sight, cut: Cut) -> str:
    """The statement of `find_matches_beside_graves`.

    For each key let the barrier of an instant be the arrival of the latest hard delete in sight: only changes that arrived
    after it count. Between two changes of the barrier (an era) the answer is the running newest, beginning with the newest
    of what counts at the era's start, or with nothing.
    """
    carried = [*(["_expires"] if sight.expiries else []), "_place"]
    packed = "".join(f", {name} := c.{name}" for name in carried)
    unpacked = "".join(f", _first.{name} AS {name}" for name in carried)
    first = f"struct_pack(_at := c._at, _api := c._api, _deleted := c._deleted{packed})"
    names = "_key, _from, _at, _api, _deleted" + "".join(f", {name}" for name in carried)
    ctes = [
        f"changes AS MATERIALIZED ({_changes(sight, cut)})",
        "eras AS MATERIALIZED (SELECT *, max(CASE WHEN _hard THEN _api END) OVER (PARTITION BY _key ORDER BY _from "
        "RANGE BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS _barrier FROM changes)",
        "starts AS (SELECT _key, _barrier, min(_from) AS _from FROM eras WHERE _barrier IS NOT NULL GROUP BY ALL)",
        f"firsts AS (SELECT e._key, e._barrier, e._from, "
        f"arg_max({first}, {_rank('c')}) "
        "FILTER (c._key IS NOT NULL) AS _first FROM starts e LEFT JOIN changes c ON c._key = e._key AND NOT c._hard "
        "AND c._from <= e._from AND c._api > e._barrier GROUP BY ALL)",
        f"counting AS (SELECT {names}, _barrier FROM eras WHERE NOT _hard AND (_barrier IS NULL OR _api > _barrier) "
        "UNION ALL SELECT _key, _from, coalesce(_first._at, '-infinity'::TIMESTAMPTZ), coalesce(_first._api, _barrier), "
        f"coalesce(_first._deleted, true){unpacked}, _barrier FROM firsts)",
        # A change that comes into sight after a newer one (it arrived late) never becomes the answer.
        f"timeline AS (SELECT {names} FROM (SELECT *, max({_rank('r')}) OVER (PARTITION BY _key, _barrier ORDER BY _from, "
        f"{_rank('r')} ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS _newest FROM counting r) r "
        f"WHERE _newest = {_rank('r')})",
    ]
    expired = f" AND (f._expires IS NULL OR f._expires > s.{TIME})" if sight.expiries else ""
    never = "'infinity'::TIMESTAMPTZ"
    last = f"struct_pack(a := {never}, b := {never})" if sight.api_times_repeat else never
    # A null inside a struct compares as the largest value; so a row without a time loses its key, and matches nothing.
    spine = f"SELECT {ROW}, CASE WHEN {TIME} IS NOT NULL THEN {KEY} END AS {KEY}, {TIME} FROM spine"
    return (
        f"WITH {', '.join(ctes)} SELECT CASE WHEN NOT f._deleted{expired} THEN f._place ELSE {NOWHERE} END AS place, "
        f"CASE WHEN NOT f._deleted THEN epoch_us(f._at) ELSE 0 END AS at "
        f"FROM ({spine}) s ASOF LEFT JOIN timeline f ON s.{KEY} = f._key "
        f"AND struct_pack(a := s.{TIME}, b := {never}, c := true, d := {last}) "
        f">= struct_pack(a := f._from, b := f._at, c := NOT f._deleted, d := f._api) ORDER BY s.{ROW}"
    )


def _changes(sight: Sight, cut: Cut) -> str:
    """The changes of buried keys that any row may see, with `_from`: the instant from which a row sees them."""
    available = f"greatest({schema.EVENT_TIME}, {schema.API_TIME})" if cut.as_served else schema.EVENT_TIME
    columns = [
        f"{identifier(sight.group.record_identifier)} AS _key",
        f"{schema.EVENT_TIME} AS _at",
        f"{sight.arrival} AS _api",
        f"{available} AS _from",
        f"coalesce({schema.IS_DELETED}, false) AS _deleted",
        f"coalesce({schema.HARD_DELETED}, false) AS _hard",
        f"{PLACE_SQL} AS _place",
    ]
    if sight.expiries:
        columns.append(f"{schema.EXPIRES_AT} AS _expires")
    changes = f"SELECT {', '.join(columns)} FROM {sight.numbered_rows(*known(cut))}"
    return f"SELECT * FROM ({changes}) SEMI JOIN buried USING (_key)"


def _rank(relation: str) -> str:
    """The place of a change in the order of a record's changes, see `model.change`."""
    return f"struct_pack(a := {relation}._at, b := NOT {relation}._deleted, c := {relation}._api)"
