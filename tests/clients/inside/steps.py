"""What the scripts of the clients say while they work: one line for each step, and which one failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

CONDITION_S_MAX = 60.0


@contextmanager
def step(what: str) -> Iterator[None]:
    """Print `ok` after the step, or `FAILED` and let its exception end the script."""
    started_s = time.monotonic()
    try:
        yield
    except BaseException:
        print(f"FAILED {what}", flush=True)
        raise
    print(f"ok {what} ({time.monotonic() - started_s:.2f} s)", flush=True)


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of `condition`, asked again until a deadline."""
    deadline_s = time.monotonic() + CONDITION_S_MAX
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what} within {CONDITION_S_MAX:g} s"
        time.sleep(0.05)
    return found
