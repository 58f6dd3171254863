"""The online store: the newest record per identifier, and the outbox that every change is appended to in the same step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol, TypeAlias

from featurestore.model.change import Applied, Change, LoggedChange

APPLY_CHANGES_MAX: Final = 1024
"""Changes of one `apply` call; bounds the time that one commit takes."""

RecordKey: TypeAlias = tuple[int, str]
"""(group_id, record_id)."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A live record. `values` are `codec.encode_values` bytes; times are microseconds since 1970."""

    event_time_us: int
    api_time_us: int
    expires_at_us: int | None
    values: bytes


class OnlineStore(Protocol):
    """Coroutines belong to the event loop that calls them; several loops and processes may use one store at once."""

    async def apply(self, changes: Sequence[Change]) -> Sequence[Applied]:
        """Decide each change by event time, keep the winner, append all that are not refused to their shards' outboxes.

        State and outbox entry of a change are one atomic, durable step. No order holds between record identifiers;
        changes of one identifier take effect in the order given. A change whose write id was seen within the last
        RECEIPTS_MAX of them gets its first answer again and appends nothing.
        At most APPLY_CHANGES_MAX changes; they are made durable together.

        Raises:
            StoreUnavailable: none of the changes is known to be written; repeating is safe for those with a write id.
            OutboxFull: none was written; the offline writer is behind.
        """

    async def get(self, keys: Sequence[RecordKey]) -> Sequence[StoredRecord | None]:
        """The live records of `keys`, in that order; None for those absent, deleted or expired at this moment.

        Raises:
            StoreUnavailable
        """

    async def reserve(self, rows: Mapping[int, int]) -> Mapping[int, int]:
        """Set aside `rows[shard]` consecutive api times in each shard; returns the first of each, in microseconds.

        They lie after every stamp the shard gave before and before every one it gives later.

        Raises:
            StoreUnavailable
        """

    async def load(self, changes: Sequence[LoggedChange]) -> int:
        """Upsert puts that are stamped and already kept elsewhere (batch ingest, rebuild): state only, no outbox entry.

        A row replaces the stored one if it is greater in the order of changes (event time; at equal ones a put stands
        above a soft delete; then api time), and is dropped if the record was hard deleted at or after its api time.
        Idempotent, any order, any number of rows; each is atomic.
        Returns how many became the record's state.

        Raises:
            StoreUnavailable: some may be loaded; repeating is safe.
        """

    async def drop_group(self, group_id: int) -> None:
        """Remove all records of a group. Its outbox entries stay: the offline store keeps the history. Idempotent."""

    async def erase(self, key: RecordKey, until_us: int) -> bool:
        """Remove whatever is kept of a record (live, tombstone or grave), if it arrived at or before `until_us`.

        Nothing is logged. Idempotent. Returns whether there was something to remove.

        Raises:
            StoreUnavailable
        """

    async def purge(self) -> None:
        """Make sure that no file of the store holds bytes of what was removed or replaced before.

        Raises:
            StoreUnavailable: another process kept the store busy for too long; repeating is safe.
        """

    def close(self) -> None:
        """Finish what was accepted, then release everything."""
