"""The offline store as readers see it: plans from one table version per group, then training sets and SQL over its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.engine import Engine
from featurestore.errors import Fault, ValidationFailed
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.frame import arrow_table
from featurestore.model.inference import datetime_us
from featurestore.offline.manifest import FileEntry, Version
from featurestore.offline.table import OfflineStore
from featurestore.progress import Progress
from featurestore.query.history import history_sql, latest_sql
from featurestore.query.join import join_group
from featurestore.query.point_in_time import KEY, TIME, Cut, GroupJoin
from featurestore.query.replan import replanned
from featurestore.query.sandbox import Relations, Sandbox, TableName, View
from featurestore.query.sight import Sight, files_in_sight, sight_of
from featurestore.query.training_set import (
    EVENT_TIME_SUFFIX,
    FeatureSelection,
    TrainingSet,
    join_spine,
    referenced_groups,
    select_features,
    spine_times,
)
from featurestore.stopwatch import Stopwatch

HISTORY: Final = "history"
LATEST: Final = "latest"


class OfflineReader:
    """Questions to the offline store. Sees what the manifests hold; who wants more flushes first.

    Each group is read at one version from start to end. When a file of that version is deleted before it was read, the whole
    answer is planned anew.

    Args:
        group_of: a live group by name; raises FeatureGroupNotFound.
    """

    def __init__(self, offline: OfflineStore, group_of: Callable[[str], FeatureGroup], engine: Engine, sandbox: Sandbox) -> None:
        self._offline = offline
        self._group_of = group_of
        self._engine = engine
        self._sandbox = sandbox

    def create_training_set(
        self,
        spine: object,
        features: Sequence[str] | Mapping[str, str],
        *,
        event_time: str,
        keys: Mapping[str, str],
        cut: Cut,
        as_of_us: int | None,
        event_times: bool,
        stopwatch: Stopwatch,
        progress: Progress,
    ) -> TrainingSet:
        """See `FeatureStore.create_training_set`."""
        table = self._spine(spine, as_of_us)
        times = spine_times(table, event_time)
        groups = {name: self._group_of(name) for name in referenced_groups(features)}
        selections = select_features(features, groups, table.column_names)
        latest_us = pc.max(times.cast(pa.int64())).as_py()

        def joinable(group: FeatureGroup) -> pa.Table:
            return join_spine(table, group, keys.get(group.name, group.record_identifier), times)

        def answer() -> TrainingSet:
            versions = {name: self._version(group) for name, group in groups.items()}
            _refuse_before_history(versions, event_time, times, lambda name: joinable(groups[name]))
            stopwatch.lap("plan")
            columns: dict[str, pa.ChunkedArray] = {}
            for position, selection in enumerate(selections):
                group = selection.group
                progress("groups joined", position, len(selections))
                entries = _files_for_rows(files_in_sight(versions[group.name], as_of_us), latest_us, cut)
                sight = self._sight(group, versions[group.name], entries, as_of_us)
                joined = join_group(self._engine, joinable(group), _group_join(selection, sight, event_times), cut)
                columns.update(zip(joined.column_names, joined.columns, strict=True))
                stopwatch.lap(f"join {group.name}")
            progress("groups joined", len(selections), len(selections))
            read = {name: version.version for name, version in versions.items()}
            return TrainingSet(table, pa.table(columns), read, stopwatch.took_s)

        return replanned(answer)

    def sql(self, statement: str, *, as_of_us: int | None = None, timeout_s: float | None = None) -> pa.Table:
        """See `FeatureStore.sql`."""
        return self._sandbox.run(statement, lambda names: self._relations(names, as_of_us), timeout_s=timeout_s)

    def history(self, group: FeatureGroup) -> tuple[Sight, int]:
        """All rows of a group in the newest version of its table, and the size of the files they are in.

        Raises:
            ValidationFailed: the group has no offline store.
            StoreUnavailable
        """
        version = self._version(group)
        entries = files_in_sight(version, None)
        return self._sight(group, version, entries, None), sum(entry.bytes for entry in entries)

    def _spine(self, spine: object, as_of_us: int | None) -> pa.Table:
        if isinstance(spine, Path):
            try:
                return pq.read_table(spine)
            except (OSError, pa.ArrowInvalid) as error:
                raise ValidationFailed.one("spine", f"a readable Parquet file ({error})", str(spine)) from error
        return self.sql(spine, as_of_us=as_of_us) if isinstance(spine, str) else arrow_table(spine)

    def _sight(self, group: FeatureGroup, version: Version, entries: Sequence[FileEntry], as_of_us: int | None) -> Sight:
        return sight_of(group, version, entries, self._offline.paths(group, entries), as_of_us)

    def _version(self, group: FeatureGroup) -> Version:
        if group.offline is None:
            raise ValidationFailed.one("feature group", "one with an offline store", group.name)
        return self._offline.manifest(group).current()

    def _relations(self, names: Sequence[TableName], as_of_us: int | None) -> Relations:
        """The views that a statement's table names mean, and the files behind them."""
        views: list[View] = []
        sights: dict[str, Sight] = {}
        for table in names:
            schema = HISTORY if table.schema is None else table.schema
            if schema not in (HISTORY, LATEST):
                raise ValidationFailed.one("schema", f"{HISTORY} or {LATEST}", schema)
            group = self._group_of(table.name)
            if group.name not in sights:
                version = self._version(group)
                sights[group.name] = self._sight(group, version, files_in_sight(version, as_of_us), as_of_us)
            render = history_sql if schema == HISTORY else latest_sql
            views.append(View(schema, table.name, render(sights[group.name])))
        return Relations(tuple(views), tuple(path for sight in sights.values() for path in sight.paths))


def make_cut(known_by: datetime | None, as_served: bool) -> Cut:
    """The cut that a caller asks for.

    Raises:
        ValidationFailed: both are asked for, or the time is naive.
    """
    if known_by is not None and as_served:
        raise ValidationFailed.one("as_served", "false when known_by is given", as_served)
    return Cut(None if known_by is None else datetime_us(known_by, path="known_by"), as_served)


def past_us(moment: datetime, *, path: str) -> int:
    """Microseconds since 1970 of a time that is over.

    Raises:
        ValidationFailed: it is naive, or not in the past.
    """
    moment_us, now_us = datetime_us(moment, path=path), time.time_ns() // 1000
    if moment_us >= now_us:
        raise ValidationFailed.one(path, f"a time in the past, before {format_iso(now_us)}", format_iso(moment_us))
    return moment_us


def _group_join(selection: FeatureSelection, sight: Sight, event_times: bool) -> GroupJoin:
    event_time_column = f"{selection.group.name}.{EVENT_TIME_SUFFIX}" if event_times else None
    return GroupJoin(sight, selection.features, event_time_column)


def _files_for_rows(entries: Sequence[FileEntry], latest_us: int | None, cut: Cut) -> list[FileEntry]:
    """The files that hold changes which some row of a spine may see whose times end at `latest_us`."""
    return [
        entry
        for entry in entries
        if latest_us is not None
        and entry.event_time_us_min <= latest_us
        and (cut.known_by_us is None or entry.api_time_us_min <= cut.known_by_us)
        and (not cut.as_served or entry.api_time_us_min <= latest_us)
    ]


def _refuse_before_history(
    versions: Mapping[str, Version], column: str, times: pa.Array, joinable: Callable[[str], pa.Table]
) -> None:
    """Refuse a spine with times at which some group's history had not begun: their values would be missing without a word.

    Args:
        joinable: the spine as it is joined to a group; rows without a key ask for nothing.

    Raises:
        ValidationFailed: naming each such group, where its history begins and how many rows are earlier.
    """
    earliest_us = pc.min(times.cast(pa.int64())).as_py()
    faults = []
    for name, version in versions.items():
        floor_us = version.retained_from_us
        if floor_us is None or earliest_us is None or earliest_us >= floor_us:
            continue
        spine = joinable(name)
        early = pc.and_(pc.less(spine[TIME].cast(pa.int64()), floor_us), pc.is_valid(spine[KEY]))
        if rows := pc.sum(early).as_py():
            begins = f"history of {name!r} begins at {format_iso(floor_us)}"
            faults.append(Fault(column, f"no time without history: {begins}; {rows} rows of the spine are earlier"))
    if faults:
        raise ValidationFailed(faults)
