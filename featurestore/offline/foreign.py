"""Files that other tools put into the layout: which of them claim to be data, and what those hold as rows of the table.

The features of a row are checked by the rules for dataframes (`model.columns`); a file is right as a whole or not at all.
docs/guides/foreign-files.md tells users the same.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import Fault, StoreUnavailable, ValidationFailed
from featurestore.model.cells import times_us
from featurestore.model.columns import checked_columns
from featurestore.model.event_time import SECOND_US
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.frame import shown
from featurestore.model.plain_column import Kind, kind_of, plain, valid_of
from featurestore.model.row_faults import RowFaults
from featurestore.offline import layout, schema
from featurestore.offline.subjects import Mask

SUFFIXES: Final = (".parquet", ".parq")
HIDDEN: Final = (".", "_")
"""How names begin that tools which list directories pass over: temporary files and folders, and markers."""

MAGIC: Final = b"PAR1"
MAGIC_ENCRYPTED: Final = b"PARE"
"""At the end of a file whose footer is encrypted (https://parquet.apache.org/docs/file-format/data-pages/encryption/)."""
FILE_BYTES_MIN: Final = 12
"""Magic, length of the footer, magic."""

BATCH_ROWS: Final = 65_536
TABLE_BYTES_MAX: Final = 256 << 20
"""Values that are held and checked at a time, so that wide rows and huge row groups need no more memory than others."""
BUFFER_BYTES: Final = 1 << 20
"""Read ahead per column; without it, a whole column of a row group would be held."""
CLOCK_SKEW_US: Final = 300 * SECOND_US
REASON_CHARS_MAX: Final = 500

PARTITION_COLUMNS: Final = frozenset({"year", "month", "day", "hour"})
"""Columns that repeat the directories. They are not read, unless the group has features of these names."""
PANDAS_INDEX: Final = re.compile(r"__index_level_\d+__")
"""What pandas calls the column of an index without a name."""
IGNORED_SYSTEM: Final = frozenset({schema.WRITE_TIME, schema.EVENT_TIME})
"""System columns that are made anew: when the row entered this table, and what the event time feature says."""

_UNREADABLE: Final = (pa.ArrowException, OSError, ValueError, TypeError, ArithmeticError)
"""What Arrow raises for bytes that are no Parquet file, and for values that are none of their type."""
_ROW: Final = re.compile(r"rows\[(\d+)\]")


class UnfitFileError(Exception):
    """The file can't be part of the table. The message says why, in at most REASON_CHARS_MAX characters."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason if len(reason) <= REASON_CHARS_MAX else f"{reason[: REASON_CHARS_MAX - 3]}...")


def why_ignored(path: str) -> str | None:
    """Why a file, by its path below the group's folder, does not count as data at all; None if it does."""
    folder, _, name = path.removeprefix("data/").rpartition("/")
    if path.encode(errors="replace").decode() != path:
        return "a name that is no UTF-8"
    if not name.lower().endswith(SUFFIXES):
        return "no Parquet name"
    if any(part.startswith(HIDDEN) for part in folder.split("/")):
        return "in a temporary or hidden folder"
    return None


def check_name(path: str) -> None:
    """
    Raises:
        UnfitFileError: the file is called like one that is not finished or not meant to be read.
    """
    name = path.rpartition("/")[2]
    if name.startswith(HIDDEN):
        raise UnfitFileError(f"a temporary or hidden name: {name}")


class ForeignParquet:
    """The rows of a Parquet file as rows of a group's table.

    Args:
        source: the file's bytes.
        now_us: microseconds since 1970.

    Raises:
        UnfitFileError: it is no Parquet file, or its columns are not those of the group.
        StoreUnavailable: the bytes can't be read at the moment.
    """

    def __init__(self, source: pa.NativeFile, group: FeatureGroup, now_us: int) -> None:
        self._group = group
        self._now_us = now_us
        with _reading():
            _check_magic(source)
            self._file = pq.ParquetFile(
                source,
                pre_buffer=False,
                buffer_size=BUFFER_BYTES,
                coerce_int96_timestamp_unit="us",
                page_checksum_verification=True,
            )
            names = self._file.schema_arrow.names
        faults = list(_name_faults(group, names))
        if faults:
            raise UnfitFileError("; ".join(faults))
        self._features = [name for name in names if group.feature(name) is not None]
        self._columns = [*self._features, *(name for name in names if name in schema.SYSTEM_NAMES and name not in IGNORED_SYSTEM)]
        columns = (self._file.schema.column(index) for index in range(len(self._file.schema)))
        self._int96 = {column.path for column in columns if column.physical_type == "INT96"}

    def tables(self) -> Iterator[pa.Table]:
        """The rows in the form of `schema.table_schema`, in order, at most FILE_ROWS_MAX in a table.

        `write_time` is null, and `api_invocation_time` where the file does not say.

        Raises:
            UnfitFileError: at any table; those before it don't count then.
            StoreUnavailable
        """
        row_first = 0
        for table in self._raw_tables():
            try:
                with _reading():
                    rows = self._rows(table)
            except ValidationFailed as error:
                # Without the values: the reason is kept with the table, where an erase could not reach them.
                faults = [Fault(_row_shifted(fault.path, row_first), fault.expected) for fault in error.faults]
                raise UnfitFileError(str(ValidationFailed(faults, faults_total=error.faults_total))) from error
            row_first += rows.num_rows
            yield rows

    def _raw_tables(self) -> Iterator[pa.Table]:
        """All columns that count, every page of them read and checked to be what it says."""
        batches = self._file.iter_batches(BATCH_ROWS, columns=self._columns)
        held: list[pa.RecordBatch] = []
        rows = size = 0
        while True:
            with _reading():
                batch = next(batches, None)
                if batch is not None:
                    batch.validate(full=True)
            if held and (batch is None or rows + batch.num_rows > layout.FILE_ROWS_MAX or size + batch.nbytes > TABLE_BYTES_MAX):
                yield pa.Table.from_batches(held)
                held, rows, size = [], 0, 0
            if batch is None:
                return
            held.append(batch)
            rows, size = rows + batch.num_rows, size + batch.nbytes

    def _rows(self, table: pa.Table) -> pa.Table:
        group = self._group
        features = table.select(self._features)
        for index, name in enumerate(self._features):
            if name in self._int96:
                features = features.set_column(index, name, features[name].cast(schema.INSTANT))
        batch = checked_columns(group, features)

        faults = RowFaults(batch.rows)
        api_times = self._instants(table, schema.API_TIME, faults)
        expiries = self._instants(table, schema.EXPIRES_AT, faults)
        deleted, hard = self._flags(table, schema.IS_DELETED), self._flags(table, schema.HARD_DELETED)
        late = np.flatnonzero(np.array(api_times.fill_null(0)) > self._now_us + CLOCK_SKEW_US)
        faults.add(
            late, lambda row: Fault(f"rows[{row}].{schema.API_TIME}", "a time up to now", shown(table[schema.API_TIME], row))
        )
        contradictions = np.flatnonzero(hard & ~deleted)
        faults.add(contradictions, lambda row: Fault(f"rows[{row}].{schema.HARD_DELETED}", f"false as {schema.IS_DELETED} is"))
        faults.raise_any()

        ttl = group.online.ttl if group.online is not None else None
        if schema.EXPIRES_AT not in table.column_names and ttl is not None:
            expiries = pa.array(batch.event_times_us + ttl.ttl_us, mask=deleted)
        return pa.table(
            [
                *batch.typed.columns,
                pa.nulls(batch.rows, schema.INSTANT),
                api_times.cast(schema.INSTANT),
                pa.array(deleted),
                schema.instants(batch.event_times_us),
                expiries.cast(schema.INSTANT),
                pa.array(hard),
            ],
            schema=schema.table_schema(group.features),
        )

    def _instants(self, table: pa.Table, name: str, faults: RowFaults) -> pa.Array:
        """A system column of times as int64 microseconds since 1970; null where it has none, or does not exist.

        Times without a zone are UTC, as the tools that write these columns mean them; nanoseconds are rounded down.
        """
        values = self._system_column(table, name, (Kind.TIME, Kind.NAIVE_TIME), "a column of timestamps")
        if values is None:
            return pa.nulls(table.num_rows, pa.int64())
        times = times_us(values, floor=True)
        wrong = np.flatnonzero(valid_of(values) & ~valid_of(times))
        faults.add(wrong, lambda row: Fault(f"rows[{row}].{name}", "a time of the years 0 to 9999", shown(values, row)))
        return times

    def _flags(self, table: pa.Table, name: str) -> Mask:
        """A system column of bools; false where it has none, or does not exist."""
        values = self._system_column(table, name, (Kind.BOOL,), "a column of bools")
        if values is None:
            return np.zeros(table.num_rows, np.bool_)
        flags: Mask = pc.fill_null(values, False).to_numpy(zero_copy_only=False)
        return flags

    @staticmethod
    def _system_column(table: pa.Table, name: str, kinds: Sequence[Kind], expected: str) -> pa.Array | None:
        if name not in table.column_names or table[name].null_count == table.num_rows:
            return None
        values = plain(table[name])
        if kind_of(values.type) not in kinds:
            raise ValidationFailed.one(f"columns.{name}", expected, str(values.type))
        return values


def _check_magic(source: pa.NativeFile) -> None:
    size = source.size()
    if size < FILE_BYTES_MIN:
        raise UnfitFileError(f"no Parquet file: {size} bytes are too few for one")
    first, last = source.read_at(len(MAGIC), 0), source.read_at(len(MAGIC), size - len(MAGIC))
    if MAGIC_ENCRYPTED in (first, last):
        raise UnfitFileError("an encrypted Parquet file")
    if first != MAGIC:
        raise UnfitFileError(f"no Parquet file: it begins with {first!r}, not {MAGIC!r}")
    if last != MAGIC:
        raise UnfitFileError(f"no whole Parquet file: it ends with {last!r}, not {MAGIC!r}")


def _name_faults(group: FeatureGroup, names: Sequence[str]) -> Iterator[str]:
    """What is wrong with the names of a file's columns."""
    repeated = sorted(name for name, count in Counter(names).items() if count > 1)
    if repeated:
        yield f"columns that repeat: {', '.join(repeated)}"
    by_lower: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        by_lower.setdefault(name.lower(), []).append(name)
    twins = [" and ".join(same) for same in by_lower.values() if len(same) > 1]
    if twins:
        yield f"columns whose names differ by case only: {', '.join(twins)}"
    known = {*group.feature_names, *schema.SYSTEM_NAMES, *PARTITION_COLUMNS}
    unknown = [name for name in dict.fromkeys(names) if name not in known and not PANDAS_INDEX.fullmatch(name)]
    if unknown:
        yield f"columns that are no features of {group.name!r}: {', '.join(unknown)}"
    for role, name in (("record identifier", group.record_identifier), ("event time", group.event_time)):
        if name not in names:
            yield f"no column {name!r}, the {role} feature of {group.name!r}"


def _row_shifted(path: str, rows: int) -> str:
    return _ROW.sub(lambda match: f"rows[{int(match[1]) + rows}]", path, count=1)


@contextmanager
def _reading() -> Iterator[None]:
    """Whatever Arrow makes of bytes that nobody vouches for is a reason, apart from what the machine does."""
    try:
        yield
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StoreUnavailable("read a file of another tool", str(error)) from error
        detail = " ".join(str(error).split()) or type(error).__name__
        raise UnfitFileError(f"no readable Parquet file: {detail}") from error
