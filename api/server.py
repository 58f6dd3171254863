"""Runs the service on uvicorn until it is told to stop."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import logging
import re
import signal
import socket
import ssl
from collections.abc import Callable
from typing import Final

import uvicorn

from api.app import Service
from api.lane import lane_of
from featurestore.access.keys import has_keys
from featurestore.errors import SettingsInvalid, StoreUnavailable
from featurestore.settings import Settings
from featurestore.store import FeatureStore

BACKLOG: Final = 2048
"""Connections that may wait to be accepted: uvicorn's own default."""

LOOPBACK_HOSTS: Final = frozenset({b"localhost", b"127.0.0.1", b"[::1]"})
"""What a service that listens on loopback may be called in requests."""

_PRESIGNED: Final = re.compile("(X-Amz-Signature|X-Amz-Security-Token)=[^& ]*")

SHUTDOWN_S: Final = 20
"""How long requests under way may take once the process is told to stop."""


def listen(settings: Settings) -> socket.socket:
    """A listening socket at the address of the settings.

    Raises:
        SettingsInvalid: the address is not loopback and the store has no keys: nobody would be asked who they are.
        StoreUnavailable: the address can't be listened on, or it can't be found out whether there are keys.
    """
    if not is_loopback(settings.host) and not has_keys(settings):
        expected = "a loopback address, as the store has no access keys yet (see `featurestore keys create`)"
        raise SettingsInvalid.one("FEATURESTORE_HOST", expected, settings.host)
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    with contextlib.ExitStack() as unless_listening:
        try:
            listener = unless_listening.enter_context(socket.socket(family, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((settings.host, settings.port))
            listener.listen(BACKLOG)  # an address that others only bind is found taken here
        except (OSError, UnicodeError) as error:
            hint = "try --port 0" if getattr(error, "errno", None) == errno.EADDRINUSE else "see FEATURESTORE_HOST"
            raise StoreUnavailable("listen", f"{settings.host}:{settings.port}: {error}", hint=hint) from error
        unless_listening.pop_all()
    return listener


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
    settings: Settings,
    *,
    announce: Callable[[], None] = lambda: None,
    ready: Callable[[], str | None] = lambda: None,
) -> None:
    """Answer requests until SIGTERM or SIGINT; requests under way are finished.

    Args:
        announce: called once, when connections are accepted.
        ready: as for `Service`.
    """
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
    runner = _AnnouncingServer(config, announce)

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


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
