"""The offline writer: from the change log to data files, exactly once.

Per shard there is a chain of steps, each a range of log positions:

    intent   put-if-absent: from, to, write time, schema versions. Decides what will be written before anything is.
    files    create-only: names and bytes are functions of the intent, so whoever repeats the work makes the same files.
    done     put-if-absent: the files with their statistics. Closes the range.
    commit   the files enter the manifests of their groups, together with the position reached.
    trim     the log forgets the range.

A writer that dies anywhere is continued by the next one from what it finds; writers that race do the same work twice with
one result. There is no lease and no coordinator, and the position lives with the table, not with the log's reader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import numpy as np

from featurestore.changelog.protocol import ChangeSource
from featurestore.errors import StoreCorrupt
from featurestore.model.change import OFFLINE, LoggedChange
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.manifest import Delta, FileEntry, Manifest, Origin, Version, delta_after
from featurestore.offline.protocol import ObjectStore

FORMAT_VERSION: Final = 1
CHAIN_KEPT: Final = 8
"""Closed steps of a shard that stay behind the newest; older ones are deleted."""


class Intent(msgspec.Struct, frozen=True):
    """What a step will write.

    Attributes:
        offset_first, offset_next: the range of log positions, end exclusive.
        write_time_us: of the change at `offset_first`; the following ones get one microsecond more each.
        schema_versions: per group id (as text) the schema version of its files.
    """

    shard: int
    offset_first: int
    offset_next: int
    write_time_us: int
    schema_versions: dict[str, int]
    format: int = FORMAT_VERSION


class Done(msgspec.Struct, frozen=True):
    """What a step has written: per group id (as text) its files. Groups without an offline store have no entry."""

    shard: int
    offset_first: int
    offset_next: int
    write_time_us_last: int
    files: dict[str, list[FileEntry]]
    format: int = FORMAT_VERSION


_T = TypeVar("_T", Intent, Done)


@dataclass(frozen=True, slots=True)
class Drained:
    """What one `drain` did."""

    changes: int = 0
    files: int = 0


class OfflineWriter:
    """Moves changes from a change source into the offline tables. Any number may run at once, anywhere.

    Args:
        group_by_id: the registry's `get_by_id`.
        manifest_of: the manifest of a group.
        changes_max: changes of one step.
    """

    def __init__(
        self,
        source: ChangeSource,
        objects: ObjectStore,
        group_by_id: Callable[[int], FeatureGroup],
        manifest_of: Callable[[FeatureGroup], Manifest],
        *,
        changes_max: int,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._source = source
        self._objects = objects
        self._group_by_id = group_by_id
        self._manifest_of = manifest_of
        self._changes_max = changes_max
        self._clock_us = clock_us
        self._settled: dict[int, int] = {}

    def drain(self) -> Drained:
        """Write every change that was acknowledged before this call; returns when they are in the manifests.

        Raises:
            StoreUnavailable, StoreCorrupt: what was finished stays finished; call again.
        """
        changes = files = 0
        for shard, end in self._source.ends().items():
            offset_stuck = 0
            while True:
                last = self._settle(shard)
                offset_first = 1 if last is None else last.offset_next
                if offset_first >= end:
                    break
                if offset_first == offset_stuck:
                    raise StoreCorrupt(f"change log shard {shard}", f"the change at position {offset_first} is missing")
                done = self._step(shard, offset_first, 0 if last is None else last.write_time_us_last)
                if done is None:
                    # Another writer trimmed the range; it closed it before, so the next look finds a later position.
                    offset_stuck = offset_first
                else:
                    changes += done.offset_next - done.offset_first
                    files += sum(len(entries) for entries in done.files.values())
        return Drained(changes, files)

    def behind(self) -> int:
        """How many changes wait in the log."""
        return sum(
            max(0, end - (last.offset_next if (last := self._last_done(shard)) is not None else 1))
            for shard, end in self._source.ends().items()
        )

    def _settle(self, shard: int) -> Done | None:
        """The newest closed step of a shard, after making sure that it is committed and trimmed.

        A crash between `done` and what follows leaves exactly one step to settle, since no step begins before the one
        before it is settled.
        """
        last = self._last_done(shard)
        if last is None or self._settled.get(shard) == last.offset_next:
            return last
        for group_id, files in last.files.items():
            self._manifest_of(self._group_by_id(int(group_id))).commit(_plan(last, files))
        self._source.trim(shard, last.offset_next)
        self._forget_chain(shard)
        self._settled[shard] = last.offset_next
        return last

    def _last_done(self, shard: int) -> Done | None:
        keys = [key for key in self._objects.list(layout.shard_folder(shard)) if "/done-" in key]
        for key in reversed(keys):
            data = self._objects.get(key)
            if data is not None:
                return _decode(data, Done, key)
        return None

    def _step(self, shard: int, offset_first: int, write_time_us_last: int) -> Done | None:
        """One step from `offset_first`; None if another writer has finished that range meanwhile."""
        intent = self._intent(shard, offset_first, write_time_us_last)
        if intent is None:
            return None
        changes = self._read(intent)
        if changes is None:
            return None
        files = self._write_files(intent, changes)
        done = Done(
            shard,
            intent.offset_first,
            intent.offset_next,
            intent.write_time_us + intent.offset_next - intent.offset_first - 1,
            files,
        )
        self._objects.put_if_absent(layout.done_key(shard, offset_first), msgspec.json.encode(done))
        self._settle(shard)
        return done

    def _intent(self, shard: int, offset_first: int, write_time_us_last: int) -> Intent | None:
        """Our intent for the range that begins at `offset_first`, or the one that somebody made before us."""
        key = layout.intent_key(shard, offset_first)
        existing = self._objects.get(key)
        if existing is None:
            changes = self._source.read(shard, offset_first, self._changes_max)
            if not changes or changes[0].stamp.seq != offset_first:
                return None
            groups = {item.change.group_id for item in changes if item.change.targets & OFFLINE}
            ours = Intent(
                shard,
                offset_first,
                changes[-1].stamp.seq + 1,
                max(self._clock_us(), write_time_us_last + 1),
                {str(group_id): self._group_by_id(group_id).schema_version for group_id in sorted(groups)},
            )
            if self._objects.put_if_absent(key, msgspec.json.encode(ours)):
                return ours
            existing = self._objects.get(key)
        return None if existing is None else _decode(existing, Intent, key)

    def _read(self, intent: Intent) -> Sequence[LoggedChange] | None:
        count = intent.offset_next - intent.offset_first
        changes = self._source.read(intent.shard, intent.offset_first, count)
        if len(changes) == count and changes[0].stamp.seq == intent.offset_first:
            return changes
        last = self._last_done(intent.shard)
        if last is not None and last.offset_next >= intent.offset_next:
            return None
        raise StoreCorrupt(
            f"change log shard {intent.shard}",
            f"changes {intent.offset_first} to {intent.offset_next - 1} are planned but {len(changes)} of {count} remain",
        )

    def _write_files(self, intent: Intent, changes: Sequence[LoggedChange]) -> dict[str, list[FileEntry]]:
        by_group: dict[int, list[LoggedChange]] = {}
        for item in changes:
            if item.change.targets & OFFLINE:
                by_group.setdefault(item.change.group_id, []).append(item)
        return {
            str(group_id): self._write_group(intent, self._group_by_id(group_id), items)
            for group_id, items in sorted(by_group.items())
        }

    def _write_group(self, intent: Intent, group: FeatureGroup, changes: Sequence[LoggedChange]) -> list[FileEntry]:
        version = intent.schema_versions[str(group.group_id)]
        write_times_us = [intent.write_time_us + item.stamp.seq - intent.offset_first for item in changes]
        table = schema.table_of_changes(group, version, changes, write_times_us)
        event_times_us = np.array([item.change.event_time_us for item in changes], np.int64)
        root = layout.group_root(group)
        entries = []
        for part, rows in enumerate(layout.file_groups(event_times_us)):
            name = layout.token(
                root, layout.FileKind.STREAM, group.group_id, intent.shard, intent.offset_first, intent.offset_next, part
            )
            key = layout.data_key(root, int(event_times_us[rows].max()), name)
            piece = schema.sorted_rows(group, table.take(rows))
            data = schema.parquet_bytes(piece)
            self._objects.put_if_absent(key, data)
            entries.append(schema.entry_of(piece, key.removeprefix(f"{root}/"), len(data), version, Origin.STREAM))
        return entries

    def _forget_chain(self, shard: int) -> None:
        keys = self._objects.list(layout.shard_folder(shard))
        for kind in ("/intent-", "/done-"):
            for key in [key for key in keys if kind in key][:-CHAIN_KEPT]:
                self._objects.delete(key)


def _plan(done: Done, files: Sequence[FileEntry]) -> Callable[[Version], Delta | None]:
    def plan(state: Version) -> Delta | None:
        if state.offset_next(done.shard) >= done.offset_next:
            return None
        return delta_after(state, add=files, positions={done.shard: done.offset_next})

    return plan


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        value = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(what, str(error)) from error
    if value.format != FORMAT_VERSION:
        raise StoreCorrupt(what, f"format {value.format}, this release reads {FORMAT_VERSION}")
    return value
