"""Trino's functions as DuckDB's: one table, in which every function that a statement may call has its line.

A function that is not listed is refused: DuckDB may have one of that name that answers differently. Where both have it,
the differences that would change an answer silently are written out here: `date_diff` counts whole units and not
boundaries, `concat` of a null is null, `regexp_extract` without a match is null. Source: the functions of Trino's
documentation (https://trino.io/docs/current/functions.html), which Athena's engine version 3 is based on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from featurestore.engine import literal

Render = Callable[[Sequence[str]], str]
"""Makes a call in DuckDB's SQL from its arguments in DuckDB's SQL."""


class Untranslatable(Exception):
    """A call has no counterpart; the message says why and what would have one."""


@dataclass(frozen=True, slots=True)
class Function:
    """How a function of Trino is called in DuckDB.

    Attributes:
        arguments: how many it takes, fewest and most.
        pure: whether `render` makes one plain call, which FILTER, OVER and an ORDER BY of its arguments can be attached to.
        keeps_date: of a DATE it makes a DATE, which DuckDB would make a TIMESTAMP.
    """

    arguments: tuple[int, int]
    render: Render
    pure: bool = False
    keeps_date: bool = False


MANY: Final = 1 << 16

_FUNCTIONS: Final[dict[str, Function]] = {}


def function(name: str) -> Function | None:
    """The function of that name, in whatever case; None if statements may not call it."""
    return _FUNCTIONS.get(name.lower())


def _call(name: str) -> Render:
    return lambda arguments: f"{name}({', '.join(arguments)})"


def _same(fewest: int, most: int, names: str) -> None:
    for name in names.split():
        _FUNCTIONS[name] = Function((fewest, most), _call(name), pure=True)


def _renamed(fewest: int, most: int, names: str) -> None:
    for pair in names.split():
        name, other = pair.split(":")
        _FUNCTIONS[name] = Function((fewest, most), _call(other), pure=True)


def _written(count: int, name: str, template: str, *, keeps_date: bool = False) -> None:
    """`template` names arguments by position: {0}, {1}."""
    _FUNCTIONS[name] = Function((count, count), lambda arguments: f"({template.format(*arguments)})", keeps_date=keeps_date)


def _made(fewest: int, most: int, names: str, render: Render, *, keeps_date: bool = False) -> None:
    for name in names.split():
        _FUNCTIONS[name] = Function((fewest, most), render, keeps_date=keeps_date)


def text_of(sql: str, what: str) -> str:
    """The value of a string literal.

    Raises:
        Untranslatable: it is something else.
    """
    if not re.fullmatch(r"'(?:[^']|'')*'", sql):
        raise Untranslatable(f"{what} has to be a literal text")
    return sql[1:-1].replace("''", "'")


# aggregates and windows -------------------------------------------------------------------------------------------------

_same(0, 1, "count")
_same(
    1,
    1,
    """sum avg min max bool_and bool_or count_if stddev stddev_pop stddev_samp variance var_pop var_samp array_agg
    histogram skewness""",
)
_same(2, 2, "corr covar_pop covar_samp regr_intercept regr_slope regr_avgx regr_avgy regr_count regr_r2")
_renamed(
    1,
    1,
    """arbitrary:any_value any_value:any_value every:bool_and approx_distinct:approx_count_distinct
    bitwise_and_agg:bit_and bitwise_or_agg:bit_or bitwise_xor_agg:bit_xor geometric_mean:geomean""",
)
# Of the row with the greatest y, x is taken even where it is null.
_renamed(2, 2, "max_by:arg_max_null min_by:arg_min_null approx_percentile:approx_quantile")
_made(2, 2, "map_agg", lambda a: f"map_from_entries(list(struct_pack(k := {a[0]}, v := {a[1]})))")
_same(0, 0, "row_number rank dense_rank percent_rank cume_dist")
_same(1, 1, "ntile first_value last_value")
_same(1, 3, "lag lead")
_same(2, 2, "nth_value")
_same(1, 2, "listagg")
_same(1, MANY, "grouping")

# conditions -------------------------------------------------------------------------------------------------------------

_same(1, MANY, "coalesce")
_same(2, 2, "nullif")
_same(1, 1, "try")


def _unless_null(name: str) -> Render:
    def render(arguments: Sequence[str]) -> str:
        nulls = " OR ".join(f"{argument} IS NULL" for argument in arguments)
        return f"(CASE WHEN {nulls} THEN NULL ELSE {name}({', '.join(arguments)}) END)"

    return render


_made(1, MANY, "greatest", _unless_null("greatest"))
_made(1, MANY, "least", _unless_null("least"))

# numbers ----------------------------------------------------------------------------------------------------------------

_same(
    1,
    1,
    """abs sqrt cbrt exp ln log2 log10 degrees radians sin cos tan asin acos atan sinh cosh tanh
    isfinite isnan""",
)
_same(1, 2, "round")
_same(2, 2, "atan2 power pow log mod")
_same(0, 0, "pi")
_same(1, 1, "ceil ceiling floor")
_renamed(1, 1, "truncate:trunc is_nan:isnan is_finite:isfinite is_infinite:isinf")
_renamed(0, 0, "rand:random random:random uuid:uuid")
_written(1, "sign", "CASE WHEN {0} < 0 THEN -1 WHEN {0} > 0 THEN 1 ELSE 0 * {0} END")
_written(0, "e", "exp(1)")
_written(0, "nan", "CAST('NaN' AS DOUBLE)")
_written(0, "infinity", "CAST('Infinity' AS DOUBLE)")
_written(2, "bitwise_and", "{0} & {1}")
_written(2, "bitwise_or", "{0} | {1}")
_written(2, "bitwise_xor", "xor({0}, {1})")
_written(1, "bitwise_not", "~ {0}")
_written(2, "bitwise_left_shift", "{0} << {1}")

# texts ------------------------------------------------------------------------------------------------------------------

_same(1, 1, "length lower upper url_encode url_decode")
_same(1, 1, "ltrim rtrim trim reverse")
_same(2, 2, "strpos starts_with")
_same(3, 3, "split_part lpad rpad translate")
_same(1, 1, "chr to_base64 from_base64")
_renamed(1, 1, "codepoint:unicode to_utf8:encode from_utf8:decode to_hex:hex from_hex:unhex")
_renamed(2, 2, "levenshtein_distance:levenshtein hamming_distance:hamming")
_same(2, MANY, "concat_ws")
_written(1, "md5", "unhex(md5({0}))")
_written(1, "sha1", "unhex(sha1({0}))")
_written(1, "sha256", "unhex(sha256({0}))")
_made(2, 2, "split", _call("str_split"))
_made(2, 3, "replace", lambda a: f"replace({a[0]}, {a[1]}, {a[2] if len(a) > 2 else literal('')})")
_made(1, MANY, "concat", lambda arguments: f"({' || '.join(arguments)})")


def _substring(arguments: Sequence[str]) -> str:
    """A start of 0, or one before the text, gives nothing, where DuckDB would count from the beginning."""
    text, start = arguments[:2]
    return f"(CASE WHEN {start} = 0 OR {start} < -length({text}) THEN '' ELSE substr({', '.join(arguments)}) END)"


_made(2, 3, "substr substring", _substring)


def _group(arguments: Sequence[str]) -> str:
    return arguments[2] if len(arguments) > 2 else "0"


def _regexp_replace(arguments: Sequence[str]) -> str:
    replacement = text_of(arguments[2], "the replacement of regexp_replace") if len(arguments) > 2 else ""
    if re.search(r"\$\{", replacement):
        raise Untranslatable("regexp_replace takes groups by number, as $1")
    # Trino: `$1` is a group and `\` quotes what follows; DuckDB: `\1` is a group and `\\` a backslash.
    pieces = re.findall(r"\\.|\$\d|.", replacement, re.DOTALL)
    written = "".join(f"\\{p[1]}" if p[0] == "$" and len(p) == 2 else p[-1].replace("\\", "\\\\") for p in pieces)
    return f"regexp_replace({arguments[0]}, {arguments[1]}, {literal(written)}, 'g')"


_renamed(2, 2, "regexp_like:regexp_matches regexp_split:regexp_split_to_array")
_written(2, "regexp_count", "CAST(len(regexp_extract_all({0}, {1})) AS BIGINT)")
_made(
    2,
    3,
    "regexp_extract",
    lambda a: f"(CASE WHEN regexp_matches({a[0]}, {a[1]}) THEN regexp_extract({a[0]}, {a[1]}, {_group(a)}) END)",
)
_made(2, 3, "regexp_extract_all", lambda a: f"regexp_extract_all({a[0]}, {a[1]}, {_group(a)})")
_made(2, 3, "regexp_replace", _regexp_replace)

# times ------------------------------------------------------------------------------------------------------------------


def _instant_of_seconds(arguments: Sequence[str]) -> str:
    """Seconds since 1970. A text is taken as ISO-8601 and a time as itself: a client that asks so about a String event time
    (SageMaker SDK 3.27) can mean nothing else.
    """
    argument = arguments[0]
    if re.fullmatch(r"-?\d+(\.\d*)?([eE][+-]?\d+)?", argument):
        return f"to_timestamp(CAST({argument} AS DOUBLE))"
    is_text = f"typeof({argument}) = 'VARCHAR' OR starts_with(typeof({argument}), 'TIMESTAMP')"
    as_text = f"CAST(CAST({argument} AS VARCHAR) AS TIMESTAMPTZ)"
    return f"(CASE WHEN {is_text} THEN {as_text} ELSE to_timestamp(TRY_CAST({argument} AS DOUBLE)) END)"


_made(1, 1, "from_unixtime", _instant_of_seconds)
_written(1, "from_unixtime_nanos", "make_timestamptz(CAST({0} AS BIGINT) / 1000)")
_written(1, "to_unixtime", "epoch({0})")
_written(1, "from_iso8601_timestamp", "CAST({0} AS TIMESTAMPTZ)")
_written(1, "from_iso8601_timestamp_nanos", "CAST({0} AS TIMESTAMPTZ)")
_written(1, "from_iso8601_date", "CAST({0} AS DATE)")
_written(1, "date", "CAST({0} AS DATE)")
_written(
    1,
    "to_iso8601",
    "CASE typeof({0}) WHEN 'DATE' THEN strftime({0}, '%Y-%m-%d') WHEN 'TIMESTAMP' THEN strftime({0}, '%Y-%m-%dT%H:%M:%S.%g') "
    "ELSE strftime({0}, '%Y-%m-%dT%H:%M:%S.%gZ') END",
)
_same(0, 0, "now")
_written(0, "current_timezone", "'UTC'")
_written(2, "with_timezone", "timezone({1}, CAST({0} AS TIMESTAMP))")
_same(1, 1, "year quarter month day hour minute second")
_renamed(
    1,
    1,
    """week:week week_of_year:week day_of_month:day day_of_week:isodow dow:isodow day_of_year:dayofyear doy:dayofyear
    year_of_week:isoyear yow:isoyear last_day_of_month:last_day""",
)
_written(1, "millisecond", "millisecond({0}) % 1000")

UNITS: Final = {
    "millisecond": "to_milliseconds",
    "second": "to_seconds",
    "minute": "to_minutes",
    "hour": "to_hours",
    "day": "to_days",
    "week": "to_weeks",
    "month": "to_months",
    "quarter": "to_quarters",
    "year": "to_years",
}
"""Units of time and the functions that make an interval of them."""


def unit_of(sql: str) -> str:
    unit = text_of(sql, "the unit of time").lower()
    if unit not in UNITS:
        raise Untranslatable(f"{unit!r} is not a unit of time; expected one of {', '.join(UNITS)}")
    return unit


_made(2, 2, "date_trunc", lambda a: f"date_trunc('{unit_of(a[0])}', {a[1]})", keeps_date=True)
_made(3, 3, "date_add", lambda a: f"({a[2]} + {UNITS[unit_of(a[0])]}(CAST({a[1]} AS INTEGER)))", keeps_date=True)
# Whole units between two times, which DuckDB calls date_sub; its date_diff counts midnights, ends of months and so on.
_made(3, 3, "date_diff", lambda a: f"date_sub('{unit_of(a[0])}', {a[1]}, {a[2]})")


def _format(letters: dict[str, str], pattern: str, name: str) -> Callable[[str], str]:
    """Translate a format of `name` to one of strftime: `pattern` finds its letters, all else stands for itself."""

    def translate(text: str) -> str:
        found: list[str] = []
        for match in re.finditer(f"{pattern}|.", text, re.DOTALL):
            piece = match[0]
            if re.fullmatch(pattern, piece):
                if piece not in letters:
                    raise Untranslatable(f"{piece!r} is not supported in a format of {name}")
                found.append(letters[piece])
            else:
                found.append(piece.replace("%", "%%"))
        return "".join(found)

    return translate


def _letters(text: str) -> dict[str, str]:
    """Pairs of a format's letters and strftime's, spaces between them."""
    return dict(pair.split(":") for pair in text.split())


_MYSQL_PRINTED: Final = _letters(
    "%a:%a %b:%b %d:%d %f:%f %H:%H %I:%I %j:%j %m:%m %p:%p %S:%S %Y:%Y %y:%y %%:%% "
    "%c:%-m %e:%-d %h:%I %i:%M %k:%-H %l:%-I %M:%B %s:%S %v:%V %W:%A %x:%G"
) | {"%r": "%I:%M:%S %p", "%T": "%H:%M:%S"}
_MYSQL_READ: Final = _MYSQL_PRINTED | _letters("%c:%m %e:%d %k:%H %l:%I")
_JODA_PRINTED: Final = _letters(
    "yyyy:%Y YYYY:%Y yy:%y MM:%m M:%-m MMM:%b MMMM:%B dd:%d d:%-d DDD:%j E:%a EEE:%a EEEE:%A "
    "HH:%H H:%-H hh:%I h:%-I mm:%M m:%-M ss:%S s:%-S SSS:%g a:%p"
)
_JODA_READ: Final = _JODA_PRINTED | _letters("M:%m d:%d H:%H h:%I m:%M s:%S SSS:%f")
_TERADATA: Final = {"yyyy": "%Y", "yy": "%y", "mm": "%m", "dd": "%d", "hh24": "%H", "hh": "%I", "mi": "%M", "ss": "%S"}

_mysql_printed = _format(_MYSQL_PRINTED, r"%.", "date_format")
_mysql_read = _format(_MYSQL_READ, r"%.", "date_parse")
_joda_printed = _format(_JODA_PRINTED, r"([A-Za-z])\1*", "format_datetime")
_joda_read = _format(_JODA_READ, r"([A-Za-z])\1*", "parse_datetime")
_teradata = _format(_TERADATA, r"(?i:yyyy|yy|mm|dd|hh24|hh|mi|ss|[a-z]+)", "to_timestamp and to_date")


def _with_format(template: str, translate: Callable[[str], str], name: str, *, fold: bool = False) -> Render:
    def render(arguments: Sequence[str]) -> str:
        text = text_of(arguments[1], f"the format of {name}")
        return template.format(arguments[0], literal(translate(text.lower() if fold else text)))

    return render


_made(2, 2, "date_format", _with_format("strftime({0}, {1})", _mysql_printed, "date_format"))
_made(2, 2, "date_parse", _with_format("strptime({0}, {1})", _mysql_read, "date_parse"))
_made(2, 2, "format_datetime", _with_format("strftime({0}, {1})", _joda_printed, "format_datetime"))
_made(2, 2, "parse_datetime", _with_format("CAST(strptime({0}, {1}) AS TIMESTAMPTZ)", _joda_read, "parse_datetime"))
_made(2, 2, "to_timestamp", _with_format("strptime({0}, {1})", _teradata, "to_timestamp", fold=True))
_made(2, 2, "to_date", _with_format("CAST(strptime({0}, {1}) AS DATE)", _teradata, "to_date", fold=True))
_made(2, 2, "to_char", _with_format("strftime({0}, {1})", _teradata, "to_char", fold=True))

# JSON -------------------------------------------------------------------------------------------------------------------


def _json_path(sql: str) -> str:
    """Trino's `$["a b"]` is DuckDB's `$."a b"`."""
    return literal(re.sub(r'\["((?:[^"\\]|\\.)*)"\]', r'."\1"', text_of(sql, "the path of a JSON function")))


def _json_extract_scalar(arguments: Sequence[str]) -> str:
    """Null for text that is not JSON, and for arrays and objects."""
    text, path = arguments[0], _json_path(arguments[1])
    return (
        f"(CASE WHEN json_valid({text}) AND json_type({text}, {path}) NOT IN ('ARRAY', 'OBJECT') "
        f"THEN json_extract_string({text}, {path}) END)"
    )


_made(2, 2, "json_extract_scalar", _json_extract_scalar)
_made(2, 2, "json_extract", lambda a: f"(CASE WHEN json_valid({a[0]}) THEN json_extract({a[0]}, {_json_path(a[1])}) END)")
_written(1, "json_parse", "CAST({0} AS JSON)")
_written(1, "json_format", "CAST({0} AS VARCHAR)")
_written(1, "json_array_length", "CASE WHEN json_type({0}) = 'ARRAY' THEN CAST(json_array_length({0}) AS BIGINT) END")
_made(
    2,
    2,
    "json_size",
    lambda a: (
        f"CAST(CASE json_type({a[0]}, {_json_path(a[1])}) WHEN 'OBJECT' THEN len(json_keys({a[0]}, {_json_path(a[1])})) "
        f"WHEN 'ARRAY' THEN json_array_length({a[0]}, {_json_path(a[1])}) ELSE 0 * length({a[0]}) END AS BIGINT)"
    ),
)

# arrays, maps, rows -----------------------------------------------------------------------------------------------------

_written(1, "cardinality", "CAST(cardinality({0}) AS BIGINT)")
_written(2, "element_at", "({0})[{1}]")
_written(1, "array_max", "CASE WHEN list_count({0}) = len({0}) THEN list_max({0}) END")
_written(1, "array_min", "CASE WHEN list_count({0}) = len({0}) THEN list_min({0}) END")
_written(1, "array_sort", "list_sort({0}, 'ASC', 'NULLS LAST')")
_written(2, "array_position", "CAST(coalesce(list_position({0}, {1}), 0) AS BIGINT)")
_written(2, "any_match", "len(list_filter({0}, {1})) > 0")
_written(2, "none_match", "len(list_filter({0}, {1})) = 0")
_written(3, "slice", "list_slice({0}, {1}, {1} + {2} - 1)")
_made(2, 3, "array_join", lambda a: f"array_to_string({', '.join(a[:2])})" if len(a) == 2 else _joined_with_nulls(a))
_renamed(2, 2, "contains:list_contains arrays_overlap:list_has_any transform:list_transform filter:list_filter")
_same(1, 1, "flatten map_keys map_values")
_same(2, 2, "map")
_same(1, MANY, "row")
_renamed(2, 3, "sequence:generate_series")


def _joined_with_nulls(arguments: Sequence[str]) -> str:
    values, separator, null = arguments
    return f"array_to_string(list_transform({values}, LAMBDA x : coalesce(CAST(x AS VARCHAR), {null})), {separator})"


def names() -> Iterable[str]:
    """The functions that statements may call."""
    return sorted(_FUNCTIONS)
