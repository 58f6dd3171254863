"""Object columns: the Python values of a pandas column of dtype `object`, as one Arrow array.

Arrow turns some mixtures into something else without a word: bytes among text, a time without a zone among times with
one, floats where it was told integers. So a column must be of one kind here, and a value of another kind is refused at
its row. Whole numbers and floats are one kind, as in JSON.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from decimal import Decimal
from itertools import chain
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.model.row_faults import Refusal

Objects: TypeAlias = npt.NDArray[np.object_]
Kind: TypeAlias = str
"""What a value is, in words for messages. That of a list names the kind of its elements."""

CONVERSION_ERRORS: Final = (pa.ArrowException, TypeError, ValueError, OverflowError)
"""What Arrow raises for Python values that it can't hold."""

_BOOL: Final = "bool"
_NUMBER: Final = "number"
_UNSIGNED: Final = "numpy.uint64"
_TEXT: Final = "text"
_TIME: Final = "time with a zone"
_NAIVE_TIME: Final = "time without a zone"
_LIST: Final = "list"
"""A list without elements, or of nulls: it goes with every list."""
_MIXED_LIST: Final = "list of values of one kind"
_SET: Final = "list (a set has no order)"
_NEVER: Final = frozenset({_MIXED_LIST, _SET})
"""Kinds that are always refused; named by what would have been right."""

_FLOATS: Final = (float, np.float16, np.float32)
"""numpy.float64 is a float; numpy.longdouble has digits that a double drops, so it is no number here."""
_KINDS: Final[tuple[tuple[tuple[type, ...], Kind], ...]] = (
    ((bool, np.bool_), _BOOL),
    ((np.uint64,), _UNSIGNED),  # apart from the other numbers: among floats, Arrow reads the large ones as negative
    ((int, np.integer, *_FLOATS), _NUMBER),
    ((str,), _TEXT),
    ((datetime,), _TIME),
    ((Decimal,), "Decimal"),
    ((list, tuple, np.ndarray), _LIST),
    ((set, frozenset), _SET),
)
_ARROW_TYPES: Final = {_BOOL: pa.bool_(), _UNSIGNED: pa.uint64(), _TEXT: pa.large_string()}
"""Where Arrow need not guess; times and numbers depend on the values."""


def object_array(objects: Objects, missing: npt.NDArray[np.bool_]) -> tuple[pa.Array, tuple[Refusal, ...]]:
    """Python objects as an Arrow array of as many rows, null where `missing` and where a value is refused.

    The kind that most values have decides, on a tie the one met first.
    """
    rows = np.flatnonzero(~missing)
    if len(rows) == 0:
        return pa.nulls(len(objects)), ()
    refused: list[Refusal] = []
    by_type = {value_type: _kind_of_type(value_type) for value_type in set(map(type, objects[rows]))}
    kind, *more = set(by_type.values())
    if more or kind in (_TIME, _LIST, _SET):
        kinds = _kinds(objects[rows], by_type)
        kind = _main_kind(kinds)
        others = set(kinds) - _going_with(kind)
        for other in sorted(others):
            expected = other if other in _NEVER else f"{kind} as in rows[{rows[kinds.index(kind)]}]"
            refused.append(Refusal(rows[[each == other for each in kinds]], expected))
        rows = rows[[each not in others for each in kinds]]
    types = _arrow_types(kind, objects[rows], by_type)
    array, unfit = _converted(objects, rows, types)
    if len(unfit):
        typed = f"{kind} that an Arrow column of {types[0]} holds exactly"
        refused.append(Refusal(unfit, "values that one Arrow column can hold" if types[0] is None else typed))
    return array, tuple(refused)


def _kinds(values: Objects, by_type: dict[type, Kind]) -> list[Kind]:
    """The kind of each value; that of times and lists depends on more than their type."""
    return [
        _kind_of_time(value) if kind == _TIME else _kind_of_list(value) if kind == _LIST else kind
        for value, kind in ((value, by_type[type(value)]) for value in values)
    ]


def _kind_of_type(value_type: type) -> Kind:
    for types, kind in _KINDS:
        if issubclass(value_type, types):
            return kind
    return value_type.__name__


def _kind_of_time(value: datetime) -> Kind:
    return _NAIVE_TIME if value.utcoffset() is None else _TIME


def _kind_of_list(values: Sequence[Any] | npt.NDArray[Any]) -> Kind:
    if isinstance(values, np.ndarray) and values.dtype != object:
        types = {values.dtype.type} if values.size else set()
    else:
        types = set(map(type, values)) - {type(None)}
    kinds = {_kind_of_type(element_type) for element_type in types}
    if _TIME in kinds:
        kinds = kinds - {_TIME} | {_kind_of_time(value) for value in values if isinstance(value, datetime)}
    if not kinds:
        return _LIST
    return f"{_LIST} of {kinds.pop()}" if len(kinds) == 1 else _MIXED_LIST


def _main_kind(kinds: list[Kind]) -> Kind:
    counts = Counter(kind for kind in kinds if kind not in _NEVER)
    if any(kind.startswith(f"{_LIST} of ") for kind in counts):
        del counts[_LIST]
    return max(counts, key=counts.__getitem__) if counts else kinds[0]


def _going_with(kind: Kind) -> set[Kind]:
    if kind in _NEVER:
        return set()
    return {kind, _LIST} if kind.startswith(_LIST) else {kind}


def _arrow_types(kind: Kind, values: Objects, types: Iterable[type]) -> Sequence[pa.DataType | None]:
    """The Arrow types to try for values of a kind, in order; None lets Arrow choose."""
    if kind == _NUMBER:
        floating = any(issubclass(value_type, _FLOATS) for value_type in types)
        return [pa.float64()] if floating else [pa.int64(), pa.uint64()]
    if kind == _TIME:
        return [_time_type(values)]
    if kind == f"{_LIST} of {_TIME}":
        return [pa.list_(_time_type(chain.from_iterable(values)))]
    return [_ARROW_TYPES.get(kind)]


def _time_type(values: Iterable[Any]) -> pa.DataType:
    """Microseconds, as Python's own times have, unless a pandas Timestamp among them has nanoseconds."""
    fine = any(getattr(value, "nanosecond", 0) for value in values)
    return pa.timestamp("ns" if fine else "us", tz="UTC")


def _converted(
    objects: Objects, rows: npt.NDArray[np.int64], types: Sequence[pa.DataType | None]
) -> tuple[pa.Array, npt.NDArray[np.int64]]:
    """The objects at `rows` by the first type that takes all; else by `types[0]`, and the rows it does not take."""
    for arrow_type in types:
        try:
            return _array(objects, rows, arrow_type), rows[:0]
        except CONVERSION_ERRORS:
            continue
    alone = np.array([_converts_alone(objects[row], types[0]) for row in rows], dtype=np.bool_)
    try:
        return _array(objects, rows[alone], types[0]), rows[~alone]
    except CONVERSION_ERRORS:  # each would do alone, but no type holds them together: Decimals 100 digits apart
        return pa.nulls(len(objects)), rows


def _array(objects: Objects, rows: npt.NDArray[np.int64], arrow_type: pa.DataType | None) -> pa.Array:
    mask = np.ones(len(objects), dtype=np.bool_)
    mask[rows] = False
    return pa.array(objects, type=arrow_type, mask=mask, from_pandas=True)


def _converts_alone(value: object, arrow_type: pa.DataType | None) -> bool:
    try:
        pa.array([value], type=arrow_type, from_pandas=True)
    except CONVERSION_ERRORS:
        return False
    return True
