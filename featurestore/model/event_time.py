"""Event times: two written forms, one inner form.

A feature group's event time feature is `String` (ISO-8601 in UTC) or `Fractional` (seconds since 1970). Inside, an event
time is an integer count of microseconds since 1970-01-01T00:00:00Z: the resolution every store behind this one can keep.
Source of the written forms: the feature store's developer guide, "event time".
"""

from __future__ import annotations

import re
from datetime import datetime
from decimal import ROUND_HALF_EVEN, Decimal
from functools import lru_cache
from typing import Final

from featurestore.model.feature_group import FeatureType

ISO_EXPECTED: Final = "an ISO-8601 UTC time such as 2024-05-01T12:00:00Z or 2024-05-01T12:00:00.250Z"
EPOCH_EXPECTED: Final = "seconds since 1970-01-01T00:00:00Z such as 1714564800 or 1714564800.25"

SECOND_US: Final = 1_000_000
DAY_S: Final = 86_400
EVENT_TIME_US_MIN: Final = -62_167_219_200 * SECOND_US
"""0000-01-01T00:00:00Z, the first instant the written form can name."""
EVENT_TIME_US_MAX: Final = 253_402_300_800 * SECOND_US - 1
"""9999-12-31T23:59:59.999999Z, the last one."""

TEXTS_KEPT: Final = 4096
"""Written event times that are remembered: many records have one of the same second."""

_EPOCH_MOMENT: Final = datetime(1970, 1, 1)  # noqa: DTZ001 (both sides of the difference are UTC)
_ERA_DAYS: Final = 146_097
"""Of 400 years, after which the calendar repeats."""
_ISO: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})T(\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,9}))?Z", re.ASCII)
ISO_CHARS_MAX: Final = 30
_EPOCH: Final = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d{1,3})?", re.ASCII)


def parse(text: str, feature_type: FeatureType) -> int | None:
    """Microseconds since 1970 for an event time written for a feature of `feature_type`; `None` if it is not one."""
    return parse_iso(text) if feature_type is FeatureType.STRING else parse_epoch(text)


def expected(feature_type: FeatureType) -> str:
    """What a right event time of that type looks like, for messages."""
    return ISO_EXPECTED if feature_type is FeatureType.STRING else EPOCH_EXPECTED


def parse_iso(text: str) -> int | None:
    """`yyyy-MM-ddTHH:mm:ss[.fraction]Z`, at most microseconds: further digits must be zeros, as they could not be kept.

    `None` for anything else: other offsets, a missing `Z` (a naive time), impossible dates, leap seconds.
    """
    return _parse_iso(text) if len(text) <= ISO_CHARS_MAX else None


@lru_cache(maxsize=TEXTS_KEPT)
def _parse_iso(text: str) -> int | None:
    match = _ISO.fullmatch(text)
    if match is None:
        return None
    fraction = match.group(7)
    fraction_us = 0
    if fraction is not None:
        if fraction[6:].strip("0"):
            return None
        fraction_us = int(fraction[:6].ljust(6, "0"))
    if text.startswith("0000"):  # a year that datetime does not have; as that of 400 years later, a leap year, too
        text, fraction_us = "0400" + text[4:], fraction_us - _ERA_DAYS * DAY_S * SECOND_US
    try:
        moment = datetime.fromisoformat(text[:19])
    except ValueError:
        return None
    since = moment - _EPOCH_MOMENT
    return (since.days * DAY_S + since.seconds) * SECOND_US + fraction_us


def parse_epoch(text: str) -> int | None:
    """Decimal seconds since 1970, rounded half to even to microseconds; `None` if not a number within years 0 to 9999.

    Rounded and not refused, since clients print binary floating point, whose last digits mean nothing.
    """
    if _EPOCH.fullmatch(text) is None:
        return None
    number = Decimal(text)
    if not -(10**12) < number < 10**12:
        return None
    micros = int((number * SECOND_US).to_integral_value(rounding=ROUND_HALF_EVEN))
    return micros if EVENT_TIME_US_MIN <= micros <= EVENT_TIME_US_MAX else None


def format_iso(time_us: int) -> str:
    """The ISO form of an instant: whole seconds without a fraction, else the fewest of 3 or 6 digits that keep it."""
    seconds, fraction_us = divmod(time_us, SECOND_US)
    days, second_of_day = divmod(seconds, DAY_S)
    year, month, day = civil_from_days(days)
    hour, rest = divmod(second_of_day, 3600)
    minute, second = divmod(rest, 60)
    stem = f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}:{second:02d}"
    if fraction_us == 0:
        return f"{stem}Z"
    if fraction_us % 1000 == 0:
        return f"{stem}.{fraction_us // 1000:03d}Z"
    return f"{stem}.{fraction_us:06d}Z"


def format_epoch(time_us: int) -> str:
    """Decimal seconds of an instant: `1714564800` or `1714564800.25`, exact."""
    sign = "-" if time_us < 0 else ""
    seconds, fraction_us = divmod(abs(time_us), SECOND_US)
    return f"{sign}{seconds}" if fraction_us == 0 else f"{sign}{seconds}.{fraction_us:06d}".rstrip("0")


def format_for(time_us: int, feature_type: FeatureType) -> str:
    """The written form of an instant for an event time feature of that type."""
    return format_iso(time_us) if feature_type is FeatureType.STRING else format_epoch(time_us)


def days_from_civil(year: int, month: int, day: int) -> int:
    """Days from 1970-01-01 to a date of the proleptic Gregorian calendar (Howard Hinnant's algorithm); any year."""
    year -= month <= 2
    era, year_of_era = divmod(year, 400)
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    day_of_era = year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year
    return era * 146_097 + day_of_era - 719_468


def civil_from_days(days: int) -> tuple[int, int, int]:
    """The inverse of `days_from_civil`: (year, month, day)."""
    era, day_of_era = divmod(days + 719_468, 146_097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36_524 - day_of_era // 146_096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted_month = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted_month + 2) // 5 + 1
    month = shifted_month + (3 if shifted_month < 10 else -9)
    return year_of_era + era * 400 + (month <= 2), month, day
