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
        self._parts: list[str] = ["{"]
        for position in positions:
            start = '"Record":[{' if len(self._parts) == 1 else '"},{'
            self._parts += [f'{start}"FeatureName":{json_text(plan.names[position])},"ValueAsString":"', ""]
        self._parts.append('"}]}')
        self._pick: Callable[[Sequence[Any]], Sequence[Any]] | None = None
        if selected is not None:
            first, *more = (position + 1 for position in selected)
            self._pick = itemgetter(first, *more) if more else lambda row: (row[first],)

    def whole(self, values: bytes, expires_at_us: int | None) -> bytes:
        """The answer to a GetRecord; see `text`."""
        return self.text("{", values, expires_at_us).encode()

    def text(self, before: str, values: bytes, expires_at_us: int | None) -> str:
        """The object that stands for a record, with the members Record and, unless the record has no expiry, ExpiresAt.

        Args:
            before: how it begins: a brace, and members that come first.
            values: as stored.
            expires_at_us: microseconds since 1970.

        Raises:
            StoreCorrupt: the values can't be read.
        """
        row, texts = unchecked_row(values)
        if len(texts.translate(None, ESCAPED)) == len(texts):
            parts = self._parts.copy()
            try:
                chosen: Any = row[1:] if self._pick is None else self._pick(row)
                parts[2:-1:2] = chosen
                parts[0] = before
                if expires_at_us is not None:
                    parts[-1] = f'"}}]{_expiry(expires_at_us)}}}'
                return "".join(parts)
            except (TypeError, ValueError, IndexError):
                pass  # a feature is absent or a collection, or a value is none at all
        pairs = self._plan.pairs(decode_values(values)[1], self._selected)
        found = [
            {"FeatureName": name, "ValueAsString" if isinstance(value, str) else "ValueAsStringList": value}
            for name, value in pairs
        ]
        return f'{before}"Record":{json_text(found)}{"" if expires_at_us is None else _expiry(expires_at_us)}}}'


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
    rest = iter(items)
    for entry in batch.entries:
        start = f'{{"FeatureGroupName":{json_text(entry.group)},"RecordIdentifierValueAsString":'
        text = entry.form.text
        for identifier, item in zip(_json_texts(entry.identifiers), rest, strict=False):
            if item is not None:
                records.append(text(f"{start}{identifier},", item[0], item[1] if with_expiry else None))
    return f'{{"Records":[{",".join(records)}],"Errors":{json_text(batch.errors)},"UnprocessedIdentifiers":[]}}'.encode()


CHOICES_MAX: Final = 256
"""Choices of features of one group that are remembered."""


def json_text(value: object) -> str:
    """A value as JSON."""
    return _encode(value).decode()


def _json_texts(texts: Sequence[str]) -> list[str]:
    """Each text as JSON."""
    together = "".join(texts).encode()
    if len(together.translate(None, ESCAPED)) == len(together):
        return [f'"{text}"' for text in texts]
    return [json_text(text) for text in texts]


def _expiry(expires_at_us: int) -> str:
    return f',"ExpiresAt":"{format_iso(expires_at_us)}"'
