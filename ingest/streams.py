"""Streaming ingestion in the background: reads the topics of all running streams until it is stopped.

Each stream has a thread of its own. Partitions of a topic are shared among processes by leases; a message is written once even
if two read it, see `OnlineStore.apply_from`. A partition's offset is committed after its messages are written and its dead
letters acknowledged, so a process that dies repeats some, which changes nothing but the dead letters.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from featurestore.errors import FeatureStoreError
from featurestore.model.stream import Stream, StreamState
from featurestore.store import FeatureStore
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


class StreamWorker:
    """Runs every running stream of a store. Any number of processes may run one."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="streams", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Finish the messages under way, then return."""
        self._stop.set()
        self._thread.join()

    def _work(self) -> None:
        running: dict[str, _StreamThread] = {}
        while not self._stop.wait(LOOK_S if running else 0):
            try:
                wanted = {stream.name: stream for stream in self._store.streams() if stream.state is StreamState.RUNNING}
            except FeatureStoreError as error:
                _log.error("can't list the streams: %s", error)
                self._stop.wait(RETRY_S_MAX)
                continue
            for name, thread in list(running.items()):
                if wanted.get(name) != thread.stream:
                    running.pop(name).stop()
            for name in wanted.keys() - running.keys():
                running[name] = _StreamThread(self._store, wanted[name])
                running[name].start()
            if not running:
                self._stop.wait(LOOK_S)
        for thread in running.values():
            thread.stop()


class _StreamThread:
    """One stream, until it is stopped. A failure is logged and tried again from what was committed."""

    def __init__(self, store: FeatureStore, stream: Stream) -> None:
        self.stream = stream
        self._store = store
        self._topic = UserTopic(store.require_kafka(), stream)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"stream-{stream.name}", daemon=True)

    def start(self) -> None:
        _log.info("stream %s begins to read topic %s", self.stream.name, self.stream.topic)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()
        _log.info("stream %s has stopped", self.stream.name)

    def _work(self) -> None:
        pause_s, failures = 0.0, 0
        while not self._stop.wait(pause_s):
            try:
                self._turn()
            except Exception as error:  # whatever it is, the messages are still in the topic, and somebody has to try again
                self._topic.rewind()
                failures += 1
                pause_s = min(RETRY_S * 2**failures, RETRY_S_MAX)
                expected = isinstance(error, FeatureStoreError)
                _log.error(
                    "stream %s stands still, next attempt in %.1f s: %s",
                    self.stream.name,
                    pause_s,
                    error,
                    exc_info=None if expected else error,
                )
            else:
                pause_s, failures = 0.0, 0
        self._topic.close()
        try:
            self._store.leases.release(lease_kind(self.stream), self._store.owner)
        except FeatureStoreError as error:
            _log.warning("the partitions of stream %s are free again in %.0f s: %s", self.stream.name, LEASE_S, error)

    def _turn(self) -> None:
        """Work on our share of the partitions until it is time to renew it."""
        partitions = self._topic.partitions()
        share = self._store.leases.share(lease_kind(self.stream), self._store.owner, partitions, LEASE_S)
        self._topic.assign(share)
        deadline_s = time.monotonic() + RENEW_S
        while not self._stop.is_set() and time.monotonic() < deadline_s:
            if not share:
                self._stop.wait(RENEW_S)
                continue
            for partition, messages in self._topic.poll().items():
                written = self._store.write_messages(self.stream, partition, messages)
                if written.failures:
                    self._topic.make_dead_letters()
                    self._topic.bury(partition, written.failures)
                self._topic.commit(partition, messages[-1].offset + 1)
