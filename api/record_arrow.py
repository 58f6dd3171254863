"""Records as an Arrow stream: the answer to a BatchGetRecord for a reader that wants columns of numbers and not texts.

One row per record found, in the order asked:

    FeatureGroupName                string                  name or ARN, as asked
    RecordIdentifierValueAsString   string                  as asked
    ExpiresAt                       timestamp[us, UTC]      only if asked for; null without expiry
    <features>                      int64 | double | string | list<...>     null where absent, and for features of other groups

The features of the first entry come first, in definition order, then those of the next one that are not there yet. What JSON
has beside the records is in the metadata of the schema, under the same names, as JSON.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from api.batch_get import BatchGet
from api.record_json import CHOICES_MAX, json_text
from featurestore.errors import Fault, ValidationFailed
from featurestore.model.cells import arrow_type
from featurestore.model.codec import decode_row
from featurestore.model.feature_group import FeatureDefinition, FeatureType
from featurestore.model.plain_column import INSTANT
from featurestore.model.record import RecordPlan
from featurestore.model.value import Value
from featurestore.offline.schema import typed_array
from featurestore.online.protocol import Found

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
CELLS_MAX: Final = 1 << 20
"""Identifiers times features of one answer. A column has room for every row, also for those of groups that lack the feature."""
BATCH_CELLS_MAX: Final = 1 << 16
BATCH_ROWS_MIN: Final = 32
"""After so many cells, but not fewer rows, a record batch ends and others have their turn. With fewer rows, what
Arrow does for each column of each batch would cost more than the values.
"""
BATCH_BYTES_MAX: Final = 16 << 20
"""After so many bytes of stored values, too."""

GROUP: Final = "FeatureGroupName"
IDENTIFIER: Final = "RecordIdentifierValueAsString"
EXPIRES_AT: Final = "ExpiresAt"

_WEIGHT: Final = re.compile(r"0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?")
_JSON_RANGES: Final = ("application/json", "application/*", "*/*")
"""Media ranges that have JSON in them, the most specific one first."""


def accepts_arrow(accept: bytes) -> bool:
    """Whether an Accept header names Arrow, and does not prefer JSON by its weights (RFC 9110, 12.5.1).

    Raises:
        ValidationFailed: it names Arrow, and a weight in it is none.
    """
    if b"arrow" not in accept.lower():
        return False
    weights: dict[str, float] = {}
    for item in accept.decode("latin-1").lower().split(","):
        kind, *parameters = [part.strip(" \t") for part in item.split(";")]
        weight = next((text.removeprefix("q=") for text in parameters if text.startswith("q=")), "1")
        if _WEIGHT.fullmatch(weight) is None:
            raise ValidationFailed.one("Accept", f"a weight from 0 to 1 for {kind!r}, such as q=0.5", weight)
        weights[kind] = max(float(weight), weights.get(kind, 0))
    arrow = weights.get(ARROW_STREAM, 0)
    return 0 < arrow >= next((weights[kind] for kind in _JSON_RANGES if kind in weights), 0)


class RecordColumns:
    """Features of one group as columns.

    Attributes:
        features: those that are asked for, in definition order.
    """

    __slots__ = ("_positions", "_width", "features")

    def __init__(self, plan: RecordPlan, selected: Sequence[int] | None) -> None:
        positions = range(len(plan.names)) if selected is None else selected
        self.features = [plan.group.features[position] for position in positions]
        # In a decoded row, in which the schema version comes before the first value.
        self._positions = {feature.name: position + 1 for feature, position in zip(self.features, positions, strict=True)}
        self._width = len(plan.names) + 1

    def picker(self, names: Sequence[str]) -> itemgetter[Any]:
        """Picks from a `row` the identifier and the values of one or more features, None for those not among `features`."""
        return itemgetter(0, *[self._positions.get(name, self._width) for name in names])

    def row(self, identifier: str, values: bytes) -> list[Any]:
        """The identifier, the values of all features of the group, and a None.

        Args:
            values: as stored.

        Raises:
            StoreCorrupt: the values can't be read.
        """
        row: list[Any] = decode_row(values)
        row[0] = identifier
        del row[self._width :]  # features that another process has just added
        row += [None] * (self._width + 1 - len(row))  # and some that had not been added when this one was written
        return row


def record_columns(plan: RecordPlan, features: Sequence[str] | None) -> RecordColumns:
    """Those of a group and the features asked for, made once for each choice.

    Raises:
        ValidationFailed: a name is not a feature of the group, or there are none.
    """
    choice = (RecordColumns, None if features is None else tuple(features))
    made = plan.compiled.get(choice)
    if made is None:
        made = RecordColumns(plan, plan.selection(features))
        if len(plan.compiled) >= CHOICES_MAX:
            plan.compiled.clear()
        plan.compiled[choice] = made
    assert isinstance(made, RecordColumns), "nobody else keeps something there"
    return made


class RecordArrow:
    """The stream that answers one BatchGetRecord.

    Raises:
        ValidationFailed: there is no such table: two features of one name have different types, or one is named like a column
            that every answer has; or it would be too large.
    """

    def __init__(self, batch: BatchGet[RecordColumns]) -> None:
        self._batch = batch
        features = _features(batch)
        cells = sum(len(record_ids) for _, record_ids in batch.wanted) * len(features)
        if cells > CELLS_MAX:
            expected = (
                f"at most {CELLS_MAX:,} identifiers times features in an Arrow answer; ask in parts, or for some FeatureNames"
            )
            raise ValidationFailed.one("Identifiers", expected, cells)
        self._rows_max = max(BATCH_ROWS_MIN, BATCH_CELLS_MAX // max(1, len(features)))
        # Scalars of one type are converted as one column: what Arrow does costs by the call rather than by the value.
        self._runs = [[item for item in features if item.collection is None and item.type is kind] for kind in FeatureType]
        self._runs += [[item] for item in features if item.collection is not None]
        self._order = [item.name for item in chain.from_iterable(self._runs)]
        fields = [pa.field(GROUP, pa.string()), pa.field(IDENTIFIER, pa.string())]
        if batch.with_expiry:
            fields.append(pa.field(EXPIRES_AT, INSTANT))
        fields += [pa.field(item.name, arrow_type(item)) for item in features]
        self._schema = pa.schema(fields, {"Errors": json_text(batch.errors), "UnprocessedIdentifiers": "[]"})

    async def stream(self, items: Sequence[Found]) -> bytes:
        """The bytes of the stream. Others have their turn between two record batches.

        Args:
            items: what was found of each key.

        Raises:
            StoreCorrupt: the values of a record can't be read, or are not of their type.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, self._schema) as writer:
            for number, record_batch in enumerate(self._record_batches(items)):
                if number:
                    await asyncio.sleep(0)
                writer.write_batch(record_batch)
        stream: bytes = sink.getvalue().to_pybytes()
        return stream

    def _record_batches(self, items: Sequence[Found]) -> Iterator[pa.RecordBatch]:
        groups: list[str] = []
        expiries: list[int | None] = []
        rows: list[Sequence[Any]] = []
        size_bytes = 0
        end = 0
        for entry in self._batch.entries:
            start, end = end, end + len(entry.identifiers)
            form = entry.form
            pick = form.picker(self._order)
            for identifier, item in zip(entry.identifiers, items[start:end], strict=True):
                if item is None:
                    continue
                values, expires_at_us = item
                groups.append(entry.group)
                expiries.append(expires_at_us)
                rows.append(pick(form.row(identifier, values)))
                size_bytes += len(values)
                if len(rows) >= self._rows_max or size_bytes >= BATCH_BYTES_MAX:
                    yield self._record_batch(groups, expiries, rows)
                    groups, expiries, rows, size_bytes = [], [], [], 0
        if rows:
            yield self._record_batch(groups, expiries, rows)

    def _record_batch(
        self, groups: Sequence[str], expiries: Sequence[int | None], rows: Sequence[Sequence[Any]]
    ) -> pa.RecordBatch:
        """Rows as columns.

        Args:
            rows: the identifier, then values in the order of conversion.
        """
        identifiers, *values = zip(*rows, strict=True)
        columns = {GROUP: pa.array(groups, pa.string()), IDENTIFIER: pa.array(identifiers, pa.string())}
        if self._batch.with_expiry:
            columns[EXPIRES_AT] = pa.array(expiries, INSTANT)
        columns |= zip(self._order, self._converted(iter(values)), strict=True)
        return pa.RecordBatch.from_arrays([columns[name] for name in self._schema.names], schema=self._schema)

    def _converted(self, values: Iterator[Sequence[Value]]) -> Iterator[pa.Array]:
        for run in self._runs:
            yield from _typed_arrays(run, list(islice(values, len(run))))


def _typed_arrays(features: Sequence[FeatureDefinition], columns: Sequence[Sequence[Value]]) -> Iterator[pa.Array]:
    """Values of features of one type, as columns of it.

    Raises:
        StoreCorrupt: a text is not of its feature's type.
    """
    if len(features) > 1:
        try:
            whole = pc.cast(pa.array(list(chain.from_iterable(columns)), pa.string()), arrow_type(features[0]))
        except pa.ArrowInvalid:
            pass  # a text that Arrow does not take, such as "+1"
        else:
            rows = len(columns[0])
            yield from (whole.slice(start, rows) for start in range(0, len(whole), rows))
            return
    yield from map(typed_array, features, columns)


def _features(batch: BatchGet[RecordColumns]) -> list[FeatureDefinition]:
    """The features of all entries, each name once.

    Raises:
        ValidationFailed
    """
    fixed = (GROUP, IDENTIFIER, EXPIRES_AT) if batch.with_expiry else (GROUP, IDENTIFIER)
    known: dict[str, tuple[FeatureDefinition, str]] = {}
    faults: list[Fault] = []
    for entry in batch.entries:
        path = f"Identifiers[{entry.place}].FeatureNames"
        for feature in entry.form.features:
            first, group = known.setdefault(feature.name, (feature, entry.group))
            if feature.name in fixed:
                expected = "features not named like a column of every Arrow answer; leave it out, or ask for JSON"
                faults.append(Fault(path, expected, feature.name))
            elif first is not feature and arrow_type(first) != arrow_type(feature):
                expected = f"{feature.name!r} of type {_words(first)}, as in {group!r}, as it is one column; ask in parts"
                faults.append(Fault(path, expected, _words(feature)))
    if faults:
        raise ValidationFailed(faults)
    return [feature for feature, _ in known.values()]


def _words(feature: FeatureDefinition) -> str:
    return feature.type.value if feature.collection is None else f"{feature.collection} of {feature.type}"
