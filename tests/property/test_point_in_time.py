"""Point-in-time joins and `latest` against a brute-force oracle, on generated histories and both of the engine's ASOF plans."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featurestore.engine import Engine, EngineLimits
from featurestore.errors import FileVanished, QueryFailed
from featurestore.model.change import OFFLINE, ONLINE, Change, LoggedChange, Op, Stamp
from featurestore.model.codec import encode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import FeatureGroup, FeatureType, OfflineConfig, definitions
from featurestore.offline import schema
from featurestore.query.graves import matches_sql
from featurestore.query.history import latest_sql
from featurestore.query.join import join_group
from featurestore.query.matches import scan_sql
from featurestore.query.point_in_time import Cut, GroupJoin
from featurestore.query.sight import Sight

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
    """One change of the generated history. Its write time is its place in the list, and so is its API time unless given."""

    key: str
    event_time_us: int
    op: Op
    ttl_us: int | None
    value: int | None
    api_time_us: int = -1

    @property
    def expires_at_us(self) -> int | None:
        return None if self.ttl_us is None or self.op is not Op.PUT else self.event_time_us + self.ttl_us


KEYS = st.sampled_from(["a", "b", "ab"])
TIMES_US = st.integers(0, 12)
PAST = st.builds(
    Past,
    KEYS,
    TIMES_US,
    st.sampled_from([Op.PUT] * 6 + [Op.SOFT_DELETE] * 2 + [Op.HARD_DELETE]),
    st.one_of(st.none(), st.integers(1, 6)),
    st.one_of(st.none(), st.integers(0, 99)),
)
HISTORY = st.lists(PAST, max_size=25).map(
    lambda history: [replace(past, api_time_us=place) for place, past in enumerate(history)]
)
FOREIGN_HISTORY = st.lists(
    st.builds(
        lambda past, event_us, api_us: replace(past, event_time_us=event_us, api_time_us=api_us),
        PAST,
        st.integers(0, 4),
        st.integers(0, 2),
    ),
    max_size=25,
)
"""API times repeat, many of them with the event time, and do not rise with the write times."""
GENTLE_HISTORY = HISTORY.map(lambda history: [past for past in history if past.op is not Op.HARD_DELETE])
PLAIN_HISTORY = st.tuples(HISTORY, st.booleans(), st.booleans()).map(
    lambda drawn: [
        replace(past, ttl_us=past.ttl_us if drawn[1] else None, op=past.op if drawn[2] else Op.PUT) for past in drawn[0]
    ]
)
"""Without expiries, without deletes, or without both."""
SPINE = st.lists(st.tuples(st.one_of(st.none(), KEYS), st.one_of(st.none(), TIMES_US)), min_size=1, max_size=30)
CUTS = st.one_of(st.just(Cut()), st.builds(Cut, known_by_us=st.integers(0, 26)), st.just(Cut(as_served=True)))


def oracle(history: list[Past], key: str | None, time_us: int | None, cut: Cut) -> tuple[int | None, int | None]:
    """(value, event time) of the record as of `time_us`, straight from the definition."""
    if key is None or time_us is None:
        return None, None
    in_sight = [
        (past, (past.api_time_us, write_time_us))
        for write_time_us, past in enumerate(history)
        if past.key == key
        and past.event_time_us <= time_us
        and (cut.known_by_us is None or past.api_time_us <= cut.known_by_us)
        and (not cut.as_served or past.api_time_us <= time_us)
    ]
    winner = newest(in_sight)
    if winner is None or winner.op is not Op.PUT or (winner.expires_at_us is not None and winner.expires_at_us <= time_us):
        return None, None
    return winner.value, winner.event_time_us


def newest(changes: list[tuple[Past, tuple[int, int]]]) -> Past | None:
    """Of the changes of one record, each with its arrival, the one that counts."""
    barrier = max((arrival for past, arrival in changes if past.op is Op.HARD_DELETE), default=(-1, -1))
    counting = [
        (past.event_time_us, past.op is Op.PUT, arrival, past)
        for past, arrival in changes
        if past.op is not Op.HARD_DELETE and arrival > barrier
    ]
    return max(counting, key=lambda item: item[:3])[3] if counting else None


def oracle_latest(history: list[Past], at_us: int) -> dict[str, int | None]:
    """Value by key of what is live at `at_us`; event times of the future count."""
    live = {}
    for key in {past.key for past in history}:
        changes = [(past, (past.api_time_us, place)) for place, past in enumerate(history) if past.key == key]
        winner = newest(changes)
        if winner is not None and winner.op is Op.PUT and (winner.expires_at_us is None or winner.expires_at_us > at_us):
            live[key] = winner.value
    return live


def logged(past: Past) -> LoggedChange:
    values = [past.key, format_iso(past.event_time_us), None]
    if past.op is Op.PUT and past.value is not None:
        values[2] = str(past.value)
    change = Change(1, 1, past.key, past.event_time_us, past.op, ONLINE | OFFLINE, past.expires_at_us, encode_values(1, values))
    return LoggedChange(change, Stamp(0, 1, past.api_time_us))


def write_history(folder: Path, history: list[Past], files: int) -> list[str]:
    """The history as Parquet, spread over files in no order that the join could lean on."""
    changes = [(logged(past), write_time_us) for write_time_us, past in enumerate(history)]
    paths = []
    for number in range(files):
        part = changes[number::files][::-1]
        if part:
            table = schema.table_of_changes(GROUP, 1, [item for item, _ in part], [write_time_us for _, write_time_us in part])
            paths.append(str(folder / f"{number}.parquet"))
            pq.write_table(table, paths[-1])
    return paths


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(EngineLimits(512 << 20, 1 << 30, 2), tmp_path_factory.mktemp("engine"))


def sight_of(folder: Path, history: list[Past], files: int, *, api_times_repeat: bool = False) -> Sight:
    return Sight(
        GROUP,
        write_history(folder, history, files),
        deletes=any(past.op is not Op.PUT for past in history),
        hard_deletes=any(past.op is Op.HARD_DELETE for past in history),
        expiries=any(past.expires_at_us is not None for past in history),
        api_times_repeat=api_times_repeat,
    )


def check(engine: Engine, sight: Sight, history: list[Past], spine: list[tuple[str | None, int | None]], cut: Cut) -> None:
    join = GroupJoin(sight, [("value", "value")], event_time_column="seen")
    for copies in (1, ASOF_LOOP_ROWS // len(spine) + 1):
        rows = spine * copies
        table = pa.table(
            {
                "key": pa.array([key for key, _ in rows], pa.string()),
                "time": pa.array([time_us for _, time_us in rows], schema.INSTANT),
            }
        )
        answer = join_group(engine, table, join, cut)
        seen = answer["seen"].cast(pa.int64()).to_pylist()
        expected = [oracle(history, key, time_us, cut) for key, time_us in spine] * copies
        assert list(zip(answer["value"].to_pylist(), seen, strict=True)) == expected


@settings(max_examples=150, deadline=None)
@given(history=HISTORY, spine=SPINE, cut=CUTS, files=st.integers(1, 3))
def test_join_equals_brute_force(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Past],
    spine: list[tuple[str | None, int | None]],
    cut: Cut,
    files: int,
) -> None:
    check(engine, sight_of(tmp_path_factory.mktemp("history"), history, files), history, spine, cut)


@settings(max_examples=150, deadline=None)
@given(history=GENTLE_HISTORY, spine=SPINE, cut=CUTS, files=st.integers(1, 3))
def test_join_without_hard_deletes_equals_brute_force(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Past],
    spine: list[tuple[str | None, int | None]],
    cut: Cut,
    files: int,
) -> None:
    check(engine, sight_of(tmp_path_factory.mktemp("history"), history, files), history, spine, cut)


@settings(max_examples=150, deadline=None)
@given(history=PLAIN_HISTORY, spine=SPINE, cut=CUTS, files=st.integers(1, 3))
def test_join_of_what_has_no_deletes_or_expiries_equals_brute_force(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Past],
    spine: list[tuple[str | None, int | None]],
    cut: Cut,
    files: int,
) -> None:
    check(engine, sight_of(tmp_path_factory.mktemp("history"), history, files), history, spine, cut)


@settings(max_examples=150, deadline=None)
@given(history=FOREIGN_HISTORY, spine=SPINE, cut=CUTS, files=st.integers(1, 3), hard=st.booleans(), as_of_us=st.integers(0, 25))
def test_where_api_times_repeat_the_later_written_wins(
    engine: Engine,
    tmp_path_factory: pytest.TempPathFactory,
    history: list[Past],
    spine: list[tuple[str | None, int | None]],
    cut: Cut,
    files: int,
    hard: bool,
    as_of_us: int,
) -> None:
    if not hard:
        history = [past for past in history if past.op is not Op.HARD_DELETE]
    sight = sight_of(tmp_path_factory.mktemp("history"), history, files, api_times_repeat=True)
    check(engine, sight, history, spine, cut)
    check_latest(engine, sight, history, as_of_us)


@settings(max_examples=150, deadline=None)
@given(
    changes=st.lists(st.tuples(st.integers(0, 8), st.sampled_from([Op.PUT] * 3 + [Op.SOFT_DELETE])), min_size=2, max_size=12),
    each=st.integers(1, 3),
    files=st.integers(1, 3),
)
def test_what_was_served_at_every_moment_of_a_record(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, Op]], each: int, files: int
) -> None:
    """A change may arrive long after its event time, so that one which arrived before it has outdone it already; `each`: changes
    that have one API time.
    """
    history = [Past("a", event_us, op, None, place, place // each) for place, (event_us, op) in enumerate(changes)]
    sight = sight_of(tmp_path_factory.mktemp("history"), history, files, api_times_repeat=each > 1)
    check(engine, sight, history, [("a", time_us) for time_us in range(14)], Cut(as_served=True))


@settings(max_examples=100, deadline=None)
@given(history=HISTORY, files=st.integers(1, 3), as_of_us=st.integers(0, 25))
def test_latest_equals_brute_force(
    engine: Engine, tmp_path_factory: pytest.TempPathFactory, history: list[Past], files: int, as_of_us: int
) -> None:
    check_latest(engine, sight_of(tmp_path_factory.mktemp("history"), history, files), history, as_of_us)


def check_latest(engine: Engine, sight: Sight, history: list[Past], as_of_us: int) -> None:
    session = engine.session()
    found = session.sql(latest_sql(replace(sight, written_by_us=as_of_us))).to_arrow_table().select(["sensor", "value"])
    session.close()
    assert sorted(found.to_pylist(), key=lambda row: row["sensor"]) == [
        {"sensor": key, "value": value} for key, value in sorted(oracle_latest(history[: as_of_us + 1], as_of_us).items())
    ]


@pytest.mark.parametrize("cut", [Cut(), Cut(known_by_us=1), Cut(as_served=True)], ids=str)
@pytest.mark.parametrize("hard", [False, True])
def test_write_times_are_compared_only_where_api_times_repeat(cut: Cut, hard: bool) -> None:
    unique = Sight(GROUP, ["x.parquet"], deletes=hard, hard_deletes=hard)
    for sight in (unique, replace(unique, api_times_repeat=True)):
        for sql in (matches_sql(sight, cut), latest_sql(sight)):
            assert (f"b := {schema.WRITE_TIME}" in sql) is sight.api_times_repeat
        assert (f"({schema.WRITE_TIME})" in scan_sql(sight, cut)) is sight.api_times_repeat


def test_a_file_that_is_gone_is_told_from_a_statement_that_fails(engine: Engine, tmp_path: Path) -> None:
    spine = pa.table({"key": ["a"], "time": pa.array([5], schema.INSTANT)})
    sight = sight_of(tmp_path, [Past("a", 1, Op.PUT, None, 1, 0), Past("a", 2, Op.PUT, None, 2, 1)], 2)
    Path(sight.paths[0]).write_bytes(b"no Parquet at all")
    with pytest.raises(QueryFailed):
        join_group(engine, spine, GroupJoin(sight, [("value", "value")]), Cut())
    Path(sight.paths[1]).unlink()
    with pytest.raises(FileVanished):
        join_group(engine, spine, GroupJoin(sight, [("value", "value")]), Cut())


def test_join_over_no_files_keeps_every_row(engine: Engine, tmp_path: Path) -> None:
    check(engine, sight_of(tmp_path, [], 1), [], [("a", 1), (None, None), ("b", 3)], Cut())
