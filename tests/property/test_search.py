"""Search answers what a plain reading of its own records says: random expressions over random groups, against brute force.

The oracle knows the records as JSON and nothing of the database: it looks values up by their path in a record.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from api.control_plane import TARGET_PREFIX, ControlPlane
from featurestore.registry.tables import metadata
from featurestore.settings import Settings
from featurestore.store import FeatureStore

GROUPS = 30
TAG_KEYS = ["team", "Team", "stage", "cost center", "a.b", "Key"]
TAG_VALUES = ["red", "Red", "dark red", "", "7", "r_d", "ü"]
WORDS = ["air", "Air", "air_quality", "rain,fall", "100%", "100", "日本", "ü"]
TIMES = ("CreationTime", "LastModifiedTime")
NUMBERS = ("OnlineStoreConfig.TtlDuration.Value", "FeatureDefinitions.CollectionConfig.VectorConfig.Dimension")
FLAGS = ("OnlineStoreConfig.EnableOnlineStore", "OfflineStoreConfig.DisableGlueTableCreation")
STRUCTURES = ("OnlineStoreConfig", "OnlineStoreConfig.TtlDuration", "OfflineStoreConfig.DataCatalogConfig", "LastUpdateStatus")
GROUP_TEXTS = (
    "FeatureGroupArn",
    "FeatureGroupName",
    "RecordIdentifierFeatureName",
    "EventTimeFeatureName",
    "FeatureGroupStatus",
    "FailureReason",
    "Description",
    "RoleArn",
    "LastUpdateStatus.Status",
    "OfflineStoreStatus.Status",
    "OnlineStoreConfig.SecurityConfig.KmsKeyId",
    "OnlineStoreConfig.StorageType",
    "OnlineStoreConfig.TtlDuration.Unit",
    "OfflineStoreConfig.S3StorageConfig.S3Uri",
    "OfflineStoreConfig.S3StorageConfig.KmsKeyId",
    "OfflineStoreConfig.S3StorageConfig.ResolvedOutputS3Uri",
    "OfflineStoreConfig.DataCatalogConfig.TableName",
    "OfflineStoreConfig.DataCatalogConfig.Database",
    "OfflineStoreConfig.TableFormat",
)
DEFINITION_TEXTS = (
    "FeatureDefinitions.FeatureName",
    "FeatureDefinitions.FeatureType",
    "FeatureDefinitions.CollectionType",
)
METADATA_TEXTS = ("FeatureGroupArn", "FeatureGroupName", "FeatureName", "FeatureType", "Description")
PAIRS = {"FeatureGroup": "Tags", "FeatureMetadata": "Parameters"}


class World:
    """Records by resource, oldest first, and the exact times of each in microseconds, by the property's name."""

    def __init__(
        self, control: ControlPlane, records: dict[str, list[dict[str, Any]]], times: dict[str, list[dict[str, int]]]
    ) -> None:
        self.control = control
        self.records = records
        self.times = times

    def __repr__(self) -> str:
        return "World()"  # shown with every failure

    def search(self, request: dict[str, Any]) -> dict[str, Any]:
        return call(self.control, "Search", request)


def call(control: ControlPlane, operation: str, request: dict[str, Any]) -> Any:
    answer = control.call(f"{TARGET_PREFIX}{operation}", json.dumps(request).encode())
    assert answer.status == 200, answer.body
    return json.loads(answer.body) if answer.body else None


def create_request(number: int, dice: random.Random) -> dict[str, Any]:
    kind = dice.choice(["online", "offline", "both", "memory"])
    features = [
        {"FeatureName": dice.choice(["id", "key"]), "FeatureType": "String"},
        {"FeatureName": dice.choice(["at", "event_time"]), "FeatureType": "String"},
        *(
            {"FeatureName": f"f{count}", "FeatureType": dice.choice(["Integral", "Fractional"])}
            for count in range(dice.randrange(3))
        ),
    ]
    if kind == "memory":
        config = {"VectorConfig": {"Dimension": dice.choice([3, 8, 100])}}
        features.append({"FeatureName": "v", "FeatureType": "Fractional", "CollectionType": "Vector", "CollectionConfig": config})
    request: dict[str, Any] = {
        "FeatureGroupName": f"{dice.choice(['air', 'Air', 'rain'])}-{number}",
        "RecordIdentifierFeatureName": features[0]["FeatureName"],
        "EventTimeFeatureName": features[1]["FeatureName"],
        "FeatureDefinitions": features,
        "Tags": [{"Key": key, "Value": dice.choice(TAG_VALUES)} for key in dice.sample(TAG_KEYS, dice.randrange(4))],
    }
    if dice.random() < 0.7:
        request["Description"] = dice.choice([*WORDS, ""])
    if dice.random() < 0.3:
        request["RoleArn"] = "arn:aws:iam::000000000000:role/r"
    if kind != "offline":
        online: dict[str, Any] = {"EnableOnlineStore": True}
        if kind == "memory":
            online["StorageType"] = "InMemory"
        if dice.random() < 0.5:
            online["TtlDuration"] = {"Unit": dice.choice(["Days", "Hours"]), "Value": dice.choice([1, 2, 30])}
        if dice.random() < 0.3:
            online["SecurityConfig"] = {"KmsKeyId": dice.choice(["k", ""])}
        request["OnlineStoreConfig"] = online
    if kind in ("offline", "both"):
        offline: dict[str, Any] = {"S3StorageConfig": {"S3Uri": f"s3://{dice.choice(['red', 'blue'])}-bucket"}}
        if dice.random() < 0.3:
            offline["DisableGlueTableCreation"] = True
        elif dice.random() < 0.4:
            offline["DataCatalogConfig"] = {"TableName": "shared", "Catalog": "AwsDataCatalog", "Database": "db"}
        if dice.random() < 0.3:
            offline["TableFormat"] = "Glue"
        request["OfflineStoreConfig"] = offline
    return request


def populate(store: FeatureStore, control: ControlPlane) -> None:
    dice = random.Random(7)
    for number in range(GROUPS):
        request = create_request(number, dice)
        name = request["FeatureGroupName"]
        call(control, "CreateFeatureGroup", request)
        description = call(control, "DescribeFeatureGroup", {"FeatureGroupName": name})
        if description["FeatureGroupStatus"] == "Created" and dice.random() < 0.3:
            added = [{"FeatureName": "added", "FeatureType": "Integral"}]
            call(control, "UpdateFeatureGroup", {"FeatureGroupName": name, "FeatureAdditions": added})
        if dice.random() < 0.3:
            tags = [{"Key": dice.choice(TAG_KEYS), "Value": "added"}]
            call(control, "AddTags", {"ResourceArn": description["FeatureGroupArn"], "Tags": tags})
        for feature in description["FeatureDefinitions"]:
            if dice.random() < 0.5:
                pairs = [{"Key": key, "Value": dice.choice(TAG_VALUES[:3])} for key in dice.sample(TAG_KEYS, dice.randrange(3))]
                update = {"FeatureGroupName": name, "FeatureName": feature["FeatureName"], "ParameterAdditions": pairs}
                update |= {"Description": dice.choice(WORDS)} if dice.random() < 0.5 else {}
                call(control, "UpdateFeatureMetadata", update)
        if number in (3, 11):
            store.registry.begin_delete(name)
        if number == 5:
            call(control, "DeleteFeatureGroup", {"FeatureGroupName": name})


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    more: dict[str, Any] = {}
    if request.param == "postgresql":
        more["registry_url"] = request.getfixturevalue("postgres_url")
        engine = sa.create_engine(more["registry_url"])
        metadata.drop_all(engine)
        engine.dispose()
    with FeatureStore(Settings.load({}, home=tmp_path_factory.mktemp("home"), **more)) as store:
        control = ControlPlane(store)
        populate(store, control)
        groups = sorted(store.feature_groups(), key=lambda group: group.group_id)
        records: dict[str, list[dict[str, Any]]] = {"FeatureGroup": [], "FeatureMetadata": []}
        times: dict[str, list[dict[str, int]]] = {"FeatureGroup": [], "FeatureMetadata": []}
        for group in groups:
            description = call(control, "DescribeFeatureGroup", {"FeatureGroupName": group.name})
            tags = call(control, "ListTags", {"ResourceArn": group.arn})["Tags"]
            for member in ("OnlineStoreTotalSizeBytes", "ThroughputConfig"):
                description.pop(member, None)
            records["FeatureGroup"].append(description | ({"Tags": tags} if tags else {}))
            times["FeatureGroup"].append(dict(zip(TIMES, (group.created_at_us, group.modified_at_us), strict=True)))
            for feature in group.features:
                asked = {"FeatureGroupName": group.name, "FeatureName": feature.name}
                records["FeatureMetadata"].append(call(control, "DescribeFeatureMetadata", asked))
                kept = store.registry.feature(group.name, feature.name)
                times["FeatureMetadata"].append(dict(zip(TIMES, (kept.created_at_us, kept.modified_at_us), strict=True)))
        assert len(groups) == GROUPS - 1
        statuses = {record["FeatureGroupStatus"] for record in records["FeatureGroup"]}
        assert statuses == {"Created", "Deleting", "CreateFailed"}
        yield World(control, records, times)


# The oracle


def leaves(value: Any, path: list[str]) -> Iterator[Any]:
    """What a record has at a path, in each element of the lists on the way."""
    if isinstance(value, list):
        for item in value:
            yield from leaves(item, path)
    elif not path:
        yield value
    elif isinstance(value, dict) and path[0] in value:
        yield from leaves(value[path[0]], path[1:])


def values_of(record: dict[str, Any], name: str) -> list[Any]:
    for pairs in PAIRS.values():
        own = record.get(pairs, [])
        if name == f"All{pairs}":
            return [item[part] for item in own for part in ("Key", "Value")]
        if name.startswith(f"{pairs}."):
            return [item["Value"] for item in own if item["Key"] == name.removeprefix(f"{pairs}.")]
    return list(leaves(record, name.split(".")))


def compare(name: str, operator: str, found: Any, text: str) -> bool:
    if name in TIMES:
        moment = datetime.fromisoformat(text).replace(tzinfo=UTC)
        step = 1 if "." in text else 1000
        mine, theirs = round(found * 1000) // step, (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=step)
        return order(operator, mine, theirs)
    if name in NUMBERS:
        return order(operator, found, Decimal(text))
    if name in FLAGS:
        return bool(found) == (text == "true")
    if operator == "Contains":
        return text in found
    if operator == "In":
        return found in [part.strip() for part in text.split(",")]
    return bool(found == text)


def order(operator: str, mine: Any, theirs: Any) -> bool:
    return {
        "Equals": mine == theirs,
        "GreaterThan": mine > theirs,
        "GreaterThanOrEqualTo": mine >= theirs,
        "LessThan": mine < theirs,
        "LessThanOrEqualTo": mine <= theirs,
    }[operator]


def meets_filter(found: list[Any], item: dict[str, str]) -> bool:
    operator = item.get("Operator") or ("Equals" if "Value" in item else "Exists")
    if operator in ("Exists", "NotExists"):
        return bool(found) == (operator == "Exists")
    if item["Name"] == "OnlineStoreConfig.EnableOnlineStore":
        found = found or [False]
    if operator == "NotEquals":
        return not any(compare(item["Name"], "Equals", value, item["Value"]) for value in found)
    return any(compare(item["Name"], operator, value, item["Value"]) for value in found)


def meets(record: dict[str, Any], expression: dict[str, Any]) -> bool:
    results = [meets_filter(values_of(record, item["Name"]), item) for item in expression.get("Filters", [])]
    for nested in expression.get("NestedFilters", []):
        name = nested["NestedPropertyName"]
        results.append(
            any(
                all(
                    meets_filter(list(leaves(element, item["Name"].removeprefix(f"{name}.").split("."))), item)
                    for item in nested["Filters"]
                )
                for element in record.get(name, [])
            )
        )
    results += [meets(record, inner) for inner in expression.get("SubExpressions", [])]
    if not results:
        return True
    return any(results) if expression.get("Operator") == "Or" else all(results)


def visible(world: World, resource: str, record: dict[str, Any], conditions: list[dict[str, str]]) -> bool:
    """A feature is as visible as its group."""
    groups = {group["FeatureGroupName"]: group for group in world.records["FeatureGroup"]}
    tags = {tag["Key"]: tag["Value"] for tag in groups[record["FeatureGroupName"]].get("Tags", [])}
    wanted = [(item["Key"].removeprefix("Tags."), item["Value"]) for item in conditions]
    return all(tags.get(key, value) == value for key, value in wanted)


def expected(world: World, request: dict[str, Any]) -> list[dict[str, Any]]:
    resource = request["Resource"]
    sort = request.get("SortBy", "LastModifiedTime")

    def key(position: int) -> tuple[Any, int]:
        if sort in TIMES:
            return world.times[resource][position][sort], position
        found = values_of(world.records[resource][position], sort)
        missing: Any = "" if sort not in NUMBERS + FLAGS else -1
        return (found[0] if found else missing), position

    positions = [
        position
        for position, record in enumerate(world.records[resource])
        if meets(record, request.get("SearchExpression", {}))
        and visible(world, resource, record, request.get("VisibilityConditions", []))
    ]
    positions.sort(key=key, reverse=request.get("SortOrder") != "Ascending")
    return [world.records[resource][position] for position in positions]


# Requests


def texts() -> st.SearchStrategy[str]:
    shared = [
        "air",
        "id",
        "red",
        "String",
        "Created",
        "Successful",
        "Days",
        "000000000000",
        "s3://red-bucket",
        "shared",
        "-1",
        "f1",
    ]
    return st.sampled_from([*shared, *TAG_KEYS, *filter(None, TAG_VALUES), *WORDS, "%", "_", "'", "no such"])


def filters(name: str) -> st.SearchStrategy[dict[str, str]]:
    presence = st.sampled_from([{"Operator": "Exists"}, {"Operator": "NotExists"}, {}])
    ordering = ["Equals", "NotEquals", "GreaterThan", "GreaterThanOrEqualTo", "LessThan", "LessThanOrEqualTo"]
    values: st.SearchStrategy[str]
    if name in STRUCTURES:
        return presence.map(lambda item: {"Name": name} | item)
    if name in TIMES:
        values = st.tuples(st.integers(-2000, 8000), st.sampled_from(["seconds", "milliseconds"])).map(
            lambda drawn: f"@{drawn[0]} {drawn[1]}"
        )
        operators = ordering
    elif name in NUMBERS:
        values, operators = st.sampled_from(["1", "2", "30", "8", "7.5", "1e2", "-3", "1e400", "+30.0"]), ordering
    elif name in FLAGS:
        values, operators = st.sampled_from(["true", "false"]), ["Equals", "NotEquals"]
    else:
        values = st.one_of(texts(), st.lists(texts(), min_size=2, max_size=3).map(", ".join))
        operators = ["Equals", "NotEquals", "Contains", "In"]
    compared = st.fixed_dictionaries({"Value": values}, optional={"Operator": st.sampled_from(operators)})
    return st.one_of(presence, compared, compared, compared).map(lambda item: {"Name": name} | item)


def with_times(world: World, value: Any) -> Any:
    """A drawn request, its times counted in milliseconds from the creation of the first group."""
    if isinstance(value, dict):
        return {name: with_times(world, member) for name, member in value.items()}
    if isinstance(value, list):
        return [with_times(world, item) for item in value]
    if not isinstance(value, str) or not value.startswith("@"):
        return value
    offset_ms, spec = value[1:].split()
    moment = datetime.fromtimestamp(world.times["FeatureGroup"][0]["CreationTime"] / 1_000_000, UTC).replace(tzinfo=None)
    return (moment + timedelta(milliseconds=int(offset_ms))).isoformat(timespec=spec)


def names(resource: str) -> st.SearchStrategy[str]:
    pairs = PAIRS[resource]
    keyed = [f"{pairs}.{key}" for key in TAG_KEYS] + [f"All{pairs}"]
    if resource == "FeatureMetadata":
        return st.sampled_from([*METADATA_TEXTS, *TIMES, *keyed])
    return st.sampled_from([*GROUP_TEXTS, *DEFINITION_TEXTS, *TIMES, *NUMBERS, *FLAGS, *STRUCTURES, *keyed])


def nested_filters(resource: str) -> st.SearchStrategy[dict[str, Any]]:
    pairs = PAIRS[resource]
    members = {pairs: [f"{pairs}.Key", f"{pairs}.Value"]}
    if resource == "FeatureGroup":
        members["FeatureDefinitions"] = [*DEFINITION_TEXTS, NUMBERS[1]]
    return st.sampled_from(sorted(members)).flatmap(
        lambda name: st.fixed_dictionaries(
            {
                "NestedPropertyName": st.just(name),
                "Filters": st.lists(st.sampled_from(members[name]).flatmap(filters), min_size=1, max_size=3),
            }
        )
    )


def expressions(resource: str) -> st.SearchStrategy[dict[str, Any]]:
    operator = st.sampled_from(["And", "Or"])
    own = {
        "Filters": st.lists(names(resource).flatmap(filters), min_size=1, max_size=3),
        "NestedFilters": st.lists(nested_filters(resource), min_size=1, max_size=2),
        "Operator": operator,
    }
    return st.recursive(
        st.fixed_dictionaries({}, optional=own),
        lambda inner: st.fixed_dictionaries({}, optional=own | {"SubExpressions": st.lists(inner, min_size=1, max_size=3)}),
        max_leaves=4,
    )


def requests() -> st.SearchStrategy[dict[str, Any]]:
    def of(resource: str) -> st.SearchStrategy[dict[str, Any]]:
        single = METADATA_TEXTS if resource == "FeatureMetadata" else (*GROUP_TEXTS, NUMBERS[0], FLAGS[1])
        sorts = [*TIMES, *single, f"{PAIRS[resource]}.team"]
        conditions = st.fixed_dictionaries(
            {"Key": st.sampled_from(["Tags.team", "Tags.stage"]), "Value": st.sampled_from(["red", ""])}
        )
        return st.fixed_dictionaries(
            {"Resource": st.just(resource)},
            optional={
                "SearchExpression": expressions(resource),
                "SortBy": st.sampled_from(sorts),
                "SortOrder": st.sampled_from(["Ascending", "Descending"]),
                "VisibilityConditions": st.lists(conditions, min_size=1, max_size=2),
                "MaxResults": st.sampled_from([1, 3, 20, 100]),
            },
        )

    return st.sampled_from(list(PAIRS)).flatmap(of)


def elements(expression: dict[str, Any]) -> int:
    nested = sum(1 + len(item["Filters"]) for item in expression.get("NestedFilters", []))
    inner = expression.get("SubExpressions", [])
    return len(expression.get("Filters", [])) + nested + len(inner) + sum(map(elements, inner))


def single_filters(world: World, resource: str) -> Iterator[dict[str, str]]:
    """Every operator of every property, with values that are there and one that is not."""
    ordering = ["Equals", "NotEquals", "GreaterThan", "GreaterThanOrEqualTo", "LessThan", "LessThanOrEqualTo"]
    pairs = [f"{PAIRS[resource]}.{key}" for key in TAG_KEYS[:2]] + [f"All{PAIRS[resource]}"]
    groups = (*GROUP_TEXTS, *DEFINITION_TEXTS, *NUMBERS, *FLAGS, *STRUCTURES)
    for name in (*(groups if resource == "FeatureGroup" else METADATA_TEXTS), *TIMES, *pairs):
        yield from ({"Name": name, "Operator": operator} for operator in ("Exists", "NotExists"))
        if name in STRUCTURES:
            continue
        found = sorted({value for record in world.records[resource] for value in values_of(record, name)})
        middle = found[len(found) // 2 :][:1]
        if name in TIMES:
            moments = [datetime.fromtimestamp(round(value * 1000) / 1000, UTC).replace(tzinfo=None) for value in middle]
            values = [moment.isoformat(timespec=spec) for moment in moments for spec in ("seconds", "milliseconds")]
            operators = ordering
        elif name in NUMBERS:
            values, operators = [*map(str, middle), str(middle[0] + 0.5), "-1", "1e400", "-1e400"], ordering
        elif name in FLAGS:
            values, operators = ["true", "false"], ordering[:2]
        else:
            whole = [value for value in middle if value] or ["none"]
            values, operators = [*whole, whole[0][1:] or "x", f"{whole[0]}, x", "%"], ["Equals", "NotEquals", "Contains", "In"]
        yield from ({"Name": name, "Operator": operator, "Value": value} for operator in operators for value in values)


@pytest.mark.parametrize("resource", list(PAIRS))
def test_every_operator_of_every_property(world: World, resource: str) -> None:
    for item in single_filters(world, resource):
        request = {"Resource": resource, "SearchExpression": {"Filters": [item]}, "SortBy": "CreationTime", "MaxResults": 100}
        wanted = expected(world, request)
        answer = world.search(request)
        assert answer["TotalHits"]["Value"] == len(wanted), item
        assert [record[resource] for record in answer["Results"]] == wanted[:100], item


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(request=requests())
def test_pages_are_what_brute_force_finds(world: World, request: dict[str, Any]) -> None:
    assume(elements(request.get("SearchExpression", {})) <= 50)
    request = with_times(world, request)
    wanted = expected(world, request)
    found: list[dict[str, Any]] = []
    token: dict[str, str] = {}
    while True:
        answer = world.search(request | token)
        assert answer["TotalHits"] == {"Value": len(wanted), "Relation": "EqualTo"}
        assert len(answer["Results"]) <= request.get("MaxResults", 100)
        found += [record[request["Resource"]] for record in answer["Results"]]
        if "NextToken" not in answer:
            break
        token = {"NextToken": answer["NextToken"]}
    assert found == wanted
