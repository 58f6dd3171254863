"""SQL from users, in real child processes: what it answers, what it refuses, and what ends it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import duckdb
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.errors import (
    FeatureGroupNotFound,
    QueryFailed,
    QueryRefused,
    QueryStopped,
    QueryTimeout,
    QueryTooLarge,
    StoreUnavailable,
)
from featurestore.query import sandbox_child
from featurestore.query.sandbox import Relations, Sandbox, SandboxLimits, Stop, TableName, View

REPOSITORY = Path(__file__).parents[2]
LINUX = sys.platform.startswith("linux")

CANARY = "c4n4ry-7f1d2e"
NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

ENDLESS = "SELECT levenshtein(repeat('a', 300000), repeat('b', 300000))"
"""One call of one function, minutes long: the engine looks for its deadline between calls only."""


def no_tables(names: Sequence[TableName]) -> Relations:
    raise AssertionError(f"resolve was asked for {names}")


class Planner:
    """Stands for the store's planner: knows two groups and remembers what it was asked."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.asked: list[list[TableName]] = []
        schema = pa.schema([("id", pa.string()), ("event_time", pa.timestamp("us", tz="UTC")), ("value", pa.float64())])
        self.files: dict[str, tuple[str, ...]] = {}
        for group in ("my-group", "Orders"):
            paths = []
            for part in range(2):
                path = directory / f"{group}-{part}.parquet"
                rows = [
                    {"id": f"{group[0].lower()}{row}", "event_time": NOON + timedelta(hours=row), "value": row * 1.5}
                    for row in range(part * 3, part * 3 + 3)
                ]
                pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
                paths.append(str(path))
            self.files[group] = tuple(paths)

    def views(self, group: str) -> Iterator[View]:
        columns = {"id": "VARCHAR", "event_time": "TIMESTAMPTZ", "value": "DOUBLE"}
        mapping = ", ".join(f"'{key}': {{name: '{key}', type: '{kind}', default_value: NULL}}" for key, kind in columns.items())
        sql = f"SELECT id, event_time, value FROM read_parquet({list(self.files[group])!r}, schema=map{{{mapping}}})"
        yield View("history", group, sql)
        yield View("latest", group, f"{sql} WHERE value >= 4.5")

    def __call__(self, names: Sequence[TableName]) -> Relations:
        """As the store does: just what is named, or an error."""
        self.asked.append(list(names))
        views: list[View] = []
        files: list[str] = []
        for name in names:
            group = next((group for group in self.files if group.lower() == name.name.lower()), None)
            if group is None:
                raise FeatureGroupNotFound(name.name)
            views += [view for view in self.views(group) if view.schema == (name.schema or "history").lower()]
            files += self.files[group]
        return Relations(tuple(views), tuple(dict.fromkeys(files)))

    def everything(self, names: Sequence[TableName]) -> Relations:
        """Whatever is asked: the sandbox itself has to refuse what is none of these."""
        views = tuple(view for group in self.files for view in self.views(group))
        return Relations(views, tuple(file for files in self.files.values() for file in files))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bucket-of-the-store")


@pytest.fixture(scope="module")
def planner(data: Path) -> Planner:
    return Planner(data)


@pytest.fixture(scope="module")
def sandbox(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    with Sandbox(SandboxLimits(), tmp_path_factory.mktemp("temp")) as sandbox:
        yield sandbox


def gone(*pids: int) -> bool:
    """Whether these processes end within ten seconds."""

    def ended(pid: int) -> bool:
        try:
            # Orphans whose new parent doesn't collect them stay behind as zombies.
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    deadline = time.monotonic() + 10
    while not all(map(ended, pids)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def children() -> list[int]:
    """Processes of sandboxes: not other children of this process, nor one that has not become a sandbox yet."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            if child.cmdline()[1:3] == ["-I", "-c"]:
                found.append(child.pid)
    return found


# answers ----------------------------------------------------------------------------------------------------------------


def test_join_of_two_groups_with_an_expression_and_a_window(sandbox: Sandbox, planner: Planner) -> None:
    table = sandbox.run(
        """
        WITH late AS (SELECT * FROM latest."my-group")
        SELECT g.id, o.id AS other, g.value + o.value AS total, row_number() OVER (ORDER BY g.value DESC) AS place
        FROM late g JOIN history.orders o ON o.event_time = g.event_time
        ORDER BY place
        """,
        planner,
    )
    assert table.to_pylist() == [
        {"id": "m5", "other": "o5", "total": 15.0, "place": 1},
        {"id": "m4", "other": "o4", "total": 12.0, "place": 2},
        {"id": "m3", "other": "o3", "total": 9.0, "place": 3},
    ]


@pytest.mark.parametrize(
    ("relation", "rows"),
    [
        ('"my-group"', 6),
        ('history."my-group"', 6),
        ('HISTORY."MY-GROUP"', 6),
        ('latest."my-group"', 3),
        ("Orders", 6),
        ("orders", 6),
        ("latest.oRDERS", 3),
        ('history."my-group" UNION ALL SELECT * FROM latest."my-group"', 9),
    ],
)
def test_schemas_and_spellings(sandbox: Sandbox, planner: Planner, relation: str, rows: int) -> None:
    assert sandbox.run(f"SELECT * FROM {relation}", planner).num_rows == rows


def test_columns_can_be_qualified_to_the_full(sandbox: Sandbox, planner: Planner) -> None:
    statement = 'SELECT history."my-group".id, "my-group".value, orders.id FROM "my-group" JOIN orders USING (value)'
    assert sandbox.run(statement, planner).num_rows == 6


@pytest.mark.parametrize(
    ("statement", "names"),
    [
        ("SELECT 1", None),
        ("SELECT * FROM range(3)", None),
        ("WITH a AS (SELECT 1 AS x), b AS (SELECT * FROM a) SELECT * FROM A, b", None),
        ("WITH RECURSIVE t AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM t WHERE x < 3) SELECT * FROM t", None),
        ("SELECT a.id FROM orders a, Orders b, latest.orders c", [(None, "orders"), (None, "Orders"), ("latest", "orders")]),
        ("WITH orders AS (SELECT * FROM orders) SELECT * FROM orders", [(None, "orders")]),
        ("WITH orders AS (SELECT 1 AS id) SELECT orders.id FROM orders, history.orders h", [("history", "orders")]),
        ("SELECT * FROM (WITH orders AS (SELECT 2 AS y) SELECT * FROM orders) x, orders", [(None, "orders")]),
        (
            'SELECT (SELECT count(*) FROM orders), id IN (FROM latest.orders SELECT id) FROM "my-group"',
            [(None, "orders"), ("latest", "orders"), (None, "my-group")],
        ),
        (
            'SELECT 1 FROM orders o, LATERAL (SELECT o.id FROM "my-group") UNION SELECT 2 FROM latest.orders',
            [(None, "orders"), (None, "my-group"), ("latest", "orders")],
        ),
        ("SELECT 1 LIMIT (SELECT count(*) FROM orders)", [(None, "orders")]),
        ("DESCRIBE latest.orders", [("latest", "orders")]),
        ("SUMMARIZE orders", [(None, "orders")]),
        ("/* a */ -- b\n EXPLAIN SELECT * FROM orders", [(None, "orders")]),
        ("FROM orders PIVOT (sum(value) FOR id IN ('o1', 'o2'))", [(None, "orders")]),
        ("FROM orders", [(None, "orders")]),
    ],
)
def test_names_that_are_resolved(
    sandbox: Sandbox, planner: Planner, statement: str, names: list[tuple[str | None, str]] | None
) -> None:
    asked: list[TableName] = []

    def resolve(tables: Sequence[TableName]) -> Relations:
        assert not asked, "resolve is called once"
        asked.extend(tables)
        return planner(tables)

    sandbox.run(statement, resolve if names else no_tables)
    assert sorted(asked, key=str) == sorted((TableName(*name) for name in names or ()), key=str)


def test_timestamps_are_utc(sandbox: Sandbox, planner: Planner) -> None:
    statement = 'SELECT event_time, hour(event_time) AS hour, event_time::VARCHAR AS text FROM "my-group" ORDER BY 1 LIMIT 1'
    table = sandbox.run(statement, planner)
    assert table.schema.field("event_time").type == pa.timestamp("us", tz="UTC")
    assert table.to_pylist() == [{"event_time": NOON, "hour": 12, "text": "2026-03-01 12:00:00+00"}]


def test_an_empty_result_keeps_its_columns(sandbox: Sandbox, planner: Planner) -> None:
    table = sandbox.run('SELECT *, [value] AS list FROM "my-group" WHERE false', planner)
    assert table.num_rows == 0
    assert table.schema == pa.schema(
        [
            ("id", pa.string()),
            ("event_time", pa.timestamp("us", tz="UTC")),
            ("value", pa.float64()),
            pa.field("list", pa.list_(pa.float64())),
        ]
    )


def test_text_of_any_script(sandbox: Sandbox) -> None:
    table = sandbox.run('SELECT \'北京 Привет 🜚\' AS "größe ""x""", length(\'🜚\')', no_tables)
    assert table.column_names[0] == 'größe "x"'
    assert table.to_pylist() == [{'größe "x"': "北京 Привет 🜚", "length('🜚')": 1}]


def test_nested_and_dictionary_types(sandbox: Sandbox) -> None:
    statement = "SELECT {'a': [1, NULL]} AS s, map {'k': 1.5} AS m, 'x'::ENUM ('x', 'y') AS e, 1::HUGEINT AS h FROM range(20000)"
    table = sandbox.run(statement, no_tables)
    assert table.num_rows == 20000
    first = table.slice(19999).to_pylist()[0]
    assert (first["s"], dict(first["m"]), first["e"], int(first["h"])) == ({"a": [1, None]}, {"k": 1.5}, "x", 1)


def test_columns_of_the_same_name(sandbox: Sandbox) -> None:
    assert [column.to_pylist() for column in sandbox.run("SELECT 1 AS a, 2 AS a", no_tables).columns] == [[1], [2]]


def test_a_long_chain_of_operators(sandbox: Sandbox) -> None:
    assert sandbox.run("SELECT " + "+".join(["1"] * 900) + " AS n", no_tables).to_pylist() == [{"n": 900}]


def test_a_list_of_many_values(sandbox: Sandbox) -> None:
    statement = f"SELECT count(*) AS n FROM range(100000) t(x) WHERE x IN ({','.join(map(str, range(10000)))})"
    assert sandbox.run(statement, no_tables).to_pylist() == [{"n": 10000}]


def test_statements_at_the_same_time(sandbox: Sandbox, planner: Planner) -> None:
    def ask(number: int) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = sandbox.run(f"SELECT {number} AS n, count(*) AS c FROM orders", planner).to_pylist()
        return rows

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(12)))
    assert answers == [[{"n": number, "c": 6}] for number in range(12)]


def test_explain_and_describe_show_no_path(sandbox: Sandbox, planner: Planner) -> None:
    for statement in (
        "EXPLAIN SELECT * FROM orders WHERE id = 'o1' AND event_time > '2026-03-01'",
        'EXPLAIN SELECT * FROM latest.orders JOIN "my-group" USING (id)',
        "DESCRIBE orders",
        "SUMMARIZE orders",
        "DESCRIBE SELECT * FROM latest.orders",
    ):
        text = str(sandbox.run(statement, planner).to_pylist())
        assert "parquet/" not in text
        assert ".parquet" not in text
        assert planner.directory.name not in text


# refusals ---------------------------------------------------------------------------------------------------------------

HOSTILE = [
    # other statements
    "",
    ";",
    "SELECT 1; SELECT 2",
    "SELECT 1; COPY (SELECT 1) TO '{data}/written.csv'",
    "COPY (SELECT * FROM orders) TO '{data}/written.csv'",
    "COPY orders TO '{data}/orders-0.parquet' (FORMAT parquet, USE_TMP_FILE false)",
    "EXPORT DATABASE '{data}/export'",
    "IMPORT DATABASE '{data}'",
    "ATTACH '{data}/other.db'",
    "ATTACH ':memory:' AS other",
    "DETACH memory",
    "USE system",
    "INSTALL httpfs",
    "LOAD httpfs",
    "UPDATE EXTENSIONS",
    "SET enable_external_access = true",
    "SET VARIABLE a = 1",
    "RESET memory_limit",
    "PRAGMA database_list",
    "PRAGMA enable_profiling",
    "CALL pragma_version()",
    "CREATE TABLE t AS SELECT 1",
    "CREATE TEMP MACRO m(a) AS a",
    "CREATE SECRET (TYPE s3)",
    "CREATE VIEW v AS SELECT * FROM read_csv('{canary}')",
    "DROP VIEW history.orders",
    "INSERT INTO orders VALUES (1)",
    "UPDATE orders SET value = 1",
    "DELETE FROM orders",
    "PREPARE p AS SELECT 1",
    "EXECUTE p",
    "BEGIN",
    "CHECKPOINT",
    "VACUUM",
    "EXPLAIN ANALYZE SELECT 1",
    "EXPLAIN (ANALYZE) SELECT 1",
    "EXPLAIN COPY orders TO '{data}/written.csv'",
    "EXPLAIN SELECT * FROM read_csv('{canary}')",
    "PIVOT orders ON id USING sum(value)",
    # statements inside a SELECT
    "WITH x AS (COPY orders TO '{data}/written.csv') SELECT 1",
    "WITH x AS (INSERT INTO orders VALUES (1) RETURNING *) SELECT * FROM x",
    "WITH x AS (DELETE FROM orders RETURNING *) SELECT * FROM x",
    "WITH x AS (UPDATE orders SET value = 1 RETURNING *) SELECT * FROM x",
    # files and networks
    "SELECT * FROM read_csv('{canary}')",
    "SELECT * FROM read_csv_auto('/etc/passwd')",
    "SELECT * FROM read_text('{canary}')",
    "SELECT * FROM read_blob('{canary}')",
    "SELECT * FROM read_json('{canary}')",
    "SELECT * FROM read_parquet('{unlisted}')",
    "SELECT * FROM parquet_scan(['{unlisted}'])",
    "SELECT * FROM parquet_metadata('{data}/orders-0.parquet')",
    "SELECT * FROM parquet_kv_metadata('{data}/Orders-0.parquet')",
    "SELECT * FROM sniff_csv('{canary}')",
    "SELECT * FROM glob('{data}/*')",
    "SELECT * FROM read_duckdb('{data}/other.db')",
    "SELECT * FROM '{canary}'",
    "SELECT * FROM '{unlisted}'",
    'SELECT * FROM "{unlisted}"',
    "SELECT * FROM '{data}/Orders-0.parquet'",
    "SELECT * FROM '/etc/passwd'",
    "SELECT * FROM history.'{unlisted}'",
    "SELECT * FROM '{data}/*.parquet'",
    "SELECT * FROM 'https://example.com/x.parquet'",
    "SELECT * FROM read_parquet('s3://bucket/x.parquet')",
    "SELECT * FROM read_csv('http://169.254.169.254/latest/meta-data/')",
    "SELECT (SELECT count(*) FROM read_csv('{canary}'))",
    "SELECT [x FOR x IN (SELECT list(content) FROM read_text('{canary}'))]",
    "SELECT * FROM orders WHERE id IN (SELECT content FROM read_text('{canary}'))",
    'WITH "{unlisted}" AS (SELECT 1) SELECT * FROM (SELECT * FROM "{unlisted}"), history."{unlisted}"',
    "SELECT * FROM (WITH c AS (SELECT 1) SELECT * FROM c), read_text('{canary}')",
    "SELECT * FROM range((SELECT size FROM read_text('{canary}')))",
    "SELECT * FROM orders ORDER BY (SELECT content FROM read_text('{canary}'))",
    "SELECT sum(value) FILTER (WHERE (SELECT true FROM read_text('{canary}'))) FROM orders",
    "SELECT sum(value) OVER (ORDER BY (SELECT 1 FROM read_text('{canary}'))) FROM orders",
    # text run as SQL, pointers read as tables
    "SELECT * FROM query('SELECT * FROM read_text(''{canary}'')')",
    "SELECT * FROM query_table('duckdb_settings')",
    "SELECT * FROM query_table(['orders'])",
    "SELECT * FROM json_execute_serialized_sql('x')",
    "SELECT json_serialize_plan('SELECT * FROM read_csv(''{canary}'')')",
    "SELECT * FROM arrow_scan(1::POINTER, 2::POINTER, 3::POINTER)",
    "SELECT * FROM histogram(orders, value)",
    # settings, environment, catalog
    "SELECT getenv('HOME')",
    "SELECT GETENV('HOME')",
    "SELECT system.main.getenv('HOME')",
    "SELECT 'HOME'.getenv()",
    "SELECT current_setting('allowed_paths')",
    "SELECT getvariable('x')",
    "SELECT sleep_ms(100000)",
    "SELECT pg_sleep(100)",
    "SELECT write_log('x')",
    "SELECT pg_get_viewdef(1)",
    "SELECT nextval('s')",
    "SELECT $1",
    "SELECT * FROM duckdb_settings()",
    "SELECT sql FROM duckdb_views()",
    "SELECT sql FROM duckdb_views",
    "SELECT sql FROM system.duckdb_views",
    "SELECT sql FROM main.duckdb_views",
    "SELECT sql FROM history.duckdb_views",
    "SELECT sql FROM system.main.duckdb_views",
    "SELECT * FROM memory.history.orders",
    "SELECT * FROM duckdb_logs()",
    "SELECT * FROM duckdb_secrets()",
    "SELECT * FROM duckdb_variables()",
    "SELECT * FROM duckdb_external_file_cache()",
    "SELECT sql FROM sqlite_master",
    "SELECT sql FROM sqlite_temp_master",
    "SELECT * FROM information_schema.tables",
    "SELECT view_definition FROM information_schema.views",
    "SELECT definition FROM pg_views",
    "SELECT definition FROM pg_catalog.pg_views",
    "SELECT * FROM pg_settings",
    "SELECT * FROM pragma_table_info('orders')",
    "SELECT * FROM pragma_storage_info('orders')",
    "SELECT * FROM pragma_show('orders')",
    "DESCRIBE sqlite_master",
    "SUMMARIZE duckdb_views",
    "SHOW TABLES",
    "SHOW ALL TABLES",
    "SHOW DATABASES",
    "SHOW allowed_paths",
    "FROM (SHOW ALL TABLES)",
    "SELECT filename FROM orders",
    "SELECT * FROM orders, (WITH duckdb_views AS (SELECT 1) SELECT * FROM duckdb_views), duckdb_views",
    "WITH sqlite_master AS (SELECT * FROM sqlite_master) SELECT sql FROM sqlite_master",
    "WITH RECURSIVE duckdb_views AS (SELECT sql FROM duckdb_views UNION SELECT sql FROM duckdb_views) FROM duckdb_views",
    'WITH "DUCKDB_VIEWS" AS (SELECT 1) SELECT 1 ORDER BY (SELECT sql FROM duckdb_views)',
    f"SELECT * FROM {', '.join(f'orders{number}' for number in range(101))}",
    # Python
    "SELECT * FROM engine",
    "SELECT * FROM relations",
    "SELECT * FROM pandas_scan(1)",
    "SELECT * FROM python_map_function(1)",
    # not SQL, or too much of it
    "SELEC 1",
    "SELECT \ud800",
    "SELECT '\x00'; COPY orders TO 'x'",
    f"SELECT {'(' * 5000}1{')' * 5000}",
    f"SELECT {'[' * 2000}1{']' * 2000}",
    f"SELECT {'1+' * 20000}1",
    f"SELECT '{'x' * (1 << 20)}'",
]


@pytest.fixture(scope="module")
def places(data: Path) -> dict[str, str]:
    canary = data / "canary.csv"
    canary.write_text(f"a,b\n{CANARY},1\n")
    unlisted = data / "unlisted.parquet"
    pq.write_table(pa.table({"a": [CANARY]}), unlisted)
    return {"data": str(data), "canary": str(canary), "unlisted": str(unlisted)}


def fill(statement: str, places: dict[str, str]) -> str:
    for name, path in places.items():
        statement = statement.replace(f"{{{name}}}", path)
    return statement


@pytest.fixture(scope="module")
def outcomes(sandbox: Sandbox, planner: Planner, places: dict[str, str]) -> dict[str, pa.Table | Exception]:
    """What came of every hostile statement, run four at a time: each waits for a process to start."""

    def run(statement: str) -> pa.Table | Exception:
        try:
            return sandbox.run(fill(statement, places), planner.everything)
        except Exception as error:
            return error

    before = {path: path.read_bytes() for path in planner.directory.iterdir()}
    with ThreadPoolExecutor(4) as pool:
        outcomes = dict(zip(HOSTILE, pool.map(run, HOSTILE), strict=True))
    assert {path: path.read_bytes() for path in planner.directory.iterdir()} == before, "nothing was written"
    return outcomes


@pytest.mark.parametrize("statement", HOSTILE, ids=lambda statement: ascii(statement[:70]))
def test_hostile_statement(outcomes: dict[str, pa.Table | Exception], statement: str) -> None:
    outcome = outcomes[statement]
    assert isinstance(outcome, QueryRefused | QueryFailed)
    assert CANARY not in str(outcome)


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SELECT 1; DROP TABLE x", "found SELECT, DROP; allowed is exactly one SELECT, or EXPLAIN of one, over feature groups"),
        ("COPY orders TO 'x'", "found COPY; allowed is exactly one SELECT"),
        ("WITH x AS (COPY orders TO 'x') SELECT 1", "found COPY; allowed is exactly one SELECT"),
        ("", "found nothing; allowed is exactly one SELECT"),
        ("EXPLAIN ANALYZE SELECT 1", "EXPLAIN takes one SELECT here, without ANALYZE or options"),
        ("PIVOT orders ON id USING sum(value)", r"found a PIVOT without IN \(...\)"),
        ("SELECT * FROM read_csv('x')", "table function 'read_csv' is not allowed"),
        ("SELECT getenv('x')", "function 'getenv' is not allowed"),
        ("SHOW TABLES", "found SHOW; DESCRIBE or SUMMARIZE a feature group instead"),
        ("SELECT * FROM '/etc/passwd'", "'/etc/passwd' can't be the name of a feature group"),
        ("SELECT * FROM pg_views", "'pg_views' is not a feature group that this statement may read"),
        ("SELECT * FROM a.b.c", "a.b.c: a table is named by its schema and feature group alone"),
        ("WITH pg_class AS (SELECT 1) FROM pg_class", "'pg_class' is a name of the engine's own"),
    ],
)
def test_a_refusal_says_what_was_found(sandbox: Sandbox, planner: Planner, statement: str, message: str) -> None:
    with pytest.raises(QueryRefused, match=message):
        sandbox.run(statement, planner.everything)


def test_the_same_view_may_come_twice(sandbox: Sandbox, planner: Planner) -> None:
    assert sandbox.run("SELECT count(*) AS n FROM orders a, Orders b, history.orders c", planner).to_pylist() == [{"n": 216}]


@pytest.mark.parametrize("group", ["sqlite_master", "duckdb_views", "pg_class", "tables"])
def test_a_group_may_be_called_like_a_table_of_the_engine(sandbox: Sandbox, group: str) -> None:
    relations = Relations((View("history", group, "SELECT 42 AS mine"),), ())
    assert sandbox.run(f"SELECT * FROM {group}", lambda _: relations).to_pylist() == [{"mine": 42}]


def test_a_view_for_each_spelling_is_refused(sandbox: Sandbox) -> None:
    views = (View("history", "users", "SELECT 1 AS a"), View("history", "Users", "SELECT 2 AS a"))
    with pytest.raises(QueryRefused, match="differ in case alone"):
        sandbox.run("SELECT * FROM users", lambda _: Relations(views, ()))


def test_listed_functions_exist_and_none_reaches_out() -> None:
    with duckdb.connect() as engine:
        known = engine.execute(
            "SELECT lower(function_name), function_type, coalesce(lower(macro_definition), '') FROM duckdb_functions()"
        ).fetchall()
    scalar = {name: definition for name, kind, definition in known if kind in {"scalar", "aggregate", "window", "macro"}}
    # `unnest` stands in a SELECT list too, but the engine lists it as a table function alone.
    assert sandbox_child.FUNCTIONS - {"unnest"} <= scalar.keys()
    bodies = {name: body for name, body in scalar.items() if name in sandbox_child.FUNCTIONS}
    assert not [name for name, body in bodies.items() if "duckdb_" in body or "pragma_" in body]
    assert {name for name, kind, _ in known if kind == "table"} >= sandbox_child.TABLE_FUNCTIONS
    outward = "getenv getvariable current_setting read_text read_blob query query_table json_serialize_plan nextval sleep_ms"
    assert not sandbox_child.FUNCTIONS & set(outward.split())


ORDINARY = r"""
SELECT * FROM g TABLESAMPLE 10.5%

SELECT * FROM g USING SAMPLE 5 ROWS

SELECT * FROM g USING SAMPLE reservoir(50 ROWS) REPEATABLE (7)

SELECT * FROM g TABLESAMPLE bernoulli(2.5)

SELECT a FROM g ORDER BY a ASC NULLS FIRST, b DESC NULLS LAST, 3 LIMIT 5 OFFSET 2

SELECT a FROM g LIMIT 10%

SELECT a FROM g LIMIT 12.5 PERCENT

SELECT DISTINCT ON (a) a, b FROM g ORDER BY a, b DESC

SELECT DISTINCT a FROM g

SELECT a, count(*) FROM g GROUP BY ALL HAVING count(*) > 1 ORDER BY ALL DESC

SELECT a, b, grouping(a), grouping_id(a, b) FROM g GROUP BY GROUPING SETS ((a, b), (a), ())

SELECT a, sum(b) FROM g GROUP BY ROLLUP (a)

SELECT a, sum(b) FROM g GROUP BY CUBE (a)

SELECT sum(a) OVER w, lag(a, 1, 0) OVER w, first_value(a IGNORE NULLS) OVER (w ROWS BETWEEN 2 PRECEDING AND CURRENT
  ROW EXCLUDE TIES) FROM g WINDOW w AS (PARTITION BY b ORDER BY c)

SELECT avg(v) OVER (ORDER BY t RANGE BETWEEN INTERVAL 7 DAYS PRECEDING AND CURRENT ROW) FROM g

SELECT ntile(4) OVER (ORDER BY a), dense_rank() OVER (ORDER BY a), percent_rank() OVER (ORDER BY a), cume_dist()
  OVER (ORDER BY a), nth_value(a, 2) OVER (ORDER BY a) FROM g

SELECT * FROM g QUALIFY row_number() OVER (PARTITION BY id ORDER BY t DESC) = 1

SELECT count(*) FILTER (WHERE a > 1), string_agg(a, ',' ORDER BY b), array_agg(DISTINCT a), quantile_cont(a, 0.5),
  percentile_cont(0.5) WITHIN GROUP (ORDER BY a), mode() WITHIN GROUP (ORDER BY a) FROM g

SELECT arg_max(a, b), max_by(a, b), approx_count_distinct(a), histogram(a), median(a), stddev(a), corr(a, b),
  entropy(a), list(a), any_value(a), count_if(a > 1), bool_or(a), product(a), mad(a), skewness(a), kurtosis(a),
  regr_slope(a, b) FROM g

SELECT a::INT, CAST(a AS DECIMAL(10, 2)), TRY_CAST(a AS DATE), a::INT[], a::STRUCT(x INT, y VARCHAR),
  a::MAP(VARCHAR, INT), a::ENUM ('x'), a::TIMESTAMPTZ FROM g

SELECT TRY(1 / a), coalesce(a, b), ifnull(a, b), nullif(a, b), greatest(a, b), least(a, b), if(a, b, c), CASE WHEN a
  THEN b ELSE c END, CASE a WHEN 1 THEN 2 END FROM g

SELECT [x * 2 FOR x IN list IF x > 1], list_transform(l, lambda x: x + 1), list_filter(l, lambda x, i: i > 1),
  list_reduce(l, lambda a, b: a + b), list_sum(l), l[1], l[1:3], l[-1], len(l), unnest(l), list_sort(l),
  list_distinct(l), list_aggregate(l, 'sum') FROM g

SELECT {'a': 1, 'b': [1]}, s.a, s['a'], struct_extract(s, 'a'), row(1, 2), map {'k': 1}['k'], map_keys(m),
  struct_pack(a := 1), struct_insert(s, b := 2) FROM g

SELECT j->'a', j->>'$.a.b', json_extract(j, '$.a'), json_extract_string(j, 'a'), json_array_length(j), j::JSON,
  to_json(a), json_object('a', 1), json_group_array(a) FROM g

SELECT a LIKE 'x%', a NOT LIKE 'x', a ILIKE 'x' ESCAPE '!', a SIMILAR TO 'x+', a ~ 'x', a GLOB 'x*',
  regexp_matches(a, 'x'), regexp_extract(a, '(x)', 1), regexp_replace(a, 'x', 'y', 'g'), a ^@ 'x', starts_with(a,
  'x'), contains(a, 'x') FROM g

SELECT a || b, lower(a), upper(a), trim(BOTH ' ' FROM a), substring(a FROM 1 FOR 2), position('x' IN a), overlay(a
  PLACING 'x' FROM 1), split_part(a, ',', 1), string_split(a, ','), printf('%d', 1), format('{}', a), lpad(a, 3,
  '0'), left(a, 2), a[1:2], a.lower().trim(), md5(a), sha256(a), hash(a), base64(a::BLOB), strip_accents(a),
  levenshtein(a, b), jaccard(a, b) FROM g

SELECT t + INTERVAL 1 DAY, t - t2, t AT TIME ZONE 'Europe/Berlin', date_trunc('hour', t), extract(dow FROM t),
  date_part('epoch', t), epoch(t), epoch_us(t), date_diff('day', t, t2), strftime(t, '%Y'), strptime('1', '%d'),
  time_bucket(INTERVAL '5 minutes', t), make_timestamp(2026, 1, 1, 0, 0, 0.0), to_timestamp(1), now(), current_date,
  current_timestamp, today(), age(t), last_day(t), dayname(t), year(t), t::DATE, DATE '2026-01-01', TIMESTAMPTZ
  '2026-01-01 00:00:00+00', generate_series(t, t2, INTERVAL 1 DAY) FROM g

SELECT a BETWEEN 1 AND 2, a NOT BETWEEN 1 AND 2, a IN (1, 2), a NOT IN (SELECT b FROM h), a IS NULL, a IS NOT
  DISTINCT FROM b, a = ANY (SELECT b FROM h), a > ALL (SELECT b FROM h), EXISTS (SELECT 1 FROM h WHERE h.b = g.a),
  NOT a, a AND b OR c, -a, +a, ~a, a % 2, a // 2, a ** 2, a ^ 2, a & 1, a | 1, a << 1, a!, @a, xor(a, 1) FROM g

SELECT abs(a), round(a, 2), floor(a), ceil(a), sqrt(a), ln(a), log(a), log2(a), exp(a), pow(a, 2), sin(a), pi(),
  random(), sign(a), isnan(a), isfinite(a), trunc(a), cbrt(a), gcd(a, 2), factorial(3), uuid(), gen_random_uuid()
  FROM g

SELECT list_cosine_similarity(a, b), array_distance(a, b), list_dot_product(a, b),
  array_cosine_distance(a::FLOAT[3], b), list_inner_product(a, b) FROM g

SELECT g.* EXCLUDE (a) REPLACE (b + 1 AS b) RENAME (c AS d), COLUMNS('x.*'), COLUMNS(c -> c LIKE 'y%'),
  min(COLUMNS(*)) FROM g

SELECT * FROM g JOIN h USING (id) LEFT JOIN k ON g.a = k.a RIGHT JOIN l ON true FULL JOIN m ON 1 = 1 CROSS JOIN n, o

SELECT * FROM g ASOF LEFT JOIN h ON g.id = h.id AND g.t >= h.t

SELECT * FROM g ASOF JOIN h USING (id, t)

SELECT * FROM g SEMI JOIN h USING (id)

SELECT * FROM g ANTI JOIN h USING (id)

SELECT * FROM g POSITIONAL JOIN h

SELECT * FROM g NATURAL JOIN h

SELECT * FROM g, LATERAL (SELECT max(b) FROM h WHERE h.id = g.id) x

SELECT * FROM g, unnest(g.l) AS u(x)

SELECT * FROM generate_series(1, 10) AS s(i) LEFT JOIN range(5) r ON true

SELECT * FROM unnest([1, 2]) WITH ORDINALITY

SELECT * FROM (VALUES (1, 'a'), (2, 'b')) v(i, s) JOIN g ON g.i = v.i

VALUES (1), (2)

FROM g

FROM g SELECT a WHERE b > 1

TABLE g

SELECT 1 UNION SELECT 2 UNION ALL SELECT 3 INTERSECT SELECT 4 EXCEPT SELECT 5 ORDER BY 1 LIMIT 1

(SELECT a FROM g) UNION ALL BY NAME (SELECT b FROM h)

WITH x AS (SELECT 1), y(a) AS MATERIALIZED (SELECT * FROM x), z AS NOT MATERIALIZED (FROM y) SELECT * FROM x, y, z

WITH RECURSIVE t(n) AS (VALUES (1) UNION ALL SELECT n + 1 FROM t WHERE n < 10) SELECT sum(n) FROM t

FROM g PIVOT (sum(v), count(*) FOR y IN (2020, 2021) m IN ('a' AS x) GROUP BY c)

PIVOT g ON y IN (2020, 2021) USING sum(v) GROUP BY c

UNPIVOT g ON COLUMNS(* EXCLUDE id) INTO NAME n VALUE v

SELECT * FROM g UNPIVOT INCLUDE NULLS (v FOR n IN (a, b))

SELECT (SELECT max(a) FROM g), ARRAY(SELECT a FROM g), (FROM g SELECT a LIMIT 1)

SELECT #1, a AS "größe", "an ""odd"" name" FROM g GROUP BY 1 ORDER BY a COLLATE NOCASE

SELECT a: 1 + 1, b: a * 2

SELECT json.key FROM json_each('{"a": 1}') json

SELECT $$it is$$, E'\n', '\x41'::BLOB, 1e3, 0xff, 1_000, 'x'::VARCHAR COLLATE de

SELECT histogram(a), bar(a, 0, 10, 5), equi_width_bins(0, 10, 2, true) FROM g

DESCRIBE SELECT a, b FROM g

SUMMARIZE SELECT * FROM g

EXPLAIN WITH x AS (FROM g) FROM x
"""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> sandbox_child.Gate:
    return sandbox_child.Gate(str(tmp_path_factory.mktemp("gate")))


@pytest.mark.parametrize("statement", ORDINARY.strip().split("\n\n"), ids=lambda statement: ascii(statement[:70]))
def test_the_gate_lets_ordinary_sql_through(gate: sandbox_child.Gate, statement: str) -> None:
    assert gate.read(statement).sql.endswith(statement.removeprefix("EXPLAIN"))


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM read_csv('{canary}')",
        "SELECT * FROM read_text('{canary}')",
        "SELECT * FROM read_parquet('{unlisted}')",
        "SELECT * FROM '{unlisted}'",
        "SELECT * FROM glob('{data}/*')",
        "SELECT * FROM query('SELECT * FROM read_text(''{canary}'')')",
        "COPY (SELECT 1) TO '{data}/written.csv'",
        "ATTACH '{data}/written.db'",
        "SET enable_external_access = true",
        "SET allowed_paths = ['{canary}']",
        "SET memory_limit = '100GB'",
        "RESET lock_configuration",
        "INSTALL httpfs",
        "LOAD '{data}/x.duckdb_extension'",
        "SELECT * FROM engine",
    ],
)
def test_what_passed_the_gate_would_meet_the_engines_locks(
    planner: Planner, places: dict[str, str], tmp_path: Path, statement: str
) -> None:
    relations = planner.everything(())
    limits = sandbox_child.Limits(timeout_s=30, memory_bytes=1 << 28, temp_bytes=1 << 28, threads=1)
    with sandbox_child.open_engine(str(tmp_path)) as engine:
        views = [(view.schema, view.name, view.sql) for view in relations.views]
        sandbox_child.lock_engine(engine, limits, relations.files, views)
        assert engine.execute("SELECT count(*) FROM orders").fetchall() == [(6,)]
        with pytest.raises(duckdb.Error) as caught:
            engine.execute(fill(statement, places)).fetchall()
    assert CANARY not in str(caught.value)


# resolve ----------------------------------------------------------------------------------------------------------------


def test_what_resolve_raises_is_passed_on(sandbox: Sandbox) -> None:
    raised = FeatureGroupNotFound("absent")
    seen: list[int] = []

    def resolve(names: Sequence[TableName]) -> Relations:
        seen.extend(children())
        raise raised

    with pytest.raises(FeatureGroupNotFound) as caught:
        sandbox.run("SELECT * FROM absent", resolve)
    assert caught.value is raised
    assert any(pid not in children() for pid in seen), "the child that asked has ended"


def test_no_time_at_all(sandbox: Sandbox) -> None:
    with pytest.raises(QueryTimeout):
        sandbox.run("SELECT 1", no_tables, timeout_s=0)


def test_a_slow_resolve_counts(sandbox: Sandbox, planner: Planner) -> None:
    def resolve(names: Sequence[TableName]) -> Relations:
        time.sleep(0.3)
        return planner(names)

    with pytest.raises(QueryTimeout):
        sandbox.run("SELECT * FROM orders", resolve, timeout_s=0.3)


# limits -----------------------------------------------------------------------------------------------------------------


def test_a_deadline_that_the_engine_does_not_keep(sandbox: Sandbox) -> None:
    sandbox.fences()
    started = time.monotonic()
    with pytest.raises(QueryTimeout, match=r"after 0\.7 s"):
        sandbox.run(ENDLESS, no_tables, timeout_s=0.7)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("condition", ["a.range + b.range = 1", "(a.range + b.range) % 1000000 = 0"])
def test_a_deadline_that_the_engine_keeps(sandbox: Sandbox, condition: str) -> None:
    """Before the first row and between rows."""
    with pytest.raises(QueryTimeout):
        sandbox.run(f"SELECT a.range FROM range(9000000) a, range(9000000) b WHERE {condition}", no_tables, timeout_s=0.7)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    limits = SandboxLimits(rows_max=1000, bytes_max=1 << 20, memory_bytes=128 << 20, temp_bytes=32 << 20)
    with Sandbox(limits, tmp_path_factory.mktemp("temp")) as sandbox:
        yield sandbox


@pytest.mark.skipif(not LINUX, reason="RLIMIT_AS holds on Linux alone")
def test_memory_the_engine_does_not_count(narrow: Sandbox) -> None:
    with pytest.raises(QueryFailed):
        narrow.run("SELECT length(repeat('a', 2000000000))", no_tables)


def test_memory_the_engine_counts(narrow: Sandbox) -> None:
    with pytest.raises(QueryFailed, match="Out of Memory"):
        narrow.run("SELECT max(len(l)) FROM (SELECT list(range) AS l FROM range(100000000))", no_tables)


def test_temporary_files_are_bounded(narrow: Sandbox) -> None:
    with pytest.raises(QueryFailed, match="max_temp_directory_size"):
        narrow.run("SELECT r FROM (SELECT md5(range::VARCHAR) AS r FROM range(20000000)) ORDER BY r OFFSET 19999999", no_tables)


def test_more_rows_than_allowed(narrow: Sandbox) -> None:
    assert narrow.run("SELECT * FROM range(1000)", no_tables).num_rows == 1000
    with pytest.raises(QueryTooLarge, match="1000 rows"):
        narrow.run("SELECT * FROM range(1001)", no_tables)


def test_more_bytes_than_allowed(narrow: Sandbox) -> None:
    assert narrow.run("SELECT repeat('x', 1000) FROM range(900)", no_tables).nbytes > 900_000
    with pytest.raises(QueryTooLarge, match="1048576 bytes"):
        narrow.run(
            "SELECT repeat('x', 1000) FROM range(1000) WHERE range < 1100 UNION ALL SELECT repeat('y', 1 << 20)", no_tables
        )


# failures ---------------------------------------------------------------------------------------------------------------


def test_the_message_is_the_engines(sandbox: Sandbox, planner: Planner) -> None:
    with pytest.raises(QueryFailed, match='"vlaue" not found'):
        sandbox.run("SELECT vlaue FROM orders", planner)


def test_a_failure_in_the_middle_of_a_result(sandbox: Sandbox) -> None:
    with pytest.raises(QueryFailed, match="Could not convert string 'x'"):
        sandbox.run("SELECT CASE WHEN range < 500000 THEN '1' ELSE 'x' END::INT FROM range(500001)", no_tables)


def test_a_broken_file_is_not_named(sandbox: Sandbox, tmp_path: Path) -> None:
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(b"PAR1 this is no Parquet PAR1")
    schema = "map{'a': {name: 'a', type: 'BIGINT', default_value: NULL}}"
    view = View("history", "g", f"SELECT * FROM read_parquet(['{broken}'], schema={schema})")
    with pytest.raises(QueryFailed) as caught:
        sandbox.run("SELECT * FROM g", lambda _: Relations((view,), (str(broken),)))
    assert str(tmp_path) not in str(caught.value)
    assert "broken.parquet" not in str(caught.value)


def test_a_file_that_went_away_can_be_retried(sandbox: Sandbox, tmp_path: Path) -> None:
    view = View("history", "g", f"SELECT * FROM read_parquet(['{tmp_path}/gone.parquet'])")
    with pytest.raises(StoreUnavailable) as caught:
        sandbox.run("SELECT * FROM g", lambda _: Relations((view,), (f"{tmp_path}/gone.parquet",)))
    assert caught.value.retryable
    assert str(tmp_path) not in str(caught.value)


def test_a_file_that_is_not_listed_stays_closed(sandbox: Sandbox, places: dict[str, str]) -> None:
    """Even for a view: the planner's list is what counts."""
    view = View("history", "g", f"SELECT * FROM read_parquet(['{places['unlisted']}'])")
    with pytest.raises(QueryFailed, match="can't be read"):
        sandbox.run("SELECT * FROM g", lambda _: Relations((view,), ()))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGXCPU])
def test_a_child_that_is_killed(sandbox: Sandbox, planner: Planner, number: signal.Signals) -> None:
    def resolve(names: Sequence[TableName]) -> Relations:
        for pid in children():
            os.kill(pid, number)
        return planner(names)

    with pytest.raises(QueryFailed, match=r"memory|CPU time"):
        sandbox.run("SELECT * FROM orders", resolve)
    # The spare was killed too: the next statement finds another one.
    assert sandbox.run("SELECT 1 AS a", no_tables).to_pylist() == [{"a": 1}]


def test_an_interpreter_that_does_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    broken = tmp_path / "python"
    broken.write_text("#!/bin/sh\nhead -c 300000 /dev/zero | tr '\\0' 'x' >&2\necho the reason >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(broken))
    with (
        Sandbox(SandboxLimits(), tmp_path / "temp") as sandbox,
        caplog.at_level(logging.WARNING),
        pytest.raises(StoreUnavailable, match="status 3"),
    ):
        sandbox.run("SELECT 1", no_tables)
    assert "xxxx" in caplog.text


def test_no_interpreter_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with Sandbox(SandboxLimits(), tmp_path / "temp") as sandbox, pytest.raises(StoreUnavailable, match="could be started"):
        sandbox.run("SELECT 1", no_tables)


# processes and files ----------------------------------------------------------------------------------------------------


def test_nothing_starts_before_the_first_statement(tmp_path: Path) -> None:
    before = children()
    with Sandbox(SandboxLimits(), tmp_path / "temp"):
        assert children() == before
        assert not (tmp_path / "temp").exists()


def test_close_ends_everything(tmp_path: Path, planner: Planner) -> None:
    before = set(children())
    sandbox = Sandbox(SandboxLimits(), tmp_path / "temp")
    sandbox.run("SELECT 1", no_tables)
    running, caught = threading.Event(), []

    def resolve(names: Sequence[TableName]) -> Relations:
        running.set()
        return planner(names)

    def ask() -> None:
        try:
            sandbox.run(f"{ENDLESS} FROM orders", resolve)
        except StoreUnavailable as error:
            caught.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    assert running.wait(10)
    started = set(children()) - before
    assert started
    sandbox.close()
    asking.join(10)
    assert gone(*started)
    assert [str(error) for error in caught] == ["query: the sandbox is closed"]
    assert list((tmp_path / "temp").iterdir()) == []
    with pytest.raises(StoreUnavailable, match="closed"):
        sandbox.run("SELECT 1", no_tables)
    sandbox.close()


def test_temporary_files_are_removed(tmp_path: Path, planner: Planner) -> None:
    def resolve(names: Sequence[TableName]) -> Relations:
        seen.extend(path for path in tmp_path.glob("temp/sandbox-*/*"))
        return planner(names)

    seen: list[Path] = []
    with Sandbox(SandboxLimits(), tmp_path / "temp") as sandbox:
        sandbox.run("SELECT * FROM orders", resolve)
        assert seen
        assert len([path for path in seen if path.exists()]) < len(seen)
    assert not any(path.exists() for path in seen)


def test_leftovers_of_a_crash_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / "sandbox-crashed" / "child"
    leftover.mkdir(parents=True)
    (leftover / "spilled").write_text(CANARY)
    with Sandbox(SandboxLimits(), tmp_path) as first, Sandbox(SandboxLimits(), tmp_path) as second:
        first.run("SELECT 1", no_tables)
        assert not leftover.exists()
        in_use = list(tmp_path.iterdir())
        second.run("SELECT 1", no_tables)
        assert all(path.exists() for path in in_use)


def test_the_child_knows_none_of_our_secrets(tmp_path: Path, planner: Planner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", CANARY)
    monkeypatch.setenv("FEATURESTORE_REDIS_URL", CANARY)
    before = set(children())
    environments: list[dict[str, str]] = []

    def resolve(names: Sequence[TableName]) -> Relations:
        environments.extend(psutil.Process(pid).environ() for pid in set(children()) - before)
        return planner(names)

    with Sandbox(SandboxLimits(), tmp_path / "temp") as sandbox:
        sandbox.run("SELECT * FROM orders", resolve)
    assert environments
    assert CANARY not in str(environments)
    assert not [name for environment in environments for name in environment if name.startswith(("AWS_", "FEATURESTORE_"))]


PARENT = """
import sys
import psutil
from pathlib import Path
from featurestore.query.sandbox import Relations, Sandbox, SandboxLimits, View

def resolve(names):
    print(*(child.pid for child in psutil.Process().children()), flush=True)
    return Relations((View("history", "g", "SELECT 1 AS a"),), ())

sandbox = Sandbox(SandboxLimits(timeout_s=120), Path(sys.argv[1]))
sandbox.run("SELECT 1", resolve)
sandbox.run(sys.argv[2] + " FROM g", resolve)
"""


def test_children_die_with_their_parent(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path), ENDLESS],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    ) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert pids
        parent.kill()
    assert gone(*pids)


# fences of the operating system -----------------------------------------------------------------------------------------


def test_fences_are_named(sandbox: Sandbox) -> None:
    fences = sandbox.fences()
    assert {"child process, killed at the deadline", "statement gate", "engine locks"} <= set(fences)
    assert any(fence.startswith("resource limits:") for fence in fences)
    assert ("address space" in str(fences)) == LINUX


PRISONER = """
import json, os, resource, signal, socket, subprocess, sys, threading
from featurestore.query import os_limits, sandbox_child

private, listed, unlisted = sys.argv[1:]
fences = sandbox_child.put_up_fences(private)
sandbox_child.limit_process(sandbox_child.Limits(timeout_s=5, memory_bytes=1 << 28, temp_bytes=1 << 20, threads=1))
os_limits.forbid_reads([listed], private)

def tried(action):
    outcome = []
    def run():
        try:
            action()
            outcome.append("done")
        except BaseException as error:
            outcome.append(type(error).__name__)
    # What holds the main thread has to hold those it starts.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]

def fill(path):
    with open(path, "wb") as file:
        file.write(bytes(1 << 21))

print(json.dumps({
    "fences": fences,
    "read listed": tried(lambda: open(listed).read()),
    "read unlisted": tried(lambda: open(unlisted).read()),
    "read passwd": tried(lambda: open("/etc/passwd").read()),
    "list": tried(lambda: os.listdir("/")),
    "write listed": tried(lambda: open(listed, "a")),
    "delete listed": tried(lambda: os.unlink(listed)),
    "write elsewhere": tried(lambda: open(unlisted + ".new", "w")),
    "write private": tried(lambda: open(private + "/new", "w").write("x")),
    "read private": tried(lambda: open(private + "/new").read()),
    "fill private": tried(lambda: fill(private + "/big")),
    "tcp": tried(lambda: socket.create_connection(("127.0.0.1", 9), 1)),
    "udp": tried(lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX)),
    "exec": tried(lambda: subprocess.run([sys.executable, "-c", ""], check=True)),
    "signal": tried(lambda: os.kill(os.getppid(), signal.SIGCONT)),
    "memory": tried(lambda: bytearray(4 << 30)),
    "descriptors": tried(lambda: [os.dup(1) for _ in range(300)]),
    "core": resource.getrlimit(resource.RLIMIT_CORE)[1],
    "cpu": resource.getrlimit(resource.RLIMIT_CPU)[0],
}))
"""


@pytest.fixture(scope="module")
def prisoner(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """What a process behind the fences could still do, by action: `done` or the name of the error."""
    directory = tmp_path_factory.mktemp("prison")
    private, listed, unlisted = directory / "private", directory / "listed", directory / "unlisted"
    private.mkdir()
    listed.write_text("x")
    unlisted.write_text("x")
    answer = subprocess.run(
        [sys.executable, "-c", PRISONER, str(private), str(listed), str(unlisted)],
        check=True,
        capture_output=True,
        env={"PYTHONPATH": str(REPOSITORY), "JE_ARROW_MALLOC_CONF": "background_thread:false", "OPENBLAS_NUM_THREADS": "1"},
    )
    assert listed.read_text() == "x"
    outcomes: dict[str, object] = json.loads(answer.stdout)
    return outcomes


def test_landlock_holds(prisoner: dict[str, object]) -> None:
    if "Landlock" not in str(prisoner["fences"]):
        pytest.skip("this kernel has no Landlock")
    allowed = ["read listed", "write private", "read private"]
    refused = ["read unlisted", "read passwd", "list", "write listed", "delete listed", "write elsewhere"]
    assert [prisoner[action] for action in allowed] == ["done"] * len(allowed)
    assert [prisoner[action] for action in refused] == ["PermissionError"] * len(refused)


def test_seccomp_holds(prisoner: dict[str, object]) -> None:
    if "seccomp" not in str(prisoner["fences"]):
        pytest.skip("this kernel or processor has no seccomp filter of ours")
    actions = ["tcp", "udp", "unix", "exec", "signal"]
    assert [prisoner[action] for action in actions] == ["PermissionError"] * len(actions)


def test_resource_limits_hold(prisoner: dict[str, object]) -> None:
    assert (prisoner["fill private"], prisoner["descriptors"]) == ("OSError", "OSError")
    assert (prisoner["core"], prisoner["cpu"]) == (0, 15)
    if LINUX:
        assert prisoner["memory"] == "MemoryError"


# results batch by batch -------------------------------------------------------------------------------------------------


def test_a_stream_has_no_limit_of_rows(tmp_path: Path, planner: Planner) -> None:
    limits = SandboxLimits(rows_max=10, bytes_max=1 << 20)
    with Sandbox(limits, tmp_path) as sandbox:
        with sandbox.stream("SELECT x, sum(x) OVER () AS s FROM range(300000) t(x)", no_tables, timeout_s=60) as stream:
            assert stream.schema.names == ["x", "s"]
            assert stream.engine_types == ("BIGINT", "HUGEINT")
            assert sum(batch.num_rows for batch in stream.batches) == 300_000
        with sandbox.stream('SELECT * FROM "my-group" WHERE false', planner, timeout_s=60) as stream:
            assert [batch.num_rows for batch in stream.batches] == [0] * 0
            assert stream.schema.names == ["id", "event_time", "value"]
        with pytest.raises(QueryTooLarge), sandbox.stream("SELECT repeat('x', 2 << 20)", no_tables, timeout_s=60) as stream:
            list(stream.batches)


def test_a_stream_sends_wide_batches_in_parts(sandbox: Sandbox) -> None:
    with sandbox.stream("SELECT repeat('x', 100000) FROM range(1000)", no_tables, timeout_s=60) as stream:
        sizes = [batch.nbytes for batch in stream.batches]
    assert max(sizes) <= sandbox_child.BATCH_BYTES * 1.1
    assert sum(sizes) >= 100_000_000


def test_settings_of_a_dialect(sandbox: Sandbox) -> None:
    for division, expected in ((True, "3"), (False, "3.5")):
        settings = (("integer_division", division),)
        with sandbox.stream("SELECT (7 / 2)::VARCHAR", no_tables, timeout_s=60, settings=settings) as stream:
            (batch,) = stream.batches
            assert batch[0].to_pylist() == [expected]


def test_a_stream_that_is_stopped(sandbox: Sandbox) -> None:
    stop = Stop()
    threading.Timer(0.3, stop.stop).start()
    with pytest.raises(QueryStopped), sandbox.stream(ENDLESS, no_tables, timeout_s=60, stop=stop) as stream:
        list(stream.batches)
    with pytest.raises(QueryStopped), sandbox.stream("SELECT 1", no_tables, timeout_s=60, stop=stop) as stream:
        list(stream.batches)


def test_the_error_of_whoever_takes_a_stream_is_their_own(sandbox: Sandbox) -> None:
    with pytest.raises(OSError, match="disk"), sandbox.stream("SELECT 1", no_tables, timeout_s=60):
        raise OSError("disk")


def test_a_stream_has_a_deadline(sandbox: Sandbox) -> None:
    with pytest.raises(QueryTimeout), sandbox.stream(ENDLESS, no_tables, timeout_s=1) as stream:
        list(stream.batches)
