"""The online store on Redis: one script call per shard decides, writes and logs whatever changes wait at that moment.

What the callers of an event loop ask for in one turn of it shares a round trip; changes of one shard share a script call, whoever
they are from. A loop that serves has connections of its own (`serving`); calls of other loops, and what connections alone can't
settle, go through two threads, one for changes and one for reads. Bulk verbs have connections of their own.

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
import logging
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from featurestore.errors import FeatureStoreError, OutboxFull, StoreCorrupt, StoreUnavailable
from featurestore.keyspace.address import Deployment
from featurestore.keyspace.layout import (
    APPLIED,
    BIAS,
    CHANGE_HEAD,
    EXPIRES,
    PLAIN_HEAD_BYTES,
    PLAIN_LIVE,
    UPON,
    decode_record,
    load_script,
)
from featurestore.keyspace.link import Call
from featurestore.keyspace.opening import Keyspace
from featurestore.keyspace.pipes import Pipes
from featurestore.model.change import (
    ONLINE,
    Applied,
    Change,
    Outcome,
    Stamp,
    shard_of,
    shard_of_bytes,
    signing_secret,
    subject_of,
)
from featurestore.model.codec import encode_change
from featurestore.model.stamped_rows import StampedRows
from featurestore.online.courier import Courier
from featurestore.online.delivery import resolve
from featurestore.online.protocol import (
    APPLY_CHANGES_MAX,
    PAGE_LOOKED_AT_MAX,
    SOURCE_BYTES_MAX,
    AllTaken,
    Erased,
    Found,
    OneTaken,
    OnlineSnapshot,
    RecordKey,
    RecordPage,
    RecordPlace,
    RecordState,
    StoredRecord,
)
from featurestore.online.redis_load import BulkLoad
from featurestore.online.redis_purge import PURGE_S_MAX, purge_keyspace
from featurestore.online.redis_snapshot import RedisSnapshot, scan_group

_log: Final = logging.getLogger(__name__)

READ_KEYS_MAX: Final = 4096
"""Records of one round trip; bounds how long the server does nothing else."""
PREFIXES_MAX: Final = 10_000
"""Groups whose beginnings of keys are remembered."""
WRITE_ROUNDS_MAX: Final = 2
"""Round trips of changes that one event loop has under way: while a server works on one, the next is made."""
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
_APPLY, _RESERVE, _ADVANCE, _ERASE, _DROP, _FORMER, _PAGE = map(
    load_script, ("apply", "reserve", "advance", "erase", "drop", "former", "page")
)
_OUTCOMES: Final = {0: Outcome.NEWEST, 1: Outcome.HISTORIC, 2: Outcome.REFUSED, 4: Outcome.SUPERSEDED}
_DONE_BEFORE: Final = 3
_FULL: Final = 8
_FAULTY: Final = 9
_LIVE: Final = RecordState.LIVE.value
_TIME: Final = Call(0, ("TIME",))


@dataclass(slots=True)
class _Part:
    """The changes of one call that are of one shard. `args` alternates heads and bodies; `positions` are those in the call."""

    keys: list[bytes]
    args: list[bytes]
    positions: list[int]


_Decode: TypeAlias = Callable[[Any, int], Any]

_Read: TypeAlias = tuple[int, _Decode, Callable[[Any], None], bool]
"""How many of a turn's keys a caller asked for, what makes an answer of what such a key holds and of the time there, who is given
the answers, and whether as one answer and not as a list."""

_Written: TypeAlias = Callable[[list[Any] | Exception], None]
"""Is given the answers to a call, or why there are none."""


@dataclass(slots=True)
class _Write:
    """The changes of one call, by shard. `source` is empty unless they come from one; with `each` an error is the answer of its
    change and not of the call."""

    parts: dict[int, _Part]
    changes: int
    source: str
    each: bool
    written: _Written


@dataclass(slots=True)
class _Turn:
    """What the callers of one event loop have asked for and is not on its way yet.

    Attributes:
        pipes: the loop's own connections, if it has any.
        reads: the calls that `keys` are of, in order.
        shards: those of `keys`.
        writes: calls with changes that wait; `is_due` when they will be looked at in this turn.
        waiting, under_way: changes that wait, and those on their way.
        rounds: round trips of changes that are under way.
    """

    loop: asyncio.AbstractEventLoop
    pipes: Pipes | None = None
    reads: list[_Read] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    shards: list[int] = field(default_factory=list)
    writes: deque[_Write] = field(default_factory=deque)
    is_due: bool = False
    waiting: int = 0
    under_way: int = 0
    rounds: int = 0


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
        self._loads = BulkLoad(keyspace, lambda calls: self._run_bulk(_WRITE, calls, True), _foreign)
        self._pages = keyspace.link()
        self._pages_lock = threading.Lock()
        self._writer = Courier(_WRITE, keyspace.link(), repeatable=False, weight_max=APPLY_CHANGES_MAX)
        self._reader = Courier(_READ, keyspace.link(), repeatable=True, weight_max=READ_KEYS_MAX)
        self._is_cluster = keyspace.address.deployment is Deployment.CLUSTER
        self._turns: WeakKeyDictionary[asyncio.AbstractEventLoop, _Turn] = WeakKeyDictionary()
        self._turns_lock = threading.Lock()
        self._served: _Turn | None = None
        self._serving_thread = 0
        self._prefixes: dict[int, list[bytes]] = {}

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        pipes = Pipes(self._keyspace.address, self._keyspace.link())
        turn = self._turn()
        await pipes.open()
        turn.pipes = pipes
        self._served, self._serving_thread = turn, threading.get_ident()
        try:
            yield
        finally:
            self._served = turn.pipes = None
            await pipes.close()

    async def apply(self, changes: Sequence[Change]) -> Sequence[Applied]:
        result: list[Applied] = await self._applied(changes)
        return result

    async def apply_each(self, changes: Sequence[Change]) -> Sequence[Applied | FeatureStoreError]:
        result: list[Applied | FeatureStoreError] = await self._applied(changes, each=True)
        return result

    async def apply_upon(self, change: Change, api_time_us: int) -> Applied:
        if not change.targets & ONLINE:
            raise ValueError("a change that is made upon a record goes to the online store")
        applied: list[Applied] = await self._applied([change], upon_us=api_time_us)
        return applied[0]

    def apply_soon(self, change: Change, done: Callable[[Applied | Exception], None]) -> None:
        group_id, written = change.group_id, change.record_id.encode()
        shard = shard_of_bytes(written, self._shards)
        key = (self._prefixes.get(group_id) or self._record_prefixes(group_id))[shard] + written
        body = encode_change(change)
        head = _change_head(change, body, call=1, offset=0, upon_us=None)
        self._write(_Write({shard: _Part([key], [head, body], [0])}, 1, "", False, partial(_tell_one, done)))

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
        offsets = [offset for offset, _ in changes]
        result: list[Applied | None] = await self._applied([change for _, change in changes], source=source, offsets=offsets)
        return result

    async def get(self, keys: Sequence[RecordKey]) -> Sequence[StoredRecord | None]:
        answer: asyncio.Future[Sequence[StoredRecord | None]] = asyncio.get_running_loop().create_future()
        self._fetch([(group_id, [record_id]) for group_id, record_id in keys], _stored, partial(resolve, answer))
        return await answer

    def read_one(self, group_id: int, record_id: str, done: OneTaken) -> None:
        turn, written = self._turn(), record_id.encode()
        prefixes = self._prefixes.get(group_id) or self._record_prefixes(group_id)
        shard = shard_of_bytes(written, self._shards)
        turn.keys.append(prefixes[shard] + written)
        turn.shards.append(shard)
        self._queue(turn, (1, _found, done, True))

    def read(self, wanted: Sequence[tuple[int, Sequence[str]]], done: AllTaken) -> None:
        self._fetch(wanted, _found, done)

    async def reserve(self, rows: Mapping[int, int]) -> Mapping[int, int]:
        calls = [_RESERVE.call(shard, [self._keys[shard].meta], [self._now(), count]) for shard, count in rows.items()]
        replies = await self._in_bulk(_WRITE, calls)
        return {shard: int(first_us) for shard, first_us in zip(rows, replies, strict=True)}

    async def load(self, rows: StampedRows) -> int:
        return await asyncio.to_thread(self._loads.load, rows)

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
            self._bulk.close()
        with self._pages_lock:
            self._pages.close()

    def _now(self) -> str:
        """What a script is told of the time; empty for the server's own."""
        return "" if self._clock_us is None else str(self._clock_us())

    def _turn(self) -> _Turn:
        """That of the running loop."""
        served = self._served
        if served is not None and threading.get_ident() == self._serving_thread:
            return served
        loop = asyncio.get_running_loop()
        with self._turns_lock:
            turn = self._turns.get(loop)
            if turn is None:
                turn = self._turns[loop] = _Turn(loop)
        return turn

    # Changes

    async def _applied(
        self,
        changes: Sequence[Change],
        *,
        each: bool = False,
        upon_us: int | None = None,
        source: str = "",
        offsets: Sequence[int] = (),
    ) -> list[Any]:
        if len(changes) > APPLY_CHANGES_MAX:
            raise ValueError(f"at most {APPLY_CHANGES_MAX} changes per call, got {len(changes)}")
        answer: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self._write(self._prepared(changes, partial(resolve, answer), source, offsets, each=each, upon_us=upon_us))
        return await answer

    def _prepared(
        self,
        changes: Sequence[Change],
        written: _Written,
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
        return _Write(parts, len(changes), source, each, written)

    def _write(self, work: _Write) -> None:
        turn = self._turn()
        turn.writes.append(work)
        turn.waiting += work.changes
        if not turn.is_due and turn.rounds < WRITE_ROUNDS_MAX:
            turn.is_due = True
            turn.loop.call_soon(self._send_writes, turn)

    def _send_writes(self, turn: _Turn) -> None:
        """Send what waits, in rounds of about the same size: then a server works on one while this process works on the other."""
        turn.is_due = False
        while turn.writes and turn.rounds < WRITE_ROUNDS_MAX and turn.under_way <= 2 * turn.waiting:
            weight_max = min(APPLY_CHANGES_MAX, max(1, (turn.waiting + turn.under_way + 1) // 2))
            works = [turn.writes.popleft()]
            weight = works[0].changes
            while turn.writes and weight + turn.writes[0].changes <= weight_max:
                works.append(turn.writes.popleft())
                weight += works[-1].changes
            turn.waiting -= weight
            by_target, calls = self._write_calls(works)
            if not calls:
                self._take_writes(turn, works, by_target, [])
                continue
            turn.rounds += 1
            turn.under_way += weight
            self._writer.send(calls, weight, partial(self._written, turn, works, by_target), turn.pipes)

    def _write_calls(self, works: Sequence[_Write]) -> tuple[list[tuple[int, str]], list[Call]]:
        """One script call for each shard, and for each source of changes; also, whom they are for."""
        by_target: dict[tuple[int, str], list[_Write]] = {}
        for work in works:
            for shard in work.parts:
                by_target.setdefault((shard, work.source), []).append(work)
        calls = []
        now = self._now()
        for (shard, source), members in by_target.items():
            keys = self._keys[shard]
            names = [*keys.fixed]
            args: list[Any] = [keys.base, now, self._outbox_share, max(1, RECEIPTS_MAX // self._shards), RECEIPT_S, source]
            for work in members:
                names += work.parts[shard].keys
                args += work.parts[shard].args
            calls.append(_APPLY.call(shard, names, args))
        return list(by_target), calls

    def _written(self, turn: _Turn, works: Sequence[_Write], targets: Sequence[tuple[int, str]], replies: Sequence[Any]) -> None:
        turn.rounds -= 1
        turn.under_way -= sum([work.changes for work in works])
        self._take_writes(turn, works, targets, replies)
        self._send_writes(turn)

    def _take_writes(
        self, turn: _Turn, works: Sequence[_Write], targets: Sequence[tuple[int, str]], replies: Sequence[Any]
    ) -> None:
        """Give each call its answers."""
        answers = {target: self._answers(target[0], reply) for target, reply in zip(targets, replies, strict=True)}
        for work in works:
            try:
                answer = self._answer(work, answers)
            except Exception as error:  # the caller waits: whatever it is, it is the answer, and the loop goes on
                _log.exception("the answers to %d changes could not be read", work.changes)
                answer = error
            work.written(answer)

    def _answer(self, work: _Write, answers: Mapping[tuple[int, str], Iterator[Any]]) -> list[Any] | Exception:
        if work.changes == 1:
            (shard,) = work.parts
            answer = next(answers[shard, work.source])
            return answer if isinstance(answer, Exception) and not work.each else [answer]
        result: list[Any] = [None] * work.changes
        for shard, part in work.parts.items():
            for position in part.positions:
                result[position] = next(answers[shard, work.source])
        errors = [answer for answer in result if isinstance(answer, Exception)]
        if not errors or work.each:
            return result
        if isinstance(errors[0], OutboxFull) and len(errors) < len(result):
            detail = f"a part of the changes was not written: {errors[0]}"
            return StoreUnavailable(_WRITE, detail, hint="repeat the call")
        return errors[0]

    def _answers(self, shard: int, reply: Any) -> Iterator[Applied | Exception | None]:
        """What a script call answers of each change, in order."""
        if isinstance(reply, Exception):
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

    def _fetch(self, wanted: Sequence[tuple[int, Sequence[str]]], decode: _Decode, done: Callable[[Any], None]) -> None:
        """Read records; `done` is given what `decode` makes of each, or an error."""
        keys: list[bytes] = []
        shards: list[int] = []
        for group_id, record_ids in wanted:
            prefixes = self._prefixes.get(group_id) or self._record_prefixes(group_id)
            for record_id in record_ids:
                written = record_id.encode()
                shard = shard_of_bytes(written, self._shards)
                keys.append(prefixes[shard] + written)
                shards.append(shard)
        if keys:
            turn = self._turn()
            turn.keys += keys
            turn.shards += shards
            self._queue(turn, (len(keys), decode, done, False))
        else:
            done([])

    def _queue(self, turn: _Turn, read: _Read) -> None:
        turn.reads.append(read)
        if len(turn.reads) == 1:
            turn.loop.call_soon(self._send_reads, turn)

    def _record_prefixes(self, group_id: int) -> list[bytes]:
        """What the keys of a group's records begin with, by shard."""
        if len(self._prefixes) >= PREFIXES_MAX:
            self._prefixes.clear()
        made = self._prefixes[group_id] = [keys.record(group_id, "") for keys in self._keys]
        return made

    def _send_reads(self, turn: _Turn) -> None:
        reads, turn.reads = turn.reads, []
        keys, turn.keys = turn.keys, []
        shards, turn.shards = turn.shards, []
        if not self._is_cluster and len(keys) <= READ_KEYS_MAX:  # one server has all shards
            calls = [_TIME, Call(0, ("MGET", *keys))]
            self._reader.send(calls, len(keys), partial(self._settle_reads, reads, len(keys), None), turn.pipes)
            return
        by_owner: dict[int, list[int]] = {}
        for position, shard in enumerate(shards):
            by_owner.setdefault(shard if self._is_cluster else 0, []).append(position)
        calls, members = [], []
        for shard, own in by_owner.items():
            for start in range(0, len(own), READ_KEYS_MAX):
                some = own[start : start + READ_KEYS_MAX]
                members.append(some)
                calls += [Call(shard, _TIME.command), Call(shard, ("MGET", *[keys[position] for position in some]))]
        self._reader.send(calls, len(keys), partial(self._settle_reads, reads, len(keys), members), turn.pipes)

    def _settle_reads(
        self, reads: Sequence[_Read], size: int, members: Sequence[Sequence[int]] | None, replies: Sequence[Any]
    ) -> None:
        """`members`: positions of the keys of each pair of replies, `size` in all; None for one pair and all keys."""
        if members is None:
            found, now_us = self._read_reply(replies[0], replies[1], size)
        else:
            found, now_us = [None] * size, [0] * size
            for positions, time, values in zip(members, replies[::2], replies[1::2], strict=True):
                for position, value, value_us in zip(positions, *self._read_reply(time, values, len(positions)), strict=True):
                    found[position], now_us[position] = value, value_us
        _take_reads(reads, found, now_us)

    def _read_reply(self, time: Any, values: Any, size: int) -> tuple[list[Any], list[int]]:
        """What each of some keys holds, or what went wrong; and the time there in microseconds."""
        for reply in (time, values):
            if isinstance(reply, Exception):
                return [reply] * size, [0] * size
        time_us = int(time[0]) * 1_000_000 + int(time[1]) if self._clock_us is None else self._clock_us()
        return values, [time_us] * size

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


def _tell_one(done: Callable[[Applied | Exception], None], answer: list[Any] | Exception) -> None:
    done(answer if isinstance(answer, Exception) else answer[0])


def _take_reads(reads: Sequence[_Read], found: Sequence[Any], now_us: Sequence[int]) -> None:
    """Give each caller its part."""
    end = 0
    for count, decode, done, is_one in reads:
        first, end = end, end + count
        try:
            if is_one:
                answer: Any = decode(found[first], now_us[first])
            else:
                answer = list(map(decode, found[first:end], now_us[first:end]))
        except FeatureStoreError as error:
            answer = error
        except Exception as error:  # the caller waits: whatever it is, it is the answer, and the loop goes on
            _log.exception("%d records could not be read", count)
            answer = error
        done(answer)


def _stored(data: bytes | Exception | None, now_us: int) -> StoredRecord | None:
    if data is None:
        return None
    if isinstance(data, Exception):
        raise data
    record = decode_record(data)
    if record.state != _LIVE or (record.expires_at_us is not None and record.expires_at_us <= now_us):
        return None
    return StoredRecord(record.event_time_us, record.api_time_us, record.expires_at_us, record.values)


def _found(data: bytes | Exception | None, now_us: int) -> Found:
    if data.__class__ is bytes and data[:2] == PLAIN_LIVE:
        return data[PLAIN_HEAD_BYTES:], None
    record = _stored(data, now_us)
    return None if record is None else (record.values, record.expires_at_us)


def _foreign(reason: bytes) -> StoreCorrupt:
    detail = f"a record's key holds what the store has not written; give each store a `prefix` of its own ({reason.decode()})"
    return StoreCorrupt("online store", detail)
