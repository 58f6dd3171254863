"""Athena's verbs over one store: start a query, look how far it is, read what came of it, stop it.

A query waits for one of a few threads. The thread translates it, plans on the newest versions of its tables, lets the
sandbox answer and writes the rows into a bucket as they come; only when the file is whole the execution has SUCCEEDED.
"""

from __future__ import annotations

import contextlib
import fnmatch
import logging
import re
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from featurestore.athena import statements
from featurestore.athena.catalog import Catalog, GroupTable
from featurestore.athena.dialect import DIALECT_SETTINGS
from featurestore.athena.executions import (
    ErrorCategory,
    Execution,
    ExecutionState,
    Failure,
    Request,
    SqlExecutions,
)
from featurestore.athena.results import (
    PAGE_ROWS_MAX,
    Page,
    ResultColumn,
    Written,
    csv_chunks,
    metadata_json,
    read_lines,
    read_page,
    read_token,
    result_columns,
)
from featurestore.athena.statements import STATEMENT_BYTES_MAX, StatementType, split_location, type_of
from featurestore.athena.tables import ExternalTable, SqlTables
from featurestore.athena.translate import SCHEMA, QueryInvalid, TableRef, translate
from featurestore.buckets.protocol import Buckets
from featurestore.errors import (
    FeatureStoreError,
    FileVanished,
    LimitExceeded,
    NoSuchBucket,
    NoSuchKey,
    QueryError,
    QueryFailed,
    QueryRefused,
    QueryStopped,
    StoreCorrupt,
    StoreUnavailable,
    ValidationFailed,
)
from featurestore.query.reader import OfflineReader
from featurestore.query.replan import replanned
from featurestore.query.sandbox import Relations, Sandbox, Stop, TableName, View

_log: Final = logging.getLogger(__name__)

QUEUED_MAX: Final = 1000
"""Queries that one process lets wait; 30 MiB of statements at most as long as each is."""
WATCHING_MAX: Final = 8
"""Callers that wait for the end of a query, each with a thread of the service's."""
FILES_MAX: Final = 10_000
"""Files of one external table."""
REASON_CHARS_MAX: Final = 2000
STOPPED: Final = Failure("the service was stopped; run the query again", ErrorCategory.SYSTEM, retryable=True)
INTERNAL: Final = Failure("internal error; the service's log has the details under this id", ErrorCategory.SYSTEM)


@dataclass(frozen=True, slots=True)
class AthenaLimits:
    """
    Attributes:
        running_max: queries of this process that run at a time; each may take the sandbox's memory and threads.
        timeout_s: of one query, from its start to its last row in the bucket.
    """

    running_max: int = 2
    timeout_s: float = 1800.0


@dataclass(frozen=True, slots=True)
class ResultPage:
    """A page of a result; `offset_next` is None at its end."""

    execution: Execution
    page: Page


class AthenaQueries:
    """Starts no thread before the first query. Safe for several threads.

    Args:
        default_output: where results go when a query does not say, `s3://bucket[/prefix]`.
        refresh: writes what waits for the offline store, so that a query sees every acknowledged write.
    """

    def __init__(
        self,
        executions: SqlExecutions,
        tables: SqlTables,
        catalog: Catalog,
        *,
        reader: OfflineReader,
        sandbox: Sandbox,
        buckets: Buckets,
        default_output: str,
        refresh: Callable[[], object],
        limits: AthenaLimits,
    ) -> None:
        self.executions = executions
        self.tables = tables
        self.catalog = catalog
        self.default_output = default_output
        self._reader = reader
        self._sandbox = sandbox
        self._buckets = buckets
        self._refresh = refresh
        self._limits = limits
        self._lock = threading.Condition()
        self._waiting: deque[Execution] = deque()
        self._stops: dict[str, Stop] = {}
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._watching = 0
        self._closing = False

    def start(
        self,
        query: str,
        *,
        database: str,
        catalog: str = "AwsDataCatalog",
        output_location: str | None = None,
        workgroup: str = "primary",
        parameters: Sequence[str] = (),
        encryption: dict[str, str] | None = None,
        token: str | None = None,
    ) -> Execution:
        """Take a query; what is wrong with its SQL shows in its execution.

        Args:
            output_location: `s3://bucket[/prefix]`; the result is at `<output_location>/<id>.csv`, or `.txt` unless it is a
                SELECT.
            token: the same token and the same query give the same execution.

        Raises:
            ValidationFailed: the query is empty or too long, the location is none, or the token was for another query.
            LimitExceeded: too many wait.
            StoreUnavailable
        """
        size = len(query.encode(errors="surrogatepass"))
        if not query.strip() or size > STATEMENT_BYTES_MAX or "\0" in query:
            raise ValidationFailed.one(
                "QueryString", f"a statement of 1 to {STATEMENT_BYTES_MAX} bytes, without NUL", f"{size} bytes"
            )
        folder = (output_location or self.default_output).rstrip("/")
        split_location(folder, "ResultConfiguration.OutputLocation")
        execution_id, kind = str(uuid.uuid4()), type_of(query)
        output = f"{folder}/{execution_id}"
        request = Request(query, database, catalog, output, workgroup, tuple(parameters), encryption)
        execution = Execution(
            execution_id,
            request,
            kind,
            ExecutionState.QUEUED,
            _now_us(),
            f"{output}.csv" if _is_select(kind, query) else f"{output}.txt",
        )
        with self._lock:
            if self._closing:
                raise StoreUnavailable("query", "the service is stopping")
            if len(self._waiting) >= QUEUED_MAX:
                raise LimitExceeded("queries waiting to run", QUEUED_MAX)
            kept = self.executions.add(execution, token)
            if kept is execution:
                self._stops[execution_id] = Stop()
                self._waiting.append(execution)
                self._hire()
                self._lock.notify_all()  # the thread that renews leases waits there as well
        return kept

    def get(self, execution_id: str, *, wait_s: float = 0.0) -> Execution:
        """
        Args:
            wait_s: how long to wait for its end if it waits or runs in this process. WATCHING_MAX callers at a time are kept
                waiting; others have their answer at once.

        Raises:
            ExecutionNotFound, StoreUnavailable
        """
        with self._lock:
            if wait_s and execution_id in self._stops and self._watching < WATCHING_MAX:
                self._watching += 1
                self._lock.wait_for(lambda: self._closing or execution_id not in self._stops, timeout=wait_s)
                self._watching -= 1
        return self.executions.get(execution_id)

    def stop(self, execution_id: str) -> None:
        """Cancel a query, whichever process runs it; one that has ended stays as it is.

        Raises:
            ExecutionNotFound, StoreUnavailable
        """
        self.executions.cancel(execution_id)
        with self._lock:
            stop = self._stops.get(execution_id)
        if stop is not None:
            stop.stop()

    def results(self, execution_id: str, *, token: str | None, rows_max: int = PAGE_ROWS_MAX) -> ResultPage:
        """A page of a result; the first row of the first page of a SELECT is the header.

        Raises:
            ExecutionNotFound, StoreUnavailable
            ValidationFailed: the query has not succeeded, the token is none, or the result is not there any more.
        """
        execution = self.executions.get(execution_id)
        if execution.state is not ExecutionState.SUCCEEDED:
            state = f"{execution.state}: {execution.failure.reason}" if execution.failure else str(execution.state)
            raise ValidationFailed.one("QueryExecutionId", "a query that has SUCCEEDED", state)
        offset = 0 if token is None else read_token(token, execution_id)
        bucket, key = split_location(execution.output_location, "OutputLocation")
        try:
            with self._buckets.read(bucket, key) as (stored, file):
                if execution.output_location.endswith(".csv"):
                    page = read_page(file, stored.bytes, len(execution.columns), offset=offset, rows_max=rows_max)
                else:
                    page = read_lines(file, stored.bytes, offset=offset, rows_max=rows_max)
        except (NoSuchKey, NoSuchBucket, StoreCorrupt) as error:
            raise ValidationFailed.one(
                "QueryExecutionId", f"a query whose result is still there ({error})", execution_id
            ) from error
        return ResultPage(execution, page)

    def close(self) -> None:
        """Fail what waits or runs, and release the threads. Repeating it is harmless."""
        with self._lock:
            if self._closing:
                return
            self._closing = True
            threads, stops = list(self._threads), list(self._stops.values())
            self._lock.notify_all()
        for stop in stops:
            stop.stop()
        for thread in threads:
            thread.join()
        while self._waiting:
            with contextlib.suppress(StoreUnavailable):
                self._end(self._waiting.popleft().execution_id, ExecutionState.FAILED, STOPPED)

    # threads

    def _hire(self) -> None:
        """Under the lock: see that a thread comes for what waits, and one that renews leases."""
        if not self._threads:
            self._threads.append(threading.Thread(target=self._keep, name="athena-leases", daemon=True))
            self._threads[-1].start()
        if self._idle < len(self._waiting) and len(self._threads) <= self._limits.running_max:
            self._threads.append(threading.Thread(target=self._work, name=f"athena-{len(self._threads)}", daemon=True))
            self._threads[-1].start()

    def _keep(self) -> None:
        """Renew the leases of what waits and runs here, and stop what somebody has cancelled."""
        while True:
            with self._lock:
                if self._lock.wait_for(lambda: self._closing, timeout=self.executions.lease_s / 6):
                    return
                known = set(self._stops)
            if not known:
                continue
            try:
                alive = self.executions.renew()
            except StoreUnavailable as error:
                _log.warning("leases of query executions were not renewed: %s", error)
                continue
            with self._lock:
                gone = [stop for name, stop in self._stops.items() if name in known and name not in alive]
            for stop in gone:
                stop.stop()

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                self._lock.wait_for(lambda: self._closing or bool(self._waiting))
                self._idle -= 1
                if self._closing:
                    return
                execution = self._waiting.popleft()
                stop = self._stops[execution.execution_id]
            try:
                self._run(execution.execution_id, stop)
            except StoreUnavailable as error:
                _log.warning("query execution %s can't be kept: %s", execution.execution_id, error)
            finally:
                with self._lock:
                    del self._stops[execution.execution_id]
                    self._lock.notify_all()

    def _run(self, execution_id: str, stop: Stop) -> None:
        """From QUEUED to an end. Whatever comes of it is the execution's: nothing is raised but that this can't be kept."""
        execution = self.executions.change(
            execution_id, lambda found: replace(found, state=ExecutionState.RUNNING, started_at_us=_now_us())
        )
        if execution is None:
            return  # cancelled while it waited
        try:
            done = self._answer(execution, stop)
        except (QueryInvalid, FeatureStoreError) as error:
            failure = STOPPED if self._closing else _failure(error)
            if failure is INTERNAL:
                _log.error("query execution %s failed", execution_id, exc_info=error)
            self._end(execution_id, ExecutionState.FAILED, failure)
        except Exception:  # the client that waits has to learn of whatever we did not foresee; the log has the rest
            _log.exception("query execution %s failed", execution_id)
            self._end(execution_id, ExecutionState.FAILED, INTERNAL)
        else:
            ended = self.executions.change(
                execution_id, lambda found: replace(done, state=ExecutionState.SUCCEEDED, completed_at_us=_now_us())
            )
            if ended is None:
                self._discard(execution)

    def _end(self, execution_id: str, state: ExecutionState, failure: Failure) -> None:
        self.executions.change(execution_id, lambda found: found.ended(state, _now_us(), failure))

    def _discard(self, execution: Execution) -> None:
        """Cancelled or given up by others while its result was written: nobody is to find that."""
        bucket, key = split_location(execution.output_location, "OutputLocation")
        with contextlib.suppress(FeatureStoreError):
            for name in (key, f"{key}.metadata"):
                self._buckets.delete(bucket, name)

    # answers

    def _answer(self, execution: Execution, stop: Stop) -> Execution:
        """Write the result; the execution with what is known of it."""
        request = execution.request
        if request.catalog.lower() != "awsdatacatalog":
            raise QueryInvalid(
                "CATALOG_NOT_FOUND", f"Catalog {request.catalog!r} does not exist; the one there is is AwsDataCatalog"
            )
        if _is_select(execution.type, request.query):
            return replanned(lambda: self._select(execution, stop))
        lines = self._command(statements.command(request.query, request.database, _now_us()))
        bucket, key = split_location(execution.output_location, "OutputLocation")
        self._buckets.put(bucket, key, [f"{line}\n".encode() for line in lines], content_type="text/plain")
        return replace(execution, rows=len(lines))

    def _select(self, execution: Execution, stop: Stop) -> Execution:
        begun_s = time.monotonic()
        request = execution.request
        translated = translate(request.query, request.database, parameters=request.parameters)
        self._refresh()
        relations, scanned_bytes = self._relations(translated.tables)
        left_s = self._limits.timeout_s - (time.monotonic() - begun_s)
        bucket, key = split_location(execution.output_location, "OutputLocation")
        written = Written()
        planned_s = time.monotonic()

        def answered(names: Sequence[TableName]) -> Relations:
            return relations

        with self._sandbox.stream(translated.sql, answered, timeout_s=left_s, settings=DIALECT_SETTINGS, stop=stop) as stream:
            columns = result_columns(stream)
            self._buckets.put(bucket, key, csv_chunks(stream, written), content_type="text/csv")
        self._buckets.put(bucket, f"{key}.metadata", [metadata_json(columns)], content_type="application/json")
        ended_s = time.monotonic()
        return replace(
            execution,
            planning_us=int((planned_s - begun_s) * 1_000_000),
            engine_us=int((ended_s - planned_s) * 1_000_000),
            scanned_bytes=scanned_bytes,
            rows=written.rows,
            columns=tuple(columns),
        )

    def _relations(self, refs: Sequence[TableRef]) -> tuple[Relations, int]:
        """The views of a statement's tables, the files behind them, and these files' size."""
        views: list[View] = []
        files: list[str] = []
        size = 0
        for place, ref in enumerate(refs):
            table = self.catalog.table(ref)
            if isinstance(table, GroupTable):
                sight, table_bytes = self._reader.history(table.group)
                sql, paths = table.sql(sight), list(sight.paths)
            else:
                paths, table_bytes = self._external_files(table)
                sql = table.sql(paths)
            views.append(View(SCHEMA, f"t{place}", sql))
            files += paths
            size += table_bytes
        return Relations(tuple(views), tuple(dict.fromkeys(files))), size

    def _external_files(self, table: ExternalTable) -> tuple[list[str], int]:
        keys: list[str] = []
        size, after = 0, ""
        try:
            while page := self._buckets.list(table.bucket, table.prefix, after=after):
                after = page[-1].key
                for found in page:
                    name = found.key.rpartition("/")[2]
                    if found.bytes and name and name[0] not in "_.":
                        keys.append(found.key)
                        size += found.bytes
                if len(keys) > FILES_MAX:
                    raise QueryInvalid("TOO_MANY_FILES", f"{table.location} has more than {FILES_MAX} files")
            return [str(path) for path in self._buckets.paths(table.bucket, keys)], size
        except NoSuchBucket:
            return [], 0
        except NoSuchKey as error:
            raise FileVanished("query") from error

    def _command(self, command: statements.Command) -> list[str]:
        """Carry out a statement that is no SELECT; the lines of its result."""
        match command:
            case statements.CreateTable(table, if_not_exists):
                self.catalog.require_database(table.database)
                ref = TableRef(table.database, table.name)
                if table.name in self.catalog.names(table.database) and self.tables.get(ref) is None and not if_not_exists:
                    raise QueryInvalid("TABLE_ALREADY_EXISTS", f"Table {table.database}.{table.name} is a feature group's")
                self.tables.create(table, if_not_exists=if_not_exists)
                return []
            case statements.DropTable(ref, if_exists):
                if not self.tables.drop(ref) and not if_exists:
                    if isinstance(self.catalog.table(ref), GroupTable):
                        raise QueryInvalid("NOT_SUPPORTED", f"{ref.name} is a feature group's table; delete the feature group")
                    raise QueryInvalid("TABLE_NOT_FOUND", f"Table {ref.database}.{ref.name} does not exist")
                return []
            case statements.CreateDatabase(name, if_not_exists):
                if name not in self.catalog.databases():
                    raise QueryInvalid("NOT_SUPPORTED", "databases are those that feature groups name in DataCatalogConfig")
                if not if_not_exists:
                    raise QueryInvalid("SCHEMA_ALREADY_EXISTS", f"Database {name} already exists")
                return []
            case statements.ShowDatabases(pattern):
                return _matching(self.catalog.databases(), pattern)
            case statements.ShowTables(database, pattern):
                return _matching(self.catalog.names(database), pattern)
            case statements.DescribeTable(ref, names_only):
                return self._described(ref, names_only)
            case statements.RepairTable(ref):
                self.catalog.table(ref)
                return []

    def _described(self, ref: TableRef, names_only: bool) -> list[str]:
        table = self.catalog.table(ref)
        partitions = table.partitions if isinstance(table, GroupTable) else ()
        columns = [*table.columns, *partitions]
        if names_only:
            return [column.name for column in columns]
        lines = [f"{column.name:<20}\t{column.type:<20}\t" for column in columns]
        if partitions:
            lines += ["", "# Partition Information", f"{'# col_name':<20}\t{'data_type':<20}\tcomment", ""]
            lines += [f"{column.name:<20}\t{column.type:<20}\t" for column in partitions]
        return lines


_NO_COLUMN: Final = re.compile(r'Column "(.+?)" referenced that exists in the SELECT|Referenced column "(.+?)" not found')
"""What the engine says of a column that is not there, in the first form because of a name that translation has given."""


def _is_select(kind: StatementType, query: str) -> bool:
    return kind is StatementType.DML or statements.words_of(query)[0] == "EXPLAIN"


def _matching(names: Sequence[str], pattern: str | None) -> list[str]:
    """Hive's patterns: `*` for any text, `|` between alternatives."""
    if pattern is None:
        return list(names)
    return [name for name in names if any(fnmatch.fnmatchcase(name, part.lower()) for part in pattern.split("|"))]


def _failure(error: QueryInvalid | FeatureStoreError) -> Failure:
    if isinstance(error, FeatureStoreError) and error.code == "InternalFailure":
        return INTERNAL
    message = str(error).partition("\n\nLINE ")[0].strip()[:REASON_CHARS_MAX]
    if found := _NO_COLUMN.search(message):
        return Failure(f"COLUMN_NOT_FOUND: Column '{found[1] or found[2]}' cannot be resolved", ErrorCategory.USER)
    if isinstance(error, StoreUnavailable):
        return Failure(f"SERVICE_UNAVAILABLE: {message}", ErrorCategory.SYSTEM, retryable=True)
    if isinstance(error, QueryFailed | QueryRefused):
        return Failure(f"{'NOT_SUPPORTED' if isinstance(error, QueryRefused) else 'QUERY_FAILED'}: {message}", ErrorCategory.USER)
    if isinstance(error, QueryStopped):
        return Failure("Query cancelled by user", ErrorCategory.USER)
    if isinstance(error, QueryError):
        return Failure(f"EXCEEDED_LIMIT: {message}", ErrorCategory.USER)
    return Failure(message, ErrorCategory.USER)


def _now_us() -> int:
    return time.time_ns() // 1000


RESULT_LINE: Final = ResultColumn("result", "string", 2147483647)
"""The one column of a `.txt` result."""
