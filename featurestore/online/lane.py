"""A thread that makes one round trip of all calls that wait, so that concurrent callers share it."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

from featurestore.errors import StoreUnavailable
from featurestore.online.delivery import Waiting, deliver

_log: Final = logging.getLogger(__name__)

_Work = TypeVar("_Work")


@dataclass(slots=True, kw_only=True)
class Job(Waiting, Generic[_Work]):
    """What one caller wants. `weight` is its part of what a round trip may carry."""

    work: _Work
    weight: int


class Lane(Generic[_Work]):
    """Takes jobs of any event loop in the order of their arrival.

    Args:
        run: answers a batch: sets `result` or `error` of each job. On the lane's own thread.
        weight_max: of one batch; a job that is heavier goes alone.
    """

    def __init__(self, name: str, run: Callable[[Sequence[Job[_Work]]], None], *, weight_max: int) -> None:
        self._name = name
        self._run = run
        self._weight_max = weight_max
        self._jobs: queue.SimpleQueue[Job[_Work] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        self._thread.start()

    def submit(self, work: _Work, weight: int, done: Callable[[Any], None]) -> None:
        """`done` is called once, on the running loop, with the result or the exception that stands for it.

        Raises:
            StoreUnavailable: the store is closed.
        """
        job = Job(work=work, weight=weight, loop=asyncio.get_running_loop(), done=done)
        with self._lock:
            if self._closed:
                raise StoreUnavailable(self._name, "the store is closed")
            self._jobs.put(job)

    def close(self) -> None:
        """Finish what was submitted, then end the thread. Repeating it does nothing."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._jobs.put(None)
        self._thread.join()

    def _work(self) -> None:
        held: Job[_Work] | None = None
        stop = False
        while not stop:
            job = held or self._jobs.get()
            held = None
            batch: list[Job[_Work]] = []
            weight = 0
            while job is not None:
                if batch and weight + job.weight > self._weight_max:
                    held = job
                    break
                batch.append(job)
                weight += job.weight
                try:
                    job = self._jobs.get_nowait()
                except queue.Empty:
                    break
            stop = job is None
            if batch:
                self._answer(batch)

    def _answer(self, batch: Sequence[Job[_Work]]) -> None:
        try:
            self._run(batch)
        except Exception as error:  # the callers wait: whatever it is, each of them gets it, and the thread lives on
            _log.exception("%s failed for %d callers", self._name, len(batch))
            for job in batch:
                job.error = error
        deliver(batch)
