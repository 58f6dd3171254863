"""Redis and Kafka for one benchmark, a store on them, and its outbox full of changes."""

from __future__ import annotations

import asyncio
import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import msgspec
import psutil

from featurestore.changelog.redis import RedisChangeLog
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import Keyspace, open_keyspace
from featurestore.model import change as changes
from featurestore.model.change import Change, LoggedChange
from featurestore.model.feature_group import FeatureGroup
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data
from tests.kafka_server import JARS, JVM, KafkaServer
from tests.kafka_server import MISSING as NO_KAFKA
from tests.redis_server import BINARY, DURABLE, RedisServer, server_version
from tests.redis_server import MISSING as NO_REDIS
from tests.service import Worker

GROUP = "records"
FEATURES = 10
CHUNK = 1000
POLL_S = 0.01

Message = tuple[bytes, int | None, Sequence[tuple[str, bytes]]]
"""Value, timestamp in milliseconds, headers."""

FOLLOWED_S_MAX = 300.0
ENTRIES_MAX = 10_000_000


class Deployment:
    """A Redis server of its own, and a broker of its own unless KAFKA_BOOTSTRAP_SERVERS names one. Use as a context manager."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._stack = ExitStack()

    def __enter__(self) -> Deployment:
        self.brokers = os.environ.get("KAFKA_BOOTSTRAP_SERVERS", "")
        assert BINARY is not None, NO_REDIS
        assert self.brokers or (JARS / ".installed").exists(), NO_KAFKA
        with ExitStack() as stack:
            self.redis = RedisServer(self.folder / "redis", **DURABLE)
            stack.callback(self.redis.kill)
            if not self.brokers:
                kafka = KafkaServer(self.folder / "kafka").start()
                stack.callback(kafka.kill)
                self.brokers = kafka.address
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def facts(self) -> dict[str, str]:
        """What the page says of it."""
        own = "KAFKA_BOOTSTRAP_SERVERS" not in os.environ
        kafka = f"Kafka {_kafka_version()}, one broker, Java with {' '.join(JVM)}" if own else "a Kafka that was running"
        client = f"kafka-python {version('kafka-python')} with crc32c {version('crc32c')}, redis {version('redis')} with hiredis"
        return {
            "servers": f"{server_version()} with an append-only file synced every second; {kafka}; all on this machine",
            "clients": client,
        }

    def settings(self, *, prefix: str = "", **more: str) -> dict[str, str]:
        """What a process of a store is given beside its home."""
        return {"online_url": self.url(prefix), "kafka_bootstrap_servers": self.brokers} | more

    def url(self, prefix: str = "") -> str:
        return f"{self.redis.url}?prefix={prefix}" if prefix else self.redis.url

    def keyspace(self, prefix: str = "") -> Keyspace:
        return open_keyspace(parse_redis_url(self.url(prefix)), data.SHARDS)

    def fill_outbox(self, home: Path, count: int) -> FeatureGroup:
        """Make the group in a new store and put `count` records as an AWS SDK does; nothing takes them from the outbox."""
        store = FeatureStore(Settings.load({}, home=home, online_url=self.url()))
        try:
            group = store.create_feature_group(
                GROUP, record_identifier="id", event_time="at", features=data.definitions(FEATURES)
            )
            plan = store.groups.plan(GROUP)

            async def put() -> None:
                for first in range(0, count, CHUNK):
                    some = [plan.put(pairs) for pairs in records(first, min(first + CHUNK, count), count)]
                    await store.online.apply([_with_write_id(change) for change in some])

            asyncio.run(put())
        finally:
            store.close(flush=False)
        return group

    def logged(self, prefix: str = "") -> list[list[LoggedChange]]:
        """Per shard what the outbox holds."""
        with closing(RedisChangeLog(self.keyspace(prefix))) as log:
            shards = [[entry.item for entry in log.read(shard, 1, ENTRIES_MAX)] for shard in range(log.shards())]
        return [[item for item in items if isinstance(item, LoggedChange)] for items in shards]


def records(first: int, end: int, count: int) -> Iterator[data.Pairs]:
    """Records `first` to `end - 1` of `count`: five versions of each identifier, one after the other through all."""
    identifiers = max(1, count // 5)
    for number in range(first, end):
        yield data.record(str(number % identifiers), FEATURES, number // identifiers % 28)


def new_topic(name: str) -> str:
    return f"{name}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True, slots=True)
class Followed:
    """What a worker got done from the first look at which it had done anything, up to the end.

    Attributes:
        cpu_s: of the worker's process.
    """

    amount: int
    took_s: float
    cpu_s: float

    def figures(self, unit: str) -> dict[str, float]:
        return {f"{unit}/s": self.amount / self.took_s, "took, s": self.took_s, "CPU, us each": self.cpu_s / self.amount * 1e6}


def followed(worker: Worker, done: Callable[[], int], total: int, *, from_zero: bool = False) -> Followed:
    """Look how far a running worker is until it has done everything.

    Args:
        done: how much of `total`; asked every POLL_S.
        from_zero: count from now on and from nothing, although the first look is yet to come.
    """
    process = psutil.Process(worker.pid)
    deadline_s = time.monotonic() + FOLLOWED_S_MAX
    began: tuple[int, float, float] | None = (0, time.perf_counter(), _cpu_s(process)) if from_zero else None
    while True:
        amount, now_s = done(), time.perf_counter()
        if began is None and 0 < amount < total:
            began = amount, now_s, _cpu_s(process)
        if amount >= total:
            assert amount == total, f"{amount} of {total}"
            assert began is not None, f"all {total} were done between two looks: too few to be measured"
            return Followed(total - began[0], now_s - began[1], _cpu_s(process) - began[2])
        assert time.monotonic() < deadline_s, f"{amount} of {total} done; its log:\n{worker.log.read_text()[-4000:]}"
        time.sleep(POLL_S)


def write_messages(
    path: Path, chunks: Sequence[tuple[int, Sequence[tuple[bytes, int | None, Sequence[tuple[str, bytes]]]]]]
) -> None:
    """Messages for `kafka_peers.produce`: per chunk the partition and (value, timestamp, headers) of each."""
    path.write_bytes(msgspec.msgpack.encode(chunks))


def _with_write_id(change: Change) -> Change:
    token = changes.write_id(change.group_id, change.record_id, uuid.uuid4().hex)
    return msgspec.structs.replace(change, write_id=token)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _kafka_version() -> str:
    jar = next(JARS.glob("kafka-clients-*.jar"), None)
    return "of unknown version" if jar is None else jar.stem.rpartition("-")[2]
