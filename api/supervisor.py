"""Several server processes behind one address: starts them, replaces those that end, and stops them all together.

uvicorn has a supervisor of its own; docs/decisions/0023-several-server-processes.md says what is different here.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from api.listener import refuse_connections, spread_connections
from api.server import ACCEPT_S, FAREWELL_S, SHUTDOWN_S
from api.server_process import decoded, encoded
from featurestore.errors import StoreUnavailable

_log: Final = logging.getLogger(__name__)

TURN_S: Final = 0.25
"""How often the processes are told whether the service should get traffic, if that has changed."""
END_S: Final = 5.0
"""How long a process may take to end once it has answered its last request, or has closed its channel."""
RECEIVE_BYTES: Final = 64 << 10
COMMAND: Final = (sys.executable, "-P", "-m", "api.server_process")
"""What a server process runs; its arguments are those of `api.server_process.main`. `-P`, since the folder that the service was
started in may have an `api` of somebody else."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How soon a process that ended is replaced, and how long one may take to end.

    Attributes:
        first_s, most_s: pause after one that ended early; it doubles from one such end to the next.
        steady_s: one that had accepted connections for so long has not ended early, and is replaced at once.
        failures_max: so many in a row that never accepted connections are the end of the service.
        stop_s: one that takes longer to stop is killed.
    """

    first_s: float = 0.5
    most_s: float = 8.0
    steady_s: float = 10.0
    failures_max: int = 5
    stop_s: float = ACCEPT_S + FAREWELL_S + SHUTDOWN_S + END_S


class _Place:
    """What there is one process of at a time.

    Attributes:
        number: from 1 on.
        process: the one that runs, or the last one.
        channel: to it; None when there is none.
        accepting: whether it has said that it accepts connections.
        problem: why it does not, in its own words.
        early: ends in a row that were early, see Pace; `failures`, those before any connection was accepted.
        start_at_s: when the next one is due, by the monotonic clock.
    """

    def __init__(self, number: int, listener: socket.socket) -> None:
        self.number = number
        self.listener = listener
        self.process: subprocess.Popen[bytes] | None = None
        self.channel: socket.socket | None = None
        self.accepting = False
        self.problem: str | None = None
        self.accepted_at_s: float | None = None
        self.early = 0
        self.failures = 0
        self.start_at_s = 0.0
        self._told: str | None = None
        self._unsent = b""
        self._received = b""

    def __str__(self) -> str:
        return f"server {self.number} ({self.process.pid if self.process else 'not started'})"

    def start(self, command: Sequence[str], environ: Mapping[str, str]) -> socket.socket:
        """Start a process; returns the channel to it.

        Raises:
            OSError: the system has no room for one.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                descriptors = (self.listener.fileno(), theirs.fileno())
                self.process = subprocess.Popen(
                    [*command, str(self.number), *map(str, descriptors)],
                    stdin=subprocess.DEVNULL,
                    env=environ,
                    pass_fds=descriptors,
                    process_group=0,  # Ctrl-C in a terminal is for the supervisor, who tells the others
                )
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self.channel, self.accepting, self.problem, self.accepted_at_s = ours, False, None, None
        self._told, self._unsent, self._received = None, b"", b""
        return ours

    def hear(self) -> bool:
        """Take what the process says; False when it has ended."""
        assert self.channel is not None
        try:
            data = self.channel.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return True
        except OSError:
            return False
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self.problem = decoded(line)
            self.accepting = self.problem is None
            if self.accepting:
                self.accepted_at_s = time.monotonic()
        return bool(data)

    def tell(self, reason: str | None) -> None:
        """Say whether the service should get traffic, unless that was said last. What does not fit now is sent later."""
        if self.channel is None:
            return
        if not self._unsent and reason != self._told:
            self._unsent = encoded(reason)
            self._told = reason
        if self._unsent:
            with contextlib.suppress(OSError):  # it is busy, or has ended
                self._unsent = self._unsent[self.channel.send(self._unsent) :]

    def signal(self, number: int) -> None:
        if self.process is not None and self.channel is not None:
            self.process.send_signal(number)

    def end(self) -> str:
        """Wait for the end of a process that has closed its channel; how it ended."""
        assert self.process is not None
        assert self.channel is not None
        self.channel.close()
        self.channel, self.accepting = None, False
        try:
            status = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait()
        return f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"


class Supervisor:
    """Runs a server process for each listening socket until SIGTERM or SIGINT.

    Args:
        listeners: as `api.listener.listening` gave them; closed when all processes have ended.
        environ: the environment of the processes, which holds their settings.
        ready: says why the service should get no traffic now, or None when it may.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        environ: Mapping[str, str],
        *,
        ready: Callable[[], str | None] = lambda: None,
        command: Sequence[str] = COMMAND,
        pace: Pace = Pace(),
    ) -> None:
        self._listeners = listeners
        # As this process finds its modules, so shall they.
        self._environ = {**environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
        self._ready = ready
        self._command = command
        self._pace = pace
        self._places = [_Place(number, listener) for number, listener in enumerate(listeners, 1)]
        self._selector = selectors.DefaultSelector()
        self._stopping = False
        self._hurried = False
        self._announced = False
        self._spread: list[int] = []

    def run(self, announce: Callable[[], None]) -> None:
        """Answer requests until told to stop; then requests under way are finished.

        Args:
            announce: called once, when all processes accept connections.

        Raises:
            StoreUnavailable: a process could not start: any the first time, or again and again the same later.
        """
        with self._selector, self._signals():
            try:
                while not self._stopping:
                    self._turn(announce)
            finally:
                self._stop()

    def _turn(self, announce: Callable[[], None]) -> None:
        now_s = time.monotonic()
        reason = self._ready()
        for place in self._places:
            if place.channel is None and place.start_at_s <= now_s:
                self._start(place)
            place.tell(reason)
        for place, how in self._heard(TURN_S):
            self._ended(place, how)
        accepting = [index for index, place in enumerate(self._places) if place.accepting]
        if accepting and accepting != self._spread:
            spread_connections(self._listeners, accepting)
            self._spread = accepting
        if len(accepting) == len(self._places) and not self._announced:
            self._announced = True
            announce()

    def _heard(self, wait_s: float) -> list[tuple[_Place, str]]:
        """Wait for what the processes say or for a signal; those of them that have ended, and how."""
        ended = []
        for key, _ in self._selector.select(wait_s):
            if not isinstance(key.data, _Place):
                key.data.recv(RECEIVE_BYTES)
                continue
            place, before = key.data, key.data.accepting
            if not place.hear():
                self._selector.unregister(key.fileobj)
                ended.append((place, place.end()))
            elif place.accepting > before:
                _log.info("%s accepts connections", place)
        return ended

    def _start(self, place: _Place) -> None:
        try:
            channel = place.start(self._command, self._environ)
        except OSError as error:
            place.problem = f"no process could be started: {error}"
            self._failed(place, place.problem)
        else:
            self._selector.register(channel, selectors.EVENT_READ, place)

    def _ended(self, place: _Place, how: str) -> None:
        since_s = place.accepted_at_s
        if since_s is None:
            self._failed(place, place.problem or f"it {how}; see the log")
        elif time.monotonic() - since_s >= self._pace.steady_s:
            place.early = place.failures = 0
            _log.error("%s %s and is replaced", place, how)
        else:
            place.failures = 0
            self._pause(place, how)

    def _failed(self, place: _Place, problem: str) -> None:
        """A process has ended before it accepted connections."""
        place.failures += 1
        if not self._announced or place.failures >= self._pace.failures_max:
            raise StoreUnavailable("serve", f"server process {place.number} can't start: {problem}")
        self._pause(place, f"can't start: {problem}")

    def _pause(self, place: _Place, how: str) -> None:
        pause_s = min(self._pace.first_s * 2**place.early, self._pace.most_s)
        place.early += 1
        place.start_at_s = time.monotonic() + pause_s
        _log.error("%s %s and is replaced in %.1f s", place, how, pause_s)

    def _stop(self) -> None:
        for listener in dict.fromkeys(self._listeners):
            refuse_connections(listener)
        for place in self._places:
            place.signal(signal.SIGTERM)
        told, deadline_s = False, time.monotonic() + self._pace.stop_s
        while any(place.channel for place in self._places):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                break
            for place, how in self._heard(left_s):
                _log.info("%s %s", place, how)
            if self._hurried and not told:
                told = True
                for place in self._places:
                    place.signal(signal.SIGINT)  # uvicorn takes it for the second Ctrl-C, and no longer waits for requests
        for place in self._places:
            if place.channel is not None:
                _log.error("%s did not stop within %.0f s and is killed", place, self._pace.stop_s)
                place.signal(signal.SIGKILL)
                place.end()
        for listener in self._listeners:
            listener.close()  # who has tried to connect meanwhile is refused now

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Notice signals to stop, and wake for them. Ctrl-C a second time is for not waiting any longer."""
        woken, waking = socket.socketpair()
        with woken, waking:
            for end in (woken, waking):
                end.setblocking(False)
            self._selector.register(woken, selectors.EVENT_READ, woken)

            def stop(number: int, frame: object) -> None:
                self._hurried = self._stopping and number == signal.SIGINT
                self._stopping = True
                with contextlib.suppress(OSError):  # as much as fits wakes
                    waking.send(b"\0")

            handlers = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for number, handler in handlers.items():
                    signal.signal(number, handler)
