"""Records over HTTP, with the online store on Redis and embedded: the real service, beside what it stands on.

That is Redis, an HTTP server, SQLite and the disk. All in one run, so that every figure has its limit in the same round.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import psutil

from featurestore.access.sigv4 import Credentials
from featurestore.settings import Settings
from tests.bench import redis_limits
from tests.bench.bare_sqlite import bare_sqlite
from tests.bench.constant_server import ASGI, PROTOCOL, ConstantServer
from tests.bench.isolated import isolated
from tests.bench.load import CONNECTIONS, Load, Plan, drive
from tests.bench.record_load import (
    BATCH_IDENTIFIERS,
    PUT,
    Caller,
    Group,
    Puts,
    Work,
    answered,
    batch_work,
    closed_and_half,
    fetch,
    figures,
    get_work,
    load_records,
    signed_work,
)
from tests.bench.redis_limits import APPLY, APPLY_TOGETHER, GET, MGET, MINIMAL, PER_S, RedisLimits, put_change
from tests.bench.sheet import Sheet
from tests.redis_server import DURABLE, RedisServer, server_version
from tests.service import Service

ON_REDIS, EMBEDDED, SIGNED = "on Redis", "embedded, on SQLite", "on Redis, signed"
TABLES = {ON_REDIS: "On Redis", EMBEDDED: "Embedded, on SQLite"}
ALONE, LIMITS, DISK = "By one caller alone", "HTTP servers that answer a constant", "Bare SQLite"
LIMIT_ROWS = {PROTOCOL: "a bare socket protocol on uvloop", ASGI: "plain ASGI on uvicorn"}
CALLS = 5
"""BatchGetRecords that follow each other on one connection: 500 identifiers in all."""
SETTLED_S_MAX = 120.0
LOOK_S = 0.5
QUIET_LOOKS = 4
QUIET_CORES = 0.05
"""Of all services together."""
KEY = Credentials("AKIABENCHMARK", "a secret of this benchmark alone")


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. Each load of a round takes about `load_s`.

    Attributes:
        wide, broad: records of 50 and 200 features.
        distinct: different GetRecords, and PutRecords of the shortest load; a twentieth of it different BatchGetRecords.
        alone: sequences of CALLS by one caller, a whole multiple of the different ones.
    """

    records: int
    wide: int
    broad: int
    distinct: int
    alone: int
    load_s: float
    redis: redis_limits.Size
    point_reads: int
    commits: int


SIZES = {
    "tiny": Size(300, 200, 500, 100, 1, 0.02, redis_limits.Size(500, 50, 200, 500), 500, 20),
    "canonical": Size(100_000, 20_000, 5_000, 1000, 100, 1.2, redis_limits.Size(200_000, 15_000, 40_000, 100_000), 50_000, 1000),
}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    narrow, wide, broad = Group("narrow", 10, size.records), Group("wide", 50, size.wide), Group("broad", 200, size.broad)
    sheet.parameters.update(
        {
            "connections": f"{CONNECTIONS}, also of redis-benchmark",
            "records": ", ".join(f"{group.records:,} of {group.features} features" for group in (narrow, wide, broad)),
            "each load": f"{size.load_s:g} s per round, half of that before it to warm up",
            "each round": "begins when the services have nothing left to do from before",
            "redis-benchmark, per round": f"{size.redis.gets:,} GET before and after each load compared with them, whose mean "
            f"counts; {size.redis.mgets:,} MGET, {size.redis.minimal:,} of the minimal script, {size.redis.applies:,} of "
            "apply.lua, a quarter of that with 8 changes",
            "signed": f"{size.distinct:,} different GetRecords, signed anew in each round",
            "server": f"{server_version()} on the same machine, append-only file synced every second",
            "settings": "defaults",
        }
    )
    with ExitStack() as stack:
        server, bare = (RedisServer(folder / name, **DURABLE) for name in ("redis", "bare"))
        stack.callback(server.kill)
        stack.callback(bare.kill)
        say("loading the stores")
        frames = {group: group.frame() for group in (narrow, wide, broad)}
        homes = {ON_REDIS: folder / "on-redis", EMBEDDED: folder / "embedded"}
        online = {ON_REDIS: {"online_url": server.url}, EMBEDDED: {}}
        for who, home in homes.items():
            load_records(Settings.load({}, home=home, **online[who]), frames)
        services = {
            who: stack.enter_context(Service(home, folder / f"{home.name}.log", **online[who])) for who, home in homes.items()
        }
        callers = {who: Caller(service.port, who) for who, service in services.items()}
        with_key = {"admin_access_key_id": KEY.access_key_id, "admin_secret_access_key": KEY.secret_access_key}
        signed = Service(homes[ON_REDIS], folder / "signed.log", "--no-workers", **online[ON_REDIS], **with_key)
        callers[SIGNED] = Caller(stack.enter_context(signed).port, SIGNED)

        port = callers[ON_REDIS].port
        gets = [get_work(port, group, size.distinct) for group in (narrow, wide)]
        batches = [batch_work(port, group, size.distinct // 20) for group in (narrow, wide)]
        calls = batch_work(port, broad, size.broad // BATCH_IDENTIFIERS, sequence=CALLS)
        answer_bytes = len(fetch(port, gets[0].requests[0]))
        constants = {kind: stack.enter_context(ConstantServer(kind, answer_bytes)).port for kind in LIMIT_ROWS}
        change = put_change(Settings.load({}, home=homes[ON_REDIS], **online[ON_REDIS]))
        limits = RedisLimits(sheet, bare, change, size.records, size.redis)
        measured = _Rounds(sheet, size, folder, callers, gets, batches, calls, constants, limits)
        processes = [psutil.Process(service.pid) for service in services.values()]
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            _settle(processes)
            measured.round()


def _settle(processes: list[psutil.Process]) -> None:
    """Wait until they have nothing left to do: files of the records that were put before are merged in the background."""
    deadline_s = time.monotonic() + SETTLED_S_MAX
    quiet = 0
    while quiet < QUIET_LOOKS:
        assert time.monotonic() < deadline_s, "the services do not come to rest"
        before_s = _cpu_s(processes)
        time.sleep(LOOK_S)
        quiet = quiet + 1 if _cpu_s(processes) - before_s < QUIET_CORES * LOOK_S else 0


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(times.user + times.system for times in (process.cpu_times() for process in processes))


class _Rounds:
    def __init__(
        self,
        sheet: Sheet,
        size: Size,
        folder: Path,
        callers: dict[str, Caller],
        gets: list[Work],
        batches: list[Work],
        calls: Work,
        constants: dict[str, int],
        limits: RedisLimits,
    ) -> None:
        self._sheet = sheet
        self._size = size
        self._folder = folder
        self._callers = callers
        self._gets = gets
        self._batches = batches
        self._calls = calls
        self._constants = constants
        self._limits = limits
        self._puts = {who: Puts(callers[who], size.distinct) for who in TABLES}

    def round(self) -> None:
        """Each path on both backends, and beside it what limits it; only one process is loaded at a time."""
        sheet, (narrow, wide) = self._sheet, self._gets
        row = f"{narrow.name}, signed"
        self._limits.fill()
        raw = [self._limits.gets()]
        signed = closed_and_half(sheet, TABLES[ON_REDIS], row, signed_work(narrow, KEY), self._callers[SIGNED], self._size.load_s)
        raw.append(self._limits.gets())
        on_redis = self._read(ON_REDIS, narrow).requests_per_s
        raw.append(self._limits.gets())
        self._limits.keep_gets(raw)
        embedded = self._read(EMBEDDED, narrow).requests_per_s
        constants = {kind: self._constant(kind, narrow, on_redis) for kind in LIMIT_ROWS}
        mget = self._limits.mgets()
        batch = {work.name: {who: self._read(who, work) for who in TABLES} for work in (wide, *self._batches, self._calls)}
        for who in TABLES:
            self._alone(who)
        writes = self._limits.writes()
        put = {who: puts.closed_and_half(sheet, TABLES[who], PUT, self._size.load_s) for who, puts in self._puts.items()}
        disk = self._bare_sqlite()

        batch_narrow = batch[self._batches[0].name]
        gets_per_s = [figures[PER_S] for figures in raw]
        put_on_redis, put_embedded = (put[who].requests_per_s for who in TABLES)
        sheet.ratio(f"{narrow.name}: on Redis / redis-benchmark {GET} (goal 0.5)", on_redis, statistics.mean(gets_per_s[1:]))
        sheet.ratio(f"{row}: on Redis / redis-benchmark {GET} (goal 0.3)", signed.requests_per_s, statistics.mean(gets_per_s[:2]))
        sheet.ratio(f"{narrow.name}: embedded / on Redis (goal 0.6)", embedded, on_redis)
        sheet.ratio(f"{PUT}: on Redis / redis-benchmark {MINIMAL} (goal 0.35)", put_on_redis, writes[MINIMAL])
        sheet.ratio(f"{PUT}: on Redis / redis-benchmark {APPLY}", put_on_redis, writes[APPLY])
        sheet.ratio(f"{PUT}: on Redis / redis-benchmark {APPLY_TOGETHER} (records)", put_on_redis, writes[APPLY_TOGETHER])
        records_per_s = batch_narrow[ON_REDIS].requests_per_s * BATCH_IDENTIFIERS
        sheet.ratio(f"{self._batches[0].name}: on Redis / redis-benchmark {MGET} (records)", records_per_s, mget)
        sheet.ratio(f"{narrow.name}: on Redis / {LIMIT_ROWS[ASGI]}", on_redis, constants[ASGI].requests_per_s)
        sheet.ratio(f"{narrow.name}: on Redis / {LIMIT_ROWS[PROTOCOL]}", on_redis, constants[PROTOCOL].requests_per_s)
        sheet.ratio(f"{narrow.name}: embedded / bare SQLite point reads", embedded, disk["point reads"]["rows/s"])
        sheet.ratio(f"{PUT}: embedded / bare SQLite commits of 1 row", put_embedded, disk["commits of 1 row"]["rows/s"])

    def _read(self, who: str, work: Work) -> Load:
        return closed_and_half(self._sheet, TABLES[who], work.name, work, self._callers[who], self._size.load_s)

    def _alone(self, who: str) -> None:
        load = answered(self._sheet, self._calls, self._callers[who], requests=self._size.alone * CALLS, connections=1)
        self._sheet.add(ALONE, f"{self._calls.name}, {who}", {"p50, ms": load.p50_ms, "p99, ms": load.p99_ms})

    def _constant(self, kind: str, work: Work, get_per_s: float) -> Load:
        port, load_s = self._constants[kind], self._size.load_s
        first = drive(Plan(port, work.requests, len(work.requests)))
        first = drive(Plan(port, work.requests, round(first.requests_per_s * load_s / 2)))
        closed = drive(Plan(port, work.requests, round(first.requests_per_s * load_s)))
        half = drive(Plan(port, work.requests, max(1, round(get_per_s / 2 * load_s)), get_per_s / 2))
        row = figures(closed, half, "half of GetRecord's load on Redis")
        self._sheet.add(LIMITS, LIMIT_ROWS[kind], row | {"CPU of the load generator, us per request": closed.cpu_us})
        return closed

    def _bare_sqlite(self) -> dict[str, dict[str, float]]:
        size = self._size
        found = isolated(
            bare_sqlite, folder=self._folder, records=size.records, reads=size.point_reads, commits=size.commits
        ).answer
        for name, row in found.items():
            self._sheet.add(DISK, name, row)
        return found
