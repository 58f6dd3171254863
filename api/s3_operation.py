"""What an operation of S3 is: from a request and its body to an answer, in a worker thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from api.s3_body import Body
from api.s3_request import Request
from api.wire import Answer

Operation: TypeAlias = Callable[[Request, Body], Answer]
Operations: TypeAlias = dict[tuple[str, ...], Operation]
"""By method and the query parameters that make another operation of a request, sorted."""
