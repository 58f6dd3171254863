"""A BatchGetRecord, planned: what to read, and what becomes of it in whatever form it is answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

Form = TypeVar("Form")
"""What is known of a group's features that are asked for, as the form of the answer needs it."""


class Entry(msgspec.Struct, Generic[Form], frozen=True, gc=False):
    """Records of one group.

    Attributes:
        place: among the Identifiers of the request.
        group: name or ARN, as asked.
        identifiers: as asked, those that are well formed.
    """

    place: int
    group: str
    identifiers: Sequence[str]
    form: Form


class BatchGet(msgspec.Struct, Generic[Form], frozen=True):
    """What one request asks for.

    Attributes:
        entries: those of groups and features that there are, in the order asked.
        wanted: per entry the group's id and the keys of the records.
        errors: what the others are answered, as values of JSON.
        with_expiry: whether ExpiresAt is asked for.
    """

    entries: Sequence[Entry[Form]]
    wanted: Sequence[tuple[int, Sequence[str]]]
    errors: Sequence[object]
    with_expiry: bool
