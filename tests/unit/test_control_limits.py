"""Our request shapes and limits against the service model of the installed AWS SDK, so that drift is seen.

What differs on purpose is listed here with its reason; everything else must be equal: members, which of them are required,
types, enumerations, lengths, patterns and bounds. Answers are compared as far as enumerations and names of members go.
"""

from __future__ import annotations

import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import botocore.session
import msgspec
import pytest
from botocore.model import Shape

from api import control_plane_shapes as shapes
from featurestore.model import limits
from featurestore.model.feature_group import OfflineStatus, UpdateStatus
from featurestore.model.search import GROUP_PROPERTIES, METADATA_PROPERTIES, Kind

OPERATIONS = [
    "CreateFeatureGroup",
    "DescribeFeatureGroup",
    "UpdateFeatureGroup",
    "DeleteFeatureGroup",
    "ListFeatureGroups",
    "DescribeFeatureMetadata",
    "UpdateFeatureMetadata",
    "Search",
    "AddTags",
    "ListTags",
    "DeleteTags",
]
STRICTER = {
    "UpdateFeatureMetadata.ParameterAdditions[].Key: required": "a parameter without a key says nothing",
    "UpdateFeatureMetadata.ParameterAdditions[].Value: required": "a parameter without a value says nothing",
}
"""What we ask for and the model does not."""


@pytest.fixture(scope="module")
def model() -> Any:
    return botocore.session.get_session().get_service_model("sagemaker")


def differences(theirs: Shape, ours: msgspec.inspect.Type, path: str, seen: tuple[str, ...] = ()) -> Iterator[str]:
    """What is not the same, as `path: what`."""
    limit, kind = unwrapped(ours)
    if theirs.type_name == "structure":
        if not isinstance(kind, msgspec.inspect.StructType):
            yield f"{path}: a structure in the model, {kind} here"
            return
        members = {field.encode_name: field for field in kind.fields}
        yield from (f"{path}.{name}: new in the model" for name in theirs.members.keys() - members.keys())
        yield from (f"{path}.{name}: not in the model" for name in members.keys() - theirs.members.keys())
        if theirs.name in seen:
            return
        for name in theirs.members.keys() & members.keys():
            where, field = f"{path}.{name}", members[name]
            if field.required and name not in theirs.required_members:
                yield f"{where}: required"
            if not field.required and name in theirs.required_members:
                yield f"{where}: not required here"
            yield from differences(theirs.members[name], field.type, where, (*seen, theirs.name))
    elif theirs.type_name == "list":
        if not isinstance(kind, msgspec.inspect.ListType):
            yield f"{path}: a list in the model, {kind} here"
            return
        yield from bounds(theirs, limit, path, "elements")
        yield from differences(theirs.member, kind.item_type, f"{path}[]", seen)
    elif theirs.type_name == "string" and theirs.enum:
        values = [member.value for member in kind.cls] if isinstance(kind, msgspec.inspect.EnumType) else None
        if values is None or set(values) != set(theirs.enum):
            yield f"{path}: one of {sorted(theirs.enum)} in the model, {values} here"
    elif theirs.type_name == "string":
        if not isinstance(kind, msgspec.inspect.StrType):
            yield f"{path}: a text in the model, {kind} here"
        yield from bounds(theirs, limit, path, "characters")
    elif theirs.type_name == "integer":
        if not isinstance(kind, msgspec.inspect.IntType):
            yield f"{path}: an integer in the model, {kind} here"
        yield from bounds(theirs, limit, path, "value")
    else:
        wanted = {"boolean": msgspec.inspect.BoolType, "timestamp": msgspec.inspect.FloatType}[theirs.type_name]
        if not isinstance(kind, wanted):
            yield f"{path}: a {theirs.type_name} in the model, {kind} here"


def unwrapped(found: msgspec.inspect.Type) -> tuple[Any, msgspec.inspect.Type]:
    """The limit of a member, and its type without null, absence and annotations."""
    limit = None
    if isinstance(found, msgspec.inspect.UnionType):
        (found,) = [one for one in found.types if not isinstance(one, msgspec.inspect.NoneType)]
    if isinstance(found, msgspec.inspect.Metadata):
        limit, found = (found.extra or {}).get("limit"), found.type
    return limit, found


def bounds(theirs: Shape, limit: Any, path: str, what: str) -> Iterator[str]:
    least, most, pattern = (theirs.metadata.get(name) for name in ("min", "max", "pattern"))
    if isinstance(limit, limits.Text):
        ours = (limit.chars_min or None, limit.chars_max, limit.pattern)
    elif isinstance(limit, limits.Number):
        ours = (limit.least or None, limit.most, None)
    else:
        ours = (None, None, None)
    if ours != (least or None, most, pattern):
        yield f"{path}: {what} {least} to {most}, pattern {pattern!r} in the model, {ours} here"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_requests_are_those_of_the_model(model: Any, operation: str) -> None:
    theirs = model.operation_model(operation).input_shape
    found = set(differences(theirs, msgspec.inspect.type_info(getattr(shapes, operation)), operation))
    expected = {difference for difference in STRICTER if difference.startswith(f"{operation}.")}
    assert sorted(found - expected) == [], "the service model and featurestore/model/limits.py differ"
    assert sorted(expected - found) == [], "no longer stricter than the model: take it off the list"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"FeatureGroupName": {"max": 65}}, "FeatureGroupName: characters 1 to 65"),
        ({"FeatureGroupName": {"pattern": "x"}}, "pattern 'x'"),
        ({"FeatureDefinitions": {"max": 3000}}, "FeatureDefinitions: elements 1 to 3000"),
        ({"Dimension": {"max": 9000}}, "Dimension: value 1 to 9000"),
        ({"StorageType": {"enum": ["Standard", "Tape"]}}, "StorageType: one of ['Standard', 'Tape']"),
        ({"S3StorageConfig": {"required": ["S3Uri", "KmsKeyId"]}}, "S3StorageConfig.KmsKeyId: not required here"),
        ({"Tag": {"members": {"Key": {"shape": "TagKey"}}}}, "Tags[].Value: not in the model"),
        ({"KmsKeyId": {"type": "integer"}}, "KmsKeyId: an integer in the model"),
    ],
)
def test_drift_is_seen(model: Any, change: dict[str, dict[str, Any]], message: str) -> None:
    """The comparison itself: a model that was changed in one place is told from ours."""
    description = {name: dict(shape) for name, shape in model._service_description["shapes"].items()}
    for name, members in change.items():
        description[name] |= members
    changed = botocore.model.ServiceModel(model._service_description | {"shapes": description}, "sagemaker")
    theirs = changed.operation_model("CreateFeatureGroup").input_shape
    found = list(differences(theirs, msgspec.inspect.type_info(shapes.CreateFeatureGroup), "CreateFeatureGroup"))
    assert any(message in difference for difference in found), found


def test_statuses_in_answers(model: Any) -> None:
    for enum, name in ((OfflineStatus, "OfflineStoreStatusValue"), (UpdateStatus, "LastUpdateStatusValue")):
        assert {member.value for member in enum} == set(model.shape_for(name).enum)


@pytest.mark.parametrize(("properties", "name"), [(GROUP_PROPERTIES, "FeatureGroup"), (METADATA_PROPERTIES, "FeatureMetadata")])
def test_every_member_of_a_search_result_can_be_searched_by(model: Any, properties: dict[str, Any], name: str) -> None:
    kinds = {
        "string": Kind.TEXT,
        "integer": Kind.NUMBER,
        "timestamp": Kind.TIME,
        "boolean": Kind.FLAG,
        "structure": Kind.STRUCTURE,
    }

    def members(shape: Shape, prefix: str) -> Iterator[tuple[str, Kind]]:
        for member, inner in shape.members.items():
            if inner.type_name in kinds:
                yield f"{prefix}{member}", kinds[inner.type_name]
            if inner.type_name == "structure":
                yield from members(inner, f"{prefix}{member}.")

    assert {key: found.kind for key, found in properties.items()} == dict(members(model.shape_for(name), ""))


def test_errors_that_the_model_names_for_each_operation(model: Any) -> None:
    """The codes that clients have classes for; docs/reference/http.md lists them."""
    found = {name: {shape.name for shape in model.operation_model(name).error_shapes} for name in OPERATIONS}
    assert found == {
        "CreateFeatureGroup": {"ResourceInUse", "ResourceLimitExceeded"},
        "UpdateFeatureGroup": {"ResourceNotFound", "ResourceLimitExceeded"},
        "DescribeFeatureGroup": {"ResourceNotFound"},
        "DeleteFeatureGroup": {"ResourceNotFound"},
        "DescribeFeatureMetadata": {"ResourceNotFound"},
        "UpdateFeatureMetadata": {"ResourceNotFound"},
        **{name: set() for name in ("ListFeatureGroups", "Search", "AddTags", "ListTags", "DeleteTags")},
    }


def test_classes_of_characters_are_those_of_unicode() -> None:
    """`\\p{L}\\p{Z}\\p{N}` of the model's patterns, for which Python has other words."""
    for code in range(sys.maxunicode + 1):
        char = chr(code)
        wanted = unicodedata.category(char)[0] in "LZN" or char in "_.:/=+-@"
        if limits.TAG_KEY.allows(char) != wanted:
            pytest.fail(f"U+{code:04X}, category {unicodedata.category(char)}")


@pytest.mark.parametrize(
    ("limit", "right", "wrong"),
    [
        (limits.CATALOG_NAME, ["a", "\t", "~", "\U0001f600", "\ue000"], ["", "\n", "\x1f", "\ufffe", "x" * 256]),
        (
            limits.ROLE_ARN,
            ["arn:aws:iam::000000000000:role/x"],
            ["arn:aws:iam::00000000000\u0661:role/x", "arn:aws:iam::1:role/x"],
        ),
        (limits.FEATURE_NAME, ["a", "a" * 64, "a-_b"], ["", "-a", "a-", "a" * 65, "a.b", "ä", "a\n"]),
        (limits.FEATURE_DESCRIPTION, ["", "x" * 255], ["x" * 256, "a\nb"]),
    ],
)
def test_texts(limit: limits.Text, right: list[str], wrong: list[str]) -> None:
    assert [text for text in right if not limit.allows(text)] == []
    assert [text for text in wrong if limit.allows(text)] == []


def test_every_expectation_reads_well() -> None:
    for name, limit in vars(limits).items():
        if isinstance(limit, limits.Text):
            assert re.fullmatch(r"(\d+ to \d+|at most \d+|an?|the|s3://).+", limit.expected), name
