"""The relay as a background worker: moves what the outbox holds to Kafka until it is stopped."""

from __future__ import annotations

import time
from typing import Final

from featurestore.changelog.relay import LEASE_KIND, LEASE_S, RENEW_S
from featurestore.store import FeatureStore
from ingest.background import Background, Retry, give_back

IDLE_S: Final = 0.01
"""Pause when the outbox held nothing."""
RETRY_S_MAX: Final = 5.0
"""Longest pause between attempts while Kafka does not answer."""


class RelayWorker(Background):
    """Relays its share of the shards. Any number of processes may run one.

    A failure loses nothing: the outbox keeps what waits.

    Raises:
        SettingsInvalid: there is no Kafka in the settings.
    """

    def __init__(self, store: FeatureStore) -> None:
        retry = Retry("can't relay", 2 * IDLE_S, RETRY_S_MAX, lambda _: self._relay.forget())
        super().__init__("relay", self._share, retry, ended=self._give_back)
        self._store = store
        self._relay = store.open_relay()

    def _share(self) -> float:
        """Work on our share until it is time to renew it."""
        shards = sorted(self._store.leases.share(LEASE_KIND, self._store.owner, self._store.shards, LEASE_S))
        deadline_s = time.monotonic() + RENEW_S
        while not self.is_stopping and time.monotonic() < deadline_s:
            if not sum(self._relay.relay(shard) for shard in shards if not self.is_stopping):
                self.pause(IDLE_S)
        return 0.0

    def _give_back(self) -> None:
        self._relay.close()
        give_back(self._store, LEASE_KIND, LEASE_S)
