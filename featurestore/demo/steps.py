"""Numbered steps with their times, and checks that stop the demo when the store breaks a promise."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from rich import box
from rich.console import Console, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table

from featurestore.errors import FeatureStoreError

INDENT: Final = 3


class PromiseBroken(FeatureStoreError):
    """The store did not do what the demo shows; that is a bug."""

    def __init__(self, promise: str) -> None:
        super().__init__(f"this does not hold: {promise}")


class Steps:
    """Prints what happens, step by step, and keeps how long each step took."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._took_s: list[tuple[str, float]] = []
        self._tick = "✓" if console.encoding.lower().startswith("utf") else "ok:"

    @contextmanager
    def step(self, title: str) -> Iterator[None]:
        """One step: its title, what its body says, its time."""
        self._console.print()
        self._console.print(f"[bold cyan]{len(self._took_s) + 1:>2}[/] [bold]{escape(title)}[/]", highlight=False)
        started_s = time.perf_counter()
        yield
        self._took_s.append((title, time.perf_counter() - started_s))
        self.say(f"[dim]took {self._took_s[-1][1]:.2f} s[/]")

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """A sign of life for people, around work that has no progress to report."""
        with self._console.status(f"[dim]{escape(what)}[/]"):
            yield

    def say(self, line: str) -> None:
        """A line in rich's markup."""
        self.show(line)

    def show(self, content: RenderableType) -> None:
        self._console.print(Padding(content, (0, 0, 0, INDENT), expand=False), highlight=False)

    def check(self, promise: str, holds: bool) -> None:
        """Say that a promise holds.

        Raises:
            PromiseBroken: it does not.
        """
        if not holds:
            raise PromiseBroken(promise)
        self.say(f"[green]{self._tick}[/] {escape(promise)}")

    def times(self) -> Table:
        """How long each step took, and all of them."""
        table = grid("step", "seconds")
        table.columns[1].justify = "right"
        for number, (title, took_s) in enumerate(self._took_s, start=1):
            table.add_row(f"{number:>2} {title}", f"{took_s:.2f}")
        table.add_section()
        table.add_row("   all", f"{self.total_s:.2f}")
        return table

    @property
    def total_s(self) -> float:
        return sum(took_s for _, took_s in self._took_s)


def grid(*headers: str) -> Table:
    """A table of the demo's look."""
    return Table(*headers, box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0))
