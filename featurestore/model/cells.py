"""Cells: one Arrow column checked against one feature, as typed values and, when asked for, as the text PutRecord would have
been sent. Only a few rows of a large frame go online, and printing numbers costs more than checking them.

What a column may hold for a feature is the table `_SCALARS` (and `_EVENT_TIMES`, `_INSTANTS` for times): a column that
is not in it is refused as a whole, with a hint how to convert it. docs/reference/dataframes.md tells users the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.model import event_time, limits
from featurestore.model.column_text import (
    epoch_texts,
    epochs_of_floats,
    float_texts,
    iso_texts,
    parse_epochs,
    parse_fractionals,
    parse_integrals,
    parse_isos,
    within_years,
)
from featurestore.model.event_time import SECOND_US
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureType
from featurestore.model.plain_column import INSTANT, TEXT, Int64s, Kind, kept_where, kind_of, numpy_of, plain, valid_of
from featurestore.model.row_faults import Refusal
from featurestore.model.value import EXPECTED, INTEGRAL_MAX

DOUBLE_WHOLE_MAX: Final = 2**53
"""Up to here every whole number is a double, so a float column that stands for integers has lost none of them."""

_SCALAR_TYPES: Final = {
    FeatureType.INTEGRAL: pa.int64(),
    FeatureType.FRACTIONAL: pa.float64(),
    FeatureType.STRING: pa.string(),
}


def arrow_type(feature: FeatureDefinition) -> pa.DataType:
    """The type of a feature's column in the offline store."""
    scalar = _SCALAR_TYPES[feature.type]
    return scalar if feature.collection is None else pa.list_(scalar)


Print: TypeAlias = Callable[[pa.Array], pa.Array]
"""From values to their texts; nulls stay null."""
Converted: TypeAlias = tuple[pa.Array, pa.Array, Print]
"""Typed values, what their texts are printed from, and how. Both arrays are null where there is no value, or a refused one."""

NUMBER_BYTES_MAX: Final = 32
"""Of what a `Print` gives for a number: 20 for the least of 64 bits, 24 for a double."""


def _digits(values: pa.Array) -> pa.Array:
    return values.cast(TEXT)


def _as_they_are(texts: pa.Array) -> pa.Array:
    return texts


def _integral_of_bools(values: pa.Array) -> Converted:
    typed = values.cast(pa.int64())
    return typed, typed, _digits


def _integral_of_integers(values: pa.Array) -> Converted:
    if pa.types.is_uint64(values.type):
        values = kept_where(pc.less_equal(values, pa.scalar(INTEGRAL_MAX, pa.uint64())), values)
    typed = values.cast(pa.int64())
    return typed, typed, _digits


def _integral_of_floats(values: pa.Array) -> Converted:
    numbers = numpy_of(values)
    whole = (np.abs(numbers) <= DOUBLE_WHOLE_MAX) & (numbers == np.trunc(numbers)) & valid_of(values)
    typed = pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole)
    return typed, typed, _digits


def _integral_of_decimals(values: pa.Array) -> Converted:
    numbers = values.to_pylist()
    whole = [number is not None and number == number.to_integral_value() for number in numbers]
    digits = [str(int(number)) if keep else None for number, keep in zip(numbers, whole, strict=True)]
    return _integral_of_texts(pa.array(digits, TEXT))


def _integral_of_texts(values: pa.Array) -> Converted:
    typed = parse_integrals(values)
    return typed, kept_where(typed.is_valid(), values), _as_they_are


def _fractional_of_integers(values: pa.Array) -> Converted:
    numbers = numpy_of(values)
    doubles = numbers.astype(np.float64)
    # The largest integers round up to a power of two that is no integer of their type; 0 stands in for the way back.
    representable = doubles < 2.0 ** (64 if values.type == pa.uint64() else 63)
    back = np.where(representable, doubles, 0).astype(numbers.dtype)
    exact = representable & (back == numbers) & valid_of(values)
    return pa.array(doubles, mask=~exact), kept_where(exact, values), _digits


def _fractional_of_floats(values: pa.Array) -> Converted:
    typed = kept_where(pc.is_finite(values), values)
    return typed, typed, float_texts


def _fractional_of_decimals(values: pa.Array) -> Converted:
    return _fractional_of_texts(values.cast(TEXT))


def _fractional_of_texts(values: pa.Array) -> Converted:
    typed = parse_fractionals(values)
    return typed, kept_where(typed.is_valid(), values), _as_they_are


def _string_of_texts(values: pa.Array) -> Converted:
    kept = values
    if _longest(values) > limits.VALUE_CHARS_MAX:  # a character has a byte or more
        kept = kept_where(pc.less_equal(pc.utf8_length(values), limits.VALUE_CHARS_MAX), values)
    return kept, kept, _as_they_are


def _string_of_times(values: pa.Array) -> Converted:
    texts = iso_texts(times_us(values))
    return texts, texts, _as_they_are


_TIME_EXPECTED: Final = "a time of the years 0 to 9999 in whole microseconds"

_SCALARS: Final[dict[tuple[FeatureType, Kind], tuple[Callable[[pa.Array], Converted], str]]] = {
    (FeatureType.INTEGRAL, Kind.BOOL): (_integral_of_bools, EXPECTED[FeatureType.INTEGRAL]),
    (FeatureType.INTEGRAL, Kind.INTEGER): (_integral_of_integers, EXPECTED[FeatureType.INTEGRAL]),
    (FeatureType.INTEGRAL, Kind.FLOAT): (_integral_of_floats, "Integral (in a float column a whole number within 2^53)"),
    (FeatureType.INTEGRAL, Kind.DECIMAL): (_integral_of_decimals, EXPECTED[FeatureType.INTEGRAL]),
    (FeatureType.INTEGRAL, Kind.TEXT): (_integral_of_texts, EXPECTED[FeatureType.INTEGRAL]),
    (FeatureType.FRACTIONAL, Kind.INTEGER): (_fractional_of_integers, "Fractional (an integer that a double can hold)"),
    (FeatureType.FRACTIONAL, Kind.FLOAT): (_fractional_of_floats, EXPECTED[FeatureType.FRACTIONAL]),
    (FeatureType.FRACTIONAL, Kind.DECIMAL): (_fractional_of_decimals, EXPECTED[FeatureType.FRACTIONAL]),
    (FeatureType.FRACTIONAL, Kind.TEXT): (_fractional_of_texts, EXPECTED[FeatureType.FRACTIONAL]),
    (FeatureType.STRING, Kind.TEXT): (_string_of_texts, EXPECTED[FeatureType.STRING]),
    (FeatureType.STRING, Kind.TIME): (_string_of_times, _TIME_EXPECTED),
}
"""How a column of a kind becomes values of a feature type, and what is expected of a value that does not."""


def times_us(values: pa.Array, *, floor: bool = False) -> pa.Array:
    """Timestamps as int64 microseconds since 1970; null outside the years 0 to 9999.

    Args:
        floor: round nanoseconds down; otherwise a time that has some is null, as it could not be kept.
    """
    unit = values.type.unit
    if unit == "us":
        return within_years(values.cast(pa.int64()))
    ticks = numpy_of(values.cast(pa.int64()))
    valid = valid_of(values)
    if unit == "ns":
        times, rest = np.divmod(ticks, 1000)
        kept = valid if floor else valid & (rest == 0)
    else:
        tick_us = {"s": SECOND_US, "ms": 1000}[unit]
        ticks_max = event_time.EVENT_TIME_US_MAX // tick_us  # further from 1970 than the year 0 is
        kept = valid & (ticks >= -ticks_max) & (ticks <= ticks_max)
        times = np.where(kept, ticks, 0) * tick_us
    return within_years(pa.array(times, mask=~kept))


def _epochs_of_integers(values: pa.Array) -> pa.Array:
    seconds_max = event_time.EVENT_TIME_US_MAX // SECOND_US
    seconds = numpy_of(values)
    near = (seconds <= seconds_max) & (seconds >= 0 if values.type == pa.uint64() else seconds >= -seconds_max)
    times = np.where(near, seconds, 0).astype(np.int64) * SECOND_US
    return within_years(pa.array(times, mask=~near | ~valid_of(values)))


def _epochs_of_decimals(values: pa.Array) -> pa.Array:
    return parse_epochs(values.cast(TEXT))


def _floored_times(values: pa.Array) -> pa.Array:
    return times_us(values, floor=True)


_EVENT_TIMES: Final[dict[tuple[FeatureType, Kind], Callable[[pa.Array], pa.Array]]] = {
    (FeatureType.STRING, Kind.TIME): times_us,
    (FeatureType.STRING, Kind.TEXT): parse_isos,
    (FeatureType.FRACTIONAL, Kind.TIME): times_us,
    (FeatureType.FRACTIONAL, Kind.INTEGER): _epochs_of_integers,
    (FeatureType.FRACTIONAL, Kind.FLOAT): epochs_of_floats,
    (FeatureType.FRACTIONAL, Kind.DECIMAL): _epochs_of_decimals,
    (FeatureType.FRACTIONAL, Kind.TEXT): parse_epochs,
}
"""Event times as int64 microseconds since 1970, null where refused."""

_INSTANTS: Final[dict[Kind, Callable[[pa.Array], pa.Array]]] = {
    Kind.TIME: _floored_times,
    Kind.TEXT: parse_isos,
    Kind.INTEGER: _epochs_of_integers,
    Kind.FLOAT: epochs_of_floats,
    Kind.DECIMAL: _epochs_of_decimals,
}
"""Times that only point at a moment, as int64 microseconds since 1970, null where refused."""
INSTANT_EXPECTED: Final = f"a time with a zone, {event_time.ISO_EXPECTED}, or {event_time.EPOCH_EXPECTED}"


@dataclass(frozen=True, slots=True)
class Cells:
    """One column of a frame, checked against one feature. All members have one entry per row of the frame.

    Attributes:
        typed: as the offline store keeps it, but text and lists with 64-bit offsets; null where absent or refused.
        printed_from: what `texts` prints; null where absent or refused.
        scalar_print: the text of a value, or of an element of a collection.
        sent_bytes: of collections, of which `printed_from` may lack elements: what `text_bytes` gives.
        elements_max: of any value; 1 for scalars.
        refused: the rows whose value is wrong.
    """

    typed: pa.Array
    printed_from: pa.Array
    scalar_print: Print
    sent_bytes: Callable[[], Int64s] | None = None
    elements_max: int = 1
    refused: tuple[Refusal, ...] = ()

    def texts(self, rows: Int64s | None = None) -> pa.Array:
        """As the online store keeps it, text or lists of text: large_string or large_list of it, of some rows or of all."""
        values = self.printed_from if rows is None else self.printed_from.take(pa.array(rows))
        if not pa.types.is_large_list(values.type):
            return self.scalar_print(values)
        ends = np.cumsum(numpy_of(pc.list_value_length(values)), dtype=np.int64)
        texts = self.scalar_print(values.flatten())
        return pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), texts, mask=values.is_null())

    def text_bytes(self) -> Int64s:
        """UTF-8 bytes that PutRecord would have been sent, 0 where absent or refused."""
        return _text_bytes(self.texts()) if self.sent_bytes is None else self.sent_bytes()

    def text_bytes_bound(self) -> int:
        """No value has more `text_bytes`. Found without printing numbers."""
        if self.scalar_print is not _as_they_are:
            return self.elements_max * NUMBER_BYTES_MAX
        is_list = pa.types.is_large_list(self.printed_from.type)
        return self.elements_max * _longest(self.printed_from.flatten() if is_list else self.printed_from)


def absent_cells(feature: FeatureDefinition, rows: int) -> Cells:
    """A feature without a value in any row."""
    texts = pa.nulls(rows, TEXT if feature.collection is None else pa.large_list(TEXT))
    return Cells(pa.nulls(rows, arrow_type(feature)), texts, _as_they_are)


def feature_cells(values: pa.Array, feature: FeatureDefinition) -> Cells:
    """A plain column as values of a feature that it is not `unfit` for."""
    if values.null_count == len(values):
        return absent_cells(feature, len(values))
    if feature.collection is not None:
        return _collection_cells(values, feature)
    convert, expected = _SCALARS[feature.type, kind_of(values.type)]
    typed, printed_from, scalar_print = convert(values)
    return Cells(typed, printed_from, scalar_print, refused=_refusals(values, typed, expected))


def event_time_cells(values: pa.Array, feature_type: FeatureType) -> tuple[Cells, pa.Array]:
    """A plain column as event times: the cells, and int64 microseconds since 1970 (null where absent or refused)."""
    if values.null_count == len(values):
        return absent_cells(FeatureDefinition("", feature_type), len(values)), pa.nulls(len(values), pa.int64())
    kind = kind_of(values.type)
    times = _EVENT_TIMES[feature_type, kind](values)
    if kind is Kind.TIME:
        expected = _TIME_EXPECTED
        texts = iso_texts(times) if feature_type is FeatureType.STRING else epoch_texts(times)
        typed = texts if feature_type is FeatureType.STRING else texts.cast(pa.float64())
        cells = Cells(typed, texts, _as_they_are, refused=_refusals(values, typed, expected))
    else:
        expected = event_time.expected(feature_type)
        convert, _ = _SCALARS[feature_type, kind]
        # What names a moment is a value of its type.
        typed, printed_from, scalar_print = convert(kept_where(times.is_valid(), values))
        cells = Cells(typed, printed_from, scalar_print, refused=_refusals(values, typed, expected))
    return cells, times


def instants(values: pa.Array) -> tuple[pa.Array, tuple[Refusal, ...]]:
    """A plain column as timestamp[us, UTC]: moments to look features up at. Nulls stay null."""
    if values.null_count == len(values):
        return pa.nulls(len(values), INSTANT), ()
    times = _INSTANTS[kind_of(values.type)](values)
    return times.cast(INSTANT), _refusals(values, times, INSTANT_EXPECTED)


def _text_bytes(texts: pa.Array) -> Int64s:
    sizes: Int64s = numpy_of(pc.binary_length(texts))
    return sizes


def _longest(texts: pa.Array) -> int:
    """UTF-8 bytes of the longest text."""
    return pc.max(pc.binary_length(texts)).as_py() or 0


def _refusals(values: pa.Array, converted: pa.Array, expected: str) -> tuple[Refusal, ...]:
    """The rows that had a value and have none after conversion."""
    if values.null_count == converted.null_count:
        return ()
    return (Refusal(np.flatnonzero(valid_of(values) & ~valid_of(converted)), expected),)


def _collection_cells(values: pa.Array, feature: FeatureDefinition) -> Cells:
    lengths = numpy_of(pc.list_value_length(values))
    elements = plain(values.flatten())
    if elements.null_count == len(elements):
        elements = pa.nulls(len(elements), TEXT)
    convert, _ = _SCALARS[feature.type, kind_of(elements.type)]
    typed, printed_from, scalar_print = convert(elements)

    ends = np.cumsum(lengths)
    wrong = _sums(~valid_of(typed), ends, lengths) > 0
    refused = []
    ok = np.ones(len(values), dtype=np.bool_)
    vector = feature.collection is CollectionType.VECTOR
    for faulty, expected in (
        (lengths > limits.COLLECTION_ELEMENTS_MAX, f"at most {limits.COLLECTION_ELEMENTS_MAX} elements"),
        (wrong, f"{feature.collection} of {EXPECTED[feature.type]}"),
        (vector & (lengths > 0) & (lengths != feature.dimension), f"a Vector of {feature.dimension} elements"),
    ):
        if (faulty & ok).any():
            refused.append(Refusal(np.flatnonzero(faulty & ok), expected))
        ok &= ~faulty

    present = ok & (lengths > 0)
    kept = np.repeat(present, lengths)
    if feature.collection is CollectionType.SET:
        kept &= _first_in_row(scalar_print(printed_from), lengths)
    offsets = np.concatenate([[0], np.cumsum(_sums(kept, ends, lengths))])
    absent, kept_elements = pa.array(~present), pa.array(kept)
    typed_lists, printed_lists = (
        pa.LargeListArray.from_arrays(offsets, column.filter(kept_elements), mask=absent) for column in (typed, printed_from)
    )

    def sent_bytes() -> Int64s:
        """With the elements that a set leaves out."""
        return np.where(present, _sums(_text_bytes(scalar_print(printed_from)), ends, lengths), 0)

    return Cells(typed_lists, printed_lists, scalar_print, sent_bytes, int(lengths.max(initial=0)), tuple(refused))


def _sums(of_elements: npt.NDArray[np.bool_] | Int64s, ends: Int64s, lengths: Int64s) -> Int64s:
    """Per row, the sum over its elements."""
    total = np.concatenate([[0], np.cumsum(of_elements, dtype=np.int64)])
    sums: Int64s = total[ends] - total[ends - lengths]
    return sums


def _first_in_row(texts: pa.Array, lengths: Int64s) -> npt.NDArray[np.bool_]:
    """Which elements are the first of their text in their row (`value.without_repeats`)."""
    codes = numpy_of(texts.dictionary_encode().indices).astype(np.int64)
    rows = np.repeat(np.arange(len(lengths)), lengths)
    _, firsts = np.unique(rows * (codes.max(initial=0) + 1) + codes, return_index=True)
    first = np.zeros(len(texts), dtype=np.bool_)
    first[firsts] = True
    return first


def unfit(values: pa.Array, feature: FeatureDefinition, *, is_event_time: bool = False) -> str | None:
    """What a plain column should have held to be values of a feature, with a hint; None if it may be.

    A column without any value may be anything: it is absent.
    """
    if values.null_count == len(values):
        return None
    kind = kind_of(values.type)
    if feature.collection is not None:
        if kind is not Kind.LIST:
            return f"a list column, as {feature.name!r} is a {feature.collection}"
        elements = plain(values.flatten())
        fits = elements.null_count == len(elements) or (feature.type, kind_of(elements.type)) in _SCALARS
        return None if fits else f"{feature.collection} of {feature.type}"
    fitting = _EVENT_TIMES if is_event_time else _SCALARS
    if (feature.type, kind) in fitting:
        return None
    if is_event_time:
        return f"{event_time.expected(feature.type)}{_hint(_TIME_HINTS, kind, feature.name)}"
    return f"{feature.type}{_hint(_HINTS[feature.type], kind, feature.name)}"


def unfit_instants(values: pa.Array, column: str) -> str | None:
    """As `unfit`, for a column of moments."""
    kind = kind_of(values.type)
    if values.null_count == len(values) or kind in _INSTANTS:
        return None
    return f"{INSTANT_EXPECTED}{_hint(_TIME_HINTS, kind, column)}"


_ZONED: Final = 'pandas.to_datetime({}).dt.tz_localize("UTC")'
_SECONDS: Final = '(pandas.to_datetime({}, utc=True) - pandas.Timestamp(0, tz="UTC")).dt.total_seconds()'
_DECODED: Final = '{}.str.decode("utf-8")'
_AS_TEXT: Final = '{}.astype("string")'
_TIME_HINTS: Final = {
    Kind.NAIVE_TIME: _ZONED,
    Kind.DATE: "pandas.to_datetime({}, utc=True)",
    Kind.PERIOD: '{}.dt.to_timestamp().dt.tz_localize("UTC")',
    Kind.INTEGER: 'pandas.to_datetime({}, unit="s", utc=True)',
    Kind.FLOAT: 'pandas.to_datetime({}, unit="s", utc=True).dt.round("us")',
    Kind.DECIMAL: 'pandas.to_datetime({}.astype("float64"), unit="s", utc=True).dt.round("us")',
    Kind.BYTES: _DECODED,
}
_NUMBER_HINTS: Final = {
    Kind.BOOL: '{}.astype("Int64")',
    Kind.TIME: _SECONDS,
    Kind.NAIVE_TIME: _SECONDS,
    Kind.DURATION: "pandas.to_timedelta({}).dt.total_seconds()",
    Kind.BYTES: _DECODED,
}
_TEXT_HINTS: Final = {
    **dict.fromkeys((Kind.BOOL, Kind.INTEGER, Kind.FLOAT, Kind.DECIMAL), _AS_TEXT),
    **dict.fromkeys((Kind.DATE, Kind.DURATION, Kind.PERIOD, Kind.UUID), _AS_TEXT),
    Kind.NAIVE_TIME: _ZONED,
    Kind.BYTES: _DECODED,
}
_HINTS: Final = {
    FeatureType.INTEGRAL: _NUMBER_HINTS,
    FeatureType.FRACTIONAL: _NUMBER_HINTS,
    FeatureType.STRING: _TEXT_HINTS,
}


def _hint(hints: dict[Kind, str], kind: Kind, column: str) -> str:
    """How a column of that kind is converted, in the words of pandas; empty if there is no common way."""
    return f"; convert the column, e.g. {hints[kind].format(f'df[{column!r}]')}" if kind in hints else ""
