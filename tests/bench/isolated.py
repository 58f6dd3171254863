"""One step of a benchmark in a process of its own, so that neither memory nor warm caches of another are measured.

As a program: `python -m tests.bench.isolated <module>:<function>`, arguments as JSON on stdin, the answer as JSON on stdout.
"""

from __future__ import annotations

import importlib
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from tests.bench.machine import ROOT

STEP_S_MAX = 1800.0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a step returned, and the most memory its process ever held."""

    answer: dict[str, Any]
    rss_bytes_max: int


def isolated(step: Callable[..., dict[str, Any]], **arguments: object) -> Outcome:
    """Run a module-level function with JSON arguments and a JSON answer in a fresh Python.

    Raises:
        RuntimeError: it failed; the message has the end of its output.
    """
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.isolated", f"{step.__module__}:{step.__qualname__}"],
        input=msgspec.json.encode({name: _plain(value) for name, value in arguments.items()}),
        capture_output=True,
        cwd=ROOT,
        env=clean_environment(),
        timeout=STEP_S_MAX,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{step.__qualname__} failed:\n{done.stderr.decode()[-4000:]}")
    outcome = msgspec.json.decode(done.stdout.splitlines()[-1])
    return Outcome(outcome["answer"], outcome["rss_bytes_max"])


def clean_environment() -> dict[str, str]:
    """The environment without settings of a feature store."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FEATURESTORE_")}


def rss_bytes_max() -> int:
    """The most memory this process has held.

    Where Linux tells it, from VmHWM: `getrusage` also counts what the parent held when it started this process.
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return kib if sys.platform == "darwin" else kib << 10


def _plain(value: object) -> object:
    return str(value) if isinstance(value, Path) else value


def main() -> None:
    module, _, function = sys.argv[1].partition(":")
    answer = getattr(importlib.import_module(module), function)(**msgspec.json.decode(sys.stdin.buffer.read()))
    print(msgspec.json.encode({"answer": answer, "rss_bytes_max": rss_bytes_max()}).decode())


if __name__ == "__main__":
    main()
