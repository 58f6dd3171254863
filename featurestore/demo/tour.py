"""The demo's steps, in order."""

from __future__ import annotations

import hashlib
import io
import shlex
import shutil
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pyarrow as pa
import pyarrow.csv
from rich.console import Console
from rich.markup import escape

from featurestore.demo import flights, model, picture
from featurestore.demo.aws import Aws
from featurestore.demo.service import running_service
from featurestore.demo.steps import Steps, grid
from featurestore.errors import ValidationFailed
from featurestore.settings import Settings
from featurestore.store import FeatureStore

if TYPE_CHECKING:
    import pandas as pd

GROUPS: Final = ("weather", "planes")
STATION: Final = "TEB"
"""Teterboro, an airport near New York without a flight in the data: its readings change no answer."""
SAMPLE_ROWS: Final = 6
CHECKSUM_ROWS: Final = 65_536
"""Rows that are hashed at a time."""
STALE: Final = timedelta(hours=3)
SQL: Final = (
    "SELECT origin, count(*) AS hours, round(avg(temp), 1) AS mean_f, max(wind_gust) AS gust_mph "
    "FROM weather GROUP BY origin ORDER BY hours DESC"
)


@dataclass(frozen=True, slots=True)
class TrainingData:
    """The training set as a table, as a dataframe, and where it was written."""

    table: pa.Table
    frame: pd.DataFrame
    path: Path


def tour(home: Path, output: Path, console: Console, *, kept: bool) -> None:
    """All steps against a store in `home`, which must not have the demo's groups yet.

    Raises:
        ValidationFailed: it has.
        StoreUnavailable: the service does not start, answer or stop.
        PromiseBroken: an answer is not what the store promises.
    """
    steps = Steps(console)
    with ExitStack() as running:
        store = running.enter_context(FeatureStore(Settings.load({}, home=home)))
        _require_fresh(store, home)
        _introduce(console)
        with steps.step("Read a year of flights, weather and aircraft"):
            year = flights.load()
            _describe(steps, year)
        with steps.step("Start the service, a process of its own"):
            with steps.working("waiting until it is ready"):
                url = running.enter_context(running_service(home))
            steps.say(f"ready at {url}, store in {escape(str(home.absolute()))}")
            aws = Aws(url)
        with steps.step("Create two feature groups with boto3"):
            _create_groups(steps, aws)
        with steps.step("Ingest the dataframes, online and offline"):
            _ingest(steps, store, year)
        with steps.step("Put, correct and delete records with boto3"):
            _change_records(steps, aws, store)
        with steps.step("Join the features to every flight as of its scheduled departure"):
            data = _training_set(steps, store, year, output / "training_set.parquet")
        with steps.step("Look for leakage"):
            _look_for_leakage(steps, data.frame)
        with steps.step("Train on January to September, judge on October to December"):
            evaluation = _train(steps, data.frame)
        drawing = output / "late_flights.png"
        with steps.step("Draw the picture"), steps.working("drawing"):
            picture.draw(data.frame, evaluation, drawing)
            steps.say(escape(str(drawing)))
        with steps.step("Predict one flight from the online store"):
            _predict(steps, aws, data.frame, evaluation.classifier)
        with steps.step("Stop the service"), steps.working("it writes what it had acknowledged"):
            running.close()
            steps.say("it ended by itself, with exit status 0")
    _conclude(steps, console, data, drawing, home if kept else None)


def _introduce(console: Console) -> None:
    console.print("[bold]A feature store, from dataframes to a prediction[/]", highlight=False)
    console.print("336,776 flights from New York in 2013: which ones will arrive more than 15 minutes late?", highlight=False)


def _describe(steps: Steps, year: flights.Year) -> None:
    spine = year.spine
    cancelled = int(spine["late"].isna().sum())
    steps.say(f"{len(spine):,} flights, {len(year.weather):,} hourly weather readings, {len(year.planes):,} aircraft")
    steps.say(
        f"label: arrived more than {flights.LATE_MIN} minutes late. {cancelled:,} flights never arrived as planned (cancelled, "
        "diverted): they stay in the training set without a label, and the model does not see them"
    )
    steps.say(
        "event times: a reading counts as known at the end of its hour, as it may have been taken at any minute of it; "
        f"an aircraft from the start of its year of manufacture, or of 2013 for the {int(year.planes['year'].isna().sum())} "
        "without one"
    )
    local_hour = spine["departure"].dt.tz_convert(flights.NEW_YORK).dt.hour
    steps.check(
        "New York's clock and UTC agree for every flight, changes of clock included", bool((local_hour == spine["hour"]).all())
    )


def _require_fresh(store: FeatureStore, home: Path) -> None:
    taken = sorted({group.name for group in store.feature_groups()} & set(GROUPS))
    if taken:
        expected = f"a store without the demo's feature groups, of which it has {', '.join(taken)}: choose another folder"
        raise ValidationFailed.one("--home", expected, str(home))


def _create_groups(steps: Steps, aws: Aws) -> None:
    table = grid("feature group", "record identifier", "event time", "features", "status")
    for name, features in zip(GROUPS, (flights.WEATHER, flights.PLANES), strict=True):
        identifier, event_time = list(features)[:2]
        made = aws.create_group(name, features, identifier=identifier, event_time=event_time)
        table.add_row(name, identifier, event_time, str(len(made["FeatureDefinitions"])), made["FeatureGroupStatus"])
    steps.show(table)


def _ingest(steps: Steps, store: FeatureStore, year: flights.Year) -> None:
    table = grid("feature group", "rows", "offline files", "newest online", "seconds")
    for name, frame in zip(GROUPS, (year.weather, year.planes), strict=True):
        report = store.ingest(name, frame)
        table.add_row(
            name, f"{report.rows:,}", str(report.files), f"{report.online_newest:,}", f"{sum(report.took_s.values()):.2f}"
        )
    steps.show(table)


def _change_records(steps: Steps, aws: Aws, store: FeatureStore) -> None:
    """One record's life: the newest event time wins, whatever the order of arrival."""
    table = grid("what boto3 asked for", "event time", "temp online afterwards")

    def put(what: str, known_at: str, temp: str) -> None:
        aws.put("weather", {"origin": STATION, "known_at": known_at, "temp": temp})
        table.add_row(f"PutRecord {STATION} {temp}, {what}", known_at[11:16], online() or "none")

    def online() -> str | None:
        record = aws.get("weather", STATION)
        return None if record is None else record["temp"]

    put("the first", "2013-12-30T12:00:00Z", "41.0")
    put("newer", "2013-12-30T13:00:00Z", "43.0")
    newer = online()
    put("late, older", "2013-12-30T11:00:00Z", "38.0")
    older = online()
    found = aws.batch_get({"weather": [STATION, "EWR", "JFK", "LGA"], "planes": ["N14228"]})
    table.add_row("BatchGetRecord, 5 records of 2 groups", "", f"{len(found)} found")
    aws.delete("weather", STATION, "2013-12-30T14:00:00Z")
    table.add_row(f"DeleteRecord {STATION}", "14:00", online() or "none")
    steps.show(table)
    steps.check("a newer event time wins, an older one does not", (newer, older) == ("43.0", "43.0"))
    steps.check("a batch finds every record", len(found) == 5)
    steps.check("a deleted record is gone", aws.get("weather", STATION) is None)
    history = store.sql(f"SELECT temp, is_deleted FROM weather WHERE origin = '{STATION}'")
    kept = (history.num_rows, sum(history["is_deleted"].to_pylist()))
    steps.check("the offline store keeps the history: three readings and the delete", kept == (4, 1))


def _training_set(steps: Steps, store: FeatureStore, year: flights.Year, path: Path) -> TrainingData:
    made = store.create_training_set(year.spine, ["weather.*", "planes.*"], event_time="departure", event_times=True)
    table = made.to_arrow()
    frame = made.to_pandas()
    made.to_parquet(path)
    took_s = sum(made.took_s.values())
    steps.say(f"{table.num_rows:,} rows, {table.num_columns} columns, joined in {took_s:.2f} s; a sample:")
    sample = grid("departure UTC", "flight", "from to", "temp", "wind", "precip", "built", "seats", "late")
    for row in table.take(np.linspace(0, table.num_rows - 1, SAMPLE_ROWS).astype(np.int64)).to_pylist():
        sample.add_row(
            f"{row['departure']:%d %b %H:%M}",
            f"{row['carrier']} {row['flight']}",
            f"{row['origin']} {row['dest']}",
            _text(row["weather.temp"], "{:.0f} F"),
            _text(row["weather.wind_speed"], "{:.0f} mph"),
            _text(row["weather.precip"], "{:.2f} in"),
            _text(row["planes.year"], "{}"),
            _text(row["planes.seats"], "{}"),
            {None: "", 0: "no", 1: "yes"}[row["late"]],
        )
    steps.show(sample)
    with steps.working("checksum"):
        steps.say(f"sha256 of its CSV form: {checksum(table)}")
    return TrainingData(table, frame, path)


def checksum(table: pa.Table) -> str:
    """SHA-256 of a table as CSV, as pyarrow writes it: the same for the same values, whatever file they came from."""
    digest = hashlib.sha256()
    for position, batch in enumerate(table.to_batches(max_chunksize=CHECKSUM_ROWS)):
        text = io.BytesIO()
        pyarrow.csv.write_csv(batch, text, pyarrow.csv.WriteOptions(include_header=position == 0, batch_size=CHECKSUM_ROWS))
        digest.update(text.getbuffer())
    return digest.hexdigest()


def _look_for_leakage(steps: Steps, frame: pd.DataFrame) -> None:
    table = grid("group", "flights", "matched", "share", "least age", "median", "most")
    newest_s: list[float] = []
    for name in GROUPS:
        age_s = (frame["departure"] - frame[f"{name}._event_time"]).dt.total_seconds()
        newest_s.append(float(-age_s.min()))
        ages = [_span(age_s.min()), _span(age_s.median()), _span(age_s.max())]
        table.add_row(name, f"{len(age_s):,}", f"{age_s.notna().sum():,}", f"{age_s.notna().mean():.2%}", *ages)
    steps.show(table)
    steps.say("[dim]age of the matched record at departure; 0 s is a reading that became known at that very moment[/]")
    stale = frame["departure"] - frame["weather._event_time"] > STALE
    steps.say(
        f"{stale.sum():,} flights have weather older than 3 hours: there are gaps, and the readings end on "
        "30 December. Flights without an aircraft have no tail number, or one that the register does not know"
    )
    promise = f"nothing is from the future: feature time minus departure is at most {int(max(newest_s))} s"
    steps.check(promise, max(newest_s) <= 0)


def _train(steps: Steps, frame: pd.DataFrame) -> model.Evaluation:
    with steps.working("training"):
        evaluation = model.train(frame)
    steps.say(
        f"{evaluation.rows_train:,} flights to learn from, {evaluation.rows_test:,} to judge by, of which "
        f"{evaluation.late_share:.1%} were late"
    )
    table = grid("guessing by", "AUC")
    for curve in (*evaluation.baselines, evaluation.curve):
        table.add_row(curve.name, f"{curve.auc:.3f}")
    steps.show(table)
    best = max(curve.auc for curve in evaluation.baselines)
    steps.check("the features of the store help", evaluation.curve.auc > best)
    return evaluation


def _predict(steps: Steps, aws: Aws, frame: pd.DataFrame, classifier: model.Classifier) -> None:
    """The first flight for which the online store, which has the end of the year, is also the past as it was."""
    newest = frame["weather._event_time"].max()
    eligible = (frame["departure"] >= newest) & frame["planes._event_time"].notna() & frame["late"].notna()
    offline = frame[eligible].sort_values("departure", kind="stable").head(1)
    flight = offline.iloc[0]
    found = aws.batch_get({"weather": [flight["origin"]], "planes": [flight["tailnum"]]})
    features: dict[str, str | float] = {}
    for (group, _), record in found.items():
        types = flights.WEATHER if group == "weather" else flights.PLANES
        features |= {f"{group}.{name}": text if types[name] == "String" else float(text) for name, text in record.items()}
    online = offline.assign(**{name: features.get(name) for name in model.FEATURES})
    probability = float(classifier.late(online)[0])
    departure = flight["departure"].tz_convert(flights.NEW_YORK)
    steps.say(
        f"{flight['carrier']} {flight['flight']} from {flight['origin']} to {flight['dest']}, {departure:%d %B %Y at %H:%M} "
        f"New York time, with {flight['tailnum']} ({flight['planes.manufacturer']} {flight['planes.model']})"
    )
    steps.say(f"[bold]probability of arriving late: {probability:.1%}[/]; it arrived {_delay(flight['arr_delay'])}")
    steps.check(
        "the online store and the training set give the model the same answer", probability == float(classifier.late(offline)[0])
    )


def _conclude(steps: Steps, console: Console, data: TrainingData, drawing: Path, home: Path | None) -> None:
    console.print()
    console.print(f"[bold green]Done in {steps.total_s:.1f} s[/]", highlight=False)
    steps.show(steps.times())
    made = grid("what was made", "where")
    made.add_row(f"training set, {data.path.stat().st_size / 1e6:.1f} MB", escape(str(data.path)))
    made.add_row("picture", escape(str(drawing)))
    made.add_row("store", "removed, as it was a temporary folder" if home is None else escape(str(home)))
    steps.show(made)
    if home is None:
        console.print("To keep the store and ask it questions, run next:")
        command = [_program(), "demo", "--home", "demo-store"]
    else:
        console.print("Ask the store a question, next:")
        command = [_program(), "sql", "--home", str(home), SQL]
    console.print(f"  {shlex.join(command)}", soft_wrap=True, markup=False, highlight=False)


def _program() -> str:
    """How this installation's command line is called from here."""
    if shutil.which("featurestore") is not None:
        return "featurestore"
    script = Path(sys.executable).with_name("featurestore")
    below = script.is_relative_to(Path.cwd())
    return str(script.relative_to(Path.cwd()) if below else script)


def _text(value: object, form: str) -> str:
    return "" if value is None else form.format(value)


def _delay(minutes: float) -> str:
    return f"{minutes:.0f} minutes late" if minutes > 0 else f"{-minutes:.0f} minutes early"


def _span(age_s: float) -> str:
    """An age in its largest fitting unit."""
    for unit, unit_s in (("years", 365.25 * 86_400), ("days", 86_400), ("h", 3600), ("min", 60)):
        if abs(age_s) >= unit_s:
            return f"{age_s / unit_s:.1f} {unit}"
    return f"{age_s:.0f} s"
