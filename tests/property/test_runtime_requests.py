"""Requests drawn from botocore's model of the record operations, sent to the real application in this process.

Right ones are accepted; wrong ones, each a right one with a single rule of the model broken, get the modelled ValidationError;
whatever is sent, nothing answers 500.
"""

from __future__ import annotations

import asyncio
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import botocore.session
import pytest
from botocore.model import ListShape, OperationModel, Shape, StructureShape
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from api.app import Service
from api.server import LOOPBACK_HOSTS
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureType, StorageType
from featurestore.settings import Settings
from featurestore.store import FeatureStore

GROUP, STANDARD, SEEDED = "in-memory", "standard", 12
FEATURES = (
    FeatureDefinition("id", FeatureType.STRING),
    FeatureDefinition("at", FeatureType.STRING),
    FeatureDefinition("amount", FeatureType.FRACTIONAL),
    FeatureDefinition("count", FeatureType.INTEGRAL),
    FeatureDefinition("note", FeatureType.STRING),
    FeatureDefinition("words", FeatureType.STRING, CollectionType.LIST),
    FeatureDefinition("numbers", FeatureType.INTEGRAL, CollectionType.SET),
    FeatureDefinition("vector", FeatureType.FRACTIONAL, CollectionType.VECTOR, 2),
)
SERVICE = botocore.session.get_session().get_service_model("sagemaker-featurestore-runtime")
OPERATIONS = sorted(SERVICE.operation_names)
MODELLED_STATUS = {"ValidationError": 400, "ResourceNotFound": 404, "ConflictException": 409, "UnknownOperationException": 404}
SETTINGS = settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)

Request = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    status: int
    code: str | None
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class World:
    """The application over a store of its own, with two groups and some records."""

    def __init__(self, home: Path) -> None:
        self.store = FeatureStore(Settings.load({}, home=home))
        self.app = Service(self.store, hosts=LOOPBACK_HOSTS)
        self.loop = asyncio.new_event_loop()
        for name, storage in ((GROUP, StorageType.IN_MEMORY), (STANDARD, StorageType.STANDARD)):
            self.control(
                "CreateFeatureGroup",
                FeatureGroupName=name,
                RecordIdentifierFeatureName="id",
                EventTimeFeatureName="at",
                FeatureDefinitions=[
                    _definition(item) for item in FEATURES if storage is StorageType.IN_MEMORY or not item.collection
                ],
                OnlineStoreConfig={"EnableOnlineStore": True, "StorageType": storage.value},
                OfflineStoreConfig={"S3StorageConfig": {"S3Uri": "s3://bucket"}},
            )
        self.arn = self.store.feature_group(GROUP).arn
        self.records = 0
        for _ in range(SEEDED):
            self.seed()
        path = f"/FeatureGroup/{GROUP}/ListRecords"
        self.token = self.send("POST", path, body=b'{"MaxResults": 1}').json["NextToken"]

    def seed(self) -> str:
        """Write one more record; returns its identifier."""
        self.records += 1
        identifier = f"seeded {self.records}"
        pairs = [("id", identifier), ("at", "2000-01-01T00:00:00Z"), ("note", "seeded")]
        body = {"Record": [{"FeatureName": name, "ValueAsString": text} for name, text in pairs]}
        assert self.send("PUT", f"/FeatureGroup/{GROUP}", body=json.dumps(body).encode()).status == 200
        return identifier

    def control(self, operation: str, **request: Any) -> None:
        headers = [(b"x-amz-target", f"SageMaker.{operation}".encode()), (b"content-type", b"application/x-amz-json-1.1")]
        reply = self.send("POST", "/", body=json.dumps(request).encode(), headers=headers)
        assert reply.status == 200, reply

    def send(
        self, method: str, path: str, query: str = "", body: bytes = b"", headers: list[tuple[bytes, bytes]] | None = None
    ) -> Reply:
        """One request; `path` and `query` are percent-encoded."""
        scope = {
            "type": "http",
            "http_version": "1.1",
            "scheme": "http",
            "method": method,
            "path": path.replace("%2F", "/"),
            "raw_path": path.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(b"host", b"localhost"), *(headers or [])],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 80),
        }
        sent: list[Any] = []

        async def receive() -> Any:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        self.loop.run_until_complete(self.app(scope, receive, send))
        found = dict(sent[0]["headers"])
        code = found.get(b"x-amzn-errortype")
        return Reply(sent[0]["status"], code and code.decode(), b"".join(message["body"] for message in sent[1:]))

    def call(self, operation: OperationModel, request: Request) -> Reply:
        """A request as its model says which member goes where."""
        path, query, body = operation.http["requestUri"], [], {}
        for name, value in request.items():
            place = operation.input_shape.members[name].serialization
            wire = place.get("name", name)
            match place.get("location"):
                case "uri":
                    path = path.replace(f"{{{wire}}}", quote(str(value), safe=""))
                case "querystring":
                    query += [(wire, str(item)) for item in (value if isinstance(value, list) else [value])]
                case _:
                    body[wire] = value
        text = "&".join(f"{quote(name)}={quote(value, safe='')}" for name, value in query)
        data = json.dumps(body).encode() if operation.http["method"] in ("PUT", "POST") else b""
        return self.send(operation.http["method"], path, text, data, [(b"content-type", b"application/json")])

    def close(self) -> None:
        self.store.close()
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()


def _definition(feature: FeatureDefinition) -> dict[str, Any]:
    found: dict[str, Any] = {"FeatureName": feature.name, "FeatureType": feature.type.value}
    if feature.collection is not None:
        found["CollectionType"] = feature.collection.value
    if feature.dimension is not None:
        found["CollectionConfig"] = {"VectorConfig": {"Dimension": feature.dimension}}
    return found


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("runtime") / "home")
    yield world
    world.close()


TEXT = st.text(max_size=30)
EVENT_TIMES = st.builds(
    "{}-{:02}-{:02}T{:02}:00:00{}Z".format,
    st.integers(2001, 2090),
    st.integers(1, 12),
    st.integers(1, 28),
    st.integers(0, 23),
    st.sampled_from(["", ".5", ".250", ".123456", ".123456000"]),
)
SCALARS = {
    FeatureType.STRING: TEXT,
    FeatureType.INTEGRAL: st.integers(-(2**63), 2**63 - 1).map(str),
    FeatureType.FRACTIONAL: st.floats(allow_nan=False, allow_infinity=False).map(repr),
}


def value_of(feature: FeatureDefinition) -> st.SearchStrategy[dict[str, Any]]:
    """A FeatureValue of the feature, sometimes without a value."""
    scalar = SCALARS[feature.type]
    if feature.collection is None:
        found = scalar.map(lambda text: {"FeatureName": feature.name, "ValueAsString": text})
    else:
        size = feature.dimension or 0
        texts = st.lists(scalar, min_size=size, max_size=feature.dimension or 5)
        found = texts.map(lambda items: {"FeatureName": feature.name, "ValueAsStringList": items})
    return st.one_of(found, st.just({"FeatureName": feature.name}))


class Drawing:
    """Draws a right request of one operation, member by member from its shapes. Where the model knows no more than "a text", what
    fits the groups of the world is drawn."""

    def __init__(self, world: World, draw: Callable[[st.SearchStrategy[Any]], Any]) -> None:
        self._world = world
        self._draw = draw
        self._with_event_time = False

    def request(self, operation: OperationModel) -> Request:
        self._identifier = self._draw(st.text(min_size=1, max_size=30).map(lambda text: f"drawn {text}"))
        if operation.name == "UpdateRecord":
            self._identifier = self._world.seed()
        return self._structure(operation.input_shape, operation.name)

    def _structure(self, shape: StructureShape, path: str) -> Request:
        wanted = [name for name in shape.members if name in shape.required_members or self._draw(st.booleans())]
        if path == "UpdateRecord":
            self._with_event_time = "TtlDuration" in wanted or self._draw(st.booleans())
        return {name: self._value(shape.members[name], f"{path}.{name}") for name in wanted}

    def _value(self, shape: Shape, path: str) -> Any:
        draw, name = self._draw, path.rpartition(".")[2]
        match shape.name:
            case "FeatureGroupNameOrArn":
                return draw(st.sampled_from([GROUP, self._world.arn]))
            case "Record":
                return self._record(is_whole=name == "Record")
            case "TargetStores":
                stores = draw(st.permutations(shape.member.enum))
                is_update = path.startswith("UpdateRecord")
                return list(stores if is_update or draw(st.booleans()) else stores[:1])
            case "FeatureNames":
                return draw(st.lists(st.sampled_from([item.name for item in FEATURES]), min_size=1, max_size=9))
            case "ListRecordsNextToken":
                return self._world.token
            case "TtlDurationValue":
                return draw(st.integers(1, 5000))
            case "ValueAsString":
                return draw(EVENT_TIMES) if name == "EventTime" else self._identifier
        if shape.type_name == "structure":
            return self._structure(shape, path)
        if shape.type_name == "list":
            limits = shape.metadata
            count = draw(st.integers(limits.get("min", 0), min(limits.get("max", 3), 3)))
            return [self._value(shape.member, f"{path}[]") for _ in range(count)]
        if shape.type_name == "boolean":
            return draw(st.booleans())
        if shape.type_name == "integer":
            return draw(st.integers(shape.metadata["min"], shape.metadata["max"]))
        assert shape.enum, f"a strategy for {shape.name}"
        return draw(st.sampled_from(shape.enum))

    def _record(self, *, is_whole: bool) -> list[dict[str, Any]]:
        identifier = {"FeatureName": "id", "ValueAsString": self._identifier}
        event_time = {"FeatureName": "at", "ValueAsString": self._draw(EVENT_TIMES)}
        optional = self._draw(st.lists(st.sampled_from(FEATURES[2:]), unique=True, min_size=0 if is_whole else 1))
        values = [self._draw(value_of(item)) for item in optional]
        if is_whole:
            values += [identifier, event_time]
        else:
            values += [identifier] * self._draw(st.booleans()) + [event_time] * self._with_event_time
        return list(self._draw(st.permutations(values)))


def members(shape: Shape) -> Iterator[tuple[str, str]]:
    """(structure, member) of everything in a shape."""
    if isinstance(shape, StructureShape):
        for name, member in shape.members.items():
            yield shape.name, name
            yield from members(member)
    elif isinstance(shape, ListShape):
        yield from members(shape.member)


def members_in(shape: Shape, value: Any) -> Iterator[tuple[str, str]]:
    """The same of what a value has."""
    if isinstance(shape, StructureShape):
        for name, item in value.items():
            yield shape.name, name
            yield from members_in(shape.members[name], item)
    elif isinstance(shape, ListShape):
        for item in value:
            yield from members_in(shape.member, item)


@pytest.mark.parametrize("name", OPERATIONS)
def test_right_requests_are_accepted(world: World, name: str) -> None:
    """All members of the model are drawn, so that none is left out, whatever a newer model adds."""
    operation = SERVICE.operation_model(name)
    drawn: set[tuple[str, str]] = set()

    @SETTINGS
    @given(st.data())
    def check(data: st.DataObject) -> None:
        request = Drawing(world, data.draw).request(operation)
        drawn.update(members_in(operation.input_shape, request))
        reply = world.call(operation, request)
        assert reply.status == 200, (request, reply)
        if operation.output_shape is None or not operation.output_shape.members:
            assert reply.body == b""
            return
        assert set(operation.output_shape.required_members) <= reply.json.keys() <= set(operation.output_shape.members)
        assert not reply.json.get("Errors"), (request, reply)
        assert not reply.json.get("UnprocessedEntries")

    check()
    assert drawn == set(members(operation.input_shape))


Place = tuple[str | int, ...]
MISSING = object()


def breaks(shape: Shape, value: Any, place: Place, location: str, *, required: bool = True) -> Iterator[tuple[Place, Any]]:
    """Each way to break one rule of a shape: where, and what stands there instead."""
    rules, in_body = shape.metadata, location == "body"
    if required and location != "uri" and place:
        yield place, MISSING
    if required and in_body and place:
        yield place, None
    match shape.type_name:
        case "structure":
            assert isinstance(shape, StructureShape)
            for name, item in value.items():
                member = shape.members[name]
                inner = member.serialization.get("location", location) if not place else location
                yield from breaks(member, item, (*place, name), inner, required=name in shape.required_members)
            wrong: list[Any] = ["text", 5, []] if place else []
        case "list":
            assert isinstance(shape, ListShape)
            for index, item in enumerate(value):
                yield from breaks(shape.member, item, (*place, index), location, required=False)
            if rules.get("min", 0) and in_body:
                yield place, []
            if "max" in rules and value:
                yield place, [value[0]] * (rules["max"] + 1)
            wrong = ["text", 5, {}]
        case "string":
            if rules.get("min", 0) and location != "uri":
                yield place, ""
            if "max" in rules:
                yield place, "x" * (rules["max"] + 1)
            if shape.enum:
                yield place, "Nope"
                yield place, value.lower()
            if rules.get("pattern", ".*") != ".*":
                for text in ("bad name!", "-x", "x_", "ä", "a.b"):
                    yield place, text
            wrong = [5, True, [], {}]
        case "integer":
            yield place, rules["min"] - 1
            if "max" in rules:
                yield place, rules["max"] + 1
            wrong = ["1", 1.5, True, [], 10**30]
        case _:
            wrong = ["true", 1, []]
    if in_body:
        for item in wrong:
            yield place, item


def broken(request: Request, place: Place, value: Any) -> Request:
    changed = copy.deepcopy(request)
    target: Any = changed
    for step in place[:-1]:
        target = target[step]
    if value is MISSING:
        del target[place[-1]]
    else:
        target[place[-1]] = value
    return changed


@pytest.mark.parametrize("name", OPERATIONS)
def test_wrong_requests_get_the_modelled_error(world: World, name: str) -> None:
    operation = SERVICE.operation_model(name)

    @SETTINGS
    @given(st.data())
    def check(data: st.DataObject) -> None:
        request = Drawing(world, data.draw).request(operation)
        ways = list(breaks(operation.input_shape, request, (), "body"))
        place, value = data.draw(st.sampled_from(ways))
        changed = broken(request, place, value)
        reply = world.call(operation, changed)
        where = (place, str(value)[:50], reply)
        if reply.status == 200:  # an entry of a batch, which does not hold up the others
            (error,) = {item["ErrorCode"]: item for item in reply.json["Errors"]}.values()
            assert error["ErrorCode"] == "ValidationError", where
            assert len(error["ErrorMessage"]) <= 2048
            if name == "BatchWriteRecord":
                assert [item["Entry"] for item in reply.json["Errors"]] == [changed["Entries"][place[1]]], where
            else:
                assert name == "BatchGetRecord", where
        else:
            assert (reply.status, reply.code) == (400, "ValidationError"), where
            assert 0 < len(reply.json["Message"]) <= 2048

    check()


WILD_TEXT = st.one_of(st.text(), st.sampled_from(["", GROUP, STANDARD, "id", "1", "%", "a/b", "..", "\0"]))
WILD_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), WILD_TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(
                [
                    *("Record", "Entries", "Features", "Identifiers", "FeatureName", "ValueAsString", "ValueAsStringList"),
                    *("FeatureGroupName", "RecordIdentifierValueAsString", "RecordIdentifiersValueAsString", "FeatureNames"),
                    *("TtlDuration", "Unit", "Value", "TargetStores", "MaxResults", "NextToken", "IncludeSoftDeletedRecords"),
                ]
            ),
            inner,
            max_size=4,
        ),
    ),
    max_leaves=12,
)


def test_nothing_answers_500(world: World) -> None:
    segments = st.one_of(WILD_TEXT, st.sampled_from(["Record", "ListRecords", world.arn]))
    paths = st.one_of(
        st.lists(segments, max_size=3).map(lambda parts: "/FeatureGroup/" + "/".join(quote(part, safe="") for part in parts)),
        st.sampled_from(
            ["/BatchGetRecord", "/BatchWriteRecord", "/FeatureGroup/%ff", "/FeatureGroup/%", f"/FeatureGroup/{GROUP}"]
        ),
    )
    names = [
        "RecordIdentifierValueAsString",
        "EventTime",
        "FeatureName",
        "DeletionMode",
        "TargetStores",
        "ExpirationTimeResponse",
    ]
    queries = st.one_of(
        st.lists(st.tuples(st.sampled_from(names), WILD_TEXT), max_size=4).map(
            lambda pairs: "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)
        ),
        st.sampled_from(["&&", "=", "%ff=1", "a=%ff", "FeatureName"]),
    )
    bodies = st.one_of(WILD_JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=40))

    @settings(SETTINGS, max_examples=300)
    @given(st.sampled_from(["GET", "PUT", "POST", "DELETE", "PATCH", "HEAD"]), paths, queries, bodies)
    def check(method: str, path: str, query: str, body: bytes) -> None:
        reply = world.send(method, path, query, body)
        if reply.status == 200:
            assert reply.code is None
        else:
            assert reply.code is not None
            assert MODELLED_STATUS[reply.code] == reply.status, (method, path, query, body, reply)

    check()
