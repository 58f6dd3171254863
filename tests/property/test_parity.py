"""Online equals offline: after any history, a read, a training set and SQL say the same of this moment."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import Conflict, RecordNotFound, ValidationFailed
from featurestore.model.feature_group import (
    CollectionType,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
    TtlDuration,
    TtlUnit,
    definitions,
)
from featurestore.model.record import FeaturePair
from featurestore.settings import Settings
from featurestore.store import FeatureStore

KEYS = ["a", "b", "c"]
STRING = FeatureType.STRING
BASE = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
GROUP_NUMBERS = count()


@dataclass(frozen=True)
class Put:
    key: str
    hour: int
    value: int | None
    words: tuple[str, ...]
    ttl_days: int | None


@dataclass(frozen=True)
class Update:
    """Of a live record; `hour` None leaves its event time, and a `value` or `words` of None theirs."""

    key: str
    hour: int | None
    value: int | None
    words: tuple[str, ...] | None


@dataclass(frozen=True)
class Delete:
    key: str
    hour: int
    hard: bool


@dataclass(frozen=True)
class Ingest:
    rows: tuple[tuple[str, int, int | None], ...]


HOURS = st.integers(0, 5)
VALUES = st.one_of(st.none(), st.integers(0, 99))
WORDS = st.lists(st.sampled_from(["", "x", "y"]), max_size=3).map(tuple)
PUTS = st.builds(Put, st.sampled_from(KEYS), HOURS, VALUES, WORDS, st.sampled_from([None, None, 1, 100]))
EVENTS = st.one_of(
    PUTS,
    PUTS,
    st.builds(Update, st.sampled_from(KEYS), st.one_of(st.none(), HOURS), VALUES, st.one_of(st.none(), WORDS)),
    st.builds(Delete, st.sampled_from(KEYS), HOURS, st.booleans()),
    st.builds(Ingest, st.lists(st.tuples(st.sampled_from(KEYS), HOURS, VALUES), min_size=1, max_size=5).map(tuple)),
)


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    home = tmp_path_factory.mktemp("home")
    url = None if request.param == "sqlite" else f"{request.getfixturevalue('redis').url}?prefix={home.parent.name}-{home.name}"
    with FeatureStore(Settings.load({}, home=home, online_url=url)) as store:
        yield store


def moment(hour: int) -> datetime:
    return BASE + timedelta(hours=hour)


@settings(max_examples=35, deadline=None)
@given(history=st.lists(EVENTS, max_size=12), group_ttl_days=st.sampled_from([None, 5, 50]))
def test_every_way_of_reading_says_the_same(
    store: FeatureStore, history: list[Put | Delete | Ingest], group_ttl_days: int | None
) -> None:
    name = f"parity-{next(GROUP_NUMBERS)}"
    ttl = None if group_ttl_days is None else TtlDuration(TtlUnit.DAYS, group_ttl_days)
    words = FeatureDefinition("words", FeatureType.STRING, CollectionType.LIST)
    store.create(
        FeatureGroup(
            name=name,
            record_identifier="key",
            event_time="t",
            features=(*definitions([("key", STRING), ("t", STRING), ("value", FeatureType.INTEGRAL)]), words),
            online=OnlineConfig(ttl=ttl, storage_type=StorageType.IN_MEMORY),
            offline=OfflineConfig(store.default_s3_uri),
        )
    )
    for event in history:
        match event:
            case Put(key, hour, value, texts, ttl_days):
                ttl = None if ttl_days is None else TtlDuration(TtlUnit.DAYS, ttl_days)
                store.put_record(name, {"key": key, "t": moment(hour), "value": value, "words": list(texts)}, ttl=ttl)
            case Update():
                update(store, name, event)
            case Delete(key, hour, hard):
                try:
                    store.delete_record(name, key, moment(hour), hard=hard)
                except ValidationFailed:
                    assert hard
            case Ingest(rows):
                frame = pd.DataFrame(rows, columns=["key", "hour", "value"])
                frame["t"] = [moment(hour) for hour in frame.pop("hour")]
                frame["value"] = frame["value"].astype("Int64")
                store.ingest(name, frame, progress=False)
    online = store.batch_get_record(name, KEYS)
    values = [None if record is None else record.get("value") for record in online]
    lists = [None if record is None else record.get("words") for record in online]
    times = [None if record is None else datetime.fromisoformat(str(record["t"])) for record in online]
    now = pd.Timestamp.now("UTC")
    spine = pd.DataFrame({"key": KEYS, "now": now})
    for cut in ({}, {"known_by": now.to_pydatetime()}, {"as_served": True}):
        wanted = [f"{name}.value", f"{name}.words"]
        answer = store.create_training_set(spine, wanted, event_time="now", event_times=True, **cut).to_arrow()
        assert answer[f"{name}.value"].to_pylist() == values, cut
        assert answer[f"{name}.words"].to_pylist() == lists, cut
        assert [t and t.to_pydatetime() for t in to_moments(answer[f"{name}._event_time"])] == times, cut
    rows = store.sql(f'SELECT key, value, words FROM latest."{name}" ORDER BY key').to_pylist()
    latest = [(row["key"], row["value"], row["words"]) for row in rows]
    assert latest == [row[:3] for row in zip(KEYS, values, lists, online, strict=True) if row[3] is not None]
    listed = asyncio.run(store.records.page(name)).identifiers
    assert sorted(listed) == [key for key, record in zip(KEYS, online, strict=True) if record is not None]


def update(store: FeatureStore, name: str, event: Update) -> None:
    """As UpdateRecord; whether it is refused follows from the record that is there."""
    pairs: list[FeaturePair] = []
    if event.hour is not None:
        pairs.append(("t", moment(event.hour).isoformat().replace("+00:00", "Z")))
    if event.value is not None:
        pairs.append(("value", str(event.value)))
    if event.words is not None or not pairs:
        pairs.append(("words", list(event.words or ())))
    before = store.get_record(name, event.key)
    try:
        asyncio.run(store.records.update(name, event.key, pairs))
    except RecordNotFound:
        assert before is None
    except Conflict:
        assert before is not None
        assert event.hour is not None
        assert moment(event.hour) < datetime.fromisoformat(str(before["t"]))
    else:
        after = store.get_record(name, event.key)
        assert before is not None
        named = {feature for feature, _ in pairs}
        assert {feature: before.get(feature) for feature in before.keys() - named} == {
            feature: value for feature, value in (after or before).items() if feature not in named
        }


def to_moments(column: object) -> list[pd.Timestamp | None]:
    return [None if value is pd.NaT else value for value in column.to_pandas()]
