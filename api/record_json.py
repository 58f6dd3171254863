"""The JSON of records, put together from stored values and ready-made text.

A record is mostly names, the same for every record of its group. A `RecordJson` holds all that text as JSON already; where the
values need no escaping either, they are set into it as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from api.batch_get import BatchGet
from featurestore.model.codec import decode_values, unchecked_row
from featurestore.model.event_time import format_iso
from featurestore.model.record import RecordPlan
from featurestore.online.protocol import Found

ESCAPED: Final = bytes(range(0x20)) + b'"\\'
"""Bytes that JSON texts do not hold as they are."""

_encode: Final = msgspec.json.Encoder().encode


class RecordJson:
    """Of one group, all features or some of them.

    Args:
        selected: positions of the features, in definition order; None for all.
    """

    __slots__ = ("_parts", "_pick", "_plan", "_selected")

    def __init__(self, plan: RecordPlan, selected: Sequence[int] | None) -> None:
        self._plan = plan
        self._selected = None if selected is None else list(selected)
        positions = range(len(plan.names)) if selected is None else selected
        self._parts: list[str] = [""]
        for position in positions:
            start = '"Record":[{' if len(self._parts) == 1 else '"},{'
            self._parts += [f'{start}"FeatureName":{json_text(plan.names[position])},"ValueAsString":"', ""]
        self._parts.append("")
        self._pick: Callable[[Sequence[Any]], Sequence[Any]] | None = None
        if selected is not None:
            first, *more = (position + 1 for position in selected)
            self._pick = itemgetter(first, *more) if more else lambda row: (row[first],)

    def whole(self, values: bytes, expires_at_us: int | None) -> bytes:
        """The answer to a GetRecord; see `members`."""
        return self.members("{", values, expires_at_us, "}").encode()

    def members(self, before: str, values: bytes, expires_at_us: int | None, end: str = "") -> str:
        """Members of the object that stands for a record: `before`, Record, ExpiresAt unless the record has no expiry, `end`.

        Args:
            values: as stored.
            expires_at_us: microseconds since 1970.

        Raises:
            StoreCorrupt: the values can't be read.
        """
        after = end if expires_at_us is None else f',"ExpiresAt":"{format_iso(expires_at_us)}"{end}'
        row, texts = unchecked_row(values)
        if len(texts.translate(None, ESCAPED)) == len(texts):
            parts = self._parts.copy()
            try:
                chosen: Any = row[1:] if self._pick is None else self._pick(row)
                parts[2:-1:2] = chosen
                parts[0] = before
                parts[-1] = f'"}}]{after}'
                return "".join(parts)
            except (TypeError, ValueError, IndexError):
                pass  # a feature is absent or a collection, or a value is none at all
        pairs = self._plan.pairs(decode_values(values)[1], self._selected)
        found = [
            {"FeatureName": name, "ValueAsString" if isinstance(value, str) else "ValueAsStringList": value}
            for name, value in pairs
        ]
        return f'{before}"Record":{json_text(found)}{after}'


def record_json(plan: RecordPlan, features: Sequence[str] | None) -> RecordJson:
    """That of a group and the features asked for, made once for each choice.

    Raises:
        ValidationFailed: a name is not a feature of the group, or there are none.
    """
    choice = None if features is None else tuple(features)
    made = plan.compiled.get(choice)
    if made is None:
        made = RecordJson(plan, plan.selection(features))
        if len(plan.compiled) >= CHOICES_MAX:
            plan.compiled.clear()
        plan.compiled[choice] = made
    assert isinstance(made, RecordJson), "nobody else keeps something there"
    return made


def batch_json(batch: BatchGet[RecordJson], items: Sequence[Found]) -> bytes:
    """The answer to a BatchGetRecord.

    Args:
        items: what was found of each key.

    Raises:
        StoreCorrupt: the values of a record can't be read.
    """
    records: list[str] = []
    with_expiry = batch.with_expiry
    end = 0
    for entry in batch.entries:
        start, end = end, end + len(entry.identifiers)
        before = f'{{"FeatureGroupName":{json_text(entry.group)},"RecordIdentifierValueAsString":'
        members = entry.form.members
        for identifier, item in zip(entry.identifiers, items[start:end], strict=True):
            if item is not None:
                expires_at_us = item[1] if with_expiry else None
                records.append(members(f"{before}{json_text(identifier)},", item[0], expires_at_us))
    text = f"{'},'.join(records)}{'}' if records else ''}"
    return f'{{"Records":[{text}],"Errors":{json_text(batch.errors)},"UnprocessedIdentifiers":[]}}'.encode()


CHOICES_MAX: Final = 256
"""Choices of features of one group that are remembered."""


def json_text(value: object) -> str:
    """A value as JSON."""
    return _encode(value).decode()
