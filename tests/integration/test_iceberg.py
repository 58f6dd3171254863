"""Iceberg publication: other engines read the rows of the SQL history, whatever was written, merged, erased or interrupted."""

from __future__ import annotations

import io
import re
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyiceberg.avro.file import AvroFile
from pyiceberg.catalog.sql import SqlCatalog
from pyiceberg.expressions import GreaterThanOrEqual, LessThan
from pyiceberg.io.pyarrow import PyArrowFileIO
from pyiceberg.table import Table

from featurestore.errors import StoreUnavailable, ValidationFailed
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import (
    CollectionType,
    DataCatalog,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
    TableFormat,
    TtlDuration,
    TtlUnit,
    definitions,
)
from featurestore.offline import iceberg, layout, schema
from featurestore.offline.iceberg import CATALOG, IcebergPublisher, Published
from featurestore.offline.local import LocalObjectStore
from featurestore.offline.opening import ENDPOINT
from featurestore.offline.protocol import ObjectStore
from featurestore.offline.table import OfflineStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.integration.conftest import Cli
from tests.rewriting import rewrite
from tests.s3_server import S3Server

T = TypeVar("T")
NAME = "Air-Quality-NYC"
START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
SUBJECT = "subject-5be1d7"
SECRETS = ("secret-alpha-91c3", "secret-beta-77d0")


@pytest.fixture(autouse=True)
def plan_scans_with_pyiceberg(monkeypatch: pytest.MonkeyPatch) -> None:
    """Polars reads the files itself; without this it warns that a planner of its own would be faster."""
    monkeypatch.setenv("POLARS_ICEBERG_PLANNER", "pyiceberg")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    with FeatureStore(Settings.load({}, home=tmp_path / "home", grace_s=3600)) as store:
        create(store)
        yield store


def create(store: FeatureStore, name: str = NAME, catalog: DataCatalog | None = None) -> FeatureGroup:
    text, number = FeatureType.STRING, FeatureType.FRACTIONAL
    return store.create(
        FeatureGroup(
            name=name,
            record_identifier="id",
            event_time="t",
            features=(
                FeatureDefinition("id", text),
                FeatureDefinition("t", text),
                FeatureDefinition("note", text),
                FeatureDefinition("pm25", number),
                FeatureDefinition("count", FeatureType.INTEGRAL),
                FeatureDefinition("words", text, CollectionType.LIST),
                FeatureDefinition("vector", number, CollectionType.VECTOR, 2),
            ),
            online=OnlineConfig(storage_type=StorageType.IN_MEMORY),
            offline=OfflineConfig(store.default_s3_uri, table_format=TableFormat.ICEBERG, data_catalog=catalog),
        )
    )


def at(number: int) -> str:
    return format_iso(START_US + number * HOUR_US)


def put(
    store: FeatureStore, identifier: str, number: int, note: str | None = "n", ttl: TtlDuration | None = None, **more: object
) -> None:
    record = {"id": identifier, "t": at(number), "note": note, "pm25": number / 3, "count": number}
    store.put_record(NAME, {**record, "words": ["a", identifier], "vector": [1.5, float(number)], **more}, ttl=ttl)


def frame(identifiers: list[str], number: int) -> pd.DataFrame:
    return pd.DataFrame(
        {"id": identifiers, "t": pd.to_datetime([at(number)] * len(identifiers)), "pm25": 0.25, "note": "ingested"}
    )


def fill(store: FeatureStore) -> None:
    """Puts over several hours, an ingest over more, both kinds of deletes."""
    for number in range(4):
        put(store, f"station-{number % 2}", number)
    store.delete_record(NAME, "station-0", at(5))
    store.delete_record(NAME, "station-1", at(6), hard=True)
    store.flush()
    store.ingest(NAME, frame(["station-1", "station-2"], 400), progress=False)


def rows(table: pa.Table, names: list[str]) -> Counter[str]:
    return Counter(repr([row[name] for name in names]) for row in table.select(names).to_pylist())


def opened(store: FeatureStore) -> SqlCatalog:
    return SqlCatalog(CATALOG, uri=store.settings.iceberg_catalog_location)


@contextmanager
def table_of(store: FeatureStore, published: Published) -> Iterator[Table]:
    with opened(store) as catalog:
        yield catalog.load_table(published.table)


def paths_of(table: Table) -> list[str]:
    return [task.file.file_path for task in table.scan().plan_files()]


def check(store: FeatureStore, published: Published, name: str = NAME) -> None:
    """pyiceberg and Polars (its own reader), by catalog and by metadata file, see the rows of the SQL history."""
    everything = schema.table_schema(store.feature_group(name).features)
    names = [column for column in everything.names if not column.startswith("_")]
    expected = rows(store.sql(f'SELECT * FROM history."{name}"'), names)
    with table_of(store, published) as table:
        assert [field.name for field in table.schema().fields] == everything.names
        assert rows(table.scan().to_arrow(), names) == expected
        native = pl.scan_iceberg(table, reader_override="native").collect()
        assert rows(native.to_arrow().cast(everything), names) == expected
        assert len(set(paths_of(table))) == len(paths_of(table))
        assert published.metadata_url == table.metadata_location
        by_path = pl.scan_iceberg(published.metadata_url, reader_override="native").select(pl.len()).collect().item()
        assert by_path == expected.total()


def live_urls(store: FeatureStore) -> set[str]:
    group = store.feature_group(NAME)
    root = layout.group_root(group)
    return {store.offline.objects.url(f"{root}/{entry.path}") for entry in store.offline.manifest(group).current().files}


def test_other_engines_read_what_sql_reads(store: FeatureStore) -> None:
    fill(store)
    first = store.publish_iceberg(NAME)
    group = store.feature_group(NAME)
    assert first.table == f"sagemaker_featurestore.air_quality_nyc_{group.created_at_s}"
    version = store.offline.manifest(group).current()
    assert (first.added, first.removed, first.version) == (len(version.files), 0, version.version)
    check(store, first)


def test_publishing_again_without_changes_does_nothing(store: FeatureStore) -> None:
    fill(store)
    first = store.publish_iceberg(NAME)
    again = store.publish_iceberg(NAME)
    assert (again.added, again.removed) == (0, 0)
    assert (again.snapshot_id, again.metadata_url) == (first.snapshot_id, first.metadata_url)


def test_an_empty_group_is_an_empty_table(store: FeatureStore) -> None:
    published = store.publish_iceberg(NAME)
    assert published.snapshot_id is None
    with table_of(store, published) as table:
        assert table.scan().to_arrow().num_rows == 0
    fill(store)
    check(store, store.publish_iceberg(NAME))


def test_later_writes_are_added_in_one_commit(store: FeatureStore) -> None:
    fill(store)
    store.publish_iceberg(NAME)
    put(store, "station-3", 7)
    store.flush()
    second = store.publish_iceberg(NAME)
    assert (second.added, second.removed) == (1, 0)
    check(store, second)
    with table_of(store, second) as table:
        assert len(table.snapshots()) == 2


def test_merged_files_take_the_place_of_their_parts_in_one_snapshot(store: FeatureStore) -> None:
    fill(store)
    before = store.publish_iceberg(NAME)
    assert store.compact(NAME).merged
    after = store.publish_iceberg(NAME)
    assert (after.added, after.removed) == (1, before.added)
    check(store, after)
    put(store, "station-4", 9)
    store.flush()
    store.compact(NAME)
    check(store, store.publish_iceberg(NAME))
    with table_of(store, after) as table:
        counts = [table.scan(snapshot_id=snapshot.snapshot_id).count() for snapshot in table.snapshots()]
        assert counts == [counts[0], counts[0], counts[0] + 1], "no snapshot shows rows twice, or half of a merge"


def test_old_files_have_null_for_features_added_later(store: FeatureStore) -> None:
    fill(store)
    store.publish_iceberg(NAME)
    store.add_features(NAME, [FeatureDefinition("humidity", FeatureType.INTEGRAL)])
    check(store, store.publish_iceberg(NAME))
    put(store, "station-0", 8, humidity=40)
    store.flush()
    check(store, store.publish_iceberg(NAME))
    store.add_features(NAME, [FeatureDefinition("tags", FeatureType.STRING, CollectionType.SET)])
    put(store, "station-0", 9, humidity=41, tags=["x"])
    store.flush()
    store.compact(NAME)
    check(store, store.publish_iceberg(NAME))


def test_bounds_prune_files(store: FeatureStore) -> None:
    fill(store)
    published = store.publish_iceberg(NAME)
    with table_of(store, published) as table:
        everything = len(list(table.scan().plan_files()))
        late = list(table.scan(row_filter=f"_event_time > '{at(300).replace('Z', '+00:00')}'").plan_files())
        assert 0 < len(late) < everything


@pytest.mark.parametrize("odd", ["z" * 10_000, "z\ud7ff" + "\ud7ff" * 40, "z" + "\U0010ffff" * 40, "z\x00", "zß" * 20])
def test_odd_values_have_no_wrong_bounds(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    """In a file of two row groups, of which the footer may bound only one; and with instants that Python's dates can't name."""
    monkeypatch.setattr(schema, "ROW_GROUP_ROWS", 2)
    for identifier, note in (("a", "a"), ("b", "b"), ("y", None), ("z", odd)):
        put(store, identifier, 0, note, pm25=-0.0, ttl=TtlDuration(TtlUnit.DAYS, 366 * 9_000))
    store.flush()
    store.ingest(NAME, frame(["a", "b", "c", "d"], 0).assign(note=["a", "b", None, odd]), progress=False)
    published = store.publish_iceberg(NAME)
    check(store, published)
    with table_of(store, published) as table:
        assert table.scan(row_filter=GreaterThanOrEqual("note", "z"), selected_fields=("note",)).count() == 2
        assert table.scan(row_filter=LessThan("note", "b"), selected_fields=("note",)).count() == 2


def test_snapshots_and_metadata_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(iceberg, "MANIFESTS_MAX", 4)
    monkeypatch.setitem(iceberg.PROPERTIES, "commit.manifest.min-count-to-merge", "4")
    with FeatureStore(Settings.load({}, home=tmp_path / "home", grace_s=0)) as store:
        group = create(store)
        for number in range(12):
            put(store, f"station-{number}", number)
            store.flush()
            if number % 3 == 2:
                assert rewrite(store.offline, group)
            published = store.publish_iceberg(NAME)
        check(store, published)
        with table_of(store, published) as table:
            assert [snapshot.snapshot_id for snapshot in table.snapshots()] == [published.snapshot_id]
            used = {manifest.manifest_path for manifest in table.current_snapshot().manifests(table.io)}
            used.add(table.current_snapshot().manifest_list)
            assert len(used) <= 6
        folder = f"{layout.group_root(group)}/iceberg/"
        listed = {store.offline.objects.url(key) for key in store.offline.objects.list(folder)}
        assert {url for url in listed if url.endswith(".avro")} == used
        assert len(listed - used) <= 4


def test_left_over_metadata_goes_with_the_next_snapshot(store: FeatureStore) -> None:
    fill(store)
    store.publish_iceberg(NAME)
    key = f"{layout.group_root(store.feature_group(NAME))}/iceberg/killed/metadata/left-over.avro"
    store.offline.objects.put_if_absent(key, b"x")
    put(store, "station-3", 7)
    store.flush()
    published = store.publish_iceberg(NAME)
    assert store.offline.objects.get(key) is None
    check(store, published)


# Concurrency


def test_publications_that_race_never_add_a_file_twice(store: FeatureStore) -> None:
    group = store.feature_group(NAME)
    url = store.settings.iceberg_catalog_location
    publishers = [
        IcebergPublisher(offline=OfflineStore(store.offline.objects), catalog_url=url, keep_s=keep_s) for keep_s in (0, 3600, 0)
    ]
    with ThreadPoolExecutor(len(publishers)) as pool:
        for number in range(8):
            put(store, f"station-{number}", number)
            put(store, f"station-{number}", number + 50)
            store.flush()
            if number % 3 == 2:
                store.compact(NAME)
            barrier = threading.Barrier(len(publishers))

            def publish(publisher: IcebergPublisher, barrier: threading.Barrier = barrier) -> Published:
                barrier.wait()
                return publisher.publish(group)

            results = list(pool.map(publish, publishers))
            assert sum(result.added > 0 for result in results) == 1
            with table_of(store, results[0]) as table:
                assert Counter(paths_of(table)) == Counter(live_urls(store))
    check(store, store.publish_iceberg(NAME))


def test_a_lost_race_is_silent(store: FeatureStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """The winner sweeps what the loser has written, which pyiceberg then does not find to delete."""
    fill(store)
    group = store.feature_group(NAME)
    publishers = [
        IcebergPublisher(offline=store.offline, catalog_url=store.settings.iceberg_catalog_location, keep_s=0) for _ in range(2)
    ]
    publishers[0].publish(group)
    put(store, "station-3", 7)
    store.flush()
    commit = SqlCatalog.commit_table
    winners: list[Published] = []

    def overtaken(catalog: SqlCatalog, *args: Any) -> Any:
        if not winners:
            monkeypatch.setattr(SqlCatalog, "commit_table", commit)
            winners.append(publishers[1].publish(group))
        return commit(catalog, *args)

    monkeypatch.setattr(SqlCatalog, "commit_table", overtaken)
    loser = publishers[0].publish(group)
    assert (winners[0].added, loser.added) == (1, 0)
    assert loser.snapshot_id == winners[0].snapshot_id
    assert caplog.records == []
    check(store, loser)


class KilledError(BaseException):
    """Ends a publication where it stands; no handler of ordinary errors catches it."""


class Deadline:
    """Kills at the n-th step."""

    def __init__(self, steps: int) -> None:
        self.left = steps

    def step(self) -> None:
        self.left -= 1
        if self.left < 0:
            raise KilledError


class DyingObjects(LocalObjectStore):
    def __init__(self, root: Path, deadline: Deadline) -> None:
        super().__init__(root)
        self._deadline = deadline

    def list(self, prefix: str) -> Any:
        self._deadline.step()
        return super().list(prefix)

    def delete(self, key: str) -> None:
        self._deadline.step()
        super().delete(key)


def dying(call: Callable[..., T], deadline: Deadline) -> Callable[..., T]:
    """Killed before the call, or right after it."""

    def killed(*args: Any, **kwargs: Any) -> T:
        deadline.step()
        answer = call(*args, **kwargs)
        deadline.step()
        return answer

    return killed


def test_a_publication_killed_anywhere_leaves_nothing_wrong(store: FeatureStore, tmp_path: Path) -> None:
    """At each read and write of pyiceberg, each commit and each of our own calls; then a fresh one gets it right."""
    group = store.feature_group(NAME)
    fill(store)
    completed = 0
    for steps in range(500):
        put(store, "station-9", 100 + steps)
        store.flush()
        if steps % 5 == 4:
            assert rewrite(store.offline, group, files=2, seed=steps)
        if steps % 7 == 6:
            store.offline.objects.delete("none")
            store._iceberg.forget(group)
        deadline = Deadline(steps)
        objects: ObjectStore = DyingObjects(tmp_path / "home" / "offline", deadline)
        publisher = IcebergPublisher(offline=OfflineStore(objects), catalog_url=store.settings.iceberg_catalog_location, keep_s=0)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SqlCatalog, "commit_table", dying_method(SqlCatalog.commit_table, deadline))
            for name in ("new_output", "new_input", "delete"):
                patch.setattr(PyArrowFileIO, name, dying_method(getattr(PyArrowFileIO, name), deadline))
            try:
                publisher.publish(group)
            except KilledError:
                pass
            else:
                completed += 1
        published = store.publish_iceberg(NAME)
        with table_of(store, published) as table:
            assert Counter(paths_of(table)) == Counter(live_urls(store))
        if completed == 3:
            break
    assert completed == 3
    assert steps > 10
    check(store, store.publish_iceberg(NAME))


def dying_method(method: Callable[..., T], deadline: Deadline) -> Callable[..., T]:
    def killed(self: object, *args: Any, **kwargs: Any) -> T:
        return dying(method, deadline)(self, *args, **kwargs)

    return killed


def test_a_broken_table_is_made_anew(store: FeatureStore) -> None:
    fill(store)
    folder = f"{layout.group_root(store.feature_group(NAME))}/iceberg/"
    for suffix in (".json", "-m0.avro", ".avro", ""):
        store.publish_iceberg(NAME)
        for key in store.offline.objects.list(folder):
            if key.endswith(suffix):
                store.offline.objects.delete(key)
        check(store, store.publish_iceberg(NAME))


@pytest.mark.parametrize("suffix", [".metadata.json", "-m0.avro", ".avro"])
def test_torn_metadata_is_made_anew(store: FeatureStore, tmp_path: Path, suffix: str) -> None:
    """As a power cut leaves files that were not synced; an erasure must not be held up by them either."""
    fill(store)
    for bytes_left in (0, 10, 200):
        store.publish_iceberg(NAME)
        for path in tmp_path.rglob(f"*/iceberg/*/metadata/*{suffix}"):
            path.write_bytes(path.read_bytes()[:bytes_left])
        if bytes_left == 10:
            store.erase(NAME, "station-0")
        check(store, store.publish_iceberg(NAME))


def test_what_others_commit_is_undone(store: FeatureStore) -> None:
    fill(store)
    published = store.publish_iceberg(NAME)
    with table_of(store, published) as table:
        table.append(table.scan().to_arrow().slice(0, 2))
    again = store.publish_iceberg(NAME)
    assert (again.added, again.removed) == (0, 1)
    check(store, again)
    with table_of(store, published) as table:
        table.delete("id = 'station-1'")
    check(store, store.publish_iceberg(NAME))
    with table_of(store, published) as table:
        table.add_files(paths_of(table)[:1], check_duplicate_files=False)
    check(store, store.publish_iceberg(NAME))
    with table_of(store, published) as table, table.update_spec() as update:
        update.add_identity("id")
    check(store, store.publish_iceberg(NAME))


# Erase


def decoded(home: Path) -> Iterator[tuple[str, bytes]]:
    """Every file with its bytes and, for Parquet and Avro, with what they decode to."""
    for path in home.rglob("*"):
        if not path.is_file():
            continue
        text = path.read_bytes()
        if path.suffix == ".parquet" and text[:4] == b"PAR1":
            text += repr(pq.read_table(io.BytesIO(text)).to_pylist()).encode()
        elif path.suffix == ".avro":
            with AvroFile(PyArrowFileIO().new_input(f"file://{path}")) as records:
                text += repr([list(record._data) for record in records]).encode()
        yield str(path.relative_to(home)), text


def found(home: Path, words: tuple[str, ...]) -> list[str]:
    return [f"{path}: {word}" for path, text in decoded(home) for word in words if word.encode() in text]


def test_no_byte_of_an_erased_record_is_left(store: FeatureStore, tmp_path: Path) -> None:
    for number, secret in enumerate(SECRETS):
        put(store, SUBJECT, number, secret)
        put(store, "station-1", number)
        store.flush()
        store.publish_iceberg(NAME)
    fill(store)
    store.compact(NAME)
    store.publish_iceberg(NAME)
    bounds = (SUBJECT[:16], *(secret[:16] for secret in SECRETS))
    assert any(".avro" in place for place in found(tmp_path, bounds)), "there is something to find"
    store.erase(NAME, SUBJECT)
    assert found(tmp_path, (*bounds, SUBJECT, *SECRETS)) == []
    published = store.publish_iceberg(NAME)
    check(store, published)
    assert found(tmp_path, (*bounds, SUBJECT, *SECRETS)) == []
    with table_of(store, published) as table:
        assert len(table.snapshots()) == 1


class MeanwhileObjects(LocalObjectStore):
    """Does something before the n-th call, once."""

    def __init__(self, root: Path, calls: int, meanwhile: Callable[[], object]) -> None:
        super().__init__(root)
        self._left = calls
        self._meanwhile = meanwhile

    def call(self) -> None:
        self._left -= 1
        if self._left == 0:
            self._meanwhile()

    @property
    def done(self) -> bool:
        return self._left <= 0

    def list(self, prefix: str) -> Any:
        self.call()
        return super().list(prefix)

    def get(self, key: str) -> bytes | None:
        self.call()
        return super().get(key)

    def delete(self, key: str) -> None:
        self.call()
        super().delete(key)


def test_an_erasure_at_any_moment_of_a_publication_leaves_no_byte(store: FeatureStore, tmp_path: Path) -> None:
    group = store.feature_group(NAME)
    fill(store)
    for calls in range(1, 100):
        subject, secret = f"subject-{calls}-5be1d7", f"secret-{calls}-91c3"
        store.publish_iceberg(NAME)
        put(store, subject, 3, secret)
        put(store, "station-1", 3 + calls)
        store.flush()
        objects = MeanwhileObjects(tmp_path / "home" / "offline", calls, lambda subject=subject: store.erase(NAME, subject))
        offline = OfflineStore(objects)
        commit = SqlCatalog.commit_table

        def committed(
            catalog: SqlCatalog, *args: Any, objects: MeanwhileObjects = objects, commit: Callable[..., Any] = commit
        ) -> Any:
            objects.call()
            return commit(catalog, *args)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(SqlCatalog, "commit_table", committed)
            IcebergPublisher(offline=offline, catalog_url=store.settings.iceberg_catalog_location, keep_s=3600).publish(group)
        if not objects.done:
            break
        assert found(tmp_path, (subject, secret)) == []
    assert calls > 5
    store.erase(NAME, subject)
    assert found(tmp_path, ("subject-", "secret-")) == []
    check(store, store.publish_iceberg(NAME))


# Refusals


def test_only_groups_of_that_format_are_published(store: FeatureStore) -> None:
    store.create_feature_group("plain", record_identifier="id", event_time="t", features={"id": "String", "t": "String"})
    with pytest.raises(ValidationFailed, match="OfflineStoreConfig.TableFormat: expected Iceberg"):
        store.publish_iceberg("plain")


def test_a_table_name_that_another_group_has_is_refused(store: FeatureStore) -> None:
    catalog = DataCatalog("shared", "AwsDataCatalog", "sagemaker_featurestore")
    create(store, "one", catalog)
    create(store, "two", catalog)
    assert store.publish_iceberg("one").table == "sagemaker_featurestore.shared"
    with pytest.raises(ValidationFailed, match="DataCatalogConfig: expected a table that nothing else is published as"):
        store.publish_iceberg("two")


def test_without_the_extra(store: FeatureStore, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)
    for name in [name for name in sys.modules if name.partition(".")[0] == "pyiceberg"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pyiceberg", None)
    with pytest.raises(StoreUnavailable, match=r"pip install featurestore\[iceberg\]"):
        store.publish_iceberg(NAME)
    store.erase(NAME, "station-0")


def test_a_catalog_that_does_not_answer(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/none/iceberg.db"
    with FeatureStore(Settings.load({}, home=tmp_path / "home", iceberg_catalog_url=url)) as store:
        create(store)
        with pytest.raises(StoreUnavailable, match="FEATURESTORE_ICEBERG_CATALOG_URL"):
            store.publish_iceberg(NAME)


# Elsewhere


def test_a_home_with_unusual_characters(tmp_path: Path) -> None:
    with FeatureStore(Settings.load({}, home=tmp_path / "a home, größer+")) as store:
        create(store)
        fill(store)
        check(store, store.publish_iceberg(NAME))
    with FeatureStore(Settings.load({}, home=tmp_path / "50%25")) as store:
        create(store)
        with pytest.raises(ValidationFailed, match="URL of the offline store: expected no '%'"):
            store.publish_iceberg(NAME)


def test_on_a_bucket(s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, s3_server.url)
    with FeatureStore(Settings.load({}, home=tmp_path / "home", offline_url=f"s3://{s3_bucket}/a/prefix")) as store:
        create(store)
        fill(store)
        store.publish_iceberg(NAME)
        store.compact(NAME)
        published = store.publish_iceberg(NAME)
        assert published.removed
        everything = schema.table_schema(store.feature_group(NAME).features)
        names = [column for column in everything.names if not column.startswith("_")]
        expected = rows(store.sql(f'SELECT * FROM history."{NAME}"'), names)
        options = {"s3.endpoint": s3_server.url, "s3.region": "us-east-1"}
        with SqlCatalog(CATALOG, uri=store.settings.iceberg_catalog_location, **options) as catalog:
            table = catalog.load_table(published.table)
            assert all(path.startswith(f"s3://{s3_bucket}/a/prefix/") for path in paths_of(table))
            assert rows(table.scan().to_arrow(), names) == expected
        storage = {"aws_endpoint_url": s3_server.url, "aws_region": "us-east-1", "aws_allow_http": "true"}
        storage |= {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
        read = pl.scan_iceberg(table, reader_override="native", storage_options=storage).collect()
        assert rows(read.to_arrow().cast(everything), names) == expected
        store.erase(NAME, "station-1")
        assert store.offline.objects.list(f"{layout.group_root(store.feature_group(NAME))}/iceberg/") == []


def test_the_command(store: FeatureStore, cli: Cli) -> None:
    fill(store)
    home = str(store.settings.home)
    done = cli("publish", NAME, "--home", home)
    assert done.returncode == 0, done.stderr
    table = store.publish_iceberg(NAME).table
    assert f"load_table({table!r})" in done.stdout
    assert "files added" in done.stdout
    assert "pl.scan_iceberg(" in done.stdout


def test_the_guide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    guide = (Path(__file__).parents[2] / "docs" / "guides" / "iceberg.md").read_text()
    with FeatureStore(Settings.load({})) as store:
        features = definitions([("id", FeatureType.STRING), ("t", FeatureType.STRING), ("temp", FeatureType.FRACTIONAL)])
        offline = OfflineConfig(store.default_s3_uri, table_format=TableFormat.ICEBERG)
        store.create(FeatureGroup("weather", "id", "t", features, offline=offline))
        for time, temp in (("2026-11-20T00:00:00Z", 21.0), ("2026-11-21T00:00:00Z", 22.0), ("2026-11-22T00:00:00Z", 3.0)):
            store.put_record("weather", {"id": "JFK", "t": time, "temp": temp})
        store.flush()
        store.publish_iceberg("weather")
        names: dict[str, Any] = {}
        for block in re.findall(r"```python\n(.*?)```", guide, re.DOTALL):
            exec(block, names)  # noqa: S102 - our own guide
        names["catalog"].close()
    assert names["late"]["temp"].to_pylist() == [22.0, 3.0]
    assert sorted(names["frame"]["temp"]) == [21.0, 22.0]
