"""Streaming ingestion: JSON messages of a user's topic to Redis and the outbox, beside a bare consumer that parses them."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from featurestore.model.codec import decode_values
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data, kafka_peers
from tests.bench.deployment import CHUNK, FEATURES, GROUP, Deployment, Followed, followed, new_topic, records, write_messages
from tests.bench.isolated import isolated
from tests.bench.sheet import Sheet
from tests.service import Worker

OURS = "worker stream"
CONSUMER = "kafka-python: reading the topic alone"
DECODER = "kafka-python + json.loads"
PARTITIONS = 4


@dataclass(frozen=True, slots=True)
class Size:
    messages: int


SIZES = {"tiny": Size(4000), "canonical": Size(60_000)}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    with Deployment(folder) as deployment:
        sheet.parameters.update(
            {
                "messages": f"{size.messages:,} JSON objects of 10 features, in {PARTITIONS} partitions; one stream, one worker",
                "settings": "defaults",
            }
            | deployment.facts()
        )
        say("filling the topic")
        topic, messages = new_topic("events"), folder / "messages"
        given = _write_messages(messages, size.messages)
        isolated(kafka_peers.produce, servers=deployment.brokers, topic=topic, partitions=PARTITIONS, messages=messages)
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            ours = _ingest(deployment, topic, folder / f"home-{number}", size.messages, prefix=f"round-{number}")
            found = {OURS: ours}
            for name, decode in ((CONSUMER, False), (DECODER, True)):
                peer = isolated(
                    kafka_peers.consume, servers=deployment.brokers, topic=topic, partitions=PARTITIONS, decode=decode
                ).answer
                found[name] = Followed(peer["amount"], peer["took_s"], peer["cpu_s"])
                sheet.check("messages read", {"given": str(size.messages), name: str(peer["amount"])})
            for name, outcome in found.items():
                sheet.add("From a topic to Redis and the outbox", name, outcome.figures("messages"))
            each_s = {name: outcome.took_s / outcome.amount for name, outcome in found.items()}
            sheet.ratio(f"{OURS} / reading and parsing alone (time)", each_s[OURS], each_s[DECODER])
            sheet.check("every message", {"given": given, "changes in the outbox": _logged(deployment, f"round-{number}")})
            with deployment.redis.client() as client:
                client.flushall()


def _write_messages(path: Path, count: int) -> str:
    """Messages of which every hundred go to the next partition; answers their checksum."""
    definitions = data.definitions(FEATURES)

    def message(pairs: data.Pairs) -> bytes:
        members = (f"{json.dumps(name)}:{json.dumps(text) if definitions[name] == 'String' else text}" for name, text in pairs)
        return f"{{{','.join(members)}}}".encode()

    made = [message(pairs) for pairs in records(0, count, count)]
    pieces = [made[first : first + 100] for first in range(0, count, 100)]
    parts = [[one for piece in pieces[part::PARTITIONS] for one in piece] for part in range(PARTITIONS)]
    chunks = [
        (part, [(value, None, ()) for value in some[first : first + CHUNK]])
        for part, some in enumerate(parts)
        for first in range(0, len(some), CHUNK)
    ]
    write_messages(path, chunks)
    return _bag(records(0, count, count))


def _ingest(deployment: Deployment, topic: str, home: Path, messages: int, *, prefix: str) -> Followed:
    """A new store with a stream of the topic, and a worker that is followed by what its shards have been given."""
    settings = deployment.settings(prefix=prefix, kafka_topic=new_topic("changes"))
    store = FeatureStore(Settings.load({}, home=home, **settings))
    try:
        store.create_feature_group(GROUP, record_identifier="id", event_time="at", features=data.definitions(FEATURES))
        store.add_stream("events", topic=topic, group=GROUP)
    finally:
        store.close(flush=False)
    metas = [keys.meta for keys in deployment.keyspace(prefix).keys]
    worker = Worker("stream", home, home / "stream.log", **settings)
    with deployment.redis.client() as client:

        def applied() -> int:
            with client.pipeline(transaction=False) as pipeline:
                for meta in metas:
                    pipeline.hget(meta, "seq")
                return sum(int(seq or 0) for seq in pipeline.execute())

        worker.start(wait=False)
        try:
            return followed(worker, applied, messages)
        finally:
            worker.stop()


def _logged(deployment: Deployment, prefix: str) -> str:
    names = list(data.definitions(FEATURES))
    items = (item for shard in deployment.logged(prefix) for item in shard)
    return _bag(
        [(name, str(text)) for name, text in zip(names, decode_values(item.change.values)[1], strict=True)] for item in items
    )


def _bag(records: Iterable[data.Pairs]) -> str:
    """A checksum of records in any order."""
    return f"{sum(zlib.crc32(json.dumps(pairs).encode()) for pairs in records):016x}"
