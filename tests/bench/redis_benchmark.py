"""The program `redis-benchmark`, and the arguments to give it: what a store on Redis can't be faster than."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from featurestore.keyspace.link import Call, RedisLink
from featurestore.keyspace.opening import Keyspace
from featurestore.model.change import Change
from featurestore.online.redis import RedisOnlineStore
from tests.bench.load import CONNECTIONS

PROGRAM = shutil.which("redis-benchmark")
RANDOM = b"__rand_int__"
"""redis-benchmark puts another number of twelve digits in its place each time."""
NUMBERS = 2_000_000_000
"""How many such numbers there are, so that hardly two of a run are alike."""
FIXED_KEYS, FIXED_ARGS = 6, 6
"""Of a call of `apply.lua`: what stands before its changes."""
RUN_S_MAX = 300.0


def measured(port: int, command: Sequence[bytes | str | int], count: int, *, numbers: int = NUMBERS) -> dict[str, float]:
    """Requests per second and latencies of a command that CONNECTIONS connections repeat, each waiting for its answer."""
    assert PROGRAM is not None, "redis-benchmark is missing; it comes with redis-server (on Debian: redis-tools)"
    words = [word if isinstance(word, bytes) else str(word).encode() for word in command]
    options = f"-p {port} -c {CONNECTIONS} -n {count} -r {numbers} --csv".split()
    done = subprocess.run([PROGRAM, *options, *words], capture_output=True, timeout=RUN_S_MAX, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
    lines = done.stdout.rstrip().rsplit(b'"', 15)  # the title, which is the command and may hold anything, comes first
    assert len(lines) == 16, f"not what redis-benchmark answers: {done.stdout[-300:]!r}"
    per_s, _, _, p50_ms, _, p99_ms, _ = (float(figure) for figure in lines[2::2])
    return {"requests/s": per_s, "p50, ms": p50_ms, "p99, ms": p99_ms}


@dataclass(frozen=True, slots=True)
class Recording(Keyspace):
    """A keyspace that keeps the calls which go over its links."""

    calls: list[Call] = field(default_factory=list)

    def link(self) -> RedisLink:
        return _RecordingLink(self)


class _RecordingLink(RedisLink):
    def __init__(self, keyspace: Recording) -> None:
        super().__init__(keyspace.address, [keys.meta for keys in keyspace.keys])
        self._calls = keyspace.calls

    def run(self, operation: str, calls: Sequence[Call], *, repeatable: bool = False) -> list[Any]:
        self._calls.extend(calls)
        return super().run(operation, calls, repeatable=repeatable)


def sent_for(keyspace: Keyspace, change: Change, *, outbox_changes_max: int) -> Call:
    """The script call that the online store sends for a change. It is executed."""
    recording = Recording(keyspace.address, keyspace.keys, keyspace.salt)
    with closing(RedisOnlineStore(recording, outbox_changes_max=outbox_changes_max)) as store:
        asyncio.run(_apply(store, change))
    (call,) = recording.calls
    return call


async def _apply(store: RedisOnlineStore, change: Change) -> None:
    await store.apply([change])


def repeatable_call(call: Call, *, changes: int) -> tuple[str, list[bytes | str | int]]:
    """The call of one change as a script and what follows its SHA-1, for redis-benchmark to repeat.

    It writes `changes` records, each with a write id of its own, if the change has RANDOM as record id and in its write id.
    redis-benchmark can't send zero bytes: another byte stands for them, and a line before the script puts them back.
    """
    assert call.script is not None
    _, _, keys_count, *rest = call.command
    assert keys_count == FIXED_KEYS + 1
    keys, args = rest[:keys_count], rest[keys_count:]
    change = args[FIXED_ARGS:]
    zero = next(byte for byte in range(0xC1, 0x100) if not any(byte in part for part in change))
    stand_in = bytes([zero])
    change = [part.replace(b"\0", stand_in) for part in change]
    line = f"for i = {FIXED_ARGS + 1}, #ARGV do ARGV[i] = string.gsub(ARGV[i], '\\{zero}', '\\0') end "
    keys = [*keys[:FIXED_KEYS], *keys[FIXED_KEYS:] * changes]
    return line + call.script.source, [len(keys), *keys, *args[:FIXED_ARGS], *change * changes]
