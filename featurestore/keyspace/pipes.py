"""The connections of an event loop to the nodes of a Redis deployment, kept open beside the loop's other work."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Final

from redis import exceptions as failures

from featurestore.errors import StoreUnavailable
from featurestore.keyspace.address import Node, RedisAddress, shown_node
from featurestore.keyspace.link import Call, RedisLink, failed
from featurestore.keyspace.pipe import Pipe, open_pipe, pack

_log: Final = logging.getLogger(__name__)

RETRY_S_MIN: Final = 0.05
RETRY_S_MAX: Final = 2.0
"""Between attempts to open connections that can't be opened; doubled each time."""
PASSING: Final = (
    failures.NoScriptError,
    failures.MovedError,
    failures.AskError,
    failures.TryAgainError,
    failures.ReadOnlyError,
)
"""Refusals before which nothing was done, and which another sending may not meet."""

Settled = Callable[[list[Any], list[int]], None]
"""Is given a reply for each call, and the positions of those that have none and had no effect, so that they may be sent again."""


class Pipes:
    """Of one event loop. Calls that need more than an open connection to their shard's owner are given back.

    Args:
        link: finds the owners of shards; of no one else.
    """

    def __init__(self, address: RedisAddress, link: RedisLink) -> None:
        self._address = address
        self._link = link
        self._finding = threading.Lock()
        self._owners: Sequence[Node] = ()
        self._pipes: dict[Node, Pipe] = {}
        self._wanted = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Connect, and stay connected until `close`. What can't be reached now is tried again later."""
        await self._connect()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    async def close(self) -> None:
        """Close every connection."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait([self._keeper])
        for pipe in list(self._pipes.values()):
            pipe.close()
        await asyncio.to_thread(self._close_link)

    def send(self, operation: str, calls: Sequence[Call], *, repeatable: bool, settled: Settled) -> bool:
        """Send calls; False, and nothing sent, unless there is an open connection for each of them.

        `settled` is called once, on the loop and not from here. What went wrong with a call stands in place of its reply.

        Args:
            repeatable: the calls may be executed twice, so those that a lost connection left without a reply are given back.
        """
        owners = self._owners
        if not owners:
            return False
        if not self._link.is_cluster:  # one node has all shards
            pipe = self._pipes.get(owners[0])
            if pipe is None or not pipe.is_open:
                return False
            shares = {owners[0]: list(range(len(calls)))}
        else:
            shares = {}
            for position, call in enumerate(calls):
                shares.setdefault(owners[call.shard], []).append(position)
            if not all(node in self._pipes and self._pipes[node].is_open for node in shares):
                return False
        round_trip = _RoundTrip(self, operation, len(calls), len(shares), repeatable, settled)
        for node, positions in shares.items():
            data = b"".join([pack(calls[position].command) for position in positions])
            self._pipes[node].send(data, len(positions), round_trip.share(node, positions))
        return True

    def look_again(self) -> None:
        """A node has turned out not to own what it was asked for: find out who does."""
        self._owners = ()
        self._wanted.set()

    async def _keep(self) -> None:
        pause_s = RETRY_S_MIN
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            if await self._connect():
                pause_s = RETRY_S_MIN
            else:
                self._wanted.set()
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, RETRY_S_MAX)

    async def _connect(self) -> bool:
        """Whether there is an open connection to every node that owns a shard."""
        try:
            owners = await asyncio.to_thread(self._find)
            for node in dict.fromkeys(owners):
                if node not in self._pipes or not self._pipes[node].is_open:
                    self._pipes[node] = await open_pipe(self._address, node, self._lost)
            for node in self._pipes.keys() - set(owners):
                self._pipes.pop(node).close()
        except (StoreUnavailable, failures.RedisError, OSError) as error:
            _log.warning("%s: no connection of the event loop's own for now: %s", self._address, error)
            return False
        self._owners = owners
        return True

    def _find(self) -> Sequence[Node]:
        with self._finding:
            self._link.forget_owners()
            return self._link.owners()

    def _close_link(self) -> None:
        with self._finding:
            self._link.close()

    def _lost(self, pipe: Pipe) -> None:
        for node, kept in list(self._pipes.items()):
            if kept is pipe:
                _log.info("the connection to %s was lost", shown_node(node))
                del self._pipes[node]
        self._wanted.set()


class _RoundTrip:
    """Calls that were sent to one or several nodes."""

    def __init__(self, pipes: Pipes, operation: str, calls: int, shares: int, repeatable: bool, settled: Settled) -> None:
        self._pipes = pipes
        self._operation = operation
        self._replies: list[Any] = [None] * calls
        self._missing = shares
        self._repeatable = repeatable
        self._settled = settled
        self._again: list[int] = []

    def share(self, node: Node, positions: list[int]) -> Callable[[list[Any], int, Exception | None], None]:
        """What takes the answers of one node."""

        def taken(answers: list[Any], refusals: int, failure: Exception | None) -> None:
            if refusals == 0 and failure is None and len(positions) == len(self._replies):
                self._replies = answers
            else:
                self._take(node, positions, answers, failure)
            self._missing -= 1
            if self._missing == 0:
                self._settled(self._replies, sorted(self._again))

        return taken

    def _take(self, node: Node, positions: list[int], answers: list[Any], failure: Exception | None) -> None:
        for position, answer in zip(positions, answers, strict=False):
            if isinstance(answer, PASSING):
                self._again.append(position)
                if not isinstance(answer, failures.NoScriptError):
                    self._pipes.look_again()
            elif isinstance(answer, failures.RedisError):
                self._replies[position] = failed(self._operation, node, answer)
                if isinstance(answer, failures.ClusterDownError):
                    self._pipes.look_again()
            else:
                self._replies[position] = answer
        if failure is None:
            return
        for position in positions[len(answers) :]:
            if self._repeatable and not isinstance(failure, failures.TimeoutError):
                self._again.append(position)
            else:
                self._replies[position] = failed(self._operation, node, failure)
