"""Looking after the offline store: merging, cleaning, retention, and the service that does it by itself."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import featurestore
from featurestore.errors import ValidationFailed
from featurestore.model.feature_group import CompactionMode, FeatureDefinition, FeatureType
from featurestore.offline import compaction, layout, manifest, schema
from featurestore.offline.manifest import FileEntry, Manifest, Origin, Version, delta_after
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from ingest.maintenance import MaintenanceWorker
from tests.service import Service

DAY = datetime(2024, 5, 1, tzinfo=UTC)
FEATURES = {"id": "String", "t": "String", "n": "Integral"}
DEADLINE_S = 60.0


def opened(home: Path, **settings: Any) -> FeatureStore:
    return FeatureStore(Settings.load({}, home=home, **settings))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    with opened(tmp_path / "home", grace_s=0) as store:
        create(store)
        yield store


def create(store: FeatureStore, name: str = "g") -> None:
    store.create_feature_group(name, record_identifier="id", event_time="t", features=FEATURES)


def write(store: FeatureStore, first: int, count: int, *, days: int = 0) -> None:
    """Rows n, n + 1, ... a minute apart, half of them by ingest and half by put."""
    numbers = list(range(first, first + count))
    at = [DAY + timedelta(days=days, minutes=number) for number in numbers]
    half = count // 2
    frame = pd.DataFrame({"id": [f"k{number % 7}" for number in numbers], "t": at, "n": numbers})
    store.ingest("g", frame[:half], progress=False)
    for row in frame[half:].itertuples():
        store.put_record("g", {"id": row.id, "t": row.t.to_pydatetime(), "n": row.n})
    store.flush()


def state(store: FeatureStore, name: str = "g") -> Version:
    return store.offline.manifest(store.feature_group(name)).current()


def rows(store: FeatureStore, **options: Any) -> list[dict[str, Any]]:
    return store.sql("SELECT * FROM g ORDER BY n, write_time", **options).to_pylist()


def objects(store: FeatureStore, folder: str) -> list[str]:
    return list(store.offline.objects.list(f"{layout.group_root(store.feature_group('g'))}/{folder}/"))


def until(condition: Callable[[], object], what: str) -> None:
    deadline_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline_s, what
        time.sleep(0.05)


def test_merging_changes_no_answer(store: FeatureStore) -> None:
    moments = []
    for number in range(6):
        write(store, number * 20, 20)
        moments.append(datetime.now(UTC))
    store.delete_record("g", "k1", DAY + timedelta(days=1))
    store.delete_record("g", "k2", DAY + timedelta(days=1), hard=True)
    store.flush()
    before, at_times = rows(store), [rows(store, as_of=moment) for moment in moments]
    latest = store.sql("SELECT * FROM latest.g ORDER BY id").to_pylist()
    done = store.compact("g")
    assert (done.files, done.written) == (1, 1)
    assert rows(store) == before
    assert [rows(store, as_of=moment) for moment in moments] == at_times
    assert [len(answer) for answer in at_times] == [20, 40, 60, 80, 100, 120]
    assert store.sql("SELECT * FROM latest.g ORDER BY id").to_pylist() == latest
    assert sum(state(store).rows.values()) == state(store).files[0].rows == 122
    assert store.compact("g").merged == 0, "what is merged is left alone"


def test_a_merged_file_is_sorted_and_of_the_common_form(store: FeatureStore) -> None:
    for number in range(4):
        write(store, number * 50, 50)
    store.compact("g")
    (path,) = store.offline.paths(store.feature_group("g"), state(store).files)
    table = pq.ParquetFile(path).read()
    assert table.schema.equals(schema.table_schema(store.feature_group("g").features))
    order = [(name, "ascending") for name in ("id", schema.EVENT_TIME, schema.API_TIME)]
    assert table.equals(table.sort_by(order))


def test_files_of_every_schema_version_merge(store: FeatureStore) -> None:
    write(store, 0, 10)
    store.add_features("g", [FeatureDefinition("extra", FeatureType.FRACTIONAL)])
    store.put_record("g", {"id": "k1", "t": DAY + timedelta(days=1), "n": 99, "extra": 0.5})
    before = rows(store)
    assert [row["extra"] for row in before] == [None] * 10 + [0.5]
    store.compact("g")
    assert rows(store) == before


def test_the_originals_stay_for_readers_by_path(store: FeatureStore) -> None:
    write(store, 0, 30)
    originals = objects(store, "data")
    store.compact("g")
    store.clean("g")
    assert objects(store, "data") == originals
    write(store, 30, 10)
    store.compact("g")
    assert len(objects(store, "opt")) == 2, "the first merged file waits for its deletion"
    assert store.clean("g").deleted == 1
    assert len(objects(store, "opt")) == 1
    assert state(store).garbage == ()


def test_the_originals_go_where_nobody_reads_by_path(tmp_path: Path) -> None:
    with opened(tmp_path, grace_s=0) as store:
        create(store)
        write(store, 0, 30)
        store.compact("g")
        before = rows(store)
    with opened(tmp_path, grace_s=0, compaction_mode=CompactionMode.REPLACE) as store:
        write(store, 30, 10)
        live = [entry.path for entry in state(store).files if entry.path.startswith("data/")]
        assert live
        store.clean("g")
        left = [path.split("/data/")[1] for path in objects(store, "data")]
        assert sorted(f"data/{path}" for path in left) == sorted(live), "what was replaced under the other mode goes as well"
        assert rows(store)[:30] == before


def test_garbage_waits_for_its_grace_period(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        create(store)
        for number in range(2):
            write(store, number * 10, 10)
            store.compact("g")
        assert (store.clean("g").deleted, len(objects(store, "opt"))) == (0, 2)
    with opened(tmp_path, grace_s=0) as store:
        assert (store.clean("g").deleted, len(objects(store, "opt"))) == (1, 1)


def test_left_over_outputs_are_cleaned(store: FeatureStore) -> None:
    write(store, 0, 10)
    root = layout.group_root(store.feature_group("g"))
    token = layout.token(root, layout.FileKind.COMPACTION, "died before its commit")
    key = layout.opt_key(root, 0, token)
    store.offline.objects.put_if_absent(key, b"half a merge")
    store.clean("g")
    assert store.offline.objects.get(key) is not None, "it may still be committed"
    (path,) = store.offline.objects.paths([key])
    os.utime(path, (0, 0))
    store.clean("g")
    store.clean("g")
    assert store.offline.objects.get(key) is None


def test_retention(store: FeatureStore) -> None:
    today = datetime.now(UTC)
    for days in (40, 20, 0):
        store.put_record("g", {"id": f"d{days}", "t": today - timedelta(days=days), "n": days})
        store.flush()
    write(store, 100, 10)
    assert store.retain("g").from_us is None
    store.set_retention("g", 30)
    done = store.retain("g")
    assert done.rows == 11
    assert [row["n"] for row in rows(store)] == [0, 20]
    assert sum(state(store).rows.values()) == 2
    assert store.get_record("g", "d40") is not None, "retention is about the history"
    spine = pd.DataFrame({"id": ["d20"], "when": [today - timedelta(days=35)]})
    with pytest.raises(ValidationFailed, match="history of 'g' begins at"):
        store.create_training_set(spine, ["g.n"], event_time="when")
    store.clean("g")
    store.clean("g")
    assert len(objects(store, "data")) == 2, "files that ended are deleted"
    with pytest.raises(ValidationFailed, match="days: expected at least 1"):
        store.set_retention("g", 0)
    store.set_retention("g", None)
    assert store.retain("g").from_us is None


def test_late_rows_before_the_floor_do_not_count(store: FeatureStore) -> None:
    store.set_retention("g", 30)
    store.retain("g")
    write(store, 0, 10)
    assert rows(store) == []
    assert store.retain("g").rows == 10
    assert sum(state(store).rows.values()) == 0


def test_old_versions_are_forgotten(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    group = store.feature_group("g")
    root = layout.group_root(group)
    mine = Manifest(store.offline.objects, root)
    write(store, 0, 10)
    before = mine.current()
    for number in range(250):
        store.offline.manifest(group).commit(lambda state, number=number: delta_after(state, swept=[f"opt/{number}"]))
    assert store.offline.manifest(group).prune() == 0, "they are kept for a week"
    monkeypatch.setattr(manifest, "VERSIONS_KEPT_S", -1)
    assert store.offline.manifest(group).prune() > 200
    monkeypatch.undo()
    newest = state(store)
    assert Manifest(store.offline.objects, root).current() == newest
    monkeypatch.setattr(manifest, "STATE_FRESH_S", 0.0)
    assert mine.current() == newest, f"who stood at version {before.version} begins anew"
    assert [row["n"] for row in rows(store)] == list(range(10))


def entry(number: int, size: int, *, foreign: int = 0) -> FileEntry:
    times = (number * 10, number * 10 + 9) * 3
    return FileEntry(f"data/{number}", size, 1, *times, 1, Origin.STREAM, foreign_rows=foreign)


def test_the_background_merges_files_of_one_size() -> None:
    target = 128 << 20
    small = [entry(number, 10_000) for number in range(7)]
    assert compaction.plan_merges(small, target, full=False) == []
    assert compaction.plan_merges(small, target, full=True) == [small]
    more = [*small, entry(7, 20_000)]
    large = [entry(100 + number, 5 << 20) for number in range(3)]
    assert compaction.plan_merges([*large, *more], target, full=False) == [more]
    settled = [entry(200 + number, 100 << 20) for number in range(20)]
    assert compaction.plan_merges(settled, target, full=True) == []


def test_merges_keep_to_their_time_and_size() -> None:
    target = 1000
    files = [entry(number, 300) for number in range(10)]
    merges = compaction.plan_merges(files, target, full=True)
    assert [len(merge) for merge in merges] == [3, 3, 3]
    for merge in merges:
        numbers = [int(item.path.removeprefix("data/")) for item in merge]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers))), "neighbours in event time"


def test_adopted_rows_stay_apart() -> None:
    files = [entry(number, 10, foreign=number % 2) for number in range(8)]
    merges = compaction.plan_merges(files, 1000, full=True)
    assert sorted(len({item.foreign_rows for item in merge}) for merge in merges) == [1, 1]


def test_the_service_looks_after_its_store(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with opened(home) as store:
        create(store)
    with (
        Service(home, tmp_path / "log", flush_s="0.05", maintenance_s="0.2", grace_s="0") as service,
        featurestore.connect(service.url) as client,
    ):
        for number in range(60):
            client.put_record("g", {"id": "k", "t": DAY + timedelta(minutes=number), "n": number})
            client.flush()
        with opened(home) as beside:
            root = layout.group_root(beside.feature_group("g"))
            dropped = Path(beside.offline.objects.paths([f"{root}/data/{layout.hour_folder(0)}/dropped.parquet"])[0])
            dropped.parent.mkdir(parents=True)
            pq.write_table(pa.table({"id": ["x"], "t": ["2024-05-01T00:00:00Z"], "n": [1000]}), dropped)
            os.utime(dropped, (time.time() - 60, time.time() - 60))
            until(lambda: len(state(beside).files) <= 10, "small files were not merged")
            until(lambda: state(beside).foreign, "the file was not adopted")
        answer = client.sql("SELECT count(*) AS n, sum(n) AS total FROM g").to_pylist()
        assert answer == [{"n": 61, "total": sum(range(60)) + 1000}]
    assert " ERROR " not in (tmp_path / "log").read_text()


def test_a_group_that_is_deleted_meanwhile_is_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Deleting(FeatureStore):
        def maintain(self, name: str, **options: Any) -> Any:
            self.delete_feature_group(name)
            return super().maintain(name, **options)

    with Deleting(Settings.load({}, home=tmp_path)) as store:
        create(store)
        worker = MaintenanceWorker(store, maintenance_s=0.05)
        worker.start()
        until(lambda: worker.status.finished_at_s, "no round ended")
        worker.stop()
        assert worker.status.errors == {}
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_what_can_not_be_a_row_is_counted_and_holds_nothing_up(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        create(store)
        write(store, 0, 4)
        store.put_record("g", {"id": "bad", "t": DAY, "n": 1})
        store.put_record("g", {"id": "bad", "t": DAY, "n": 2})
        with sqlite3.connect(tmp_path / "online.db") as database:
            database.execute("UPDATE outbox SET body = x'FF00' WHERE position = (SELECT max(position) FROM outbox)")
        store.flush()
        assert store.quarantined() == 1
        assert store.offline_behind() == 0
        assert [row["n"] for row in rows(store)] == [0, 1, 1, 2, 3]
