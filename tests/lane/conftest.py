"""Pairs of servers over every kind of store."""

from __future__ import annotations

import uuid
from collections.abc import Iterator

import pytest

from tests.conftest import RunningRedis
from tests.lane.harness import LoopThread, open_pair
from tests.lane.world import ADMIN, World

WORLDS = ["sqlite", "redis", "signed"]


@pytest.fixture(scope="module")
def loop(clean_environment: None) -> Iterator[LoopThread]:
    loop = LoopThread()
    yield loop
    loop.close()


def redis_urls(redis: RunningRedis) -> list[str]:
    """Of two new stores on one server."""
    joint = "&" if "?" in redis.url else "?"
    return [f"{redis.url}{joint}prefix={uuid.uuid4().hex[:8]}" for _ in range(2)]


@pytest.fixture(scope="module")
def twins(loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two embedded stores with one history, without keys."""
    with open_pair(loop, tmp_path_factory.mktemp("twins")) as pair:
        world = World(pair)
        world.fill()
        yield world


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest, loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two stores with one history, of each kind: embedded, on Redis, and embedded with an access key."""
    urls = redis_urls(request.getfixturevalue("redis")) if request.param == "redis" else []
    signed = request.param == "signed"
    keys = {"admin_access_key_id": ADMIN[0], "admin_secret_access_key": ADMIN[1]} if signed else {}
    with open_pair(loop, tmp_path_factory.mktemp(request.param), urls=urls, **keys) as pair:
        world = World(pair, signed=signed)
        world.fill()
        yield world
