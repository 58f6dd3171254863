"""Text of values, a column at a time: the twins of the functions in `value` and `event_time`.

Each gives for a column what its twin gives for one value, several times faster; nulls stay null. Arrow's own parsers
and printers do most of the work, within the range in which they agree with ours; the few values outside go through the
twin. tests/property/test_columns.py holds the two equal.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.model import event_time, value
from featurestore.model.event_time import SECOND_US
from featurestore.model.plain_column import INSTANT, TEXT, kept_where, numpy_of, valid_of

_PLAIN_INTEGRAL: Final = r"\A-?[0-9]{1,18}\z"
_PLAIN_FRACTIONAL: Final = r"\A-?[0-9]{1,17}(\.[0-9]{1,20})?([eE][+-]?[0-9]{1,2})?\z"
_PLAIN_EPOCH: Final = r"\A-?[0-9]{1,12}(\.[0-9]{1,6})?\z"
_PLAIN_ISO: Final = (
    r"\A[0-9]{4}-"
    r"((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
    r"T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?Z\z"
)
"""Every date but 29 February, which not every year has: one impossible date would fail Arrow's cast as a whole."""

DAY_US: Final = 86_400 * SECOND_US

_EPOCH_TYPE: Final = pa.decimal128(18, 6)

_POINT_MIN: Final = 1e-4
_POINT_MAX: Final = 1e10
"""Magnitudes from _POINT_MIN to below _POINT_MAX are printed without exponent by Arrow and by `repr` alike."""
_WHOLE_MAX: Final = 1e15
"""Whole doubles below this are printed as an integer and ".0" by `repr`, which turns to exponents at 1e16."""

_EPOCH_S_MAX: Final = 2.6e11
"""Seconds beyond the year 9999 on either side; below it, microseconds fit 64 bits with room to spare."""


def parse_integrals(texts: pa.Array) -> pa.Array:
    """`value.integral`: int64, null where a text is not Integral."""
    return _parsed(texts, _PLAIN_INTEGRAL, lambda plain: plain.cast(pa.int64()), value.integral)


def parse_fractionals(texts: pa.Array) -> pa.Array:
    """`value.fractional`: float64, null where a text is not Fractional."""
    return _parsed(texts, _PLAIN_FRACTIONAL, lambda plain: plain.cast(pa.float64()), value.fractional)


def parse_isos(texts: pa.Array) -> pa.Array:
    """`event_time.parse_iso`: int64 microseconds since 1970, null where a text is no such time."""
    return _parsed(texts, _PLAIN_ISO, lambda plain: plain.cast(INSTANT).cast(pa.int64()), event_time.parse_iso)


def parse_epochs(texts: pa.Array) -> pa.Array:
    """`event_time.parse_epoch`: int64 microseconds since 1970, null where a text is no such time."""
    return within_years(_parsed(texts, _PLAIN_EPOCH, _plain_epochs, event_time.parse_epoch))


def _plain_epochs(texts: pa.Array) -> pa.Array:
    return pc.multiply(texts.cast(_EPOCH_TYPE), pa.scalar(Decimal(SECOND_US))).cast(pa.int64())


def _parsed(
    texts: pa.Array, plain_form: str, cast: Callable[[pa.Array], pa.Array], twin: Callable[[str], object | None]
) -> pa.Array:
    """Texts of the plain form by Arrow's cast, which must not fail on any of them; the others by `twin`."""
    plain = pc.match_substring_regex(texts, plain_form)
    if pc.all(plain, min_count=0).as_py():  # nulls are skipped
        return cast(texts)
    fast = cast(pc.if_else(plain, texts, pa.scalar(None, texts.type)))
    others = pc.fill_null(pc.invert(plain), False)
    slow = [twin(text) for text in texts.filter(others).to_pylist()]
    return pc.replace_with_mask(fast, others, pa.array(slow, fast.type))


def within_years(times_us: pa.Array) -> pa.Array:
    """The instants that an event time can name, the years 0 to 9999; null for the others."""
    possible = pc.and_(
        pc.greater_equal(times_us, event_time.EVENT_TIME_US_MIN), pc.less_equal(times_us, event_time.EVENT_TIME_US_MAX)
    )
    return kept_where(possible, times_us)


def float_texts(numbers: pa.Array) -> pa.Array:
    """`repr` of finite doubles: the shortest text that parses back to the same double."""
    values, valid = numpy_of(numbers), valid_of(numbers)
    size = np.abs(values)
    whole = valid & (values == np.trunc(values)) & (size < _WHOLE_MAX) & ((values != 0) | ~np.signbit(values))
    others = valid & ~whole & ((size < _POINT_MIN) | (size >= _POINT_MAX))
    texts = numbers.cast(TEXT)
    if whole.any():
        digits = pa.array(values[whole].astype(np.int64)).cast(TEXT)
        with_point = pc.binary_join_element_wise(digits, pa.scalar(".0", TEXT), pa.scalar("", TEXT))
        texts = pc.replace_with_mask(texts, pa.array(whole), with_point)
    if others.any():
        printed = pa.array([repr(number) for number in values[others].tolist()], TEXT)
        texts = pc.replace_with_mask(texts, pa.array(others), printed)
    return texts


def iso_texts(times_us: pa.Array) -> pa.Array:
    """`event_time.format_iso` of instants within the years 0 to 9999.

    Texts are put together from tables of their parts; Arrow prints a time several times slower.
    """
    times = numpy_of(times_us)
    characters = np.empty(len(times) * _ISO.itemsize, np.uint8)
    offsets = np.zeros(len(times) + 1, np.int64)
    for start in range(0, len(times), _ISO_ROWS):
        some = times[start : start + _ISO_ROWS]
        found, lengths = _iso_characters(some)
        first = offsets[start]
        characters[first : first + len(found)] = found
        np.cumsum(lengths, out=offsets[start + 1 : start + 1 + len(some)])
        offsets[start + 1 : start + 1 + len(some)] += first
    texts = pa.LargeStringArray.from_buffers(len(times), pa.py_buffer(offsets), pa.py_buffer(characters))
    return kept_where(times_us.is_valid(), texts)


def _iso_characters(times_us: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """The characters of all texts, and how many each one has."""
    # Quotient and rest by hand: numpy's divmod takes ten times as long.
    days = times_us // DAY_US
    day_us = times_us - days * DAY_US
    seconds = day_us // SECOND_US
    fraction_us = day_us - seconds * SECOND_US
    millis = fraction_us // 1000
    micros = fraction_us - millis * 1000
    distinct = days[:1] if (days == days[0]).all() else np.unique(days)
    dates = pa.array(distinct.astype(np.int32)).cast(pa.date32()).cast(TEXT)
    full = np.empty(len(times_us), _ISO)
    full["date"] = np.frombuffer(dates.buffers()[2], "V10")[np.searchsorted(distinct, days)]
    full["T"] = ord("T")
    full["clock"] = _CLOCK[seconds]
    full["point"] = ord(".")
    full["millis"] = _THREE_DIGITS[millis]
    full["micros"] = _THREE_DIGITS[micros]
    full["Z"] = ord("Z")
    characters = full.view(np.uint8).reshape(-1, _ISO.itemsize)
    lengths = np.full(len(times_us), _ISO.itemsize)
    short = np.flatnonzero(micros == 0)
    if not len(short):
        return characters.reshape(-1), lengths
    lengths[short] = np.where(fraction_us[short] == 0, 20, 24)
    characters[short, lengths[short] - 1] = ord("Z")
    kept = np.ones(characters.shape, np.bool_)
    kept[short] = np.arange(_ISO.itemsize) < lengths[short][:, np.newaxis]
    return characters[kept], lengths


_ISO: Final = np.dtype(
    [("date", "V10"), ("T", "u1"), ("clock", "V8"), ("point", "u1"), ("millis", "V3"), ("micros", "V3"), ("Z", "u1")]
)
"""2024-05-01T12:00:00.250000Z"""
_ISO_ROWS: Final = 16_384
"""Of one step, so that what it works on stays in the processor's cache."""
_THREE_DIGITS: Final = np.frombuffer("".join(f"{number:03d}" for number in range(1000)).encode(), "V3")


def _clock() -> npt.NDArray[np.void]:
    """The text of each second of a day."""
    two_digits = np.frombuffer("".join(f"{number:02d}" for number in range(60)).encode(), np.uint8).reshape(60, 2)
    texts = np.full((24, 60, 60, 8), ord(":"), np.uint8)
    texts[..., 0:2] = two_digits[:24, np.newaxis, np.newaxis]
    texts[..., 3:5] = two_digits[:, np.newaxis]
    texts[..., 6:8] = two_digits
    return texts.reshape(-1).view("V8")


_CLOCK: Final = _clock()


def epoch_texts(times_us: pa.Array) -> pa.Array:
    """`event_time.format_epoch` of instants within the years 0 to 9999."""
    times = numpy_of(times_us)
    seconds, fraction_us = np.divmod(np.abs(times), SECOND_US)
    sign = pc.if_else(pa.array(times < 0), pa.scalar("-", TEXT), pa.scalar("", TEXT))
    whole = pc.binary_join_element_wise(sign, pa.array(seconds).cast(TEXT), pa.scalar("", TEXT))
    digits = pc.utf8_rtrim(pc.utf8_lpad(pa.array(fraction_us).cast(TEXT), 6, "0"), "0")
    decimal = pc.binary_join_element_wise(whole, digits, pa.scalar(".", TEXT))
    return kept_where(times_us.is_valid(), pc.if_else(pa.array(fraction_us == 0), whole, decimal))


def epochs_of_floats(seconds: pa.Array) -> pa.Array:
    """`event_time.parse_epoch(repr(x))` of doubles: int64 microseconds since 1970, null where that is no event time."""
    values = numpy_of(seconds)
    near = np.abs(values) < _EPOCH_S_MAX  # NaN is not
    values = np.where(near, values, 0.0)
    whole = np.floor(values)
    fraction_us = (values - whole) * SECOND_US
    rounded = np.rint(fraction_us)
    times_us = whole.astype(np.int64) * SECOND_US + rounded.astype(np.int64)
    # The double and its shortest text differ by up to half the distance to the next double: too little to matter unless
    # the fraction is that close to a half.
    leeway_us = np.spacing(np.abs(values)) * (SECOND_US / 2) + 1e-6
    sure = near & (0.5 - np.abs(fraction_us - rounded) > leeway_us)
    exact = within_years(pa.array(times_us, mask=~sure | ~valid_of(seconds)))
    unsure = pc.and_(pa.array(near & ~sure), seconds.is_valid())
    if not pc.any(unsure, min_count=0).as_py():
        return exact
    slow = [event_time.parse_epoch(repr(second)) for second in seconds.filter(unsure).to_pylist()]
    return pc.replace_with_mask(exact, unsure, pa.array(slow, pa.int64()))
