"""Seeded interleavings of real code: actors stop before and after each call to storage until the schedule lets them go on,
and some are killed where they stand.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from featurestore.changelog.protocol import ChangeSource
from featurestore.model.change import LogEntry
from featurestore.offline.protocol import ObjectInfo, ObjectStore

STEP_S_MAX = 60.0
T = TypeVar("T")


class KilledError(BaseException):
    """Ends an actor at a gate. No handler of ordinary errors catches it."""


class Actor:
    """Runs `work` in a thread that moves only while `step` is called."""

    def __init__(self, work: Callable[[Actor], None]) -> None:
        self._go = threading.Semaphore(0)
        self._stopped = threading.Semaphore(0)
        self._doomed = False
        self.ended = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()
        self._wait()

    def gate(self) -> None:
        """Called by the actor's own code: wait here for the next step."""
        self._stopped.release()
        self._go.acquire()
        if self._doomed:
            raise KilledError

    def step(self) -> None:
        """Let it run to its next gate, or to its end."""
        self._go.release()
        self._wait()

    def kill(self) -> None:
        """End it where it stands."""
        self._doomed = True
        if not self.ended:
            self.step()
        self._thread.join(STEP_S_MAX)

    def _wait(self) -> None:
        assert self._stopped.acquire(timeout=STEP_S_MAX), "an actor neither reached a gate nor ended"

    def _run(self, work: Callable[[Actor], None]) -> None:
        try:
            work(self)
        except KilledError:
            pass
        except BaseException as error:
            self.error = error
        finally:
            self.ended = True
            self._stopped.release()


class GatedObjects:
    """An object store whose every call is a pair of gates, around the real one."""

    def __init__(self, inner: ObjectStore, actor: Actor) -> None:
        self._inner = inner
        self._actor = actor

    def _between_gates(self, call: Callable[[], T]) -> T:
        self._actor.gate()
        answer = call()
        self._actor.gate()
        return answer

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._between_gates(lambda: self._inner.put_if_absent(key, data))

    def put_file_if_absent(self, key: str, path: Path) -> bool:
        return self._between_gates(lambda: self._inner.put_file_if_absent(key, path))

    def get(self, key: str) -> bytes | None:
        return self._inner.get(key)

    def list(self, prefix: str) -> Sequence[str]:
        return self._between_gates(lambda: self._inner.list(prefix))

    def scan(self, prefix: str) -> Sequence[ObjectInfo]:
        return self._between_gates(lambda: self._inner.scan(prefix))

    def move_if_absent(self, source: str, target: str) -> bool:
        return self._between_gates(lambda: self._inner.move_if_absent(source, target))

    def delete(self, key: str) -> None:
        self._between_gates(lambda: self._inner.delete(key))

    def paths(self, keys: Sequence[str]) -> Sequence[str]:
        return self._inner.paths(keys)

    def remove_leftovers(self) -> None:
        self._inner.remove_leftovers()

    def url(self, key: str) -> str:
        return self._inner.url(key)


class GatedChanges:
    """A change source whose every call is a pair of gates, around the real one."""

    def __init__(self, inner: ChangeSource, actor: Actor) -> None:
        self._inner = inner
        self._actor = actor

    def shards(self) -> int:
        return self._inner.shards()

    def ends(self) -> Mapping[int, int]:
        return self._inner.ends()

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        self._actor.gate()
        answer = self._inner.read(shard, offset_first, entries_max)
        self._actor.gate()
        return answer

    def trim(self, shard: int, offset_next: int) -> None:
        self._actor.gate()
        self._inner.trim(shard, offset_next)
        self._actor.gate()

    def close(self) -> None:
        self._inner.close()


def run_schedule(
    schedule: random.Random, make: Sequence[Callable[[Actor], None]], *, steps: int, kill_share: float, meanwhile: Any
) -> None:
    """Run actors in random turns; one that ended or was killed is replaced by a fresh one of its kind.

    Args:
        steps: turns in all.
        kill_share: chance that a turn is a kill.
        meanwhile: called now and then between turns.

    Raises:
        AssertionError: an actor failed by itself.
    """
    actors = [Actor(work) for work in make]
    try:
        for _ in range(steps):
            index = schedule.randrange(len(actors))
            actor = actors[index]
            if actor.ended:
                assert actor.error is None, f"an actor failed: {actor.error!r}"
                actors[index] = Actor(make[index])
            elif schedule.random() < kill_share:
                actor.kill()
                actors[index] = Actor(make[index])
            else:
                actor.step()
            if schedule.random() < 0.05:
                meanwhile()
    finally:
        for actor in actors:
            actor.kill()
    failed = [actor.error for actor in actors if actor.error is not None]
    assert not failed, failed
