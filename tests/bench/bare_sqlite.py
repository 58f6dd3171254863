"""SQLite without anything of ours: what the online store can't be faster than."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.bench.sheet import percentile

ROW_BYTES = 150
"""Of a value: about what ten features take."""


def bare_sqlite(folder: str, records: int, reads: int, commits: int) -> dict[str, Any]:
    """Point reads and durable commits of a plain SQLite table in the same folder, without anything of ours."""
    path = Path(folder) / "bare.db"
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("CREATE TABLE IF NOT EXISTS record (id TEXT PRIMARY KEY, value BLOB NOT NULL)")
        connection.execute("BEGIN")
        upsert = "INSERT INTO record VALUES (?1, ?2) ON CONFLICT (id) DO UPDATE SET value = ?2"
        connection.executemany(upsert, _bare_rows(range(records), records, time.time_ns()))
        connection.execute("COMMIT")
        answer = {"point reads": _point_reads(connection, records, reads)}
        version = time.time_ns()
        for rows in (1, 100):
            took_ms = []
            for commit in range(commits):
                batch = list(_bare_rows(range(commit * rows, (commit + 1) * rows), records, version + commit))
                started_s = time.perf_counter()
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(upsert, batch)
                connection.execute("COMMIT")
                took_ms.append((time.perf_counter() - started_s) * 1e3)
            all_s = sum(took_ms) / 1e3
            took_ms.sort()
            answer[f"commits of {rows} row{'s' if rows > 1 else ''}"] = {
                "rows/s": rows * commits / all_s,
                "commits/s": commits / all_s,
                "p50, ms": percentile(took_ms, 50),
                "p99, ms": percentile(took_ms, 99),
            }
        return answer
    finally:
        connection.close()


def _bare_rows(numbers: range, records: int, version: int) -> Iterator[tuple[str, bytes]]:
    """Rows whose values no commit has seen before: SQLite writes, and syncs, nothing for a page that stays as it is."""
    for number in numbers:
        yield str(number * 7919 % records), b"%0*d" % (ROW_BYTES, version + number)


def _point_reads(connection: sqlite3.Connection, records: int, reads: int) -> dict[str, float]:
    keys = [str(number * 7919 % records) for number in range(reads)]
    started_s = time.perf_counter()
    for key in keys:
        connection.execute("SELECT value FROM record WHERE id = ?", (key,)).fetchone()
    return {"rows/s": reads / (time.perf_counter() - started_s)}
