"""What a store on Redis can't be faster than: `redis-benchmark` with the store's own bytes, on a server that nobody else uses."""

from __future__ import annotations

import re
import statistics
import zlib
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from featurestore.changelog.redis import RedisChangeLog
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import Keyspace, open_keyspace
from featurestore.model import change as changes
from featurestore.model.change import Change, LoggedChange
from featurestore.model.record import RecordPlan
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data, redis_benchmark
from tests.bench.record_load import BATCH_IDENTIFIERS, WRITTEN
from tests.bench.sheet import Sheet
from tests.redis_server import RedisServer

TABLE = "redis-benchmark"
PER_S = "requests/s"
GET, MGET = "GET", f"MGET of {BATCH_IDENTIFIERS}"
TOGETHER = 8
"""Changes of a script call when 32 callers put records of four shards at a time."""
APPLY, APPLY_TOGETHER = "EVALSHA of apply.lua, 1 change", f"EVALSHA of apply.lua, {TOGETHER} changes"
MINIMAL = "EVALSHA of GET, compare, SET"
MINIMAL_SCRIPT = """
local held = redis.call('GET', KEYS[1])
if held and tonumber(string.sub(held, 1, 16)) > tonumber(ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1] .. ARGV[2])
return 1
"""
"""The least that keeps the newest version of one packed value: no log, no repetition told apart, no stamp, no index."""
OLD, NEW = b"%016d" % data.START_US, b"%016d" % (data.START_US + 1)
"""Versions of that script: microseconds of an event time in decimal, which a double holds exactly."""
RECORD_ID = redis_benchmark.RANDOM.decode()
WRITE_ID = b"put-" + redis_benchmark.RANDOM
REPEATED_SHARE_MAX = 0.001


def _key(number: bytes) -> bytes:
    """As long as the store's."""
    return b"{fs:0}:r:1:" + number


RANDOM_KEY = _key(redis_benchmark.RANDOM)


@dataclass(frozen=True, slots=True)
class Size:
    """Requests of each command; those of `applies` are for one change each."""

    gets: int
    mgets: int
    applies: int
    minimal: int


class RedisLimits:
    """Measures one round's commands, each with CONNECTIONS connections.

    Args:
        change: what the online store is told of a put; see `put_change`.
        records: how many keys are read and written.
    """

    def __init__(self, sheet: Sheet, server: RedisServer, change: Change, records: int, size: Size) -> None:
        self._sheet = sheet
        self._server = server
        self._change = change
        self._records = records
        self._size = size

    def fill(self) -> None:
        """Keys and values as long as the store's, for `gets` and `mgets` to read."""
        with self._server.client() as client:
            client.flushall()
            self._fill(client, self._written(client))

    def gets(self) -> dict[str, float]:
        """Figures of reading one after `fill`, for `keep_gets`."""
        return redis_benchmark.measured(self._server.port, ["GET", RANDOM_KEY], self._size.gets, numbers=self._records)

    def keep_gets(self, several: Sequence[dict[str, float]]) -> None:
        """The mean of one round's figures of `gets`."""
        means = {name: statistics.mean(figures[name] for figures in several) for name in several[0]}
        self._sheet.add(TABLE, GET, means | {"records/s": means[PER_S]})

    def mgets(self) -> float:
        """Records per second of reading BATCH_IDENTIFIERS at a time after `fill`."""
        return self._row(MGET, ["MGET", *[RANDOM_KEY] * BATCH_IDENTIFIERS], self._size.mgets, BATCH_IDENTIFIERS)

    def writes(self) -> dict[str, float]:
        """Records per second of writing, by row."""
        return {
            MINIMAL: self._minimal(),
            APPLY: self._apply(APPLY, 1, self._size.applies),
            APPLY_TOGETHER: self._apply(APPLY_TOGETHER, TOGETHER, self._size.applies // 4),
        }

    def _keyspace(self) -> Keyspace:
        return open_keyspace(parse_redis_url(self._server.url), data.SHARDS)

    def _written(self, client: Any) -> bytes:
        """The bytes of a record, as the store writes them."""
        call = redis_benchmark.sent_for(self._keyspace(), self._change, outbox_changes_max=Settings().outbox_changes_max)
        written = client.get(call.command[3 + redis_benchmark.FIXED_KEYS])
        assert isinstance(written, bytes)
        return written

    def _fill(self, client: Any, value: bytes) -> None:
        with client.pipeline(transaction=False) as pipeline:
            for number in range(self._records):
                pipeline.set(_key(b"%012d" % number), value)
            pipeline.execute()

    def _row(self, row: str, command: Sequence[bytes | str | int], count: int, records: int) -> float:
        measured = redis_benchmark.measured(self._server.port, command, count, numbers=self._records)
        self._sheet.add(TABLE, row, measured | {"records/s": measured[PER_S] * records})
        return measured[PER_S] * records

    def _minimal(self) -> float:
        """Each call finds an older version under its key, or the same."""
        with self._server.client() as client:
            client.flushall()
            # redis-benchmark can't send zero bytes, and would put other numbers for the record's id.
            value = self._change.values.replace(b"\0", b"\1").replace(redis_benchmark.RANDOM, b"0" * 12)
            self._fill(client, OLD + value)
            sha = client.script_load(MINIMAL_SCRIPT)
            per_s = self._row(MINIMAL, ["EVALSHA", sha, 1, RANDOM_KEY, NEW, value], self._size.minimal, 1)
            keys = [_key(b"%012d" % number) for number in range(self._records)]
            found = dict(zip(client.mget(keys), keys, strict=True))
            assert found.keys() - {OLD + value} == {NEW + value}, "each value is the old one or the new one, and some are new"
            newer = found[NEW + value]
            assert client.evalsha(sha, 1, newer, OLD, b"") == 0, "an older version is refused"
            self._sheet.check(
                f"value of {MINIMAL}", {"sent": _crc(NEW + value), f"after {TABLE} and an older version": _crc(client.get(newer))}
            )
        return per_s

    def _apply(self, row: str, together: int, count: int) -> float:
        """The very script of PutRecord with the arguments that the store sends. Every call writes new records."""
        with self._server.client() as client:
            client.flushall()
            keyspace = self._keyspace()
            call = redis_benchmark.sent_for(keyspace, self._change, outbox_changes_max=Settings().outbox_changes_max)
            script, arguments = redis_benchmark.repeatable_call(call, changes=together)
            sha = client.script_load(script)
        measured = redis_benchmark.measured(self._server.port, ["EVALSHA", sha, *arguments], count)
        self._sheet.add(TABLE, row, measured | {"records/s": measured[PER_S] * together})
        self._check_entries(row, keyspace, 1 + count * together)
        return measured[PER_S] * together

    def _check_entries(self, row: str, keyspace: Keyspace, count: int) -> None:
        """Every change must stand in the outbox and be, but for its random parts, the one that the store has sent first."""
        with closing(RedisChangeLog(keyspace)) as log:
            entries = [entry.item for shard in range(log.shards()) for entry in log.read(shard, 1, count + 1)]
        # Of two calls that were given the same number as write id the second one is a repetition, which writes nothing.
        assert REPEATED_SHARE_MAX * count >= count - len(entries) >= 0, f"{len(entries)} entries of {count} changes"
        found = " ".join(sorted({_digest(item.change) for item in entries if isinstance(item, LoggedChange)}))
        self._sheet.check(
            f"change of {row}", {"sent by the store": _digest(self._change), f"all in the outbox of {TABLE}": found}
        )


def put_change(settings: Settings) -> Change:
    """What PutRecord makes of a record of ten features that an AWS SDK sends, with RANDOM where each call has something else."""
    with FeatureStore(settings) as store:
        plan: RecordPlan = store.groups.plan(WRITTEN)
        change = plan.put([("id", RECORD_ID), *data.record("1", 10, 1)[1:]])
    assert len(WRITE_ID) == len(changes.write_id(1, RECORD_ID, "token"))
    return Change(*(WRITE_ID if name == "write_id" else getattr(change, name) for name in change.__struct_fields__))


def _crc(value: bytes) -> str:
    return f"{zlib.crc32(value):08x}"


def _digest(change: Change) -> str:
    """Of a change, with the twelve places of its identifier made equal."""
    values = re.sub(rb"[0-9]{12}|" + redis_benchmark.RANDOM, b"#" * 12, change.values)
    facts = (change.group_id, change.schema_version, change.op, change.targets, change.event_time_us, len(change.record_id))
    return _crc(repr((facts, values)).encode())
