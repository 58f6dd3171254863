"""Point-in-time joins against a brute-force oracle, on generated histories and both of the engine's ASOF plans."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine import Engine, EngineLimits
from featurestore.model.change import OFFLINE, ONLINE, Change, LoggedChange, Op, Stamp
from featurestore.model.codec import encode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import FeatureGroup, FeatureType, OfflineConfig, definitions
from featurestore.offline import schema
from featurestore.query.point_in_time import Cut, GroupJoin, join_group

ASOF_LOOP_ROWS = 64
"""Spines up to this size are joined by nested loops, larger ones by sorting; the two treat ties differently."""

GROUP = FeatureGroup(
    "readings",
    "sensor",
    "at",
    definitions([("sensor", FeatureType.STRING), ("at", FeatureType.STRING), ("value", FeatureType.INTEGRAL)]),
    offline=OfflineConfig("s3://bucket", resolved_s3_uri="s3://bucket/data"),
    feature_counts=(3,),
)


@dataclass(frozen=True)
class Past:
    """One change of the generated history; its api time is its place in the list."""

    key: str
    event_time_us: int
    op: Op
    ttl_us: int | None
    value: int | None

    @property
    def expires_at_us(self) -> int | None:
        return None if self.ttl_us is None or self.op is not Op.PUT else self.event_time_us + self.ttl_us


KEYS = st.sampled_from(["a", "b", "ab"])
TIMES_US = st.integers(0, 12)
HISTORY = st.lists(
    st.builds(
        Past,
        KEYS,
        TIMES_US,
        st.sampled_from([Op.PUT] * 6 + [Op.SOFT_DELETE] * 2 + [Op.HARD_DELETE]),
        st.one_of(st.none(), st.integers(1, 6)),
        st.one_of(st.none(), st.integers(0, 99)),
    ),
    max_size=25,
)
GENTLE_HISTORY = HISTORY.map(lambda history: [past for past in history if past.op is not Op.HARD_DELETE])
SPINE = st.lists(st.tuples(st.one_of(st.none(), KEYS), st.one_of(st.none(), TIMES_US)), min_size=1, max_size=30)
CUTS = st.one_of(st.just(Cut()), st.builds(Cut, known_by_us=st.integers(0, 26)), st.just(Cut(as_served=True)))


def oracle(history: list[Past], key: str | None, time_us: int | None, cut: Cut) -> tuple[int | None, int | None]:
    """(value, event time) of the record as of `time_us`, straight from the definition."""
    if key is None or time_us is None:
        return None, None
    in_sight = [
        (past, api_us)
        for api_us, past in enumerate(history)
        if past.key == key
        and past.event_time_us <= time_us
        and (cut.known_by_us is None or api_us <= cut.known_by_us)
        and (not cut.as_served or api_us <= time_us)
    ]
    barrier = max((api_us for past, api_us in in_sight if past.op is Op.HARD_DELETE), default=-1)
    counting = [
        (past.event_time_us, past.op is Op.PUT, api_us, past)
        for past, api_us in in_sight
        if past.op is not Op.HARD_DELETE and api_us > barrier
    ]
    if not counting:
        return None, None
    *_, winner = max(counting, key=lambda item: item[:3])
    expired = winner.expires_at_us is not None and winner.expires_at_us <= time_us
    if winner.op is not Op.PUT or expired:
        return None, None
    return winner.value, winner.event_time_us


def logged(api_us: int, past: Past) -> LoggedChange:
    values = [past.key, format_iso(past.event_time_us), None]
    if past.op is Op.PUT and past.value is not None:
        values[2] = str(past.value)
    change = Change(1, 1, past.key, past.event_time_us, past.op, ONLINE | OFFLINE, past.expires_at_us, encode_values(1, values))
    return LoggedChange(change, Stamp(0, api_us + 1, api_us))


def write_history(folder: Path, history: list[Past], files: int) -> list[str]:
    """The history as Parquet, spread over files in no order that the join could lean on."""
    changes = [logged(api_us, past) for api_us, past in enumerate(history)]
    paths = []
    for number in range(files):
        part = changes[number::files][::-1]
        if part:
            table = schema.table_of_changes(GROUP, 1, part, [item.stamp.api_time_us for item in part])
            paths.append(str(folder / f"{number}.parquet"))
            pq.write_table(table, paths[-1])
    return paths


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(EngineLimits(512 << 20, 1 << 30, 2), tmp_path_factory.mktemp("engine"))


def check(
    engine: Engine, folder: Path, history: list[Past], spine: list[tuple[str | None, int | None]], cut: Cut, files: int
) -> None:
    paths = write_history(folder, history, files)
    hard = any(past.op is Op.HARD_DELETE for past in history)
    join = GroupJoin(GROUP, paths, [("value", "value")], hard, event_time_column="seen")
    for copies in (1, ASOF_LOOP_ROWS // len(spine) + 1):
        rows = spine * copies
        table = pa.table(
            {
                "row": pa.array(range(len(rows)), pa.int64()),
                "key": pa.array([key for key, _ in rows], pa.string()),
                "time": pa.array([time_us for _, time_us in rows], schema.INSTANT),
            }
        )
        answer = join_group(engine, table, join, cut)
        seen = answer["seen"].cast(pa.int64()).to_pylist()
        expected = [oracle(history, key, time_us, cut) for key, time_us in spine] * copies
        assert list(zip(answer["value"].to_pylist(), seen, strict=True)) == expected


@settings(max_examples=300, deadline=None)
@given(history=HISTORY, spine=SPINE, cut=CUTS, files=st.integers(1, 3))
def test_join_equals_brute_force(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Past],
    spine: list[tuple[str | None, int | None]],
    cut: Cut,
    files: int,
) -> None:
    check(engine, tmp_path_factory.mktemp("history"), history, spine, cut, files)


@settings(max_examples=200, deadline=None)
@given(history=GENTLE_HISTORY, spine=SPINE, cut=CUTS, files=st.integers(1, 3))
def test_join_without_hard_deletes_equals_brute_force(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Past],
    spine: list[tuple[str | None, int | None]],
    cut: Cut,
    files: int,
) -> None:
    check(engine, tmp_path_factory.mktemp("history"), history, spine, cut, files)


def test_join_over_no_files_keeps_every_row(engine: Engine, tmp_path: Path) -> None:
    check(engine, tmp_path, [], [("a", 1), (None, None), ("b", 3)], Cut(), 1)
