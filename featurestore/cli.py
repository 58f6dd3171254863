"""The command line: `featurestore <command>`. The one place that knows the library, the service and the workers."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final, Protocol

import msgspec
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from sqlalchemy import make_url

from api import server
from api.listener import listening
from api.supervisor import Supervisor
from featurestore import demo as demonstration
from featurestore.access.keys import Right, open_keys
from featurestore.audit import AuditReport
from featurestore.errors import FeatureStoreError, ValidationFailed
from featurestore.logs import COMMAND_LINE, SERVICE_LINE, log_to_stderr
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import Durability
from featurestore.offline.iceberg import CATALOG
from featurestore.offline.inventory import State
from featurestore.settings import PREFIX, Settings
from featurestore.store import FeatureStore
from ingest.maintenance import MaintenanceWorker
from ingest.offline_writer import OfflineWriterWorker, SharedOfflineWriter
from ingest.relay import RelayWorker
from ingest.streams import StreamWorker
from ingest.user_topic import UserTopic

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

worker_app = typer.Typer(help="Run one of the background workers until Ctrl-C.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(worker_app, name="worker")
stream_app = typer.Typer(help="Kafka topics whose messages become records.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(stream_app, name="stream")
keys_app = typer.Typer(help="Access keys: who may call the service.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(keys_app, name="keys")

Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of the store.", envvar="FEATURESTORE_HOME", show_default=".featurestore"),
]


StreamName = Annotated[str, typer.Argument(help="Name of the stream.")]


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
    access_log: Annotated[bool, typer.Option("--access-log", help="Log one line per request.")] = False,
    processes: Annotated[
        str | None, typer.Option("--workers", help="Processes that answer requests.", show_default="1", metavar="N")
    ] = None,
    no_workers: Annotated[
        bool,
        typer.Option(
            "--no-workers", help="No background work: answer requests only; `featurestore worker` does the rest elsewhere."
        ),
    ] = False,
) -> None:
    """Run the service, with its offline writer and maintenance, until Ctrl-C."""
    options: dict[str, Any] = {"home": home, "host": host, "port": port, "workers": processes, "access_log": access_log or None}
    settings = Settings.load(**options)
    log_to_stderr(logging.INFO, SERVICE_LINE)
    server.require_tls(settings)
    with listening(settings) as listeners:
        store = FeatureStore(settings)
        try:
            writer = None if no_workers else OfflineWriterWorker(store, flush_s=settings.flush_s)
            workers: list[_Worker] = (
                [] if writer is None else [writer, MaintenanceWorker(store, maintenance_s=settings.maintenance_s)]
            )
            if writer is not None and settings.kafka_bootstrap_servers:
                workers.append(RelayWorker(store))
            for worker in workers:
                worker.start()
            address = f"[{settings.host}]" if ":" in settings.host else settings.host
            url = f"{'https' if settings.tls_cert_file else 'http'}://{address}:{listeners[0].getsockname()[1]}"

            def announce() -> None:
                print(f"featurestore is ready at {url} (home {settings.home.absolute()})", flush=True)
                print(f"  AWS clients: export AWS_ENDPOINT_URL={url}    API reference: {url}/docs", flush=True)

            def ready() -> str | None:
                # With Kafka, writes and reads go on while the offline side is down, so the service should get them.
                return None if writer is None or settings.kafka_bootstrap_servers else writer.status.error

            try:
                if settings.workers == 1:
                    server.serve(store, listeners[0], settings, announce=announce, ready=ready)
                else:
                    given = {f"{PREFIX}{name.upper()}": str(value) for name, value in options.items() if value is not None}
                    Supervisor(listeners, os.environ | given, ready=ready).run(announce)
            finally:
                for worker in reversed(workers):
                    worker.stop()
        finally:
            store.close(flush=not no_workers)


@worker_app.command("relay")
def worker_relay(home: Home = None) -> None:
    """Move changes from the outbox to Kafka, for this process's share of the shards."""
    _work(home, "relay", RelayWorker)


@worker_app.command("offline")
def worker_offline(home: Home = None) -> None:
    """Write changes to the offline store, for this process's share of the shards."""
    _work(home, "offline", lambda store: SharedOfflineWriter(store, flush_s=store.settings.flush_s))


@worker_app.command("stream")
def worker_stream(home: Home = None) -> None:
    """Read the topics of all running streams, for this process's share of their partitions."""

    def make(store: FeatureStore) -> _Worker:
        store.require_kafka()
        return StreamWorker(store)

    _work(home, "stream", make)


@worker_app.command("maintenance")
def worker_maintenance(home: Home = None) -> None:
    """Look after the offline store: adopt files, merge small ones, end history, delete what nobody needs."""
    _work(home, "maintenance", lambda store: MaintenanceWorker(store, maintenance_s=store.settings.maintenance_s))


@stream_app.command("add")
def stream_add(
    name: Annotated[str, typer.Argument(help="Name of the stream.")],
    topic: Annotated[str, typer.Option(help="Topic whose messages, JSON objects, become records.")],
    group: Annotated[str, typer.Option(help="Feature group.")],
    field: Annotated[
        list[str] | None,
        typer.Option(help="FEATURE=PATH in the message, e.g. id=customer.id; repeatable. Without any, members are features."),
    ] = None,
    dead_letters: Annotated[
        str | None, typer.Option(help="Topic for what can't become a record.", show_default="TOPIC.dead-letters")
    ] = None,
    start: Annotated[str | None, typer.Option("--from", help="Begin with messages of this time, or `now`.")] = None,
    home: Home = None,
) -> None:
    """Let the messages of a Kafka topic become records. `featurestore worker stream` reads them."""
    fields = dict(_pair(text) for text in field or [])
    with _open(home, flush=False) as store:
        made = store.add_stream(name, topic=topic, group=group, fields=fields, dead_letters=dead_letters, start=_start(start))
    _out.print(_plain(f"{made.name}: {made.topic} to {made.group}; dead letters go to {made.dead_letters}"), highlight=False)


@stream_app.command("list")
def stream_list(home: Home = None) -> None:
    """Show all streams: how far each has come, and how many messages are in its topic for dead letters."""
    with _open(home, flush=False) as store:
        table = _table("stream", "topic", "group", "state", "read", "behind", "dead letters")
        for stream in store.streams():
            topic = UserTopic(store.require_kafka(), stream)
            try:
                lag = topic.lag()
                counts = (sum(part.offset for part in lag), sum(part.end - part.offset for part in lag), topic.dead_letters())
            finally:
                topic.close()
            row = (stream.name, stream.topic, stream.group, stream.state.value, *(f"{count:,}" for count in counts))
            table.add_row(*map(_plain, row))
        _out.print(table)


@stream_app.command("pause")
def stream_pause(name: StreamName, home: Home = None) -> None:
    """Stop reading a stream. What it has not read stays in its topic."""
    with _open(home, flush=False) as store:
        _out.print(f"{store.pause_stream(name).name} is paused", highlight=False)


@stream_app.command("resume")
def stream_resume(name: StreamName, home: Home = None) -> None:
    """Go on reading a stream where it was paused."""
    with _open(home, flush=False) as store:
        _out.print(f"{store.resume_stream(name).name} is running", highlight=False)


@stream_app.command("replay")
def stream_replay(
    name: StreamName,
    start: Annotated[
        str | None, typer.Option("--from", help="Begin with messages of this time.", show_default="the oldest")
    ] = None,
    home: Home = None,
) -> None:
    """Read a stream's topic again. Every message is written once more; online the newest record stays."""
    with _open(home, flush=False) as store:
        _out.print(f"{store.replay_stream(name, start=_start(start)).name} begins again", highlight=False)


@stream_app.command("remove")
def stream_remove(name: StreamName, home: Home = None) -> None:
    """Forget a stream. Its topics and what it has written stay."""
    with _open(home, flush=False) as store:
        _out.print(f"{store.remove_stream(name).name} is removed", highlight=False)


@keys_app.command("create")
def keys_create(
    name: Annotated[str, typer.Argument(help="Whose key it is, as in `GetCallerIdentity`.")],
    right: Annotated[Right, typer.Option(help="What the key may do; each includes the ones before it.")] = Right.WRITE,
    home: Home = None,
) -> None:
    """Create an access key and print it, its secret for the only time. From the first one on, every request must be signed."""
    with open_keys(Settings.load(home=home)) as keys:
        key = keys.create(name, right)
    _err.print(f"key {_plain(key.name)} with the right {key.right}; its secret is not shown again", highlight=False)
    for variable, value in (
        ("AWS_ACCESS_KEY_ID", key.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", key.secret_access_key),
    ):
        _out.print(f"export {variable}={value}", markup=False, highlight=False)


@keys_app.command("list")
def keys_list(home: Home = None) -> None:
    """Show all access keys, without their secrets."""
    with open_keys(Settings.load(home=home)) as keys:
        table = _table("name", "access key id", "right", "created")
        for key in keys.list():
            created = format_iso(key.created_at_us // 1_000_000 * 1_000_000) if key.created_at_us else "in the settings"
            table.add_row(key.name, key.access_key_id, key.right, created)
    _out.print(table, markup=False)


@keys_app.command("revoke")
def keys_revoke(name: Annotated[str, typer.Argument(help="Name of the key.")], home: Home = None) -> None:
    """End a key and the sessions of it, in every process within a second. Without any key left, no request is served."""
    with open_keys(Settings.load(home=home)) as keys:
        keys.revoke(name)
    _out.print(_plain(f"{name} is revoked"), highlight=False)


@app.command()
def lag(home: Home = None) -> None:
    """Show shard by shard how far the offline store is behind. Does not write anything."""
    with _open(home, flush=False) as store:
        has_log = store.relay is not None
        kafka = ("in Kafka",) if has_log else ()
        table = _table("shard", "in the outbox", "oldest", *kafka, "position", "last change", "written")
        for shard in store.lag():
            table.add_row(
                str(shard.shard),
                f"{shard.outbox_entries:,}",
                _age(shard.outbox_age_s),
                *((f"{shard.log_entries:,}",) if has_log else ()),
                f"{shard.offset_next:,}",
                f"{shard.seq_last:,}",
                f"{_age(shard.written_age_s)} ago" if shard.written_age_s is not None else "never",
            )
        _out.print(table, markup=False)


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
    as_of: Annotated[
        str | None, typer.Option("--as-of", help="See the offline store as it was then, e.g. 2026-11-21T10:00:00Z.")
    ] = None,
    home: Home = None,
) -> None:
    """Query the offline store. Groups are relations in the schemas history (default) and latest."""
    moment = None if as_of is None else _moment("--as-of", as_of)
    with _open(home) as store:
        result = store.sql(statement, as_of=moment)
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
        if quarantined := store.quarantined():
            _err.print(f"{quarantined:,} log entries could not become rows and are in quarantine; see docs/guides/maintenance.md")


@app.command()
def files(
    name: Annotated[str, typer.Argument(help="Feature group.")],
    states: Annotated[list[State] | None, typer.Option("--state", help="Show files of this state only; repeatable.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Show garbage and ignored files too.")] = False,
    discover: Annotated[bool, typer.Option("--discover", help="First look for files that other tools have added.")] = False,
    home: Home = None,
) -> None:
    """List the files of a group's offline store: live, adopted, quarantined and so on."""
    with _open(home, flush=False) as store:
        if discover:
            store.discover(name)
        found = store.files(name)
    hidden = () if every else (State.GARBAGE, State.IGNORED)
    table = _table("state", "path", "bytes", "rows", "origin", "from", "to", "reason")
    for file in found:
        if file.state in states if states else file.state not in hidden:
            times = (
                "" if time_us is None else format_iso(time_us) for time_us in (file.event_time_us_min, file.event_time_us_max)
            )
            rows = "" if file.rows is None else f"{file.rows:,}"
            row = (file.state, file.path, f"{file.bytes:,}", rows, file.origin or "", *times, file.reason)
            table.add_row(*(_plain(_visible(cell)) for cell in row))
    if table.row_count:
        _out.print(table)
    counts = Counter(file.state for file in found)
    _out.print(", ".join(f"{counts[state]:,} {state}" for state in State if counts[state]) or "no files", highlight=False)


@app.command()
def compact(
    names: Annotated[list[str] | None, typer.Argument(help="Feature groups.", show_default="all")] = None,
    home: Home = None,
) -> None:
    """Merge small offline files into few large ones, and delete files that were replaced long enough ago."""
    with _open(home) as store:
        store.flush()
        table = _table("group", "files before", "files", "rows merged", "bytes written", "objects deleted")
        for name in names or [group.name for group in store.feature_groups() if group.offline is not None]:
            done, cleaned = store.compact(name), store.clean(name)
            before = done.files + done.merged - done.written
            table.add_row(name, f"{before:,}", f"{done.files:,}", f"{done.rows:,}", f"{done.bytes:,}", f"{cleaned.deleted:,}")
        _out.print(table, markup=False)


@app.command()
def publish(name: Annotated[str, typer.Argument(help="Feature group whose TableFormat is Iceberg.")], home: Home = None) -> None:
    """Make a group's Iceberg table show its offline files, for other engines. Needs the extra `iceberg`."""
    with _open(home) as store:
        store.flush()
        done = store.publish_iceberg(name)
        catalog = make_url(store.settings.iceberg_catalog_location).render_as_string(hide_password=True)
    _out.print(
        f"{done.table}: version {done.version:,} is snapshot {done.snapshot_id or 'none, as there are no rows yet'}, "
        f"{done.added:,} files added, {done.removed:,} removed"
    )
    lines = (
        "read it with pyiceberg and Polars:",
        "  from pyiceberg.catalog.sql import SqlCatalog",
        f"  table = SqlCatalog({CATALOG!r}, uri={catalog!r}).load_table({done.table!r})",
        "  table.scan().to_arrow()",
        "  pl.scan_iceberg(table)",
        f"or as it is now, without the catalog: {done.metadata_url}",
    )
    for line in lines:
        _out.print(_plain(line), highlight=False, soft_wrap=True)


@app.command()
def erase(
    name: Annotated[str, typer.Argument(help="Feature group.")],
    identifiers: Annotated[list[str], typer.Argument(help="Record identifiers.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Erase records for good: online, in the log, in every offline file. What is written for them later is kept."""
    if not yes:
        typer.confirm(f"Erase {len(identifiers):,} records of {name} from everywhere? This can't be undone", abort=True)
    with _open(home) as store:
        receipt = store.erase(name, *identifiers)
    _out.print(
        f"erasure {receipt.number}: {receipt.online:,} records online, {receipt.rows:,} rows in {len(receipt.files):,} files"
    )
    table = _table("rows", "file deleted", "rewritten as")
    for file in receipt.files:
        table.add_row(f"{file.rows:,}", file.path, file.into or "")
    if receipt.files:
        _out.print(table, markup=False)
    for path in receipt.unreadable:
        _err.print(f"could not be searched, since it can't be read: {_plain(path)}", highlight=False)
    if receipt.unreadable:
        sys.exit(1)


@app.command()
def audit(
    names: Annotated[list[str] | None, typer.Argument(help="Feature groups.", show_default="all")] = None,
    by_shard: Annotated[bool, typer.Option("--by-shard", help="Count shard by shard.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the reports as JSON, one group a line.")] = False,
    home: Home = None,
) -> None:
    """Compare what was acknowledged with what both stores hold, and name every difference. Status 1 if there is one."""
    with _open(home, flush=False) as store:
        reports = [store.audit(name) for name in names or [group.name for group in store.feature_groups()]]
    if as_json:
        for report in reports:
            sys.stdout.write(msgspec.json.encode(report).decode() + "\n")
    else:
        _show(reports, by_shard=by_shard)
    if any(report.differences_total for report in reports):
        sys.exit(1)


@app.command("rebuild-online")
def rebuild_online(
    names: Annotated[list[str] | None, typer.Argument(help="Feature groups.", show_default="all")] = None, home: Home = None
) -> None:
    """Restore online records from the offline store and the change log, after the online store was lost or fell behind."""
    with _open(home) as store:
        table = _table("group", "records", "hard deletes", "changed online", "changes of a former store")
        for name in names or [group.name for group in store.feature_groups() if group.online and group.offline]:
            done = store.rebuild_online(name)
            table.add_row(name, f"{done.records:,}", f"{done.hard_deletes:,}", f"{done.changed:,}", f"{done.former_changes:,}")
        _out.print(table, markup=False)


@app.command()
def retention(
    name: Annotated[str, typer.Argument(help="Feature group.")],
    days: Annotated[int | None, typer.Option(help="Days after its event time that a record stays in the history.", min=1)] = None,
    forever: Annotated[bool, typer.Option("--forever", help="Keep all history from now on.")] = False,
    home: Home = None,
) -> None:
    """Show or choose how long a group's history is kept. Choosing ends it at once; what has ended does not come back."""
    if days is not None and forever:
        raise ValidationFailed.one("--forever", "not together with --days", days)
    with _open(home) as store:
        if days is not None or forever:
            store.set_retention(name, days)
            done = store.retain(name)
            if done.files:
                _out.print(f"{done.rows:,} rows in {done.files:,} files left the history")
        group = store.feature_group(name)
        kept = None if group.offline is None else group.offline.retention_days
        _out.print(f"{name}: all history is kept" if kept is None else f"{name}: history is kept for {kept:,} days")


@app.command()
def durability(
    name: Annotated[str, typer.Argument(help="Feature group.")],
    kind: Annotated[
        Durability | None,
        typer.Argument(help="`online`: a write is acknowledged when the online store has it; `log`: when Kafka has it, too."),
    ] = None,
    home: Home = None,
) -> None:
    """Show or choose when writes to a group are acknowledged."""
    with _open(home, flush=False) as store:
        if kind is not None:
            store.set_durability(name, kind)
        group = store.feature_group(name)
    when = "the online store has them" if group.durability is Durability.ONLINE else "Kafka has them, too"
    _out.print(f"{name}: writes are acknowledged when {when} (durability={group.durability})", highlight=False)


@app.command()
def demo(
    home: Annotated[
        Path | None, typer.Option("--home", help="Folder for the demo's store; kept.", show_default="a temporary folder")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the training set and the plot.")] = Path("demo-output"),
) -> None:
    """See it work: a year of New York flights and weather, from dataframes to a trained model. Needs the extra `demo`."""
    demonstration.run(home, output, _out)


def _pair(text: str) -> tuple[str, str]:
    feature, equals, path = text.partition("=")
    if not equals:
        raise ValidationFailed.one("--field", "FEATURE=PATH", text)
    return feature, path


def _start(text: str | None) -> datetime | None:
    if text is None:
        return None
    if text == "now":
        return datetime.now(UTC)
    return _moment("--from", text)


def _moment(option: str, text: str) -> datetime:
    try:
        return datetime.fromisoformat(text)
    except ValueError as error:
        raise ValidationFailed.one(option, "an ISO-8601 time with a time zone such as 2026-11-21T10:00:00Z", text) from error


@app.command("give-up")
def give_up(
    shard: Annotated[int, typer.Argument(help="Shard, see `featurestore lag`.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    home: Home = None,
) -> None:
    """Go on behind changes that Kafka has lost before they were written offline. They stay lost, and audits count them."""
    with _open(home, flush=False) as store:
        lost = store.lost(shard)
        if lost is None:
            _out.print(f"shard {shard} lacks nothing that the relay could not still send")
            return
        what = f"{lost.changes:,} changes of shard {shard}"
        if lost.changes:
            what += f", {lost.seq_first:,} to {lost.seq_last:,}"
        if not yes:
            typer.confirm(f"Give up {what}, and go on with what the topic has?", abort=True)
        if not store.give_up(shard, lost):
            _err.print("something has changed meanwhile, nothing was done; call again")
            sys.exit(1)
        _out.print(f"gave up {what}")


class _Worker(Protocol):
    """What runs in a thread of its own."""

    def start(self) -> None:
        """Begin."""

    def stop(self) -> None:
        """Finish the step under way, then return."""


def _work(home: Path | None, name: str, make: Callable[[FeatureStore], _Worker]) -> None:
    """Run a worker until SIGTERM or SIGINT."""
    log_to_stderr(logging.INFO, SERVICE_LINE)
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: stop.set())
    store = FeatureStore(Settings.load(home=home))
    try:
        worker = make(store)
        worker.start()
        try:
            print(f"featurestore worker {name} is ready (home {store.settings.home.absolute()})", flush=True)
            stop.wait()
        finally:
            worker.stop()
    finally:
        store.close(flush=False)


def _age(age_s: float | None) -> str:
    return "" if age_s is None else f"{age_s:,.1f} s"


@contextmanager
def _open(home: Path | None, *, flush: bool = True) -> Iterator[FeatureStore]:
    log_to_stderr(logging.WARNING, COMMAND_LINE)
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


def _show(reports: Sequence[AuditReport], *, by_shard: bool) -> None:
    counted = ("acknowledged", "streamed", "waiting", "quarantined", "offline_rows", "online_records", "explained", "differences")
    table = _table("group", *(("shard",) if by_shard else ()), *(name.replace("_", " ") for name in counted))
    for report in reports:
        rows = [[report.group, str(shard.shard), *(f"{getattr(shard, name):,}" for name in counted)] for shard in report.shards]
        if not by_shard:
            rows = [[report.group, *(f"{sum(getattr(shard, name) for shard in report.shards):,}" for name in counted[:-1])]]
            rows[0].append(f"{report.differences_total:,}")
        for row in rows:
            table.add_row(*row)
    if table.row_count:
        _out.print(table, markup=False)
    for report in reports:
        for difference in report.differences:
            _out.print(f"{report.group}: {_visible(str(difference))}", markup=False, highlight=False, soft_wrap=True)
        if unnamed := report.differences_total - len(report.differences):
            _out.print(f"{report.group}: and {unnamed:,} more", highlight=False)


def _texts(column: pa.ChunkedArray) -> list[str]:
    """The values as people read them; null is empty."""
    try:
        values = column.to_pylist()
    except (OverflowError, ValueError):  # Python's dates end at the years 1 and 9999
        values = column.cast(pa.string()).to_pylist()
    return ["" if value is None else str(value) for value in values]


def _table(*columns: str) -> Table:
    return Table(*columns, box=box.SIMPLE_HEAD, pad_edge=False)


def _visible(text: str) -> str:
    """Text of others without what would steer a terminal or break a line."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def _plain(text: str) -> str:
    """Text that rich prints as it is."""
    return escape(text)


if __name__ == "__main__":
    main()
