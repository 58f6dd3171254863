"""External tables: CSV files below a prefix of a bucket, as CREATE EXTERNAL TABLE describes them.

The SageMaker SDKs upload a dataframe so before they join features to it. Definitions are rows of the registry's database.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import msgspec
import sqlalchemy as sa

from featurestore.athena.translate import QueryInvalid, TableRef
from featurestore.decoding import decode_json
from featurestore.engine import identifier, literal
from featurestore.errors import StoreCorrupt
from featurestore.registry.sql import SqlRegistry, external_table

TABLES_MAX: Final = 100_000
"""The SDKs make one for each dataset and never drop it."""

_UPLOAD: Final = re.compile(r"dataframe_dataframe_base_\d+_[0-9a-f]{4}")
"""Name of the table that the SDKs make of a dataframe they have written by `DataFrame.to_csv`."""

TYPES: Final = {
    "string": "VARCHAR",
    "varchar": "VARCHAR",
    "int": "BIGINT",
    "integer": "BIGINT",
    "bigint": "BIGINT",
    "double": "DOUBLE",
    "boolean": "BOOLEAN",
    "timestamp": "TIMESTAMP",
    "date": "DATE",
}
"""Column types there can be, and the engine's. An int has 64 bits: the SDKs declare columns of int64 so."""


@dataclass(frozen=True, slots=True)
class ExternalColumn:
    name: str
    type: str


@dataclass(frozen=True, slots=True)
class ExternalTable:
    """
    Attributes:
        database, name: lower case.
        columns: names in lower case, types of TYPES; in the files' order.
        bucket, prefix: where the files are; every object below is one, unless its name begins with `_` or `.`.
        separator, quote, escape: one character each.
        header_lines: lines to skip at the beginning of each file.
    """

    database: str
    name: str
    columns: tuple[ExternalColumn, ...]
    bucket: str
    prefix: str
    separator: str = ","
    quote: str = '"'
    escape: str = "\\"
    header_lines: int = 0
    created_at_us: int = 0

    @property
    def location(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"

    @property
    def of_pandas(self) -> bool:
        """Whether the files are a dataframe that an SDK has uploaded.

        It declares backticks for quotes and backslashes for escapes, and pandas writes neither: it quotes by `"` and doubles
        that. Read as declared, a text with a comma would move all values behind it by one column.
        """
        return _UPLOAD.fullmatch(self.name) is not None and (self.separator, self.quote, self.escape) == (",", "`", "\\")

    def sql(self, paths: Sequence[str]) -> str:
        """The rows of the files, typed. A row with more or fewer values than columns is an error, and so is a value that is not
        of its column's type; nothing at all in a column that is no text is null.
        """
        if not paths:
            columns = ", ".join(f"CAST(NULL AS {TYPES[column.type]}) AS {identifier(column.name)}" for column in self.columns)
            return f"SELECT {columns} WHERE false"
        quote, escape = ('"', '"') if self.of_pandas else (self.quote, self.escape)
        names = ", ".join(f"{literal(column.name)}: 'VARCHAR'" for column in self.columns)
        options = (
            f"columns = {{{names}}}, auto_detect = false, header = false, skip = {self.header_lines}, strict_mode = true, "
            f"delim = {literal(self.separator)}, quote = {literal(quote)}, escape = {literal(escape)}, "
            "force_not_null = [" + ", ".join(literal(column.name) for column in self.columns) + "]"
        )
        files = ", ".join(map(literal, paths))
        cells = ", ".join(f"{_typed(column)} AS {identifier(column.name)}" for column in self.columns)
        return f"SELECT {cells} FROM read_csv([{files}], {options})"


def _typed(column: ExternalColumn) -> str:
    name, kind = identifier(column.name), TYPES[column.type]
    if kind == "VARCHAR":
        return name
    value = f"nullif({name}, '')"
    if kind == "TIMESTAMP":
        # Milliseconds since 1970 by the rules of the SerDe; pandas writes ISO-8601.
        number = f"regexp_full_match({value}, '-?\\d+')"
        return (
            f"CASE WHEN {number} THEN epoch_ms(CAST({value} AS BIGINT)) "
            f"ELSE CAST(CAST({value} AS TIMESTAMPTZ) AT TIME ZONE 'UTC' AS TIMESTAMP) END"
        )
    return f"CAST({value} AS {kind})"


class SqlTables:
    """The external tables in the database of a registry. All raise StoreUnavailable."""

    def __init__(self, registry: SqlRegistry) -> None:
        self._registry = registry

    def create(self, table: ExternalTable, *, if_not_exists: bool) -> None:
        """
        Raises:
            QueryInvalid: there is one of that name, or there are too many.
        """
        this = _this(table.database, table.name)
        with self._registry.transaction() as connection:
            if connection.execute(sa.select(external_table.c.name).where(this)).one_or_none() is not None:
                if if_not_exists:
                    return
                raise QueryInvalid("TABLE_ALREADY_EXISTS", f"Table {table.database}.{table.name} already exists")
            if connection.execute(sa.select(sa.func.count()).select_from(external_table)).scalar_one() >= TABLES_MAX:
                raise QueryInvalid("TOO_MANY_TABLES", f"there are {TABLES_MAX} external tables; drop some")
            try:
                self._insert(connection, table)
            except sa.exc.IntegrityError as error:  # another process was first
                if if_not_exists:
                    return
                raise QueryInvalid("TABLE_ALREADY_EXISTS", f"Table {table.database}.{table.name} already exists") from error

    @staticmethod
    def _insert(connection: sa.Connection, table: ExternalTable) -> None:
        values = {"database_name": table.database, "name": table.name, "document": msgspec.json.encode(table)}
        with connection.begin_nested():
            connection.execute(external_table.insert().values(**values))

    def drop(self, ref: TableRef) -> bool:
        """Forget a table; its files stay. Whether there was one."""
        with self._registry.transaction() as connection:
            return bool(connection.execute(external_table.delete().where(_this(ref.database, ref.name))).rowcount)

    def get(self, ref: TableRef) -> ExternalTable | None:
        with self._registry.reading() as connection:
            row = connection.execute(sa.select(external_table.c.document).where(_this(ref.database, ref.name))).one_or_none()
        return None if row is None else _decode(row.document)

    def names(self, database: str) -> list[str]:
        """The tables of a database, sorted."""
        statement = sa.select(external_table.c.name).where(external_table.c.database_name == database)
        with self._registry.reading() as connection:
            return sorted(connection.execute(statement).scalars())


def _this(database: str, name: str) -> sa.ColumnElement[bool]:
    return (external_table.c.database_name == database) & (external_table.c.name == name)


def _decode(document: bytes) -> ExternalTable:
    try:
        return decode_json(document, ExternalTable)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt("registry", f"external table: {error}") from error
