"""Compaction: many small files become few large ones, sorted by record identifier and event time.

The rows stay as they are, write times included, so every answer stays the same, as of every time. Merged files lie in `opt/`,
which only readers of the manifest use; the originals in `data/` stay for tools that read the layout by path, unless the
owner has chosen to let them go (`cleaning`).

Files are merged with neighbours in event time, so that a large table stays prunable by time, and with files of their own size,
so that a row is rewritten only a few times in its life.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import duckdb
import pyarrow.parquet as pq

from featurestore.engine import Engine, failed, identifier, literal
from featurestore.errors import FileVanished, StoreCorrupt
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.manifest import Delta, FileEntry, Origin, Version, delta_after
from featurestore.offline.relation import files_relation
from featurestore.offline.table import OfflineStore
from featurestore.progress import Progress, silent

FILE_BYTES_TARGET: Final = 128 << 20
"""Size from which a file is not merged any more; the merged ones are about as large."""
SETTLED_SHARE: Final = 0.6
"""Files of at least this share of the target are left alone."""
SIZE_CLASS_BYTES: Final = 256 << 10
"""Files up to this size are the smallest class; each further class is SIZE_CLASS_STEP times larger."""
SIZE_CLASS_STEP: Final = 8
MERGE_FILES_MIN: Final = 8
"""Files of one size class that are worth a merge in the background."""
MERGE_FILES_MAX: Final = 2_000
"""Files of one merge; bounds open files and the length of one statement."""
ROW_GROUP_ROWS: Final = 122_880
"""As many as one thread of the query engine takes at a time: a scan keeps all threads busy from the second group on, and a
point lookup in the sorted file reads one group."""
PLANS_MAX: Final = 100
"""Rounds of one call; every round that loses a race against another compaction or an erase plans again."""
COMMIT_DEADLINE_S: Final = 3000.0
"""A merge that takes longer than this gives up: cleaning may have taken its output for left over."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did.

    Attributes:
        version: of the manifest afterwards.
        merged, written: files that were replaced, and by how many.
        files: live files afterwards.
        rows, bytes: of the files written.
    """

    version: int
    merged: int
    written: int
    files: int
    rows: int
    bytes: int


@dataclass(slots=True)
class _Totals:
    merged: int = 0
    written: int = 0
    rows: int = 0
    bytes: int = 0


class Compactor:
    """Merges files of one offline store. Any number may run at once, anywhere: of two that merge the same files one wins."""

    def __init__(self, offline: OfflineStore, engine: Engine, *, bytes_target: int = FILE_BYTES_TARGET) -> None:
        self._offline = offline
        self._engine = engine
        self._bytes_target = bytes_target

    def compact(self, group: FeatureGroup, *, full: bool = False, progress: Progress = silent) -> Compacted:
        """Merge what is worth it; with `full` everything that is smaller than the target.

        Raises:
            StoreUnavailable, StoreCorrupt, QueryFailed: what was committed stays; nothing else has changed.
        """
        manifest = self._offline.manifest(group)
        totals = _Totals()
        for _ in range(PLANS_MAX):
            state = manifest.current()
            merges = plan_merges(state.files, self._bytes_target, full=full)
            if not merges:
                break
            bytes_total, bytes_done = sum(entry.bytes for merge in merges for entry in merge), 0
            for merge in merges:
                progress("bytes merged", bytes_done, bytes_total)
                self._merge(group, merge, totals)
                bytes_done += sum(entry.bytes for entry in merge)
            progress("bytes merged", bytes_total, bytes_total)
        state = manifest.current()
        return Compacted(state.version, totals.merged, totals.written, len(state.files), totals.rows, totals.bytes)

    def _merge(self, group: FeatureGroup, merge: Sequence[FileEntry], totals: _Totals) -> None:
        """Replace files by one that holds their rows; does nothing if somebody else has replaced one of them meanwhile."""
        started_s = time.monotonic()
        root = layout.group_root(group)
        manifest = self._offline.manifest(group)
        paths = [entry.path for entry in merge]
        latest_us = max(entry.event_time_us_max for entry in merge)
        name = layout.token(root, layout.FileKind.COMPACTION, uuid.uuid4().hex)
        key = layout.opt_key(root, latest_us, name)
        with self._engine.folder() as folder:
            output = folder / "merged.parquet"
            try:
                self._write(group, self._offline.paths(group, merge), output)
            except FileVanished:
                if not manifest.current().holds(paths):
                    return
                raise
            entry = _entry(merge, key.removeprefix(f"{root}/"), output)
            self._offline.objects.put_file_if_absent(key, output)

        def plan(state: Version) -> Delta | None:
            late = time.monotonic() - started_s > COMMIT_DEADLINE_S
            return None if late or not state.holds(paths) else replacement(state, paths, [entry])

        if manifest.commit(plan).holds([entry.path]):
            totals.merged += len(merge)
            totals.written += 1
            totals.rows += entry.rows
            totals.bytes += entry.bytes
        else:
            self._offline.objects.delete(key)

    def _write(self, group: FeatureGroup, paths: Sequence[str], output: Path) -> None:
        columns = ", ".join(identifier(name) for name in (*group.feature_names, *schema.SYSTEM_NAMES))
        order = ", ".join(
            identifier(name) for name in (group.record_identifier, schema.EVENT_TIME, schema.API_TIME, schema.WRITE_TIME)
        )
        session = self._engine.session()
        try:
            session.execute(
                f"COPY (SELECT {columns} FROM {files_relation(group, paths)} ORDER BY {order}) TO {literal(str(output))} "
                f"(FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {ROW_GROUP_ROWS})"
            )
        except duckdb.Error as error:
            if not all(Path(path).exists() for path in paths):
                raise FileVanished("compact") from error
            raise failed(error) from error
        finally:
            session.close()


def plan_merges(files: Sequence[FileEntry], bytes_target: int, *, full: bool) -> list[list[FileEntry]]:
    """Which files to merge into one each. Adopted rows stay apart from our own, whose API times are unique.

    With `full` every two files that fit into one are worth it; otherwise MERGE_FILES_MIN of one size class are, or as many as
    fill a file.
    """
    merges: list[list[FileEntry]] = []
    for foreign in (False, True):
        small = [
            entry
            for entry in files
            if bool(entry.foreign_rows) == foreign and entry.bytes < bytes_target * SETTLED_SHARE and entry.rows
        ]
        classes: dict[int, list[FileEntry]] = {}
        for entry in small:
            classes.setdefault(0 if full else _size_class(entry.bytes), []).append(entry)
        for members in classes.values():
            merges.extend(
                run
                for run in _runs(members, bytes_target)
                if len(run) >= (2 if full else MERGE_FILES_MIN)
                or (len(run) > 1 and sum(entry.bytes for entry in run) >= bytes_target * SETTLED_SHARE)
            )
    return merges


def replacement(state: Version, paths: Sequence[str], by: Sequence[FileEntry]) -> Delta:
    """The version in which files are replaced by others with the same rows.

    What lay in `opt/` is garbage now; what lies in `data/` is still what readers by path see.
    """
    return delta_after(state, add=by, remove=paths, trash=[path for path in paths if path.startswith("opt/")])


def _size_class(size: int) -> int:
    number = 0
    while size > SIZE_CLASS_BYTES:
        size //= SIZE_CLASS_STEP
        number += 1
    return number


def _runs(files: Sequence[FileEntry], bytes_target: int) -> list[list[FileEntry]]:
    """Files in the order of their event times, cut where the sum would pass the target."""
    runs: list[list[FileEntry]] = []
    room = 0
    for entry in sorted(files, key=lambda entry: (entry.event_time_us_min, entry.event_time_us_max, entry.path)):
        if not runs or entry.bytes > room or len(runs[-1]) >= MERGE_FILES_MAX:
            runs.append([])
            room = bytes_target
        runs[-1].append(entry)
        room -= entry.bytes
    return runs


def _entry(merge: Sequence[FileEntry], path: str, output: Path) -> FileEntry:
    """The entry of the merged file: the sums and bounds of its parts, checked against what was written."""
    rows = pq.read_metadata(output).num_rows
    if rows != (expected := sum(entry.rows for entry in merge)):
        raise StoreCorrupt(path, f"merged from files of {expected} rows by the manifest, but {rows} were found in them")
    return FileEntry(
        path,
        output.stat().st_size,
        rows,
        min(entry.event_time_us_min for entry in merge),
        max(entry.event_time_us_max for entry in merge),
        min(entry.write_time_us_min for entry in merge),
        max(entry.write_time_us_max for entry in merge),
        min(entry.api_time_us_min for entry in merge),
        max(entry.api_time_us_max for entry in merge),
        max(entry.schema_version for entry in merge),
        Origin.COMPACTION,
        tombstones=sum(entry.tombstones for entry in merge),
        hard_deletes=sum(entry.hard_deletes for entry in merge),
        expiring=sum(entry.expiring for entry in merge),
        foreign_rows=sum(entry.foreign_rows for entry in merge),
    )
