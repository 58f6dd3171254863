"""Waiting until changes have left the outbox: with Kafka, until Kafka has acknowledged them (`durability=log`).

One thread looks at the outbox for all who wait, and only while somebody does.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from featurestore.changelog.protocol import Outbox
from featurestore.errors import FeatureStoreError, StoreUnavailable
from featurestore.model.change import Stamp

LOOK_S: Final = 0.002
"""Between two looks; the relay needs a few milliseconds for an acknowledgement."""
RETRY_S: Final = 0.2
"""Between two looks while the outbox does not answer."""


@dataclass(slots=True, eq=False)
class _Waiter:
    stamps: Sequence[Stamp]
    deadline_s: float
    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[bool]


class Acknowledgements:
    """Whether changes of one outbox have left it. Any number of tasks of any loop may wait."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._condition = threading.Condition()
        self._waiters: list[_Waiter] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    async def wait(self, stamps: Sequence[Stamp], timeout_s: float) -> None:
        """Return when all these changes have left the outbox.

        Raises:
            StoreUnavailable: they have not within `timeout_s`. They are written, and will be acknowledged later.
        """
        loop = asyncio.get_running_loop()
        waiter = _Waiter(stamps, time.monotonic() + timeout_s, loop, loop.create_future())
        with self._condition:
            if self._closed:
                raise StoreUnavailable("wait for the log", "the store is closed")
            self._waiters.append(waiter)
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, name="acknowledgements", daemon=True)
                self._thread.start()
            self._condition.notify()
        if not await waiter.future:
            raise StoreUnavailable(
                "wait for the log",
                f"Kafka has not acknowledged the write within {timeout_s:g} s; it is readable online, and may arrive later",
                hint="is a relay running? see docs/guides/kafka.md",
            )

    def close(self) -> None:
        """Whoever waits still is told that nothing is known."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if self._thread is not None:
            self._thread.join()

    def _look(self) -> None:
        pause_s = LOOK_S
        while True:
            with self._condition:
                while not self._waiters and not self._closed:
                    self._condition.wait()
                waiters, closed = list(self._waiters), self._closed
            try:
                trimmed = self._outbox.trimmed()
                pause_s = LOOK_S
            except FeatureStoreError:  # whoever waits for too long is told so
                trimmed = {}
                pause_s = RETRY_S
            now_s = time.monotonic()
            done = {waiter: all(stamp.seq < trimmed.get(stamp.shard, 0) for stamp in waiter.stamps) for waiter in waiters}
            ended = [waiter for waiter in waiters if done[waiter] or now_s >= waiter.deadline_s or closed]
            with self._condition:
                self._waiters = [waiter for waiter in self._waiters if waiter not in ended]
            for waiter in ended:
                waiter.loop.call_soon_threadsafe(_answer, waiter.future, done[waiter])
            if closed:
                return
            time.sleep(pause_s)


def _answer(future: asyncio.Future[bool], done: bool) -> None:
    if not future.done():
        future.set_result(done)
