"""The offline writer in the background: alone, or as one of several processes that share the shards.

Shares come from leases of the registry and not from a consumer group of Kafka. The position lives with the table and racing
writers are harmless, so all that is wanted is that they seldom race; leases do that for any log, with the outbox alone as with
Kafka, and without rebalances that stop everybody.
"""

from __future__ import annotations

import importlib
import logging
import time
from dataclasses import dataclass
from typing import Final

from featurestore.offline.writer import Drained
from featurestore.store import FeatureStore
from ingest.background import Background, Retry, give_back

_log: Final = logging.getLogger(__name__)

LEASE_KIND: Final = "offline"
LEASE_S: Final = 30.0
"""Longer than a step takes, as it is renewed between flushes; a writer that takes longer races, which is harmless."""
RETRY_S_MAX: Final = 30.0
"""Longest pause between attempts while the offline store does not answer."""
COMPLAINT: Final = "the offline store can't be written"


@dataclass(frozen=True, slots=True)
class WriterStatus:
    """What the worker last did.

    Attributes:
        flushed_at_s: seconds since 1970 of the last successful drain, or None before the first.
        error: message of the failure since then, or None.
    """

    flushed_at_s: float | None
    error: str | None


class OfflineWriterWorker(Background):
    """Runs `store.flush` every `flush_s` seconds. What waits when it is stopped is drained when the store closes."""

    def __init__(self, store: FeatureStore, *, flush_s: float) -> None:
        retry = Retry(COMPLAINT, 2 * flush_s, RETRY_S_MAX, self._failed)
        super().__init__("offline-writer", self._flush, retry, pause_s=flush_s)
        self._store = store
        self._flush_s = flush_s
        self.status = WriterStatus(None, None)

    def start(self) -> None:
        importlib.import_module("pandas")  # Arrow does it with the first array it makes, and requests would wait meanwhile
        super().start()

    def _flush(self) -> float:
        drained = self._store.flush()
        self.status = WriterStatus(time.time(), None)
        _tell(drained)
        return self._flush_s

    def _failed(self, error: Exception) -> None:
        self.status = WriterStatus(self.status.flushed_at_s, str(error))


class SharedOfflineWriter(Background):
    """Writes its share of the shards every `flush_s` seconds. Any number of processes may run one."""

    def __init__(self, store: FeatureStore, *, flush_s: float) -> None:
        pause_s = min(flush_s, LEASE_S / 3)
        super().__init__("offline-writer", self._write, Retry(COMPLAINT, 2 * pause_s, RETRY_S_MAX), ended=self._give_back)
        self._store = store
        self._flush_s = pause_s

    def _write(self) -> float:
        shards = self._store.leases.share(LEASE_KIND, self._store.owner, self._store.shards, LEASE_S)
        _tell(self._store.write_offline(shards))
        return self._flush_s

    def _give_back(self) -> None:
        give_back(self._store, LEASE_KIND, LEASE_S)


def _tell(drained: Drained) -> None:
    if drained.quarantined:
        _log.error("%d log entries can't be rows and are in quarantine", drained.quarantined)
    if drained.changes:
        _log.debug("wrote %d changes in %d files", drained.changes, drained.files)
