"""The service as a child process: started, waited for, and stopped whatever happens."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from featurestore.errors import StoreUnavailable
from featurestore.settings import PREFIX

READY: Final = re.compile(r"ready at (https?://\S+)")
READY_S_MAX: Final = 60.0
STOP_S_MAX: Final = 40.0
"""Twice what the service gives requests under way (`api.server.SHUTDOWN_S`)."""
LOG_BYTES_SHOWN: Final = 2000


@contextmanager
def running_service(home: Path) -> Iterator[str]:
    """`featurestore serve` over a store, on a free port: yields its URL once it accepts connections.

    Leaving stops it by SIGTERM and waits until it has written what it had acknowledged; a child that does not end in
    time is killed.

    Raises:
        StoreUnavailable: it did not become ready, or did not end by itself with status 0; with the end of its log.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    command = [sys.executable, "-m", "featurestore.cli", "serve", "--home", str(home), "--port", "0"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, env=environ)
        try:
            yield _url(process, log)
        finally:
            status = _stopped(process)
        if status != 0:
            raise StoreUnavailable("stop the service", f"it ended with status {status}; its log ends: {_end_of(log)}")


def _url(process: subprocess.Popen[str], log: IO[bytes]) -> str:
    """The URL from the line that says the service is ready."""
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_forward, args=(process, lines), name="service-output", daemon=True).start()
    deadline_s = time.monotonic() + READY_S_MAX
    while True:
        try:
            line = lines.get(timeout=max(0.0, deadline_s - time.monotonic()))
        except queue.Empty:
            raise StoreUnavailable("start the service", f"not ready after {READY_S_MAX:g} s; its log: {_end_of(log)}") from None
        if not line:
            raise StoreUnavailable("start the service", f"it ended; its log: {_end_of(log)}")
        match = READY.search(line)
        if match:
            return match[1]


def _forward(process: subprocess.Popen[str], lines: queue.SimpleQueue[str]) -> None:
    """Read the child's output to its end, so that its pipe never fills up; an empty line says that it ended."""
    assert process.stdout is not None, "a pipe was asked for"
    with process.stdout:
        for line in process.stdout:
            lines.put(line)
    lines.put("")


def _stopped(process: subprocess.Popen[str]) -> int:
    """Stop the child and return its exit status."""
    process.terminate()
    try:
        return process.wait(STOP_S_MAX)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _end_of(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - LOG_BYTES_SHOWN))
    return log.read().decode(errors="replace").strip()
