"""Audit: what was acknowledged against what the two stores hold, group by group. It reads and changes nothing.

    moment     one manifest version and one snapshot of the online store that belong together
    changes    per shard: acknowledged = written from the log + waiting in it + in quarantine; with a log behind the outbox,
               what waits in either counts once
    files      each live file is there, as large as it was, with the rows and times that the manifest says
    rows       per shard: the rows in the files are as many as the manifest says, and none is there twice
    records    the online state of each record is the fold of its rows and of what waits, by the order of `model.change`

Rows adopted from other tools are counted, but they do not go online, so they take no part in the fold. Some records may well
differ: see `_Comparison`.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final, TypeVar

import duckdb
import msgspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.decoding import decode_json
from featurestore.engine import Engine, failed, identifier, literal
from featurestore.errors import FileVanished, StoreCorrupt, StoreUnavailable
from featurestore.model.cells import arrow_type
from featurestore.model.change import OFFLINE, LoggedChange, PoisonChange, Stamp, shard_of
from featurestore.model.codec import decode_change, decode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import FeatureGroup, FeatureType
from featurestore.model.value import Value, key_of
from featurestore.offline import layout, schema
from featurestore.offline.beyond import LogBeyondTable
from featurestore.offline.erasing import Rewritten
from featurestore.offline.ledger import ErasedRecords
from featurestore.offline.manifest import FileEntry, Version
from featurestore.offline.relation import files_relation, sql_type
from featurestore.offline.subjects import typed_key
from featurestore.offline.table import OfflineStore
from featurestore.offline.writer import UNREADABLE, LastStep
from featurestore.online.protocol import OnlineSnapshot, OnlineStore, RecordState, Tally
from featurestore.progress import Progress, silent
from featurestore.query.replan import replanned

NAMED_MAX: Final = 100
"""Differences of one kind that are named; the rest is counted."""
MOMENTS_MAX: Final = 50
"""Attempts to find a moment at which the manifest stands still for the milliseconds that a snapshot takes."""
WAIT_S: Final = 60.0
"""How long ingests and erasures that are under way are waited for."""
POLL_S: Final = 0.05
CHANGES_HELD: Final = 16_384
RESULT_ROWS: Final = 4096
PUT_STEP: Final = 1 << 62
"""Room for an API time in a rank; see `_rank`."""


class Kind(StrEnum):
    """What differs."""

    UNDER_WAY = "under way"
    """An ingest or an erasure did not end in time, so the records were not compared."""
    CHANGES = "changes"
    """A shard's acknowledged changes are not all accounted for, or more are than were acknowledged."""
    FILE = "file"
    """A live file is gone, unreadable or not as the manifest describes it."""
    ROWS = "rows"
    """A shard has not as many rows as the manifest says."""
    DUPLICATE = "duplicate"
    """One change is there more than once: rows of one record and one API time."""
    ERASED = "erased"
    """Something is left of a record that was erased."""
    MISSING = "missing online"
    """The offline store has a record that the online store lacks."""
    UNEXPECTED = "unexpected online"
    """The online store has a record that no row or waiting change explains."""
    STALE = "stale online"
    """The online record is older than the offline one."""
    NEWER = "newer online"
    """The online record is newer than the offline one."""
    VALUE = "different value"
    """Both are of the same change, but a value or the expiry differs; or the online values can't be read."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One difference.

    Attributes:
        shard: None where a difference belongs to no shard.
        subject: the record identifier's key, or the path of a file below the group's folder; empty for a whole shard.
        detail: what was found and what was expected.
        online_event_time_us, offline_event_time_us: of a record in either store, microseconds since 1970; None where absent.
    """

    kind: Kind
    shard: int | None
    subject: str
    detail: str
    online_event_time_us: int | None = None
    offline_event_time_us: int | None = None

    def __str__(self) -> str:
        where = "" if self.shard is None else f"shard {self.shard}: "
        return f"{where}{self.kind}: {f'{self.subject!r}: ' if self.subject else ''}{self.detail}"


@dataclass(frozen=True, slots=True)
class ShardAudit:
    """The counts of one shard of a group.

    Attributes:
        acknowledged: changes for the offline store that the service ever took through the log.
        streamed: of these, the ones that the manifest has seen, erased ones included.
        waiting: of these, the ones still in the log alone, be it the outbox or what the relay fills from it.
        quarantined: of these, the ones that could not become rows, erased ones included.
        offline_rows: rows found in the live files, adopted ones included.
        online_records: records found online, expired ones included.
        offline_only: writes to the offline store only, see `Tally`.
        explained: records that differ, as those writes explain.
        differences: found in this shard.
    """

    shard: int
    acknowledged: int
    streamed: int
    waiting: int
    quarantined: int
    offline_rows: int
    online_records: int
    offline_only: int
    explained: int
    differences: int


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit of one group found.

    Attributes:
        version: of the manifest; 0 without an offline store.
        differences: at most NAMED_MAX of each kind; empty when all is well.
        counts: how many there are of each kind found.
    """

    group: str
    version: int
    shards: tuple[ShardAudit, ...]
    differences: tuple[Difference, ...]
    counts: Mapping[Kind, int]

    @property
    def differences_total(self) -> int:
        """How many differences there are, named or not."""
        return sum(self.counts.values())


class Auditor:
    """Audits the groups of one online and one offline store.

    Args:
        log: what a relay fills from the outbox, if there is one.
        wait_s: how long to wait for ingests and erasures that are under way.
    """

    def __init__(
        self,
        online: OnlineStore,
        offline: OfflineStore,
        engine: Engine,
        shards: int,
        *,
        log: LogBeyondTable | None = None,
        wait_s: float = WAIT_S,
    ) -> None:
        self._online = online
        self._offline = offline
        self._engine = engine
        self._shards = shards
        self._log = log
        self._wait_s = wait_s

    def audit(self, group: FeatureGroup, *, progress: Progress = silent) -> AuditReport:
        """Compare both stores at one moment. Writers may run meanwhile.

        Raises:
            StoreUnavailable: the table changed faster than it could be looked at; call again.
            StoreCorrupt, QueryFailed
        """
        return replanned(lambda: self._audit(group, progress))

    def former_changes(self, group: FeatureGroup) -> dict[int, int]:
        """Per shard how many changes of a group are in the offline store, or on their way there, beyond those that the online
        store has logged: what `OnlineStore.count_former` wants to know after that store was replaced.

        Raises:
            StoreUnavailable
        """
        with self._moment(group) as moment:
            quarantine = self._quarantine(group)
            waiting = Counter(item.stamp.shard for item in moment.unwritten(quarantine))
            return {
                shard: more
                for shard in range(self._shards)
                if (more := moment.accounted(shard, waiting, quarantine) - moment.tally(shard).changes) > 0
            }

    def _audit(self, group: FeatureGroup, progress: Progress) -> AuditReport:
        with self._moment(group) as moment:
            found = _Findings()
            for what in moment.under_way:
                found.add(Difference(Kind.UNDER_WAY, None, "", f"{what} is under way, so the records were not compared"))
            readable: list[FileEntry] = []
            rows: Counter[int] = Counter()
            quarantine = _Quarantine({}, Counter(), Counter(), frozenset())
            if group.offline is not None:
                readable = self._files(group, moment.version, found, rows, progress)
                quarantine = self._quarantine(group)
            own = [entry for entry in readable if not entry.foreign_rows]
            paths = self._offline.paths(group, own) if own else []
            comparison = _Comparison(self._engine, group, paths, moment.version.retained_from_us, found)
            try:
                waiting = comparison.read_waiting(moment, quarantine)
                online = comparison.read_online(moment.snapshot, self._shards, progress)
                explained: Counter[int] = Counter()
                if group.offline is not None:
                    progress("records compared", 0, 1)
                    comparison.find_duplicates(self._shards)
                    if not moment.under_way:
                        self._find_erased(moment.erased, comparison)
                    if group.online is not None and not moment.under_way:
                        explained = comparison.compare(moment.tallies, quarantine.record_ids, self._shards)
                    progress("records compared", 1, 1)
            finally:
                comparison.close()
            self._find_lost(moment, waiting, quarantine, rows, found)
            return AuditReport(
                group.name,
                moment.version.version,
                tuple(
                    ShardAudit(
                        shard,
                        moment.tally(shard).acknowledged,
                        moment.version.streamed.get(str(shard), 0),
                        waiting[shard],
                        quarantine.count(shard),
                        rows[shard],
                        online[shard],
                        moment.tally(shard).offline_only,
                        explained[shard],
                        found.by_shard[shard],
                    )
                    for shard in range(self._shards)
                ),
                tuple(found.named),
                dict(found.by_kind),
            )

    @contextmanager
    def _moment(self, group: FeatureGroup) -> Iterator[_Moment]:
        """A manifest version and a snapshot that belong together.

        Changes and batches enter the manifest before they leave the log or their journal, and an erasure is promised before
        it begins: what is the same before and after the snapshot was the same at it. A change is in the log before it leaves
        the outbox.
        """
        deadline_s = time.monotonic() + self._wait_s
        moments = 0
        while moments < MOMENTS_MAX:
            version = self._version(group)
            under_way = self._under_way(group)
            if under_way and time.monotonic() < deadline_s:
                time.sleep(POLL_S)
                continue
            moments += 1
            steps, ends = ({}, {}) if self._log is None else (self._log.last_steps(), self._log.ends())
            erased = self._offline.ledger.erased(group.group_id)
            with self._online.snapshot(group.group_id) as snapshot:
                if self._under_way(group) != under_way or self._version(group).version != version.version:
                    continue
                logged = self._logged(group, snapshot, steps, ends)
                if logged is None:
                    continue
                yield _Moment(version, snapshot, snapshot.tallies(), under_way, erased, steps, logged)
                return
        raise StoreUnavailable("audit", f"the table of {group.name!r} changed {moments} times in a row", hint="repeat the call")

    def _logged(
        self, group: FeatureGroup, snapshot: OnlineSnapshot, steps: Mapping[int, LastStep], ends: Mapping[int, int]
    ) -> dict[int, dict[int, LoggedChange]] | None:
        """Per shard the group's changes that the log held at the snapshot beyond the table, by `seq`. None if that can't be told.

        `steps` and `ends` are older than the snapshot. What the log held by then was acknowledged before it, and so was what the
        outbox holds in it, with all that came before that. Of a change that came into the log since and is newer than these
        nobody knows, if the outbox there holds none of the group.
        """
        if self._log is None:
            return {}
        newest: dict[int, int] = {}
        for entry in snapshot.waiting():
            if isinstance(entry.item, LoggedChange):
                newest[entry.item.stamp.shard] = entry.item.stamp.seq
        logged: dict[int, dict[int, LoggedChange]] = {}
        ends_now = self._log.ends()
        for shard, step in steps.items():
            found = logged[shard] = {}
            for entry in self._log.changes(shard, step, ends_now[shard]):
                item = entry.item
                if not isinstance(item, LoggedChange) or item.change.group_id != group.group_id:
                    continue
                seq = item.stamp.seq
                if entry.offset < ends[shard] or seq <= newest.get(shard, 0):
                    found[seq] = item
                elif shard not in newest:
                    return None
        return logged

    def _version(self, group: FeatureGroup) -> Version:
        return Version() if group.offline is None else self._offline.manifest(group).current()

    def _under_way(self, group: FeatureGroup) -> list[str]:
        """Work on both stores that is done in one of them and perhaps not yet in the other."""
        objects = self._offline.objects
        found = []
        if any(journal.group_id == group.group_id for journal in self._offline.batches.unfinished()):
            found.append("an ingest")
        for key in objects.list("_erase/"):
            data = objects.get(key) if "/pending-" in key else None
            if data is not None and _decoded(data, _Pending, key).group_id == group.group_id:
                found.append("an erasure")
                break
        return found

    def _files(
        self, group: FeatureGroup, version: Version, found: _Findings, rows: Counter[int], progress: Progress
    ) -> list[FileEntry]:
        """The live files that can be read, after counting their rows per shard into `rows`.

        Raises:
            FileVanished: a file was replaced meanwhile.
        """
        root = layout.group_root(group)
        objects = self._offline.objects
        scanned = [*objects.scan(f"{root}/data/"), *objects.scan(f"{root}/opt/")]
        sizes = {info.key.removeprefix(f"{root}/"): info.bytes for info in scanned}
        readable = []
        for position, entry in enumerate(version.files):
            progress("files read", position, len(version.files))
            size = sizes.get(entry.path)
            fault: str | None = None
            if size is None:
                fault = f"gone; the manifest has it with {entry.rows:,} rows and {entry.bytes:,} bytes"
            elif size != entry.bytes:
                fault = f"{size:,} bytes, expected {entry.bytes:,}"
            else:
                try:
                    fault = self._count(group, entry, rows)
                    readable.append(entry)
                except FileNotFoundError as error:
                    raise FileVanished("audit") from error
                except (pa.ArrowException, OSError, KeyError, TypeError) as error:
                    fault = f"can't be read: {error}"
            if fault is not None:
                if not self._offline.manifest(group).current().holds([entry.path]):
                    raise FileVanished("audit")
                found.add(Difference(Kind.FILE, None, entry.path, fault))
        progress("files read", len(version.files), len(version.files))
        return readable

    def _count(self, group: FeatureGroup, entry: FileEntry, rows: Counter[int]) -> str | None:
        """Read a whole file and count its rows per shard; returns what is not as the manifest says."""
        (path,) = self._offline.paths(group, [entry])
        count = 0
        names = (schema.EVENT_TIME, schema.WRITE_TIME, schema.API_TIME)
        bounds: dict[str, list[int]] = {name: [] for name in names}
        by_shard: Counter[int] = Counter()
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=CHANGES_HELD):
                if not batch.num_rows:
                    continue
                count += batch.num_rows
                by_shard.update(schema.rows_by_shard(pa.chunked_array([batch[group.record_identifier]]), self._shards))
                for name in names:
                    ends = pc.min_max(batch[name].cast(pa.int64())).as_py()
                    bounds[name] += [ends["min"], ends["max"]]
        rows.update(by_shard)
        if count != entry.rows:
            return f"{count:,} rows, expected {entry.rows:,}"
        expected = (
            (entry.event_time_us_min, entry.event_time_us_max),
            (entry.write_time_us_min, entry.write_time_us_max),
            (entry.api_time_us_min, entry.api_time_us_max),
        )
        for name, ends_us in zip(names, expected, strict=True):
            if bounds[name] and (found_us := (min(bounds[name]), max(bounds[name]))) != ends_us:
                return f"{name} from {found_us[0]} to {found_us[1]}, expected {ends_us[0]} to {ends_us[1]}"
        return None

    def _quarantine(self, group: FeatureGroup) -> _Quarantine:
        """What the writer could not make rows of, and what erasures have removed from that since."""
        objects = self._offline.objects
        keys = [key for key in objects.list("_writer/") if "/quarantine-" in key]
        places: dict[int, set[int]] = {}
        unknown: Counter[int] = Counter()
        record_ids: set[str] = set()
        for key, path in zip(keys, objects.paths(keys), strict=True):
            shard = _shard_of_key(key)
            try:
                table = pq.read_table(path, columns=["seq", "group_id", "body"], partitioning=None)
            except FileNotFoundError as error:  # an erasure has rewritten it
                raise FileVanished("audit") from error
            for seq, group_id, body in zip(*(column.to_pylist() for column in table.columns), strict=True):
                if group_id is None:
                    unknown[shard] += 1
                elif group_id == group.group_id:
                    places.setdefault(shard, set()).add(seq)
                    record_ids.add(decode_change(body).record_id)
        erased: Counter[int] = Counter()
        for key in objects.list("_erase/"):
            data = objects.get(key) if "/receipt-" in key else None
            if data is None:
                continue
            receipt = _decoded(data, _Receipt, key)
            if receipt.group == group.name and receipt.requested_at_us >= group.created_at_us:
                for file in receipt.files:
                    if "/quarantine-" in file.path:
                        erased[_shard_of_key(file.path)] += file.rows
        return _Quarantine(places, erased, unknown, frozenset(record_ids))

    def _find_lost(
        self, moment: _Moment, waiting: Counter[int], quarantine: _Quarantine, rows: Counter[int], found: _Findings
    ) -> None:
        """Compare the counts of each shard."""
        for shard in range(self._shards):
            acknowledged = moment.tally(shard).acknowledged
            if acknowledged != (known := moment.accounted(shard, waiting, quarantine)):
                streamed, quarantined = moment.version.streamed.get(str(shard), 0), quarantine.count(shard)
                detail = (
                    f"{acknowledged:,} were acknowledged, {known:,} are accounted for: {streamed:,} written from the log, "
                    f"{waiting[shard]:,} waiting in it, {quarantined:,} in quarantine"
                )
                if quarantine.unknown[shard]:
                    detail += f" ({quarantine.unknown[shard]:,} unreadable log entries there may be of this group)"
                found.add(Difference(Kind.CHANGES, shard, "", detail))
            if (expected := moment.version.rows.get(str(shard), 0)) != rows[shard]:
                detail = f"{rows[shard]:,} rows in the live files, expected {expected:,}"
                found.add(Difference(Kind.ROWS, shard, "", detail))

    def _find_erased(self, erased: ErasedRecords, comparison: _Comparison) -> None:
        if not erased:
            return
        for where, key, api_time_us in comparison.first_api_times():
            until_us = erased.until_us(record_id := key_of(key))
            if until_us is not None and api_time_us <= until_us:
                detail = f"erased as of {format_iso(until_us)}, but {where} holds what arrived at {format_iso(api_time_us)}"
                comparison.found.add(Difference(Kind.ERASED, shard_of(record_id, self._shards), record_id, detail))


class _Pending(msgspec.Struct, frozen=True):
    """What matters here of `erase.PendingErasure`."""

    group_id: int


class _Receipt(msgspec.Struct, frozen=True):
    """What matters here of `erase.ErasureReceipt`."""

    group: str
    requested_at_us: int
    files: tuple[Rewritten, ...]


@dataclass(frozen=True, slots=True)
class _Moment:
    """A manifest version and a snapshot that belong together.

    Attributes:
        erased: what was erased by then.
        steps, logged: of the log that a relay fills, see `Auditor._logged`; empty without.
    """

    version: Version
    snapshot: OnlineSnapshot
    tallies: Mapping[int, Tally]
    under_way: Sequence[str]
    erased: ErasedRecords
    steps: Mapping[int, LastStep]
    logged: Mapping[int, Mapping[int, LoggedChange]]

    def tally(self, shard: int) -> Tally:
        return self.tallies.get(shard, Tally())

    def accounted(self, shard: int, waiting: Mapping[int, int], quarantine: _Quarantine) -> int:
        """How many changes for the offline store are known of, wherever they are."""
        return self.version.streamed.get(str(shard), 0) + waiting.get(shard, 0) + quarantine.count(shard)

    def unwritten(self, quarantine: _Quarantine) -> Iterator[LoggedChange]:
        """The changes for the offline store that are in the log alone."""
        for item in self.waiting():
            if item.change.targets & OFFLINE and not quarantine.holds(item.stamp):
                yield item

    def waiting(self) -> Iterator[LoggedChange]:
        """The changes of the group that the table has not, each once."""
        for entry in self.snapshot.waiting():
            item = entry.item
            if isinstance(item, PoisonChange):
                continue
            stamp = item.stamp
            if stamp.shard not in self.steps:
                if entry.offset >= self.version.offset_next(stamp.shard):
                    yield item
            elif stamp.seq > self._seq_written(stamp.shard) and stamp.seq not in self.logged[stamp.shard]:
                yield item
        for shard, found in self.logged.items():
            seq_written = self._seq_written(shard)
            yield from (item for seq, item in found.items() if seq > seq_written)

    def _seq_written(self, shard: int) -> int:
        """Up to where the table has the group's changes."""
        step = self.steps[shard]
        return step.seq_last if self.version.offset_next(shard) >= step.offset_next else step.seq_before


@dataclass(frozen=True, slots=True)
class _Quarantine:
    """Changes of the group that could not become rows.

    Attributes:
        places: per shard their `seq`.
        erased: per shard how many were erased since.
        unknown: per shard entries that may be of any group.
        record_ids: of the changes; the online store may well hold these.
    """

    places: Mapping[int, set[int]]
    erased: Counter[int]
    unknown: Counter[int]
    record_ids: frozenset[str]

    def holds(self, stamp: Stamp) -> bool:
        return stamp.seq in self.places.get(stamp.shard, ())

    def count(self, shard: int) -> int:
        return len(self.places.get(shard, ())) + self.erased[shard]


@dataclass(slots=True)
class _Findings:
    named: list[Difference] = field(default_factory=list)
    by_kind: Counter[Kind] = field(default_factory=Counter)
    by_shard: Counter[int] = field(default_factory=Counter)

    def add(self, difference: Difference) -> None:
        self.by_kind[difference.kind] += 1
        if difference.shard is not None:
            self.by_shard[difference.shard] += 1
        if self.by_kind[difference.kind] <= NAMED_MAX:
            self.named.append(difference)


def _rank(table: str, is_put: str) -> str:
    """The place of a change in the order of a record's changes (event time, is a put, API time) as one number, so that the fold
    of many records needs a number each. Unlike a struct of the three, the engine can spill it to disk.
    """
    return f"(({table}._at::HUGEINT * 2 + CASE WHEN {is_put} THEN 1 ELSE 0 END) * {PUT_STEP} + {table}._api)"


def _shown(time_us: int | None) -> str:
    return "none" if time_us is None else format_iso(time_us)


def _shard_of_key(key: str) -> int:
    """The shard of an object below `_writer/`."""
    return int(key.split("/")[1])


_T = TypeVar("_T", _Pending, _Receipt)


def _decoded(data: bytes, kind: type[_T], what: str) -> _T:
    try:
        return decode_json(data, kind)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt(what, str(error)) from error


class _Comparison:
    """Both stores as tables of one engine session: `changes` are the group's own rows and what waits, `online` the states.

    A record is no difference when it is as the rules say, that is:

    - its online state came from a change for the online store only, or is older than where the group's history begins;
    - one of its changes is in quarantine;
    - what is newer offline, or was hard deleted there, may come from writes to the offline store only. These are counted.
    """

    def __init__(
        self, engine: Engine, group: FeatureGroup, paths: Sequence[str], retained_from_us: int | None, found: _Findings
    ) -> None:
        self.found = found
        self._group = group
        self._paths = paths
        self._floor_us = retained_from_us
        self._session = engine.session()
        types = {feature.name: sql_type(feature) for feature in group.features}
        features = ", ".join(f"{identifier(name)} {kind}" for name, kind in types.items())
        key = f"_key {types[group.record_identifier]}"
        times = "_at BIGINT, _api BIGINT, _expires BIGINT"
        # Tables are filled by position: in the order of `_columns` and `_online_table`.
        self._run(
            f"CREATE TEMP TABLE waiting ({key}, {times}, _deleted BOOLEAN, _hard BOOLEAN, {features})",
            f"CREATE TEMP TABLE online ({key}, {times}, _state TINYINT, _grave BIGINT, _online_only BOOLEAN, "
            f"_readable BOOLEAN, {features})",
            f"CREATE TEMP VIEW changes AS SELECT {self._columns()} FROM {files_relation(group, paths)} "
            "UNION ALL SELECT * FROM waiting",
        )

    def close(self) -> None:
        self._session.close()

    def read_waiting(self, moment: _Moment, quarantine: _Quarantine) -> Counter[int]:
        """Take in the changes that are in the log alone; returns how many there are per shard."""
        waiting: Counter[int] = Counter()
        held: list[LoggedChange] = []
        for item in moment.unwritten(quarantine):
            waiting[item.stamp.shard] += 1
            held.append(item)
            if len(held) == CHANGES_HELD:
                self._insert_waiting(held)
                held.clear()
        self._insert_waiting(held)
        return waiting

    def read_online(self, snapshot: OnlineSnapshot, shards: int, progress: Progress) -> Counter[int]:
        """Take in the online states; returns how many live records there are per shard."""
        records: Counter[int] = Counter()
        done, total = 0, snapshot.records()
        for batch in snapshot.states():
            rows = batch.to_pylist()
            for row in rows:
                row["shard"] = shard_of(row["record_id"], shards)
                records[row["shard"]] += row["state"] == RecordState.LIVE
            try:
                table = self._online_table(rows)
            except UNREADABLE:
                table = self._online_table([row for row in rows if self._is_usable(row)])
            self._insert("online", table)
            done += len(rows)
            progress("online records read", done, total)
        return records

    def find_duplicates(self, shards: int) -> None:
        """Rows of one record and one API time."""
        statement = (
            "SELECT _key, _api, count(*), min(_at) FROM changes GROUP BY _key, _api HAVING count(*) > 1 ORDER BY _key, _api"
        )
        for key, api_us, count, at_us in self._rows(statement):
            record_id = key_of(key)
            detail = f"the change of API time {format_iso(api_us)} is there {count:,} times"
            self.found.add(
                Difference(Kind.DUPLICATE, shard_of(record_id, shards), record_id, detail, offline_event_time_us=at_us)
            )

    def first_api_times(self) -> Iterator[tuple[str, Any, int]]:
        """Per record (where, key, API time of the oldest that is held)."""
        yield from self._rows(
            "SELECT 'the offline store', _key, min(_api) FROM changes GROUP BY _key "
            "UNION ALL SELECT 'the online store', _key, greatest(_api, _grave) FROM online ORDER BY 2, 1"
        )

    def compare(self, tallies: Mapping[int, Tally], quarantined: frozenset[str], shards: int) -> Counter[int]:
        """Compare each record; returns how many differ, per shard, as writes to the offline store only explain."""
        kept = "" if self._floor_us is None else f" AND c._at >= {self._floor_us}"
        self._run(
            "CREATE TEMP TABLE barrier AS SELECT _key, max(_barrier) AS _barrier FROM ("
            f"SELECT _key, _api AS _barrier FROM changes c WHERE _hard{kept} "
            "UNION ALL SELECT _key, _grave FROM online WHERE _grave > 0) GROUP BY _key",
            f"CREATE TEMP TABLE fold AS SELECT c._key, max({_rank('c', 'NOT c._deleted')}) AS _rank "
            f"FROM changes c LEFT JOIN barrier b ON c._key = b._key WHERE NOT c._hard{kept} "
            "AND (b._barrier IS NULL OR c._api > b._barrier) GROUP BY c._key",
        )
        explained: Counter[int] = Counter()
        last: object = None
        for key, kind, online_us, offline_us, online_only, is_buried_offline, names in self._rows(self._statement()):
            if key == last:  # its row is there more than once, which is a finding of its own
                continue
            last, record_id = key, key_of(key)
            shard = shard_of(record_id, shards)
            is_newer = kind in (Kind.UNEXPECTED, Kind.NEWER)
            if record_id in quarantined or (is_newer and online_only):
                continue
            if kind == Kind.UNEXPECTED and self._floor_us is not None and online_us < self._floor_us:
                continue
            if tallies.get(shard, Tally()).offline_only and (
                kind in (Kind.MISSING, Kind.STALE) or (is_newer and is_buried_offline)
            ):
                explained[shard] += 1
                continue
            times = f"event time {_shown(online_us)} online, {_shown(offline_us)} offline"
            detail = f"{', '.join(map(repr, names))} differs; {times}" if names else times
            self.found.add(Difference(Kind(kind), shard, record_id, detail, online_us, offline_us))
        return explained

    def _statement(self) -> str:
        """The records that differ, by key, with what `compare` needs to judge them."""
        tests = [(feature.name, identifier(feature.name)) for feature in self._group.features] + [("its expiry", "_expires")]
        names = ", ".join(f"CASE WHEN o.{column} IS DISTINCT FROM w.{column} THEN {literal(name)} END" for name, column in tests)
        live, tombstone, grave = (
            f"o._state = {state:d}" for state in (RecordState.LIVE, RecordState.TOMBSTONE, RecordState.GRAVE)
        )
        online_rank, winner_rank = _rank("o", live), _rank("w", "NOT w._deleted")
        return (
            "SELECT _key, _kind, _online_at, _offline_at, _online_only, _buried, "
            f"CASE WHEN _kind = {literal(Kind.VALUE)} THEN _names ELSE [] END FROM ("
            f"SELECT coalesce(o._key, w._key) AS _key, CASE WHEN {live} AND o._readable "
            f"THEN list_filter([{names}], lambda name: name IS NOT NULL) ELSE [] END AS _names, "
            f"CASE WHEN o._key IS NULL OR {grave} THEN CASE WHEN w._key IS NOT NULL THEN {literal(Kind.MISSING)} END "
            f"WHEN w._key IS NULL THEN {literal(Kind.UNEXPECTED)} "
            # Of soft deletes at one event time the first stays online; the last is the greatest of the rows.
            f"WHEN {tombstone} AND w._deleted AND o._at = w._at THEN NULL "
            f"WHEN {online_rank} < {winner_rank} THEN {literal(Kind.STALE)} "
            f"WHEN {online_rank} > {winner_rank} THEN {literal(Kind.NEWER)} "
            f"WHEN len(_names) > 0 THEN {literal(Kind.VALUE)} END AS _kind, "
            f"CASE WHEN NOT {grave} THEN o._at END AS _online_at, w._at AS _offline_at, "
            "coalesce(o._online_only, false) AS _online_only, coalesce(b._barrier > coalesce(o._grave, 0), false) AS _buried "
            "FROM online o FULL JOIN (SELECT c.* FROM changes c JOIN fold f "
            f"ON c._key = f._key AND {_rank('c', 'NOT c._deleted')} = f._rank WHERE NOT c._hard) w ON o._key = w._key "
            "LEFT JOIN barrier b ON b._key = coalesce(o._key, w._key)) WHERE _kind IS NOT NULL ORDER BY _key"
        )

    def _columns(self) -> str:
        """The columns of `changes` from those of a data file."""
        features = ", ".join(identifier(name) for name in self._group.feature_names)
        return (
            f"{self._key(identifier(self._group.record_identifier))} AS _key, epoch_us({schema.EVENT_TIME}) AS _at, "
            f"epoch_us({schema.API_TIME}) AS _api, epoch_us({schema.EXPIRES_AT}) AS _expires, "
            f"coalesce({schema.IS_DELETED}, false) AS _deleted, coalesce({schema.HARD_DELETED}, false) AS _hard, {features}"
        )

    def _key(self, column: str) -> str:
        """Keys as `value.record_key` makes them: zero has no sign."""
        return f"{column} + 0.0::DOUBLE" if self._group.record_identifier_type is FeatureType.FRACTIONAL else column

    def _insert_waiting(self, items: Sequence[LoggedChange]) -> None:
        """Changes that can't become rows are left out: the writer will put them into quarantine."""
        if not items:
            return
        try:
            table = schema.table_of_changes(self._group, self._group.schema_version, items, [0] * len(items))
        except UNREADABLE:
            if len(items) > 1:
                for item in items:
                    self._insert_waiting([item])
            return
        self._insert("waiting", table, self._columns())

    def _online_table(self, rows: Sequence[Mapping[str, Any]]) -> pa.Table:
        """States as the columns of `online`.

        Raises: one of UNREADABLE.
        """
        group = self._group
        values: list[list[Value]] = [
            decode_values(row["values"])[1] if row["state"] == RecordState.LIVE and row["values"] is not None else []
            for row in rows
        ]
        keys = {feature.name: arrow_type(feature) for feature in group.features}[group.record_identifier]
        return pa.table(
            {
                "_key": pa.array([typed_key(group, row["record_id"]) for row in rows], keys),
                "_at": pa.array([row["event_time_us"] for row in rows], pa.int64()),
                "_api": pa.array([row["api_time_us"] for row in rows], pa.int64()),
                "_expires": pa.array([row["expires_at_us"] for row in rows], pa.int64()),
                "_state": pa.array([row["state"] for row in rows], pa.int8()),
                "_grave": pa.array([row["grave_us"] for row in rows], pa.int64()),
                "_online_only": pa.array([row["online_only"] for row in rows], pa.bool_()),
                "_readable": pa.array([row.get("readable", True) for row in rows], pa.bool_()),
                **{
                    feature.name: schema.typed_array(
                        feature, [record[position] if position < len(record) else None for record in values]
                    )
                    for position, feature in enumerate(group.features)
                },
            }
        )

    def _is_usable(self, row: dict[str, Any]) -> bool:
        """Whether a state can be compared, its values perhaps left out. What can't be read is a difference."""
        fault: Exception | None = None
        for _ in range(2):
            try:
                self._online_table([row])
            except UNREADABLE as error:
                fault = error
                row |= {"values": None, "readable": False}
                continue
            break
        else:
            row["usable"] = False
        if fault is not None:
            detail = f"the online record can't be read: {fault}"
            self.found.add(Difference(Kind.VALUE, row["shard"], row["record_id"], detail, row["event_time_us"]))
        return bool(row.get("usable", True))

    def _insert(self, name: str, table: pa.Table, columns: str = "*") -> None:
        self._session.register("incoming", table)
        self._run(f"INSERT INTO {name} SELECT {columns} FROM incoming")
        self._session.unregister("incoming")

    def _run(self, *statements: str) -> None:
        with self._failing():
            for statement in statements:
                self._session.execute(statement)

    def _rows(self, statement: str) -> Iterator[tuple[Any, ...]]:
        with self._failing():
            result = self._session.execute(statement)
            while rows := result.fetchmany(RESULT_ROWS):
                yield from rows

    @contextmanager
    def _failing(self) -> Iterator[None]:
        try:
            yield
        except duckdb.Error as error:
            if not all(map(os.path.exists, self._paths)):
                raise FileVanished("audit") from error
            raise failed(error) from error
