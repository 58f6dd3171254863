"""One SELECT of Athena as one of DuckDB: its tables found and renamed, its columns named as Athena names them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from sqlglot import exp
from sqlglot.tokenizer_core import TokenType

from featurestore.athena import dialect
from featurestore.athena.dialect import AthenaSelect, SyntaxFault
from featurestore.athena.functions import Untranslatable

CATALOG: Final = "awsdatacatalog"
"""The one catalog, in lower case; clients write AwsDataCatalog."""

SCHEMA: Final = "athena"
"""Where the engine finds the tables of a translated statement, named t0, t1, ..."""

_JOINED_WORDS: Final = "is_deletedAND"
"""SDK 3.27 forgets the space between a filter on deletes and one on event times. As one word it is an error anywhere."""


class QueryInvalid(Exception):
    """A statement that can't run; the message is for whoever wrote it.

    Attributes:
        kind: Athena's name of the error, such as SYNTAX_ERROR.
    """

    def __init__(self, kind: str, detail: str) -> None:
        self.kind = kind
        super().__init__(f"{kind}: {detail}")


@dataclass(frozen=True, slots=True)
class TableRef:
    """A table that a statement reads; names are lower case."""

    database: str
    name: str


@dataclass(frozen=True, slots=True)
class Translated:
    """A SELECT for the engine.

    Attributes:
        sql: reads SCHEMA.t0, SCHEMA.t1, ...
        tables: what those are, in that order.
        explain: whether it only explains itself.
    """

    sql: str
    tables: tuple[TableRef, ...]


def translate(text: str, database: str, *, catalog: str = CATALOG, parameters: Sequence[str] = ()) -> Translated:
    """Translate one SELECT, or EXPLAIN of one; a `;` may follow.

    Args:
        database: where unqualified tables are looked for.
        catalog: the catalog of the execution's context.
        parameters: literals for the `?` of the statement, in order.

    Raises:
        QueryInvalid: it is not one SELECT, or has no counterpart in DuckDB.
    """
    if catalog.lower() != CATALOG:
        raise QueryInvalid("CATALOG_NOT_FOUND", f"Catalog {catalog!r} does not exist; the one there is is AwsDataCatalog")
    explain = _EXPLAIN.match(text)
    tree = _parsed(text[explain.end() :] if explain else text)
    try:
        _fill(tree, parameters)
        tables = _rename_tables(tree, database.lower())
        _name_columns(tree)
        sql = dialect.write(tree)
    except Untranslatable as error:
        raise QueryInvalid("NOT_SUPPORTED", str(error)) from error
    except RecursionError as error:
        raise QueryInvalid("SYNTAX_ERROR", "the statement is nested too deeply") from error
    return Translated(f"EXPLAIN {sql}" if explain else sql, tables)


_EXPLAIN: Final = re.compile(r"\s*EXPLAIN\s+(?!\()(?!ANALYZE\b)", re.IGNORECASE)


def _parsed(text: str) -> exp.Query:
    if _DATASET.match(text):
        text = _with_quoted_names(text)
    try:
        trees = dialect.parse(text)
    except SyntaxFault as fault:
        try:
            trees = dialect.parse(_apart(text))
        except SyntaxFault:
            raise QueryInvalid("SYNTAX_ERROR", str(fault)) from fault
    found = [tree for tree in trees if tree is not None]
    if len(found) != 1:
        raise QueryInvalid("SYNTAX_ERROR", f"expected one statement, got {len(found)}")
    tree = found[0]
    if isinstance(tree, exp.DDL | exp.DML | exp.Command) and not isinstance(tree, exp.Query):
        raise QueryInvalid("NOT_SUPPORTED", f"expected a SELECT, got {type(tree).__name__.upper()}")
    if not isinstance(tree, exp.Query):
        raise QueryInvalid("SYNTAX_ERROR", f"line 1:1: expected a statement, got {text.split(maxsplit=1)[0][:80]!r}")
    return tree


_DATASET: Final = re.compile(r"\s*WITH fg_base AS \(")
"""How a statement of the SDKs' dataset builder begins."""


def _with_quoted_names(text: str) -> str:
    """A dataset's statement with quotes around features that it names with a hyphen and without them: it names each of them
    quoted as well, and has no subtractions.
    """
    try:
        tokens = dialect.tokens(text)
    except SyntaxFault:
        return text  # whoever parses it says so
    bare = {token.start for token in tokens if token.token_type not in (TokenType.IDENTIFIER, TokenType.STRING)}
    quoted = {token.text for token in tokens if token.token_type is TokenType.IDENTIFIER and "-" in token.text}
    pieces, written = [], 0
    for found in _HYPHENATED.finditer(text):
        if found[0] in quoted and found.start() in bare:
            pieces += [text[written : found.start()], f'"{found[0]}"']
            written = found.end()
    return "".join([*pieces, text[written:]])


_HYPHENATED: Final = re.compile(r"[A-Za-z0-9_]++(?:-++[A-Za-z0-9_]++)++")


def _apart(text: str) -> str:
    """The statement with _JOINED_WORDS as two words, wherever it is a word of its own."""
    for token in reversed(dialect.tokens(text)):
        if token.text == _JOINED_WORDS and text[token.start : token.end + 1] == _JOINED_WORDS:
            text = f"{text[: token.start]}is_deleted AND{text[token.end + 1 :]}"
    return text


def _fill(tree: exp.Expr, parameters: Sequence[str]) -> None:
    places = list(tree.find_all(exp.Placeholder))
    if len(places) != len(parameters):
        raise QueryInvalid("SYNTAX_ERROR", f"the statement has {len(places)} parameters, {len(parameters)} values were given")
    for place, text in zip(places, parameters, strict=True):
        place.replace(_literal(text))


def _literal(text: str) -> exp.Expr:
    try:
        trees = dialect.parse(f"SELECT {text}")
    except SyntaxFault:
        trees = []
    if len(trees) == 1 and isinstance(trees[0], exp.Select) and len(trees[0].expressions) == 1:
        value: exp.Expr = trees[0].expressions[0]
        inner = value.this if isinstance(value, exp.Neg | exp.Cast) else value
        alone = not any(found for name, found in trees[0].args.items() if name != "expressions")
        if alone and isinstance(inner, exp.Literal | exp.Boolean | exp.Null):
            return value
    expected = "a literal, as in 'a text', 7 or DATE '2026-01-31'"
    raise QueryInvalid("SYNTAX_ERROR", f"an execution parameter has to be {expected}, not {text!r}")


def _rename_tables(tree: exp.Expr, database: str) -> tuple[TableRef, ...]:
    """Give each table the name that it has in the engine, keeping the one that the statement calls it by."""
    places: dict[TableRef, int] = {}
    for table in list(tree.find_all(exp.Table)):
        if not isinstance(table.this, exp.Identifier):
            raise Untranslatable(f"{table.sql(dialect=AthenaSelect)!r} in FROM: only tables and UNNEST can be there")
        if not table.db and table.name.lower() in _visible(table):
            continue
        if table.catalog and table.catalog.lower() != CATALOG:
            raise QueryInvalid(
                "CATALOG_NOT_FOUND", f"Catalog {table.catalog!r} does not exist; the one there is is AwsDataCatalog"
            )
        ref = TableRef(table.db.lower() or database, table.name.lower())
        place = places.setdefault(ref, len(places))
        if not table.alias:
            alias = table.args.get("alias") or exp.TableAlias()
            alias.set("this", exp.to_identifier(table.name, quoted=True))
            table.set("alias", alias)
        table.set("this", exp.to_identifier(f"t{place}"))
        table.set("db", exp.to_identifier(SCHEMA))
        table.set("catalog", None)
    databases = {ref.database for ref in places}
    for column in tree.find_all(exp.Column):
        # "database"."table"."column": the table answers to its own name. Other paths lead into rows.
        if column.db.lower() in databases and (not column.catalog or column.catalog.lower() == CATALOG):
            column.set("db", None)
            column.set("catalog", None)
    return tuple(places)


def _visible(table: exp.Table) -> set[str]:
    """The names of the common table expressions that a table could mean, in lower case."""
    names: set[str] = set()
    child: exp.Expr = table
    while (parent := child.parent) is not None:
        if isinstance(parent, exp.With):
            expressions = parent.expressions
            before = expressions if parent.args.get("recursive") else expressions[: _index(expressions, child)]
            names.update(expression.alias.lower() for expression in before)
        elif not isinstance(child, exp.With):
            names.update(expression.alias.lower() for expression in _expressions(parent))
        child = parent
    return names


def _index(expressions: Sequence[exp.Expr], child: exp.Expr) -> int:
    return next(place for place, expression in enumerate(expressions) if expression is child)


def _expressions(node: exp.Expr) -> Iterator[exp.Expr]:
    found = node.args.get("with_")
    yield from found.expressions if isinstance(found, exp.With) else ()


def _name_columns(tree: exp.Query) -> None:
    """Name what the statement leaves unnamed as Athena does: a column as the statement spells it, others `_col<place>`."""
    for select in tree.find_all(exp.Select):
        for place, item in enumerate(select.expressions):
            if not isinstance(item, exp.Alias | exp.Aliases | exp.Column | exp.Star | exp.Dot):
                item.replace(exp.alias_(item.copy(), f"_col{place}", quoted=True))
    for select in _outermost(tree):
        for item in select.expressions:
            if isinstance(item, exp.Column) and not isinstance(item.this, exp.Star):
                item.replace(exp.alias_(item.copy(), item.name, quoted=True))


def _outermost(query: exp.Expr) -> Iterator[exp.Select]:
    if isinstance(query, exp.Select):
        yield query
    elif isinstance(query, exp.SetOperation | exp.Subquery):
        yield from _outermost(query.this)
