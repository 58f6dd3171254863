"""Values of features at known places: which row of which file.

Only the row groups that hold such a row are read, of them only the columns asked for, and nothing passes through Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.model.cells import arrow_type
from featurestore.model.feature_group import FeatureDefinition
from featurestore.query.radix import Int64s, ascending

ROW_BITS: Final = 40
"""A place is the number of the file, shifted by so many bits, and the number of the row in that file."""

PLACE_SQL: Final = f"(file_index::BIGINT << {ROW_BITS}) | file_row_number"
"""The place of a row of `Sight.numbered_rows`."""
NOWHERE: Final = -1

DECODED_BYTES_MAX: Final = 64 << 20
"""For each thread."""
DICTIONARY_VALUE_BYTES: Final = 8
"""A text column with a dictionary that takes less than this per row hardly holds texts beside it, and stays coded while it is
read: that is quicker, and a long text that repeats is held once."""
TAKEN_ROWS: Final = 1 << 17
"""Rows of one array of the answer; an array of texts can hold 2 GiB."""


Bools: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True, slots=True)
class _Part:
    """What is wanted of one row group.

    Attributes:
        rows: their numbers in it, ascending; those that several rows of the answer want are there several times.
        answers: the rows of the answer that want them.
    """

    path: str
    footer: pq.FileMetaData
    row_group: int
    rows: Int64s
    answers: Int64s


class _Numbers:
    """A column of the answer whose values have one size: they go to their rows as they are decoded.

    Args:
        is_null: of each row of the answer, whether it has no place; the others are set by the methods.
    """

    def __init__(self, kind: pa.DataType, is_null: Bools) -> None:
        self._kind = kind
        self._values = np.zeros(len(is_null), kind.to_pandas_dtype())
        self._is_null = is_null.copy()

    def set(self, answers: Int64s, decoded: pa.Array, rows: Int64s) -> None:
        """Rows of the answer become those decoded."""
        values = decoded.cast(self._kind)
        if values.null_count:
            self._is_null[answers] = values.is_null().to_numpy(zero_copy_only=False)[rows]
            values = values.fill_null(0)
        self._values[answers] = values.to_numpy()[rows]

    def set_null(self, answers: Int64s) -> None:
        """For a file that does not have the column."""
        self._is_null[answers] = True

    def column(self) -> pa.ChunkedArray:
        return pa.chunked_array([_with_nulls(self._values, self._is_null, self._kind)])


def values_at(
    paths: Sequence[str],
    places: Int64s,
    features: Sequence[FeatureDefinition],
    threads: int,
    *,
    decoded_bytes: int = DECODED_BYTES_MAX,
) -> pa.Table:
    """The values of features, one row per place in the order given; null where a place is NOWHERE.

    Args:
        decoded_bytes: of a row group so much is decoded at a time, by the size that its columns have without compression.

    Raises:
        OSError, pa.ArrowException: a file is missing or can't be read.
    """
    order = ascending(places)
    in_order = places[order]
    absent = int(np.searchsorted(in_order, 0))
    kinds = {feature.name: arrow_type(feature) for feature in features}
    is_absent = places == NOWHERE
    numbers = {name: _Numbers(kind, is_absent) for name, kind in kinds.items() if pa.types.is_primitive(kind)}
    others = {name: kind for name, kind in kinds.items() if name not in numbers}
    pool = ThreadPoolExecutor(threads)
    try:
        parts = _parts(paths, in_order[absent:], order[absent:])
        pieces = list(pool.map(lambda part: _read(part, numbers, others, decoded_bytes), parts))
        which = _which(in_order, order, absent) if others else None
        spread = dict(zip(others, pool.map(lambda name: _spread(pieces, name, others[name], which), others), strict=True))
    finally:
        pool.shutdown(cancel_futures=True)
    return pa.table({name: numbers[name].column() if name in numbers else spread[name] for name in kinds})


def _with_nulls(values: np.ndarray[Any, Any], is_null: Bools, kind: pa.DataType) -> pa.Array:
    """Numbers as an array over the same memory."""
    nulls = int(np.count_nonzero(is_null))
    is_valid = pa.py_buffer(np.packbits(~is_null, bitorder="little")) if nulls else None
    return pa.Array.from_buffers(kind, len(values), [is_valid, pa.py_buffer(values)], nulls)


def _is_first(in_order: Int64s) -> Bools:
    """Of equal numbers, which stand together, the first."""
    is_first = np.ones(len(in_order), np.bool_)
    np.not_equal(in_order[1:], in_order[:-1], out=is_first[1:])
    return is_first


def _which(in_order: Int64s, order: Int64s, absent: int) -> pa.Array:
    """For each row of the answer its place among the different ones; null where it has none.

    Args:
        in_order: the places, ascending; `order`, their rows; the first `absent` are NOWHERE.
    """
    which = np.full(len(order), -1, np.int64)
    which[order[absent:]] = np.cumsum(_is_first(in_order[absent:])) - 1
    return _with_nulls(which, which < 0, pa.int64())


def _spread(pieces: Sequence[pa.Table], name: str, kind: pa.DataType, rows: pa.Array) -> pa.ChunkedArray:
    """A column of all pieces at the rows given."""
    whole = pa.chunked_array([chunk for piece in pieces for chunk in piece[name].chunks], kind)
    # One array if that can hold the column: rows are taken from it several times faster than from many.
    values = pa.table([whole], names=[name]).combine_chunks()[0]
    parts = [values.take(rows[start : start + TAKEN_ROWS]) for start in range(0, len(rows), TAKEN_ROWS)]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], kind)


def _parts(paths: Sequence[str], places: Int64s, answers: Int64s) -> Iterator[_Part]:
    """The row groups that hold any of the places, which are ascending."""
    rows, last = places & ((1 << ROW_BITS) - 1), 0
    while last < len(places):
        number = int(places[last]) >> ROW_BITS
        start, last = last, int(np.searchsorted(places, (number + 1) << ROW_BITS))
        of_file, asking = rows[start:last], answers[start:last]
        footer = pq.read_metadata(paths[number])
        sizes = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
        ends = np.cumsum(sizes)
        cuts = np.searchsorted(of_file, ends)
        for index, (first, end) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
            if first < end:
                wanted = of_file[first:end] - (ends[index] - sizes[index])
                yield _Part(paths[number], footer, index, wanted, asking[first:end])


def _read(part: _Part, numbers: Mapping[str, _Numbers], others: Mapping[str, pa.DataType], decoded_bytes: int) -> pa.Table:
    """Set what is wanted of the numbers; answers the other columns, each row that is wanted once."""
    group = part.footer.row_group(part.row_group)
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in numbers.keys() | others.keys()]
    file = pq.ParquetFile(
        part.path,
        metadata=part.footer,
        read_dictionary=[chunk.path_in_schema for chunk in chunks if _stays_coded(chunk)],
        pre_buffer=False,
    )
    taken = []
    with file:
        present = [name for name in (*numbers, *others) if name in file.schema_arrow.names]
        rows_at_once = max(1, group.num_rows * decoded_bytes // max(1, sum(chunk.total_uncompressed_size for chunk in chunks)))
        for batch, rows, answers in _decoded(file, part, present, min(group.num_rows, rows_at_once)):
            for name in numbers.keys() & present:
                numbers[name].set(answers, batch[name], rows)
            once = pa.array(rows[_is_first(rows)])
            taken.append({name: batch[name].take(once) for name in others if name in present})
    for name in numbers.keys() - present:
        numbers[name].set_null(part.answers)
    count = int(np.count_nonzero(_is_first(part.rows)))
    columns = {
        name: pa.chunked_array([piece[name].cast(kind) for piece in taken], kind) if name in present else pa.nulls(count, kind)
        for name, kind in others.items()
    }
    return pa.table(columns)


def _decoded(file: pq.ParquetFile, part: _Part, columns: list[str], rows_at_once: int) -> Iterator[tuple[Any, Int64s, Int64s]]:
    """Pieces of a part, the rows that are wanted of each, and for which rows of the answer."""
    end = 0
    if not columns:
        return
    for batch in file.iter_batches(rows_at_once, row_groups=[part.row_group], columns=columns, use_threads=False):
        start, end = end, end + batch.num_rows
        first, last = np.searchsorted(part.rows, [start, end])
        if first < last:
            yield batch, part.rows[first:last] - start, part.answers[first:last]


def _stays_coded(chunk: pq.ColumnChunkMetaData) -> bool:
    return (
        chunk.physical_type == "BYTE_ARRAY"
        and "." not in chunk.path_in_schema
        and chunk.has_dictionary_page
        and chunk.total_uncompressed_size < chunk.num_values * DICTIONARY_VALUE_BYTES
    )
