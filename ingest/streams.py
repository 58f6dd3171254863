"""Streaming ingestion in the background: reads the topics of all running streams until it is stopped.

Each stream has a thread of its own. Partitions of a topic are shared among processes by leases; a message is written once even
if two read it, see `OnlineStore.apply_from`. A partition's offset is committed after its messages are written and its dead
letters acknowledged, so a process that dies repeats some, which changes nothing but the dead letters.
"""

from __future__ import annotations

import logging
import time
from typing import Final

from featurestore.model.stream import Stream, StreamState
from featurestore.store import FeatureStore
from ingest.background import Background, Retry, give_back
from ingest.user_topic import UserTopic

_log: Final = logging.getLogger(__name__)

LOOK_S: Final = 1.0
"""How often streams that were added, paused or removed are looked for."""
LEASE_S: Final = 10.0
RENEW_S: Final = LEASE_S / 4
RETRY_S: Final = 0.2
RETRY_S_MAX: Final = 10.0


def lease_kind(stream: Stream) -> str:
    """Of the leases of a stream's partitions."""
    return f"stream-{stream.stream_id}-{stream.epoch}"


class StreamWorker(Background):
    """Runs every running stream of a store. Any number of processes may run one."""

    def __init__(self, store: FeatureStore) -> None:
        super().__init__("streams", self._look, Retry("can't list the streams", RETRY_S, RETRY_S_MAX), ended=self._end)
        self._store = store
        self._running: dict[str, _StreamThread] = {}

    def _look(self) -> float:
        """Start and stop threads as the streams that are running now want it."""
        wanted = {stream.name: stream for stream in self._store.streams() if stream.state is StreamState.RUNNING}
        for name, thread in list(self._running.items()):
            if wanted.get(name) != thread.stream:
                self._running.pop(name).stop()
                _log.info("stream %s has stopped", name)
        for name in wanted.keys() - self._running.keys():
            _log.info("stream %s begins to read topic %s", name, wanted[name].topic)
            self._running[name] = _StreamThread(self._store, wanted[name])
            self._running[name].start()
        return LOOK_S

    def _end(self) -> None:
        for thread in self._running.values():
            thread.stop()


class _StreamThread(Background):
    """One stream. A failure is tried again from what was committed."""

    def __init__(self, store: FeatureStore, stream: Stream) -> None:
        retry = Retry(f"stream {stream.name} stands still", RETRY_S, RETRY_S_MAX, lambda _: self._topic.rewind())
        super().__init__(f"stream-{stream.name}", self._share, retry, ended=self._give_back)
        self.stream = stream
        self._store = store
        self._topic = UserTopic(store.require_kafka(), stream)

    def _share(self) -> float:
        """Work on our share of the partitions until it is time to renew it."""
        partitions = self._topic.partitions()
        share = self._store.leases.share(lease_kind(self.stream), self._store.owner, partitions, LEASE_S)
        self._topic.assign(share)
        deadline_s = time.monotonic() + RENEW_S
        while not self.is_stopping and time.monotonic() < deadline_s:
            if not share:
                return RENEW_S
            for partition, messages in self._topic.poll().items():
                written = self._store.write_messages(self.stream, partition, messages)
                if written.failures:
                    self._topic.make_dead_letters()
                    self._topic.bury(partition, written.failures)
                self._topic.commit(partition, messages[-1].offset + 1)
        return 0.0

    def _give_back(self) -> None:
        self._topic.close()
        give_back(self._store, lease_kind(self.stream), LEASE_S)
