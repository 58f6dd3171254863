"""Search over feature groups and features: which properties there are, and expressions checked against them.

Names, operators and limits follow the Search operation of the SageMaker API. Everything here is pure: an expression is
checked and turned into typed conditions; who keeps the groups evaluates them. What a condition means:

- A filter on a property with several values (`FeatureDefinitions.FeatureName`, `AllTags`) is met if one value meets it.
- `NotEquals` is met exactly when `Equals` is not, so also by what has no such property.
- Texts are compared as they are, by code point; numbers by value.
- Times are compared as precisely as the filter's value is written: whole seconds, or milliseconds if it has a fraction.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from typing import Final, TypeAlias

from featurestore.errors import Fault, ValidationFailed
from featurestore.model import limits
from featurestore.model.feature_group import FeatureGroup


class SearchResource(StrEnum):
    """What is searched for. The service has more kinds of resources than a feature store."""

    FEATURE_GROUP = "FeatureGroup"
    FEATURE_METADATA = "FeatureMetadata"


class Operator(StrEnum):
    EQUALS = "Equals"
    NOT_EQUALS = "NotEquals"
    GREATER_THAN = "GreaterThan"
    GREATER_THAN_OR_EQUAL_TO = "GreaterThanOrEqualTo"
    LESS_THAN = "LessThan"
    LESS_THAN_OR_EQUAL_TO = "LessThanOrEqualTo"
    CONTAINS = "Contains"
    EXISTS = "Exists"
    NOT_EXISTS = "NotExists"
    IN = "In"


class BooleanOperator(StrEnum):
    AND = "And"
    OR = "Or"


class Kind(StrEnum):
    """Type of a property, in the words of messages."""

    TEXT = "text"
    NUMBER = "number"
    TIME = "time"
    FLAG = "true or false"
    STRUCTURE = "structure"


class Scope(StrEnum):
    """Where the values of a property are."""

    RESOURCE = "resource"
    """One value, or none, of the group or feature itself."""
    DEFINITIONS = "definitions"
    """One of each feature of the group."""
    PAIR = "pair"
    """The value of the tag (of a group) or parameter (of a feature) with the property's key."""
    ALL_PAIRS = "all pairs"
    """Keys and values of all tags or parameters."""
    PAIR_PARTS = "pair parts"
    """Within nested filters: Key or Value of one tag or parameter."""


@dataclass(frozen=True, slots=True)
class Property:
    """A property that can be searched by.

    Attributes:
        name: as clients write it; of a pair the part before the key.
        key: of the tag or parameter, if it is one.
    """

    name: str
    kind: Kind
    scope: Scope = Scope.RESOURCE
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """The whole numbers from `start` up to but without `end` that a filter's value means; empty between two of them."""

    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Condition:
    """A checked filter. `operand` is a text for Equals, NotEquals and Contains, texts for In, a span for numbers, times (in
    microseconds) and flags (0 and 1), None for Exists and NotExists."""

    property: Property
    operator: Operator
    operand: str | tuple[str, ...] | Span | None = None


@dataclass(frozen=True, slots=True)
class OneElement:
    """One element of the list `name` (FeatureDefinitions, Tags or Parameters) meets all conditions."""

    name: str
    conditions: tuple[Condition, ...]


@dataclass(frozen=True, slots=True)
class Junction:
    """All parts are met, or any; one without parts is met by everything."""

    parts: tuple[Requirement, ...]
    any: bool = False


Requirement: TypeAlias = Condition | OneElement | Junction
EVERYTHING: Final = Junction(())


@dataclass(frozen=True, slots=True)
class Filter:
    """As clients write it. A value without operator means Equals, a name alone Exists."""

    name: str
    operator: Operator | None = None
    value: str | None = None


@dataclass(frozen=True, slots=True)
class NestedFilters:
    property_name: str
    filters: Sequence[Filter]


@dataclass(frozen=True, slots=True)
class SearchExpression:
    filters: Sequence[Filter] = ()
    nested_filters: Sequence[NestedFilters] = ()
    sub_expressions: Sequence[SearchExpression] = ()
    operator: BooleanOperator = BooleanOperator.AND


def _properties(kinds: Mapping[Kind, str], scope: Scope = Scope.RESOURCE) -> dict[str, Property]:
    return {name: Property(name, kind, scope) for kind, names in kinds.items() for name in names.split()}


_DEFINITIONS: Final = _properties(
    {
        Kind.TEXT: "FeatureDefinitions.FeatureName FeatureDefinitions.FeatureType FeatureDefinitions.CollectionType",
        Kind.NUMBER: "FeatureDefinitions.CollectionConfig.VectorConfig.Dimension",
    },
    Scope.DEFINITIONS,
)
GROUP_PROPERTIES: Final = _properties(
    {
        Kind.TEXT: """
            FeatureGroupArn FeatureGroupName RecordIdentifierFeatureName EventTimeFeatureName FeatureGroupStatus FailureReason
            Description RoleArn LastUpdateStatus.Status LastUpdateStatus.FailureReason OfflineStoreStatus.Status
            OfflineStoreStatus.BlockedReason OnlineStoreConfig.SecurityConfig.KmsKeyId OnlineStoreConfig.StorageType
            OnlineStoreConfig.TtlDuration.Unit OfflineStoreConfig.S3StorageConfig.S3Uri
            OfflineStoreConfig.S3StorageConfig.KmsKeyId OfflineStoreConfig.S3StorageConfig.ResolvedOutputS3Uri
            OfflineStoreConfig.DataCatalogConfig.TableName OfflineStoreConfig.DataCatalogConfig.Catalog
            OfflineStoreConfig.DataCatalogConfig.Database OfflineStoreConfig.TableFormat
            """,
        Kind.NUMBER: "OnlineStoreConfig.TtlDuration.Value",
        Kind.TIME: "CreationTime LastModifiedTime",
        Kind.FLAG: "OnlineStoreConfig.EnableOnlineStore OfflineStoreConfig.DisableGlueTableCreation",
        Kind.STRUCTURE: """
            LastUpdateStatus OfflineStoreStatus OnlineStoreConfig OnlineStoreConfig.SecurityConfig
            OnlineStoreConfig.TtlDuration OfflineStoreConfig OfflineStoreConfig.S3StorageConfig
            OfflineStoreConfig.DataCatalogConfig
            """,
    }
)
"""Of feature groups, in the group itself: what a search result shows of one."""
METADATA_PROPERTIES: Final = _properties(
    {
        Kind.TEXT: "FeatureGroupArn FeatureGroupName FeatureName FeatureType Description",
        Kind.TIME: "CreationTime LastModifiedTime",
    }
)
"""Of features."""
_ABSENT_FLAGS: Final = {"OnlineStoreConfig.EnableOnlineStore"}
_PAIRS: Final = {SearchResource.FEATURE_GROUP: "Tags", SearchResource.FEATURE_METADATA: "Parameters"}
_ORDERINGS: Final = {
    Operator.GREATER_THAN,
    Operator.GREATER_THAN_OR_EQUAL_TO,
    Operator.LESS_THAN,
    Operator.LESS_THAN_OR_EQUAL_TO,
}
_PRESENCE: Final = {Operator.EXISTS, Operator.NOT_EXISTS}
_EQUALITY: Final = {Operator.EQUALS, Operator.NOT_EQUALS}
_ALLOWED: Final = {
    Kind.TEXT: _EQUALITY | _PRESENCE | {Operator.CONTAINS, Operator.IN},
    Kind.NUMBER: _EQUALITY | _PRESENCE | _ORDERINGS,
    Kind.TIME: _EQUALITY | _PRESENCE | _ORDERINGS,
    Kind.FLAG: _EQUALITY | _PRESENCE,
    Kind.STRUCTURE: _PRESENCE,
}
_TIME: Final = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:T(\d\d:\d\d:\d\d)(?:\.(\d{1,6}))?(Z|[+-]\d\d:\d\d)?)?",
    re.ASCII,
)
_NUMBER: Final = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
_NUMBER_MAX: Final = 2**62
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_US: Final = timedelta(microseconds=1)


def group_values(group: FeatureGroup) -> dict[str, str | int | None]:
    """What a group has for each of GROUP_PROPERTIES that is no structure: texts, integers, microseconds, 0 or 1 for flags."""
    online, offline = group.online, group.offline
    ttl = None if online is None else online.ttl
    catalog = None if offline is None else offline.data_catalog
    values: dict[str, str | int | None] = {
        "FeatureGroupArn": group.arn,
        "FeatureGroupName": group.name,
        "RecordIdentifierFeatureName": group.record_identifier,
        "EventTimeFeatureName": group.event_time,
        "FeatureGroupStatus": group.status.value,
        "FailureReason": group.failure_reason,
        "Description": group.description,
        "RoleArn": group.role_arn,
        "CreationTime": group.created_at_us,
        "LastModifiedTime": group.modified_at_us,
        "LastUpdateStatus.Status": None if group.update_status is None else group.update_status.value,
        "LastUpdateStatus.FailureReason": None,
        "OfflineStoreStatus.Status": None if group.offline_status is None else group.offline_status.value,
        "OfflineStoreStatus.BlockedReason": None,
        "OnlineStoreConfig.EnableOnlineStore": None if online is None else 1,
        "OnlineStoreConfig.SecurityConfig.KmsKeyId": None if online is None else online.kms_key_id,
        "OnlineStoreConfig.StorageType": None if online is None or online.storage_type is None else online.storage_type.value,
        "OnlineStoreConfig.TtlDuration.Unit": None if ttl is None else ttl.unit.value,
        "OnlineStoreConfig.TtlDuration.Value": None if ttl is None else ttl.value,
        "OfflineStoreConfig.S3StorageConfig.S3Uri": None if offline is None else offline.s3_uri,
        "OfflineStoreConfig.S3StorageConfig.KmsKeyId": None if offline is None else offline.kms_key_id,
        "OfflineStoreConfig.S3StorageConfig.ResolvedOutputS3Uri": None if offline is None else offline.resolved_s3_uri,
        "OfflineStoreConfig.DisableGlueTableCreation": None if offline is None else int(offline.disable_glue_table_creation),
        "OfflineStoreConfig.DataCatalogConfig.TableName": None if catalog is None else catalog.table_name,
        "OfflineStoreConfig.DataCatalogConfig.Catalog": None if catalog is None else catalog.catalog,
        "OfflineStoreConfig.DataCatalogConfig.Database": None if catalog is None else catalog.database,
        "OfflineStoreConfig.TableFormat": None if offline is None or offline.table_format is None else offline.table_format.value,
    }
    return values


def counts_as_false(found: Property) -> bool:
    """Whether a flag without a value means false: a group that has no online store has not enabled it."""
    return found.name in _ABSENT_FLAGS


def find_property(resource: SearchResource, name: str) -> Property | None:
    """The property of that name; names are those of the search's results, and `Tags.<key>`, `AllTags` and the like."""
    own = GROUP_PROPERTIES if resource is SearchResource.FEATURE_GROUP else METADATA_PROPERTIES
    pairs = _PAIRS[resource]
    if name.startswith(f"{pairs}."):
        return Property(pairs, Kind.TEXT, Scope.PAIR, name.removeprefix(f"{pairs}."))
    if name == f"All{pairs}":
        return Property(name, Kind.TEXT, Scope.ALL_PAIRS)
    if name == pairs:
        return Property(name, Kind.STRUCTURE, Scope.ALL_PAIRS)
    if resource is SearchResource.FEATURE_GROUP:
        if name == "FeatureGroupARN":  # the guide's spelling
            return own["FeatureGroupArn"]
        if name == "FeatureDefinitions":
            return Property(name, Kind.STRUCTURE, Scope.DEFINITIONS)
        if name in _DEFINITIONS:
            return _DEFINITIONS[name]
    return own.get(name)


def check_expression(resource: SearchResource, expression: SearchExpression) -> Junction:
    """The expression as conditions on known properties.

    Raises:
        ValidationFailed: with every fault: too many elements, unknown properties, operators that the property's type does
            not have, values that are not of its type.
    """
    faults = list(_size_faults(expression))
    if not faults:
        checked = _junction(resource, expression, "SearchExpression", faults)
    if faults:
        raise ValidationFailed(faults)
    return checked


def check_sort(resource: SearchResource, name: str) -> Property:
    """The property to sort by.

    Raises:
        ValidationFailed: it is unknown, or no single value.
    """
    found = find_property(resource, name)
    if found is None:
        raise ValidationFailed.one("SortBy", _known(resource), name)
    if found.kind is Kind.STRUCTURE or found.scope not in (Scope.RESOURCE, Scope.PAIR):
        raise ValidationFailed.one("SortBy", "a property with one value", name)
    return found


def check_visibility(position: int, key: str | None, value: str | None) -> tuple[str, str]:
    """Key and value of the tag that a visibility condition is about.

    Raises:
        ValidationFailed
    """
    path = f"VisibilityConditions[{position}]"
    if key is None or value is None:
        raise ValidationFailed.one(path, "Key and Value")
    tag = key.removeprefix("Tags.")
    if tag == key or not tag:
        raise ValidationFailed.one(f"{path}.Key", "Tags.<key>", key)
    return tag, value


def _known(resource: SearchResource) -> str:
    more = "FeatureDefinitions.FeatureName, Tags.<key> or AllTags"
    if resource is SearchResource.FEATURE_METADATA:
        more = "Parameters.<key> or AllParameters"
    return f"a property of {resource} such as FeatureGroupName, {more}"


def _size_faults(expression: SearchExpression) -> Iterator[Fault]:
    """Counted without recursion, since nothing bounds the nesting before this."""
    count = 0
    waiting = [expression]
    while waiting:
        current = waiting.pop()
        nested = sum(1 + len(item.filters) for item in current.nested_filters)
        count += len(current.filters) + nested + len(current.sub_expressions)
        waiting.extend(current.sub_expressions)
    if count > limits.EXPRESSION_ELEMENTS_MAX:
        expected = f"at most {limits.EXPRESSION_ELEMENTS_MAX} filters, nested filters and sub-expressions overall"
        yield Fault("SearchExpression", expected, count)


def _junction(resource: SearchResource, expression: SearchExpression, path: str, faults: list[Fault]) -> Junction:
    parts: list[Requirement] = []
    for position, item in enumerate(expression.filters):
        where = f"{path}.Filters[{position}]"
        found = find_property(resource, item.name)
        if found is None:
            faults.append(Fault(f"{where}.Name", _known(resource), item.name))
        else:
            parts += _condition(found, item, where, faults)
    for position, nested in enumerate(expression.nested_filters):
        parts.append(_one_element(resource, nested, f"{path}.NestedFilters[{position}]", faults))
    for position, inner in enumerate(expression.sub_expressions):
        parts.append(_junction(resource, inner, f"{path}.SubExpressions[{position}]", faults))
    return Junction(tuple(parts), expression.operator is BooleanOperator.OR)


def _one_element(resource: SearchResource, nested: NestedFilters, path: str, faults: list[Fault]) -> OneElement:
    pairs = _PAIRS[resource]
    lists = {pairs: _properties({Kind.TEXT: f"{pairs}.Key {pairs}.Value"}, Scope.PAIR_PARTS)}
    if resource is SearchResource.FEATURE_GROUP:
        lists["FeatureDefinitions"] = _DEFINITIONS
    properties = lists.get(nested.property_name)
    conditions: list[Condition] = []
    if properties is None:
        faults.append(Fault(f"{path}.NestedPropertyName", f"one of {', '.join(sorted(lists))}", nested.property_name))
    else:
        for position, item in enumerate(nested.filters):
            where = f"{path}.Filters[{position}]"
            found = properties.get(item.name)
            if found is None:
                faults.append(Fault(f"{where}.Name", f"one of {', '.join(properties)}", item.name))
            else:
                conditions += _condition(found, item, where, faults)
    return OneElement(nested.property_name, tuple(conditions))


def _condition(found: Property, item: Filter, path: str, faults: list[Fault]) -> Iterator[Condition]:
    """The condition of a filter, or none and its fault."""
    operator = item.operator or (Operator.EXISTS if item.value is None else Operator.EQUALS)
    allowed = _ALLOWED[found.kind]
    if operator not in allowed:
        names = ", ".join(sorted(allowed))
        faults.append(Fault(f"{path}.Operator", f"one of {names} ({item.name} is of type {found.kind})", str(operator)))
    elif operator in _PRESENCE:
        yield Condition(found, operator)
    elif item.value is None:
        faults.append(Fault(f"{path}.Value", f"a value for {operator}"))
    elif "\0" in item.value:
        faults.append(Fault(f"{path}.Value", "a text without NUL characters", item.value))
    elif operator is Operator.IN:
        yield Condition(found, operator, tuple(part.strip() for part in item.value.split(",")))
    elif found.kind is Kind.TEXT:
        yield Condition(found, operator, item.value)
    else:
        read, expected = _READERS[found.kind]
        span = read(item.value)
        if span is None:
            faults.append(Fault(f"{path}.Value", f"{expected} ({item.name} is of type {found.kind})", item.value))
        else:
            yield Condition(found, operator, span)


def _flag(text: str) -> Span | None:
    position = {"false": 0, "true": 1}.get(text.lower())
    return None if position is None else Span(position, position + 1)


def _number(text: str) -> Span | None:
    if _NUMBER.fullmatch(text) is None:
        return None
    try:
        number = max(Decimal(-_NUMBER_MAX), min(Decimal(text), Decimal(_NUMBER_MAX)))
    except InvalidOperation:
        return None
    start = math.ceil(number)
    return Span(start, math.floor(number) + 1)


def _time(text: str) -> Span | None:
    """A time in microseconds since 1970, as wide as it is precise; without a zone it is UTC."""
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    date, clock, fraction, zone = match.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock or '00:00:00'}{(zone or 'Z').replace('Z', '+00:00')}")
        start = (moment - _EPOCH) // _US
    except (ValueError, OverflowError):
        return None
    if fraction is None:
        return Span(start, start + (1_000_000 if clock else 86_400_000_000))
    start += int(fraction.ljust(3, "0")[:3]) * 1000
    return Span(start, start + 1000)


_READERS: Final = {
    Kind.NUMBER: (_number, "a decimal number"),
    Kind.TIME: (_time, "a time such as 2024-05-01T12:00:00"),
    Kind.FLAG: (_flag, "true or false"),
}
