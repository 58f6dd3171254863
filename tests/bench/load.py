"""The load generator: HTTP requests over keep-alive connections from a process of its own.

A small C program, `load.c` beside this file, so that it costs a small part of what the service costs. It is compiled when it is
first wanted. Two modes:

- closed loop: each connection sends its next request when it has the answer to the last. Gives the most the service can do;
  its latencies are those of a saturated service.
- open loop: request k is due at start + k / rate, whatever came back so far, and its latency counts from then on. So a stall
  delays, and is counted for, all requests that were due meanwhile (no coordinated omission).

Latencies are kept one by one, in nanoseconds, and the percentiles are taken of all of them.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec

from tests.bench.machine import ROOT

SOURCE = Path(__file__).with_name("load.c")
BUILD = ROOT / "build" / "bench"
COMPILER = shutil.which("cc")
FLAGS = ("-std=gnu11", "-O2")
MISSING = (
    "NO C COMPILER: the load generator of the benchmarks can't be made. Run tests/bench/install.sh, or install gcc and libc6-dev."
)
NOT_LINUX = "NOT LINUX: the load generator of the benchmarks waits with epoll, which other systems do not have."

CONNECTIONS = 32
CONNECTIONS_MAX = 1024
ANSWER_S_MAX = 30.0
LOAD_S_MAX = 600.0
PLAN = struct.Struct("<5IQ2d")
"""The fields of `Plan` as `load.c` reads them; the requests follow."""
LENGTHS = struct.Struct("<2I")


class Request(msgspec.Struct, frozen=True):
    """The bytes of one request. Between head and tail goes a retry token of 32 hex digits that is never used again, if `tail`."""

    head: bytes
    tail: bytes = b""


class Plan(msgspec.Struct, frozen=True):
    """What to send: `count` requests, taken from `requests` in turn and round again.

    Attributes:
        rate_per_s: requests per second of the open loop; None for the closed loop.
        sequence: so many requests follow each other on one connection, each sent when the answer to the last is there. They are
            due, and their time counts, together. `count` is a multiple of it.
        keep_times: tell when each answer came.
        answer_s_max: how long to wait for an answer.
    """

    port: int
    requests: Sequence[Request]
    count: int
    rate_per_s: float | None = None
    connections: int = CONNECTIONS
    sequence: int = 1
    keep_times: bool = False
    answer_s_max: float = ANSWER_S_MAX


class Load(msgspec.Struct, frozen=True):
    """What came back: every answer had status 200.

    Attributes:
        p50_ms: of the latencies of all sequences, by nearest rank; so is `p99_ms`.
        body_sum: sum of the CRC-32 of all bodies.
        cpu_us: CPU time that the load generator took, per request.
        answered_at_s: per request when its answer came, by `time.monotonic`, which all processes share; empty unless asked for.
    """

    requests_per_s: float
    p50_ms: float
    p99_ms: float
    body_sum: int
    cpu_us: float
    answered_at_s: list[float] = []


def drive(plan: Plan) -> Load:
    """Run a plan in a process of its own.

    Raises:
        ValueError: the plan can't be run.
        RuntimeError: an answer was not 200 with Content-Length, or did not come in time; or there is no compiler.
    """
    packed = _packed(plan)
    done = subprocess.run([program()], input=packed, capture_output=True, timeout=LOAD_S_MAX, check=False)
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr.decode(errors='replace')[-4000:]}")
    return msgspec.json.decode(done.stdout, type=Load)


def program() -> Path:
    """The compiled load generator, made if it is not there for the source as it is.

    Raises:
        RuntimeError: there is no compiler, or it does not take the source.
    """
    if sys.platform != "linux":
        raise RuntimeError(NOT_LINUX)
    source = SOURCE.read_bytes()
    made = BUILD / f"load-{zlib.crc32(source + repr(FLAGS).encode()):08x}"
    if made.exists():
        return made
    if COMPILER is None:
        raise RuntimeError(MISSING)
    BUILD.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=BUILD) as folder:  # several tests may make it at once
        fresh = Path(folder) / made.name
        done = subprocess.run([COMPILER, *FLAGS, "-o", fresh, SOURCE], capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{COMPILER} does not compile {SOURCE.name}:\n{done.stderr[-4000:]}")
        os.replace(fresh, made)
    return made


def _packed(plan: Plan) -> bytes:
    if not plan.requests:
        raise ValueError("requests: expected at least one")
    if plan.sequence < 1 or plan.count < 1 or plan.count % plan.sequence:
        raise ValueError(f"count: expected a multiple of the sequence of {plan.sequence}, got {plan.count}")
    if not 1 <= plan.connections <= CONNECTIONS_MAX:
        raise ValueError(f"connections: expected 1 to {CONNECTIONS_MAX}, got {plan.connections}")
    if plan.rate_per_s is not None and not plan.rate_per_s > 0:
        raise ValueError(f"rate_per_s: expected more than 0, got {plan.rate_per_s}")
    head = PLAN.pack(
        plan.port,
        plan.connections,
        len(plan.requests),
        plan.sequence,
        plan.keep_times,
        plan.count,
        plan.rate_per_s or 0.0,
        plan.answer_s_max,
    )
    parts = [head]
    for request in plan.requests:
        parts += [LENGTHS.pack(len(request.head), len(request.tail)), request.head, request.tail]
    return b"".join(parts)
