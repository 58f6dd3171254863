"""Record requests over HTTP, from connections that the load generator keeps busy; every answer is compared to what was put.

A load takes a given time, so it is as many requests as the service answers in it. The requests of a `Work` are all sent equally
often, so that the checksum of their answers does not depend on how many there were.
"""

from __future__ import annotations

import http.client
import json
import math
import time
import zlib
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

import pyarrow as pa

from featurestore.access import sigv4
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data
from tests.bench.load import CONNECTIONS, Load, Plan, Request, drive
from tests.bench.sheet import Sheet

BATCH_IDENTIFIERS = 100
WRITTEN = "written"
"""The group that PutRecord writes to: ten features, empty at first."""
PUT = "PutRecord, 10 features"
UNUSED_S_MAX = 2.0
"""How long a connection of an open loop may wait for its next request; uvicorn closes it after five seconds."""
PUTS_SUMMED = 20
"""Records whose checksum is kept; all of them are compared."""
PUTS_KEPT = 200_000
"""Records that need not be made anew for each load."""
PUTS_BEGIN = datetime(2026, 2, 1, tzinfo=UTC)


class Group(NamedTuple):
    """A feature group with records 0 to `records - 1` as `data.record` makes them."""

    name: str
    features: int
    records: int

    def frame(self) -> pa.Table:
        return data.records_table([data.record(str(number), self.features, 0) for number in range(self.records)])


class Work(NamedTuple):
    """One kind of request: what is sent, and the CRC-32 of each right answer's body. `sequence` as in a `Plan`."""

    name: str
    requests: Sequence[Request]
    sums: Sequence[int]
    sequence: int = 1


class Caller(NamedTuple):
    """Who is asked: a port, and what the tables call it."""

    port: int
    name: str


def closed_and_half(sheet: Sheet, table: str, row: str, work: Work, caller: Caller, load_s: float) -> Load:
    """A closed loop and an open loop at half its rate, of `load_s` seconds each. Answers the former.

    Shorter ones before them warm up, since other processes had the machine before, and tell how many requests that is.
    """
    first = answered(sheet, work, caller)
    warm = answered(sheet, work, caller, requests=first.requests_per_s * load_s / 2)
    closed = answered(sheet, work, caller, requests=warm.requests_per_s * load_s)
    rate_per_s = closed.requests_per_s / 2
    # Connections take turns, and the service closes those that nothing came over for a while.
    connections = min(CONNECTIONS, math.ceil(rate_per_s / work.sequence * UNUSED_S_MAX))
    half = answered(sheet, work, caller, requests=rate_per_s * load_s, rate_per_s=rate_per_s, connections=connections)
    sheet.add(table, row, figures(closed, half))
    return closed


def answered(
    sheet: Sheet,
    work: Work,
    caller: Caller,
    *,
    requests: float = 0,
    rate_per_s: float | None = None,
    connections: int = CONNECTIONS,
) -> Load:
    """Send all requests of a work, as often as makes about so many, and check every answer's body."""
    turns = max(1, round(requests / len(work.requests)))
    count = turns * len(work.requests)
    load = drive(Plan(caller.port, work.requests, count, rate_per_s, connections, work.sequence))
    each, rest = divmod(load.body_sum, turns)
    found = f"{each:016x}" if not rest else f"{load.body_sum:016x} in {turns} turns"
    sheet.check(work.name, {"records as written": f"{sum(work.sums):016x}", f"answers {caller.name}": found})
    return load


def figures(closed: Load, half: Load, load: str = "half load") -> dict[str, float]:
    return {
        "requests/s": closed.requests_per_s,
        "p50, ms": closed.p50_ms,
        "p99, ms": closed.p99_ms,
        f"p50 at {load}, ms": half.p50_ms,
        f"p99 at {load}, ms": half.p99_ms,
    }


class Puts:
    """PutRecords to one service. Each load writes two versions of half as many records, newer ones than any before.

    Args:
        puts_min: of a load, and as many as the first one has.
    """

    def __init__(self, caller: Caller, puts_min: int) -> None:
        assert puts_min >= 2 * PUTS_SUMMED
        self._caller = caller
        self._puts_min = puts_min
        self._versions = 0

    def closed_and_half(self, sheet: Sheet, table: str, row: str, load_s: float) -> Load:
        """As the function of this name."""
        first = self._load(sheet, self._puts_min)
        warm = self._load(sheet, first.requests_per_s * load_s / 2)
        closed = self._load(sheet, warm.requests_per_s * load_s)
        rate_per_s = closed.requests_per_s / 2
        half = self._load(sheet, rate_per_s * load_s, rate_per_s)
        sheet.add(table, row, figures(closed, half))
        return closed

    def _load(self, sheet: Sheet, requests: float, rate_per_s: float | None = None) -> Load:
        """Then look at what became of them: only the second version may be there, however the two raced."""
        identifiers = [str(number) for number in range(max(self._puts_min, round(requests)) // 2)]
        versions = {version: self._next_event_time() for version in (1, 2)}
        sent = [
            request("PUT", f"/FeatureGroup/{WRITTEN}", _put_body(identifier, version, event_time), token=True)
            for version, event_time in versions.items()
            for identifier in identifiers
        ]
        load = drive(Plan(self._caller.port, sent, len(sent), rate_per_s))
        call(self._caller.port, "POST", "/v1/flush")
        for start in range(0, len(identifiers), BATCH_IDENTIFIERS):
            some = identifiers[start : start + BATCH_IDENTIFIERS]
            expected = [_put(identifier, 2, versions[2]) for identifier in some]
            found = _records(call(self._caller.port, "POST", "/BatchGetRecord", _batch_body(WRITTEN, some)))
            assert found == expected, f"records {some[0]} to {some[-1]} are not what was put, {self._caller.name}"
            if not start:
                answers = {"records as put": _sum(expected), f"records read back {self._caller.name}": _sum(found)}
                sheet.check(PUT, answers)
        return load

    def _next_event_time(self) -> str:
        self._versions += 1
        return (PUTS_BEGIN + timedelta(hours=self._versions)).strftime("%Y-%m-%dT%H:%M:%SZ")


def _sum(records: list[data.Pairs]) -> str:
    """Of the first records without their event times, which differ from load to load."""
    timeless = [[pair for pair in pairs if pair[0] != "at"] for pairs in records[:PUTS_SUMMED]]
    return f"{zlib.crc32(json.dumps(timeless).encode()):016x}"


@lru_cache(maxsize=PUTS_KEPT)
def _record(identifier: str, version: int) -> data.Pairs:
    return data.record(identifier, 10, version)


def _put(identifier: str, version: int, event_time: str) -> data.Pairs:
    """What is put: the record with an event time of its own."""
    named, _, *rest = _record(identifier, version)
    return [named, ("at", event_time), *rest]


@lru_cache(maxsize=PUTS_KEPT)
def _put_parts(identifier: str, version: int) -> tuple[bytes, bytes]:
    """What stands before and behind the event time in the body of a put."""
    before, mark, behind = _record_body(_put(identifier, version, "<time>")).partition(b"<time>")
    assert mark
    return before, behind


def _put_body(identifier: str, version: int, event_time: str) -> bytes:
    before, behind = _put_parts(identifier, version)
    return before + event_time.encode() + behind


def get_work(port: int, group: Group, distinct: int) -> Work:
    """GetRecords of so many different records."""
    identifiers = [str(number) for number in range(0, group.records, group.records // distinct)][:distinct]
    requests, sums = [], []
    for identifier in identifiers:
        sent = request("GET", f"/FeatureGroup/{group.name}?RecordIdentifierValueAsString={identifier}")
        body = fetch(port, sent)
        _require(_pairs(json.loads(body)["Record"]) == data.record(identifier, group.features, 0), identifier)
        requests.append(sent)
        sums.append(zlib.crc32(body))
    return Work(f"GetRecord, {group.features} features", requests, sums)


def batch_work(port: int, group: Group, distinct: int, *, sequence: int = 1) -> Work:
    """BatchGetRecords, so many of them different. Those of a sequence have no identifier in common."""
    requests, sums = [], []
    for number in range(distinct):
        identifiers = [str((number + index * distinct) % group.records) for index in range(BATCH_IDENTIFIERS)]
        sent = request("POST", "/BatchGetRecord", _batch_body(group.name, identifiers))
        body = fetch(port, sent)
        right = [data.record(identifier, group.features, 0) for identifier in identifiers]
        _require(_records(body) == right, sent.head.decode())
        requests.append(sent)
        sums.append(zlib.crc32(body))
    size = f"{sequence * BATCH_IDENTIFIERS} x {group.features} features"
    name = f"BatchGetRecord, {size}" if sequence == 1 else f"{sequence} BatchGetRecords, {size} in all"
    return Work(name, requests, sums, sequence)


def signed_work(work: Work, credentials: sigv4.Credentials) -> Work:
    """The same GETs, signed now: good for a quarter of an hour."""
    now_s = time.time()
    return work._replace(requests=[_signed(sent, credentials, now_s) for sent in work.requests])


def _signed(sent: Request, credentials: sigv4.Credentials, now_s: float) -> Request:
    line, *headers = sent.head.removesuffix(b"\r\n\r\n").split(b"\r\n")
    method, target, _ = line.split(b" ")
    path, _, query = target.partition(b"?")
    pairs = [(name, value) for name, _, value in (header.partition(b": ") for header in headers)]
    bare = sigv4.Request(method.decode(), path, query, pairs)
    added = sigv4.sign(bare, credentials, sigv4.EMPTY_SHA256, service="sagemaker", region="us-east-1", now_s=now_s)
    return Request(b"\r\n".join([line, *headers, *(f"{name}: {value}".encode() for name, value in added)]) + b"\r\n\r\n")


def _require(right: bool, what: str) -> None:
    assert right, f"wrong answer to {what[-200:]}"


def request(method: str, path: str, body: bytes = b"", *, token: bool = False) -> Request:
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", "accept: application/json"]
    if body:
        lines += ["content-type: application/json", f"content-length: {len(body)}"]
    head = "\r\n".join(lines).encode()
    if token:  # AWS SDKs send it with each call
        return Request(head + b"\r\namz-sdk-invocation-id: ", b"\r\n\r\n" + body)
    return Request(head + b"\r\n\r\n" + body)


def fetch(port: int, request: Request) -> bytes:
    head, _, body = request.head.partition(b"\r\n\r\n")
    method, path, _ = head.decode().split(" ", 2)
    return call(port, method, path, body)


def call(port: int, method: str, path: str, sent: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request(method, path, sent, {"content-type": "application/json"} if sent else {})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200, body
        return body
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


def load_records(settings: Settings, frames: Mapping[Group, pa.Table]) -> None:
    """Make these groups with their frames, and `written`."""
    with FeatureStore(settings) as store:
        for group in (*frames, Group(WRITTEN, 10, 0)):
            features = data.definitions(group.features)
            store.create_feature_group(group.name, record_identifier="id", event_time="at", features=features)
            if group.records:
                store.ingest(group.name, frames[group], progress=False)
