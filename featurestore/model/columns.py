"""Columns: a dataframe checked and converted for a feature group, column by column.

The twin of `record.RecordPlan.row` for many records: it accepts and refuses the same values and yields the same texts,
keys and event times. Where a dataframe holds typed values instead of text, docs/reference/dataframes.md has the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import Fault, ValidationFailed
from featurestore.model import limits
from featurestore.model.cells import (
    Cells,
    absent_cells,
    arrow_type,
    event_time_cells,
    feature_cells,
    instants,
    unfit,
    unfit_instants,
)
from featurestore.model.column_text import float_texts
from featurestore.model.feature_group import FeatureDefinition, FeatureGroup, FeatureType
from featurestore.model.frame import FrameColumn, arrow_table, frame_columns, shown
from featurestore.model.plain_column import TEXT, Int64s, plain, valid_of
from featurestore.model.row_faults import FAULTS_KEPT_MAX, Refusal, RowFaults

__all__ = ["ColumnBatch", "arrow_table", "checked_columns", "key_column", "time_column"]

COLUMNS_AT_ONCE: Final = 2
"""Columns that are converted at a time; event times, which often take longest, come first."""
ARRAY_BYTES_MAX: Final = 2**31 - 1
"""Text that one Arrow array with 32-bit offsets, the offline store's kind, can hold."""


@dataclass(frozen=True, slots=True)
class ColumnBatch:
    """Checked records of one feature group, by columns.

    Attributes:
        rows: number of records; the columns below have one entry for each, in the order of the frame.
        record_ids: dictionary of large_string; keys of the identifiers (`value.record_key`). Each key of the dictionary is there.
        event_times_us: microseconds since 1970.
        typed: all features in definition order with the offline store's types (`cells.arrow_type`); null where absent.
        cells: per feature in definition order, all rows of the caller's frame.
        kept: 0-based positions of these records in the caller's frame.
        faults: of the rows that were left out, the first FAULTS_KEPT_MAX; empty unless the caller asked to skip.
        faults_total: how many faults there were.
        faulty_rows: how many rows were left out.
    """

    rows: int
    record_ids: pa.DictionaryArray
    event_times_us: Int64s
    typed: pa.Table
    cells: Sequence[Cells]
    kept: Int64s
    faults: tuple[Fault, ...]
    faults_total: int
    faulty_rows: int

    def texts(self, rows: Int64s | None = None) -> list[pa.Array]:
        """Per feature in definition order, the values that PutRecord would have been sent (`Cells.texts`); null where absent.

        Args:
            rows: of which records, 0-based; by default of all.
        """
        if rows is not None:
            rows = self.kept[rows]
        elif self.faulty_rows:
            rows = self.kept
        return [column.texts(rows) for column in self.cells]


def checked_columns(group: FeatureGroup, frame: object, *, skip_faulty: bool = False) -> ColumnBatch:
    """Check a dataframe as records of a group, one per row, and convert it.

    Args:
        frame: as for `arrow_table`; each column is a feature of the group, features without a column are absent.
        skip_faulty: leave out the rows with faults and report them, instead of raising.

    Raises:
        ValidationFailed: the frame as a whole is wrong (`columns[2]`, `columns.pm25`: unknown, missing or repeated
            columns, dtypes that a feature does not take); or, unless `skip_faulty`, there are faulty rows
            (`rows[3].pm25`). Rows are looked at only when the frame is right; then every fault is counted and the first
            FAULTS_KEPT_MAX are kept.
    """
    columns = frame_columns(frame)
    _check_names(group, columns)
    values = {column.name: plain(column.values) for column in columns}
    _check_types(group, values)

    rows = len(columns[0].values)

    def cells_of(feature: FeatureDefinition) -> Cells:
        return feature_cells(values[feature.name], feature) if feature.name in values else absent_cells(feature, rows)

    def identified() -> tuple[Cells, pa.DictionaryArray]:
        feature = group.features[group.feature_names.index(group.record_identifier)]
        converted = cells_of(feature)
        return converted, _record_keys(converted.typed, feature.type)

    with ThreadPoolExecutor(COLUMNS_AT_ONCE) as pool:
        timed = pool.submit(event_time_cells, values[group.event_time], group.event_time_type)
        keyed = pool.submit(identified)
        roles = (group.event_time, group.record_identifier)
        others = {feature.name: pool.submit(cells_of, feature) for feature in group.features if feature.name not in roles}
        time_cells, times_us = timed.result()
        identifier_cells, record_ids = keyed.result()
    known = {group.event_time: time_cells, group.record_identifier: identifier_cells}
    cells = [known[name] if name in known else others[name].result() for name in group.feature_names]

    faults = RowFaults(rows)
    by_name = {column.name: column for column in columns}
    for feature, converted in zip(group.features, cells, strict=True):
        column = by_name.get(feature.name)
        if column is not None:
            of_role = _role_refusals(group, feature, column, converted)
            faults.add_refusals(feature.name, (*column.refused, *converted.refused, *of_role), column.got)
    _add_long_records(group, cells, faults)
    if not skip_faulty:
        faults.raise_any()
    return _batch(group, cells, record_ids, times_us, faults)


def key_column(values: pa.ChunkedArray | pa.Array, feature_type: FeatureType, *, path: str) -> pa.Array:
    """A column to be compared with the record identifiers of a group, by the rules of `checked_columns`.

    Args:
        values: from `arrow_table`.
        feature_type: of the record identifier feature.
        path: the column's name, for messages.

    Returns:
        int64, float64 or string as the offline column is (large_string beyond ARRAY_BYTES_MAX); nulls stay null, -0.0
        becomes 0.0.

    Raises:
        ValidationFailed: the column's type is none that the feature takes (`columns.<path>`), or values do not fit
            (`rows[i].<path>`, the first FAULTS_KEPT_MAX of them).
    """
    key = FeatureDefinition(path, feature_type)
    column = plain(values)
    expected = unfit(column, key)
    if expected is not None:
        raise ValidationFailed.one(f"columns.{path}", expected, str(column.type))
    cells = feature_cells(column, key)
    _raise_refused(column, cells.refused, path)
    if feature_type is FeatureType.FRACTIONAL:
        return pc.add(cells.typed, 0.0)
    return cells.typed if cells.typed.nbytes > ARRAY_BYTES_MAX else cells.typed.cast(arrow_type(key))


def time_column(values: pa.ChunkedArray | pa.Array, *, path: str) -> pa.Array:
    """A column of moments at which features are looked up.

    Args:
        values: from `arrow_table`; timestamps with a zone (nanoseconds are rounded down, so that no feature from after
            the moment is seen), text as String event times are written, or numbers: seconds since 1970, as Fractional
            event times are.
        path: the column's name, for messages.

    Returns:
        timestamp[us, UTC]; nulls stay null.

    Raises:
        ValidationFailed: another type, such as timestamps without a zone or dates (`columns.<path>`, with a hint), or
            values that are no time of the years 0 to 9999 (`rows[i].<path>`, the first FAULTS_KEPT_MAX of them).
    """
    column = plain(values)
    expected = unfit_instants(column, path)
    if expected is not None:
        raise ValidationFailed.one(f"columns.{path}", expected, str(column.type))
    times, refused = instants(column)
    _raise_refused(column, refused, path)
    return times


def _raise_refused(column: pa.Array, refused: tuple[Refusal, ...], path: str) -> None:
    faults = RowFaults(len(column))
    faults.add_refusals(path, refused, lambda row: shown(column, row))
    faults.raise_any()


def _check_names(group: FeatureGroup, columns: list[FrameColumn]) -> None:
    names = [column.name for column in columns]
    known = set(group.feature_names)
    faults = [
        Fault(f"columns[{index}]", f"a feature of {group.name!r}", name) for index, name in enumerate(names) if name not in known
    ]
    for role, name in (("record identifier", group.record_identifier), ("event time", group.event_time)):
        if name not in names:
            faults.append(Fault("columns", f"a column {name!r}, the {role} feature of {group.name!r}"))
    _raise_frame_faults(faults)


def _check_types(group: FeatureGroup, values: dict[str, pa.Array]) -> None:
    faults = []
    for feature in group.features:
        if feature.name in values:
            column = values[feature.name]
            expected = unfit(column, feature, is_event_time=feature.name == group.event_time)
            if expected is not None:
                faults.append(Fault(f"columns.{feature.name}", expected, str(column.type)))
    _raise_frame_faults(faults)


def _raise_frame_faults(faults: list[Fault]) -> None:
    if faults:
        raise ValidationFailed(faults[:FAULTS_KEPT_MAX], faults_total=len(faults))


def _role_refusals(group: FeatureGroup, feature: FeatureDefinition, column: FrameColumn, cells: Cells) -> list[Refusal]:
    """What is wrong with values as record identifiers and event times, beside not being of their type."""
    if feature.name not in (group.record_identifier, group.event_time):
        return []
    is_identifier = feature.name == group.record_identifier
    role = "record identifier" if is_identifier else "event time"
    given = valid_of(column.values.combine_chunks())
    for refusal in column.refused:
        given[refusal.rows] = True
    found = [(~given, f"a value for the {role} feature {feature.name!r}")]
    if is_identifier and feature.type is FeatureType.STRING:
        sizes = cells.text_bytes()
        found.append((valid_of(cells.typed) & (sizes == 0), "a non-empty record identifier"))
        limit = limits.RECORD_IDENTIFIER_BYTES_MAX
        found.append((sizes > limit, f"at most {limit} bytes"))
    return [Refusal(np.flatnonzero(rows), expected) for rows, expected in found if rows.any()]


def _add_long_records(group: FeatureGroup, cells: list[Cells], faults: RowFaults) -> None:
    limit = limits.RECORD_BYTES_MAX
    pairs = [(len(feature.name), converted) for feature, converted in zip(group.features, cells, strict=True)]
    if sum(name_bytes + converted.text_bytes_bound() for name_bytes, converted in pairs) <= limit:
        return
    record_bytes = np.zeros(len(faults.faulty), dtype=np.int64)
    for name_bytes, converted in pairs:
        record_bytes += converted.text_bytes() + name_bytes * valid_of(converted.typed)
    faults.add(
        np.flatnonzero(record_bytes > limit),
        lambda row: Fault(f"rows[{row}]", f"at most {limit} bytes of names and values", int(record_bytes[row])),
    )


def _batch(
    group: FeatureGroup, cells: list[Cells], record_ids: pa.DictionaryArray, times_us: pa.Array, faults: RowFaults
) -> ColumnBatch:
    kept = np.flatnonzero(~faults.faulty)
    whole = len(kept) == len(faults.faulty)
    keep = pa.array(~faults.faulty)
    typed = [converted.typed if whole else converted.typed.filter(keep) for converted in cells]
    times = times_us if whole else times_us.filter(keep)
    if not whole:  # without the keys of rows that are left out
        record_ids = _record_keys(typed[group.feature_names.index(group.record_identifier)], group.record_identifier_type)
    schema = pa.schema([(feature.name, arrow_type(feature)) for feature in group.features])
    stored = [narrow(column, field.type) for column, field in zip(typed, schema, strict=True)]
    return ColumnBatch(
        rows=len(kept),
        record_ids=record_ids,
        event_times_us=times.to_numpy(),
        typed=pa.table(stored, schema=schema),
        cells=cells,
        kept=kept,
        faults=faults.first,
        faults_total=faults.total,
        faulty_rows=int(faults.faulty.sum()),
    )


def _record_keys(identifiers: pa.Array, feature_type: FeatureType) -> pa.DictionaryArray:
    """`value.record_key` of identifiers; nulls stay null."""
    if feature_type is FeatureType.FRACTIONAL:
        return float_texts(pc.add(identifiers, 0.0)).dictionary_encode()
    return identifiers.cast(TEXT).dictionary_encode()


def narrow(column: pa.Array, stored_type: pa.DataType, *, array_bytes_max: int = ARRAY_BYTES_MAX) -> pa.ChunkedArray:
    """A column with 32-bit offsets instead of 64-bit ones, in as many chunks as that takes.

    A single value never needs halving: it is at most RECORD_BYTES_MAX long.
    """
    if column.type == stored_type or column.nbytes <= array_bytes_max or len(column) <= 1:
        return pa.chunked_array([column.cast(stored_type)])
    half = len(column) // 2
    parts = [narrow(part, stored_type, array_bytes_max=array_bytes_max) for part in (column[:half], column[half:])]
    return pa.chunked_array([chunk for part in parts for chunk in part.chunks], stored_type)
