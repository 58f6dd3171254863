"""What kind of statement a text is, and the ones that are no SELECT taken apart."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from sqlglot import exp
from sqlglot.dialects.hive import Hive
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.tokenizer_core import TokenType

from featurestore.athena.dialect import SyntaxFault, require_bounded
from featurestore.athena.tables import TYPES, ExternalColumn, ExternalTable
from featurestore.athena.translate import CATALOG, QueryInvalid, TableRef
from featurestore.errors import ValidationFailed
from featurestore.model import limits

STATEMENT_BYTES_MAX: Final = 262_144
"""Of a statement (https://docs.aws.amazon.com/athena/latest/ug/service-limits.html)."""

OPEN_CSV: Final = "org.apache.hadoop.hive.serde2.opencsvserde"


class StatementType(StrEnum):
    DML = "DML"
    DDL = "DDL"
    UTILITY = "UTILITY"


_WORDS: Final = re.compile(r"(?:\s|--[^\n]*+|/\*(?:[^*]|\*(?!/))*+\*/|\()*+([A-Za-z]++)(?:\s++([A-Za-z]++))?")
"""Nothing that has matched is tried another way: a statement of comments would take for ever."""
_TYPES: Final = {
    **dict.fromkeys(("CREATE", "DROP", "ALTER", "MSCK"), StatementType.DDL),
    **dict.fromkeys(("SHOW", "DESCRIBE", "DESC", "EXPLAIN"), StatementType.UTILITY),
}


def words_of(text: str) -> tuple[str, str]:
    """The first two words in capitals; empty where there are none."""
    found = _WORDS.match(text)
    return ("", "") if found is None else (found[1].upper(), (found[2] or "").upper())


def type_of(text: str) -> StatementType:
    return _TYPES.get(words_of(text)[0], StatementType.DML)


@dataclass(frozen=True, slots=True)
class CreateTable:
    table: ExternalTable
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class DropTable:
    table: TableRef
    if_exists: bool


@dataclass(frozen=True, slots=True)
class CreateDatabase:
    name: str
    if_not_exists: bool


@dataclass(frozen=True, slots=True)
class ShowDatabases:
    pattern: str | None


@dataclass(frozen=True, slots=True)
class ShowTables:
    database: str
    pattern: str | None


@dataclass(frozen=True, slots=True)
class DescribeTable:
    """`SHOW COLUMNS` too, which gives names alone."""

    table: TableRef
    names_only: bool


@dataclass(frozen=True, slots=True)
class RepairTable:
    """There is nothing to repair: a table shows every file that its group has."""

    table: TableRef


Command = CreateTable | DropTable | CreateDatabase | ShowDatabases | ShowTables | DescribeTable | RepairTable

_NAME: Final = r'(?:`[^`]+`|"[^"]+"|\w+)'
_TABLE: Final = rf"(?P<table>{_NAME}(?:\s*\.\s*{_NAME}){{0,2}})"
_IN: Final = rf"(?:\s+(?:IN|FROM)\s+(?P<database>{_NAME}))?"
_LIKE: Final = r"(?:\s+(?:LIKE\s+)?'(?P<pattern>[^']*)')?"
_END: Final = r"\s*;?\s*"


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(text + _END, re.IGNORECASE | re.DOTALL)


_SHOW_DATABASES: Final = _pattern(rf"\s*SHOW\s+(?:DATABASES|SCHEMAS){_LIKE}")
_SHOW_TABLES: Final = _pattern(rf"\s*SHOW\s+TABLES{_IN}{_LIKE}")
_SHOW_COLUMNS: Final = _pattern(rf"\s*SHOW\s+COLUMNS\s+(?:IN|FROM)\s+{_TABLE}{_IN}")
_DESCRIBE: Final = _pattern(rf"\s*DESC(?:RIBE)?\s+(?:EXTENDED\s+|FORMATTED\s+)?{_TABLE}")
_REPAIR: Final = _pattern(rf"\s*MSCK\s+REPAIR\s+TABLE\s+{_TABLE}")
_CREATE_DATABASE: Final = _pattern(rf"\s*CREATE\s+(?:DATABASE|SCHEMA)\s+(?P<if>IF\s+NOT\s+EXISTS\s+)?(?P<database>{_NAME})")


def command(text: str, database: str, now_us: int) -> Command:
    """A statement that is no SELECT.

    Args:
        database: where unqualified tables are.

    Raises:
        QueryInvalid: it is none that is supported.
    """
    if found := _SHOW_DATABASES.fullmatch(text):
        return ShowDatabases(found["pattern"])
    if found := _SHOW_TABLES.fullmatch(text):
        return ShowTables(_plain(found["database"]) if found["database"] else database, found["pattern"])
    if found := _SHOW_COLUMNS.fullmatch(text):
        return DescribeTable(_ref(found["table"], found["database"] or database), names_only=True)
    if found := _DESCRIBE.fullmatch(text):
        return DescribeTable(_ref(found["table"], database), names_only=False)
    if found := _REPAIR.fullmatch(text):
        return RepairTable(_ref(found["table"], database))
    if found := _CREATE_DATABASE.fullmatch(text):
        return CreateDatabase(_plain(found["database"]), bool(found["if"]))
    words = words_of(text)
    if words not in (("CREATE", "EXTERNAL"), ("DROP", "TABLE")):
        raise QueryInvalid(
            "NOT_SUPPORTED",
            f"{' '.join(words).strip()} is not supported; expected SELECT, CREATE EXTERNAL TABLE, DROP TABLE, SHOW TABLES, "
            "SHOW COLUMNS, SHOW DATABASES, DESCRIBE or MSCK REPAIR TABLE",
        )
    try:
        tokens = Hive().tokenize(text)
        require_bounded(tokens)
        if any(token.token_type is TokenType.LT for token in tokens):
            raise QueryInvalid("NOT_SUPPORTED", f"columns of arrays, maps and structs; expected a type of {', '.join(TYPES)}")
        trees = [tree for tree in Hive().parser().parse(tokens, text) if tree is not None]
    except SyntaxFault as error:
        raise QueryInvalid("SYNTAX_ERROR", str(error)) from error
    except (SqlglotError, RecursionError) as error:
        detail = error.errors[0] if isinstance(error, ParseError) and error.errors else {}
        where = f"line {detail.get('line')}:{detail.get('col')}: " if detail else ""
        raise QueryInvalid("SYNTAX_ERROR", f"{where}{detail.get('description', 'not a statement')}") from error
    if len(trees) != 1:
        raise QueryInvalid("SYNTAX_ERROR", f"expected one statement, got {len(trees)}")
    tree = trees[0]
    if isinstance(tree, exp.Drop) and len(tree.args["tables"]) == 1:
        return DropTable(_table_ref(tree.args["tables"][0], database), bool(tree.args.get("exists")))
    if isinstance(tree, exp.Create) and isinstance(tree.this, exp.Schema):
        return CreateTable(_external(tree, tree.this, database, now_us), bool(tree.args.get("exists")))
    raise QueryInvalid("SYNTAX_ERROR", "not a statement")


def _plain(name: str) -> str:
    return (name[1:-1] if name[0] in '`"' else name).lower()


def _ref(path: str, database: str) -> TableRef:
    parts = [_plain(part) for part in re.findall(_NAME, path)]
    if len(parts) == 3 and parts.pop(0) != CATALOG:
        raise QueryInvalid("CATALOG_NOT_FOUND", f"{path}: the one catalog is AwsDataCatalog")
    return TableRef(parts[0] if len(parts) == 2 else _plain(database), parts[-1])


def _table_ref(table: exp.Table, database: str) -> TableRef:
    if table.catalog and table.catalog.lower() != CATALOG:
        raise QueryInvalid("CATALOG_NOT_FOUND", f"Catalog {table.catalog!r} does not exist; the one there is is AwsDataCatalog")
    return TableRef((table.db or database).lower(), table.name.lower())


def _external(tree: exp.Create, columns: exp.Schema, database: str, now_us: int) -> ExternalTable:
    ref = _table_ref(columns.this, database)
    if not re.fullmatch(r"[a-z0-9_]{1,255}", ref.name):
        raise QueryInvalid("INVALID_NAME", f"a table's name has letters, digits and '_', not {ref.name!r}")
    serde: dict[str, str] | None = None
    location, header_lines = None, 0
    for item in tree.args["properties"].expressions if tree.args.get("properties") else ():
        if isinstance(item, exp.RowFormatSerdeProperty):
            if item.name.lower() != OPEN_CSV:
                raise QueryInvalid("NOT_SUPPORTED", f"SERDE {item.name!r}: expected 'org.apache.hadoop.hive.serde2.OpenCSVSerde'")
            given = item.args.get("serde_properties")
            serde = {entry.name: entry.args["value"].name for entry in given.expressions} if given else {}
        elif isinstance(item, exp.LocationProperty):
            location = item.name
        elif isinstance(item, exp.FileFormatProperty):
            if item.name.upper() != "TEXTFILE":
                raise QueryInvalid("NOT_SUPPORTED", f"STORED AS {item.name}: expected TEXTFILE")
        elif type(item) is exp.Property:
            if item.name == "skip.header.line.count":
                value = item.args["value"].name
                if not re.fullmatch(r"\d{1,6}", value):
                    raise QueryInvalid("SYNTAX_ERROR", f"skip.header.line.count: expected a number, got {value!r}")
                header_lines = int(value)
            elif item.name not in _HARMLESS:
                raise QueryInvalid("NOT_SUPPORTED", f"TBLPROPERTIES {item.name!r}: expected skip.header.line.count")
        elif not isinstance(item, exp.ExternalProperty | exp.SchemaCommentProperty):
            raise QueryInvalid("NOT_SUPPORTED", f"{item.sql(dialect=Hive)!r} in CREATE EXTERNAL TABLE")
    if serde is None:
        raise QueryInvalid("NOT_SUPPORTED", "expected ROW FORMAT SERDE 'org.apache.hadoop.hive.serde2.OpenCSVSerde'")
    unknown = serde.keys() - _CHARACTERS.keys()
    if unknown:
        raise QueryInvalid("NOT_SUPPORTED", f"SERDEPROPERTIES {sorted(unknown)}: expected {', '.join(_CHARACTERS)}")
    characters = {_CHARACTERS[name]: value for name, value in serde.items()}
    for name, value in serde.items():
        if len(value) != 1 or value in "\r\n":
            raise QueryInvalid("SYNTAX_ERROR", f"{name}: expected one character, got {value!r}")
    bucket, prefix = _location(location)
    return ExternalTable(
        ref.database,
        ref.name,
        _columns(columns),
        bucket,
        prefix,
        header_lines=header_lines,
        created_at_us=now_us,
        **characters,
    )


_CHARACTERS: Final = {"separatorChar": "separator", "quoteChar": "quote", "escapeChar": "escape"}
_HARMLESS: Final = frozenset({"has_encrypted_data", "classification", "EXTERNAL"})


def _columns(schema: exp.Schema) -> tuple[ExternalColumn, ...]:
    columns: dict[str, ExternalColumn] = {}
    for item in schema.expressions:
        if not isinstance(item, exp.ColumnDef) or item.args.get("kind") is None:
            raise QueryInvalid("SYNTAX_ERROR", f"{item.sql(dialect=Hive)!r}: expected a column and its type")
        name, kind = item.name.lower(), item.args["kind"].sql(dialect=Hive).lower()
        kind = re.sub(r"^varchar\(\d+\)$", "varchar", kind)
        if kind not in TYPES:
            raise QueryInvalid("NOT_SUPPORTED", f"column {name!r}: expected a type of {', '.join(TYPES)}, got {kind!r}")
        if name in columns:
            raise QueryInvalid("DUPLICATE_COLUMN_NAME", f"column {name!r} is there twice")
        columns[name] = ExternalColumn(name, kind)
    if not columns:
        raise QueryInvalid("SYNTAX_ERROR", "a table needs columns")
    return tuple(columns.values())


def _location(location: str | None) -> tuple[str, str]:
    try:
        bucket, prefix = split_location(location or "", "LOCATION")
    except ValidationFailed as error:
        raise QueryInvalid("INVALID_LOCATION", str(error)) from error
    return bucket, f"{prefix.rstrip('/')}/" if prefix.rstrip("/") else ""


def split_location(location: str, path: str) -> tuple[str, str]:
    """Bucket and key or prefix of an `s3://` location.

    Raises:
        ValidationFailed: it is none.
    """
    found = limits.S3_URI.fullmatch(location)
    if found is None or found[1] != "s3" or limits.S3_BUCKET.fullmatch(found[2]) is None or "\n" in location:
        raise ValidationFailed.one(path, "a location s3://bucket/prefix", location)
    return found[2], found[3]
