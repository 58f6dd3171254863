"""The offline writer as a background worker: drains the outbox every few seconds until it is stopped."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

from featurestore.errors import FeatureStoreError
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)

RETRY_S_MAX: Final = 30.0
"""Longest pause between attempts while the offline store does not answer."""


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """What the worker last did.

    Attributes:
        flushed_at_s: seconds since 1970 of the last successful drain, or None before the first.
        error: message of the failure since then, or None.
    """

    flushed_at_s: float | None
    error: str | None


class OfflineWriterWorker:
    """Runs `store.flush` every `flush_s` seconds in a thread of its own. A failure is logged, kept and tried again."""

    def __init__(self, store: FeatureStore, *, flush_s: float) -> None:
        self._store = store
        self._flush_s = flush_s
        self._stop = threading.Event()
        self._status = WriterStatus(None, None)
        self._thread = threading.Thread(target=self._work, name="offline-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the drain under way, then return. What waits after that is drained when the store closes."""
        self._stop.set()
        self._thread.join()

    @property
    def status(self) -> WriterStatus:
        return self._status

    def _work(self) -> None:
        pause_s = self._flush_s
        while not self._stop.wait(pause_s):
            try:
                drained = self._store.flush()
            except Exception as error:  # whatever it is, the outbox keeps what waits, and somebody has to try again
                pause_s = min(max(pause_s, self._flush_s) * 2, RETRY_S_MAX)
                self._status = WriterStatus(self._status.flushed_at_s, str(error))
                expected = isinstance(error, FeatureStoreError)
                _log.error(
                    "the offline store can't be written, next attempt in %.0f s: %s",
                    pause_s,
                    error,
                    exc_info=None if expected else error,
                )
            else:
                pause_s = self._flush_s
                self._status = WriterStatus(time.time(), None)
                if drained.quarantined:
                    _log.error("%d log entries can't be rows and are in quarantine", drained.quarantined)
                if drained.changes:
                    _log.debug("wrote %d changes in %d files", drained.changes, drained.files)
