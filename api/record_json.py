"""The JSON of records, put together from stored values and ready-made text.

A record is mostly names, the same for every record of its group. A `RecordJson` holds all that text as JSON already; where the
values need no escaping either, they are set into it as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any, Final

import msgspec

from api.batch_get import BatchGet
from featurestore.errors import StoreCorrupt
from featurestore.model.codec import decode_values, unchecked_row, unchecked_rows
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

    __slots__ = ("_parts", "_pick", "_plan", "_selected", "_width")

    def __init__(self, plan: RecordPlan, selected: Sequence[int] | None) -> None:
        self._plan = plan
        self._selected = None if selected is None else list(selected)
        self._width = len(plan.names) + 1
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
            parts[0] = before
            if expires_at_us is not None:
                parts[-1] = self._end(expires_at_us)
            try:
                parts[2:-1:2] = row[1:] if self._pick is None else self._pick(row)
                return "".join(parts)
            except (TypeError, ValueError, LookupError):
                row += [None] * (self._width - len(row))  # a feature is absent, or worse
            try:
                parts[2:-1:2] = chosen = row[1:] if self._pick is None else self._pick(row)
                for position, value in enumerate(chosen):
                    if value is None:
                        _leave_out(parts, 0, position)
                return "".join(parts)
            except (TypeError, ValueError, LookupError):
                pass  # the first feature is absent, one is a collection, or a value is none at all
        pairs = self._plan.pairs(decode_values(values)[1], self._selected)
        found = [
            {"FeatureName": name, "ValueAsString" if isinstance(value, str) else "ValueAsStringList": value}
            for name, value in pairs
        ]
        return f'{before}"Record":{json_text(found)}{"" if expires_at_us is None else _expiry(expires_at_us)}}}'

    def texts(self, befores: Sequence[str], values: Sequence[bytes], expire_at_us: Sequence[int | None]) -> str:
        """`text` of some records, one behind the other; quicker than one by one."""
        together = self._together(befores, values, expire_at_us)
        return "".join(map(self.text, befores, values, expire_at_us)) if together is None else together

    def _together(self, befores: Sequence[str], values: Sequence[bytes], expire_at_us: Sequence[int | None]) -> str | None:
        """`texts`, unless a value can't be set in as it is, or can't be read."""
        width, stride = self._width, len(self._parts)
        try:
            rows = unchecked_rows(values)
            if set(map(type, rows)) != {list}:
                return None
            if set(map(len, rows)) != {width}:
                for row in rows:
                    row += [None] * (width - len(row))
            columns = list(zip(*rows, strict=True))
            chosen = columns[1:] if self._pick is None else self._pick(columns)
            parts = self._parts * len(rows)
            parts[::stride] = befores
            texts: Iterable[str] = chain.from_iterable(chosen)
            for position, column in enumerate(chosen):
                parts[2 * position + 2 :: stride] = column
                if None in column:
                    texts = filter(None, chain.from_iterable(chosen))
                    for place, value in enumerate(column):
                        if value is None:
                            _leave_out(parts, place * stride, position)
            all_texts = "".join(texts)
            if len(_encode(all_texts)) > len(all_texts.encode()) + 2:  # the quotes
                return None
            for place, expires_at_us in enumerate(expire_at_us):
                if expires_at_us is not None:
                    parts[(place + 1) * stride - 1] = self._end(expires_at_us)
            return "".join(parts)
        except (TypeError, ValueError, StoreCorrupt):
            return None

    @staticmethod
    def _end(expires_at_us: int) -> str:
        return f'"}}]{_expiry(expires_at_us)}}}'


def _leave_out(parts: list[str], start: int, position: int) -> None:
    """Take a feature out of a record's parts, which begin at `start`.

    Raises:
        ValueError: it is the first one, with which the list begins.
    """
    if position == 0:
        raise ValueError
    parts[start + 2 * position + 1] = parts[start + 2 * position + 2] = ""


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
    rest = iter(items)
    for entry in batch.entries:
        start = f',{{"FeatureGroupName":{json_text(entry.group)},"RecordIdentifierValueAsString":'
        befores, values, expire_at_us = [], [], []
        for identifier, item in zip(_json_texts(entry.identifiers), rest, strict=False):
            if item is not None:
                befores.append(f"{start}{identifier},")
                values.append(item[0])
                expire_at_us.append(item[1] if batch.with_expiry else None)
        if values:
            records.append(entry.form.texts(befores, values, expire_at_us))
    return f'{{"Records":[{"".join(records)[1:]}],"Errors":{json_text(batch.errors)},"UnprocessedIdentifiers":[]}}'.encode()


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
