"""What SQL clients find where: databases, and the tables in them with their columns as Athena has them.

A feature group's offline store is the table that its DataCatalogConfig names. Columns are in lower case, as a Glue catalog
keeps them: the features, `write_time`, `api_invocation_time` and `is_deleted`, and for the hourly layout its partitions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from featurestore.athena.tables import ExternalTable, SqlTables
from featurestore.athena.translate import QueryInvalid, TableRef
from featurestore.engine import identifier
from featurestore.model.feature_group import FeatureGroup, FeatureType, GroupStatus, TableFormat
from featurestore.offline import schema
from featurestore.query.sight import Sight

DATABASE: Final = "sagemaker_featurestore"
"""The database of feature groups whose creator named no other."""

_FEATURE_TYPES: Final = {FeatureType.INTEGRAL: "bigint", FeatureType.FRACTIONAL: "double", FeatureType.STRING: "string"}
_PARTITIONS: Final = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H"}


@dataclass(frozen=True, slots=True)
class Column:
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class GroupTable:
    """The table over a feature group's offline store."""

    group: FeatureGroup

    @property
    def columns(self) -> tuple[Column, ...]:
        features = [
            Column(
                feature.name.lower(),
                _FEATURE_TYPES[feature.type] if feature.collection is None else f"array<{_FEATURE_TYPES[feature.type]}>",
            )
            for feature in self.group.features
        ]
        times = [Column(name, "timestamp") for name in (schema.WRITE_TIME, schema.API_TIME)]
        return (*features, *times, Column(schema.IS_DELETED, "boolean"))

    @property
    def partitions(self) -> tuple[Column, ...]:
        """Of the hourly layout, from the event time in UTC; an Iceberg table hides its own."""
        assert self.group.offline is not None, "it has a table"
        if self.group.offline.table_format is TableFormat.ICEBERG:
            return ()
        return tuple(Column(name, "string") for name in _PARTITIONS)

    def sql(self, sight: Sight) -> str:
        """The rows, markers of deletes included. Times are in UTC and keep their microseconds, by which the SDKs' statements
        tell the later of two writes.
        """
        cells = [f"{identifier(feature.name)} AS {identifier(feature.name.lower())}" for feature in self.group.features]
        cells += [f"timezone('UTC', {name}) AS {name}" for name in (schema.WRITE_TIME, schema.API_TIME)]
        cells.append(schema.IS_DELETED)
        times = f"timezone('UTC', {schema.EVENT_TIME})"
        taken = {feature.name.lower() for feature in self.group.features}
        cells += [
            f"strftime({times}, '{_PARTITIONS[column.name]}') AS {identifier(column.name)}"
            for column in self.partitions
            if column.name not in taken
        ]
        return f"SELECT {', '.join(cells)} FROM {sight.rows()}"


class Groups(Protocol):
    """Where the catalog learns of feature groups."""

    def version(self) -> int:
        """Changes whenever a group does."""


class Catalog:
    """The tables there are. Safe for several threads; sees what other processes change at once."""

    def __init__(self, groups: Groups, list_groups: Callable[[], Sequence[FeatureGroup]], tables: SqlTables) -> None:
        self._groups = groups
        self._list_groups = list_groups
        self._tables = tables
        self._lock = threading.Lock()
        self._known: tuple[int, dict[TableRef, list[FeatureGroup]]] = (-1, {})

    def databases(self) -> list[str]:
        """Names, sorted."""
        return sorted({DATABASE, *(ref.database for ref in self._group_tables())})

    def require_database(self, database: str) -> str:
        """The name in lower case.

        Raises:
            QueryInvalid: there is none of that name.
        """
        if database.lower() not in self.databases():
            known = ", ".join(self.databases())
            raise QueryInvalid("SCHEMA_NOT_FOUND", f"Database {database!r} does not exist; expected one of {known}")
        return database.lower()

    def names(self, database: str) -> list[str]:
        """The tables of a database, sorted.

        Raises:
            QueryInvalid: there is no such database.
        """
        database = self.require_database(database)
        groups = {ref.name for ref in self._group_tables() if ref.database == database}
        return sorted(groups.union(self._tables.names(database)))

    def table(self, ref: TableRef) -> GroupTable | ExternalTable:
        """
        Raises:
            QueryInvalid: there is no such table, or several feature groups name it.
        """
        groups = self._group_tables().get(ref, [])
        if len(groups) > 1:
            names = ", ".join(repr(group.name) for group in groups)
            raise QueryInvalid("AMBIGUOUS_NAME", f"table '{ref.database}.{ref.name}' is that of several feature groups: {names}")
        if groups:
            return GroupTable(groups[0])
        external = self._tables.get(ref)
        if external is None:
            self.require_database(ref.database)
            raise QueryInvalid("TABLE_NOT_FOUND", f"Table 'awsdatacatalog.{ref.database}.{ref.name}' does not exist")
        return external

    def _group_tables(self) -> dict[TableRef, list[FeatureGroup]]:
        with self._lock:
            version = self._groups.version()
            if version != self._known[0]:
                found: dict[TableRef, list[FeatureGroup]] = {}
                for group in self._list_groups():
                    offline = group.offline
                    # A group that could not be created is one that names another's table.
                    failed = group.status is GroupStatus.CREATE_FAILED
                    if offline is not None and offline.data_catalog is not None and not failed:
                        catalog = offline.data_catalog
                        found.setdefault(TableRef(catalog.database.lower(), catalog.table_name.lower()), []).append(group)
                self._known = (version, found)
            return self._known[1]
