"""A proxy between an S3 client and its service, that does to requests and answers what networks and lesser services do."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER_S_MAX = 30.0
POLL_S = 0.02


@dataclass
class Request:
    """One request; header names are lower case. What a fault changes is what is forwarded."""

    method: str
    path: str
    headers: dict[str, str]


@dataclass
class Answer:
    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


@dataclass
class Dropped:
    """The connection is closed without an answer, or in the middle of one."""

    answer: Answer | None = None


def pass_on(request: Request) -> None:
    """No fault."""


def keep(request: Request, answer: Answer) -> Answer | Dropped:
    """No fault."""
    return answer


def refusal(status: int, code: str) -> Answer:
    """An answer as S3 refuses."""
    body = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>{code}</Code><Message>Because.</Message></Error>'
    return Answer(status, {"content-type": "application/xml"}, body.encode())


class S3Proxy:
    """Forwards to the server at a port. Use as a context manager.

    Args:
        before: sees each request first and may change it, or answer it, in which case it is not forwarded.
        after: sees each answer and says what the client gets.

    Attributes:
        seen: method and path of each request.
    """

    def __init__(
        self,
        port: int,
        *,
        before: Callable[[Request], Answer | Dropped | None] = pass_on,
        after: Callable[[Request, Answer], Answer | Dropped] = keep,
    ) -> None:
        self.seen: list[tuple[str, str]] = []
        seen = self.seen

        class Handler(BaseHTTPRequestHandler):
            def do(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                request = Request(self.command, self.path, {name.lower(): value for name, value in self.headers.items()})
                seen.append((request.method, request.path))
                answer = before(request)
                if answer is None:
                    answer = after(request, _forwarded(port, request, body))
                if isinstance(answer, Dropped):
                    if answer.answer is not None:
                        self._answer(answer.answer, answer.answer.body[: len(answer.answer.body) // 2])
                    return
                self._answer(answer, b"" if request.method == "HEAD" else answer.body)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = do

            def _answer(self, answer: Answer, body: bytes) -> None:
                self.send_response(answer.status)
                length = answer.headers.get("content-length", str(len(answer.body)))
                for name, value in (answer.headers | {"content-length": length, "connection": "close"}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(POLL_S,))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> S3Proxy:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _forwarded(port: int, request: Request, body: bytes) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S_MAX)
    try:
        connection.request(request.method, request.path, body, request.headers)
        answer = connection.getresponse()
        headers = {name.lower(): value for name, value in answer.getheaders()}
        for name in ("date", "server", "connection", "transfer-encoding"):
            headers.pop(name, None)
        return Answer(answer.status, headers, answer.read())
    finally:
        connection.close()
