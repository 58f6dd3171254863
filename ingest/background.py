"""What every background worker is: a thread that takes one turn after the other until it is stopped."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from featurestore.errors import FeatureStoreError
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)


def _nothing(*_: object) -> None:
    """Nothing to do."""


@dataclass(frozen=True, slots=True)
class Retry:
    """What becomes of a turn that fails: it is logged and taken again, and nothing else.

    Attributes:
        complaint: how the log message begins.
        first_s, most_s: the pause after a failure, seconds; it doubles from one failure to the next.
        failed: called with the error, before the pause.
    """

    complaint: str
    first_s: float
    most_s: float
    failed: Callable[[Exception], None] = field(default=_nothing)


class Background:
    """A thread of its own.

    Args:
        turn: does some work and returns how long to pause, seconds. What it works on must stay where it is when it fails.
        pause_s: before the first turn.
        ended: called once, in the thread, after the last turn.
    """

    def __init__(
        self, name: str, turn: Callable[[], float], retry: Retry, *, pause_s: float = 0.0, ended: Callable[[], None] = _nothing
    ) -> None:
        self._turn = turn
        self._retry = retry
        self._pause_s = pause_s
        self._ended = ended
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the turn under way, then return."""
        self._stop.set()
        self._thread.join()

    @property
    def is_stopping(self) -> bool:
        return self._stop.is_set()

    def pause(self, pause_s: float) -> None:
        """For a turn: wait, but no longer than until it is to stop."""
        self._stop.wait(pause_s)

    def _work(self) -> None:
        pause_s, failures = self._pause_s, 0
        while not self._stop.wait(pause_s):
            try:
                pause_s = self._turn()
            except Exception as error:  # whatever it is, what was to be done is still there, and somebody has to try again
                pause_s = min(self._retry.first_s * 2**failures, self._retry.most_s)
                failures += 1
                self._retry.failed(error)
                expected = isinstance(error, FeatureStoreError)
                _log.error(
                    "%s, next attempt in %.1f s: %s", self._retry.complaint, pause_s, error, exc_info=None if expected else error
                )
            else:
                if failures:
                    _log.info("no longer: %s", self._retry.complaint)
                failures = 0
        self._ended()


def give_back(store: FeatureStore, kind: str, lease_s: float) -> None:
    """Release what this process holds of a kind; if that fails, it is free when the lease ends."""
    try:
        store.leases.release(kind, store.owner)
    except FeatureStoreError as error:
        _log.warning("what this process had of %s is free in %.0f s: %s", kind, lease_s, error)
