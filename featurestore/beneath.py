"""Files below a folder that are reached step by step, so that no symbolic link on the way leads out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Final

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_LINK_ERRORS: Final = (errno.ELOOP, errno.ENOTDIR)


@contextlib.contextmanager
def folder_beneath(root: Path, parts: Sequence[str], *, create: bool = False) -> Iterator[int]:
    """A descriptor of the folder `root/parts[0]/parts[1]/...`; only `root` itself may be a link.

    Args:
        parts: single names; none of them is `.`, `..` or has a `/`.
        create: make what is missing, each folder durable in the one above it.

    Raises:
        FileNotFoundError: there is none, or a part is a link or a file.
        OSError
    """
    descriptor = os.open(root, _FOLDER)
    try:
        for part in parts:
            _check(part)
            if create:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, dir_fd=descriptor)
                    os.fsync(descriptor)
            below = _open(part, _FOLDER | os.O_NOFOLLOW, descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor
    finally:
        os.close(descriptor)


def file_in(folder: int, name: str) -> BinaryIO:
    """Open a regular file of a folder for reading.

    Raises:
        FileNotFoundError: there is none, or it is a link or anything else than a regular file.
        OSError
    """
    _check(name)
    descriptor = _open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, folder)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FileNotFoundError(errno.ENOENT, "not a regular file", name)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def _open(name: str, flags: int, folder: int) -> int:
    try:
        return os.open(name, flags, dir_fd=folder)
    except OSError as error:
        if error.errno in _LINK_ERRORS:
            raise FileNotFoundError(errno.ENOENT, "not followed, as it is a link or no folder", name) from error
        raise


def _check(name: str) -> None:
    assert name not in ("", ".", ".."), name
    assert not {"/", "\0"} & {*name}, name
