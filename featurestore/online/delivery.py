"""Answers from an online store's own threads to the event loops that wait for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_log: Final = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Waiting:
    """Somebody on `loop` waits. A thread sets `result` or `error`, then delivers: `done` is given the one or the other."""

    loop: asyncio.AbstractEventLoop
    done: Callable[[Any], None]
    result: Any = None
    error: BaseException | None = field(default=None)


def deliver(batch: Sequence[Waiting]) -> None:
    """Wake the waiting callers, one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Waiting]] = {}
    for waiting in batch:
        by_loop.setdefault(waiting.loop, []).append(waiting)
    for loop, members in by_loop.items():
        try:
            loop.call_soon_threadsafe(_tell, members)
        except RuntimeError:
            _log.warning("%d answers came after their callers' event loop had closed", len(members))


def resolve(future: asyncio.Future[Any], answer: Any) -> None:
    """Answer who awaits a future: with a value, or an exception to raise."""
    if future.cancelled():
        return
    if isinstance(answer, BaseException):
        future.set_exception(answer)
    else:
        future.set_result(answer)


def _tell(members: Sequence[Waiting]) -> None:
    for waiting in members:
        waiting.done(waiting.result if waiting.error is None else waiting.error)
