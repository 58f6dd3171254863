"""Batch ingest, the pure middle: from checked columns to stamped offline rows and the newest online row per record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from featurestore.model.change import Change, LoggedChange, Op, Stamp, shard_of, target_bits
from featurestore.model.codec import encode_values
from featurestore.model.columns import ColumnBatch
from featurestore.model.feature_group import FeatureGroup, TargetStore
from featurestore.offline.batch import BatchRows

Int64s: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


def shards_of(batch: ColumnBatch, shards: int) -> Int64s:
    """The shard of each row."""
    by_key = {key: shard_of(key, shards) for key in set(batch.record_ids)}
    return np.fromiter((by_key[key] for key in batch.record_ids), np.int64, batch.rows)


def rows_per_shard(row_shards: Int64s) -> dict[int, int]:
    shards, counts = np.unique(row_shards, return_counts=True)
    return dict(zip(shards.tolist(), counts.tolist(), strict=True))


def api_times(row_shards: Int64s, first_us: Mapping[int, int]) -> Int64s:
    """The api time of each row: within a shard consecutive from `first_us[shard]`, in row order.

    So of rows with one record identifier and one event time the last wins, as if they had been put one after the other.
    """
    times_us = np.empty(len(row_shards), np.int64)
    for shard, first in first_us.items():
        rows = np.flatnonzero(row_shards == shard)
        times_us[rows] = first + np.arange(len(rows), dtype=np.int64)
    return times_us


def batch_rows(
    group: FeatureGroup, batch: ColumnBatch, row_shards: Int64s, api_times_us: Int64s, targets: frozenset[TargetStore]
) -> BatchRows:
    """The rows of both stores. A row's expiry is its event time plus the group's default TTL."""
    ttl = group.online.ttl if group.online is not None else None
    expires = None if ttl is None else batch.event_times_us + ttl.ttl_us
    online: list[LoggedChange] = []
    if TargetStore.ONLINE in targets:
        bits = target_bits(targets)
        event_times_us, stamps_us = batch.event_times_us.tolist(), api_times_us.tolist()
        for row in newest_rows(batch, event_times_us):
            change = Change(
                group.group_id,
                group.schema_version,
                batch.record_ids[row],
                event_times_us[row],
                Op.PUT,
                bits,
                None if expires is None else int(expires[row]),
                encode_values(group.schema_version, [column[row] for column in batch.texts]),
            )
            online.append(LoggedChange(change, Stamp(int(row_shards[row]), 0, stamps_us[row])))
    return BatchRows(batch.typed, batch.event_times_us, api_times_us, expires, online)


def newest_rows(batch: ColumnBatch, event_times_us: list[int]) -> list[int]:
    """Per record the position of its newest row: greatest event time, then last in the frame."""
    newest: dict[str, int] = {}
    for row, key in enumerate(batch.record_ids):
        held = newest.setdefault(key, row)
        if event_times_us[row] >= event_times_us[held]:
            newest[key] = row
    return list(newest.values())
