"""Online equals offline: after any history, a read, a training set and SQL say the same of this moment."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import ValidationFailed
from featurestore.model.feature_group import TtlDuration, TtlUnit
from featurestore.settings import Settings
from featurestore.store import FeatureStore

KEYS = ["a", "b", "c"]
BASE = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
GROUP_NUMBERS = count()


@dataclass(frozen=True)
class Put:
    key: str
    hour: int
    value: int | None
    ttl_days: int | None


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
EVENTS = st.one_of(
    st.builds(Put, st.sampled_from(KEYS), HOURS, VALUES, st.sampled_from([None, None, 1, 100])),
    st.builds(Put, st.sampled_from(KEYS), HOURS, VALUES, st.sampled_from([None, None, 1, 100])),
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


@settings(max_examples=50, deadline=None)
@given(history=st.lists(EVENTS, max_size=12), group_ttl_days=st.sampled_from([None, 5, 50]))
def test_every_way_of_reading_says_the_same(
    store: FeatureStore, history: list[Put | Delete | Ingest], group_ttl_days: int | None
) -> None:
    name = f"parity-{next(GROUP_NUMBERS)}"
    store.create_feature_group(
        name,
        record_identifier="key",
        event_time="t",
        features={"key": "String", "t": "String", "value": "Integral"},
        ttl=None if group_ttl_days is None else TtlDuration(TtlUnit.DAYS, group_ttl_days),
    )
    for event in history:
        match event:
            case Put(key, hour, value, ttl_days):
                ttl = None if ttl_days is None else TtlDuration(TtlUnit.DAYS, ttl_days)
                store.put_record(name, {"key": key, "t": moment(hour), "value": value}, ttl=ttl)
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
    times = [None if record is None else datetime.fromisoformat(str(record["t"])) for record in online]
    now = pd.Timestamp.now("UTC")
    spine = pd.DataFrame({"key": KEYS, "now": now})
    for cut in ({}, {"known_by": now.to_pydatetime()}, {"as_served": True}):
        answer = store.create_training_set(spine, [f"{name}.value"], event_time="now", event_times=True, **cut).to_arrow()
        assert answer[f"{name}.value"].to_pylist() == values, cut
        assert [t and t.to_pydatetime() for t in to_moments(answer[f"{name}._event_time"])] == times, cut
    latest = {row["key"]: row["value"] for row in store.sql(f'SELECT key, value FROM latest."{name}"').to_pylist()}
    assert latest == {key: value for key, value, record in zip(KEYS, values, online, strict=True) if record is not None}


def to_moments(column: object) -> list[pd.Timestamp | None]:
    return [None if value is pd.NaT else value for value in column.to_pandas()]
