"""The command line: `featurestore <command>`. The one place that knows the library, the service and the workers."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from api import server
from featurestore import demo as demonstration
from featurestore.errors import FeatureStoreError, ValidationFailed
from featurestore.model.event_time import format_iso
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from ingest.offline_writer import OfflineWriterWorker

PIPE_COLUMNS: Final = 4096
"""Width where nobody watches: what is piped into another program is never cut or wrapped."""

_out: Final = Console(width=None if sys.stdout.isatty() else PIPE_COLUMNS, emoji=False)
_err: Final = Console(stderr=True, soft_wrap=True, emoji=False)

app = typer.Typer(
    help="A feature store that speaks the Amazon SageMaker Feature Store API.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the store.", envvar="FEATURESTORE_HOME", show_default=".featurestore"),
]


def main() -> None:
    """Entry point: our errors become one line and exit status 1, everything else is a bug and shows itself."""
    try:
        app()
    except FeatureStoreError as error:
        _err.print(f"[bold red]error[/]: {_plain(str(error))}", highlight=False)
        sys.exit(1)


@app.command()
def serve(
    home: Home = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.", show_default="127.0.0.1")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.", show_default="8080")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow an address other than loopback. Requests are not authenticated.")
    ] = False,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log one line per request.")] = False,
) -> None:
    """Run the service and its offline writer until Ctrl-C."""
    settings = Settings.load(home=home, host=host, port=port, insecure=insecure or None, access_log=access_log or None)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    listener = server.listen(settings)
    with FeatureStore(settings) as store:
        worker = OfflineWriterWorker(store, flush_s=settings.flush_s)
        worker.start()
        address = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{address}:{listener.getsockname()[1]}"

        def announce() -> None:
            print(f"featurestore is ready at {url} (home {settings.home.absolute()})", flush=True)
            print(f"  AWS clients: export AWS_ENDPOINT_URL={url}    API reference: {url}/docs", flush=True)

        try:
            server.serve(
                store,
                listener,
                settings,
                announce=announce,
                ready=lambda: worker.status.error,
            )
        finally:
            worker.stop()


@app.command()
def groups(home: Home = None) -> None:
    """List the feature groups."""
    with _open(home, flush=False) as store:
        table = _table("name", "identifier", "event time", "features", "stores", "created", "offline rows", "files")
        for group in store.feature_groups():
            stores = " + ".join(
                name for name, config in (("online", group.online), ("offline", group.offline)) if config is not None
            )
            version = store.offline.manifest(group).current() if group.offline is not None else None
            table.add_row(
                group.name,
                group.record_identifier,
                group.event_time,
                str(len(group.features)),
                stores,
                format_iso(group.created_at_us // 1_000_000 * 1_000_000),
                "" if version is None else f"{sum(entry.rows for entry in version.files):,}",
                "" if version is None else f"{len(version.files):,}",
            )
        _out.print(table)


@app.command()
def describe(name: Annotated[str, typer.Argument(help="Feature group.")], home: Home = None) -> None:
    """Show one feature group: its features, stores and tags."""
    with _open(home, flush=False) as store:
        group = store.feature_group(name)
        facts = Table(show_header=False, box=box.SIMPLE)
        facts.add_row("ARN", group.arn)
        facts.add_row("status", group.status)
        facts.add_row("schema version", str(group.schema_version))
        if group.online is not None:
            ttl = group.online.ttl
            facts.add_row("online", "no TTL" if ttl is None else f"TTL {ttl.value} {ttl.unit}")
        if group.offline is not None:
            facts.add_row("offline", group.offline.resolved_s3_uri)
        for key, value in group.tags.items():
            facts.add_row(f"tag {key}", value)
        _out.print(facts, markup=False)
        features = _table("feature", "type", "role", "description")
        roles = {group.record_identifier: "record identifier", group.event_time: "event time"}
        for feature in group.features:
            metadata = store.registry.feature(name, feature.name)
            features.add_row(feature.name, feature.type, roles.get(feature.name, ""), metadata.description or "")
        _out.print(features, markup=False)


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="Name of the new feature group.")],
    data: Annotated[Path, typer.Option("--like", help="Parquet or CSV file to infer the features from.")],
    record_identifier: Annotated[str, typer.Option(help="Column that identifies a record.")],
    event_time: Annotated[str, typer.Option(help="Column with the event time.")],
    home: Home = None,
) -> None:
    """Create a feature group with the columns of a file; `ingest` then loads it."""
    with _open(home) as store:
        group = store.create_feature_group(name, record_identifier=record_identifier, event_time=event_time, features=_read(data))
        _out.print(f"created {group.name} with {len(group.features)} features")


@app.command()
def ingest(
    name: Annotated[str, typer.Argument(help="Feature group.")],
    data: Annotated[Path, typer.Argument(help="Parquet or CSV file.")],
    skip_faulty: Annotated[bool, typer.Option("--skip-faulty", help="Leave faulty rows out and report them.")] = False,
    home: Home = None,
) -> None:
    """Load a Parquet or CSV file into a feature group, online and offline."""
    with _open(home) as store:
        started_s = time.perf_counter()
        report = store.ingest(name, _read(data), skip_faulty=skip_faulty)
        took_s = time.perf_counter() - started_s
        _out.print(
            f"{report.rows:,} rows in {took_s:.1f} s: {report.files} files, {report.online_newest:,} records newest online"
        )
        for fault in report.faults:
            _err.print(f"skipped {_plain(str(fault))}", highlight=False)
        if report.skipped:
            _err.print(f"{report.skipped:,} faulty rows were left out")


@app.command()
def sql(
    statement: Annotated[str, typer.Argument(help="One SELECT, e.g. 'SELECT * FROM latest.\"weather\" LIMIT 5'.")],
    output: Annotated[Path | None, typer.Option(help="Write the result as Parquet instead of showing it.")] = None,
    rows: Annotated[int, typer.Option(help="Rows to show.", min=1)] = 50,
    home: Home = None,
) -> None:
    """Query the offline store. Groups are relations in the schemas history (default) and latest."""
    with _open(home) as store:
        result = store.sql(statement)
    if output is not None:
        pq.write_table(result, output, compression="zstd")
        _out.print(f"{result.num_rows:,} rows in {output}")
        return
    table = _table(*result.column_names)
    for row in zip(*(_texts(column) for column in result.slice(0, rows).columns), strict=True):
        table.add_row(*row)
    _out.print(table, markup=False)
    if result.num_rows > rows:
        _out.print(f"{rows} of {result.num_rows:,} rows; see --rows and --output")


@app.command()
def status(home: Home = None) -> None:
    """Show how many acknowledged changes wait for the offline store. Does not write them."""
    with _open(home, flush=False) as store:
        _out.print(f"{store.offline_behind():,} changes wait for the offline store")


@app.command()
def demo(
    home: Annotated[
        Path | None, typer.Option("--home", help="Folder for the demo's store; kept.", show_default="a temporary folder")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the training set and the plot.")] = Path("demo-output"),
) -> None:
    """See it work: a year of New York flights and weather, from dataframes to a trained model. Needs the extra `demo`."""
    demonstration.run(home, output, _out)


@contextmanager
def _open(home: Path | None, *, flush: bool = True) -> Iterator[FeatureStore]:
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s", stream=sys.stderr)
    store = FeatureStore(Settings.load(home=home))
    try:
        yield store
    finally:
        store.close(flush=flush)


def _read(path: Path) -> pa.Table:
    try:
        if path.suffix == ".csv":
            return pyarrow.csv.read_csv(path)
        return pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ValidationFailed.one("data", f"a readable Parquet or CSV file ({error})", str(path)) from error


def _texts(column: pa.ChunkedArray) -> list[str]:
    """The values as people read them; null is empty."""
    try:
        values = column.to_pylist()
    except (OverflowError, ValueError):  # Python's dates end at the years 1 and 9999
        values = column.cast(pa.string()).to_pylist()
    return ["" if value is None else str(value) for value in values]


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _plain(text: str) -> str:
    """Text that rich prints as it is."""
    return escape(text)


if __name__ == "__main__":
    main()
