"""The offline store as readers see it: plans from one table version per group, then training sets and SQL over its files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from featurestore.engine import Engine
from featurestore.errors import ValidationFailed
from featurestore.model.feature_group import FeatureGroup
from featurestore.model.frame import arrow_table
from featurestore.model.inference import datetime_us
from featurestore.offline.manifest import FileEntry, Version
from featurestore.offline.table import OfflineStore
from featurestore.progress import Progress
from featurestore.query.history import history_sql, latest_sql
from featurestore.query.point_in_time import Cut, GroupJoin, join_group
from featurestore.query.sandbox import Relations, Sandbox, TableName, View
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
        event_times: bool,
        stopwatch: Stopwatch,
        progress: Progress,
    ) -> TrainingSet:
        """See `FeatureStore.create_training_set`."""
        table = self._spine(spine)
        times = spine_times(table, event_time)
        groups = {name: self._group_of(name) for name in referenced_groups(features)}
        selections = select_features(features, groups, table.column_names)
        versions = {name: self._version(group) for name, group in groups.items()}
        stopwatch.lap("plan")
        latest_us = pc.max(times.cast(pa.int64())).as_py()
        columns: dict[str, pa.ChunkedArray] = {}
        for position, selection in enumerate(selections):
            group = selection.group
            progress("groups joined", position, len(selections))
            entries = _files_in_sight(versions[group.name], latest_us, cut)
            key = keys.get(group.name, group.record_identifier)
            join = self._group_join(selection, entries, event_times)
            answer = join_group(self._engine, join_spine(table, group, key, times), join, cut)
            columns.update(zip(answer.column_names, answer.columns, strict=True))
            stopwatch.lap(f"join {group.name}")
        progress("groups joined", len(selections), len(selections))
        read = {name: version.version for name, version in versions.items()}
        return TrainingSet(table, pa.table(columns), read, stopwatch.took_s)

    def sql(self, statement: str, *, timeout_s: float | None = None) -> pa.Table:
        """See `FeatureStore.sql`."""
        return self._sandbox.run(statement, self._relations, timeout_s=timeout_s)

    def _spine(self, spine: object) -> pa.Table:
        if isinstance(spine, Path):
            try:
                return pq.read_table(spine)
            except (OSError, pa.ArrowInvalid) as error:
                raise ValidationFailed.one("spine", f"a readable Parquet file ({error})", str(spine)) from error
        return self.sql(spine) if isinstance(spine, str) else arrow_table(spine)

    def _group_join(self, selection: FeatureSelection, entries: Sequence[FileEntry], event_times: bool) -> GroupJoin:
        group = selection.group
        return GroupJoin(
            group,
            self._offline.paths(group, entries),
            selection.features,
            any(entry.hard_deletes for entry in entries),
            f"{group.name}.{EVENT_TIME_SUFFIX}" if event_times else None,
        )

    def _version(self, group: FeatureGroup) -> Version:
        if group.offline is None:
            raise ValidationFailed.one("feature group", "one with an offline store", group.name)
        return self._offline.manifest(group).current()

    def _relations(self, names: Sequence[TableName]) -> Relations:
        """The views that a statement's table names mean, and the files behind them."""
        views: list[View] = []
        files: dict[str, None] = {}
        for table in names:
            schema = HISTORY if table.schema is None else table.schema
            if schema not in (HISTORY, LATEST):
                raise ValidationFailed.one("schema", f"{HISTORY} or {LATEST}", schema)
            group = self._group_of(table.name)
            paths = self._offline.paths(group, self._version(group).files)
            render = history_sql if schema == HISTORY else latest_sql
            views.append(View(schema, table.name, render(group, paths)))
            files.update(dict.fromkeys(paths))
        return Relations(tuple(views), tuple(files))


def make_cut(known_by: datetime | None, as_served: bool) -> Cut:
    """The cut that a caller asks for.

    Raises:
        ValidationFailed: both are asked for, or the time is naive.
    """
    if known_by is not None and as_served:
        raise ValidationFailed.one("as_served", "false when known_by is given", as_served)
    return Cut(None if known_by is None else datetime_us(known_by, path="known_by"), as_served)


def _files_in_sight(version: Version, latest_us: int | None, cut: Cut) -> list[FileEntry]:
    """The files of a table version that hold changes which some row may see."""
    return [
        entry
        for entry in version.files
        if latest_us is not None
        and entry.event_time_us_min <= latest_us
        and (cut.known_by_us is None or entry.api_time_us_min <= cut.known_by_us)
        and (not cut.as_served or entry.api_time_us_min <= latest_us)
    ]
