"""The load generator against a small server that follows a script."""

from __future__ import annotations

import os
import re
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import pytest

from tests.bench.load import ANSWER_S_MAX, Plan, Request, drive

GET = Request(b"GET /0 HTTP/1.1\r\nhost: x\r\n\r\n")
LENGTH = re.compile(rb"content-length: ([0-9]+)")
WAIT_S_MAX = 30.0

Script = Callable[[int, bytes], list[bytes]]
"""Number of a request, in the order they came, and its bytes to the pieces of its answer. No pieces: the connection is closed."""


pytestmark = pytest.mark.usefixtures("load_generator")


class Server:
    """One thread per connection; what they do is what `script` says. Keeps all requests, by connection and as they came."""

    def __init__(self, script: Script, receive_bytes: int | None = None) -> None:
        self._script = script
        self._lock = threading.Lock()
        self._sockets = [socket.socket()]
        if receive_bytes is not None:
            self._sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self._sockets[0].bind(("127.0.0.1", 0))
        self._sockets[0].listen(64)
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()
        self.port = self._sockets[0].getsockname()[1]
        self.requests: list[bytes] = []
        self.connections: list[list[bytes]] = []

    def close(self) -> None:
        """Shut all down. pytest reports what a thread has raised."""
        for one in self._sockets:
            with one:
                try:
                    one.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the other side was faster
        for thread in self._threads:
            thread.join(WAIT_S_MAX)
            assert not thread.is_alive()

    def _accept(self) -> None:
        while True:
            try:
                one, _ = self._sockets[0].accept()
            except OSError:
                return
            self._sockets.append(one)
            self.connections.append([])
            self._threads.append(threading.Thread(target=self._serve, args=(one, self.connections[-1])))
            self._threads[-1].start()

    def _serve(self, one: socket.socket, kept: list[bytes]) -> None:
        try:
            while request := _read(one):
                with self._lock:
                    number = len(self.requests)
                    self.requests.append(request)
                    kept.append(request)
                pieces = self._script(number, request)
                if not pieces:
                    one.shutdown(socket.SHUT_RDWR)
                for piece in pieces:
                    one.sendall(piece)
        except OSError:
            return  # the load generator is gone


def _read(one: socket.socket) -> bytes:
    data = b""
    while b"\r\n\r\n" not in data:
        some = one.recv(1 << 16)
        if not some:
            return b""
        data += some
    head, _, body = data.partition(b"\r\n\r\n")
    length = LENGTH.search(head)
    parts, missing = [data], int(length[1]) - len(body) if length else 0
    while missing > 0:
        parts.append(one.recv(min(missing, 1 << 16)))
        if not parts[-1]:
            return b""
        missing -= len(parts[-1])
    return b"".join(parts)


@contextmanager
def serving(script: Script, receive_bytes: int | None = None) -> Iterator[Server]:
    server = Server(script, receive_bytes)
    try:
        yield server
    finally:
        server.close()


def answer(body: bytes, status: str = "200 OK") -> bytes:
    return b"HTTP/1.1 %b\r\nX: y\r\nContent-Length: %d\r\n\r\n%b" % (status.encode(), len(body), body)


def named(number: int) -> Request:
    return Request(b"GET /%d HTTP/1.1\r\nhost: x\r\n\r\n" % number)


def path(request: bytes) -> bytes:
    return request.split(b" ", 2)[1]


@pytest.mark.parametrize("rate_per_s", [None, 5000.0])
@pytest.mark.parametrize("connections", [1, 7])
def test_requests_in_turn_and_the_sum_of_all_bodies(rate_per_s: float | None, connections: int) -> None:
    with serving(lambda _, request: [answer(path(request) * 40)]) as server:
        done = drive(Plan(server.port, [named(number) for number in range(3)], 100, rate_per_s, connections))
    turns = {b"/0": 34, b"/1": 33, b"/2": 33}
    assert {one: list(map(path, server.requests)).count(one) for one in turns} == turns
    assert len(server.requests) == 100
    assert done.body_sum == sum(zlib.crc32(one * 40) * times for one, times in turns.items())
    assert len(server.connections) == connections
    assert all(server.connections), "each connection had a turn"
    assert 0 < done.p50_ms <= done.p99_ms
    assert done.cpu_us > 0
    assert done.answered_at_s == []


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 1000, 65_000, 65_536, 65_537, 3_000_001])
def test_bodies_of_any_length(length: int) -> None:
    body = bytes(number * 7 % 251 for number in range(1000)) * (length // 1000 + 1)
    with serving(lambda *_: [answer(body[:length])]) as server:
        assert drive(Plan(server.port, [GET], 3, None, 2)).body_sum == 3 * zlib.crc32(body[:length])


def test_answers_in_pieces() -> None:
    whole = answer(b"abc" * 100)
    cuts = [0, 1, 5, 9, 12, 20, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 60, 200, len(whole)]
    pieces = [whole[begin:end] for begin, end in pairwise(cuts)]
    with serving(lambda *_: pieces) as server:
        assert drive(Plan(server.port, [GET], 5, None, 2)).body_sum == 5 * zlib.crc32(b"abc" * 100)


def test_tokens_are_never_used_again() -> None:
    sent = Request(b"PUT /0 HTTP/1.1\r\ntoken: ", b"\r\ncontent-length: 3\r\n\r\nabc")
    with serving(lambda *_: [answer(b"")]) as server:
        for _ in range(2):
            drive(Plan(server.port, [sent, GET], 20))
    tokens = [
        found[1]
        for found in (re.fullmatch(rb"PUT /0 .*token: ([0-9a-f]{32})\r.*abc", one, re.S) for one in server.requests)
        if found
    ]
    assert len(tokens) == len(set(tokens)) == 20
    assert server.requests.count(GET.head) == 20


def test_requests_that_do_not_fit_the_buffers_of_a_socket() -> None:
    body = os.urandom(20_000_000)
    sent = Request(b"PUT /0 HTTP/1.1\r\ntoken: ", b"\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    with serving(lambda _, request: [answer(request.partition(b"\r\n\r\n")[2])], receive_bytes=4096) as server:
        assert drive(Plan(server.port, [sent], 4, None, 2)).body_sum == 4 * zlib.crc32(body)


def test_a_sequence_stays_on_its_connection_and_counts_as_one() -> None:
    requests = [named(number) for number in range(6)]
    with serving(lambda *_: [answer(b"")]) as server:
        done = drive(Plan(server.port, requests, 60, None, 4, sequence=3, keep_times=True))
    for kept in server.connections:
        for index in range(0, len(kept), 3):
            assert [path(one) for one in kept[index : index + 3]] in ([b"/0", b"/1", b"/2"], [b"/3", b"/4", b"/5"])
    times = done.answered_at_s
    assert len(times) == 60
    assert all(begin <= end for start in range(0, 60, 3) for begin, end in pairwise(times[start : start + 3]))


def test_open_loop_counts_a_stall_for_every_request_that_was_due_meanwhile() -> None:
    """The first answer waits until long after the last request was due. All of them waited, though only one was sent."""
    stall = threading.Event()
    stall_s, count, rate_per_s = 0.5, 100, 1000.0

    def script(number: int, _: bytes) -> list[bytes]:
        if number == 0:
            stall.wait(stall_s)  # nobody sets it
        return [answer(b"")]

    with serving(script) as server:
        done = drive(Plan(server.port, [GET], count, rate_per_s, 1))
    waited_ms_min = (stall_s - count / rate_per_s) * 1e3
    assert done.p50_ms >= waited_ms_min, "each counts from when it was due"
    assert done.p99_ms >= waited_ms_min


def test_open_loop_sends_nothing_before_it_is_due_and_tells_when_answers_came() -> None:
    began_s = time.monotonic()
    with serving(lambda *_: [answer(b"")]) as server:
        done = drive(Plan(server.port, [GET], 200, 1000.0, 4, keep_times=True))
    assert done.requests_per_s <= 200 / 0.199
    assert len(done.answered_at_s) == 200
    assert all(began_s + number / 1000 <= at_s <= time.monotonic() for number, at_s in enumerate(done.answered_at_s))


@pytest.mark.parametrize(
    ("pieces", "said"),
    [
        (
            [answer(b"no", "500 Oops")],
            "expected status 200 with Content-Length (at most 1073741824) for request 2, got 'HTTP/1.1 500 Oops",
        ),
        ([b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"], "expected status 200 with Content-Length"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n"], "expected status 200 with Content-Length"),
        ([b"HTTP/1.1 200 OK\r\ncontent-length: 9999999999999\r\n\r\n"], "expected status 200 with Content-Length"),
        ([b"\x00\xff\r\n\r\n"], r"got '\x00\xff\r\n\r\n'"),
        ([b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000], "expected an answer with a head of at most 65536 bytes"),
        ([], "closed a connection before its answer to request 2 was complete (end of stream)"),
        ([answer(b"abc")[:-1], b""], "no answer to request 2 within 0.3 s"),
        ([answer(b"abc") + b"d"], "expected an answer of 47 bytes to request 2, got at least 48"),
    ],
)
def test_a_wrong_answer_is_shown(pieces: list[bytes], said: str) -> None:
    answer_s_max = 0.3 if "within" in said else ANSWER_S_MAX
    script: Script = lambda number, _: pieces if number == 2 else [answer(b"")]  # noqa: E731
    with serving(script) as server, pytest.raises(RuntimeError, match="the load generator failed") as failed:
        drive(Plan(server.port, [GET], 5, None, 1, answer_s_max=answer_s_max))
    assert said in str(failed.value)


def test_an_answer_that_nobody_asked_for() -> None:
    """It comes with the first answer or after it, before the second request is due."""
    with serving(lambda *_: [answer(b""), answer(b"unasked")]) as server, pytest.raises(RuntimeError) as failed:
        drive(Plan(server.port, [GET], 2, 0.1, 1))
    assert re.search(
        "expected nothing on an idle connection, got|expected an answer of 44 bytes to request 0, got", str(failed.value)
    )


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as once:
        port = once.getsockname()[1]
    with pytest.raises(RuntimeError, match=f"can't connect to 127.0.0.1:{port}: Connection refused"):
        drive(Plan(port, [GET], 1))


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(1, [], 1), "requests: expected at least one"),
        (Plan(1, [GET], 0), "count: expected a multiple of the sequence of 1, got 0"),
        (Plan(1, [GET], 7, sequence=2), "count: expected a multiple of the sequence of 2, got 7"),
        (Plan(1, [GET], 1, connections=0), "connections: expected 1 to 1024, got 0"),
        (Plan(1, [GET], 1, rate_per_s=0.0), "rate_per_s: expected more than 0, got 0.0"),
    ],
)
def test_a_plan_that_can_not_be_run(plan: Plan, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        drive(plan)
