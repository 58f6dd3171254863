"""Names in the offline store, and which rows share a file.

    <bucket>/<prefix>/<account>/sagemaker/<region>/offline-store/<group>-<creation epoch>/
        data/year=YYYY/month=MM/day=DD/hour=HH/<latest event time>_<16 alphanumerics>.parquet
        opt/<latest event time>_<16 alphanumerics>.parquet
        manifest/<version>.json, manifest/checkpoint-<version>.json
    _writer/<shard>/intent-<position>.json, done-<position>.json, quarantine-<position>.parquet
    _batch/<batch id>.json, _staging/<batch id>/<time>-<name>
    _erase/salt, _erase/<number>.json, pending-<id>.json, receipt-<number>.json

The part below the bucket is Amazon SageMaker Feature Store's layout; names that start with an underscore can't be buckets.

The 16 alphanumerics look random. The first tells how the file came about, the last four follow from the others and the
group's folder: so a file of our own is known by its name alone, whatever became of it, and every other file in `data/` was
put there by another tool.
"""

from __future__ import annotations

import hashlib
import re
from enum import StrEnum
from typing import Any, Final

import numpy as np

from featurestore.model.event_time import SECOND_US, civil_from_days, days_from_civil
from featurestore.model.feature_group import FeatureGroup

HOUR_US: Final = 3_600 * SECOND_US
DAY_US: Final = 24 * HOUR_US

ERASURE_SALT_KEY: Final = "_erase/salt"

PARTITIONS_MAX: Final = 256
"""Files that one write may spread over by time. Rows of more hours than this share files by day, month or year."""

FILE_ROWS_MAX: Final = 1_000_000

_ALPHANUMERICS: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_OWN_NAME: Final = re.compile(r"(?P<stamp>[0-9]{8}T[0-9]{6}Z)_(?P<body>[0-9A-Za-z]{12})(?P<check>[0-9A-Za-z]{4})\.parquet")
_STAMP_DIGITS: Final = ((0, 4), (4, 6), (6, 8), (9, 11), (11, 13), (13, 15))


def group_root(group: FeatureGroup) -> str:
    """The folder of a group: its resolved S3 URI without scheme and `/data`."""
    assert group.offline is not None, "only groups with an offline store have a folder"
    return group.offline.resolved_s3_uri.removeprefix("s3://").removesuffix("/data")


def data_key(root: str, latest_event_time_us: int, token: str) -> str:
    """The name of a data file, in the directory of the hour of its latest event time."""
    return f"{root}/data/{hour_folder(latest_event_time_us)}/{time_stamp(latest_event_time_us)}_{token}.parquet"


def hour_folder(time_us: int) -> str:
    """The partition directory of an event time, below `data/`."""
    days, day_us = divmod(time_us, DAY_US)
    year, month, day = civil_from_days(days)
    return f"year={year:04d}/month={month:02d}/day={day:02d}/hour={day_us // HOUR_US:02d}"


def time_stamp(time_us: int) -> str:
    """A time as it begins the names of data files."""
    days, day_us = divmod(time_us, DAY_US)
    year, month, day = civil_from_days(days)
    hour, hour_us = divmod(day_us, HOUR_US)
    minute, second = divmod(hour_us // SECOND_US, 60)
    return f"{year:04d}{month:02d}{day:02d}T{hour:02d}{minute:02d}{second:02d}Z"


class FileKind(StrEnum):
    """How a data file of our own came about: the first of its 16 alphanumerics."""

    STREAM = "s"
    BATCH = "b"
    FOREIGN = "f"
    COMPACTION = "c"
    ERASURE = "e"


def opt_key(root: str, latest_event_time_us: int, token: str) -> str:
    """The name of a file that only readers of the manifest use."""
    return f"{root}/opt/{time_stamp(latest_event_time_us)}_{token}.parquet"


def token(root: str, kind: FileKind, *parts: object) -> str:
    """16 alphanumerics that are a function of `parts`: repeated work repeats its file names."""
    body = kind.value + _alphanumerics("\0".join(str(part) for part in parts), 11)
    return body + _alphanumerics(f"{root}\0{body}", 4)


def kind_of(root: str, path: str) -> FileKind | None:
    """How a file below a group's folder came about, by its name; None if it is not ours."""
    match = _OWN_NAME.fullmatch(path.rpartition("/")[2])
    if match is None:
        return None
    body, check = match["body"], match["check"]
    if check != _alphanumerics(f"{root}\0{body}", 4) or body[0] not in set(FileKind):
        return None
    return FileKind(body[0])


def latest_event_time_us(path: str) -> int:
    """The time in the name of a file of our own: its latest event time, cut to the second."""
    match = _OWN_NAME.fullmatch(path.rpartition("/")[2])
    if match is None:
        raise ValueError(f"{path} is not a name of ours")
    year, month, day, hour, minute, second = (int(match["stamp"][start:end]) for start, end in _STAMP_DIGITS)
    days = days_from_civil(year, month, day)
    return (((days * 24 + hour) * 60 + minute) * 60 + second) * SECOND_US


def _alphanumerics(text: str, count: int) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big")
    chars = []
    for _ in range(count):
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


def quarantine_key(shard: int, offset_first: int) -> str:
    return f"{shard_folder(shard)}quarantine-{offset_first:020d}.parquet"


def batch_key(batch_id: str) -> str:
    return f"_batch/{batch_id}.json"


def staging_key(batch_id: str, staged_at_us: int, name: str) -> str:
    return f"_staging/{batch_id}/{staged_at_us:020d}-{name}"


def erasure_key(number: int) -> str:
    return f"_erase/{number:020d}.json"


def pending_erasure_key(token: str) -> str:
    return f"_erase/pending-{token}.json"


def receipt_key(number: int) -> str:
    return f"_erase/receipt-{number:020d}.json"


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
