"""Values: the text clients write, what it must look like, and what it means.

The online store keeps and returns the exact text; the offline store keeps the typed value. Text forms follow the feature
store's developer guide, "feature types": Integral is a signed 64-bit integer, Fractional an IEEE-754 double.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, TypeAlias

from featurestore.model import limits
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureType

Value: TypeAlias = str | list[str] | None
"""What a record holds for one feature: scalar text, the texts of a collection, or nothing."""

INTEGRAL_MIN: Final = -(2**63)
INTEGRAL_MAX: Final = 2**63 - 1

_INTEGRAL: Final = re.compile(r"[+-]?[0-9]{1,40}", re.ASCII)
_FRACTIONAL: Final = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?", re.ASCII)
_INFINITY: Final = float("inf")

EXPECTED: Final = {
    FeatureType.INTEGRAL: "Integral (a whole number from -2^63 to 2^63-1)",
    FeatureType.FRACTIONAL: "Fractional (a finite decimal number such as 0.5 or 1e-3)",
    FeatureType.STRING: f"String of at most {limits.VALUE_CHARS_MAX} characters",
}


def integral(text: str) -> int | None:
    """The integer an Integral text means; `None` if it is not one or does not fit 64 bits."""
    if _INTEGRAL.fullmatch(text) is None:
        return None
    number = int(text)
    return number if INTEGRAL_MIN <= number <= INTEGRAL_MAX else None


def fractional(text: str) -> float | None:
    """The double a Fractional text means; `None` if it is not a number, NaN, or too large to be finite."""
    if _FRACTIONAL.fullmatch(text) is None:
        return None
    number = float(text)
    return number if -_INFINITY < number < _INFINITY else None


def string(text: str) -> str | None:
    return text if len(text) <= limits.VALUE_CHARS_MAX else None


PARSE: Final[dict[FeatureType, Callable[[str], object | None]]] = {
    FeatureType.INTEGRAL: integral,
    FeatureType.FRACTIONAL: fractional,
    FeatureType.STRING: string,
}
"""Typed value of a text, or `None` when the text is not of that type. The empty String is a value, not `None`."""


def record_key(text: str, feature_type: FeatureType) -> str | None:
    """The key of a record identifier: equal for two texts that mean the same identifier, so that online and offline agree
    on what one record is ("10" and "10.0" of a Fractional identifier). `None` if the text is not of that type.
    """
    if feature_type is FeatureType.STRING:
        return string(text)
    if feature_type is FeatureType.INTEGRAL:
        whole = integral(text)
        return None if whole is None else str(whole)
    number = fractional(text)
    return None if number is None else repr(number + 0.0)


def key_of(identifier: str | int | float) -> str:
    """`record_key` of a typed identifier."""
    return repr(identifier + 0.0) if isinstance(identifier, float) else str(identifier)


def collection_fault(definition: FeatureDefinition, texts: list[str]) -> str | None:
    """What is wrong with the elements of a collection, as "expected ..." text; `None` if nothing."""
    if len(texts) > limits.COLLECTION_ELEMENTS_MAX:
        return f"at most {limits.COLLECTION_ELEMENTS_MAX} elements"
    parse = PARSE[definition.type]
    if any(parse(text) is None for text in texts):
        return f"{definition.collection} of {EXPECTED[definition.type]}"
    if definition.collection is CollectionType.VECTOR and len(texts) != definition.dimension:
        return f"a Vector of {definition.dimension} elements"
    return None


def without_repeats(definition: FeatureDefinition, texts: list[str]) -> list[str]:
    """The elements as stored: a Set keeps the first of equal texts, in order; List and Vector keep all."""
    return list(dict.fromkeys(texts)) if definition.collection is CollectionType.SET else texts
