"""What the change log in Kafka promises: `ChangeSource` over a real broker, and its refusals."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from featurestore.changelog.kafka import (
    HEADER_GROUP,
    HEADER_OP,
    HEADER_SEQ,
    MESSAGE_VERSION,
    KafkaChangeLog,
    entry_of,
    message_of,
)
from featurestore.changelog.kafka_client import KafkaAddress, KafkaPythonProducer
from featurestore.errors import SettingsInvalid, StoreCorrupt, StoreUnavailable
from featurestore.model.change import OFFLINE, ONLINE, Change, LogEntry, LoggedChange, Op, PoisonChange, Stamp
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.kafka_server import wait_until

SHARDS = 3
SHARD = 1


def entry(seq: int, values: bytes = b"values", *, shard: int = SHARD) -> LogEntry:
    change = Change(7, 1, f"key-{seq}", seq, Op.PUT, ONLINE | OFFLINE, None, values)
    return LogEntry(seq, LoggedChange(change, Stamp(shard, seq, time.time_ns() // 1000)))


@pytest.fixture
def address(kafka_servers: str, kafka_topic: str) -> KafkaAddress:
    return KafkaAddress(kafka_servers, kafka_topic)


@pytest.fixture
def log(address: KafkaAddress) -> Iterator[KafkaChangeLog]:
    log = KafkaChangeLog(address, SHARDS)
    log.check()
    yield log
    log.close()


@pytest.fixture
def admin(address: KafkaAddress) -> Iterator[KafkaAdminClient]:
    admin = KafkaAdminClient(bootstrap_servers=address.servers)
    yield admin
    admin.close()


Send = Callable[[Sequence[LogEntry]], None]


@pytest.fixture
def send(address: KafkaAddress, log: KafkaChangeLog) -> Iterator[Send]:
    producer = KafkaPythonProducer(address)
    yield lambda entries: producer.send(SHARD, [message_of(one) for one in entries])
    producer.close()


def seqs(entries: Sequence[LogEntry]) -> list[int]:
    return [one.item.stamp.seq if one.item.stamp is not None else 0 for one in entries]


def test_an_empty_log(log: KafkaChangeLog) -> None:
    assert log.shards() == SHARDS
    assert log.ends() == dict.fromkeys(range(SHARDS), 1)
    assert list(log.read(SHARD, 1, 10)) == []
    assert list(log.recent_stamps(SHARD)) == []


def test_entries_are_what_was_sent_in_order(log: KafkaChangeLog, send: Send) -> None:
    sent = [entry(seq, bytes(range(seq % 256)) * 5) for seq in range(1, 3001)]
    send(sent)
    assert log.ends() == {0: 1, SHARD: 3001, 2: 1}
    assert list(log.read(SHARD, 1, 5000)) == sent
    assert list(log.read(SHARD, 1, 10)) == sent[:10]
    assert list(log.read(SHARD, 2996, 3)) == sent[2995:2998]
    assert list(log.read(SHARD, 2999, 100)) == sent[2998:]
    assert list(log.read(SHARD, 3001, 100)) == []
    assert list(log.read(0, 1, 100)) == []
    assert seqs(log.read(SHARD, 100, 50)) == list(range(100, 150))
    send([entry(3001)])
    assert seqs(log.read(SHARD, 3001, 100)) == [3001], "what came later is found"
    assert [stamp.seq for stamp in log.recent_stamps(SHARD)] == list(range(1002, 3002))


def test_trimming_forgets_nothing(log: KafkaChangeLog, send: Send) -> None:
    send([entry(1), entry(2)])
    log.trim(SHARD, 3)
    assert seqs(log.read(SHARD, 1, 10)) == [1, 2]


def test_another_reader_sees_the_same(log: KafkaChangeLog, send: Send, address: KafkaAddress) -> None:
    send([entry(seq) for seq in range(1, 100)])
    other = KafkaChangeLog(address, SHARDS)
    assert list(other.read(SHARD, 50, 10)) == list(log.read(SHARD, 50, 10))
    other.close()
    other.close()


def test_a_message_can_be_routed_without_decoding() -> None:
    one = entry(5)
    message = message_of(one)
    assert dict(message.headers) == {HEADER_SEQ: b"5", HEADER_GROUP: b"7", HEADER_OP: b"1"}
    assert one.item.stamp is not None
    assert message.timestamp_ms == one.item.stamp.api_time_us // 1000
    assert message.value[:1] == MESSAGE_VERSION
    assert entry_of(SHARD, 5, message.value) == one


def test_what_does_not_decode_keeps_its_place() -> None:
    stamp = Stamp(SHARD, 3, 1_700_000_000_000_000)
    poison = message_of(LogEntry(3, PoisonChange(b"\x09 no change", "unknown version", stamp)))
    assert dict(poison.headers) == {HEADER_SEQ: b"3"}
    found = entry_of(SHARD, 9, poison.value).item
    assert isinstance(found, PoisonChange)
    assert (found.body, found.stamp) == (b"\x09 no change", stamp)


@pytest.mark.parametrize("value", [None, b"", b"{}", b"\x01", b"\x01\xff\xff", b"\x01\x93\xc0\xc0\xc4\x01x"])
def test_what_others_put_there_is_poison(value: bytes | None) -> None:
    item = entry_of(SHARD, 1, value).item
    assert isinstance(item, PoisonChange)
    assert item.stamp is None
    assert item.reason


def test_holes_in_the_offsets(log: KafkaChangeLog, send: Send, address: KafkaAddress) -> None:
    """Markers of somebody's transactions are offsets without entries, also at the end."""
    send([entry(1)])
    producer = KafkaProducer(bootstrap_servers=address.servers, transactional_id=address.topic)
    producer.init_transactions()
    for value, is_kept in ((b"kept", True), (b"dropped", False)):
        producer.begin_transaction()
        producer.send(address.topic, value, partition=SHARD).get(30)
        producer.commit_transaction() if is_kept else producer.abort_transaction()
    producer.close()
    wait_until(lambda: log.ends()[SHARD] == 6, "the ends of the transactions are written")
    found = log.read(SHARD, 1, 10)
    assert [one.offset for one in found] == [1, 2]
    assert list(log.read(SHARD, 3, 10)) == []
    send([entry(2)])
    assert [(one.offset, seq) for one, seq in zip(log.read(SHARD, 3, 10), [2], strict=True)] == [(6, 2)]


def test_a_gap_of_the_retention_is_an_error(
    log: KafkaChangeLog, send: Send, admin: KafkaAdminClient, address: KafkaAddress
) -> None:
    send([entry(seq) for seq in range(1, 11)])
    admin.delete_records({TopicPartition(address.topic, SHARD): 4})
    assert seqs(log.read(SHARD, 1, 10)) == [5, 6, 7, 8, 9, 10], "a reader that asks for all gets what there is"
    assert seqs(log.read(SHARD, 5, 10)) == [5, 6, 7, 8, 9, 10]
    with pytest.raises(StoreCorrupt, match="offsets 2 to 3 are gone before they were written"):
        log.read(SHARD, 3, 10)
    assert seqs(log.read(SHARD, 6, 10)) == [6, 7, 8, 9, 10], "and it can be used further"


def test_a_topic_that_ends_before_what_was_read_is_an_error(log: KafkaChangeLog, send: Send) -> None:
    send([entry(1)])
    with pytest.raises(StoreCorrupt, match="it ends at offset 1 although offset 6 was read before"):
        log.read(SHARD, 8, 10)


def test_the_topic_is_made_as_it_should_be(log: KafkaChangeLog, admin: KafkaAdminClient, address: KafkaAddress) -> None:
    (found,) = admin.describe_topics([address.topic])
    assert len(found["partitions"]) == SHARDS


def test_a_topic_with_other_partitions_is_refused(address: KafkaAddress, admin: KafkaAdminClient) -> None:
    admin.create_topics([NewTopic(name=address.topic, num_partitions=SHARDS + 1)], wait_for_metadata=True)
    log = KafkaChangeLog(address, SHARDS)
    with pytest.raises(SettingsInvalid, match=f"{SHARDS} partitions.*which has {SHARDS + 1}"):
        log.ends()
    log.close()


def test_a_compacted_topic_is_refused(address: KafkaAddress, admin: KafkaAdminClient) -> None:
    compacted = NewTopic(name=address.topic, num_partitions=SHARDS, topic_configs={"cleanup.policy": "compact"})
    admin.create_topics([compacted], wait_for_metadata=True)
    log = KafkaChangeLog(address, SHARDS)
    with pytest.raises(SettingsInvalid, match=r"cleanup\.policy=delete"):
        log.check()
    log.close()


def test_what_a_client_is_told_to_log_in() -> None:
    plain = KafkaAddress("one:9092, two:9092", "changes").client_settings()
    assert plain["bootstrap_servers"] == ["one:9092", "two:9092"]
    assert not [name for name in plain if name.startswith(("sasl", "ssl"))]
    address = KafkaAddress("one:9093", "changes", "SASL_SSL", "SCRAM-SHA-512", "store", "secret-word", "/ca.pem")
    names = ("security_protocol", "sasl_mechanism", "sasl_plain_username", "sasl_plain_password", "ssl_cafile")
    login = address.client_settings()
    assert [login[name] for name in names] == ["SASL_SSL", "SCRAM-SHA-512", "store", "secret-word", "/ca.pem"]


def test_a_login_needs_a_user(tmp_path: Path) -> None:
    settings = Settings.load({}, home=tmp_path, kafka_bootstrap_servers="127.0.0.1:1", kafka_security_protocol="SASL_PLAINTEXT")
    with pytest.raises(SettingsInvalid, match="FEATURESTORE_KAFKA_SASL_USER: expected a user"):
        FeatureStore(settings)


def test_nobody_there() -> None:
    address = KafkaAddress("127.0.0.1:1", "changes", sasl_password="secret-word")
    log, producer = KafkaChangeLog(address, SHARDS), KafkaPythonProducer(address)
    threads = threading.active_count()
    with pytest.raises(StoreUnavailable, match=r"127\.0\.0\.1:1"):
        log.ends()
    with pytest.raises(StoreUnavailable, match="send to Kafka"):
        producer.send(0, [message_of(entry(1))])
    assert "secret-word" not in repr(address)
    log.close()
    producer.close()
    assert threading.active_count() == threads, "no client was left behind"
