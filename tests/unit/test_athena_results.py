"""Results as text: Athena's quoting and forms of values, and pages read back from any place of the file."""

from __future__ import annotations

import csv
import io
import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.athena.results import (
    ResultColumn,
    Written,
    csv_chunks,
    read_lines,
    read_page,
    read_token,
    result_columns,
    token_of,
)
from featurestore.errors import StoreCorrupt, ValidationFailed
from featurestore.query.sandbox import ResultStream
from featurestore.query.sandbox_child import ENGINE_TYPES


def stream_of(batches: list[pa.RecordBatch], engine_types: list[str]) -> ResultStream:
    schema = batches[0].schema.with_metadata({ENGINE_TYPES: json.dumps(engine_types)})
    return ResultStream(schema, iter(batches))


def text_of(kind: pa.DataType, engine_type: str, *values: Any) -> list[str]:
    batch = pa.record_batch([pa.array(values, kind)], names=["x"])
    lines = b"".join(csv_chunks(stream_of([batch], [engine_type]), Written())).decode().splitlines()
    assert lines[0] == '"x"'
    return [line.removeprefix('"').removesuffix('"').replace('""', '"') for line in lines[1:]]


UTC_US = pa.timestamp("us", "UTC")


@pytest.mark.parametrize(
    ("kind", "engine_type", "value", "text"),
    [
        (pa.float64(), "DOUBLE", 1.0, "1.0"),
        (pa.float64(), "DOUBLE", -0.0, "-0.0"),
        (pa.float64(), "DOUBLE", 0.1 + 0.2, "0.30000000000000004"),
        (pa.float64(), "DOUBLE", 1700000000.123456, "1700000000.123456"),
        (pa.float64(), "DOUBLE", 1e20, "1.0E20"),
        (pa.float64(), "DOUBLE", 1.5e-7, "1.5E-7"),
        (pa.float64(), "DOUBLE", float("nan"), "NaN"),
        (pa.float64(), "DOUBLE", float("-inf"), "-Infinity"),
        (pa.bool_(), "BOOLEAN", True, "true"),
        (pa.int64(), "BIGINT", -(2**63), str(-(2**63))),
        (pa.decimal128(38, 0), "HUGEINT", Decimal(10**20), "1" + "0" * 20),
        (pa.decimal128(5, 2), "DECIMAL(5,2)", Decimal("1.50"), "1.50"),
        (pa.timestamp("us"), "TIMESTAMP", datetime(2024, 1, 2, 3, 4, 5), "2024-01-02 03:04:05.000"),
        (pa.timestamp("us"), "TIMESTAMP", datetime(2024, 1, 2, 3, 4, 5, 250_000), "2024-01-02 03:04:05.250"),
        (pa.timestamp("us"), "TIMESTAMP", datetime(2024, 1, 2, 3, 4, 5, 250_001), "2024-01-02 03:04:05.250001"),
        (pa.timestamp("ms"), "TIMESTAMP_MS", datetime(2024, 1, 2), "2024-01-02 00:00:00.000"),
        (UTC_US, "TIMESTAMP WITH TIME ZONE", datetime(2024, 1, 2, tzinfo=UTC), "2024-01-02 00:00:00.000 UTC"),
        (pa.date32(), "DATE", date(2024, 1, 2), "2024-01-02"),
        (pa.time64("us"), "TIME", time(3, 4, 5), "03:04:05.000000"),
        (pa.string(), "VARCHAR", 'say "x", y', 'say "x", y'),
        (pa.binary(), "BLOB", b"\xde\xad", "de ad"),
        (pa.list_(pa.int64()), "BIGINT[]", [1, None], "[1, null]"),
        (pa.list_(UTC_US), "TIMESTAMP WITH TIME ZONE[]", [datetime(2024, 1, 2, tzinfo=UTC)], "[2024-01-02 00:00:00.000 UTC]"),
        (pa.map_(pa.string(), pa.float64()), "MAP(VARCHAR, DOUBLE)", [("a", 1.0)], "{a=1.0}"),
        (pa.struct([("a", pa.bool_())]), "STRUCT(a BOOLEAN)", {"a": True}, "{a=true}"),
        (pa.duration("us"), "INTERVAL", timedelta(seconds=1), "1000000"),
    ],
)
def test_a_value_as_text(kind: pa.DataType, engine_type: str, value: Any, text: str) -> None:
    assert text_of(kind, engine_type, value) == [text]


def test_types_are_athenas() -> None:
    engine_types = ["HUGEINT", "DECIMAL(10,3)", "VARCHAR[]", "MAP(VARCHAR, BIGINT)", "STRUCT(a BIGINT)", '"NULL"', "ENUM('a')"]
    batch = pa.record_batch([pa.nulls(0)] * len(engine_types), names=list("abcdefg"))
    assert result_columns(stream_of([batch], engine_types)) == [
        ResultColumn("a", "bigint", 19),
        ResultColumn("b", "decimal", 10, 3),
        ResultColumn("c", "array"),
        ResultColumn("d", "map"),
        ResultColumn("e", "row"),
        ResultColumn("f", "unknown"),
        ResultColumn("g", "varchar", 2147483647),
    ]


CELLS = st.one_of(
    st.none(), st.sampled_from(["", '"', ",", "\n", '"",\n"']), st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
)
TABLES = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(CELLS, min_size=width, max_size=width), max_size=12).map(lambda rows: (width, rows))
)


@given(TABLES, st.integers(1, 5), st.integers(1, 6))
def test_what_is_written_is_read_back_page_by_page(
    table: tuple[int, list[list[str | None]]], batch_rows: int, page_rows: int
) -> None:
    width, rows = table
    names = [f'c"{place}' for place in range(width)]
    schema = pa.schema([(name, pa.string()) for name in names])
    batches = [
        pa.record_batch(
            [pa.array([row[place] for row in rows[at : at + batch_rows]], pa.string()) for place in range(width)], schema=schema
        )
        for at in range(0, max(1, len(rows)), batch_rows)
    ]
    written = Written()
    content = b"".join(csv_chunks(stream_of(batches, ["VARCHAR"] * width), written))
    assert (written.rows, written.bytes) == (len(rows), len(content))
    found: list[list[str | None]] = []
    offset: int | None = 0
    while offset is not None:
        page = read_page(io.BytesIO(content), len(content), width, offset=offset, rows_max=page_rows)
        assert len(page.rows) <= page_rows
        found += page.rows
        offset = page.offset_next
    assert found == [names, *rows]
    # Any CSV reader sees the same texts; only it can't tell nothing from an empty text, nor one null in a line from no line.
    if not any(row == [None] for row in rows) and not any("\r" in (cell or "") for row in rows for cell in row):
        plain = list(csv.reader(io.StringIO(content.decode(), newline="")))
        assert plain == [names, *[[cell or "" for cell in row] for row in rows]]


@pytest.mark.parametrize("content", [b"a,b\n", b'"a"\n', b'"a","b', b'"a","b"x\n', b'"a",', b"\xff\n"])
def test_a_file_that_is_no_result(content: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        read_page(io.BytesIO(content), len(content), 2, offset=0, rows_max=9)


def test_lines() -> None:
    page = read_lines(io.BytesIO(b"a\n\nc\n"), 5, offset=0, rows_max=2)
    assert (page.rows, page.offset_next) == ([["a"], [""]], 3)
    assert read_lines(io.BytesIO(b"a\n\nc\n"), 5, offset=3, rows_max=2).rows == [["c"]]


def test_tokens() -> None:
    assert read_token(token_of("id", 7), "id") == 7
    for token in ("", "x", token_of("other", 7), token_of("id", -1)):
        with pytest.raises(ValidationFailed, match="NextToken"):
            read_token(token, "id")
