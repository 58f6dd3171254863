"""Runs the service on uvicorn until it is told to stop."""

from __future__ import annotations

import ipaddress
import signal
import socket
from collections.abc import Callable
from typing import Final

import uvicorn

from api.app import Service
from featurestore.errors import SettingsInvalid, StoreUnavailable
from featurestore.settings import Settings
from featurestore.store import FeatureStore

SHUTDOWN_S: Final = 20
"""How long requests under way may take once the process is told to stop."""


def listen(settings: Settings) -> socket.socket:
    """A listening socket at the address of the settings.

    Raises:
        SettingsInvalid: the address is not loopback and `insecure` is not set: nobody would be asked who they are.
        StoreUnavailable: the address can't be listened on.
    """
    if not settings.insecure and not _is_loopback(settings.host):
        expected = "a loopback address, since requests are not authenticated, or --insecure"
        raise SettingsInvalid.one("FEATURESTORE_HOST", expected, settings.host)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise StoreUnavailable("listen", f"{settings.host}:{settings.port}: {error}", hint="try --port 0") from error
    return listener


class _AnnouncingServer(uvicorn.Server):
    """Says that it is ready once it really accepts connections."""

    def __init__(self, config: uvicorn.Config, announce: Callable[[], None]) -> None:
        super().__init__(config)
        self._announce = announce

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._announce()


def serve(
    store: FeatureStore,
    listener: socket.socket,
    *,
    access_log: bool = False,
    announce: Callable[[], None] = lambda: None,
    ready: Callable[[], str | None] = lambda: None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; requests under way are finished.

    Args:
        announce: called once, when connections are accepted.
        ready: as for `Service`.
    """
    config = uvicorn.Config(
        Service(store, ready=ready),
        http="httptools",
        loop="uvloop",
        log_config=None,
        access_log=access_log,
        timeout_graceful_shutdown=SHUTDOWN_S,
        server_header=False,
    )
    # uvicorn raises the signal it was stopped by once more when it is done; by then it must not end the process, which still
    # has to write out what it acknowledged.
    handlers = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        _AnnouncingServer(config, announce).run(sockets=[listener])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
