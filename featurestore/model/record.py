"""Records: from what a client wrote to a checked row, and back.

A `RecordPlan` is compiled once per group and schema version and holds all that the record path needs to know about it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final, NamedTuple, TypeAlias

from featurestore.errors import Conflict, Fault, ValidationFailed
from featurestore.model import event_time, limits
from featurestore.model.change import Change, Op, target_bits, write_id
from featurestore.model.codec import encode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import FeatureGroup, FeatureType, StorageType, TargetStore, TtlDuration
from featurestore.model.value import EXPECTED, PARSE, Value, collection_fault, record_key, without_repeats

FeaturePair: TypeAlias = tuple[str, Value]
"""(feature name, value) as a client wrote it."""

_IDENTIFIER_CHARS_PLAIN: Final = limits.RECORD_IDENTIFIER_BYTES_MAX // 4
"""A text of so many characters is not too long, whatever they are."""
ARRANGEMENTS_MAX: Final = 64
"""Orders of features that are remembered of a group; clients use one or two."""
_PLAIN_NUMBERS: Final = {
    FeatureType.INTEGRAL: "[+-]?[0-9]{1,18}",
    FeatureType.FRACTIONAL: r"[+-]?[0-9]{1,30}(?:\.[0-9]{0,30})?",
}
"""Texts that are in range as far as their length goes."""
UPDATABLE: Final = (StorageType.STANDARD_V2, StorageType.IN_MEMORY)
"""Storage types whose records can be updated in part (the API's UpdateRecord page)."""


class Row(NamedTuple):
    """A checked record: the key of its identifier, its event time, and values in definition order."""

    record_id: str
    event_time_us: int
    values: list[Value]


@dataclass(frozen=True, slots=True)
class Patch:
    """A checked UpdateRecord: what is to become of some features of a live record.

    Attributes:
        record_id: key of the record identifier.
        values: by position of the feature; None takes the value away.
        event_time_us: the record's new one; None leaves it.
        ttl: from the new event time; None leaves what the record has.
    """

    record_id: str
    values: Mapping[int, Value]
    event_time_us: int | None
    ttl: TtlDuration | None
    targets: frozenset[TargetStore]


class _Arrangement(NamedTuple):
    """The features of a record in the order in which some client names them: each of them once, all of them known.

    Attributes:
        order: per feature of the group its place among the values; None where that is its own, None in it for one that is not
            named.
        identifier, event_time: their places.
        numbers: picks the texts of numbers out of the values, if there are any.
        are_numbers: matches these, joined by line ends, if they are all plain.
        names_bytes: how much the names are of the record's size.
    """

    order: Sequence[int | None] | None
    identifier: int
    event_time: int
    numbers: Callable[[Sequence[Any]], Sequence[str]] | None
    are_numbers: Callable[[str], object]
    names_bytes: int


class RecordPlan:
    """Everything about one group that is the same for each of its records."""

    def __init__(self, group: FeatureGroup) -> None:
        self.group = group
        self.group_id = group.group_id
        self.names = group.feature_names
        self._index = {name: position for position, name in enumerate(self.names)}
        self._parse = [PARSE[feature.type] for feature in group.features]
        self._collections = [feature.collection is not None for feature in group.features]
        self._identifier_index = self._index[group.record_identifier]
        self._event_time_index = self._index[group.event_time]
        self._identifier_type = group.record_identifier_type
        self.keys_are_written = self._identifier_type is FeatureType.STRING
        """Whether the key of a record is its identifier as it was written."""
        self._event_time_type = group.event_time_type
        self._default_targets = group.default_targets()
        self._default_bits = target_bits(self._default_targets)
        self._arrangements: dict[tuple[str, ...], _Arrangement | None] = {}
        self._default_ttl = group.online.ttl if group.online is not None else None
        self.is_readable = group.online is not None
        self.compiled: dict[object, object] = {}
        """What others have made of this plan and keep as long as it lives."""

    def row(self, pairs: Iterable[FeaturePair], *, path: str = "Record") -> Row:
        """Check one record.

        A pair without a value, or with an empty collection, counts as an absent feature.

        Raises:
            ValidationFailed: unknown or repeated feature, missing identifier or event time, a value that is not of its
                type, or something too long; `path` is how messages call the record.
        """
        pairs = list(pairs)
        usual = self._usual_row(pairs)
        if usual is not None:
            return usual
        values: list[Value] = [None] * len(self.names)
        faults: list[Fault] = []
        self._check(pairs, path, values, faults)
        identifier, written_time = values[self._identifier_index], values[self._event_time_index]
        faulty = {fault.path for fault in faults}
        record_id, time_us = "", 0
        if isinstance(identifier, str):
            record_id = self._record_id(identifier, f"{path}.{self.group.record_identifier}", faults)
        elif f"{path}.{self.group.record_identifier}" not in faulty:
            faults.append(Fault(path, f"a value for the record identifier feature {self.group.record_identifier!r}"))
        if isinstance(written_time, str):
            time_us = self._event_time(written_time, f"{path}.{self.group.event_time}", faults)
        elif f"{path}.{self.group.event_time}" not in faulty:
            faults.append(Fault(path, f"a value for the event time feature {self.group.event_time!r}"))
        if faults:
            raise ValidationFailed(faults)
        return Row(record_id, time_us, values)

    def put(
        self,
        pairs: Iterable[FeaturePair],
        *,
        targets: frozenset[TargetStore] | None = None,
        ttl: TtlDuration | None = None,
        path: str = "Record",
        write_token: str | None = None,
    ) -> Change:
        """The change that PutRecord makes of a record.

        Args:
            targets: stores to write; None for every store the group has.
            ttl: of this record; None for the group's default.
            write_token: of a call that may be repeated.

        Raises:
            ValidationFailed: as `row`, or the group lacks a target store.
        """
        row = self.row(pairs, path=path)
        return self._change(row, Op.PUT, self.targets(targets), self._expiry(row.event_time_us, ttl), write_token)

    def delete(
        self,
        identifier: str,
        written_time: str,
        *,
        hard: bool,
        targets: frozenset[TargetStore] | None = None,
    ) -> Change:
        """The change that DeleteRecord makes; `written_time` has the form of the group's event time feature.

        Raises:
            ValidationFailed: identifier or event time is not of its type, or the group lacks a target store.
        """
        faults: list[Fault] = []
        record_id = self._record_id(identifier, "RecordIdentifierValueAsString", faults)
        time_us = self._event_time(written_time, "EventTime", faults)
        if faults:
            raise ValidationFailed(faults)
        values: list[Value] = [None] * len(self.names)
        values[self._identifier_index] = identifier
        values[self._event_time_index] = written_time
        op = Op.HARD_DELETE if hard else Op.SOFT_DELETE
        return self._change(Row(record_id, time_us, values), op, self.targets(targets), None)

    def patch(
        self,
        identifier: str,
        pairs: Sequence[FeaturePair],
        *,
        targets: frozenset[TargetStore] | None = None,
        ttl: TtlDuration | None = None,
    ) -> Patch:
        """Check an UpdateRecord. A feature without a value, or with an empty collection, is one that the record shall not have.

        Raises:
            ValidationFailed: as `row`; also a group whose storage type has no updates, an identifier in `pairs` that is another
                one, a TTL without an event time, or the offline store as the only target.
        """
        faults: list[Fault] = []
        group = self.group
        if group.online is None or group.online.storage_type not in UPDATABLE:
            faults.append(Fault("FeatureGroupName", f"a feature group with StorageType {' or '.join(UPDATABLE)}", group.name))
        record_id = self._record_id(identifier, "RecordIdentifierValueAsString", faults)
        values: list[Value] = [None] * len(self.names)
        if not 1 <= len(pairs) <= limits.UPDATE_FEATURES_MAX:
            faults.append(Fault("Features", f"1 to {limits.UPDATE_FEATURES_MAX} features", len(pairs)))
            raise ValidationFailed(faults)
        named = self._check(pairs, "Features", values, faults)
        faulty = {fault.path for fault in faults}
        written, written_time = values[self._identifier_index], values[self._event_time_index]
        names_identifier = self._identifier_index in named and f"Features.{group.record_identifier}" not in faulty
        is_other = not isinstance(written, str) or record_key(written, self._identifier_type) != record_id
        if record_id and names_identifier and is_other:
            faults.append(Fault(f"Features.{group.record_identifier}", f"the record's own identifier {identifier!r}", written))
        time_us: int | None = None
        if isinstance(written_time, str):
            time_us = self._event_time(written_time, f"Features.{group.event_time}", faults)
        elif self._event_time_index in named and f"Features.{group.event_time}" not in faulty:
            faults.append(Fault(f"Features.{group.event_time}", "an event time, or none to leave the record's as it is"))
        if ttl is not None and self._event_time_index not in named:
            faults.append(Fault("TtlDuration", f"an event time to begin at: the feature {group.event_time!r} in Features"))
        if targets is not None and TargetStore.ONLINE not in targets:
            faults.append(Fault("TargetStores", "OnlineStore among them, as it has the record to update", sorted(targets)))
        if faults:
            raise ValidationFailed(faults)
        return Patch(record_id, {index: values[index] for index in named}, time_us, ttl, self.targets(targets))

    def merge(self, patch: Patch, values: Sequence[Value], event_time_us: int, expires_at_us: int | None) -> Change:
        """The change that a patch makes of a live record with these values, event time and expiry: a put of the whole record.

        Without a TTL in the patch, a record that expires keeps the distance of its expiry from its event time.

        Raises:
            Conflict: the patch has an older event time than the record.
            ValidationFailed: the merged record is too large.
        """
        time_us = event_time_us if patch.event_time_us is None else patch.event_time_us
        if time_us < event_time_us:
            raise Conflict(
                f"Features.{self.group.event_time}: expected a time not before the record's, "
                f"{format_iso(event_time_us)}, got {format_iso(time_us)}"
            )
        merged = [*values, *[None] * (len(self.names) - len(values))]
        for index, value in patch.values.items():
            merged[index] = value
        record_bytes = sum(map(_bytes_of, self.names, merged))
        if record_bytes > limits.RECORD_BYTES_MAX:
            expected = f"at most {limits.RECORD_BYTES_MAX} bytes of names and values in the whole record"
            raise ValidationFailed.one("Features", expected, record_bytes)
        if patch.ttl is not None:
            expires_at_us = time_us + patch.ttl.ttl_us
        elif expires_at_us is not None:
            expires_at_us += time_us - event_time_us
        return self._change(Row(patch.record_id, time_us, merged), Op.PUT, patch.targets, expires_at_us)

    def written_identifier(self, values: Sequence[Value]) -> str:
        """The identifier of a stored record, as it was written."""
        written = values[self._identifier_index]
        assert isinstance(written, str), "every stored record has its identifier"
        return written

    def record_id(self, identifier: str, *, path: str = "RecordIdentifierValueAsString") -> str:
        """The record key of an identifier that a client asks for.

        Raises:
            ValidationFailed: it is not of the identifier feature's type, empty or too long.
        """
        if self.keys_are_written and 0 < len(identifier) <= _IDENTIFIER_CHARS_PLAIN:
            return identifier
        faults: list[Fault] = []
        key = self._record_id(identifier, path, faults)
        if faults:
            raise ValidationFailed(faults)
        return key

    def are_record_ids(self, identifiers: Sequence[str]) -> bool:
        """Whether each of the identifiers is its own record key, for sure; `record_id` says what is with them otherwise."""
        return self.keys_are_written and all(identifiers) and max(map(len, identifiers), default=0) <= _IDENTIFIER_CHARS_PLAIN

    def targets(self, wanted: frozenset[TargetStore] | None) -> frozenset[TargetStore]:
        """The stores a write goes to.

        Raises:
            ValidationFailed: a wanted store is one the group lacks.
        """
        if wanted is None:
            return self._default_targets
        missing = sorted(wanted - self._default_targets)
        if missing:
            enabled = " or ".join(sorted(self._default_targets))
            raise ValidationFailed.one("TargetStores", f"{enabled}, the stores {self.group.name!r} has", missing[0])
        return wanted

    def selection(self, wanted: Sequence[str] | None) -> list[int] | None:
        """Positions of the named features in definition order; None for all.

        Raises:
            ValidationFailed: a name is not a feature of the group, or there are none.
        """
        if wanted is None:
            return None
        if not wanted:
            raise ValidationFailed.one("FeatureNames", "at least one feature name, or no FeatureNames at all")
        faults = [
            Fault(f"FeatureNames[{position}]", f"a feature of {self.group.name!r}", name)
            for position, name in enumerate(wanted)
            if name not in self._index
        ]
        if faults:
            raise ValidationFailed(faults)
        return sorted({self._index[name] for name in wanted})

    def pairs(self, values: Sequence[Value], selected: Sequence[int] | None = None) -> list[FeaturePair]:
        """A stored record as (name, value) pairs in definition order, absent features left out."""
        if selected is None:
            return [(name, value) for name, value in zip(self.names, values, strict=False) if value is not None]
        return [(self.names[i], values[i]) for i in selected if i < len(values) and values[i] is not None]

    def _usual_row(self, pairs: Sequence[FeaturePair]) -> Row | None:
        """The row of a record that has nothing unusual about it: texts for all features it names, short ones, numbers in plain
        form. None if it has, and for every record that is wrong.
        """
        if not pairs:
            return None
        names, texts = zip(*pairs, strict=True)
        try:
            arrangement = self._arrangements[names]
        except KeyError:
            arrangement = self._remember_arrangement(names)
        if arrangement is None:
            return None
        order, identifier, time, numbers, are_numbers, names_bytes = arrangement
        try:
            whole = "".join(texts)
        except TypeError:  # a value that is absent, or a collection
            return None
        if len(whole) > limits.VALUE_CHARS_MAX or 4 * len(whole) + names_bytes > limits.RECORD_BYTES_MAX:
            return None
        if numbers is not None and are_numbers("\n".join(numbers(texts))) is None:
            return None
        record_id, time_us = texts[identifier], event_time.parse(texts[time], self._event_time_type)
        if not self.keys_are_written:
            record_id = record_key(record_id, self._identifier_type)
        if not record_id or len(record_id) > _IDENTIFIER_CHARS_PLAIN or time_us is None:
            return None
        if order is None:
            return Row(record_id, time_us, list(texts))
        return Row(record_id, time_us, [None if place is None else texts[place] for place in order])

    def _remember_arrangement(self, names: tuple[str, ...]) -> _Arrangement | None:
        """That of these names; None if one is unknown, there twice or of a collection, or identifier or event time miss."""
        if len(self._arrangements) >= ARRANGEMENTS_MAX:
            self._arrangements.clear()
        places = {name: place for place, name in enumerate(names)}
        needed = (self.group.record_identifier, self.group.event_time)
        features = [self.group.features[self._index[name]] for name in names if name in self._index]
        is_whole = len(places) == len(names) == len(features) and places.keys() >= set(needed)
        if not is_whole or any(feature.collection is not None for feature in features):
            self._arrangements[names] = None
            return None
        types = [feature.type for feature in features]
        numeric = [place for place, kind in enumerate(types) if kind is not FeatureType.STRING]
        pattern = re.compile(r"\n".join(_PLAIN_NUMBERS[types[place]] for place in numeric), re.ASCII)
        numbers: Callable[[Sequence[Any]], Sequence[str]] | None = None
        if numeric:
            first, *more = numeric
            numbers = itemgetter(first, *more) if more else lambda texts: (texts[first],)
        order = [places.get(name) for name in self.names]
        identifier, time = (places[name] for name in needed)
        size = sum(map(len, names))
        made = _Arrangement(None if names == tuple(self.names) else order, identifier, time, numbers, pattern.fullmatch, size)
        self._arrangements[names] = made
        return made

    def _check(self, pairs: Iterable[FeaturePair], path: str, values: list[Value], faults: list[Fault]) -> set[int]:
        """Put what is right of a record's pairs into `values`, and what is wrong into `faults`; returns the features named."""
        seen: set[int] = set()
        record_bytes = 0
        for position, (name, value) in enumerate(pairs):
            index = self._index.get(name)
            if index is None:
                faults.append(Fault(f"{path}[{position}].FeatureName", f"a feature of {self.group.name!r}", name))
                continue
            if index in seen:
                faults.append(Fault(f"{path}[{position}].FeatureName", "each feature at most once", name))
                continue
            seen.add(index)
            if value is None or value == []:
                continue
            record_bytes += len(name)
            if isinstance(value, str):
                if self._collections[index]:
                    expected = f"ValueAsStringList, as {name!r} is a {self.group.features[index].collection}"
                    faults.append(Fault(f"{path}[{position}].ValueAsString", expected, value))
                elif len(value) > limits.VALUE_CHARS_MAX or self._parse[index](value) is None:
                    faults.append(self._value_fault(path, index, value))
                else:
                    record_bytes += len(value) if value.isascii() else len(value.encode())
                    values[index] = value
            else:
                fault = self._collection_fault(f"{path}[{position}]", index, value)
                if fault is not None:
                    faults.append(fault)
                else:
                    record_bytes += sum(len(text.encode()) for text in value)
                    values[index] = without_repeats(self.group.features[index], value)
        if record_bytes > limits.RECORD_BYTES_MAX:
            faults.append(Fault(path, f"at most {limits.RECORD_BYTES_MAX} bytes of names and values", record_bytes))
        return seen

    def _change(
        self,
        row: Row,
        op: Op,
        targets: frozenset[TargetStore],
        expires_at_us: int | None,
        write_token: str | None = None,
    ) -> Change:
        version, group_id = self.group.schema_version, self.group.group_id
        return Change(
            group_id,
            version,
            row.record_id,
            row.event_time_us,
            op,
            self._default_bits if targets is self._default_targets else target_bits(targets),
            expires_at_us,
            encode_values(version, row.values),
            None if write_token is None else write_id(group_id, row.record_id, write_token),
        )

    def _expiry(self, time_us: int, ttl: TtlDuration | None) -> int | None:
        effective = self._default_ttl if ttl is None else ttl
        return None if effective is None else time_us + effective.ttl_us

    def _record_id(self, identifier: str, path: str, faults: list[Fault]) -> str:
        if identifier == "":
            faults.append(Fault(path, "a non-empty record identifier", identifier))
            return ""
        key = record_key(identifier, self._identifier_type)
        if key is None:
            faults.append(Fault(path, EXPECTED[self._identifier_type], identifier))
            return ""
        if len(key) > limits.RECORD_IDENTIFIER_BYTES_MAX or len(key.encode()) > limits.RECORD_IDENTIFIER_BYTES_MAX:
            faults.append(Fault(path, f"at most {limits.RECORD_IDENTIFIER_BYTES_MAX} bytes", identifier))
            return ""
        return key

    def _event_time(self, written: str, path: str, faults: list[Fault]) -> int:
        time_us = event_time.parse(written, self._event_time_type)
        if time_us is None:
            faults.append(Fault(path, event_time.expected(self._event_time_type), written))
            return 0
        return time_us

    def _value_fault(self, path: str, index: int, value: str) -> Fault:
        feature = self.group.features[index]
        if index == self._event_time_index and feature.type is not FeatureType.STRING:
            return Fault(f"{path}.{feature.name}", event_time.EPOCH_EXPECTED, value)
        return Fault(f"{path}.{feature.name}", EXPECTED[feature.type], value)

    def _collection_fault(self, path: str, index: int, value: list[str]) -> Fault | None:
        feature = self.group.features[index]
        if feature.collection is None:
            return Fault(f"{path}.ValueAsStringList", f"ValueAsString, as {feature.name!r} is no collection", value[:3])
        expected = collection_fault(feature, value)
        return None if expected is None else Fault(f"{path}.ValueAsStringList", expected, value[:3])


def _bytes_of(name: str, value: Value) -> int:
    """What one feature adds to the size of a record."""
    if value is None:
        return 0
    return len(name) + (len(value.encode()) if isinstance(value, str) else sum(len(text.encode()) for text in value))
