"""SQL from users: one SELECT, in a process of its own that can be killed, over nothing but the views it was given.

The fences, outermost first:

1. A child process per statement, with an empty environment, killed at the deadline whatever it is doing: the engine's
   own limits are cooperative, and `length(repeat('a', 2000000000))` ran for 41 seconds under a limit of 1.5.
2. The operating system (`os_limits`): no network, no file but the listed ones and a private directory for temporary
   ones, no program, bounded memory, CPU time and file size. What this machine grants of it, `Sandbox.fences` says.
3. The gate (`sandbox_child.Gate`): one SELECT, made of listed kinds of nodes and listed functions, over named views.
4. The engine's own locks: an exact list of readable files, external access off, configuration locked.

The child is not trusted: what it sends is bounded before it is read and checked before it is used.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import math
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

import msgspec
import pyarrow as pa

from featurestore.decoding import decode_json
from featurestore.errors import (
    FileVanished,
    QueryError,
    QueryFailed,
    QueryRefused,
    QueryStopped,
    QueryTimeout,
    QueryTooLarge,
    StoreUnavailable,
)
from featurestore.query import sandbox_child as child
from featurestore.query.replan import replanned
from featurestore.temporary import PrivateDirectory

_log = logging.getLogger(__name__)

STATEMENT_BYTES_MAX: Final = 1 << 20
"""Longest statement, UTF-8."""

TABLES_MAX: Final = 100
"""Tables of one statement."""

CONTROL_BYTES_MAX: Final = 4 << 20
"""Longest frame that is not Arrow: the names of the tables a statement of STATEMENT_BYTES_MAX can hold, escaped."""

PIPE_BYTES: Final = 1 << 20
"""What is asked for the pipe that results come through: 164 MiB of them in 0.59 s, and in 0.75 s with the usual 64 KiB."""

STDERR_BYTES_MAX: Final = 64 << 10
"""What is kept of a child's standard error; the rest is read and dropped."""

CLOSE_WAIT_S: Final = 10.0
"""How long `close` waits for statements under way, whose children are killed by then, to leave."""

START_ATTEMPTS: Final = 2
"""A spare child can have been killed while it waited (by the kernel when memory was short); a fresh one is tried then."""

NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
"""What a schema or feature group can be called. Anything else would be taken for a file name by the engine."""

_BOOT: Final = """\
import gc, sys, types
gc.disable()
sys.modules["numpy"] = None
for name, path in (("featurestore", sys.argv[1]), ("featurestore.query", sys.argv[2])):
    sys.modules[name] = package = types.ModuleType(name)
    package.__path__ = [path]
from featurestore.query import sandbox_child
sandbox_child.main(sys.argv[3])
"""
"""The child's program. It makes the packages by hand, because their own `__init__` would import the whole library (and with
`-I` they need not be installed). numpy is hidden from DuckDB and pyarrow, which take it when it is there: 45 ms, and
threads of its own that no fence put up later would hold. Garbage is left to the process's early end: 8 ms."""


@dataclass(frozen=True, slots=True)
class View:
    """One relation a statement may read.

    Attributes:
        schema: `history` or `latest`, or another that a translated statement names; unqualified names mean `history`.
        name: the feature group, hyphens and capitals allowed.
        sql: its definition. Trusted: it comes from our own planner.
    """

    schema: str
    name: str
    sql: str


@dataclass(frozen=True, slots=True)
class Relations:
    """The answer to the names of a statement.

    Attributes:
        views: one for each name. Different views of names that differ in case alone can't stand in one statement, since
            the engine ignores case; the same view may come twice.
        files: absolute paths of the files that may be opened, spelled as in the views.
    """

    views: tuple[View, ...]
    files: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class TableName:
    """A table as a statement names it, in the user's spelling; without a schema it means `history`."""

    schema: str | None
    name: str


@dataclass(frozen=True, slots=True)
class SandboxLimits:
    """What one statement may take. The defaults suit two cores.

    Attributes:
        timeout_s: from the call to the last row, waiting for a child and for `resolve` included.
        rows_max: rows of the result.
        bytes_max: Arrow bytes of the result; the caller's process holds them all.
        memory_bytes: the engine's memory_limit. What it does not count ends 75 % and 512 MiB above (Linux).
        temp_bytes: what the engine may spill to disk.
        threads: worker threads of the engine.
    """

    timeout_s: float = 30.0
    rows_max: int = 1_000_000
    bytes_max: int = 1 << 30
    memory_bytes: int = 2 << 30
    temp_bytes: int = 4 << 30
    threads: int = 2


Resolve = Callable[[Sequence[TableName]], Relations]
Settings = Sequence[tuple[str, bool]]


class Stop:
    """Ends one statement from another thread, also one that has not begun."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kill: Callable[[], None] | None = None
        self.wanted = False

    def stop(self) -> None:
        """The statement raises QueryStopped, now or when it begins. Repeating it is harmless."""
        with self._lock:
            self.wanted = True
            if self._kill is not None:
                self._kill()

    @contextlib.contextmanager
    def ending(self, kill: Callable[[], None]) -> Iterator[None]:
        """Within, `stop` calls `kill`; at once if it has been called."""
        with self._lock:
            self._kill = kill
            if self.wanted:
                kill()
        try:
            yield
        finally:
            with self._lock:
                self._kill = None


class ResultStream:
    """The rows of one statement as they come.

    Attributes:
        schema: of the batches, as Arrow has it.
        engine_types: the engine's own names of the columns' types.
        batches: to be taken once, in order, while the statement's context is open. Raises what `Sandbox.run` raises.
    """

    def __init__(self, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
        sent = (schema.metadata or {}).get(child.ENGINE_TYPES, b"[]")
        self.engine_types = tuple(_decoded(pa.py_buffer(sent), list[str]))
        if len(self.engine_types) != len(schema):
            raise QueryFailed("the query process sent something that can't be read")
        self.schema = schema.remove_metadata()
        self.batches = batches


_T = TypeVar("_T")


class Sandbox:
    """Runs statements, each in a child of its own, and keeps one spare child started ahead.

    Safe to use from several threads. Nothing is started or written before the first statement. How many run at a time is
    the caller's to bound: each takes up to `memory_bytes` and `threads`.
    """

    def __init__(self, limits: SandboxLimits, temp_root: Path) -> None:
        """`temp_root` holds temporary files; it is made when missing and may be shared with other processes."""
        self._limits = limits
        self._temp_root = temp_root
        self._directory: PrivateDirectory | None = None
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)
        self._closed = False
        self._spare: Future[_Child] | None = None
        self._running: set[_Child] = set()
        # One thread, as long-lived as the sandbox: the kernel ends a child together with the thread that started it.
        self._starter = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sandbox-starter")

    def run(self, statement: str, resolve: Resolve, *, timeout_s: float | None = None) -> pa.Table:
        """Answer one statement.

        Args:
            statement: one SELECT (DESCRIBE and SUMMARIZE count as such), or EXPLAIN of one without ANALYZE.
            resolve: called in this thread with the tables the statement names, if it names any; these and no others can be
                read. Called again, with all of them, when a file of its answer is gone before it was read (`replanned`).
                What else it raises is passed on unchanged.
            timeout_s: a deadline other than that of the limits.

        Returns:
            The whole result, columns in the statement's order, typed also when it has no rows. TIMESTAMP WITH TIME ZONE
            arrives as `timestamp[us, tz=UTC]`.

        Raises:
            QueryRefused: it is something else than that, or names a table that `resolve` did not answer.
            QueryFailed: the engine rejected it or gave up, or its process hit a limit of the operating system.
            QueryTimeout: the deadline passed; the process was killed.
            QueryTooLarge: the result passes `rows_max` or `bytes_max`; nothing of it is returned.
            FileVanished: again and again a data file has gone since `resolve`.
            StoreUnavailable: no child could be started, or the sandbox was closed.
        """
        deadline = _Deadline(self._limits.timeout_s if timeout_s is None else timeout_s)
        _require_statement(statement)
        return replanned(lambda: self._answer(statement, resolve, deadline))

    @contextlib.contextmanager
    def stream(
        self,
        statement: str,
        resolve: Resolve,
        *,
        timeout_s: float,
        settings: Settings = (),
        stop: Stop | None = None,
    ) -> Iterator[ResultStream]:
        """Answer one statement batch by batch, without an end to its rows: neither this process nor the child holds them all.

        Not begun again when a file is gone: the caller does that, as it knows what has become of the batches it took.

        Args:
            statement, resolve: as for `run`.
            timeout_s: from the call to the last batch, what the caller does between them included.
            settings: of the engine, by name; what the statement's dialect needs. Trusted, as views are.
            stop: ends it from another thread.

        Raises: here and while batches are taken, as `run` apart from QueryTooLarge, which one batch alone can be; and
            QueryStopped: `stop` was called.
        """
        deadline = _Deadline(timeout_s)
        _require_statement(statement)
        with self._child(deadline) as running, (stop or Stop()).ending(running.kill):
            try:
                yield _converse(running, statement, resolve, self._limits, deadline, settings).stream()
            except _Ended as ended:
                self._refuse_closed()
                if stop is not None and stop.wanted:
                    raise QueryStopped from ended
                raise QueryFailed(running.explain_end()) from ended

    def _answer(self, statement: str, resolve: Resolve, deadline: _Deadline) -> pa.Table:
        with self._child(deadline) as running:
            try:
                return _converse(running, statement, resolve, self._limits, deadline).table()
            except _Ended as ended:
                self._refuse_closed()
                raise QueryFailed(running.explain_end()) from ended

    def fences(self) -> list[str]:
        """What holds a statement on this machine, as reported by a child around which it stands.

        Raises:
            StoreUnavailable: no child could be started.
        """
        with self._child(_Deadline(self._limits.timeout_s)) as idle:
            return ["child process, killed at the deadline", *idle.fences, "statement gate", "engine locks"]

    def close(self) -> None:
        """Kill the children and remove their files. Statements under way raise StoreUnavailable. Repeating it is harmless."""
        with self._lock:
            self._closed = True
            spare, self._spare = self._spare, None
            for running in self._running:
                running.kill()
            self._left.wait_for(lambda: not self._running, timeout=CLOSE_WAIT_S)
        if spare is not None:
            spare.add_done_callback(_end_unclaimed)
        self._starter.shutdown()
        if self._directory is not None:
            self._directory.remove()
            self._directory = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    @contextlib.contextmanager
    def _child(self, deadline: _Deadline) -> Iterator[_Child]:
        """A child that waits for its statement; ended on leaving."""
        taken = self._take(deadline)
        try:
            yield taken
        finally:
            self._end(taken)

    def _take(self, deadline: _Deadline) -> _Child:
        for _ in range(START_ATTEMPTS):
            taken = self._take_started(deadline)
            try:
                taken.greet(deadline)
                self._start_spare()
            except _Ended:
                reason = taken.explain_end()
                self._end(taken)
                self._refuse_closed()
            except BaseException:
                self._end(taken)
                raise
            else:
                return taken
        raise StoreUnavailable("query", reason)

    def _take_started(self, deadline: _Deadline) -> _Child:
        left_s = deadline.left_s()
        with self._lock:
            self._refuse_closed()
            starting, self._spare = self._spare or self._starter.submit(self._start), None
        try:
            taken = starting.result(timeout=left_s)
        except BaseException as error:
            # Whatever keeps us from waiting for it, the child may yet come.
            starting.add_done_callback(_end_unclaimed)
            if isinstance(error, TimeoutError):
                raise deadline.passed() from None
            if isinstance(error, OSError):
                raise StoreUnavailable("query", f"no process could be started: {error}") from error
            raise
        with self._lock:
            self._running.add(taken)
            if self._closed:
                taken.kill()
        return taken

    def _start_spare(self) -> None:
        with self._lock:
            if self._spare is None and not self._closed:
                self._spare = self._starter.submit(self._start)

    def _start(self) -> _Child:
        """On the starter's thread only."""
        if self._directory is None:
            self._directory = PrivateDirectory(self._temp_root, "sandbox-")
        return _Child(Path(tempfile.mkdtemp(dir=self._directory.path)))

    def _end(self, taken: _Child) -> None:
        taken.end()
        with self._lock:
            self._running.discard(taken)
            self._left.notify_all()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise StoreUnavailable("query", "the sandbox is closed")


def _end_unclaimed(starting: Future[_Child]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().end()


def _require_statement(statement: str) -> None:
    try:
        size = len(statement.encode())
    except UnicodeEncodeError:
        raise QueryRefused("the statement is not valid Unicode") from None
    if size > STATEMENT_BYTES_MAX:
        raise QueryRefused(f"the statement has {size} bytes; at most {STATEMENT_BYTES_MAX} are allowed")


def _converse(
    running: _Child,
    statement: str,
    resolve: Resolve,
    limits: SandboxLimits,
    deadline: _Deadline,
    settings: Settings = (),
) -> _Result:
    """Bring the child to the point where rows come."""
    asked = {
        "text": statement,
        "limits": {
            "timeout_s": deadline.left_s(),
            "memory_bytes": limits.memory_bytes,
            "temp_bytes": limits.temp_bytes,
            "threads": limits.threads,
        },
    }
    running.send(child.STATEMENT, asked, deadline)
    result = _Result(running, limits, deadline)
    names = [TableName(schema, name) for schema, name in result.tables()]
    if len(names) > TABLES_MAX:
        raise QueryRefused(f"the statement reads {len(names)} tables; at most {TABLES_MAX} are allowed")
    for name in names:
        if not NAME.fullmatch(name.name) or not NAME.fullmatch(name.schema or child.DEFAULT_SCHEMA):
            raise QueryRefused(f"{_spelled(name)!r} can't be the name of a feature group; {child.ALLOWED}")
    relations = resolve(names) if names else Relations((), ())
    answer = {"views": _answered(names, relations), "files": relations.files, "settings": settings}
    running.send(child.RELATIONS, answer, deadline)
    result.files = relations.files
    return result


def _answered(names: Sequence[TableName], relations: Relations) -> list[tuple[str, str, str]]:
    """The views to make, each once. Every name has one: what has none could mean a table of the engine's."""
    views: dict[tuple[str, str], View] = {}
    for view in relations.views:
        if (other := views.setdefault((view.schema.lower(), view.name.lower()), view)) != view:
            raise QueryRefused(f"{view.name!r} and {other.name!r} differ in case alone; query them one at a time")
    for name in names:
        if ((name.schema or child.DEFAULT_SCHEMA).lower(), name.name.lower()) not in views:
            raise QueryRefused(f"{_spelled(name)!r} is not a feature group that this statement may read")
    return [(view.schema, view.name, view.sql) for view in views.values()]


def _spelled(name: TableName) -> str:
    return name.name if name.schema is None else f"{name.schema}.{name.name}"


class _Deadline:
    """A point in time after which a statement may not go on."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._at_s = time.monotonic() + timeout_s

    def left_s(self) -> float:
        """Seconds left, more than 0.

        Raises:
            QueryTimeout: none are.
        """
        left_s = self._at_s - time.monotonic()
        if left_s <= 0:
            raise self.passed()
        return left_s

    def passed(self) -> QueryTimeout:
        return QueryTimeout(self._timeout_s)


class _Ended(Exception):
    """The child closed its end before it was done."""


class _Child:
    """A process that answers one statement, and the pipes to it."""

    def __init__(self, directory: Path) -> None:
        """Start it; `directory` is its own and goes with it.

        Raises:
            OSError: it could not be started.
        """
        self.fences: list[str] = []
        self._directory = directory
        self._stderr = bytearray()
        program = Path(child.__file__)
        arguments = [sys.executable, "-I", "-c", _BOOT, str(program.parents[1]), str(program.parent), str(directory)]
        try:
            self._process = subprocess.Popen(
                arguments,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=directory,
                env=_environment(directory),
                # A signal that the terminal sends to the service is the service's to handle.
                start_new_session=True,
            )
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        pipes = (self._process.stdin, self._process.stdout, self._process.stderr)
        self._stdin, self._stdout, self._stderr_pipe = (pipe.fileno() for pipe in pipes if pipe is not None)
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._stdout, select.POLLIN)
        self._writable.register(self._stdin, select.POLLOUT)
        for pipe in (self._stdin, self._stdout, self._stderr_pipe):
            os.set_blocking(pipe, False)
        if hasattr(fcntl, "F_SETPIPE_SZ"):
            # An unprivileged user's pipes may be bounded to less than is asked for.
            with contextlib.suppress(OSError):
                fcntl.fcntl(self._stdout, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        for waiting in (self._readable, self._writable):
            waiting.register(self._stderr_pipe, select.POLLIN)

    def greet(self, deadline: _Deadline) -> None:
        """Wait until it is ready.

        Raises:
            _Ended: it did not get there, or has died since.
        """
        kind, payload = self.receive(deadline, 0)
        if kind != child.HELLO or self._process.poll() is not None:
            raise _Ended
        self.fences = _decoded(payload, list[str])

    def send(self, kind: bytes, message: object, deadline: _Deadline) -> None:
        payload = msgspec.json.encode(message)
        view = memoryview(child.HEADER.pack(kind, len(payload)) + payload)
        while view:
            try:
                view = view[os.write(self._stdin, view) :]
            except BlockingIOError:
                self._wait(self._writable, deadline)
            except BrokenPipeError:
                raise _Ended from None

    def receive(self, deadline: _Deadline, arrow_bytes_max: int) -> tuple[bytes, pa.Buffer]:
        """The next frame.

        Raises:
            _Ended: there is none.
            OverflowError: it is an ARROW frame longer than that.
        """
        header = bytearray(child.HEADER.size)
        self._fill(memoryview(header), deadline)
        kind, length = child.HEADER.unpack(header)
        if kind == child.ARROW and length > arrow_bytes_max:
            raise OverflowError
        if kind != child.ARROW and length > CONTROL_BYTES_MAX:
            raise QueryFailed("the query process sent more than it may")
        payload = bytearray(length)
        self._fill(memoryview(payload), deadline)
        return kind, pa.py_buffer(payload)

    def _fill(self, view: memoryview, deadline: _Deadline) -> None:
        while view:
            deadline.left_s()
            try:
                count = os.readv(self._stdout, [view])
            except BlockingIOError:
                self._wait(self._readable, deadline)
                continue
            if count == 0:
                raise _Ended
            view = view[count:]

    def _wait(self, waiting: select.poll, deadline: _Deadline) -> None:
        """Until the pipe is ready or its other end closed; what the child says on standard error is taken in meanwhile."""
        while True:
            ready = waiting.poll(math.ceil(deadline.left_s() * 1000))
            if any(pipe == self._stderr_pipe for pipe, _ in ready) and not self._drain_stderr():
                waiting.unregister(self._stderr_pipe)
            if any(pipe != self._stderr_pipe for pipe, _ in ready):
                return

    def _drain_stderr(self) -> bool:
        """Take in what is there, as much as a pipe holds; whether more may come."""
        try:
            piece = os.read(self._stderr_pipe, STDERR_BYTES_MAX)
        except BlockingIOError:
            return True
        self._stderr += piece[: STDERR_BYTES_MAX - len(self._stderr)]
        return bool(piece)

    def kill(self) -> None:
        self._process.kill()

    def explain_end(self) -> str:
        """Why the process is no more. It has closed its pipes: should it not have ended, it is killed."""
        self.kill()
        status = self._process.wait()
        if status == -signal.SIGXCPU:
            return "the query used up its CPU time"
        if status == -signal.SIGKILL:
            return "the query process was killed, most likely because the machine ran out of memory"
        if status < 0:
            return f"the query process crashed ({signal.strsignal(-status)}), most likely because its memory is limited"
        return f"the query process ended with status {status}"

    def end(self) -> None:
        """Kill the process if it still runs, pass on what it left on standard error, remove its files."""
        self.kill()
        self._process.wait()
        self._drain_stderr()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()
        shutil.rmtree(self._directory, ignore_errors=True)
        if self._stderr:
            _log.warning("query process %d: %s", self._process.pid, self._stderr.decode(errors="replace").strip())


def _environment(directory: Path) -> dict[str, str]:
    """Nothing of ours but where the dynamic linker looks, without which some interpreters don't start."""
    environment = {
        "HOME": str(directory),
        "TMPDIR": str(directory),
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        # Every thread of libc's allocator would reserve 64 MiB of the address space otherwise.
        "MALLOC_ARENA_MAX": "2",
        # pyarrow's allocators start a thread on import, which Landlock, put up later, would not hold.
        "ARROW_DEFAULT_MEMORY_POOL": "system",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
    }
    linker = {"LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH"}
    return environment | {name: os.environ[name] for name in linker & os.environ.keys()}


def _decoded(payload: pa.Buffer, kind: type[_T]) -> _T:
    try:
        return decode_json(memoryview(payload), kind)
    except msgspec.MsgspecError as error:
        raise QueryFailed("the query process sent something that can't be read") from error


class _Failure(msgspec.Struct):
    kind: str
    message: str


class _Result:
    """What the child sends once it has its statement; as a file, the Arrow stream in it.

    A read is answered from within one frame without copying, since a frame holds whole messages; a read beyond its end is
    answered short, which pyarrow reports as a broken stream.
    """

    closed = False

    def __init__(self, running: _Child, limits: SandboxLimits, deadline: _Deadline) -> None:
        self._running = running
        self._limits = limits
        self._deadline = deadline
        self.files: tuple[str, ...] = ()
        """Those that the statement reads."""
        self._bytes_left = limits.bytes_max
        self._frame = pa.py_buffer(b"")

    def tables(self) -> list[tuple[str | None, str]]:
        """The names of the statement, each once."""
        return _decoded(self._receive(child.TABLES), list[tuple[str | None, str]])

    def table(self) -> pa.Table:
        """All rows, within the limits of a result."""
        stream = self.stream(whole=True)
        rows = 0
        batches = []
        for batch in stream.batches:
            rows += batch.num_rows
            if rows > self._limits.rows_max:
                raise QueryTooLarge("rows", self._limits.rows_max)
            batches.append(batch)
        return pa.Table.from_batches(batches, stream.schema)

    def stream(self, *, whole: bool = False) -> ResultStream:
        """The rows as they come. `bytes_max` is the limit of each batch or, if `whole`, of all together."""
        with _unreadable():
            reader = pa.ipc.open_stream(self)
        return ResultStream(reader.schema, self._batches(reader, whole))

    def _batches(self, reader: pa.RecordBatchStreamReader, whole: bool) -> Iterator[pa.RecordBatch]:
        while True:
            if not whole:
                self._bytes_left = self._limits.bytes_max
            with _unreadable():
                try:
                    batch = reader.read_next_batch()
                except StopIteration:
                    self._receive(child.DONE)
                    return
                # Offsets and text that point elsewhere would be read out of bounds by whoever uses the table.
                batch.validate(full=True)
            yield batch.replace_schema_metadata(None)

    def read(self, size: int) -> pa.Buffer:
        """For pyarrow: the next bytes of the Arrow stream."""
        if not self._frame.size:
            self._frame = self._receive(child.ARROW)
            self._bytes_left -= self._frame.size
        piece = self._frame.slice(0, min(size, self._frame.size))
        self._frame = self._frame.slice(piece.size)
        return piece

    def readable(self) -> bool:
        return True

    def _receive(self, kind: bytes) -> pa.Buffer:
        try:
            found, payload = self._running.receive(self._deadline, self._bytes_left)
        except OverflowError:
            raise QueryTooLarge("bytes", self._limits.bytes_max) from None
        if found == child.FAILURE:
            raise self._failed(_decoded(payload, _Failure))
        if found != kind:
            raise QueryFailed(f"the query process sent {found!r} in place of {kind!r}")
        return payload

    def _failed(self, failure: _Failure) -> QueryError | StoreUnavailable:
        if failure.kind == child.REFUSED:
            return QueryRefused(failure.message)
        if failure.kind == child.LATE:
            return self._deadline.passed()
        if not all(map(os.path.exists, self.files)):
            return FileVanished("query")
        if failure.kind == child.UNREADABLE:
            # The message is about our own SQL: parts of a path can be left of it that `_without_paths` doesn't know.
            _log.error("a feature group can't be read by SQL: %s", failure.message)
            return QueryFailed("a feature group that the query names can't be read")
        return QueryFailed(_without_paths(failure.message, self.files))


@contextlib.contextmanager
def _unreadable() -> Iterator[None]:
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise QueryFailed(f"the query process sent something that can't be read; cast unusual types ({error})") from error


def _without_paths(message: str, files: Sequence[str]) -> str:
    """The engine names files in its messages; where the store keeps them is nobody's business."""
    for file in files:
        message = message.replace(file, "<file>").replace(os.path.basename(file), "<file>")
    directories = {str(parent) for directory in set(map(os.path.dirname, files)) for parent in Path(directory, "x").parents}
    for directory in sorted(directories - {"/"}, key=len, reverse=True):
        message = re.sub(rf"{re.escape(directory)}(?![\w.-])", "<directory>", message)
    return message
