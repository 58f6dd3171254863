"""The service as a process: where it listens, when it refuses to start, how it stops, and two of them over one store."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import featurestore
from api.listener import listening
from featurestore.access.keys import Right
from featurestore.errors import SettingsInvalid, StoreUnavailable
from featurestore.settings import Settings
from tests.integration.conftest import FEATURES, OFFLINE, ONLINE, Cli, Http, record
from tests.service import Service

AT = "2024-05-01T00:00:00Z"
WAIT_S_MAX = 20.0
ADMIN = {"FEATURESTORE_ADMIN_ACCESS_KEY_ID": "admin", "FEATURESTORE_ADMIN_SECRET_ACCESS_KEY": "a long enough secret"}


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(0.01)


def group_request(name: str, **members: Any) -> dict[str, Any]:
    return {
        "FeatureGroupName": name,
        "RecordIdentifierFeatureName": "id",
        "EventTimeFeatureName": "at",
        "FeatureDefinitions": FEATURES,
        "OnlineStoreConfig": ONLINE,
        "OfflineStoreConfig": OFFLINE,
    } | members


def put(http_client: Http, group: str, identifier: str, at: str = AT, **headers: str) -> int:
    body = {"Record": record(id=identifier, at=at)}
    return http_client.request("PUT", f"/FeatureGroup/{group}", body, headers).status


def live(http_client: Http, group: str, identifier: str) -> bool:
    return "Record" in http_client.request("GET", f"/FeatureGroup/{group}?RecordIdentifierValueAsString={identifier}").json


class TestAddress:
    @pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", "", "127.0.0.1.example.com"])  # noqa: S104
    def test_only_loopback_without_keys(self, tmp_path: Path, host: str) -> None:
        home = tmp_path / "home"
        with (
            pytest.raises(SettingsInvalid, match=r"FEATURESTORE_HOST: expected a loopback address.*keys create"),
            listening(Settings.load({}, home=home, host=host, port=0)),
        ):
            pass
        assert not home.exists()
        with featurestore.open(home):
            pass
        with (
            pytest.raises(SettingsInvalid, match=r"FEATURESTORE_HOST: expected a loopback address.*keys create"),
            listening(Settings.load({}, home=home, host=host, port=0)),
        ):
            pass

    @pytest.mark.parametrize(("host", "keys"), [("127.0.0.1", False), ("localhost", False), ("127.8.8.8", False), ("", True)])
    def test_what_is_allowed(self, tmp_path: Path, host: str, keys: bool) -> None:
        """The empty name is every address of the machine."""
        with listening(Settings.load(ADMIN if keys else {}, home=tmp_path, host=host, port=0)) as (listener,):
            assert listener.getsockname()[1] > 0

    def test_any_address_once_there_is_a_key(self, tmp_path: Path) -> None:
        with featurestore.open(tmp_path) as store:
            store.keys.create("somebody", Right.READ)
            store.keys.revoke("somebody")
        with listening(Settings.load({}, home=tmp_path, host="", port=0)) as (listener,):
            assert listener.getsockname()[1] > 0

    @pytest.mark.parametrize(("workers", "beside"), [(1, 1), (1, 3), (3, 1), (3, 3)])
    def test_a_port_that_is_only_listened_on_is_taken_too(self, workers: int, beside: int) -> None:
        with listening(Settings.load({}, port=0, workers=workers)) as listeners:
            assert len(listeners) == workers
            (port,) = {listener.getsockname()[1] for listener in listeners}
            with (
                pytest.raises(StoreUnavailable, match=rf"127\.0\.0\.1:{port}.*in use.*--port 0"),
                listening(Settings.load({}, port=port, workers=beside)),
            ):
                pass

    @pytest.mark.parametrize("host", ["nowhere.invalid", "a..b", "300.300.300.300"])
    def test_an_address_that_is_none(self, host: str) -> None:
        with pytest.raises(StoreUnavailable, match="FEATURESTORE_HOST"), listening(Settings.load(ADMIN, host=host, port=0)):
            pass


class TestRefusals:
    """Each is one line on standard error and exit status 1."""

    @pytest.mark.parametrize(
        ("arguments", "settings", "words"),
        [
            (["--host", "0.0.0.0"], {}, ["FEATURESTORE_HOST", "loopback", "keys create", "'0.0.0.0'"]),  # noqa: S104
            ([], {"hots": "127.0.0.1"}, ["FEATURESTORE_HOTS", "did you mean FEATURESTORE_HOST?"]),
            ([], {"tls_cert_file": "/nowhere", "tls_key_file": "/nowhere"}, ["FEATURESTORE_TLS_CERT_FILE", "'/nowhere'"]),
        ],
        ids=["not loopback", "unknown setting", "no certificate"],
    )
    def test_it_does_not_start(
        self, cli: Cli, tmp_path: Path, arguments: list[str], settings: dict[str, str], words: list[str]
    ) -> None:
        done = cli("serve", "--home", tmp_path / "home", "--port", "0", *arguments, **settings)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith("error: ")
        for word in words:
            assert word in line
        assert not (tmp_path / "home").exists()

    def test_a_port_in_use(self, cli: Cli, tmp_path: Path, service: Service) -> None:
        done = cli("serve", "--home", tmp_path / "home", "--port", service.port)
        assert (done.returncode, done.stdout) == (1, "")
        (line,) = done.stderr.splitlines()
        for word in (f"127.0.0.1:{service.port}", "in use", "--port 0"):
            assert word in line


class TestStopping:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_what_waits_is_written_before_it_ends(self, tmp_path: Path, number: signal.Signals) -> None:
        home = tmp_path / "home"
        service = Service(home, tmp_path / "log", flush_s="3600", outbox_changes_max="5").start()
        http_client = Http(service.port)
        assert http_client.control("CreateFeatureGroup", group_request("g")).status == 200
        assert [put(http_client, "g", str(key)) for key in range(5)] == [200] * 5
        full = http_client.request("PUT", "/FeatureGroup/g", {"Record": record(id="6", at=AT)})
        assert (full.status, full.code) == (503, "ServiceUnavailable")
        assert "wait for the offline store" in full.message
        assert not live(http_client, "g", "6")
        assert http_client.request("GET", "/ready").json == {"status": "ready", "changes_waiting": 5}

        os.kill(service.pid, number)
        assert service.stop() == 0
        log = service.log.read_text()
        assert "Traceback" not in log
        assert "leak" not in log
        with featurestore.open(home) as store:
            assert store.offline_behind() == 0
            assert store.sql("SELECT count(*) AS n FROM g", fresh=False).to_pylist() == [{"n": 5}]
            assert store.get_record("g", "4") is not None

    def test_a_request_under_way_is_finished(self, tmp_path: Path) -> None:
        service = Service(tmp_path / "home", tmp_path / "log", flush_s="3600").start()
        http_client = Http(service.port)
        assert http_client.control("CreateFeatureGroup", group_request("g")).status == 200
        body = json.dumps({"Record": record(id="late", at=AT)}).encode()
        head = f"PUT /FeatureGroup/g HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        with socket.create_connection(("127.0.0.1", service.port), timeout=WAIT_S_MAX) as connection:
            connection.sendall(head.encode() + body[:10])
            wait_until(lambda: http_client.request("GET", "/health").status == 200)
            os.kill(service.pid, signal.SIGTERM)
            wait_until(lambda: "Shutting down" in service.log.read_text())
            connection.sendall(body[10:])
            assert connection.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert service.stop() == 0
        with featurestore.open(tmp_path / "home") as store:
            assert store.offline_behind() == 0
            assert store.get_record("g", "late") is not None

    def test_a_second_interrupt_gives_up_what_is_under_way(self, tmp_path: Path) -> None:
        home = tmp_path / "home"
        service = Service(home, tmp_path / "log", flush_s="3600").start()
        http_client = Http(service.port)
        assert http_client.control("CreateFeatureGroup", group_request("g")).status == 200
        assert put(http_client, "g", "k") == 200
        with socket.create_connection(("127.0.0.1", service.port), timeout=WAIT_S_MAX) as connection:
            connection.sendall(b"PUT /FeatureGroup/g HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
            wait_until(lambda: http_client.request("GET", "/health").status == 200)
            os.kill(service.pid, signal.SIGINT)
            wait_until(lambda: "Shutting down" in service.log.read_text())
            os.kill(service.pid, signal.SIGINT)
            assert service.wait() == 0
            assert connection.recv(1000) == b""
        log = service.log.read_text()
        assert "Application shutdown complete" in log
        assert "timeout graceful shutdown exceeded" not in log
        assert "Traceback" not in log
        assert "leak" not in log
        with featurestore.open(home) as store:
            assert store.offline_behind() == 0
            assert store.get_record("g", "k") is not None

    def test_it_continues_where_it_ended(self, tmp_path: Path) -> None:
        service = Service(tmp_path / "home", tmp_path / "log")
        with service:
            http_client = Http(service.port)
            assert http_client.control("CreateFeatureGroup", group_request("g")).status == 200
            described = http_client.control("DescribeFeatureGroup", {"FeatureGroupName": "g"}).json
            token = {"amz-sdk-invocation-id": "one call"}
            assert put(http_client, "g", "k", **token) == 200
        with service:
            http_client = Http(service.port)
            assert http_client.control("DescribeFeatureGroup", {"FeatureGroupName": "g"}).json == described
            assert live(http_client, "g", "k")
            assert put(http_client, "g", "k", **token) == 200
            assert http_client.offline_rows("g") == 1


def test_while_the_offline_store_is_away_records_are_taken_and_readiness_says_so(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with Service(home, tmp_path / "log", flush_s="0.02") as service:
        http_client = Http(service.port)
        assert http_client.control("CreateFeatureGroup", group_request("g")).status == 200
        (home / "offline").rename(home / "away")
        (home / "offline").touch()
        assert put(http_client, "g", "k") == 200
        wait_until(lambda: http_client.request("GET", "/ready").status == 503)
        reply = http_client.request("GET", "/ready").json
        assert reply["status"] == "not ready"
        assert reply["reason"]
        flushed = http_client.request("POST", "/v1/flush")
        assert (flushed.status, flushed.code) == (503, "ServiceUnavailable")
        assert http_client.request("GET", "/health").status == 200
        assert live(http_client, "g", "k")

        (home / "offline").unlink()
        (home / "away").rename(home / "offline")
        wait_until(lambda: http_client.request("GET", "/ready").status == 200)
        assert http_client.offline_rows("g") == 1


class TestTwoProcesses:
    @pytest.fixture(scope="class")
    @classmethod
    def pair(cls, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Http, Http]]:
        """Two services over one home."""
        folder = tmp_path_factory.mktemp("pair")
        first = Service(folder / "home", folder / "log-1", "--access-log").start()
        second = Service(folder / "home", folder / "log-2").start()
        yield Http(first.port), Http(second.port)
        assert (first.stop(), second.stop()) == (0, 0)
        for service in (first, second):
            assert "Traceback" not in service.log.read_text()
        assert '"GET /health HTTP/1.1" 200' in first.log.read_text()
        assert "/health" not in second.log.read_text()

    @pytest.mark.parametrize("round_number", range(3))
    def test_of_concurrent_creations_one_wins(self, pair: tuple[Http, Http], round_number: int) -> None:
        assert [http_client.request("GET", "/health").status for http_client in pair] == [200, 200]
        request = group_request(f"race-{round_number}")

        def create(number: int) -> Any:
            return pair[number % 2].control("CreateFeatureGroup", request)

        with ThreadPoolExecutor(16) as threads:
            replies = list(threads.map(create, range(16)))
        assert sorted((reply.status, reply.code) for reply in replies) == [(200, None)] + [(400, "ResourceInUse")] * 15
        described = [
            http_client.control("DescribeFeatureGroup", {"FeatureGroupName": f"race-{round_number}"}) for http_client in pair
        ]
        assert described[0].body == described[1].body
        assert sum(group["name"] == f"race-{round_number}" for group in pair[0].request("GET", "/v1/groups").json) == 1

    def test_one_sees_what_the_other_wrote(self, pair: tuple[Http, Http]) -> None:
        one, other = pair
        assert one.control("CreateFeatureGroup", group_request("shared")).status == 200
        assert put(one, "shared", "k") == 200
        assert live(other, "shared", "k")
        assert put(other, "shared", "k", at="2024-05-02T00:00:00Z") == 200
        assert one.request("GET", "/FeatureGroup/shared?RecordIdentifierValueAsString=k").json["Record"] == record(
            id="k", at="2024-05-02T00:00:00Z"
        )

    def test_a_change_of_a_group_reaches_the_other(self, pair: tuple[Http, Http]) -> None:
        one, other = pair
        assert one.control("CreateFeatureGroup", group_request("changing")).status == 200
        assert put(other, "changing", "k") == 200
        added = {"FeatureGroupName": "changing", "FeatureAdditions": [{"FeatureName": "extra", "FeatureType": "String"}]}
        assert one.control("UpdateFeatureGroup", added).status == 200
        body = {"Record": record(id="k", at="2024-05-02T00:00:00Z", extra="new")}
        wait_until(lambda: other.request("PUT", "/FeatureGroup/changing", body).status == 200)
        assert one.request("GET", "/FeatureGroup/changing?RecordIdentifierValueAsString=k").json == body
        assert one.control("DeleteFeatureGroup", {"FeatureGroupName": "changing"}).status == 200
        path = "/FeatureGroup/changing?RecordIdentifierValueAsString=k"
        wait_until(lambda: other.request("GET", path).status == 404)

    def test_writes_through_both_are_offline_once(self, pair: tuple[Http, Http]) -> None:
        assert pair[0].control("CreateFeatureGroup", group_request("both")).status == 200

        def write(number: int) -> int:
            if number % 10 == 0:
                pair[number // 10 % 2].request("POST", "/v1/flush")
            return put(pair[number % 2], "both", f"k{number % 7}", at=f"2024-05-01T00:{number % 60:02d}:00Z")

        with ThreadPoolExecutor(8) as threads:
            assert set(threads.map(write, range(200))) == {200}
        assert pair[0].offline_rows("both") == pair[1].offline_rows("both") == 200
        assert len(pair[1].sql('SELECT * FROM latest."both"')) == 7
