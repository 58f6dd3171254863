"""The life of a group after DeleteFeatureGroup: records that take their time, a store that fails, a process that ends."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from featurestore.errors import FeatureGroupInUse, FeatureGroupNotFound, StoreUnavailable
from featurestore.model.feature_group import FeatureGroup, FeatureType, GroupStatus, OnlineConfig, definitions
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.redis_server import RedisServer

GROUP = FeatureGroup(
    "g", "id", "at", definitions([("id", FeatureType.STRING), ("at", FeatureType.STRING)]), online=OnlineConfig()
)
RECORD = {"id": "k", "at": "2024-05-01T00:00:00Z"}
GONE_S_MAX = 30.0


def await_gone(store: FeatureStore) -> None:
    deadline_s = time.monotonic() + GONE_S_MAX
    while time.monotonic() < deadline_s:
        try:
            store.feature_group("g")
        except FeatureGroupNotFound:
            return
        time.sleep(0.01)
    raise AssertionError("the group is still there")


def test_the_group_is_there_until_its_records_are_gone(tmp_path: Path) -> None:
    with FeatureStore(Settings.load({}, home=tmp_path)) as store:
        store.create(GROUP)
        store.put_record("g", RECORD)
        with closing(sqlite3.connect(tmp_path / "online.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")  # somebody else writes, so that nothing can be removed yet
            store.delete_feature_group("g", wait_s=0.05)
            assert store.feature_group("g").status is GroupStatus.DELETING
            with pytest.raises(FeatureGroupNotFound):
                store.get_record("g", "k")
            with pytest.raises(FeatureGroupInUse):
                store.create(GROUP)
            other.execute("ROLLBACK")
        await_gone(store)
        store.create(GROUP)
        assert store.get_record("g", "k") is None


def test_a_store_that_closes_meanwhile_leaves_the_rest_to_the_next_start(tmp_path: Path) -> None:
    store = FeatureStore(Settings.load({}, home=tmp_path))
    store.create(GROUP)
    store.put_record("g", RECORD)
    with closing(sqlite3.connect(tmp_path / "online.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        store.delete_feature_group("g", wait_s=0.05)
        other.execute("ROLLBACK")
    store.close()
    with FeatureStore(Settings.load({}, home=tmp_path)) as again:
        with pytest.raises(FeatureGroupNotFound):
            again.feature_group("g")
        with closing(sqlite3.connect(tmp_path / "online.db")) as online:
            assert online.execute("SELECT count(*) FROM record").fetchone() == (0,)


def test_a_store_that_fails_says_why_and_is_asked_again(tmp_path: Path, redis_server: RedisServer) -> None:
    with FeatureStore(Settings.load({}, home=tmp_path, online_url=f"{redis_server.url}?prefix=deletion")) as store:
        store.create(GROUP)
        store.put_record("g", RECORD)
        store.flush()
        redis_server.kill()
        with pytest.raises(StoreUnavailable):
            store.delete_feature_group("g")
        failed = store.feature_group("g")
        assert failed.status is GroupStatus.DELETE_FAILED
        assert failed.failure_reason is not None
        assert failed.failure_reason.startswith("its online records could not be removed: ")
        redis_server.restart()
        store.delete_feature_group("g")
        with pytest.raises(FeatureGroupNotFound):
            store.feature_group("g")
