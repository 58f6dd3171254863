"""`featurestore serve --workers N`: several processes are one service, also when one of them, or the one above them, dies."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

import featurestore
from api.listener import listening
from api.server_process import encoded
from api.supervisor import Pace, Supervisor
from featurestore.access.keys import Right
from featurestore.errors import StoreUnavailable
from featurestore.settings import Settings
from tests.integration.conftest import FEATURES, OFFLINE, ONLINE, Cli, Http, Reply, record
from tests.service import Service

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="which process answers is found out in Linux' ways")

AT = "2024-05-01T00:00:00Z"
LATER = "2024-05-02T00:00:00Z"
WAIT_S_MAX = 30.0
WORKERS = 2
LOADS = 4
"""Threads that write at a time."""
KEPT_IDLE_S = 0.01
"""How long a kept connection is idle between its requests: mostly, so that a service that stops finds it so."""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while not condition():
        assert time.monotonic() < deadline_s, "the condition did not come true"
        time.sleep(0.01)


def servers_of(parent: int) -> list[int]:
    """Ids of the server processes."""
    children = psutil.Process(parent).children()
    return sorted(child.pid for child in children if "api.server_process" in child.cmdline())


def serving(pids: list[int], connection: http.client.HTTPConnection) -> int | None:
    """Which of some processes has the other end of a connection."""
    port = connection.sock.getsockname()[1]
    for pid in pids:
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(found.raddr and found.raddr.port == port for found in psutil.Process(pid).net_connections("tcp")):
                return pid
    return None


class Through(Http):
    """Requests that one process answers, and no other."""

    def __init__(self, port: int, pid: int) -> None:
        super().__init__(port)
        self.pid = pid

    def connect(self) -> http.client.HTTPConnection:
        deadline_s = time.monotonic() + WAIT_S_MAX
        while True:
            assert time.monotonic() < deadline_s, f"no connection came to process {self.pid}"
            connection = super().connect()
            connection.request("GET", "/health")
            connection.getresponse().read()
            if serving([self.pid], connection) == self.pid:
                connection.auto_open = 0  # else it could be another process's without our knowing
                return connection
            connection.close()


def through_each(service: Service) -> list[Through]:
    pids = servers_of(service.pid)
    assert len(pids) == WORKERS
    return [Through(service.port, pid) for pid in pids]


def group_request(name: str) -> dict[str, Any]:
    return {
        "FeatureGroupName": name,
        "RecordIdentifierFeatureName": "id",
        "EventTimeFeatureName": "at",
        "FeatureDefinitions": FEATURES,
        "OnlineStoreConfig": ONLINE,
        "OfflineStoreConfig": OFFLINE,
    }


def put(client: Http, group: str, identifier: str, at: str = AT, **values: str) -> Reply:
    return client.request("PUT", f"/FeatureGroup/{group}", {"Record": record(id=identifier, at=at, **values)})


def get(client: Http, group: str, identifier: str) -> Reply:
    return client.request("GET", f"/FeatureGroup/{group}?RecordIdentifierValueAsString={identifier}")


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("processes")
    running = Service(folder / "home", folder / "log", "--workers", str(WORKERS), flush_s="0.05").start()
    yield running
    pids = servers_of(running.pid)
    status = running.stop()
    log = running.log.read_text()
    assert status == 0, log
    assert "Traceback" not in log, log
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


class TestOneService:
    def test_each_process_answers_and_is_ready(self, service: Service) -> None:
        for client in through_each(service):
            assert client.request("GET", "/ready").json["status"] == "ready"

    def test_a_group_from_its_creation_to_its_end(self, service: Service) -> None:
        one, other = through_each(service)
        assert one.control("CreateFeatureGroup", group_request("g")).status == 200
        assert put(other, "g", "k").status == put(one, "g", "l").status == 200
        described = [client.control("DescribeFeatureGroup", {"FeatureGroupName": "g"}).body for client in (one, other)]
        assert described[0] == described[1]

        added = {"FeatureGroupName": "g", "FeatureAdditions": [{"FeatureName": "extra", "FeatureType": "String"}]}
        assert other.control("UpdateFeatureGroup", added).status == 200
        wait_until(lambda: put(one, "g", "k", LATER, extra="new").status == 200)
        assert get(other, "g", "k").json["Record"] == record(id="k", at=LATER, extra="new")

        assert one.control("DeleteFeatureGroup", {"FeatureGroupName": "g"}).status == 200
        wait_until(lambda: get(other, "g", "k").status == 404)
        assert put(one, "g", "k").status == 404
        assert other.control("CreateFeatureGroup", group_request("g")).status == 200
        wait_until(lambda: [get(client, "g", "k").status for client in (one, other)] == [200, 200])
        assert "Record" not in get(one, "g", "k").json

    def test_writes_through_all_are_offline_once(self, service: Service) -> None:
        clients = through_each(service)
        assert clients[0].control("CreateFeatureGroup", group_request("both")).status == 200

        def write(number: int) -> int:
            if number % 10 == 0:
                assert clients[number // 10 % WORKERS].request("POST", "/v1/flush").status == 200
            return put(clients[number % WORKERS], "both", f"k{number % 7}", f"2024-05-01T00:{number:02d}:00Z").status

        with ThreadPoolExecutor(LOADS) as threads:
            assert set(threads.map(write, range(60))) == {200}
        assert [client.offline_rows("both") for client in clients] == [60] * WORKERS

    def test_the_background_work_is_done_by_the_one_above_them(self, service: Service) -> None:
        clients = through_each(service)
        assert clients[0].control("CreateFeatureGroup", group_request("waiting")).status == 200

        def waiting() -> list[int]:
            return [client.request("GET", "/ready").json["changes_waiting"] for client in clients]

        wait_until(lambda: waiting() == [0] * WORKERS)
        os.kill(service.pid, signal.SIGSTOP)
        try:
            assert [put(client, "waiting", str(client.pid)).status for client in clients] == [200] * WORKERS
            # Ten times FEATURESTORE_FLUSH_S: a writer of their own would have written them.
            until_s = time.monotonic() + 0.5
            while time.monotonic() < until_s:
                assert waiting() == [WORKERS] * WORKERS
        finally:
            os.kill(service.pid, signal.SIGCONT)
        wait_until(lambda: waiting() == [0] * WORKERS)

    def test_all_say_that_the_offline_store_is_away(self, service: Service) -> None:
        clients = through_each(service)
        assert clients[0].control("CreateFeatureGroup", group_request("away")).status == 200
        offline, away = service.home / "offline", service.home / "away"
        offline.rename(away)
        offline.touch()
        try:
            assert put(clients[0], "away", "k").status == 200
            wait_until(lambda: [client.request("GET", "/ready").status for client in clients] == [503] * WORKERS)
            (reason,) = {client.request("GET", "/ready").json["reason"] for client in clients}
            assert reason
        finally:
            offline.unlink()
            away.rename(offline)
        wait_until(lambda: [client.request("GET", "/ready").status for client in clients] == [200] * WORKERS)

    def test_a_query_of_athena_is_everybodys(self, service: Service) -> None:
        one, other = through_each(service)
        assert one.control("CreateFeatureGroup", group_request("asked")).status == 200
        assert put(one, "asked", "k").status == 200
        table = one.control("DescribeFeatureGroup", {"FeatureGroupName": "asked"}).json["OfflineStoreConfig"]["DataCatalogConfig"]

        def athena(client: Http, operation: str, **members: Any) -> Any:
            headers = {"Content-Type": "application/x-amz-json-1.1", "X-Amz-Target": f"AmazonAthena.{operation}"}
            reply = client.request("POST", "/", members, headers)
            assert reply.status == 200, reply
            return reply.json

        def state(client: Http, execution: str) -> str:
            return str(athena(client, "GetQueryExecution", QueryExecutionId=execution)["QueryExecution"]["Status"]["State"])

        statement = f'SELECT id FROM "{table["Database"]}"."{table["TableName"]}"'
        execution = athena(one, "StartQueryExecution", QueryString=statement)["QueryExecutionId"]
        wait_until(lambda: state(other, execution) not in ("QUEUED", "RUNNING"))
        rows = athena(other, "GetQueryResults", QueryExecutionId=execution)["ResultSet"]["Rows"]
        assert [row["Data"][0]["VarCharValue"] for row in rows] == ["id", "k"]

        letters = "array_join(transform(sequence(1, 300000), x -> '{}'), '')"
        endless = f"SELECT levenshtein_distance({letters.format('a')}, {letters.format('b')})"
        execution = athena(one, "StartQueryExecution", QueryString=endless)["QueryExecutionId"]
        wait_until(lambda: state(other, execution) == "RUNNING")
        athena(other, "StopQueryExecution", QueryExecutionId=execution)
        assert [state(client, execution) for client in (one, other)] == ["CANCELLED"] * WORKERS

    def test_an_upload_goes_on_in_another_process(self, service: Service) -> None:
        """Parts through one, their completion through the other."""
        one, other = through_each(service)
        assert one.request("PUT", "/some-bucket", headers=signed(one, "PUT", "/some-bucket", "any", "any", "s3")).status == 200
        path = "/some-bucket/object"
        begun = one.request("POST", f"{path}?uploads", headers=signed(one, "POST", f"{path}?uploads", "any", "any", "s3"))
        upload = begun.body.partition(b"<UploadId>")[2].partition(b"</UploadId>")[0].decode()
        part = f"{path}?partNumber=1&uploadId={upload}"
        tag = other.request("PUT", part, b"bytes", signed(other, "PUT", part, "any", "any", "s3", b"bytes")).headers["etag"]
        parts = f"<CompleteMultipartUpload><Part><PartNumber>1</PartNumber><ETag>{tag}</ETag></Part></CompleteMultipartUpload>"
        whole = f"{path}?uploadId={upload}"
        done = one.request("POST", whole, parts, signed(one, "POST", whole, "any", "any", "s3", parts.encode()))
        assert done.status == 200, done
        assert other.request("GET", path, headers=signed(other, "GET", path, "any", "any", "s3")).body == b"bytes"


def signed(
    client: Http, method: str, path: str, key_id: str, secret: str, service: str = "sagemaker", body: bytes = b""
) -> dict[str, str]:
    """Headers of a request with a signature."""
    request = AWSRequest(method, f"http://127.0.0.1:{client.port}{path}", data=body)
    if service == "s3":
        request.headers["X-Amz-Content-SHA256"] = "UNSIGNED-PAYLOAD"
    SigV4Auth(Credentials(key_id, secret), service, "us-east-1").add_auth(request)
    return dict(request.headers.items())


class Write(NamedTuple):
    """What became of one: its status, or None if there was no whole answer."""

    key: str
    status: int | None


class Load:
    """Writes until connections are refused or `stop`: half of the threads with a connection for each, the others
    keep theirs until they are told to close it.
    """

    def __init__(self, port: int, group: str) -> None:
        self._port = port
        self._group = group
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(number,)) for number in range(LOADS)]
        self.writes: list[Write] = []

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        self.join()

    def join(self) -> None:
        for thread in self._threads:
            thread.join(WAIT_S_MAX)
            assert not thread.is_alive()

    @property
    def acknowledged(self) -> set[str]:
        return {write.key for write in self.writes if write.status == 200}

    def _work(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            try:
                connection = socket.create_connection(("127.0.0.1", self._port), timeout=WAIT_S_MAX)
            except ConnectionRefusedError:
                return
            with connection:
                goes_on = True
                while goes_on and not self._stop.wait(KEPT_IDLE_S if number % 2 == 0 and count else 0):
                    count += 1
                    goes_on = self._write(connection, f"{number}-{count}") and number % 2 == 0

    def _write(self, connection: socket.socket, key: str) -> bool:
        """Whether the connection can be used again."""
        body = json.dumps({"Record": record(id=key, at=AT)}).encode()
        head = f"PUT /FeatureGroup/{self._group} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        status, stays = None, False
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection.sendall(head.encode() + body)
            answer = http.client.HTTPResponse(connection)
            with contextlib.closing(answer):
                answer.begin()
                answer.read()
                status, stays = answer.status, not answer.will_close
        self.writes.append(Write(key, status))
        return stays


def test_under_load_processes_are_replaced_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    service = Service(tmp_path / "home", tmp_path / "log", "--workers", str(WORKERS)).start()
    assert Http(service.port).control("CreateFeatureGroup", group_request("g")).status == 200

    def accepting(times: int) -> Callable[[], bool]:
        return lambda: service.log.read_text().count(" accepts connections") == times

    with Load(service.port, "g") as load:
        wait_until(lambda: len(load.acknowledged) > 50)
        first = servers_of(service.pid)
        os.kill(first[1], signal.SIGTERM)
        wait_until(accepting(WORKERS + 1))
        before = servers_of(service.pid)
        assert set(before) & set(first) == {first[0]}
        assert {write.status for write in load.writes} == {200}, "one that stops in order loses nothing"

        os.kill(first[0], signal.SIGKILL)
        wait_until(accepting(WORKERS + 2))
        many = len(load.acknowledged)
        wait_until(lambda: len(load.acknowledged) > many + 50)
    after = servers_of(service.pid)
    assert len(after) == WORKERS
    assert set(after) & set(before) == set(before) - {first[0]}
    assert re.search(rf" ERROR .* server [12] \({first[0]}\) was ended by SIGKILL and is replaced", service.log.read_text())
    assert {write.status for write in load.writes} <= {200, None}
    assert len(load.writes) - len(load.acknowledged) <= LOADS + 1, "only what the killed process had begun has no answer"
    for pid in after:
        assert put(Through(service.port, pid), "g", f"by {pid}").status == 200
    (rows,) = zip(*Http(service.port).sql('SELECT id FROM history."g"'), strict=True)
    assert load.acknowledged <= set(rows)
    assert len(rows) == len(set(rows))

    # Nothing outlives the one above them, even if it can't say a word; what waits is still there.
    last = Through(service.port, after[0])
    assert put(last, "g", "last").status == 200
    service.kill()
    wait_until(lambda: not any(psutil.pid_exists(pid) for pid in after))
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", last.port))
    with featurestore.open(service.home) as store:
        assert store.get_record("g", "last") is not None
        assert store.sql("SELECT count(*) AS n FROM g").to_pylist() == [{"n": len(rows) + 1}]


@pytest.mark.parametrize("workers", [1, WORKERS])
def test_told_to_stop_under_load_every_request_is_answered_or_refused(tmp_path: Path, workers: int) -> None:
    service = Service(tmp_path / "home", tmp_path / "log", "--workers", str(workers), flush_s="3600").start()
    assert Http(service.port).control("CreateFeatureGroup", group_request("g")).status == 200
    with Load(service.port, "g") as load:
        wait_until(lambda: len(load.acknowledged) > 50)
        assert service.stop() == 0
        load.join()
    assert "Traceback" not in service.log.read_text()
    assert {write.status for write in load.writes} == {200}
    with featurestore.open(service.home) as store:
        assert store.offline_behind() == 0
        rows = store.sql("SELECT id FROM g", fresh=False).to_pylist()
    assert {row["id"] for row in rows} == load.acknowledged
    assert len(rows) == len(load.writes)


def test_keys_come_and_go_in_all_processes(tmp_path: Path) -> None:
    with Service(tmp_path / "home", tmp_path / "log", workers=str(WORKERS)) as service:
        clients = through_each(service)
        assert clients[0].control("CreateFeatureGroup", group_request("g")).status == 200
        path = "/FeatureGroup/g?RecordIdentifierValueAsString=k"

        def statuses(**key: str) -> list[int]:
            return [
                client.request("GET", path, headers=signed(client, "GET", path, **key) if key else None).status
                for client in clients
            ]

        assert statuses() == [200] * WORKERS
        with featurestore.open(service.home) as store:
            made = store.keys.create("somebody", Right.READ)
            key = {"key_id": made.access_key_id, "secret": made.secret_access_key}
            wait_until(lambda: statuses() == [403] * WORKERS)
            wait_until(lambda: statuses(**key) == [200] * WORKERS)
            store.keys.revoke("somebody")
        wait_until(lambda: statuses(**key) == [403] * WORKERS)


class TestRefusals:
    @pytest.mark.parametrize("count", ["0", "abc"])
    def test_a_number_that_is_none(self, cli: Cli, tmp_path: Path, count: str) -> None:
        done = cli("serve", "--home", tmp_path / "home", "--workers", count)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("error: FEATURESTORE_WORKERS: expected ")
        assert repr(count) in done.stderr
        assert not (tmp_path / "home").exists()


class TestSupervisor:
    """Over server processes that do as they please."""

    QUICK = Pace(first_s=0.01, most_s=0.02, failures_max=3, stop_s=0.5)

    def run(
        self,
        program: str,
        *arguments: object,
        announce: Callable[[], None] = lambda: None,
        ready: Callable[[], str | None] = lambda: None,
    ) -> None:
        """A program finds its number in `number`, the channel in `channel` and its arguments in `arguments`."""
        head = "import os, signal, socket, sys, time; number, _, channel = map(int, sys.argv[-3:]); arguments = sys.argv[1:-3]; "
        command = [sys.executable, "-c", head + f"channel = socket.socket(fileno=channel)\n{program}", *map(str, arguments)]
        with listening(Settings.load({}, port=0, workers=2)) as listeners:
            Supervisor(listeners, os.environ, command=command, pace=self.QUICK, ready=ready).run(announce)
            assert all(listener.fileno() == -1 for listener in listeners)

    def test_one_that_ends_at_once_is_the_end(self) -> None:
        announced: list[None] = []
        with pytest.raises(StoreUnavailable, match=r"server process 2 can't start: it ended with status 7; see the log"):
            self.run("sys.exit(7) if number == 2 else time.sleep(60)", announce=lambda: announced.append(None))
        assert not announced

    def test_one_that_says_why(self) -> None:
        program = f"channel.sendall({encoded('no room')!r}) if number == 1 else time.sleep(60)"
        with pytest.raises(StoreUnavailable, match=r"serve: server process 1 can't start: no room"):
            self.run(program)

    def test_a_store_that_can_not_be_opened(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Started in a folder that has an `api` of somebody else's."""
        (tmp_path / "file").touch()
        (tmp_path / "api.py").write_text("raise SystemExit('somebody else')")
        monkeypatch.chdir(tmp_path)
        with (
            listening(Settings.load({}, port=0, workers=2)) as listeners,
            pytest.raises(StoreUnavailable, match=rf"server process \d can't start: .*{tmp_path}"),
        ):
            Supervisor(listeners, os.environ | {"FEATURESTORE_HOME": str(tmp_path / "file")}).run(lambda: None)
        assert "Traceback" not in capfd.readouterr().err

    def test_no_such_program(self) -> None:
        with (
            listening(Settings.load({}, port=0, workers=2)) as listeners,
            pytest.raises(StoreUnavailable, match=r"server process 1 can't start: no process could be started: .*nowhere"),
        ):
            Supervisor(listeners, os.environ, command=["/nowhere"]).run(lambda: None)

    def test_it_does_not_go_on_for_ever(self, tmp_path: Path) -> None:
        """Each comes up once and never again."""
        program = f"""
open(f"{{arguments[0]}}/{{number}}-{{os.getpid()}}", "x").close()
if len([name for name in os.listdir(arguments[0]) if name.startswith(f"{{number}}-")]) > 1:
    sys.exit(3)
channel.sendall({encoded(None)!r})
while len({{name[0] for name in os.listdir(arguments[0])}}) < 2:
    time.sleep(0.01)
"""
        announced: list[None] = []
        with pytest.raises(StoreUnavailable, match=r"server process \d can't start: it ended with status 3"):
            self.run(program, tmp_path, announce=lambda: announced.append(None))
        assert len(announced) == 1
        assert len(list(tmp_path.iterdir())) <= 2 * (1 + self.QUICK.failures_max)

    def test_one_that_does_not_stop_is_killed(self, caplog: pytest.LogCaptureFixture) -> None:
        program = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN if number == 1 else signal.SIG_DFL)
channel.sendall({encoded(None)!r})
time.sleep(60)
"""
        before = psutil.Process().children()
        self.run(program, announce=lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert "did not stop within" in caplog.text
        assert psutil.Process().children() == before

    def test_a_second_ctrl_c_is_passed_on(self, caplog: pytest.LogCaptureFixture) -> None:
        program = f"""
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGINT, signal.SIG_DFL)
channel.sendall({encoded(None)!r})
time.sleep(60)
"""

        def announce() -> None:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)

        self.run(program, announce=announce)
        assert "did not stop within" not in caplog.text

    def test_what_the_service_is_like_is_told(self, tmp_path: Path) -> None:
        """Told only what has changed; who hears it last says so."""
        program = f"""
channel.sendall({encoded(None)!r})
heard = b""
while heard.count(b"\\n") < 2:
    heard += channel.recv(100)
open(f"{{arguments[0]}}/{{number}}", "wb").write(heard)
time.sleep(60)
"""
        answers = iter([None, "away", "away"])

        def ready() -> str | None:
            if len(list(tmp_path.iterdir())) == 2 and all(path.stat().st_size for path in tmp_path.iterdir()):
                os.kill(os.getpid(), signal.SIGTERM)
            return next(answers, None)

        self.run(program, tmp_path, ready=ready)
        assert {path.read_bytes() for path in tmp_path.iterdir()} == {b'"away"\nnull\n'}
