"""The online store on Redis: one script call per shard decides, writes and logs whatever changes wait at that moment.

Two threads make the round trips, one for changes and one for reads. Each takes everything that waits, so concurrent callers
share a round trip; changes of one shard share a script call, whoever they are from. Bulk verbs have connections of their own.

Where it differs from what `online.protocol` says, since a step is atomic within a shard only:

- A call with changes of several shards is one step per shard. OutboxFull means that no change was written; if the outbox of some
  of its shards is full and others are written, the call raises StoreUnavailable.
- Of a call of `apply_each` the shards' shares are one step each, and what a server did not answer is not known to be written.
- An erasure is one step per shard. Repeating it completes it, with the first answer for shards that were done.
- Each shard's outbox takes an equal share of `outbox_changes_max`.
- Write ids are remembered per shard: the last RECEIPTS_MAX / shards of them, but no longer than RECEIPT_S; up to twice that.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import repeat
from typing import Any, Final

from featurestore.errors import FeatureStoreError, OutboxFull, StoreCorrupt, StoreUnavailable
from featurestore.keyspace.layout import (
    APPLIED,
    BIAS,
    CHANGE_HEAD,
    EXPIRES,
    HAS_EXPIRY,
    LOADED_HEAD,
    ONLINE_ONLY,
    UPON,
    decode_record,
    load_script,
)
from featurestore.keyspace.link import Call
from featurestore.keyspace.opening import Keyspace
from featurestore.model.change import (
    OFFLINE,
    ONLINE,
    Applied,
    Change,
    LoggedChange,
    Op,
    Outcome,
    Stamp,
    shard_of,
    signing_secret,
    subject_of,
)
from featurestore.model.codec import encode_change
from featurestore.online.lane import Job, Lane
from featurestore.online.protocol import (
    APPLY_CHANGES_MAX,
    PAGE_LOOKED_AT_MAX,
    SOURCE_BYTES_MAX,
    Erased,
    OnlineSnapshot,
    RecordKey,
    RecordPage,
    RecordPlace,
    RecordState,
    StoredRecord,
)
from featurestore.online.redis_purge import PURGE_S_MAX, purge_keyspace
from featurestore.online.redis_snapshot import RedisSnapshot, scan_group

READ_KEYS_MAX: Final = 4096
"""Records of one round trip; bounds how long the server does nothing else."""
LOAD_ROWS: Final = 256
"""Rows of one script call of a bulk load."""
LOAD_CALLS: Final = 32
"""Such calls of one round trip."""
RECEIPTS_MAX: Final = 1_000_000
RECEIPT_S: Final = 900
"""A quarter of an hour of retries."""
DROP_PASSES_MAX: Final = 10
PAGE_LOOKS: Final = 1_000
"""Records that one script call of a page looks at; the server does nothing else meanwhile."""
PAGE_SHARDS_MAX: Final = 64
"""Shards that are asked at once for a page."""

_WRITE: Final = "write online store"
_READ: Final = "read online store"
_APPLY, _LOAD, _RESERVE, _ADVANCE, _ERASE, _DROP, _FORMER, _PAGE = map(
    load_script, ("apply", "load", "reserve", "advance", "erase", "drop", "former", "page")
)
_OUTCOMES: Final = {0: Outcome.NEWEST, 1: Outcome.HISTORIC, 2: Outcome.REFUSED, 4: Outcome.SUPERSEDED}
_DONE_BEFORE: Final = 3
_FULL: Final = 8
_FAULTY: Final = 9
_LIVE: Final = RecordState.LIVE.value
_STATES: Final = {
    Op.PUT: RecordState.LIVE.value,
    Op.SOFT_DELETE: RecordState.TOMBSTONE.value,
    Op.HARD_DELETE: RecordState.GRAVE.value,
}


@dataclass(slots=True)
class _Part:
    """The changes of one call that are of one shard. `args` alternates heads and bodies; `positions` are those in the call."""

    keys: list[bytes]
    args: list[bytes]
    positions: list[int]


@dataclass(slots=True)
class _Write:
    """The changes of one call, by shard. `source` is empty unless they come from one; with `each` an error is the answer of its
    change and not of the call."""

    parts: dict[int, _Part]
    changes: int
    source: str
    each: bool


@dataclass(slots=True)
class _Read:
    keys: list[bytes]
    shards: list[int]


class RedisOnlineStore:
    """See `online.protocol.OnlineStore`.

    Args:
        clock_us: the time to stamp and to expire by, instead of the servers'; for tests.
    """

    def __init__(
        self,
        keyspace: Keyspace,
        *,
        outbox_changes_max: int,
        purge_s_max: float = PURGE_S_MAX,
        clock_us: Callable[[], int] | None = None,
    ) -> None:
        self._keyspace = keyspace
        self._keys = keyspace.keys
        self._shards = len(self._keys)
        self._outbox_share = max(1, outbox_changes_max // self._shards)
        self._purge_s_max = purge_s_max
        self._clock_us = clock_us
        self._closed = False
        self._bulk = keyspace.link()
        self._bulk_lock = threading.Lock()
        self._pages = keyspace.link()
        self._pages_lock = threading.Lock()
        self._writes = keyspace.link()
        self._reads = keyspace.link()
        self._writer: Lane[_Write] = Lane(_WRITE, self._write, weight_max=APPLY_CHANGES_MAX)
        self._reader: Lane[_Read] = Lane(_READ, self._read, weight_max=READ_KEYS_MAX)

    async def apply(self, changes: Sequence[Change]) -> Sequence[Applied]:
        if len(changes) > APPLY_CHANGES_MAX:
            raise ValueError(f"at most {APPLY_CHANGES_MAX} changes per call, got {len(changes)}")
        result: list[Applied] = await self._writer.submit(self._prepared(changes), len(changes))
        return result

    async def apply_each(self, changes: Sequence[Change]) -> Sequence[Applied | FeatureStoreError]:
        if len(changes) > APPLY_CHANGES_MAX:
            raise ValueError(f"at most {APPLY_CHANGES_MAX} changes per call, got {len(changes)}")
        work = self._prepared(changes, each=True)
        result: list[Applied | FeatureStoreError] = await self._writer.submit(work, len(changes))
        return result

    async def apply_upon(self, change: Change, api_time_us: int) -> Applied:
        if not change.targets & ONLINE:
            raise ValueError("a change that is made upon a record goes to the online store")
        (applied,) = await self._writer.submit(self._prepared([change], upon_us=api_time_us), 1)
        result: Applied = applied
        return result

    async def page(
        self, group_id: int, after: RecordPlace | None, records_max: int, *, deleted: bool = False, values: bool = False
    ) -> RecordPage:
        return await asyncio.to_thread(self._page, group_id, after, records_max, deleted, values)

    @property
    def secret(self) -> bytes:
        return signing_secret(self._keyspace.salt)

    async def apply_from(self, source: str, changes: Sequence[tuple[int, Change]]) -> Sequence[Applied | None]:
        if len(changes) > APPLY_CHANGES_MAX:
            raise ValueError(f"at most {APPLY_CHANGES_MAX} changes per call, got {len(changes)}")
        if not 0 < len(source.encode()) <= SOURCE_BYTES_MAX:
            raise ValueError(f"a source of 1 to {SOURCE_BYTES_MAX} bytes, got {source!r}")
        work = self._prepared([change for _, change in changes], source, [offset for offset, _ in changes])
        result: list[Applied | None] = await self._writer.submit(work, len(changes))
        return result

    async def get(self, keys: Sequence[RecordKey]) -> Sequence[StoredRecord | None]:
        shards = [shard_of(record_id, self._shards) for _, record_id in keys]
        names = [self._keys[shard].record(*key) for shard, key in zip(shards, keys, strict=True)]
        result: list[StoredRecord | None] = await self._reader.submit(_Read(names, shards), len(names))
        return result

    async def reserve(self, rows: Mapping[int, int]) -> Mapping[int, int]:
        calls = [_RESERVE.call(shard, [self._keys[shard].meta], [self._now(), count]) for shard, count in rows.items()]
        replies = await self._in_bulk(_WRITE, calls)
        return {shard: int(first_us) for shard, first_us in zip(rows, replies, strict=True)}

    async def load(self, changes: Sequence[LoggedChange]) -> int:
        return await asyncio.to_thread(self._load, changes)

    async def advance(self, stamps: Mapping[int, Stamp]) -> None:
        calls = [
            _ADVANCE.call(shard, [self._keys[shard].meta], [stamp.seq, stamp.api_time_us]) for shard, stamp in stamps.items()
        ]
        await self._in_bulk(_WRITE, calls, repeatable=True)

    async def drop_group(self, group_id: int) -> None:
        await asyncio.to_thread(self._drop_group, group_id)

    async def erase(self, erasure_id: bytes, group_id: int, record_ids: Sequence[str]) -> Erased:
        shards: dict[int, list[str]] = {}
        for record_id in dict.fromkeys(record_ids):
            shards.setdefault(shard_of(record_id, self._shards), []).append(record_id)
        calls = []
        for shard, members in shards.items():
            keys = self._keys[shard]
            fixed = [keys.meta, keys.tally, keys.snapshots, keys.erasures, keys.erased]
            subjects = [subject_of(group_id, record_id, self._keyspace.salt) for record_id in members]
            records = [keys.record(group_id, record_id) for record_id in members]
            calls.append(_ERASE.call(shard, [*fixed, *records], [keys.base, self._now(), erasure_id, group_id, *subjects]))
        replies = await self._in_bulk(_WRITE, calls, repeatable=True)
        until_us = {shard: int(until) for shard, (until, _) in zip(shards, replies, strict=True)}
        return Erased(until_us, sum(removed for _, removed in replies))

    async def purge(self) -> None:
        """As the protocol says, for the files of the servers that have the shards, not for those of replicas. Where a server
        does not let its files be written anew, a warning is logged.
        """
        await asyncio.to_thread(purge_keyspace, self._keyspace, self._purge_s_max)

    async def count_offline_only(self, group_id: int, rows: Mapping[int, int]) -> None:
        calls = [
            Call(shard, ("HINCRBY", self._keys[shard].tally, f"{group_id}:offline_only", count)) for shard, count in rows.items()
        ]
        await self._in_bulk(_WRITE, calls)

    async def count_former(self, group_id: int, changes: Mapping[int, int]) -> None:
        calls = [_FORMER.call(shard, [self._keys[shard].tally], [group_id, count]) for shard, count in changes.items()]
        await self._in_bulk(_WRITE, calls, repeatable=True)

    @contextmanager
    def snapshot(self, group_id: int) -> Iterator[OnlineSnapshot]:
        with closing(RedisSnapshot(self._keyspace, group_id)) as snapshot:
            yield snapshot

    def close(self) -> None:
        self._writer.close()
        self._reader.close()
        with self._bulk_lock:
            self._closed = True
            for link in (self._writes, self._reads, self._bulk):
                link.close()
        with self._pages_lock:
            self._pages.close()

    def _now(self) -> str:
        """What a script is told of the time; empty for the server's own."""
        return "" if self._clock_us is None else str(self._clock_us())

    # Changes

    def _prepared(
        self,
        changes: Sequence[Change],
        source: str = "",
        offsets: Sequence[int] = (),
        *,
        each: bool = False,
        upon_us: int | None = None,
    ) -> _Write:
        parts: dict[int, _Part] = {}
        for position, change in enumerate(changes):
            shard = shard_of(change.record_id, self._shards)
            part = parts.setdefault(shard, _Part([], [], []))
            part.keys.append(self._keys[shard].record(change.group_id, change.record_id))
            part.args.append(encode_change(change))
            part.positions.append(position)
        for part in parts.values():
            bodies, part.args = part.args, []
            for index, (body, position) in enumerate(zip(bodies, part.positions, strict=True)):
                offset = offsets[position] if offsets else 0
                call = 1 if each else len(bodies) if index == 0 else 0
                head = _change_head(changes[position], body, call=call, offset=offset, upon_us=upon_us)
                part.args += (head, body)
        return _Write(parts, len(changes), source, each)

    def _write(self, jobs: Sequence[Job[_Write]]) -> None:
        """One script call for each shard, and for each source of changes."""
        by_target: dict[tuple[int, str], list[Job[_Write]]] = {}
        for job in jobs:
            for shard in job.work.parts:
                by_target.setdefault((shard, job.work.source), []).append(job)
        calls = []
        now = self._now()
        for (shard, source), members in by_target.items():
            keys = self._keys[shard]
            names = [*keys.fixed]
            args: list[Any] = [keys.base, now, self._outbox_share, max(1, RECEIPTS_MAX // self._shards), RECEIPT_S, source]
            for job in members:
                names += job.work.parts[shard].keys
                args += job.work.parts[shard].args
            calls.append(_APPLY.call(shard, names, args))
        answers = {
            (shard, source): self._answers(shard, reply)
            for (shard, source), reply in zip(by_target, self._writes.run(_WRITE, calls), strict=True)
        }
        for job in jobs:
            result: list[Applied | FeatureStoreError | None] = [None] * job.work.changes
            for shard, part in job.work.parts.items():
                for position in part.positions:
                    result[position] = next(answers[shard, job.work.source])
            errors = [answer for answer in result if isinstance(answer, FeatureStoreError)]
            job.result = result
            if errors and not job.work.each:
                job.error = errors[0]
                if isinstance(errors[0], OutboxFull) and len(errors) < len(result):
                    detail = f"a part of the changes was not written: {errors[0]}"
                    job.error = StoreUnavailable(_WRITE, detail, hint="repeat the call")

    def _answers(self, shard: int, reply: Any) -> Iterator[Applied | FeatureStoreError | None]:
        """What a script call answers of each change, in order."""
        if isinstance(reply, FeatureStoreError):
            yield from repeat(reply)
        waiting, answers, faults = reply
        reasons = iter(faults[1::2])
        for outcome, seq, api_time_us in APPLIED.iter_unpack(answers):
            if outcome == _FULL:
                yield OutboxFull(waiting, self._outbox_share)
            elif outcome == _FAULTY:
                yield _foreign(next(reasons))
            elif outcome == _DONE_BEFORE:
                yield None
            else:
                yield Applied(_OUTCOMES[outcome], Stamp(shard, seq, api_time_us) if seq else None)

    # Reads

    def _read(self, jobs: Sequence[Job[_Read]]) -> None:
        keys = [key for job in jobs for key in job.work.keys]
        shards = [shard for job in jobs for shard in job.work.shards]
        found: list[Any] = [None] * len(keys)
        now_us = [0] * len(keys)
        members: dict[int, list[int]] = {}
        if self._reads.is_cluster:
            for index, shard in enumerate(shards):
                members.setdefault(shard, []).append(index)
        elif keys:  # one server has all shards
            members[0] = list(range(len(keys)))
        calls = []
        for shard, indices in members.items():
            calls += [Call(shard, ("TIME",)), Call(shard, ("MGET", *(keys[index] for index in indices)))]
        replies = self._reads.run(_READ, calls, repeatable=True)
        for indices, now, values in zip(members.values(), replies[::2], replies[1::2], strict=True):
            failure = next((reply for reply in (now, values) if isinstance(reply, FeatureStoreError)), None)
            time_us = 0 if failure is not None else int(now[0]) * 1_000_000 + int(now[1])
            if self._clock_us is not None:
                time_us = self._clock_us()
            for position, index in enumerate(indices):
                found[index] = values[position] if failure is None else failure
                now_us[index] = time_us
        end = 0
        for job in jobs:
            first, end = end, end + len(job.work.keys)
            try:
                job.result = [_live(found[index], now_us[index]) for index in range(first, end)]
            except FeatureStoreError as error:
                job.error = error

    # Pages

    def _page(self, group_id: int, after: RecordPlace | None, records_max: int, deleted: bool, values: bool) -> RecordPage:
        """One script call of one shard, mostly; where shards hold little, of twice as many at once each time."""
        place = after or RecordPlace(0, "")
        found: list[tuple[RecordPlace, bytes | None]] = []
        looked_at, width = 0, 1
        with self._pages_lock:
            if self._closed:
                raise StoreUnavailable(_READ, "the store is closed")
            while place.shard < self._shards and looked_at < PAGE_LOOKED_AT_MAX:
                left = PAGE_LOOKED_AT_MAX - looked_at
                shards = range(place.shard, min(place.shard + min(width, left), self._shards))
                looks = min(PAGE_LOOKS, left // len(shards))
                calls = []
                for shard in shards:
                    keys = self._keys[shard]
                    first = place.record_id.encode() if shard == place.shard else b""
                    wanted = records_max + 1 - len(found)
                    what: list[bytes | str | int] = [keys.base, group_id, first, self._now()]
                    args = [*what, wanted, looks, int(deleted), int(values)]
                    calls.append(_PAGE.call(shard, [keys.index(group_id), keys.absent], args))
                for shard, reply in zip(shards, self._pages.run_all(_READ, calls, repeatable=True), strict=True):
                    seen, last, is_end, cells = reply
                    looked_at += seen
                    ids, bodies = (cells[::2], cells[1::2]) if values else (cells, repeat(None))
                    found += [
                        (RecordPlace(shard, record_id.decode()), body and decode_record(body).values)
                        for record_id, body in zip(ids, bodies, strict=False)
                    ]
                    place = RecordPlace(shard + 1, "") if is_end else RecordPlace(shard, last.decode())
                    if len(found) > records_max or not is_end:
                        break
                if len(found) > records_max:
                    place = found[records_max - 1][0]
                    break
                width = min(2 * width, PAGE_SHARDS_MAX) if place.record_id == "" else 1
        records = [(item.record_id, body) for item, body in found[:records_max]]
        return RecordPage(records, place if place.shard < self._shards else None)

    # Bulk

    async def _in_bulk(self, operation: str, calls: Sequence[Call], *, repeatable: bool = False) -> list[Any]:
        return await asyncio.to_thread(self._run_bulk, operation, calls, repeatable)

    def _run_bulk(self, operation: str, calls: Sequence[Call], repeatable: bool) -> list[Any]:
        with self._bulk_lock:
            if self._closed:
                raise StoreUnavailable(operation, "the store is closed")
            return self._bulk.run_all(operation, calls, repeatable=repeatable)

    def _load(self, changes: Sequence[LoggedChange]) -> int:
        graves = [item for item in changes if item.change.op is Op.HARD_DELETE]
        rows = [item for item in changes if item.change.op is not Op.HARD_DELETE]
        return self._load_some(graves) + self._load_some(rows)

    def _load_some(self, changes: Sequence[LoggedChange]) -> int:
        loaded = 0
        calls: list[Call] = []
        rows: dict[int, list[LoggedChange]] = {}
        for item in changes:
            shard = shard_of(item.change.record_id, self._shards)
            members = rows.setdefault(shard, [])
            members.append(item)
            if len(members) == LOAD_ROWS:
                calls.append(self._load_call(shard, rows.pop(shard)))
            if len(calls) == LOAD_CALLS:
                loaded += self._run_loads(calls)
                calls = []
        calls += [self._load_call(shard, members) for shard, members in rows.items()]
        return loaded + self._run_loads(calls)

    def _load_call(self, shard: int, items: Sequence[LoggedChange]) -> Call:
        keys = self._keys[shard]
        names = [keys.meta, keys.tally, keys.snapshots, keys.erased]
        args: list[Any] = [keys.base]
        for item in items:
            change, expires_at_us = item.change, item.change.expires_at_us
            flags = _STATES[change.op] | (0 if change.targets & OFFLINE else ONLINE_ONLY)
            flags |= 0 if expires_at_us is None else HAS_EXPIRY
            head = LOADED_HEAD.pack(
                flags, change.event_time_us + BIAS, item.stamp.api_time_us, change.group_id, expires_at_us or 0
            )
            names.append(keys.record(change.group_id, change.record_id))
            args += (head + subject_of(change.group_id, change.record_id, self._keyspace.salt), change.values)
        return _LOAD.call(shard, names, args)

    def _run_loads(self, calls: Sequence[Call]) -> int:
        replies = self._run_bulk(_WRITE, calls, True)
        for _, faults in replies:
            if faults:
                raise _foreign(faults[1])
        return sum(loaded for loaded, _ in replies)

    def _drop_group(self, group_id: int) -> None:
        """Until a pass over all keys finds none: a pass may miss records that are written meanwhile."""
        with closing(self._keyspace.link()) as link:
            for _ in range(DROP_PASSES_MAX):
                removed = 0
                for page in scan_group(link, self._keyspace, group_id):
                    calls = []
                    for shard, members in page.items():
                        keys = self._keys[shard]
                        names = [keys.meta, keys.tally, keys.snapshots, *(key for key, _ in members)]
                        calls.append(_DROP.call(shard, names, [keys.base, group_id]))
                    removed += sum(link.run_all(_WRITE, calls, repeatable=True))
                if not removed:
                    return


def _change_head(change: Change, body: bytes, *, call: int, offset: int, upon_us: int | None) -> bytes:
    """CHANGE_HEAD of a change. Its values are not sent twice: they stand in its bytes, before the write id, which is last."""
    write_id = change.write_id or b""
    last = len(body) - (2 + len(write_id) if write_id else 1)
    first = last - len(change.values) + 1
    assert body[first - 1 : last] == change.values
    head = CHANGE_HEAD.pack(
        change.op,
        change.targets,
        (0 if change.expires_at_us is None else EXPIRES) | (0 if upon_us is None else UPON),
        change.event_time_us + BIAS,
        change.group_id,
        first,
        last,
        call,
        change.expires_at_us or 0,
        offset,
        upon_us or 0,
    )
    return head + write_id


def _live(data: bytes | FeatureStoreError | None, now_us: int) -> StoredRecord | None:
    if data is None:
        return None
    if isinstance(data, FeatureStoreError):
        raise data
    record = decode_record(data)
    if record.state != _LIVE or (record.expires_at_us is not None and record.expires_at_us <= now_us):
        return None
    return StoredRecord(record.event_time_us, record.api_time_us, record.expires_at_us, record.values)


def _foreign(reason: bytes) -> StoreCorrupt:
    detail = f"a record's key holds what the store has not written; give each store a `prefix` of its own ({reason.decode()})"
    return StoreCorrupt("online store", detail)
