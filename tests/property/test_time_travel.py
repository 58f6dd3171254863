"""Answers as of a past write time, on generated histories: those of the rows written by then, whatever came and moved since.

The expectation comes from the rows of the files themselves, by the brute force of `test_point_in_time`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import count

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore
from featurestore.errors import ValidationFailed
from featurestore.model.change import Op
from featurestore.model.feature_group import FeatureGroup, TtlDuration, TtlUnit
from featurestore.model.inference import datetime_us
from featurestore.offline import schema
from featurestore.offline.manifest import delta_after
from featurestore.query.point_in_time import Cut
from featurestore.store import FeatureStore
from tests.property.test_point_in_time import Past, oracle, oracle_latest
from tests.rewriting import rewrite

KEYS = ["a", "b", "c"]
BASE = datetime.now(UTC).replace(microsecond=0) - timedelta(days=10)
HOUR_US = 3_600_000_000
HOURS_MAX = 5
GROUP_NUMBERS = count()


@dataclass(frozen=True)
class Put:
    key: str
    hour: int
    value: int | None
    ttl_hours: int | None


@dataclass(frozen=True)
class Delete:
    key: str
    hour: int
    hard: bool


@dataclass(frozen=True)
class Ingest:
    rows: tuple[tuple[str, int, int | None], ...]


@dataclass(frozen=True)
class Flush:
    pass


@dataclass(frozen=True)
class Written:
    """A row as it lies in a file."""

    past: Past
    write_time_us: int


HOURS = st.integers(0, HOURS_MAX)
VALUES = st.one_of(st.none(), st.integers(0, 99))
EVENT = st.one_of(
    st.builds(Put, st.sampled_from(KEYS), HOURS, VALUES, st.sampled_from([None, None, 2, 240, 10_000])),
    st.builds(Put, st.sampled_from(KEYS), HOURS, VALUES, st.none()),
    st.builds(Delete, st.sampled_from(KEYS), HOURS, st.booleans()),
    st.builds(Ingest, st.lists(st.tuples(st.sampled_from(KEYS), HOURS, VALUES), min_size=1, max_size=5).map(tuple)),
)
HISTORY = st.lists(st.one_of(EVENT, EVENT, st.just(Flush())), min_size=3, max_size=20)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    with featurestore.open(tmp_path_factory.mktemp("home")) as store:
        yield store


def moment(hour: int) -> datetime:
    return BASE + timedelta(hours=hour)


class Told:
    """A history told to a group of its own.

    Attributes:
        known: moments after flushes, with the rows that the table had then.
    """

    def __init__(self, store: FeatureStore, history: list[Put | Delete | Ingest | Flush]) -> None:
        self.store = store
        self.name = f"past-{next(GROUP_NUMBERS)}"
        features = {"key": "String", "t": "String", "value": "Integral"}
        store.create_feature_group(self.name, record_identifier="key", event_time="t", features=features)
        self.known: list[tuple[datetime, int]] = []
        for event in [*history, Flush()]:
            self._tell(event)

    def _tell(self, event: Put | Delete | Ingest | Flush) -> None:
        match event:
            case Put(key, hour, value, ttl_hours):
                ttl = None if ttl_hours is None else TtlDuration(TtlUnit.HOURS, ttl_hours)
                self.store.put_record(self.name, {"key": key, "t": moment(hour), "value": value}, ttl=ttl)
            case Delete(key, hour, hard):
                try:
                    self.store.delete_record(self.name, key, moment(hour), hard=hard)
                except ValidationFailed:
                    assert hard
            case Ingest(rows):
                frame = pd.DataFrame(rows, columns=["key", "hour", "value"])
                frame["t"] = [moment(hour) for hour in frame.pop("hour")]
                frame["value"] = frame["value"].astype("Int64")
                self.store.ingest(self.name, frame, progress=False)
            case Flush():
                self.store.flush()
                files = self.store.offline.manifest(self.group).current().files
                self.known.append((datetime.now(UTC), sum(entry.rows for entry in files)))

    @property
    def group(self) -> FeatureGroup:
        return self.store.feature_group(self.name)

    def rows(self) -> list[Written]:
        """All rows of the table, in the order of their write times."""
        entries = self.store.offline.manifest(self.group).current().files
        tables = [pq.ParquetFile(path).read() for path in self.store.offline.paths(self.group, entries)]
        found = []
        for row in (row for table in tables for row in table.to_pylist()):
            times = {name: datetime_us(row[name], path=name) for name in (schema.EVENT_TIME, schema.API_TIME, schema.WRITE_TIME)}
            expires = row[schema.EXPIRES_AT]
            ttl_us = None if expires is None else datetime_us(expires, path="expires") - times[schema.EVENT_TIME]
            op = Op.HARD_DELETE if row[schema.HARD_DELETED] else Op.SOFT_DELETE if row[schema.IS_DELETED] else Op.PUT
            past = Past(row["key"], times[schema.EVENT_TIME], op, ttl_us, row["value"], times[schema.API_TIME])
            found.append(Written(past, times[schema.WRITE_TIME]))
        return sorted(found, key=lambda written: written.write_time_us)


def time_of(time_us: int) -> datetime:
    return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=time_us)


def check(told: Told, rows: list[Written], as_of: datetime | None, known_by: datetime, spine_from_us: int) -> None:
    """All ways of asking as of a time, against those of `rows` that were written by then."""
    as_of_us = None if as_of is None else datetime_us(as_of, path="as_of")
    seen = [row for row in rows if as_of_us is None or row.write_time_us <= as_of_us]
    pasts = [row.past for row in seen]
    times_us = {
        datetime_us(moment(hour), path="hour") + shift for hour in range(-1, HOURS_MAX + 3) for shift in (0, HOUR_US // 2)
    }
    times_us |= {datetime_us(known_by, path="known_by"), datetime_us(datetime.now(UTC), path="now")}
    asked = [(key, time_us) for time_us in sorted(times_us) if time_us >= spine_from_us for key in KEYS]
    spine = pa.table({"key": [key for key, _ in asked], "when": pa.array([time_us for _, time_us in asked], schema.INSTANT)})
    cuts = [
        (Cut(), {}),
        (Cut(known_by_us=datetime_us(known_by, path="known_by")), {"known_by": known_by}),
        (Cut(as_served=True), {"as_served": True}),
    ]
    for cut, options in cuts:
        made = told.store.create_training_set(
            spine, {"value": f"{told.name}.value"}, event_time="when", event_times=True, as_of=as_of, **options
        ).features
        answers = zip(made["value"].to_pylist(), made[f"{told.name}._event_time"].cast(pa.int64()).to_pylist(), strict=True)
        assert list(answers) == [oracle(pasts, key, time_us, cut) for key, time_us in asked], cut
    found = told.store.sql(
        f"""SELECT 'history' AS view, key, value, epoch_us(write_time) AS w FROM history."{told.name}"
        UNION ALL SELECT 'latest', key, value, NULL FROM latest."{told.name}" """,
        as_of=as_of,
    ).to_pylist()
    history = sorted((row["w"], row["key"], row["value"]) for row in found if row["view"] == "history")
    assert history == [(row.write_time_us, row.past.key, row.past.value) for row in seen]
    latest = sorted((row["key"], row["value"]) for row in found if row["view"] == "latest")
    judged_us = datetime_us(datetime.now(UTC), path="now") if as_of_us is None else as_of_us
    assert latest == sorted(oracle_latest(pasts, judged_us).items())


@settings(max_examples=15, deadline=None)
@given(history=HISTORY, picks=st.lists(st.integers(0, 1000), min_size=3, max_size=3))
def test_an_answer_as_of_a_time_is_that_of_the_rows_written_by_then(
    store: FeatureStore, history: list[Put | Delete | Ingest | Flush], picks: list[int]
) -> None:
    told = Told(store, history)
    rows = told.rows()
    for known_at, rows_then in told.known:
        assert sum(row.write_time_us <= datetime_us(known_at, path="known_at") for row in rows) == rows_then
    moments = [known_at for known_at, _ in told.known]
    moments += [time_of(row.write_time_us - early_us) for row in rows for early_us in (0, 1)]
    first, second, known_by = (moments[pick % len(moments)] for pick in picks)
    for as_of in (first, second):
        check(told, rows, as_of, known_by, 0)
    store.put_record(told.name, {"key": "a", "t": moment(1), "value": 100})
    if rows:
        assert rewrite(store.offline, told.group)
    for as_of in (first, second):
        check(told, rows, as_of, known_by, 0)


@settings(max_examples=20, deadline=None)
@given(history=HISTORY, floor_hour=HOURS, pick=st.integers(0, 1000), files=st.integers(0, 3))
def test_rows_below_what_is_retained_do_not_count(
    store: FeatureStore, history: list[Put | Delete | Ingest | Flush], floor_hour: int, pick: int, files: int
) -> None:
    told = Told(store, history)
    floor_us = datetime_us(moment(floor_hour), path="floor")
    rows = told.rows()
    if files and rows:  # else the files are those of single hours, which the floor does not cut
        assert rewrite(store.offline, told.group, files=files)
    store.offline.manifest(told.group).commit(lambda state: delta_after(state, retained_from_us=floor_us))
    kept = [row for row in rows if row.past.event_time_us >= floor_us]
    moments = [known_at for known_at, _ in told.known]
    for as_of in (None, moments[pick % len(moments)]):
        check(told, kept, as_of, moments[0], floor_us)
