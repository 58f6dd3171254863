"""Bytes of memory that a record takes in Redis, beside a hash with one field per feature and a JSON text."""

from __future__ import annotations

import asyncio
import json
import time
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import redis

from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import Keyspace, open_keyspace
from featurestore.model import change as changes
from featurestore.model.change import Change, LoggedChange, Stamp, shard_of
from featurestore.model.codec import decode_values
from featurestore.model.feature_group import FeatureGroup, OfflineConfig, OnlineConfig
from featurestore.model.inference import definitions_from
from featurestore.model.record import RecordPlan
from featurestore.model.stamped_rows import StampedRows
from featurestore.online.redis import RedisOnlineStore
from featurestore.settings import Settings
from tests.bench import data
from tests.bench.sheet import Sheet
from tests.redis_server import RedisServer, server_version, wait_until

OURS, WAITING, REMEMBERED = "one value per record (ours)", "ours, its change in the outbox", "ours, the same with a write id"
HASH, JSON = "a hash, one field per feature", "a JSON text"
PACKED, EMPTY = "the packed values alone", "nothing, under the same key"
"""The least that one key for each record takes with a value of ours, and what the server takes for the key itself."""
PAGE = 1000
WARMING = 10
"""Records that are written first, so that what the server keeps for a script or a connection is there before."""
SETTLED_READINGS, READING_S = 5, 0.03
CHECKED = 1000


@dataclass(frozen=True, slots=True)
class Size:
    records: int


SIZES = {"tiny": Size(500), "canonical": Size(100_000)}
FEATURES = (10, 50)


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    sheet.parameters.update(
        {
            "server": f"{server_version()}, its own limits for compact hashes",
            "records": f"{size.records:,}, each under a key of the store's form; a third each of Fractional, Integral and String "
            "features beside identifier and event time",
            "memory": "difference of used_memory before and after, divided by the records: all that the server keeps for a key",
        }
    )
    for features in FEATURES:
        records = _Records(features, size.records)
        for number in range(rounds):
            say(f"{features} features, round {number + 1}/{rounds}")
            with _server(folder / f"redis-{features}-{number}") as (server, client):
                _round(sheet, records, server, client)


class _Records:
    """The same records as values of the store and as names and texts."""

    def __init__(self, features: int, count: int) -> None:
        definitions = definitions_from(data.definitions(features))
        group = FeatureGroup(
            name="records",
            record_identifier="id",
            event_time="at",
            features=definitions,
            online=OnlineConfig(),
            offline=OfflineConfig("s3://bucket"),
            group_id=1,
        )
        self.features = features
        self.names = [feature.name for feature in definitions]
        self._plan = RecordPlan(group)
        self._numbers = {feature.name for feature in definitions if feature.type != "String"}
        self.changes = [self._plan.put(data.record(str(number), features, 0)) for number in range(count)]

    def texts(self, change: Change) -> dict[str, str]:
        return dict(zip(self.names, map(str, decode_values(change.values)[1]), strict=True))

    def json(self, change: Change) -> bytes:
        """Names and values without spaces: numbers as the digits they were put with, all else as text."""
        shown = {name: text if name in self._numbers else json.dumps(text) for name, text in self.texts(change).items()}
        return f"{{{','.join(f'{json.dumps(name)}:{text}' for name, text in shown.items())}}}".encode()


def _round(sheet: Sheet, records: _Records, server: RedisServer, client: redis.Redis) -> None:
    sizes: dict[str, float] = {}
    payloads: dict[str, float] = {}
    put = [dict(data.record(change.record_id, records.features, 0)) for change in records.changes[:CHECKED]]
    answers = {"records as put": _checksum(records, put)}
    ways: dict[str, Callable[[Keyspace, Sequence[Change]], float]] = {
        OURS: _load,
        WAITING: lambda keyspace, some: _put(keyspace, some, write_ids=False),
        REMEMBERED: lambda keyspace, some: _put(keyspace, some, write_ids=True),
        HASH: lambda keyspace, some: _write_hashes(client, keyspace, records, some),
        JSON: lambda keyspace, some: _write_json(client, keyspace, records, some),
        PACKED: lambda keyspace, some: _write_values(client, keyspace, {change: change.values for change in some}),
        EMPTY: lambda keyspace, some: _write_values(client, keyspace, dict.fromkeys(some, b"")),
    }
    for row, write in ways.items():
        client.flushall()
        write(open_keyspace(parse_redis_url(server.url), data.SHARDS), records.changes[:WARMING])
        client.flushall()
        keyspace = open_keyspace(parse_redis_url(server.url), data.SHARDS)
        before = settled_bytes(client)
        payload_bytes = write(keyspace, records.changes)
        _require_all(client, keyspace, records.changes)
        sizes[row] = (settled_bytes(client) - before) / len(records.changes)
        payloads[row] = payload_bytes
        sheet.add(f"{records.features} features", row, {"bytes of memory": sizes[row], "payload, bytes": payload_bytes})
        if row == EMPTY:
            continue
        answers[row] = _checksum(records, _read(client, keyspace, records, row))
    key_bytes = sum(len(_key(keyspace, change)) for change in records.changes) / len(records.changes)
    sheet.add(f"{records.features} features", "the key of a record", {"payload, bytes": key_bytes})
    sheet.ratio(f"{HASH} / ours, {records.features} features", sizes[HASH], sizes[OURS])
    sheet.ratio(f"{JSON} / ours, {records.features} features", sizes[JSON], sizes[OURS])
    least = payloads[PACKED] + sizes[EMPTY]
    sheet.ratio(
        f"ours / packed values and the server's cost of a key (goal: 1.3), {records.features} features", sizes[OURS], least
    )
    sheet.check(f"records of {records.features} features", answers)


def _load(keyspace: Keyspace, some: Sequence[Change]) -> float:
    """The records as they stand when the outbox is empty. Answers the average size of a value."""
    stamps = [Stamp(shard_of(change.record_id, len(keyspace.keys)), 0, change.event_time_us) for change in some]
    rows = StampedRows.of_changes([LoggedChange(change, stamp) for change, stamp in zip(some, stamps, strict=True)])

    async def load(store: RedisOnlineStore) -> None:
        assert await store.load(rows) == len(rows)

    with _opened(keyspace) as store:
        asyncio.run(load(store))
    return _value_bytes(keyspace, some)


def _put(keyspace: Keyspace, some: Sequence[Change], *, write_ids: bool) -> float:
    """The same, put one after the other, and nothing taken from the outbox."""

    async def put(store: RedisOnlineStore) -> None:
        for page in _pages(some):
            await store.apply([_with_write_id(change) for change in page] if write_ids else page)

    with _opened(keyspace) as store:
        asyncio.run(put(store))
    return _value_bytes(keyspace, some)


def _with_write_id(change: Change) -> Change:
    return msgspec.structs.replace(change, write_id=changes.write_id(change.group_id, change.record_id, "token"))


def _write_hashes(client: redis.Redis, keyspace: Keyspace, records: _Records, some: Sequence[Change]) -> float:
    payload = 0
    for page in _pages(some):
        with client.pipeline(transaction=False) as pipeline:
            for change in page:
                texts = records.texts(change)
                payload += sum(len(name) + len(text) for name, text in texts.items())
                pipeline.hset(_key(keyspace, change), mapping=texts)
            pipeline.execute()
    return payload / len(some)


def _write_json(client: redis.Redis, keyspace: Keyspace, records: _Records, some: Sequence[Change]) -> float:
    payload = 0
    for page in _pages(some):
        with client.pipeline(transaction=False) as pipeline:
            for change in page:
                text = records.json(change)
                payload += len(text)
                pipeline.set(_key(keyspace, change), text)
            pipeline.execute()
    return payload / len(some)


def _write_values(client: redis.Redis, keyspace: Keyspace, values: Mapping[Change, bytes]) -> float:
    some = list(values)
    for page in _pages(some):
        client.mset({_key(keyspace, change): values[change] for change in page})
    return sum(map(len, values.values())) / len(some)


def _value_bytes(keyspace: Keyspace, some: Sequence[Change]) -> float:
    """The average length of the values under the records' keys."""
    total = 0
    with closing(keyspace.link()) as link:
        (node,) = link.nodes()
        for page in _pages(some):
            total += sum(link.on_node("measure", node, *(("STRLEN", _key(keyspace, change)) for change in page)))
    return total / len(some)


def _require_all(client: redis.Redis, keyspace: Keyspace, some: Sequence[Change]) -> None:
    """Every key must be there. Asking for each also lets the server finish the move to a larger table of keys."""
    there = sum(int(client.exists(*(_key(keyspace, change) for change in page))) for page in _pages(some))
    assert there == len(some), f"{there} of {len(some)} keys are there"


def _read(client: redis.Redis, keyspace: Keyspace, records: _Records, row: str) -> list[dict[str, str]]:
    """The first records, as names and texts, in the form that the row has them."""
    some = records.changes[:CHECKED]
    if row == HASH:
        hashes = [client.hgetall(_key(keyspace, change)) for change in some]
        return [{name.decode(): text.decode() for name, text in found.items()} for found in hashes]
    if row == JSON:
        return [json.loads(client.get(_key(keyspace, change)), parse_float=str, parse_int=str) for change in some]
    if row == PACKED:
        stored = client.mget([_key(keyspace, change) for change in some])
        return [records.texts(msgspec.structs.replace(change, values=found)) for change, found in zip(some, stored, strict=True)]

    async def read(store: RedisOnlineStore) -> list[dict[str, str]]:
        found = await store.get([(change.group_id, change.record_id) for change in some])
        assert None not in found
        return [
            records.texts(msgspec.structs.replace(change, values=record.values))
            for change, record in zip(some, found, strict=True)
            if record
        ]

    with _opened(keyspace) as store:
        return asyncio.run(read(store))


def _checksum(records: _Records, texts: list[dict[str, str]]) -> str:
    return f"{zlib.crc32(json.dumps([[found.get(name) for name in records.names] for found in texts]).encode()):08x}"


def _pages(some: Sequence[Change]) -> Iterator[Sequence[Change]]:
    for first in range(0, len(some), PAGE):
        yield some[first : first + PAGE]


def _key(keyspace: Keyspace, change: Change) -> bytes:
    return keyspace.keys[shard_of(change.record_id, data.SHARDS)].record(change.group_id, change.record_id)


def _opened(keyspace: Keyspace) -> Any:
    return closing(RedisOnlineStore(keyspace, outbox_changes_max=Settings().outbox_changes_max))


def settled_bytes(client: redis.Redis) -> int:
    """The server's used_memory once it stays as it is."""
    readings: list[int] = []

    def is_settled() -> bool:
        readings.append(int(client.info("memory")["used_memory"]))
        time.sleep(READING_S)
        return len(readings) >= SETTLED_READINGS and len(set(readings[-SETTLED_READINGS:])) == 1

    wait_until(is_settled, "used_memory has settled")
    return readings[-1]


@contextmanager
def _server(folder: Path) -> Iterator[tuple[RedisServer, redis.Redis]]:
    server = RedisServer(folder, auto_aof_rewrite_percentage="0")
    try:
        with server.client() as client:
            yield server, client
    finally:
        server.kill()
