"""Record requests over HTTP, from connections that the load generator keeps busy; every answer is compared to what was put."""

from __future__ import annotations

import http.client
import json
import zlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data
from tests.bench.load import Load, Plan, Request, drive
from tests.bench.sheet import Sheet

BATCH_IDENTIFIERS = 100
WRITTEN = "written"
"""The group that PutRecord writes to: ten features, empty at first."""
PUT = "PutRecord, 10 features"


class Group(NamedTuple):
    """A feature group with records 0 to `records - 1` as `data.record` makes them."""

    name: str
    features: int
    records: int


class Work(NamedTuple):
    """One kind of request: what is sent, and the CRC-32 of each right answer's body."""

    name: str
    requests: Sequence[Request]
    sums: Sequence[int]
    count: int


def figures(load: Load) -> dict[str, float]:
    return {"requests/s": load.requests_per_s, "p50, ms": load.p50_ms, "p99, ms": load.p99_ms}


def answered(sheet: Sheet, work: Work, port: int, rate_per_s: float | None, *, who: str = "answers under load") -> Load:
    """Send the requests, in a closed loop or at a rate, and check every answer's body."""
    load = drive(Plan(port, work.requests, work.count, rate_per_s))
    right = sum(work.sums[number % len(work.sums)] for number in range(work.count))
    sheet.check(work.name, {"records as written": f"{right:016x}", who: f"{load.body_sum:016x}"})
    return load


def put_records(sheet: Sheet, puts: int, port: int, *, who: str = "records read back") -> Load:
    """Put two versions of half as many records, then look at what became of them.

    Only the second version may be there, however the two raced.
    """
    identifiers = [str(number) for number in range(puts // 2)]
    requests = [
        request("PUT", f"/FeatureGroup/{WRITTEN}", _record_body(data.record(identifier, 10, version)), token=True)
        for version in (1, 2)
        for identifier in identifiers
    ]
    load = drive(Plan(port, requests, puts))
    call(port, "POST", "/v1/flush")
    for start in range(0, len(identifiers), BATCH_IDENTIFIERS):
        some = identifiers[start : start + BATCH_IDENTIFIERS]
        expected = [data.record(identifier, 10, 2) for identifier in some]
        found = _records(call(port, "POST", "/BatchGetRecord", _batch_body(WRITTEN, some)))
        first = start == 0
        if first or found != expected:
            sheet.check(PUT, {"records as written": _sum(expected), who: _sum(found)})
    return load


def _sum(records: list[data.Pairs]) -> str:
    return f"{zlib.crc32(json.dumps(records).encode()):016x}"


def get_work(port: int, group: Group, *, distinct: int, count: int) -> Work:
    """`count` GetRecords of so many different records."""
    identifiers = [str(number) for number in range(0, group.records, group.records // distinct)][:distinct]
    requests, sums = [], []
    for identifier in identifiers:
        sent = request("GET", f"/FeatureGroup/{group.name}?RecordIdentifierValueAsString={identifier}")
        body = fetch(port, sent)
        _require(_pairs(json.loads(body)["Record"]) == data.record(identifier, group.features, 0), identifier)
        requests.append(sent)
        sums.append(zlib.crc32(body))
    return Work(f"GetRecord, {group.features} features", requests, sums, count)


def batch_work(port: int, group: Group, *, distinct: int, count: int) -> Work:
    """`count` BatchGetRecords, so many of them different."""
    requests, sums = [], []
    for number in range(distinct):
        identifiers = [str((number + index * distinct) % group.records) for index in range(BATCH_IDENTIFIERS)]
        sent = request("POST", "/BatchGetRecord", _batch_body(group.name, identifiers))
        body = fetch(port, sent)
        right = [data.record(identifier, group.features, 0) for identifier in identifiers]
        _require(_records(body) == right, sent.head.decode())
        requests.append(sent)
        sums.append(zlib.crc32(body))
    return Work(f"BatchGetRecord, {BATCH_IDENTIFIERS} x {group.features} features", requests, sums, count)


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


def load_records(settings: Settings, *groups: Group) -> None:
    """Make these groups, and `written`."""
    with FeatureStore(settings) as store:
        for group in (*groups, Group(WRITTEN, 10, 0)):
            features = data.definitions(group.features)
            store.create_feature_group(group.name, record_identifier="id", event_time="at", features=features)
            if group.records:
                frame = data.records_table([data.record(str(number), group.features, 0) for number in range(group.records)])
                store.ingest(group.name, frame, progress=False)
