"""How long each step of a call took."""

from __future__ import annotations

import time


class Stopwatch:
    """Seconds per step: each `lap` books the time since the last one under its step's name."""

    def __init__(self) -> None:
        self.took_s: dict[str, float] = {}
        self._last_s = time.perf_counter()

    def lap(self, step: str) -> None:
        now_s = time.perf_counter()
        self.took_s[step] = self.took_s.get(step, 0.0) + now_s - self._last_s
        self._last_s = now_s
