"""Athena's SELECT read, and written for DuckDB: sqlglot's grammars of Trino and DuckDB, with our own table of functions between.

sqlglot would also translate functions, but by name and without knowing types. Here every call stays a call until
`functions` says what it is in DuckDB, and whatever else has a meaning of its own is refused unless it is listed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Final

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB
from sqlglot.dialects.trino import Trino
from sqlglot.errors import ErrorLevel, ParseError, SqlglotError, TokenError
from sqlglot.generators.duckdb import DuckDBGenerator
from sqlglot.parsers.trino import TrinoParser
from sqlglot.tokenizer_core import Token, TokenType

from featurestore.athena import functions
from featurestore.athena.functions import Untranslatable


class AthenaSelect(Trino):
    """Reads; a call of a function becomes `exp.Anonymous`, whatever its name."""

    class Parser(TrinoParser):
        FUNCTIONS: ClassVar[dict[str, Any]] = {}
        FUNCTION_PARSERS: ClassVar[dict[str, Any]] = {
            name: TrinoParser.FUNCTION_PARSERS[name] for name in ("CAST", "TRY_CAST", "EXTRACT", "TRIM", "POSITION", "LISTAGG")
        }


class AthenaEngine(DuckDB):
    """Writes."""

    class Generator(DuckDBGenerator):
        def anonymous_sql(self, expression: exp.Anonymous) -> str:
            name = expression.name
            known = functions.function(name)
            if known is None:
                raise Untranslatable(f"function {name!r} is not known")
            arguments = [self.sql(argument) for argument in expression.expressions]
            fewest, most = known.arguments
            if not fewest <= len(arguments) <= most:
                count = (
                    str(fewest) if fewest == most else f"{fewest} to {most}" if most < functions.MANY else f"at least {fewest}"
                )
                raise Untranslatable(f"function {name!r} takes {count} arguments, not {len(arguments)}")
            if name.lower() == "count" and not arguments:
                arguments = ["*"]
            attached = isinstance(expression.parent, exp.Filter | exp.Window | exp.IgnoreNulls | exp.RespectNulls)
            ordered = any(isinstance(argument, exp.Order | exp.Distinct) for argument in expression.expressions)
            if (attached or ordered) and not known.pure:
                raise Untranslatable(f"function {name!r} takes no FILTER, OVER, DISTINCT or ORDER BY here")
            written = _bounded(known.render(arguments))
            if known.keeps_date and is_date(expression):
                return f"CAST({written} AS DATE)"
            return written

        def cast_sql(self, expression: exp.Cast, safe_prefix: str | None = None) -> str:
            operand, kind = expression.this, expression.to
            text = isinstance(operand, exp.Literal) and operand.is_string
            if kind.is_type(exp.DType.VARCHAR, exp.DType.TEXT) and kind.expressions:
                whole = exp.Cast(this=operand, to=exp.DataType.build("VARCHAR"))
                return f"left({self.sql(whole)}, {self.sql(kind.expressions[0])})"
            if kind.is_type(exp.DType.CHAR, exp.DType.NCHAR):
                raise Untranslatable("type char is not supported; use varchar")
            if kind.is_type(exp.DType.DECIMAL) and not kind.expressions:
                if text and re.fullmatch(r"[+-]?\d*\.?\d+", operand.name):
                    return f"({operand.name})"
                kind = exp.DataType.build("DECIMAL(38, 0)")
                return str(super().cast_sql(exp.Cast(this=operand, to=kind), safe_prefix))
            if kind.is_type(*exp.DataType.INTEGER_TYPES) and not isinstance(operand, exp.Literal):
                # A half goes away from zero, where DuckDB would take the even neighbour.
                cast, value, integer = f"{safe_prefix or ''}CAST", self.sql(operand), self.sql(kind)
                rounded = f"{cast}(round(CAST({value} AS DOUBLE)) AS {integer})"
                return _bounded(
                    f"CASE WHEN typeof({value}) IN ('DOUBLE', 'FLOAT') THEN {rounded} ELSE {cast}({value} AS {integer}) END"
                )
            if kind.is_type(exp.DType.TIMESTAMP) and text:
                # The literal's digits say its precision; a time is as precise as it can be here.
                return f"CAST({self.sql(operand)} AS TIMESTAMP)"
            return str(super().cast_sql(expression, safe_prefix))

        def extract_sql(self, expression: exp.Extract) -> str:
            unit = expression.this.name.upper()
            field = _EXTRACTED.get(unit)
            if field is None:
                raise Untranslatable(f"EXTRACT can't take {unit}; expected one of {', '.join(sorted(_EXTRACTED))}")
            return f"{field}({self.sql(expression, 'expression')})"

        def attimezone_sql(self, expression: exp.AtTimeZone) -> str:
            zone = expression.args["zone"]
            if not (zone.is_string and zone.name.upper() in _UTC):
                raise Untranslatable("AT TIME ZONE takes 'UTC' alone: a time keeps no zone of its own here")
            return f"CAST({self.sql(expression, 'this')} AS TIMESTAMPTZ)"

        def add_sql(self, expression: exp.Add) -> str:
            return _as_date(expression, super().add_sql(expression))

        def sub_sql(self, expression: exp.Sub) -> str:
            return _as_date(expression, super().sub_sql(expression))

        def div_sql(self, expression: exp.Div) -> str:
            # Integers divide to an integer: the engine is told so (DIALECT_SETTINGS).
            return str(self.binary(expression, "/"))


NESTING_MAX: Final = 500
SUBSCRIPTS_MAX: Final = 30
PARSE_WORK_MAX: Final = 20_000
"""Each unit is about 0.2 ms: 14 levels of one array, or 10,000 arrays side by side."""
WRITTEN_CHARS_MAX: Final = 1 << 20

DIALECT_SETTINGS: Final = (("integer_division", True),)
"""What a translated statement needs of the engine."""

_UTC: Final = frozenset({"UTC", "GMT", "Z", "+00:00", "ETC/UTC"})
_EXTRACTED: Final = {
    **{unit: unit.lower() for unit in ("YEAR", "QUARTER", "MONTH", "WEEK", "DAY", "HOUR", "MINUTE", "SECOND")},
    **dict.fromkeys(("DAY_OF_MONTH", "DAYOFMONTH"), "day"),
    **dict.fromkeys(("DAY_OF_WEEK", "DOW", "DAYOFWEEK", "DAYOFWEEKISO"), "isodow"),
    **dict.fromkeys(("DAY_OF_YEAR", "DOY", "DAYOFYEAR"), "dayofyear"),
    **dict.fromkeys(("YEAR_OF_WEEK", "YOW", "YEAROFWEEK", "YEAROFWEEKISO"), "isoyear"),
}

_CALLS: Final = (
    exp.Anonymous,
    exp.And,
    exp.Or,
    exp.Array,
    exp.Case,
    exp.If,
    exp.Cast,
    exp.TryCast,
    exp.CurrentDate,
    exp.CurrentTimestamp,
    exp.Exists,
    exp.Extract,
    exp.GroupConcat,
    exp.Localtimestamp,
    exp.StrPosition,
    exp.Trim,
    exp.Unnest,
)
"""Calls that the grammar knows by itself and that mean the same in both."""


def parse(text: str) -> list[exp.Expr | None]:
    """The statements of a text of SELECTs.

    Raises:
        SyntaxFault
    """
    found = tokens(text)
    require_bounded(found)
    try:
        return list(AthenaSelect().parser(error_level=ErrorLevel.RAISE).parse(found, text))
    except ParseError as error:
        fault = error.errors[0] if error.errors else {}
        where = f"line {fault['line']}:{fault['col']}: " if fault.get("line") else ""
        near = f" near {fault['highlight']!r}" if fault.get("highlight") else ""
        raise SyntaxFault(f"{where}{str(fault.get('description') or 'not a statement').rstrip('.')}{near}") from error
    except RecursionError as error:
        raise SyntaxFault("the statement is nested too deeply") from error


def tokens(text: str) -> list[Token]:
    """The words of a text.

    Raises:
        SyntaxFault
    """
    try:
        return list(AthenaSelect().tokenize(text))
    except TokenError as error:
        raise SyntaxFault(str(error)) from error


class SyntaxFault(Exception):
    """The text is not SQL; the message says where."""


def require_bounded(found: Sequence[Token]) -> None:
    """Refuse what the parser would take minutes for: it tries an array, a row and whatever begins with the name of a type in
    several ways, each of which tries what is within in several ways; and a chain of subscripts takes it cubic time.

    Raises:
        SyntaxFault
    """
    costly: list[bool] = []
    work, chain = 0, 0
    for before, token in pairwise([None, *found]):
        if token is None:
            continue
        if token.token_type in (TokenType.L_PAREN, TokenType.L_BRACKET):
            subscript = token.token_type is TokenType.L_BRACKET
            costly.append(subscript or (before is not None and before.token_type in AthenaSelect.Parser.TYPE_TOKENS))
            chain = chain + 1 if subscript and before is not None and before.token_type is TokenType.R_BRACKET else 0
            work += 1 << sum(costly) if costly[-1] else 0
        elif token.token_type in (TokenType.R_PAREN, TokenType.R_BRACKET) and costly:
            costly.pop()
        if work > PARSE_WORK_MAX or chain > SUBSCRIPTS_MAX or len(costly) > NESTING_MAX:
            raise SyntaxFault(f"line {token.line}:{token.col}: the statement is nested too deeply")


def _bounded(written: str) -> str:
    """Arguments that are written several times grow with every level."""
    if len(written) > WRITTEN_CHARS_MAX:
        raise Untranslatable("the statement is too long when it is translated; nest fewer functions")
    return written


def write(tree: exp.Expr) -> str:
    """The statement in DuckDB's SQL.

    Raises:
        Untranslatable: a part of it has no counterpart, or none that is known to mean the same.
    """
    for node in tree.walk():
        if isinstance(node, exp.Func) and not isinstance(node, _CALLS):
            raise Untranslatable(f"{node.sql(dialect=Trino)!r} is not supported")
        if isinstance(node, exp.TableSample):
            raise Untranslatable("TABLESAMPLE is not supported")
    try:
        generator = AthenaEngine().generator(unsupported_level=ErrorLevel.RAISE, comments=False)
        return str(generator.generate(tree, copy=False))
    except SqlglotError as error:
        raise Untranslatable(str(error)) from error
    except RecursionError as error:
        raise Untranslatable("the statement is nested too deeply") from error


def is_date(node: exp.Expr | None) -> bool:
    """Whether an expression is a DATE, as far as that can be told without types: literals, casts, `date(...)` and what is
    made of these.
    """
    if isinstance(node, exp.Paren):
        return is_date(node.this)
    if isinstance(node, exp.CurrentDate):
        return True
    if isinstance(node, exp.Cast):
        return bool(node.to.is_type(exp.DType.DATE))
    if isinstance(node, exp.Add | exp.Sub):
        return isinstance(node.expression, exp.Interval) and is_date(node.this)
    if isinstance(node, exp.Anonymous):
        name = node.name.lower()
        known = functions.function(name)
        if known is not None and known.keeps_date and node.expressions:
            return is_date(node.expressions[-1])
        return name in ("date", "from_iso8601_date", "to_date", "last_day_of_month")
    return False


def _as_date(expression: exp.Add | exp.Sub, written: str) -> str:
    return f"CAST({written} AS DATE)" if is_date(expression) else written
