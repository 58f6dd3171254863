"""The statement that the SageMaker SDKs make of a dataset, translated and run over our files, against brute force.

`dataset_sql` renders the shape that `create_dataset(...).point_in_time_accurate_join()` sends; the oracle is written from what
that statement means: of equal event times the later write counts, what is not after the newest delete of its record is gone, and
a row of the base meets every row of the target that is not later.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.athena.catalog import GroupTable
from featurestore.athena.dialect import DIALECT_SETTINGS
from featurestore.athena.tables import ExternalColumn, ExternalTable
from featurestore.athena.translate import SCHEMA, translate
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import FeatureGroup, FeatureType, OfflineConfig, definitions
from featurestore.offline import schema
from featurestore.query.sight import Sight

SECOND_US = 1_000_000


@dataclass(frozen=True)
class Row:
    """One row of an offline table; its write time is its place in the list."""

    key: str
    time_s: int
    deleted: bool
    value: int | None
    api_time_us: int


@dataclass(frozen=True)
class Options:
    event_type: FeatureType
    recent: int | None = None
    since_s: int | None = None
    until_s: int | None = None
    written_by_us: int | None = None
    duplicates: bool = False


ROWS = st.lists(
    st.builds(
        Row,
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 6),
        st.sampled_from([False, False, False, True]),
        st.one_of(st.none(), st.integers(0, 99)),
        st.integers(0, 4),
    ),
    max_size=14,
)
SPINE = st.lists(
    st.tuples(st.sampled_from(["a", "b", "d", ""]), st.integers(0, 7), st.sampled_from(["x", 'say "y", then'])), max_size=6
)
OPTIONS = st.builds(
    Options,
    st.sampled_from([FeatureType.STRING, FeatureType.FRACTIONAL, FeatureType.INTEGRAL]),
    st.one_of(st.none(), st.integers(1, 3)),
    st.one_of(st.none(), st.integers(0, 6)),
    st.one_of(st.none(), st.integers(0, 6)),
    st.one_of(st.none(), st.integers(0, 3).map(lambda seconds: seconds * SECOND_US)),
    st.booleans(),
)


# the statement ----------------------------------------------------------------------------------------------------------


def instant(column: str, options: Options) -> str:
    return f"{'from_iso8601_timestamp' if options.event_type is FeatureType.STRING else 'from_unixtime'}({column})"


def conditions(prefix: str, options: Options, *, group: bool) -> list[str]:
    found = []
    if group and options.written_by_us is not None:
        moment = format_iso(options.written_by_us).replace("T", " ").removesuffix("Z")
        found.append(f"{prefix}.\"write_time\" <= to_timestamp('{moment}', 'yyyy-mm-dd hh24:mi:ss')")
    if options.since_s is not None:
        found.append(f"{instant(f'{prefix}.{chr(34)}at{chr(34)}', options)} >= from_unixtime({float(options.since_s)})")
    if options.until_s is not None:
        found.append(f"{instant(f'{prefix}.{chr(34)}at{chr(34)}', options)} <= from_unixtime({float(options.until_s)})")
    return found


def where(found: list[str]) -> str:
    return "WHERE " + "\nAND ".join(found) if found else ""


def group_sql(suffix: str, table: str, columns: list[str], options: Options) -> str:
    """One feature group: duplicates resolved, then what is not after the newest delete of its record left out."""
    name, origin = f"table_{suffix}", f"origin_{suffix}"
    source = f'"sagemaker_featurestore"."{table}"'
    selected = ", ".join(f'{name}."{column}"' for column in [*columns, "write_time"])
    final = ", ".join(f'{name}."{column}"' for column in columns)
    written = conditions(origin, Options(options.event_type, written_by_us=options.written_by_us), group=True)
    deduplicated = f"""{name} AS (
        SELECT *
        FROM (
        SELECT *, row_number() OVER (
        PARTITION BY {origin}."id", {origin}."at"
        ORDER BY {origin}."api_invocation_time" DESC, {origin}."write_time" DESC
        ) AS dedup_row_{suffix}
        FROM {source} {origin}
        {where(written)}
        )
        WHERE dedup_row_{suffix} = 1
        ),"""
    raw = options.duplicates
    rows = f"{source} {name}" if raw else name
    later = " OR ".join(
        f"({condition})"
        for condition in (
            f'{name}."at" > deleted_{suffix}."at"',
            f'{name}."at" = deleted_{suffix}."at" AND {name}."api_invocation_time" > deleted_{suffix}."api_invocation_time"',
            f'{name}."at" = deleted_{suffix}."at" AND {name}."api_invocation_time" = deleted_{suffix}."api_invocation_time" '
            f'AND {name}."write_time" > deleted_{suffix}."write_time"',
        )
    )
    return f"""fg_{suffix} AS (WITH {"" if raw else deduplicated}
        deleted_{suffix} AS (
        SELECT *
        FROM (
        SELECT *, row_number() OVER (
        PARTITION BY {origin}."id"
        ORDER BY {origin}."at" DESC, {origin}."api_invocation_time" DESC, {origin}."write_time" DESC
        ) AS deleted_row_{suffix}
        FROM {source} {origin}
        {where(["is_deleted", *written])}
        )
        WHERE deleted_row_{suffix} = 1
        )
        SELECT {final}
        FROM (
        SELECT {selected}
        FROM {rows}
        LEFT JOIN deleted_{suffix}
        ON {name}."id" = deleted_{suffix}."id"
        WHERE deleted_{suffix}."id" IS NULL
        UNION ALL
        SELECT {selected}
        FROM deleted_{suffix}
        JOIN {rows}
        ON {name}."id" = deleted_{suffix}."id"
        AND ({later})
        ) AS {name}
        {where(conditions(name, options, group=True))}
        )"""


def dataset_sql(base: str, base_columns: list[str], options: Options) -> str:
    spine = base.startswith("dataframe")
    columns = ", ".join(f'table_base."{column}"' for column in base_columns)
    if spine:
        conditioned = where(conditions("table_base", options, group=False))
        first = f'fg_base AS (SELECT {columns} FROM "sagemaker_featurestore"."{base}" table_base {conditioned})'
    else:
        first = group_sql("base", base, base_columns, options)
    target = ["id", "at", "value"]
    outer = ", ".join([*base_columns, *(f'"{column}.1"' for column in target)])
    inner = ", ".join(
        [*(f"fg_base.{column}" for column in base_columns), *(f'fg_0."{column}" as "{column}.1"' for column in target)]
    )
    return f"""WITH {first},
        {group_sql("0", "target", target, options)}
        SELECT {outer}
        FROM (
        SELECT {inner}, row_number() OVER (
        PARTITION BY fg_base."id"
        ORDER BY fg_base."at" DESC, fg_0."at" DESC
        ) AS row_recent
        FROM fg_base
        JOIN fg_0
        ON fg_base."id" = fg_0."id"
        AND {instant('fg_base."at"', options)} >= {instant('fg_0."at"', options)}
        )
        {"" if options.recent is None else f"WHERE row_recent <= {options.recent}"}
        """


# the oracle -------------------------------------------------------------------------------------------------------------


def remaining(rows: list[Row], options: Options) -> list[Row]:
    """What `group_sql` leaves of a table."""
    written_us = {id(row): place * SECOND_US // 3 for place, row in enumerate(rows)}
    seen = [row for row in rows if options.written_by_us is None or written_us[id(row)] <= options.written_by_us]

    def arrival(row: Row) -> tuple[int, int]:
        return row.api_time_us, written_us[id(row)]

    counting = list(rows) if options.duplicates else []
    if not options.duplicates:
        for place in {(row.key, row.time_s) for row in seen}:
            counting.append(max((row for row in seen if (row.key, row.time_s) == place), key=arrival))
    left = []
    for row in counting:
        if options.written_by_us is not None and written_us[id(row)] > options.written_by_us:
            continue
        if options.since_s is not None and row.time_s < options.since_s:
            continue
        if options.until_s is not None and row.time_s > options.until_s:
            continue
        graves = [(other.time_s, *arrival(other)) for other in seen if other.deleted and other.key == row.key]
        if not graves or (row.time_s, *arrival(row)) > max(graves):
            left.append(row)
    return left


Answer = tuple[str, int, object, int, int | None]


def expected(base: list[tuple[str, int, object]], target: list[Row], options: Options) -> list[list[Answer]]:
    """Per identifier the rows of the dataset in the order in which the most recent ones are kept."""
    by_key: dict[str, list[Answer]] = {}
    for key, time_s, payload in base:
        for row in remaining(target, options):
            if row.key == key and row.time_s <= time_s:
                by_key.setdefault(key, []).append((key, time_s, payload, row.time_s, row.value))
    return [sorted(found, key=lambda item: (-item[1], -item[3])) for found in by_key.values()]


def check(found: list[Answer], wanted: list[list[Answer]], recent: int | None) -> None:
    for group in wanted:
        answers = [answer for answer in found if answer[0] == group[0][0]]
        if recent is None or recent >= len(group):
            assert sorted(answers, key=repr) == sorted(group, key=repr)
            continue
        # Of rows with the same two event times any may be among the last ones.
        assert len(answers) == recent
        assert all(group.count(answer) >= answers.count(answer) for answer in answers)
        assert sorted(((a[1], a[3]) for a in answers), reverse=True) == [(a[1], a[3]) for a in group[:recent]]
    assert {answer[0] for answer in found} <= {group[0][0] for group in wanted}


# the run ----------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def engine() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect() as engine:
        engine.execute("SET TimeZone = 'UTC'")
        for name, value in DIALECT_SETTINGS:
            engine.execute(f"SET {name} = {value}")
        engine.execute(f"CREATE SCHEMA {SCHEMA}")
        yield engine


def event_time(time_s: int, kind: FeatureType) -> str | float | int:
    if kind is FeatureType.STRING:
        return format_iso(time_s * SECOND_US)
    return float(time_s) if kind is FeatureType.FRACTIONAL else time_s


def group_view(folder: Path, name: str, rows: list[Row], kind: FeatureType) -> str:
    features = definitions([("id", FeatureType.STRING), ("at", kind), ("value", FeatureType.INTEGRAL)])
    group = FeatureGroup(name, "id", "at", features, offline=OfflineConfig("s3://bucket"), feature_counts=(3,))
    instants = pa.array([row.time_s * SECOND_US for row in rows], pa.int64())
    table = pa.table(
        [
            pa.array([row.key for row in rows], pa.string()),
            pa.array([event_time(row.time_s, kind) for row in rows], schema.table_schema(features).field("at").type),
            pa.array([None if row.deleted else row.value for row in rows], pa.int64()),
            pa.array([place * SECOND_US // 3 for place, _ in enumerate(rows)], schema.INSTANT),
            pa.array([row.api_time_us for row in rows], schema.INSTANT),
            pa.array([row.deleted for row in rows], pa.bool_()),
            instants.cast(schema.INSTANT),
            pa.nulls(len(rows), schema.INSTANT),
            pa.array([False] * len(rows), pa.bool_()),
        ],
        schema=schema.table_schema(features),
    )
    paths = []
    for part in range(2):
        paths.append(str(folder / f"{name}-{part}.parquet"))
        pq.write_table(table.slice(part * (len(rows) // 2), len(rows) // 2 if part == 0 else None), paths[-1])
    return GroupTable(group).sql(Sight(group, paths))


def spine_view(folder: Path, name: str, spine: list[tuple[str, int, str]], kind: FeatureType) -> str:
    """As pandas writes it and an SDK declares it."""
    quoted = ['"' + note.replace('"', '""') + '"' if '"' in note else note for _, _, note in spine]
    lines = [f"{key},{event_time(time_s, kind)},{note}\n" for (key, time_s, _), note in zip(spine, quoted, strict=True)]
    path = folder / "spine.csv"
    path.write_text("".join(lines))
    kinds = {FeatureType.STRING: "string", FeatureType.FRACTIONAL: "double", FeatureType.INTEGRAL: "int"}
    columns = (ExternalColumn("id", "string"), ExternalColumn("at", kinds[kind]), ExternalColumn("note", "string"))
    table = ExternalTable("sagemaker_featurestore", name, columns, "bucket", "p/", ",", "`", "\\")
    return table.sql([str(path)] if lines else [])


@settings(max_examples=40, deadline=None)
@given(ROWS, ROWS, SPINE, OPTIONS, st.booleans())
def test_a_dataset_is_what_its_statement_means(
    engine: duckdb.DuckDBPyConnection,
    tmp_path_factory: pytest.TempPathFactory,
    base_rows: list[Row],
    target_rows: list[Row],
    spine: list[tuple[str, int, str]],
    options: Options,
    of_frame: bool,
) -> None:
    folder = tmp_path_factory.mktemp("files")
    name, columns = ("dataframe_dataframe_base_1_0abc", ["id", "at", "note"]) if of_frame else ("base", ["id", "at", "value"])
    translated = translate(dataset_sql(name, columns, options), "sagemaker_featurestore")
    for place, ref in enumerate(translated.tables):
        rows = target_rows if ref.name == "target" else base_rows
        kind = options.event_type
        view = (
            spine_view(folder, name, spine, kind) if ref.name == name and of_frame else group_view(folder, ref.name, rows, kind)
        )
        engine.execute(f"CREATE OR REPLACE VIEW {SCHEMA}.t{place} AS {view}")
    times = {event_time(time_s, options.event_type): time_s for time_s in range(8)}
    answers = engine.sql(translated.sql).fetchall()
    assert all(answer[0] == answer[3] for answer in answers)
    found = [(key, times[at], payload, times[at_1], value) for key, at, payload, _, at_1, value in answers]
    if of_frame:
        base: list[tuple[str, int, object]] = [
            row
            for row in spine
            if (options.since_s is None or row[1] >= options.since_s) and (options.until_s is None or row[1] <= options.until_s)
        ]
    else:
        base = [(row.key, row.time_s, row.value) for row in remaining(base_rows, options)]
    check(found, expected(base, target_rows, options), options.recent)
