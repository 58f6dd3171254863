"""Records over HTTP with the online store on Redis, beside the embedded store and `redis-benchmark` with the same script."""

from __future__ import annotations

import re
import subprocess
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import redis

from featurestore.changelog.redis import RedisChangeLog
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import Keyspace, open_keyspace
from featurestore.model import change as changes
from featurestore.model.change import Change, LoggedChange
from featurestore.model.record import RecordPlan
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data, redis_benchmark
from tests.bench.load import CONNECTIONS, Load
from tests.bench.record_load import (
    BATCH_IDENTIFIERS,
    PUT,
    WRITTEN,
    Group,
    Work,
    answered,
    batch_work,
    figures,
    get_work,
    load_records,
    put_records,
)
from tests.bench.sheet import Sheet
from tests.redis_server import BINARY, RedisServer
from tests.service import Service

ON_REDIS, EMBEDDED = "on Redis", "embedded, on SQLite"
BARE = "redis-benchmark"
GET, MGET = "GET", f"MGET of {BATCH_IDENTIFIERS}"
SHARDS = 4
"""As many as a store has by default."""
TOGETHER = 8
"""Changes of a script call when 32 callers put records of four shards at a time."""
APPLY, APPLY_TOGETHER = "EVALSHA of apply.lua, 1 change", f"EVALSHA of apply.lua, {TOGETHER} changes"
RECORD_ID = redis_benchmark.RANDOM.decode()
WRITE_ID = b"put-" + redis_benchmark.RANDOM
REPEATED_SHARE_MAX = 0.001
DURABLE = {"appendonly": "yes", "appendfsync": "everysec"}


@dataclass(frozen=True, slots=True)
class Size:
    """Counts of `redis-benchmark` are requests; those of `calls` are for one change each."""

    records: int
    distinct: int
    gets: int
    batches: int
    puts: int
    bare_gets: int
    bare_batches: int
    calls: int


SIZES = {
    "tiny": Size(300, 20, 100, 20, 100, 500, 50, 200),
    "canonical": Size(100_000, 1000, 10_000, 500, 10_000, 200_000, 10_000, 60_000),
}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    sheet.parameters.update(
        {
            "server": f"{server_version()} on the same machine, append-only file synced every second",
            "connections": f"{CONNECTIONS}, also of redis-benchmark",
            "records": f"{size.records:,} of 10 features",
            "requests per round": f"{size.gets:,} GetRecord, {size.batches:,} BatchGetRecord, {size.puts:,} PutRecord; bare: "
            f"{size.bare_gets:,} GET, {size.bare_batches:,} MGET, {size.calls:,} EVALSHA of 1 change, a quarter of 8 changes",
            "settings": "defaults",
        }
    )
    with ExitStack() as stack:
        server = RedisServer(folder / "redis", **DURABLE)
        stack.callback(server.kill)
        bare = RedisServer(folder / "bare", **DURABLE)
        stack.callback(bare.kill)
        group = Group("narrow", 10, size.records)
        ports = {}
        for who, url in ((ON_REDIS, server.url), (EMBEDDED, None)):
            say(f"loading the store {who}")
            home = folder / who.replace(" ", "-")
            load_records(Settings.load({}, home=home, online_url=url), group)
            settings = {} if url is None else {"online_url": url}
            ports[who] = stack.enter_context(Service(home, folder / f"{home.name}.log", **settings)).port
        reads = {
            who: [
                get_work(port, group, distinct=size.distinct, count=size.gets),
                batch_work(port, group, distinct=size.distinct // 20, count=size.batches),
            ]
            for who, port in ports.items()
        }
        change = _change(folder / ON_REDIS.replace(" ", "-"), server.url)
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            found = {who: _http(sheet, who, ports[who], reads[who], size.puts) for who in ports}
            _ratios(sheet, found, _bare(sheet, bare, change, size))


def _http(sheet: Sheet, who: str, port: int, reads: Sequence[Work], puts: int) -> dict[str, Load]:
    found = {}
    for work in reads:
        load = found[work.name] = answered(sheet, work, port, None, who=f"answers {who}")
        half = answered(sheet, work, port, load.requests_per_s / 2, who=f"answers {who}")
        at_half = {"p50 at half load, ms": half.p50_ms, "p99 at half load, ms": half.p99_ms}
        sheet.add("The service", f"{work.name}, {who}", figures(load) | at_half)
    found[PUT] = put_records(sheet, puts, port, who=f"read back {who}")
    sheet.add("The service", f"{PUT}, {who}", figures(found[PUT]))
    return found


def _change(home: Path, url: str) -> Change:
    """What PutRecord makes of a record of ten features that an AWS SDK sends, with RANDOM where each call has something else."""
    with FeatureStore(Settings.load({}, home=home, online_url=url)) as store:
        plan: RecordPlan = store.groups.plan(WRITTEN)
        pairs = [("id", RECORD_ID), *data.record("1", 10, 1)[1:]]
        change = plan.put(pairs)
    assert len(WRITE_ID) == len(changes.write_id(1, RECORD_ID, "token"))
    return Change(*(WRITE_ID if name == "write_id" else getattr(change, name) for name in change.__struct_fields__))


def _bare(sheet: Sheet, server: RedisServer, change: Change, size: Size) -> dict[str, float]:
    """Requests per second of `redis-benchmark`, by row."""
    with server.client() as client:
        client.flushall()
        keyspace = open_keyspace(parse_redis_url(server.url), SHARDS)
        call = redis_benchmark.sent_for(keyspace, change, outbox_changes_max=Settings().outbox_changes_max)
        written = client.get(call.command[3 + redis_benchmark.FIXED_KEYS])
        assert isinstance(written, bytes)
        found = {GET: _plain(client, server, written, size, sheet)}
        found[MGET] = _row(
            sheet, server, MGET, ["MGET", *[_key(redis_benchmark.RANDOM)] * BATCH_IDENTIFIERS], size.bare_batches, size
        )
        for row, together, calls in ((APPLY, 1, size.calls), (APPLY_TOGETHER, TOGETHER, size.calls // 4)):
            client.flushall()
            keyspace = open_keyspace(parse_redis_url(server.url), SHARDS)
            call = redis_benchmark.sent_for(keyspace, change, outbox_changes_max=Settings().outbox_changes_max)
            script, arguments = redis_benchmark.repeatable_call(call, changes=together)
            sha = client.script_load(script)
            measured = redis_benchmark.measured(server.port, ["EVALSHA", sha, *arguments], calls)
            found[row] = measured["requests/s"] * together
            sheet.add(BARE, row, measured | {"records/s": found[row]})
            _check_entries(sheet, row, keyspace, change, 1 + calls * together)
    return found


def _plain(client: redis.Redis, server: RedisServer, value: bytes, size: Size, sheet: Sheet) -> float:
    """GET of a record's bytes under as many keys as the store has records, each the same length as the store's."""
    with client.pipeline(transaction=False) as pipeline:
        for number in range(size.records):
            pipeline.set(_key(b"%012d" % number), value)
        pipeline.execute()
    return _row(sheet, server, GET, ["GET", _key(redis_benchmark.RANDOM)], size.bare_gets, size)


def _row(sheet: Sheet, server: RedisServer, row: str, command: Sequence[bytes | str], count: int, size: Size) -> float:
    measured = redis_benchmark.measured(server.port, command, count, numbers=size.records)
    records = len(command) - 1
    sheet.add(BARE, row, measured | {"records/s": measured["requests/s"] * records})
    return measured["requests/s"] * records


def _key(number: bytes) -> bytes:
    return b"{fs:0}:r:1:" + number


def _check_entries(sheet: Sheet, row: str, keyspace: Keyspace, change: Change, count: int) -> None:
    """Every change must stand in the outbox and be, but for its random parts, the one that the store has sent first."""
    with closing(RedisChangeLog(keyspace)) as log:
        entries = [entry.item for shard in range(log.shards()) for entry in log.read(shard, 1, count + 1)]
    # Of two calls that were given the same number as write id the second one is a repetition, which writes nothing.
    assert REPEATED_SHARE_MAX * count >= count - len(entries) >= 0, f"{len(entries)} entries of {count} changes"
    found = " ".join(sorted({_digest(item.change) for item in entries if isinstance(item, LoggedChange)}))
    sheet.check(f"change of {row}", {"sent by the store": _digest(change), f"all in the outbox of {BARE}": found})


def _digest(change: Change) -> str:
    """Of a change, with the twelve places of its identifier made equal."""
    values = re.sub(rb"[0-9]{12}|" + redis_benchmark.RANDOM, b"#" * 12, change.values)
    facts = (change.group_id, change.schema_version, change.op, change.targets, change.event_time_us, len(change.record_id))
    return f"{zlib.crc32(repr((facts, values)).encode()):08x}"


def _ratios(sheet: Sheet, found: dict[str, dict[str, Load]], bare: dict[str, float]) -> None:
    get, batch = "GetRecord, 10 features", f"BatchGetRecord, {BATCH_IDENTIFIERS} x 10 features"
    here = found[ON_REDIS]
    for name in (get, batch, PUT):
        sheet.ratio(f"{name}: on Redis / embedded (requests/s)", here[name].requests_per_s, found[EMBEDDED][name].requests_per_s)
    sheet.ratio(f"redis-benchmark GET / {get} on Redis", bare[GET], here[get].requests_per_s)
    sheet.ratio(f"redis-benchmark {MGET} / {batch} on Redis", bare[MGET], here[batch].requests_per_s * BATCH_IDENTIFIERS)
    sheet.ratio(f"redis-benchmark {APPLY} / {PUT} on Redis (records)", bare[APPLY], here[PUT].requests_per_s)
    sheet.ratio(f"redis-benchmark {APPLY_TOGETHER} / {PUT} on Redis (records)", bare[APPLY_TOGETHER], here[PUT].requests_per_s)


def server_version() -> str:
    assert BINARY is not None, "redis-server is missing; run tests/redis/install.sh"
    words = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return f"Redis {next(word.removeprefix('v=') for word in words if word.startswith('v='))}"
