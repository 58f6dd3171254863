"""Stores that fail, are full, or hold what nobody has written: the lane and the plain route say the same of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from featurestore.model.feature_group import FeatureDefinition, FeatureType
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.lane.conftest import redis_urls
from tests.lane.harness import Client, LoopThread, Pair, open_pair, request, statuses
from tests.lane.world import MEMORY, STANDARD, T1, World, encoded, group, query, record
from tests.redis_server import RedisServer, wait_until

OUTBOX_CHANGES_MAX = 8
GROUPS = ("group-a", "group-b")
KEYS = [f"key {number}" for number in range(3)]
READS = [
    request("GET", f"/FeatureGroup/{STANDARD}?{query('one')}"),
    request("GET", f"/FeatureGroup/{STANDARD}?{query('nobody', FeatureName='note')}"),
    request(
        "POST",
        "/BatchGetRecord",
        encoded({"Identifiers": [{"FeatureGroupName": STANDARD, "RecordIdentifiersValueAsString": ["one", "x"]}]}),
    ),
]
WRITES = [
    request("PUT", f"/FeatureGroup/{STANDARD}", encoded({"Record": record(id="one", at=T1, note="again")})),
    request(
        "POST",
        "/BatchWriteRecord",
        encoded(
            {
                "Entries": [
                    *({"FeatureGroupName": STANDARD, "Record": record(id=key, at=T1, note="\u00e4")} for key in KEYS),
                    {"FeatureGroupName": "unknown", "Record": record(id="x", at=T1)},
                    {"FeatureGroupName": STANDARD, "Record": record(id="x", at="never")},
                ]
            }
        ),
    ),
]
WRONG = [
    request("GET", f"/FeatureGroup/{STANDARD}?{query('one', FeatureName='nope')}"),
    request("PUT", f"/FeatureGroup/{STANDARD}", b"{"),
    request("GET", f"/FeatureGroup/unknown?{query('one')}"),
]


def fill(pair: Pair) -> None:
    for store in pair.stores:
        store.create(group(STANDARD))
    World(pair).write(request("PUT", f"/FeatureGroup/{STANDARD}", encoded({"Record": record(id="one", at=T1, note="first")})))


class TestRedis:
    @pytest.fixture
    def pair(self, loop: LoopThread, tmp_path: Path, redis_server: RedisServer) -> Iterator[Pair]:
        with open_pair(loop, tmp_path, urls=[f"{redis_server.url}?prefix={name}" for name in ("lane", "plain")]) as pair:
            fill(pair)
            yield pair

    def test_a_server_that_is_gone_and_comes_back(self, pair: Pair, redis_server: RedisServer) -> None:
        with Client(pair.lane) as lane, Client(pair.plain) as plain:
            redis_server.kill()
            received = pair.same_of((lane, plain), [*READS, *WRITES, *WRONG])
            assert statuses(received) == [503, 503, 503, 503, 200, 400, 400, 404]
            assert received.count(b'"UnprocessedEntries":[{') == 1
            for item in (*READS, *WRITES):  # on connections of their own
                pair.ask(item)
            redis_server.start()
            for client in (lane, plain):
                wait_until(lambda client=client: statuses(client.ask(READS[0])) == [200], "the server is found again")  # type: ignore[misc]
            received = pair.same_of((lane, plain), [*WRITES, *READS])
            assert statuses(received) == [200] * 5
            assert b"again" in received

    def test_requests_that_wait_when_it_goes(self, pair: Pair, redis_server: RedisServer) -> None:
        """Pipelined, so that one waits for the store and others for that one."""

        def talked(client: Client) -> bytes:
            redis_server.freeze()
            client.send(READS[0] + WRONG[0] + READS[2])
            redis_server.kill()
            found = b"".join(client.answer() for _ in range(3))
            redis_server.start()
            return found

        assert statuses(pair.same(talked)) == [503, 400, 503]

    def test_answers_wait_for_it(self, pair: Pair, redis_server: RedisServer) -> None:
        def talked(client: Client) -> bytes:
            redis_server.freeze()
            client.send(READS[0] + WRITES[0] + READS[0] + request("GET", "/health"))
            assert not client.received, "an answer overtook the one before it"
            redis_server.thaw()
            return b"".join(client.answer() for _ in range(4)) + client.goodbye()

        received = pair.same(talked)
        assert statuses(received) == [200] * 5
        assert received.index(b"first") < received.index(b"again")
        pair.same_effects()


class TestFullOutbox:
    @pytest.fixture(params=["sqlite", "redis"])
    def pair(self, request: pytest.FixtureRequest, loop: LoopThread, tmp_path: Path) -> Iterator[Pair]:
        urls = redis_urls(request.getfixturevalue("redis")) if request.param == "redis" else []
        with open_pair(loop, tmp_path, urls=urls, outbox_changes_max=OUTBOX_CHANGES_MAX, shards=1) as pair:
            fill(pair)
            yield pair

    def test_refused_until_it_is_empty(self, pair: Pair) -> None:
        with Client(pair.lane) as lane, Client(pair.plain) as plain:
            received = pair.same_of((lane, plain), [WRITES[0], WRITES[1], WRITES[1], WRITES[1], WRITES[0], *READS])
            assert statuses(received) == [200, 200, 200, 200, 503, 200, 200, 200]
            assert received.count(b'"UnprocessedEntries":[{') == 1
            pair.same_effects()
            for store in pair.stores:
                store.flush()
            assert statuses(pair.same_of((lane, plain), [*WRITES, *READS])) == [200] * 5
            pair.same_effects()


class TestEmbedded:
    def test_values_that_nobody_has_written(self, loop: LoopThread, tmp_path: Path) -> None:
        """Our own failure: the contract's 500, and not a word of the inside."""
        with open_pair(loop, tmp_path) as pair:
            fill(pair)
            for server in pair.servers:
                database = sqlite3.connect(server.store.settings.home / "online.db")
                with closing(database), database:
                    assert database.execute("UPDATE record SET value = x'c1'").rowcount == 1
            with Client(pair.lane) as lane, Client(pair.plain) as plain:
                received = pair.same_of((lane, plain), [*READS, WRITES[0], *READS])
            assert statuses(received)[3:] == [200, 200, 200, 200]
            assert set(statuses(received)[:3]) <= {200, 500}
            assert 500 in statuses(received)


class TestOtherProcess:
    """Another process changes a group, which both see at most half a second later."""

    def test_features_and_groups(self, loop: LoopThread, tmp_path: Path) -> None:
        with open_pair(loop, tmp_path, shared=True) as pair:
            fill(pair)
            more = request("GET", f"/FeatureGroup/{STANDARD}?{query('one', FeatureName=['more', 'note'])}")
            put = request("PUT", f"/FeatureGroup/{STANDARD}", encoded({"Record": record(id="one", at=T1, note="n", more="m")}))
            with (
                Client(pair.lane) as lane,
                Client(pair.plain) as plain,
                FeatureStore(Settings.load({}, home=tmp_path / "store")) as other,
            ):
                assert statuses(pair.same_of((lane, plain), [more, put, *READS])) == [400, 400, 200, 200, 200]
                other.add_features(STANDARD, [FeatureDefinition("more", FeatureType.STRING)])
                self.settle(pair, (lane, plain), more, 200)
                assert statuses(pair.same_of((lane, plain), [put, more, *READS])) == [200] * 5
                other.delete_feature_group(STANDARD)
                self.settle(pair, (lane, plain), more, 404)
                assert statuses(pair.same_of((lane, plain), [put, *READS, *WRITES])) == [404, 404, 404, 200, 404, 200]
                other.create(group(STANDARD, features=group(MEMORY).features, online=group(MEMORY).online))
                self.settle(pair, (lane, plain), READS[0], 200)
                received = pair.same_of((lane, plain), [*READS, *WRITES, *READS, more])
                assert statuses(received) == [200] * 8 + [400]
                assert b'"first"' not in received

    def settle(self, pair: Pair, clients: tuple[Client, Client], asked: bytes, status: int) -> None:
        for client in clients:
            wait_until(lambda client=client: statuses(client.ask(asked)) == [status], f"the answer is {status}")  # type: ignore[misc]
        assert statuses(pair.same_of(clients, [asked])) == [status]


class TestOneStore:
    """Both over one store: what one writes the other reads, and two groups, one written through each, are the same."""

    @pytest.fixture(params=["sqlite", "redis"])
    def pair(self, request: pytest.FixtureRequest, loop: LoopThread, tmp_path: Path) -> Iterator[Pair]:
        urls = redis_urls(request.getfixturevalue("redis")) if request.param == "redis" else []
        with open_pair(loop, tmp_path, urls=urls[:1], shared=True) as pair:
            for name in GROUPS:
                pair.lane.store.create(group(name))
            yield pair

    def test_each_reads_what_the_other_wrote(self, pair: Pair) -> None:
        with Client(pair.lane) as lane, Client(pair.plain) as plain:
            for number in range(20):
                writer, name = [(lane, GROUPS[0]), (plain, GROUPS[1])][number % 2]
                note = f"note {number}"
                body = encoded({"Record": record(id="k", at=T1, note=note)})
                assert statuses(writer.ask(request("PUT", f"/FeatureGroup/{name}", body))) == [200]
                received = pair.same_of((lane, plain), [request("GET", f"/FeatureGroup/{name}?{query('k')}")])
                assert note.encode() in received

    def test_groups_written_through_each(self, pair: Pair) -> None:
        found, rows_of = {}, {}
        for server, name in zip(pair.servers, GROUPS, strict=True):
            with Client(server) as client:
                for item in WRITES * 2:
                    assert statuses(client.ask(renamed(item, name))) == [200]
            asked = [renamed(item, name) for item in READS]
            with Client(pair.lane) as lane, Client(pair.plain) as plain:
                found[name] = pair.same_of((lane, plain), asked).replace(name.encode(), b"group")
            with server.store.online.snapshot(server.store.feature_group(name).group_id) as snapshot:
                rows = [row for batch in snapshot.states() for row in batch.to_pylist()]
            rows_of[name] = sorted((row["record_id"], row["event_time_us"], row["values"]) for row in rows)
        assert found[GROUPS[0]] == found[GROUPS[1]]
        assert rows_of[GROUPS[0]] == rows_of[GROUPS[1]]
        assert len(rows_of[GROUPS[0]]) == 1 + len(KEYS)


def renamed(item: bytes, name: str) -> bytes:
    """A request to another group."""
    head, end, body = item.partition(b"\r\n\r\n")
    changed = body.replace(STANDARD.encode(), name.encode())
    length = b"Content-Length: %d" % len(body)
    return head.replace(STANDARD.encode(), name.encode()).replace(length, b"Content-Length: %d" % len(changed)) + end + changed
