"""The served process is killed with SIGKILL at random moments during writes.

Afterwards every acknowledged write is in the offline store exactly once, what was in doubt is there at most once, what was
refused is not there, and the online store holds the winner of what is there.

`CRASH_ROUNDS` sets the number of kills (the suite's default is small), `CRASH_SEED` the schedule.
"""

from __future__ import annotations

import http.client
import json
import os
import random
import threading
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd
import pyarrow.parquet as pq
import pytest

from featurestore.model.event_time import format_iso, parse_iso
from featurestore.model.feature_group import FeatureGroup, FeatureType, OfflineConfig, OnlineConfig, StorageType, definitions
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.redis_server import RedisServer
from tests.service import Service

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
SEED = int(os.environ.get("CRASH_SEED", "20240501"))
CLIENTS = 4
KEYS = [f"key-{number}" for number in range(12)]
GROUP = "crash"
START_US = 1_700_000_000_000_000
UPDATE = "update-"
"""Begins the tokens of updates."""


@dataclass
class Ledger:
    """What the clients know of their writes, by the unique token each carries."""

    acknowledged: set[str] = field(default_factory=set)
    in_doubt: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def book(self, token: str, status: int | None) -> None:
        with self.lock:
            if status == 200:
                self.acknowledged.add(token)
            elif status in (400, 404, 409):
                self.refused.add(token)
            else:
                self.in_doubt.add(token)


class Client(threading.Thread):
    """Writes, updates and deletes overlapping keys out of order until the connection breaks or it is told to stop.

    A delete has no feature values to carry a token, so its event time, unique in microseconds, is its token. An update has a new
    token, and leaves the record's `origin`, which is the token of the put it came with.
    """

    def __init__(self, port: int, ledger: Ledger, seed: int, first_us: int) -> None:
        super().__init__(daemon=True)
        self._port = port
        self._ledger = ledger
        self._random = random.Random(seed)
        self._next_us = first_us
        self.stop = threading.Event()

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        try:
            self._write(connection)
        finally:
            connection.close()

    def _write(self, connection: http.client.HTTPConnection) -> None:
        while not self.stop.is_set():
            self._next_us += CLIENTS
            event_time_us = self._next_us - self._random.choice([0, 0, 0, 400_000, 4_000_000])
            key, token = self._random.choice(KEYS), format_iso(event_time_us)
            kind = self._random.random()
            path = f"/FeatureGroup/{GROUP}"
            body: dict[str, Any] | None = None
            if kind < 0.4:
                token = uuid.uuid4().hex
                tokens = [f"{key} {token}"]
                method, body = "PUT", {"Record": pairs_of(id=key, at=format_iso(event_time_us), token=token, origin=token)}
            elif kind < 0.6:
                keys = self._random.choices(KEYS, k=3)
                records = {key: uuid.uuid4().hex for key in keys}
                tokens = [f"{key} {token}" for key, token in records.items()]
                entries = [
                    {
                        "FeatureGroupName": GROUP,
                        "Record": pairs_of(id=key, at=format_iso(event_time_us), token=token, origin=token),
                    }
                    for key, token in records.items()
                ]
                method, path, body = "POST", "/BatchWriteRecord", {"Entries": entries}
            elif kind < 0.8:
                token = f"{UPDATE}{uuid.uuid4().hex}"
                tokens = [f"{key} {token}"]
                changed = {"token": token} | ({"at": format_iso(event_time_us)} if kind < 0.7 else {})
                body = {"RecordIdentifierValueAsString": key, "Features": pairs_of(**changed)}
                method, path = "POST", f"{path}/Record"
            else:
                mode = "HardDelete" if kind > 0.9 else "SoftDelete"
                path += f"?RecordIdentifierValueAsString={quote(key)}&EventTime={quote(token)}&DeletionMode={mode}"
                method, tokens = "DELETE", [f"{key} {token}"]
            status: int | None = None
            try:
                connection.request(method, path, None if body is None else json.dumps(body))
                answer = connection.getresponse()
                text = answer.read()
                status = answer.status
            except (OSError, http.client.HTTPException):
                self.stop.set()
            if status == 200 and path == "/BatchWriteRecord" and json.loads(text) != {"Errors": [], "UnprocessedEntries": []}:
                status = None  # the server was killed before the service
            for token in tokens:
                self._ledger.book(token, status)


def pairs_of(**values: str) -> list[dict[str, str]]:
    return [{"FeatureName": name, "ValueAsString": value} for name, value in values.items()]


def create_group(store: FeatureStore) -> None:
    """The group that clients write to."""
    store.create(
        FeatureGroup(
            name=GROUP,
            record_identifier="id",
            event_time="at",
            features=definitions((name, FeatureType.STRING) for name in ("id", "at", "token", "origin")),
            online=OnlineConfig(storage_type=StorageType.STANDARD_V2),
            offline=OfflineConfig(store.default_s3_uri),
        )
    )


@pytest.mark.parametrize("backend", ["sqlite", "redis"])
def test_no_acknowledged_write_is_lost_or_doubled(request: pytest.FixtureRequest, tmp_path: Path, backend: str) -> None:
    """With Redis its server is killed, too, in every other round and before the service is."""
    home, schedule = tmp_path / "home", random.Random(SEED)
    redis: RedisServer | None = request.getfixturevalue("redis_server") if backend == "redis" else None
    online = {} if redis is None else {"online_url": redis.url}

    def opened() -> FeatureStore:
        return FeatureStore(Settings.load({}, home=home, **online))

    with opened() as store:
        create_group(store)
    ledger = Ledger()
    service = Service(home, tmp_path / "service.log", flush_s="0.05", flush_changes_max="200", **online)
    for number in range(ROUNDS):
        service.start()
        clients = [
            Client(service.port, ledger, schedule.randrange(2**32), START_US + number * 100_000_000 + index)
            for index in range(CLIENTS)
        ]
        for client in clients:
            client.start()
        clients[0].stop.wait(schedule.uniform(0.05, 0.8))  # the moment of the kill is part of the schedule
        if redis is not None and number % 2:
            redis.kill()
        service.kill()
        for client in clients:
            client.join(30)
            assert not client.is_alive()
        if redis is not None and number % 2:
            redis.start()
    service.start()  # completes what died
    assert service.stop() == 0
    assert len(ledger.acknowledged) > 20 * ROUNDS, "too few writes to prove anything"
    with opened() as store:
        check(store, ledger)
        assert store.audit(GROUP, progress=False).differences == ()


def check(store: FeatureStore, ledger: Ledger) -> None:
    rows = store.sql(f'SELECT id, "at", token, origin, is_deleted, api_invocation_time FROM history."{GROUP}"').to_pylist()
    present = Counter(f"{row['id']} {row['token'] or row['at']}" for row in rows)
    assert not [token for token, count in present.items() if count > 1], "doubled"
    assert not ledger.acknowledged - present.keys(), "lost"
    assert not ledger.refused & present.keys(), "refused but written"
    assert not present.keys() - ledger.acknowledged - ledger.in_doubt, "from nowhere"
    assert len({(row["id"], row["api_invocation_time"]) for row in rows}) == len(rows)
    check_online(store, rows)
    report = store.audit(GROUP)
    assert report.differences == ()
    assert sum(shard.acknowledged for shard in report.shards) == len(rows)


def check_online(store: FeatureStore, rows: list[dict[str, Any]]) -> None:
    """The online record of each key is the fold of its rows in order of arrival, and so is the point-in-time answer. An update
    was made of the very record that it came upon.
    """
    hard = hard_deletes(store)
    expected: list[str | None] = []
    for key in KEYS:
        event_time_us, token, origin = -1, None, None
        for row in sorted((row for row in rows if row["id"] == key), key=lambda row: row["api_invocation_time"]):
            row_us = parse_iso(row["at"])
            assert row_us is not None
            if (key, row["api_invocation_time"]) in hard:
                assert row_us > event_time_us, "a hard delete that is not later must be refused"
                event_time_us, token, origin = -1, None, None
                continue
            if (row["token"] or "").startswith(UPDATE):
                assert origin is not None, "an update needs a live record"
                assert row["origin"] == origin, "an update must not bring back what another write has replaced"
                assert row_us >= event_time_us, "an older update is a conflict"
            if row_us > event_time_us or (row_us == event_time_us and not row["is_deleted"]):
                event_time_us, token, origin = row_us, row["token"], row["origin"]
        expected.append(token)
    online = [store.get_record(GROUP, key) for key in KEYS]
    assert [None if record is None else record["token"] for record in online] == expected
    spine = pd.DataFrame({"id": KEYS, "now": pd.Timestamp.now("UTC")})
    offline = store.create_training_set(spine, [f"{GROUP}.token"], event_time="now")
    assert offline.to_arrow()[f"{GROUP}.token"].to_pylist() == expected


def hard_deletes(store: FeatureStore) -> set[tuple[str, Any]]:
    """(key, api time) of the hard deletes, which the public columns do not tell from soft ones."""
    group = store.feature_group(GROUP)
    found = set()
    for entry in store.offline.manifest(group).current().files:
        for row in pq.ParquetFile(store.offline.paths(group, [entry])[0]).read().to_pylist():
            if row["_hard_deleted"]:
                found.add((row["id"], row["api_invocation_time"]))
    return found
