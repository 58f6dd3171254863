"""The audit names each kind of damage, whatever made it, and says nothing where there is none."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pandas as pd
import pytest

from featurestore.audit import NAMED_MAX, Auditor, AuditReport, Difference, Kind
from featurestore.engine import Engine, EngineLimits
from featurestore.errors import FeatureGroupNotFound
from featurestore.model.change import shard_of
from featurestore.model.codec import encode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import TargetStore
from featurestore.offline import layout
from featurestore.offline.batch import Journal
from featurestore.offline.manifest import FileEntry, delta_after
from featurestore.settings import Settings
from featurestore.store import FeatureStore

START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000
NAME = "people"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    with closing(FeatureStore(Settings.load({}, home=tmp_path / "home"))) as store:
        features = {"id": "String", "t": "String", "n": "Integral"}
        store.create_feature_group(NAME, record_identifier="id", event_time="t", features=features)
        for number in range(6):
            put(store, f"p{number}", 0, number)
        store.flush()
        store.ingest(NAME, pd.DataFrame({"id": ["p0", "p1"], "t": [at(1), at(1)], "n": [10, 11]}), progress=False)
        put(store, "p2", 2, 22)
        yield store
        store.close(flush=False)  # some logs are damaged now


def at(hour: int) -> str:
    return format_iso(START_US + hour * HOUR_US)


def put(store: FeatureStore, identifier: str, hour: int, number: int) -> None:
    store.put_record(NAME, {"id": identifier, "t": at(hour), "n": number})


def audit(store: FeatureStore) -> AuditReport:
    return store.audit(NAME, progress=False)


def change_database(store: FeatureStore, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(store.settings.home / "online.db", timeout=30)) as database, database:
        assert database.execute(statement, values).rowcount == 1


def files_of(store: FeatureStore) -> list[tuple[FileEntry, Path]]:
    group = store.feature_group(NAME)
    entries = store.offline.manifest(group).current().files
    return [(entry, Path(path)) for entry, path in zip(entries, store.offline.paths(group, entries), strict=True)]


def test_a_sound_store(store: FeatureStore) -> None:
    report = audit(store)
    assert (report.differences, report.differences_total, dict(report.counts)) == ((), 0, {})
    totals = {
        name: sum(getattr(shard, name) for shard in report.shards)
        for name in ("acknowledged", "streamed", "waiting", "quarantined", "offline_rows", "online_records", "explained")
    }
    assert totals == {
        "acknowledged": 7,
        "streamed": 6,
        "waiting": 1,
        "quarantined": 0,
        "offline_rows": 8,
        "online_records": 6,
        "explained": 0,
    }
    with pytest.raises(FeatureGroupNotFound):
        store.audit("nope")


def a_change_that_vanished_from_the_log(store: FeatureStore) -> None:
    change_database(store, "DELETE FROM outbox WHERE position = (SELECT max(position) FROM outbox)")


def a_file_that_is_gone(store: FeatureStore) -> None:
    files_of(store)[0][1].unlink()


def a_file_that_was_cut(store: FeatureStore) -> None:
    path = files_of(store)[0][1]
    path.write_bytes(path.read_bytes()[:-1])


def a_file_that_is_damaged_within(store: FeatureStore) -> None:
    path = files_of(store)[0][1]
    data = bytearray(path.read_bytes())
    data[4:200] = bytes(196)
    path.write_bytes(data)


def rows_that_are_there_twice(store: FeatureStore) -> None:
    group = store.feature_group(NAME)
    entry, path = files_of(store)[0]
    root = layout.group_root(group)
    key = layout.opt_key(root, entry.event_time_us_max, layout.token(root, layout.FileKind.COMPACTION, "twin"))
    store.offline.objects.put_if_absent(key, path.read_bytes())
    twin = msgspec.structs.replace(entry, path=key.removeprefix(f"{root}/"))
    store.offline.manifest(group).commit(lambda state: delta_after(state, add=[twin]))


def an_erasure_that_was_not_carried_out(store: FeatureStore) -> None:
    ledger, group_id = store.offline.ledger, store.feature_group(NAME).group_id
    ledger.append(group_id, ledger.subject(group_id, "p0"), int(datetime.now(UTC).timestamp() * 1e6))


def a_record_that_is_gone(store: FeatureStore) -> None:
    change_database(store, "DELETE FROM record WHERE record_id = 'p1'")


def a_record_from_nowhere(store: FeatureStore) -> None:
    values = encode_values(1, ["ghost", at(0), "1"])
    change_database(
        store,
        "INSERT INTO record (group_id, record_id, event_time_us, api_time_us, state, online_only, value) "
        "VALUES (?, ?, ?, 5, 1, 0, ?)",
        store.feature_group(NAME).group_id,
        "ghost",
        START_US,
        values,
    )


def an_older_record(store: FeatureStore) -> None:
    change_database(store, "UPDATE record SET event_time_us = event_time_us - 1 WHERE record_id = 'p1'")


def a_newer_record(store: FeatureStore) -> None:
    change_database(store, "UPDATE record SET event_time_us = event_time_us + 1 WHERE record_id = 'p2'")


def another_value(store: FeatureStore) -> None:
    change_database(store, "UPDATE record SET value = ? WHERE record_id = 'p3'", encode_values(1, ["p3", at(0), "4"]))


def an_expiry_of_its_own(store: FeatureStore) -> None:
    change_database(store, "UPDATE record SET expires_at_us = 9000000000000000 WHERE record_id = 'p3'")


def unreadable_values(store: FeatureStore) -> None:
    change_database(store, "UPDATE record SET value = x'00ff' WHERE record_id = 'p3'")


DAMAGES: dict[Callable[[FeatureStore], None], tuple[set[Kind], str | None, str]] = {
    a_change_that_vanished_from_the_log: ({Kind.CHANGES, Kind.NEWER}, None, "are accounted for"),
    a_file_that_is_gone: ({Kind.FILE, Kind.ROWS, Kind.UNEXPECTED}, None, "gone; the manifest has it with"),
    a_file_that_was_cut: ({Kind.FILE, Kind.ROWS, Kind.UNEXPECTED}, None, "bytes, expected"),
    a_file_that_is_damaged_within: ({Kind.FILE, Kind.ROWS, Kind.UNEXPECTED}, None, "can't be read"),
    rows_that_are_there_twice: ({Kind.DUPLICATE, Kind.ROWS}, "p", "is there 2 times"),
    an_erasure_that_was_not_carried_out: ({Kind.ERASED}, "p0", "erased as of"),
    a_record_that_is_gone: ({Kind.MISSING}, "p1", "none online"),
    a_record_from_nowhere: ({Kind.UNEXPECTED}, "ghost", "none offline"),
    an_older_record: ({Kind.STALE}, "p1", "event time"),
    a_newer_record: ({Kind.NEWER}, "p2", "event time"),
    another_value: ({Kind.VALUE}, "p3", "'n' differs"),
    an_expiry_of_its_own: ({Kind.VALUE}, "p3", "'its expiry' differs"),
    unreadable_values: ({Kind.VALUE}, "p3", "the online record can't be read"),
}


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
def test_damage_is_named(store: FeatureStore, damage: Callable[[FeatureStore], None]) -> None:
    assert audit(store).differences == ()
    damage(store)
    kinds, subject, words = DAMAGES[damage]
    report = audit(store)
    assert report.counts.keys() <= kinds
    named = [difference for difference in report.differences if words in difference.detail]
    assert named
    assert all(subject is None or difference.subject.startswith(subject) for difference in named)
    shards = {shard_of(one.subject, store.shards) for one in named if one.subject and "/" not in one.subject}
    assert shards <= {one.shard for one in named}
    assert report.differences_total == sum(report.counts.values()) >= len(report.differences)
    assert sum(shard.differences for shard in report.shards) == sum(one.shard is not None for one in report.differences)
    assert audit(store) == report, "an audit changes nothing"


def test_a_lost_file_costs_each_shard_its_rows(store: FeatureStore) -> None:
    entry, path = files_of(store)[0]
    path.unlink()
    report = audit(store)
    rows = [one for one in report.differences if one.kind is Kind.ROWS]
    assert sum(shard.offline_rows for shard in report.shards) == 8 - entry.rows
    assert {one.shard for one in rows} <= {shard_of(f"p{number}", store.shards) for number in range(6)}
    assert [one.subject for one in report.differences if one.kind is Kind.FILE] == [entry.path]


def test_many_differences_are_counted_and_some_named(store: FeatureStore) -> None:
    ids = [f"many-{number}" for number in range(NAMED_MAX + 50)]
    store.ingest(NAME, pd.DataFrame({"id": ids, "t": [at(0)] * len(ids), "n": range(len(ids))}), progress=False)
    with closing(sqlite3.connect(store.settings.home / "online.db", timeout=30)) as database, database:
        database.execute("DELETE FROM record WHERE record_id LIKE 'many-%'")
    report = audit(store)
    assert (report.counts, len(report.differences)) == ({Kind.MISSING: len(ids)}, NAMED_MAX)
    assert report.differences_total == len(ids)


def test_what_writes_to_one_store_leave_is_no_difference(store: FeatureStore) -> None:
    put(store, "p4", 5, 50)
    store.put_record(NAME, {"id": "p5", "t": at(9), "n": 1}, targets=frozenset([TargetStore.ONLINE]))
    store.put_record(NAME, {"id": "p4", "t": at(9), "n": 1}, targets=frozenset([TargetStore.OFFLINE]))
    report = audit(store)
    assert report.differences == ()
    assert sum(shard.explained for shard in report.shards) == 1


def test_an_ingest_under_way_is_waited_for_and_then_said(store: FeatureStore, tmp_path: Path) -> None:
    group = store.feature_group(NAME)
    journal = Journal("00000000000000000001-0", group.group_id, ())
    store.offline.objects.put_if_absent(layout.batch_key(journal.batch_id), msgspec.json.encode(journal))
    engine = Engine(EngineLimits(1 << 28, 1 << 28, 1), tmp_path / "engine")
    try:
        report = Auditor(store.online, store.offline, engine, store.shards, wait_s=0).audit(group)
        expected = Difference(Kind.UNDER_WAY, None, "", "an ingest is under way, so the records were not compared")
        assert report.differences == (expected,)
        withdraw = threading.Thread(target=store.offline.objects.delete, args=(layout.batch_key(journal.batch_id),))
        withdraw.start()
        assert Auditor(store.online, store.offline, engine, store.shards).audit(group).differences == ()
        withdraw.join()
    finally:
        engine.close()


def test_an_erasure_that_begins_meanwhile_is_none_of_the_moment(store: FeatureStore, tmp_path: Path) -> None:
    store.flush()

    def begin(what: str, done: int, total: int) -> None:
        if what == "records compared" and not store.offline.ledger.entries():
            group_id = store.feature_group(NAME).group_id
            store.offline.ledger.append(group_id, store.offline.ledger.subject(group_id, "p0"), 2 * START_US)

    with closing(Engine(EngineLimits(1 << 28, 1 << 28, 1), tmp_path / "engine")) as engine:
        auditor = Auditor(store.online, store.offline, engine, store.shards)
        assert auditor.audit(store.feature_group(NAME), progress=begin).differences == ()
    assert {difference.kind for difference in audit(store).differences} == {Kind.ERASED}


def test_writers_go_on_meanwhile(store: FeatureStore) -> None:
    stop, written, failures = threading.Event(), [0], []

    def write() -> None:
        try:
            while not stop.is_set():
                put(store, f"p{written[0] % 9}", written[0] % 50, written[0])
                if written[0] % 20 == 0:
                    store.flush()
                if written[0] % 70 == 0:
                    store.maintain(NAME)
                if written[0] % 110 == 0:
                    store.erase(NAME, f"p{written[0] % 9}", progress=False)
                written[0] += 1
        except Exception as error:
            failures.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        audits = 0
        while (written[0] < 300 or audits < 10) and not failures:
            assert audit(store).differences == ()
            audits += 1
    finally:
        stop.set()
        writer.join()
    assert not failures
    assert audit(store).differences == ()
