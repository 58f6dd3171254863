"""One of several server processes: what `python -m api.server_process` runs, started by `api.supervisor`.

Its channel to the supervisor carries one line of JSON per message, a text or null:

    to the supervisor      null: connections are accepted from now on; a text: they are not, and why
    from the supervisor    null: the service may get traffic; a text: it should not, and why

The end of the channel is the end of the supervisor, and then this process stops as if it had been told to.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import signal
import socket
import sys
import threading
from typing import Final

from api import server
from api.listener import refuse_connections
from featurestore.errors import FeatureStoreError
from featurestore.logs import log_to_stderr, server_line
from featurestore.settings import Settings
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)


MESSAGE_CHARS_MAX: Final = 2000


def encoded(message: str | None) -> bytes:
    """A message as a line; what is longer than MESSAGE_CHARS_MAX is cut."""
    return json.dumps(message and message[:MESSAGE_CHARS_MAX]).encode() + b"\n"


def decoded(line: bytes) -> str | None:
    message = json.loads(line)
    return None if message is None else str(message)


class Channel:
    """The way to the supervisor and back.

    Attributes:
        reason: why the service should get no traffic now, as the supervisor last said; None when it may.
    """

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        self._socket.set_inheritable(False)
        self.reason: str | None = None

    def tell(self, message: str | None) -> None:
        with contextlib.suppress(OSError):  # the supervisor is gone, which `follow` finds out
            self._socket.sendall(encoded(message))

    def follow(self) -> None:
        """Take what the supervisor says; returns when it is gone."""
        with contextlib.suppress(OSError), self._socket.makefile("rb") as lines:
            for line in lines:
                self.reason = decoded(line)


def main(arguments: list[str]) -> None:
    """Answer requests until SIGTERM, or until the supervisor is gone.

    Args:
        arguments: number of the process from 1 on; descriptors of its listening socket and of its channel.
    """
    number, listening, channelled = map(int, arguments)
    log_to_stderr(logging.INFO, server_line(number))
    listener = socket.socket(fileno=listening)
    listener.set_inheritable(False)
    channel = Channel(channelled)

    def follow() -> None:
        channel.follow()
        _log.warning("the process that started this one is gone, so it ends, too")
        refuse_connections(listener)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=follow, name="supervisor", daemon=True).start()
    try:
        store = FeatureStore(Settings.load())
    except FeatureStoreError as error:
        channel.tell(str(error))
        sys.exit(1)
    try:
        server.serve(
            store,
            listener,
            store.settings,
            announce=lambda: channel.tell(None),
            stopping=lambda: channel.tell("it is stopping"),
            ready=lambda: channel.reason,
        )
    finally:
        store.close(flush=False)


if __name__ == "__main__":
    main(sys.argv[1:])
