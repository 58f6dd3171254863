"""Records over HTTP from our service and from Feast's feature server, both with the same Redis server below them."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from featurestore.settings import Settings
from tests.bench import data, feast_peer
from tests.bench.feast_peer import FeastServer
from tests.bench.load import ANSWER_S_MAX, CONNECTIONS, Load, Request
from tests.bench.record_load import Caller, Group, Work, closed_and_half, fetch, load_records, request
from tests.bench.redis_memory import settled_bytes
from tests.bench.sheet import Sheet
from tests.redis_server import DURABLE, RedisServer, server_version
from tests.service import Service

OURS = "ours"
WORKERS = (1, 2, 2 * (os.cpu_count() or 1) + 1)
"""One as ours, two, and as many as Feast's guide starts from."""
FEAST = [f"Feast, {workers} worker{'s' * (workers > 1)}" for workers in WORKERS]
READS, MEMORY = "Reads over HTTP", "Memory in Redis"
KEYS = 2
"""Features of a `Group` that are its identifier and event time, which Feast does not count as features."""
WIDTHS = (10, 50)

Row = tuple[str, int, list[float | int | str]]
"""A record as typed values: identifier, event time in microseconds, features in their order."""


@dataclass(frozen=True, slots=True)
class Size:
    """`measured` records of each width for the memory; distinct requests of one record and of many."""

    narrow: int
    wide: int
    measured: int
    ones: int
    batches: int
    load_s: float


SIZES = {"tiny": Size(300, 200, 200, 20, 4, 0.02), "canonical": Size(100_000, 20_000, 50_000, 500, 20, 3.0)}


class Point(NamedTuple):
    """Requests of so many records each, of one group."""

    records: int
    group: Group

    @property
    def features(self) -> int:
        return self.group.features - KEYS

    @property
    def name(self) -> str:
        return f"{self.records} x {self.features} features"


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    groups = [Group("narrow", WIDTHS[0] + KEYS, size.narrow), Group("wide", WIDTHS[1] + KEYS, size.wide)]
    points = [Point(records, group) for records in (1, 100) for group in groups]
    say("installing Feast, unless it is there")
    feast_peer.install()
    with ExitStack() as stack:
        server = _redis(stack, folder / "redis")
        say("loading both stores")
        feast = folder / "feast"
        small = [group._replace(records=size.measured) for group in groups]
        servers = {(who, group): _redis(stack, folder / f"{who}-{group.name}") for who in (OURS, "Feast") for group in small}
        empty = {key: _used_bytes(redis) for key, redis in servers.items()}
        repositories = [_repository(feast, server, groups)]
        repositories += [_repository(folder / f"feast-{group.name}", servers["Feast", group], [group]) for group in small]
        written = feast_peer.step("write_records", folder, repositories=repositories)
        load_records(Settings.load({}, home=folder / "home", online_url=server.url), {group: group.frame() for group in groups})
        for group in small:
            settings = Settings.load({}, home=folder / f"home-{group.name}", online_url=servers[OURS, group].url)
            load_records(settings, {group: group.frame()})
        _memory(sheet, {key: (_used_bytes(redis) - empty[key]) / size.measured for key, redis in servers.items()})
        _parameters(sheet, size, written["version"])
        callers = [Caller(stack.enter_context(Service(folder / "home", folder / "log", online_url=server.url)).port, OURS)]
        for who, workers in zip(FEAST, WORKERS, strict=True):
            serving = stack.enter_context(FeastServer(feast, workers, folder / f"feast-{workers}.log"))
            callers.append(Caller(serving.port, who))
        works = {point: _works(sheet, point, size, callers) for point in points}
        for number in range(rounds):
            for point in points:
                say(f"round {number + 1}/{rounds}, {point.name}")
                loads = {}
                for caller in callers:
                    row, work = f"{point.name}, {caller.name}", works[point][caller.name]
                    loads[caller.name] = closed_and_half(sheet, READS, row, work, caller, size.load_s)
                _ratios(sheet, point, loads)


def _redis(stack: ExitStack, folder: Path) -> RedisServer:
    server = RedisServer(folder, **DURABLE, auto_aof_rewrite_percentage="0")
    stack.callback(server.kill)
    return server


def _repository(folder: Path, server: RedisServer, groups: Sequence[Group]) -> dict[str, Any]:
    return {"folder": str(folder), "redis": server.host, "groups": groups}


def _used_bytes(server: RedisServer) -> int:
    with server.client() as client:
        return settled_bytes(client)


def _memory(sheet: Sheet, record_bytes: dict[tuple[str, Group], float]) -> None:
    for (who, group), figure in record_bytes.items():
        sheet.add(MEMORY, f"{who}, {group.features - KEYS} features", {"bytes per record": figure})
    for (who, group), figure in record_bytes.items():
        if who != OURS:
            label = f"memory of a record of {group.features - KEYS} features: {who} / ours"
            sheet.ratio(label, figure, record_bytes[OURS, group])


def _parameters(sheet: Sheet, size: Size, version: str) -> None:
    sheet.parameters.update(
        {
            "server": f"{server_version()} on the same machine for both, append-only file synced every second",
            "connections": f"{CONNECTIONS}; an answer that takes longer than {ANSWER_S_MAX:g} s fails the run",
            "records": f"{size.narrow:,} of {WIDTHS[0]} features and {size.wide:,} of {WIDTHS[1]}, beside identifier and event "
            f"time; a third each of Fractional, Integral and String; memory: {size.measured:,} of each in a server of their own",
            "each load": f"{size.load_s:g} s per round; {size.ones} different requests of one record, {size.batches} of many",
            "ours": "featurestore serve, one process, defaults; GetRecord for one record, BatchGetRecord for more",
            "Feast": f"{version}; feast serve --no-access-log "
            + " ".join(f"{name} {value}" for name, value in feast_peer.SERVING.items())
            + "; entity_key_serialization_version 3, redis-py with hiredis, one feature view per request, features by name, "
            "no feature logging, no metrics",
        }
    )


def _works(sheet: Sheet, point: Point, size: Size, callers: Sequence[Caller]) -> dict[str, Work]:
    """What is sent to each, once every different request has had the right answer."""
    distinct = size.ones if point.records == 1 else size.batches
    asked = [_identifiers(point, number, distinct) for number in range(distinct)]
    right = _checksum([_typed(data.record(identifier, point.group.features, 0)) for some in asked for identifier in some])
    answers, works = {"records as written": right}, {}
    for port, who in callers:
        ask, read = (_ask_ours, _read_ours) if who == OURS else (_ask_feast, _read_feast)
        requests = [ask(point, some) for some in asked]
        bodies = [fetch(port, sent) for sent in requests]
        answers[who] = _checksum([row for body in bodies for row in read(point, json.loads(body))])
        works[who] = Work(f"bodies of {point.name}, {who}", requests, [zlib.crc32(body) for body in bodies])
    sheet.check(f"typed values of {point.name}", answers)
    return works


def _identifiers(point: Point, number: int, requests: int) -> list[str]:
    """Those of one of so many requests: spread over all records, no two alike."""
    stride = point.group.records // (requests * point.records) or 1
    first = number * point.records
    return [str((first + index) * stride % point.group.records) for index in range(point.records)]


def _ask_ours(point: Point, identifiers: list[str]) -> Request:
    if point.records == 1:
        return request("GET", f"/FeatureGroup/{point.group.name}?RecordIdentifierValueAsString={identifiers[0]}")
    asked = {"Identifiers": [{"FeatureGroupName": point.group.name, "RecordIdentifiersValueAsString": identifiers}]}
    return request("POST", "/BatchGetRecord", json.dumps(asked).encode())


def _read_ours(point: Point, body: dict[str, Any]) -> list[Row]:
    found = [body["Record"]] if point.records == 1 else [item["Record"] for item in body["Records"]]
    return [_typed([(value["FeatureName"], value["ValueAsString"]) for value in record]) for record in found]


def _ask_feast(point: Point, identifiers: list[str]) -> Request:
    name = point.group.name
    asked = {"features": [f"{name}:{feature}" for feature in _features(point)], "entities": {f"{name}_id": identifiers}}
    return request("POST", "/get-online-features", json.dumps(asked).encode())


def _read_feast(point: Point, body: dict[str, Any]) -> list[Row]:
    """Feast answers by column, in an order of its own."""
    columns = dict(zip(body["metadata"]["feature_names"], body["results"], strict=True))
    identifiers = columns.pop(f"{point.group.name}_id")["values"]
    assert columns.keys() == _features(point).keys(), f"{list(columns)} instead of {list(_features(point))}"
    for column in columns.values():
        assert set(column["statuses"]) == {"PRESENT"}, column["statuses"]
    times = {tuple(column["event_timestamps"]) for column in columns.values()}
    assert len(times) == 1, "features of one view have different event times"
    return [
        (identifier, _instant_us(at), [columns[feature]["values"][index] for feature in _features(point)])
        for index, (identifier, at) in enumerate(zip(identifiers, times.pop(), strict=True))
    ]


def _features(point: Point) -> dict[str, str]:
    """Name to type, without identifier and event time."""
    return dict(list(data.definitions(point.group.features).items())[KEYS:])


def _typed(pairs: data.Pairs) -> Row:
    texts = dict(pairs)
    kinds = {"Fractional": float, "Integral": int, "String": str}
    definitions = data.definitions(len(pairs))
    values = [kinds[definitions[name]](text) for name, text in texts.items() if name not in ("id", "at")]
    return texts["id"], _instant_us(texts["at"]), values


def _instant_us(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1e6)


def _checksum(rows: list[Row]) -> str:
    """Of values and their types: JSON has a point in every float and in no integer."""
    return f"{zlib.crc32(json.dumps(rows).encode()):08x}"


def _ratios(sheet: Sheet, point: Point, loads: dict[str, Load]) -> None:
    for who in FEAST:
        sheet.ratio(f"{point.name}: ours / {who} (requests/s)", loads[OURS].requests_per_s, loads[who].requests_per_s)
    for who in FEAST:
        sheet.ratio(f"{point.name}: {who} / ours (p99)", loads[who].p99_ms, loads[OURS].p99_ms)
