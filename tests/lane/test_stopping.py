"""Connections that end: by a time-out, by a stop of the server. And the lines of the access log."""

from __future__ import annotations

import logging
import socket
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.lane.harness import (
    CONTINUE,
    Client,
    LoopThread,
    Pair,
    Server,
    difference,
    masked,
    open_pair,
    request,
    statuses,
)
from tests.lane.test_failing_stores import fill
from tests.lane.test_http_edges import ALL, BATCH_GET, GET, HEALTH, KINDS, PUT, VARIANTS, put, with_header
from tests.lane.world import STANDARD, query
from tests.redis_server import wait_until

IDLE_S = 1
"""After which these servers end a connection that is idle."""


@contextmanager
def opened(loop: LoopThread, folder: Path, **options: Any) -> Iterator[Pair]:
    with open_pair(loop, folder, options=options) as pair:
        fill(pair)
        yield pair


@pytest.fixture(scope="module")
def impatient(loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with opened(loop, tmp_path_factory.mktemp("idle"), timeout_keep_alive=IDLE_S) as pair:
        yield pair


class TestIdle:
    def idle_connection_is_closed(self, server: Server) -> None:
        """Return when one has been, that was last used now."""
        with Client(server) as client:
            client.ask(HEALTH)
            assert client.rest() == b""

    def test_idle_connections_are_closed(self, impatient: Pair) -> None:
        for server in impatient.servers:
            clients = [Client(server) for _ in ALL]
            for client, whole in zip(clients, ALL.values(), strict=True):
                client.ask(whole)
            for client in clients:
                assert client.rest() == b""
                client.close()

    def test_a_request_that_has_begun_is_waited_for(self, impatient: Pair) -> None:
        for server in impatient.servers:
            clients = [Client(server) for _ in KINDS]
            for client, whole in zip(clients, KINDS.values(), strict=True):
                assert statuses(client.ask(GET)) == [200]
                client.send(whole[: len(whole) // 2])
            fresh = Client(server)
            self.idle_connection_is_closed(server)
            for client, whole in zip(clients, KINDS.values(), strict=True):
                client.send(whole[len(whole) // 2 :])
                assert statuses(client.answer()) == [200]
                client.close()
            assert statuses(fresh.ask(GET)) == [200], "a connection that was never used is kept"
            fresh.close()

    def test_busy_connections_are_kept(self, impatient: Pair) -> None:
        """However long: the time counts from the last answer, on whichever route."""
        for server in impatient.servers:
            with Client(server) as idle:
                busy = [Client(server) for _ in KINDS]
                idle.ask(HEALTH)
                while not idle.ended:
                    for client, whole in zip(busy, KINDS.values(), strict=True):
                        for item in (whole, HEALTH, whole):
                            assert statuses(client.ask(item)) == [200]
                    idle.look()
            for client, whole in zip(busy, KINDS.values(), strict=True):
                assert statuses(client.ask(whole)) == [200]
                client.close()


class Locked:
    """A writer of another process that holds the embedded stores, so that writes wait."""

    def __init__(self, server: Server) -> None:
        self._database = sqlite3.connect(server.store.settings.home / "online.db", isolation_level=None)
        self._database.execute("BEGIN IMMEDIATE")

    def release(self) -> None:
        self._database.execute("ROLLBACK")
        self._database.close()


class TestStop:
    """Requests under way are answered, idle connections are closed at once, and new ones are refused."""

    def stopped(self, loop: LoopThread, folder: Path, talk: Callable[[Server, Client], bytes]) -> bytes:
        """What both answer in a conversation that stops the server."""
        found = []
        with opened(loop, folder) as pair:
            for server in pair.servers:
                with Client(server) as client:
                    found.append(masked(talk(server, client)))
                wait_until(server.is_stopped, "the server has stopped")
            lane, plain = found
            assert lane == plain, difference(lane, plain)
            pair.same_effects()
        return lane

    @pytest.mark.parametrize(
        "script",
        [PUT, put("a", "1") + put("b", "2"), GET + PUT, PUT + GET, PUT + HEALTH, PUT + GET + KINDS["batch write"] + BATCH_GET],
        ids=["put", "two puts", "get and put", "put and get", "put and health", "four"],
    )
    def test_what_waits_for_the_store(self, loop: LoopThread, tmp_path: Path, script: bytes) -> None:
        def talk(server: Server, client: Client) -> bytes:
            idle = [Client(server) for _ in range(4)]
            for other, item in zip(idle, (GET, HEALTH, BATCH_GET, b""), strict=True):
                if item:
                    assert statuses(other.ask(item)) == [200]
            locked = Locked(server)
            client.send(script)
            server.begin_stop()
            for other in idle:
                assert other.rest() == b"", "an idle connection is closed while others are answered"
                other.close()
            with pytest.raises(ConnectionError), socket.create_connection(("127.0.0.1", server.port)):
                pass
            assert not server.is_stopped()
            locked.release()
            return client.rest()

        received = self.stopped(loop, tmp_path, talk)
        assert statuses(received) == [200] * (1 + script.count(b"\r\nHost") - 1)
        assert received.count(b"connection: close") == 1

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_request_that_has_not_come_whole(self, loop: LoopThread, tmp_path: Path, kind: str) -> None:
        """With its head it is under way; without, it is not."""
        whole = KINDS[kind]

        def talk(server: Server, client: Client) -> bytes:
            partial = Client(server)
            partial.send(whole[:40])
            head_end = whole.index(b"\r\n\r\n") + 4
            client.send(whole[:head_end])
            first = client.answer() if head_end == len(whole) else b""
            server.begin_stop()
            assert partial.rest() == b""
            partial.close()
            client.send(whole[head_end:])
            return first + client.rest()

        assert statuses(self.stopped(loop, tmp_path, talk)) == [200]

    def test_a_body_that_was_asked_for(self, loop: LoopThread, tmp_path: Path) -> None:
        head, end, body = with_header("Expect: 100-continue")(PUT).partition(b"\r\n\r\n")

        def talk(server: Server, client: Client) -> bytes:
            client.send(head + end)
            assert client.answer() == CONTINUE
            with Client(server) as idle:
                server.begin_stop()
                assert idle.rest() == b""
            client.send(body)
            return client.rest()

        assert statuses(self.stopped(loop, tmp_path, talk)) == [200]


class Lines(logging.Handler):
    """The lines of the access log, with the client's own port by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(f"{record.levelname} {record.name} {record.getMessage()}")


@pytest.fixture(scope="module")
def lines() -> Iterator[Lines]:
    handler = Lines()
    logger = logging.getLogger("uvicorn.access")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield handler
    logger.removeHandler(handler)
    logger.setLevel(level)


@pytest.fixture(scope="module")
def talkative(lines: Lines, loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with opened(loop, tmp_path_factory.mktemp("log"), access_log=True) as pair:
        yield pair


class TestAccessLog:
    def logged(self, talkative: Pair, lines: Lines, *pieces: bytes) -> list[str]:
        """The lines that both write for these bytes."""
        both = []
        for server in talkative.servers:
            lines.found.clear()
            with Client(server) as client:
                client.send(*pieces)
                client.goodbye(30)
                both.append([line.replace(f"127.0.0.1:{client.port} ", "127.0.0.1:(port) ") for line in lines.found])
        assert both[0] == both[1]
        return both[0]

    @pytest.mark.parametrize("kind", ALL)
    def test_one_line_for_each(self, talkative: Pair, lines: Lines, kind: str) -> None:
        method, target, _ = ALL[kind].decode().split(" ", 2)
        status = 400 if kind == "wrong" else 200
        first, final = self.logged(talkative, lines, ALL[kind])
        assert first == f'INFO uvicorn.access 127.0.0.1:(port) - "{method} {target} HTTP/1.1" {status}'
        assert final.endswith('"GET /health HTTP/1.1" 200')

    def test_a_pipeline(self, talkative: Pair, lines: Lines) -> None:
        assert len(self.logged(talkative, lines, b"".join(ALL.values()) * 3)) == 3 * len(ALL) + 1

    @pytest.mark.parametrize(
        "address", ["192.0.2.1", "192.0.2.1, 198.51.100.2", "192.0.2.1:99", "[2001:db8::1]:8", "nonsense", "", "127.0.0.1"]
    )
    def test_through_a_proxy(self, talkative: Pair, lines: Lines, address: str) -> None:
        for kind, whole in KINDS.items():
            for more in ((), ("X-Forwarded-Proto: https",), ("X-Forwarded-For: 203.0.113.3",)):
                found = self.logged(talkative, lines, with_header(f"X-Forwarded-For: {address}", *more)(whole))
                assert len(found) == 2, kind
                if address == "192.0.2.1" and len(more) == 0:
                    assert " 192.0.2.1:0 " in found[0]

    @pytest.mark.parametrize(
        "target",
        [
            f"/FeatureGroup/{STANDARD}?{query('mixed/ä +%&=?#')}",
            f"/FeatureGroup/%73tandard?{query('one')}",
            f"/FeatureGroup/{STANDARD}?{query('one')}&X-Amz-Signature=0123&X-Amz-Security-Token=abc",
            "/FeatureGroup/%22%0a%1b?x=%22%0a%1b",
            f"/FeatureGroup/{STANDARD}",
            f"/FeatureGroup/{STANDARD}?",
            f"http://localhost/FeatureGroup/{STANDARD}?{query('one')}",
        ],
    )
    def test_targets(self, talkative: Pair, lines: Lines, target: str) -> None:
        for method in ("GET", "PUT", "HEAD"):
            assert len(self.logged(talkative, lines, request(method, target))) == 2

    def test_forms(self, talkative: Pair, lines: Lines) -> None:
        """Of what is answered, whatever it looks like; not of those that a time-critical end of the connection may hide."""
        for name in (
            "names in upper case",
            "HTTP/1.0",
            "method HEAD",
            "method OPTIONS",
            "chunks",
            "it waits",
            "no host",
            "a length with zeros",
        ):
            for kind in KINDS.values():
                assert self.logged(talkative, lines, VARIANTS[name](kind))
