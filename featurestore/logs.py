"""Where log lines of a command go, and what they look like."""

from __future__ import annotations

import logging
import sys
from typing import Final

COMMAND_LINE: Final = "%(levelname)s: %(message)s"
"""Of a command that somebody waits for."""
SERVICE_LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
"""Of what runs until it is stopped."""


def server_line(number: int) -> str:
    """Of one of several server processes."""
    return SERVICE_LINE.replace("%(name)s", f"server {number} (%(process)d) %(name)s")


def log_to_stderr(level: int, line: str) -> None:
    """Send this process's log to standard error."""
    logging.basicConfig(level=level, format=line, stream=sys.stderr)
    # The Kafka client logs each attempt to connect; we log what came of them.
    client_log = logging.getLogger("kafka")
    client_log.addHandler(logging.NullHandler())
    client_log.propagate = False
