"""Names in the offline store, and which rows share a file.

    <bucket>/<prefix>/<account>/sagemaker/<region>/offline-store/<group>-<creation epoch>/
        data/year=YYYY/month=MM/day=DD/hour=HH/<latest event time>_<16 alphanumerics>.parquet
        manifest/<version>.json, manifest/checkpoint-<version>.json
    _writer/<shard>/intent-<position>.json, _writer/<shard>/done-<position>.json
    _batch/<batch id>.json, _staging/<batch id>/...

The part below the bucket is Amazon SageMaker Feature Store's layout; names that start with an underscore can't be buckets.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import numpy as np

from featurestore.model.event_time import SECOND_US, civil_from_days
from featurestore.model.feature_group import FeatureGroup

HOUR_US: Final = 3_600 * SECOND_US
DAY_US: Final = 24 * HOUR_US

PARTITIONS_MAX: Final = 256
"""Files that one write may spread over by time. Rows of more hours than this share files by day, month or year."""

FILE_ROWS_MAX: Final = 1_000_000

_ALPHANUMERICS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"


def group_root(group: FeatureGroup) -> str:
    """The folder of a group: its resolved S3 URI without scheme and `/data`."""
    assert group.offline is not None, "only groups with an offline store have a folder"
    return group.offline.resolved_s3_uri.removeprefix("s3://").removesuffix("/data")


def data_key(root: str, latest_event_time_us: int, token: str) -> str:
    """The name of a data file, in the directory of the hour of its latest event time."""
    days, day_us = divmod(latest_event_time_us, DAY_US)
    year, month, day = civil_from_days(days)
    hour, hour_us = divmod(day_us, HOUR_US)
    minute, second = divmod(hour_us // SECOND_US, 60)
    stamp = f"{year:04d}{month:02d}{day:02d}T{hour:02d}{minute:02d}{second:02d}Z"
    folder = f"year={year:04d}/month={month:02d}/day={day:02d}/hour={hour:02d}"
    return f"{root}/data/{folder}/{stamp}_{token}.parquet"


def token(*parts: object) -> str:
    """16 alphanumerics that look random and are a function of `parts`: repeated work repeats its file names."""
    number = int.from_bytes(hashlib.sha256("\0".join(str(part) for part in parts).encode()).digest(), "big")
    chars = []
    for _ in range(16):
        number, index = divmod(number, len(_ALPHANUMERICS))
        chars.append(_ALPHANUMERICS[index])
    return "".join(chars)


def version_key(root: str, version: int) -> str:
    return f"{root}/manifest/{version:020d}.json"


def checkpoint_key(root: str, version: int) -> str:
    return f"{root}/manifest/checkpoint-{version:020d}.json"


def shard_folder(shard: int) -> str:
    return f"_writer/{shard:04d}/"


def intent_key(shard: int, offset_next: int) -> str:
    return f"{shard_folder(shard)}intent-{offset_next:020d}.json"


def done_key(shard: int, offset_next: int) -> str:
    return f"{shard_folder(shard)}done-{offset_next:020d}.json"


def batch_key(batch_id: str) -> str:
    return f"_batch/{batch_id}.json"


def staging_key(batch_id: str, token: str) -> str:
    return f"_staging/{batch_id}/{token}.parquet"


def file_groups(event_times_us: np.ndarray[Any, np.dtype[np.int64]]) -> list[np.ndarray[Any, np.dtype[np.int64]]]:
    """Row positions per file: by hour of event time, or by the finest of day, month and year that gives few enough files.

    A function of the event times alone, so that repeated work makes the same files. Each group has at most FILE_ROWS_MAX rows.
    """
    periods = _periods(event_times_us)
    order = np.argsort(periods, kind="stable")
    boundaries = np.flatnonzero(np.diff(periods[order])) + 1
    groups: list[np.ndarray[Any, np.dtype[np.int64]]] = []
    for rows in np.split(order, boundaries):
        groups.extend(rows[start : start + FILE_ROWS_MAX] for start in range(0, len(rows), FILE_ROWS_MAX))
    return groups


def _periods(event_times_us: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    for width_us in (HOUR_US, DAY_US):
        periods = event_times_us // width_us
        if len(np.unique(periods)) <= PARTITIONS_MAX:
            return periods
    moments = event_times_us.view("datetime64[us]")
    months = moments.astype("datetime64[M]").astype(np.int64)
    if len(np.unique(months)) <= PARTITIONS_MAX:
        return months
    years: np.ndarray[Any, np.dtype[np.int64]] = moments.astype("datetime64[Y]").astype(np.int64)
    return years
