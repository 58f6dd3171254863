"""Tables of feature groups and features in the registry's database.

`group_search`, `group_tag` and `feature_parameter` repeat, for Search, what the documents of `feature_group` and the
parameters of `feature` say; they are written in the same transactions.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa

from featurestore.model.search import GROUP_PROPERTIES, Kind

TEXT: Final = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
"""Texts that compare by code point, on every database."""

metadata: Final = sa.MetaData()
groups: Final = sa.Table(
    "feature_group",
    metadata,
    sa.Column("group_id", sa.BigInteger().with_variant(sa.Integer, "sqlite"), primary_key=True, autoincrement=True),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("folded", sa.Text, nullable=False),
    sa.Column("live", sa.SmallInteger),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("offline_status", sa.Text),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Column("document", sa.LargeBinary, nullable=False),
    sa.UniqueConstraint("folded", "live"),
    sqlite_autoincrement=True,
)
features: Final = sa.Table(
    "feature",
    metadata,
    sa.Column("group_id", sa.BigInteger, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at_us", sa.BigInteger, nullable=False),
    sa.Column("modified_at_us", sa.BigInteger, nullable=False),
    sa.Column("description", sa.Text),
    sa.Column("parameters", sa.LargeBinary, nullable=False),
    sa.Column("position", sa.BigInteger),
    sa.Column("type", TEXT),
    sa.Column("collection", TEXT),
    sa.Column("dimension", sa.BigInteger),
)
"""`position` counts a group's features from 0. Numbers are wide enough for whatever a filter or a
token compares them with."""

_COLUMN: Final[dict[Kind, sa.types.TypeEngine[Any]]] = {
    Kind.TEXT: TEXT,
    Kind.NUMBER: sa.BigInteger(),
    Kind.TIME: sa.BigInteger(),
    Kind.FLAG: sa.SmallInteger(),
}

group_search: Final = sa.Table(
    "group_search",
    metadata,
    sa.Column("group_id", sa.BigInteger, primary_key=True, autoincrement=False),
    *(
        sa.Column(name.replace(".", "_"), _COLUMN[found.kind], key=name)
        for name, found in GROUP_PROPERTIES.items()
        if found.kind in _COLUMN
    ),
)
sa.Index("group_search_table", group_search.c["OfflineStoreConfig.DataCatalogConfig.TableName"])
sa.Index("feature_name", features.c.name)
sa.Index("feature_modified", features.c.modified_at_us, features.c.group_id, features.c.position)
"""One row per live group, one column per property (`model.search.GROUP_PROPERTIES`), under its name."""
group_tags: Final = sa.Table(
    "group_tag",
    metadata,
    sa.Column("group_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("key", TEXT, primary_key=True),
    sa.Column("value", TEXT, nullable=False),
)
feature_parameters: Final = sa.Table(
    "feature_parameter",
    metadata,
    sa.Column("group_id", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("feature", sa.Text, primary_key=True),
    sa.Column("key", TEXT, primary_key=True),
    sa.Column("value", TEXT, nullable=False),
)
