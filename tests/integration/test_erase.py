"""Erase: a record's values are nowhere any more, everything else is as it was, and nothing repeated brings them back."""

from __future__ import annotations

import io
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from featurestore.batch_ingest import api_times, batch_rows, records_of
from featurestore.errors import FeatureGroupNotFound, ValidationFailed
from featurestore.model.columns import checked_columns
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import TargetStore
from featurestore.offline import layout
from featurestore.settings import Settings
from featurestore.store import FeatureStore

SUBJECT = "subject-5be1d7"
SECRETS = ("secret-alpha-91c3", "secret-beta-77d0", "secret-gamma-0f42", "secret-delta-c8aa", "secret-epsilon-4e19")
START_US = 1_700_000_000_000_000
HOUR_US = 3_600_000_000


@pytest.fixture
def store(tmp_path: Path) -> Iterator[FeatureStore]:
    with FeatureStore(Settings.load({}, home=tmp_path / "home")) as store:
        features = {"id": "String", "t": "String", "note": "String", "n": "Integral"}
        for name in ("people", "others"):
            store.create_feature_group(name, record_identifier="id", event_time="t", features=features)
        yield store


def at(number: int) -> str:
    return format_iso(START_US + number * HOUR_US)


def put(store: FeatureStore, identifier: str, number: int, note: str, group: str = "people") -> None:
    store.put_record(group, {"id": identifier, "t": at(number), "note": note, "n": number})


def frame(rows: list[tuple[str, int, str]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [key for key, _, _ in rows],
            "t": pd.to_datetime([at(number) for _, number, _ in rows]),
            "note": [note for _, _, note in rows],
            "n": [number for _, number, _ in rows],
        }
    )


def drop_foreign(store: FeatureStore, rows: list[tuple[str, int, str]], name: str) -> Path:
    """A file of another tool in the layout."""
    root = store.offline.objects.paths([layout.group_root(store.feature_group("people"))])[0]
    target = Path(root, "data", layout.hour_folder(START_US), name)
    target.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            "id": [key for key, _, _ in rows],
            "t": [at(number) for _, number, _ in rows],
            "note": [note for _, _, note in rows],
            "n": [number for _, number, _ in rows],
        }
    )
    pq.write_table(table, target)
    return target


def fill(store: FeatureStore) -> None:
    """The subject everywhere: online, in the outbox, in files of the writer, of ingests, merged, superseded and adopted ones."""
    for number in range(5):
        put(store, SUBJECT, number, SECRETS[0])
        put(store, f"other-{number}", number, "kept")
        store.flush()
    store.ingest("people", frame([(SUBJECT, 10, SECRETS[1]), ("other-9", 11, "kept"), (SUBJECT, 60, SECRETS[1])]), progress=False)
    store.compact("people")
    store.ingest("people", frame([(SUBJECT, 20, SECRETS[2]), ("other-1", 21, "kept")]), progress=False)
    store.compact("people")  # the first merged file is garbage now
    drop_foreign(store, [(SUBJECT, 30, SECRETS[3]), ("other-2", 31, "kept")], "dropped.parquet")
    store.discover("people", settled_s=0)
    put(store, SUBJECT, 70, SECRETS[4])
    put(store, SUBJECT, 71, "overwritten")
    put(store, "other-3", 71, "kept")
    put(store, SUBJECT, 72, SECRETS[0], group="others")


def found(home: Path, words: tuple[str, ...]) -> list[str]:
    """Where a word stands in the bytes of a file, or in the decoded columns of a Parquet file."""
    places = []
    for path in home.rglob("*"):
        if not path.is_file():
            continue
        data = path.read_bytes()
        text = data
        if path.suffix == ".parquet" and data[:4] == b"PAR1":
            text += repr(pq.read_table(io.BytesIO(data)).to_pylist()).encode()
        places += [f"{path.relative_to(home)}: {word}" for word in words if word.encode() in text]
    return places


def history(store: FeatureStore, group: str = "people") -> list[dict[str, Any]]:
    return store.sql(f"SELECT id, t, note, n, is_deleted FROM {group} ORDER BY ALL").to_pylist()


def test_no_byte_of_an_erased_record_is_left(store: FeatureStore, tmp_path: Path) -> None:
    fill(store)
    store.erase("others", SUBJECT)
    before = [row for row in history(store) if row["id"] != SUBJECT]
    assert found(tmp_path, (SUBJECT, *SECRETS)), "there is something to find"
    receipt = store.erase("people", SUBJECT)
    assert found(tmp_path, (SUBJECT, *SECRETS)) == []
    assert history(store) == before
    assert store.get_record("people", SUBJECT) is None
    assert store.get_record("people", "other-3") is not None
    assert receipt.online == 1
    assert receipt.rows >= 11
    assert receipt.unreadable == ()
    assert {file.path.split("/")[-1] for file in receipt.files} & {"dropped.parquet"}
    assert all(not (tmp_path / "home/offline" / file.path).exists() for file in receipt.files)
    assert all(file.into is None or (tmp_path / "home/offline" / file.into).exists() for file in receipt.files)


def test_an_erased_record_begins_anew(store: FeatureStore) -> None:
    fill(store)
    store.erase("people", SUBJECT)
    put(store, SUBJECT, 1, "again")
    assert store.get_record("people", SUBJECT) == {"id": SUBJECT, "t": at(1), "note": "again", "n": 1}
    store.compact("people")
    assert [row["note"] for row in history(store) if row["id"] == SUBJECT] == ["again"]


def test_files_that_are_put_back_do_not_bring_it_back(store: FeatureStore, tmp_path: Path) -> None:
    fill(store)
    copies = tmp_path / "copies"
    shutil.copytree(tmp_path / "home/offline", copies)
    store.erase("people", SUBJECT)
    before = history(store)
    root = layout.group_root(store.feature_group("people"))
    for number, path in enumerate(sorted(copies.rglob("*.parquet"))):
        if root in str(path):
            target = tmp_path / "home/offline" / root / "data" / layout.hour_folder(START_US) / f"restored-{number}.parquet"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
    drop_foreign(store, [(SUBJECT, 33, SECRETS[0])], "late.parquet")
    store.discover("people", settled_s=0)
    restored = history(store)
    assert not [row for row in restored if row["id"] == SUBJECT]
    assert len(restored) > len(before), "the other rows of those files were adopted"


def test_a_batch_that_is_completed_late_does_not_bring_it_back(store: FeatureStore, tmp_path: Path) -> None:
    """The journal of a batch that died before its online load, put back as a backup of the folder would."""
    store.ingest("people", frame([(SUBJECT, 10, SECRETS[1]), ("other", 11, "kept")]), progress=False)
    store.erase("people", SUBJECT)
    group = store.feature_group("people")
    rows = frame([(SUBJECT, 12, SECRETS[2]), ("other", 13, "newer")])
    first_us = min(store.offline.ledger.entries()[-1].until_us, 10**18) - 1000
    batch = store._batches  # the parts of an ingest, to stop between them
    checked = checked_columns(group, pa.Table.from_pandas(rows), skip_faulty=False)
    records = records_of(checked, store.shards)
    api_times_us = api_times(records.shards[records.of_rows], dict.fromkeys(records.shards.tolist(), first_us))
    stamped = batch_rows(group, checked, records, api_times_us, frozenset(TargetStore))
    store.offline.batches.stage(group, stamped, offline=True)
    batch.recover(store.registry.get_by_id)
    assert store.get_record("people", SUBJECT) is None
    assert [row["id"] for row in history(store)] == ["other", "other"]
    assert store.get_record("people", "other") is not None


def test_several_records_in_one_call(store: FeatureStore, tmp_path: Path) -> None:
    fill(store)
    receipt = store.erase("people", SUBJECT, "other-1", "nobody")
    assert len(receipt.subjects) == 3
    assert {row["id"] for row in history(store)}.isdisjoint({SUBJECT, "other-1"})
    assert receipt.online == 2


@pytest.mark.parametrize(("kind", "identifiers"), [("Integral", (7, 8)), ("Fractional", (7.5, 8.0))])
def test_identifiers_of_other_types(store: FeatureStore, kind: str, identifiers: tuple[float, float]) -> None:
    features = {"k": kind, "t": "Fractional", "v": "String"}
    store.create_feature_group("typed", record_identifier="k", event_time="t", features=features)
    for identifier in identifiers:
        store.put_record("typed", {"k": identifier, "t": 1.0, "v": "x"})
    store.flush()
    store.compact("typed")
    store.erase("typed", identifiers[0])
    assert store.sql("SELECT k FROM typed").to_pylist() == [{"k": identifiers[1]}]
    assert store.get_record("typed", identifiers[0]) is None


def test_bad_requests(store: FeatureStore) -> None:
    with pytest.raises(FeatureGroupNotFound):
        store.erase("nothing", "x")
    with pytest.raises(ValidationFailed, match="at least one record identifier"):
        store.erase("people")
    with pytest.raises(ValidationFailed, match=r"identifiers\[1\]"):
        store.erase("people", "x", "")
    with pytest.raises(ValidationFailed, match=r"identifiers\[0\]"):
        store.erase("people", None)


def test_the_ledger_holds_no_identifier(store: FeatureStore, tmp_path: Path) -> None:
    put(store, SUBJECT, 1, SECRETS[0])
    store.erase("people", SUBJECT)
    (entry,) = store.offline.ledger.entries()
    assert entry.subject == store.offline.ledger.subject(entry.group_id, SUBJECT)
    with sqlite3.connect(tmp_path / "home/online.db") as database:
        assert database.execute("SELECT count(*) FROM record").fetchone() == (0,)


def test_a_file_whose_name_is_no_text_is_searched(store: FeatureStore) -> None:
    whole = drop_foreign(store, [(SUBJECT, 30, SECRETS[3]), ("other", 31, "kept")], "whole.parquet")
    odd = whole.rename(whole.with_name(os.fsdecode(b"odd-\xff.parquet")))
    (file,) = store.erase("people", SUBJECT, progress=False).files
    assert not odd.exists()
    assert (file.rows, file.path.endswith("/odd-\\xff.parquet")) == (1, True)
    (kept,) = whole.parent.iterdir()
    with kept.open("rb") as stream:
        assert pq.read_table(stream)["id"].to_pylist() == ["other"]


def test_a_zero_is_erased_whatever_its_sign(store: FeatureStore) -> None:
    features = {"id": "Fractional", "t": "String", "n": "Integral"}
    store.create_feature_group("zeros", record_identifier="id", event_time="t", features=features)
    store.ingest("zeros", pd.DataFrame({"id": [0.0, -0.0, 1.0], "t": [at(0)] * 3, "n": [1, 2, 3]}), progress=False)
    store.put_record("zeros", {"id": -0.0, "t": at(1), "n": 4})
    store.flush()
    assert store.erase("zeros", 0.0, progress=False).rows == 3
    assert store.sql("SELECT n FROM zeros").to_pylist() == [{"n": 3}]
    assert store.audit("zeros", progress=False).differences == ()
