"""Servers that answer every request with the same bytes: what a service can't be faster than.

As a program: `python -m tests.bench.constant_server protocol|asgi <body bytes>`; prints its port.
"""

from __future__ import annotations

import asyncio
import socket
import subprocess
import sys
from typing import Any

import uvicorn
import uvloop

from tests.bench.isolated import clean_environment
from tests.bench.machine import ROOT

PROTOCOL = "protocol"
"""A uvloop protocol that writes a ready answer for whatever it reads: the least that an answer costs in Python."""
ASGI = "asgi"
"""Plain ASGI on uvicorn, configured as the service is."""
JSON = "application/json"


class ConstantServer:
    """One of these servers as a child process. Use as a context manager."""

    def __init__(self, kind: str, body_bytes: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.constant_server", kind, str(body_bytes)],
            stdout=subprocess.PIPE,
            cwd=ROOT,
            env=clean_environment(),
        )
        self.port = 0

    def __enter__(self) -> ConstantServer:
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


class _Protocol(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        self._answer = answer

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._transport.write(self._answer)


def protocol(listener: socket.socket, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n\r\n".encode()

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(lambda: _Protocol(head + body), sock=listener)
        await server.serve_forever()

    uvloop.run(serve())


def asgi(body: bytes) -> Any:
    headers = [(b"content-type", JSON.encode()), (b"content-length", str(len(body)).encode())]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return answer


def main() -> None:
    kind, body = sys.argv[1], b"x" * int(sys.argv[2])
    listener = socket.create_server(("127.0.0.1", 0), backlog=2048)
    print(listener.getsockname()[1], flush=True)
    if kind == PROTOCOL:
        protocol(listener, body)
        return
    config = uvicorn.Config(asgi(body), http="httptools", loop="uvloop", log_config=None, access_log=False, server_header=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
