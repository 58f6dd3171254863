"""Freshness under a steady load: from PutRecord's answer until a training set has the value, embedded and on Redis + Kafka."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa

from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.bench import data
from tests.bench.answers import table_checksum
from tests.bench.deployment import Deployment, new_topic
from tests.bench.freshness import GROUP, VISIBLE_S_MAX, Probe, percentiles, training_set, values_checksum
from tests.bench.load import Load, Plan, Request, drive
from tests.bench.record_load import request
from tests.bench.sheet import Sheet, percentile
from tests.service import Service, Worker

EMBEDDED, PRODUCTION = "embedded, one process", "Redis + Kafka, four processes"
WORKERS = ("relay", "offline", "maintenance")
ZONES = 100
NUMBER_FIRST = 1_000_000
"""Above what the history has, so that a value tells which put it is of."""
LOOK_S = 0.1
"""Pause between training sets; how closely is looked is a part of what is measured."""
GOAL_S = 5.0


@dataclass(frozen=True, slots=True)
class Size:
    """`history` rows are there before; per round and deployment `puts` at `rate_per_s`, then `fresh` single ones."""

    history: int
    puts: int
    rate_per_s: float
    fresh: int
    flush_s: float


SIZES = {"tiny": Size(200, 60, 60, 2, 0.1), "canonical": Size(100_000, 6000, 500, 20, Settings().flush_s)}


@dataclass(frozen=True, slots=True)
class _Seen:
    """What one run of the load has shown: freshness of each put, how long each training set took, the last value per zone."""

    fresh_s: Sequence[float]
    looks_s: Sequence[float]
    newest: Sequence[int]


def measure(size_name: str, rounds: int, folder: Path, sheet: Sheet, say: Callable[[str], None]) -> None:
    size = SIZES[size_name]
    with ExitStack() as stack:
        deployment = stack.enter_context(Deployment(folder))
        sheet.parameters.update(
            {
                "history": f"{size.history:,} rows in the group before",
                "per round and deployment": f"{size.puts:,} puts at {size.rate_per_s:g} a second over {ZONES} identifiers, "
                f"then {size.fresh} puts one by one",
                "settings": f"defaults, among them FEATURESTORE_FLUSH_S={size.flush_s:g}",
                "training sets": f"{ZONES} spine rows, 5 features, over HTTP, one after the other with {LOOK_S:g} s in between",
                "goal": f"p99 under {GOAL_S:g} s",
            }
            | deployment.facts()
        )
        production = deployment.settings(kafka_topic=new_topic("changes"))
        homes = {EMBEDDED: ("embedded", {}), PRODUCTION: ("production", production)}
        ports = {}
        for who, (home, settings) in homes.items():
            say(f"starting {who}")
            ports[who] = stack.enter_context(_running(folder / home, size, settings))
        for number in range(rounds):
            say(f"round {number + 1}/{rounds}")
            p99_s = {}
            for who, port in ports.items():
                with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=VISIBLE_S_MAX)) as connection:
                    p99_s[who] = _round(sheet, size, number, who, port, connection)
            for who, figure_s in p99_s.items():
                sheet.ratio(f"p99, {who} / {GOAL_S:g} s", figure_s, GOAL_S)
            sheet.ratio("p99, Redis + Kafka / embedded", p99_s[PRODUCTION], p99_s[EMBEDDED])


@contextmanager
def _running(home: Path, size: Size, settings: dict[str, str]) -> Iterator[int]:
    """A deployment's processes; answers the service's port. With settings of its own it has workers of its own."""
    with FeatureStore(Settings.load({}, home=home, **settings)) as store:
        store.create_feature_group(GROUP, record_identifier="zone", event_time="at", features=data.GROUPS[GROUP])
        store.ingest(GROUP, data.history(GROUP, 0, size.history, size.history, ZONES), progress=False)
    settings = settings | {"flush_s": str(size.flush_s)}
    with ExitStack() as stack:
        arguments = ["--no-workers"] if "online_url" in settings else []
        service = stack.enter_context(Service(home, home / "service.log", *arguments, **settings))
        for name in WORKERS if arguments else ():
            worker = Worker(name, home, home / f"{name}.log", **settings).start()
            stack.callback(worker.stop)
        yield service.port


def _round(sheet: Sheet, size: Size, number: int, who: str, port: int, connection: http.client.HTTPConnection) -> float:
    """Answers the p99 of freshness, seconds."""
    first = NUMBER_FIRST * (number + 1)
    began = datetime.now(UTC)
    requests = [_put(first + index, began + timedelta(seconds=index / size.rate_per_s)) for index in range(size.puts)]
    plan = Plan(port, requests, size.puts, size.rate_per_s, keep_times=True)
    with ThreadPoolExecutor(1) as pool:
        load = pool.submit(drive, plan)
        seen = _watch(connection, load, first, size.puts)
    sent = load.result()
    ordered = sorted(seen.fresh_s)
    row = {"p50, s": percentile(ordered, 50), "p99, s": percentile(ordered, 99), "most, s": ordered[-1]}
    sheet.add("From PutRecord's answer to a training set", who, row)
    looks_ms = sorted(look_s * 1e3 for look_s in seen.looks_s)
    sheet.add(
        "Meanwhile",
        who,
        {
            "PutRecord p50, ms": sent.p50_ms,
            "PutRecord p99, ms": sent.p99_ms,
            "puts/s": sent.requests_per_s,
            "training set p50, ms": percentile(looks_ms, 50),
            "training set p99, ms": percentile(looks_ms, 99),
        },
    )
    sheet.check("last value of each identifier", {"put": _sum(_last(size.puts)), f"in training sets, {who}": _sum(seen.newest)})
    probe = Probe(connection, size.flush_s)
    sheet.add("One by one, with fresh=True", who, percentiles([probe.fresh() for _ in range(size.fresh)]))
    single = {"put": values_checksum(probe.put), f"in training sets, {who}": values_checksum(probe.seen)}
    sheet.check("values put one by one", single)
    return row["p99, s"]


def _watch(connection: http.client.HTTPConnection, load: Future[Load], first: int, puts: int) -> _Seen:
    """Make training sets until they have shown every put."""
    zones = min(ZONES, puts)
    looks: list[tuple[float, list[int]]] = []
    looks_s: list[float] = []
    last = _last(puts)
    deadline_s: float | None = None
    while not looks or looks[-1][1] != last:
        if load.done():
            load.result()
            deadline_s = deadline_s or time.monotonic() + VISIBLE_S_MAX
            assert time.monotonic() < deadline_s, f"not all is visible after {VISIBLE_S_MAX:g} s: {looks[-1][1]}, not {last}"
        began_s = time.monotonic()
        trips = training_set(connection, list(range(zones)), datetime.now(UTC), fresh=False)
        at_s = time.monotonic()
        looks.append((at_s, [-1 if value is None or value < first else value - first for value in trips]))
        looks_s.append(at_s - began_s)
        time.sleep(LOOK_S)
    answered_at_s = load.result().answered_at_s
    return _Seen(list(_fresh_s(looks, answered_at_s)), looks_s, looks[-1][1])


def _fresh_s(looks: Sequence[tuple[float, list[int]]], answered_at_s: Sequence[float]) -> Iterator[float]:
    """Per put the seconds from its answer to the first training set that has it or a later one of its identifier; zero for
    one that was seen before its answer was.
    """
    position = [0] * ZONES
    for index, answered_s in enumerate(answered_at_s):
        zone = index % ZONES
        while looks[position[zone]][1][zone] < index:
            position[zone] += 1
        yield max(0.0, looks[position[zone]][0] - answered_s)


def _put(number: int, at: datetime) -> Request:
    zone = number % ZONES
    time_text = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    record = {"zone": str(zone), "at": time_text, "trips": str(number), "fare": "1.5"}
    pairs = [{"FeatureName": name, "ValueAsString": value} for name, value in record.items()]
    return request("PUT", f"/FeatureGroup/{GROUP}", json.dumps({"Record": pairs}).encode(), token=True)


def _last(puts: int) -> list[int]:
    """Per zone the last put of it."""
    return [zone + (puts - 1 - zone) // ZONES * ZONES for zone in range(min(ZONES, puts))]


def _sum(numbers: Sequence[int]) -> str:
    return table_checksum(pa.table({"zone": list(range(len(numbers))), "number": pa.array(numbers, pa.int64())}))
