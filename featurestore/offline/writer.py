"""The offline writer: from the change log to data files, exactly once.

Per shard there is a chain of steps, each a range of log offsets:

    intent   put-if-absent: from, to, write time, schema versions. Decides what will be written before anything is.
    files    create-only: names and bytes are functions of the intent, so whoever repeats the work makes the same files.
    done     put-if-absent: the files with their statistics. Closes the range.
    commit   the files enter the manifests of their groups, together with the offset reached.
    trim     the log forgets the range.

A writer that dies anywhere is continued by the next one from what it finds; writers that race do the same work twice with
one result. There is no lease and no coordinator, and the position lives with the table, not with the log's reader.

A log may deliver changes again, and a relay that failed may leave some in it ahead of their turn: a change is taken when its
`seq` is one above the last one taken, and passed over otherwise (`changelog/relay.py` says why that finds each once). A step
never ends between a change ahead of its turn and those before it; if these never come, it is an error and nothing behind it is
written.
What can't become a row (bytes that do not decode, a group that does not exist) goes to a quarantine file of its step, and the
chain goes on.

The steps of a shard have offsets of their own, which rise for ever. They are those of the log, until the store is given another
one: then a step's `log_base` is added to the offsets of its log.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

import msgspec
import pyarrow as pa

from featurestore.changelog.protocol import ChangeSource
from featurestore.decoding import decode_json
from featurestore.errors import (
    FeatureGroupNotFound,
    FeatureStoreError,
    SettingsInvalid,
    StoreCorrupt,
    StoreUnavailable,
    ValidationFailed,
)
from featurestore.model.change import OFFLINE, LogEntry, LoggedChange, Stamp
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
        log: what the changes come through: a log's name, or empty for the online store's own outbox.
        log_base: offsets of the step minus offsets of that log.
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
    log: str = ""
    log_base: int = 0


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
        log, log_base: as the intent has them.
        lost: how many changes the log has lost, in a step that an operator has closed (`OfflineWriter.give_up`); None in others.
    """

    shard: int
    offset_first: int
    offset_next: int
    seq_last: int
    write_time_us_last: int
    groups: dict[str, GroupFiles]
    quarantined: int = 0
    format: int = FORMAT_VERSION
    log: str = ""
    log_base: int = 0
    lost: int | None = None


@dataclass(frozen=True, slots=True)
class Lost:
    """Changes that are not in the log any more: those with `seq_first` to `seq_last`, none if the one is greater."""

    seq_first: int
    seq_last: int

    @property
    def changes(self) -> int:
        return self.seq_last - self.seq_first + 1


@dataclass(frozen=True, slots=True)
class Position:
    """How far the offline store has got in one shard of the log.

    Attributes:
        offset_next: of the log's own offsets.
        seq_last: of the newest change below it.
        write_time_us: when that was written; None before the first step.
    """

    offset_next: int
    seq_last: int
    write_time_us: int | None


@dataclass(frozen=True, slots=True)
class LastStep:
    """The newest closed step of a shard; the one before it is in the manifests of its groups, and so is all below.

    Attributes:
        offset_first, offset_next, log_base: as in `Done`.
        seq_before: of the newest change below `offset_first`.
        seq_last: of the newest change below `offset_next`.
    """

    offset_first: int = 1
    offset_next: int = 1
    seq_before: int = 0
    seq_last: int = 0
    log_base: int = 0


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


class _ChangeMissing(StoreUnavailable):
    """A change is not in the log although later ones are. A relay may still send it."""

    def __init__(self, log: str, shard: int, seq: int) -> None:
        detail = f"change {seq} is missing although later ones are there"
        super().__init__(f"read {log}, shard {shard}", detail, hint="see docs/guides/kafka.md")


@dataclass(frozen=True, slots=True)
class _Place:
    """Where the next step of a shard begins, see `Intent`."""

    offset_first: int
    seq_last: int
    log_base: int


class OfflineWriter:
    """Moves changes from a change source into the offline tables. Any number may run at once, anywhere.

    Args:
        group_by_id: the registry's `get_by_id`.
        changes_max: log entries of one step.
        log: name of the log that `source` is; empty for the online store's own outbox.
    """

    def __init__(
        self,
        source: ChangeSource,
        offline: OfflineStore,
        group_by_id: Callable[[int], FeatureGroup],
        *,
        changes_max: int,
        log: str = "",
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._source = source
        self._offline = offline
        self._objects = offline.objects
        self._group_by_id = group_by_id
        self._changes_max = changes_max
        self._log = log
        self._clock_us = clock_us
        self._settled: dict[int, int] = {}

    def drain(self, shards: Collection[int] | None = None) -> Drained:
        """Write every change that was acknowledged before this call; returns when they are in the manifests.

        Args:
            shards: only these; all by default.

        Raises:
            StoreUnavailable, StoreCorrupt: what was finished stays finished; call again. A shard that lacks a change does not
                hold up the others.
        """
        drained = Drained()
        gaps: list[FeatureStoreError] = []
        for shard, end in self._source.ends().items():
            if shards is not None and shard not in shards:
                continue
            try:
                for done in self._drain_shard(shard, end):
                    drained = Drained(
                        drained.changes + done.offset_next - done.offset_first,
                        drained.files + sum(len(group.files) for group in done.groups.values()),
                        drained.quarantined + done.quarantined,
                    )
            except _ChangeMissing as error:
                gaps.append(error)
        if gaps:
            raise gaps[0]
        return drained

    def _drain_shard(self, shard: int, end: int) -> Iterator[Done]:
        """The steps of a shard until its position reaches `end` (in the log's own offsets)."""
        offset_stuck = 0
        while True:
            last = self._settle(shard)
            place = self._place(shard, last)
            offset = place.offset_first - place.log_base
            if offset >= end:
                # Past the end that we were given is where another writer has got to meanwhile, unless the log was cut.
                if self._log and offset > end and offset > (now := self._source.ends()[shard]):
                    raise StoreCorrupt(f"{self._log}, shard {shard}", f"it ends at {now}, below {offset}, which was read before")
                return
            if place.offset_first == offset_stuck:
                if self._log:
                    return  # what is left below the end is no entry, such as a marker of somebody's transaction
                raise StoreCorrupt(f"change log shard {shard}", f"the change at offset {place.offset_first} is missing")
            done = self._step(shard, last)
            if done is None:
                # Another writer trimmed the range; it closed it before, so the next look finds a later position.
                offset_stuck = place.offset_first
            else:
                yield done

    def finish(self) -> None:
        """Complete the steps that were begun from this log, before the store is given another one.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        for shard in range(self._source.shards()):
            last = self._settle(shard)
            if last is not None and last.log != self._log:
                continue
            data = self._objects.get(layout.intent_key(shard, 1 if last is None else last.offset_next))
            if data is not None and _decode(data, Intent, "intent").log == self._log:
                self._step(shard, last)

    def lost(self, shard: int) -> Lost | None:
        """What keeps a shard from going on: changes that the log has lost behind its position, perhaps none if the log begins
        anew. None if nothing does.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        found = self._next_known(shard)
        return None if found is None else Lost(found[0].seq_last + 1, found[1] - 1)

    def give_up(self, shard: int, lost: Lost) -> bool:
        """Close a step in which these changes are lost, so that what comes after them is written. False if the position of the
        shard has changed since `lost` was asked for. Only a person may decide this.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        last = self._settle(shard)
        found = self._next_known(shard)
        if found is None or Lost(found[0].seq_last + 1, found[1] - 1) != lost:
            return False
        place, seq, offset = found
        done = Done(
            shard,
            place.offset_first,
            offset,
            seq - 1,
            0 if last is None else last.write_time_us_last,
            {},
            log=self._log,
            log_base=place.log_base,
            lost=seq - 1 - place.seq_last,
        )
        return self._objects.put_if_absent(layout.done_key(shard, place.offset_first), msgspec.json.encode(done))

    def _next_known(self, shard: int) -> tuple[_Place, int, int] | None:
        """(place, seq, offset) of the next change of a shard that the log has or will have, if those before it are lost or the
        log ends below the position of the shard; else None.
        """
        place = self._place(shard, self._last_done(shard))
        end = self._source.ends()[shard]
        is_anew = place.offset_first - place.log_base > end
        if is_anew:  # its first entry comes one behind the position, since a step has to move on
            place = _Place(place.offset_first, place.seq_last, place.offset_first)
        offset = 1 + place.log_base
        while entries := self._entries(shard, offset, self._changes_max, place.log_base):
            for entry in entries:
                stamp = entry.item.stamp
                if stamp is None or stamp.seq <= place.seq_last or entry.offset < place.offset_first:
                    continue
                if not is_anew and (stamp.seq == place.seq_last + 1 or self._comes_later(shard, place, entry.offset)):
                    return None
                if entry.offset > place.offset_first:
                    return place, stamp.seq, entry.offset
                return _Place(place.offset_first, place.seq_last, place.log_base + 1), stamp.seq, entry.offset + 1
            offset = entries[-1].offset + 1
        return (place, place.seq_last + 1, end + place.log_base) if is_anew else None

    def _comes_later(self, shard: int, place: _Place, offset: int) -> bool:
        """Whether the change that is next stands at or behind an offset."""
        while entries := self._entries(shard, offset, self._changes_max, place.log_base):
            if any(entry.item.stamp is not None and entry.item.stamp.seq == place.seq_last + 1 for entry in entries):
                return True
            offset = entries[-1].offset + 1
        return False

    def positions(self) -> dict[int, Position]:
        """Per shard how far the offline store has got.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        found = {}
        for shard in range(self._source.shards()):
            last = self._last_done(shard)
            place = self._place(shard, last)
            write_time_us = None if last is None else last.write_time_us_last
            found[shard] = Position(place.offset_first - place.log_base, place.seq_last, write_time_us)
        return found

    def last_steps(self) -> dict[int, LastStep]:
        """The newest step of each shard.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        found = {}
        for shard in range(self._source.shards()):
            last = self._last_done(shard)
            if last is None:
                found[shard] = LastStep()
                continue
            place = self._place(shard, last)
            is_ours = last.log == self._log and last.lost is None
            data = self._objects.get(layout.intent_key(shard, last.offset_first)) if is_ours else None
            if data is None:  # of another log, and settled before this one was begun with; or without changes
                found[shard] = LastStep(last.offset_next, last.offset_next, last.seq_last, last.seq_last, place.log_base)
            else:
                before = _decode(data, Intent, "intent").seq_last
                found[shard] = LastStep(last.offset_first, last.offset_next, before, last.seq_last, place.log_base)
        return found

    def stamps(self) -> dict[int, Stamp]:
        """Per shard a stamp that lies at or after all that were ever written offline; shards without any are missing.

        Raises:
            SettingsInvalid: the changes of the store come through another log than ours.
        """
        lasts = {shard: self._last_done(shard) for shard in range(self._source.shards())}
        for shard, last in lasts.items():
            self._place(shard, last)
        return {shard: Stamp(shard, last.seq_last, last.write_time_us_last) for shard, last in lasts.items() if last is not None}

    def behind(self) -> int:
        """How many changes wait in the log."""
        positions = self.positions()
        return sum(max(0, end - positions[shard].offset_next) for shard, end in self._source.ends().items())

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
        if last.log == self._log:
            self._source.trim(shard, last.offset_next - last.log_base)
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
        intent, entries = self._intent(shard, last)
        if intent is None:
            return None
        if entries is None:
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
            log=intent.log,
            log_base=intent.log_base,
        )
        self._objects.put_if_absent(layout.done_key(shard, intent.offset_first), msgspec.json.encode(done))
        self._settle(shard)
        return done

    def _intent(self, shard: int, last: Done | None) -> tuple[Intent | None, Sequence[LogEntry] | None]:
        """Our intent for the range behind `last` and its entries, or the one that somebody made before us."""
        place = self._place(shard, last)
        key = layout.intent_key(shard, place.offset_first)
        existing = self._objects.get(key)
        if existing is None:
            entries = self._whole(shard, place)
            if not entries:
                return None, None
            ours = Intent(
                shard,
                place.offset_first,
                entries[-1].offset + 1,
                len(entries),
                place.seq_last,
                max(self._clock_us(), 0 if last is None else last.write_time_us_last + 1),
                self._schema_versions(entries),
                len(self._offline.ledger.entries()),
                log=self._log,
                log_base=place.log_base,
            )
            if self._objects.put_if_absent(key, msgspec.json.encode(ours)):
                return ours, entries
            existing = self._objects.get(key)
        if existing is None:
            return None, None
        intent = _decode(existing, Intent, key)
        if intent.log != self._log:
            raise self._other_log(shard, intent.log)
        return intent, None

    def _place(self, shard: int, last: Done | None) -> _Place:
        """Where the step behind `last` begins.

        Raises:
            SettingsInvalid: the shard's changes come through another log than ours.
        """
        if last is None:
            return _Place(1, 0, 0)
        if last.log == self._log:
            return _Place(last.offset_next, last.seq_last, last.log_base)
        if last.log:
            raise self._other_log(shard, last.log)
        return _Place(last.offset_next, last.seq_last, last.offset_next - 1)

    def _other_log(self, shard: int, log: str) -> ValidationFailed:
        theirs = f"those of {log!r}" if log else "none"
        expected = f"{theirs}, which the changes of shard {shard} come through (see docs/guides/kafka.md)"
        settings = "FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS and FEATURESTORE_KAFKA_TOPIC"
        return SettingsInvalid.one(settings, expected, self._log or None)

    def _entries(self, shard: int, offset_first: int, entries_max: int, log_base: int) -> Sequence[LogEntry]:
        """Entries of the log with the offsets of steps."""
        entries = self._source.read(shard, offset_first - log_base, entries_max)
        return [LogEntry(entry.offset + log_base, entry.item) for entry in entries] if log_base else entries

    def _whole(self, shard: int, place: _Place) -> Sequence[LogEntry]:
        """The next entries, as many as one step takes and more where changes came ahead of their turn; empty if there are none,
        or if another writer has trimmed them.

        Raises:
            _ChangeMissing: a change is not there although later ones are.
        """
        entries_max = self._changes_max
        while True:
            entries = self._entries(shard, place.offset_first, entries_max, place.log_base)
            count = _whole_count(entries, place.seq_last)
            if count or not entries or not self._log:
                return entries[:count]
            if len(entries) < entries_max:
                fresh, _ = _fresh(entries, place.seq_last)
                raise _ChangeMissing(self._log, shard, fresh[-1][0].stamp.seq + 1 if fresh else place.seq_last + 1)
            entries_max *= 2

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
        entries = self._entries(intent.shard, intent.offset_first, intent.entries, intent.log_base)
        if (
            len(entries) == intent.entries
            and entries[-1].offset < intent.offset_next
            and _whole_count(entries, intent.seq_last) == len(entries)
        ):
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
            if stamp.seq != seq_last + 1:
                continue
            seq_last = stamp.seq
        if isinstance(entry.item, LoggedChange):
            fresh.append((entry.item, entry.offset))
        else:
            seq, api_time_us = (None, None) if stamp is None else (stamp.seq, stamp.api_time_us)
            poison.append(_Poison(entry.offset, seq, None, api_time_us, entry.item.reason, entry.item.body))
    return fresh, poison


def _whole_count(entries: Sequence[LogEntry], seq_last: int) -> int:
    """How many of the entries can be taken without leaving out a change: up to where every change that was passed over because
    it came ahead of its turn has been taken as well.

    An entry without a stamp is nobody's change and stands for none.
    """
    whole, seq_ahead = 0, 0
    for position, entry in enumerate(entries, 1):
        stamp = entry.item.stamp
        if stamp is not None:
            if stamp.seq == seq_last + 1:
                seq_last = stamp.seq
            seq_ahead = max(seq_ahead, stamp.seq)
        if seq_ahead <= seq_last:
            whole = position
    return whole


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
        value = decode_json(data, kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(what, str(error)) from error
    if value.format != FORMAT_VERSION:
        raise StoreCorrupt(what, f"format {value.format}, this release reads {FORMAT_VERSION}")
    return value
