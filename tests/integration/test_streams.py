"""Streaming ingestion from topics of a real broker: each message is written once, what is no record becomes a dead letter."""

from __future__ import annotations

import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from featurestore.errors import FeatureGroupNotFound, SettingsInvalid, StoreUnavailable, StreamInUse, ValidationFailed
from featurestore.model.stream import Stream
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from ingest import streams as module
from ingest.streams import StreamWorker
from ingest.user_topic import UserTopic

GROUP = "people"
WAIT_S_MAX = 60.0
PARTITIONS = 3


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.02)


class Topics:
    """Topics of one test, as users of Kafka have them."""

    def __init__(self, servers: str) -> None:
        self.servers = servers
        self.name = f"clicks-{uuid.uuid4().hex[:12]}"
        admin = KafkaAdminClient(bootstrap_servers=servers)
        kept = {"retention.ms": "-1"}  # messages here say that they are old
        admin.create_topics([NewTopic(name=self.name, num_partitions=PARTITIONS, replication_factor=1, topic_configs=kept)])
        admin.wait_for_topics([self.name])
        admin.close()
        self._producer = KafkaProducer(bootstrap_servers=servers, acks="all")

    def send(self, values: Sequence[bytes | None], *, timestamp_ms: int | None = None) -> None:
        futures = [
            self._producer.send(self.name, key=b"key", value=value, partition=number % PARTITIONS, timestamp_ms=timestamp_ms)
            for number, value in enumerate(values)
        ]
        for future in futures:
            future.get(30)

    def letters(self, topic: str) -> list[tuple[bytes, dict[str, str]]]:
        consumer = KafkaConsumer(bootstrap_servers=self.servers, auto_offset_reset="earliest", enable_auto_commit=False)
        part = TopicPartition(topic, 0)
        consumer.assign([part])
        consumer.seek_to_beginning(part)
        end, found = consumer.end_offsets([part])[part], []
        while consumer.position(part) < end:
            for record in consumer.poll(500).get(part, []):
                found.append((record.value, {name: value.decode() for name, value in record.headers}))
        consumer.close()
        return found

    def close(self) -> None:
        self._producer.close(timeout=5)


@pytest.fixture
def topics(kafka_servers: str) -> Iterator[Topics]:
    topics = Topics(kafka_servers)
    yield topics
    topics.close()


@pytest.fixture
def store(tmp_path: Path, kafka_servers: str, kafka_topic: str) -> Iterator[FeatureStore]:
    with opened(tmp_path, kafka_servers, kafka_topic) as store:
        store.create_feature_group(
            GROUP, record_identifier="id", event_time="t", features={"id": "String", "t": "String", "n": "Integral"}
        )
        yield store


def opened(home: Path, servers: str, topic: str) -> FeatureStore:
    return FeatureStore(Settings.load({}, home=home, kafka_bootstrap_servers=servers, kafka_topic=topic))


def message(number: int) -> bytes:
    return json.dumps({"id": f"p{number % 10}", "t": at(number), "n": number}).encode()


def at(number: int) -> str:
    return (datetime(2024, 5, 1, tzinfo=UTC) + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%SZ")


def numbers(store: FeatureStore) -> Counter[int]:
    return Counter(store.sql(f"SELECT n FROM {GROUP}")["n"].to_pylist())


def behind(store: FeatureStore, stream: Stream) -> int:
    topic = UserTopic(store.require_kafka(), stream)
    try:
        return sum(part.end - part.offset for part in topic.lag())
    finally:
        topic.close()


class Running:
    """A worker while the block lasts."""

    def __init__(self, store: FeatureStore) -> None:
        self._worker = StreamWorker(store)

    def __enter__(self) -> None:
        self._worker.start()

    def __exit__(self, *error: object) -> None:
        self._worker.stop()


def test_messages_become_records_and_the_rest_dead_letters(store: FeatureStore, topics: Topics) -> None:
    stream = store.add_stream("clicks", topic=topics.name, group=GROUP)
    faulty = [b"{", b"[1]", None, b'{"id": "p1", "t": "yesterday"}', b'{"id": "p1", "t": "2024-05-01T00:00:00Z", "x": 1}']
    topics.send([*map(message, range(40)), *faulty, *map(message, range(40, 60))])
    with Running(store):
        eventually(lambda: behind(store, stream) == 0, "the stream has come to the end")
    assert numbers(store) == Counter(range(60))
    assert store.get_record(GROUP, "p9") == {"id": "p9", "t": at(59), "n": 59}
    letters = topics.letters(f"{topics.name}.dead-letters")
    assert sorted(value or b"" for value, _ in letters) == sorted(value or b"" for value in faulty)
    reasons = {value or b"": headers for value, headers in letters}
    assert reasons[b"{"]["reason"].startswith("no JSON: ")
    assert "Record.t: expected" in reasons[faulty[3]]["reason"]
    assert "'x'" in reasons[faulty[4]]["reason"]
    assert {(one["stream"], one["topic"]) for one in reasons.values()} == {("clicks", topics.name)}
    assert all(int(one["offset"]) >= 13 and int(one["partition"]) < PARTITIONS for one in reasons.values())
    assert store.audit(GROUP, progress=False).differences == ()


def test_a_field_map(store: FeatureStore, topics: Topics) -> None:
    stream = store.add_stream("mapped", topic=topics.name, group=GROUP, fields={"id": "who.id", "t": "when", "n": "cart.items"})
    topics.send([b'{"who": {"id": "u1", "name": "x"}, "when": "2024-05-01T00:00:00Z", "cart": {"items": 3}}'])
    with Running(store):
        eventually(lambda: behind(store, stream) == 0, "the stream has come to the end")
    assert store.get_record(GROUP, "u1") == {"id": "u1", "t": "2024-05-01T00:00:00Z", "n": 3}


def test_delivered_again_changes_nothing_and_replayed_writes_again(store: FeatureStore, topics: Topics) -> None:
    stream = store.add_stream("clicks", topic=topics.name, group=GROUP)
    early_ms, late_ms = 1_700_000_000_000, 1_700_000_100_000
    topics.send([message(number) for number in range(30)], timestamp_ms=early_ms)
    topics.send([message(number) for number in range(30, 45)], timestamp_ms=late_ms)
    with Running(store):
        eventually(lambda: behind(store, stream) == 0, "the stream has come to the end")
    assert numbers(store) == Counter(range(45))
    topic = UserTopic(store.require_kafka(), stream)
    for partition in range(PARTITIONS):
        topic.commit(partition, partition)
    topic.close()
    with Running(store):
        eventually(lambda: behind(store, stream) == 0, "the stream has come to the end again")
    assert numbers(store) == Counter(range(45)), "offsets that were set back repeat messages, and nothing else"
    again = store.replay_stream("clicks", start=datetime.fromtimestamp(late_ms / 1000, UTC))
    assert behind(store, again) == 15
    with Running(store):
        eventually(lambda: behind(store, again) == 0, "the replay has come to the end")
    assert numbers(store) == Counter([*range(45), *range(30, 45)])
    assert store.audit(GROUP, progress=False).differences == ()


def test_pause_and_resume_while_the_worker_runs(store: FeatureStore, topics: Topics) -> None:
    stream = store.add_stream("clicks", topic=topics.name, group=GROUP)
    with Running(store):
        topics.send([message(number) for number in range(9)])
        eventually(lambda: numbers(store) == Counter(range(9)), "what came first is written")
        store.pause_stream("clicks")
        eventually(lambda: threads("stream-clicks") == 0, "the stream has stopped")
        topics.send([message(number) for number in range(9, 18)])
        assert behind(store, stream) == 9
        store.resume_stream("clicks")
        eventually(lambda: numbers(store) == Counter(range(18)), "what came meanwhile is written")
        store.remove_stream("clicks")
        eventually(lambda: threads("stream-clicks") == 0, "the stream has stopped")


def threads(name: str) -> int:
    return sum(thread.name == name for thread in threading.enumerate())


def test_workers_share_partitions_and_nothing_is_doubled(
    store: FeatureStore, topics: Topics, tmp_path: Path, kafka_servers: str, kafka_topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_S", 0.1)
    stream = store.add_stream("clicks", topic=topics.name, group=GROUP)
    schedule = random.Random(5)
    with opened(tmp_path, kafka_servers, kafka_topic) as other:
        for first in range(0, 1200, 100):
            topics.send([message(number) for number in range(first, first + 100)])
            if schedule.random() < 0.5:
                with Running(store), Running(other):
                    eventually(lambda: behind(store, stream) < 100, "the workers get on")
            else:
                with Running(schedule.choice([store, other])):
                    eventually(lambda: behind(store, stream) < 100, "the worker gets on")
        with Running(other):
            eventually(lambda: behind(store, stream) == 0, "the stream has come to the end")
    assert numbers(store) == Counter(range(1200))
    assert store.audit(GROUP, progress=False).differences == ()


def test_what_can_not_be_written_now_is_written_later(
    tmp_path: Path, kafka_servers: str, kafka_topic: str, topics: Topics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outbox is full, since nobody relays: the stream stands still, and goes on when there is room."""
    monkeypatch.setattr(module, "RETRY_S_MAX", 0.2)
    settings = Settings.load(
        {}, home=tmp_path, kafka_bootstrap_servers=kafka_servers, kafka_topic=kafka_topic, outbox_changes_max=50, shards=1
    )
    with FeatureStore(settings) as store:
        features = {"id": "String", "t": "String", "n": "Integral"}
        store.create_feature_group(GROUP, record_identifier="id", event_time="t", features=features)
        stream = store.add_stream("clicks", topic=topics.name, group=GROUP)
        topics.send([message(number) for number in range(3 * 45)])
        with Running(store):
            eventually(lambda: store.offline_behind() >= 45, "the outbox has filled")
            while behind(store, stream):
                store.flush()
        store.flush()
        assert numbers(store) == Counter(range(3 * 45))


def test_wrong_streams_are_refused(store: FeatureStore, topics: Topics, tmp_path: Path) -> None:
    store.add_stream("clicks", topic=topics.name, group=GROUP)
    with pytest.raises(StreamInUse):
        store.add_stream("clicks", topic=topics.name, group=GROUP)
    with pytest.raises(FeatureGroupNotFound):
        store.add_stream("other", topic=topics.name, group="nope")
    with pytest.raises(ValidationFailed, match=r"fields\.nope: expected a feature"):
        store.add_stream("other", topic=topics.name, group=GROUP, fields={"nope": "a"})
    with pytest.raises(ValidationFailed, match="start"):
        store.add_stream("other", topic=topics.name, group=GROUP, start=datetime(2024, 5, 1))
    with FeatureStore(Settings.load({}, home=tmp_path / "without")) as without:
        without.create_feature_group(GROUP, record_identifier="id", event_time="t", features={"id": "String", "t": "String"})
        with pytest.raises(SettingsInvalid, match="FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS"):
            without.add_stream("clicks", topic="t", group=GROUP)
    missing = Stream("missing", "no-such-topic", GROUP, "dead")
    topic = UserTopic(store.require_kafka(), missing)
    with pytest.raises(StoreUnavailable, match="'no-such-topic' does not exist"):
        topic.partitions()
    topic.close()
