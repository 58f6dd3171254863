"""Results as Athena leaves them in a bucket: `<id>.csv` with every value in quotes and nothing for a null, and beside it
`<id>.csv.metadata`, which is JSON here. Written as the rows come, and read back by pages.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any, BinaryIO, Final

import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from featurestore.decoding import decode_json
from featurestore.errors import QueryFailed, StoreCorrupt, ValidationFailed
from featurestore.query.sandbox import ResultStream

PAGE_ROWS_MAX: Final = 1000
PAGE_BYTES_MAX: Final = 8 << 20
"""A page ends before its rows have more bytes than this in the file, however many were asked for."""
READ_BYTES: Final = 1 << 18
CELL_BYTES_MAX: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class ResultColumn:
    """A column of a result: its name as the statement has it, and Athena's name of its type."""

    name: str
    type: str
    precision: int = 0
    scale: int = 0


_TYPES: Final = {
    "BOOLEAN": ("boolean", 0),
    "TINYINT": ("tinyint", 3),
    "SMALLINT": ("smallint", 5),
    "INTEGER": ("integer", 10),
    "BIGINT": ("bigint", 19),
    **dict.fromkeys(("HUGEINT", "UHUGEINT", "UBIGINT", "UINTEGER", "USMALLINT", "UTINYINT"), ("bigint", 19)),
    "FLOAT": ("float", 17),
    "DOUBLE": ("double", 17),
    "VARCHAR": ("varchar", 2147483647),
    "UUID": ("varchar", 2147483647),
    "JSON": ("json", 0),
    "BLOB": ("varbinary", 1073741824),
    "DATE": ("date", 0),
    "TIME": ("time", 3),
    **dict.fromkeys(("TIMESTAMP", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"), ("timestamp", 3)),
    "TIMESTAMP WITH TIME ZONE": ("timestamp with time zone", 3),
    "INTERVAL": ("interval day to second", 0),
    '"NULL"': ("unknown", 0),
}


def result_columns(stream: ResultStream) -> list[ResultColumn]:
    """The columns of a result. Sums of integers, which the engine keeps in 128 bits, are bigint to clients."""
    return [_column(name, kind) for name, kind in zip(stream.schema.names, stream.engine_types, strict=True)]


def _column(name: str, engine_type: str) -> ResultColumn:
    if engine_type in _TYPES:
        kind, precision = _TYPES[engine_type]
        return ResultColumn(name, kind, precision)
    if found := re.fullmatch(r"DECIMAL\((\d+),\s*(\d+)\)", engine_type):
        return ResultColumn(name, "decimal", int(found[1]), int(found[2]))
    if engine_type.endswith("]"):
        return ResultColumn(name, "array")
    if engine_type.startswith("MAP("):
        return ResultColumn(name, "map")
    if engine_type.startswith("STRUCT("):
        return ResultColumn(name, "row")
    return ResultColumn(name, "varchar", 2147483647)


@dataclass(slots=True)
class Written:
    """What has gone into a result so far."""

    rows: int = 0
    bytes: int = 0


def csv_chunks(stream: ResultStream, written: Written) -> Iterator[bytes]:
    """The result's file, a batch of rows at a time.

    Raises: what taking the batches raises.
    """
    header = ",".join('"' + name.replace('"', '""') + '"' for name in stream.schema.names).encode() + b"\n"
    written.bytes += len(header)
    yield header
    formats = [_format_of(field.type, kind) for field, kind in zip(stream.schema, stream.engine_types, strict=True)]
    # Names may repeat in a result, which the writer does not mind as they are not written.
    names = [str(place) for place in range(len(formats))]
    options = pa_csv.WriteOptions(include_header=False, quoting_style="all_valid")
    for batch in stream.batches:
        try:
            texts = [form(column) for form, column in zip(formats, batch.columns, strict=True)]
            sink = io.BytesIO()
            pa_csv.write_csv(pa.table(texts, names=names), sink, options)
        except (pa.ArrowException, ValueError, OverflowError) as error:
            raise QueryFailed(f"a value can't be written as text; cast it ({error})") from error
        chunk = sink.getvalue()
        written.rows += batch.num_rows
        written.bytes += len(chunk)
        yield chunk


Format = Callable[[pa.Array], pa.Array]


def _format_of(kind: pa.DataType, engine_type: str) -> Format:
    """How a column becomes text."""
    if isinstance(kind, pa.BaseExtensionType):
        inner = _format_of(kind.storage_type, engine_type)
        return lambda column: inner(column.storage)
    if engine_type == "UUID" or pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return _as_text if not pa.types.is_fixed_size_binary(kind) else _python_text
    if pa.types.is_floating(kind):
        return _double_text
    if pa.types.is_timestamp(kind):
        return _timestamp_text
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_nested(kind) or pa.types.is_interval(kind):
        return _python_text
    if pa.types.is_null(kind):
        return lambda column: pa.nulls(len(column), pa.string())
    return _as_text


def _as_text(column: pa.Array) -> pa.Array:
    return pc.cast(column, pa.string())


def _double_text(column: pa.Array) -> pa.Array:
    """As Java writes a double, but for an exponent, which comes later: a column of whole numbers stays one of doubles."""
    texts = pc.cast(column, pa.string())
    texts = pc.replace_substring_regex(texts, r"^(-?\d+)$", r"\1.0")
    texts = pc.replace_substring_regex(texts, r"^(-?\d+)e\+?(-?\d+)$", r"\1.0E\2")
    texts = pc.replace_substring_regex(texts, r"^(-?\d+\.\d+)e\+?(-?\d+)$", r"\1E\2")
    texts = pc.replace_substring_regex(texts, r"^(-?)inf$", r"\1Infinity")
    return pc.replace_substring_regex(texts, r"^-?nan$", "NaN")


def _timestamp_text(column: pa.Array) -> pa.Array:
    """Three digits behind the second, and six where the time has them."""
    zone = column.type.tz is not None
    texts = pc.cast(column.cast(pa.timestamp("us"), safe=False), pa.string())
    texts = pc.replace_substring_regex(texts, r"^(.*\.\d{3})000$", r"\1")
    return pc.binary_join_element_wise(texts, pa.scalar(" UTC"), "") if zone else texts


def _python_text(column: pa.Array) -> pa.Array:
    return pa.array([None if value is None else _text(value) for value in column.to_pylist()], pa.string())


def _text(value: Any) -> str:
    """A value within an array, map or row, and bytes, which are printed in pairs of digits."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return str(_double_text(pa.array([value]))[0])
    if isinstance(value, bytes):
        return value.hex(" ")
    if isinstance(value, datetime):
        moment = value.replace(tzinfo=None).isoformat(" ", "milliseconds" if value.microsecond % 1000 == 0 else "microseconds")
        return moment if value.tzinfo is None else f"{moment} UTC"
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}={_text(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        pairs = value and all(isinstance(item, tuple) and len(item) == 2 for item in value)
        if pairs:  # a map
            return "{" + ", ".join(f"{_text(key)}={_text(item)}" for key, item in value) + "}"
        return "[" + ", ".join(map(_text, value)) + "]"
    return str(value)


def metadata_json(columns: Sequence[ResultColumn]) -> bytes:
    return msgspec.json.encode({"columns": columns})


# pages ------------------------------------------------------------------------------------------------------------------

_CELL: Final = re.compile(rb'(?:"([^"]*(?:""[^"]*)*)")?([,\n])')


@dataclass(frozen=True, slots=True)
class Page:
    """Rows of a result file, and the byte at which the next one begins; None at the end."""

    rows: list[list[str | None]]
    offset_next: int | None


def read_page(file: BinaryIO, size: int, columns: int, *, offset: int, rows_max: int) -> Page:
    """The rows of a result file from a byte on; the first row of the file is the header.

    Args:
        file: at its beginning.
        size: of the file, in bytes.
        columns: of each row.

    Raises:
        StoreCorrupt: it is no such file; somebody has put another in its place.
    """
    _skip(file, offset)
    data, start, at = b"", 0, offset
    rows: list[list[str | None]] = []
    row: list[str | None] = []
    while len(rows) < rows_max and at < size and at - offset <= PAGE_BYTES_MAX:
        found = _CELL.match(data, start)
        if found is None:
            more = file.read(max(READ_BYTES, len(data) - start))
            if not more or len(data) > CELL_BYTES_MAX:
                raise StoreCorrupt("query result", f"not a value at byte {offset + start}")
            data, start = data[start:] + more, 0
            continue
        cell, end = found[1], found[2]
        row.append(None if cell is None else cell.replace(b'""', b'"').decode())
        start = found.end()
        if end == b"\n":
            if len(row) != columns:
                raise StoreCorrupt("query result", f"a row with {len(row)} values, of {columns} columns")
            rows.append(row)
            row = []
        at += len(found[0])
    if row:
        raise StoreCorrupt("query result", "it ends within a row")
    return Page(rows, at if at < size else None)


def read_lines(file: BinaryIO, size: int, *, offset: int, rows_max: int) -> Page:
    """The lines of a `.txt` result from a byte on, each as a row of one column."""
    _skip(file, offset)
    rows: list[list[str | None]] = []
    at = offset
    while len(rows) < rows_max and at < size:
        line = file.readline()
        if not line:
            break
        at += len(line)
        rows.append([line.rstrip(b"\n").decode()])
    return Page(rows, at if at < size else None)


def _skip(file: BinaryIO, offset: int) -> None:
    if file.seekable():
        file.seek(offset)
        return
    while offset > 0 and (piece := file.read(min(offset, READ_BYTES))):
        offset -= len(piece)


def token_of(execution_id: str, offset: int) -> str:
    return base64.urlsafe_b64encode(msgspec.json.encode([execution_id, offset])).decode()


def read_token(token: str, execution_id: str) -> int:
    """The byte that a page begins at.

    Raises:
        ValidationFailed: the token is of another result, or none of ours.
    """
    try:
        found, offset = decode_json(base64.urlsafe_b64decode(token), tuple[str, int])
    except (ValueError, msgspec.MsgspecError) as error:
        raise ValidationFailed.one("NextToken", "a token of an earlier answer", token) from error
    if found != execution_id or not 0 <= offset < 1 << 62:
        raise ValidationFailed.one("NextToken", "a token of an earlier answer about this execution", token)
    return offset
