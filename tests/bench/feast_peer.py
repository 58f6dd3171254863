"""Feast as a peer: its environment, steps that run in it, and its feature server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.isolated import STEP_S_MAX, clean_environment
from tests.bench.machine import ROOT
from tests.redis_server import free_port, wait_until

INSTALL = ROOT / "tests" / "bench" / "feast" / "install.sh"
ENVIRONMENT = ROOT / "build" / "bench" / "feast"
INSTALL_S_MAX = 900.0
START_S_MAX = 120.0
STOP_S_MAX = 30.0
REGISTRY_TTL_S = 3600
SERVING = {
    "--worker-connections": "1000",
    "--max-requests": "0",  # a worker that is replaced closes its connections; with 0 none is
    "--keep-alive-timeout": "60",
    "--registry_ttl_sec": str(REGISTRY_TTL_S),
}
"""Options of `feast serve`, beside the number of workers; without access log, metrics and feature logging."""
STARTED = "Application startup complete"
"""What each worker logs when it accepts connections."""


def install() -> None:
    """Bring the environment to its locked versions.

    Raises:
        RuntimeError: it can't be; the message has what the installer said.
    """
    done = subprocess.run(
        ["sh", str(INSTALL)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=INSTALL_S_MAX,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"Feast is needed and can't be installed:\n{(done.stdout + done.stderr)[-4000:]}")


def step(name: str, home: Path, **arguments: object) -> dict[str, Any]:
    """Run a step of `tests/bench/feast/inside.py` in a fresh process, with JSON arguments and a JSON answer.

    Args:
        home: a folder for what it keeps about itself.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    done = subprocess.run(
        [str(ENVIRONMENT / "bin" / "python"), "-m", "tests.bench.feast.inside", name],
        input=msgspec.json.encode(arguments),
        capture_output=True,
        cwd=ROOT,
        env=_environment(home),
        timeout=STEP_S_MAX,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{name} in Feast's environment failed:\n{done.stderr.decode()[-4000:]}")
    return msgspec.json.decode(done.stdout.splitlines()[-1])


class FeastServer:
    """`feast serve` with so many workers for the repository in a folder. A context manager.

    Attributes:
        port: where it serves, on 127.0.0.1.
    """

    def __init__(self, repository: Path, workers: int, log: Path) -> None:
        self.port = free_port()
        self.workers = workers
        self._repository = repository
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> FeastServer:
        options = [text for option in SERVING.items() for text in option]
        command = [str(ENVIRONMENT / "bin" / "feast"), "--chdir", str(self._repository), "serve", "--port", str(self.port)]
        command += ["--workers", str(self.workers), "--no-access-log", *options]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, env=_environment(self._repository), start_new_session=True
            )
        try:
            wait_until(self._is_ready, f"feast serve with {self.workers} workers is ready", START_S_MAX)
        except AssertionError as error:
            self._kill()
            raise AssertionError(f"{error}; its log:\n{self._log.read_text()[-4000:]}") from None
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(STOP_S_MAX)
        except subprocess.TimeoutExpired:
            self._kill()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "feast serve has ended"
        return self._log.read_text().count(STARTED) == self.workers

    def _kill(self) -> None:
        """End it and its workers, which are its process group."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def _environment(home: Path) -> dict[str, str]:
    """Nothing of the caller's Python or Feast settings; gunicorn keeps a control socket below HOME, Feast's folder here."""
    ours = ("PYTHON", "FEAST_", "GUNICORN_")
    kept = {name: value for name, value in clean_environment().items() if not name.startswith(ours)}
    return kept | {"HOME": str(home)}
