"""A connection of an event loop to one Redis server: commands go out as they come, answers are taken as they come."""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeAlias, cast

import hiredis
from redis import exceptions as failures
from redis._parsers.base import BaseParser

from featurestore.keyspace.address import Node, RedisAddress

Taken: TypeAlias = Callable[[list[Any], int, Exception | None], None]
"""Is given the answers to one sending: those that came, in order, refusals as `redis` exceptions among them; how many refusals
there are; and why the others did not come."""

WATCH_S: Final = 1.0
"""How often it is looked whether an answer is overdue, at most; a server that takes too long is given up that much later."""


class _Sending(NamedTuple):
    """Commands that were sent together, and whose answers are under way."""

    commands: int
    due_s: float
    taken: Taken


class Pipe(asyncio.Protocol):
    """Of one event loop. Answers come in the order of the commands.

    Args:
        closed: called once when the connection is of no use any more.
    """

    def __init__(self, timeout_s: float, closed: Callable[[Pipe], None]) -> None:
        self._timeout_s = timeout_s
        self._closed = closed
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._reader = hiredis.Reader(protocolError=failures.InvalidResponse, replyError=self._refusal)
        self._sendings: deque[_Sending] = deque()
        self._answers: list[Any] = []
        self._refusals = 0
        self._watch: asyncio.TimerHandle | None = None
        self._failure: Exception | None = None

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def send(self, data: bytes, commands: int, taken: Taken) -> None:
        """Send packed commands. `taken` is called once, on the loop, never from here."""
        assert self._transport is not None, "it is open"
        self._transport.write(data)
        self._sendings.append(_Sending(commands, self._loop.time() + self._timeout_s, taken))
        if self._watch is None:
            self._watch = self._loop.call_later(min(WATCH_S, self._timeout_s), self._look)

    async def ask(self, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands and wait for the answers.

        Raises:
            RedisError: a refusal.
            OSError: the connection was lost.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()

        def taken(answers: list[Any], refusals: int, failure: Exception | None) -> None:
            refusal = next((answer for answer in answers if isinstance(answer, failures.RedisError)), failure)
            if future.cancelled():
                return
            if refusal is not None:
                future.set_exception(refusal)
            else:
                future.set_result(answers)

        self.send(b"".join(map(pack, commands)), len(commands), taken)
        return await future

    def close(self, failure: Exception | None = None) -> None:
        """Close the connection; what waits for answers is told why."""
        self._failure = self._failure or failure
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by their classes

    def data_received(self, data: bytes) -> None:
        self._reader.feed(data)
        try:
            while self._sendings:
                sending = self._sendings[0]
                while len(self._answers) < sending.commands:
                    answer = self._reader.gets()
                    if answer is False:  # nothing complete is left; answers themselves are never booleans in RESP2
                        return
                    self._answers.append(answer)
                self._sendings.popleft()
                answers, self._answers = self._answers, []
                refusals, self._refusals = self._refusals, 0
                sending.taken(answers, refusals, None)
        except failures.InvalidResponse as error:
            self.close(error)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._watch is not None:
            self._watch.cancel()
        failure = self._failure or exc or failures.ConnectionError("Connection closed by server.")
        answers, self._answers = self._answers, []
        sendings, self._sendings = self._sendings, deque()
        self._closed(self)
        for sending in sendings:
            sending.taken(answers, self._refusals, failure)
            answers, self._refusals = [], 0

    def _refusal(self, text: str) -> Exception:
        self._refusals += 1
        error: Exception = BaseParser.parse_error(text)  # type: ignore[no-untyped-call]
        return error

    def _look(self) -> None:
        self._watch = None
        if not self._sendings:
            return
        wait_s = self._sendings[0].due_s - self._loop.time()
        if wait_s <= 0:
            self.close(failures.TimeoutError("Timeout reading from socket"))
        else:
            self._watch = self._loop.call_later(min(WATCH_S, wait_s), self._look)


async def open_pipe(address: RedisAddress, node: Node, closed: Callable[[Pipe], None]) -> Pipe:
    """A connection that has signed in.

    Raises:
        OSError, RedisError: the server can't be reached or refuses.
    """
    loop = asyncio.get_running_loop()
    host, port = node
    context = _context(address) if address.tls else None
    try:
        async with asyncio.timeout(address.timeout_s):
            _, pipe = await loop.create_connection(lambda: Pipe(address.timeout_s, closed), host, port, ssl=context)
            greeting: list[tuple[Any, ...]] = []
            if address.username is not None:
                greeting.append(("AUTH", address.username, address.password or ""))
            elif address.password is not None:
                greeting.append(("AUTH", address.password))
            if address.db:
                greeting.append(("SELECT", address.db))
            try:
                if greeting:
                    await pipe.ask(*greeting)
            except BaseException:
                pipe.close()
                raise
    except TimeoutError as error:
        raise failures.TimeoutError("Timeout connecting to server") from error
    return pipe


def pack(command: tuple[Any, ...]) -> bytes:
    """The bytes of one command as Redis reads them."""
    packed: bytes = hiredis.pack_command(command)
    return packed


def _context(address: RedisAddress) -> ssl.SSLContext:
    files = address.tls_files
    context = ssl.create_default_context(cafile=files.get("ssl_ca_certs"))
    if "ssl_certfile" in files:
        context.load_cert_chain(files["ssl_certfile"], files.get("ssl_keyfile"))
    return context
