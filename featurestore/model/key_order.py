"""Keys of objects in the order that S3 lists them: by their UTF-8 bytes, while they are kept in a tree of folders."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final, TypeVar

KEY_BYTES_MAX: Final = 1024
"""Of a key in UTF-8 (https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html)."""
LAST_CHAR: Final = "\U0010ffff"

_T = TypeVar("_T")


def beyond(prefix: str) -> str:
    """A text that is not less than any key with that prefix: a listing that begins after it goes on behind them."""
    return prefix + LAST_CHAR * max(1, (KEY_BYTES_MAX - len(prefix.encode())) // 4 + 1)


def in_key_order(
    entries: Callable[[_T], Iterable[tuple[str, bool, _T]]], folder: _T, stem: str, *, prefix: str, after: str
) -> Iterator[tuple[str, _T]]:
    """Walk a tree of folders; give keys that begin with `prefix` and are greater than `after`, ascending, and where they are.

    Folders without such keys are not entered. What is in memory are the names of one folder per level.

    Args:
        entries: of a folder, in any order: the last segment of the key, whether it is a folder, where it is.
        stem: what the keys below `folder` begin with: empty or ending in `/`.
    """
    # A stack, since a key may have a thousand folders. Texts compare by code points, which is the order of their UTF-8 bytes.
    waiting = [(stem, True, folder)]
    while waiting:
        key, is_folder, place = waiting.pop()
        if not is_folder:
            yield key, place
            continue
        found = []
        for segment, is_folder_below, below in entries(place):
            name = f"{key}{segment}/" if is_folder_below else key + segment
            if is_folder_below:
                wanted = (name.startswith(prefix) or prefix.startswith(name)) and beyond(name) > after
            else:
                wanted = name.startswith(prefix) and name > after
            if wanted:
                found.append((name, is_folder_below, below))
        found.sort(key=lambda entry: entry[0], reverse=True)
        waiting += found
