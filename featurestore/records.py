"""The record path: PutRecord, GetRecord, DeleteRecord and BatchGetRecord, from checked names to stored bytes.

Coroutines of one event loop. Groups come from a cache that is never older than GROUP_CACHE_S, so that the registry is not
asked for every record.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

from featurestore.errors import FeatureGroupNotFound, FeatureStoreError, StoreUnavailable, ValidationFailed
from featurestore.model import change as changes
from featurestore.model.change import Applied, Change, Outcome, Stamp
from featurestore.model.codec import decode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import Durability, FeatureGroup, GroupStatus, TargetStore, TtlDuration, name_of
from featurestore.model.record import FeaturePair, RecordPlan
from featurestore.online.protocol import OnlineStore, RecordKey
from featurestore.registry.protocol import Registry

GROUP_CACHE_S: Final = 0.5
"""A change of a group by another process is seen at most this much later."""


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
        now_s = time.monotonic()
        if now_s - self._checked_at_s >= GROUP_CACHE_S:
            self._revalidate(now_s)
        plan = self._plans.get(name_or_arn)
        if plan is None:
            plan = RecordPlan(self._group(name_or_arn))
            self._plans[name_or_arn] = plan
        return plan

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
        self._groups = groups
        self._online = online
        self._acknowledged = acknowledged

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
        change = plan.put(pairs, targets=targets, ttl=ttl)
        return await self._apply(plan.group, change, write_token)

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
        change = plan.delete(identifier, event_time, hard=hard, targets=targets)
        applied = await self._apply(plan.group, change, write_token)
        if applied.outcome is Outcome.REFUSED:
            raise ValidationFailed.one("EventTime", "a time later than the record's, for a HardDelete", event_time)
        return applied

    async def get(self, group: str, identifier: str, features: Sequence[str] | None = None) -> Record | None:
        """The live record of an identifier, or None if it is absent, deleted or expired.

        Raises:
            FeatureGroupNotFound, StoreUnavailable
            ValidationFailed: also for a group without an online store.
        """
        ((answer,),) = await self.batch_get([GetRequest(group, [identifier], features)])
        if isinstance(answer, FeatureStoreError):
            raise answer
        return answer

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
        if plan.group.online is None:
            raise ValidationFailed.one("FeatureGroupName", "a feature group with an online store", plan.group.name)
        return plan

    async def _apply(self, group: FeatureGroup, change: Change, write_token: str | None) -> Applied:
        acknowledged = None
        if group.durability is Durability.LOG:
            acknowledged = require_log(group, self._acknowledged)
        if write_token is not None:
            token = changes.write_id(change.group_id, change.record_id, write_token)
            change = msgspec.structs.replace(change, write_id=token)
        (applied,) = await self._online.apply([change])
        if acknowledged is not None and applied.stamp is not None:
            await acknowledged([applied.stamp])
        return applied


def require_log(group: FeatureGroup, acknowledged: Acknowledged | None) -> Acknowledged:
    """What waits for Kafka, for a group that asks for it.

    Raises:
        StoreUnavailable: there is no Kafka in the settings of this process; nothing was written.
    """
    if acknowledged is None:
        detail = f"{group.name!r} acknowledges writes when Kafka has (durability=log), and there is no Kafka in the settings"
        raise StoreUnavailable("write", detail, hint="see FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS")
    return acknowledged
