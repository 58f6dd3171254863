"""The online store: the newest record per identifier, and the outbox that every change is appended to in the same step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol, TypeAlias

import pyarrow as pa

from featurestore.errors import FeatureStoreError
from featurestore.model.change import Applied, Change, LogEntry, Stamp
from featurestore.model.stamped_rows import StampedRows

APPLY_CHANGES_MAX: Final = 1024
"""Changes of one `apply` call; bounds the time that one commit takes."""

SOURCE_BYTES_MAX: Final = 512
"""Longest name of a source of `apply_from`."""

PAGE_LOOKED_AT_MAX: Final = 10_000
"""Records that one page of `page` looks at; bounds its cost where most of them are expired or deleted."""

RecordKey: TypeAlias = tuple[int, str]
"""(group_id, record_id)."""


@dataclass(frozen=True, slots=True)
class StoredRecord:
    """A live record. `values` are `codec.encode_values` bytes; times are microseconds since 1970."""

    event_time_us: int
    api_time_us: int
    expires_at_us: int | None
    values: bytes


Found: TypeAlias = tuple[bytes, int | None] | None
"""Values and expiry of a live record, as in `StoredRecord`; None if there is none."""

OneTaken: TypeAlias = Callable[[Found | Exception], None]
"""Is given what was found, or why that can't be said: a StoreUnavailable or StoreCorrupt."""

AllTaken: TypeAlias = Callable[[list[Found] | Exception], None]
"""Is given what was found for each record, in order, or why that can't be said, as OneTaken."""


@dataclass(frozen=True, slots=True)
class RecordPlace:
    """A place in the order in which `page` goes through a group. It stays one whatever is written meanwhile."""

    shard: int
    record_id: str


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Some records of a group.

    Attributes:
        records: (record id, values or None where they were not asked for).
        end: the place behind which the next page begins; None when there is none.
    """

    records: Sequence[tuple[str, bytes | None]]
    end: RecordPlace | None


class RecordState(IntEnum):
    """What is kept of a record. Values are part of the stored format."""

    TOMBSTONE = 0
    """Soft deleted: its event time counts against older writes."""
    LIVE = 1
    GRAVE = 2
    """Hard deleted: absent in every respect, except that a replayed change from before `grave_us` must not return."""


STATES: Final = pa.schema(
    [
        pa.field("record_id", pa.string(), nullable=False),
        pa.field("state", pa.int8(), nullable=False),
        pa.field("event_time_us", pa.int64(), nullable=False),
        pa.field("api_time_us", pa.int64(), nullable=False),
        pa.field("expires_at_us", pa.int64()),
        pa.field("grave_us", pa.int64(), nullable=False),
        pa.field("online_only", pa.bool_(), nullable=False),
        pa.field("values", pa.binary()),
    ]
)
"""Columns of `OnlineSnapshot.states`: the state of one record per row. `state` is a RecordState; `grave_us` the api time of the
last hard delete, or 0; `online_only` tells that the state came from a change that did not go to the offline store."""


@dataclass(frozen=True, slots=True)
class Tally:
    """What was ever acknowledged for one group in one shard.

    Attributes:
        changes: logged changes that target the offline store.
        offline_only: of those, the ones that do not target the online store; and rows of batch ingests of that kind.
        online_only: logged changes that do not target the offline store.
        former: as `changes`, of a store that this one replaced, see `OnlineStore.count_former`.
    """

    changes: int = 0
    offline_only: int = 0
    online_only: int = 0
    former: int = 0

    @property
    def acknowledged(self) -> int:
        """Changes that the offline store has, or is to get."""
        return self.changes + self.former


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure of records did.

    Attributes:
        until_us: per shard of the records the api time up to which their changes are erased.
        removed: records of which something was kept.
    """

    until_us: Mapping[int, int]
    removed: int


class OnlineSnapshot(Protocol):
    """One group at one moment: all answers are of the same committed state, whatever is written meanwhile.

    Synchronous, of one thread, in bounded memory. Methods raise StoreUnavailable.
    """

    def tallies(self) -> Mapping[int, Tally]:
        """Per shard what was acknowledged; shards without anything may be missing."""

    def waiting(self) -> Iterator[LogEntry]:
        """The entries of the outbox that are of the group, and those that do not decode, which may be of any. In log order
        per shard. Entries that are in the offline store already may be among them, as they are trimmed later.
        """

    def records(self) -> int:
        """How many rows `states` has."""

    def states(self) -> Iterator[pa.RecordBatch]:
        """What is kept of each record, expired ones, tombstones and graves included: batches of STATES, in no order.

        Raises:
            StoreCorrupt: a value is not of its column's type.
        """


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

    def apply_soon(self, change: Change, done: Callable[[Applied | Exception], None]) -> None:
        """As `apply` of one change, without a coroutine: `done` is called once, on the running event loop, with the answer or
        with what `apply` would raise. Not from here.
        """

    async def apply_each(self, changes: Sequence[Change]) -> Sequence[Applied | FeatureStoreError]:
        """As `apply`, each change for itself: what keeps one from being written is its answer and does not keep the others.

        An answer may be StoreUnavailable, OutboxFull or StoreCorrupt. Of a StoreUnavailable `nothing_written` tells whether the
        change may have been written nevertheless.

        Raises:
            StoreUnavailable: as `apply`.
        """

    async def apply_upon(self, change: Change, api_time_us: int) -> Applied:
        """As `apply` of one change that was made from a record, if that is still live with this api time. Else the outcome is
        SUPERSEDED, and nothing is written, logged or remembered under the write id.

        A write id that was seen gets its first answer before anything else is looked at: an api time of 0, which no record has,
        only asks for that.

        Raises:
            StoreUnavailable, OutboxFull: as `apply`.
        """

    async def page(
        self, group_id: int, after: RecordPlace | None, records_max: int, *, deleted: bool = False, values: bool = False
    ) -> RecordPage:
        """The next live records of a group behind a place, or the first ones; expired ones are left out.

        A record that is live all the time from the first page to the last is in exactly one of them; one that comes, goes or
        changes meanwhile is in at most one. A page looks at PAGE_LOOKED_AT_MAX records at most, so it may hold fewer than
        `records_max` and still not be the last. Pages of a group that is not written to end with one that has no `end`.

        Args:
            records_max: at least 1.
            deleted: soft deleted records as well.
            values: give the records' values, not their ids alone.

        Raises:
            StoreUnavailable
            StoreCorrupt: the key of the group's index holds what the store has not written.
        """

    @property
    def secret(self) -> bytes:
        """32 random bytes, made with the store and the same in all its processes, to sign with what clients bring back."""

    async def apply_from(self, source: str, changes: Sequence[tuple[int, Change]]) -> Sequence[Applied | None]:
        """As `apply`, for changes that come from an ordered source, each with its offset there, in rising order.

        Per shard the greatest offset that was applied is kept, in the same atomic step. What is not above it was applied before,
        is left alone and answered with None: so a source may deliver again whatever it likes, however late, and each change takes
        effect once. Calls of one source must not overlap.

        Args:
            source: at most SOURCE_BYTES_MAX bytes as UTF-8.

        Raises:
            StoreUnavailable: some may be written; repeating is safe.
            OutboxFull: as StoreUnavailable.
        """

    async def get(self, keys: Sequence[RecordKey]) -> Sequence[StoredRecord | None]:
        """The live records of `keys`, in that order; None for those absent, deleted or expired at this moment.

        Raises:
            StoreUnavailable
        """

    def read_one(self, group_id: int, record_id: str, done: OneTaken) -> None:
        """As `get` of one record, without a coroutine: `done` is called once, on the running event loop, perhaps from here."""

    def read(self, wanted: Sequence[tuple[int, Sequence[str]]], done: AllTaken) -> None:
        """As `read_one`, of some records of each group, one group after the other."""

    def serving(self) -> AbstractAsyncContextManager[None]:
        """For an event loop that lives long and answers many: the connections it needs are open within, so that its calls take
        the shortest way. Entered once at a time.
        """

    async def reserve(self, rows: Mapping[int, int]) -> Mapping[int, int]:
        """Set aside `rows[shard]` consecutive api times in each shard; returns the first of each, in microseconds.

        They lie after every stamp the shard gave before and before every one it gives later.

        Raises:
            StoreUnavailable
        """

    async def load(self, rows: StampedRows) -> int:
        """Take in changes of one group that are stamped and already kept elsewhere (batch ingest, rebuild): state only, no outbox
        entry.

        A put or soft delete replaces what is stored if it is greater in the order of changes (event time; at equal ones a put
        stands above a soft delete; then api time), and is dropped if the record was hard deleted or erased at or after its api
        time. A hard delete removes what has arrived until its api time. Those of a call come first.
        Idempotent, any number of changes; each is atomic. Any order, except that a hard delete does not bring back what an
        earlier call has dropped for the sake of what it removes.
        Returns how many became the record's state.

        Raises:
            StoreUnavailable: some may be loaded; repeating is safe.
        """

    async def advance(self, stamps: Mapping[int, Stamp]) -> None:
        """Make sure that what is stamped from now on lies after these stamps of their shards, as they were given before: by a
        store that has been replaced by an older copy or an empty one since. Idempotent.

        Raises:
            StoreUnavailable
        """

    async def drop_group(self, group_id: int) -> None:
        """Remove all records of a group. Its outbox entries stay: the offline store keeps the history. Idempotent."""

    async def erase(self, erasure_id: bytes, group_id: int, record_ids: Sequence[str]) -> Erased:
        """Remove whatever is kept of these records (live, tombstone or grave), and set one moment for each shard of theirs: what
        arrived until then is erased, so `load` drops it, and what arrives later begins the record anew.

        Nothing is logged. Done in one step, once per `erasure_id` (16 random bytes): repeating it, however late and with the same
        records, changes nothing and gives the first answer.

        Raises:
            StoreUnavailable: not known to be done; repeating is safe.
        """

    async def purge(self) -> None:
        """Make sure that no file of the store holds bytes of what was removed or replaced before.

        Raises:
            StoreUnavailable: another process kept the store busy for too long; repeating is safe.
        """

    async def count_offline_only(self, group_id: int, rows: Mapping[int, int]) -> None:
        """Count `rows[shard]` rows of a batch that is about to go to the offline store and not to this one, see `Tally`.

        Raises:
            StoreUnavailable
        """

    async def count_former(self, group_id: int, changes: Mapping[int, int]) -> None:
        """Remember that `changes[shard]` changes of a group which the offline store has, or is to get, were logged by a store
        that this one replaced. A smaller number than before changes nothing. Idempotent.

        Raises:
            StoreUnavailable
        """

    def snapshot(self, group_id: int) -> AbstractContextManager[OnlineSnapshot]:
        """One group at the moment of entering. Writers go on; leave it soon, since the store can't be purged meanwhile.

        Raises:
            StoreUnavailable
        """

    def close(self) -> None:
        """Finish what was accepted, then release everything."""
