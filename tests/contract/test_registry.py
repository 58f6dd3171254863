"""What every registry promises, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace as replace_stream

from featurestore.errors import (
    FeatureGroupInUse,
    FeatureGroupNotFound,
    LimitExceeded,
    SettingsInvalid,
    StoreUnavailable,
    StreamInUse,
    StreamNotFound,
    ValidationFailed,
)
from featurestore.model.feature_group import (
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    GroupStatus,
    OfflineConfig,
    OfflineStatus,
    OnlineConfig,
    TtlDuration,
    TtlUnit,
    definitions,
)
from featurestore.model.stream import Stream, StreamState
from featurestore.registry.protocol import GroupQuery, GroupSort, Registry, StoreIdentity, WantedIdentity
from featurestore.registry.sql import SqlRegistry
from featurestore.registry.tables import metadata

IDENTITY = StoreIdentity("111122223333", "eu-west-1", 4)
WANTED = WantedIdentity("111122223333", "eu-west-1")


class Clock:
    """Each look is a quarter of a second later, so that creation times differ and some share a second."""

    def __init__(self) -> None:
        self.now_us = 1_700_000_000_000_000

    def __call__(self) -> int:
        self.now_us += 250_000
        return self.now_us


Opener = Callable[[], SqlRegistry]


@pytest.fixture(params=["sqlite", "postgresql"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Opener]:
    url = f"sqlite:///{tmp_path}/registry.db"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_url")
        engine = sa.create_engine(url)
        metadata.drop_all(engine)
        engine.dispose()
    clock = Clock()
    opened: list[SqlRegistry] = []

    def open_one() -> SqlRegistry:
        opened.append(SqlRegistry(url, WANTED, clock_us=clock))
        return opened[-1]

    yield open_one
    for registry in opened:
        registry.close()


@pytest.fixture
def registry(opener: Opener) -> Registry:
    return opener()


def group(name: str = "weather", **members: object) -> FeatureGroup:
    features = definitions([("id", FeatureType.STRING), ("t", FeatureType.STRING), ("x", FeatureType.FRACTIONAL)])
    fields = {"online": OnlineConfig(), "offline": OfflineConfig("s3://bucket/prefix/")} | members
    return FeatureGroup(name, "id", "t", features, **fields)


def test_a_created_group_comes_back_whole(registry: Registry) -> None:
    wanted = group(online=OnlineConfig(ttl=TtlDuration(TtlUnit.DAYS, 3)), tags={"team": "a"}, description="d")
    made = registry.create(wanted)
    assert registry.get("weather") == made == registry.get_by_id(made.group_id)
    assert made.arn == "arn:aws:sagemaker:eu-west-1:111122223333:feature-group/weather"
    assert made.offline is not None
    assert made.offline.resolved_s3_uri == (
        f"s3://bucket/prefix/111122223333/sagemaker/eu-west-1/offline-store/weather-{made.created_at_s}/data"
    )
    assert made.offline.data_catalog is not None
    assert made.offline.data_catalog.table_name == f"weather_{made.created_at_s}"
    kept = replace(made, online=wanted.online, tags=wanted.tags, description=wanted.description)
    assert (made.schema_version, kept) == (1, made)


@pytest.mark.parametrize("name", ["weather", "Weather"])
def test_a_name_is_taken_once_whatever_its_case(registry: Registry, name: str) -> None:
    registry.create(group())
    with pytest.raises(FeatureGroupInUse):
        registry.create(group(name))


def test_of_concurrent_creations_one_wins(opener: Opener) -> None:
    registries = [opener() for _ in range(4)]
    outcomes: list[str] = []
    barrier = threading.Barrier(8)

    def create(registry: Registry) -> None:
        barrier.wait()
        try:
            registry.create(group())
            outcomes.append("made")
        except FeatureGroupInUse:
            outcomes.append("in use")

    threads = [threading.Thread(target=create, args=(registries[number % 4],)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["in use"] * 7 + ["made"]


def test_a_recreated_group_shares_nothing_with_the_old_one(registry: Registry) -> None:
    first = registry.create(group())
    registry.begin_delete("weather")
    with pytest.raises(FeatureGroupInUse):
        registry.create(group())
    assert [item.group_id for item in registry.deleting()] == [first.group_id]
    registry.finish_delete(first.group_id)
    registry.finish_delete(first.group_id)
    assert not registry.deleting()
    with pytest.raises(FeatureGroupNotFound):
        registry.get("weather")
    second = registry.create(group())
    assert second.group_id != first.group_id
    assert second.created_at_s > first.created_at_s, "the second names the folder"
    assert registry.get_by_id(first.group_id).name == "weather"


def test_groups_of_one_catalog_name_differ_in_their_second(registry: Registry) -> None:
    assert registry.create(group("a-b")).created_at_s < registry.create(group("a_b")).created_at_s


def test_features_are_appended_as_a_new_schema_version(registry: Registry) -> None:
    registry.create(group())
    before = registry.version()
    added = [FeatureDefinition("y", FeatureType.INTEGRAL)]
    changed = registry.update("weather", lambda found: found.with_features(added))
    assert changed.feature_counts == (3, 4)
    assert [item.name for item in changed.features_at(1)] == ["id", "t", "x"]
    assert registry.version() > before
    assert registry.feature("weather", "y").feature_type is FeatureType.INTEGRAL
    with pytest.raises(ValidationFailed):
        registry.update("weather", lambda found: found.with_features(added))
    assert registry.get("weather") == changed


def test_concurrent_updates_all_take_effect(opener: Opener) -> None:
    opener().create(group())
    registries = [opener() for _ in range(3)]

    def add(number: int) -> None:
        feature = FeatureDefinition(f"f{number}", FeatureType.INTEGRAL)
        registries[number % 3].update("weather", lambda found: found.with_features([feature]))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = opener().get("weather")
    assert found.schema_version == 10
    assert {f"f{number}" for number in range(9)} <= set(found.feature_names)


@pytest.mark.parametrize("sort", list(GroupSort))
@pytest.mark.parametrize("descending", [True, False])
def test_pages_hold_every_group_once_in_order(registry: Registry, sort: GroupSort, descending: bool) -> None:
    names = [f"group-{number}" for number in range(7)]
    for name in names:
        registry.create(group(name))
    seen: list[FeatureGroup] = []
    token = None
    while True:
        page = registry.list(GroupQuery(sort=sort, descending=descending, page_rows=3, page_token=token))
        seen.extend(page.groups)
        token = page.next_token
        if token is None:
            break
    assert sorted(found.name for found in seen) == names
    if sort in (GroupSort.NAME, GroupSort.CREATION_TIME):
        assert [found.name for found in seen] == sorted(names, reverse=descending)


def test_filters(registry: Registry) -> None:
    made = [registry.create(group(name)) for name in ("air", "air_2", "rain")]
    online_only = registry.create(group("online", offline=None))
    registry.begin_delete("rain")

    def names(**members: object) -> set[str]:
        return {found.name for found in registry.list(GroupQuery(**members)).groups}

    assert names(name_contains="air") == {"air", "air_2"}
    assert names(name_contains="r_") == {"air_2"}, "wildcards are taken as they are"
    assert names(status=GroupStatus.DELETING) == {"rain"}
    assert names(offline_status=OfflineStatus.ACTIVE) == {"air", "air_2", "rain"}
    assert names(created_after_us=made[1].created_at_us) == {"rain", "online"}
    assert names(created_before_us=made[1].created_at_us) == {"air"}
    assert names(created_after_us=online_only.created_at_us) == set()


@pytest.mark.parametrize("token", ["nonsense", "e30=", "WyJOYW1lIiwgMSwgMV0="])
def test_a_token_of_another_answer_is_refused(registry: Registry, token: str) -> None:
    with pytest.raises(ValidationFailed, match="NextToken"):
        registry.list(GroupQuery(page_token=token))


def test_feature_metadata(registry: Registry) -> None:
    registry.create(group())
    registry.update_feature("weather", "x", description="wind", additions={"unit": "m/s", "b": "1"}, removals=[])
    registry.update_feature("weather", "x", description=None, additions={"unit": "kn"}, removals=["b", "absent"])
    found = registry.feature("weather", "x")
    assert (found.description, found.parameters) == ("wind", {"unit": "kn"})
    assert found.modified_at_us > found.created_at_us
    registry.update_feature("weather", "x", description="", additions={}, removals=[])
    assert registry.feature("weather", "x").description is None
    with pytest.raises(LimitExceeded):
        additions = {f"key-{number}": "v" for number in range(26)}
        registry.update_feature("weather", "x", description=None, additions=additions, removals=[])
    with pytest.raises(FeatureGroupNotFound, match="no feature 'z'"):
        registry.feature("weather", "z")


def test_streams(registry: Registry, opener: Opener) -> None:
    clicks = Stream("clicks", "web.clicks", "weather", "web.clicks.dead", fields={"id": "user.id", "t": "at"}, start_ms=5)
    registry.add_stream(clicks)
    registry.add_stream(replace_stream(clicks, name="a"))
    with pytest.raises(StreamInUse, match="'clicks' exists already"):
        registry.add_stream(replace_stream(clicks, topic="other"))
    paused = registry.update_stream("clicks", lambda stream: replace_stream(stream, state=StreamState.PAUSED, epoch=2))
    assert paused == replace_stream(clicks, state=StreamState.PAUSED, epoch=2)
    assert opener().streams() == [replace_stream(clicks, name="a"), paused]
    with pytest.raises(ZeroDivisionError):
        registry.update_stream("a", lambda stream: 1 // 0)
    assert registry.remove_stream("a") == replace_stream(clicks, name="a")
    assert registry.streams() == [paused]
    for call in (registry.remove_stream, lambda name: registry.update_stream(name, lambda stream: stream)):
        with pytest.raises(StreamNotFound, match="'a' does not exist"):
            call("a")


def test_identity_is_fixed_at_creation(opener: Opener, tmp_path: Path) -> None:
    assert opener().identity() == IDENTITY
    SqlRegistry(f"sqlite:///{tmp_path}/other.db", WantedIdentity(shards=4)).close()
    with pytest.raises(SettingsInvalid, match="FEATURESTORE_SHARDS"):
        SqlRegistry(f"sqlite:///{tmp_path}/other.db", WantedIdentity(shards=8))
    again = SqlRegistry(f"sqlite:///{tmp_path}/other.db", WantedIdentity())
    assert again.identity() == StoreIdentity(shards=4)
    again.close()


def test_an_unreachable_database_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "registry.db").write_bytes(b"this is no database, but long enough to look like a file of one" * 10)
    with pytest.raises(StoreUnavailable, match="open registry"):
        SqlRegistry(f"sqlite:///{tmp_path}/registry.db", WANTED)
