"""Batch commits: all files of a dataframe enter the table in one manifest version, or none does.

    staging    the files and the online rows are written outside the data folders; a crash leaves nothing visible
    journal    one object that names them: from here on the batch will happen, whoever completes it. Creating it decides:
               who takes the call for dead, or must be sure that nothing of it comes after an erase, puts a cancelled
               journal in its place, and the call, should it live, begins again
    publish    files get their names in the data folders, then one manifest commit shows them all
    (online)   the caller loads the online rows
    close      journal and staging are removed

A journal found later belongs to a call that died; completing it repeats steps that change nothing the second time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
import pyarrow as pa

from featurestore.decoding import decode_json
from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.stamped_rows import StampedRows
from featurestore.offline import layout, schema
from featurestore.offline.ledger import Ledger
from featurestore.offline.manifest import Delta, FileEntry, ForeignFile, ForeignState, Manifest, Origin, Version, delta_after
from featurestore.offline.protocol import ObjectStore
from featurestore.offline.subjects import Int64s, erased_rows

FORMAT_VERSION: Final = 3
INACTIVE_S: Final = 600
"""Staging without a journal belongs to a call that died once nothing was added to it for so long. A call that was only slow
begins again, see `BatchCancelled`."""
CANCELLED_KEPT_S: Final = 7 * 24 * 3600
"""How long a cancelled journal keeps a call that was taken for dead from making its promise."""
BEGIN: Final = "begin"
FILES_AT_ONCE: Final = 4
"""Files of a batch that are encoded and sent at a time: two cores are kept busy, and a distant store is waited for less."""


class BatchCancelled(Exception):
    """The batch was cancelled before it was promised; nothing of it is anywhere. Staging it again is safe."""


class StagedFile(msgspec.Struct, frozen=True):
    source: str
    target: str
    entry: FileEntry


class Journal(msgspec.Struct, frozen=True, omit_defaults=True):
    """One batch that will happen, or, when `cancelled`, never will.

    Attributes:
        online: key of its online rows, or None when the batch has none.
        rows: per shard (as text) the rows of its files.
        foreign: the file of another tool whose rows these are.
    """

    batch_id: str
    group_id: int
    files: tuple[StagedFile, ...]
    online: str | None = None
    rows: dict[str, int] = {}
    foreign: ForeignFile | None = None
    cancelled: bool = False
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Checked rows of one group, ready to be written.

    Attributes:
        features: the group's features in definition order, typed; one row per record.
        event_times_us, api_times_us: int64, one per row.
        expires_at_us: int64 or None where the group has no TTL.
        shards: int64, the shard of each row.
        ranks: int64, see `schema.ranks_of`.
        online: the newest row per record; None when the batch does not go online.
    """

    features: pa.Table
    event_times_us: Int64s
    api_times_us: Int64s
    expires_at_us: Int64s | None
    shards: Int64s
    ranks: Int64s
    online: StampedRows | None


class BatchWriter:
    """Batch commits into one object store. What the ledger says is erased stays out."""

    def __init__(self, objects: ObjectStore, ledger: Ledger) -> None:
        self._objects = objects
        self._ledger = ledger

    def stage(self, group: FeatureGroup, rows: BatchRows, *, offline: bool) -> Journal:
        """Write a batch aside and promise it by its journal. Nothing of it is visible yet.

        Raises:
            BatchCancelled, StoreUnavailable
        """
        batch_id = self._begin()
        rows = self._without_erased(group, rows)
        files: Sequence[StagedFile] = ()
        if offline and rows.features.num_rows:
            table = _offline_table(group, rows)
            files = self._stage_files(batch_id, group, layout.FileKind.BATCH, table, rows.ranks)
        online = None
        if rows.online:
            online = layout.staging_key(batch_id, _now_us(), "online")
            self._objects.put_if_absent(online, rows.online.to_bytes())
        journal = Journal(batch_id, group.group_id, tuple(files), online, _counts(rows.shards) if files else {})
        return self._promise(journal)

    def stage_foreign(self, group: FeatureGroup, tables: Iterable[tuple[pa.Table, Int64s]], foreign: ForeignFile) -> Journal:
        """As `stage`, with the rows of a file that another tool put into the layout.

        Args:
            tables: rows in the form of `schema.table_schema` with write times yet to be given (null), and their shards.
            foreign: what the manifest is to say of the file; its rows and latest event time are filled in here.

        Raises:
            BatchCancelled, StoreUnavailable, and what `tables` raises; nothing of the batch is anywhere then.
        """
        batch_id = self._begin()
        write_time_us = _now_us()
        files: list[StagedFile] = []
        rows: dict[str, int] = {}
        try:
            for table, shards in tables:
                times = schema.instants(write_time_us + np.arange(table.num_rows, dtype=np.int64))
                write_time_us += table.num_rows
                table = table.set_column(table.schema.get_field_index(schema.WRITE_TIME), schema.SYSTEM_FIELDS[0], times)
                ranks = schema.ranks_of(table[group.record_identifier])
                files.extend(self._stage_files(batch_id, group, layout.FileKind.FOREIGN, table, ranks, first_part=len(files)))
                for shard, count in _counts(shards).items():
                    rows[shard] = rows.get(shard, 0) + count
        except Exception:  # the file is not what it seemed; a batch that is left under way would hold up others
            self._withdraw(batch_id)
            raise
        latest_us = max((file.entry.event_time_us_max for file in files), default=None)
        foreign = msgspec.structs.replace(foreign, rows=sum(rows.values()), event_time_us_max=latest_us)
        return self._promise(Journal(batch_id, group.group_id, tuple(files), None, rows, foreign))

    def publish(self, journal: Journal, manifest: Manifest) -> Version:
        """Show all files of a batch in one manifest version. Idempotent."""

        def plan(state: Version) -> Delta | None:
            if not is_wanted(state):
                return None
            return delta_after(
                state,
                add=[file.entry for file in journal.files],
                batch=journal.batch_id,
                rows={int(shard): count for shard, count in journal.rows.items()},
                foreign=[] if journal.foreign is None else [journal.foreign],
            )

        def is_wanted(state: Version) -> bool:
            """Of several processes that adopt one file at a time, the first one to commit has."""
            known = None if journal.foreign is None else state.foreign.get(journal.foreign.path)
            adopted = known is not None and known.state is ForeignState.ADOPTED
            return (
                journal.batch_id not in state.batches
                and not adopted
                and bool(journal.files or journal.foreign)
                and self._is_open(journal)
            )

        if not is_wanted(state := manifest.current()):
            return state
        try:
            with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
                list(pool.map(lambda file: self._objects.move_if_absent(file.source, file.target), journal.files))
        except StoreUnavailable:
            # Somebody who took this call for dead may have completed the batch and cleared its staging.
            if is_wanted(manifest.current()):
                raise
        version = manifest.commit(plan)
        if journal.foreign is not None and journal.batch_id not in version.batches:
            for file in journal.files:
                self._objects.delete(file.target)
        return version

    def _is_open(self, journal: Journal) -> bool:
        """A journal that is gone was closed after its commit, however long ago that is."""
        return self._objects.get(layout.batch_key(journal.batch_id)) is not None

    def online_rows(self, journal: Journal) -> StampedRows | None:
        """The rows that a promised batch loads into the online store."""
        if journal.online is None:
            return None
        data = self._objects.get(journal.online)
        if data is None:  # somebody else has completed the batch meanwhile
            return None
        try:
            return StampedRows.of_bytes(journal.group_id, data)
        except ValueError as error:
            raise StoreCorrupt(journal.online, str(error)) from error

    def close(self, journal: Journal) -> None:
        """Forget a completed batch. Idempotent."""
        self._withdraw(journal.batch_id)
        self._objects.delete(layout.batch_key(journal.batch_id))

    def unfinished(self) -> Sequence[Journal]:
        """Batches that were promised and not closed: of running calls, or of calls that died."""
        return [journal for journal in self._journals() if not journal.cancelled]

    def unfinished_since_us(self) -> int | None:
        """When the oldest batch began that is neither in its table nor cancelled; None if there is none.

        Rows that are yet to come have write times from then on.
        """
        begun = [journal.batch_id for journal in self.unfinished()] + list(self._unpromised())
        return min((int(batch_id.split("-")[0]) for batch_id in begun), default=None)

    def cancel(self, *, inactive_s: float) -> int:
        """Make sure that no unpromised batch to which nothing was added for so long is ever promised; returns how many.

        Their staging is deleted. A call that is still at work on one finds out and begins again.
        """
        oldest_us = _now_us() - int(inactive_s * 1_000_000)
        cancelled = 0
        for batch_id, active_us in self._unpromised().items():
            if active_us <= oldest_us:
                journal = Journal(batch_id, 0, (), cancelled=True)
                if self._objects.put_if_absent(layout.batch_key(batch_id), msgspec.json.encode(journal)):
                    cancelled += 1
        for journal in self._journals():
            if journal.cancelled:
                self._withdraw(journal.batch_id)
                if int(journal.batch_id.split("-")[0]) < _now_us() - CANCELLED_KEPT_S * 1_000_000:
                    self._objects.delete(layout.batch_key(journal.batch_id))
        return cancelled

    def _begin(self) -> str:
        """A fresh batch id. From now on others see that this batch is under way, before its first write time is taken."""
        batch_id = f"{_now_us():020d}-{uuid.uuid4().hex}"
        self._objects.put_if_absent(layout.staging_key(batch_id, _now_us(), BEGIN), b"")
        return batch_id

    def _without_erased(self, group: FeatureGroup, rows: BatchRows) -> BatchRows:
        """Without what was erased after the rows had got their API times. An erase that comes later finds the batch."""
        identifiers = rows.features[group.record_identifier]
        erased = erased_rows(self._ledger, group, identifiers, [rows.api_times_us])
        if erased is None:
            return rows
        until_us = self._ledger.erased(group.group_id).until_us
        online = rows.online
        if online is not None:
            pairs = zip(online.columns["record_id"].to_pylist(), online.int64s("api_time_us").tolist(), strict=True)
            online = online.where(np.array([api_us > (until_us(key) or 0) for key, api_us in pairs], np.bool_))
        return BatchRows(
            rows.features.filter(pa.array(~erased)),
            rows.event_times_us[~erased],
            rows.api_times_us[~erased],
            None if rows.expires_at_us is None else rows.expires_at_us[~erased],
            rows.shards[~erased],
            rows.ranks[~erased],
            online,
        )

    def _promise(self, journal: Journal) -> Journal:
        if not self._objects.put_if_absent(layout.batch_key(journal.batch_id), msgspec.json.encode(journal)):
            self._withdraw(journal.batch_id)
            raise BatchCancelled
        return journal

    def _withdraw(self, batch_id: str) -> None:
        for key in self._objects.list(f"_staging/{batch_id}/"):
            self._objects.delete(key)

    def _unpromised(self) -> dict[str, int]:
        """Batches without a journal: id to the time of their last activity."""
        active_us: dict[str, int] = {}
        for key in self._objects.list("_staging/"):
            _, batch_id, name = key.split("/")
            active_us[batch_id] = max(active_us.get(batch_id, 0), int(name.partition("-")[0]))
        promised = {key.removeprefix("_batch/").removesuffix(".json") for key in self._objects.list("_batch/")}
        return {batch_id: time_us for batch_id, time_us in active_us.items() if batch_id not in promised}

    def _journals(self) -> Sequence[Journal]:
        journals = []
        for key in self._objects.list("_batch/"):
            data = self._objects.get(key)
            if data is None:
                continue
            try:
                journal = decode_json(data, Journal)
            except msgspec.MsgspecError as error:
                raise StoreCorrupt(key, str(error)) from error
            if journal.format != FORMAT_VERSION:
                raise StoreCorrupt(key, f"format {journal.format}, this release reads {FORMAT_VERSION}")
            journals.append(journal)
        return journals

    def _stage_files(
        self,
        batch_id: str,
        group: FeatureGroup,
        kind: layout.FileKind,
        table: pa.Table,
        ranks: Int64s,
        *,
        first_part: int = 0,
    ) -> list[StagedFile]:
        """Args: ranks: see `BatchRows`."""
        root = layout.group_root(group)
        event_times_us, api_times_us = schema.times_us_of(table, schema.EVENT_TIME), schema.times_us_of(table, schema.API_TIME)

        def stage(part: int, positions: Int64s) -> StagedFile:
            name = layout.token(root, kind, batch_id, part)
            latest_us = int(event_times_us[positions].max())
            if kind is layout.FileKind.FOREIGN:
                # Their rows are in `data/` already, in the file that the other tool has written.
                target, origin = layout.opt_key(root, latest_us, name), Origin.FOREIGN
            else:
                target, origin = layout.data_key(root, latest_us, name), Origin.BATCH
            source = layout.staging_key(batch_id, _now_us(), f"{name}.parquet")
            piece = table.take(pa.array(schema.sorted_positions(positions, ranks, event_times_us, api_times_us)))
            data = schema.parquet_bytes(piece, {"batch": batch_id}, repeating=repeating)
            self._objects.put_if_absent(source, data)
            path = target.removeprefix(f"{root}/")
            return StagedFile(source, target, schema.entry_of(piece, path, len(data), group.schema_version, origin))

        parts = layout.file_groups(event_times_us)
        repeating = schema.repeating_columns(table, table.num_rows // max(1, len(parts)))
        with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
            return list(pool.map(stage, range(first_part, first_part + len(parts)), parts))


def _offline_table(group: FeatureGroup, rows: BatchRows) -> pa.Table:
    count = rows.features.num_rows
    never = pa.nulls(count, schema.INSTANT)
    no = pa.array(np.zeros(count, np.bool_))
    return pa.table(
        [
            *rows.features.columns,
            schema.instants(_now_us() + np.arange(count, dtype=np.int64)),
            schema.instants(rows.api_times_us),
            no,
            schema.instants(rows.event_times_us),
            never if rows.expires_at_us is None else schema.instants(rows.expires_at_us),
            no,
        ],
        schema=schema.table_schema(group.features),
    )


def _counts(shards: Int64s) -> dict[str, int]:
    found, counts = np.unique(shards, return_counts=True)
    return {str(shard): count for shard, count in zip(found.tolist(), counts.tolist(), strict=True)}


def _now_us() -> int:
    return time.time_ns() // 1000
