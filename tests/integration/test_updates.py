"""Updates by several processes' handles on one store: none undoes another, nor a feature that one of them does not know yet."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from featurestore.model.change import Outcome
from featurestore.model.feature_group import (
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
    definitions,
)
from featurestore.settings import Settings
from featurestore.store import FeatureStore

GROUP, T0 = "g", "2024-05-01T00:00:00Z"
COUNTERS = [f"n{number}" for number in range(6)]


@pytest.fixture(params=["sqlite", "redis"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], FeatureStore]]:
    """Opens another handle on one store, which has a group of type Standard_V2."""
    url = None if request.param == "sqlite" else f"{request.getfixturevalue('redis').url}?prefix={tmp_path.name}"
    with ExitStack() as stack:

        def another() -> FeatureStore:
            return stack.enter_context(FeatureStore(Settings.load({}, home=tmp_path, online_url=url)))

        store = another()
        features = [("id", FeatureType.STRING), ("at", FeatureType.STRING), *((name, FeatureType.INTEGRAL) for name in COUNTERS)]
        store.create(
            FeatureGroup(
                name=GROUP,
                record_identifier="id",
                event_time="at",
                features=definitions(features),
                online=OnlineConfig(storage_type=StorageType.STANDARD_V2),
                offline=OfflineConfig(store.default_s3_uri),
            )
        )
        store.put_record(GROUP, {"id": "k", "at": T0})
        yield another


def test_updates_of_many_writers_all_survive(opened: Callable[[], FeatureStore]) -> None:
    """Half of them share a handle and its event loop, each of the others has its own."""
    rounds = 8

    async def write(store: FeatureStore, name: str) -> None:
        for number in range(rounds):
            applied = await store.records.update(GROUP, "k", [(name, str(number))])
            assert applied.outcome is Outcome.NEWEST

    async def write_all(store: FeatureStore, names: list[str]) -> None:
        await asyncio.gather(*(write(store, name) for name in names))

    shares = [COUNTERS[:3], *([name] for name in COUNTERS[3:])]
    stores = [opened() for _ in shares]
    with ThreadPoolExecutor(len(shares)) as pool:
        for done in [pool.submit(asyncio.run, write_all(*share)) for share in zip(stores, shares, strict=True)]:
            done.result(60)
    expected = dict.fromkeys(COUNTERS, rounds - 1)
    found = stores[0].get_record(GROUP, "k")
    assert found is not None
    assert {name: found[name] for name in COUNTERS} == expected
    rows = stores[0].sql(f'SELECT {", ".join(COUNTERS)} FROM history."{GROUP}" ORDER BY api_invocation_time').to_pylist()
    assert len(rows) == 1 + rounds * len(COUNTERS)
    assert rows[-1] == expected


def test_an_update_keeps_features_that_its_process_does_not_know_yet(opened: Callable[[], FeatureStore]) -> None:
    one, other = opened(), opened()
    asyncio.run(other.records.update(GROUP, "k", [("n0", "1")]))  # from now on it knows the group as it is
    one.add_features(GROUP, [FeatureDefinition("added", FeatureType.INTEGRAL)])
    one.put_record(GROUP, {"id": "k", "at": T0, "added": 7, "n0": 2})
    asyncio.run(other.records.update(GROUP, "k", [("n1", "3")]))
    found = one.get_record(GROUP, "k")
    assert found is not None
    assert (found["added"], found["n0"], found["n1"]) == (7, 2, 3)
    assert one.sql(f'SELECT added, n0, n1 FROM latest."{GROUP}"').to_pylist() == [{"added": 7, "n0": 2, "n1": 3}]
