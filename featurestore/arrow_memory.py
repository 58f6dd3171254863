"""Where Arrow keeps columns."""

from __future__ import annotations

import os
from typing import Final

import pyarrow as pa

CHOICE: Final = "ARROW_DEFAULT_MEMORY_POOL"
"""Arrow's own setting."""
LIBRARY_DEFAULT: Final = "mimalloc"
PREFERRED: Final = "jemalloc"


def choose_memory() -> None:
    """Take jemalloc for Arrow's columns, in the whole process, unless somebody has chosen already or it is not there.

    Arrow's default gives freed memory back to the system at once, which has to clear it anew for the next column
    (docs/decisions/0026-memory-of-columns.md).
    """
    is_free = CHOICE not in os.environ and pa.default_memory_pool().backend_name == LIBRARY_DEFAULT
    if is_free and PREFERRED in pa.supported_memory_backends():
        pa.set_memory_pool(pa.jemalloc_memory_pool())
