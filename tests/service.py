"""The real service as a child process, for tests that talk to it or kill it."""

from __future__ import annotations

import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

START_S_MAX = 60.0
STOP_S_MAX = 30.0
READY = re.compile(r"ready at (https?://\S+)")


class Service:
    """`featurestore serve` on a free port. Use as a context manager, or `start` and `stop`/`kill`."""

    def __init__(self, home: Path, log: Path, *arguments: str, **settings: str) -> None:
        self.home = home
        self.log = log
        self._command = [sys.executable, "-m", "featurestore.cli", "serve", "--home", str(home), "--port", "0", *arguments]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}
        self._environ = clean | {f"FEATURESTORE_{name.upper()}": value for name, value in settings.items()}
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> Service:
        """Start it and return when it accepts connections."""
        with self.log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environ)
        deadline_s = time.monotonic() + START_S_MAX
        assert self._process.stdout is not None
        while True:
            readable, _, _ = select.select([self._process.stdout], [], [], max(0, deadline_s - time.monotonic()))
            line = self._process.stdout.readline() if readable else ""
            match = READY.search(line)
            if match:
                self.url = match[1]
                return self
            if not line:
                self.kill()
                raise AssertionError(f"the service did not become ready; its log:\n{self.log.read_text()[-4000:]}")

    def stop(self) -> int:
        """SIGTERM, then its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL, then its exit status."""
        return self._end(signal.SIGKILL)

    def wait(self) -> int:
        """Its exit status, once it ends by itself."""
        assert self._process is not None
        status = self._process.wait(STOP_S_MAX)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return status

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        return self.wait()

    def __enter__(self) -> Service:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        if self._process is not None:
            self.stop()


class Worker:
    """`featurestore worker <name>`: `start`, then `stop` or `kill`, and `start` again."""

    def __init__(self, name: str, home: Path, log: Path, **settings: str) -> None:
        self.name = name
        self.log = log
        self._command = [sys.executable, "-m", "featurestore.cli", "worker", name, "--home", str(home)]
        clean = {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}
        self._environ = clean | {f"FEATURESTORE_{name.upper()}": value for name, value in settings.items()}
        self._process: subprocess.Popen[str] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self, *, wait: bool = True) -> Worker:
        """Start it and, unless told not to wait, return when it is ready."""
        with self.log.open("a") as log:
            self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, stderr=log, text=True, env=self._environ)
        if wait:
            assert self._process.stdout is not None
            readable, _, _ = select.select([self._process.stdout], [], [], START_S_MAX)
            line = self._process.stdout.readline() if readable else ""
            assert line.startswith(f"featurestore worker {self.name} is ready"), self.log.read_text()[-4000:]
        return self

    def stop(self) -> int:
        """SIGTERM, then its exit status."""
        return self._end(signal.SIGTERM)

    def kill(self) -> int:
        """SIGKILL, then its exit status."""
        return self._end(signal.SIGKILL)

    def _end(self, number: int) -> int:
        assert self._process is not None
        self._process.send_signal(number)
        status = self._process.wait(STOP_S_MAX)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._process = None
        return status
