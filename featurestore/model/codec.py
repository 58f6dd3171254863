"""Bytes of stored values and log entries. The layouts are described in docs/formats.md and carry a version byte.

Values are kept without names, in definition order, as text: a msgpack array of (text | array of texts | nil) behind the
schema version. Feature definitions are only ever appended, so an older record simply has fewer entries.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from featurestore.errors import StoreCorrupt
from featurestore.model.change import Change
from featurestore.model.value import Value

VALUES_VERSION: Final = b"\x01"
CHANGE_VERSION: Final = b"\x01"

_encode: Final = msgspec.msgpack.Encoder().encode
_decode_values: Final = msgspec.msgpack.Decoder(list[int | str | list[str] | None]).decode
_decode_change: Final = msgspec.msgpack.Decoder(Change).decode


def encode_values(schema_version: int, values: Sequence[Value]) -> bytes:
    """Bytes of one record's values, which are in definition order; trailing absent ones are left out."""
    end = len(values)
    while end and values[end - 1] is None:
        end -= 1
    return VALUES_VERSION + _encode([schema_version, *values[:end]])


def encode_rows(schema_version: int, rows: Iterable[Sequence[Value]]) -> list[bytes]:
    """`encode_values` for many rows of one schema version."""
    return [encode_values(schema_version, row) for row in rows]


def decode_values(data: bytes) -> tuple[int, list[Value]]:
    """The inverse of `encode_values`: (schema version, values in definition order, possibly fewer than the features).

    Raises:
        StoreCorrupt: the bytes are not of a version this release knows, or do not parse.
    """
    version, *values = decode_row(data)[0]
    return version, values  # type: ignore[return-value]  # element 0 is the version, the rest are values


def decode_row(data: bytes) -> tuple[list[int | Value], bytes]:
    """As `decode_values`, in one list; also the bytes in which the values stand, with the marks of their lengths between them.

    Raises:
        StoreCorrupt: as `decode_values`.
    """
    if data[:1] != VALUES_VERSION:
        raise StoreCorrupt("record values", f"unknown version byte {data[:1]!r}")
    try:
        row = _decode_values(data[1:])
    except msgspec.MsgspecError as error:
        raise StoreCorrupt("record values", str(error)) from error
    # Behind the mark of the array, of 1, 3 or 5 bytes, and the schema version, small as a rule.
    count = len(row)
    return row, data[3:] if count < 16 else data[5:] if count < 65_536 else data[7:]


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
    except msgspec.MsgspecError as error:
        raise StoreCorrupt("log entry", str(error)) from error
