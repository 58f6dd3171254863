"""The commands around Kafka and the online store, each call as a process of its own."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

import featurestore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from ingest.streams import StreamWorker
from tests.integration.conftest import Cli
from tests.integration.test_cli import Done, cells, refused, succeeded
from tests.kafka_server import wait_until

FEATURES = {"id": "String", "t": "String", "n": "Integral"}
Call = Callable[..., Done]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    home = tmp_path / "home"
    with featurestore.open(home) as store:
        store.create_feature_group("people", record_identifier="id", event_time="t", features=FEATURES)
    return home


@pytest.fixture
def with_kafka(cli: Cli, home: Path, kafka_servers: str, kafka_topic: str) -> Call:
    """Commands of a store with Kafka."""
    settings = {"kafka_bootstrap_servers": kafka_servers, "kafka_topic": kafka_topic}
    return lambda *arguments: cli(*arguments, home=home, **settings)


def record(number: int) -> dict[str, Any]:
    return {"id": f"p{number}", "t": f"2024-05-01T00:00:{number:02d}Z", "n": number}


def make_topic(servers: str) -> str:
    name = f"clicks-{uuid.uuid4().hex[:12]}"
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([NewTopic(name=name, num_partitions=2, replication_factor=1)])
    admin.wait_for_topics([name])
    admin.close()
    return name


def send(servers: str, topic: str, values: list[bytes]) -> None:
    producer = KafkaProducer(bootstrap_servers=servers, acks="all")
    for number, value in enumerate(values):
        producer.send(topic, value, partition=number % 2).get(30)
    producer.close()


def test_a_stream_from_its_beginning_to_its_end(with_kafka: Call, home: Path, kafka_servers: str, kafka_topic: str) -> None:
    topic = make_topic(kafka_servers)
    send(kafka_servers, topic, [*(json.dumps(record(number)).encode() for number in range(9)), b"{"])
    add = ("stream", "add", "clicks", "--topic", topic, "--group", "people")
    assert succeeded(with_kafka(*add)) == f"clicks: {topic} to people; dead letters go to {topic}.dead-letters\n"
    refused(with_kafka(*add), "stream 'clicks' exists already")
    refused(with_kafka("stream", "add", "s", "--topic", topic, "--group", "nobody"), "feature group 'nobody' does not exist")
    refused(
        with_kafka("stream", "add", "s", "--topic", topic, "--group", "people", "--field", "n"), "--field", "FEATURE=PATH", "'n'"
    )
    refused(with_kafka("stream", "add", "s", "--topic", topic, "--group", "people", "--from", "noon"), "--from", "'noon'")
    assert cells(succeeded(with_kafka("stream", "list"))) == [
        ["stream", "topic", "group", "state", "read", "behind", "dead letters"],
        ["clicks", topic, "people", "running", "0", "10", "0"],
    ]

    settings = Settings.load({}, home=home, kafka_bootstrap_servers=kafka_servers, kafka_topic=kafka_topic)
    with FeatureStore(settings) as store:
        worker = StreamWorker(store)
        worker.start()
        wait_until(lambda: cells(with_kafka("stream", "list").stdout)[1][4:] == ["10", "0", "1"], "all messages are read")
        worker.stop()
        assert store.sql("SELECT count(*) AS rows FROM people")["rows"].to_pylist() == [9]

    assert succeeded(with_kafka("stream", "pause", "clicks")) == "clicks is paused\n"
    assert cells(succeeded(with_kafka("stream", "list")))[1][3] == "paused"
    assert succeeded(with_kafka("stream", "resume", "clicks")) == "clicks is running\n"
    assert succeeded(with_kafka("stream", "replay", "clicks", "--from", "2024-05-01T00:00:00Z")) == "clicks begins again\n"
    assert cells(succeeded(with_kafka("stream", "list")))[1][4:] == ["0", "10", "1"]
    assert succeeded(with_kafka("stream", "remove", "clicks")) == "clicks is removed\n"
    refused(with_kafka("stream", "pause", "clicks"), "stream 'clicks' does not exist")


def test_streams_need_kafka(cli: Cli, home: Path) -> None:
    needed = ("FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS", "the brokers of a Kafka cluster, for ")
    refused(cli("stream", "add", "s", "--topic", "t", "--group", "people", home=home), *needed)
    refused(cli("worker", "stream", home=home), *needed)
    refused(cli("durability", "people", "log", home=home), *needed)


def test_durability(with_kafka: Call) -> None:
    online = "people: writes are acknowledged when the online store has them (durability=online)\n"
    log = "people: writes are acknowledged when Kafka has them, too (durability=log)\n"
    assert succeeded(with_kafka("durability", "people", "log")) == log
    assert succeeded(with_kafka("durability", "people")) == log
    assert succeeded(with_kafka("durability", "people", "online")) == online
    refused(with_kafka("durability", "nobody"), "feature group 'nobody' does not exist")
    refused(with_kafka("durability", "people", "twice"), "'twice'", status=2)


def test_lag_shows_what_waits_where(with_kafka: Call, home: Path, kafka_servers: str, kafka_topic: str) -> None:
    settings = Settings.load({}, home=home, kafka_bootstrap_servers=kafka_servers, kafka_topic=kafka_topic)
    store = FeatureStore(settings)
    try:
        for number in range(20):
            store.put_record("people", record(number))
        head, *rows = cells(succeeded(with_kafka("lag")))
        assert head == ["shard", "in the outbox", "oldest", "in Kafka", "position", "last change", "written"]
        assert (sum(int(row[1]) for row in rows), [row[3] for row in rows]) == (20, ["0"] * len(rows))
        for shard in range(store.shards):
            assert store.relay is not None
            store.relay.relay(shard)
        rows = cells(succeeded(with_kafka("lag")))[1:]
        assert ([row[1] for row in rows], sum(int(row[2]) for row in rows)) == (["0"] * len(rows), 20), "no oldest any more"
        store.flush()
        rows = cells(succeeded(with_kafka("lag")))[1:]
        assert ([row[1:3] for row in rows], sum(int(row[4]) for row in rows)) == ([["0", "0"]] * len(rows), 20)
        assert all(row[-1].endswith("s ago") for row in rows)
    finally:
        store.close(flush=False)


def test_rebuild_online(cli: Cli, home: Path) -> None:
    with featurestore.open(home) as store:
        store.create_feature_group("online", record_identifier="id", event_time="t", features=FEATURES, offline=False)
        for number in range(5):
            store.put_record("people", record(number))
        store.delete_record("people", "p1", "2024-05-01T00:01:00Z", hard=True)
    for path in home.glob("online.db*"):
        path.unlink()
    head, *rows = cells(succeeded(cli("rebuild-online", home=home)))
    assert head == ["group", "records", "hard deletes", "changed online", "changes of a former store"]
    assert rows == [["people", "4", "1", "5", "6"]]
    assert succeeded(cli("audit", "people", home=home))
    with featurestore.open(home) as store:
        found = store.batch_get_record("people", [f"p{number}" for number in range(5)])
        assert [None if one is None else one["n"] for one in found] == [0, None, 2, 3, 4]
    refused(cli("rebuild-online", "online", home=home), "feature group", "'online'", "offline store")
