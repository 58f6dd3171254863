"""Who carries calls to Redis and brings back the replies: a thread, or the connections of an event loop that lives long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

from featurestore.errors import StoreUnavailable
from featurestore.keyspace.link import Call, RedisLink
from featurestore.keyspace.pipes import Pipes
from featurestore.online.lane import Job, Lane

Done: TypeAlias = Callable[[list[Any]], None]
"""Is given a reply for each call, in order; what went wrong with a call, an exception, stands in place of its reply."""


class Courier:
    """Calls of one kind, of any event loop.

    The thread knows every way around: it connects, follows a cluster's redirections, makes scripts known. The connections of a
    loop (`Pipes`) spare its calls the way through the thread; what they can't settle goes that way after all.

    Args:
        repeatable: the calls may be executed twice, so a lost connection is no reason to fail.
        weight_max: of one round trip of the thread.
    """

    def __init__(self, operation: str, link: RedisLink, *, repeatable: bool, weight_max: int) -> None:
        self._operation = operation
        self._link = link
        self._repeatable = repeatable
        self._lane: Lane[Sequence[Call]] = Lane(operation, self._run, weight_max=weight_max)

    def send(self, calls: Sequence[Call], weight: int, done: Done, pipes: Pipes | None) -> None:
        """Send calls of the running loop; `done` is called once on it, never from here."""

        def settled(replies: list[Any], again: list[int]) -> None:
            if not again:
                done(replies)
                return

            def completed(found: list[Any]) -> None:
                for position, reply in zip(again, found, strict=True):
                    replies[position] = reply
                done(replies)

            self._by_thread([calls[position] for position in again], weight, completed)

        if pipes is None or not pipes.send(self._operation, calls, repeatable=self._repeatable, settled=settled):
            self._by_thread(calls, weight, done)

    def close(self) -> None:
        """Finish what the thread was given, then end it and close its connections."""
        self._lane.close()
        self._link.close()

    def _by_thread(self, calls: Sequence[Call], weight: int, done: Done) -> None:
        def answered(answer: list[Any] | BaseException) -> None:
            done([answer] * len(calls) if isinstance(answer, BaseException) else answer)

        try:
            self._lane.submit(calls, weight, answered)
        except StoreUnavailable as error:
            asyncio.get_running_loop().call_soon(answered, error)

    def _run(self, jobs: Sequence[Job[Sequence[Call]]]) -> None:
        replies = self._link.run(self._operation, [call for job in jobs for call in job.work], repeatable=self._repeatable)
        end = 0
        for job in jobs:
            first, end = end, end + len(job.work)
            job.result = replies[first:end]
