"""The command line, each call as a process of its own."""

from __future__ import annotations

import os
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pyarrow.csv
import pyarrow.parquet as pq
import pytest

import featurestore
from tests.integration.conftest import Cli

Done = CompletedProcess[str]
ARN = "arn:aws:sagemaker:us-east-1:000000000000:feature-group/weather"
WEATHER = """\
station,hour,temperature,rain,note
JFK,2024-05-01T00:00:00Z,11.5,0,[calm] :smile:
LGA,2024-05-01T00:00:00Z,12.0,3,
JFK,2024-05-01T01:00:00Z,10.5,,windy
"""
COLUMNS = "--record-identifier station --event-time hour"

READING: dict[str, list[str]] = {
    "groups": ["groups"],
    "describe": ["describe", "weather"],
    "sql": ["sql", 'SELECT station, temperature AS "t[b]", rain, note FROM history.weather ORDER BY hour, station'],
    "two rows": [
        "sql",
        "SELECT 1.5 AS a, [2, NULL] AS a UNION ALL SELECT 3, NULL UNION ALL SELECT 5, [] ORDER BY 1",
        "--rows",
        "2",
    ],
    "into a file": ["sql", "SELECT * FROM latest.weather", "--output", "{files}/out.parquet"],
    "files": ["files", "weather"],
    "missing files": ["files", "weather", "--state", "missing"],
    "help": ["--help"],
}
"""Calls that change nothing, by name; the option --home is added."""

REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "an unknown group": (["describe", "[/b] nope"], ["'[/b] nope' does not exist"]),
    "a taken name": (["create", "weather", "--like", "{files}/weather.csv", *COLUMNS.split()], ["'weather' exists already"]),
    "a wrong description": (
        ["create", "a b", "--like", "{files}/weather.csv", "--record-identifier", "nope", "--event-time", "rain"],
        ["FeatureGroupName", "'a b'", "RecordIdentifierFeatureName", "'nope'", "EventTimeFeatureName", "String or Fractional"],
    ),
    "no file": (["ingest", "weather", "{files}/absent.csv"], ["data", "absent.csv"]),
    "no Parquet": (["ingest", "weather", "{files}/broken.parquet"], ["data", "Parquet", "broken.parquet"]),
    "faulty rows": (["ingest", "weather", "{files}/faulty.csv"], ["rows[0].temperature", "'warm'", "rows[1].station"]),
    "a statement that changes": (["sql", "DROP TABLE weather"], ["SELECT"]),
}
"""Calls that fail with status 1, and words of the one line that says why."""

MISUSED: dict[str, tuple[list[str], str]] = {
    "an unknown command": (["nope"], "'nope'"),
    "a missing argument": (["describe"], "name"),
    "no state of files": (["files", "weather", "--state", "nope"], "--state"),
    "a number out of its range": (["sql", "SELECT 1", "--rows", "0"], "--rows"),
}
"""Calls that fail with status 2."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the same rows as CSV and Parquet, and once more with faults."""
    folder = tmp_path_factory.mktemp("files")
    (folder / "weather.csv").write_text(WEATHER)
    pq.write_table(pyarrow.csv.read_csv(folder / "weather.csv"), folder / "weather.parquet")
    (folder / "faulty.csv").write_text(WEATHER.replace("11.5", "warm").replace("LGA", ""))
    (folder / "broken.parquet").write_bytes(b"PAR1 and nothing else")
    return folder


@pytest.fixture(scope="module")
def home(cli: Cli, files: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with the three rows of weather, made by the commands themselves."""
    home = tmp_path_factory.mktemp("cli") / "home"
    done = cli("create", "weather", "--like", files / "weather.csv", *COLUMNS.split(), "--home", home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "created weather with 5 features\n", "")
    done = cli("ingest", "weather", files / "weather.csv", home=home)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("3 rows in ")
    assert "2 records newest online" in done.stdout
    return home


@pytest.fixture(scope="module")
def done(cli: Cli, home: Path, files: Path) -> dict[str, Done]:
    """All calls of the tables above, by name. They run side by side, since each takes a second to start."""
    calls = READING | {name: call for name, (call, _) in (REFUSED | MISUSED).items()}

    def run(arguments: list[str]) -> Done:
        return cli(*(text.replace("{files}", str(files)) for text in arguments), home=home)

    with ThreadPoolExecutor(4) as threads:
        return dict(zip(calls, threads.map(run, calls.values()), strict=True))


def create_weather(home: Path, files: Path) -> None:
    with featurestore.open(home) as store:
        features = pq.read_table(files / "weather.parquet")
        store.create_feature_group("weather", record_identifier="station", event_time="hour", features=features)


def cells(text: str) -> list[list[str]]:
    """What stands in the printed tables, row by row, whatever lines they are drawn with; empty cells are left out."""
    rows = ([cell.strip() for cell in re.split(r" {2,}|[┃│|]", line)] for line in text.splitlines())
    return [[cell for cell in row if cell] for row in rows if any(char.isalnum() for cell in row for char in cell)]


def succeeded(done: Done) -> str:
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(done: Done, *words: str, status: int = 1) -> None:
    """One line of explanation (after the usage, for status 2) and nothing on standard output."""
    assert (done.returncode, done.stdout) == (status, ""), done
    assert "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    if status == 1:
        assert done.stderr.splitlines() == [line]
    assert line.lower().startswith("error: ")
    for word in words:
        assert word in line


def test_groups(done: dict[str, Done]) -> None:
    head, row = cells(succeeded(done["groups"]))
    assert head == ["name", "identifier", "event time", "features", "stores", "created", "offline rows", "files"]
    assert row[:5] == ["weather", "station", "hour", "5", "online + offline"]
    assert row[6] == "3"


def test_describe(done: dict[str, Done]) -> None:
    rows = cells(succeeded(done["describe"]))
    assert ["ARN", ARN] in rows
    assert ["status", "Created"] in rows
    assert rows[-5:] == [
        ["station", "String", "record identifier"],
        ["hour", "String", "event time"],
        ["temperature", "Fractional"],
        ["rain", "Integral"],
        ["note", "String"],
    ]


def test_sql(done: dict[str, Done]) -> None:
    assert cells(succeeded(done["sql"])) == [
        ["station", "t[b]", "rain", "note"],
        ["JFK", "11.5", "0", "[calm] :smile:"],
        ["LGA", "12.0", "3"],
        ["JFK", "10.5", "windy"],
    ]


def test_sql_shows_as_many_rows_as_asked_for(done: dict[str, Done]) -> None:
    text = succeeded(done["two rows"])
    assert cells(text) == [["a", "a"], ["1.5", "[2, None]"], ["3.0"], ["2 of 3 rows; see --rows and --output"]]


def test_sql_into_a_file(done: dict[str, Done], files: Path) -> None:
    assert succeeded(done["into a file"]) == f"2 rows in {files / 'out.parquet'}\n"
    assert sorted(pq.read_table(files / "out.parquet")["station"].to_pylist()) == ["JFK", "LGA"]


def test_files(done: dict[str, Done]) -> None:
    head, *rows, summary = cells(succeeded(done["files"]))
    assert head == ["state", "path", "bytes", "rows", "origin", "from", "to", "reason"]
    assert [(row[0], row[3], row[4], row[5] == row[6]) for row in rows] == [
        ("live", "2", "batch", True),
        ("live", "1", "batch", True),
    ]
    assert rows[1][1].startswith("data/year=2024/month=05/day=01/hour=01/20240501T010000Z_")
    assert rows[1][5] == "2024-05-01T01:00:00Z"
    assert summary == ["2 live"]
    assert succeeded(done["missing files"]) == "2 live\n"


def test_help(done: dict[str, Done]) -> None:
    text = succeeded(done["help"])
    for command in ("serve", "groups", "describe", "create", "ingest", "sql", "files", "status", "demo"):
        assert f"\n  {command} " in text


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_explained_in_one_line(done: dict[str, Done], name: str) -> None:
    refused(done[name], *REFUSED[name][1])


@pytest.mark.parametrize("name", MISUSED)
def test_wrong_usage(done: dict[str, Done], name: str) -> None:
    refused(done[name], MISUSED[name][1], status=2)


def test_after_all_of_that_the_store_is_as_before(done: dict[str, Done], home: Path) -> None:
    with featurestore.open(home) as store:
        assert [group.name for group in store.feature_groups()] == ["weather"]
        assert store.sql("SELECT count(*) AS n FROM weather").to_pylist() == [{"n": 3}]


def test_settings_are_checked(cli: Cli, home: Path) -> None:
    refused(cli("status", home=home, regoin="x"), "FEATURESTORE_REGOIN", "did you mean FEATURESTORE_REGION?")
    refused(cli("status", home=home, region="eu-west-1"), "FEATURESTORE_REGION", "us-east-1", "'eu-west-1'")


def test_a_home_that_can_not_be_one(cli: Cli, files: Path) -> None:
    refused(cli("status", "--home", files / "weather.csv"), "weather.csv")


def test_status_does_not_write_what_waits(cli: Cli, tmp_path: Path) -> None:
    store = featurestore.open(tmp_path / "home")
    store.create_feature_group("g", record_identifier="id", event_time="at", features={"id": "String", "at": "String"})
    store.put_record("g", {"id": "k", "at": "2024-05-01T00:00:00Z"})
    store.close(flush=False)
    assert succeeded(cli("status", "--home", tmp_path / "home")) == "1 changes wait for the offline store\n"
    with featurestore.open(tmp_path / "home") as store:
        assert store.offline_behind() == 1


def test_ingest_of_parquet(cli: Cli, files: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    create_weather(home, files)
    succeeded(cli("ingest", "weather", files / "weather.parquet", home=home))
    with featurestore.open(home) as store:
        assert store.get_record("weather", "JFK") == {
            "station": "JFK",
            "hour": "2024-05-01T01:00:00Z",
            "temperature": 10.5,
            "note": "windy",
        }


def test_faulty_rows_can_be_skipped(cli: Cli, files: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    create_weather(home, files)
    done = cli("ingest", "weather", files / "faulty.csv", "--skip-faulty", home=home)
    assert done.returncode == 0
    assert done.stdout.startswith("1 rows in ")
    first, second, last = done.stderr.splitlines()
    assert first.startswith("skipped rows[0].temperature: expected Fractional")
    assert second.startswith("skipped rows[1].station: ")
    assert last == "2 faulty rows were left out"
    with featurestore.open(home) as store:
        assert store.sql("SELECT count(*) AS n FROM weather").to_pylist() == [{"n": 1}]


def test_files_of_other_tools(cli: Cli, files: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    create_weather(home, files)
    with featurestore.open(home) as store:
        offline = store.feature_group("weather").offline
        assert offline is not None
        folder = home / "offline" / offline.resolved_s3_uri.removeprefix("s3://")
        assert store.files("weather") == []
    folder.mkdir(parents=True)
    rows = pq.read_table(files / "weather.parquet")
    pq.write_table(rows, folder / "right.parquet")
    pq.write_table(rows.rename_columns(["station", "hour", "temperature", "rain", "[b]\x1b[1m"]), folder / "wrong.parquet")
    (folder / "_SUCCESS").touch()
    for path in folder.iterdir():
        os.utime(path, (0, 0))
    assert cells(succeeded(cli("files", "weather", home=home)))[1:] == [
        ["new", "data/right.parquet", f"{(folder / 'right.parquet').stat().st_size:,}", "foreign"],
        ["new", "data/wrong.parquet", f"{(folder / 'wrong.parquet').stat().st_size:,}", "foreign"],
        ["2 new, 1 ignored"],
    ]
    done = cli("files", "weather", "--discover", "--all", home=home)
    assert done.returncode == 0
    assert "WARNING: quarantined data/wrong.parquet of feature group weather: columns that are no features" in done.stderr
    shown = cells(done.stdout)
    assert [row[:2] for row in shown[1:4]] == [
        ["ignored", "data/_SUCCESS"],
        ["adopted", "data/right.parquet"],
        ["quarantined", "data/wrong.parquet"],
    ]
    assert shown[1][-1] == "no Parquet name"
    assert shown[3][-1] == "columns that are no features of 'weather': [b]\\x1b[1m"
    assert {(row[0], row[1][:4]) for row in shown[4:-1]} == {("live", "opt/")}
    assert shown[-1] == [f"{len(shown) - 5} live, 1 quarantined, 1 adopted, 1 ignored"]
    with featurestore.open(home) as store:
        assert store.sql("SELECT count(*) AS n FROM weather").to_pylist() == [{"n": 3}]
