"""Stream workers are killed at random moments while users send messages: each message is in the offline store once."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

from kafka import KafkaAdminClient, KafkaProducer
from kafka.admin import NewTopic

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from ingest.streams import StreamWorker
from ingest.user_topic import UserTopic

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "3"))
SEED = int(os.environ.get("CRASH_SEED", "20240501"))
GROUP = "people"
PARTITIONS = 3
START_S_MAX = 120.0
WAIT_S_MAX = 120.0
FAULTY_EVERY = 50


class Sender(threading.Thread):
    """Sends numbered messages, some of them no records, until it is stopped."""

    def __init__(self, servers: str, topic: str) -> None:
        super().__init__()
        self.sent = 0
        self._topic = topic
        self._producer = KafkaProducer(bootstrap_servers=servers, acks="all", linger_ms=5)
        self._stop_wanted = threading.Event()

    def run(self) -> None:
        while not self._stop_wanted.wait(0.002):
            for _ in range(5):
                self._producer.send(self._topic, value=message(self.sent), partition=self.sent % PARTITIONS)
                self.sent += 1
        self._producer.flush(30)
        self._producer.close(timeout=5)

    def stop(self) -> None:
        self._stop_wanted.set()
        self.join()


def message(number: int) -> bytes:
    if number % FAULTY_EVERY == 0:
        return b"message %d is no record" % number
    at = datetime(2024, 5, 1, tzinfo=UTC) + timedelta(milliseconds=number * 37 % 100_000)
    return json.dumps({"id": f"p{number % 23}", "t": at.isoformat(timespec="milliseconds")[:-6] + "Z", "n": number}).encode()


def worker(environ: dict[str, str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "featurestore.cli", "worker", "stream"]
    return subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])


def wait_until_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    watchdog = threading.Timer(START_S_MAX, process.kill)
    watchdog.start()
    assert "is ready" in process.stdout.readline()
    watchdog.cancel()


def test_each_message_is_written_once(tmp_path: Path, kafka_servers: str, kafka_topic: str) -> None:
    schedule = random.Random(SEED)
    topic = f"clicks-{uuid.uuid4().hex[:12]}"
    admin = KafkaAdminClient(bootstrap_servers=kafka_servers)
    admin.create_topics([NewTopic(name=topic, num_partitions=PARTITIONS, replication_factor=1)])
    admin.wait_for_topics([topic])
    admin.close()
    named = {"FEATURESTORE_HOME": str(tmp_path), "FEATURESTORE_KAFKA_TOPIC": kafka_topic}
    environ = os.environ | named | {"FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS": kafka_servers}
    with FeatureStore(Settings.load(environ)) as store:
        features = {"id": "String", "t": "String", "n": "Integral"}
        store.create_feature_group(GROUP, record_identifier="id", event_time="t", features=features)
        stream = store.add_stream("clicks", topic=topic, group=GROUP)
    sender = Sender(kafka_servers, topic)
    sender.start()
    try:
        for _ in range(ROUNDS):
            processes = [worker(environ) for _ in range(schedule.choice([1, 1, 2]))]
            for process in processes:
                wait_until_ready(process)
            time.sleep(schedule.uniform(0.05, 1.5))  # the moment of the kill is what is tried here
            for process in processes:
                with process:
                    process.kill()
    finally:
        sender.stop()
    with FeatureStore(Settings.load(environ)) as store:
        last, ahead = StreamWorker(store), UserTopic(store.require_kafka(), stream)
        last.start()
        deadline_s = time.monotonic() + WAIT_S_MAX
        while any(part.offset < part.end for part in ahead.lag()):
            assert time.monotonic() < deadline_s, "the stream does not come to its end"
            time.sleep(0.05)
        last.stop()
        letters = ahead.dead_letters()
        ahead.close()
        found = Counter(store.sql(f"SELECT n FROM {GROUP}")["n"].to_pylist())
        expected = Counter(number for number in range(sender.sent) if number % FAULTY_EVERY)
        assert sender.sent > 100 * ROUNDS, "enough messages to prove anything"
        assert found == expected
        assert letters >= -(-sender.sent // FAULTY_EVERY)
        assert store.audit(GROUP).differences == ()
