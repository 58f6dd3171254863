"""FeatureStore: the verbs that users call, over the stores that the settings name."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from featurestore.access.keys import SqlKeys
from featurestore.athena.catalog import Catalog
from featurestore.athena.executions import SqlExecutions
from featurestore.athena.service import AthenaLimits, AthenaQueries
from featurestore.athena.tables import SqlTables
from featurestore.audit import Auditor, AuditReport
from featurestore.batch_ingest import BatchIngest, IngestReport
from featurestore.buckets.opening import open_buckets
from featurestore.buckets.protocol import Buckets
from featurestore.changelog.acknowledgements import Acknowledgements
from featurestore.changelog.kafka import KafkaChangeLog
from featurestore.changelog.kafka_client import KafkaAddress, KafkaPythonProducer
from featurestore.changelog.protocol import Outbox
from featurestore.changelog.relay import Relay, outbox_waiting
from featurestore.engine import Engine, EngineLimits
from featurestore.erase import Eraser, ErasureReceipt, Parts
from featurestore.errors import FeatureStoreError, OutboxFull, SettingsInvalid, StoreUnavailable, ValidationFailed
from featurestore.model import limits
from featurestore.model.change import Applied, Stamp
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import (
    Durability,
    FeatureDefinition,
    FeatureGroup,
    GroupStatus,
    OfflineConfig,
    OnlineConfig,
    TableFormat,
    TargetStore,
    TtlDuration,
    UpdateStatus,
    validate_group,
)
from featurestore.model.frame import arrow_table
from featurestore.model.inference import datetime_us, definitions_from, definitions_of, text_of, typed
from featurestore.model.stream import Stream, StreamState, check_stream
from featurestore.model.value import record_key
from featurestore.offline.batch import INACTIVE_S
from featurestore.offline.beyond import LogBeyondTable
from featurestore.offline.cleaning import Cleaned, Cleaner, Retained
from featurestore.offline.compaction import Compacted, Compactor
from featurestore.offline.discovery import SETTLED_S, Discovered, Discovery
from featurestore.offline.erasing import FileEraser
from featurestore.offline.iceberg import IcebergPublisher, Published
from featurestore.offline.inventory import FileState, inventory
from featurestore.offline.opening import open_object_store
from featurestore.offline.table import OfflineStore
from featurestore.offline.writer import Drained, Lost, OfflineWriter
from featurestore.online.opening import open_online_store
from featurestore.online.protocol import OnlineStore
from featurestore.progress import bar
from featurestore.query.reader import OfflineReader, make_cut, past_us
from featurestore.query.sandbox import Sandbox, SandboxLimits
from featurestore.query.training_set import TrainingSet
from featurestore.rebuild import Converged, Rebuilder, Rebuilt
from featurestore.records import GetRequest, GroupCache, Records
from featurestore.registry.leases import SqlLeases
from featurestore.registry.protocol import GroupQuery, Registry, WantedIdentity
from featurestore.registry.sql import SqlRegistry
from featurestore.settings import Settings
from featurestore.stopwatch import Stopwatch
from featurestore.streaming import Message, StreamWriter, Written
from featurestore.temporary import remove_leftovers

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

DELETIONS_MAX: Final = 2
"""Groups whose records are removed at a time."""


@dataclass(frozen=True, slots=True)
class Maintained:
    """What one round of maintenance did for a group. `published` is None unless it has an Iceberg table."""

    discovered: Discovered
    retained: Retained
    compacted: Compacted
    published: Published | None
    cleaned: Cleaned
    converged: Converged

    @property
    def changed(self) -> bool:
        """Whether it did anything."""
        return bool(
            self.discovered.adopted
            or self.discovered.quarantined
            or self.retained.files
            or self.compacted.merged
            or (self.published is not None and (self.published.added or self.published.removed))
            or self.cleaned.trashed
            or self.cleaned.deleted
            or self.converged.repaired
        )


@dataclass(frozen=True, slots=True)
class ShardLag:
    """How far the offline store is behind in one shard.

    Attributes:
        outbox_entries: log entries that the outbox holds: for the offline store, or with Kafka for the relay.
        outbox_age_s: how long ago the service took the oldest of them; None if there is none.
        log_entries: entries of the Kafka topic that are not in the offline store; 0 without Kafka.
        offset_next: of the log, where the offline store goes on.
        seq_last: of the newest change in the offline store.
        written_age_s: how long ago that was written; None before the first.
    """

    shard: int
    outbox_entries: int
    outbox_age_s: float | None
    log_entries: int
    offset_next: int
    seq_last: int
    written_age_s: float | None


class FeatureStore:
    """A feature store opened from settings. Use it as a context manager, or `close` it.

    Its verbs are synchronous and may be called from several threads; `records` is the asynchronous record path, for servers.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        kafka = _kafka_address(settings) if settings.kafka_bootstrap_servers else None
        registry = SqlRegistry(settings.registry_location, WantedIdentity(settings.account_id, settings.region, settings.shards))
        self.registry: Registry = registry
        self.leases = SqlLeases(registry)
        self.keys = SqlKeys(registry, settings)
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        """Who this process is to the others that work on the same store."""
        self.shards = self.registry.identity().shards
        self.online: OnlineStore
        self._changes: Outbox
        self.online, self._changes = open_online_store(
            settings.online_location, self.shards, outbox_changes_max=settings.outbox_changes_max
        )
        objects = open_object_store(
            settings.offline_location, settings.home.absolute() / "cache", cache_bytes_max=settings.offline_cache_bytes_max
        )
        self.offline = OfflineStore(objects)
        self.buckets: Buckets = open_buckets(settings, objects, self._bucket_names)
        self._writer = OfflineWriter(
            self._changes,
            self.offline,
            self.registry.get_by_id,
            changes_max=settings.flush_changes_max,
        )
        self._log: KafkaChangeLog | None = None
        self.relay: Relay | None = None
        """From the outbox to Kafka, if there is one. Of one thread at a time: `flush` uses it too."""
        log_beyond_table = None
        if kafka is not None:
            self._log = self._open_log(kafka)
            log_beyond_table = LogBeyondTable(self._log, self._writer)
        temp_root = settings.home.absolute() / "tmp"
        self._engine = Engine(
            EngineLimits(settings.query_memory_bytes, settings.query_temp_bytes, settings.query_threads), temp_root
        )
        self._sandbox = Sandbox(
            SandboxLimits(
                timeout_s=settings.query_timeout_s,
                rows_max=settings.query_rows_max,
                memory_bytes=settings.query_memory_bytes,
                temp_bytes=settings.query_temp_bytes,
                threads=settings.query_threads,
            ),
            temp_root,
        )
        self.groups = GroupCache(self.registry)
        self._acknowledgements = Acknowledgements(self._changes) if settings.kafka_bootstrap_servers else None
        acknowledged = None if self._acknowledgements is None else self._acknowledged
        self.records = Records(self.groups, self.online, acknowledged)
        self._loop = _LoopThread()
        self._deletions = ThreadPoolExecutor(max_workers=DELETIONS_MAX, thread_name_prefix="featurestore-delete")
        self._reader = OfflineReader(self.offline, self._group, self._engine, self._sandbox)
        self._batches = BatchIngest(self.online, self.offline, self.shards, self._loop.run)
        self._compactor = Compactor(self.offline, self._engine)
        self._cleaner = Cleaner(self.offline, self.shards, mode=settings.compaction_mode, grace_s=settings.grace_s)
        self._iceberg = IcebergPublisher(
            offline=self.offline, catalog_url=settings.iceberg_catalog_location, keep_s=settings.grace_s
        )
        self._eraser = Eraser(
            self.online,
            self.offline,
            self.shards,
            self._loop.run,
            Parts(lambda: self._batches.recover(self.registry.get_by_id), self.flush, self._forget_copies),
        )
        self._discovery = Discovery(
            self.offline,
            self.shards,
            lambda rows: self._loop.run(self.online.reserve(rows)),
            FileEraser(self.offline, self.shards).without_erased,
        )
        self._auditor = Auditor(self.online, self.offline, self._engine, self.shards, log=log_beyond_table)
        self._rebuilder = Rebuilder(
            self.online, self.offline, log_beyond_table or self._changes, self._engine, self.shards, self._loop.run
        )
        self._streaming = StreamWriter(self.groups, self.online, acknowledged)
        tables = SqlTables(registry)
        identity = registry.identity()
        self.athena = AthenaQueries(
            SqlExecutions(registry, self.owner),
            tables,
            Catalog(registry, self.feature_groups, tables),
            reader=self._reader,
            sandbox=self._sandbox,
            buckets=self.buckets,
            default_output=f"s3://aws-athena-query-results-{identity.account_id}-{identity.region}",
            refresh=self.flush,
            limits=AthenaLimits(settings.athena_running_max, settings.athena_timeout_s),
        )
        self._drain_lock = threading.Lock()
        self._closed = False
        try:
            self._recover()
        except BaseException:
            self.close(flush=False)
            raise

    def __enter__(self) -> FeatureStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self, *, flush: bool = True) -> None:
        """Write what waits to the offline store (unless told not to), then release everything. Repeating it does nothing."""
        if self._closed:
            return
        self._closed = True
        self.athena.close()
        try:
            if flush:
                self.flush()
        finally:
            if self.relay is not None:
                self.relay.close()
            if self._log is not None:
                self._log.close()
            if self._acknowledgements is not None:
                self._acknowledgements.close()
            self._deletions.shutdown(wait=False, cancel_futures=True)
            self.online.close()
            self._deletions.shutdown()
            self._changes.close()
            self._sandbox.close()
            self._engine.close()
            self.registry.close()
            self._loop.close()

    # Feature groups

    def create_feature_group(
        self,
        name: str,
        *,
        record_identifier: str,
        event_time: str,
        features: Mapping[str, str] | object,
        online: bool = True,
        offline: bool = True,
        ttl: TtlDuration | None = None,
        s3_uri: str | None = None,
        description: str | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> FeatureGroup:
        """Create a feature group.

        Args:
            features: name to feature type (`"Integral"`, `"Fractional"`, `"String"`), in order; or a dataframe to infer
                them from.
            ttl: how long after its event time a record stays readable; None for ever.
            s3_uri: `s3://bucket[/prefix]` that decides the folder below the offline root.

        Raises:
            ValidationFailed, FeatureGroupInUse, LimitExceeded
        """
        named = isinstance(features, Mapping)
        definitions = definitions_from(features) if named else definitions_of(arrow_table(features))  # type: ignore[arg-type]
        return self.create(
            FeatureGroup(
                name=name,
                record_identifier=record_identifier,
                event_time=event_time,
                features=definitions,
                online=OnlineConfig(ttl=ttl) if online else None,
                offline=OfflineConfig(s3_uri or self.default_s3_uri) if offline else None,
                description=description,
                tags=dict(tags or {}),
            )
        )

    @property
    def default_s3_uri(self) -> str:
        """Where a group's offline store is when its creator does not say."""
        identity = self.registry.identity()
        return f"s3://sagemaker-{identity.region}-{identity.account_id}"

    def _bucket_names(self) -> set[str]:
        """The default bucket and those of the groups' offline stores."""
        uris = [group.offline.resolved_s3_uri for group in self.feature_groups() if group.offline is not None]
        return {uri.removeprefix("s3://").partition("/")[0] for uri in (self.default_s3_uri, *uris)}

    def create(self, group: FeatureGroup) -> FeatureGroup:
        """Create a group from its whole description.

        Raises:
            ValidationFailed, FeatureGroupInUse, LimitExceeded
        """
        validate_group(group)
        created = self.registry.create(group)
        self.groups.forget()
        return created

    def feature_group(self, name: str) -> FeatureGroup:
        """A group by name.

        Raises:
            FeatureGroupNotFound
        """
        return self.registry.get(name)

    def feature_groups(self) -> list[FeatureGroup]:
        """All groups, newest first."""
        groups: list[FeatureGroup] = []
        token = None
        while True:
            page = self.registry.list(GroupQuery(page_rows=limits.LIST_PAGE_MAX, page_token=token))
            groups.extend(page.groups)
            token = page.next_token
            if token is None:
                return groups

    def add_features(self, name: str, features: Sequence[FeatureDefinition]) -> FeatureGroup:
        """Append features to a group; older records have no value for them.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: a name is taken, or the group would not be a valid one.
        """
        return self.update(name, lambda group: group.with_features(features))

    def update(self, name: str, change: Callable[[FeatureGroup], FeatureGroup]) -> FeatureGroup:
        """Change a group in one transaction.

        Raises:
            FeatureGroupNotFound, and what `change` raises.
        """

        def updated(group: FeatureGroup) -> FeatureGroup:
            if group.status is not GroupStatus.CREATED:
                raise ValidationFailed.one("FeatureGroupName", "a group in status Created", str(group.status))
            return replace(change(group), update_status=UpdateStatus.SUCCESSFUL)

        result = self.registry.update(name, updated)
        self.groups.forget()
        return result

    def delete_feature_group(self, name: str, *, wait_s: float | None = None) -> None:
        """Delete a group with its online records. Its offline files stay.

        From the call on its records can't be read or written. The group is there in status Deleting until the records are
        gone, or in status DeleteFailed until the call is repeated or the store is opened again.

        Args:
            wait_s: return after so long while the records are still being removed; None waits for the end.

        Raises:
            FeatureGroupNotFound
            StoreUnavailable: the deletion has begun; repeating the call goes on with it.
        """
        group = self.registry.begin_delete(name)
        self.groups.forget()
        with contextlib.suppress(TimeoutError):
            self._deletions.submit(self._finish_delete, group).result(wait_s)

    # Records

    def put_record(
        self,
        group: str,
        record: Mapping[str, object],
        *,
        targets: frozenset[TargetStore] | None = None,
        ttl: TtlDuration | None = None,
    ) -> Applied:
        """Write one record: feature name to value. None and NaN leave a feature out; texts are taken as PutRecord takes them.

        Raises:
            FeatureGroupNotFound, ValidationFailed, StoreUnavailable
        """
        definitions = {feature.name: feature for feature in self.groups.plan(group).group.features}
        pairs = [
            (name, text_of(value, definitions[name], path=f"record.{name}") if name in definitions else None)
            for name, value in record.items()
        ]
        try:
            return self._loop.run(self.records.put(group, pairs, targets=targets, ttl=ttl))
        except OutboxFull:
            self.flush()
            return self._loop.run(self.records.put(group, pairs, targets=targets, ttl=ttl))

    def get_record(self, group: str, identifier: object, features: Sequence[str] | None = None) -> dict[str, object] | None:
        """The live record of an identifier as feature name to typed value, absent features left out; None if there is none.

        Raises:
            FeatureGroupNotFound, ValidationFailed, StoreUnavailable
        """
        return self.batch_get_record(group, [identifier], features)[0]

    def batch_get_record(
        self, group: str, identifiers: Sequence[object], features: Sequence[str] | None = None
    ) -> list[dict[str, object] | None]:
        """`get_record` for many identifiers in one round trip, in their order.

        Raises: as `get_record`.
        """
        described = self.records.readable_plan(group).group
        definitions = {feature.name: feature for feature in described.features}
        identifier_feature = definitions[described.record_identifier]
        texts = [
            str(text_of(identifier, identifier_feature, path=f"identifiers[{position}]"))
            for position, identifier in enumerate(identifiers)
        ]
        (found,) = self._loop.run(self.records.batch_get([GetRequest(group, texts, features)]))
        records: list[dict[str, object] | None] = []
        for answer in found:
            if isinstance(answer, FeatureStoreError):
                raise answer
            pairs = None if answer is None else answer.pairs
            records.append(None if pairs is None else {name: typed(value, definitions[name]) for name, value in pairs})
        return records

    def delete_record(self, group: str, identifier: object, event_time: object, *, hard: bool = False) -> Applied:
        """Delete one record as of an event time.

        Raises:
            FeatureGroupNotFound, ValidationFailed, StoreUnavailable
        """
        described = self.groups.plan(group).group
        definitions = {feature.name: feature for feature in described.features}
        key = text_of(identifier, definitions[described.record_identifier], path="identifier")
        when = text_of(event_time, definitions[described.event_time], path="event_time")
        if not isinstance(key, str) or not isinstance(when, str):
            raise ValidationFailed.one("identifier, event_time", "both to be given", (identifier, event_time))
        return self._loop.run(self.records.delete(group, key, when, hard=hard))

    # Dataframes

    def ingest(
        self,
        group: str,
        frame: object,
        *,
        targets: frozenset[TargetStore] | None = None,
        skip_faulty: bool = False,
        progress: bool | None = None,
    ) -> IngestReport:
        """Write a dataframe: every row to the offline store in one commit, the newest row per identifier online.

        All or nothing: a faulty row fails the call before anything is written, unless `skip_faulty` leaves such rows out and
        reports them. Rows count as arriving in frame order. Rules for dtypes: docs/reference/dataframes.md.

        Args:
            frame: pandas DataFrame, Arrow table, or anything that exports Arrow.
            progress: show a bar; by default where a person watches.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: naming row, column and value of each fault.
            StoreUnavailable: before the batch was promised nothing was written; afterwards it completes at the next start.
        """
        plan = self.groups.plan(group)
        stores = plan.targets(targets)
        if plan.group.online is not None and TargetStore.ONLINE not in stores:
            # Which shards it goes to is not known before the rows are checked: one write to each.
            self._loop.run(self.online.count_offline_only(plan.group.group_id, dict.fromkeys(range(self.shards), 1)))
        with bar(f"ingest {group}", show=progress) as report:
            return self._batches.ingest(plan.group, frame, stores, skip_faulty=skip_faulty, progress=report)

    # Questions

    def create_training_set(
        self,
        spine: object,
        features: Sequence[str] | Mapping[str, str],
        *,
        event_time: str,
        keys: Mapping[str, str] | None = None,
        known_by: datetime | None = None,
        as_served: bool = False,
        as_of: datetime | None = None,
        event_times: bool = False,
        fresh: bool = True,
        progress: bool | None = None,
    ) -> TrainingSet:
        """Join features to a spine as of each row's time. No row is lost and the order stays.

        Args:
            spine: pandas DataFrame, Arrow table, `pathlib.Path` of a Parquet file, or SQL text over the offline store.
            features: `"group.feature"` or `"group.*"`; or a mapping from output column to `"group.feature"`.
            event_time: the spine's column with each row's time.
            keys: per group the spine's column with its record identifier; by default the column of the identifier's name.
            known_by: see only what the service had taken by then: the training set as it could have been made at that time.
            as_served: see, row by row, only what the service had taken by the row's time: what the online store answered.
            as_of: see the offline store as it was then: only rows with `write_time <= as_of`, also in a spine given as SQL.
                Asked again, the answer is the same, whatever was written since. Goes together with the cuts above.
            event_times: add `<group>._event_time`, the event time of the matched record.
            fresh: first write what waits in the outbox, so that every acknowledged write is seen; `as_of` always does.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: a column is missing or of the wrong type, naive times among them; rows of the spine are
                earlier than a group's history; `as_of` is not in the past, or an ingest that began by then still runs.
            QueryFailed: the engine gave up.
            FileVanished: data files were replaced, again and again, before they could be read.
        """
        cut = make_cut(known_by, as_served)
        stopwatch = Stopwatch()
        as_of_us = self._settled_us(as_of, fresh=fresh)
        stopwatch.lap("flush")
        with bar("training set", show=progress) as report:
            return self._reader.create_training_set(
                spine,
                features,
                event_time=event_time,
                keys=keys or {},
                cut=cut,
                as_of_us=as_of_us,
                event_times=event_times,
                stopwatch=stopwatch,
                progress=report,
            )

    def sql(
        self, statement: str, *, as_of: datetime | None = None, fresh: bool = True, timeout_s: float | None = None
    ) -> pa.Table:
        """One SELECT over the offline store, in a process of its own that sees nothing else.

        Each group is a relation in two schemas: `history."<group>"`, every row ever written, which is also meant without a
        schema, and `latest."<group>"`, the record per identifier that is live now.

        Args:
            as_of: both schemas as they were then, see `create_training_set`; what is live in `latest` is judged at that time.
            fresh: first write what waits in the outbox, so that every acknowledged write is seen; `as_of` always does.
            timeout_s: a deadline other than that of the settings.

        Raises:
            ValidationFailed: `as_of` is naive or not in the past, or an ingest that began by then still runs.
            FeatureGroupNotFound, QueryRefused, QueryFailed, QueryTimeout, QueryTooLarge
            FileVanished: data files were replaced, again and again, before they could be read.
        """
        as_of_us = self._settled_us(as_of, fresh=fresh)
        return self._reader.sql(statement, as_of_us=as_of_us, timeout_s=timeout_s)

    # Looking after the offline store

    def maintain(self, name: str) -> Maintained:
        """What the service does for a group every minute: adopt files of other tools, end history that is past its retention,
        merge files that are worth it, publish the Iceberg table of a group that has one, delete what nobody needs, and compare
        some records with the online store.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group has no offline store.
            StoreUnavailable, StoreCorrupt, QueryFailed: what was done stays done; call again.
        """
        group = self._offline_group(name)
        self._batches.recover(self.registry.get_by_id)
        return Maintained(
            self._discovery.discover(group),
            self._cleaner.retain(group),
            self._compactor.compact(group),
            self._iceberg.publish(group) if _is_iceberg(group) else None,
            self._cleaner.clean(group),  # after publishing, since a published table that lags would miss what is deleted
            self.converge(name),
        )

    def compact(self, name: str, *, full: bool = True, progress: bool | None = None) -> Compacted:
        """Merge small files of a group into few large ones. Answers stay the same.

        Args:
            full: merge whatever is smaller than the target size; otherwise only what is worth it in the background.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group has no offline store.
            StoreUnavailable, QueryFailed: what was merged stays so.
        """
        with bar(f"compact {name}", show=progress) as report:
            return self._compactor.compact(self._offline_group(name), full=full, progress=report)

    def clean(self, name: str) -> Cleaned:
        """Delete files of a group that have been replaced for longer than the grace period.

        Raises:
            FeatureGroupNotFound, ValidationFailed, StoreUnavailable
        """
        return self._cleaner.clean(self._offline_group(name))

    def set_retention(self, name: str, days: int | None) -> FeatureGroup:
        """Choose for how many days after its event time a record stays in the history; None keeps all of it.

        The history ends at the next `retain`, which the service runs by itself.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group has no offline store, or `days` is not positive.
        """
        self._offline_group(name)
        if days is not None and days < 1:
            raise ValidationFailed.one("days", "at least 1, or none to keep all history", days)

        def change(group: FeatureGroup) -> FeatureGroup:
            assert group.offline is not None, "asked above"
            return replace(group, offline=replace(group.offline, retention_days=days))

        return self.update(name, change)

    def set_durability(self, name: str, durability: Durability) -> FeatureGroup:
        """Choose when writes to a group are acknowledged: once they are online with their entry in the outbox (the default), or
        only when Kafka has acknowledged them, too.

        Raises:
            FeatureGroupNotFound
            SettingsInvalid: `log`, and there is no Kafka in the settings.
        """
        if durability is Durability.LOG:
            self.require_kafka("durability=log")
        return self.update(name, lambda group: replace(group, durability=durability))

    def retain(self, name: str) -> Retained:
        """End the history of a group where its retention says.

        Training sets then refuse spines that begin earlier, since values would be missing silently.

        Raises:
            FeatureGroupNotFound, ValidationFailed, StoreUnavailable
        """
        return self._cleaner.retain(self._offline_group(name))

    def erase(self, group: str, *identifiers: object, progress: bool | None = None) -> ErasureReceipt:
        """Erase records: no store, log, file or cache holds their values any more, and nothing repeated brings them back.

        What is written for these identifiers afterwards is kept. Files that hold one of them are written anew, and the
        embedded online store is compacted: erase many records in one call rather than one by one.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: no identifier is given, or one can't be an identifier of the group.
            StoreUnavailable: the erasure is promised and not complete; the next start completes it.
        """
        described = self.feature_group(group)
        definition = next(feature for feature in described.features if feature.name == described.record_identifier)
        if not identifiers:
            raise ValidationFailed.one("identifiers", "at least one record identifier")
        keys = []
        for position, identifier in enumerate(identifiers):
            text = text_of(identifier, definition, path=f"identifiers[{position}]")
            key = record_key(text, definition.type) if isinstance(text, str) else None
            if not key:
                raise ValidationFailed.one(f"identifiers[{position}]", f"a {definition.type} identifier", identifier)
            keys.append(key)
        with bar(f"erase from {group}", show=progress) as report:
            return self._eraser.erase(described, keys, progress=report)

    def publish_iceberg(self, name: str) -> Published:
        """Make a group's Iceberg table show what is in the offline store now: the same files, not copied. Idempotent.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group's TableFormat is not Iceberg, or another group is published under its table's name.
            StoreUnavailable: the extra `iceberg` is not installed, an erasure is under way, or a store does not answer.
        """
        group = self._offline_group(name)
        if not _is_iceberg(group):
            found = None if group.offline is None else group.offline.table_format
            raise ValidationFailed.one("OfflineStoreConfig.TableFormat", str(TableFormat.ICEBERG), str(found))
        return self._iceberg.publish(group)

    def discover(self, name: str | None = None, *, settled_s: float = SETTLED_S) -> dict[str, Discovered]:
        """Look for files that other tools have put into the offline layout of a group, or of all: adopt or quarantine each.

        A file is adopted whole and once, whoever discovers it; docs/guides/foreign-files.md says what is checked.

        Args:
            settled_s: files modified within this time may still be being copied and are left for later.

        Returns:
            By group name; groups without an offline store are left out.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group has no offline store.
            StoreUnavailable: what was adopted stays adopted; call again.
        """
        groups = self.feature_groups() if name is None else [self._offline_group(name)]
        return {
            group.name: self._discovery.discover(group, settled_s=settled_s)
            for group in groups
            if group.offline is not None and group.status is GroupStatus.CREATED
        }

    def files(self, name: str) -> list[FileState]:
        """The files in a group's offline folder, by path, and what each is to the table.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group has no offline store.
            StoreUnavailable
        """
        return inventory(self.offline, self._offline_group(name))

    def audit(self, name: str, *, progress: bool | None = None) -> AuditReport:
        """Compare what was acknowledged for a group with what both stores hold, and name every difference. Changes nothing.

        Writers may run meanwhile. `differences` is empty when all is well. docs/guides/audit.md says what is compared.

        Raises:
            FeatureGroupNotFound
            StoreUnavailable: the table changed faster than it could be looked at; call again.
            StoreCorrupt, QueryFailed
        """
        with bar(f"audit {name}", show=progress) as report:
            return self._auditor.audit(self.feature_group(name), progress=report)

    def rebuild_online(self, name: str, *, progress: bool | None = None) -> Rebuilt:
        """Restore the online records of a group from the offline store and the change log. What is newer online stays.

        docs/guides/rebuild.md says what can't come back. Writers may run meanwhile.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group lacks one of the two stores.
            StoreUnavailable, StoreCorrupt, QueryFailed: what was loaded stays; call again.
        """
        group = self._offline_group(name)
        if group.online is None:
            raise ValidationFailed.one("feature group", "one with an online store", name)
        with bar(f"rebuild {name}", show=progress) as report:
            rebuilt = self._rebuilder.rebuild(group, progress=report)
        former = self._auditor.former_changes(group)
        self._loop.run(self.online.count_former(group.group_id, former))
        return replace(rebuilt, former_changes=sum(former.values()))

    # Streams

    def require_kafka(self, what: str = "streams") -> KafkaAddress:
        """The Kafka cluster of the settings, without which there is no `what`.

        Raises:
            SettingsInvalid: there is none.
        """
        if not self.settings.kafka_bootstrap_servers:
            raise SettingsInvalid.one("FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS", f"the brokers of a Kafka cluster, for {what}")
        return _kafka_address(self.settings)

    def add_stream(
        self,
        name: str,
        *,
        topic: str,
        group: str,
        fields: Mapping[str, str] | None = None,
        dead_letters: str | None = None,
        start: datetime | None = None,
    ) -> Stream:
        """Let the messages of a Kafka topic become records of a group. `featurestore worker stream` reads them.

        Args:
            fields: feature to path in the JSON message (`customer.id`); None where its members are the features.
            dead_letters: topic for messages that can't become records; default `<topic>.dead-letters`.
            start: begin with messages of this time, by their timestamp; None for the oldest that the topic holds.

        Raises:
            FeatureGroupNotFound, StreamInUse, ValidationFailed
            SettingsInvalid: there is no Kafka in the settings.
        """
        self.require_kafka()
        start_ms = None if start is None else datetime_us(start, path="start") // 1000
        stream = Stream(name, topic, group, dead_letters or f"{topic}.dead-letters", fields=dict(fields or {}), start_ms=start_ms)
        check_stream(stream, self.feature_group(group))
        self.registry.add_stream(stream)
        return stream

    def streams(self) -> Sequence[Stream]:
        """All streams, by name."""
        return self.registry.streams()

    def pause_stream(self, name: str) -> Stream:
        """Stop reading a stream, within seconds. What it has not read stays in its topic.

        Raises:
            StreamNotFound
        """
        return self.registry.update_stream(name, lambda stream: msgspec.structs.replace(stream, state=StreamState.PAUSED))

    def resume_stream(self, name: str) -> Stream:
        """Go on reading a stream where it was paused.

        Raises:
            StreamNotFound
        """
        return self.registry.update_stream(name, lambda stream: msgspec.structs.replace(stream, state=StreamState.RUNNING))

    def replay_stream(self, name: str, *, start: datetime | None = None) -> Stream:
        """Read a stream's topic again, from a time on or from its beginning. Each message is written once more.

        The online store keeps what is newest; the offline store gets the records again, with later API times.

        Raises:
            StreamNotFound, ValidationFailed
        """
        start_ms = None if start is None else datetime_us(start, path="start") // 1000
        return self.registry.update_stream(
            name, lambda stream: msgspec.structs.replace(stream, epoch=stream.epoch + 1, start_ms=start_ms)
        )

    def remove_stream(self, name: str) -> Stream:
        """Forget a stream. Its topics and what it has written stay.

        Raises:
            StreamNotFound
        """
        return self.registry.remove_stream(name)

    def write_messages(self, stream: Stream, partition: int, messages: Sequence[Message]) -> Written:
        """See `streaming.StreamWriter.write`."""
        return self._loop.run(self._streaming.write(stream, partition, messages))

    # The way to the offline store

    def converge(self, name: str) -> Converged:
        """Look whether some records of a group, drawn at random, are online as the offline store says; load those that are not.

        Raises:
            FeatureGroupNotFound
            ValidationFailed: the group has no offline store.
            StoreUnavailable, StoreCorrupt, QueryFailed
        """
        group = self._offline_group(name)
        return Converged(0, 0) if group.online is None else self._rebuilder.converge(group)

    def flush(self) -> Drained:
        """Write every change acknowledged so far to the offline store; when this returns, queries see them.

        With Kafka, what still waits in the outbox is relayed first, by us or by the relay that is at it.

        Raises:
            StoreUnavailable
        """
        with self._drain_lock:
            if self.relay is not None:
                self.relay.relay_until(dict(self._changes.ends()))
            return self._writer.drain()

    def write_offline(self, shards: Collection[int]) -> Drained:
        """Write what the log holds of some shards to the offline store. With Kafka, what waits in the outbox is left there.

        Raises:
            StoreUnavailable
        """
        with self._drain_lock:
            return self._writer.drain(shards)

    def lost(self, shard: int) -> Lost | None:
        """The changes of a shard that Kafka has lost before they were written to the offline store, if that is what holds it up;
        perhaps none, if the topic was made anew.

        Raises:
            ValidationFailed: the store has no such shard, or no Kafka.
            StoreUnavailable
        """
        if self._log is None or not 0 <= shard < self.shards:
            raise ValidationFailed.one("shard", f"0 to {self.shards - 1}, of a store with Kafka", shard)
        with self._drain_lock:
            lost = self._writer.lost(shard)
            waiting = self._changes.read(shard, 1, 1)
            stamp = waiting[0].item.stamp if waiting else None
            return None if lost is None or (stamp is not None and stamp.seq <= lost.seq_last) else lost

    def give_up(self, shard: int, lost: Lost) -> bool:
        """Go on behind changes that are lost (see `lost`); from then on the audit counts them as missing. False if something has
        changed since: ask again.

        Raises:
            StoreUnavailable
        """
        with self._drain_lock:
            return self._writer.give_up(shard, lost)

    def quarantined(self) -> int:
        """How many log entries could not become rows of the offline store and wait in quarantine files for somebody to look.

        Each says why: `_writer/<shard>/quarantine-<offset>.parquet` below the root of the offline store.

        Raises:
            StoreUnavailable
        """
        keys = [key for key in self.offline.objects.list("_writer/") if "/quarantine-" in key]
        return sum(pq.read_metadata(path).num_rows for path in self.offline.objects.paths(keys))

    def offline_behind(self) -> int:
        """How many acknowledged changes are not in the offline store yet. What the relay is about to send may count twice.

        Raises:
            StoreUnavailable
        """
        return self._writer.behind() + (0 if self._log is None else self.outbox_waiting())

    def outbox_waiting(self) -> int:
        """How many entries the outbox holds: not yet written offline, or with Kafka not yet relayed. Asks no other service.

        Raises:
            StoreUnavailable
        """
        return sum(waiting.entries for waiting in outbox_waiting(self._changes).values())

    def lag(self) -> list[ShardLag]:
        """How far the offline store is behind, shard by shard.

        Raises:
            StoreUnavailable
        """
        now_us = time.time_ns() // 1000
        ends = {} if self._log is None else self._log.ends()
        waiting = outbox_waiting(self._changes)
        return [
            ShardLag(
                shard,
                waiting[shard].entries,
                _age_s(waiting[shard].api_time_us, now_us),
                max(0, ends.get(shard, 0) - position.offset_next),
                position.offset_next,
                position.seq_last,
                _age_s(position.write_time_us, now_us),
            )
            for shard, position in sorted(self._writer.positions().items())
        ]

    # Inner parts

    def open_relay(self) -> Relay:
        """A relay of its own, for a worker; who opens it closes it.

        Raises:
            SettingsInvalid: there is no Kafka in the settings.
        """
        address = self.require_kafka("the relay")
        assert self._log is not None, "there is Kafka in the settings"
        return Relay(self._changes, self._log, KafkaPythonProducer(address), self.leases, self.owner)

    async def _acknowledged(self, stamps: Sequence[Stamp]) -> None:
        assert self._acknowledgements is not None, "asked for with Kafka only"
        await self._acknowledgements.wait(stamps, self.settings.kafka_ack_s)

    def _open_log(self, address: KafkaAddress) -> KafkaChangeLog:
        """The Kafka log, with a relay that fills it and the writer that reads it."""
        log = KafkaChangeLog(address, self.shards)
        self.relay = Relay(self._changes, log, KafkaPythonProducer(address), self.leases, f"{self.owner}-flush")
        self._writer.finish()  # what was begun from the outbox alone, before the relay takes entries away
        self._writer = OfflineWriter(
            log, self.offline, self.registry.get_by_id, changes_max=self.settings.flush_changes_max, log=log.name
        )
        return log

    def _group(self, name: str) -> FeatureGroup:
        return self.groups.plan(name).group

    def _settled_us(self, as_of: datetime | None, *, fresh: bool) -> int | None:
        """`as_of` in microseconds, once no row with a write time up to then is yet to come. Flushes for that, or to be fresh.

        The flush gives every change that was acknowledged before this call its write time; later ones get later times. A
        batch takes its write times after it has begun: none that began by then may be under way.

        Raises:
            ValidationFailed: `as_of` is naive or not in the past, or such a batch still runs.
            StoreUnavailable
        """
        as_of_us = None if as_of is None else past_us(as_of, path="as_of")
        if fresh or as_of_us is not None:
            self.flush()
        if as_of_us is None:
            return None
        batches = self.offline.batches
        since_us = batches.unfinished_since_us()
        if since_us is not None and since_us <= as_of_us:
            batches.cancel(inactive_s=INACTIVE_S)
            since_us = batches.unfinished_since_us()
        if since_us is not None and since_us <= as_of_us:
            expected = f"a time before {format_iso(since_us)}, when an ingest began that is still running"
            raise ValidationFailed.one("as_of", expected, format_iso(as_of_us))
        return as_of_us

    def _offline_group(self, name: str) -> FeatureGroup:
        group = self.feature_group(name)
        if group.offline is None:
            raise ValidationFailed.one("feature group", "one with an offline store", name)
        return group

    def _forget_copies(self, group: FeatureGroup) -> None:
        """What may hold values of a group outside its tables."""
        remove_leftovers(self.settings.home.absolute() / "tmp")
        self.offline.objects.remove_leftovers()
        if _is_iceberg(group):
            self._iceberg.forget(group)

    def _finish_delete(self, group: FeatureGroup) -> None:
        try:
            self._loop.run(self.online.drop_group(group.group_id))
        except StoreUnavailable as error:
            if self._closed:
                _log.info("the deletion of feature group %s is completed by the next start", group.name)
                return
            _log.error("the deletion of feature group %s failed: %s", group.name, error)
            self.registry.fail_delete(group.group_id, f"its online records could not be removed: {error}")
            raise
        self.registry.finish_delete(group.group_id)

    def _recover(self) -> None:
        """Complete what calls that died had promised: deletions and batches. Idempotent, safe beside running processes.

        Before that, go on behind what the offline store has seen, should the online store be a new one or an older copy.
        """
        self._loop.run(self.online.advance(self._writer.stamps()))
        if self._log is not None:
            try:
                recent = {shard: self._log.recent_stamps(shard) for shard in range(self.shards)}
                newest = {shard: max(stamps, key=lambda stamp: stamp.seq) for shard, stamps in recent.items() if stamps}
                self._loop.run(self.online.advance(newest))
            except StoreUnavailable as error:
                # The online store works without Kafka, and so do we; the relay finds out should it be an older copy.
                _log.error("Kafka does not answer, changes wait in the outbox: %s", error)
        for group in self.registry.deleting():
            _log.warning("completing the deletion of feature group %s", group.name)
            self._finish_delete(group)
        self._batches.recover(self.registry.get_by_id)
        self._eraser.recover(self.registry.get_by_id)


class _LoopThread:
    """An event loop in a thread, so that synchronous verbs can use the asynchronous stores."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="featurestore-loop", daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def _age_s(time_us: int | None, now_us: int) -> float | None:
    return None if time_us is None else max(0, now_us - time_us) / 1_000_000


def _kafka_address(settings: Settings) -> KafkaAddress:
    """Raises: SettingsInvalid."""
    is_sasl = settings.kafka_security_protocol.startswith("SASL")
    if is_sasl and not settings.kafka_sasl_user:
        raise SettingsInvalid.one("FEATURESTORE_KAFKA_SASL_USER", f"a user, for {settings.kafka_security_protocol}")
    return KafkaAddress(
        settings.kafka_bootstrap_servers,
        settings.kafka_topic,
        settings.kafka_security_protocol,
        settings.kafka_sasl_mechanism if is_sasl else "",
        settings.kafka_sasl_user,
        settings.kafka_sasl_password.get_secret_value(),
        settings.kafka_ca_file,
    )


def _is_iceberg(group: FeatureGroup) -> bool:
    return group.offline is not None and group.offline.table_format is TableFormat.ICEBERG
