"""The parts of a batch ingest beside the least that each could take: Parquet files by hour of the same rows, and the very same
script calls as ready bytes."""

from __future__ import annotations

import asyncio
import shutil
import time
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import pandas as pd
import pyarrow as pa
import redis

from featurestore.batch_ingest import LOAD_PROGRESS_ROWS, api_times, batch_rows, records_of
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.layout import decode_record
from featurestore.keyspace.opening import open_keyspace
from featurestore.model.columns import checked_columns
from featurestore.model.feature_group import TargetStore
from featurestore.online.redis import RedisOnlineStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data, ingest_peers
from tests.bench.answers import table_checksum
from tests.bench.ingest import GROUP, PARQUET, SIZES, online_checksum, stored_rows
from tests.bench.isolated import isolated
from tests.bench.redis_benchmark import Recording
from tests.bench.sheet import Sheet
from tests.redis_server import BINARY, DURABLE, MISSING, RedisServer, server_version

OFFLINE = "store.ingest, offline store alone"
LOAD = "the load of store.ingest"
RAW = "the same script calls as ready bytes, pipelined"
SCANNED = 10_000


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    assert BINARY is not None, MISSING
    size = SIZES[size_name]
    frame = data.events(size.rows, size.identifiers)
    path, calls = folder / "events.parquet", folder / "calls"
    frame.to_parquet(path, index=False)
    sheet.parameters.update(
        {
            "frame": f"pandas, {size.rows:,} rows x {len(frame.columns)} features (texts, integers, floats, times)",
            "identifiers": f"{frame['id'].nunique():,} distinct",
            "event times": f"{data.HOURS} hours",
            "server": f"{server_version()} with an append-only file synced every second",
            "load": "the last step of an ingest into both stores (IngestReport.took_s); what it sends is put together within it",
        }
    )
    given = table_checksum(pa.Table.from_pandas(frame, preserve_index=False))
    newest = frame.loc[frame.groupby("id")["n"].idxmax()]
    given_newest = table_checksum(pa.Table.from_pandas(newest, preserve_index=False))
    server = RedisServer(folder / "redis", **DURABLE)
    try:
        with closing(redis.Redis(port=server.port)) as client:
            _anew(client, folder)
            isolated(record_load, frame=path, home=folder / "home", url=server.url, calls=calls)
            for number in range(rounds):
                say(f"round {number + 1}/{rounds}")
                _offline(sheet, path, folder, given)
                _online(sheet, path, folder, client, server, calls, given_newest)
    finally:
        server.kill()


def _offline(sheet: Sheet, path: Path, folder: Path, given: str) -> None:
    took_s = {}
    answers = {"given": given}
    for name, step in ((OFFLINE, ingest_offline), (PARQUET, ingest_peers.write_parquet)):
        target = folder / "target"
        outcome = isolated(step, frame=path, target=target)
        shutil.rmtree(target)
        took_s[name] = outcome.answer["took_s"]
        answers[name] = outcome.answer["offline"]
        figures = {"rows/s": outcome.answer["rows"] / took_s[name], "took, s": took_s[name], "CPU, s": outcome.answer["cpu_s"]}
        sheet.add("Into files by hour", name, figures | {"peak memory, MiB": outcome.rss_bytes_max / 2**20})
    sheet.ratio("rate of store.ingest, offline store alone / of a plain Parquet write", took_s[PARQUET], took_s[OFFLINE])
    sheet.check("every row offline", answers)


def _online(
    sheet: Sheet, path: Path, folder: Path, client: redis.Redis, server: RedisServer, calls: Path, given_newest: str
) -> None:
    took_s = {}
    answers = {}
    for name in (LOAD, RAW):
        _anew(client, folder)
        if name == LOAD:
            outcome = isolated(ingest_online, frame=path, home=folder / "home", url=server.url)
            sheet.check("newest rows online", {"given": given_newest, LOAD: outcome.answer["online"]})
        else:
            outcome = isolated(ingest_peers.send_calls, calls=calls, port=server.port)
        records, took_s[name] = outcome.answer["records"], outcome.answer["took_s"]
        answers[name] = _records_checksum(client)
        sheet.add(
            "Into Redis, the newest row per identifier", name, {"records/s": records / took_s[name], "took, s": took_s[name]}
        )
    sheet.ratio("rate of the load of store.ingest / of the same script calls as ready bytes", took_s[RAW], took_s[LOAD])
    sheet.check("records in Redis", answers)


def _anew(client: redis.Redis, folder: Path) -> None:
    client.flushall()
    shutil.rmtree(folder / "home", ignore_errors=True)


def _records_checksum(client: redis.Redis) -> str:
    """Of all records: identifier, event time and values."""
    total = 0
    keys = list(client.scan_iter(match="*:r:*", count=SCANNED))
    for start in range(0, len(keys), SCANNED):
        page = keys[start : start + SCANNED]
        for key, value in zip(page, client.mget(page), strict=True):
            record = decode_record(value)
            record_id = key.rpartition(b":")[2]
            total += zlib.crc32(b"%b %d %b" % (record_id, record.event_time_us, record.values))
    return f"{total:016x}"


def ingest_offline(frame: str, target: str) -> dict[str, Any]:
    events = pd.read_parquet(frame)
    with FeatureStore(Settings(home=Path(target))) as store:
        store.create_feature_group(GROUP, record_identifier="id", event_time="at", features=events)
        began_s, began_cpu_s = time.perf_counter(), time.process_time()
        report = store.ingest(GROUP, events, targets=frozenset({TargetStore.OFFLINE}), progress=False)
        took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    offline = table_checksum(stored_rows(Path(target) / "offline", list(events.columns)))
    return {"took_s": took_s, "cpu_s": cpu_s, "rows": report.rows, "offline": offline}


def ingest_online(frame: str, home: str, url: str) -> dict[str, Any]:
    events = pd.read_parquet(frame)
    with FeatureStore(Settings.load({}, home=Path(home), online_url=url)) as store:
        store.create_feature_group(GROUP, record_identifier="id", event_time="at", features=events)
        report = store.ingest(GROUP, events, progress=False)
        online = online_checksum(store, events)
    return {"took_s": report.took_s["load"], "records": report.online_newest, "online": online}


def record_load(frame: str, home: str, url: str, calls: str) -> dict[str, Any]:
    """Load the frame as an ingest does, and keep what it sends: the script, and the bytes of each call of it."""
    events = pd.read_parquet(frame)
    with FeatureStore(Settings.load({}, home=Path(home), online_url=url)) as store:
        group = store.create_feature_group(GROUP, record_identifier="id", event_time="at", features=events)
        keyspace = open_keyspace(parse_redis_url(url), store.shards)
        batch = checked_columns(group, events)
        records = records_of(batch, store.shards)
        times_us = api_times(records.shards[records.of_rows], dict.fromkeys(range(store.shards), time.time_ns() // 1000))
        rows = batch_rows(group, batch, records, times_us, frozenset(TargetStore)).online
    assert rows is not None
    recording = Recording(keyspace.address, keyspace.keys, keyspace.salt)
    with closing(RedisOnlineStore(recording, outbox_changes_max=1)) as online:
        for start in range(0, len(rows), LOAD_PROGRESS_ROWS):
            asyncio.run(online.load(rows.slice(start, LOAD_PROGRESS_ROWS)))
    script = recording.calls[0].script
    assert script is not None
    Path(calls).write_bytes(msgspec.msgpack.encode([script.source.encode(), *(call.packed for call in recording.calls)]))
    return {}
