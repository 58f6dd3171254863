"""Relays, offline writers, the service, the broker and Redis are killed, paused and restarted at random moments while clients
write.

At the end every acknowledged change is in the offline store exactly once, and the audit finds nothing.

`CRASH_ROUNDS` sets the number of mishaps (the suite's default is small), `CRASH_SEED` the schedule.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.crash.test_killed_service import CLIENTS, GROUP, START_US, Client, Ledger, check, create_group
from tests.kafka_server import KafkaServer
from tests.redis_server import RedisServer
from tests.service import Service, Worker

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
SEED = int(os.environ.get("CRASH_SEED", "20240501"))
SHARDS = 3


class World:
    """A service without workers, two relays and two offline writers, their broker, and perhaps their Redis."""

    def __init__(self, folder: Path, broker: KafkaServer, redis: RedisServer | None, schedule: random.Random) -> None:
        self.schedule = schedule
        self.broker = broker
        self.redis = redis
        self.ledger = Ledger()
        self.home = folder / "home"
        self.settings = {
            "kafka_bootstrap_servers": broker.address,
            "kafka_topic": "crash-changes",
            "shards": str(SHARDS),
            "flush_s": "0.1",
            "flush_changes_max": "200",
        }
        if redis is not None:
            self.settings["online_url"] = redis.url
        self.service = Service(self.home, folder / "service.log", "--no-workers", **self.settings)
        self.workers = [
            Worker(name, self.home, folder / f"{name}-{number}.log", **self.settings)
            for name in ("relay", "offline")
            for number in range(2)
        ]
        self.clients: list[Client] = []
        self._written = 0

    def open(self) -> FeatureStore:
        return FeatureStore(Settings.load({}, home=self.home, **self.settings))

    def start_clients(self) -> None:
        """Each set of clients has event times of its own."""
        for _ in range(CLIENTS):
            first_us = START_US + self._written * 1_000_000_000
            self._written += 1
            self.clients.append(Client(self.service.port, self.ledger, self.schedule.randrange(2**32), first_us))
            self.clients[-1].start()

    def stop_clients(self) -> None:
        for client in self.clients:
            client.stop.set()
        for client in self.clients:
            client.join(60)
            assert not client.is_alive()
        self.clients.clear()

    def wait(self, least_s: float, most_s: float) -> None:
        """The moments of mishaps are part of the schedule."""
        threading.Event().wait(self.schedule.uniform(least_s, most_s))

    def kill_worker(self) -> None:
        worker = self.schedule.choice(self.workers)
        worker.kill()
        self.wait(0, 0.2)
        worker.start(wait=False)

    def kill_all_of_a_kind(self) -> None:
        name = self.schedule.choice(["relay", "offline"])
        killed = [worker for worker in self.workers if worker.name == name]
        for worker in killed:
            worker.kill()
        self.wait(0, 0.5)
        for worker in killed:
            worker.start(wait=False)

    def pause_broker(self) -> None:
        self.broker.pause()
        self.wait(0.1, 1.5)
        self.broker.go_on()

    def kill_broker(self) -> None:
        self.broker.kill()
        self.wait(0, 0.5)
        self.broker.start()

    def restart_broker(self) -> None:
        self.broker.stop()
        self.broker.start()

    def kill_paused_relay(self) -> None:
        """What it has sent arrives after it is dead and another has taken over."""
        self.broker.pause()
        self.wait(0.1, 0.5)
        self.kill_worker()
        self.broker.go_on()

    def kill_redis(self) -> None:
        assert self.redis is not None
        self.redis.kill()
        self.wait(0, 0.5)
        self.redis.start()

    def pause_redis(self) -> None:
        assert self.redis is not None
        self.redis.freeze()
        self.wait(0.1, 1.5)
        self.redis.thaw()

    def kill_service(self) -> None:
        self.service.kill()
        self.stop_clients()
        self.service.start()
        self.start_clients()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["sqlite", "redis"])
def test_every_acknowledged_change_is_written_once(
    request: pytest.FixtureRequest, tmp_path: Path, kafka_server: KafkaServer, backend: str
) -> None:
    redis = request.getfixturevalue("redis_server") if backend == "redis" else None
    world = World(tmp_path, kafka_server, redis, random.Random(SEED))
    with world.open() as store:
        create_group(store)
    world.service.start()
    for worker in world.workers:
        worker.start(wait=False)
    world.start_clients()
    mishaps: list[Callable[[], None]] = [
        world.kill_worker,
        world.kill_worker,
        world.kill_all_of_a_kind,
        world.pause_broker,
        world.kill_broker,
        world.restart_broker,
        world.kill_paused_relay,
        world.kill_service,
    ]
    if redis is not None:
        mishaps += [world.kill_redis, world.pause_redis]
    for _ in range(-(-ROUNDS // len(mishaps))):
        world.schedule.shuffle(mishaps)
        for mishap in mishaps[:ROUNDS]:
            world.wait(0.2, 1.5)
            mishap()
    world.wait(0.5, 1.0)
    with world.open() as store:
        report = store.audit(GROUP)
        assert report.differences == (), "while everything runs"
        store.close(flush=False)
    world.stop_clients()
    assert world.service.stop() == 0
    for worker in world.workers:
        worker.kill()
    assert len(world.ledger.acknowledged) > 50 * ROUNDS, "too few writes to prove anything"
    with world.open() as store:
        check(store, world.ledger)
        assert store.offline_behind() == 0
        assert store.quarantined() == 0
