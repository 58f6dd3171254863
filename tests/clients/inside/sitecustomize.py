"""Runs at the start of every Python of a client's environment: nothing may leave the machine, and who tries is written down.

The attempt fails, and is noted in the file that GUARD_LOG names as well: a client that swallows the failure is found out.
"""

from __future__ import annotations

import os
import socket
import sys
import traceback
from typing import Any

HERE = ("127.", "::1", "localhost")


def _allowed(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    return name in (None, "", socket.gethostname()) or str(name).startswith(HERE)


def _refuse(what: str) -> None:
    callers = [frame.filename for frame in traceback.extract_stack() if "site-packages" in frame.filename]
    caller = callers[0].partition("site-packages/")[2] if callers else "?"
    with open(os.environ["GUARD_LOG"], "a") as log:
        log.write(f"{what} by {caller}\n")
    raise OSError(f"the test lets nothing leave the machine: {what}")


def _guard(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.getaddrinfo":
        if not _allowed(arguments[0]):
            _refuse(f"name {arguments[0]}")
    elif event in ("socket.connect", "socket.sendto"):
        connection, address = arguments
        if connection.family in (socket.AF_INET, socket.AF_INET6) and not _allowed(address[0]):
            _refuse(f"connection to {address[0]}")


if "GUARD_LOG" in os.environ:
    sys.addaudithook(_guard)
