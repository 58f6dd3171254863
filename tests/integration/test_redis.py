"""What goes wrong with real Redis servers, and what becomes of the store then."""

from __future__ import annotations

import asyncio
import logging
import random
import subprocess
import threading
import uuid
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager, nullcontext
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import pytest
from redis.crc import key_slot

from featurestore.changelog.protocol import ChangeSource
from featurestore.errors import FeatureStoreError, OutboxFull, StoreCorrupt, StoreUnavailable
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import open_keyspace
from featurestore.model.change import Applied, Change, Op, Outcome, shard_of
from featurestore.online.opening import open_online_store
from featurestore.online.protocol import OnlineStore
from featurestore.online.redis import RedisOnlineStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.backends import put
from tests.conftest import RunningRedis
from tests.integration.conftest import Http, definitions, record
from tests.lossy_proxy import LossyProxy
from tests.redis_server import RedisCluster, RedisSentinel, RedisServer, free_port, require_redis, wait_until
from tests.service import Service

SHARDS = 2
OUTBOX_MAX = 1_000_000
SECRET = "hush-7f3a"
WRITE_ID = b"0123456789abcdef"


class Opened:
    """A store with its log, and a loop to run it on, with connections of its own if it is served."""

    served = False

    def __init__(self, url: str, outbox_changes_max: int = OUTBOX_MAX) -> None:
        self.store: OnlineStore
        self.log: ChangeSource
        self.store, self.log = open_online_store(url, SHARDS, outbox_changes_max=outbox_changes_max)
        self.loop = asyncio.new_event_loop()
        self._serving = AsyncExitStack()
        if self.served:
            self.run(self._serving.enter_async_context(self.store.serving()))

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)

    def apply(self, *changes: Change) -> Sequence[Applied]:
        return self.run(self.store.apply(changes))

    def read(self, record_id: str) -> bytes | None:
        (found,) = self.run(self.store.get([(1, record_id)]))
        return None if found is None else found.values

    def logged(self) -> list[str]:
        return [entry.item.change.record_id for shard in range(SHARDS) for entry in self.log.read(shard, 1, 100_000)]

    def close(self) -> None:
        self.run(self._serving.aclose())
        self.store.close()
        self.log.close()
        self.run(self.loop.shutdown_default_executor())
        self.loop.close()


@pytest.fixture(params=[False, True], ids=["threads", "connections"], autouse=True)
def served(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Opened, "served", request.param)


@pytest.fixture
def opened(redis_server: RedisServer) -> Iterator[Opened]:
    with closing(Opened(redis_server.url)) as opened:
        yield opened


def test_scripts_that_the_server_forgot_are_sent_again(redis_server: RedisServer, opened: Opened) -> None:
    shard = shard_of("a", SHARDS)
    for number in range(3):
        with redis_server.client() as client:
            client.script_flush()
        opened.apply(put("a", number, b"%d" % number))
        opened.run(opened.store.reserve({shard: 1}))
        opened.log.trim(shard, 1)
        with opened.store.snapshot(1) as snapshot, redis_server.client() as client:
            client.script_flush()
            assert sum(batch.num_rows for batch in snapshot.states()) == 1
    assert opened.read("a") == b"2"
    assert opened.logged() == ["a", "a", "a"]


@pytest.mark.parametrize("value", [[b"a list"], b"a text", b"\x01"], ids=["list", "text", "short"])
def test_a_foreign_key_in_place_of_a_record_is_left_alone(redis_server: RedisServer, opened: Opened, value: Any) -> None:
    shard = shard_of("a", SHARDS)
    key = b"{fs:%d}:r:1:a" % shard
    with redis_server.client() as client:
        client.rpush(key, *value) if isinstance(value, list) else client.set(key, value)

        async def both() -> list[Any]:
            calls = [opened.store.apply([put(record_id, 1)]) for record_id in ("a", "b", "c")]
            return await asyncio.gather(*calls, return_exceptions=True)

        foreign, *others = opened.run(both())
        assert isinstance(foreign, StoreCorrupt)
        assert "prefix" in str(foreign)
        assert [answer[0].outcome for answer in others] == [Outcome.NEWEST] * 2
        assert sorted(opened.logged()) == ["b", "c"]
        assert client.lrange(key, 0, -1) == value if isinstance(value, list) else client.get(key) == value


@contextmanager
def foreign_key(server: RedisServer, name: str) -> Iterator[None]:
    """Another program's text where a shard of the store has something of its own, and that again."""
    key = f"{{fs:{shard_of('a', SHARDS)}}}:{name}"
    with server.client() as client:
        before = client.dump(key)
        client.set(key, "foreign")
        yield
        client.delete(key)
        if before is not None:
            client.restore(key, 0, before)


@pytest.mark.parametrize("name", ["m", "o", "t", "w0", "w1", "s"])
def test_a_foreign_key_in_place_of_the_stores_own_keeps_everything_out(
    redis_server: RedisServer, opened: Opened, name: str
) -> None:
    opened.apply(put("a", 1, b"kept"))
    change = put("a", 2, b"whole", write_id=WRITE_ID)
    with opened.store.snapshot(1) if name == "s" else nullcontext(), foreign_key(redis_server, name):
        with pytest.raises(StoreCorrupt, match="hold what it has not written"):
            opened.apply(put("b", 1, b"half"), put("a", 2, b"half"), change)
        assert opened.read("a") == b"kept"
    assert opened.logged() == ["a"]
    opened.apply(change)
    assert opened.logged() == ["a", "a"]
    with opened.store.snapshot(1) as snapshot:
        assert sum(tally.changes for tally in snapshot.tallies().values()) == 2


@pytest.mark.parametrize("name", ["w0", "w1", "s"])
def test_a_foreign_key_that_a_change_has_no_use_for_does_not_matter_to_it(
    redis_server: RedisServer, opened: Opened, name: str
) -> None:
    """Without a write id, and while no snapshot is read."""
    with foreign_key(redis_server, name):
        opened.apply(put("a", 1, b"half"), put("a", 2, b"whole"))
        assert opened.read("a") == b"whole"
        assert opened.logged() == ["a", "a"]


def test_numbers_that_the_scripts_write_are_exact(redis_server: RedisServer) -> None:
    """Of up to 16 digits, which a Lua number holds but does not show of itself."""
    edges = {edge + by for edge in (0, 10**8, 2**31, 2**32, 10**14, 10**15, 2**53) for by in range(-3, 4)}
    edges |= {number * 10**8 + by for number in (22, 12_345_678, 2**26, 90_071_992) for by in (-1, 0, 1)}
    draw = random.Random(1)
    numbers = [number for number in edges if 0 <= number < 2**53] + [
        draw.randrange(2 ** draw.randrange(1, 54)) for _ in range(5000)
    ]
    source = (files("featurestore.keyspace") / "common.lua").read_text()
    loop = "for i, number in ipairs(ARGV) do ARGV[i] = text(tonumber(number)) end return ARGV"
    with redis_server.client() as client:
        assert [int(text) for text in client.eval(source + loop, 0, *numbers)] == numbers


@pytest.mark.parametrize("name", ["i:1", "i:1:"], ids=["directory", "leaf"])
def test_a_foreign_key_in_place_of_the_index_keeps_new_records_out(redis_server: RedisServer, opened: Opened, name: str) -> None:
    with redis_server.client() as client:
        client.set(f"{{fs:{shard_of('a', SHARDS)}}}:{name}", "foreign")
        with pytest.raises(StoreCorrupt, match="hold what it has not written"):
            opened.apply(put("a", 1, b"half"))
        assert opened.read("a") is None
        assert opened.logged() == []


def test_an_outbox_that_stands_further_than_its_shard_knows_keeps_everything_out(
    redis_server: RedisServer, opened: Opened
) -> None:
    opened.apply(put("a", 1, b"kept"), put("a", 2, b"kept"))
    with redis_server.client() as client:
        client.delete(f"{{fs:{shard_of('a', SHARDS)}}}:m")
    with pytest.raises(StoreCorrupt, match="hold what it has not written"):
        opened.apply(put("a", 3, b"half"))
    assert opened.read("a") == b"kept"


def test_memory_that_runs_out_refuses_writes_whole(tmp_path: Path) -> None:
    require_redis()
    server = RedisServer(tmp_path / "redis", maxmemory="4mb")
    try:
        with closing(Opened(server.url)) as opened:
            written: list[str] = []

            def fill() -> None:
                for number in range(100_000):
                    changes = [put(f"key-{number}-{part}", 1, b"x" * 500) for part in range(20)]
                    opened.apply(*changes)
                    written.extend(change.record_id for change in changes)

            with pytest.raises(StoreUnavailable, match=r"out of memory .*raise `maxmemory`"):
                fill()
            assert len(written) > 1000
            # Of the call that failed each shard has all or nothing.
            logged = opened.logged()
            found = opened.run(opened.store.get([(1, record_id) for record_id in logged]))
            assert all(record is not None for record in found)
            assert set(written) <= set(logged)
            for shard, end in opened.log.ends().items():
                opened.log.trim(shard, end)
            assert opened.logged() == []
            opened.apply(put("after", 1))
            assert opened.logged() == ["after"]
            with opened.store.snapshot(1) as snapshot:
                assert sum(tally.changes for tally in snapshot.tallies().values()) == snapshot.records() == len(logged) + 1
    finally:
        server.kill()


def test_a_killed_server_keeps_what_was_acknowledged(redis_server: RedisServer, opened: Opened) -> None:
    acknowledged: list[int] = []

    async def write(number: int) -> None:
        await opened.store.apply([put(f"key-{number % 50}", number, b"%d" % number)])
        acknowledged.append(number)

    async def write_until_killed() -> None:
        for start in range(0, 1_000_000, 64):
            await asyncio.gather(*map(write, range(start, start + 64)))

    killer = threading.Timer(0.3, redis_server.kill)
    killer.start()
    with pytest.raises(StoreUnavailable):
        opened.run(write_until_killed())
    killer.join()
    redis_server.start()
    logged = {entry.item.change.event_time_us for shard in range(SHARDS) for entry in opened.log.read(shard, 1, 10**6)}
    assert len(acknowledged) > 100
    assert set(acknowledged) <= logged
    newest = {f"key-{number % 50}": number for number in sorted(logged)}
    assert {key: opened.read(key) for key in newest} == {key: b"%d" % number for key, number in newest.items()}


def test_a_server_that_is_gone_says_so_and_is_found_again(redis_server: RedisServer, opened: Opened) -> None:
    opened.apply(put("a", 1, b"before"))
    redis_server.kill()
    failures: list[Callable[[], object]] = [
        lambda: opened.apply(put("a", 2)),
        lambda: opened.read("a"),
        opened.log.ends,
        lambda: opened.run(opened.store.reserve({0: 1})),
        lambda: opened.run(opened.store.drop_group(1)),
        lambda: opened.store.snapshot(1).__enter__(),
        lambda: Opened(redis_server.url),
    ]
    for failure in failures:
        with pytest.raises(StoreUnavailable, match=f"{redis_server.host}: .*is the server running"):
            failure()
    redis_server.start()
    assert opened.read("a") == b"before"
    opened.apply(put("a", 2, b"after"))
    assert opened.read("a") == b"after"


def test_a_restart_between_two_calls_is_not_noticed(redis_server: RedisServer, opened: Opened) -> None:
    opened.apply(put("a", 1))
    for number in range(2, 5):
        redis_server.restart()
        opened.apply(put("a", number))
    assert opened.logged() == ["a"] * 4


def test_a_server_that_lost_its_newest_data_does_not_give_its_stamps_again(
    redis_server: RedisServer, opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    shard = shard_of("a", SHARDS)
    opened.apply(*(put("a", number) for number in range(10)))
    opened.log.trim(shard, 9)
    with redis_server.client() as client:
        client.flushall()
    assert opened.log.ends()[shard] == 9
    assert "has lost its last 8 changes" in caplog.text
    assert opened.apply(put("a", 10))[0].stamp.seq == 9
    assert [entry.offset for entry in opened.log.read(shard, 9, 10)] == [9]


def test_a_server_that_does_not_answer_in_time(redis_server: RedisServer) -> None:
    with closing(Opened(f"{redis_server.url}?timeout_s=0.2")) as opened:
        opened.apply(put("a", 1, b"before"))
        redis_server.freeze()
        try:
            with pytest.raises(StoreUnavailable, match="Timeout"):
                opened.apply(put("a", 2, b"later"))
            with pytest.raises(StoreUnavailable, match="Timeout"):
                opened.read("a")
        finally:
            redis_server.thaw()
        assert wait_until(lambda: opened.read("a") == b"later", "the change takes effect, as it was sent")
        assert opened.logged() == ["a", "a"]


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[LossyProxy]:
    with closing(LossyProxy(redis_server.port)) as proxy:
        yield proxy


def test_a_change_whose_answer_is_lost_is_not_repeated(redis_server: RedisServer, proxy: LossyProxy) -> None:
    with closing(Opened(f"redis://127.0.0.1:{proxy.port}")) as opened:
        opened.apply(put("a", 1))
        proxy.lose_answer_to(b"needle")
        with pytest.raises(StoreUnavailable, match=f"127.0.0.1:{proxy.port}"):
            opened.apply(put("a", 2, b"needle"))
        assert opened.read("a") == b"needle"
        assert opened.logged() == ["a", "a"]
        assert proxy.lost == 1


def test_a_change_with_a_write_id_whose_answer_is_lost_takes_effect_once(redis_server: RedisServer, proxy: LossyProxy) -> None:
    with closing(Opened(f"redis://127.0.0.1:{proxy.port}")) as opened:
        opened.apply(put("a", 1))
        change = put("a", 2, b"needle", write_id=WRITE_ID)
        proxy.lose_answer_to(b"needle")
        with pytest.raises(StoreUnavailable):
            opened.apply(change)
        opened.apply(put("a", 2, b"since"))
        (applied,) = opened.apply(change)
        assert (applied.outcome, applied.stamp and applied.stamp.seq) == (Outcome.NEWEST, 2)
        assert opened.read("a") == b"since"
        assert opened.logged() == ["a"] * 3
        refused = put("a", 1, op=Op.HARD_DELETE, write_id=WRITE_ID[::-1])
        assert opened.apply(refused) == opened.apply(refused) == [Applied(Outcome.REFUSED, None)]


def test_a_read_whose_answer_is_lost_is_repeated(redis_server: RedisServer, proxy: LossyProxy) -> None:
    with closing(Opened(f"redis://127.0.0.1:{proxy.port}")) as opened:
        opened.apply(put("a", 1))
        proxy.lose_answer_to(b"MGET")
        assert opened.read("a") == b"v"
        proxy.lose_answer_to(b"XRANGE")
        assert opened.logged() == ["a"]
        assert proxy.lost == 2


def test_write_ids_are_remembered_for_two_generations(redis_server: RedisServer) -> None:
    """The receipts of one generation are deleted when the one after the next begins; the clock begins generations."""
    now_us = [1_000_000]
    keyspace = open_keyspace(parse_redis_url(redis_server.url), SHARDS)
    store = RedisOnlineStore(keyspace, outbox_changes_max=OUTBOX_MAX, clock_us=lambda: now_us[0])
    loop = asyncio.new_event_loop()

    def seq(number: int) -> int:
        (applied,) = loop.run_until_complete(store.apply([put("a", 1, write_id=b"%016d" % number)]))
        return applied.stamp.seq

    try:
        assert [seq(1), seq(1)] == [1, 1]
        now_us[0] += 900_000_000
        assert [seq(2), seq(1)] == [2, 1], "of the generation before"
        now_us[0] += 900_000_000
        assert [seq(3), seq(2), seq(1)] == [3, 2, 4], "the oldest generation is gone"
    finally:
        store.close()
        loop.close()
    with redis_server.client() as client:
        base = f"{{fs:{shard_of('a', SHARDS)}}}:"
        assert all(0 < client.ttl(f"{base}{name}") <= 1800 for name in ("w0", "w1"))


def test_a_call_of_several_shards_says_when_only_a_part_was_written(redis_server: RedisServer) -> None:
    with closing(Opened(redis_server.url, outbox_changes_max=2 * SHARDS)) as opened:
        by_shard = {shard_of(str(number), SHARDS): str(number) for number in range(10)}
        full, free = by_shard[0], by_shard[1]
        opened.apply(put(full, 1), put(full, 2))
        with pytest.raises(OutboxFull):
            opened.apply(put(full, 3))
        with pytest.raises(StoreUnavailable, match="a part of the changes was not written") as caught:
            opened.apply(put(full, 3), put(free, 3))
        assert not isinstance(caught.value, OutboxFull)
        assert opened.read(free) == b"v"


def test_a_policy_that_evicts_is_refused(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        with pytest.raises(StoreUnavailable, match="maxmemory-policy is allkeys-lru .*set `maxmemory-policy noeviction`"):
            Opened(redis_server.url)


def test_a_server_without_an_append_only_file_is_warned_of(redis_server: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    with redis_server.client() as client:
        client.config_set("appendonly", "no")
    with caplog.at_level(logging.WARNING), closing(Opened(redis_server.url)):
        pass
    (message,) = [record.getMessage() for record in caplog.records]
    assert "appendonly yes" in message


def test_a_replica_is_refused(redis_server: RedisServer) -> None:
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", redis_server.port)
        with pytest.raises(StoreUnavailable, match="is a replica"):
            Opened(redis_server.url)


def test_a_server_that_becomes_a_replica_refuses_and_is_asked_again(redis_server: RedisServer, opened: Opened) -> None:
    opened.apply(put("a", 1))
    with redis_server.client() as client:
        client.replicaof("127.0.0.1", 1)
        with pytest.raises(StoreUnavailable, match="no server takes changes"):
            opened.apply(put("a", 2))
        client.replicaof("NO", "ONE")
    opened.apply(put("a", 2))
    assert opened.logged() == ["a", "a"]


def test_a_snapshot_that_has_lost_its_lease_says_so(redis_server: RedisServer, opened: Opened) -> None:
    """What was kept for it may be gone, so it must not look whole."""
    opened.apply(put("a", 1))
    with opened.store.snapshot(1) as snapshot, redis_server.client() as client:
        for shard in range(SHARDS):
            client.delete(f"{{fs:{shard}}}:s")
        with pytest.raises(StoreUnavailable, match="held for too long"):
            list(snapshot.states())
        with pytest.raises(StoreUnavailable, match="held for too long"):
            list(snapshot.waiting())
    assert sum(1 for shard in range(SHARDS) for _ in opened.log.read(shard, 1, 10)) == 1


def test_a_cluster_that_is_named_as_a_server_and_the_other_way_round(redis: RunningRedis, redis_cluster: RunningRedis) -> None:
    with pytest.raises(StoreUnavailable, match=r"a node of a cluster \(name it as redis\+cluster://"):
        Opened(redis_cluster.url.replace("+cluster", "").partition(",")[0])
    with pytest.raises(StoreUnavailable, match="cluster support disabled"):
        Opened(redis.url.replace("redis://", "redis+cluster://"))


def test_another_number_of_shards_and_another_format_are_refused(redis_server: RedisServer, opened: Opened) -> None:
    with pytest.raises(StoreCorrupt, match="holds a store with 2 shards, this one has 5"):
        open_keyspace(parse_redis_url(redis_server.url), 5)
    open_keyspace(parse_redis_url(f"{redis_server.url}?prefix=other"), 5)
    with redis_server.client() as client:
        client.hset("{fs:0}:store", "format", 9)
    with pytest.raises(StoreCorrupt, match="format 9, this release reads 4"):
        Opened(redis_server.url)


def test_stores_with_prefixes_are_apart(redis_server: RedisServer) -> None:
    with closing(Opened(f"{redis_server.url}?prefix=one")) as one, closing(Opened(f"{redis_server.url}?prefix=two")) as two:
        one.apply(put("a", 1, b"one"))
        two.apply(put("a", 1, b"two"))
        two.run(two.store.drop_group(1))
        assert (one.read("a"), two.read("a")) == (b"one", None)
        assert one.logged() == two.logged() == ["a"]


def test_records_whose_identifier_looks_like_a_key(opened: Opened) -> None:
    opened.apply(put("x}:r:1:y", 1, group_id=2), put("*", 1), put("a:b\n{c}", 1), put("ü", 1))
    with opened.store.snapshot(1) as snapshot:
        names = [row["record_id"] for batch in snapshot.states() for row in batch.to_pylist()]
    assert sorted(names) == ["*", "a:b\n{c}", "ü"]


def test_the_password_is_in_no_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    require_redis()
    server = RedisServer(tmp_path / "redis", requirepass=SECRET)
    caplog.set_level(logging.DEBUG)
    try:
        with closing(Opened(f"redis://:{SECRET}@{server.host}")) as opened:
            opened.apply(put("a", 1))
            texts = [
                repr(parse_redis_url(f"redis://me:{SECRET}@{server.host}?prefix=x")),
                str(opened.store),
                repr(vars(opened.store)),
            ]
            for url in (
                f"redis://me:{SECRET}@{server.host}",
                f"redis://{server.host}",
                f"redis://:{SECRET}@{server.host}/x",
                f"redis://:{SECRET}@{server.host}?nope={SECRET}",
                f"redis://:{SECRET}@{server.host}?{SECRET}",
                f"redis+sentinel://:{SECRET}@{server.host}/primary",
                f"redis+cluster://:{SECRET}@{server.host}",
            ):
                with pytest.raises(FeatureStoreError) as caught:
                    Opened(url)
                texts += [str(caught.value), repr(caught.value), *map(str, _chain(caught.value))]
            server.kill()
            with pytest.raises(StoreUnavailable) as caught:
                opened.apply(put("a", 1))
            texts += [str(caught.value), *map(str, _chain(caught.value)), caplog.text]
            assert not [text for text in texts if SECRET in text]
    finally:
        server.kill()


def _chain(error: BaseException) -> Iterator[BaseException]:
    while error.__cause__ is not None:
        error = error.__cause__
        yield error


def test_a_snapshot_that_writers_run_over(redis: RunningRedis, redis_cluster: RunningRedis) -> None:
    """Every kind of change, meanwhile, to every record: the snapshot shows what was."""
    for number, running in enumerate((redis, redis_cluster)):
        with closing(Opened(f"{running.url}?prefix=over{number}-{uuid.uuid4().hex[:8]}")) as opened:
            keys = [f"key-{number}" for number in range(5_000)]
            for start in range(0, len(keys), 1000):
                opened.apply(*(put(key, 1, b"then") for key in keys[start : start + 1000]))
            with opened.store.snapshot(1) as snapshot:
                batches = snapshot.states()
                rows = next(batches).to_pylist()
                for start in range(0, len(keys), 1000):
                    part = keys[start : start + 1000]
                    opened.apply(*(put(key, 2, b"now") for key in part[:400]))
                    opened.apply(*(put(key, 2, op=Op.HARD_DELETE) for key in part[400:600]))
                    opened.run(opened.store.erase(b"%016d" % start, 1, part[600:800]))
                    opened.apply(*(put(f"new-{key}", 1) for key in part[:100]))
                opened.run(opened.store.drop_group(1))
                opened.apply(put("key-1", 3, b"again"))
                rows += [row for batch in batches for row in batch.to_pylist()]
                assert sorted(row["record_id"] for row in rows) == sorted(keys)
                assert {row["values"] for row in rows} == {b"then"}
                assert snapshot.records() == len(keys)
                assert sum(1 for _ in snapshot.waiting()) == len(keys)


def test_a_shard_that_moves_to_another_node_is_followed(tmp_path: Path) -> None:
    """Changes are refused whole while its keys are on their way; afterwards they go to the new node."""
    require_redis()
    cluster = RedisCluster(tmp_path / "cluster")
    try:
        with closing(Opened(cluster.url)) as opened:
            keys = [key for key in map(str, range(20)) if shard_of(key, SHARDS) == 0]
            opened.apply(*(put(key, 1, b"before") for key in keys))
            slot = key_slot(b"{fs:0}")
            owner = next(node for node in cluster.nodes if node.has_slot(slot))
            target = next(node for node in cluster.nodes if node is not owner)
            with owner.client() as source, target.client() as sink:
                ids = [client.execute_command("CLUSTER", "MYID").decode() for client in (source, sink)]
                sink.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[0])
                source.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[1])
                names = source.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 1000)
                source.migrate("127.0.0.1", target.port, sorted(names)[: len(names) // 2], 0, 5000)
                with pytest.raises(StoreUnavailable, match="no server takes changes of shard 0"):
                    opened.apply(put(keys[0], 2, b"meanwhile"))
                source.migrate("127.0.0.1", target.port, sorted(names)[len(names) // 2 :], 0, 5000)
                for client in (sink, source):
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", ids[1])
            opened.apply(put(keys[1], 2, b"after"))
            assert [opened.read(key) for key in keys[:2]] == [b"before", b"after"]
            assert sorted(opened.logged()) == sorted([*keys, keys[1]])
    finally:
        cluster.kill()


def test_a_replica_that_takes_over_is_found(tmp_path: Path) -> None:
    require_redis()
    sentinel = RedisSentinel(tmp_path)
    try:
        with closing(Opened(sentinel.url)) as opened:
            opened.apply(put("a", 1, b"before"))
            with sentinel.primary.client() as client:
                wait_until(lambda: client.wait(1, 100) == 1, "the replica has the change")
            sentinel.primary.kill()

            def written() -> bool:
                try:
                    opened.apply(put("b", 1, write_id=WRITE_ID))
                except StoreUnavailable:
                    return False
                return True

            assert not written()
            wait_until(written, "the replica has taken over")
            assert (opened.read("a"), opened.read("b")) == (b"before", b"v")
            assert sorted(opened.logged()) == ["a", "b"]
        with pytest.raises(StoreUnavailable, match="does not know 'other'"):
            Opened(sentinel.url.replace("/primary", "/other"))
    finally:
        sentinel.kill()


def test_the_rights_that_the_guide_names_are_enough(redis_server: RedisServer) -> None:
    guide = Path(__file__).parents[2] / "docs" / "guides" / "redis.md"
    (rule,) = [line for line in guide.read_text().splitlines() if line.startswith("ACL SETUSER")]
    with redis_server.client() as client:
        client.config_set("save", "3600 1")
        client.execute_command(*rule.split())
    with closing(Opened(redis_server.url.replace("//", "//featurestore:password@"))) as opened:
        opened.apply(put("a", 1, write_id=WRITE_ID), put("b", 1))
        opened.log.trim(shard_of("a", SHARDS), 2)
        with opened.store.snapshot(1) as snapshot:
            opened.apply(put("a", 2))
            assert sum(batch.num_rows for batch in snapshot.states()) == 2
        opened.run(opened.store.erase(WRITE_ID, 1, ["a"]))
        opened.run(opened.store.purge())
        opened.run(opened.store.drop_group(1))
        assert opened.read("b") is None
    with pytest.raises(StoreUnavailable, match="check user and password"):
        Opened(redis_server.url.replace("//", "//featurestore:wrong@"))


def test_a_server_that_does_not_let_its_files_be_rewritten_is_warned_of(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    with redis_server.client() as client:
        client.execute_command("ACL", "SETUSER", "me", "on", ">pw", "~*", "+@all", "-bgrewriteaof", "-config")
    with closing(Opened(redis_server.url.replace("//", "//me:pw@"))) as opened:
        opened.apply(put("a", 1))
        opened.run(opened.store.purge())
    assert "refuses BGREWRITEAOF" in caplog.text
    assert "does not tell whether it writes RDB files" in caplog.text


def test_tls_is_verified(tmp_path: Path) -> None:
    require_redis()
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(command, check=True, capture_output=True)
    port = free_port()
    options = {"tls_port": str(port), "tls_cert_file": str(certificate), "tls_key_file": str(key), "tls_auth_clients": "no"}
    server = RedisServer(tmp_path / "redis", **options)
    try:
        with closing(Opened(f"rediss://localhost:{port}?ssl_ca_certs={certificate}")) as opened:
            opened.apply(put("a", 1))
            assert opened.read("a") == b"v"
        for url in (f"rediss://localhost:{port}", f"rediss://127.0.0.1:{port}?ssl_ca_certs={certificate}"):
            with pytest.raises(StoreUnavailable, match="certificate verify failed"):
                Opened(url)
    finally:
        server.kill()


# The whole store


@pytest.fixture(params=["redis", "redis_cluster"])
def features(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FeatureStore]:
    running: RunningRedis = request.getfixturevalue(request.param)
    settings = Settings.load({}, home=tmp_path / "home", online_url=f"{running.url}?prefix={tmp_path.name}")
    with FeatureStore(settings) as store:
        yield store


def test_the_feature_store_works_on_redis(features: FeatureStore) -> None:
    types = {"id": "String", "t": "String", "n": "Integral"}
    features.create_feature_group("people", record_identifier="id", event_time="t", features=types)
    start = datetime.now(UTC) - timedelta(days=2)

    def at(hour: int) -> str:
        return (start + timedelta(hours=hour)).strftime("%Y-%m-%dT%H:%M:%SZ")

    for number in range(20):
        features.put_record("people", {"id": f"p{number}", "t": at(1), "n": number})
    features.put_record("people", {"id": "p1", "t": at(0), "n": -1})
    features.delete_record("people", "p2", at(2))
    features.delete_record("people", "p3", at(2), hard=True)
    features.ingest(
        "people", pd.DataFrame({"id": ["p4", "p5", "new"], "t": [at(3), at(0), at(3)], "n": [44, 55, 66]}), progress=False
    )

    def values() -> dict[str, Any]:
        records = features.batch_get_record("people", ["p0", "p1", "p2", "p3", "p4", "p5", "new"])
        return {str(record["id"]): record["n"] for record in records if record is not None}

    expected = {"p0": 0, "p1": 1, "p4": 44, "p5": 5, "new": 66}
    assert values() == expected
    assert features.audit("people", progress=False).differences == ()
    drained = features.flush()
    assert drained.changes == 23
    assert features.audit("people", progress=False).differences == ()
    latest = {row["id"]: row["n"] for row in features.sql('SELECT id, n FROM latest."people"').to_pylist()}
    assert {key: latest.get(key) for key in expected} == expected
    assert len(latest) == 19

    receipt = features.erase("people", "p4", progress=False)
    assert (receipt.online, receipt.rows) == (1, 2)
    assert values() == {key: value for key, value in expected.items() if key != "p4"}
    report = features.audit("people", progress=False)
    assert (report.differences, sum(shard.online_records for shard in report.shards)) == ((), 18)
    features.delete_feature_group("people")
    with features.online.snapshot(1) as snapshot:
        assert snapshot.records() == 0


def test_two_services_share_one_store_and_retries_of_an_sdk_take_effect_once(tmp_path: Path, redis: RunningRedis) -> None:
    settings = {
        "online_url": f"{redis.url}?prefix=services-{uuid.uuid4().hex[:8]}",
        "registry_url": f"sqlite:///{tmp_path / 'registry.db'}",
    }
    settings["offline_url"] = f"file://{tmp_path / 'offline'}"
    first = Service(tmp_path / "one", tmp_path / "log-one", **settings)
    second = Service(tmp_path / "two", tmp_path / "log-two", **settings)
    with first, second:
        control = boto3.client("sagemaker", endpoint_url=first.url)
        clients = [boto3.client("sagemaker-featurestore-runtime", endpoint_url=service.url) for service in (first, second)]
        control.create_feature_group(
            FeatureGroupName="g",
            RecordIdentifierFeatureName="id",
            EventTimeFeatureName="at",
            FeatureDefinitions=definitions(id="String", at="String", amount="Fractional"),
            OnlineStoreConfig={"EnableOnlineStore": True},
            OfflineStoreConfig={"S3StorageConfig": {"S3Uri": "s3://test-bucket/prefix"}},
        )
        values = record(id="a", at="2026-01-02T00:00:00Z", amount="1.50")
        clients[0].put_record(FeatureGroupName="g", Record=values)
        older = record(id="a", at="2026-01-01T00:00:00Z", amount="9")
        wait_until(lambda: _is_put(clients[1], older), "the other service knows the group")
        found = clients[1].get_record(FeatureGroupName="g", RecordIdentifierValueAsString="a")
        assert found["Record"] == values
        http = [Http(service.port) for service in (first, second)]
        body = {"Record": record(id="b", at="2026-01-01T00:00:00Z", amount="2")}
        headers = {"amz-sdk-invocation-id": "the same call", "Content-Type": "application/json"}
        for client in http:
            assert client.request("PUT", "/FeatureGroup/g", body, headers).status == 200
        assert [client.offline_rows("g") for client in http] == [3, 3]
        for client in (control, *clients):
            client.close()


def _is_put(client: Any, values: list[dict[str, Any]]) -> bool:
    try:
        client.put_record(FeatureGroupName="g", Record=values)
    except client.exceptions.ResourceNotFound:
        return False
    return True
