"""Streaming ingestion: messages of a user's topic through the record path, each once, in the order of their partition.

A message that can't become a record is a fault with its reason; the others go on. What can't be written now (a store does not
answer, the outbox is full) fails the call, and repeating it is safe: see `OnlineStore.apply_from`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from featurestore.errors import ValidationFailed
from featurestore.model.change import Change
from featurestore.model.feature_group import Durability
from featurestore.model.record import FeaturePair, RecordPlan
from featurestore.model.stream import MessageFault, Stream, json_decoder
from featurestore.online.protocol import APPLY_CHANGES_MAX, OnlineStore
from featurestore.records import Acknowledged, GroupCache, require_log

MESSAGES_MAX: Final = APPLY_CHANGES_MAX
"""Messages of one call."""
EMPTY: Final = "no value: a message without bytes deletes nothing here"


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a partition; `value` is None where it has none."""

    offset: int
    value: bytes | None


@dataclass(frozen=True, slots=True)
class MessageFailure:
    """A message that is no record, and why."""

    message: Message
    reason: str


@dataclass(frozen=True, slots=True)
class Written:
    """What became of some messages.

    Attributes:
        records: written now.
        repeated: written by a call before this one.
        failures: in the order of the messages.
    """

    records: int
    repeated: int
    failures: Sequence[MessageFailure]


class StreamWriter:
    """Writes the messages of streams into one online store, from where they take the way of all changes."""

    def __init__(self, groups: GroupCache, online: OnlineStore, acknowledged: Acknowledged | None = None) -> None:
        self._groups = groups
        self._online = online
        self._acknowledged = acknowledged

    async def write(self, stream: Stream, partition: int, messages: Sequence[Message]) -> Written:
        """Write the next messages of one partition: at most MESSAGES_MAX, by rising offset, none left out in between.

        Raises:
            FeatureGroupNotFound: the stream's group is gone.
            StoreUnavailable, OutboxFull: some may be written; repeat the call before going on.
        """
        plan = self._groups.plan(stream.group)
        decode = json_decoder(stream.fields)
        changes: list[tuple[int, Change]] = []
        failures = []
        for message in messages:
            try:
                if message.value is None:
                    raise MessageFault(EMPTY)
                changes.append((message.offset, _change(plan, decode(message.value))))
            except MessageFault as fault:
                failures.append(MessageFailure(message, str(fault)))
        acknowledged = require_log(plan.group, self._acknowledged) if plan.group.durability is Durability.LOG else None
        applied = await self._online.apply_from(stream.source(partition), changes)
        stamps = [answer.stamp for answer in applied if answer is not None and answer.stamp is not None]
        if acknowledged is not None and stamps:
            await acknowledged(stamps)
        repeated = sum(answer is None for answer in applied)
        return Written(len(applied) - repeated, repeated, failures)


def _change(plan: RecordPlan, pairs: Iterable[FeaturePair]) -> Change:
    try:
        return plan.put(pairs)
    except ValidationFailed as error:
        raise MessageFault(str(error)) from error
