"""Plain columns: Arrow columns of any encoding reduced to the few types that the rules for dataframes distinguish."""

from __future__ import annotations

from collections.abc import Callable
from enum import StrEnum
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

TEXT: Final = pa.large_string()
"""The type of text columns here: 64-bit offsets, as a frame may hold more than 2 GiB of text."""
INSTANT: Final = pa.timestamp("us", tz="UTC")
Int64s: TypeAlias = npt.NDArray[np.int64]


class Kind(StrEnum):
    """What an Arrow column holds, as far as the rules distinguish it."""

    NOTHING = "nothing"
    BOOL = "bool"
    INTEGER = "integer"
    FLOAT = "float"
    DECIMAL = "decimal"
    TEXT = "text"
    TIME = "time with a zone"
    NAIVE_TIME = "time without a zone"
    DATE = "date"
    DURATION = "duration"
    PERIOD = "period"
    BYTES = "bytes"
    UUID = "uuid"
    LIST = "list"
    OTHER = "other"


_PREDICATES: Final[tuple[tuple[Callable[[pa.DataType], bool], Kind], ...]] = (
    (pa.types.is_null, Kind.NOTHING),
    (pa.types.is_boolean, Kind.BOOL),
    (pa.types.is_integer, Kind.INTEGER),
    (pa.types.is_floating, Kind.FLOAT),
    (pa.types.is_decimal, Kind.DECIMAL),
    (pa.types.is_large_string, Kind.TEXT),
    (pa.types.is_date, Kind.DATE),
    (pa.types.is_duration, Kind.DURATION),
    (pa.types.is_large_list, Kind.LIST),
    (pa.types.is_binary, Kind.BYTES),
    (pa.types.is_large_binary, Kind.BYTES),
    (pa.types.is_binary_view, Kind.BYTES),
    (pa.types.is_fixed_size_binary, Kind.BYTES),
)
_ANY_LIST: Final[tuple[Callable[[pa.DataType], bool], ...]] = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_KEPT_EXTENSIONS: Final = {"arrow.uuid": Kind.UUID, "pandas.period": Kind.PERIOD}
"""Extension types whose storage would mislead: it looks like bytes or numbers, and is neither to its owner."""


def kind_of(data_type: pa.DataType) -> Kind:
    """The kind of a plain type (one that `plain` gives)."""
    if isinstance(data_type, pa.BaseExtensionType):
        return _KEPT_EXTENSIONS.get(data_type.extension_name, Kind.OTHER)
    if pa.types.is_timestamp(data_type):
        return Kind.NAIVE_TIME if data_type.tz is None else Kind.TIME
    return next((kind for holds, kind in _PREDICATES if holds(data_type)), Kind.OTHER)


def plain(values: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column as one array of a plain type, with the same values: no dictionary, run-length or extension around it,
    text and lists with 64-bit offsets, integers as int64 or uint64, floats as float64.
    """
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    wrapped = column.type
    if isinstance(wrapped, pa.BaseExtensionType):
        if wrapped.extension_name in _KEPT_EXTENSIONS:
            return column.combine_chunks()
        storage = pa.chunked_array([chunk.storage for chunk in column.chunks], wrapped.storage_type)
        return plain(storage.cast(pa.bool_()) if wrapped.extension_name == "arrow.bool8" else storage)
    if pa.types.is_dictionary(wrapped):
        return plain(pa.chunked_array([chunk.dictionary_decode() for chunk in column.chunks], wrapped.value_type))
    if pa.types.is_run_end_encoded(wrapped):
        return plain(pc.run_end_decode(column))
    if _is_any_list(wrapped):
        lists = [_large_list(chunk) for chunk in column.chunks]
        return pa.chunked_array(lists, pa.large_list(wrapped.value_type)).combine_chunks()
    wide = _wide(wrapped)
    return (column if wide == wrapped else column.cast(wide)).combine_chunks()


def _wide(data_type: pa.DataType) -> pa.DataType:
    if pa.types.is_string(data_type) or pa.types.is_string_view(data_type):
        return TEXT
    if pa.types.is_integer(data_type) and not pa.types.is_uint64(data_type):
        return pa.int64()
    return pa.float64() if pa.types.is_floating(data_type) else data_type


def _is_any_list(data_type: pa.DataType) -> bool:
    return any(holds(data_type) for holds in _ANY_LIST)


def _large_list(lists: pa.Array) -> pa.Array:
    """Lists of any layout as large_list. Not by `cast`, which misreads list views (apache/arrow issue 50994)."""
    ends = np.cumsum(numpy_of(pc.list_value_length(lists)), dtype=np.int64)
    return pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), lists.flatten(), mask=lists.is_null())


def numpy_of(numbers: pa.Array) -> npt.NDArray[Any]:
    """A numeric column as numpy of the same type, nulls as zero."""
    filled: npt.NDArray[Any] = numbers.fill_null(0).to_numpy(zero_copy_only=False)
    return filled


def valid_of(column: pa.Array) -> npt.NDArray[np.bool_]:
    """Which rows are not null."""
    valid: npt.NDArray[np.bool_] = column.is_valid().to_numpy(zero_copy_only=False)
    return valid


def kept_where(keep: pa.Array | npt.NDArray[np.bool_], column: pa.Array) -> pa.Array:
    """The column with null wherever `keep` is not true."""
    mask = pa.array(keep) if isinstance(keep, np.ndarray) else keep
    if not pc.any(pc.and_not(column.is_valid(), mask.fill_null(False)), min_count=0).as_py():  # nothing to copy for
        return column
    return pc.if_else(mask, column, pa.scalar(None, column.type))
