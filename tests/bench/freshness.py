"""Freshness: how long after an acknowledged PutRecord a training set has the value."""

from __future__ import annotations

import http.client
import io
import json
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data
from tests.bench.answers import table_checksum
from tests.bench.sheet import Sheet, percentile
from tests.service import Service

GROUP = "zones"
ARROW = "application/vnd.apache.arrow.stream"
POLL_S = 0.02
VISIBLE_S_MAX = 60.0
TABLE = "From PutRecord to training set"


@dataclass(frozen=True, slots=True)
class Size:
    """`history` rows are there before; `fresh` and `background` count repetitions per round; `flush_s` as the setting."""

    history: int
    fresh: int
    background: int
    flush_s: float


SIZES = {"tiny": Size(200, 5, 2, 0.1), "canonical": Size(100_000, 40, 20, Settings().flush_s)}


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    sheet.parameters.update(
        {
            "history": f"{size.history:,} rows in the group before",
            "per round": f"{size.fresh} puts with fresh=True, {size.background} with the background writer alone",
            "settings": f"defaults, among them FEATURESTORE_FLUSH_S={size.flush_s:g}",
            "training set": "1 spine row, 5 features, over HTTP",
        }
    )
    home = folder / "home"
    with FeatureStore(Settings(home=home)) as store:
        store.create_feature_group(GROUP, record_identifier="zone", event_time="at", features=data.GROUPS[GROUP])
        store.ingest(GROUP, data.history(GROUP, 0, size.history, size.history, 100), progress=False)
    with (
        Service(home, folder / "service.log", flush_s=str(size.flush_s)) as service,
        closing(http.client.HTTPConnection("127.0.0.1", service.port, timeout=VISIBLE_S_MAX)) as connection,
    ):
        probe = Probe(connection, size.flush_s)
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            still = [probe.read_only() for _ in range(size.fresh)]
            fresh = [probe.fresh() for _ in range(size.fresh)]
            background = [probe.background() for _ in range(size.background)]
            sheet.add(TABLE, "the training set alone, nothing new to write", percentiles(still))
            sheet.add(TABLE, "PutRecord, then a training set with fresh=True", percentiles(fresh))
            sheet.add(TABLE, "PutRecord, then polling with fresh=False", percentiles(background))
            sheet.ratio("put + fresh training set / training set alone (p50)", _p50(fresh), _p50(still))
            sheet.check("values, in order", {"put": values_checksum(probe.put), "in training sets": values_checksum(probe.seen)})
            probe.put.clear()
            probe.seen.clear()


class Probe:
    """Puts a value that was never there and waits until a training set has it."""

    def __init__(self, connection: http.client.HTTPConnection, flush_s: float) -> None:
        self._connection = connection
        self._flush_s = flush_s
        self._number = 0
        self.put: list[int] = []
        self.seen: list[int] = []

    def read_only(self) -> float:
        """Milliseconds of the training set when nothing waits."""
        self._send("POST", "/v1/flush")
        started_s = time.perf_counter()
        self._look(fresh=True)
        return (time.perf_counter() - started_s) * 1e3

    def fresh(self) -> float:
        """Milliseconds from sending PutRecord to holding a training set made with fresh=True; it must have the value."""
        started_s = time.perf_counter()
        self._put()
        seen = self._look(fresh=True)
        took_ms = (time.perf_counter() - started_s) * 1e3
        self.seen.append(seen)
        return took_ms

    def background(self) -> float:
        """The same with fresh=False, asking again every POLL_S until the value is there."""
        # Puts that follow a flush at once would all meet the writer at the same point of its period.
        time.sleep(np.random.default_rng(self._number).random() * self._flush_s)
        started_s = time.perf_counter()
        self._put()
        while (seen := self._look(fresh=False)) != self.put[-1]:
            assert time.perf_counter() - started_s < VISIBLE_S_MAX, f"{self.put[-1]} is not visible, but {seen}"
            time.sleep(POLL_S)
        self.seen.append(seen)
        return (time.perf_counter() - started_s) * 1e3

    def _put(self) -> None:
        self._number += 1
        self.put.append(self._number)
        record = {
            "zone": "1",
            "at": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "trips": str(self._number),
            "fare": "1.5",
        }
        pairs = [{"FeatureName": name, "ValueAsString": value} for name, value in record.items()]
        self._send("PUT", f"/FeatureGroup/{GROUP}", json.dumps({"Record": pairs}).encode())

    def _look(self, *, fresh: bool) -> int:
        """The value that a training set has for now; -1 for none."""
        (value,) = training_set(self._connection, [1], datetime.now(UTC), fresh=fresh)
        return -1 if value is None else value

    def _send(self, method: str, path: str, body: bytes = b"") -> bytes:
        return send(self._connection, method, path, body)


def training_set(connection: http.client.HTTPConnection, zones: list[int], at: datetime, *, fresh: bool) -> list[int | None]:
    """The feature `trips` of some zones as of a time, from a training set of all features."""
    spine = pa.table({"zone": zones, "at": pa.array([at] * len(zones), pa.timestamp("us", tz="UTC"))})
    body = io.BytesIO()
    with pa.ipc.new_stream(body, spine.schema) as writer:
        writer.write_table(spine)
    request = json.dumps({"features": [f"{GROUP}.*"], "event_time": "at", "fresh": fresh})
    answer = send(connection, "POST", f"/v1/training-sets?request={quote(request)}", body.getvalue(), accept=ARROW)
    found: list[int | None] = pa.ipc.open_stream(answer).read_all()[f"{GROUP}.trips"].to_pylist()
    return found


def send(connection: http.client.HTTPConnection, method: str, path: str, body: bytes, accept: str = "*/*") -> bytes:
    connection.request(method, path, body, {"content-type": ARROW, "accept": accept})
    answer = connection.getresponse()
    answered = answer.read()
    assert answer.status == 200, answered
    return answered


def percentiles(took_ms: list[float]) -> dict[str, float]:
    ordered = sorted(took_ms)
    return {"p50, ms": percentile(ordered, 50), "p99, ms": percentile(ordered, 99)}


def _p50(took_ms: list[float]) -> float:
    return percentile(sorted(took_ms), 50)


def values_checksum(values: list[int]) -> str:
    """Of values relative to the smallest, so that each round must give the same."""
    relative = [value - min(values) for value in values]
    return table_checksum(pa.table({"position": list(range(len(values))), "value": pa.array(relative, pa.int64())}))
