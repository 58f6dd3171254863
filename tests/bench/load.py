"""The load generator: HTTP requests over keep-alive connections from a process of its own.

Raw sockets and one loop, so that it costs a small part of what the service costs; the `online` benchmark measures its
ceiling in the same run. Two modes:

- closed loop: each connection sends its next request when it has the answer to the last. Gives the most the service can do;
  its latencies are those of a saturated service.
- open loop: request k is due at start + k / rate, whatever came back so far, and its latency counts from then on. So a stall
  delays, and is counted for, all requests that were due meanwhile (no coordinated omission).

As a program: `python -m tests.bench.load`, a `Plan` as msgpack on stdin, a `Load` as JSON on stdout.
"""

from __future__ import annotations

import re
import select
import selectors
import socket
import subprocess
import sys
import time
import zlib
from collections import deque
from collections.abc import Sequence

import msgspec

from tests.bench.machine import ROOT
from tests.bench.sheet import percentile

CONNECTIONS = 32
ANSWER_S_MAX = 30.0
LOAD_S_MAX = 600.0
RECEIVE_BYTES = 1 << 18
CONTENT_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


class Request(msgspec.Struct, frozen=True, array_like=True):
    """The bytes of one request. Between head and tail goes a retry token of 32 hex digits that is never used again, if `tail`."""

    head: bytes
    tail: bytes = b""


class Plan(msgspec.Struct, frozen=True):
    """What to send: `count` requests, taken from `requests` in turn and round again.

    Attributes:
        rate_per_s: of the open loop; None for the closed loop.
        keep_times: tell when each answer came.
    """

    port: int
    requests: Sequence[Request]
    count: int
    rate_per_s: float | None = None
    connections: int = CONNECTIONS
    keep_times: bool = False


class Load(msgspec.Struct, frozen=True):
    """What came back: every answer had status 200.

    Attributes:
        body_sum: sum of the CRC-32 of all bodies.
        answered_at_s: per request when its answer came, by `time.monotonic`, which all processes share; empty unless asked for.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    body_sum: int
    answered_at_s: list[float] = []


def drive(plan: Plan) -> Load:
    """Run a plan in a process of its own.

    Raises:
        RuntimeError: an answer was not 200, or did not come.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.load"],
        input=msgspec.msgpack.encode(plan),
        capture_output=True,
        cwd=ROOT,
        timeout=LOAD_S_MAX,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"the load generator failed:\n{done.stderr.decode()[-4000:]}")
    return msgspec.json.decode(done.stdout, type=Load)


class _Connection:
    __slots__ = ("due_s", "number", "received", "socket")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), ANSWER_S_MAX)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.received = b""
        self.due_s = 0.0
        self.number = 0

    def body(self) -> memoryview | None:
        """Read what is there; the body once the answer is complete."""
        data = self.received + self.socket.recv(RECEIVE_BYTES)
        end = data.find(b"\r\n\r\n") + 4
        self.received = data
        if end < 4:
            if not data:
                raise ConnectionError("the service closed a connection")
            return None
        length = CONTENT_LENGTH.search(data, 0, end)
        if data[9:12] != b"200" or length is None:
            raise ValueError(f"expected status 200 with a length, got {data[:300]!r}")
        if len(data) - end < int(length[1]):
            return None
        self.received = b""
        return memoryview(data)[end:]


def run(plan: Plan) -> Load:
    """Run a plan in this process."""
    connections = [_Connection(plan.port) for _ in range(plan.connections)]
    selector = selectors.DefaultSelector()
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    token_run = time.time_ns()
    pause_s = 0.0 if plan.rate_per_s is None else 1 / plan.rate_per_s
    requests, count = plan.requests, plan.count
    idle = deque(connections)
    took_s: list[float] = []
    answered_at_s = [0.0] * count if plan.keep_times else []
    body_sum = sent = 0
    start_s = time.perf_counter()
    while len(took_s) < count:
        now_s = time.perf_counter()
        due_s = now_s
        while idle and sent < count:
            due_s = start_s + sent * pause_s if pause_s else now_s
            if due_s > now_s:
                break
            connection = idle.popleft()
            connection.due_s, connection.number = due_s, sent
            request = requests[sent % len(requests)]
            data = b"%b%016x%016x%b" % (request.head, token_run, sent, request.tail) if request.tail else request.head
            if connection.socket.send(data) != len(data):
                raise ValueError("a request does not fit the socket's buffer")
            sent += 1
            now_s = time.perf_counter()
        if due_s > now_s:  # selectors wait in whole milliseconds, select in microseconds
            select.select([selector.fileno()], [], [], due_s - now_s)
            events = selector.select(0)
        else:
            events = selector.select(ANSWER_S_MAX)
            if not events:
                raise TimeoutError(f"no answer within {ANSWER_S_MAX} s")
        for key, _ in events:
            connection = key.data
            body = connection.body()
            if body is not None:
                took_s.append(time.perf_counter() - connection.due_s)
                body_sum += zlib.crc32(body)
                if answered_at_s:
                    answered_at_s[connection.number] = time.monotonic()
                idle.append(connection)
    all_s = time.perf_counter() - start_s
    for connection in connections:
        connection.socket.close()
    selector.close()
    took_s.sort()
    return Load(count / all_s, percentile(took_s, 50) * 1e3, percentile(took_s, 99) * 1e3, body_sum, answered_at_s)


if __name__ == "__main__":
    print(msgspec.json.encode(run(msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Plan))).decode())
