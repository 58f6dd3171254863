"""The views that users see over the files of one group, named one by one from one manifest version."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from featurestore.engine import identifier
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import schema
from featurestore.offline.relation import files_relation

PUBLIC_SYSTEM_COLUMNS: Final = (schema.WRITE_TIME, schema.API_TIME, schema.IS_DELETED)


def history_sql(group: FeatureGroup, paths: Sequence[str]) -> str:
    """Every row of the group's history, markers of deletes included: the features and Amazon's three columns."""
    columns = [identifier(name) for name in (*group.feature_names, *PUBLIC_SYSTEM_COLUMNS)]
    return f"SELECT {', '.join(columns)} FROM {files_relation(group, paths)}"


def latest_sql(group: FeatureGroup, paths: Sequence[str]) -> str:
    """The record of each identifier that the online store would answer now: the newest, in the order of `model.change`, of
    what came after the last hard delete, unless it is a delete marker or has expired.
    """
    key, event, api = identifier(group.record_identifier), schema.EVENT_TIME, schema.API_TIME
    columns = [identifier(name) for name in (*group.feature_names, *PUBLIC_SYSTEM_COLUMNS)]
    return (
        f"SELECT {', '.join(columns)} FROM ("
        f"SELECT *, row_number() OVER (PARTITION BY {key} "
        f"ORDER BY {event} DESC, coalesce({schema.IS_DELETED}, false), {api} DESC) AS _rank FROM ("
        f"SELECT *, max(CASE WHEN {schema.HARD_DELETED} THEN {api} END) OVER (PARTITION BY {key}) AS _grave "
        f"FROM {files_relation(group, paths)}) WHERE _grave IS NULL OR {api} > _grave) "
        f"WHERE _rank = 1 AND NOT coalesce({schema.IS_DELETED}, false) "
        f"AND ({schema.EXPIRES_AT} IS NULL OR {schema.EXPIRES_AT} > now())"
    )
