"""Temporary directories and files that are deleted even after a crash: they are locked as long as their process lives."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


class PrivateDirectory:
    """A directory for temporary files that is deleted even after a crash: by the next process that makes one.

    It is locked as long as its process lives, so the unlocked ones are leftovers.
    """

    def __init__(self, root: Path, prefix: str) -> None:
        """
        Args:
            prefix: of the directory's name; leftovers are looked for among those that share it.

        Raises:
            OSError: it can't be made.
        """
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root):
            # One at a time: between being made and being locked a directory looks like a leftover.
            _remove_leftovers(root, prefix)
            self.path = Path(tempfile.mkdtemp(prefix=prefix, dir=root))
            self._lock = contextlib.ExitStack()
            self._lock.enter_context(_locked(self.path))

    def remove(self) -> None:
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def remove_leftovers(root: Path) -> None:
    """Delete the directories of processes that died."""
    with _locked(root):
        _remove_leftovers(root, "")


def _remove_leftovers(root: Path, prefix: str) -> None:
    for other in root.glob(f"{prefix}*"):
        with contextlib.suppress(OSError), _locked(other, wait=False):
            shutil.rmtree(other, ignore_errors=True)


@contextlib.contextmanager
def temporary_file(folder: Path) -> Iterator[tuple[Path, BinaryIO]]:
    """A new empty file, path and stream; deleted at the end, or after a crash by `remove_leftover_files`.

    Raises:
        OSError: it can't be made.
    """
    while True:
        path = folder / uuid.uuid4().hex
        file = open(path, "xb")  # noqa: SIM115 (closed below, on every way out)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not os.fstat(file.fileno()).st_nlink:  # taken for a leftover before it was locked
                continue
            yield path, file
            return
        finally:
            with contextlib.suppress(OSError):  # it is a leftover then
                path.unlink(missing_ok=True)
            file.close()


def remove_leftover_files(folder: Path) -> None:
    """Delete the temporary files of processes that died.

    Raises:
        OSError
    """
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError, BlockingIOError), open(path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """
    Raises:
        BlockingIOError: another process holds the lock, and `wait` is off.
    """
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
