"""Batch commits: all files of a dataframe enter the table in one manifest version, or none does.

    staging    the files and the online rows are written outside the data folders; a crash leaves nothing visible
    journal    one object that names them: from here on the batch will happen, whoever completes it
    publish    files get their names in the data folders, then one manifest commit shows them all
    (online)   the caller loads the online rows
    close      journal and staging are removed

A journal found later belongs to a call that died; completing it repeats steps that change nothing the second time.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
import pyarrow as pa

from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.model.change import LoggedChange
from featurestore.model.feature_group import FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.manifest import Delta, FileEntry, Manifest, Origin, Version, delta_after
from featurestore.offline.protocol import ObjectStore

FORMAT_VERSION: Final = 1
ABANDONED_S: Final = 24 * 3600
"""Staging without a journal is a call that died early, once it is older than any call lasts."""


class StagedFile(msgspec.Struct, frozen=True):
    source: str
    target: str
    entry: FileEntry


class Journal(msgspec.Struct, frozen=True):
    """One batch that will happen. `online` is the key of its online rows, or None when the batch has none."""

    batch_id: str
    group_id: int
    files: tuple[StagedFile, ...]
    online: str | None
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class BatchRows:
    """Checked rows of one group, ready to be written.

    Attributes:
        features: the group's features in definition order, typed; one row per record.
        event_times_us, api_times_us: int64, one per row.
        expires_at_us: int64 or None where the group has no TTL.
        online: the newest row per record, stamped; empty when the batch does not go online.
    """

    features: pa.Table
    event_times_us: np.ndarray[Any, np.dtype[np.int64]]
    api_times_us: np.ndarray[Any, np.dtype[np.int64]]
    expires_at_us: np.ndarray[Any, np.dtype[np.int64]] | None
    online: Sequence[LoggedChange]


_encode_online: Final = msgspec.msgpack.Encoder().encode
_decode_online: Final = msgspec.msgpack.Decoder(list[LoggedChange]).decode


class BatchWriter:
    """Batch commits into one object store."""

    def __init__(self, objects: ObjectStore) -> None:
        self._objects = objects

    def stage(self, group: FeatureGroup, rows: BatchRows, *, offline: bool) -> Journal:
        """Write a batch aside and promise it by its journal. Nothing of it is visible yet."""
        batch_id = f"{time.time_ns() // 1000:020d}-{uuid.uuid4().hex}"
        files = self._stage_files(batch_id, group, rows) if offline and rows.features.num_rows else ()
        online = None
        if rows.online:
            online = layout.staging_key(batch_id, "online")
            self._objects.put_if_absent(online, _encode_online(list(rows.online)))
        journal = Journal(batch_id, group.group_id, tuple(files), online)
        self._objects.put_if_absent(layout.batch_key(batch_id), msgspec.json.encode(journal))
        return journal

    def publish(self, journal: Journal, manifest: Manifest) -> Version:
        """Show all files of a batch in one manifest version. Idempotent."""

        def plan(state: Version) -> Delta | None:
            if journal.batch_id in state.batches or not journal.files:
                return None
            return delta_after(state, add=[file.entry for file in journal.files], batch=journal.batch_id)

        try:
            for file in journal.files:
                self._objects.move_if_absent(file.source, file.target)
        except StoreUnavailable:
            # Somebody who took this call for dead may have completed the batch and cleared its staging.
            state = manifest.current()
            if journal.batch_id in state.batches:
                return state
            raise
        return manifest.commit(plan)

    def online_rows(self, journal: Journal) -> Sequence[LoggedChange]:
        """The rows that a promised batch loads into the online store."""
        if journal.online is None:
            return []
        data = self._objects.get(journal.online)
        if data is None:  # somebody else has completed the batch meanwhile
            return []
        try:
            return _decode_online(data)
        except msgspec.MsgspecError as error:
            raise StoreCorrupt(journal.online, str(error)) from error

    def close(self, journal: Journal) -> None:
        """Forget a completed batch. Idempotent."""
        self._objects.delete(layout.batch_key(journal.batch_id))
        for file in journal.files:
            self._objects.delete(file.source)
        if journal.online is not None:
            self._objects.delete(journal.online)

    def unfinished(self) -> Sequence[Journal]:
        """Batches that were promised and not closed: of running calls, or of calls that died."""
        journals = []
        for key in self._objects.list("_batch/"):
            data = self._objects.get(key)
            if data is None:
                continue
            try:
                journal = msgspec.json.decode(data, type=Journal)
            except msgspec.MsgspecError as error:
                raise StoreCorrupt(key, str(error)) from error
            if journal.format != FORMAT_VERSION:
                raise StoreCorrupt(key, f"format {journal.format}, this release reads {FORMAT_VERSION}")
            journals.append(journal)
        return journals

    def remove_abandoned(self) -> int:
        """Delete staged objects of calls that died before they promised anything; returns how many."""
        promised = {journal.batch_id for journal in self.unfinished()}
        oldest_us = time.time_ns() // 1000 - ABANDONED_S * 1_000_000
        removed = 0
        for key in self._objects.list("_staging/"):
            batch_id = key.split("/")[1]
            if batch_id not in promised and int(batch_id.split("-")[0]) < oldest_us:
                self._objects.delete(key)
                removed += 1
        return removed

    def _stage_files(self, batch_id: str, group: FeatureGroup, rows: BatchRows) -> list[StagedFile]:
        count = rows.features.num_rows
        write_times_us = time.time_ns() // 1000 + np.arange(count, dtype=np.int64)
        never = pa.nulls(count, schema.INSTANT)
        no = pa.array(np.zeros(count, np.bool_))
        table = pa.table(
            [
                *rows.features.columns,
                schema.instants(write_times_us),
                schema.instants(rows.api_times_us),
                no,
                schema.instants(rows.event_times_us),
                never if rows.expires_at_us is None else schema.instants(rows.expires_at_us),
                no,
            ],
            schema=schema.table_schema(group.features),
        )
        root = layout.group_root(group)
        staged = []
        for part, positions in enumerate(layout.file_groups(rows.event_times_us)):
            name = layout.token("batch", batch_id, part)
            target = layout.data_key(root, int(rows.event_times_us[positions].max()), name)
            source = layout.staging_key(batch_id, name)
            piece = schema.sorted_rows(group, table.take(positions))
            data = schema.parquet_bytes(piece)
            self._objects.put_if_absent(source, data)
            path = target.removeprefix(f"{root}/")
            entry = schema.entry_of(piece, path, len(data), group.schema_version, Origin.BATCH)
            staged.append(StagedFile(source, target, entry))
        return staged
