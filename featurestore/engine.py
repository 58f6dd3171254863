"""The query engine: DuckDB for our own generated statements, with bounded memory and nothing from the network."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb

from featurestore.errors import QueryFailed
from featurestore.temporary import PrivateDirectory


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What one engine may use; beyond `memory_bytes` it spills to at most `temp_bytes` of disk."""

    memory_bytes: int
    temp_bytes: int
    threads: int


class Engine:
    """One in-memory DuckDB instance. `session` gives a connection of its own to each query; any thread may ask for one."""

    def __init__(self, limits: EngineLimits, temp_root: Path) -> None:
        self.threads = limits.threads
        self._directory = PrivateDirectory(temp_root, "engine-")
        self._instance = duckdb.connect(
            ":memory:",
            config={
                "memory_limit": f"{limits.memory_bytes >> 20}MiB",
                "max_temp_directory_size": f"{limits.temp_bytes >> 20}MiB",
                "temp_directory": str(self._directory.path),
                "threads": limits.threads,
                "preserve_insertion_order": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
            },
        )

    def session(self) -> Any:
        """A connection whose temporary tables and settings nobody else sees; the caller closes it."""
        session = self._instance.cursor()
        session.execute("SET TimeZone = 'UTC'")
        return session

    @contextlib.contextmanager
    def folder(self) -> Iterator[Path]:
        """A folder for files under way; it is deleted with what is in it, even if this process dies."""
        with tempfile.TemporaryDirectory(dir=self._directory.path) as folder:
            yield Path(folder)

    def close(self) -> None:
        self._instance.close()
        self._directory.remove()


def failed(error: duckdb.Error) -> QueryFailed:
    """The engine's refusal as one of our errors."""
    return QueryFailed(str(error))


def identifier(name: str) -> str:
    """A quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """A quoted SQL string."""
    return "'" + text.replace("'", "''") + "'"


def instant(time_us: int) -> str:
    """A TIMESTAMPTZ constant from microseconds since 1970."""
    return f"make_timestamptz({time_us})"
