"""Trino's SQL in DuckDB: what each expression is by Trino's documentation, and what becomes of names, tables and errors."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from featurestore.athena import functions
from featurestore.athena.dialect import DIALECT_SETTINGS
from featurestore.athena.translate import QueryInvalid, TableRef, translate
from featurestore.query import sandbox_child


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    """Set up as the sandbox sets up its own."""
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        for name, value in DIALECT_SETTINGS:
            engine.execute(f"SET {name} = {value}")
        engine.execute("CREATE SCHEMA athena")
        yield engine


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> sandbox_child.Gate:
    return sandbox_child.Gate(str(tmp_path_factory.mktemp("gate")))


def answer(engine: duckdb.DuckDBPyConnection, statement: str) -> pa.Table:
    return engine.sql(translate(statement, "db").sql).to_arrow_table()


def utc(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=UTC)  # type: ignore[misc,arg-type]


EXPRESSIONS: list[tuple[str, Any]] = [
    # Numbers: integers divide to integers, halves go away from zero.
    ("7 / 2", 3),
    ("-7 / 2", -3),
    ("7 / 2e0", 3.5),
    ("cast(7 as double) / 2", 3.5),
    ("7 % 3", 1),
    ("-7 % 3", -1),
    ("mod(-7, 3)", -1),
    ("cast(2.5e0 + 0 as bigint)", 3),
    ("cast(-2.5e0 + 0 as integer)", -3),
    ("cast(if(true, 3.5e0) as bigint)", 4),
    ("cast('12' as bigint)", 12),
    ("try_cast('x' as bigint)", None),
    ("try(1 / 0)", None),
    ("round(2.5e0)", 3.0),
    ("round(-2.5e0)", -3.0),
    ("round(1.2345e0, 2)", 1.23),
    ("truncate(-1.9e0)", -1.0),
    ("ceil(1.1e0)", 2.0),
    ("floor(-1.1e0)", -2.0),
    ("abs(-3)", 3),
    ("sign(-2)", -1),
    ("power(2, 10)", 1024.0),
    ("sqrt(16e0)", 4.0),
    ("cbrt(27e0)", 3.0),
    ("log(2, 64)", 6.0),
    ("log10(1000)", 3.0),
    ("ln(e())", 1.0),
    ("is_nan(nan())", True),
    ("is_finite(infinity())", False),
    ("bitwise_and(19, 25)", 17),
    ("bitwise_or(19, 25)", 27),
    ("bitwise_xor(19, 25)", 10),
    ("bitwise_not(19)", -20),
    ("bitwise_left_shift(1, 2)", 4),
    ("greatest(1, 3, 2)", 3),
    ("greatest(1, null)", None),
    ("least(1, null, 0)", None),
    ("DECIMAL '1.50'", Decimal("1.50")),
    # Conditions.
    ("if(1 > 2, 'a')", None),
    ("if(1 > 2, 'a', 'b')", "b"),
    ("coalesce(null, null, 2)", 2),
    ("nullif(1, 1)", None),
    ("case 2 when 1 then 'one' when 2 then 'two' end", "two"),
    ("null is distinct from 1", True),
    ("'a' between 'a' and 'b'", True),
    # Texts.
    ("concat('a', 'b', 'c')", "abc"),
    ("concat('a', null)", None),
    ("'a' || null", None),
    ("concat_ws('-', 'a', null, 'b')", "a-b"),
    ("length('hé')", 2),
    ("substr('abcdef', 2, 3)", "bcd"),
    ("substr('abc', -2)", "bc"),
    ("substr('abc', 0)", ""),
    ("substr('abc', -5)", ""),
    ("substring('abc', 2)", "bc"),
    ("strpos('high', 'ig')", 2),
    ("position('z' in 'abc')", 0),
    ("split('a.b.c', '.')", ["a", "b", "c"]),
    ("split_part('a.b.c', '.', 2)", "b"),
    ("replace('aXbX', 'X')", "ab"),
    ("replace('aXbX', 'X', '-')", "a-b-"),
    ("lpad('x', 3, 'ab')", "abx"),
    ("reverse('abc')", "cba"),
    ("trim('  a ')", "a"),
    ("trim(both 'x' from 'xax')", "a"),
    ("upper('a')", "A"),
    ("starts_with('abc', 'ab')", True),
    ("codepoint('A')", 65),
    ("chr(65)", "A"),
    ("levenshtein_distance('kitten', 'sitting')", 3),
    ("translate('abcd', 'a', 'z')", "zbcd"),
    ("lower(to_hex(md5(to_utf8('abc'))))", "900150983cd24fb0d6963f7d28e17f72"),
    ("to_hex(sha256(to_utf8('')))", "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"),
    ("from_utf8(from_hex('616263'))", "abc"),
    ("to_base64(to_utf8('abc'))", "YWJj"),
    ("cast('abcdef' as varchar(3))", "abc"),
    ("'a%b' like 'a\\%b' escape '\\'", True),
    # Regular expressions: no match is null, and a replacement's groups are $1.
    ("regexp_like('1a 2b 14m', '\\d+b')", True),
    ("regexp_extract('1a 2b 14m', '\\d+')", "1"),
    ("regexp_extract('1a 2b 14m', '(\\d+)([a-z]+)', 2)", "a"),
    ("regexp_extract('abc', '\\d')", None),
    ("regexp_extract_all('1a 2b 14m', '\\d+')", ["1", "2", "14"]),
    ("regexp_extract_all('1a 2b 14m', '(\\d+)([a-z]+)', 2)", ["a", "b", "m"]),
    ("regexp_replace('1a 2b 14m', '\\d+[ab] ')", "14m"),
    ("regexp_replace('1a 2b 14m', '(\\d+)([ab]) ', '3c$2 ')", "3ca 3cb 14m"),
    ("regexp_replace('a', 'a', '\\$1')", "$1"),
    ("regexp_split('1a 2b 14m', '\\s*[a-z]+\\s*')", ["1", "2", "14", ""]),
    ("regexp_count('1a 2b 14m', '\\d+')", 3),
    # Times: whole units, ISO weeks, UTC.
    ("from_unixtime(1.5)", utc(1970, 1, 1, 0, 0, 1, 500_000)),
    ("from_unixtime(cast(1700000000 as bigint))", utc(2023, 11, 14, 22, 13, 20)),
    ("from_unixtime('2024-01-01T00:00:00.250Z')", utc(2024, 1, 1, 0, 0, 0, 250_000)),
    ("from_unixtime(timestamp '2024-01-01 00:00:00')", utc(2024, 1, 1)),
    ("to_unixtime(from_iso8601_timestamp('1970-01-01T00:00:01.5Z'))", 1.5),
    ("from_iso8601_timestamp('2020-05-11T11:15:05+02:00')", utc(2020, 5, 11, 9, 15, 5)),
    ("from_iso8601_timestamp('2020-05-11')", utc(2020, 5, 11)),
    ("from_iso8601_timestamp('2020-05-11T11:15:05.123456789Z')", utc(2020, 5, 11, 11, 15, 5, 123_456)),
    ("from_iso8601_date('2020-05-11')", date(2020, 5, 11)),
    ("from_iso8601_timestamp('2020-01-01T00:00:00Z') > timestamp '2019-12-31 23:59:59'", True),
    ("to_timestamp('2024-01-31 13:02:03', 'yyyy-mm-dd hh24:mi:ss')", datetime(2024, 1, 31, 13, 2, 3)),
    ("to_date('2024-01-31', 'yyyy-mm-dd')", date(2024, 1, 31)),
    ("timestamp '2020-01-01 12:00:00 America/New_York'", utc(2020, 1, 1, 17)),
    ("timestamp '2020-01-01 00:00:00' at time zone 'UTC'", utc(2020, 1, 1)),
    ("with_timezone(timestamp '2020-01-01 12:00:00', 'America/New_York')", utc(2020, 1, 1, 17)),
    ("date_diff('day', timestamp '2020-01-01 23:00:00', timestamp '2020-01-02 01:00:00')", 0),
    ("date_diff('second', timestamp '2020-03-01 00:00:00', timestamp '2020-03-02 00:00:00')", 86400),
    ("date_diff('hour', timestamp '2020-03-01 00:00:00 UTC', timestamp '2020-03-02 00:00:00 UTC')", 24),
    ("date_diff('day', date '2020-03-01', date '2020-03-02')", 1),
    ("date_diff('month', date '2020-01-31', date '2020-02-28')", 0),
    ("date_diff('millisecond', timestamp '2020-06-01 12:30:45.000', timestamp '2020-06-01 12:30:45.123')", 123),
    ("date_add('second', 86, timestamp '2020-03-01 00:00:00')", datetime(2020, 3, 1, 0, 1, 26)),
    ("date_add('hour', 9, timestamp '2020-03-01 00:00:00')", datetime(2020, 3, 1, 9)),
    ("date_add('day', -1, timestamp '2020-03-01 00:00:00 UTC')", utc(2020, 2, 29)),
    ("date_add('month', 1, date '2020-01-31')", date(2020, 2, 29)),
    ("date '2012-08-08' + interval '2' day", date(2012, 8, 10)),
    ("timestamp '2012-08-08 01:00:00' + interval '29' hour", datetime(2012, 8, 9, 6)),
    ("date_trunc('month', date '2001-08-22')", date(2001, 8, 1)),
    ("date_trunc('week', timestamp '2001-08-22 03:04:05')", datetime(2001, 8, 20)),
    ("date_trunc('hour', from_iso8601_timestamp('2001-08-22T03:04:05Z'))", utc(2001, 8, 22, 3)),
    ("date_parse('2022/10/20/05', '%Y/%m/%d/%H')", datetime(2022, 10, 20, 5)),
    ("date_parse('2022-10-20 05:06:07.5', '%Y-%m-%d %H:%i:%s.%f')", datetime(2022, 10, 20, 5, 6, 7, 500_000)),
    ("date_format(timestamp '2022-10-20 05:10:00', '%m-%d-%Y %H')", "10-20-2022 05"),
    ("date_format(timestamp '2022-01-02 15:04:05', '%W %M %e %c %l:%i:%s %p')", "Sunday January 2 1 3:04:05 PM"),
    ("format_datetime(timestamp '2022-01-02 15:04:05', 'yyyy-MM-dd HH:mm:ss')", "2022-01-02 15:04:05"),
    ("parse_datetime('2022-01-02 15:04', 'yyyy-MM-dd HH:mm')", utc(2022, 1, 2, 15, 4)),
    ("day_of_week(date '2020-01-05')", 7),
    ("extract(dow from date '2020-01-05')", 7),
    ("extract(day_of_week from date '2020-01-06')", 1),
    ("extract(year from timestamp '2020-01-05 00:00:00')", 2020),
    ("day_of_year(date '2020-02-01')", 32),
    ("week(date '2021-01-03')", 53),
    ("year_of_week(date '2021-01-03')", 2020),
    ("month(date '2020-02-01')", 2),
    ("hour(timestamp '2020-01-01 13:14:15')", 13),
    ("millisecond(timestamp '2020-01-01 13:14:15.250')", 250),
    ("last_day_of_month(date '2020-02-03')", date(2020, 2, 29)),
    ("date(timestamp '2020-02-03 10:00:00')", date(2020, 2, 3)),
    ("to_iso8601(timestamp '2020-02-03 10:00:00')", "2020-02-03T10:00:00.000"),
    ("to_iso8601(date '2020-02-03')", "2020-02-03"),
    # JSON: what is not a scalar, or not there, is null.
    ("json_extract_scalar('[1, 2, 3]', '$[2]')", "3"),
    ('json_extract_scalar(\'{"store": {"book": "x"}}\', \'$.store.book\')', "x"),
    ('json_extract_scalar(\'{"store": {"book": "x"}}\', \'$.store\')', None),
    ("json_extract_scalar('{\"a b\": 1}', '$[\"a b\"]')", "1"),
    ("json_extract_scalar('nonsense', '$.a')", None),
    ("json_extract_scalar('{}', '$.a')", None),
    ("json_format(json_extract('{\"a\": [1, 2]}', '$.a'))", "[1,2]"),
    ("json_array_length('[1, 2, 3]')", 3),
    ("json_array_length('{}')", None),
    ('json_size(\'{"x": {"a": 1, "b": 2}}\', \'$.x\')', 2),
    ("cast(json_parse('[1, 2]') as array(bigint))", [1, 2]),
    # Arrays, maps and rows.
    ("cardinality(array[1, 2, 3])", 3),
    ("cardinality(map(array['a'], array[1]))", 1),
    ("array[10, 20][2]", 20),
    ("element_at(array[10, 20], -1)", 20),
    ("element_at(array[10, 20], 9)", None),
    ("element_at(map(array['a', 'b'], array[1, 2]), 'b')", 2),
    ("element_at(map(array['a'], array[1]), 'z')", None),
    ("map(array['a'], array[1])['a']", 1),
    ("contains(array[1, 2], 2)", True),
    ("array[1] || array[2]", [1, 2]),
    ("array_join(array[1, null, 2], ',')", "1,2"),
    ("array_join(array[1, null, 2], ',', '?')", "1,?,2"),
    ("array_max(array[1, 3, 2])", 3),
    ("array_max(array[1, null])", None),
    ("array_sort(array[3, null, 1])", [1, 3, None]),
    ("array_position(array[5, 6], 6)", 2),
    ("array_position(array[5, 6], 7)", 0),
    ("slice(array[1, 2, 3, 4], 2, 2)", [2, 3]),
    ("transform(array[1, 2], x -> x + 1)", [2, 3]),
    ("filter(array[1, 2, 3], x -> x > 1)", [2, 3]),
    ("any_match(array[1, 2], x -> x > 1)", True),
    ("none_match(array[1, 2], x -> x > 1)", False),
    ("sequence(1, 3)", [1, 2, 3]),
    ("flatten(array[array[1], array[2]])", [1, 2]),
    ("map_keys(map(array['a'], array[1]))", ["a"]),
    ("cast(row(1, 'x') as row(a bigint, b varchar)).b", "x"),
]


@pytest.mark.parametrize(("expression", "expected"), EXPRESSIONS, ids=[expression for expression, _ in EXPRESSIONS])
def test_expression(engine: duckdb.DuckDBPyConnection, expression: str, expected: Any) -> None:
    (found,) = answer(engine, f"SELECT {expression}")[0].to_pylist()
    if isinstance(expected, float):
        assert found == pytest.approx(expected)
        assert isinstance(found, float)
    else:
        assert found == expected
        assert type(found) is type(expected)


AGGREGATES: list[tuple[str, Any]] = [
    ("count(*)", 4),
    ("count(x)", 3),
    ("count(distinct x)", 2),
    ("sum(x)", 5),
    ("avg(x)", 5 / 3),
    ("count_if(x > 1)", 1),
    ("approx_distinct(x)", 2),
    ("approx_percentile(x, 0.5)", 1),
    ("max_by(y, x)", "c"),
    ("min_by(y, x)", "a"),
    ("array_agg(x order by y desc)", [None, 3, 1, 1]),
    ("array_agg(distinct x) filter (where x = 1)", [1]),
    ("arbitrary(x) filter (where y > 'b')", 3),
    ("bool_or(x > 2)", True),
    ("every(x > 2)", False),
    ("listagg(y, ',') within group (order by y desc)", "d,c,b,a"),
    ("cast(map_agg(y, x)['c'] as bigint)", 3),
    ("stddev_pop(cast(x as double))", (8 / 9) ** 0.5),
]


@pytest.mark.parametrize(("expression", "expected"), AGGREGATES, ids=[expression for expression, _ in AGGREGATES])
def test_aggregate(engine: duckdb.DuckDBPyConnection, expression: str, expected: Any) -> None:
    rows = "(VALUES (1, 'a'), (1, 'b'), (3, 'c'), (cast(null as integer), 'd')) AS t (x, y)"
    (found,) = answer(engine, f"SELECT {expression} FROM {rows}")[0].to_pylist()
    assert found == pytest.approx(expected) if isinstance(expected, float) else found == expected


def test_max_by_takes_a_null(engine: duckdb.DuckDBPyConnection) -> None:
    table = answer(engine, "SELECT max_by(x, y) FROM (VALUES (1, 1), (null, 2)) AS t (x, y)")
    assert table[0].to_pylist() == [None]


def test_queries_of_many_parts(engine: duckdb.DuckDBPyConnection) -> None:
    table = answer(
        engine,
        """
        WITH a (x) AS (SELECT * FROM UNNEST(sequence(1, 5)) AS t (x)),
             b AS (WITH a AS (SELECT x * 10 AS x FROM a WHERE x > 2) SELECT x FROM a)
        SELECT x, lag(x, 1, 0) OVER (ORDER BY x) AS before, grouping(x), sum(x)
        FROM b GROUP BY GROUPING SETS ((x), ()) HAVING sum(x) > 30
        ORDER BY x DESC NULLS FIRST OFFSET 1 LIMIT 5;
        """,
    )
    assert table.column_names == ["x", "before", "_col2", "_col3"]
    assert [list(map(int, row.values())) for row in table.to_pylist()] == [[50, 40, 0, 50], [40, 0, 0, 40]]


def test_every_function_passes_the_gate_of_the_sandbox(gate: sandbox_child.Gate) -> None:
    """What it would refuse could never run."""
    for expression, _ in EXPRESSIONS:
        gate.read(translate(f"SELECT {expression}", "db").sql)
    for name in functions.names():
        known = functions.function(name)
        assert known is not None
        literals = {"date_trunc": ["'day'", "x"], "date_add": ["'day'", "1", "x"], "date_diff": ["'day'", "x", "y"]}
        formats = ("date_format", "date_parse", "format_datetime", "parse_datetime", "to_timestamp", "to_date", "to_char")
        given = literals.get(name) or (["x", "''"] if name in formats or "json" in name else [])
        given = (given + ["y"] * known.arguments[0])[: max(known.arguments[0], len(given) if name in literals else 0)]
        gate.read(f"SELECT {known.render(given)}")


# names ------------------------------------------------------------------------------------------------------------------


def test_tables_are_found_in_the_database_of_the_context_or_their_own() -> None:
    translated = translate(
        'SELECT * FROM "T" JOIN other.b ON true JOIN awsdatacatalog.Third."c" ON true JOIN "AwsDataCatalog".other.B b2 ON true',
        "Db",
    )
    assert translated.tables == (TableRef("db", "t"), TableRef("other", "b"), TableRef("third", "c"))


@pytest.mark.parametrize(
    "statement",
    [
        "WITH t AS (SELECT 1) SELECT * FROM t",
        "WITH t AS (SELECT 1), u AS (SELECT * FROM T) SELECT * FROM u",
        "WITH RECURSIVE t (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM t WHERE n < 3) SELECT * FROM t",
        "WITH t AS (SELECT 1) SELECT * FROM (WITH u AS (SELECT * FROM t) SELECT * FROM u)",
        "WITH t AS (SELECT 1) SELECT 1 WHERE 1 IN (SELECT * FROM t)",
    ],
)
def test_a_common_table_expression_is_no_table(engine: duckdb.DuckDBPyConnection, statement: str) -> None:
    translated = translate(statement, "db")
    assert translated.tables == ()
    engine.sql(translated.sql).fetchall()


@pytest.mark.parametrize(
    "statement",
    [
        "WITH t AS (SELECT * FROM t) SELECT * FROM t",
        "WITH u AS (SELECT * FROM t), t AS (SELECT 1) SELECT * FROM u",
        "SELECT * FROM (WITH t AS (SELECT 1) SELECT * FROM t) JOIN t ON true",
        "WITH t AS (SELECT 1) SELECT * FROM db.t",
    ],
)
def test_a_table_is_not_hidden_by_an_expression_out_of_its_sight(statement: str) -> None:
    assert translate(statement, "db").tables == (TableRef("db", "t"),)


def test_columns_are_named_as_the_statement_spells_them(engine: duckdb.DuckDBPyConnection) -> None:
    engine.execute('CREATE OR REPLACE TABLE athena.t0 AS SELECT 1 AS amount, 2 AS "my-feature", 3 AS id')
    statement = 'SELECT Amount, t."My-Feature", db.t.ID, count(*), max(id) AS Top, 1 + 1 FROM t GROUP BY 1, 2, 3'
    assert answer(engine, statement).column_names == ["Amount", "My-Feature", "ID", "_col3", "Top", "_col5"]
    assert answer(engine, "SELECT * FROM t").column_names == ["amount", "my-feature", "id"]
    assert answer(engine, "SELECT * FROM (SELECT count(*), Amount FROM t GROUP BY 2)").column_names == ["_col0", "amount"]


def test_a_name_that_an_output_is_given_hides_no_column(engine: duckdb.DuckDBPyConnection) -> None:
    engine.execute("CREATE OR REPLACE TABLE athena.t0 AS SELECT * FROM (VALUES (1, 10), (2, 20), (3, 20)) AS v (a, b)")
    assert answer(engine, "SELECT b AS a, a AS b FROM t WHERE a = 1").to_pylist() == [{"a": 10, "b": 1}]
    assert sorted(row["n"] for row in answer(engine, "SELECT a + b AS b, count(*) AS n FROM t GROUP BY a, b").to_pylist()) == [
        1,
        1,
        1,
    ]
    assert [row["n"] for row in answer(engine, "SELECT max(a) AS b, count(*) AS n FROM t GROUP BY b ORDER BY n").to_pylist()] == [
        1,
        2,
    ]


def test_parameters_fill_in_order(engine: duckdb.DuckDBPyConnection) -> None:
    translated = translate("SELECT ?, ?, ?", "db", parameters=["'it''s'", "-1.5", "DATE '2026-01-31'"])
    assert engine.sql(translated.sql).fetchall() == [("it's", Decimal("-1.5"), date(2026, 1, 31))]


# refusals ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SELEC 1", "SYNTAX_ERROR: line 1:"),
        ("SELECT (1", "SYNTAX_ERROR: line 1:"),
        ("", "SYNTAX_ERROR"),
        ("SELECT 1; SELECT 2", "SYNTAX_ERROR: expected one statement, got 2"),
        ("SELECT 'x", "SYNTAX_ERROR"),
        ("INSERT INTO t VALUES (1)", "NOT_SUPPORTED: expected a SELECT, got INSERT"),
        ("DELETE FROM t", "NOT_SUPPORTED: expected a SELECT, got DELETE"),
        ("SELECT nonsense(1)", "NOT_SUPPORTED: function 'nonsense' is not known"),
        ("SELECT read_parquet('x')", "function 'read_parquet' is not known"),
        ("SELECT * FROM read_csv('/etc/passwd')", "only tables and UNNEST"),
        ("SELECT split_part('a', '.')", "function 'split_part' takes 3 arguments, not 2"),
        ("SELECT date_format(x, y) FROM t", "the format of date_format has to be a literal text"),
        ("SELECT date_parse('1', '%D')", "'%D' is not supported in a format of date_parse"),
        ("SELECT timestamp '2020-01-01 00:00:00' AT TIME ZONE 'Asia/Tokyo'", "AT TIME ZONE takes 'UTC' alone"),
        ("SELECT date_diff('fortnight', x, y) FROM t", "'fortnight' is not a unit of time"),
        ("SELECT substr(x, 1) OVER () FROM t", "takes no FILTER, OVER"),
        ("SELECT lag(x) IGNORE NULLS OVER (ORDER BY x) FROM t", "NOT_SUPPORTED"),
        ("SELECT current_user", "is not supported"),
        ("SELECT * FROM other.db.t", "CATALOG_NOT_FOUND: Catalog 'other'"),
        ("SELECT ?", "the statement has 1 parameters, 0 values"),
        ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "nested too deeply"),
    ],
)
def test_refusal(statement: str, message: str) -> None:
    with pytest.raises(QueryInvalid) as caught:
        translate(statement, "db")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "nested",
    [
        ("array[", "1", "]"),
        ("row(", "1", ")"),
        ("date(", "x", ")"),
        ("map(array[1], ", "x", ")"),
        ("array[row(", "1", ")]"),
        ("cast(", "x", " as bigint)"),
        ("greatest(1, ", "x", ")"),
        ("(1, ", "x", ")"),
        ("", "x", "[1]"),
        ("transform(x, y -> ", "y", ")"),
        ("case when ", "true", " then true end"),
    ],
    ids=lambda nested: nested[0] + nested[2],
)
@pytest.mark.parametrize("levels", [40, 400, 10_000])
def test_nothing_can_be_nested_until_translation_hangs(nested: tuple[str, str, str], levels: int) -> None:
    """Each of these would take minutes, or the memory of the machine, at 40 levels or at some more."""
    before, middle, after = nested
    with contextlib.suppress(QueryInvalid):
        assert len(translate(f"SELECT {before * levels}{middle}{after * levels}", "db").sql) < 2 << 20


def test_unions_without_end() -> None:
    with pytest.raises(QueryInvalid, match="nested too deeply"):
        translate(" UNION ALL ".join(["SELECT 1"] * 10_000), "db")


@pytest.mark.parametrize("parameter", ["", "x", "1; SELECT 2", "1, 2", "(SELECT 1)", "1 FROM t", "count(*)", "'a' AS b"])
def test_a_parameter_is_a_literal(parameter: str) -> None:
    with pytest.raises(QueryInvalid, match="has to be a literal"):
        translate("SELECT ?", "db", parameters=[parameter])


def test_features_with_hyphens_that_a_client_does_not_quote(engine: duckdb.DuckDBPyConnection) -> None:
    """The SDKs quote them in the inner parts of a dataset's statement and not in the outer ones."""
    engine.execute('CREATE OR REPLACE TABLE athena.t0 AS SELECT 7 AS "my-feature-2", 1 AS "an-id", 5 AS my, 2 AS feature')
    inner = (
        'SELECT table_base."an-id", table_base."my-feature-2" FROM "db"."t" table_base WHERE table_base."my-feature-2" - 6 > 0'
    )
    outer = "SELECT an-id, my-feature-2, 'an-id' AS note\nFROM (\nSELECT fg_base.an-id, fg_base.my-feature-2\nFROM fg_base\n)"
    assert answer(engine, f"WITH fg_base AS ({inner})\n{outer}").to_pylist() == [{"an-id": 1, "my-feature-2": 7, "note": "an-id"}]
    assert answer(engine, 'SELECT my-feature AS x, "my-feature-2" FROM t').to_pylist() == [{"x": 3, "my-feature-2": 7}]


def test_words_that_a_client_joins_are_taken_apart() -> None:
    """SDK 3.27 sends `WHERE is_deletedAND ...`; within texts and quoted names the word stays."""
    sql = translate("SELECT 'is_deletedAND' FROM t WHERE is_deletedAND \"is_deletedAND\" > 1", "db").sql
    assert "'is_deletedAND'" in sql
    assert 'is_deleted AND "is_deletedAND" > 1' in sql
