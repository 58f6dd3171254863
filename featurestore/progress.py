"""Progress of long work: one callback, and a bar for people."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeAlias

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called as (step, units done, units in all); a step may be reported any number of times."""


def silent(step: str, done: int, total: int) -> None:
    """Reports nothing."""


@contextmanager
def bar(title: str, *, show: bool | None = None) -> Iterator[Progress]:
    """A progress bar on standard error; by default only where a person watches."""
    if not (sys.stderr.isatty() if show is None else show):
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as RichProgress

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with RichProgress(*columns, console=Console(stderr=True), transient=True) as display:
        tasks: dict[str, object] = {}

        def report(step: str, done: int, total: int) -> None:
            if step not in tasks:
                tasks[step] = display.add_task(f"{title}: {step}", total=total)
            display.update(tasks[step], completed=done, total=total)  # type: ignore[arg-type]

        yield report
