"""Made data: the same for the same arguments, on every machine."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    import pandas as pd

START_US = 1_767_225_600_000_000
"""2026-01-01T00:00:00Z in microseconds since 1970."""
HOUR_US = 3_600_000_000
HOURS = 200
SHARDS = 4
"""As many as a store has by default."""
COUNTRIES = ("DE", "US", "FR", "JP", "BR", "IN", "GB", "NG")

Pairs = list[tuple[str, str]]


def record(identifier: str, features: int, version: int) -> Pairs:
    """One record as (feature name, value text): `id`, `at`, then Fractional, Integral and String features in turn."""
    rng = np.random.default_rng([int(identifier), features, version])
    numbers = rng.integers(0, 1_000_000, features).tolist()
    pairs = [("id", identifier), ("at", f"2026-01-{version + 1:02d}T12:00:00Z")]
    for position in range(2, features):
        number = numbers[position]
        pairs.append((feature_name(position), (repr(number / 1000), str(number), f"segment-{number:06d}")[position % 3]))
    return pairs


def definitions(features: int) -> dict[str, str]:
    """The features of `record`: name to type."""
    kinds = ("Fractional", "Integral", "String")
    return {"id": "String", "at": "String"} | {feature_name(position): kinds[position % 3] for position in range(2, features)}


def feature_name(position: int) -> str:
    return f"feature_{position:02d}"


def records_table(records: list[Pairs]) -> pa.Table:
    """Records as a frame of texts; ingest reads numbers from texts as PutRecord does."""
    return pa.table({name: [pairs[index][1] for pairs in records] for index, (name, _) in enumerate(records[0])})


def times_us(rng: np.random.Generator, first: int, count: int, total: int, hours: int = HOURS) -> np.ndarray:
    """Event times of rows `first` to `first + count - 1` of `total`: rising over so many hours, no two alike."""
    step_us = hours * HOUR_US // total
    return START_US + np.arange(first, first + count) * step_us + rng.integers(0, step_us, count)


def instants(times: np.ndarray) -> pa.Array:
    return pa.array(times, pa.timestamp("us", tz="UTC"))


def events(rows: int, identifiers: int) -> pd.DataFrame:
    """A frame of 10 features for `ingest`: texts, integers, floats and times, in order of time; `n` numbers the rows."""
    rng = np.random.default_rng(7)
    return pa.table(
        {
            "id": pa.array([f"user-{key:07d}" for key in rng.integers(0, identifiers, rows).tolist()]),
            "at": instants(times_us(rng, 0, rows, rows)),
            "n": pa.array(np.arange(rows)),
            "items": pa.array(rng.integers(1, 50, rows)),
            "age_days": pa.array(rng.integers(0, 4000, rows)),
            "amount": pa.array(rng.integers(1, 10_000_000, rows) / 100),
            "score": pa.array(rng.random(rows)),
            "distance_km": pa.array(rng.integers(0, 20_000, rows) / 8, mask=rng.random(rows) < 0.05),
            "country": pa.array(np.array(COUNTRIES)[rng.integers(0, len(COUNTRIES), rows)]),
            "session": pa.array([f"{key:016x}" for key in rng.integers(0, 1 << 62, rows).tolist()]),
        }
    ).to_pandas()


GROUPS: dict[str, dict[str, str]] = {
    "customers": {
        "customer": "String",
        "at": "String",
        "orders": "Integral",
        "items": "Integral",
        "spent": "Fractional",
        "score": "Fractional",
        "country": "String",
    },
    "zones": {
        "zone": "Integral",
        "at": "String",
        "trips": "Integral",
        "waiting": "Integral",
        "fare": "Fractional",
        "speed": "Fractional",
        "weather": "String",
    },
}
"""Two groups with five features each, beside identifier and event time."""
KEYS = {"customers": "customer", "zones": "zone"}
FEATURES = [(group, name) for group, features in GROUPS.items() for name in features if name not in (KEYS[group], "at")]
"""The (group, feature) pairs of a training set with all features of both groups."""
COLUMNS = [f"{group}.{name}" for group, name in FEATURES]
"""Its columns."""


def history(group: str, first: int, count: int, total: int, keys: int) -> pa.Table:
    """Rows `first` to `first + count - 1` of a group's history of `total` rows."""
    rng = np.random.default_rng([list(GROUPS).index(group), first])
    names = list(GROUPS[group])
    texts = np.array(COUNTRIES)[rng.integers(0, len(COUNTRIES), count)]
    columns: list[Any] = [
        key_column(group, rng.integers(0, keys, count)),
        instants(times_us(rng, first, count, total)),
        pa.array(rng.integers(0, 1000, count)),
        pa.array(rng.integers(0, 100_000, count)),
        pa.array(rng.integers(0, 10_000_000, count) / 100),
        pa.array(rng.random(count)),
        pa.array(texts),
    ]
    return pa.table(columns, names=names)


def key_column(group: str, keys: np.ndarray) -> pa.Array:
    return pa.array(keys) if group == "zones" else pa.array([f"c{key:07d}" for key in keys.tolist()])


def spine(rows: int, keys: dict[str, int]) -> pa.Table:
    """A spine in no order of time: `row`, one key per group, `at`, `label`. A few keys are unknown to the groups."""
    rng = np.random.default_rng(11)
    return pa.table(
        {
            "row": pa.array(np.arange(rows)),
            "customer": key_column("customers", rng.integers(0, keys["customers"] + keys["customers"] // 100 + 1, rows)),
            "zone": key_column("zones", rng.integers(0, keys["zones"] + keys["zones"] // 100 + 1, rows)),
            "at": instants(START_US + rng.integers(0, HOURS * HOUR_US, rows)),
            "label": pa.array(rng.random(rows)),
        }
    )


ACCOUNTS = {
    "account": "String",
    "at": "String",
    "orders": "Integral",
    "items": "Integral",
    "visits": "Integral",
    "age_days": "Integral",
    "spent": "Fractional",
    "balance": "Fractional",
    "score": "Fractional",
    "distance_km": "Fractional",
    "country": "String",
    "segment": "String",
}
"""One group with ten features beside identifier and event time."""
ACCOUNT_FEATURES = [name for name in ACCOUNTS if name not in ("account", "at")]
LATE_HOURS = 24


def account_frames(
    frames: int, rows: int, hours: int, accounts: int, late_share: float = 0.0, first: int = 0, end: int | None = None
) -> Iterator[pd.DataFrame]:
    """The history of the accounts in frames of rising time, `hours` in all.

    Args:
        late_share: of the rows, how many have an event time up to LATE_HOURS before that of their neighbours.
        first, end: only the frames from `first` to `end` - 1; by default all.
    """
    step_us = hours * HOUR_US // (frames * rows)
    for number in range(first, frames if end is None else end):
        rng = np.random.default_rng([17, number])
        # By whole steps: a late row keeps its own place within a step, so that hardly two times are alike.
        late_us = rng.integers(0, LATE_HOURS * HOUR_US // step_us, rows) * step_us * (rng.random(rows) < late_share)
        columns: list[Any] = [
            account_keys(rng.integers(0, accounts, rows)),
            instants(times_us(rng, number * rows, rows, frames * rows, hours) - late_us),
            pa.array(rng.integers(0, 1000, rows)),
            pa.array(rng.integers(0, 100_000, rows)),
            pa.array(rng.integers(0, 50, rows)),
            pa.array(rng.integers(0, 4000, rows)),
            pa.array(rng.integers(0, 10_000_000, rows) / 100),
            pa.array(rng.normal(0, 1000, rows)),
            pa.array(rng.random(rows)),
            pa.array(rng.integers(0, 20_000, rows) / 8, mask=rng.random(rows) < 0.05),
            pa.array(np.array(COUNTRIES)[rng.integers(0, len(COUNTRIES), rows)]),
            pa.array([f"segment-{key:03d}" for key in rng.integers(0, 1000, rows).tolist()]),
        ]
        yield pa.table(columns, names=list(ACCOUNTS)).to_pandas()


def account_spine(rows: int, hours: int, accounts: int) -> pa.Table:
    """A spine in no order of time: `row`, `account`, `at`. A few accounts are unknown to the group."""
    rng = np.random.default_rng(19)
    return pa.table(
        {
            "row": pa.array(np.arange(rows)),
            "account": account_keys(rng.integers(0, accounts + accounts // 100 + 1, rows)),
            "at": instants(START_US + rng.integers(0, hours * HOUR_US, rows)),
        }
    )


def account_keys(keys: np.ndarray) -> pa.Array:
    return pa.array([f"a{key:07d}" for key in keys.tolist()])
