"""The offline writer as a process beside others of its kind: each writes its share of the shards until it is stopped.

Shares come from leases of the registry and not from a consumer group of Kafka. The position lives with the table and racing
writers are harmless, so all that is wanted is that they seldom race; leases do that for any log, with the outbox alone as with
Kafka, and without rebalances that stop everybody.
"""

from __future__ import annotations

import logging
import threading
from typing import Final

from featurestore.errors import FeatureStoreError
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)

LEASE_KIND: Final = "offline"
LEASE_S: Final = 30.0
"""Longer than a flush takes, after which it is renewed; a writer that takes longer races with another, which is harmless."""
RETRY_S_MAX: Final = 30.0


class SharedOfflineWriter:
    """Writes its share every `flush_s` seconds, in a thread of its own. A failure is logged and tried again."""

    def __init__(self, store: FeatureStore, *, flush_s: float) -> None:
        self._store = store
        self._flush_s = flush_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="offline-writer", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the flush under way and give the shards back, then return."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        pause_s = min(self._flush_s, LEASE_S / 3)
        retry_s = pause_s
        wait_s = 0.0
        while not self._stop.wait(wait_s):
            try:
                shards = self._store.leases.share(LEASE_KIND, self._store.owner, self._store.shards, LEASE_S)
                drained = self._store.write_offline(shards)
            except Exception as error:  # whatever it is, the log keeps what waits, and somebody has to try again
                wait_s = retry_s = min(retry_s * 2, RETRY_S_MAX)
                expected = isinstance(error, FeatureStoreError)
                _log.error(
                    "the offline store can't be written, next attempt in %.1f s: %s",
                    wait_s,
                    error,
                    exc_info=None if expected else error,
                )
            else:
                wait_s = retry_s = pause_s
                if drained.quarantined:
                    _log.error("%d log entries can't be rows and are in quarantine", drained.quarantined)
                if drained.changes:
                    _log.debug("wrote %d changes in %d files", drained.changes, drained.files)
        try:
            self._store.leases.release(LEASE_KIND, self._store.owner)
        except FeatureStoreError as error:
            _log.warning("the shards are free again in %.0f s: %s", LEASE_S, error)
