"""The record path: the operations on records, from checked names to stored bytes.

Coroutines of one event loop. Groups come from a cache that is never older than GROUP_CACHE_S, so that the registry is not
asked for every record.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from featurestore.errors import (
    Conflict,
    FeatureGroupNotFound,
    FeatureStoreError,
    RecordNotFound,
    StoreUnavailable,
    ValidationFailed,
)
from featurestore.model import change as changes
from featurestore.model import limits
from featurestore.model.change import ONLINE, Applied, Change, Op, Outcome, Stamp
from featurestore.model.codec import decode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import Durability, FeatureGroup, GroupStatus, TargetStore, TtlDuration, name_of
from featurestore.model.page_token import decode_token, encode_token
from featurestore.model.record import FeaturePair, RecordPlan
from featurestore.online.protocol import OnlineStore, RecordKey, RecordPlace
from featurestore.registry.protocol import Registry

GROUP_CACHE_S: Final = 0.5
"""A change of a group by another process is seen at most this much later."""

UPDATE_ATTEMPTS_MAX: Final = 50
"""How often an update is merged anew because another write came between."""
UPDATE_PAUSE_MS_MAX: Final = 64
"""Before it is: a random time that doubles up to this, so that of many writers of one record each has its turn."""

Acknowledged: TypeAlias = Callable[[Sequence[Stamp]], Awaitable[None]]
"""Returns when Kafka has acknowledged these changes; raises StoreUnavailable when it takes too long."""


@dataclass(frozen=True, slots=True)
class Record:
    """A live record.

    Attributes:
        pairs: (feature name, value text as written), in definition order; absent features are left out.
        event_time_us: microseconds since 1970.
        expires_at_us: the same, or None without expiry.
    """

    pairs: list[FeaturePair]
    event_time_us: int
    expires_at_us: int | None

    @property
    def expires_at(self) -> str | None:
        """The expiry in ISO form, as ExpiresAt is answered."""
        return None if self.expires_at_us is None else format_iso(self.expires_at_us)


Answer: TypeAlias = Record | FeatureStoreError | None
"""What is known of one identifier: its live record, that it has none, or why it can't be said."""


@dataclass(frozen=True, slots=True)
class GetRequest:
    """Records of one group to read, some features of them or all."""

    group: str
    identifiers: Sequence[str]
    features: Sequence[str] | None = None


@dataclass(frozen=True, slots=True)
class WriteRequest:
    """One record of a batch to write; members as those of `Records.put`."""

    group: str
    pairs: Sequence[FeaturePair]
    targets: frozenset[TargetStore] | None = None
    ttl: TtlDuration | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A page of record identifiers, as they were written. `next_token` is None when there is no other page."""

    identifiers: Sequence[str]
    next_token: str | None


class GroupCache:
    """Compiled plans of groups by name, re-read when the registry's version has moved on."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._plans: dict[str, RecordPlan] = {}
        self._version = -1
        self._checked_at_s = 0.0

    def plan(self, name_or_arn: str) -> RecordPlan:
        """The plan of a live group that takes records.

        Raises:
            FeatureGroupNotFound: unknown, or being deleted.
        """
        plan = self.known(name_or_arn)
        if plan is None:
            plan = RecordPlan(self._group(name_or_arn))
            self._plans[name_or_arn] = plan
        return plan

    def known(self, name_or_arn: str) -> RecordPlan | None:
        """The plan of a group if it was asked for before under this name or ARN, and up to date; else there may be no such group.

        Raises:
            StoreUnavailable
        """
        now_s = time.monotonic()
        if now_s - self._checked_at_s >= GROUP_CACHE_S:
            self._revalidate(now_s)
        return self._plans.get(name_or_arn)

    def forget(self) -> None:
        """Re-read every group at its next use: this process has changed one."""
        self._plans.clear()

    def _revalidate(self, now_s: float) -> None:
        version = self._registry.version()
        if version != self._version:
            self._plans.clear()
            self._version = version
        self._checked_at_s = now_s

    def _group(self, name_or_arn: str) -> FeatureGroup:
        name = name_of(name_or_arn)
        group = self._registry.get(name)
        if group.status is not GroupStatus.CREATED:
            raise FeatureGroupNotFound(name)
        if name is not name_or_arn and name_or_arn != group.arn:
            raise FeatureGroupNotFound(name_or_arn)
        return group


class Records:
    """The record path over one online store."""

    def __init__(self, groups: GroupCache, online: OnlineStore, acknowledged: Acknowledged | None = None) -> None:
        """
        Args:
            acknowledged: waits until Kafka has these changes; None without Kafka.
        """
        self.known_plan = groups.known
        """The plan of a group if it was asked for before under this name or ARN, see `GroupCache.known`."""
        self.plan = groups.plan
        """That of a group, see `GroupCache.plan`."""
        self.read_one = online.read_one
        """What is stored of one record; see `OnlineStore.read_one`."""
        self.read = online.read
        """What is stored of some records, in one round trip; see `OnlineStore.read`."""
        self._groups = groups
        self._online = online
        self._acknowledged = acknowledged
        self._confirming: set[asyncio.Task[None]] = set()

    async def put(
        self,
        group: str,
        pairs: Iterable[FeaturePair],
        *,
        targets: frozenset[TargetStore] | None = None,
        ttl: TtlDuration | None = None,
        write_token: str | None = None,
    ) -> Applied:
        """Write one record; the newest event time wins online, and every record reaches the offline store.

        Args:
            write_token: the same text in a repetition of this call makes the repetition change nothing.

        Raises:
            FeatureGroupNotFound, ValidationFailed, StoreUnavailable, OutboxFull
        """
        plan = self._groups.plan(group)
        return await self._apply(plan.group, plan.put(pairs, targets=targets, ttl=ttl, write_token=write_token))

    def put_soon(
        self,
        plan: RecordPlan,
        pairs: Iterable[FeaturePair],
        done: Callable[[Applied | Exception], None],
        *,
        targets: frozenset[TargetStore] | None = None,
        ttl: TtlDuration | None = None,
        write_token: str | None = None,
    ) -> None:
        """As `put`, without a coroutine: `done` is called once, on the running event loop, with the answer or with what the
        stores have to say against it.

        Raises:
            ValidationFailed; then `done` is not called.
        """
        change = plan.put(pairs, targets=targets, ttl=ttl, write_token=write_token)
        if plan.group.durability is not Durability.LOG:
            self._online.apply_soon(change, done)
            return
        confirming = asyncio.get_running_loop().create_task(self._confirm(plan.group, change, done))
        self._confirming.add(confirming)
        confirming.add_done_callback(self._confirming.discard)

    async def batch_put(
        self, requests: Sequence[WriteRequest | FeatureStoreError], *, write_token: str | None = None
    ) -> list[Applied | FeatureStoreError]:
        """Write records of any groups in one round trip, each decided by itself; answers in the order of the requests.

        A request that is an error already is its own answer. Another error says why that record was not written:
        ValidationFailed, FeatureGroupNotFound, StoreCorrupt; or a StoreUnavailable, after which it may be sent again.

        Args:
            write_token: as in `put`, for a repetition with the same requests.

        Raises:
            StoreUnavailable: some may be written; only a repetition with the same token is sure to write none twice.
        """
        answers: list[Applied | FeatureStoreError | None] = [None] * len(requests)
        planned: list[tuple[int, Change, Acknowledged | None]] = []
        for position, request in enumerate(requests):
            if isinstance(request, FeatureStoreError):
                answers[position] = request
                continue
            try:
                plan = self._groups.plan(request.group)
                token = None if write_token is None else f"{write_token}\0{position}"
                change = plan.put(request.pairs, targets=request.targets, ttl=request.ttl, write_token=token)
                planned.append((position, change, self._confirmation(plan.group)))
            except (FeatureGroupNotFound, ValidationFailed, StoreUnavailable) as error:
                answers[position] = error
        applied = await self._online.apply_each([change for _, change, _ in planned]) if planned else []
        in_doubt: StoreUnavailable | None = None
        stamps: list[Stamp] = []
        confirm: Acknowledged | None = None
        for (position, _, acknowledged), answer in zip(planned, applied, strict=True):
            answers[position] = answer
            if isinstance(answer, StoreUnavailable) and not answer.nothing_written:
                in_doubt = answer
            elif isinstance(answer, Applied) and acknowledged is not None and answer.stamp is not None:
                confirm = acknowledged
                stamps.append(answer.stamp)
        if in_doubt is not None:
            raise in_doubt
        if confirm is not None:
            await confirm(stamps)
        return [answer for answer in answers if answer is not None]

    async def update(
        self,
        group: str,
        identifier: str,
        pairs: Sequence[FeaturePair],
        *,
        targets: frozenset[TargetStore] | None = None,
        ttl: TtlDuration | None = None,
        write_token: str | None = None,
    ) -> Applied:
        """Change some features of a live record; the others stay. The merged record is written as a put of it would be.

        Merged and written as one step: a write that comes between is merged with, never undone.

        Args:
            write_token: as in `put`.

        Raises:
            FeatureGroupNotFound, ValidationFailed
            RecordNotFound: there is no live record.
            Conflict: the event time in `pairs` is before the record's.
            StoreUnavailable, OutboxFull: also when other writes came between too often; repeat the call.
        """
        plan = self._groups.plan(group)
        patch = plan.patch(identifier, pairs, targets=targets, ttl=ttl)
        acknowledged = self._confirmation(plan.group)
        for attempt in range(UPDATE_ATTEMPTS_MAX):
            if attempt:
                pause_ms_max = min(1 << attempt, UPDATE_PAUSE_MS_MAX)
                await asyncio.sleep(random.uniform(0, pause_ms_max) / 1000)  # noqa: S311 (no secret)
            key = (plan.group.group_id, patch.record_id)
            (found,) = await self._online.get([key])
            try:
                if found is None:
                    raise RecordNotFound(plan.group.name, identifier)
                version, values = decode_values(found.values)
                if version > plan.group.schema_version:  # written with features that another process has just added
                    self._groups.forget()
                    plan = self._groups.plan(group)
                    patch = plan.patch(identifier, pairs, targets=targets, ttl=ttl)
                    continue
                change = plan.merge(patch, values, found.event_time_us, found.expires_at_us)
            except (RecordNotFound, Conflict, ValidationFailed):
                applied = await self._answered_before(key, write_token)
                if applied is None:
                    raise
            else:
                applied = await self._online.apply_upon(_with_token(change, write_token), found.api_time_us)
            if applied.outcome is not Outcome.SUPERSEDED:
                return await self._confirmed(applied, acknowledged)
        detail = f"other writes of record {identifier[:80]!r} came between {UPDATE_ATTEMPTS_MAX} times"
        raise StoreUnavailable("update record", detail, hint="repeat the call", nothing_written=True)

    async def page(
        self, group: str, *, records_max: int = limits.LIST_RECORDS_MAX, token: str | None = None, deleted: bool = False
    ) -> Listed:
        """A page of the identifiers of a group's live records, in no particular order.

        Whatever is live from the first page to the last is in exactly one of them. A page may hold fewer than `records_max`, or
        none, and still not be the last.

        Args:
            records_max: 1 to LIST_RECORDS_MAX.
            token: the `next_token` of the page before.
            deleted: soft deleted records as well.

        Raises:
            FeatureGroupNotFound, StoreUnavailable
            ValidationFailed: also a token that is not of this group, and a group without an online store.
        """
        if not 1 <= records_max <= limits.LIST_RECORDS_MAX:
            raise ValidationFailed.one("MaxResults", f"an integer from 1 to {limits.LIST_RECORDS_MAX}", records_max)
        plan = self.readable_plan(group)
        group_id, secret = plan.group.group_id, self._online.secret
        after = None if token is None else RecordPlace(*decode_token(secret, group_id, token))
        page = await self._online.page(group_id, after, records_max, deleted=deleted, values=not plan.keys_are_written)
        identifiers = [
            record_id if values is None else plan.written_identifier(decode_values(values)[1])
            for record_id, values in page.records
        ]
        end = page.end
        return Listed(identifiers, None if end is None else encode_token(secret, group_id, end.shard, end.record_id))

    async def delete(
        self,
        group: str,
        identifier: str,
        event_time: str,
        *,
        hard: bool = False,
        targets: frozenset[TargetStore] | None = None,
        write_token: str | None = None,
    ) -> Applied:
        """Delete one record as of an event time, softly or hard (docs/guarantees.md, P1).

        Raises:
            FeatureGroupNotFound, StoreUnavailable, OutboxFull
            ValidationFailed: also a hard delete that is not later than the record.
        """
        plan = self._groups.plan(group)
        change = _with_token(plan.delete(identifier, event_time, hard=hard, targets=targets), write_token)
        applied = await self._apply(plan.group, change)
        if applied.outcome is Outcome.REFUSED:
            raise ValidationFailed.one("EventTime", "a time later than the record's, for a HardDelete", event_time)
        return applied

    async def batch_get(self, requests: Sequence[GetRequest]) -> list[list[Answer]]:
        """Records of several groups in one round trip: per request one answer per identifier, in order.

        What is wrong with one identifier or group is the answer for it and does not keep the others from being answered.

        Raises:
            StoreUnavailable
        """
        keys: list[RecordKey] = []
        answers: list[list[Answer]] = []
        wanted: list[tuple[int, int, RecordPlan, list[int] | None]] = []
        for request in requests:
            answer: list[Answer] = [None] * len(request.identifiers)
            answers.append(answer)
            try:
                plan = self.readable_plan(request.group)
                selected = plan.selection(request.features)
            except (FeatureGroupNotFound, ValidationFailed) as error:
                answer[:] = [error] * len(answer)
                continue
            for position, identifier in enumerate(request.identifiers):
                try:
                    keys.append((plan.group.group_id, plan.record_id(identifier)))
                except ValidationFailed as error:
                    answer[position] = error
                else:
                    wanted.append((len(answers) - 1, position, plan, selected))
        for (number, position, plan, selected), item in zip(wanted, await self._online.get(keys), strict=True):
            if item is not None:
                _, values = decode_values(item.values)
                record = Record(plan.pairs(values, selected), item.event_time_us, item.expires_at_us)
                answers[number][position] = record
        return answers

    def readable_plan(self, group: str) -> RecordPlan:
        """The plan of a group that has an online store.

        Raises:
            FeatureGroupNotFound, ValidationFailed
        """
        plan = self._groups.plan(group)
        if not plan.is_readable:
            raise ValidationFailed.one("FeatureGroupName", "a feature group with an online store", plan.group.name)
        return plan

    async def _apply(self, group: FeatureGroup, change: Change) -> Applied:
        acknowledged = self._confirmation(group)
        (applied,) = await self._online.apply([change])
        return await self._confirmed(applied, acknowledged)

    async def _answered_before(self, key: RecordKey, write_token: str | None) -> Applied | None:
        """What this call was answered when it was made before; None if it was not."""
        if write_token is None:
            return None
        inquiry = Change(key[0], 1, key[1], 0, Op.PUT, ONLINE, None, b"")
        applied = await self._online.apply_upon(_with_token(inquiry, write_token), 0)
        return None if applied.outcome is Outcome.SUPERSEDED else applied

    async def _confirm(self, group: FeatureGroup, change: Change, done: Callable[[Applied | Exception], None]) -> None:
        try:
            answer: Applied | Exception = await self._apply(group, change)
        except Exception as error:  # whatever it is, it is for the caller
            answer = error
        done(answer)

    def _confirmation(self, group: FeatureGroup) -> Acknowledged | None:
        """What waits until a write of this group may be acknowledged; None if nothing has to."""
        return require_log(group, self._acknowledged) if group.durability is Durability.LOG else None

    async def _confirmed(self, applied: Applied, acknowledged: Acknowledged | None) -> Applied:
        if acknowledged is not None and applied.stamp is not None:
            await acknowledged([applied.stamp])
        return applied


def _with_token(change: Change, write_token: str | None) -> Change:
    if write_token is None:
        return change
    return msgspec.structs.replace(change, write_id=changes.write_id(change.group_id, change.record_id, write_token))


def require_log(group: FeatureGroup, acknowledged: Acknowledged | None) -> Acknowledged:
    """What waits for Kafka, for a group that asks for it.

    Raises:
        StoreUnavailable: there is no Kafka in the settings of this process; nothing was written.
    """
    if acknowledged is None:
        detail = f"{group.name!r} acknowledges writes when Kafka has (durability=log), and there is no Kafka in the settings"
        hint = "see FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS"
        raise StoreUnavailable("write", detail, hint=hint, nothing_written=True)
    return acknowledged
