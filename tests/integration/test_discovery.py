"""Files of other tools in the offline layout: each is adopted rightly or quarantined with its reason, and no query fails."""

from __future__ import annotations

import asyncio
import base64
import ctypes
import gzip
import hashlib
import os
import random
import shutil
import struct
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from itertools import count
from pathlib import Path
from typing import Any

import boto3
import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

import featurestore
from featurestore.errors import StoreUnavailable, ValidationFailed
from featurestore.model.feature_group import (
    CollectionType,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
    TtlDuration,
    TtlUnit,
)
from featurestore.offline import layout, schema
from featurestore.offline.batch import Journal
from featurestore.offline.discovery import Discovered, Discovery, WithoutErased
from featurestore.offline.foreign import REASON_CHARS_MAX
from featurestore.offline.inventory import State
from featurestore.offline.local import LocalObjectStore
from featurestore.offline.manifest import BATCHES_KEPT_MAX, ForeignFile, ForeignState, delta_after
from featurestore.offline.opening import ENDPOINT
from featurestore.offline.protocol import ObjectInfo, ObjectStore
from featurestore.offline.table import OfflineStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.crash.schedule import Actor, GatedObjects, run_schedule
from tests.s3_server import S3Server

FEATURES = {"id": "String", "at": "String", "amount": "Fractional", "count": "Integral", "note": "String"}
DAY_1, DAY_2 = "2024-05-01T12:00:00Z", "2024-05-02T12:00:00Z"
HOUR = "data/year=2024/month=05/day=02/hour=12"
BASE = pa.table({"id": ["k1", "k2"], "at": [DAY_1, DAY_1], "amount": [1.0, 9.0]})
LONG_AGO = datetime(2024, 5, 2, 13, tzinfo=UTC)
SPINE_TIME = datetime(2024, 6, 1, tzinfo=UTC)
NUMBERS = count()

UNTOUCHED: dict[str, float | None] = {"k1": 1.0, "k2": 9.0}
MERGED: dict[str, float | None] = {"k1": 2.5, "k2": 9.0, "new": 3.5}


def good(**columns: Any) -> pa.Table:
    """A newer row of k1 and a row of another record; columns that are given replace these, None leaves one out."""
    usual = {"id": ["k1", "new"], "at": [DAY_2, DAY_2], "amount": [2.5, 3.5], "count": [7, None], "note": ["n", None]}
    return pa.table({name: values for name, values in (usual | columns).items() if values is not None})


def utc(unit: str) -> pa.DataType:
    return pa.timestamp(unit, "UTC")


MOMENT = datetime(2024, 5, 2, 12, tzinfo=UTC)
TIMES = [MOMENT, MOMENT]
Write = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """A file and what becomes of it.

    Attributes:
        write: makes the file.
        values: what `latest` and a training set then say of `amount`, by id.
        reason: part of why it is quarantined; None if it is adopted.
        path: below the group's folder.
        history: rows in the table then; by default 4 if it is adopted and 2 if not.
    """

    write: Write
    values: Mapping[str, float | None]
    reason: str | None = None
    path: str = f"{HOUR}/part-0.parquet"
    history: int | None = None


def table(columns: pa.Table, **options: Any) -> Write:
    return lambda path: pq.write_table(columns, path, **options)


def data(content: bytes) -> Write:
    return lambda path: path.write_bytes(content)


def parquet_bytes(columns: pa.Table, **options: Any) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(columns, sink, **options)
    return bytes(sink.getvalue())


def adopted(write: Write, path: str = f"{HOUR}/part-0.parquet", values: Any = None, history: int = 4) -> Case:
    return Case(write, MERGED if values is None else values, None, path, history)


def quarantined(write: Write, reason: str, path: str = f"{HOUR}/part-0.parquet") -> Case:
    return Case(write, UNTOUCHED, reason, path, 2)


def by_polars(path: Path) -> None:
    pl.DataFrame(good().to_pydict()).with_columns(
        pl.col("count").cast(pl.Int32), pl.lit(False).alias("is_deleted")
    ).write_parquet(path)


def by_duckdb(path: Path) -> None:
    with duckdb.connect() as session:
        session.execute("SET TimeZone = 'UTC'")
        session.execute(
            "COPY (SELECT * FROM (VALUES ('k1', TIMESTAMPTZ '2024-05-02 12:00:00Z', 2.5::DECIMAL(9, 2), 7::UTINYINT), "
            "('new', TIMESTAMPTZ '2024-05-02 12:00:00Z', 3.5, NULL)) AS t(id, \"at\", amount, count)) "
            f"TO '{path}' (FORMAT parquet)"
        )


def by_pandas(path: Path) -> None:
    frame = good().to_pandas()
    frame["note"] = frame["note"].astype("category")
    frame["at"] = pd.to_datetime(frame["at"])
    frame[[True, True]].set_index(pd.Index([5, 6], dtype="int64")).to_parquet(path)


def by_pandas_with_named_index(path: Path) -> None:
    good().to_pandas().set_index("id").to_parquet(path)


class _Keys(pe.KmsClient):
    def wrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64encode(key)

    def unwrap_key(self, key: bytes, master: str) -> bytes:
        return base64.b64decode(key)


def encrypted(*, plaintext_footer: bool) -> Write:
    def write(path: Path) -> None:
        config = pe.EncryptionConfiguration("footer", column_keys={"k": ["amount"]}, plaintext_footer=plaintext_footer)
        properties = pe.CryptoFactory(lambda _: _Keys()).file_encryption_properties(pe.KmsConnectionConfig(), config)
        with pq.ParquetWriter(path, good().schema, encryption_properties=properties) as writer:
            writer.write_table(good())

    return write


def corrupt_pages(path: Path) -> None:
    content = bytearray(parquet_bytes(good(), compression="none", use_dictionary=False))
    content[4:60] = bytes(56)
    path.write_bytes(content)


def corrupt_footer(path: Path) -> None:
    start = len(WHOLE) - 8 - int.from_bytes(WHOLE[-8:-4], "little")
    path.write_bytes(WHOLE[:start] + b"\xff" * 32 + WHOLE[start + 32 :])


def corrupt_checksum(path: Path) -> None:
    content = parquet_bytes(good(), compression="none", use_dictionary=False, write_page_checksum=True)
    path.write_bytes(content.replace(b"new", b"old"))


def invalid_utf8() -> pa.Array:
    raw = pa.array([b"\xff\xfe", b"ok"])
    return pa.StringArray.from_buffers(2, *raw.buffers()[1:])


def doubled() -> pa.Table:
    rows = good()
    return pa.table([*rows.columns, rows["amount"]], names=[*rows.column_names, "amount"])


def system(**columns: Any) -> pa.Table:
    """Rows with all system columns, as files of a feature store have them."""
    usual = {
        "write_time": pa.array([MOMENT] * 2, utc("ms")),
        "api_invocation_time": pa.array([MOMENT] * 2, utc("ms")),
        "is_deleted": [False, None],
    }
    return good(**(usual | columns))


WHOLE = parquet_bytes(good())

CASES: dict[str, Case] = {
    # Tools
    "pyarrow": adopted(table(good())),
    "pandas": adopted(by_pandas),
    "pandas with a named index": adopted(by_pandas_with_named_index),
    "polars": adopted(by_polars),
    "DuckDB": adopted(by_duckdb),
    # Places and names
    "in data/ itself": adopted(table(good()), "data/part-0.parquet"),
    "in the wrong hour": adopted(table(good()), "data/year=1999/month=01/day=01/hour=00/part-0.parquet"),
    "below a folder that is called like a file": adopted(table(good()), "data/export.parquet/part-0.snappy.parquet"),
    "upper case suffix": adopted(table(good()), f"{HOUR}/EXPORT.PARQUET"),
    "short suffix": adopted(table(good()), f"{HOUR}/export.parq"),
    "an odd name": adopted(table(good()), f"{HOUR}/naïve 'x' \"y\" %20 [b]\n;--.parquet"),
    "named nearly like one of ours": adopted(table(good()), f"{HOUR}/20240502T120000Z_sAAAAAAAAAAAAAAA.parquet"),
    "a symbolic link": adopted(lambda path: (table(good())(path.parents[4] / "real"), path.symlink_to(path.parents[4] / "real"))),
    # Encodings
    "dictionaries": adopted(table(good(id=pa.array(["k1", "new"]).dictionary_encode()))),
    "large text": adopted(table(good(id=pa.array(["k1", "new"], pa.large_string())))),
    "text views": adopted(table(good(id=pa.array(["k1", "new"], pa.string_view())))),
    "without Arrow's schema": adopted(table(good(), store_schema=False)),
    "a row per row group": adopted(table(good(), row_group_size=1)),
    "newer pages": adopted(table(good(), data_page_version="2.0", version="2.6", compression="zstd")),
    "gzip": adopted(table(good(), compression="gzip")),
    "brotli": adopted(table(good(), compression="brotli")),
    "with checksums": adopted(table(good(), write_page_checksum=True)),
    # Columns
    "another order": adopted(table(good().select(["note", "amount", "at", "count", "id"]))),
    "features left out": adopted(table(good(count=None, note=None))),
    "partition columns": adopted(table(good(year=[2024, 2024], month=["05", "05"], day=[2, 2], hour=[12, 12]))),
    "a column of nulls": adopted(table(good(note=pa.nulls(2), is_deleted=pa.nulls(2), api_invocation_time=pa.nulls(2)))),
    "no rows": adopted(table(good().slice(0, 0)), values=UNTOUCHED, history=2),
    "no row groups": adopted(lambda path: pq.ParquetWriter(path, good().schema).close(), values=UNTOUCHED, history=2),
    # Types
    "small numbers": adopted(table(good(count=pa.array([7, None], pa.int8()), amount=pa.array([2.5, 3.5], pa.float32())))),
    "whole floats": adopted(table(good(count=[7.0, None]))),
    "bools as integers": adopted(table(good(count=[True, None]))),
    "decimals": adopted(table(good(amount=[Decimal("2.50"), Decimal("3.50")], count=[Decimal(7), None]))),
    "numbers as text": adopted(table(good(amount=["2.5", "3.5"], count=["7", None]))),
    "times in seconds": adopted(table(good(at=pa.array(TIMES, utc("s"))))),
    "times in microseconds": adopted(table(good(at=pa.array(TIMES, utc("us"))))),
    "times in nanoseconds": adopted(table(good(at=pa.array(TIMES, utc("ns"))))),
    "times with a zone": adopted(table(good(at=pa.array(TIMES, pa.timestamp("us", "Asia/Tokyo"))))),
    "INT96": adopted(table(good(at=pa.array(TIMES, utc("ns"))), use_deprecated_int96_timestamps=True)),
    "INT96 without Arrow's schema": adopted(
        table(good(at=pa.array(TIMES, pa.timestamp("us"))), use_deprecated_int96_timestamps=True, store_schema=False)
    ),
    # System columns
    "system columns": adopted(table(system())),
    "system columns as INT96": adopted(table(system(), use_deprecated_int96_timestamps=True)),
    "system times without a zone": adopted(
        table(system(api_invocation_time=pa.array([MOMENT] * 2, pa.timestamp("ns")), write_time=["n/a", None]))
    ),
    "some API times": adopted(table(system(api_invocation_time=pa.array([MOMENT, None], utc("us"))))),
    "deleted": adopted(table(system(is_deleted=[True, False])), values={"k2": 9.0, "new": 3.5}),
    "deleted hard": adopted(
        table(system(is_deleted=[True, False], _hard_deleted=[True, False], api_invocation_time=None)),
        values={"k2": 9.0, "new": 3.5},
    ),
    "expired": adopted(table(system(_expires_at=pa.array([MOMENT, None], utc("us")))), values={"k2": 9.0, "new": 3.5}),
    "an event time of its own": adopted(table(system(_event_time=["n/a", None]))),
    # No Parquet
    "empty": quarantined(data(b""), "an empty file: 0 bytes"),
    "a pipe": quarantined(os.mkfifo, "an empty file: 0 bytes"),
    "three bytes": quarantined(data(b"PAR"), "3 bytes are too few"),
    "magic alone": quarantined(data(b"PAR1PAR1PAR1"), "no readable Parquet file"),
    "half of it": quarantined(data(WHOLE[: len(WHOLE) // 2]), "no whole Parquet file: it ends with"),
    "all but a byte": quarantined(data(WHOLE[:-1]), "no whole Parquet file: it ends with"),
    "without its first byte": quarantined(data(WHOLE[1:]), "no Parquet file: it begins with b'AR1"),
    "more behind it": quarantined(data(WHOLE + b"\n"), "no whole Parquet file"),
    "CSV": quarantined(data(b"id,at,amount\nk1,2024-05-02T12:00:00Z,2.5\n"), "no Parquet file: it begins with b'id,a'"),
    "compressed as a whole": quarantined(data(gzip.compress(WHOLE)), "no Parquet file"),
    "a damaged footer": quarantined(corrupt_footer, "no readable Parquet file"),
    "a footer that is too long": quarantined(data(WHOLE[:-8] + b"\xff\xff\xff\x7fPAR1"), "no readable Parquet file"),
    "damaged pages": quarantined(corrupt_pages, "no readable Parquet file"),
    "a wrong checksum": quarantined(corrupt_checksum, "no readable Parquet file"),
    "encrypted": quarantined(encrypted(plaintext_footer=False), "an encrypted Parquet file"),
    "encrypted columns": quarantined(encrypted(plaintext_footer=True), "no readable Parquet file"),
    # Names
    "a hidden name": quarantined(table(good()), "a temporary or hidden name: .part-0.parquet", f"{HOUR}/.part-0.parquet"),
    "a temporary name": quarantined(table(good()), "a temporary or hidden name", f"{HOUR}/_part-0.parquet"),
    # Columns that do not suit
    "no identifier": quarantined(table(good(id=None)), "no column 'id', the record identifier feature of"),
    "no event time": quarantined(table(good(at=None)), "no column 'at', the event time feature of"),
    "no columns": quarantined(table(pa.table({})), "no column 'id'"),
    "unknown columns": quarantined(table(good(colour=[1, 2], __x=[1, 2])), "columns that are no features of", ""),
    "a name in another case": quarantined(table(good(amount=None, Amount=[2.5, 3.5])), "Amount"),
    "twins": quarantined(table(good(ID=["k1", "new"])), "columns whose names differ by case only: id and ID"),
    "twins of a system column": quarantined(table(system(Is_Deleted=[True, True])), "is_deleted and Is_Deleted"),
    "a repeated column": quarantined(table(doubled()), "columns that repeat: amount"),
    # Types that do not suit
    "text for a number": quarantined(table(good(amount=["2.5", "n/a"])), "rows[1].amount: expected Fractional"),
    "a number for text": quarantined(table(good(note=[1, 2])), "columns.note: expected String"),
    "a bool for a number": quarantined(table(good(amount=[True, False])), "columns.amount: expected Fractional"),
    "bytes": quarantined(table(good(note=[b"x", b"y"])), "columns.note: expected String"),
    "a struct": quarantined(table(good(note=[{"x": 1}, None])), "columns.note"),
    "a list": quarantined(table(good(note=[["x"], None])), "columns.note"),
    "a map": quarantined(table(good(note=pa.array([[("x", 1)], None], pa.map_(pa.string(), pa.int64())))), "columns.note"),
    "a time of day": quarantined(table(good(note=pa.array([1, 2], pa.time64("us")))), "columns.note"),
    "event times without a zone": quarantined(
        table(good(at=pa.array(TIMES, pa.timestamp("us")))), "columns.at: expected an ISO-8601 UTC time"
    ),
    "event dates": quarantined(table(good(at=[date(2024, 5, 2)] * 2)), "columns.at"),
    "API times as text": quarantined(
        table(system(api_invocation_time=[DAY_2, DAY_2])), "columns.api_invocation_time: expected a"
    ),
    "deleted as a number": quarantined(table(system(is_deleted=[0, 1])), "columns.is_deleted: expected a column of bools"),
    "expiry as text": quarantined(
        table(system(_expires_at=[DAY_2, None])), "columns._expires_at: expected a column of timestamps"
    ),
    # Values that do not suit
    "no value for the identifier": quarantined(table(good(id=["k1", None])), "rows[1].id: expected a value for the record"),
    "an empty identifier": quarantined(table(good(id=["k1", ""])), "rows[1].id: expected a non-empty"),
    "a long identifier": quarantined(table(good(id=["k1", "x" * 3000])), "rows[1].id: expected at most 2048 bytes"),
    "no value for the event time": quarantined(table(good(at=[None, DAY_2])), "rows[0].at: expected a value for the event time"),
    "half a number": quarantined(table(good(count=[7.5, None])), "rows[0].count: expected Integral"),
    "NaN": quarantined(table(good(amount=[2.5, float("nan")])), "rows[1].amount: expected Fractional"),
    "infinity": quarantined(table(good(amount=[2.5, float("inf")])), "rows[1].amount"),
    "more than 64 bits": quarantined(table(good(count=pa.array([2**63, 1], pa.uint64()))), "rows[0].count"),
    "a decimal that is not whole": quarantined(table(good(count=[Decimal("7.5"), None])), "rows[0].count"),
    "nanoseconds": quarantined(table(good(at=pa.array([1, 1000], utc("ns")))), "rows[0].at: expected a time"),
    "after the year 9999": quarantined(table(good(at=pa.array([2**60, 0], utc("us")))), "rows[0].at"),
    "no ISO time": quarantined(table(good(at=[DAY_2, "2024-05-02 12:00"])), "rows[1].at: expected an ISO-8601"),
    "text that is no UTF-8": quarantined(table(good(note=invalid_utf8())), "UTF8"),
    "API times in the future": quarantined(
        table(system(api_invocation_time=pa.array([MOMENT, datetime.now(UTC) + timedelta(days=2)], utc("us")))),
        "rows[1].api_invocation_time: expected a time up to now",
    ),
    "API times after the year 9999": quarantined(
        table(system(api_invocation_time=pa.array([2**60, 0], utc("us")))), "rows[0].api_invocation_time"
    ),
    "deleted hard and not": quarantined(
        table(system(_hard_deleted=[True, False])), "rows[0]._hard_deleted: expected false as is_deleted is"
    ),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FeatureStore]:
    with featurestore.open(tmp_path_factory.mktemp("discovery") / "home") as store:
        yield store


def create(store: FeatureStore, **options: Any) -> FeatureGroup:
    name = f"g{next(NUMBERS)}"
    features = options.pop("features", FEATURES)
    return store.create_feature_group(name, record_identifier="id", event_time="at", features=features, **options)


def folder_of(store: FeatureStore, group: FeatureGroup) -> Path:
    return Path(store.settings.offline_location.removeprefix("file://")) / layout.group_root(group)


def drop(store: FeatureStore, group: FeatureGroup, write: Write, path: str = f"{HOUR}/part-0.parquet") -> Path:
    """Another tool writes a file, long enough ago to be settled."""
    target = folder_of(store, group) / path
    target.parent.mkdir(parents=True, exist_ok=True)
    write(target)
    age(target)
    return target


def age(path: Path, *, by_s: float = 3600) -> None:
    then_s = datetime.now(UTC).timestamp() - by_s
    os.utime(path, (then_s, then_s))


def look(store: FeatureStore, group: FeatureGroup) -> Discovered:
    return store.discover(group.name)[group.name]


def amounts(store: FeatureStore, group: FeatureGroup, at: datetime = SPINE_TIME) -> dict[str, float | None]:
    """What a training set says, by id; ids without a value are left out."""
    ids = ["k1", "k2", "new"]
    spine = pa.table({"id": ids, "now": pa.array([at] * 3, pa.timestamp("us", "UTC"))})
    answer = store.create_training_set(spine, [f"{group.name}.amount"], event_time="now", progress=False).to_arrow()
    found = dict(zip(ids, answer[f"{group.name}.amount"].to_pylist(), strict=True))
    return {key: value for key, value in found.items() if value is not None}


def history(store: FeatureStore, group: FeatureGroup) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = store.sql(f'SELECT * FROM history."{group.name}" ORDER BY id, "at", write_time').to_pylist()
    return rows


def rows_in_manifest(offline: OfflineStore, group: FeatureGroup) -> list[str]:
    """The identifiers of all rows that the newest version of the table holds."""
    entries = offline.manifest(group).current().files
    ids: list[str] = []
    for path, entry in zip(offline.paths(group, entries), entries, strict=True):
        found = pq.read_table(path, partitioning=None)
        assert (found.num_rows, os.path.getsize(path)) == (entry.rows, entry.bytes)
        ids += found["id"].to_pylist()
    return sorted(ids)


def states(store: FeatureStore, group: FeatureGroup) -> dict[str, State]:
    return {file.path: file.state for file in store.files(group.name)}


@pytest.mark.parametrize("name", CASES)
def test_catalogue(store: FeatureStore, name: str) -> None:
    case = CASES[name]
    path = case.path or f"{HOUR}/part-0.parquet"
    group = create(store)
    store.ingest(group.name, BASE, progress=False)
    file = drop(store, group, case.write, path)
    is_pipe = file.is_fifo()
    before = b"" if is_pipe else file.read_bytes()
    assert states(store, group)[path] is State.NEW

    found = look(store, group)

    assert [entry.path for entry in found.adopted] == ([path] if case.reason is None else [])
    assert [entry.path for entry in found.quarantined] == ([] if case.reason is None else [path])
    if case.reason is not None:
        assert case.reason in found.quarantined[0].reason
        assert len(found.quarantined[0].reason) <= REASON_CHARS_MAX
    assert is_pipe or file.read_bytes() == before

    assert amounts(store, group) == case.values
    latest = store.sql(
        f'SELECT id, amount, NULL AS rows FROM latest."{group.name}" '
        f'UNION ALL SELECT NULL, NULL, count(*) FROM history."{group.name}"'
    ).to_pylist()
    assert {row["id"]: row["amount"] for row in latest if row["id"]} == case.values
    assert [row["rows"] for row in latest if not row["id"]] == [case.history]

    (shown,) = [file for file in store.files(group.name) if file.path == path]
    assert shown.state is (State.ADOPTED if case.reason is None else State.QUARANTINED)
    assert shown.reason == ("" if case.reason is None else found.quarantined[0].reason)
    assert shown.rows == (None if case.reason else (case.history or 0) - 2)
    assert look(store, group) == Discovered((), (), (), 0)
    assert store.offline.objects.list("_batch/") == []
    assert store.offline.objects.list("_staging/") == []


IGNORED = ["data/_SUCCESS", f"{HOUR}/.part-0.parquet.crc", f"{HOUR}/README.txt", "data/.DS_Store", f"{HOUR}/part-0.parquet.tmp"]
IGNORED += ["data/_temporary/0/part-0.parquet", f"{HOUR}/.spark/part-0.parquet", "opt/part-0.parquet"]


def test_what_does_not_claim_to_be_data_is_ignored(store: FeatureStore) -> None:
    group = create(store)
    for path in IGNORED:
        drop(store, group, data(b"anything"), path)
    odd = os.fsencode(folder_of(store, group) / HOUR) + b"/\xff.parquet"
    with open(odd, "wb") as file:
        file.write(WHOLE)
    os.utime(odd, (0, 0))
    assert look(store, group) == Discovered((), (), (), 0)
    assert store.offline.manifest(group).current().version == 0
    shown = {file.path: (file.state, file.reason) for file in store.files(group.name)}
    assert {state for state, _ in shown.values()} == {State.IGNORED}
    assert set(shown) == {*IGNORED, f"{HOUR}/\\udcff.parquet"}
    assert all(reason for _, reason in shown.values())


def test_system_columns_are_kept_or_made(store: FeatureStore) -> None:
    group = create(store, ttl=TtlDuration(TtlUnit.DAYS, 36_500))
    began = datetime.now(UTC)
    rows = good(
        id=["a", "b", "c", "d"],
        at=[DAY_2] * 4,
        amount=[1.0, 2.0, 3.0, 4.0],
        count=None,
        note=None,
        write_time=pa.array([MOMENT] * 4, utc("ns")),
        api_invocation_time=pa.array([MOMENT, None, MOMENT + timedelta(hours=1), None], utc("ms")),
        is_deleted=[False, True, None, False],
    )
    drop(store, group, table(rows))
    look(store, group)
    found = {row["id"]: row for row in history(store, group)}
    assert [found[key]["is_deleted"] for key in "abcd"] == [False, True, False, False]
    assert [found[key]["api_invocation_time"] for key in "ac"] == [MOMENT, MOMENT + timedelta(hours=1)]
    ended = datetime.now(UTC)
    assert all(began <= found[key]["api_invocation_time"] <= ended for key in "bd")
    assert all(began <= row["write_time"] <= ended for row in found.values())
    assert [row["write_time"] for row in found.values()] == sorted(row["write_time"] for row in found.values())

    version = store.offline.manifest(group).current()
    (entry,) = version.files
    assert (entry.origin, entry.rows, entry.foreign_rows, entry.tombstones, entry.expiring) == ("foreign", 4, 4, 1, 3)
    (path,) = store.offline.paths(group, version.files)
    kept = pq.read_table(path, partitioning=None)
    assert kept.schema.equals(schema.table_schema(group.features))
    expiries = dict(zip(kept["id"].to_pylist(), kept["_expires_at"].to_pylist(), strict=True))
    assert expiries == dict.fromkeys("acd", MOMENT + timedelta(days=36_500)) | {"b": None}
    assert sum(version.rows.values()) == 4


def test_rows_count_as_arriving_in_the_order_of_the_file(store: FeatureStore) -> None:
    group = create(store)
    drop(store, group, table(good(id=["k"] * 3, at=[DAY_2] * 3, amount=[1.0, 2.0, 3.0], count=None, note=None)))
    look(store, group)
    assert store.sql(f'SELECT amount FROM latest."{group.name}"').to_pylist() == [{"amount": 3.0}]
    assert [row["amount"] for row in history(store, group)] == [1.0, 2.0, 3.0]


def test_files_count_as_arriving_in_the_order_in_which_they_were_written(store: FeatureStore) -> None:
    group = create(store)
    for hours, name in ((1, "a"), (3, "b"), (2, "c")):
        rows = good(id=["k"], at=[DAY_2], amount=[float(hours)], count=None, note=None)
        age(drop(store, group, table(rows), f"data/{name}.parquet"), by_s=hours * 3600)
    assert [file.path for file in look(store, group).adopted] == ["data/b.parquet", "data/c.parquet", "data/a.parquet"]
    assert store.sql(f'SELECT amount FROM latest."{group.name}"').to_pylist() == [{"amount": 1.0}]


def test_event_times_in_the_future_are_adopted(store: FeatureStore) -> None:
    group = create(store)
    future = datetime.now(UTC).replace(microsecond=0) + timedelta(days=300)
    drop(store, group, table(good(at=pa.array([future] * 2, utc("us")))))
    look(store, group)
    assert amounts(store, group) == {}
    assert amounts(store, group, future) == {"k1": 2.5, "new": 3.5}
    assert len(history(store, group)) == 2


def test_event_times_that_nanoseconds_can_not_count(store: FeatureStore) -> None:
    group = create(store)
    far = pa.array([datetime(3000, 1, 1, tzinfo=UTC), datetime(1500, 1, 1, tzinfo=UTC)], utc("us"))
    drop(store, group, table(good(at=far), use_deprecated_int96_timestamps=True))
    look(store, group)
    assert [row["at"] for row in history(store, group)] == ["3000-01-01T00:00:00Z", "1500-01-01T00:00:00Z"]


def test_collections(store: FeatureStore) -> None:
    features = (
        FeatureDefinition("id", FeatureType.INTEGRAL),
        FeatureDefinition("at", FeatureType.FRACTIONAL),
        FeatureDefinition("tags", FeatureType.STRING, CollectionType.LIST),
        FeatureDefinition("vector", FeatureType.FRACTIONAL, CollectionType.VECTOR, 2),
    )
    online, offline = OnlineConfig(storage_type=StorageType.IN_MEMORY), OfflineConfig(store.default_s3_uri)
    group = store.create(FeatureGroup(f"g{next(NUMBERS)}", "id", "at", features, online, offline))
    rows = {"id": [1, 2], "at": [1714564800, 1714564801], "tags": [["x", "y"], None], "vector": [None, [1.0, 2.0]]}
    drop(store, group, table(pa.table(rows)))
    drop(store, group, table(pa.table(rows | {"vector": [None, [1.0, 2.0, 3.0]]})), f"{HOUR}/wrong.parquet")
    found = look(store, group)
    assert [file.path for file in found.adopted] == [f"{HOUR}/part-0.parquet"]
    assert "rows[1].vector: expected a Vector of 2 elements" in found.quarantined[0].reason
    wanted = [{"tags": ["x", "y"], "vector": None}, {"tags": None, "vector": [1.0, 2.0]}]
    assert store.sql(f'SELECT tags, vector FROM "{group.name}" ORDER BY id').to_pylist() == wanted


def test_adoption_equals_ingest(store: FeatureStore) -> None:
    generator = random.Random(5)
    ids = [f"k{generator.randrange(40)}" for _ in range(3000)]
    times = [MOMENT + timedelta(minutes=generator.randrange(3000)) for _ in ids]
    values = [generator.choice([None, generator.random()]) for _ in ids]
    rows = pa.table({"id": ids, "at": pa.array(times, utc("us")), "amount": values, "count": range(3000)})
    by_file, by_frame = create(store), create(store)
    drop(store, by_file, table(rows, row_group_size=100))
    look(store, by_file)
    store.ingest(by_frame.name, rows, progress=False)
    moments = [MOMENT + timedelta(minutes=generator.randrange(3500)) for _ in range(500)]
    spine = pa.table({"id": [f"k{number % 45}" for number in range(500)], "now": pa.array(moments, utc("us"))})

    def answer(group: FeatureGroup) -> list[list[Any]]:
        wanted = {"a": f"{group.name}.amount", "c": f"{group.name}.count"}
        result = store.create_training_set(spine, wanted, event_time="now", event_times=True, progress=False).to_arrow()
        return [column.to_pylist() for column in result.columns]

    def features(group: FeatureGroup) -> list[dict[str, Any]]:
        return store.sql(f'SELECT id, "at", amount, count FROM "{group.name}" ORDER BY count').to_pylist()

    assert answer(by_file) == answer(by_frame)
    assert any(value is not None for value in answer(by_file)[2])
    assert features(by_file) == features(by_frame)


def test_a_file_that_may_still_be_written_is_left_for_later(store: FeatureStore) -> None:
    group = create(store)
    file = drop(store, group, data(WHOLE[:50]))
    age(file, by_s=1)
    assert look(store, group) == Discovered((), (), (), 0)
    assert states(store, group) == {f"{HOUR}/part-0.parquet": State.NEW}
    file.write_bytes(WHOLE)
    age(file)
    assert len(look(store, group).adopted) == 1
    age(drop(store, group, table(good()), "data/future.parquet"), by_s=-1e6)
    assert len(look(store, group).adopted) == 1


@pytest.mark.parametrize("same_size", [True, False])
def test_a_quarantined_file_is_looked_at_again_once_it_was_replaced(store: FeatureStore, same_size: bool) -> None:
    group = create(store)
    file = drop(store, group, data(bytes(len(WHOLE) if same_size else 100)))
    assert len(look(store, group).quarantined) == 1
    assert look(store, group) == Discovered((), (), (), 0)
    file.write_bytes(WHOLE)
    if not same_size:
        age(file)
    assert len(store.discover(group.name, settled_s=0)[group.name].adopted) == 1
    assert states(store, group)[f"{HOUR}/part-0.parquet"] is State.ADOPTED


def test_a_quarantined_file_is_looked_at_again_once_its_columns_became_features(store: FeatureStore) -> None:
    group = create(store)
    drop(store, group, table(good(colour=["red", None])))
    assert "colour" in look(store, group).quarantined[0].reason
    store.add_features(group.name, [FeatureDefinition("colour", FeatureType.STRING)])
    assert len(look(store, group).adopted) == 1
    assert [row["colour"] for row in history(store, group)] == ["red", None]


def test_a_file_of_before_a_feature_was_added_is_adopted(store: FeatureStore) -> None:
    group = create(store)
    store.add_features(group.name, [FeatureDefinition("colour", FeatureType.STRING)])
    drop(store, group, table(good()))
    assert len(look(store, group).adopted) == 1
    assert [row["colour"] for row in history(store, group)] == [None, None]


def test_an_adopted_file_that_changes_is_reported_and_not_adopted_again(
    store: FeatureStore, caplog: pytest.LogCaptureFixture
) -> None:
    group = create(store)
    file = drop(store, group, table(good()))
    look(store, group)
    table(good(amount=[100.0, 100.0], note=["x" * 1000, None]))(file)
    for _ in range(3):
        age(file)
        assert look(store, group) == Discovered((), (), (), 0)
    (shown,) = [shown for shown in store.files(group.name) if shown.path == f"{HOUR}/part-0.parquet"]
    assert (shown.state, shown.rows) == (State.CHANGED, 2)
    assert shown.reason.startswith("changed since adoption")
    assert amounts(store, group) == {"k1": 2.5, "new": 3.5}
    assert len([line for line in caplog.messages if "the rows stay as they were" in line]) <= 3


def test_a_file_that_is_gone_is_forgotten_and_its_rows_stay(store: FeatureStore) -> None:
    group = create(store)
    good_file = drop(store, group, table(good()))
    bad_file = drop(store, group, data(b""), "data/bad.parquet")
    look(store, group)
    good_file.unlink()
    bad_file.unlink()
    assert sorted(look(store, group).gone) == ["data/bad.parquet", f"{HOUR}/part-0.parquet"]
    assert store.offline.manifest(group).current().foreign == {}
    assert look(store, group) == Discovered((), (), (), 0)
    assert amounts(store, group) == {"k1": 2.5, "new": 3.5}
    assert set(states(store, group).values()) == {State.LIVE}


def test_one_call_looks_at_a_bounded_number_of_files(store: FeatureStore) -> None:
    group = create(store)
    for number in range(5):
        drop(store, group, table(good()) if number % 2 else data(b"x"), f"data/{number}.parquet")
    discovery = discovery_of(store, store.offline)
    found = [discovery.discover(group, files_max=2) for _ in range(3)]
    assert [len(each.adopted) + len(each.quarantined) for each in found] == [2, 2, 1]
    assert [each.remaining for each in found] == [3, 1, 0]


def test_many_quarantined_files_are_one_commit(store: FeatureStore) -> None:
    group = create(store)
    for number in range(20):
        drop(store, group, data(b"x"), f"data/{number}.parquet")
    assert len(look(store, group).quarantined) == 20
    assert store.offline.manifest(group).current().version == 1


def test_a_faulty_row_far_behind_is_named_and_nothing_of_the_file_stays(store: FeatureStore) -> None:
    group = create(store)
    rows = layout.FILE_ROWS_MAX + 20_000
    wrong = rows - 10
    values = np.zeros(rows)
    values[wrong] = np.nan
    numbers = pa.array(np.arange(rows)).cast(pa.string())
    drop(store, group, table(pa.table({"id": numbers, "at": pa.array([MOMENT] * rows, utc("us")), "amount": values})))
    found = look(store, group)
    assert f"rows[{wrong}].amount: expected Fractional" in found.quarantined[0].reason
    assert rows_in_manifest(store.offline, group) == []
    assert store.offline.objects.list("_staging/") == []
    assert store.offline.batches.unfinished_since_us() is None


def test_a_long_reason_is_cut(store: FeatureStore) -> None:
    group = create(store)
    drop(store, group, table(good(**{f"column{number:04d}": [1, 2] for number in range(500)})))
    (file,) = look(store, group).quarantined
    assert len(file.reason) == REASON_CHARS_MAX
    assert "column0000, column0001" in file.reason


@contextmanager
def without_privilege() -> Iterator[None]:
    """Permission bits count for this thread, even if it is root's (capget(2))."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = struct.pack("=Ii", 0x20080522, 0)
    sets = ctypes.create_string_buffer(24)
    assert libc.capget(header, sets) == 0
    (effective, *others) = struct.unpack("=6I", sets.raw)
    dac_override, dac_read_search = 1 << 1, 1 << 2
    assert libc.capset(header, struct.pack("=6I", effective & ~(dac_override | dac_read_search), *others)) == 0
    try:
        yield
    finally:
        assert libc.capset(header, sets) == 0


def test_a_file_that_may_not_be_read(store: FeatureStore) -> None:
    group = create(store)
    file = drop(store, group, table(good()))
    file.chmod(0)
    with without_privilege():
        found = look(store, group)
    assert found.quarantined[0].reason == "can't be read: Permission denied"


def test_groups_without_an_offline_store(store: FeatureStore) -> None:
    group = create(store, offline=False)
    assert group.name not in store.discover()
    for call in (store.discover, store.files):
        with pytest.raises(ValidationFailed, match="one with an offline store"):
            call(group.name)


def test_own_files_in_the_inventory(store: FeatureStore) -> None:
    group = create(store)
    store.ingest(group.name, BASE, progress=False)
    (file,) = store.files(group.name)
    assert (file.state, file.rows, file.origin) == (State.LIVE, 2, "batch")
    assert file.event_time_us_min == file.event_time_us_max == int(datetime(2024, 5, 1, 12, tzinfo=UTC).timestamp() * 1e6)
    root = layout.group_root(group)
    token = layout.token(root, layout.FileKind.STREAM, "replaced")
    drop(store, group, data(b"x"), f"data/20240501T120000Z_{token}.parquet")
    drop(store, group, data(b"x"), f"opt/20240501T120000Z_{token}.parquet")
    path = folder_of(store, group) / file.path
    content = path.read_bytes()
    path.write_bytes(content + b"x")
    assert sorted(states(store, group).values()) == [State.CHANGED, State.GARBAGE, State.SUPERSEDED]
    assert look(store, group) == Discovered((), (), (), 0)
    path.unlink()
    assert states(store, group)[file.path] is State.MISSING


# Several processes, and processes that die


class Died(BaseException):
    """The process is gone. No handler of ordinary errors catches it."""


class FailingObjects:
    """An object store that fails at one call, before or after it took effect.

    Args:
        fails_at: position of the call, from 0; even ones fail before and odd ones after a call took effect.
        failure: what is raised, at this call and, if it is a death, at all later ones.
    """

    def __init__(self, inner: ObjectStore, fails_at: int, failure: BaseException) -> None:
        self._inner = inner
        self._left = fails_at
        self._failure = failure
        self._lock = threading.Lock()

    @property
    def failed(self) -> bool:
        return self._left < 0

    def _step(self) -> None:
        with self._lock:
            if self._left == 0 or (self.failed and isinstance(self._failure, Died)):
                self._left = -1
                raise self._failure
            self._left -= not self.failed

    def _call(self, method: str, *arguments: Any) -> Any:
        self._step()
        answer = getattr(self._inner, method)(*arguments)
        self._step()
        return answer

    def put_if_absent(self, key: str, content: bytes) -> bool:
        return bool(self._call("put_if_absent", key, content))

    def put_file_if_absent(self, key: str, path: Path) -> bool:
        return bool(self._call("put_file_if_absent", key, path))

    def get(self, key: str) -> bytes | None:
        return self._inner.get(key)

    def list(self, prefix: str) -> Any:
        return self._call("list", prefix)

    def scan(self, prefix: str) -> list[ObjectInfo]:
        return list(self._call("scan", prefix))

    def move_if_absent(self, source: str, target: str) -> bool:
        return bool(self._call("move_if_absent", source, target))

    def delete(self, key: str) -> None:
        self._call("delete", key)

    def paths(self, keys: Any) -> Any:
        return self._call("paths", keys)

    def url(self, key: str) -> str:
        return self._inner.url(key)


def all_rows(_: FeatureGroup, rows: pa.Table) -> pa.Table:
    return rows


def no_rows(_: FeatureGroup, rows: pa.Table) -> pa.Table:
    return rows.slice(0, 0)


def discovery_of(store: FeatureStore, offline: OfflineStore, *, without_erased: WithoutErased = all_rows) -> Discovery:
    """As a process of its own would have it, over the store's files."""

    def reserve(rows: Mapping[int, int]) -> Mapping[int, int]:
        return asyncio.run(store.online.reserve(rows))  # type: ignore[arg-type]

    return Discovery(offline, store.shards, reserve, without_erased)


FAILURES = {"dies": lambda: Died(), "unavailable": lambda: StoreUnavailable("test", "for a moment")}


@pytest.mark.parametrize("drop_all", [False, True])
@pytest.mark.parametrize("failure", FAILURES)
def test_whatever_fails_each_row_is_adopted_once(tmp_path: Path, failure: str, drop_all: bool) -> None:
    home = tmp_path / "home"
    rows = pa.table({"id": ["a", "b", "c"], "at": [DAY_1, DAY_2, DAY_2]})
    with featurestore.open(home) as store:
        features = {"id": "String", "at": "String"}
        for step in count():
            group = create(store, features=features)
            drop(store, group, table(rows))
            drop(store, group, data(b"x"), "data/bad.parquet")
            objects = FailingObjects(store.offline.objects, step, FAILURES[failure]())
            with suppress(Died, StoreUnavailable):
                discovery_of(store, OfflineStore(objects), without_erased=no_rows if drop_all else all_rows).discover(group)
            with featurestore.open(home) as after:  # completes what was promised
                assert after.offline.objects.list("_batch/") == []
                fresh = OfflineStore(after.offline.objects)
                found = discovery_of(after, fresh, without_erased=no_rows if drop_all else all_rows).discover(group)
                assert found.remaining == 0
                assert rows_in_manifest(fresh, group) == ([] if drop_all else ["a", "b", "c"]), step
                state = fresh.manifest(group).current()
                assert sum(state.rows.values()) == (0 if drop_all else 3)
                known = {path: (file.state, file.rows) for path, file in state.foreign.items()}
                assert known == {
                    f"{HOUR}/part-0.parquet": (ForeignState.ADOPTED, 0 if drop_all else 3),
                    "data/bad.parquet": (ForeignState.QUARANTINED, 0),
                }
                assert discovery_of(after, fresh).discover(group) == Discovered((), (), (), 0)
            if not objects.failed:
                break
        assert step > (20 if not drop_all else 15), "too few steps to prove anything"


@pytest.mark.parametrize("seed", range(6))
def test_racing_and_killed_discoveries_adopt_each_row_once(tmp_path: Path, seed: int) -> None:
    home, schedule = tmp_path / "home", random.Random(seed)
    with featurestore.open(home) as store:
        group = create(store, features={"id": "String", "at": "String"})
        for number in range(4):
            rows = pa.table(
                {"id": [f"{number}-{row}" for row in range(3)], "at": [DAY_2] * 3}
            )  # one file: an actor is one thread
            drop(store, group, table(rows), f"data/{number}.parquet")
        drop(store, group, data(b"x"), "data/bad.parquet")
        wanted = sorted(f"{number}-{row}" for number in range(4) for row in range(3))
        objects = store.offline.objects

        def discovering(actor: Actor) -> None:
            with suppress(StoreUnavailable):
                discovery_of(store, OfflineStore(GatedObjects(objects, actor))).discover(group)

        def recovering(actor: Actor) -> None:
            gated = OfflineStore(GatedObjects(objects, actor))
            for journal in gated.batches.unfinished():
                with suppress(StoreUnavailable):
                    gated.batches.publish(journal, gated.manifest(group))
                    gated.batches.close(journal)

        def none_twice() -> None:
            found = rows_in_manifest(OfflineStore(objects), group)
            assert len(found) == len(set(found))

        run_schedule(schedule, [discovering] * 3 + [recovering], steps=900, kill_share=0.01, meanwhile=none_twice)
    with featurestore.open(home) as store:
        store.discover(group.name)
        assert rows_in_manifest(store.offline, group) == wanted
        assert sum(store.offline.manifest(group).current().rows.values()) == len(wanted)
        shown = states(store, group)
        assert State.MISSING not in shown.values()
        assert [shown[f"data/{number}.parquet"] for number in range(4)] == [State.ADOPTED] * 4
        assert store.offline.objects.list("_batch/") == []


def test_two_stores_discover_at_once(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with featurestore.open(home) as first, featurestore.open(home) as second:
        group = create(first)
        for number in range(12):
            drop(first, group, table(good(id=[f"a{number}", f"b{number}"])), f"data/{number}.parquet")
        barrier = threading.Barrier(2)
        found: list[Discovered] = []

        def discover(store: FeatureStore) -> None:
            barrier.wait()
            found.append(look(store, group))

        threads = [threading.Thread(target=discover, args=(store,)) for store in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 2
        names = [file.path for each in found for file in each.adopted]
        assert sorted(names) == sorted(f"data/{number}.parquet" for number in range(12))
        assert len(history(first, group)) == 24


def test_the_loser_of_a_race_leaves_nothing(store: FeatureStore) -> None:
    group = create(store)
    drop(store, group, table(good()))
    look(store, group)
    state = store.offline.manifest(group).current()
    journal = promised(store, group, state.foreign[f"{HOUR}/part-0.parquet"])
    assert look(store, group) == Discovered((), (), (), 0)
    assert store.offline.manifest(group).current() == state
    assert not any(store.offline.objects.get(file.target) for file in journal.files)
    assert store.offline.objects.list("_batch/") == []


def test_an_adoption_that_was_not_closed_is_not_taken_for_that_of_a_loser(store: FeatureStore) -> None:
    """Its journal stayed, and by now so many batches followed that the manifest has forgotten its id."""
    group = create(store)
    drop(store, group, table(good()))
    file = ForeignFile(f"{HOUR}/part-0.parquet", 1, ForeignState.ADOPTED, 1)
    journal = promised(store, group, file)
    manifest = store.offline.manifest(group)
    store.offline.batches.publish(journal, manifest)
    for number in range(BATCHES_KEPT_MAX):
        manifest.commit(lambda state, number=number: delta_after(state, batch=str(number)))
    assert journal.batch_id not in manifest.current().batches
    look(store, group)
    assert rows_in_manifest(store.offline, group) == ["z"]
    assert store.offline.objects.list("_batch/") == []


def promised(store: FeatureStore, group: FeatureGroup, file: ForeignFile) -> Journal:
    """What a process leaves that dies between promise and commit."""
    instant = pa.array([MOMENT], schema.INSTANT)
    no = pa.array([False])
    absent = [pa.nulls(1, kind) for kind in (pa.float64(), pa.int64(), pa.string())]
    columns = [pa.array(["z"]), pa.array([DAY_1]), *absent, instant, instant, no, instant, pa.nulls(1, schema.INSTANT), no]
    rows = pa.table(columns, schema=schema.table_schema(group.features))
    return store.offline.batches.stage_foreign(group, [(rows, np.zeros(1, np.int64))], file)


def test_a_cancelled_adoption_begins_again(store: FeatureStore) -> None:
    group = create(store)
    drop(store, group, table(good()))
    calls = count()

    def cancelling(_: FeatureGroup, rows: pa.Table) -> pa.Table:
        if next(calls) < 2:
            assert store.offline.batches.cancel(inactive_s=0) == 1
        return rows

    discovery = discovery_of(store, store.offline, without_erased=cancelling)
    assert len(discovery.discover(group).adopted) == 1
    assert next(calls) == 3
    assert rows_in_manifest(store.offline, group) == ["k1", "new"]
    assert store.offline.objects.list("_staging/") == []


def test_an_adoption_that_is_always_cancelled_gives_up(store: FeatureStore) -> None:
    group = create(store)
    drop(store, group, table(good()))

    def cancelling(_: FeatureGroup, rows: pa.Table) -> pa.Table:
        store.offline.batches.cancel(inactive_s=0)
        return rows

    with pytest.raises(StoreUnavailable, match="cancelled 10 times"):
        discovery_of(store, store.offline, without_erased=cancelling).discover(group)
    assert len(look(store, group).adopted) == 1


def test_a_file_that_changes_while_it_is_read_is_left_for_later(store: FeatureStore) -> None:
    group = create(store)
    file = drop(store, group, table(good()))

    def writing(_: FeatureGroup, rows: pa.Table) -> pa.Table:
        file.write_bytes(WHOLE + b"x")
        return rows

    assert discovery_of(store, store.offline, without_erased=writing).discover(group) == Discovered((), (), (), 0)
    assert store.offline.objects.list("_staging/") == []
    file.write_bytes(WHOLE)
    age(file)
    assert len(look(store, group).adopted) == 1


def test_what_another_process_has_adopted_meanwhile_is_not_quarantined(store: FeatureStore) -> None:
    group = create(store)
    first = drop(store, group, data(b"damaged"), "data/a.parquet")
    age(first, by_s=9999)
    drop(store, group, table(good()), "data/b.parquet")

    def racing(_: FeatureGroup, rows: pa.Table) -> pa.Table:
        first.write_bytes(parquet_bytes(good(id=["x", "y"])))
        age(first)
        assert len(look(store, group).adopted) == 2
        return rows

    offline = OfflineStore(store.offline.objects)
    assert discovery_of(store, offline, without_erased=racing).discover(group) == Discovered((), (), (), 0)
    assert rows_in_manifest(offline, group) == ["k1", "new", "x", "y"]
    assert {file.state for file in offline.manifest(group).current().foreign.values()} == {ForeignState.ADOPTED}


def test_a_file_that_vanishes_before_it_is_read(store: FeatureStore) -> None:
    group = create(store)
    age(drop(store, group, table(good()), "data/a.parquet"), by_s=9999)
    second = drop(store, group, table(good()), "data/b.parquet")

    def deleting(_: FeatureGroup, rows: pa.Table) -> pa.Table:
        second.unlink(missing_ok=True)
        return rows

    found = discovery_of(store, store.offline, without_erased=deleting).discover(group)
    assert ([file.path for file in found.adopted], found.quarantined) == (["data/a.parquet"], ())


def test_rows_of_erased_records_are_not_adopted(store: FeatureStore) -> None:
    group = create(store)
    ledger = store.offline.ledger
    ledger.append(group.group_id, ledger.subject(group.group_id, "k1"), int(datetime.now(UTC).timestamp() * 1e6))
    drop(store, group, table(good()))
    (file,) = look(store, group).adopted
    assert file.rows == 1
    assert rows_in_manifest(store.offline, group) == ["new"]
    assert sum(store.offline.manifest(group).current().rows.values()) == 1


class StaleObjects(LocalObjectStore):
    """Opens objects by copies that are made once, as a remote store does."""

    def paths(self, keys: Sequence[str]) -> Sequence[str]:
        copies = []
        for key in keys:
            copy = self.root / "_copies" / hashlib.sha256(key.encode()).hexdigest()
            if not copy.exists():
                copy.parent.mkdir(exist_ok=True)
                shutil.copy(self.root / key, copy)
            copies.append(str(copy))
        return copies


def test_a_copy_that_is_older_than_the_object_is_not_read(store: FeatureStore) -> None:
    group = create(store)
    offline = OfflineStore(StaleObjects(Path(store.settings.offline_location.removeprefix("file://"))))
    discovery = discovery_of(store, offline)
    file = drop(store, group, data(b"damaged"))
    assert len(discovery.discover(group).quarantined) == 1
    file.write_bytes(WHOLE)
    age(file)
    assert len(discovery.discover(group).adopted) == 1
    assert rows_in_manifest(store.offline, group) == ["k1", "new"]


ON_S3 = ["plain.parquet", "with space.parquet", "naïve%20.parquet", "q?x=1&y#z.parquet", "year=2024/star*[b].parquet"]


def test_on_s3(s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, s3_server.url)
    with FeatureStore(Settings.load({}, home=tmp_path / "home", offline_url=f"s3://{s3_bucket}/prefix")) as store:
        group = create(store)
        folder = f"prefix/{layout.group_root(group)}/data/"
        client = boto3.client("s3", endpoint_url=s3_server.url)
        for key in ON_S3:
            client.put_object(Bucket=s3_bucket, Key=folder + key, Body=parquet_bytes(good(id=[key, key])))
        client.put_object(Bucket=s3_bucket, Key=f"{folder}bad.parquet", Body=b"damaged file")
        client.put_object(Bucket=s3_bucket, Key=f"{folder}folder/", Body=b"")
        assert look(store, group) == Discovered((), (), (), 0)
        found = store.discover(group.name, settled_s=0)[group.name]
        assert sorted(file.path for file in found.adopted) == sorted(f"data/{key}" for key in ON_S3)
        assert [file.path for file in found.quarantined] == ["data/bad.parquet"]
        client.put_object(Bucket=s3_bucket, Key=f"{folder}bad.parquet", Body=WHOLE)
        client.delete_object(Bucket=s3_bucket, Key=f"{folder}plain.parquet")
        client.close()
        found = store.discover(group.name, settled_s=0)[group.name]
        assert ([file.path for file in found.adopted], found.gone) == (["data/bad.parquet"], ("data/plain.parquet",))
        assert store.discover(group.name, settled_s=0)[group.name] == Discovered((), (), (), 0)
        assert sorted(row["id"] for row in history(store, group)) == sorted([*ON_S3, *ON_S3, "k1", "new"])


def test_damaged_at_random(store: FeatureStore) -> None:
    """Whatever happened to the bytes, discovery and queries go on; rows that are adopted can be read."""
    generator = random.Random(7)
    group = create(store)
    rows = good(id=[f"r{row}" for row in range(200)], at=[DAY_2] * 200, amount=[0.5] * 200, count=range(200), note=["n"] * 200)
    whole = parquet_bytes(rows)
    for number in range(150):
        content = bytearray(whole)
        for _ in range(generator.choice([1, 1, 2, 20])):
            content[generator.randrange(len(content))] = generator.randrange(256)
        drop(store, group, data(bytes(content)), f"data/{number}.parquet")
    found = look(store, group)
    assert len(found.adopted) + len(found.quarantined) == 150
    assert len(found.quarantined) > 50
    count_of = store.sql(f'SELECT count(*) AS n, count(note) AS m FROM history."{group.name}"').to_pylist()
    assert count_of[0]["n"] == sum(file.rows for file in found.adopted)
