"""Discovery: files that other tools put into `data/` are found, checked, and adopted or quarantined.

    scan         the objects in `data/` that are not ours, not known and not changing any more
    check        format, columns, every value (`foreign`)
    adopt        the rows are written into files of our own in `opt/` by a batch commit (`batch`), which also records the file
    quarantine   the reason is recorded; the file is looked at again once it, or the group's features, have changed

The file itself is neither edited nor moved, so tools that read the layout by path keep it. Its entry in the manifest is what
makes adoption happen once, whichever processes discover it and wherever they die.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.errors import FileVanished, StoreUnavailable
from featurestore.model.change import shard_of
from featurestore.model.event_time import SECOND_US
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.value import key_of
from featurestore.offline import layout, schema
from featurestore.offline.batch import BatchCancelled
from featurestore.offline.foreign import ForeignParquet, UnfitFileError, check_name, why_ignored
from featurestore.offline.manifest import Delta, ForeignFile, ForeignState, Manifest, Version, delta_after
from featurestore.offline.protocol import ObjectInfo
from featurestore.offline.subjects import Int64s
from featurestore.offline.table import OfflineStore

_log: Final = logging.getLogger(__name__)

SETTLED_S: Final = 30.0
"""A file that was modified within this time may still be being copied."""
FILES_MAX: Final = 1_000
"""Files looked at in one call."""
STAGE_ATTEMPTS_MAX: Final = 10

Reserve = Callable[[Mapping[int, int]], Mapping[int, int]]
"""`OnlineStore.reserve`, run to its end."""
WithoutErased = Callable[[FeatureGroup, pa.Table], pa.Table]
"""Drops the rows of erased records; takes and gives rows in the form of `schema.table_schema`."""


@dataclass(frozen=True, slots=True)
class Discovered:
    """What one call did.

    Attributes:
        adopted, quarantined: files looked at.
        gone: paths of files that were known and are no more; rows that were adopted from them stay.
        remaining: files that are left for the next call.
    """

    adopted: tuple[ForeignFile, ...]
    quarantined: tuple[ForeignFile, ...]
    gone: tuple[str, ...]
    remaining: int


class _UnsettledError(Exception):
    """The file is not what the listing said, or not any more: the next call sees what became of it."""


class Discovery:
    """Discovers files in the folders of one offline store. Any number may run at once, anywhere.

    Args:
        shards: of the store.
    """

    def __init__(
        self,
        offline: OfflineStore,
        shards: int,
        reserve: Reserve,
        without_erased: WithoutErased,
        *,
        clock_us: Callable[[], int] = lambda: time.time_ns() // 1000,
    ) -> None:
        self._offline = offline
        self._shards = shards
        self._reserve = reserve
        self._without_erased = without_erased
        self._clock_us = clock_us
        self._warned: set[ObjectInfo] = set()

    def discover(self, group: FeatureGroup, *, settled_s: float = SETTLED_S, files_max: int = FILES_MAX) -> Discovered:
        """Look at the files in a group's `data/` that are new or have changed since they were quarantined, oldest first.

        Each file is adopted whole, exactly once, or quarantined.

        Args:
            settled_s: files modified within this time are left for later.

        Raises:
            StoreUnavailable, StoreCorrupt: what was adopted stays adopted; call again.
        """
        manifest = self._offline.manifest(group)
        self._complete(group, manifest)
        root = layout.group_root(group)
        before = manifest.current()
        found = {info.key.removeprefix(f"{root}/"): info for info in self._offline.objects.scan(f"{root}/data/")}
        due = self._due(group, found, before, int(settled_s * SECOND_US))
        adopted, quarantined = [], []
        for path in due[:files_max]:
            looked_us = self._clock_us()
            try:
                file = self._adopt(group, manifest, path, found[path])
            except UnfitFileError as error:
                _log.warning("quarantined %s of feature group %s: %s", path, group.name, error)
                unfit = ForeignFile(path, found[path].bytes, ForeignState.QUARANTINED, looked_us, reason=str(error))
                quarantined.append(unfit)
            except _UnsettledError:
                continue
            else:
                if file is not None:
                    adopted.append(file)
        gone = [path for path in before.foreign if path not in found]
        after = _record(manifest, before, quarantined, gone)
        return Discovered(
            tuple(adopted),
            tuple(file for file in quarantined if after.foreign.get(file.path) == file),
            tuple(path for path in gone if path not in after.foreign),
            max(0, len(due) - files_max),
        )

    def _complete(self, group: FeatureGroup, manifest: Manifest) -> None:
        """Complete adoptions that were promised, before anything that they concern is decided anew."""
        for journal in self._offline.batches.unfinished():
            if journal.foreign is not None and journal.group_id == group.group_id:
                self._offline.batches.publish(journal, manifest)
                self._offline.batches.close(journal)

    def _due(self, group: FeatureGroup, found: Mapping[str, ObjectInfo], before: Version, settled_us: int) -> list[str]:
        """Paths of the files to look at, in the order in which they were written: it decides where API times are missing."""
        root, now_us = layout.group_root(group), self._clock_us()
        due = []
        for path, info in found.items():
            if layout.kind_of(root, path) is not None or why_ignored(path) is not None:
                continue
            known = before.foreign.get(path)
            if known is not None and known.state is ForeignState.ADOPTED:
                self._warn_of_change(group, known, info)
                continue
            # A time in the future is as good as any that is over: nobody is writing then.
            settled = abs(now_us - info.modified_us) >= settled_us
            if settled and (known is None or _has_changed(group, known, info, now_us)):
                due.append(path)
        return sorted(due, key=lambda path: (found[path].modified_us, path))

    def _adopt(self, group: FeatureGroup, manifest: Manifest, path: str, info: ObjectInfo) -> ForeignFile | None:
        """Adopt a file; None if another process was faster.

        Raises:
            UnfitFileError, _UnsettledError, StoreUnavailable, StoreCorrupt
        """
        check_name(path)
        batches = self._offline.batches
        for _ in range(STAGE_ATTEMPTS_MAX):
            now_us = self._clock_us()
            with self._opened(info) as source:
                parquet = ForeignParquet(source, group, now_us)
                tables = self._placed(group, parquet, source, info)
                foreign = ForeignFile(path, info.bytes, ForeignState.ADOPTED, now_us)
                try:
                    journal = batches.stage_foreign(group, tables, foreign)
                except BatchCancelled:
                    _log.warning("the adoption of %s was cancelled before it was promised; beginning again", path)
                    continue
            version = batches.publish(journal, manifest)
            batches.close(journal)
            return journal.foreign if journal.batch_id in version.batches else None
        raise StoreUnavailable(f"adopt {path}", f"the batch was cancelled {STAGE_ATTEMPTS_MAX} times", hint="nothing was written")

    def _opened(self, info: ObjectInfo) -> pa.NativeFile:
        if info.bytes == 0:  # not opened: what looks empty may be a pipe, which is waited for
            raise UnfitFileError("an empty file: 0 bytes")
        try:
            (path,) = self._offline.objects.paths([info.key])
            source = pa.OSFile(path)
        except (FileVanished, FileNotFoundError) as error:
            raise _UnsettledError from error
        except PermissionError as error:
            raise UnfitFileError(f"can't be read: {os.strerror(error.errno or errno.EACCES)}") from error
        except OSError as error:
            raise StoreUnavailable(f"read {info.key}", str(error)) from error
        if source.size() == info.bytes:
            return source
        source.close()
        # The local copy of a remote object may be older than what has replaced it since.
        data = self._offline.objects.get(info.key)
        if data is None or len(data) != info.bytes:
            raise _UnsettledError
        return pa.BufferReader(data)

    def _placed(
        self, group: FeatureGroup, parquet: ForeignParquet, source: pa.NativeFile, info: ObjectInfo
    ) -> Iterator[tuple[pa.Table, Int64s]]:
        """The tables of a file with an API time in every row, without erased records; and the shards of their rows."""
        for table in parquet.tables():
            shards = _shards_of(table[group.record_identifier], self._shards)
            placed = self._with_api_times(table, shards)
            kept = self._without_erased(group, placed)
            if kept.num_rows != placed.num_rows:
                shards = _shards_of(kept[group.record_identifier], self._shards)
            yield kept, shards
        if isinstance(source, pa.OSFile) and os.fstat(source.fileno()).st_size != info.bytes:
            raise _UnsettledError

    def _with_api_times(self, table: pa.Table, shards: Int64s) -> pa.Table:
        """Rows without an API time get one each, rising in row order within a shard: they arrive now, one after the other."""
        given = table[schema.API_TIME].combine_chunks()
        if given.null_count == 0:
            return table
        missing = given.is_null().to_numpy(zero_copy_only=False)
        times_us = given.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).copy()
        counts = np.bincount(shards[missing])
        firsts = self._reserve({int(shard): int(counts[shard]) for shard in np.flatnonzero(counts)})
        for shard, first_us in firsts.items():
            rows = np.flatnonzero(missing & (shards == shard))
            times_us[rows] = first_us + np.arange(len(rows), dtype=np.int64)
        return table.set_column(
            table.schema.get_field_index(schema.API_TIME), table.schema.field(schema.API_TIME), schema.instants(times_us)
        )

    def _warn_of_change(self, group: FeatureGroup, known: ForeignFile, info: ObjectInfo) -> None:
        if info.bytes != known.bytes and info not in self._warned:
            self._warned.add(info)
            _log.warning(
                "%s of feature group %s had %d bytes when its rows were adopted and has %d now; "
                "the rows stay as they were: drop what is new as a file of another name",
                known.path,
                group.name,
                known.bytes,
                info.bytes,
            )


def _has_changed(group: FeatureGroup, known: ForeignFile, info: ObjectInfo, now_us: int) -> bool:
    """Whether a quarantined file, or the group that it is measured by, is another since it was looked at."""
    return (
        info.bytes != known.bytes
        or known.at_us < info.modified_us <= now_us
        or known.at_us < group.modified_at_us <= now_us  # a column may have become a feature
    )


def _record(manifest: Manifest, before: Version, quarantined: Sequence[ForeignFile], gone: Sequence[str]) -> Version:
    """Record what was found, except of files of which somebody else has recorded something since `before`."""

    def unchanged(state: Version, path: str) -> bool:
        return state.foreign.get(path) == before.foreign.get(path)

    def plan(state: Version) -> Delta | None:
        fresh = [file for file in quarantined if unchanged(state, file.path)]
        forgotten = [path for path in gone if path in state.foreign and unchanged(state, path)]
        return delta_after(state, foreign=fresh, forget_foreign=forgotten) if fresh or forgotten else None

    return manifest.commit(plan)


def _shards_of(identifiers: pa.ChunkedArray, shards: int) -> Int64s:
    """The shard of each row, from the rows' identifiers."""
    encoded = identifiers.combine_chunks().dictionary_encode()
    by_code = np.array([shard_of(key_of(identifier), shards) for identifier in encoded.dictionary.to_pylist()], np.int64)
    found: Int64s = by_code[encoded.indices.to_numpy(zero_copy_only=False)]
    return found
