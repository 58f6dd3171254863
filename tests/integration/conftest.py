"""One real service for all tests that talk to it, unmodified boto3 clients of it, and raw HTTP where boto3 hides things."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import unescape

import boto3
import pytest

from tests.service import Service

ANSWER_S_MAX = 30.0
TARGET = "SageMaker."


@dataclass(frozen=True)
class Reply:
    """One raw answer; header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str | None:
        """The error code, wherever the API that answered puts it."""
        if "x-amzn-errortype" in self.headers:
            return self.headers["x-amzn-errortype"]
        if self.body[:1] == b"<":
            return self.body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode()
        return self.json.get("__type") if self.body[:1] == b"{" else None

    @property
    def message(self) -> str:
        if self.body[:1] == b"<":
            return unescape(self.body.partition(b"<Message>")[2].partition(b"</Message>")[0].decode(), {"&quot;": '"'})
        return str(self.json["Message"])


class Http:
    """Requests as they are written, each on a connection of its own."""

    def __init__(self, port: int) -> None:
        self.port = port

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=ANSWER_S_MAX)

    def request(
        self, method: str, path: str, body: bytes | str | object | None = None, headers: dict[str, str] | None = None
    ) -> Reply:
        """Send one request; a body that is neither bytes nor text is sent as JSON."""
        if body is not None and not isinstance(body, bytes | str):
            body = json.dumps(body)
        connection = self.connect()
        try:
            connection.request(method, path, body.encode() if isinstance(body, str) else body, headers or {})
            answer = connection.getresponse()
            return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
        finally:
            connection.close()

    def control(self, operation: str, body: bytes | str | object) -> Reply:
        """One control plane request."""
        headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"{TARGET}{operation}"}
        return self.request("POST", "/", body, headers)

    def sql(self, statement: str) -> list[list[Any]]:
        """The rows of a SELECT over the offline store, what waits included."""
        reply = self.request("POST", "/v1/sql", {"statement": statement}, {"Content-Type": "application/json"})
        assert reply.status == 200, reply
        rows: list[list[Any]] = reply.json["rows"]
        return rows

    def offline_rows(self, group: str) -> int:
        ((count,),) = self.sql(f'SELECT count(*) FROM history."{group}"')
        return int(count)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One for each module: others kill every child of this process, to see what becomes of theirs."""
    folder = tmp_path_factory.mktemp("service")
    running = Service(folder / "home", folder / "log").start()
    yield running
    status = running.stop()
    log = running.log.read_text()
    assert status == 0, log
    assert "Traceback" not in log, log
    assert " ERROR " not in log, log


@pytest.fixture(scope="module")
def http_client(service: Service) -> Http:
    return Http(service.port)


def _client(name: str, service: Service) -> Iterator[Any]:
    client = boto3.client(name, endpoint_url=service.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def sagemaker(service: Service, clean_environment: None) -> Iterator[Any]:
    """Unmodified boto3 client of the control plane."""
    yield from _client("sagemaker", service)


@pytest.fixture(scope="module")
def runtime(service: Service, clean_environment: None) -> Iterator[Any]:
    """Unmodified boto3 client of the record operations."""
    yield from _client("sagemaker-featurestore-runtime", service)


def definitions(**types: str) -> list[dict[str, str]]:
    return [{"FeatureName": name, "FeatureType": kind} for name, kind in types.items()]


def record(**values: str | list[str]) -> list[dict[str, Any]]:
    """A Record as the API wants it."""
    return [
        {"FeatureName": name, "ValueAsString" if isinstance(value, str) else "ValueAsStringList": value}
        for name, value in values.items()
    ]


def values_of(answer: dict[str, Any]) -> dict[str, Any] | None:
    """The Record of an answer as feature name to text; None when the answer has none."""
    if "Record" not in answer:
        return None
    return {item["FeatureName"]: item.get("ValueAsString", item.get("ValueAsStringList")) for item in answer["Record"]}


def unique_name(stem: str = "g") -> str:
    return f"{stem}-{uuid.uuid4().hex[:12]}"


ONLINE: dict[str, Any] = {"EnableOnlineStore": True}
OFFLINE: dict[str, Any] = {"S3StorageConfig": {"S3Uri": "s3://test-bucket/prefix"}}
FEATURES = definitions(id="String", at="String", amount="Fractional", count="Integral", note="String")


@pytest.fixture(scope="module")
def create_group(sagemaker: Any) -> Callable[..., str]:
    """Create a feature group under a fresh name and return the name. Members override the default ones; None removes."""

    def create(**members: Any) -> str:
        request = {
            "FeatureGroupName": unique_name(),
            "RecordIdentifierFeatureName": "id",
            "EventTimeFeatureName": "at",
            "FeatureDefinitions": FEATURES,
            "OnlineStoreConfig": ONLINE,
            "OfflineStoreConfig": OFFLINE,
        } | members
        sagemaker.create_feature_group(**{name: value for name, value in request.items() if value is not None})
        return str(request["FeatureGroupName"])

    return create


Cli = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def cli(clean_environment: None) -> Cli:
    """Run `featurestore <arguments>` in a process of its own, with settings by their lower-case names."""

    def run(*arguments: object, **settings: object) -> subprocess.CompletedProcess[str]:
        environ = os.environ | {f"FEATURESTORE_{name.upper()}": str(value) for name, value in settings.items()}
        command = [sys.executable, "-m", "featurestore.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, env=environ, timeout=60, check=False)

    return run
