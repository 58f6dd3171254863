"""Relations over the files of one group: the SQL that reads them, and the views that users see.

Files are named one by one, from one manifest version; columns are matched by name and typed by the group's definition, so
that files of all schema versions read alike and absent columns are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from featurestore.model.feature_group import FeatureDefinition, FeatureGroup, FeatureType
from featurestore.offline import schema
from featurestore.query.engine import identifier, literal

_SQL_TYPE: Final = {FeatureType.INTEGRAL: "BIGINT", FeatureType.FRACTIONAL: "DOUBLE", FeatureType.STRING: "VARCHAR"}
_SYSTEM_TYPE: Final = {
    schema.WRITE_TIME: "TIMESTAMPTZ",
    schema.API_TIME: "TIMESTAMPTZ",
    schema.IS_DELETED: "BOOLEAN",
    schema.EVENT_TIME: "TIMESTAMPTZ",
    schema.EXPIRES_AT: "TIMESTAMPTZ",
    schema.HARD_DELETED: "BOOLEAN",
}
PUBLIC_SYSTEM_COLUMNS: Final = (schema.WRITE_TIME, schema.API_TIME, schema.IS_DELETED)


def sql_type(feature: FeatureDefinition) -> str:
    scalar = _SQL_TYPE[feature.type]
    return scalar if feature.collection is None else f"{scalar}[]"


def files_relation(group: FeatureGroup, paths: Sequence[str]) -> str:
    """A parenthesised relation over data files: all features and all system columns, typed, absent ones null."""
    types = {feature.name: sql_type(feature) for feature in group.features} | _SYSTEM_TYPE
    if not paths:
        columns = ", ".join(f"CAST(NULL AS {kind}) AS {identifier(name)}" for name, kind in types.items())
        return f"(SELECT {columns} WHERE false)"
    entries = ", ".join(
        f"{literal(name)}: {{name: {literal(name)}, type: {literal(kind)}, default_value: NULL}}" for name, kind in types.items()
    )
    files = ", ".join(literal(path) for path in paths)
    return f"read_parquet([{files}], schema = MAP {{{entries}}})"


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
