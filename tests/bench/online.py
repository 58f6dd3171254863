"""Records over HTTP: the real service, beside what it stands on (an HTTP server, a web framework, SQLite, the disk)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from featurestore.settings import Settings
from tests.bench.bare_sqlite import bare_sqlite
from tests.bench.constant_server import ASGI, FASTAPI, PROTOCOL, ConstantServer
from tests.bench.isolated import isolated
from tests.bench.load import CONNECTIONS, Load, Plan, drive
from tests.bench.record_load import (
    BATCH_IDENTIFIERS,
    PUT,
    Group,
    Work,
    answered,
    batch_work,
    fetch,
    figures,
    get_work,
    load_records,
    put_records,
)
from tests.bench.sheet import Sheet
from tests.service import Service

LIMIT_ROWS = {
    PROTOCOL: "load generator's ceiling (a bare socket protocol)",
    ASGI: "plain ASGI on uvicorn",
    FASTAPI: "a FastAPI route on uvicorn",
}
SERVICE, LIMITS, DISK = "The service", "HTTP servers that answer a constant", "Bare SQLite"


@dataclass(frozen=True, slots=True)
class Size:
    """How much of everything. Requests are per round and load."""

    records: int
    wide_records: int
    distinct: int
    gets: int
    batches: int
    puts: int
    constants: int
    point_reads: int
    commits: int


SIZES = {
    "tiny": Size(300, 200, 20, 100, 20, 100, 100, 500, 20),
    "canonical": Size(100_000, 20_000, 1000, 20_000, 1000, 20_000, 20_000, 50_000, 1000),
}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    sheet.parameters.update(
        {
            "connections": str(CONNECTIONS),
            "records": f"{size.records:,} of 10 features, {size.wide_records:,} of 50 features",
            "requests per round": f"{size.gets:,} GetRecord, {size.batches:,} BatchGetRecord, {size.puts:,} PutRecord",
            "settings": "defaults",
        }
    )
    home = folder / "home"
    narrow, wide = Group("narrow", 10, size.records), Group("wide", 50, size.wide_records)
    load_records(Settings(home=home), narrow, wide)
    with ExitStack() as stack:
        service = stack.enter_context(Service(home, folder / "service.log"))
        reads = [
            *(get_work(service.port, group, distinct=size.distinct, count=size.gets) for group in (narrow, wide)),
            *(batch_work(service.port, group, distinct=size.distinct // 20, count=size.batches) for group in (narrow, wide)),
        ]
        answer_bytes = len(fetch(service.port, reads[0].requests[0]))
        servers = {kind: ConstantServer(kind, answer_bytes) for kind in (PROTOCOL, ASGI, FASTAPI)}
        constants = {kind: stack.enter_context(server).port for kind, server in servers.items()}
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            _round(sheet, size, service.port, reads, constants, folder)


def _round(sheet: Sheet, size: Size, port: int, reads: Sequence[Work], constants: dict[str, int], folder: Path) -> None:
    found: dict[str, Load] = {}
    for work in reads:
        load = found[work.name] = answered(sheet, work, port, None)
        half = answered(sheet, work, port, load.requests_per_s / 2)
        sheet.add(SERVICE, work.name, figures(load) | {"p50 at half load, ms": half.p50_ms, "p99 at half load, ms": half.p99_ms})
    puts = found[PUT] = put_records(sheet, size.puts, port)
    sheet.add(SERVICE, PUT, figures(puts))

    narrow = reads[0]
    rate_per_s = found[narrow.name].requests_per_s / 2
    limits: dict[str, Load] = {}
    for kind, name in LIMIT_ROWS.items():
        load = limits[kind] = drive(Plan(constants[kind], narrow.requests, size.constants))
        half = drive(Plan(constants[kind], narrow.requests, size.constants, rate_per_s))
        at_half = {"p50 at GetRecord's half load, ms": half.p50_ms, "p99 at GetRecord's half load, ms": half.p99_ms}
        sheet.add(LIMITS, name, figures(load) | at_half)

    disk = isolated(bare_sqlite, folder=folder, records=size.records, reads=size.point_reads, commits=size.commits).answer
    for name, found_on_disk in disk.items():
        sheet.add(DISK, name, found_on_disk)

    get = found[narrow.name].requests_per_s
    batch = found[reads[2].name].requests_per_s
    sheet.ratio("load generator's ceiling / GetRecord, 10 features", limits[PROTOCOL].requests_per_s, get)
    sheet.ratio("plain ASGI constant / GetRecord, 10 features", limits[ASGI].requests_per_s, get)
    sheet.ratio("plain ASGI constant / FastAPI constant", limits[ASGI].requests_per_s, limits[FASTAPI].requests_per_s)
    sheet.ratio("bare SQLite point reads / GetRecord, 10 features", disk["point reads"]["rows/s"], get)
    sheet.ratio("records/s of BatchGetRecord / of GetRecord, 10 features", batch * BATCH_IDENTIFIERS, get)
    sheet.ratio("PutRecord / bare commits of 1 row", puts.requests_per_s, disk["commits of 1 row"]["rows/s"])
    sheet.ratio("bare commits of 100 rows (rows/s) / PutRecord", disk["commits of 100 rows"]["rows/s"], puts.requests_per_s)
