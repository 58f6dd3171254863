"""The relay as a background worker: moves what the outbox holds to Kafka until it is stopped."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from featurestore.changelog.relay import LEASE_KIND, LEASE_S, RENEW_S
from featurestore.errors import FeatureStoreError
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)

IDLE_S: Final = 0.01
"""Pause when the outbox held nothing."""
RETRY_S_MAX: Final = 5.0
"""Longest pause between attempts while Kafka does not answer."""


class RelayWorker:
    """Relays its share of the shards in a thread of its own. Any number of processes may run one.

    A failure is logged and tried again: nothing is lost meanwhile, the outbox keeps what waits.
    """

    def __init__(self, store: FeatureStore) -> None:
        """
        Raises:
            SettingsInvalid: there is no Kafka in the settings.
        """
        self._store = store
        self._relay = store.open_relay()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="relay", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the step under way and give the shards back, then return."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        pause_s = 0.0
        failures = 0
        while not self._stop.wait(pause_s):
            try:
                moved = self._turn()
            except Exception as error:  # whatever it is, the outbox keeps what waits, and somebody has to try again
                self._relay.forget()
                failures += 1
                pause_s = min(IDLE_S * 2**failures, RETRY_S_MAX)
                expected = isinstance(error, FeatureStoreError)
                _log.error("can't relay, next attempt in %.1f s: %s", pause_s, error, exc_info=None if expected else error)
            else:
                if failures:
                    _log.info("relaying again")
                failures = 0
                pause_s = 0.0 if moved else IDLE_S
        self._relay.close()
        try:
            self._store.leases.release(LEASE_KIND, self._store.owner)
        except FeatureStoreError as error:
            _log.warning("the shards are free again in %.0f s: %s", LEASE_S, error)

    def _turn(self) -> int:
        """Work on our share until it is time to renew it; returns how many entries moved."""
        shards = self._store.leases.share(LEASE_KIND, self._store.owner, self._store.shards, LEASE_S)
        moved = 0
        deadline_s = time.monotonic() + RENEW_S
        while not self._stop.is_set() and time.monotonic() < deadline_s:
            step = 0
            for shard in sorted(shards):
                if self._stop.is_set():
                    break
                step += self._relay.relay(shard)
            moved += step
            if not step:
                self._stop.wait(IDLE_S)
        return moved
