"""How keys are written as file names: readable where they can be, reversible always.

    results/2024/report.csv     results/2024/report.csv
    README                      README%                 a file name has a `.`, or ends in a `%` of its own
    v1.0/x.csv                  v1%2E0/x.csv            a folder name has neither
    a/, a//b, a///b             a/%, a/%-/b%, a/%-%-/b% nothing between two slashes
    .., a/../b                  %2E., a/%2E%2E/b%       no name is `.` or `..` or begins with a dot
    100%, line\\nfeed           100%25%, line%0Afeed%   `%` and control characters
    a segment of 1,000 bytes    <part>%+/<part>%+/...   as names have 255 bytes at most

So an object `a` and objects below `a/` can be there at once. Where the file system takes `A` and `a`, or two ways to write `é`,
for the same name, capitals and all but ASCII are escaped as well.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

NAME_BYTES_MAX: Final = 240
"""Of one file name; file systems take 255."""
CONTINUED: Final = "%+"
EMPTY: Final = "%-"
UNDOTTED: Final = "%"

_ALWAYS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f%]")
_FOLDED: Final = re.compile(r"[^\x20-$&-@\[-~]")
_ESCAPE: Final = re.compile(r"%([0-9A-F]{2})")


def path_of(key: str, *, folding: bool) -> tuple[str, ...]:
    """The names of folders and, last, of the file of a key.

    Args:
        folding: whether the file system takes names for equal that differ by case or by Unicode form.
    """
    stem, slash, name = key.rpartition("/")
    return (*folder_path_of(stem + slash, folding=folding), *_names(name, folding, is_file=True))


def folder_path_of(stem: str, *, folding: bool) -> tuple[str, ...]:
    """The names of the folders of keys that begin with `stem`, which is empty or ends in `/`."""
    parts: list[str] = []
    for folder in stem.split("/")[:-1]:
        if folder:
            parts.extend(_names(folder, folding, is_file=False))
        elif parts and parts[-1].startswith(EMPTY) and len(parts[-1]) <= NAME_BYTES_MAX - len(EMPTY):
            parts[-1] += EMPTY  # else a key of a thousand slashes would be a thousand folders deep
        else:
            parts.append(EMPTY)
    return tuple(parts)


def is_begin(name: str) -> bool:
    """Whether a folder's name stands for the begin of a segment, or for empty ones: the folder is not a level of the key's."""
    return name.endswith((CONTINUED, EMPTY))


def text_of(name: str, *, is_file: bool) -> str | None:
    """The part of a key that a name stands for: a segment without the slash behind it, or a begin; None if no key has it."""
    if is_file:
        body = name.removesuffix(UNDOTTED)
    elif name.endswith(EMPTY):
        return "/" * (len(name) // len(EMPTY))
    else:
        body = name.removesuffix(CONTINUED)
    try:
        pieces = _ESCAPE.split(body)
        return b"".join(bytes.fromhex(piece) if odd % 2 else piece.encode() for odd, piece in enumerate(pieces)).decode()
    except UnicodeError:
        return None


def _names(segment: str, folding: bool, *, is_file: bool) -> Sequence[str]:
    names: list[str] = []
    rest = segment
    while True:
        last = _file_name(rest, folding) if is_file else _folder_name(rest, folding)
        if len(last.encode()) <= NAME_BYTES_MAX:
            return [*names, last]
        taken, length = 0, 0
        for char in rest:
            length += len(_folder_name(char, folding).encode())
            if length > NAME_BYTES_MAX - len(CONTINUED):
                break
            taken += 1
        names.append(_folder_name(rest[:taken], folding) + CONTINUED)
        rest = rest[taken:]


def _folder_name(text: str, folding: bool) -> str:
    return _escaped(text, folding).replace(".", "%2E")


def _file_name(text: str, folding: bool) -> str:
    name = _escaped(text, folding)
    if name.startswith("."):
        name = f"%2E{name[1:]}"
    return name if "." in name else name + UNDOTTED


def _escaped(text: str, folding: bool) -> str:
    pattern = _FOLDED if folding else _ALWAYS
    return pattern.sub(lambda match: "".join(f"%{byte:02X}" for byte in match[0].encode()), text)
