"""Checksums of answers: a benchmark that computes the wrong thing faster has not become faster."""

from __future__ import annotations

import zlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

MIX = np.uint64(0x9E3779B97F4A7C15)
NULL = np.uint64(0x6E756C6C)


def table_checksum(table: pa.Table) -> str:
    """A number for the rows of a table as a bag: columns in order, rows in any. Types do not count, values do.

    Integers and times count by their 64 bits (times in microseconds), floats by the bits of the double, texts by CRC-32. Give the
    table a column of row numbers where the order matters.
    """
    rows = np.full(table.num_rows, MIX, np.uint64)
    for column in table.columns:
        rows = _mixed(rows ^ _values(column))
    return f"{int(rows.sum(dtype=np.uint64)):016x}"


def training_set_checksum(spine: pa.Table, features: pa.Table) -> str:
    """A number for joined features and the row numbers they stand at, so that the order of the rows counts."""
    return table_checksum(features.add_column(0, "row", spine["row"]))


def _mixed(numbers: np.ndarray) -> np.ndarray:
    numbers = (numbers ^ (numbers >> np.uint64(29))) * MIX
    return numbers ^ (numbers >> np.uint64(32))


def _values(column: pa.ChunkedArray) -> np.ndarray:
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        encoded = pa.chunked_array([column.combine_chunks()]).dictionary_encode().chunk(0)
        sums = np.array([zlib.crc32(text.encode()) for text in encoded.dictionary.to_pylist()] or [0], np.uint64)
        values = sums[encoded.indices.fill_null(0).to_numpy(zero_copy_only=False)]
    elif pa.types.is_floating(kind):
        values = pc.add(column.cast(pa.float64()), 0.0).fill_null(0.0).to_numpy().view(np.uint64)
    else:
        if pa.types.is_timestamp(kind):
            column = column.cast(pa.timestamp("us", kind.tz))
        values = column.cast(pa.int64()).fill_null(0).to_numpy().view(np.uint64)
    return np.where(column.is_null().to_numpy(), NULL, values)
