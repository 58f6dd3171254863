"""Cleaning: objects that nobody needs any more are deleted, after a grace period in which running queries may still read them.

    garbage      files that the manifest has replaced in `opt/`, and everything below
    left over    outputs of merges and adoptions that died before their commit
    superseded   originals in `data/` whose rows are in merged files: kept for readers by path, unless the mode is `replace`
    ended        files of which every row is older than the group's retention
    versions     objects of manifest versions that checkpoints have made unnecessary

An object is first entered as garbage into the manifest, then deleted once the grace period is over, then forgotten.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import pyarrow.parquet as pq

from featurestore.errors import FileVanished
from featurestore.model.event_time import SECOND_US
from featurestore.model.feature_group import CompactionMode, FeatureGroup
from featurestore.offline import layout, schema
from featurestore.offline.layout import FileKind
from featurestore.offline.manifest import Delta, FileEntry, ForeignState, Version, delta_after
from featurestore.offline.protocol import ObjectInfo
from featurestore.offline.table import OfflineStore

LEFT_OVER_S: Final = 2 * 3600.0
"""Age from which an output without a commit counts as left over, well above `compaction.COMMIT_DEADLINE_S`."""
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What a cleaning did: objects that became garbage, and objects that were deleted."""

    trashed: int
    deleted: int


@dataclass(frozen=True, slots=True)
class Retained:
    """What a retention run did.

    Attributes:
        from_us: event time from which on history is kept, microseconds since 1970; None without retention.
        files, rows: that left the table.
    """

    from_us: int | None
    files: int
    rows: int


class Cleaner:
    """Cleans the folders of one offline store. Any number may run at once, anywhere.

    Args:
        shards: of the store.
        grace_s: how long after its replacement an object is deleted; longer than any query runs.
    """

    def __init__(self, offline: OfflineStore, shards: int, *, mode: CompactionMode, grace_s: float) -> None:
        self._offline = offline
        self._shards = shards
        self._mode = mode
        self._grace_us = int(grace_s * SECOND_US)

    def clean(self, group: FeatureGroup) -> Cleaned:
        """Enter what nobody needs as garbage, and delete garbage whose grace period is over.

        Raises:
            StoreUnavailable, StoreCorrupt: what was done stays done; call again.
        """
        root = layout.group_root(group)
        manifest = self._offline.manifest(group)
        listed = [*self._offline.objects.scan(f"{root}/opt/"), *self._offline.objects.scan(f"{root}/data/")]
        found = list(self._unneeded(group, listed, manifest.current()))

        def trash(state: Version) -> Delta | None:
            live = {entry.path for entry in state.files} | {item.path for item in state.garbage}
            fresh = [path for path in found if path not in live]
            return delta_after(state, trash=fresh) if fresh else None

        before = {item.path for item in manifest.current().garbage}
        state = manifest.commit(trash)
        trashed = sum(item.path not in before for item in state.garbage)
        due_us = _now_us() - self._grace_us
        due = [item.path for item in state.garbage if item.since_us <= due_us]
        for path in due:
            self._offline.objects.delete(f"{root}/{path}")

        def sweep(state: Version) -> Delta | None:
            swept = [item.path for item in state.garbage if item.path in due]
            return delta_after(state, swept=swept) if swept else None

        manifest.commit(sweep)
        manifest.prune()
        self._offline.objects.remove_leftovers()
        return Cleaned(trashed, len(due))

    def retain(self, group: FeatureGroup) -> Retained:
        """End the group's history where its retention says: rows with an earlier event time do not count any more, and files
        without any other row leave the table.

        Raises:
            StoreUnavailable, StoreCorrupt: what was done stays done; call again.
        """
        assert group.offline is not None, "only groups with an offline store have history"
        days = group.offline.retention_days
        if days is None:
            return Retained(None, 0, 0)
        floor_us = (_now_us() - days * DAY_S * SECOND_US) // layout.HOUR_US * layout.HOUR_US
        ended: list[FileEntry] = []
        counts: dict[str, dict[int, int]] = {}

        def plan(state: Version) -> Delta | None:
            nonlocal ended
            ended = [entry for entry in state.files if entry.event_time_us_max < floor_us]
            if not ended and (state.retained_from_us or floor_us - 1) >= floor_us:
                return None
            rows: dict[int, int] = {}
            for entry in ended:
                if entry.path not in counts:
                    counts[entry.path] = self._rows_by_shard(group, entry)
                for shard, count in counts[entry.path].items():
                    rows[shard] = rows.get(shard, 0) - count
            paths = [entry.path for entry in ended]
            return delta_after(state, remove=paths, trash=paths, rows=rows, retained_from_us=floor_us)

        state = self._offline.manifest(group).commit(plan)
        return Retained(state.retained_from_us, len(ended), sum(entry.rows for entry in ended))

    def _unneeded(self, group: FeatureGroup, listed: Sequence[ObjectInfo], state: Version) -> Iterator[str]:
        """Paths of objects that no version from `state` on needs. `state` is read after the listing."""
        root = layout.group_root(group)
        live = {entry.path for entry in state.files}
        targets = {file.target for journal in self._offline.batches.unfinished() for file in journal.files}
        left_over_us = _now_us() - int(LEFT_OVER_S * SECOND_US)
        for info in listed:
            path = info.key.removeprefix(f"{root}/")
            kind = layout.kind_of(root, path)
            if path in live or info.key in targets:
                continue
            if path.startswith("opt/"):
                if kind is not None and info.modified_us < left_over_us:
                    yield path
            elif kind is None:
                if self._is_ended_foreign(path, state):
                    yield path
            elif (self._mode is CompactionMode.REPLACE or _is_ended(path, state)) and self._is_committed(
                group, info, kind, state
            ):
                yield path

    def _is_committed(self, group: FeatureGroup, info: ObjectInfo, kind: FileKind, state: Version) -> bool:
        """Whether a file of our own in `data/` has been live: only then is it not live because it was replaced."""
        try:
            (path,) = self._offline.objects.paths([info.key])
            facts = schema.facts_of(pq.read_metadata(path))
        except (FileVanished, FileNotFoundError):
            return False
        if kind is FileKind.STREAM:
            return state.offset_next(int(facts["shard"])) >= int(facts["offset_next"])
        if kind is FileKind.BATCH:
            # It got its name after the batch was promised, and the promise is forgotten after the commit.
            return self._offline.objects.get(layout.batch_key(str(facts["batch"]))) is None
        return kind is FileKind.ERASURE and self._offline.objects.get(layout.receipt_key(int(facts["erasure"]))) is not None

    @staticmethod
    def _is_ended_foreign(path: str, state: Version) -> bool:
        known = state.foreign.get(path)
        return (
            known is not None
            and known.state is ForeignState.ADOPTED
            and known.event_time_us_max is not None
            and state.retained_from_us is not None
            and known.event_time_us_max < state.retained_from_us
        )

    def _rows_by_shard(self, group: FeatureGroup, entry: FileEntry) -> dict[int, int]:
        (path,) = self._offline.paths(group, [entry])
        name = group.record_identifier
        return schema.rows_by_shard(pq.read_table(path, columns=[name], partitioning=None)[name], self._shards)


def _is_ended(path: str, state: Version) -> bool:
    return state.retained_from_us is not None and layout.latest_event_time_us(path) + SECOND_US <= state.retained_from_us


def _now_us() -> int:
    return time.time_ns() // 1000
