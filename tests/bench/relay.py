"""The relay: from the outbox on Redis to the Kafka topic, beside a bare producer of the same batches and a bare reading."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from featurestore.changelog.kafka import Message, message_of
from featurestore.changelog.relay import CHUNK_ENTRIES
from featurestore.model.change import LogEntry, LoggedChange
from tests.bench import data, kafka_peers, redis_peers
from tests.bench.deployment import Deployment, Followed, followed, new_topic, write_messages
from tests.bench.isolated import isolated
from tests.bench.sheet import Sheet
from tests.service import Worker

OURS = "worker relay"
PRODUCER = "kafka-python: the same batches, acks=all"
READING = "redis-py: reading the outbox alone"
COPY = b"copy:"


@dataclass(frozen=True, slots=True)
class Size:
    changes: int


SIZES = {"tiny": Size(8000), "canonical": Size(100_000)}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    with Deployment(folder) as deployment:
        sheet.parameters.update(
            {
                "changes": f"{size.changes:,} of 10 features with write ids, in {data.SHARDS} shards",
                "batches": f"{CHUNK_ENTRIES:,} changes of a shard, acknowledged before the next",
            }
            | deployment.facts()
        )
        say("filling the outbox")
        home, messages = folder / "home", folder / "messages"
        deployment.fill_outbox(home, size.changes)
        given = _write_messages(messages, deployment.logged())
        _copy(deployment, "", COPY.decode())
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            _copy(deployment, COPY.decode(), "")
            keys = [keys.outbox.decode() for keys in deployment.keyspace().keys]
            reading = isolated(redis_peers.read_streams, port=deployment.redis.port, keys=keys, count=CHUNK_ENTRIES).answer
            topics = {OURS: new_topic("relayed"), PRODUCER: new_topic("produced")}
            ours = _relay(deployment, home, topics[OURS], size.changes, folder / "relay.log")
            bare = isolated(
                kafka_peers.produce, servers=deployment.brokers, topic=topics[PRODUCER], partitions=data.SHARDS, messages=messages
            ).answer
            found = {OURS: ours, PRODUCER: _followed(bare), READING: _followed(reading)}
            for name, outcome in found.items():
                sheet.add("From the outbox to the topic", name, outcome.figures("changes"))
            each_s = {name: outcome.took_s / outcome.amount for name, outcome in found.items()}
            sheet.ratio(f"{OURS} / bare producer (time)", each_s[OURS], each_s[PRODUCER])
            sheet.ratio(f"{OURS} / bare producer + bare reading (time)", each_s[OURS], each_s[PRODUCER] + each_s[READING])
            answers = {
                name: isolated(kafka_peers.consume, servers=deployment.brokers, topic=topic, partitions=data.SHARDS).answer[
                    "checksum"
                ]
                for name, topic in topics.items()
            }
            sheet.check("messages, in order", {"given": given} | answers)
            sheet.check("entries read", {"given": str(size.changes), READING: str(reading["amount"])})


def _relay(deployment: Deployment, home: Path, topic: str, changes: int, log: Path) -> Followed:
    worker = Worker("relay", home, log, **deployment.settings(kafka_topic=topic))
    metas = [keys.meta for keys in deployment.keyspace().keys]
    with deployment.redis.client() as client:

        def relayed() -> int:
            with client.pipeline(transaction=False) as pipeline:
                for meta in metas:
                    pipeline.hget(meta, "trimmed")
                return sum(int(trimmed or 1) - 1 for trimmed in pipeline.execute())

        worker.start(wait=False)
        try:
            return followed(worker, relayed, changes)
        finally:
            worker.stop()


def _copy(deployment: Deployment, source: str, target: str) -> None:
    """The outboxes and what is known of them, from keys with one prefix to keys with another."""
    with deployment.redis.client() as client:
        for keys in deployment.keyspace().keys:
            for key in (keys.meta.decode(), keys.outbox.decode()):
                assert client.copy(source + key, target + key, replace=True)


def _write_messages(path: Path, shards: Sequence[Sequence[LoggedChange]]) -> str:
    """What the relay makes of the outbox, in its batches, a shard after the other; answers the checksum of the values."""
    made = [[message_of(LogEntry(item.stamp.seq, item)) for item in items] for items in shards]
    turns = zip_longest(*([(shard, some) for some in _chunks(messages)] for shard, messages in enumerate(made)))
    chunks = [chunk for turn in turns for chunk in turn if chunk is not None]
    write_messages(path, [(shard, [(one.value, one.timestamp_ms, one.headers) for one in some]) for shard, some in chunks])
    return kafka_peers.checksum([[message.value for message in messages] for messages in made])


def _chunks(messages: Sequence[Message]) -> list[Sequence[Message]]:
    return [messages[first : first + CHUNK_ENTRIES] for first in range(0, len(messages), CHUNK_ENTRIES)]


def _followed(answer: dict[str, Any]) -> Followed:
    return Followed(answer["amount"], answer["took_s"], answer["cpu_s"])
