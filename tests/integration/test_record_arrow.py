"""BatchGetRecord as an Arrow stream: the same records as in JSON, typed, over every online store."""

from __future__ import annotations

import http.client
import json
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from api.record_arrow import ARROW_STREAM, BATCH_BYTES_MAX, BATCH_CELLS_MAX, CELLS_MAX
from tests.integration.conftest import Http, Reply, definitions, record
from tests.service import Service

AT = "2099-01-01T00:00:00Z"
NAMED = ["FeatureGroupName", "RecordIdentifierValueAsString"]
CreateGroup = Callable[..., str]


@pytest.fixture(scope="module", params=["sqlite", "redis"])
def service(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    urls = {}
    if request.param == "redis":
        urls["online_url"] = f"{request.getfixturevalue('redis').url}?prefix={uuid.uuid4().hex[:8]}"
    with Service(folder / "home", folder / "log", **urls) as running:
        yield running
    log = running.log.read_text()
    assert "Traceback" not in log, log


def entry(group: str, *identifiers: str, features: list[str] | None = None) -> dict[str, Any]:
    members = {"FeatureGroupName": group, "RecordIdentifiersValueAsString": list(identifiers)}
    return members if features is None else members | {"FeatureNames": features}


def ask(client: Http, *entries: Any, accept: str = ARROW_STREAM, **members: str) -> Reply:
    headers = {"Accept": accept, "Content-Type": "application/json"}
    return client.request("POST", "/BatchGetRecord", {"Identifiers": entries} | members, headers)


def table_of(reply: Reply) -> pa.Table:
    assert reply.status == 200, reply
    assert reply.headers["content-type"] == ARROW_STREAM
    with pa.ipc.open_stream(reply.body) as stream:
        table = stream.read_all()
    table.validate(full=True)
    return table


def put(client: Http, group: str, **values: str | list[str]) -> None:
    assert client.request("PUT", f"/FeatureGroup/{group}", {"Record": record(at=AT, **values)}).status == 200


def faults(reply: Reply) -> str:
    """The message of a request that is wrong as a whole, which is JSON whatever is accepted."""
    assert (reply.status, reply.code) == (400, "ValidationError")
    assert reply.headers["content-type"] == "application/json"
    return reply.message


@dataclass(frozen=True)
class Kind:
    """A feature by the words of the API: its type, and what its texts are."""

    type: str
    arrow: pa.DataType
    parse: Callable[[str], Any]
    texts: st.SearchStrategy[str]
    is_list: bool = False
    size: int | None = None


INTEGRAL = ("Integral", pa.int64(), int, st.integers(-(2**63), 2**63 - 1).map(str) | st.sampled_from(["+7", "-0", "007"]))
FRACTIONAL = (
    "Fractional",
    pa.float64(),
    float,
    st.floats(allow_nan=False, allow_infinity=False).map(repr) | st.sampled_from(["+1.5", "-0", ".5", "5.", "1e-400", "12.50"]),
)
STRING = ("String", pa.string(), str, st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
BASE = {
    "id": Kind(*STRING),
    "at": Kind(*STRING),
    "count": Kind(*INTEGRAL),
    "share": Kind(*FRACTIONAL),
    "note": Kind(*STRING),
    "tags": Kind(*STRING, is_list=True),
    "vector": Kind(*FRACTIONAL, is_list=True, size=3),
    "numbers": Kind(*INTEGRAL, is_list=True),
}
LATER = {"added": Kind(*FRACTIONAL), "added-word": Kind(*STRING)}
OTHER = {"id": Kind(*STRING), "at": Kind(*STRING), "rank": Kind(*INTEGRAL), "share": Kind(*FRACTIONAL)}
IDENTIFIERS = ["a", "b c", 'd"\\', "ü", "old", "missing"]


@dataclass(frozen=True)
class World:
    """Two groups that share some features; the record "old" of the first one is from before some of them were added."""

    client: Http
    kinds: dict[str, dict[str, Kind]]
    numbers: Iterator[int]

    def write(self, group: str, identifier: str, values: dict[str, Any], ttl_days: int | None) -> None:
        """Later than all before it."""
        body: dict[str, Any] = {"Record": record(id=identifier, at=f"2098-01-01T00:00:00.{next(self.numbers):06}Z", **values)}
        if ttl_days is not None:
            body["TtlDuration"] = {"Unit": "Days", "Value": ttl_days}
        assert self.client.request("PUT", f"/FeatureGroup/{group}", body).status == 200


@pytest.fixture(scope="module")
def world(create_group: CreateGroup, sagemaker: Any, http_client: Http) -> World:
    collections = {"tags": {"CollectionType": "List"}, "numbers": {"CollectionType": "Set"}}
    collections["vector"] = {"CollectionType": "Vector", "CollectionConfig": {"VectorConfig": {"Dimension": 3}}}  # type: ignore[dict-item]
    first = create_group(
        FeatureDefinitions=[
            {"FeatureName": name, "FeatureType": kind.type, **collections.get(name, {})} for name, kind in BASE.items()
        ],
        OnlineStoreConfig={"EnableOnlineStore": True, "StorageType": "InMemory"},
    )
    other = create_group(FeatureDefinitions=definitions(**{name: kind.type for name, kind in OTHER.items()}))
    put(http_client, first, id="old", count="+41", tags=["x", "y"])
    added = definitions(**{name: kind.type for name, kind in LATER.items()})
    sagemaker.update_feature_group(FeatureGroupName=first, FeatureAdditions=added)
    return World(http_client, {first: BASE | LATER, other: OTHER}, count())


def values_of(kinds: dict[str, Kind]) -> st.SearchStrategy[dict[str, Any]]:
    """What a record has beside identifier and event time."""
    return st.fixed_dictionaries(
        {},
        optional={
            name: st.lists(kind.texts, min_size=kind.size or 1, max_size=kind.size or 4) if kind.is_list else kind.texts
            for name, kind in kinds.items()
            if name not in ("id", "at")
        },
    )


def meaning(kind: Kind, member: dict[str, Any]) -> Any:
    if kind.is_list:
        return [kind.parse(text) for text in member["ValueAsStringList"]]
    return kind.parse(member["ValueAsString"])


def oracle(world: World, request: dict[str, Any], answer: dict[str, Any]) -> tuple[pa.Schema, list[dict[str, Any]]]:
    """Columns and rows that the JSON answer stands for."""
    with_expiry = request["ExpirationTimeResponse"] == "Enabled"
    fields = {name: pa.string() for name in NAMED} | ({"ExpiresAt": pa.timestamp("us", "UTC")} if with_expiry else {})
    for item in request["Identifiers"]:
        kinds = world.kinds.get(item["FeatureGroupName"], {})
        wanted = item.get("FeatureNames", list(kinds))
        for name in [name for name in kinds if name in wanted] if set(wanted) <= set(kinds) else []:
            kind = kinds[name]
            fields.setdefault(name, pa.list_(kind.arrow) if kind.is_list else kind.arrow)
    rows = []
    for item in answer["Records"]:
        row = dict.fromkeys(fields) | {name: item[name] for name in NAMED}
        if "ExpiresAt" in item:
            row["ExpiresAt"] = datetime.fromisoformat(item["ExpiresAt"])
        kinds = world.kinds[item["FeatureGroupName"]]
        row |= {member["FeatureName"]: meaning(kinds[member["FeatureName"]], member) for member in item["Record"]}
        rows.append(row)
    return pa.schema(fields), rows


def exact(rows: list[dict[str, Any]]) -> list[dict[str, str]]:
    """As text, in which -0.0 is not 0.0; times as seconds, as time zones are written in many ways."""
    return [{name: repr(cell.timestamp() if isinstance(cell, datetime) else cell) for name, cell in row.items()} for row in rows]


@settings(max_examples=40)
@given(data=st.data())
def test_it_is_the_json_answer(world: World, data: st.DataObject) -> None:
    first, other = world.kinds
    for group in (first, other):
        for identifier in data.draw(st.lists(st.sampled_from(IDENTIFIERS[:4]), max_size=2, unique=True)):
            values = data.draw(values_of(world.kinds[group]))
            world.write(group, identifier, values, data.draw(st.none() | st.integers(1, 5000)))
    entries = []
    for _ in range(data.draw(st.integers(1, 4))):
        group = data.draw(st.sampled_from([first, first, other, other, "nope"]))
        names = st.lists(st.sampled_from([*world.kinds.get(group, {}), "x"] if group == "nope" else list(world.kinds[group])))
        wanted = data.draw(st.none() | names.filter(bool) | st.just(["id", "x"]))
        identifiers = data.draw(st.lists(st.sampled_from([*IDENTIFIERS, ""]), min_size=1, max_size=5))
        entries.append(entry(group, *identifiers, features=wanted))
    request = {"Identifiers": entries, "ExpirationTimeResponse": data.draw(st.sampled_from(["Enabled", "Disabled"]))}
    written = ask(world.client, *entries, accept="application/json", ExpirationTimeResponse=request["ExpirationTimeResponse"])
    table = table_of(ask(world.client, *entries, ExpirationTimeResponse=request["ExpirationTimeResponse"]))
    schema, rows = oracle(world, request, written.json)
    assert table.schema.equals(schema)
    assert exact(table.to_pylist()) == exact(rows)
    metadata = {name.decode(): json.loads(text) for name, text in table.schema.metadata.items()}
    assert metadata == {name: written.json[name] for name in ("Errors", "UnprocessedIdentifiers")}


class TestColumns:
    def test_nothing_found_still_has_its_columns(self, http_client: Http, world: World) -> None:
        first, other = world.kinds
        table = table_of(ask(http_client, entry(other, "missing"), entry(first, "missing", features=["count", "at"])))
        assert table.num_rows == 0
        assert table.schema.names == [*NAMED, "id", "at", "rank", "share", "count"]

    def test_nothing_known_has_only_those_of_every_answer(self, http_client: Http) -> None:
        table = table_of(ask(http_client, entry("nope", "a", "b"), ExpirationTimeResponse="Enabled"))
        assert (table.num_rows, table.schema.names) == (0, [*NAMED, "ExpiresAt"])
        errors = json.loads(table.schema.metadata[b"Errors"])
        assert [(item["RecordIdentifierValueAsString"], item["ErrorCode"]) for item in errors] == [
            ("a", "ResourceNotFound"),
            ("b", "ResourceNotFound"),
        ]

    def test_one_name_with_two_types(self, http_client: Http, create_group: CreateGroup, world: World) -> None:
        first = next(iter(world.kinds))
        types = {"id": "String", "at": "String", "count": "String", "tags": "String", "share": "Fractional"}
        clashing = create_group(FeatureDefinitions=definitions(**types))
        message = faults(ask(http_client, entry(first, "a"), entry(clashing, "a")))
        assert f"Identifiers[1].FeatureNames: expected 'count' of type Integral, as in '{first}'" in message
        assert "got 'String'" in message
        assert "'tags' of type List of String" in message
        table = table_of(
            ask(http_client, entry(first, "old", features=["count", "tags"]), entry(clashing, "a", features=["id", "share"]))
        )
        assert table.schema.names == [*NAMED, "count", "tags", "id", "share"]
        assert table["count"].to_pylist() == [41]

    def test_features_named_like_a_column_of_every_answer(self, http_client: Http, create_group: CreateGroup) -> None:
        types = {"id": "String", "at": "String", "FeatureGroupName": "Integral", "ExpiresAt": "Fractional"}
        group = create_group(FeatureDefinitions=definitions(**types))
        put(http_client, group, id="a", FeatureGroupName="1", ExpiresAt="2.5")
        assert "got 'FeatureGroupName'" in faults(ask(http_client, entry(group, "a")))
        some = entry(group, "a", features=["ExpiresAt", "id"])
        assert "got 'ExpiresAt'" in faults(ask(http_client, some, ExpirationTimeResponse="Enabled"))
        assert table_of(ask(http_client, some)).select(["id", "ExpiresAt"]).to_pylist() == [{"id": "a", "ExpiresAt": 2.5}]

    def test_an_arn_is_answered_as_an_arn(self, http_client: Http, sagemaker: Any, world: World) -> None:
        first = next(iter(world.kinds))
        arn = sagemaker.describe_feature_group(FeatureGroupName=first)["FeatureGroupArn"]
        table = table_of(ask(http_client, entry(arn, "old", features=["count"]), entry(first, "old", features=["count"])))
        assert table["FeatureGroupName"].to_pylist() == [arn, first]
        assert table["count"].to_pylist() == [41, 41]


class TestSize:
    def test_many_cells_are_several_batches(self, http_client: Http, create_group: CreateGroup) -> None:
        numbers = {f"f{number}": "Fractional" for number in range(8)}
        group = create_group(FeatureDefinitions=definitions(id="String", at="String", **numbers))
        put(http_client, group, id="a", **dict.fromkeys(numbers, "1.5"))
        reply = ask(http_client, *[entry(group, *["a"] * 100)] * 100)
        assert BATCH_CELLS_MAX < 10_000 * 10
        assert table_of(reply).select(list(numbers)).to_pylist() == [dict.fromkeys(numbers, 1.5)] * 10_000
        with pa.ipc.open_stream(reply.body) as stream:
            assert len(list(stream)) == 2

    def test_much_text_is_several_batches(self, http_client: Http, create_group: CreateGroup) -> None:
        group = create_group(FeatureDefinitions=definitions(id="String", at="String", text="String"))
        put(http_client, group, id="a", text="x" * 340_000)
        reply = ask(http_client, entry(group, *["a"] * 100))
        assert table_of(reply)["text"].to_pylist() == ["x" * 340_000] * 100
        with pa.ipc.open_stream(reply.body) as stream:
            assert len(list(stream)) == 1 + 34_000_000 // (BATCH_BYTES_MAX + 340_000)

    def test_too_many_cells(self, http_client: Http, create_group: CreateGroup) -> None:
        numbers = {f"f{number}": "Fractional" for number in range(103)}
        group = create_group(FeatureDefinitions=definitions(id="String", at="String", **numbers))
        message = faults(ask(http_client, *[entry(group, *["a"] * 100)] * 100))
        assert message.startswith(f"Identifiers: expected at most {CELLS_MAX:,} identifiers times features")
        assert message.endswith("got 1050000")


class TestAccept:
    @pytest.mark.parametrize(
        "accept",
        [
            ARROW_STREAM,
            "Application/VND.Apache.Arrow.Stream",
            f"{ARROW_STREAM}; charset=binary ; Q=0.3",
            f"{ARROW_STREAM}, application/json",
            f"application/json;q=0.9,{ARROW_STREAM}",
            f"*/*;q=0.1, {ARROW_STREAM};q=0.2",
            f"application/json;q=0.1, */*, {ARROW_STREAM};q=0.5",
            f"text/html, {ARROW_STREAM};q=0.5",
        ],
    )
    def test_arrow(self, http_client: Http, world: World, accept: str) -> None:
        assert table_of(ask(http_client, entry(next(iter(world.kinds)), "old"), accept=accept)).num_rows == 1

    @pytest.mark.parametrize(
        "accept",
        [
            "",
            "*/*",
            "application/*",
            "application/json",
            "application/vnd.apache.arrow.file",
            f"{ARROW_STREAM};q=0",
            f"{ARROW_STREAM};q=0.000, application/json;q=0",
            f"application/json, {ARROW_STREAM};q=0.9",
            f"{ARROW_STREAM};q=0.5, application/*",
        ],
    )
    def test_json(self, http_client: Http, world: World, accept: str) -> None:
        reply = ask(http_client, entry(next(iter(world.kinds)), "old"), accept=accept)
        assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
        assert len(reply.json["Records"]) == 1

    def test_several_lines_are_one_list(self, http_client: Http, world: World) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", http_client.port, timeout=30)
        body = json.dumps({"Identifiers": [entry(next(iter(world.kinds)), "old")]}).encode()
        connection.putrequest("POST", "/BatchGetRecord")
        for name, value in [("Accept", "text/html"), ("Accept", ARROW_STREAM), ("Content-Length", str(len(body)))]:
            connection.putheader(name, value)
        connection.endheaders(body)
        answer = connection.getresponse()
        assert answer.headers["content-type"] == ARROW_STREAM
        with pa.ipc.open_stream(answer.read()) as stream:
            assert stream.read_all().num_rows == 1
        connection.close()

    @pytest.mark.parametrize("weight", ["high", "1.5", "-1", "0.1234", ""])
    def test_a_weight_that_is_none(self, http_client: Http, weight: str) -> None:
        message = faults(ask(http_client, entry("nope", "a"), accept=f"{ARROW_STREAM};q={weight}"))
        assert message.startswith(f"Accept: expected a weight from 0 to 1 for '{ARROW_STREAM}'")

    def test_what_is_wrong_with_a_request_is_json(self, http_client: Http) -> None:
        assert "1 to 100 entries" in faults(ask(http_client))
        assert "at least one name" in faults(ask(http_client, entry("nope", "a", features=[])))

    def test_other_operations_answer_json(self, http_client: Http, world: World) -> None:
        path = f"/FeatureGroup/{next(iter(world.kinds))}?RecordIdentifierValueAsString=old&FeatureName=count"
        reply = http_client.request("GET", path, headers={"Accept": ARROW_STREAM})
        assert reply.json == {"Record": record(count="+41")}

    def test_one_connection_changes_its_mind(self, http_client: Http, world: World) -> None:
        """The lane of records and the plain route take turns."""
        connection = http.client.HTTPConnection("127.0.0.1", http_client.port, timeout=30)
        body = json.dumps({"Identifiers": [entry(next(iter(world.kinds)), "old")]})
        for accept in ["application/json", ARROW_STREAM] * 3:
            connection.request("POST", "/BatchGetRecord", body, {"Accept": accept})
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, answer.headers["content-type"]) == (200, accept)
        connection.close()
