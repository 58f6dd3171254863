"""Frames: the dataframes of any library as Arrow columns, with nothing cast on the way."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import Fault, ValidationFailed
from featurestore.model.object_column import CONVERSION_ERRORS, Objects, object_array
from featurestore.model.row_faults import FAULTS_KEPT_MAX, Refusal, RowFaults

if TYPE_CHECKING:
    import pandas


@dataclass(frozen=True, slots=True)
class FrameColumn:
    """One column of a frame.

    Attributes:
        values: null where the frame has no value, and where one is refused.
        refused: values that do not fit the rest of the column.
        objects: the Python values behind a pandas column that has such, for messages.
    """

    name: str
    values: pa.ChunkedArray
    refused: tuple[Refusal, ...] = ()
    objects: Objects | None = None

    def got(self, row: int) -> object:
        """The value at a row as the frame's owner would recognise it."""
        return shown(self.values, row) if self.objects is None else self.objects[row]


def arrow_table(frame: object) -> pa.Table:
    """A dataframe as an Arrow table: the same columns in the same order, without pandas' index.

    Args:
        frame: a pandas DataFrame, an Arrow table or record batch, or any object with the Arrow PyCapsule interface
            (`__arrow_c_stream__`: polars, DuckDB, Ibis). What pandas calls missing (None, NaN, NaT, pd.NA) becomes
            null; elsewhere NaN stays NaN, since null is another thing there.

    Raises:
        ValidationFailed: `frame` is no dataframe; column names repeat or are not text (`columns[2]`); a column of
            Python objects holds several kinds (`rows[3].pm25` for each value that differs from most of its column).
    """
    columns = frame_columns(frame)
    faults = RowFaults(len(columns[0].values) if columns else 0)
    for column in columns:
        faults.add_refusals(column.name, column.refused, column.got)
    faults.raise_any()
    return pa.table([column.values for column in columns], names=[column.name for column in columns])


def frame_columns(frame: object) -> list[FrameColumn]:
    """As `arrow_table`, but values that differ from their column are null and listed.

    Raises:
        ValidationFailed: `frame` is no dataframe, or column names repeat or are not text.
    """
    pandas_module = sys.modules.get("pandas")  # whoever has a pandas frame has imported pandas; we need not
    if pandas_module is not None and isinstance(frame, pandas_module.DataFrame):
        _check_names(list(frame.columns))
        return [_pandas_column(name, frame.iloc[:, index]) for index, name in enumerate(frame.columns)]
    table = _table(frame)
    _check_names(table.column_names)
    return [FrameColumn(name, values) for name, values in zip(table.column_names, table.columns, strict=True)]


def shown(values: pa.ChunkedArray | pa.Array, row: int) -> object:
    """The value at a row for a message; times as text, since Python's `datetime` does not reach all of Arrow's."""
    if pa.types.is_timestamp(values.type):
        zone = None if values.type.tz is None else "UTC"
        return str(values.slice(row, 1).cast(pa.timestamp(values.type.unit, zone)).cast(pa.string())[0])
    try:
        return values[row].as_py()
    except (ValueError, OverflowError):  # such times in lists
        return values.slice(row, 1).to_string()


def _table(frame: object) -> pa.Table:
    if isinstance(frame, pa.Table):
        return frame
    if not isinstance(frame, pa.RecordBatch) and not hasattr(frame, "__arrow_c_stream__"):
        raise ValidationFailed.one("frame", "a pandas or polars DataFrame or an Arrow table", type(frame).__name__)
    try:
        return pa.table(frame)
    except CONVERSION_ERRORS as error:  # a single column has the interface too
        raise ValidationFailed.one("frame", f"columns with names ({error})", type(frame).__name__) from error


def _check_names(names: Sequence[object]) -> None:
    faults = []
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not isinstance(name, str):
            faults.append(Fault(f"columns[{index}]", "a column name that is text", name))
        elif name in seen:
            faults.append(Fault(f"columns[{index}]", "each column name at most once", name))
        else:
            seen.add(name)
    if faults:
        raise ValidationFailed(faults[:FAULTS_KEPT_MAX], faults_total=len(faults))


def _pandas_column(name: str, series: pandas.Series[Any]) -> FrameColumn:
    categories = getattr(series.dtype, "categories", None)
    if series.dtype != object and (categories is None or categories.dtype != object):
        try:
            values = pa.array(series, from_pandas=True)
        except CONVERSION_ERRORS:
            pass  # a dtype Arrow does not know (sparse, complex, long double), or text it can't hold: value by value
        else:
            return FrameColumn(name, _nan_as_null(values))
    objects = series.astype(object).to_numpy()
    array, refused = object_array(objects, series.isna().to_numpy(dtype=np.bool_))
    return FrameColumn(name, pa.chunked_array([array]), refused, objects)


def _nan_as_null(values: pa.Array | pa.ChunkedArray) -> pa.ChunkedArray:
    """Null for NaN, which some pandas dtypes hold beside null."""
    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    if column.type not in (pa.float32(), pa.float64()) or not pc.any(pc.is_nan(column), min_count=0).as_py():
        return column
    return pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
