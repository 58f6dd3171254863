"""Columns of the offline table, and rows in that form.

The group's features in definition order, typed, then Amazon's three columns and three of our own. Feature names can't
start with an underscore, so ours can't collide; readers that do not know them lose nothing they were promised.

    <features>            int64 | double | string | list<...>   null where absent
    write_time            timestamp[us, UTC]    when the row was written to the offline store; unique and rising per shard
    api_invocation_time   timestamp[us, UTC]    when the service took the change; unique and rising per shard
    is_deleted            bool                  true for the marker row of a delete
    _event_time           timestamp[us, UTC]    the event time as an instant, whatever the event time feature's type
    _expires_at           timestamp[us, UTC]    when the record stops being readable; null without TTL
    _hard_deleted         bool                  true for the marker of a hard delete, which also forgets the event time
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.decoding import decode_json
from featurestore.errors import StoreCorrupt, excerpt
from featurestore.model.cells import arrow_type
from featurestore.model.change import LoggedChange, Op, shard_of
from featurestore.model.codec import decode_row
from featurestore.model.feature_group import FeatureDefinition, FeatureGroup, FeatureType
from featurestore.model.value import PARSE, Value, key_of
from featurestore.offline.manifest import FileEntry, Origin

WRITE_TIME: Final = "write_time"
API_TIME: Final = "api_invocation_time"
IS_DELETED: Final = "is_deleted"
EVENT_TIME: Final = "_event_time"
EXPIRES_AT: Final = "_expires_at"
HARD_DELETED: Final = "_hard_deleted"

Int64s: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]

INSTANT: Final = pa.timestamp("us", tz="UTC")
ROW_GROUP_ROWS: Final = 131_072
SAMPLE_ROWS: Final = 1_024
ROW_BITS: Final = 20
"""Enough for the rows of a file (`layout.FILE_ROWS_MAX`); their ranks have the other 43 bits."""
COMPRESSION: Final = "zstd"
FACTS: Final = b"featurestore"
"""Footer key of a file's facts."""

SYSTEM_FIELDS: Final = (
    pa.field(WRITE_TIME, INSTANT),
    pa.field(API_TIME, INSTANT),
    pa.field(IS_DELETED, pa.bool_()),
    pa.field(EVENT_TIME, INSTANT),
    pa.field(EXPIRES_AT, INSTANT),
    pa.field(HARD_DELETED, pa.bool_()),
)

SYSTEM_NAMES: Final = tuple(field.name for field in SYSTEM_FIELDS)


def table_schema(features: Sequence[FeatureDefinition]) -> pa.Schema:
    """The schema of a data file that knows these features."""
    return pa.schema([*(pa.field(feature.name, arrow_type(feature)) for feature in features), *SYSTEM_FIELDS])


def table_of_changes(
    group: FeatureGroup, schema_version: int, changes: Sequence[LoggedChange], write_times_us: Sequence[int]
) -> pa.Table:
    """Logged changes of one group as rows of the offline table, in the order given.

    Args:
        schema_version: of the file.
        write_times_us: one per change.

    Raises:
        StoreCorrupt: the values of a change do not decode, or it has a later schema version than the file.
    """
    features = group.features_at(schema_version)
    latest = max((item.change.schema_version for item in changes), default=0)
    if latest > schema_version:
        raise StoreCorrupt(f"changes of {group.name!r}", f"schema version {latest} in a file of version {schema_version}")
    rows = [decode_row(item.change.values) for item in changes]
    width = 1 + len(features)
    # Trailing values that are absent are not stored; what a later version has added is not of this file.
    rows = [row if len(row) == width else [*row[:width], *[None] * (width - len(row))] for row in rows]
    columns: Sequence[Sequence[Any]] = [*zip(*rows, strict=True)][1:] if rows else [()] * len(features)
    deleted = [item.change.op is not Op.PUT for item in changes]
    arrays = [
        *(typed_array(feature, column) for feature, column in zip(features, columns, strict=True)),
        pa.array(write_times_us, INSTANT),
        pa.array([item.stamp.api_time_us for item in changes], INSTANT),
        pa.array(deleted, pa.bool_()),
        pa.array([item.change.event_time_us for item in changes], INSTANT),
        pa.array([item.change.expires_at_us for item in changes], INSTANT),
        pa.array([item.change.op is Op.HARD_DELETE for item in changes], pa.bool_()),
    ]
    return pa.table(arrays, schema=table_schema(features))


def typed_array(feature: FeatureDefinition, texts: Sequence[Value]) -> pa.Array:
    """Checked value texts of one feature as a typed column.

    Raises:
        StoreCorrupt: a text is not of the feature's type.
    """
    kind = arrow_type(feature)
    if feature.type is FeatureType.STRING:
        return pa.array(texts, kind)
    try:
        # Arrow's parser takes nearly every text ours takes ("+1" is one it does not) and gives the same number.
        return pc.cast(pa.array(texts, pa.string() if feature.collection is None else pa.list_(pa.string())), kind)
    except pa.ArrowInvalid:
        pass
    return pa.array([_parsed(feature, text) for text in texts], kind)


def _parsed(feature: FeatureDefinition, text: Value) -> object:
    if text is None:
        return None
    values = [PARSE[feature.type](part) for part in (text if isinstance(text, list) else [text])]
    if None in values:
        raise StoreCorrupt(f"value of {feature.name!r}", f"{excerpt(text)} is not {feature.type}")
    return values if isinstance(text, list) else values[0]


def sorted_rows(group: FeatureGroup, table: pa.Table) -> pa.Table:
    """The rows by record identifier, event time and api time: neighbours compress well and lookups touch few pages."""
    event_times_us, api_times_us = (times_us_of(table, name) for name in (EVENT_TIME, API_TIME))
    ranks = ranks_of(table[group.record_identifier])
    return table.take(pa.array(sorted_positions(np.arange(table.num_rows), ranks, event_times_us, api_times_us)))


def sorted_positions(positions: Int64s, ranks: Int64s, event_times_us: Int64s, api_times_us: Int64s) -> Int64s:
    """Positions of rows, at most 2^ROW_BITS of them, in the order of `sorted_rows`.

    Args:
        ranks, event_times_us, api_times_us: of all rows of a table; for the ranks see `ranks_of`.
    """
    assert len(positions) <= 1 << ROW_BITS
    events, arrivals = event_times_us[positions], api_times_us[positions]
    step = np.diff(events)
    if not ((step > 0) | (step == 0) & (np.diff(arrivals) >= 0)).all():  # they mostly come in order
        positions = positions[np.lexsort((arrivals, events))]
    # Numbers are sorted several times faster than positions by them.
    keys = (ranks[positions] << ROW_BITS) | np.arange(len(positions))
    keys.sort()
    in_order: Int64s = positions[keys & ((1 << ROW_BITS) - 1)]
    return in_order


def ranks_of(identifiers: pa.ChunkedArray) -> Int64s:
    """The place of each row's record identifier, none of which is null, in the order of all: 0 for the least."""
    wide = identifiers.cast(pa.large_string()) if pa.types.is_string(identifiers.type) else identifiers
    if pa.types.is_floating(wide.type):
        wide = pc.add(wide, 0.0)  # as keys are made: zero has no sign
    found = wide.combine_chunks().dictionary_encode()
    ranks: Int64s = np.empty(len(found.dictionary), np.int64)
    ranks[pc.sort_indices(found.dictionary).to_numpy()] = np.arange(len(ranks))
    by_row: Int64s = ranks[found.indices.to_numpy()]
    return by_row


def times_us_of(table: pa.Table, name: str) -> Int64s:
    """A column of instants without nulls, in microseconds since 1970."""
    times_us: Int64s = table[name].cast(pa.int64()).to_numpy()
    return times_us


def parquet_bytes(
    table: pa.Table, facts: Mapping[str, int | str] | None = None, *, repeating: Sequence[str] | None = None
) -> bytes:
    """A Parquet file. The same rows and arguments give the same bytes.

    Args:
        facts: how the file came about; kept in its footer, see `facts_of`.
        repeating: `repeating_columns`, where they are known from the rows of other files.
    """
    if facts is not None:
        table = table.replace_schema_metadata({FACTS: msgspec.json.encode(facts, order="sorted")})
    dictionaries = repeating_columns(table, table.num_rows) if repeating is None else repeating
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression=COMPRESSION, row_group_size=ROW_GROUP_ROWS, use_dictionary=[*dictionaries])
    return buffer.getvalue()


def repeating_columns(table: pa.Table, file_rows: int) -> list[str]:
    """The columns that a file of so many rows should keep a dictionary of: four values in it or more are alike on average, as
    far as a sample tells. For the others a dictionary takes longer and is larger than the values.
    """
    count = min(table.num_rows, SAMPLE_ROWS)
    sample = table.take(pa.array(np.linspace(0, table.num_rows - 1, count).astype(np.int64)))
    # Of d distinct values a sample of n has n - n^2 / 2d, while it is small beside them.
    repeats_min = count * min(0.75, 2 * count / max(1, file_rows))
    return [
        field.name
        for field in table.schema
        if not pa.types.is_nested(field.type) and count - len(sample[field.name].unique()) >= repeats_min
    ]


def facts_of(footer: pq.FileMetaData) -> dict[str, int | str]:
    """The facts that `parquet_bytes` put into a file's footer.

    Raises:
        StoreCorrupt: there are none.
    """
    try:
        return decode_json((footer.metadata or {})[FACTS], dict[str, int | str])
    except (KeyError, msgspec.MsgspecError) as error:
        raise StoreCorrupt("data file", f"no facts in its footer: {error!r}") from error


def rows_by_shard(identifiers: pa.ChunkedArray, shards: int) -> dict[int, int]:
    """How many rows each shard has, from the rows' identifiers."""
    counted: dict[int, int] = {}
    for item in pc.value_counts(identifiers):
        shard = shard_of(key_of(item["values"].as_py()), shards)
        counted[shard] = counted.get(shard, 0) + item["counts"].as_py()
    return counted


def entry_of(table: pa.Table, path: str, size_bytes: int, schema_version: int, origin: Origin) -> FileEntry:
    """The manifest entry of a data file from its rows."""
    times = [_bounds_us(table[name]) for name in (EVENT_TIME, WRITE_TIME, API_TIME)]
    return FileEntry(
        path,
        size_bytes,
        table.num_rows,
        *times[0],
        *times[1],
        *times[2],
        schema_version,
        origin,
        tombstones=pc.sum(table[IS_DELETED]).as_py() or 0,
        hard_deletes=pc.sum(table[HARD_DELETED]).as_py() or 0,
        expiring=table.num_rows - table[EXPIRES_AT].null_count,
        foreign_rows=table.num_rows if origin is Origin.FOREIGN else 0,
    )


def _bounds_us(column: pa.ChunkedArray) -> tuple[int, int]:
    bounds = pc.min_max(column.cast(pa.int64())).as_py()
    return bounds["min"], bounds["max"]


def instants(times_us: np.ndarray[Any, np.dtype[np.int64]]) -> pa.Array:
    """Microseconds since 1970 as an INSTANT column."""
    return pa.array(times_us, pa.int64()).cast(INSTANT)
