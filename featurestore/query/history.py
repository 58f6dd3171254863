"""The views that users see over the files of one group, named one by one from one manifest version."""

from __future__ import annotations

from typing import Final

from featurestore.engine import identifier, instant
from featurestore.offline import schema
from featurestore.query.sight import Sight

PUBLIC_SYSTEM_COLUMNS: Final = (schema.WRITE_TIME, schema.API_TIME, schema.IS_DELETED)


def history_sql(sight: Sight) -> str:
    """Every row of the group's history, markers of deletes included: the features and Amazon's three columns."""
    columns = [identifier(name) for name in (*sight.group.feature_names, *PUBLIC_SYSTEM_COLUMNS)]
    return f"SELECT {', '.join(columns)} FROM {sight.rows()}"


def latest_sql(sight: Sight) -> str:
    """The record of each identifier that the online store would answer now, or would have answered at `written_by_us` from
    what was written by then: the newest, unless it is a delete marker or has expired.
    """
    columns = [identifier(name) for name in (*sight.group.feature_names, *PUBLIC_SYSTEM_COLUMNS)]
    moment = "now()" if sight.written_by_us is None else instant(sight.written_by_us)
    return (
        f"SELECT {', '.join(columns)} FROM ({newest_sql(sight)}) WHERE NOT coalesce({schema.IS_DELETED}, false) "
        f"AND ({schema.EXPIRES_AT} IS NULL OR {schema.EXPIRES_AT} > {moment})"
    )


def newest_sql(sight: Sight, *conditions: str) -> str:
    """The newest row of each identifier, in the order of `model.change`, of what came after its last hard delete; with all
    columns of a data file. Identifiers of which nothing came since are missing.

    Args:
        conditions: SQL that rows must meet to count at all; of identifiers only.
    """
    key, event, arrival = identifier(sight.group.record_identifier), schema.EVENT_TIME, sight.arrival
    counting = sight.rows(*conditions)
    if sight.hard_deletes:
        counting = (
            f"(SELECT *, max(CASE WHEN {schema.HARD_DELETED} THEN {arrival} END) OVER (PARTITION BY {key}) AS _grave "
            f"FROM {counting}) WHERE _grave IS NULL OR {arrival} > _grave"
        )
    return (
        f"SELECT * FROM (SELECT *, row_number() OVER (PARTITION BY {key} "
        f"ORDER BY {event} DESC, coalesce({schema.IS_DELETED}, false), {arrival} DESC) AS _rank FROM {counting}) WHERE _rank = 1"
    )
