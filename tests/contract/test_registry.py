"""What every registry promises, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlalchemy as sa
from msgspec.structs import replace as replace_stream

from featurestore.access.keys import AccessKey, Keys, Right, SqlKeys
from featurestore.errors import (
    AccessKeyInUse,
    AccessKeyNotFound,
    FeatureGroupInUse,
    FeatureGroupNotFound,
    LimitExceeded,
    SettingsInvalid,
    StoreCorrupt,
    StoreUnavailable,
    StreamInUse,
    StreamNotFound,
    ValidationFailed,
)
from featurestore.model import limits
from featurestore.model.feature_group import (
    DataCatalog,
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
from featurestore.model.search import Filter, SearchExpression, SearchResource, check_expression, check_sort
from featurestore.model.stream import Stream, StreamState
from featurestore.registry.protocol import GroupQuery, GroupSort, Registry, SearchQuery, StoreIdentity, WantedIdentity
from featurestore.registry.sql import SqlRegistry
from featurestore.registry.tables import groups, metadata
from featurestore.settings import Settings

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


def found_names(registry: Registry, **filters: str) -> set[str]:
    expression = SearchExpression([Filter(name.replace("__", "."), None, value) for name, value in filters.items()])
    where = check_expression(SearchResource.FEATURE_GROUP, expression)
    query = SearchQuery(SearchResource.FEATURE_GROUP, check_sort(SearchResource.FEATURE_GROUP, "FeatureGroupName"), where)
    return {found.name for found in registry.search_groups(query).groups}


def test_a_search_sees_each_change_at_once(registry: Registry) -> None:
    registry.create(group("air", tags={"team": "red"}))
    rain = registry.create(group("rain", description="mm"))
    assert found_names(registry) == {"air", "rain"}
    assert found_names(registry, Tags__team="red") == {"air"}
    assert found_names(registry, Description="mm") == {"rain"}
    registry.update("air", lambda found: replace(found, tags={"team": "blue"}, description="mm"))
    assert found_names(registry, Tags__team="red") == set()
    assert found_names(registry, Description="mm") == {"air", "rain"}
    registry.update("air", lambda found: found.with_features([FeatureDefinition("y", FeatureType.INTEGRAL)]))
    assert found_names(registry, FeatureDefinitions__FeatureName="y") == {"air"}
    registry.begin_delete("rain")
    assert found_names(registry, FeatureGroupStatus="Deleting") == {"rain"}
    registry.finish_delete(rain.group_id)
    assert found_names(registry) == {"air"}
    features = SearchResource.FEATURE_METADATA
    hits = registry.search_features(SearchQuery(features, check_sort(features, "LastModifiedTime")))
    assert (hits.total, {found.group_name for found in hits.features}) == (4, {"air"})


def test_a_page_goes_on_where_the_last_one_ended_whatever_was_added(registry: Registry) -> None:
    for number in range(6):
        registry.create(group(f"g{number}"))
    kind = SearchResource.FEATURE_GROUP
    query = SearchQuery(kind, check_sort(kind, "LastModifiedTime"), page_rows=2)
    seen: list[str] = []
    token = None
    for added in ("x", "y", "z", "w"):
        page = registry.search_groups(replace(query, page_token=token))
        seen += [found.name for found in page.groups]
        registry.create(group(added))
        token = page.next_token
        if token is None:
            break
    assert seen == ["g5", "g4", "g3", "g2", "g1", "g0"]


def test_a_search_token_belongs_to_its_search(registry: Registry) -> None:
    registry.create(group("a"))
    registry.create(group("b"))
    kind = SearchResource.FEATURE_GROUP
    query = SearchQuery(kind, check_sort(kind, "CreationTime"), page_rows=1)
    token = registry.search_groups(query).next_token
    assert token is not None
    assert registry.search_groups(replace(query, page_token=token, page_rows=5)).groups[0].name == "a"
    for other in (replace(query, descending=False), replace(query, sort=check_sort(kind, "LastModifiedTime"))):
        with pytest.raises(ValidationFailed, match="same search"):
            registry.search_groups(replace(other, page_token=token))
    for garbage in ("x", "W10=", "e30=", token[:-4]):
        with pytest.raises(ValidationFailed, match="NextToken"):
            registry.search_groups(replace(query, page_token=garbage))


def test_two_groups_can_not_have_one_table(registry: Registry) -> None:
    catalog = DataCatalog("shared", "AwsDataCatalog", "db")
    first = registry.create(group("first", offline=OfflineConfig("s3://bucket", data_catalog=catalog)))
    assert first.status is GroupStatus.CREATED
    second = registry.create(group("second", offline=OfflineConfig("s3://bucket", data_catalog=catalog)))
    assert (second.status, second.offline_status) == (GroupStatus.CREATE_FAILED, None)
    assert second.failure_reason == "table db.shared exists already, of feature group 'first'"
    assert registry.get("second") == second
    brought = OfflineConfig("s3://bucket", data_catalog=catalog, disable_glue_table_creation=True)
    assert registry.create(group("third", offline=brought)).status is GroupStatus.CREATED, "a table that is brought is shared"
    for name in ("first", "second"):
        registry.finish_delete(registry.begin_delete(name).group_id)
    again = registry.create(group("second", offline=OfflineConfig("s3://bucket", data_catalog=catalog)))
    assert again.status is GroupStatus.CREATED


def test_no_more_groups_than_there_may_be(opener: Opener) -> None:
    registry = opener()
    rows = [
        {"name": f"g{number}", "folded": f"g{number}", "live": 1, "status": "Created", "created_at_us": 1, "document": b"{}"}
        for number in range(limits.FEATURE_GROUPS_MAX - 1)
    ]
    with registry.transaction() as connection:
        connection.execute(groups.insert(), rows)
    registry.create(group("last"))
    with pytest.raises(LimitExceeded, match="feature groups: at most 10000"):
        registry.create(group("one-more"))
    registry.finish_delete(registry.begin_delete("last").group_id)
    registry.create(group("one-more"))


def test_a_deletion_that_failed_is_begun_again(registry: Registry) -> None:
    made = registry.create(group())
    registry.fail_delete(made.group_id, "not even begun")
    assert registry.get("weather") == made
    registry.begin_delete("weather")
    registry.fail_delete(made.group_id, "x" * 2000)
    failed = registry.get("weather")
    assert (failed.status, failed.failure_reason) == (GroupStatus.DELETE_FAILED, "x" * 1024)
    assert [found.group_id for found in registry.deleting()] == [made.group_id]
    with pytest.raises(FeatureGroupInUse):
        registry.create(group())
    begun = registry.begin_delete("weather")
    assert (begun.status, begun.failure_reason) == (GroupStatus.DELETING, None)
    registry.finish_delete(made.group_id)
    assert not registry.deleting()
    registry.fail_delete(made.group_id, "too late")
    with pytest.raises(FeatureGroupNotFound):
        registry.get("weather")


def test_a_registry_of_another_format_is_refused(opener: Opener) -> None:
    registry = opener()
    with registry.transaction() as connection:
        connection.execute(sa.text("UPDATE store SET value = '2' WHERE name = 'format'"))
    with pytest.raises(StoreCorrupt, match="format 2, this release reads 3"):
        opener()


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


class TestAccessKeys:
    """Keys are kept in the registry's database."""

    def test_from_create_to_revoke(self, opener: Opener) -> None:
        keys, others = (SqlKeys(opener(), Settings.load({})) for _ in range(2))
        assert keys.read() == Keys({}, required=False)
        made = keys.create("etl", Right.WRITE)
        assert others.read() == Keys({made.access_key_id: made}, required=True)
        assert others.list() == [replace(made, secret_access_key="")]
        reader = others.create("a.reader", Right.READ)
        assert [key.name for key in keys.list()] == ["a.reader", "etl"]
        with pytest.raises(AccessKeyInUse, match="'etl' exists already"):
            others.create("etl", Right.READ)
        others.revoke("etl")
        assert keys.read() == Keys({reader.access_key_id: reader}, required=True)
        with pytest.raises(AccessKeyNotFound, match="'etl' does not exist"):
            keys.revoke("etl")
        again = keys.create("etl", Right.ADMIN)
        assert again.access_key_id != made.access_key_id
        for name in ("etl", "a.reader"):
            keys.revoke(name)
        assert others.read() == Keys({}, required=True)

    def test_of_concurrent_creations_one_wins(self, opener: Opener) -> None:
        made: list[str] = []
        opened = [SqlKeys(opener(), Settings.load({})) for _ in range(4)]

        def create(keys: SqlKeys) -> None:
            with contextlib.suppress(AccessKeyInUse):
                made.append(keys.create("raced", Right.READ).access_key_id)

        threads = [threading.Thread(target=create, args=(keys,)) for keys in opened]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [key.access_key_id for key in opened[0].list()] == made
        assert len(made) == 1

    def test_a_key_of_the_settings_is_beside_them(self, opener: Opener) -> None:
        admin = {"FEATURESTORE_ADMIN_ACCESS_KEY_ID": "admin", "FEATURESTORE_ADMIN_SECRET_ACCESS_KEY": "a long enough secret"}
        keys = SqlKeys(opener(), Settings.load(admin))
        root = AccessKey("root", "admin", "a long enough secret", Right.ADMIN, 0)
        assert keys.read() == Keys({"admin": root}, required=True)
        made = keys.create("etl", Right.WRITE)
        assert keys.read().live == {"admin": root, made.access_key_id: made}
        assert [key.name for key in keys.list()] == ["root", "etl"]
        with pytest.raises(AccessKeyNotFound):
            keys.revoke("root")


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
