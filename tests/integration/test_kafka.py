"""A store whose changes go through a real Kafka broker: from a put to rows of the offline store."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kafka import KafkaAdminClient, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

from featurestore.audit import Kind
from featurestore.changelog.kafka import message_of
from featurestore.changelog.kafka_client import KafkaAddress, KafkaPythonProducer
from featurestore.changelog.protocol import ChangeSource
from featurestore.changelog.relay import LEASE_KIND, LEASE_S
from featurestore.changelog.sqlite import SqliteChangeLog
from featurestore.errors import OutboxFull, SettingsInvalid, StoreCorrupt, StoreUnavailable
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from ingest.relay import RelayWorker
from tests.kafka_server import KafkaServer, Login, require_kafka, wait_until
from tests.service import Service, Worker

SHARDS = 2
GROUP = "users"
Open = Callable[..., FeatureStore]


@pytest.fixture
def open_store(kafka_servers: str, kafka_topic: str, tmp_path: Path) -> Iterator[Open]:
    """Opens the store of this test; whatever is still open at the end is closed."""
    opened: list[FeatureStore] = []

    def open_one(**settings: Any) -> FeatureStore:
        given = {"home": tmp_path / "home", "shards": SHARDS, "kafka_topic": kafka_topic} | settings
        given.setdefault("kafka_bootstrap_servers", kafka_servers)
        opened.append(FeatureStore(Settings.load({}, **given)))
        return opened[-1]

    yield open_one
    for store in opened:
        store.close(flush=False)


def create(store: FeatureStore) -> None:
    features = {"id": "String", "at": "String", "n": "Integral"}
    store.create_feature_group(GROUP, record_identifier="id", event_time="at", features=features)


def put(store: FeatureStore, *numbers: int) -> None:
    for number in numbers:
        seconds = f"{number // 60 % 60:02d}:{number % 60:02d}"
        store.put_record(GROUP, {"id": f"user-{number % 7}", "at": f"2024-01-01T00:{seconds}Z", "n": number})


def rows(store: FeatureStore, *, fresh: bool = True) -> list[int]:
    return sorted(store.sql(f"SELECT n FROM history.{GROUP}", fresh=fresh)["n"].to_pylist())


def require_sound(store: FeatureStore, **expected: int) -> None:
    """The audit finds no difference, and these sums over all shards."""
    report = store.audit(GROUP)
    assert report.differences == ()
    assert {name: sum(getattr(shard, name) for shard in report.shards) for name in expected} == expected


def relay_all(store: FeatureStore) -> None:
    assert store.relay is not None
    for shard in range(SHARDS):
        while store.relay.relay(shard):
            pass


def sources(store: FeatureStore, topic: str) -> tuple[ChangeSource, KafkaAddress]:
    return SqliteChangeLog(store.settings.home / "online.db", SHARDS), KafkaAddress(store.settings.kafka_bootstrap_servers, topic)


def shard_with_changes(store: FeatureStore) -> int:
    return max(store.lag(), key=lambda lag: lag.outbox_entries + lag.seq_last).shard


def test_a_change_goes_through_kafka_and_is_accounted_for_wherever_it_is(open_store: Open) -> None:
    store = open_store()
    create(store)
    put(store, *range(50))
    assert store.offline_behind() == 50
    assert sum(lag.outbox_entries for lag in store.lag()) == 50
    require_sound(store, acknowledged=50, waiting=50, streamed=0)
    relay_all(store)
    assert store.outbox_waiting() == 0
    assert sum(lag.log_entries for lag in store.lag()) == 50
    require_sound(store, acknowledged=50, waiting=50, streamed=0)
    put(store, *range(50, 60))
    require_sound(store, acknowledged=60, waiting=60, streamed=0)
    assert store.write_offline(range(SHARDS)).changes == 50, "what is in the outbox is left to the relay"
    assert rows(store, fresh=False) == list(range(50))
    require_sound(store, acknowledged=60, waiting=10, streamed=50)
    assert rows(store) == list(range(60)), "a fresh read relays what waits"
    assert store.offline_behind() == 0
    lag = store.lag()
    assert [one.log_entries for one in lag] == [0] * SHARDS
    assert sum(one.seq_last for one in lag) == 60
    assert all(one.written_age_s is not None and one.written_age_s < 60 for one in lag)
    require_sound(store, acknowledged=60, waiting=0, streamed=60, differences=0)
    store.close()
    again = open_store()
    put(again, 60)
    assert rows(again) == list(range(61))


def test_what_a_relay_sends_twice_is_written_once(open_store: Open, kafka_topic: str) -> None:
    store = open_store()
    create(store)
    put(store, *range(40))
    outbox, address = sources(store, kafka_topic)
    producer = KafkaPythonProducer(address)
    for shard in range(SHARDS):
        entries = outbox.read(shard, 1, 100)
        for tail in (entries[:7], entries[:12], entries[3:5]):  # relays that died before they could trim
            producer.send(shard, [message_of(entry) for entry in tail])
    require_sound(store, acknowledged=40, waiting=40)
    relay_all(store)
    require_sound(store, acknowledged=40, waiting=40)
    assert rows(store) == list(range(40))
    require_sound(store, acknowledged=40, waiting=0, streamed=40)
    producer.close()
    outbox.close()


def test_changes_ahead_of_their_turn_wait_for_those_before_them(open_store: Open, kafka_topic: str) -> None:
    store = open_store()
    create(store)
    put(store, *range(40))
    outbox, address = sources(store, kafka_topic)
    producer = KafkaPythonProducer(address)
    shard = shard_with_changes(store)
    entries = outbox.read(shard, 1, 100)
    for piece in (entries[:3], entries[5:8], entries[12:14]):  # a relay of which a batch in the middle did not arrive
        producer.send(shard, [message_of(entry) for entry in piece])
    with pytest.raises(StoreUnavailable, match=f"shard {shard}: change 4 is missing although later ones are there"):
        store.write_offline(range(SHARDS))
    assert store.lag()[shard].seq_last == 3, "what comes before the gap is written"
    with pytest.raises(StoreUnavailable, match="change 4 is missing"):
        store.write_offline([shard])
    require_sound(store, acknowledged=40, waiting=37, streamed=3)
    assert rows(store) == list(range(40)), "the relay sends all of it again"
    require_sound(store, acknowledged=40, waiting=0, streamed=40)
    producer.close()
    outbox.close()


def test_changes_that_are_lost_in_the_topic_can_be_given_up(open_store: Open, kafka_topic: str) -> None:
    store = open_store()
    create(store)
    put(store, *range(40))
    outbox, address = sources(store, kafka_topic)
    producer = KafkaPythonProducer(address)
    shard = shard_with_changes(store)
    entries = outbox.read(shard, 1, 100)
    producer.send(shard, [message_of(entry) for entry in entries[3:]])
    assert store.lost(shard) is None, "the relay still has them"
    outbox.trim(shard, entries[-1].offset + 1)
    relay_all(store)
    with pytest.raises(StoreUnavailable, match="change 1 is missing"):
        store.flush()
    lost = store.lost(shard)
    assert lost is not None
    assert (lost.seq_first, lost.changes) == (1, 3)
    assert store.give_up(shard, lost)
    assert len(rows(store)) == 37
    put(store, *range(40, 60))
    assert len(rows(store)) == 57
    require = [one for one in store.audit(GROUP).differences if one.kind is Kind.CHANGES]
    assert [one.shard for one in require] == [shard]
    producer.close()
    outbox.close()


def test_poison_in_the_topic_goes_to_quarantine(open_store: Open, kafka_servers: str, kafka_topic: str) -> None:
    store = open_store()
    create(store)
    put(store, *range(10))
    relay_all(store)
    producer = KafkaProducer(bootstrap_servers=kafka_servers)
    for shard, value in ((0, b"hello"), (0, None), (1, b"\x01\x93")):
        producer.send(kafka_topic, value, key=b"key", partition=shard).get(30)
    producer.close()
    put(store, *range(10, 20))
    assert rows(store) == list(range(20))
    assert store.quarantined() == 3
    require_sound(store, acknowledged=20, waiting=0, streamed=20)


def test_a_gap_of_the_retention_is_an_error_and_loses_nothing_silently(
    open_store: Open, kafka_servers: str, kafka_topic: str
) -> None:
    store = open_store()
    create(store)
    put(store, *range(20))
    assert rows(store) == list(range(20))
    put(store, *range(20, 60))
    shard = shard_with_changes(store)
    relay_all(store)
    admin = KafkaAdminClient(bootstrap_servers=kafka_servers)
    admin.delete_records({TopicPartition(kafka_topic, shard): store.lag()[shard].offset_next + 3})
    admin.close()
    with pytest.raises(StoreCorrupt, match="gone before they were written"):
        store.flush()
    with pytest.raises(StoreCorrupt, match="the retention of the topic has passed the writer"):
        store.flush()
    assert [store.lost(other) for other in range(SHARDS) if other != shard] == [None] * (SHARDS - 1)
    lost = store.lost(shard)
    assert lost is not None
    before = store.lag()[shard].seq_last
    assert (lost.seq_first, lost.seq_last) == (before + 1, before + 4)
    assert store.give_up(shard, lost)
    assert not store.give_up(shard, lost), "done once"
    assert len(rows(store)) == 56, "the rest is there"
    assert store.lost(shard) is None
    report = store.audit(GROUP)
    assert [(one.kind, one.shard) for one in report.differences if one.kind is Kind.CHANGES] == [(Kind.CHANGES, shard)]


def test_a_topic_that_was_made_anew_is_an_error_until_somebody_decides(
    open_store: Open, kafka_servers: str, kafka_topic: str
) -> None:
    store = open_store()
    create(store)
    put(store, *range(40))
    assert rows(store) == list(range(40))
    put(store, *range(40, 50))
    relay_all(store)  # these go with the topic
    lost = [lag.log_entries for lag in store.lag()]
    admin = KafkaAdminClient(bootstrap_servers=kafka_servers)
    admin.delete_topics([kafka_topic])
    wait_until(lambda: not admin.describe_topics([kafka_topic])[0]["partitions"], "the topic is gone")
    admin.close()
    store.close(flush=False)
    store = open_store()
    put(store, *range(50, 60))
    with pytest.raises(StoreCorrupt, match="it ends at .*which was read before"):
        store.flush()
    relay_all(store)
    for shard in range(SHARDS):
        found = store.lost(shard)
        assert found is not None
        assert found.changes == lost[shard]
        assert store.give_up(shard, found)
        assert store.lost(shard) is None
    assert [number for number in rows(store) if not 40 <= number < 50] == [*range(40), *range(50, 60)]
    put(store, *range(60, 70))
    relay_all(store)
    report = store.audit(GROUP)
    assert sum(shard.acknowledged - shard.streamed - shard.waiting for shard in report.shards) == 10
    assert len(rows(store)) == 60


@pytest.mark.parametrize("partitions", [SHARDS - 1, SHARDS + 1])
def test_a_topic_with_other_partitions_is_refused_at_the_start(
    open_store: Open, kafka_servers: str, kafka_topic: str, partitions: int
) -> None:
    admin = KafkaAdminClient(bootstrap_servers=kafka_servers)
    admin.create_topics([NewTopic(name=kafka_topic, num_partitions=partitions)], wait_for_metadata=True)
    admin.close()
    with pytest.raises(SettingsInvalid, match=f"FEATURESTORE_KAFKA_TOPIC: expected a topic with {SHARDS} partitions"):
        open_store()


def test_a_store_is_moved_from_the_outbox_alone_to_kafka_and_not_back(open_store: Open) -> None:
    alone = open_store(kafka_bootstrap_servers="")
    create(alone)
    put(alone, *range(20))
    assert rows(alone) == list(range(20))
    put(alone, *range(20, 30))
    alone.close(flush=False)
    store = open_store()
    put(store, *range(30, 40))
    require_sound(store, acknowledged=40, waiting=20, streamed=20)
    assert rows(store) == list(range(40))
    require_sound(store, acknowledged=40, waiting=0, streamed=40)
    store.close()
    with pytest.raises(SettingsInvalid, match="FEATURESTORE_KAFKA_TOPIC: expected those of .kafka:"):
        open_store(kafka_bootstrap_servers="")
    with pytest.raises(SettingsInvalid, match="which the changes of shard"):
        open_store(kafka_topic="another-topic")
    again = open_store()
    put(again, 40)
    assert rows(again) == list(range(41))


def test_a_step_that_was_begun_before_the_move_is_completed_first(open_store: Open) -> None:
    alone = open_store(kafka_bootstrap_servers="")
    create(alone)
    put(alone, *range(20))
    for shard in range(SHARDS):
        alone._writer._intent(shard, None)  # died after the intent
    alone.close(flush=False)
    store = open_store()
    assert rows(store, fresh=False) == list(range(20))
    put(store, 20)
    assert rows(store) == list(range(21))
    require_sound(store, acknowledged=21, streamed=21)


def test_an_outbox_that_is_an_older_copy_is_not_relayed(open_store: Open) -> None:
    store = open_store()
    create(store)
    put(store, *range(30))
    store._changes.close()
    store.online.close()
    copy = (store.settings.home / "online.db").read_bytes()
    again = open_store()
    assert rows(again) == list(range(30))
    again.close()
    for path in store.settings.home.glob("online.db*"):
        path.unlink()
    (store.settings.home / "online.db").write_bytes(copy)
    restored = open_store()
    put(restored, 30)  # goes on behind what Kafka has seen
    assert rows(restored) == list(range(31))


def test_a_number_that_was_given_twice_is_not_relayed(open_store: Open, kafka_topic: str) -> None:
    store = open_store()
    create(store)
    put(store, *range(20))
    outbox, address = sources(store, kafka_topic)
    shard = shard_with_changes(store)
    entries = list(outbox.read(shard, 1, 3))
    message = message_of(entries[2])
    forged = message.value.replace(message.value[1:12], message.value[1:11] + bytes([message.value[11] ^ 1]))
    producer = KafkaPythonProducer(address)
    producer.send(shard, [type(message)(forged, message.timestamp_ms, message.headers)])
    assert store.relay is not None
    with pytest.raises(StoreCorrupt, match="its change 3 is not the one that was relayed before"):
        store.relay.relay(shard)
    assert len(outbox.read(shard, 1, 3)) == 3, "nothing was trimmed"
    producer.close()
    outbox.close()


def test_flush_leaves_the_work_to_the_relay_that_is_at_it(open_store: Open) -> None:
    store, other = open_store(), open_store()
    create(store)
    assert other.relay is not None
    worker = RelayWorker(other)
    worker.start()
    try:
        wait_until(lambda: held_by(store, other) == set(range(SHARDS)), "the worker holds every shard")
        for start in range(0, 100, 20):
            put(store, *range(start, start + 20))
            assert rows(store) == list(range(start + 20))
    finally:
        worker.stop()
    assert held_by(store, other) == set()
    put(store, 100)
    assert rows(store) == list(range(101)), "and works by itself when there is none"


def held_by(store: FeatureStore, other: FeatureStore) -> set[int]:
    """The shards that nobody but `other` could claim."""
    free = store.leases.claim(LEASE_KIND, "probe", range(SHARDS), 0.001)
    store.leases.release(LEASE_KIND, "probe")
    return set(range(SHARDS)) - free


def test_flush_takes_over_from_a_relay_that_died(open_store: Open) -> None:
    store = open_store()
    create(store)
    put(store, *range(10))
    store.leases.claim(LEASE_KIND, "dead", range(SHARDS), LEASE_S / 10)
    assert rows(store) == list(range(10))


def test_shares_are_even_and_move_to_newcomers(open_store: Open) -> None:
    leases = open_store().leases
    assert leases.share("work", "a", 5, 60) == {0, 1, 2, 3, 4}
    assert leases.share("work", "b", 5, 60) == frozenset()
    assert leases.share("work", "a", 5, 60) == {0, 1, 2}
    assert leases.share("work", "b", 5, 60) == {3, 4}
    assert leases.share("other work", "b", 2, 60) == {0, 1}
    leases.release("work", "a")
    assert leases.share("work", "b", 5, 60) == {0, 1, 2, 3, 4}
    leases.release("work", "a")


def test_kafka_down_for_a_while(kafka_server: KafkaServer, open_store: Open, kafka_topic: str) -> None:
    """Writes and reads go on, the outbox fills, and everything drains when the broker is back."""
    store = open_store(kafka_bootstrap_servers=kafka_server.address, outbox_changes_max=60)
    create(store)
    put(store, *range(20))
    assert rows(store) == list(range(20))
    kafka_server.stop()
    put(store, *range(20, 70))
    assert store.get_record(GROUP, "user-6") is not None
    assert store.outbox_waiting() == 50
    with pytest.raises(StoreUnavailable, match="Kafka|topic"):
        store.flush()
    assert rows(store, fresh=False) == list(range(20))
    put(store, *range(70, 80))
    with pytest.raises((OutboxFull, StoreUnavailable)):  # a library call makes room first, if it can
        put(store, 80)
    restarted = open_store(kafka_bootstrap_servers=kafka_server.address)
    assert restarted.outbox_waiting() == 60, "a process starts without Kafka"
    kafka_server.start()
    assert rows(store) == list(range(80))
    put(store, 80)
    assert rows(restarted) == list(range(81))
    require_sound(restarted, acknowledged=81, waiting=0, streamed=81)


def test_the_service_and_its_workers_as_processes(open_store: Open, kafka_servers: str, kafka_topic: str, tmp_path: Path) -> None:
    with open_store() as store:
        create(store)
    home = tmp_path / "home"
    settings = {"kafka_bootstrap_servers": kafka_servers, "kafka_topic": kafka_topic, "flush_s": "0.2"}
    log = tmp_path / "log"
    with Service(home, log, "--no-workers", **settings):
        with open_store() as client:
            put(client, *range(30))
            client.close(flush=False)
        watch = open_store()
        assert watch.outbox_waiting() == 30, "nobody relays"
        names = ("relay", "relay", "offline", "offline", "maintenance")
        workers = [Worker(name, home, log, **settings).start() for name in names]
        wait_until(lambda: watch.offline_behind() == 0, "the workers have written everything")
        assert rows(watch, fresh=False) == list(range(30))
        put(watch, *range(30, 40))
        wait_until(lambda: watch.offline_behind() == 0, "they go on")
        assert [worker.stop() for worker in workers] == [0] * len(workers), log.read_text()
    assert "ERROR" not in log.read_text(), log.read_text()
    require_sound(watch, acknowledged=40, waiting=0, streamed=40)
    shown = subprocess.run(
        [sys.executable, "-m", "featurestore.cli", "lag", "--home", str(home)],
        capture_output=True,
        text=True,
        env=os.environ | {f"FEATURESTORE_{key.upper()}": value for key, value in settings.items()},
    )
    assert shown.returncode == 0, shown.stderr
    assert "in Kafka" in shown.stdout


def test_a_relay_needs_a_place_to_relay_to(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "featurestore.cli", "worker", "relay", "--home", str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS: expected the brokers of a Kafka cluster, for the relay" in done.stderr


def test_erasing_reaches_what_waits_in_kafka(open_store: Open) -> None:
    store = open_store()
    create(store)
    put(store, *range(14))
    relay_all(store)
    store.erase(GROUP, "user-3")
    put(store, 17)
    assert rows(store) == sorted([number for number in range(14) if number % 7 != 3] + [17])
    require_sound(store, acknowledged=15)


def test_brokers_that_want_tls_and_a_login(tmp_path: Path, kafka_topic: str, caplog: pytest.LogCaptureFixture) -> None:
    require_kafka()
    key, certificate, both = (tmp_path / f"{name}.pem" for name in ("key", "certificate", "both"))
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    both.write_text(key.read_text() + certificate.read_text())
    password = "correct-horse"
    broker = KafkaServer(tmp_path / "kafka", login=Login("writer", password, both)).start()
    settings = {
        "kafka_bootstrap_servers": broker.address,
        "kafka_topic": kafka_topic,
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_user": "writer",
        "kafka_sasl_password": password,
        "kafka_ca_file": str(certificate),
    }

    def opened(name: str, **others: str) -> FeatureStore:
        return FeatureStore(Settings.load({}, home=tmp_path / name, **(settings | others)))

    try:
        with opened("home") as store:
            create(store)
            put(store, *range(14))
            assert rows(store) == list(range(14))
            require_sound(store, acknowledged=14)
        for others, reason in (
            ({"kafka_sasl_password": "wrong-horse"}, "invalid credentials"),
            ({"kafka_ca_file": ""}, "certificate verify failed"),
        ):
            store = opened("other", **others)
            try:
                wait_until(lambda store=store, reason=reason: reason in why_not(store), reason)
            finally:
                store.close(flush=False)
    finally:
        broker.kill()
    assert "horse" not in caplog.text


def why_not(store: FeatureStore) -> str:
    """Why Kafka can't be asked; on a busy machine it may be the time that there was."""
    with pytest.raises(StoreUnavailable) as caught:
        store.lag()
    return str(caught.value)
