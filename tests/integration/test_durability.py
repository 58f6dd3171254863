"""`durability=log`: a write is acknowledged when Kafka has it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from featurestore.changelog.kafka import KafkaChangeLog
from featurestore.changelog.kafka_client import KafkaAddress
from featurestore.errors import SettingsInvalid, StoreUnavailable
from featurestore.model.change import Applied, Outcome
from featurestore.model.feature_group import Durability
from featurestore.records import WriteRequest
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from ingest.relay import RelayWorker
from tests.kafka_server import KafkaServer

GROUP = "people"
FEATURES = {"id": "String", "t": "String", "n": "Integral"}


def opened(home: Path, servers: str, topic: str, **settings: object) -> FeatureStore:
    return FeatureStore(
        Settings.load({}, home=home, kafka_bootstrap_servers=servers, kafka_topic=topic, kafka_ack_s=20.0, **settings)
    )


@pytest.fixture
def store(tmp_path: Path, kafka_servers: str, kafka_topic: str) -> Iterator[FeatureStore]:
    with opened(tmp_path / "home", kafka_servers, kafka_topic) as store:
        store.create_feature_group(GROUP, record_identifier="id", event_time="t", features=FEATURES)
        store.set_durability(GROUP, Durability.LOG)
        yield store


def put(store: FeatureStore, number: int) -> None:
    store.put_record(GROUP, {"id": f"p{number}", "t": "2024-05-01T00:00:00Z", "n": number})


def in_kafka(servers: str, topic: str, shards: int) -> set[str]:
    log = KafkaChangeLog(KafkaAddress(servers, topic), shards)
    try:
        entries = [entry for shard, end in log.ends().items() if end > 1 for entry in log.read(shard, 1, 1000)]
        return {entry.item.change.record_id for entry in entries}
    finally:
        log.close()


def test_what_is_acknowledged_is_in_kafka(store: FeatureStore, kafka_servers: str, kafka_topic: str) -> None:
    worker = RelayWorker(store)
    worker.start()
    try:
        for number in range(20):
            put(store, number)
            if number % 5 == 0:
                assert f"p{number}" in in_kafka(kafka_servers, kafka_topic, store.shards)
        store.delete_record(GROUP, "p1", "2024-05-02T00:00:00Z")
        assert store.get_record(GROUP, "p1") is None
    finally:
        worker.stop()
    assert store.sql(f"SELECT count(*) AS n FROM {GROUP}")["n"].to_pylist() == [21]


def test_without_a_relay_a_write_is_online_and_not_acknowledged(tmp_path: Path, kafka_servers: str, kafka_topic: str) -> None:
    settings = Settings.load({}, home=tmp_path, kafka_bootstrap_servers=kafka_servers, kafka_topic=kafka_topic, kafka_ack_s=0.2)
    with FeatureStore(settings) as store:
        store.create_feature_group(GROUP, record_identifier="id", event_time="t", features=FEATURES)
        put(store, 1)
        store.set_durability(GROUP, Durability.LOG)
        with pytest.raises(StoreUnavailable, match=r"has not acknowledged the write within 0\.2 s"):
            put(store, 2)
        assert store.get_record(GROUP, "p2") is not None
        store.set_durability(GROUP, Durability.ONLINE)
        put(store, 3)
        assert store.sql(f"SELECT n FROM {GROUP} ORDER BY n")["n"].to_pylist() == [1, 2, 3]


def test_a_batch_is_acknowledged_when_kafka_has_it(tmp_path: Path, kafka_servers: str, kafka_topic: str) -> None:
    """An answer that did not come in time is an error of the whole call; its repetition writes nothing twice."""
    settings = Settings.load({}, home=tmp_path, kafka_bootstrap_servers=kafka_servers, kafka_topic=kafka_topic, kafka_ack_s=0.5)
    keys = [f"p{number}" for number in range(10)]
    batch = [WriteRequest(GROUP, [("id", key), ("t", "2024-05-01T00:00:00Z"), ("n", "1")]) for key in keys]
    with FeatureStore(settings) as store:
        store.create_feature_group(GROUP, record_identifier="id", event_time="t", features=FEATURES)
        store.set_durability(GROUP, Durability.LOG)
        with pytest.raises(StoreUnavailable, match="has not acknowledged the write"):
            asyncio.run(store.records.batch_put(batch, write_token="the same"))
        worker = RelayWorker(store)
        worker.start()
        try:
            for _ in range(50):
                try:
                    answers = asyncio.run(store.records.batch_put(batch, write_token="the same"))
                    break
                except StoreUnavailable:
                    continue  # the relay has just begun
            else:
                pytest.fail("the batch is not acknowledged although the relay runs")
        finally:
            worker.stop()
        assert [answer.outcome for answer in answers if isinstance(answer, Applied)] == [Outcome.NEWEST] * 10
        assert in_kafka(kafka_servers, kafka_topic, store.shards) == set(keys)
        assert sorted(store.sql(f"SELECT id FROM {GROUP}")["id"].to_pylist()) == sorted(keys)


def test_a_process_without_kafka_writes_nothing(store: FeatureStore, tmp_path: Path) -> None:
    with FeatureStore(Settings.load({}, home=tmp_path / "other")) as other:
        other.create_feature_group(GROUP, record_identifier="id", event_time="t", features=FEATURES)
        with pytest.raises(SettingsInvalid, match="FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS"):
            other.set_durability(GROUP, Durability.LOG)
        other.registry.update(GROUP, lambda _: store.feature_group(GROUP))
        other.groups.forget()
        with pytest.raises(StoreUnavailable, match="durability=log"):
            put(other, 1)
        assert other.offline_behind() == 0


def test_a_broker_that_stands_still(tmp_path: Path, kafka_server: KafkaServer, kafka_topic: str) -> None:
    settings = Settings.load(
        {}, home=tmp_path, kafka_bootstrap_servers=kafka_server.address, kafka_topic=kafka_topic, kafka_ack_s=1.0
    )
    with FeatureStore(settings) as store:
        store.create_feature_group(GROUP, record_identifier="id", event_time="t", features=FEATURES)
        store.create_feature_group("fast", record_identifier="id", event_time="t", features=FEATURES)
        store.set_durability(GROUP, Durability.LOG)
        worker = RelayWorker(store)
        worker.start()
        try:
            kafka_server.pause()
            with pytest.raises(StoreUnavailable, match="has not acknowledged"):
                put(store, 1)
            store.put_record("fast", {"id": "a", "t": "2024-05-01T00:00:00Z", "n": 1})
            kafka_server.go_on()
            for number in range(2, 60):
                try:
                    put(store, number)
                    break
                except StoreUnavailable:
                    continue  # the relay waits before it tries again
            else:
                pytest.fail("writes are not acknowledged although the broker answers again")
        finally:
            kafka_server.go_on()
            worker.stop()
        found = store.sql(f"SELECT n, count(*) AS times FROM {GROUP} GROUP BY n").to_pylist()
        assert {row["n"] for row in found} == set(range(1, number + 1))
        assert {row["times"] for row in found} == {1}
