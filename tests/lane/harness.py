"""Two servers, one with the record lane and one without, and clients that write bytes and read whatever comes back.

What the two send is compared byte for byte. Two header values differ between any two answers and are set to one text before,
once their form is checked: `date` and `x-amzn-requestid` (which answers of S3, that the lane has no part in, repeat).
"""

from __future__ import annotations

import asyncio
import email.utils
import logging
import re
import select
import socket
import threading
import time
import uuid
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import uvicorn
import uvloop

from api.app import Service
from api.connection import Connection
from api.lane import lane_of
from api.server import LOOPBACK_HOSTS
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.redis_server import wait_until

ANSWER_S_MAX = 30.0
TURNS = 4
"""Of the event loop, in each of which it asks the kernel what has arrived: afterwards a server has taken what was sent to it
before, unless it does not want to read.
"""
FINAL = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""The request that a client says goodbye with: its answer is the last one, and the server ends the connection."""
FINAL_ANSWER = b'{"status":"ok"}'
NOT_HTTP = (
    b"HTTP/1.1 400 Bad Request\r\ndate: (date)\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 30\r\n"
    b"connection: close\r\n\r\nInvalid HTTP request received."
)
"""What uvicorn sends, masked, when it can't make sense of the bytes."""
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
FILL_BYTES = 10_000
"""Of empty lines, which fill a body and mean nothing between requests."""

_DATE = re.compile(rb"(?<=\r\ndate: )[^\r\n]*")
_REQUEST_ID = re.compile(rb"(?<=\r\nx-amzn-requestid: )[^\r\n]*")
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n")
_STATUS = re.compile(rb"HTTP/1\.1 (\d{3}) [A-Za-z ]+\r\n")

ProtocolOf = Callable[[Service], type[Connection]]


def _plain(service: Service) -> type[Connection]:
    return Connection


PROTOCOLS: dict[str, ProtocolOf] = {"lane": lane_of, "plain": _plain}


class LoopThread:
    """The event loop of all servers of a test, in a thread of its own."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="servers", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(ANSWER_S_MAX)

    def turn(self) -> None:
        """Return when the loop has gone round TURNS times."""
        self.run(_turns())

    def close(self) -> None:
        self.run(self.loop.shutdown_default_executor())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


async def _turns() -> None:
    for _ in range(TURNS):
        await asyncio.sleep(0)


class Server:
    """One listening server over a store, as `api.server.serve` would run it.

    Args:
        name: of PROTOCOLS.
        options: of uvicorn's that differ from the service's.
    """

    def __init__(self, name: str, loop: LoopThread, store: FeatureStore, **options: Any) -> None:
        self.name = name
        self.loop = loop
        self.store = store
        service = Service(store, hosts=LOOPBACK_HOSTS)
        config: dict[str, Any] = {
            "http": PROTOCOLS[name](service),
            "log_config": None,
            "access_log": False,
            "timeout_graceful_shutdown": 20,
            "server_header": False,
        }
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
        self.port: int = self._listener.getsockname()[1]
        self._server = uvicorn.Server(uvicorn.Config(service, **config | options))
        self._ended = asyncio.run_coroutine_threadsafe(self._server.serve(sockets=[self._listener]), loop.loop)
        wait_until(lambda: self._server.server_state.default_headers, "the server answers with a date")

    @property
    def connections(self) -> list[Any]:
        return list(self._server.server_state.connections)

    def begin_stop(self) -> None:
        self._server.should_exit = True

    def is_stopped(self) -> bool:
        return self._ended.done()

    def stop(self) -> None:
        self.begin_stop()
        self._ended.result(ANSWER_S_MAX)


class Client:
    """A connection to a server. Use it as a context manager."""

    def __init__(self, server: Server, *, receive_buffer_bytes: int | None = None) -> None:
        self._loop = server.loop
        self._socket = socket.socket()
        if receive_buffer_bytes is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self._socket.settimeout(ANSWER_S_MAX)
        self._socket.connect(("127.0.0.1", server.port))
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._socket.setblocking(False)
        self.port: int = self._socket.getsockname()[1]
        self.received = bytearray()
        """What has come and is not yet taken."""
        self.ended = False
        """Whether the server has ended the connection."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def turn(self) -> None:
        self._loop.turn()

    def send(self, *pieces: bytes) -> None:
        """Send each piece so that the server reads it before the next one. Whatever comes meanwhile is kept.

        Nothing more is sent once the server has ended the connection.
        """
        for piece in pieces:
            rest = memoryview(piece)
            while rest and not self.ended:
                self._wait(writing=True)
                rest = rest[self._sent(rest) :]
            self._loop.turn()

    def send_some(self, data: bytes) -> int:
        """Send what the kernel takes at once; returns how many bytes that was. Reads nothing."""
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def read_some(self, bytes_max: int) -> bytes:
        """The next bytes, as soon as there are any."""
        select.select([self._socket], [], [], ANSWER_S_MAX)
        return self._socket.recv(bytes_max)

    def look(self) -> None:
        """Take what has come, if anything."""
        if select.select([self._socket], [], [], 0)[0]:
            self._wait(writing=False)

    def half_close(self) -> None:
        self._socket.shutdown(socket.SHUT_WR)

    def answer(self, method: str = "GET") -> bytes:
        """The next answer; less than one if the server ends the connection."""
        head_end = self._until(lambda: self.received.find(b"\r\n\r\n") + 1)
        if not head_end:
            return self._take(len(self.received))
        length = _LENGTH.search(self.received, 0, head_end + 1)
        has_body = length is not None and method != "HEAD"
        size = head_end + 3 + (int(length[1]) if length is not None and has_body else 0)
        self._until(lambda: len(self.received) >= size)
        return self._take(size)

    def rest(self) -> bytes:
        """Everything up to the end of the connection."""
        self._until(lambda: False)
        return self._take(len(self.received))

    def goodbye(self, finals: int = 1) -> bytes:
        """The rest of the connection's answers, after a last request.

        Args:
            finals: more than one if bytes may be missing of a request before; a body may then lack FILL_BYTES.
        """
        self.send(FINAL if finals == 1 else FINAL * finals + b"\r\n" * (FILL_BYTES // 2) + FINAL)
        return self.rest()

    def ask(self, request: bytes, method: str | None = None) -> bytes:
        """One request in one piece, and its answer."""
        self.send(request)
        return self.answer(method or request.partition(b" ")[0].decode())

    def _take(self, size: int) -> bytes:
        taken = bytes(self.received[:size])
        del self.received[:size]
        return taken

    def _until(self, condition: Callable[[], Any]) -> Any:
        while not (found := condition()) and not self.ended:
            self._wait(writing=False)
        return found

    def _wait(self, *, writing: bool) -> None:
        """Until bytes have come, or until there is room to send; takes what has come."""
        readable, writable, _ = select.select([self._socket], [self._socket] if writing else [], [], ANSWER_S_MAX)
        assert readable or writable, f"nothing happened within {ANSWER_S_MAX:g} s, after {self.received[-500:]!r}"
        if readable:
            try:
                found = self._socket.recv(1 << 20)
            except ConnectionError:  # the server has closed without reading all that was sent
                found = b""
            self.received += found
            self.ended = not found

    def _sent(self, data: memoryview) -> int:
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except ConnectionError:
            return len(data)  # the answer that says why, if there is one, can still be read


_seen: set[bytes] = set()


def masked(received: bytes) -> bytes:
    """Bytes of a server without what no two answers share, the form of which is checked."""
    for date in _DATE.findall(received):
        then_s = email.utils.parsedate_to_datetime(date.decode()).timestamp()
        assert email.utils.formatdate(then_s, usegmt=True).encode() == date
        assert abs(time.time() - then_s) < 2 * ANSWER_S_MAX, date
    for identifier in _REQUEST_ID.findall(received):
        assert str(uuid.UUID(identifier.decode(), version=4)).encode() == identifier
        assert identifier not in _seen, "a request id was given twice"
        _seen.add(identifier)
        if b"\r\nx-amz-request-id: " in received:  # S3 says it once more, and in the bodies of errors
            received = received.replace(b"<RequestId>%b<" % identifier, b"<RequestId>(request id)<")
            received = received.replace(b"\r\nx-amz-request-id: %b\r\n" % identifier, b"\r\nx-amz-request-id: (request id)\r\n")
    return _REQUEST_ID.sub(b"(request id)", _DATE.sub(b"(date)", received))


def statuses(received: bytes) -> list[int]:
    """Of the answers, those that say to continue included."""
    return [int(status) for status in _STATUS.findall(received)]


class Pair:
    """The lane and the plain route, each over a store of its own with the same history, or both over one."""

    def __init__(self, lane: Server, plain: Server) -> None:
        self.lane = lane
        self.plain = plain
        self.loop = lane.loop

    @property
    def servers(self) -> tuple[Server, Server]:
        return self.lane, self.plain

    @property
    def stores(self) -> list[FeatureStore]:
        """Each once."""
        return [self.lane.store] if self.lane.store is self.plain.store else [self.lane.store, self.plain.store]

    def same(self, talk: Callable[[Client], bytes | Sequence[bytes]]) -> bytes:
        """What both answer in the same conversation, masked.

        Args:
            talk: goes through the conversation and returns what came back.
        """
        lane, plain = (self.talked(server, talk) for server in self.servers)
        assert lane == plain, difference(lane, plain)
        return lane

    def alike(self, talk: Callable[[Client], bytes]) -> bytes:
        """As `same`, of bytes that may turn out not to be HTTP while requests before them are under way.

        uvicorn then ends the connection at once, and how many of those were answered before is a matter of time: one server's
        answers may be the other's without the last ones. Behind a request to close the connection it is a matter of time, too,
        whether such bytes are read at all.
        """
        lane, plain = (self.talked(server, talk) for server in self.servers)
        shorter, longer = sorted((lane.removesuffix(NOT_HTTP), plain.removesuffix(NOT_HTTP)), key=len)
        refused = [found.endswith(NOT_HTTP) for found in (lane, plain)]
        if any(refused):
            assert longer.startswith(shorter), difference(lane, plain)
            closed = b"connection: close" in longer and not longer.endswith(FINAL_ANSWER) and longer in (lane, plain)
            assert all(refused) or closed, difference(lane, plain)
        else:
            assert lane == plain, difference(lane, plain)
        return plain

    def ask(self, request: bytes, *, method: str | None = None, kept: bool = True) -> bytes:
        """What both answer to one request, and that the connection is kept, or not, behind it."""

        def talk(client: Client) -> list[bytes]:
            return [client.ask(request, method), client.goodbye()]

        received = self.same(talk)
        assert received.endswith(FINAL_ANSWER) is kept, received[-500:]
        return received.partition(SEPARATOR)[0]

    def same_of(self, clients: tuple[Client, Client], requests: Iterable[bytes]) -> bytes:
        """What both answer to these requests, one after the other, on connections that are open."""
        received = b""
        for item in requests:
            lane, plain = (masked(client.ask(item)) for client in clients)
            assert lane == plain, difference(lane, plain)
            received += lane
        return received

    def script(self, *pieces: bytes, finals: int = 1) -> bytes:
        """What both answer to these pieces, without waiting for answers in between, to the end of the connection."""

        def talk(client: Client) -> bytes:
            client.send(*pieces)
            return client.goodbye(finals)

        return self.same(talk)

    def talked(self, server: Server, talk: Callable[[Client], bytes | Sequence[bytes]]) -> bytes:
        with Client(server) as client:
            found = talk(client)
        return masked(found if isinstance(found, bytes) else SEPARATOR.join(found))

    def same_effects(self) -> None:
        """That both stores hold the same records, and the same changes on their way to the offline store."""
        lane, plain = (effects(server.store) for server in self.servers)
        for name in lane | plain:
            for one, other in zip(lane[name], plain[name], strict=True):
                assert len(one) == len(other), f"group {name}: {len(one)} {type(one).__name__} items, and {len(other)}"
                parts = [f"{mine}, and {theirs}"[:2000] for mine, theirs in zip(one, other, strict=True) if mine != theirs]
                assert not parts, f"group {name}: {parts[:3]}"
        assert lane == plain

    def close(self) -> None:
        for server in self.servers:
            server.begin_stop()
        for server in self.servers:
            server.stop()
        for store in self.stores:
            store.close(flush=False)


SEPARATOR = b"\n-- \n"
"""Between the parts of a conversation."""


def difference(lane: bytes, plain: bytes) -> str:
    """The place where two answers part."""
    place = next((at for at, (one, other) in enumerate(zip(lane, plain, strict=False)) if one != other), None)
    at = min(len(lane), len(plain)) if place is None else place
    start = max(0, at - 300)
    return (
        f"from byte {at} of {len(lane)} and {len(plain)}:\nlane:  {lane[start : at + 300]!r}\nplain: {plain[start : at + 300]!r}"
    )


def effects(store: FeatureStore) -> dict[str, Any]:
    """By group the records and tombstones, the counts, and the changes in the outbox; without the times of the service."""
    found = {}
    for group in store.feature_groups():
        with store.online.snapshot(group.group_id) as snapshot:
            rows = [row for batch in snapshot.states() for row in batch.to_pylist()]
            changes = [
                (entry.offset, entry.item.change, entry.item.stamp.shard, entry.item.stamp.seq) for entry in snapshot.waiting()
            ]  # type: ignore[union-attr]
            tallies = dict(snapshot.tallies())
        for row in rows:
            del row["api_time_us"]
            row["grave_us"] = bool(row["grave_us"])
        rows.sort(key=lambda row: str(row["record_id"]))
        found[group.name] = (rows, tallies, sorted(changes, key=lambda item: (item[2], item[3])))
    return found


def request(
    method: str, target: str, body: bytes | None = None, *headers: str, host: str | None = "localhost", version: str = "1.1"
) -> bytes:
    """A request as it is sent; `Content-Length` is set if there is a body."""
    lines = [f"{method} {target} HTTP/{version}"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += headers
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b"")


@contextmanager
def open_pair(
    loop: LoopThread,
    folder: Path,
    *,
    urls: Iterable[str] = (),
    shared: bool = False,
    options: dict[str, Any] | None = None,
    **settings: Any,
) -> Iterator[Pair]:
    """Servers over new stores.

    Args:
        urls: of the online stores; embedded ones without.
        shared: both over one store.
        options: as for `Server`.
    """
    access = logging.getLogger("uvicorn.access")
    before = access.handlers[:], access.propagate
    homes = [folder / "store"] * 2 if shared else [folder / "lane", folder / "plain"]
    online = dict(zip(homes, urls, strict=False))
    stores: dict[Path, FeatureStore] = {}
    for home in homes:
        if home not in stores:
            given = {"online_url": online[home]} if home in online else {}
            stores[home] = FeatureStore(Settings.load({}, home=home, **given, **settings))
    lane, plain = (Server(name, loop, stores[home], **options or {}) for name, home in zip(PROTOCOLS, homes, strict=True))
    pair = Pair(lane, plain)
    try:
        yield pair
    finally:
        pair.close()
        access.handlers, access.propagate = before  # uvicorn changes them for the whole process
