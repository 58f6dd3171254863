"""Questions as of a past write time, the end of a history, and files that are gone: what is answered and what is refused."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

import featurestore
from featurestore.engine import Engine, EngineLimits
from featurestore.errors import FileVanished, QueryTimeout, ValidationFailed
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.inference import datetime_us
from featurestore.offline import layout
from featurestore.offline.batch import INACTIVE_S, BatchRows, Journal
from featurestore.offline.local import LocalObjectStore
from featurestore.offline.manifest import delta_after
from featurestore.offline.table import OfflineStore
from featurestore.progress import silent
from featurestore.query.point_in_time import Cut
from featurestore.query.reader import OfflineReader
from featurestore.query.replan import REPLANS_MAX
from featurestore.query.sandbox import Relations, Sandbox, SandboxLimits, TableName, View
from featurestore.stopwatch import Stopwatch
from featurestore.store import FeatureStore
from tests.integration.conftest import Cli
from tests.rewriting import rewrite

DAY = datetime(2024, 5, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)
SPINE = pd.DataFrame({"id": ["a", "b", None, "a"], "when": [DAY, DAY + HOUR, DAY, DAY + 5 * HOUR]})


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    """Two groups, `first` and `second`, with values of `a` and `b` at hours 0 to 3."""
    with featurestore.open(tmp_path / "home") as store:
        for name in ("first", "second"):
            features = {"id": "String", "at": "String", "x": "Integral"}
            store.create_feature_group(name, record_identifier="id", event_time="at", features=features)
            frame = pd.DataFrame({"id": ["a", "b", "a", "b"], "at": [DAY + hour * HOUR for hour in range(4)], "x": range(4)})
            store.ingest(name, frame, progress=False)
        yield store


def asked(store: FeatureStore, group: str = "first", **options: object) -> list[object]:
    made = store.create_training_set(SPINE, {"x": f"{group}.x"}, event_time="when", **options)
    return made.features["x"].to_pylist()


def root_of(store: FeatureStore) -> Path:
    objects = store.offline.objects
    assert isinstance(objects, LocalObjectStore)
    return objects.root


def end_history(store: FeatureStore, group: str, floor: datetime) -> None:
    floor_us = datetime_us(floor, path="floor")
    manifest = store.offline.manifest(store.feature_group(group))
    manifest.commit(lambda state: delta_after(state, retained_from_us=floor_us))


# as of ------------------------------------------------------------------------------------------------------------------


def test_a_promised_batch_holds_up_what_it_would_change(store: FeatureStore) -> None:
    """Its rows have write times from its beginning on, and appear later."""
    group = store.feature_group("first")
    before = datetime.now(UTC)
    journal = promised(store, group)
    during = datetime.now(UTC)
    assert asked(store, as_of=before) == [0, 1, None, 2]
    for ask in (lambda: asked(store, as_of=during), lambda: store.sql("SELECT * FROM first", as_of=during)):
        with pytest.raises(ValidationFailed, match="as_of: expected a time before 2.*Z, when an ingest began"):
            ask()
    assert asked(store) == [0, 1, None, 2], "without as_of nothing is held up"
    store.offline.batches.publish(journal, store.offline.manifest(group))
    store.offline.batches.close(journal)
    assert asked(store, as_of=during) == [0, 1, None, 99]
    assert asked(store, as_of=before) == [0, 1, None, 2]


def promised(store: FeatureStore, group: FeatureGroup) -> Journal:
    """A batch of one row, at the point where a process may die and the batch will happen."""
    features = pa.table({"id": ["a"], "at": ["2024-05-01T04:00:00Z"], "x": pa.array([99], pa.int64())})
    times_us = np.array([datetime_us(DAY + 4 * HOUR, path="at")])
    rows = BatchRows(features, times_us, np.array([time.time_ns() // 1000]), None, np.array([0]), np.array([0]), None)
    return store.offline.batches.stage(group, rows, offline=True)


@pytest.mark.parametrize(("age_s", "running"), [(INACTIVE_S / 2, True), (INACTIVE_S + 1, False)])
def test_a_batch_that_died_before_its_promise_is_cancelled(store: FeatureStore, age_s: float, running: bool) -> None:
    begun_us = time.time_ns() // 1000 - int(age_s * 1_000_000)
    key = layout.staging_key(f"{begun_us:020d}-{uuid.uuid4().hex}", begun_us, "begin")
    store.offline.objects.put_if_absent(key, b"")
    if running:
        with pytest.raises(ValidationFailed, match="still running"):
            asked(store, as_of=datetime.now(UTC))
    else:
        assert asked(store, as_of=datetime.now(UTC)) == [0, 1, None, 2]
        assert store.offline.objects.list("_staging/") == []


def test_what_was_acknowledged_is_written_first(store: FeatureStore) -> None:
    store.put_record("first", {"id": "a", "at": DAY + 4 * HOUR, "x": 4})
    between = datetime.now(UTC)
    assert asked(store, as_of=between, fresh=False) == [0, 1, None, 2], "it was not written by then"
    assert store.offline_behind() == 0
    after = datetime.now(UTC)
    assert asked(store, as_of=after, fresh=False) == [0, 1, None, 4]
    assert asked(store, as_of=between) == [0, 1, None, 2]


def test_a_time_that_is_not_over_is_refused(store: FeatureStore) -> None:
    for as_of, expected in (
        (datetime.now(UTC) + timedelta(seconds=5), "as_of: expected a time in the past, before 2.*Z, got '2"),
        (datetime(2024, 5, 1), "as_of: expected a datetime with a time zone"),
    ):
        with pytest.raises(ValidationFailed, match=expected):
            asked(store, as_of=as_of)
        with pytest.raises(ValidationFailed, match=expected):
            store.sql("SELECT 1", as_of=as_of)
    assert asked(store, as_of=datetime.min.replace(tzinfo=UTC)) == [None] * 4


def test_the_command_line(store: FeatureStore, cli: Cli) -> None:
    moment = datetime.now(UTC)
    store.put_record("first", {"id": "a", "at": DAY + 4 * HOUR, "x": 4})
    store.flush()
    home = store.settings.home
    statement = "SELECT max(x) AS most FROM first"
    for as_of, most in ((moment.isoformat(), "3"), (moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ"), "3"), (None, "4")):
        options = [] if as_of is None else ["--as-of", as_of]
        assert cli("sql", statement, *options, home=home).stdout.split()[-1] == most
    refused = cli("sql", statement, "--as-of", "yesterday", home=home)
    assert refused.returncode == 1
    assert "--as-of: expected an ISO-8601 time with a time zone such as 2026-11-21T10:00:00Z, got 'yesterday'" in refused.stderr


# retention --------------------------------------------------------------------------------------------------------------


def test_a_spine_from_before_the_history_is_refused(store: FeatureStore) -> None:
    end_history(store, "first", DAY + HOUR)
    end_history(store, "second", DAY + 2 * HOUR)
    expected = "when: .*history of 'first' begins at 2024-05-01T01:00:00Z; 1 rows of the spine are earlier"
    with pytest.raises(ValidationFailed, match=expected) as caught:
        store.create_training_set(SPINE, ["first.x", "second.x"], event_time="when")
    assert "history of 'second' begins at 2024-05-01T02:00:00Z; 2 rows of the spine are earlier" in str(caught.value)
    late = SPINE[SPINE["when"] >= DAY + HOUR]
    assert store.create_training_set(late, {"x": "first.x"}, event_time="when").features["x"].to_pylist() == [1, 2]
    without_keys = SPINE[SPINE["id"].isna()]
    assert store.create_training_set(without_keys, {"x": "first.x"}, event_time="when").features["x"].to_pylist() == [None]


@pytest.mark.parametrize("files", [0, 1, 2])
def test_rows_before_the_history_do_not_count_in_any_file(store: FeatureStore, files: int) -> None:
    if files:
        rewrite(store.offline, store.feature_group("first"), files=files, seed=1)
    end_history(store, "first", DAY + 2 * HOUR)
    late = SPINE.assign(when=DAY + 5 * HOUR)
    for options in ({}, {"as_of": datetime.now(UTC)}):
        assert store.create_training_set(late, {"x": "first.x"}, event_time="when", **options).features["x"].to_pylist() == [
            2,
            3,
            None,
            2,
        ]
        assert store.sql("SELECT x FROM history.first ORDER BY x", **options)["x"].to_pylist() == [2, 3]
        assert store.sql("SELECT x FROM latest.first ORDER BY x", **options)["x"].to_pylist() == [2, 3]
    end_history(store, "first", DAY + 3 * HOUR)
    assert store.sql("SELECT x FROM latest.first ORDER BY x")["x"].to_pylist() == [3]


# files that are gone ----------------------------------------------------------------------------------------------------


def test_one_statement_reads_a_group_at_one_version(store: FeatureStore) -> None:
    """Whatever its schemas: a commit between the two must not be seen by one of them alone."""
    versions: list[int] = []

    class Counting(LocalObjectStore):
        def paths(self, keys: Sequence[str]) -> Sequence[str]:
            versions.append(len(keys))
            store.put_record("first", {"id": "c", "at": DAY, "x": 9})
            store.flush()
            return super().paths(keys)

    with reader(store, Counting(root_of(store))) as asking:
        found = asking.sql("SELECT count(*) AS n FROM history.first FULL JOIN latest.first USING (id) WHERE id = 'c'")
    assert found["n"].to_pylist() == [0]
    assert len(versions) == 1


class Remote(LocalObjectStore):
    """Tells when an object is gone, as a store does that has to fetch it first: so often as `vanish` says."""

    vanish = 0

    def paths(self, keys: Sequence[str]) -> Sequence[str]:
        if self.vanish:
            self.vanish -= 1
            raise FileVanished("read offline store")
        return super().paths(keys)


@contextmanager
def reader(store: FeatureStore, objects: LocalObjectStore) -> Iterator[OfflineReader]:
    """A reader of the groups of a store, by other means."""
    temp = store.settings.home / "tmp"
    engine = Engine(EngineLimits(256 << 20, 1 << 30, 2), temp)
    with Sandbox(SandboxLimits(), temp) as sandbox:
        yield OfflineReader(OfflineStore(objects), store.feature_group, engine, sandbox)
    engine.close()


@pytest.mark.parametrize(("vanish", "survives"), [(REPLANS_MAX, True), (REPLANS_MAX + 1, False)])
def test_files_that_a_remote_store_misses(store: FeatureStore, vanish: int, survives: bool) -> None:
    def training_set(asking: OfflineReader) -> list[object]:
        made = asking.create_training_set(
            SPINE,
            {"x": "first.x"},
            event_time="when",
            keys={},
            cut=Cut(),
            as_of_us=None,
            event_times=False,
            stopwatch=Stopwatch(),
            progress=silent,
        )
        return made.features["x"].to_pylist()

    objects = Remote(root_of(store))
    with reader(store, objects) as asking:
        for ask in (training_set, lambda asking: asking.sql("SELECT x FROM first ORDER BY x")["x"].to_pylist()):
            objects.vanish = vanish
            if survives:
                assert ask(asking) in ([0, 1, None, 2], [0, 1, 2, 3])
            else:
                with pytest.raises(FileVanished):
                    ask(asking)
            assert objects.vanish == 0


def test_a_file_that_stays_gone(store: FeatureStore) -> None:
    group = store.feature_group("second")
    entries = store.offline.manifest(group).current().files
    Path(store.offline.paths(group, entries)[0]).unlink()
    for ask in (
        lambda: store.create_training_set(SPINE, ["first.x", "second.x"], event_time="when"),
        lambda: store.sql("SELECT * FROM first JOIN latest.second USING (id)"),
        lambda: store.create_training_set("SELECT * FROM second", ["first.x"], event_time="at"),
    ):
        with pytest.raises(FileVanished) as caught:
            ask()
        assert caught.value.retryable
    assert asked(store) == [0, 1, None, 2]


def test_planning_anew_does_not_stretch_the_deadline(tmp_path: Path) -> None:
    missing = str(tmp_path / "gone.parquet")
    planned: list[float] = []

    def resolve(names: Sequence[TableName]) -> Relations:
        planned.append(time.monotonic())
        time.sleep(0.8)  # a store that is slow to answer
        return Relations((View("history", "g", f"SELECT * FROM read_parquet(['{missing}'])"),), (missing,))

    with Sandbox(SandboxLimits(), tmp_path / "temp") as sandbox:
        sandbox.fences()
        started_s = time.monotonic()
        with pytest.raises(QueryTimeout, match=r"after 2 s"):
            sandbox.run("SELECT * FROM g", resolve, timeout_s=2.0)
        assert time.monotonic() - started_s < REPLANS_MAX * 0.8
    assert 1 < len(planned) <= 3
