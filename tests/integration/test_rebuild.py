"""An online store that is lost or put back from an older copy: nothing is written twice or dropped; a rebuild restores it."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from contextlib import closing
from pathlib import Path

import pandas as pd
import pytest
from redis import Redis

import featurestore
from featurestore.errors import ValidationFailed
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import TargetStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.conftest import RunningRedis

START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
NAME = "people"
PEOPLE = [f"p{number}" for number in range(40)]


def at(hour: int) -> str:
    return format_iso(START_US + hour * HOUR_US)


def put(store: FeatureStore, identifier: str, hour: int, number: int) -> None:
    store.put_record(NAME, {"id": identifier, "t": at(hour), "n": number})


def fill(store: FeatureStore) -> None:
    features = {"id": "String", "t": "String", "n": "Integral"}
    store.create_feature_group(NAME, record_identifier="id", event_time="t", features=features)
    store.ingest(NAME, pd.DataFrame({"id": PEOPLE, "t": [at(0)] * 40, "n": range(40)}), progress=False)
    for number in range(0, 40, 2):
        put(store, f"p{number}", 1, 100 + number)
    store.delete_record(NAME, "p4", at(2))
    store.delete_record(NAME, "p6", at(2), hard=True)
    store.delete_record(NAME, "p8", at(2), hard=True)
    put(store, "p8", 0, 800)


def numbers(store: FeatureStore) -> list[int | None]:
    return [None if record is None else record["n"] for record in store.batch_get_record(NAME, PEOPLE)]


def lose_online(home: Path) -> None:
    for path in home.glob("online.db*"):
        path.unlink()


def test_a_lost_online_store_is_restored(tmp_path: Path) -> None:
    with featurestore.open(tmp_path) as store:
        fill(store)
        before = numbers(store)
    assert [before[place] for place in (3, 4, 6, 8, 10)] == [3, None, None, 800, 110]
    lose_online(tmp_path)
    with featurestore.open(tmp_path) as store:
        assert numbers(store) == [None] * 40
        assert len(store.audit(NAME, progress=False).differences) > 0
        done = store.rebuild_online(NAME, progress=False)
        assert (done.records, done.hard_deletes, done.former_changes) == (39, 2, 24)
        assert numbers(store) == before
        put(store, "p4", 1, 7)
        put(store, "p5", -1, 7)
        assert numbers(store)[4:6] == [None, 5], "event times count as before: of the tombstone, and of the record"
        assert store.audit(NAME, progress=False).differences == ()
        assert store.rebuild_online(NAME, progress=False).former_changes == 24, "however often"
        assert store.audit(NAME, progress=False).differences == ()


@pytest.mark.parametrize("kind", ["redis", "redis_cluster"])
def test_a_lost_redis_is_restored(request: pytest.FixtureRequest, tmp_path: Path, kind: str) -> None:
    running: RunningRedis = request.getfixturevalue(kind)

    def opened(prefix: str) -> FeatureStore:
        return FeatureStore(Settings.load({}, home=tmp_path, online_url=f"{running.url}?prefix={uuid.uuid4().hex[:8]}-{prefix}"))

    with opened("first") as store:
        fill(store)
        before = numbers(store)
    with opened("empty") as store:
        assert numbers(store) == [None] * 40
        done = store.rebuild_online(NAME, progress=False)
        assert (done.records, done.hard_deletes) == (39, 2)
        assert numbers(store) == before
        assert store.converge(NAME).repaired == 0
        put(store, "p4", 1, 7)
        put(store, "p5", -1, 7)
        assert numbers(store)[4:6] == [None, 5], "event times count as before"
        put(store, "p6", 3, 600)
        assert store.sql(f"SELECT count(*) AS n FROM {NAME} WHERE n = 600")["n"].to_pylist() == [1]
        assert store.audit(NAME, progress=False).differences == ()


def test_some_records_are_compared_and_repaired_on_redis(redis: RunningRedis, tmp_path: Path) -> None:
    prefix = uuid.uuid4().hex[:8]
    with FeatureStore(Settings.load({}, home=tmp_path, online_url=f"{redis.url}?prefix={prefix}")) as store:
        fill(store)
        store.flush()
        assert store.converge(NAME).repaired == 0
        before = numbers(store)
        with closing(Redis.from_url(redis.url)) as client:
            lost = [key for key in client.scan_iter(f"{prefix}*") if key.endswith((b"p1", b"p2", b"p4", b"p6"))]
            assert len(lost) == 4, "three records and a tombstone"
            assert client.delete(*lost) == 4
        assert sum(store.converge(NAME).repaired for _ in range(60)) >= 2
        assert numbers(store) == before, "what is deleted does not come back"
        assert store.converge(NAME).repaired == 0


def test_what_is_written_to_a_new_online_store_reaches_the_offline_one(tmp_path: Path) -> None:
    with featurestore.open(tmp_path) as store:
        fill(store)
    lose_online(tmp_path)
    with featurestore.open(tmp_path) as store:
        for number in range(10):
            put(store, f"new-{number}", 3, number)
        assert store.sql(f"SELECT count(*) AS n FROM {NAME} WHERE id LIKE 'new-%'")["n"].to_pylist() == [10]


def test_an_older_copy_of_the_online_store_goes_on_behind_what_is_written(tmp_path: Path) -> None:
    home, copy = tmp_path / "home", tmp_path / "copy.db"
    with featurestore.open(home) as store:
        fill(store)
    shutil.copy(home / "online.db", copy)
    with featurestore.open(home) as store:
        for number in range(40):
            put(store, f"p{number}", 5, 500 + number)
        store.flush()
        before = numbers(store)
    lose_online(home)
    shutil.copy(copy, home / "online.db")
    with featurestore.open(home) as store:
        store.rebuild_online(NAME, progress=False)
        assert numbers(store) == before
        for number in range(40):
            put(store, f"p{number}", 6, 600 + number)
        assert store.sql(f"SELECT count(*) AS n FROM {NAME} WHERE n >= 500 AND n < 700")["n"].to_pylist() == [80]
        store.rebuild_online(NAME, progress=False)
        assert numbers(store) == [600 + number for number in range(40)]


def test_only_groups_with_both_stores(tmp_path: Path) -> None:
    with featurestore.open(tmp_path) as store:
        features = {"id": "String", "t": "String"}
        store.create_feature_group("on", record_identifier="id", event_time="t", features=features, offline=False)
        store.create_feature_group("off", record_identifier="id", event_time="t", features=features, online=False)
        with pytest.raises(ValidationFailed, match="offline store"):
            store.rebuild_online("on")
        with pytest.raises(ValidationFailed, match="online store"):
            store.rebuild_online("off")


def test_some_records_are_compared_and_repaired(tmp_path: Path) -> None:
    with featurestore.open(tmp_path) as store:
        fill(store)
        store.flush()
        assert store.converge(NAME).repaired == 0
        before = numbers(store)
        with closing(sqlite3.connect(tmp_path / "online.db", timeout=30)) as database, database:
            database.execute("DELETE FROM record WHERE record_id IN ('p1', 'p2', 'p4', 'p6')")
            database.execute("UPDATE record SET event_time_us = event_time_us - 5 WHERE record_id = 'p3'")
        repaired = sum(store.converge(NAME).repaired for _ in range(60))
        assert repaired >= 3
        assert numbers(store) == before, "what is deleted does not come back"
        assert store.converge(NAME).repaired == 0
        assert store.maintain(NAME).converged.repaired == 0


def test_writes_to_the_offline_store_only_do_not_come_online(tmp_path: Path) -> None:
    with featurestore.open(tmp_path) as store:
        features = {"id": "String", "t": "String", "n": "Integral"}
        store.create_feature_group(NAME, record_identifier="id", event_time="t", features=features)
        for identifier in PEOPLE:
            record = {"id": identifier, "t": at(0), "n": 1}
            store.put_record(NAME, record, targets=frozenset([TargetStore.OFFLINE]))
        store.flush()
        assert {store.converge(NAME).repaired for _ in range(5)} == {0}
        assert numbers(store) == [None] * 40
