"""Whatever was written, however and to which stores, and whatever was merged and erased since: an audit finds no difference."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.errors import ValidationFailed
from featurestore.model.feature_group import TargetStore, TtlDuration, TtlUnit
from featurestore.settings import Settings
from featurestore.store import FeatureStore

KEYS = {"String": ["a", "b", "ü"], "Integral": [1, -2, 3], "Fractional": [0.0, -0.0, 2.5]}
BASE = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
GROUP_NUMBERS = count()
BOTH = frozenset(TargetStore)
ONE_OF_BOTH = [BOTH, BOTH, frozenset([TargetStore.ONLINE]), frozenset([TargetStore.OFFLINE])]


@dataclass(frozen=True)
class Put:
    key: int
    hour: int
    values: tuple[int | None, float | None, str | None]
    ttl_days: int | None
    stores: frozenset[TargetStore]


@dataclass(frozen=True)
class Delete:
    key: int
    hour: int
    hard: bool
    stores: frozenset[TargetStore]


@dataclass(frozen=True)
class Ingest:
    rows: tuple[tuple[int, int, tuple[int | None, float | None, str | None]], ...]
    stores: frozenset[TargetStore]


@dataclass(frozen=True)
class Step:
    verb: str


@dataclass(frozen=True)
class Erase:
    key: int


Event = Put | Delete | Ingest | Step | Erase
POSITIONS = st.integers(0, 2)
HOURS = st.integers(0, 5)
VALUES = st.tuples(
    st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)),
    st.one_of(st.none(), st.floats(allow_nan=False, allow_infinity=False)),
    st.one_of(st.none(), st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=4)),
)


def events(stores: list[frozenset[TargetStore]]) -> st.SearchStrategy[Event]:
    targets = st.sampled_from(stores)
    put = st.builds(Put, POSITIONS, HOURS, VALUES, st.sampled_from([None, None, 1, 100]), targets)
    ingest = st.builds(Ingest, st.lists(st.tuples(POSITIONS, HOURS, VALUES), min_size=1, max_size=5).map(tuple), targets)
    return st.one_of(
        put,
        put,
        st.builds(Delete, POSITIONS, HOURS, st.booleans(), targets),
        ingest,
        st.builds(Step, st.sampled_from(["flush", "flush", "compact", "audit"])),
        st.builds(Erase, POSITIONS),
    )


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    home = tmp_path_factory.mktemp("home")
    url = None if request.param == "sqlite" else f"{request.getfixturevalue('redis').url}?prefix={home.parent.name}-{home.name}"
    with FeatureStore(Settings.load({}, home=home, online_url=url)) as store:
        yield store


def moment(hour: int) -> datetime:
    return BASE + timedelta(hours=hour)


def happen(store: FeatureStore, name: str, keys: list[Any], event: Event) -> None:
    match event:
        case Put(key, hour, (i, f, s), ttl_days, stores):
            ttl = None if ttl_days is None else TtlDuration(TtlUnit.DAYS, ttl_days)
            record = {"key": keys[key], "t": moment(hour), "i": i, "f": f, "s": s}
            store.put_record(name, record, targets=stores, ttl=ttl)
        case Delete(key, hour, hard, stores):
            try:
                store._loop.run(store.records.delete(name, str(keys[key]), text(hour), hard=hard, targets=stores))
            except ValidationFailed:
                assert hard
        case Ingest(rows, stores):
            frame = pd.DataFrame(
                {
                    "key": [keys[key] for key, _, _ in rows],
                    "t": [moment(hour) for _, hour, _ in rows],
                    "i": pd.array([i for _, _, (i, _, _) in rows], "Int64"),
                    "f": pd.array([f for _, _, (_, f, _) in rows], "Float64"),
                    "s": pd.array([s for _, _, (_, _, s) in rows], "string"),
                }
            )
            store.ingest(name, frame, targets=stores, progress=False)
        case Step("flush"):
            store.flush()
        case Step("compact"):
            store.compact(name, progress=False)
        case Step("audit"):
            assert store.audit(name, progress=False).differences == ()
        case Erase(key):
            store.erase(name, keys[key], progress=False)


def text(hour: int) -> str:
    return moment(hour).strftime("%Y-%m-%dT%H:%M:%SZ")


@settings(max_examples=35, deadline=None)
@given(
    kind=st.sampled_from(list(KEYS)),
    history=st.one_of(st.lists(events([BOTH]), max_size=14), st.lists(events(ONE_OF_BOTH), max_size=14)),
    group_ttl_days=st.sampled_from([None, 5, 50]),
)
def test_a_sound_store_has_no_difference(
    store: FeatureStore, kind: str, history: list[Event], group_ttl_days: int | None
) -> None:
    name = f"audit-{next(GROUP_NUMBERS)}"
    store.create_feature_group(
        name,
        record_identifier="key",
        event_time="t",
        features={"key": kind, "t": "String", "i": "Integral", "f": "Fractional", "s": "String"},
        ttl=None if group_ttl_days is None else TtlDuration(TtlUnit.DAYS, group_ttl_days),
    )
    for event in history:
        happen(store, name, KEYS[kind], event)
    before = store.audit(name, progress=False)
    assert before.differences == ()
    store.flush()
    after = store.audit(name, progress=False)
    assert after.differences == ()
    assert store.converge(name).repaired == 0
    assert store.audit(name, progress=False).differences == ()
    assert sum(shard.waiting for shard in after.shards) == 0
    assert [shard.acknowledged for shard in after.shards] == [shard.acknowledged for shard in before.shards]
    assert sum(shard.offline_rows for shard in after.shards) == store.sql(f'SELECT count(*) AS n FROM "{name}"')["n"][0].as_py()
    if all(event.stores == BOTH for event in history if isinstance(event, Put | Delete | Ingest)):
        assert sum(shard.explained for shard in after.shards) == 0
        assert sum(shard.offline_only for shard in after.shards) == 0
        store._loop.run(store.online.drop_group(store.feature_group(name).group_id))
        store.rebuild_online(name, progress=False)
        assert store.audit(name, progress=False).differences == ()
        assert store.rebuild_online(name, progress=False).changed == 0
    store.delete_feature_group(name)
