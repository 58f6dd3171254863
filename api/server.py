"""Runs the service on uvicorn until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable
from typing import Final

import uvicorn

from api.app import Service
from api.lane import lane_of
from api.listener import is_loopback, refuse_connections
from featurestore.errors import SettingsInvalid
from featurestore.settings import Settings
from featurestore.store import FeatureStore

LOOPBACK_HOSTS: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
"""What a service that listens on loopback may be called in requests."""

_PRESIGNED: Final = re.compile("(X-Amz-Signature|X-Amz-Security-Token)=[^& ]*")

ACCEPT_S: Final = 0.1
"""How long connections are still accepted once the process is told to stop: those whose first packet has been here already."""
FAREWELL_S: Final = 1.0
"""How long open connections may send what they were about to send; each answer says that it is the connection's last."""
SHUTDOWN_S: Final = 20
"""How long requests under way may take after that."""
TURN_S: Final = 0.01
SWITCH_S: Final = 0.0005
"""How long a thread of background work keeps the interpreter while requests wait for it: a tenth of Python's own interval. With
that, requests behind a flush took 14 to 180 ms at their slowest hundredth, and 5 to 30 ms with this one.
"""


def require_tls(settings: Settings) -> None:
    """Whether the certificate and its key can be used, found out before anything else is opened.

    Raises:
        SettingsInvalid
    """
    if not settings.tls_cert_file:
        return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(settings.tls_cert_file, settings.tls_key_file, password="")
    except (OSError, ValueError) as error:  # the library's own errors are of OSError
        expected = f"a readable PEM certificate, with its unencrypted key in FEATURESTORE_TLS_KEY_FILE ({error})"
        raise SettingsInvalid.one("FEATURESTORE_TLS_CERT_FILE", expected, settings.tls_cert_file) from error


def _without_signatures(record: logging.LogRecord) -> bool:
    """Takes the signatures of presigned URLs out of the access log: whoever reads it could use them."""
    if isinstance(record.args, tuple):
        record.args = tuple(_PRESIGNED.sub(r"\1=...", arg) if isinstance(arg, str) else arg for arg in record.args)
    return True


class _Server(uvicorn.Server):
    """Says when it really accepts connections, and leaves none without an answer when it stops."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None], stopping: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce
        self._stopping = stopping

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._stopping()
        self.server_state.default_headers = [*self.server_state.default_headers, (b"connection", b"close")]
        await self._wait(ACCEPT_S, lambda: True)
        for server in self.servers:
            server.close()
        await self._wait(FAREWELL_S, lambda: bool(self.server_state.connections))
        await super().shutdown(sockets)
        if self.force_exit:  # a second Ctrl-C: requests under way are given up, but what the lifespan opened is still closed
            await self.lifespan.shutdown()

    async def _wait(self, wait_s: float, needed: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + wait_s
        while needed() and not self.force_exit and time.monotonic() < deadline_s:  # noqa: ASYNC110 (they are uvicorn's own)
            await asyncio.sleep(TURN_S)


def serve(
    store: FeatureStore,
    listener: socket.socket,
    settings: Settings,
    *,
    announce: Callable[[], None] = lambda: None,
    stopping: Callable[[], None] | None = None,
    ready: Callable[[], str | None] = lambda: None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; requests under way are finished, unless a second SIGINT follows.

    Args:
        announce: called once, when connections are accepted.
        stopping: called once, when it has been told to stop; by default it lets nobody begin a connection any more.
        ready: as for `Service`.
    """
    sys.setswitchinterval(SWITCH_S)
    hosts = LOOPBACK_HOSTS | {settings.host.encode()} if is_loopback(settings.host) else None
    service = Service(store, ready=ready, hosts=hosts)
    config = uvicorn.Config(
        service,
        http=lane_of(service),
        loop="uvloop",
        lifespan="on",
        log_config=None,
        access_log=settings.access_log,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
        ssl_certfile=settings.tls_cert_file or None,
        ssl_keyfile=settings.tls_key_file or None,
    )
    logging.getLogger("uvicorn.access").addFilter(_without_signatures)
    runner = _Server(config, announce, stopping or (lambda: refuse_connections(listener)))

    def stop(number: int, frame: object) -> None:
        runner.should_exit = True

    # uvicorn raises the signal it was stopped by once more when it is done; by then it must not end the process, which still
    # has to write out what it acknowledged. Before uvicorn has its own handlers, these stop it too.
    handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        runner.run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
