"""Search as unmodified boto3 sees it. What expressions mean is tests/property/test_search.py's business."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.integration.conftest import FEATURES, OFFLINE, unique_name

CreateGroup = Callable[..., str]


@pytest.fixture(scope="module")
def stem(create_group: CreateGroup) -> str:
    """Seven groups that share a part of their name and nobody else has; the fourth has no offline store."""
    stem = unique_name("find")
    for letter in "dbagcfe":
        tags = [{"Key": "letter", "Value": letter}, {"Key": "stem", "Value": stem}]
        offline = None if letter == "g" else OFFLINE
        create_group(FeatureGroupName=f"{letter}-{stem}", OfflineStoreConfig=offline, Tags=tags)
    return stem


def where(name: str, value: str | None = None, operator: str | None = None) -> dict[str, str]:
    members = {"Name": name, "Operator": operator, "Value": value}
    return {key: member for key, member in members.items() if member is not None}


def search(sagemaker: Any, *filters: dict[str, str], resource: str = "FeatureGroup", **members: Any) -> dict[str, Any]:
    expression = {"SearchExpression": {"Filters": list(filters)}} if filters else {}
    return dict(sagemaker.search(Resource=resource, **expression, **members))


def letters(answer: dict[str, Any]) -> str:
    return "".join(record["FeatureGroup"]["FeatureGroupName"][0] for record in answer["Results"])


def test_a_group_with_all_that_is_known_of_it(sagemaker: Any, stem: str) -> None:
    answer = search(sagemaker, where("FeatureGroupName", f"a-{stem}"))
    described = sagemaker.describe_feature_group(FeatureGroupName=f"a-{stem}")
    for member in ("ResponseMetadata", "OnlineStoreTotalSizeBytes"):
        described.pop(member)
    tags = [{"Key": "letter", "Value": "a"}, {"Key": "stem", "Value": stem}]
    assert answer["Results"] == [{"FeatureGroup": described | {"Tags": tags}}]
    assert answer["TotalHits"] == {"Value": 1, "Relation": "EqualTo"}
    assert "NextToken" not in answer


def test_a_feature_with_all_that_is_known_of_it(sagemaker: Any, stem: str) -> None:
    name = f"b-{stem}"
    pairs = [{"Key": "unit", "Value": "eur"}]
    sagemaker.update_feature_metadata(FeatureGroupName=name, FeatureName="amount", Description="paid", ParameterAdditions=pairs)
    described = sagemaker.describe_feature_metadata(FeatureGroupName=name, FeatureName="amount")
    described.pop("ResponseMetadata")
    for found in (where("Parameters.unit", "eur"), where("AllParameters", "eu", "Contains"), where("Description", "paid")):
        answer = search(sagemaker, found, where("FeatureGroupName", stem, "Contains"), resource="FeatureMetadata")
        assert answer["Results"] == [{"FeatureMetadata": described}]
    answer = search(sagemaker, where("FeatureGroupName", name), resource="FeatureMetadata", SortBy="FeatureName")
    names = [record["FeatureMetadata"]["FeatureName"] for record in answer["Results"]]
    assert names == sorted((feature["FeatureName"] for feature in FEATURES), reverse=True)


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({}, "efcgabd"),
        ({"SortBy": "CreationTime", "SortOrder": "Ascending"}, "dbagcfe"),
        ({"SortBy": "FeatureGroupName"}, "gfedcba"),
        ({"SortBy": "Tags.letter", "SortOrder": "Ascending"}, "abcdefg"),
        ({"SortBy": "OfflineStoreConfig.S3StorageConfig.S3Uri", "SortOrder": "Ascending"}, "gdbacfe"),
    ],
)
@pytest.mark.parametrize("page_size", [1, 3, 7, 100])
def test_order_and_pages(sagemaker: Any, stem: str, members: dict[str, str], expected: str, page_size: int) -> None:
    pages = list(
        sagemaker.get_paginator("search").paginate(
            Resource="FeatureGroup",
            SearchExpression={"Filters": [where("Tags.stem", stem)]},
            PaginationConfig={"PageSize": page_size},
            **members,
        )
    )
    assert "".join(map(letters, pages)) == expected
    assert len(pages) == -(-len(expected) // page_size)
    assert {page["TotalHits"]["Value"] for page in pages} == {7}


def test_a_token_belongs_to_its_search(sagemaker: Any, stem: str) -> None:
    token = search(sagemaker, where("Tags.stem", stem), MaxResults=1)["NextToken"]
    for members in ({"SortBy": "FeatureGroupName"}, {"SortOrder": "Ascending"}, {"resource": "FeatureMetadata"}):
        with pytest.raises(ClientError, match="NextToken: expected a token of an earlier answer"):
            search(sagemaker, *([] if "resource" in members else [where("Tags.stem", stem)]), NextToken=token, **members)


@pytest.mark.parametrize("expression", [None, {"Operator": "And"}, {"Operator": "Or"}, {}])
def test_without_filters_everything_is_found(sagemaker: Any, stem: str, expression: dict[str, str] | None) -> None:
    members = {} if expression is None else {"SearchExpression": expression}
    answer = sagemaker.search(Resource="FeatureGroup", MaxResults=1, **members)
    assert answer["TotalHits"]["Value"] >= 7


def test_the_guides_examples(sagemaker: Any, stem: str) -> None:
    mine = where("FeatureGroupName", stem, "Contains")
    offline = "OfflineStoreConfig.S3StorageConfig.S3Uri"
    assert letters(search(sagemaker, mine, where(offline, operator="NotExists"))) == "g"
    assert letters(search(sagemaker, mine, where(offline, operator="Exists"))) == "efcabd"
    assert len(letters(search(sagemaker, mine, where("OnlineStoreConfig.EnableOnlineStore", "true")))) == 7
    assert letters(search(sagemaker, mine, where("FeatureGroupName", "a-", "Contains"), where("AllTags", "a"))) == "a"
    assert letters(search(sagemaker, where("FeatureGroupName", f"a-{stem}, g-{stem}", "In"))) == "ga"


def test_times(sagemaker: Any, stem: str) -> None:
    created = sagemaker.describe_feature_group(FeatureGroupName=f"g-{stem}")["CreationTime"]
    mine = where("Tags.stem", stem)
    for text in (created.isoformat(timespec="milliseconds"), created.isoformat(), f"{created:%Y-%m-%dT%H:%M:%S}"):
        assert "g" in letters(search(sagemaker, mine, where("CreationTime", text, "Equals")))
    later = (created + timedelta(milliseconds=1)).isoformat()
    assert "g" not in letters(search(sagemaker, mine, where("CreationTime", later, "GreaterThanOrEqualTo")))
    assert "g" in letters(search(sagemaker, mine, where("CreationTime", later, "LessThan")))


def test_other_accounts_share_nothing(sagemaker: Any, stem: str) -> None:
    mine = where("Tags.stem", stem)
    answer = search(sagemaker, mine, CrossAccountFilterOption="CrossAccount")
    assert (answer["Results"], answer["TotalHits"]["Value"]) == ([], 0)
    assert len(letters(search(sagemaker, mine, CrossAccountFilterOption="SameAccount"))) == 7


def test_visibility(sagemaker: Any, stem: str) -> None:
    mine = where("FeatureGroupName", stem, "Contains")
    hidden = [{"Key": "Tags.letter", "Value": "a"}, {"Key": "Tags.nobody has it", "Value": "x"}]
    assert letters(search(sagemaker, mine, VisibilityConditions=hidden)) == "a"
    answer = search(sagemaker, mine, resource="FeatureMetadata", VisibilityConditions=hidden)
    assert {record["FeatureMetadata"]["FeatureGroupName"] for record in answer["Results"]} == {f"a-{stem}"}


DEEP: dict[str, Any] = {"Filters": [where("FeatureGroupName", "x")]}
for _ in range(49):
    DEEP = {"SubExpressions": [DEEP]}


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"Resource": "TrainingJob"}, ["Resource", "FeatureGroup or FeatureMetadata", "'TrainingJob'"]),
        ({"Resource": "Nope"}, ["Resource", "'Nope'"]),
        ({"Filters": [where("Nope", "x")]}, ["SearchExpression.Filters[0].Name", "'Nope'"]),
        ({"Filters": [where("FeatureDefinitions.Nope", "x")]}, ["Filters[0].Name"]),
        ({"Filters": [where("FeatureName", "x")]}, ["Filters[0].Name", "a property of FeatureGroup"]),
        ({"Resource": "FeatureMetadata", "Filters": [where("Tags.a", "x")]}, ["a property of FeatureMetadata", "'Tags.a'"]),
        ({"Filters": [where("Description", "a", "LessThan")]}, ["Filters[0].Operator", "type text", "'LessThan'"]),
        ({"Filters": [where("CreationTime", "2024", "Contains")]}, ["Filters[0].Operator", "type time"]),
        ({"Filters": [where("CreationTime", "a,b", "In")]}, ["Filters[0].Operator", "type time"]),
        ({"Filters": [where("OnlineStoreConfig.EnableOnlineStore", "yes")]}, ["Filters[0].Value", "true or false", "'yes'"]),
        ({"Filters": [where("OnlineStoreConfig", "x")]}, ["Filters[0].Operator", "Exists, NotExists"]),
        ({"Filters": [where("CreationTime", "yesterday")]}, ["Filters[0].Value", "2024-05-01T12:00:00", "'yesterday'"]),
        ({"Filters": [where("CreationTime", "2024-02-30T00:00:00")]}, ["Filters[0].Value"]),
        ({"Filters": [where("OnlineStoreConfig.TtlDuration.Value", "NaN", "GreaterThan")]}, ["Filters[0].Value", "number"]),
        ({"Filters": [where("Description", None, "Equals")]}, ["Filters[0].Value", "a value for Equals"]),
        ({"Filters": [where("Description", "x", "Like")]}, ["Filters[0].Operator", "'Like'"]),
        ({"Filters": [where("Description", "x" * 1025)]}, ["Filters[0].Value", "1024"]),
        ({"Filters": [where("Description", "x")] * 21}, ["SearchExpression.Filters", "1 to 20", "21"]),
        (
            {"NestedFilters": [{"NestedPropertyName": "Nope", "Filters": [where("Nope.a", "x")]}]},
            ["NestedFilters[0].NestedPropertyName", "FeatureDefinitions, Tags", "'Nope'"],
        ),
        (
            {"NestedFilters": [{"NestedPropertyName": "Tags", "Filters": [where("Tags.team", "x")]}]},
            ["NestedFilters[0].Filters[0].Name", "Tags.Key, Tags.Value"],
        ),
        ({"SubExpressions": [{"Filters": [where("Nope", "x")]}]}, ["SubExpressions[0].Filters[0].Name"]),
        ({"SubExpressions": [DEEP]}, ["SearchExpression", "at most 50", "51"]),
        ({"SortBy": "Nope"}, ["SortBy", "'Nope'"]),
        ({"SortBy": "AllTags"}, ["SortBy", "one value"]),
        ({"SortBy": "FeatureDefinitions.FeatureName"}, ["SortBy", "one value"]),
        ({"MaxResults": 101}, ["MaxResults", "1 to 100"]),
        ({"NextToken": "made up"}, ["NextToken"]),
        ({"VisibilityConditions": [{"Key": "team", "Value": "x"}]}, ["VisibilityConditions[0].Key", "Tags.<key>"]),
        ({"VisibilityConditions": [{"Key": "Tags.team"}]}, ["VisibilityConditions[0]", "Key and Value"]),
        ({"CrossAccountFilterOption": "AnyAccount"}, ["CrossAccountFilterOption", "'AnyAccount'"]),
        (
            {"Filters": [where("Nope", "x")], "CrossAccountFilterOption": "CrossAccount"},
            ["Filters[0].Name"],
        ),
    ],
)
def test_wrong_ones(sagemaker: Any, members: dict[str, Any], words: list[str]) -> None:
    inside = {name: members[name] for name in ("Filters", "NestedFilters", "SubExpressions") if name in members}
    request = {"Resource": "FeatureGroup"} | {name: member for name, member in members.items() if name not in inside}
    with pytest.raises(ClientError) as error:
        sagemaker.search(**request, **({"SearchExpression": inside} if inside else {}))
    answer = error.value.response
    assert answer["Error"]["Code"] == "ValidationException"
    assert [word for word in words if word not in answer["Error"]["Message"]] == [], answer["Error"]["Message"]


def test_as_deep_as_an_expression_may_be(sagemaker: Any, stem: str) -> None:
    expression = DEEP["SubExpressions"][0]
    assert sagemaker.search(Resource="FeatureGroup", SearchExpression=expression)["Results"] == []
