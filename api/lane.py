"""The record lane: the usual record requests are answered on the connection itself; all others go on to the application.

What makes a record slow over HTTP is not the record: it is the parser's callbacks, the task, and the framework between them. So
a connection looks at what comes in before uvicorn's parser does. A complete request to read or write records, in plain form, is
answered from here; whatever is unusual in any respect is left to the parser, byte for byte. Both ways end in the same functions
of `api.runtime`, and give the same answers.

A request is in plain form if it is HTTP/1.1 with a path as its target, every header line is well formed and there once, and none
of them changes how the message is framed or the connection is used. Its body has a length, and is not large.
"""

from __future__ import annotations

import re
from asyncio import AbstractEventLoop, Transport
from time import monotonic
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import unquote

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE
from uvicorn.protocols.utils import get_client_addr, get_path_with_query_string

from api.app import Service
from api.connection import Connection
from api.door import Like, Standing
from api.runtime import RETRY_TOKEN_CHARS_MAX, RETRY_TOKEN_HEADER, Call, Result, asked_for
from api.runtime import query as query_of
from api.runtime import segments as segments_of
from api.wire import JSON, REQUEST_ID, answered, request_id, request_numbers
from featurestore.access.sigv4 import Request

HEAD_BYTES_MAX: Final = 16 << 10
BODY_BYTES_MAX: Final = 64 << 10
"""What is kept of a request until it is complete."""
HELD_BYTES_MAX: Final = HEAD_BYTES_MAX + BODY_BYTES_MAX
"""What is kept of the requests behind one that is being answered, before no more is read."""

OUTBOX_BYTES_MAX: Final = 64 << 10
"""Answers that wait for the end of a turn; a connection's own limit is seen when they are sent."""

_USUAL: Final = re.compile(
    rb"(?:GET /FeatureGroup/([A-Za-z0-9-]+)\?RecordIdentifierValueAsString=([A-Za-z0-9_.~-]+)|PUT /FeatureGroup/([A-Za-z0-9-]+))"
    rb" HTTP/1\.1\r\n"
)
"""How a GetRecord and a PutRecord begin as nearly every client writes them."""
_START: Final = re.compile(
    rb"(?:(?:GET|PUT) /FeatureGroup/[!\"$-.0->@-~]+(?:\?[!\"$-~]*)?|POST /Batch(?:Get|Write)Record) HTTP/1\.1\r\n"
)
_PLAIN: Final = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~"
"""Stand for themselves in a query."""
_NOT_NAME: Final = bytes(set(range(256)) - set(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"))
_TOKEN_LINE: Final = b"\r\n%b: " % RETRY_TOKEN_HEADER
"""How the header line of a retry token begins, where AWS SDKs write it."""
_CONTROL: Final = bytes((*range(9), *range(10, 32), 127))
_UNUSUAL: Final = frozenset(
    (
        b"expect",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-forwarded-for",
        b"x-forwarded-proto",
    )
)
"""Headers of which uvicorn has to know."""
_VARYING: Final = frozenset((b"amz-sdk-invocation-id", b"authorization", b"x-amz-content-sha256"))
"""Headers that are not worth to be remembered, as they are different in each request."""
LINES_MAX: Final = 1024
LINE_BYTES_MAX: Final = 1024
"""Header lines that are remembered, of at most so many bytes each."""
SIGNATURE_BYTES: Final = 64
"""Hexadecimal digits of a signature."""
_OPERATIONS: Final = {b"GE": "sagemaker:GetRecord", b"PU": "sagemaker:PutRecord"}

Header: TypeAlias = tuple[bytes, bytes]


class Head(msgspec.Struct, frozen=True, gc=False):
    """The header lines of one request in plain form.

    Attributes:
        headers: as sent, by name in lower case.
        length: of the body.
        allowed: whether the store may be called by this Host without a signature; a request without one is not from a browser.
    """

    headers: dict[bytes, bytes]
    length: int
    allowed: bool
    retry_token: str | None
    accept: bytes


class SignedHead(NamedTuple):
    """The header lines of a signed request that was let in. A client's requests of one second often have the same, but for the
    signature itself.

    Attributes:
        before, after: what is around the value of the signature.
        value_at: where it is.
    """

    before: bytes
    after: bytes
    value_at: int
    head: Head
    standing: Standing

    @classmethod
    def of(cls, block: bytes, head: Head, standing: Standing) -> SignedHead | None:
        """None unless the signature is in a header and at its end, as usual."""
        value = head.headers.get(b"authorization", b"")[-SIGNATURE_BYTES:]
        value_at = block.find(value + b"\r\n")
        if len(value) < SIGNATURE_BYTES or value_at < 0:
            return None
        return cls(block[:value_at], block[value_at + SIGNATURE_BYTES :], value_at, head, standing)

    def is_like(self, block: bytes) -> bool:
        """Whether header lines are these but for the signature."""
        end = self.value_at + SIGNATURE_BYTES
        return block.startswith(self.before) and block[end:] == self.after and block[self.value_at : end].isalnum()


class UsualGet(NamedTuple):
    """A GetRecord of which everything but the identifier, and the signature, often comes again on its connection.

    Attributes:
        before, behind: what is around the identifier; `behind` ends where the value of the signature begins.
        after: what is behind the signature; all that is behind the identifier without one.
        rest_bytes: how much is behind the identifier.
        like: verifies the signature; None without one.
    """

    before: bytes
    behind: bytes
    after: bytes
    rest_bytes: int
    group: str
    head: Head
    like: Like | None

    @classmethod
    def of(cls, data: bytes, usual: re.Match[bytes], head: Head, signed: SignedHead | None) -> UsualGet:
        """Args:
        usual: how it matches _USUAL.
        signed: its header lines, if it was let in by them.
        """
        before, rest, group = data[: usual.start(2)], data[usual.end(2) :], usual[1].decode()
        if signed is None:
            return cls(before, b"", rest, len(rest), group, head, None)
        behind = rest[: len(rest) - len(signed.after) - SIGNATURE_BYTES]
        path, _, query = before.removeprefix(b"GET ").partition(b"?")
        like = signed.standing.like("GET", path, query)
        return cls(before, behind, signed.after, len(rest), group, head, like)

    def identifier(self, data: bytes) -> bytes:
        """That of such a request, if `data` is one; nothing otherwise."""
        before = self.before
        if not (data.startswith(before) and data.endswith(self.after)):
            return b""
        identifier = data[len(before) : -self.rest_bytes]
        if not identifier.isalnum() and identifier.translate(None, _PLAIN):
            return b""
        if self.like is not None and not data.startswith(self.behind, len(before) + len(identifier)):
            return b""
        return identifier

    def signature(self, data: bytes) -> bytes:
        """The value of that of a request that has an `identifier`."""
        end = len(data) - len(self.after)
        return data[end - SIGNATURE_BYTES : end]


class Starts:
    """How answers begin: with headers that uvicorn makes anew each second.

    Attributes:
        made_for: uvicorn's headers.
        common: the same as bytes.
        plain: an answer that is a success, JSON and has no headers of its own, but for its length, the number of its request
            and itself.
        are_last: whether they say that each answer is the last of its connection.
    """

    __slots__ = ("are_last", "common", "made_for", "plain")

    def __init__(self) -> None:
        self.make([])

    def make(self, headers: list[Header]) -> None:
        """Use other headers from now on."""
        self.made_for = headers
        self.common = b"".join([b"%b: %b\r\n" % header for header in headers])
        start = b"%b%bcontent-type: %b\r\ncontent-length: " % (STATUS_LINE[200], self.common, JSON)
        self.plain = start.replace(b"%", b"%%") + b"%d\r\nx-amzn-requestid: " + REQUEST_ID + b"\r\n\r\n%b"
        self.are_last = (b"connection", b"close") in headers


class Outbox:
    """Answers of one turn of the event loop, sent together at its end.

    A client on this machine is woken by what is sent to it; with something else to do between two answers, by each of them.
    """

    __slots__ = ("_answers", "_bytes")

    def __init__(self) -> None:
        self._answers: list[tuple[Transport, bytes]] = []
        self._bytes = 0

    def add(self, loop: AbstractEventLoop, transport: Transport, answer: bytes) -> None:
        if not self._answers:
            loop.call_soon(self.send)
        self._answers.append((transport, answer))
        self._bytes += len(answer)
        if self._bytes > OUTBOX_BYTES_MAX:
            self.send()

    def send(self) -> None:
        """Whatever else is written to a connection, or ends it, comes after this."""
        answers, self._answers, self._bytes = self._answers, [], 0
        for transport, answer in answers:
            if not transport.is_closing():
                transport.write(answer)


class RecordLane(Connection):
    """A connection that answers record requests itself, one after the other."""

    service: Service
    lines: dict[bytes, Header]
    """Header lines in plain form that came before, on any connection."""
    heads: dict[bytes, Head]
    """By header lines without that of the retry token, which they have."""
    starts: Starts
    outbox: Outbox

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._runtime = self.service.runtime
        self._door = self.service.door
        self._is_parsing = False
        self._is_plain = False
        """uvicorn's parser has something of this connection that it does not give back."""
        self._asked: bytes | None = None
        """The request that is being answered from here."""
        self._held = b""
        self._wanted_bytes = 0
        """What must be held for a complete request; 0 when nothing of it is known."""
        self._is_ending = False
        self._is_half_closed = False
        self._idle_since_s = 0.0
        self._host: bytes | None = None
        self._is_allowed = True
        self._signed: SignedHead | None = None
        self._usual: UsualGet | None = None
        """Only while nothing of the connection is with uvicorn's parser."""

    # Bytes that come in

    def data_received(self, data: bytes) -> None:
        usual = self._usual
        if usual is not None and self._asked is None and not self._held and not self.flow.write_paused:
            identifier = usual.identifier(data)
            if identifier and self._admits(usual, identifier, data):
                self._asked = data
                try:
                    self._runtime.get_soon(usual.group, identifier.decode(), None, False, self._done)
                except Exception as error:  # whatever it is, the client gets an answer
                    self._done(error)
                return
        if self._held:
            data = self._held + data
            self._held = b""
        if self._asked is not None or self.flow.write_paused:
            self._hold(data)
        elif len(data) < self._wanted_bytes:
            self._held = data
        else:
            self._take(data)

    def _hold(self, data: bytes) -> None:
        self._held = data
        if len(data) > HELD_BYTES_MAX:
            self.flow.pause_reading()

    def _take(self, data: bytes) -> None:
        """Answer the requests in `data`, or give them to the parser."""
        while True:
            self._wanted_bytes = 0
            if self._is_plain or self._is_parsing or not (self.cycle is None or self.cycle.response_complete):
                break
            length = self._begin(data)
            if length == 0:
                break
            if length > len(data):
                self._wanted_bytes = length
                self._held = data
                return
            if self._asked is not None or self.flow.write_paused:
                if self._held:
                    self._hold(self._held)
                return
            data, self._held = self._held, b""
            if not data:
                return
        self._usual = None
        self.outbox.send()
        super().data_received(data)
        if self.parser is not None and self.parser.should_upgrade():
            self._is_plain = True
        if self._is_ending:
            super().shutdown()

    def _begin(self, data: bytes) -> int:
        """Begin to answer the request that `data` begins with. Returns its length; more than there is when nothing was begun, as
        its end is missing; 0 when it is not one to answer from here.
        """
        usual = _USUAL.match(data)
        start = usual or _START.match(data)
        if start is None:
            return 0
        block_at = start.end()
        end = data.find(b"\r\n\r\n", block_at - 2, HEAD_BYTES_MAX) + 4
        if end == 3:
            return 0
        is_get = data.startswith(b"GET")
        block = data[block_at:end]
        signed = self._signed
        if signed is not None and signed.is_like(block):
            head: Head | None = signed.head
        else:
            signed, head = None, self._head(block)
        if head is None or is_get is not (head.length == 0):
            return 0
        body = b""
        if head.length:
            end += head.length
            if end > len(data):
                return end
            body = data[end - head.length : end]
        is_open = self._is_open(head)
        if not is_open and not self._is_signed(data[: block_at - 2], block, signed, body):
            return 0
        self._asked, self._held = data, data[end:]
        try:
            if usual is None:
                self._ask(data[: block_at - 2], head, body)
            else:
                group, identifier, written = usual.groups()
                if is_get:
                    if end == len(data):
                        self._remember(data, usual, block, head, is_open)
                    self._runtime.get_soon(group.decode(), identifier.decode(), None, False, self._done)
                else:
                    self._runtime.put_soon(written.decode(), body, head.retry_token, self._done)
        except Exception as error:  # whatever it is, the client gets an answer
            self._done(error)
        return end

    def _remember(self, data: bytes, usual: re.Match[bytes], block: bytes, head: Head, is_open: bool) -> None:
        """Another GetRecord like this one may follow."""
        if is_open:
            if b"authorization" not in head.headers:  # nobody looks at it, but the next one is another
                self._usual = UsualGet.of(data, usual, head, None)
        elif self._signed is not None and self._signed.is_like(block) and self._signed.standing.caller.session is None:
            self._usual = UsualGet.of(data, usual, head, self._signed)

    def _admits(self, usual: UsualGet, identifier: bytes, data: bytes) -> bool:
        is_open = self._is_open(usual.head)
        return is_open if usual.like is None else self._door.admits_like(usual.like, identifier, usual.signature(data))

    def _is_open(self, head: Head) -> bool:
        """Whether a request needs no signature."""
        now_s = monotonic()
        door = self._door
        if now_s >= door.stale_at_s:
            door.refresh_soon()
        return head.allowed and now_s < door.open_until_s

    def _ask(self, line: bytes, head: Head, body: bytes) -> None:
        method, target, _ = line.split(b" ")
        path, _, query = target.partition(b"?")
        call = Call(method.decode(), segments_of(path), query_of(query), body, head.retry_token, head.accept)
        match call.method, call.segments:
            case "GET", _:
                self._runtime.get_soon(*asked_for(call), self._done)
            case "PUT", [_, group]:
                self._runtime.put_soon(group, body, head.retry_token, self._done)
            case _, ["BatchGetRecord"]:
                self._runtime.batch_get_soon(body, self._done)
            case _:
                task = self.loop.create_task(self._batch_write(call))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def _batch_write(self, call: Call) -> None:
        answer: Result | Exception
        try:
            answer = await self._runtime.batch_write_record(call)
        except Exception as error:  # whatever it is, the client gets an answer
            answer = error
        self._done(answer)

    # Answers

    def _done(self, answer: Result | Exception) -> None:
        asked, self._asked = self._asked, None
        assert asked is not None, "one request is answered at a time"
        transport, state, starts = self.transport, self.server_state, self.starts
        if transport.is_closing():
            return
        if starts.made_for is not state.default_headers:
            starts.make(state.default_headers)
        is_last = starts.are_last
        if answer.__class__ is bytes and not self._is_ending:
            status = 200
            self.outbox.add(self.loop, transport, starts.plain % (len(answer), next(request_numbers), answer))
        else:
            identifier = request_id()
            what = asked.partition(b" HTTP/")[0].decode("latin-1")
            status, body, content_type, headers = answered(answer, identifier, what)
            more = b"".join([b"%b: %b\r\n" % header for header in headers])
            if self._is_ending and not self._held and not is_last:
                is_last = True
                more += b"connection: close\r\n"
            self.outbox.send()
            transport.write(
                b"%b%bcontent-type: %b\r\ncontent-length: %d\r\nx-amzn-requestid: %b\r\n%b\r\n%b"
                % (STATUS_LINE[status], starts.common, content_type, len(body), identifier, more, body)
            )
        if self.access_log:
            self._log(asked, status)
        state.total_requests += 1
        if is_last or self._is_half_closed:
            self.outbox.send()
            transport.close()
            return
        self._idle_since_s = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._watch_idle(self.timeout_keep_alive)
        if self._held:
            self.loop.call_soon(self._go_on)
        else:
            self.flow.resume_reading()

    def _go_on(self) -> None:
        """Take what came in while something was in the way."""
        if not self._held or self._asked is not None or self.flow.write_paused or self.transport.is_closing():
            return
        data, self._held = self._held, b""
        self.flow.resume_reading()
        if len(data) < self._wanted_bytes:
            self._held = data
        else:
            self._take(data)

    def _log(self, asked: bytes, status: int) -> None:
        """As uvicorn does."""
        method, target, _ = asked.split(b" ", 2)
        path, _, query = target.partition(b"?")
        scope: Any = {"client": self.client, "path": unquote(path.decode()), "query_string": query}
        full_path = get_path_with_query_string(scope)
        self.access_logger.info('%s - "%s %s HTTP/%s" %d', get_client_addr(scope), method.decode(), full_path, "1.1", status)

    # The connection

    def eof_received(self) -> bool | None:  # type: ignore[override]
        """A client that sends no more still gets the answer that is on its way. What it sent behind that is not begun, as it may
        have gone altogether."""
        if self._asked is not None and self.transport.get_extra_info("ssl_object") is None:
            self._is_half_closed, self._held = True, b""
            return True
        self.outbox.send()
        return super().eof_received()

    def shutdown(self) -> None:
        if self._asked is not None or self._held:
            self._is_ending = True
        else:
            self.outbox.send()
            super().shutdown()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._held:
            self.loop.call_soon(self._go_on)

    def on_message_begin(self) -> None:
        self._is_parsing = True
        super().on_message_begin()

    def on_message_complete(self) -> None:
        self._is_parsing = False
        super().on_message_complete()

    def timeout_keep_alive_handler(self) -> None:
        """Armed once, not after every answer: it looks how long the connection has been idle."""
        left_s = self._idle_since_s + self.timeout_keep_alive - self.loop.time()
        if self._asked is not None or self._held:
            left_s = float(self.timeout_keep_alive)
        if left_s > 0:
            self._watch_idle(left_s)
        else:
            super().timeout_keep_alive_handler()

    def _watch_idle(self, left_s: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(left_s, self.timeout_keep_alive_handler)

    # Heads

    def _head(self, block: bytes) -> Head | None:
        """The header lines, with the empty line behind them; None unless they are in plain form."""
        at = block.find(_TOKEN_LINE)
        end = block.find(b"\r\n", at + len(_TOKEN_LINE))
        token = block[at + len(_TOKEN_LINE) : end]
        if at < 0 or not 0 < len(token) <= RETRY_TOKEN_CHARS_MAX or token.translate(None, _PLAIN):
            return self._read_head(block)
        common = block[:at] + block[end:]
        heads = self.heads
        head = heads.get(common)
        if head is None:
            read = self._read_head(block)
            if read is not None and b"authorization" not in read.headers and len(common) <= LINE_BYTES_MAX:
                if len(heads) >= LINES_MAX:
                    heads.clear()
                heads[common] = read
            return read
        return Head(head.headers, head.length, head.allowed, token.decode(), head.accept)

    def _read_head(self, block: bytes) -> Head | None:
        headers: dict[bytes, bytes] = {}
        lines = block[:-4].split(b"\r\n") if len(block) > 4 else []
        known = self.lines
        for line in lines:
            header = known.get(line)
            if header is None:
                header = self._header(line)
                if header is None:
                    return None
            name, value = header
            if name in headers:
                return None
            headers[name] = value
        connection = headers.get(b"connection")
        if connection is not None and connection.lower() != b"keep-alive":
            return None
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 6 or int(length) > BODY_BYTES_MAX:
            return None
        accept = headers.get(b"accept", b"")
        if b"arrow" in accept.lower():
            return None
        token = headers.get(RETRY_TOKEN_HEADER)
        retry_token = token.decode("latin-1") if token is not None and len(token) <= RETRY_TOKEN_CHARS_MAX else None
        host = headers.get(b"host")
        if host is not self._host:  # the same object while its line is remembered
            self._host, self._is_allowed = host, host is None or self._door.allows(host)
        return Head(headers, int(length), self._is_allowed, retry_token, accept)

    def _header(self, line: bytes) -> Header | None:
        """One header line, which may become one of those that are known; None unless it is in plain form."""
        name, colon, value = line.partition(b":")
        value = value[1:] if value.startswith(b" ") else value
        name = name.lower()
        if not name or not colon or name in _UNUSUAL or name.translate(None, _NOT_NAME) != name or value.strip(b" \t") != value:
            return None
        if len(line.translate(None, _CONTROL)) != len(line):
            return None
        if name not in _VARYING and len(line) <= LINE_BYTES_MAX:
            if len(self.lines) >= LINES_MAX:
                self.lines.clear()
            self.lines[line] = (name, value)
        return name, value

    def _is_signed(self, line: bytes, block: bytes, signed: SignedHead | None, body: bytes) -> bool:
        """Whether a request may enter by its signature. `signed`: an earlier one had the same headers."""
        method, target, _ = line.split(b" ")
        path, _, query = target.partition(b"?")
        verb, operation = method.decode(), _OPERATIONS.get(line[:2]) or f"sagemaker:{path[1:].decode()}"
        if signed is not None:
            value = block[signed.value_at : signed.value_at + SIGNATURE_BYTES]
            if self._door.admits_again(signed.standing, operation, verb, path, query, body, value):
                return True
        head = self._head(block)
        if head is None:
            return False
        standing = self._door.admits_now(operation, Request(verb, path, query, list(head.headers.items())), body)
        if standing is not None:
            self._signed = SignedHead.of(block, head, standing)
        return standing is not None


def lane_of(service: Service) -> type[Connection]:
    """The protocol class, for uvicorn's `http` setting, of connections to a service."""
    return type(
        "RecordLane", (RecordLane,), {"service": service, "lines": {}, "heads": {}, "starts": Starts(), "outbox": Outbox()}
    )
