"""Values of features at known places: which row of which file.

Only the row groups that hold such a row are read, of them only the columns asked for, and nothing passes through Python objects.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.model.cells import arrow_type
from featurestore.model.feature_group import FeatureDefinition
from featurestore.radix import Int64s, ascending

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


@dataclass(frozen=True, slots=True)
class _Part:
    """Rows of one row group, by their number in it, ascending."""

    path: str
    footer: pq.FileMetaData
    row_group: int
    rows: Int64s


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
    known, rows = _distinct(places)
    absent = int(np.searchsorted(known, 0))
    taken = pa.array(rows - absent, mask=rows < absent)
    pool = ThreadPoolExecutor(threads)
    try:
        pieces = list(pool.map(lambda part: _read(part, features, decoded_bytes), _parts(paths, known[absent:])))
        columns = list(pool.map(lambda feature: _spread(pieces, feature, taken), features))
    finally:
        pool.shutdown(cancel_futures=True)
    return pa.table(columns, names=[feature.name for feature in features])


def _distinct(places: Int64s) -> tuple[Int64s, Int64s]:
    """Each of the places once, ascending; and for all of them which one it is."""
    order = ascending(places)
    in_order = places[order]
    is_first = np.ones(len(places), np.bool_)
    np.not_equal(in_order[1:], in_order[:-1], out=is_first[1:])
    which = np.empty(len(places), np.int64)
    which[order] = np.cumsum(is_first) - 1
    return in_order[is_first], which


def _spread(pieces: Sequence[pa.Table], feature: FeatureDefinition, rows: pa.Array) -> pa.ChunkedArray:
    """A column of all pieces at the rows given."""
    kind = arrow_type(feature)
    whole = pa.chunked_array([chunk for piece in pieces for chunk in piece[feature.name].chunks], kind)
    # One array if that can hold the column: rows are taken from it several times faster than from many.
    values = pa.table([whole], names=[feature.name]).combine_chunks()[0]
    parts = [values.take(rows[start : start + TAKEN_ROWS]) for start in range(0, len(rows), TAKEN_ROWS)]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], kind)


def _parts(paths: Sequence[str], places: Int64s) -> Iterator[_Part]:
    """The row groups that hold any of the places, which are ascending."""
    rows, last = places & ((1 << ROW_BITS) - 1), 0
    for number in np.unique(places >> ROW_BITS).tolist():
        start, last = last, int(np.searchsorted(places, (number + 1) << ROW_BITS))
        of_file = rows[start:last]
        footer = pq.read_metadata(paths[number])
        sizes = [footer.row_group(index).num_rows for index in range(footer.num_row_groups)]
        ends = np.cumsum(sizes)
        cuts = np.searchsorted(of_file, ends)
        for index, (first, end) in enumerate(zip([0, *cuts[:-1]], cuts, strict=True)):
            if first < end:
                yield _Part(paths[number], footer, index, of_file[first:end] - (ends[index] - sizes[index]))


def _read(part: _Part, features: Sequence[FeatureDefinition], decoded_bytes: int) -> pa.Table:
    wanted = {feature.name: arrow_type(feature) for feature in features}
    group = part.footer.row_group(part.row_group)
    chunks = [group.column(index) for index in range(group.num_columns)]
    chunks = [chunk for chunk in chunks if chunk.path_in_schema.partition(".")[0] in wanted]
    file = pq.ParquetFile(
        part.path,
        metadata=part.footer,
        read_dictionary=[chunk.path_in_schema for chunk in chunks if _stays_coded(chunk)],
        pre_buffer=False,
    )
    with file:
        present = [name for name in wanted if name in file.schema_arrow.names]
        rows_at_once = max(1, group.num_rows * decoded_bytes // max(1, sum(chunk.total_uncompressed_size for chunk in chunks)))
        taken = list(_taken(file, part, present, min(group.num_rows, rows_at_once))) if present else []
    rows = len(part.rows)
    columns = {
        name: pa.chunked_array([piece[name].cast(kind) for piece in taken], kind) if name in present else pa.nulls(rows, kind)
        for name, kind in wanted.items()
    }
    return pa.table(columns)


def _taken(file: pq.ParquetFile, part: _Part, columns: list[str], rows_at_once: int) -> Iterator[Any]:
    end = 0
    for batch in file.iter_batches(rows_at_once, row_groups=[part.row_group], columns=columns, use_threads=False):
        start, end = end, end + batch.num_rows
        first, last = np.searchsorted(part.rows, [start, end])
        if first < last:
            yield batch.take(pa.array(part.rows[first:last] - start))


def _stays_coded(chunk: pq.ColumnChunkMetaData) -> bool:
    return (
        chunk.physical_type == "BYTE_ARRAY"
        and "." not in chunk.path_in_schema
        and chunk.has_dictionary_page
        and chunk.total_uncompressed_size < chunk.num_values * DICTIONARY_VALUE_BYTES
    )
