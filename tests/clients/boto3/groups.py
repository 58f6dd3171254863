"""Every operation on feature groups, features and tags, and each error they can answer with, through plain boto3."""

from __future__ import annotations

import datetime
import os
import uuid
from typing import Any

import boto3
from calls import Calls, refused
from steps import step, wait_until

calls = Calls()
sagemaker = calls.watch(boto3.client("sagemaker"))
stem = f"groups-{uuid.uuid4().hex[:8]}"
name = f"{stem}-first"
features = [
    {"FeatureName": "id", "FeatureType": "String"},
    {"FeatureName": "at", "FeatureType": "Fractional"},
    {"FeatureName": "amount", "FeatureType": "Fractional"},
]
minimum: dict[str, Any] = {
    "RecordIdentifierFeatureName": "id",
    "EventTimeFeatureName": "at",
    "FeatureDefinitions": features,
    "OnlineStoreConfig": {"EnableOnlineStore": True},
}
offline = {"S3StorageConfig": {"S3Uri": "s3://groups/offline"}}


def describe(**members: Any) -> dict[str, Any]:
    answer: dict[str, Any] = sagemaker.describe_feature_group(FeatureGroupName=name, **members)
    return answer


def updated() -> dict[str, Any]:
    """The group when its last update has come to an end."""
    return wait_until(lambda: (got := describe())["LastUpdateStatus"]["Status"] != "InProgress" and got, "update")  # type: ignore[no-any-return]


with step("CreateFeatureGroup with every member, DescribeFeatureGroup echoes them"):
    given = {
        **minimum,
        "OnlineStoreConfig": {
            "EnableOnlineStore": True,
            "StorageType": "Standard",
            "TtlDuration": {"Unit": "Weeks", "Value": 1000},
            "SecurityConfig": {"KmsKeyId": "alias/online"},
        },
        "OfflineStoreConfig": {
            "S3StorageConfig": {"S3Uri": "s3://groups/offline", "KmsKeyId": "alias/offline"},
            "DisableGlueTableCreation": False,
            "TableFormat": "Glue",
        },
        "ThroughputConfig": {
            "ThroughputMode": "Provisioned",
            "ProvisionedReadCapacityUnits": 10,
            "ProvisionedWriteCapacityUnits": 20,
        },
        "RoleArn": "arn:aws:iam::000000000000:role/FeatureStore",
        "Description": "of the test",
    }
    before = datetime.datetime.now(datetime.UTC).replace(microsecond=0)
    arn = sagemaker.create_feature_group(FeatureGroupName=name, **given, Tags=[{"Key": "team", "Value": "risk"}])[
        "FeatureGroupArn"
    ]
    account = arn.split(":")[4]
    assert arn == f"arn:aws:sagemaker:us-east-1:{account}:feature-group/{name}", arn
    got = wait_until(lambda: (found := describe())["FeatureGroupStatus"] == "Created" and found, "Created")
    for member in ("RecordIdentifierFeatureName", "EventTimeFeatureName", "FeatureDefinitions", "OnlineStoreConfig"):
        assert got[member] == given[member], (member, got[member])
    for member in ("ThroughputConfig", "RoleArn", "Description"):
        assert got[member] == given[member], (member, got[member])
    assert got["FeatureGroupArn"] == arn
    assert before <= got["CreationTime"] <= datetime.datetime.now(datetime.UTC)
    assert "NextToken" not in got
    kept = got["OfflineStoreConfig"]
    epoch = int(got["CreationTime"].timestamp())
    root = f"s3://groups/offline/{account}/sagemaker/us-east-1/offline-store/{name}-{epoch}/data"
    assert kept["S3StorageConfig"] == given["OfflineStoreConfig"]["S3StorageConfig"] | {"ResolvedOutputS3Uri": root}, kept
    assert kept["DataCatalogConfig"]["Catalog"] == "AwsDataCatalog"
    assert kept["DataCatalogConfig"]["Database"] == "sagemaker_featurestore"
    assert str(epoch) in kept["DataCatalogConfig"]["TableName"]
    assert kept["TableFormat"] == "Glue"
    assert kept["DisableGlueTableCreation"] is False
    assert got["OfflineStoreStatus"] == {"Status": "Active"}
    assert describe()["FeatureGroupArn"] == sagemaker.describe_feature_group(FeatureGroupName=arn)["FeatureGroupArn"]

with step("a group without an offline store has no OfflineStoreConfig"):
    sagemaker.create_feature_group(FeatureGroupName=f"{stem}-second", **minimum)
    assert "OfflineStoreConfig" not in sagemaker.describe_feature_group(FeatureGroupName=f"{stem}-second")

with step("UpdateFeatureGroup: features, default TTL and its removal, throughput, tier"):
    added = [{"FeatureName": "count", "FeatureType": "Integral"}]
    assert sagemaker.update_feature_group(FeatureGroupName=name, FeatureAdditions=added)["FeatureGroupArn"] == arn
    got = updated()
    assert got["LastUpdateStatus"]["Status"] == "Successful"
    assert got["FeatureDefinitions"] == features + added
    assert got["LastModifiedTime"] >= got["CreationTime"]
    ttl = {"Unit": "Days", "Value": 3}
    sagemaker.update_feature_group(FeatureGroupName=arn, OnlineStoreConfig={"TtlDuration": ttl})
    assert updated()["OnlineStoreConfig"]["TtlDuration"] == ttl
    sagemaker.update_feature_group(FeatureGroupName=name, OnlineStoreConfig={"TtlDuration": {}})
    assert "TtlDuration" not in updated()["OnlineStoreConfig"]
    sagemaker.update_feature_group(FeatureGroupName=name, ThroughputConfig={"ThroughputMode": "OnDemand"})
    assert updated()["ThroughputConfig"]["ThroughputMode"] == "OnDemand"
    sagemaker.update_feature_group(FeatureGroupName=name, OnlineStoreConfig={"StorageType": "Standard_V2"})
    assert updated()["OnlineStoreConfig"]["StorageType"] == "Standard_V2"

with step("ListFeatureGroups: filters, order, pages"):
    listed = sagemaker.list_feature_groups(NameContains=stem)
    assert [group["FeatureGroupName"] for group in listed["FeatureGroupSummaries"]] == [f"{stem}-second", name], listed
    assert listed["FeatureGroupSummaries"][1]["FeatureGroupArn"] == arn
    ordered = sagemaker.list_feature_groups(
        NameContains=stem,
        FeatureGroupStatusEquals="Created",
        CreationTimeAfter=before - datetime.timedelta(seconds=1),
        SortBy="Name",
        SortOrder="Ascending",
    )
    assert [group["FeatureGroupName"] for group in ordered["FeatureGroupSummaries"]] == [name, f"{stem}-second"], ordered
    stored = sagemaker.list_feature_groups(NameContains=stem, OfflineStoreStatusEquals="Active")
    assert [group["FeatureGroupName"] for group in stored["FeatureGroupSummaries"]] == [name], stored
    assert sagemaker.list_feature_groups(NameContains=stem, CreationTimeBefore=before)["FeatureGroupSummaries"] == []
    pages = list(sagemaker.get_paginator("list_feature_groups").paginate(NameContains=stem, PaginationConfig={"PageSize": 1}))
    assert [len(page["FeatureGroupSummaries"]) for page in pages if page["FeatureGroupSummaries"]] == [1, 1], pages

with step("UpdateFeatureMetadata, DescribeFeatureMetadata"):
    of = {"FeatureGroupName": name, "FeatureName": "amount"}
    parameters = [{"Key": "unit", "Value": "EUR"}, {"Key": "a", "Value": "1"}]
    sagemaker.update_feature_metadata(**of, Description="how much", ParameterAdditions=parameters)
    got = sagemaker.describe_feature_metadata(**of)
    assert (got["FeatureType"], got["Description"], got["Parameters"]) == ("Fractional", "how much", parameters), got
    assert got["FeatureGroupArn"] == arn
    sagemaker.update_feature_metadata(FeatureGroupName=arn, FeatureName="amount", Description="", ParameterRemovals=["a"])
    got = sagemaker.describe_feature_metadata(FeatureGroupName=arn, FeatureName="amount")
    assert "Description" not in got
    assert got["Parameters"] == [{"Key": "unit", "Value": "EUR"}]

with step("AddTags, ListTags, DeleteTags"):
    answer = sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "growth"}, {"Key": "stage", "Value": "test"}])
    assert {tag["Key"]: tag["Value"] for tag in answer["Tags"]} == {"team": "growth", "stage": "test"}, answer
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["stage"])
    assert sagemaker.list_tags(ResourceArn=arn, MaxResults=50)["Tags"] == [{"Key": "team", "Value": "growth"}]
    (page,) = sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn)
    assert page["Tags"] == [{"Key": "team", "Value": "growth"}]


def search(resource: str, *filters: tuple[str, str, str | None], **members: Any) -> list[str]:
    """Names of what is found in this script's groups."""
    leaves: list[dict[str, Any]] = [{"Name": "FeatureGroupName", "Operator": "Contains", "Value": stem}]
    for of, operator, value in filters:
        leaves.append({"Name": of, "Operator": operator} | ({} if value is None else {"Value": value}))
    expression = {"Filters": leaves} | members.pop("expression", {})
    answer = sagemaker.search(Resource=resource, SearchExpression=expression, **members)
    assert answer["TotalHits"] == {"Value": len(answer["Results"]), "Relation": "EqualTo"}, answer
    member = {"FeatureGroup": "FeatureGroupName", "FeatureMetadata": "FeatureName"}[resource]
    return [hit[resource][member] for hit in answer["Results"]]


with step("Search over groups and over features"):
    assert search("FeatureGroup", SortBy="FeatureGroupName", SortOrder="Ascending") == [name, f"{stem}-second"]
    assert search("FeatureGroup", ("Tags.team", "Equals", "growth")) == [name]
    assert search("FeatureGroup", ("AllTags", "Contains", "growth")) == [name]
    assert search("FeatureGroup", ("OfflineStoreConfig.S3StorageConfig.S3Uri", "Exists", None)) == [name]
    assert search("FeatureGroup", ("OfflineStoreConfig.S3StorageConfig.S3Uri", "NotExists", None)) == [f"{stem}-second"]
    assert search("FeatureGroup", ("FeatureGroupName", "In", f"{name},other")) == [name]
    assert search("FeatureGroup", ("CreationTime", "LessThan", before.strftime("%Y-%m-%dT%H:%M:%S"))) == []
    of_count = {
        "NestedFilters": [
            {
                "NestedPropertyName": "FeatureDefinitions",
                "Filters": [
                    {"Name": "FeatureDefinitions.FeatureName", "Operator": "Equals", "Value": "count"},
                    {"Name": "FeatureDefinitions.FeatureType", "Operator": "Equals", "Value": "Integral"},
                ],
            }
        ]
    }
    assert search("FeatureGroup", expression=of_count) == [name]
    either = {
        "SubExpressions": [
            {
                "Filters": [
                    {"Name": "FeatureGroupName", "Operator": "Equals", "Value": f"{stem}-second"},
                    {"Name": "Tags.team", "Operator": "Equals", "Value": "growth"},
                ],
                "Operator": "Or",
            }
        ]
    }
    assert sorted(search("FeatureGroup", expression=either)) == [name, f"{stem}-second"]
    assert search("FeatureMetadata", ("Parameters.unit", "Equals", "EUR")) == ["amount"]
    assert search("FeatureMetadata", ("AllParameters", "Contains", "EUR")) == ["amount"]
    assert search("FeatureMetadata", ("FeatureType", "Equals", "Integral")) == ["count"]
    mine = {"Filters": [{"Name": "FeatureGroupName", "Operator": "Contains", "Value": stem}]}
    found = sagemaker.get_paginator("search").paginate(
        Resource="FeatureMetadata", SearchExpression=mine, PaginationConfig={"PageSize": 2}
    )
    hits = [hit["FeatureMetadata"]["FeatureName"] for page in found for hit in page["Results"]]
    assert sorted(hits) == ["amount", "amount", "at", "at", "count", "id", "id"], hits
    assert sagemaker.search(Resource="FeatureGroup", SearchExpression={"Operator": "And"})["Results"]
    assert sagemaker.search(Resource="FeatureGroup")["Results"]
    (hit,) = sagemaker.search(
        Resource="FeatureGroup", SearchExpression={"Filters": [{"Name": "FeatureGroupName", "Operator": "Equals", "Value": name}]}
    )["Results"]
    assert hit["FeatureGroup"]["Tags"] == [{"Key": "team", "Value": "growth"}], hit
    assert hit["FeatureGroup"]["FeatureGroupArn"] == arn

with step("ValidationException (400)"):
    new = {"FeatureGroupName": f"{stem}-third"}
    create = sagemaker.create_feature_group
    refused(create, "ValidationException", 400, **minimum | {"FeatureGroupName": "bad name!"})
    refused(create, "ValidationException", 400, **minimum | new | {"FeatureGroupName": "n" * 65})
    refused(create, "ValidationException", 400, **minimum | new | {"EventTimeFeatureName": "no_such"})
    refused(create, "ValidationException", 400, **minimum | new | {"OnlineStoreConfig": {"EnableOnlineStore": False}})
    reserved = {"FeatureDefinitions": [*features, {"FeatureName": "is_deleted", "FeatureType": "String"}]}
    refused(create, "ValidationException", 400, **minimum | new | reserved)
    refused(create, "ValidationException", 400, **minimum | new | {"RoleArn": "arn:aws:iam::1:user/somebody"})
    refused(sagemaker.update_feature_group, "ValidationException", 400, FeatureGroupName=name, FeatureAdditions=added)
    back = {"OnlineStoreConfig": {"StorageType": "Standard"}}
    refused(sagemaker.update_feature_group, "ValidationException", 400, FeatureGroupName=name, **back)
    refused(sagemaker.describe_feature_group, "ValidationException", 400, FeatureGroupName="bad name!")
    refused(sagemaker.list_feature_groups, "ValidationException", 400, MaxResults=101)
    refused(sagemaker.list_feature_groups, "ValidationException", 400, NextToken="not one of ours")
    refused(sagemaker.search, "ValidationException", 400, Resource="NoSuchThing")
    wrong = {"Filters": [{"Name": "FeatureGroupName", "Operator": "Resembles", "Value": "a"}]}
    refused(sagemaker.search, "ValidationException", 400, Resource="FeatureGroup", SearchExpression=wrong)
    refused(sagemaker.update_feature_metadata, "ValidationException", 400, **of, ParameterRemovals=["!"])
    refused(sagemaker.add_tags, "ValidationException", 400, ResourceArn=arn, Tags=[{"Key": "!", "Value": ""}])
    refused(sagemaker.list_tags, "ValidationException", 400, ResourceArn="arn:no")
    refused(sagemaker.delete_tags, "ValidationException", 400, ResourceArn="arn:no", TagKeys=["team"])
    refused(sagemaker.delete_feature_group, "ValidationException", 400, FeatureGroupName="bad name!")
    refused(sagemaker.describe_feature_metadata, "ValidationException", 400, FeatureGroupName=name, FeatureName="bad name!")

with step("ResourceInUse (400) for a name that is taken, ResourceNotFound (400) for what is not there"):
    error = refused(create, "ResourceInUse", 400, **minimum | {"FeatureGroupName": name})
    assert isinstance(error, sagemaker.exceptions.ResourceInUse)
    absent = {"FeatureGroupName": "no-such-group"}
    error = refused(sagemaker.describe_feature_group, "ResourceNotFound", 400, **absent)
    assert isinstance(error, sagemaker.exceptions.ResourceNotFound)
    assert error.response["Message"], error.response
    refused(sagemaker.update_feature_group, "ResourceNotFound", 400, **absent, FeatureAdditions=added)
    refused(sagemaker.delete_feature_group, "ResourceNotFound", 400, **absent)
    refused(sagemaker.describe_feature_metadata, "ResourceNotFound", 400, **absent, FeatureName="amount")
    refused(sagemaker.describe_feature_metadata, "ResourceNotFound", 400, FeatureGroupName=name, FeatureName="nothing")
    refused(sagemaker.update_feature_metadata, "ResourceNotFound", 400, **absent, FeatureName="amount")
    gone = arn.replace(name, "no-such-group")
    refused(sagemaker.add_tags, "ResourceNotFound", 400, ResourceArn=gone, Tags=[{"Key": "a", "Value": "b"}])
    refused(sagemaker.list_tags, "ResourceNotFound", 400, ResourceArn=gone)
    refused(sagemaker.delete_tags, "ResourceNotFound", 400, ResourceArn=gone, TagKeys=["a"])

with step("what the store has no operation for says so"):
    refused(sagemaker.list_models, "UnknownOperationException", 400)

not_there = {"ValidationException", "ResourceNotFound"}
wanted = {
    "CreateFeatureGroup": {"ValidationException", "ResourceInUse"},
    "DescribeFeatureGroup": not_there,
    "UpdateFeatureGroup": not_there,
    "DeleteFeatureGroup": not_there,
    "ListFeatureGroups": {"ValidationException"},
    "DescribeFeatureMetadata": not_there,
    "UpdateFeatureMetadata": not_there,
    "Search": {"ValidationException"},
    "AddTags": not_there,
    "ListTags": not_there,
    "DeleteTags": not_there,
}

if "READER_ACCESS_KEY_ID" in os.environ:
    with step("AccessDeniedException (400) where a key has no right, and what it may do works"):
        weak = {
            "aws_access_key_id": os.environ["READER_ACCESS_KEY_ID"],
            "aws_secret_access_key": os.environ["READER_SECRET_ACCESS_KEY"],
        }
        reader = calls.watch(boto3.client("sagemaker", **weak))
        refused(reader.create_feature_group, "AccessDeniedException", 400, **minimum | new)
        refused(reader.update_feature_group, "AccessDeniedException", 400, FeatureGroupName=name, FeatureAdditions=added)
        refused(reader.delete_feature_group, "AccessDeniedException", 400, FeatureGroupName=name)
        refused(reader.update_feature_metadata, "AccessDeniedException", 400, **of, Description="")
        refused(reader.add_tags, "AccessDeniedException", 400, ResourceArn=arn, Tags=[{"Key": "a", "Value": "b"}])
        refused(reader.delete_tags, "AccessDeniedException", 400, ResourceArn=arn, TagKeys=["team"])
        assert reader.describe_feature_group(FeatureGroupName=name)["FeatureGroupArn"] == arn
        assert reader.list_tags(ResourceArn=arn)["Tags"]

with step("DeleteFeatureGroup"):
    for group in (name, f"{stem}-second"):
        sagemaker.delete_feature_group(FeatureGroupName=group)
    wait_until(lambda: not sagemaker.list_feature_groups(NameContains=stem)["FeatureGroupSummaries"], "groups are gone")
    refused(sagemaker.describe_feature_group, "ResourceNotFound", 400, FeatureGroupName=name)

with step("no operation of the contract and none of its errors was left out"):
    calls.require(wanted)
