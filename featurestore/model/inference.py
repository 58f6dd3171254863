"""Feature definitions from what data looks like: Python values and Arrow columns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import pyarrow as pa

from featurestore.errors import Fault, ValidationFailed
from featurestore.model.event_time import format_for
from featurestore.model.feature_group import FeatureDefinition, FeatureType
from featurestore.model.value import PARSE, Value

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def definitions_of(table: pa.Table) -> tuple[FeatureDefinition, ...]:
    """One feature per column: whole numbers and bools are Integral, other numbers Fractional, texts and times String.

    Raises:
        ValidationFailed: a column of another type; name its feature type instead.
    """
    features: list[FeatureDefinition] = []
    faults: list[Fault] = []
    for name, kind in zip(table.column_names, table.schema.types, strict=True):
        inferred = _feature_type(kind.value_type if pa.types.is_dictionary(kind) else kind)
        if inferred is None:
            faults.append(Fault(name, "a column of numbers, texts or times, or a feature type given for it", str(kind)))
        else:
            features.append(FeatureDefinition(name, inferred))
    if faults:
        raise ValidationFailed(faults)
    return tuple(features)


def definitions_from(types: Mapping[str, str]) -> tuple[FeatureDefinition, ...]:
    """Scalar features from a mapping of name to feature type, in its order.

    Raises:
        ValidationFailed: a type that is none.
    """
    known = {kind.value: kind for kind in FeatureType}
    faults = [
        Fault(f"features[{name!r}]", f"one of {', '.join(known)}", kind) for name, kind in types.items() if kind not in known
    ]
    if faults:
        raise ValidationFailed(faults)
    return tuple(FeatureDefinition(name, known[kind]) for name, kind in types.items())


def text_of(value: object, definition: FeatureDefinition, *, path: str) -> Value:
    """A Python value as the text that PutRecord would be sent: `str` of integers, `repr` of floats, ISO or epoch of aware
    datetimes (by the feature's type), None for None and NaN; sequences for collections.

    Raises:
        ValidationFailed: a bool, a naive datetime, or any other type.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        raise ValidationFailed.one(path, f"{definition.type}, not a bool", value)
    if isinstance(value, datetime):
        return format_for(datetime_us(value, path=path), definition.type)
    if isinstance(value, Sequence) and definition.collection is not None:
        texts = [text_of(element, definition, path=f"{path}[{index}]") for index, element in enumerate(value)]
        if any(not isinstance(text, str) for text in texts):
            raise ValidationFailed.one(path, "a collection without missing elements", value)
        return [text for text in texts if isinstance(text, str)]
    if hasattr(value, "item"):  # a numpy scalar
        return text_of(value.item(), definition, path=path)
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        return None if value != value else repr(value)
    raise ValidationFailed.one(path, str(definition.type), value)


def datetime_us(moment: datetime, *, path: str) -> int:
    """Microseconds since 1970.

    Raises:
        ValidationFailed: the datetime is naive: which instant it means is anybody's guess.
    """
    if moment.tzinfo is None:
        raise ValidationFailed.one(path, "a datetime with a time zone", moment)
    since = moment - EPOCH
    return (since.days * 86_400 + since.seconds) * 1_000_000 + since.microseconds


def typed(value: Value, definition: FeatureDefinition) -> object:
    """The Python value a stored text means: int, float, str, or a list of them; None stays None."""
    parse = PARSE[definition.type]
    if value is None:
        return None
    return [parse(text) for text in value] if isinstance(value, list) else parse(value)


def _feature_type(kind: pa.DataType) -> FeatureType | None:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind):
        return FeatureType.INTEGRAL
    if pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return FeatureType.FRACTIONAL
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return FeatureType.STRING
    if pa.types.is_timestamp(kind):
        return FeatureType.STRING
    return None
