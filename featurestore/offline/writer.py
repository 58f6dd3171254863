"""The offline writer: from the change log to data files, exactly once.

Per shard there is a chain of steps, each a range of log offsets:

    intent   put-if-absent: from, to, write time, schema versions. Decides what will be written before anything is.
    files    create-only: names and bytes are functions of the intent, so whoever repeats the work makes the same files.
    done     put-if-absent: the files with their statistics. Closes the range.
    commit   the files enter the manifests of their groups, together with the offset reached.
    trim     the log forgets the range.

A writer that dies anywhere is continued by the next one from what it finds; writers that race do the same work twice with
one result. There is no lease and no coordinator, and the position lives with the table, not with the log's reader.

A log may deliver changes again: those whose `seq` is not above the last one written are passed over. What can't become a row
(bytes that do not decode, a group that does not exist) goes to a quarantine file of its step, and the chain goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import pyarrow as pa

from featurestore.changelog.protocol import ChangeSource
from featurestore.errors import FeatureGroupNotFound, StoreCorrupt
from featurestore.model.change import OFFLINE, LogEntry, LoggedChange
from featurestore.model.codec import encode_change
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.manifest import Delta, FileEntry, Origin, Version, delta_after
from featurestore.offline.table import OfflineStore

FORMAT_VERSION: Final = 2
CHAIN_KEPT: Final = 8
"""Closed steps of a shard that stay behind the newest; older ones are deleted."""

QUARANTINE_SCHEMA: Final = pa.schema(
    [
        ("offset", pa.int64()),
        ("seq", pa.int64()),
        ("group_id", pa.int64()),
        (schema.API_TIME, schema.INSTANT),
        ("reason", pa.string()),
        ("body", pa.binary()),
    ]
)


class Intent(msgspec.Struct, frozen=True):
    """What a step will write.

    Attributes:
        offset_first, offset_next: the range of log offsets, end exclusive.
        entries: log entries in the range.
        seq_last: of the change before; those up to it were delivered before.
        write_time_us: of the entry at `offset_first`; one microsecond more per offset.
        schema_versions: per group id (as text) the schema version of its files; groups that did not exist are missing.
        erasures: entries of the ledger of erasures that hold for the step.
    """

    shard: int
    offset_first: int
    offset_next: int
    entries: int
    seq_last: int
    write_time_us: int
    schema_versions: dict[str, int]
    erasures: int
    format: int = FORMAT_VERSION


class GroupFiles(msgspec.Struct, frozen=True):
    """What a step did for one group.

    Attributes:
        changes: fresh changes of the group, erased ones included.
    """

    changes: int
    files: list[FileEntry]


class Done(msgspec.Struct, frozen=True):
    """What a step has written.

    Attributes:
        seq_last: of the newest change in the range or before it.
        groups: per group id (as text).
        quarantined: entries that could not become rows.
    """

    shard: int
    offset_first: int
    offset_next: int
    seq_last: int
    write_time_us_last: int
    groups: dict[str, GroupFiles]
    quarantined: int = 0
    format: int = FORMAT_VERSION


UNREADABLE: Final = (StoreCorrupt, pa.ArrowException, ValueError, TypeError, ArithmeticError)
"""What values that do not fit their features raise on the way to a typed column."""

_T = TypeVar("_T", Intent, Done)


@dataclass(frozen=True, slots=True)
class Drained:
    """What one `drain` did. `changes` counts log entries."""

    changes: int = 0
    files: int = 0
    quarantined: int = 0


@dataclass(frozen=True, slots=True)
class _Poison:
    """A row of a quarantine file."""

    offset: int
    seq: int | None
    group_id: int | None
    api_time_us: int | None
    reason: str
    body: bytes


class OfflineWriter:
    """Moves changes from a change source into the offline tables. Any number may run at once, anywhere.

    Args:
        group_by_id: the registry's `get_by_id`.
        changes_max: log entries of one step.
    """

    def __init__(
        self,
        source: ChangeSource,
        offline: OfflineStore,
        group_by_id: Callable[[int], FeatureGroup],
        *,
        changes_max: int,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._source = source
        self._offline = offline
        self._objects = offline.objects
        self._group_by_id = group_by_id
        self._changes_max = changes_max
        self._clock_us = clock_us
        self._settled: dict[int, int] = {}

    def drain(self) -> Drained:
        """Write every change that was acknowledged before this call; returns when they are in the manifests.

        Raises:
            StoreUnavailable, StoreCorrupt: what was finished stays finished; call again.
        """
        changes = files = quarantined = 0
        for shard, end in self._source.ends().items():
            offset_stuck = 0
            while True:
                last = self._settle(shard)
                offset_first = 1 if last is None else last.offset_next
                if offset_first >= end:
                    break
                if offset_first == offset_stuck:
                    raise StoreCorrupt(f"change log shard {shard}", f"the change at offset {offset_first} is missing")
                done = self._step(shard, last)
                if done is None:
                    # Another writer trimmed the range; it closed it before, so the next look finds a later position.
                    offset_stuck = offset_first
                else:
                    changes += done.offset_next - done.offset_first
                    files += sum(len(group.files) for group in done.groups.values())
                    quarantined += done.quarantined
        return Drained(changes, files, quarantined)

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
        for group_id, written in last.groups.items():
            self._offline.manifest(self._group_by_id(int(group_id))).commit(_plan(last, written))
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

    def _step(self, shard: int, last: Done | None) -> Done | None:
        """One step behind `last`; None if another writer has finished that range meanwhile."""
        intent = self._intent(shard, last)
        if intent is None:
            return None
        entries = self._read(intent)
        if entries is None:
            return None
        fresh, poison = _fresh(entries, intent.seq_last)
        groups = self._write_files(intent, fresh, poison)
        if poison:
            key = layout.quarantine_key(shard, intent.offset_first)
            self._objects.put_if_absent(key, schema.parquet_bytes(_quarantine_table(poison)))
        done = Done(
            shard,
            intent.offset_first,
            intent.offset_next,
            max([intent.seq_last, *(item.stamp.seq for item, _ in fresh), *(row.seq or 0 for row in poison)]),
            intent.write_time_us + intent.offset_next - intent.offset_first - 1,
            groups,
            len(poison),
        )
        self._objects.put_if_absent(layout.done_key(shard, intent.offset_first), msgspec.json.encode(done))
        self._settle(shard)
        return done

    def _intent(self, shard: int, last: Done | None) -> Intent | None:
        """Our intent for the range behind `last`, or the one that somebody made before us."""
        offset_first, seq_last = (1, 0) if last is None else (last.offset_next, last.seq_last)
        key = layout.intent_key(shard, offset_first)
        existing = self._objects.get(key)
        if existing is None:
            entries = self._source.read(shard, offset_first, self._changes_max)
            if not entries or _missing(entries, seq_last) is not None:
                return None
            ours = Intent(
                shard,
                offset_first,
                entries[-1].offset + 1,
                len(entries),
                seq_last,
                max(self._clock_us(), 0 if last is None else last.write_time_us_last + 1),
                self._schema_versions(entries),
                len(self._offline.ledger.entries()),
            )
            if self._objects.put_if_absent(key, msgspec.json.encode(ours)):
                return ours
            existing = self._objects.get(key)
        return None if existing is None else _decode(existing, Intent, key)

    def _schema_versions(self, entries: Sequence[LogEntry]) -> dict[str, int]:
        group_ids = {
            entry.item.change.group_id
            for entry in entries
            if isinstance(entry.item, LoggedChange) and entry.item.change.targets & OFFLINE
        }
        versions = {}
        for group_id in sorted(group_ids):
            try:
                group = self._group_by_id(group_id)
            except FeatureGroupNotFound:
                continue
            if group.offline is not None:
                versions[str(group_id)] = group.schema_version
        return versions

    def _read(self, intent: Intent) -> Sequence[LogEntry] | None:
        entries = self._source.read(intent.shard, intent.offset_first, intent.entries)
        if len(entries) == intent.entries and entries[-1].offset < intent.offset_next:
            missing = _missing(entries, intent.seq_last)
            if missing is None:
                return entries
        last = self._last_done(intent.shard)
        if last is not None and last.offset_next >= intent.offset_next:
            return None
        raise StoreCorrupt(
            f"change log shard {intent.shard}",
            f"entries {intent.offset_first} to {intent.offset_next - 1} are planned but not all of them remain",
        )

    def _write_files(
        self, intent: Intent, fresh: Sequence[tuple[LoggedChange, int]], poison: list[_Poison]
    ) -> dict[str, GroupFiles]:
        """Write the rows of each group. Changes that can't be rows are added to `poison`."""
        by_group: dict[int, list[tuple[LoggedChange, int]]] = {}
        for item, offset in fresh:
            if item.change.targets & OFFLINE:
                by_group.setdefault(item.change.group_id, []).append((item, offset))
        written = {}
        for group_id, items in sorted(by_group.items()):
            if str(group_id) not in intent.schema_versions:
                reason = f"feature group #{group_id} does not exist or has no offline store"
                poison.extend(_poisoned(item, offset, reason) for item, offset in items)
                continue
            written[str(group_id)] = self._write_group(intent, self._group_by_id(group_id), items, poison)
        return written

    def _write_group(
        self, intent: Intent, group: FeatureGroup, items: Sequence[tuple[LoggedChange, int]], poison: list[_Poison]
    ) -> GroupFiles:
        version = intent.schema_versions[str(group.group_id)]
        erased = self._offline.ledger.erased(group.group_id, count=intent.erasures)
        kept = [(item, offset) for item, offset in items if not _is_erased(item, erased.until_us(item.change.record_id))]
        if not kept:
            return GroupFiles(len(items), [])
        table, faults = _table(group, version, kept, intent.write_time_us - intent.offset_first)
        poison.extend(faults)
        event_times_us = table[schema.EVENT_TIME].cast(pa.int64()).to_numpy()
        root = layout.group_root(group)
        entries = []
        for part, rows in enumerate(layout.file_groups(event_times_us) if table.num_rows else ()):
            name = layout.token(
                root, layout.FileKind.STREAM, group.group_id, intent.shard, intent.offset_first, intent.offset_next, part
            )
            key = layout.data_key(root, int(event_times_us[rows].max()), name)
            piece = schema.sorted_rows(group, table.take(rows))
            data = schema.parquet_bytes(piece, {"shard": intent.shard, "offset_next": intent.offset_next})
            self._objects.put_if_absent(key, data)
            entries.append(schema.entry_of(piece, key.removeprefix(f"{root}/"), len(data), version, Origin.STREAM))
        return GroupFiles(len(items) - len(faults), entries)

    def _forget_chain(self, shard: int) -> None:
        keys = self._objects.list(layout.shard_folder(shard))
        for kind in ("/intent-", "/done-"):  # quarantine stays until somebody has looked at it
            for key in [key for key in keys if kind in key][:-CHAIN_KEPT]:
                self._objects.delete(key)


def _plan(done: Done, written: GroupFiles) -> Callable[[Version], Delta | None]:
    def plan(state: Version) -> Delta | None:
        if state.offset_next(done.shard) >= done.offset_next:
            return None
        return delta_after(
            state,
            add=written.files,
            positions={done.shard: done.offset_next},
            streamed={done.shard: written.changes},
            rows={done.shard: sum(entry.rows for entry in written.files)},
        )

    return plan


def _fresh(entries: Sequence[LogEntry], seq_last: int) -> tuple[list[tuple[LoggedChange, int]], list[_Poison]]:
    """The changes that were not delivered before, with their offsets; and the entries that are no changes."""
    fresh: list[tuple[LoggedChange, int]] = []
    poison: list[_Poison] = []
    for entry in entries:
        stamp = entry.item.stamp
        if stamp is not None:
            if stamp.seq <= seq_last:
                continue
            seq_last = stamp.seq
        if isinstance(entry.item, LoggedChange):
            fresh.append((entry.item, entry.offset))
        else:
            seq, api_time_us = (None, None) if stamp is None else (stamp.seq, stamp.api_time_us)
            poison.append(_Poison(entry.offset, seq, None, api_time_us, entry.item.reason, entry.item.body))
    return fresh, poison


def _missing(entries: Sequence[LogEntry], seq_last: int) -> int | None:
    """The `seq` of the first change that is missing, None if none is.

    An entry that is no change may stand for any: it says nothing of its own `seq`, so what follows it is taken as it is.
    """
    known = True
    for entry in entries:
        stamp = entry.item.stamp
        if stamp is None:
            known = False
        elif stamp.seq > seq_last:
            if known and stamp.seq != seq_last + 1:
                return seq_last + 1
            seq_last, known = stamp.seq, True
    return None


def _is_erased(item: LoggedChange, until_us: int | None) -> bool:
    return until_us is not None and item.stamp.api_time_us <= until_us


def _table(
    group: FeatureGroup, version: int, items: Sequence[tuple[LoggedChange, int]], write_time_base_us: int
) -> tuple[pa.Table, list[_Poison]]:
    """Changes as rows. Whatever keeps a change from being one, the others are not held up by it."""

    def table(items: Sequence[tuple[LoggedChange, int]]) -> pa.Table:
        write_times_us = [write_time_base_us + offset for _, offset in items]
        return schema.table_of_changes(group, version, [item for item, _ in items], write_times_us)

    try:
        return table(items), []
    except UNREADABLE:
        pass
    good: list[tuple[LoggedChange, int]] = []
    faults = []
    for item, offset in items:
        try:
            table([(item, offset)])
        except UNREADABLE as error:
            faults.append(_poisoned(item, offset, str(error)))
        else:
            good.append((item, offset))
    return table(good), faults


def _poisoned(item: LoggedChange, offset: int, reason: str) -> _Poison:
    return _Poison(offset, item.stamp.seq, item.change.group_id, item.stamp.api_time_us, reason, encode_change(item.change))


def _quarantine_table(poison: Sequence[_Poison]) -> pa.Table:
    rows = sorted(poison, key=lambda row: row.offset)
    columns: Mapping[str, Sequence[object]] = {
        "offset": [row.offset for row in rows],
        "seq": [row.seq for row in rows],
        "group_id": [row.group_id for row in rows],
        schema.API_TIME: [row.api_time_us for row in rows],
        "reason": [row.reason for row in rows],
        "body": [row.body for row in rows],
    }
    return pa.table(dict(columns), schema=QUARANTINE_SCHEMA)


def _decode(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        value = msgspec.json.decode(data, type=kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(what, str(error)) from error
    if value.format != FORMAT_VERSION:
        raise StoreCorrupt(what, f"format {value.format}, this release reads {FORMAT_VERSION}")
    return value
