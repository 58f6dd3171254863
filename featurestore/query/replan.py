"""Answers that are begun again while data files are replaced under them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final, TypeVar

from featurestore.errors import FileVanished

_log: Final = logging.getLogger(__name__)
_T = TypeVar("_T")

REPLANS_MAX: Final = 5
"""An answer opens its files within milliseconds of planning, and files that are replaced stay for a while: losing that race
this often means that something else deletes files."""


def replanned(answer: Callable[[], _T]) -> _T:
    """What `answer` returns. It plans on the newest versions of the tables each time it is called, and is called again, at
    most REPLANS_MAX times, when a file that it planned with was deleted before it was read.

    Raises:
        FileVanished: that went on.
    """
    for _ in range(REPLANS_MAX):
        try:
            return answer()
        except FileVanished as error:
            _log.info("planning anew: %s", error)
    return answer()
