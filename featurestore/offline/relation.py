"""The SQL that reads data files of one group.

Files are named one by one; columns are matched by name and typed by the group's definition, so that files of all schema
versions read alike and absent columns are null.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from featurestore.engine import identifier, literal
from featurestore.model.feature_group import FeatureDefinition, FeatureGroup, FeatureType
from featurestore.offline import schema

_SQL_TYPE: Final = {FeatureType.INTEGRAL: "BIGINT", FeatureType.FRACTIONAL: "DOUBLE", FeatureType.STRING: "VARCHAR"}
_SYSTEM_TYPE: Final = {
    schema.WRITE_TIME: "TIMESTAMPTZ",
    schema.API_TIME: "TIMESTAMPTZ",
    schema.IS_DELETED: "BOOLEAN",
    schema.EVENT_TIME: "TIMESTAMPTZ",
    schema.EXPIRES_AT: "TIMESTAMPTZ",
    schema.HARD_DELETED: "BOOLEAN",
}


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
    return f"read_parquet({_listed(paths)}, schema = MAP {{{entries}}})"


def numbered_relation(paths: Sequence[str]) -> str:
    """A relation over one data file or more: what every file has, which is the record identifier and the system columns.

    With `file_index`, the place of a row's file among the paths, and `file_row_number`. Other than with given types, the engine
    knows how many rows the files have, and builds the smaller side of a join.
    """
    return f"read_parquet({_listed(paths)}, file_row_number = true)"


def _listed(paths: Sequence[str]) -> str:
    return f"[{', '.join(literal(path) for path in paths)}]"
