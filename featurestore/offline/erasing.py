"""Erasing records from files: every file that holds one is written anew without it, then deleted.

That includes merged files and the originals behind them, files of other tools, adopted or not, and the quarantine of the
writer. Nothing waits for a grace period: a query that loses its files plans again.

The names of the new files follow from the erasure and the old name, so an erasure that was interrupted repeats its work.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.errors import FileVanished, StoreCorrupt, StoreUnavailable
from featurestore.model.codec import decode_change
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.manifest import Delta, FileEntry, ForeignState, Origin, Version, delta_after
from featurestore.offline.subjects import Int64s, erased_rows, rows_of, typed_key
from featurestore.offline.table import OfflineStore
from featurestore.progress import Progress, silent

PASSES_MAX: Final = 20
"""Passes over the files of a group; each finds what was written during the one before."""


class Rewritten(msgspec.Struct, frozen=True):
    """One file that held erased rows.

    Attributes:
        path: below the root of the offline store; it is deleted.
        into: the file with its other rows; None if it had none.
        rows: erased.
    """

    path: str
    into: str | None
    rows: int


@dataclass(frozen=True, slots=True)
class Subjects:
    """The records to erase from one group.

    Attributes:
        number: of the erasure, names the new files.
        until_us: record key to the API time up to which its changes are erased.
    """

    number: int
    until_us: Mapping[str, int]


@dataclass(slots=True)
class Rewriting:
    """What became of the files.

    Attributes:
        unreadable: files of other tools that can't be read, and so can't be searched.
    """

    files: list[Rewritten]
    unreadable: list[str]


class FileEraser:
    """Erases records from the files of one offline store."""

    def __init__(self, offline: OfflineStore, shards: int) -> None:
        self._offline = offline
        self._objects = offline.objects
        self._shards = shards

    def erase(self, group: FeatureGroup, subjects: Subjects, *, progress: Progress = silent) -> Rewriting:
        """Rewrite every file of a group that holds one of the records. Idempotent.

        What the records' changes were written to before must be in the table: the log drained, promised batches completed.

        Raises:
            StoreUnavailable, StoreCorrupt: what was rewritten stays so; call again.
        """
        result = Rewriting([], [])
        clean: set[str] = set()
        for _ in range(PASSES_MAX):
            if self._live_files(group, subjects, clean, result, progress):
                # No live file holds a record any more, and none will: a merge that still does has an input that is gone.
                self._other_files(group, subjects, clean, result)
                self._quarantined_changes(group, subjects, result)
                return result
        raise StoreUnavailable("erase", f"the files of {group.name!r} still change after {PASSES_MAX} passes")

    def without_erased(self, group: FeatureGroup, table: pa.Table) -> pa.Table:
        """Rows that another tool has written (in the form of `schema.table_schema`) without those of erased records.

        Such rows may have lain anywhere for any time, so a row goes if its event time or its API time is not after the erasure.
        """
        times_us = _times_us(table, (schema.EVENT_TIME, schema.API_TIME))
        erased = erased_rows(self._offline.ledger, group, table[group.record_identifier], times_us)
        return table if erased is None else table.filter(pa.array(~erased))

    def _live_files(
        self, group: FeatureGroup, subjects: Subjects, clean: set[str], result: Rewriting, progress: Progress
    ) -> bool:
        """One pass; whether it found that no live file of one version of the table holds a record."""
        root = layout.group_root(group)
        entries = [entry for entry in self._offline.manifest(group).current().files if entry.path not in clean]
        for position, entry in enumerate(entries):
            progress("files searched", position, len(entries))
            try:
                found = self._search(group, f"{root}/{entry.path}", subjects, foreign=bool(entry.foreign_rows))
            except FileVanished:
                continue  # replaced meanwhile: the next pass finds its successor, and knows if it was not
            if found is None:
                clean.add(entry.path)
                continue
            self._replace_live(group, entry, subjects, *found, result)
        progress("files searched", len(entries), len(entries))
        return all(entry.path in clean for entry in entries)

    def _replace_live(
        self,
        group: FeatureGroup,
        entry: FileEntry,
        subjects: Subjects,
        kept: pa.Table,
        erased: Mapping[int, int],
        result: Rewriting,
    ) -> None:
        root = layout.group_root(group)
        successor = self._write(group, entry.path, kept, subjects)
        add = []
        if successor is not None:
            key, size = successor
            fresh = schema.entry_of(kept, key.removeprefix(f"{root}/"), size, entry.schema_version, Origin.ERASURE)
            add = [msgspec.structs.replace(fresh, foreign_rows=kept.num_rows if entry.foreign_rows else 0)]

        committed = False

        def plan(state: Version) -> Delta | None:
            nonlocal committed
            committed = state.holds([entry.path])
            if not committed:
                return None
            rows = {shard: -count for shard, count in erased.items()}
            return delta_after(state, add=add, remove=[entry.path], rows=rows)

        self._offline.manifest(group).commit(plan)
        if committed:
            self._objects.delete(f"{root}/{entry.path}")
            into = f"{root}/{add[0].path}" if add else None
            result.files.append(Rewritten(f"{root}/{entry.path}", into, sum(erased.values())))
        elif add and not self._offline.manifest(group).current().holds([add[0].path]):
            # A merge was faster. Its output is found by the next pass, and the old file with those that are not live.
            self._objects.delete(f"{root}/{add[0].path}")

    def _other_files(self, group: FeatureGroup, subjects: Subjects, clean: set[str], result: Rewriting) -> None:
        """Files that are not live: originals of merged files, garbage, outputs without a commit, files of other tools."""
        root = layout.group_root(group)
        manifest = self._offline.manifest(group)
        listed = [*self._objects.list(f"{root}/data/"), *self._objects.list(f"{root}/opt/")]
        state = manifest.current()
        live = {entry.path for entry in state.files}
        unread = {
            path
            for key in listed
            if layout.kind_of(root, path := key.removeprefix(f"{root}/")) is None
            and ((known := state.foreign.get(path)) is None or known.state is not ForeignState.ADOPTED)
        }
        gone: list[str] = []
        for key in listed:
            path = key.removeprefix(f"{root}/")
            if path in live or path in clean:
                continue
            ours = layout.kind_of(root, path) is not None
            try:
                found = self._search(group, key, subjects, foreign=not ours, everything=not ours)
            except FileVanished:
                continue
            except (pa.ArrowException, OSError, KeyError, StoreCorrupt):
                result.unreadable.append(_shown(key))
                clean.add(path)
                continue
            if found is None:
                clean.add(path)
                continue
            kept, erased = found
            successor = None if path.startswith("opt/") else self._write(group, path, kept, subjects, unread=path in unread)
            self._objects.delete(key)
            gone.append(path)
            into = None if successor is None else _shown(successor[0])
            result.files.append(Rewritten(_shown(key), into, sum(erased.values())))

        def forget(state: Version) -> Delta | None:
            foreign = [path for path in gone if path in state.foreign]
            swept = [item.path for item in state.garbage if item.path in gone]
            return delta_after(state, forget_foreign=foreign, swept=swept) if foreign or swept else None

        manifest.commit(forget)

    def _quarantined_changes(self, group: FeatureGroup, subjects: Subjects, result: Rewriting) -> None:
        for key in self._objects.list("_writer/"):
            if "/quarantine-" not in key:
                continue
            (path,) = self._objects.paths([key])
            table = pq.read_table(path, partitioning=None)
            (times_us,) = _times_us(table, (schema.API_TIME,))
            entries = zip(table["body"].to_pylist(), times_us.tolist(), strict=True)
            keep = [not _is_erased(body, api_time_us, group, subjects) for body, api_time_us in entries]
            if all(keep):
                continue
            into = None
            if any(keep):
                into = f"{key.removesuffix('.parquet')}-e{subjects.number}.parquet"
                self._objects.put_if_absent(into, schema.parquet_bytes(table.filter(pa.array(keep))))
            self._objects.delete(key)
            result.files.append(Rewritten(key, into, keep.count(False)))

    def _search(
        self, group: FeatureGroup, key: str, subjects: Subjects, *, foreign: bool, everything: bool = False
    ) -> tuple[pa.Table, dict[int, int]] | None:
        """The rows of a file without the erased ones, and those per shard; None if it holds none of them.

        Args:
            everything: erase the records whatever their times.

        Raises:
            FileVanished
        """
        (path,) = self._objects.paths([key])
        try:
            # By the bytes of its path, as other tools may give names that are no UTF-8.
            with pa.OSFile(os.fsencode(path)) as stream, pq.ParquetFile(stream) as file:
                if not _may_hold(file, group, subjects):
                    return None
                table = file.read()
        except FileNotFoundError as error:
            raise FileVanished("erase") from error
        if table.num_rows == 0:
            return None
        times = () if everything else (schema.API_TIME, schema.WRITE_TIME, *((schema.EVENT_TIME,) if foreign else ()))
        matches = rows_of(group, table[group.record_identifier], subjects.until_us, _times_us(table, times))
        if not matches.any():
            return None
        erased = schema.rows_by_shard(table[group.record_identifier].filter(pa.array(matches)), self._shards)
        return table.filter(pa.array(~matches)), erased

    def _write(
        self, group: FeatureGroup, path: str, kept: pa.Table, subjects: Subjects, *, unread: bool = False
    ) -> tuple[str, int] | None:
        """Write the rows that stay, beside the old file; returns key and size, or None if there are none.

        Args:
            unread: the old file is of another tool and its rows are not in the table; so the new one is still to be looked at.
        """
        if kept.num_rows == 0:
            return None
        root = layout.group_root(group)
        if unread:
            key = f"{root}/{path.removesuffix('.parquet')}-e{subjects.number}.parquet"
            data = schema.parquet_bytes(kept)
            self._objects.put_if_absent(key, data)
            return key, len(data)
        name = layout.token(root, layout.FileKind.ERASURE, subjects.number, path)
        if path.startswith("opt/"):
            key = layout.opt_key(root, _latest_us(kept), name)
        elif schema.EVENT_TIME in kept.column_names:
            key = layout.data_key(root, _latest_us(kept), name)
        else:
            folder = path.rpartition("/")[0]
            key = f"{root}/{folder}/{layout.time_stamp(time.time_ns() // 1000)}_{name}.parquet"
        data = schema.parquet_bytes(kept, {"erasure": subjects.number})
        self._objects.put_if_absent(key, data)
        return key, len(data)


def _times_us(table: pa.Table, names: Sequence[str]) -> list[Int64s]:
    """Time columns in microseconds since 1970; a missing time counts as the last there can be."""
    last = np.iinfo(np.int64).max
    return [pc.fill_null(table[name].cast(schema.INSTANT).cast(pa.int64()), last).to_numpy() for name in names]


def _may_hold(file: pq.ParquetFile, group: FeatureGroup, subjects: Subjects) -> bool:
    """Whether the statistics of a file leave room for one of the records."""
    names = [file.metadata.schema.column(index).path for index in range(file.metadata.num_columns)]
    column = names.index(group.record_identifier) if group.record_identifier in names else None
    if column is None:
        raise KeyError(group.record_identifier)
    keys: list[Any] = [typed_key(group, key) for key in subjects.until_us]
    for number in range(file.metadata.num_row_groups):
        statistics = file.metadata.row_group(number).column(column).statistics
        if statistics is None or not statistics.has_min_max:
            return True
        least, greatest = statistics.min, statistics.max
        if any(type(least) is not type(key) or least <= key <= greatest for key in keys):
            return True
    return False


def _is_erased(body: bytes, api_time_us: int, group: FeatureGroup, subjects: Subjects) -> bool:
    """Whether a log entry is an erased change of one of the records, or, where that can't be told, contains an identifier."""
    try:
        change = decode_change(body)
    except StoreCorrupt:
        return any(key.encode() in body for key in subjects.until_us)
    return change.group_id == group.group_id and api_time_us <= subjects.until_us.get(change.record_id, -1)


def _shown(key: str) -> str:
    """A key as text, also if the name it comes from is no UTF-8."""
    return os.fsencode(key).decode(errors="backslashreplace")


def _latest_us(table: pa.Table) -> int:
    latest: int = pc.max(table[schema.EVENT_TIME].cast(schema.INSTANT).cast(pa.int64())).as_py()
    return latest
