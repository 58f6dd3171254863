"""Answers from an online store's own threads to the event loops that wait for them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

_log: Final = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class Waiting:
    """Somebody on `loop` waits for `future`. A thread sets `result` or `error`, then delivers."""

    loop: asyncio.AbstractEventLoop
    future: asyncio.Future[Any]
    result: Any = None
    error: BaseException | None = field(default=None)


def deliver(batch: Sequence[Waiting]) -> None:
    """Wake the waiting callers, one wake-up per event loop."""
    by_loop: dict[asyncio.AbstractEventLoop, list[Waiting]] = {}
    for waiting in batch:
        by_loop.setdefault(waiting.loop, []).append(waiting)
    for loop, members in by_loop.items():
        try:
            loop.call_soon_threadsafe(_resolve, members)
        except RuntimeError:
            _log.warning("%d answers came after their callers' event loop had closed", len(members))


def _resolve(members: Sequence[Waiting]) -> None:
    for waiting in members:
        if waiting.future.cancelled():
            continue
        if waiting.error is not None:
            waiting.future.set_exception(waiting.error)
        else:
            waiting.future.set_result(waiting.result)
