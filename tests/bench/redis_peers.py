"""Plain reading with redis-py. Nothing of ours is imported, so that none of it is measured."""

from __future__ import annotations

import time
from typing import Any

import redis


def read_streams(port: int, keys: list[str], count: int) -> dict[str, Any]:
    """Every entry of some streams, `count` per round trip, nothing decoded and nothing trimmed."""
    client = redis.Redis(port=port)
    client.ping()
    amount = 0
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for key in keys:
        first = "-"
        while entries := client.execute_command("XRANGE", key, first, "+", "COUNT", count):
            amount += len(entries)
            first = f"({_id(entries[-1])}"
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    client.close()
    return {"amount": amount, "took_s": took_s, "cpu_s": cpu_s}


def _id(entry: Any) -> str:
    return str(entry[0].decode())
