"""Requests drawn from the service model of the installed AWS SDK, against the whole application in this process.

A request that the model allows is carried out, or refused for a reason that the model can't express (REASONS); one that it
does not allow is a ValidationException that names the member; and nothing is ever answered with 500.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import botocore.session
import pytest
from botocore.model import Shape
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st

from api.app import Service
from api.server import LOOPBACK_HOSTS
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.unit.test_control_limits import OPERATIONS

MODEL = botocore.session.get_session().get_service_model("sagemaker")
REASONS = (
    # groups
    "at least one of the two stores",
    "the name of one of the FeatureDefinitions",
    "another feature than RecordIdentifierFeatureName",
    "a feature of type String or Fractional",
    "a String feature when TableFormat is Iceberg",
    "a scalar feature",
    "a name other than",
    "by more than case",
    "none unless StorageType is InMemory",
    "none unless CollectionType is Vector",
    "Fractional elements for a Vector",
    "CollectionConfig.VectorConfig.Dimension",
    "its one member VectorConfig",
    "at most one Vector feature",
    "Unit and Value, or neither",
    "TtlDuration.Value: expected an integer from 1 to",
    "an s3:// URI",
    "a bucket name of",
    "a prefix without",
    "false when TableFormat is Iceberg",
    "DataCatalogConfig.Catalog: expected AwsDataCatalog",
    "lower-case letters, digits and '_'",
    "none when ThroughputMode is OnDemand",
    "OnDemand when StorageType is InMemory",
    "without NUL characters",
    # updates
    "one of FeatureAdditions, OnlineStoreConfig and ThroughputConfig",
    "at least one of ThroughputMode",
    "a group with an online store",
    "OnlineStoreConfig.StorageType",
    "a group in status Created",
    # tags and parameters
    "which is reserved",
    "a key that is not in the request already",
    "the ARN of a feature group",
    # pages and searches
    "a token of an earlier answer",
    "none, as no answer of this operation has one",
    "FeatureGroup or FeatureMetadata",
    "a property of Feature",
    "a property with one value",
    "NestedPropertyName: expected one of",
    "Name: expected one of",
    "is of type",
    "a value for",
    "at most 50 filters, nested filters and sub-expressions overall",
    "Key and Value",
    "Tags.<key>",
)
"""Why a request that the model allows may be a ValidationException; docs/guarantees.md and docs/reference/http.md have them."""
MODELLED = ("ResourceInUse", "ResourceNotFound", "ResourceLimitExceeded")
PROPERTIES = [
    *("FeatureGroupName", "FeatureName", "Tags.team", "AllTags", "CreationTime", "LastModifiedTime", "FeatureDefinitions"),
    *("OnlineStoreConfig.EnableOnlineStore", "OnlineStoreConfig.TtlDuration.Value", "FeatureDefinitions.FeatureName", "Nope"),
    *("Tags.Key", "Parameters.unit", "AllParameters", "Tags", "Parameters"),
]
ARN = "arn:aws:sagemaker:us-east-1:000000000000:feature-group/known"
FAMILIAR: dict[str, st.SearchStrategy[Any]] = {
    "FeatureGroupNameOrArn": st.sampled_from(["known", ARN, "gone"]),
    "FeatureName": st.sampled_from(["id", "at", "x", "y"]),
    "ResourcePropertyName": st.sampled_from(PROPERTIES),
    "FilterValue": st.sampled_from(["known", "1", "true", "2024-05-01T00:00:00", "a, b", "%"]),
    "ResourceArn": st.sampled_from([ARN, f"{ARN}x", ARN.replace("feature-group", "endpoint")]),
    "ResourceType": st.sampled_from(["FeatureGroup", "FeatureMetadata"]),
    "VisibilityConditionsKey": st.just("Tags.team"),
    "S3Uri": st.sampled_from(["s3://bucket/a/b", "https://bucket/a"]),
    "NextToken": st.just("some token"),
}
"""Values that lead further than random ones, by the model's name of the shape."""
PRINTABLE = st.text(st.characters(min_codepoint=32, codec="utf-8", exclude_characters="\ufffe\uffff"), min_size=1, max_size=20)
INSTEAD: dict[str, st.SearchStrategy[Any]] = {
    "TableName": st.one_of(st.sampled_from(["table_1", "Any Text"]), PRINTABLE),
    "Catalog": st.one_of(st.just("AwsDataCatalog"), PRINTABLE),
    "Database": st.one_of(st.just("db"), PRINTABLE),
    "RoleArn": st.from_regex(r"arn:aws(-[a-z]{1,5})?:iam::[0-9]{12}:role/[a-zA-Z_0-9+=,.@\-_/]{1,20}", fullmatch=True),
}
"""For patterns that take long to draw from."""
USUAL_ELEMENTS_MAX = {"SearchExpressionList": 1, "FilterList": 2, "NestedFiltersList": 2}


def python_pattern(pattern: str) -> str:
    """The model's pattern in Python's words, for generating: narrower where that is simpler."""
    return (
        pattern.replace(r"\p{L}\p{Z}\p{N}", "a-zA-Z0-9 é東")
        .replace(r"\uD800\uDC00-\uDBFF\uDFFF", "\U00010000-\U0010ffff")
        .replace(r"\d", "[0-9]")
    )


REQUIRED_TOO = {"FeatureParameter": ("Key", "Value")}
"""Where we ask for more than the model (test_control_limits.STRICTER)."""


@cache
def valid(name: str) -> st.SearchStrategy[Any]:
    """JSON values that the model allows for the shape of that name."""
    shape = MODEL.shape_for(name)
    familiar = FAMILIAR.get(name)
    if shape.type_name == "structure":
        members = {member: later(inner.name) for member, inner in shape.members.items()}
        required = {member: members.pop(member) for member in [*shape.required_members, *REQUIRED_TOO.get(name, ())]}
        return st.fixed_dictionaries(required, optional=members)
    if shape.type_name == "list":
        least, most = shape.metadata.get("min", 0), min(shape.metadata.get("max", 100), USUAL_ELEMENTS_MAX.get(name, 4))
        return st.lists(later(shape.member.name), min_size=least, max_size=most)
    if shape.type_name == "string":
        drawn = INSTEAD[name] if name in INSTEAD else st.sampled_from(shape.enum) if shape.enum else texts(shape)
        return drawn if familiar is None else st.one_of(familiar, familiar, familiar, drawn)
    if shape.type_name == "integer":
        return st.integers(shape.metadata.get("min", 0), shape.metadata.get("max", 2**40))
    return st.booleans() if shape.type_name == "boolean" else st.floats(-1e11, 1e12, allow_nan=False)


def later(name: str) -> st.SearchStrategy[Any]:
    """As search expressions are within each other."""
    return st.deferred(lambda: valid(name))


def texts(shape: Shape) -> st.SearchStrategy[str]:
    least, most = shape.metadata.get("min", 0), shape.metadata.get("max", 100)
    pattern = shape.metadata.get("pattern")
    if pattern is None:
        return st.text(st.characters(codec="utf-8"), min_size=least, max_size=min(most, 60))
    found = st.from_regex(re.compile(python_pattern(pattern)), fullmatch=True)
    return found.filter(lambda text: least <= len(text) <= most)


@dataclass(frozen=True)
class Site:
    """A place in a request whose value the model limits: `holder[key]`."""

    holder: Any
    key: Any
    shape: Shape
    path: str


def sites(shape: Shape, value: Any, path: str = "") -> Iterator[Site]:
    if shape.type_name == "structure":
        for name, member in value.items():
            where = f"{path}.{name}" if path else name
            yield Site(value, name, shape.members[name], where)
            yield from sites(shape.members[name], member, where)
    elif shape.type_name == "list":
        for position, item in enumerate(value):
            where = f"{path}[{position}]"
            yield Site(value, position, shape.member, where)
            yield from sites(shape.member, item, where)


def broken(shape: Shape, value: Any) -> list[Any]:
    """Values that the model does not allow there."""
    least, most, pattern = (shape.metadata.get(name) for name in ("min", "max", "pattern"))
    if shape.type_name == "structure":
        without = [{name: member for name, member in value.items() if name != missing} for missing in shape.required_members]
        return ["text", 7, [], *without]
    if shape.type_name == "list":
        many = [(value or [None])[:1] * (most + 1)] if most is not None and value else []
        return [{}, "text", *many, *([[]] if least else [])]
    if shape.type_name == "string":
        wrong: list[Any] = [7, True, [], {}]
        if shape.enum:
            return [*wrong, "Nope", "", shape.enum[0].upper() + "x"]
        if least:
            wrong.append("")
        if most is not None:
            wrong.append("a" * (most + 1))
        if pattern is not None:
            compiled = re.compile(python_pattern(pattern))
            wrong += [text for text in ("a\nb", "\x01", "!bad name", "-a", "a;b") if not compiled.fullmatch(text)]
        return wrong
    if shape.type_name == "integer":
        edges = [least - 1] if least is not None else []
        return [1.5, "1", True, [], *edges, *([most + 1, 10**30] if most is not None else [])]
    return ["true", 1.5, []] if shape.type_name == "boolean" else ["soon", [], True]


class Application:
    """The service without its socket."""

    def __init__(self, store: FeatureStore) -> None:
        self._service = Service(store, hosts=LOOPBACK_HOSTS)
        self._runner = asyncio.Runner()

    def call(self, operation: str, body: bytes) -> tuple[int, dict[str, Any]]:
        return self._runner.run(self._call(operation, body))

    async def _call(self, operation: str, body: bytes) -> tuple[int, dict[str, Any]]:
        target = f"SageMaker.{operation}".encode()
        headers = [
            (b"host", b"localhost"),
            (b"x-amz-target", target),
            (b"content-type", b"application/x-amz-json-1.1"),
            (b"content-length", str(len(body)).encode()),
        ]
        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "scheme": "http",
            "path": "/",
            "raw_path": b"/",
            "root_path": "",
            "query_string": b"",
            "headers": headers,
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        sent: list[dict[str, Any]] = []
        incoming = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive() -> Any:
            return incoming.pop() if incoming else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        await self._service(scope, receive, send)
        content = b"".join(message.get("body", b"") for message in sent[1:])
        return sent[0]["status"], json.loads(content) if content else {}

    def close(self) -> None:
        self._runner.close()


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Application]:
    with FeatureStore(Settings.load({}, home=tmp_path_factory.mktemp("home"))) as store:
        found = Application(store)
        features = [{"FeatureName": name, "FeatureType": "String"} for name in ("id", "at", "x")]
        request = {
            "FeatureGroupName": "known",
            "RecordIdentifierFeatureName": "id",
            "EventTimeFeatureName": "at",
            "FeatureDefinitions": features,
            "OnlineStoreConfig": {"EnableOnlineStore": True},
        }
        assert found.call("CreateFeatureGroup", json.dumps(request).encode())[0] == 200
        yield found
        found.close()


QUICK = settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)


@pytest.mark.parametrize("operation", OPERATIONS)
@QUICK
@given(data=st.data())
def test_what_the_model_allows(application: Application, operation: str, data: st.DataObject) -> None:
    request = data.draw(valid(MODEL.operation_model(operation).input_shape.name))
    status, answer = application.call(operation, json.dumps(request).encode())
    event(answer.get("__type", "accepted"))
    if status == 200:
        return
    assert status == 400, answer
    code, message = answer["__type"], answer["Message"]
    assert code in ("ValidationException", *MODELLED), answer
    if code == "ValidationException":
        shown = re.split(r"; (?=[A-Z]\w*[\w.\[\], ]*: expected|and \d+ more)", message)
        unexplained = [
            part for part in shown if not re.match(r"and \d+ more", part) and not any(word in part for word in REASONS)
        ]
        assert not unexplained, unexplained


@pytest.mark.parametrize("operation", OPERATIONS)
@QUICK
@given(data=st.data())
def test_what_the_model_does_not_allow(application: Application, operation: str, data: st.DataObject) -> None:
    shape = MODEL.operation_model(operation).input_shape
    request = data.draw(valid(shape.name))
    missing = data.draw(st.sampled_from([None, *shape.required_members]))
    if missing is None:
        places = list(sites(shape, request))
        assume(places)
        site = data.draw(st.sampled_from(places))
        site.holder[site.key] = copy.deepcopy(data.draw(st.sampled_from(broken(site.shape, site.holder[site.key]))))
        named = site.path
    else:
        del request[missing]
        named = missing
    status, answer = application.call(operation, json.dumps(request).encode())
    assert (status, answer.get("__type")) == (400, "ValidationException"), (request, answer)
    assert named in answer["Message"], (request, answer)


@pytest.mark.parametrize("operation", [*OPERATIONS, "Nope"])
@settings(max_examples=20, deadline=None)
@given(
    body=st.one_of(
        st.binary(max_size=20),
        st.recursive(
            st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=5)),
            lambda inner: st.one_of(
                st.lists(inner), st.dictionaries(st.sampled_from(["FeatureGroupName", "Resource", "a"]), inner)
            ),
        ).map(lambda value: json.dumps(value).encode()),
        st.integers(1, 3000).map(lambda depth: (b'{"SubExpressions":[' * depth).replace(b"{", b'{"SearchExpression":{', 1)),
        st.integers(1, 3000).map(
            lambda depth: (
                b'{"Resource":"FeatureGroup","SearchExpression":' + b'{"SubExpressions":[' * depth + b"{}" + b"]}" * depth + b"}"
            )
        ),
    )
)
def test_nothing_answers_500(application: Application, operation: str, body: bytes) -> None:
    status, answer = application.call(operation, body)
    assert status in (200, 400), answer
    assert status == 200 or answer["Message"]
