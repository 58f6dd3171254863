"""Bytes of stored values and log entries. The layouts are described in docs/formats.md and carry a version byte.

Values are kept without names, in definition order, as text: a msgpack array of (text | array of texts | nil) behind the
schema version. Feature definitions are only ever appended, so an older record simply has fewer entries.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import StoreCorrupt
from featurestore.model.change import Change
from featurestore.model.plain_column import numpy_of, valid_of
from featurestore.model.value import Value

VALUES_VERSION: Final = b"\x01"
CHANGE_VERSION: Final = b"\x01"

_BYTES: Final = pa.large_binary()
_NIL: Final = b"\xc0"

_UNREADABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError)
"""What msgspec raises for bytes that are not msgpack, not of the type, or texts that are not UTF-8."""

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_values: Final = msgspec.msgpack.Decoder(list[int | str | list[str] | None]).decode
_decode_any: Final = msgspec.msgpack.Decoder(list[Any]).decode
_decode_change: Final = msgspec.msgpack.Decoder(Change).decode


def encode_values(schema_version: int, values: Sequence[Value]) -> bytes:
    """Bytes of one record's values, which are in definition order; trailing absent ones are left out."""
    end = len(values)
    while end and values[end - 1] is None:
        end -= 1
    return VALUES_VERSION + _encode([schema_version, *values[:end]])


def encode_columns(schema_version: int, columns: Sequence[pa.Array]) -> pa.Array:
    """`encode_values` of many rows of one schema version, from columns in definition order.

    Args:
        columns: large_string or large_list of it, null where absent; at least one, all of one length.

    Returns:
        large_binary.
    """
    ends = np.zeros(len(columns[0]), np.int64)
    for position, column in enumerate(columns):
        ends[valid_of(column)] = position + 1
    heads = [VALUES_VERSION + _array_head(1 + end) + _encode(schema_version) for end in range(len(columns) + 1)]
    pieces = [pa.array(heads, _BYTES).take(pa.array(ends))]
    for position, column in enumerate(columns):
        pieces += _cells(column, ends > position)
    return _joined(*pieces)


def _cells(column: pa.Array, is_within: npt.NDArray[np.bool_]) -> tuple[pa.Array, pa.Array]:
    """What stands in front of each value of a column, and the value. A null is nil where `is_within`, else nothing."""
    if not pa.types.is_large_list(column.type):
        return _headed(column, is_within, pc.binary_length(column), _text_head), column.cast(_BYTES).fill_null(b"")
    lengths = pc.list_value_length(column)
    elements = column.flatten()
    parts = _joined(*_cells(elements, np.ones(len(elements), np.bool_)))
    # The bytes of a row's elements follow each other already.
    starts = np.concatenate([[0], np.cumsum(numpy_of(lengths), dtype=np.int64)])
    _, offsets, data = parts.buffers()
    offsets = np.frombuffer(offsets, np.int64)[parts.offset :][starts]
    values = pa.LargeBinaryArray.from_buffers(_BYTES, len(column), [None, pa.py_buffer(offsets), data])
    return _headed(column, is_within, lengths, _array_head), values


def _headed(column: pa.Array, is_within: npt.NDArray[np.bool_], lengths: pa.Array, head: Callable[[int], bytes]) -> pa.Array:
    """The head of each value by its length, from a table of the heads of all lengths that there are."""
    sizes = numpy_of(lengths)
    found = np.flatnonzero(np.bincount(sizes))
    places = np.zeros(int(sizes.max(initial=0)) + 1, np.int64)
    places[found] = np.arange(len(found))
    heads = [*(head(size) for size in found.tolist()), _NIL, b""]
    absent = np.where(is_within, len(found), len(found) + 1)
    return pa.array(heads, _BYTES).take(pa.array(np.where(valid_of(column), places[sizes], absent)))


def _joined(*columns: pa.Array) -> pa.Array:
    return pc.binary_join_element_wise(*columns, pa.scalar(b"", _BYTES))


def _text_head(size_bytes: int) -> bytes:
    if size_bytes < 32:
        return bytes([0xA0 | size_bytes])
    if size_bytes < 1 << 8:
        return bytes([0xD9, size_bytes])
    return b"\xda" + size_bytes.to_bytes(2) if size_bytes < 1 << 16 else b"\xdb" + size_bytes.to_bytes(4)


def _array_head(count: int) -> bytes:
    if count < 16:
        return bytes([0x90 | count])
    return b"\xdc" + count.to_bytes(2) if count < 1 << 16 else b"\xdd" + count.to_bytes(4)


def decode_values(data: bytes) -> tuple[int, list[Value]]:
    """The inverse of `encode_values`: (schema version, values in definition order, possibly fewer than the features).

    Raises:
        StoreCorrupt: the bytes are not of a version this release knows, or do not parse.
    """
    version, *values = decode_row(data)
    return version, values  # type: ignore[return-value]  # element 0 is the version, the rest are values


def decode_row(data: bytes) -> list[int | Value]:
    """As `decode_values`, in one list.

    Raises:
        StoreCorrupt: as `decode_values`.
    """
    if data[:1] != VALUES_VERSION:
        raise _unknown_version(data)
    try:
        return _decode_values(data[1:])
    except _UNREADABLE as error:
        raise StoreCorrupt("record values", str(error)) from error


def unchecked_row(data: bytes) -> tuple[list[Any], bytes]:
    """As `decode_row` in half the time, but whatever msgpack knows is taken for a value; also the bytes that the values stand in,
    with the marks of their lengths between them.

    Raises:
        StoreCorrupt: it is no msgpack at all, or of an unknown version.
    """
    if data[:1] != VALUES_VERSION:
        raise _unknown_version(data)
    try:
        row = _decode_any(data[1:])
    except _UNREADABLE as error:
        raise StoreCorrupt("record values", str(error)) from error
    # Behind the mark of the array, of 1, 3 or 5 bytes, and the schema version, small as a rule.
    count = len(row)
    return row, data[3:] if count < 16 else data[5:] if count < 65_536 else data[7:]


def unchecked_rows(many: Sequence[bytes]) -> list[Any]:
    """The rows of `unchecked_row`, all in one go; one that is no list is none of `encode_values`.

    Raises:
        StoreCorrupt: as `unchecked_row`, of any of them.
    """
    for data in many:
        # Nothing at all behind the version would shift the rows that follow.
        if data[:1] != VALUES_VERSION or len(data) < 2:
            raise _unknown_version(data)
    try:
        rows: list[Any] = _decode_any(_array_head(len(many)) + b"".join([data[1:] for data in many]))
    except _UNREADABLE as error:
        raise StoreCorrupt("record values", str(error)) from error
    return rows


def _unknown_version(data: bytes) -> StoreCorrupt:
    return StoreCorrupt("record values", f"unknown version byte {data[:1]!r}")


def encode_change(change: Change) -> bytes:
    return CHANGE_VERSION + _encode(change)


def decode_change(data: bytes) -> Change:
    """The inverse of `encode_change`.

    Raises:
        StoreCorrupt: the bytes are not of a version this release knows, or do not parse.
    """
    if data[:1] != CHANGE_VERSION:
        raise StoreCorrupt("log entry", f"unknown version byte {data[:1]!r}")
    try:
        return _decode_change(memoryview(data)[1:])
    except _UNREADABLE as error:
        raise StoreCorrupt("log entry", str(error)) from error
