"""Which rows belong to erased records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.model.feature_group import FeatureGroup, FeatureType
from featurestore.model.value import key_of
from featurestore.offline.ledger import Ledger

Mask: TypeAlias = np.ndarray[Any, np.dtype[np.bool_]]
Int64s: TypeAlias = np.ndarray[Any, np.dtype[np.int64]]


def typed_key(group: FeatureGroup, key: str) -> str | int | float:
    """A record key as a value of the identifier's column."""
    if group.record_identifier_type is FeatureType.STRING:
        return key
    return int(key) if group.record_identifier_type is FeatureType.INTEGRAL else float(key)


def rows_of(group: FeatureGroup, identifiers: pa.ChunkedArray, until_us: Mapping[str, int], times_us: Sequence[Int64s]) -> Mask:
    """The rows of the records in `until_us` (key to the end of what is erased of it) that have one of their times, in
    microseconds since 1970, not after that end. With no times, all rows of the records.
    """
    values = pa.array([typed_key(group, key) for key in until_us])
    sought = identifiers.cast(values.type)
    if pa.types.is_floating(values.type):
        sought = pc.add(sought, 0.0)  # as keys are made: zero has no sign
    position = pc.fill_null(pc.index_in(sought, value_set=values), -1).to_numpy()
    found: Mask = position >= 0
    if not times_us or not found.any():
        return found
    ends = np.array(list(until_us.values()), np.int64)[position]
    early = np.zeros(len(found), np.bool_)
    for times in times_us:
        early |= times <= ends
    return found & early


def erased_rows(ledger: Ledger, group: FeatureGroup, identifiers: pa.ChunkedArray, times_us: Sequence[Int64s]) -> Mask | None:
    """`rows_of` for what the ledger says by now; None if it says nothing of these records."""
    erased = ledger.erased(group.group_id)
    if not erased:
        return None
    until_us = {}
    for identifier in pc.unique(identifiers).to_pylist():
        key = key_of(identifier)
        if (until := erased.until_us(key)) is not None:
            until_us[key] = until
    return rows_of(group, identifiers, until_us, times_us) if until_us else None
