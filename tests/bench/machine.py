"""Facts about the machine and the versions that figures depend on. No names of hosts, users or folders."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.bench.sheet import percentile

ROOT = Path(__file__).parents[2]
SYNCS = 200
PACKAGES = ("duckdb", "pyarrow", "pandas", "uvicorn", "uvloop", "httptools", "fastapi", "msgspec")


def facts(folder: Path) -> dict[str, str]:
    """Cores, memory, versions, and how long the disk below `folder` takes to sync 4 KiB."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "processor": _processor(),
        "memory": f"{memory_bytes / 2**30:.0f} GiB",
        "disk": f"sync of 4 KiB {_sync_ms(folder):.2f} ms (median)",
        "system": platform.system(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{package: version(package) for package in PACKAGES},
    }


def commit() -> str | None:
    """The commit of the code; "+changes" if the product's files differ from it; None if git does not know."""
    try:
        found = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--", "featurestore", "api", "ingest", "tests/bench/*.py", "tests/bench/*.c")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{found}+changes" if changed else found


class OthersWatch:
    """How much of the machine everybody else takes while a benchmark runs (the kernel's and the hypervisor's share included)."""

    def __init__(self) -> None:
        self._began = self._moment()

    def cores(self) -> float:
        """Cores that were busy on average with other things than this process and its finished children."""
        wall_s, busy_s, own_s = (now - then for now, then in zip(self._moment(), self._began, strict=True))
        return round(max(0.0, busy_s - own_s) / wall_s, 2)

    @staticmethod
    def _moment() -> tuple[float, float, float]:
        all_s = psutil.cpu_times()
        busy_s = sum(all_s) - all_s.idle - getattr(all_s, "iowait", 0.0)
        own = os.times()
        return time.monotonic(), busy_s, own.user + own.system + own.children_user + own.children_system


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _sync_ms(folder: Path) -> float:
    probe = folder / "sync-probe"
    took_ms = []
    with probe.open("wb", buffering=0) as file:
        for _ in range(SYNCS):
            file.write(b"x" * 4096)
            started_s = time.perf_counter()
            os.fsync(file.fileno())
            took_ms.append((time.perf_counter() - started_s) * 1e3)
    probe.unlink()
    return percentile(sorted(took_ms), 50)
