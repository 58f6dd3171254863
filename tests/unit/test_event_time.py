from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.model import event_time
from featurestore.model.feature_group import FeatureType

INSTANTS = st.integers(event_time.EVENT_TIME_US_MIN, event_time.EVENT_TIME_US_MAX)


@given(st.datetimes(min_value=datetime(1, 1, 1), max_value=datetime(9999, 12, 31, 23, 59, 59, 999999)))
def test_iso_agrees_with_the_standard_library(moment: datetime) -> None:
    expected_us = (moment - datetime(1970, 1, 1)) // timedelta(microseconds=1)
    assert event_time.parse_iso(moment.isoformat() + "Z") == expected_us
    assert datetime.fromisoformat(event_time.format_iso(expected_us)) == moment.replace(tzinfo=UTC)


@given(INSTANTS)
def test_both_forms_round_trip(time_us: int) -> None:
    for kind in (FeatureType.STRING, FeatureType.FRACTIONAL):
        assert event_time.parse(event_time.format_for(time_us, kind), kind) == time_us


@given(st.integers(-5_000_000, 5_000_000))
def test_civil_dates_are_inverse(days: int) -> None:
    assert event_time.days_from_civil(*event_time.civil_from_days(days)) == days


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01T00:00:00.5Z", 500_000),
        ("1970-01-01T00:00:00.000Z", 0),
        ("1970-01-01T00:00:00.000001000Z", 1),
        ("2000-02-29T00:00:00Z", 951_782_400_000_000),
        ("0000-01-01T00:00:00Z", event_time.EVENT_TIME_US_MIN),
        ("9999-12-31T23:59:59.999999Z", event_time.EVENT_TIME_US_MAX),
    ],
)
def test_iso_forms(text: str, time_us: int) -> None:
    assert event_time.parse_iso(text) == time_us


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2024-05-01",
        "2024-05-01T12:00:00",
        "2024-05-01 12:00:00Z",
        "2024-05-01T12:00:00z",
        "2024-05-01T12:00:00+00:00",
        "2024-05-01T12:00:00+01:00",
        "2024-05-01T12:00Z",
        "2024-5-1T12:00:00Z",
        "2024-13-01T00:00:00Z",
        "2024-00-01T00:00:00Z",
        "2023-02-29T00:00:00Z",
        "1900-02-29T00:00:00Z",
        "2024-05-32T00:00:00Z",
        "2024-05-01T24:00:00Z",
        "2024-05-01T12:60:00Z",
        "2024-05-01T12:00:60Z",
        "2024-05-01T12:00:00.Z",
        "2024-05-01T12:00:00.1234567Z",
        "2024-05-01T12:00:00.0000000000Z",
        "２０24-05-01T12:00:00Z",
        "2024-05-01T12:00:00Z\n",
        "1714564800",
    ],
)
def test_iso_refusals(text: str) -> None:
    assert event_time.parse_iso(text) is None


@pytest.mark.parametrize(
    ("text", "time_us"),
    [
        ("0", 0),
        ("1714564800", 1_714_564_800_000_000),
        ("1714564800.25", 1_714_564_800_250_000),
        ("1.7145648e9", 1_714_564_800_000_000),
        ("1700000000.1234567", 1_700_000_000_123_457),
        ("-1.5", -1_500_000),
        (".5", 500_000),
        ("5.", 5_000_000),
        ("0.0000005", 0),
        ("0.0000015", 2),
    ],
)
def test_epoch_forms(text: str, time_us: int) -> None:
    assert event_time.parse_epoch(text) == time_us


@pytest.mark.parametrize(
    "text",
    ["", "nan", "inf", "-Infinity", "1e400", "1e12", "-1e12", "1_0", " 1", "1 ", "0x10", "1e", "١", "2024-05-01T12:00:00Z"],
)
def test_epoch_refusals(text: str) -> None:
    assert event_time.parse_epoch(text) is None
