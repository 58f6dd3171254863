"""Bulk loads on Redis: the calls of `load.lua` put together as the bytes that go over the wire, a column at a time.

Rows of a shard share calls, in the order of their records, which the script asks for. A call is bytes that lie together already:
its beginning, the keys of its rows, their values.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import FeatureStoreError
from featurestore.keyspace.layout import BIAS, HAS_EXPIRY, ONLINE_ONLY, RECORD_VERSION, load_script
from featurestore.keyspace.link import Call
from featurestore.keyspace.opening import Keyspace
from featurestore.model.change import OFFLINE, Op, subject_of
from featurestore.model.plain_column import Int64s, valid_of
from featurestore.model.stamped_rows import StampedRows
from featurestore.online.protocol import RecordState

LOAD_ROWS: Final = 256
"""Rows of one script call; the server does nothing else meanwhile."""
LOAD_CALLS: Final = 64
"""Such calls of one round trip."""
STEP_ROWS: Final = 16_384
STEP_BYTES: Final = 32 << 20
"""Rows whose bytes are put together at a time, and what they may take, by the average of all; one call's rows at least."""

_LOAD: Final = load_script("load")
_BYTES: Final = pa.large_binary()
_HEAD: Final = np.dtype([("version", "u1"), ("flags", "u1"), ("event_time", ">u8"), ("api_time_us", ">u8")])
_STATES: Final = np.zeros(max(Op) + 1, np.uint8)
"""By op."""
_STATES[[Op.PUT, Op.SOFT_DELETE, Op.HARD_DELETE]] = RecordState.LIVE, RecordState.TOMBSTONE, RecordState.GRAVE


@dataclass(frozen=True, slots=True)
class BulkLoad:
    """Loads stamped rows into one keyspace.

    Args:
        run: makes round trips; raises if a call failed.
        refused: the error of a fault that the script has found.
    """

    keyspace: Keyspace
    run: Callable[[Sequence[Call]], list[Any]]
    refused: Callable[[bytes], FeatureStoreError]

    def load(self, rows: StampedRows) -> int:
        """See `OnlineStore.load`."""
        is_grave = rows.int64s("op") == Op.HARD_DELETE
        if not is_grave.any():
            return self._load(rows)
        return self._load(rows.where(is_grave)) + self._load(rows.where(~is_grave))

    def _load(self, rows: StampedRows) -> int:
        loaded = 0
        with_subjects = False
        average_bytes = rows.columns.nbytes // max(1, len(rows)) + 1
        step_rows = max(LOAD_ROWS, min(STEP_ROWS, STEP_BYTES // average_bytes))
        starts = range(0, len(rows), step_rows)
        with ThreadPoolExecutor(1) as pool:  # the next step is put together while the servers are at work on this one
            following = pool.submit(_Step, self.keyspace, rows.slice(0, step_rows))
            for start in starts:
                step = following.result()
                following = pool.submit(_Step, self.keyspace, rows.slice(start + step_rows, step_rows))
                for first in range(0, len(step.spans), LOAD_CALLS):
                    spans = step.spans[first : first + LOAD_CALLS]
                    replies = self.run([step.call(span, with_subjects=with_subjects) for span in spans])
                    unsure = [span for span, reply in zip(spans, replies, strict=True) if reply is None]
                    if unsure:
                        with_subjects = True
                        replies += self.run([step.call(span, with_subjects=True) for span in unsure])
                    for count, faults in filter(None, replies):
                        if faults:
                            raise self.refused(faults[1])
                        loaded += count
        return loaded


class _Step:
    """Some rows as the words of script calls.

    Attributes:
        spans: per call its shard, first row and end.
    """

    def __init__(self, keyspace: Keyspace, rows: StampedRows) -> None:
        self._keyspace = keyspace
        self._rows = _in_order(rows)
        self._group = b"%d" % rows.group_id
        self._keys = _Words(self._record_keys())
        self._records = _Words(_records(self._rows))
        self.spans = [*_spans(self._rows.int64s("shard"))]

    def call(self, span: tuple[int, int, int], *, with_subjects: bool) -> Call:
        """Args: with_subjects: for a shard with erased records. Elsewhere, nearly everywhere, hashing is not worth it."""
        shard, first, end = span
        fixed, count = self._keyspace.keys[shard], end - first
        rows: list[bytes | memoryview] = [self._records.between(first, end)]
        if with_subjects:
            rows.append(self._subjects.between(first, end))
        keys = [fixed.meta, fixed.tally, fixed.snapshots, fixed.erased]
        begin = [b"EVALSHA", _LOAD.sha.encode(), b"%d" % (len(keys) + count), *keys]
        words = len(begin) + count + 2 + count * len(rows)
        parts: list[bytes | memoryview] = [
            b"*%d\r\n" % words,
            *map(_word, begin),
            self._keys.between(first, end),
            _word(fixed.base),
            _word(self._group),
            *rows,
        ]
        return Call(shard, (), _LOAD, b"".join(parts))

    @cached_property
    def _subjects(self) -> _Words:
        names = self._rows.columns["record_id"].to_pylist()
        return _Words(pa.array([subject_of(self._rows.group_id, name, self._keyspace.salt) for name in names], _BYTES))

    def _record_keys(self) -> pa.Array:
        prefixes = pa.array([keys.record(self._rows.group_id, "") for keys in self._keyspace.keys], _BYTES)
        return _joined(prefixes.take(pa.array(self._rows.int64s("shard"))), _column(self._rows, "record_id").cast(_BYTES))


class _Words:
    """Byte strings as the protocol sends them, one behind the other."""

    def __init__(self, column: pa.Array) -> None:
        sizes = pc.binary_length(column).to_numpy()
        found = np.flatnonzero(np.bincount(sizes))
        places = np.zeros(int(sizes.max(initial=0)) + 1, np.int64)
        places[found] = np.arange(len(found))
        heads = pa.array([b"$%d\r\n" % size for size in found.tolist()], _BYTES).take(pa.array(places[sizes]))
        _, offsets, data = _joined(heads, column, pa.scalar(b"\r\n", _BYTES)).buffers()
        self._data = memoryview(data)
        self._ends = np.frombuffer(offsets, np.int64)

    def between(self, first: int, end: int) -> memoryview:
        """The strings at `first` to `end - 1`."""
        return self._data[self._ends[first] : self._ends[end]]


def _word(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def _joined(*columns: pa.Array | pa.Scalar) -> pa.Array:
    return pc.binary_join_element_wise(*columns, pa.scalar(b"", _BYTES))


def _column(rows: StampedRows, name: str) -> pa.Array:
    return rows.columns[name].combine_chunks()


def _in_order(rows: StampedRows) -> StampedRows:
    """By shard and record, changes of one record as they were."""
    names, shards = _column(rows, "record_id"), rows.int64s("shard")
    if not pc.all(pc.less_equal(names[:-1], names[1:]), min_count=0).as_py():  # they mostly come so
        order = pc.sort_indices(names).to_numpy()
        order = order[np.argsort(shards[order], kind="stable")]
    else:
        order = np.argsort(shards, kind="stable")
    return StampedRows(rows.group_id, rows.columns.take(pa.array(order)))


def _spans(shards: Int64s) -> Iterator[tuple[int, int, int]]:
    """Shard, first and end of the rows of each call; `shards` is in order."""
    starts = [0, *(np.flatnonzero(np.diff(shards)) + 1).tolist(), len(shards)]
    for start, end in pairwise(starts):
        for first in range(start, end, LOAD_ROWS):
            yield int(shards[start]), first, min(first + LOAD_ROWS, end)


def _records(rows: StampedRows) -> pa.Array:
    """What a record is if there was none before, see `layout.decode_record`."""
    expiries = _column(rows, "expires_at_us")
    has_expiry = valid_of(expiries)
    flags: npt.NDArray[np.uint8] = _STATES[rows.int64s("op")]
    flags = flags | np.where(rows.int64s("targets") & OFFLINE, 0, ONLINE_ONLY).astype(np.uint8)
    flags = flags | np.where(has_expiry, HAS_EXPIRY, 0).astype(np.uint8)
    heads = np.empty(len(rows), _HEAD)
    heads["version"] = RECORD_VERSION
    heads["flags"] = flags
    heads["event_time"] = rows.int64s("event_time_us").astype(np.uint64) + np.uint64(BIAS)
    heads["api_time_us"] = rows.int64s("api_time_us")
    parts = [_fixed(heads)]
    if has_expiry.any():
        ends = _fixed(expiries.fill_null(0).to_numpy().astype(">i8"))
        parts.append(pc.if_else(pa.array(has_expiry), ends, pa.scalar(b"", _BYTES)))
    return _joined(*parts, _column(rows, "values"))


def _fixed(items: npt.NDArray[Any]) -> pa.Array:
    """The bytes of each item."""
    size = items.dtype.itemsize
    offsets = np.arange(len(items) + 1, dtype=np.int64) * size
    return pa.LargeBinaryArray.from_buffers(_BYTES, len(items), [None, pa.py_buffer(offsets), pa.py_buffer(items.tobytes())])
