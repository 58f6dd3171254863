"""Records over HTTP: the real service, beside what it stands on (an HTTP server, a web framework, SQLite, the disk)."""

from __future__ import annotations

import http.client
import json
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data
from tests.bench.bare_sqlite import bare_sqlite
from tests.bench.constant_server import ASGI, FASTAPI, PROTOCOL, ConstantServer
from tests.bench.isolated import isolated
from tests.bench.load import CONNECTIONS, Load, Plan, Request, drive
from tests.bench.sheet import Sheet
from tests.service import Service

BATCH_IDENTIFIERS = 100
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


class Work(NamedTuple):
    """One kind of request: what is sent, and the CRC-32 of each right answer's body."""

    name: str
    requests: Sequence[Request]
    sums: Sequence[int]
    count: int


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
    load_records(home, size)
    with ExitStack() as stack:
        service = stack.enter_context(Service(home, folder / "service.log"))
        reads = [
            _get_work(service.port, "narrow", 10, size.records, size),
            _get_work(service.port, "wide", 50, size.wide_records, size),
            _batch_work(service.port, "narrow", 10, size.records, size),
            _batch_work(service.port, "wide", 50, size.wide_records, size),
        ]
        answer_bytes = len(_fetch(service.port, reads[0].requests[0]))
        servers = {kind: ConstantServer(kind, answer_bytes) for kind in (PROTOCOL, ASGI, FASTAPI)}
        constants = {kind: stack.enter_context(server).port for kind, server in servers.items()}
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            _round(sheet, size, service.port, reads, constants, folder)


def _round(sheet: Sheet, size: Size, port: int, reads: Sequence[Work], constants: dict[str, int], folder: Path) -> None:
    found: dict[str, Load] = {}
    for work in reads:
        load = found[work.name] = _answered(sheet, work, port, None)
        half = _answered(sheet, work, port, load.requests_per_s / 2)
        sheet.add(SERVICE, work.name, _closed(load) | {"p50 at half load, ms": half.p50_ms, "p99 at half load, ms": half.p99_ms})
    puts = found["PutRecord, 10 features"] = _puts(sheet, size, port)
    sheet.add(SERVICE, "PutRecord, 10 features", _closed(puts))

    narrow = reads[0]
    rate_per_s = found[narrow.name].requests_per_s / 2
    limits: dict[str, Load] = {}
    for kind, name in LIMIT_ROWS.items():
        load = limits[kind] = drive(Plan(constants[kind], narrow.requests, size.constants))
        half = drive(Plan(constants[kind], narrow.requests, size.constants, rate_per_s))
        figures = {"p50 at GetRecord's half load, ms": half.p50_ms, "p99 at GetRecord's half load, ms": half.p99_ms}
        sheet.add(LIMITS, name, _closed(load) | figures)

    disk = isolated(bare_sqlite, folder=folder, records=size.records, reads=size.point_reads, commits=size.commits).answer
    for name, figures in disk.items():
        sheet.add(DISK, name, figures)

    get = found[narrow.name].requests_per_s
    batch = found[reads[2].name].requests_per_s
    sheet.ratio("load generator's ceiling / GetRecord, 10 features", limits[PROTOCOL].requests_per_s, get)
    sheet.ratio("plain ASGI constant / GetRecord, 10 features", limits[ASGI].requests_per_s, get)
    sheet.ratio("plain ASGI constant / FastAPI constant", limits[ASGI].requests_per_s, limits[FASTAPI].requests_per_s)
    sheet.ratio("bare SQLite point reads / GetRecord, 10 features", disk["point reads"]["rows/s"], get)
    sheet.ratio("records/s of BatchGetRecord / of GetRecord, 10 features", batch * BATCH_IDENTIFIERS, get)
    sheet.ratio("PutRecord / bare commits of 1 row", puts.requests_per_s, disk["commits of 1 row"]["rows/s"])
    sheet.ratio("bare commits of 100 rows (rows/s) / PutRecord", disk["commits of 100 rows"]["rows/s"], puts.requests_per_s)


def _closed(load: Load) -> dict[str, float]:
    return {"requests/s": load.requests_per_s, "p50, ms": load.p50_ms, "p99, ms": load.p99_ms}


def _answered(sheet: Sheet, work: Work, port: int, rate_per_s: float | None) -> Load:
    load = drive(Plan(port, work.requests, work.count, rate_per_s))
    right = sum(work.sums[number % len(work.sums)] for number in range(work.count))
    sheet.check(work.name, {"records as written": f"{right:016x}", "answers under load": f"{load.body_sum:016x}"})
    return load


def _puts(sheet: Sheet, size: Size, port: int) -> Load:
    """Put two versions of half as many records, then look at what became of them.

    Only the second version may be there, however the two raced.
    """
    identifiers = [str(number) for number in range(size.puts // 2)]
    requests = [
        _request("PUT", "/FeatureGroup/written", _record_body(data.record(identifier, 10, version)), token=True)
        for version in (1, 2)
        for identifier in identifiers
    ]
    load = drive(Plan(port, requests, size.puts))
    _call(port, "POST", "/v1/flush")
    question = "PutRecord, 10 features"
    for start in range(0, len(identifiers), BATCH_IDENTIFIERS):
        some = identifiers[start : start + BATCH_IDENTIFIERS]
        expected = [data.record(identifier, 10, 2) for identifier in some]
        found = _records(_call(port, "POST", "/BatchGetRecord", _batch_body("written", some)))
        first = start == 0
        if first or found != expected:
            sheet.check(question, {"records as written": _sum(expected), "records read back": _sum(found)})
    return load


def _sum(records: list[data.Pairs]) -> str:
    return f"{zlib.crc32(json.dumps(records).encode()):016x}"


def _get_work(port: int, group: str, features: int, records: int, size: Size) -> Work:
    identifiers = [str(number) for number in range(0, records, records // size.distinct)][: size.distinct]
    requests, sums = [], []
    for identifier in identifiers:
        request = _request("GET", f"/FeatureGroup/{group}?RecordIdentifierValueAsString={identifier}")
        body = _fetch(port, request)
        _require(_pairs(json.loads(body)["Record"]) == data.record(identifier, features, 0), identifier)
        requests.append(request)
        sums.append(zlib.crc32(body))
    return Work(f"GetRecord, {features} features", requests, sums, size.gets)


def _batch_work(port: int, group: str, features: int, records: int, size: Size) -> Work:
    distinct = max(1, size.distinct // 20)
    requests, sums = [], []
    for number in range(distinct):
        identifiers = [str((number + index * distinct) % records) for index in range(BATCH_IDENTIFIERS)]
        request = _request("POST", "/BatchGetRecord", _batch_body(group, identifiers))
        body = _fetch(port, request)
        right = [data.record(identifier, features, 0) for identifier in identifiers]
        _require(_records(body) == right, request.head.decode())
        requests.append(request)
        sums.append(zlib.crc32(body))
    return Work(f"BatchGetRecord, {BATCH_IDENTIFIERS} x {features} features", requests, sums, size.batches)


def _require(right: bool, what: str) -> None:
    assert right, f"wrong answer to {what[-200:]}"


def _request(method: str, path: str, body: bytes = b"", *, token: bool = False) -> Request:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "accept: application/json"]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    head = "\r\n".join(lines).encode()
    if token:  # AWS SDKs send it with each call
        return Request(head + b"\r\namz-sdk-invocation-id: ", b"\r\n\r\n" + body)
    return Request(head + b"\r\n\r\n" + body)


def _fetch(port: int, request: Request) -> bytes:
    head, _, body = request.head.partition(b"\r\n\r\n")
    method, path, _ = head.decode().split(" ", 2)
    return _call(port, method, path, body)


def _call(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        answered = answer.read()
        assert answer.status == 200, answered
        return answered
    finally:
        connection.close()


def _record_body(pairs: data.Pairs) -> bytes:
    return json.dumps({"Record": [{"FeatureName": name, "ValueAsString": value} for name, value in pairs]}).encode()


def _batch_body(group: str, identifiers: Sequence[str]) -> bytes:
    return json.dumps({"Identifiers": [{"FeatureGroupName": group, "RecordIdentifiersValueAsString": identifiers}]}).encode()


def _records(body: bytes) -> list[data.Pairs]:
    answer = json.loads(body)
    assert not answer["Errors"]
    assert not answer["UnprocessedIdentifiers"]
    return [_pairs(item["Record"]) for item in answer["Records"]]


def _pairs(record: list[dict[str, Any]]) -> data.Pairs:
    return [(item["FeatureName"], item["ValueAsString"]) for item in record]


def load_records(home: Path, size: Size) -> None:
    """Make the groups `narrow`, `wide` (full) and `written` (empty)."""
    with FeatureStore(Settings(home=home)) as store:
        for group, features, records in (("narrow", 10, size.records), ("wide", 50, size.wide_records), ("written", 10, 0)):
            store.create_feature_group(group, record_identifier="id", event_time="at", features=data.definitions(features))
            if records:
                frame = data.records_table([data.record(str(number), features, 0) for number in range(records)])
                store.ingest(group, frame, progress=False)
