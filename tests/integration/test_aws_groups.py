"""The control plane's feature group operations as unmodified boto3 sees them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError

from tests.integration.conftest import FEATURES, OFFLINE, ONLINE, Http, definitions, record, unique_name

CreateGroup = Callable[..., str]
ACCOUNT, REGION = "000000000000", "us-east-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/service-role/Features"


@pytest.fixture(scope="module")
def group(create_group: CreateGroup) -> str:
    return create_group()


def describe(sagemaker: Any, name: str) -> dict[str, Any]:
    answer = dict(sagemaker.describe_feature_group(FeatureGroupName=name))
    del answer["ResponseMetadata"]
    return answer


def refuse(call: Callable[..., Any], *words: str, code: str = "ValidationException", **members: Any) -> None:
    """The call must fail with that code and a message that has these words."""
    with pytest.raises(ClientError) as error:
        call(**members)
    answer = error.value.response
    assert answer["Error"]["Code"] == code, answer
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 400
    for word in words:
        assert word in answer["Error"]["Message"]
    if code != "ValidationException":  # the one code here that the service model does not know
        assert answer["Message"] == answer["Error"]["Message"]


class TestCreate:
    def test_a_full_description_comes_back(self, sagemaker: Any) -> None:
        name = unique_name("Full-Name")
        created = sagemaker.create_feature_group(
            FeatureGroupName=name,
            RecordIdentifierFeatureName="id",
            EventTimeFeatureName="at",
            FeatureDefinitions=FEATURES,
            OnlineStoreConfig={
                "EnableOnlineStore": True,
                "SecurityConfig": {"KmsKeyId": "arn:aws:kms:us-east-1:000000000000:key/1"},
                "TtlDuration": {"Unit": "Weeks", "Value": 3},
                "StorageType": "Standard",
            },
            OfflineStoreConfig={
                "S3StorageConfig": {"S3Uri": "s3://my-bucket/some/prefix/", "KmsKeyId": "k"},
                "DisableGlueTableCreation": False,
                "TableFormat": "Glue",
            },
            ThroughputConfig={
                "ThroughputMode": "Provisioned",
                "ProvisionedReadCapacityUnits": 10,
                "ProvisionedWriteCapacityUnits": 0,
            },
            RoleArn=ROLE,
            Description="what it is for",
            Tags=[{"Key": "team", "Value": "a b/c"}, {"Key": "empty", "Value": ""}],
        )
        arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:feature-group/{name}"
        assert created["FeatureGroupArn"] == arn
        answer = describe(sagemaker, name)
        times = answer.pop("CreationTime"), answer.pop("LastModifiedTime")
        assert all(abs(moment - datetime.now(UTC)) < timedelta(minutes=1) for moment in times)
        epoch = int(times[0].timestamp())
        assert answer == {
            "FeatureGroupArn": arn,
            "FeatureGroupName": name,
            "RecordIdentifierFeatureName": "id",
            "EventTimeFeatureName": "at",
            "FeatureDefinitions": FEATURES,
            "FeatureGroupStatus": "Created",
            "OnlineStoreConfig": {
                "EnableOnlineStore": True,
                "SecurityConfig": {"KmsKeyId": "arn:aws:kms:us-east-1:000000000000:key/1"},
                "TtlDuration": {"Unit": "Weeks", "Value": 3},
                "StorageType": "Standard",
            },
            "OnlineStoreTotalSizeBytes": 0,
            "OfflineStoreConfig": {
                "S3StorageConfig": {
                    "S3Uri": "s3://my-bucket/some/prefix/",
                    "KmsKeyId": "k",
                    "ResolvedOutputS3Uri": f"s3://my-bucket/some/prefix/{ACCOUNT}/sagemaker/{REGION}/offline-store/{name}-{epoch}/data",
                },
                "DisableGlueTableCreation": False,
                "TableFormat": "Glue",
                "DataCatalogConfig": {
                    "TableName": f"{name.lower().replace('-', '_')}_{epoch}",
                    "Catalog": "AwsDataCatalog",
                    "Database": "sagemaker_featurestore",
                },
            },
            "OfflineStoreStatus": {"Status": "Active"},
            "ThroughputConfig": {
                "ThroughputMode": "Provisioned",
                "ProvisionedReadCapacityUnits": 10,
                "ProvisionedWriteCapacityUnits": 0,
            },
            "RoleArn": ROLE,
            "Description": "what it is for",
        }
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [
            {"Key": "team", "Value": "a b/c"},
            {"Key": "empty", "Value": ""},
        ]

    def test_what_was_not_asked_for_is_absent(self, sagemaker: Any, create_group: CreateGroup) -> None:
        online = describe(sagemaker, create_group(OfflineStoreConfig=None))
        assert online["OnlineStoreConfig"] == {"EnableOnlineStore": True}
        for member in (
            "OfflineStoreConfig",
            "OfflineStoreStatus",
            "LastUpdateStatus",
            "NextToken",
            "RoleArn",
            "ThroughputConfig",
        ):
            assert member not in online
        offline = describe(sagemaker, create_group(OnlineStoreConfig={"EnableOnlineStore": False}))
        assert "OnlineStoreConfig" not in offline
        assert set(offline["OfflineStoreConfig"]) == {"S3StorageConfig", "DisableGlueTableCreation", "DataCatalogConfig"}

    @pytest.mark.parametrize(
        ("given", "catalog"),
        [
            ({}, {"Catalog": "AwsDataCatalog", "Database": "sagemaker_featurestore"}),
            ({"TableFormat": "Iceberg"}, {"Catalog": "AwsDataCatalog", "Database": "sagemaker_featurestore"}),
            (
                {"DataCatalogConfig": {"TableName": "mine", "Catalog": "AwsDataCatalog", "Database": "db_1"}},
                {"TableName": "mine", "Catalog": "AwsDataCatalog", "Database": "db_1"},
            ),
            (
                {
                    "DisableGlueTableCreation": True,
                    "DataCatalogConfig": {"TableName": "Any Text!", "Catalog": "Other", "Database": "DB"},
                },
                {"TableName": "Any Text!", "Catalog": "Other", "Database": "DB"},
            ),
            ({"DisableGlueTableCreation": True}, None),
        ],
        ids=["default", "iceberg", "named", "bring your own", "none"],
    )
    def test_the_catalog_entry(
        self, sagemaker: Any, create_group: CreateGroup, given: dict[str, Any], catalog: dict[str, str] | None
    ) -> None:
        answer = describe(sagemaker, create_group(OfflineStoreConfig=OFFLINE | given))["OfflineStoreConfig"]
        found = answer.get("DataCatalogConfig")
        assert (found is None) == (catalog is None)
        assert {name: found[name] for name in catalog or {}} == (catalog or {})
        assert answer["DisableGlueTableCreation"] is given.get("DisableGlueTableCreation", False)

    @pytest.mark.parametrize("storage", ["Standard", "Standard_V2", "InMemory"])
    def test_storage_types_are_echoed(self, sagemaker: Any, create_group: CreateGroup, storage: str) -> None:
        name = create_group(OnlineStoreConfig=ONLINE | {"StorageType": storage})
        assert describe(sagemaker, name)["OnlineStoreConfig"]["StorageType"] == storage

    def test_collections_are_echoed(self, sagemaker: Any, create_group: CreateGroup) -> None:
        vector = {"CollectionType": "Vector", "CollectionConfig": {"VectorConfig": {"Dimension": 8192}}}
        features = [
            *definitions(id="Integral", at="Fractional"),
            {"FeatureName": "list", "FeatureType": "String", "CollectionType": "List"},
            {"FeatureName": "vec", "FeatureType": "Fractional"} | vector,
        ]
        name = create_group(FeatureDefinitions=features, OnlineStoreConfig=ONLINE | {"StorageType": "InMemory"})
        assert describe(sagemaker, name)["FeatureDefinitions"] == features

    def test_the_largest_group(self, sagemaker: Any, create_group: CreateGroup) -> None:
        features = definitions(id="String", at="String", **{f"f{number}": "Fractional" for number in range(2498)})
        assert describe(sagemaker, create_group(FeatureDefinitions=features))["FeatureDefinitions"] == features

    def test_the_longest_name(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group(FeatureGroupName=unique_name("x" * 51))
        assert len(name) == 64
        assert describe(sagemaker, name)["FeatureGroupName"] == name

    def test_a_taken_name_is_in_use(self, sagemaker: Any, group: str) -> None:
        before = describe(sagemaker, group)
        members = {
            "RecordIdentifierFeatureName": "id",
            "EventTimeFeatureName": "at",
            "FeatureDefinitions": FEATURES,
            "OnlineStoreConfig": ONLINE,
        }
        create = sagemaker.create_feature_group
        refuse(create, group, "exists", code="ResourceInUse", FeatureGroupName=group, **members)
        refuse(create, "case", code="ResourceInUse", FeatureGroupName=group.upper(), **members)
        with pytest.raises(sagemaker.exceptions.ResourceInUse):
            create(FeatureGroupName=group, **members)
        assert describe(sagemaker, group) == before

    def test_a_table_of_another_group(self, sagemaker: Any, create_group: CreateGroup, runtime: Any) -> None:
        catalog = {"TableName": unique_name("t").replace("-", "_"), "Catalog": "AwsDataCatalog", "Database": "db"}
        owner = create_group(OfflineStoreConfig=OFFLINE | {"DataCatalogConfig": catalog})
        name = create_group(OfflineStoreConfig=OFFLINE | {"DataCatalogConfig": catalog})
        answer = describe(sagemaker, name)
        assert answer["FeatureGroupStatus"] == "CreateFailed"
        assert f"'{owner}'" in answer["FailureReason"]
        assert "OfflineStoreStatus" not in answer
        (summary,) = sagemaker.list_feature_groups(NameContains=name, FeatureGroupStatusEquals="CreateFailed")[
            "FeatureGroupSummaries"
        ]
        assert "OfflineStoreStatus" not in summary
        update = sagemaker.update_feature_group
        refuse(update, "Created", "CreateFailed", FeatureGroupName=name, FeatureAdditions=definitions(z="String"))
        with pytest.raises(ClientError):
            runtime.put_record(FeatureGroupName=name, Record=record(id="k", at="2024-05-01T00:00:00Z"))
        sagemaker.delete_feature_group(FeatureGroupName=name)
        with pytest.raises(sagemaker.exceptions.ResourceNotFound):
            describe(sagemaker, name)
        assert describe(sagemaker, owner)["FeatureGroupStatus"] == "Created"

    def test_what_a_disabled_store_is_told_is_still_checked(self, sagemaker: Any, create_group: CreateGroup) -> None:
        disabled = {"EnableOnlineStore": False, "SecurityConfig": {"KmsKeyId": "no spaces"}}
        with pytest.raises(ClientError, match=r"OnlineStoreConfig\.SecurityConfig\.KmsKeyId"):
            create_group(OnlineStoreConfig=disabled)
        storage = {"S3Uri": "s3://bucket/a", "ResolvedOutputS3Uri": "s3://bucket/elsewhere"}
        made = describe(sagemaker, create_group(OfflineStoreConfig={"S3StorageConfig": storage}))
        resolved = made["OfflineStoreConfig"]["S3StorageConfig"]["ResolvedOutputS3Uri"]
        assert resolved.startswith("s3://bucket/a/000000000000/sagemaker/us-east-1/offline-store/")


class TestDescribe:
    def test_tokens_that_were_never_given(self, sagemaker: Any, group: str) -> None:
        refuse(sagemaker.describe_feature_group, "NextToken", FeatureGroupName=group, NextToken="t")
        arn = describe(sagemaker, group)["FeatureGroupArn"]
        refuse(sagemaker.list_tags, "NextToken", ResourceArn=arn, NextToken="t")

    def test_by_arn(self, sagemaker: Any, group: str) -> None:
        answer = describe(sagemaker, group)
        assert describe(sagemaker, answer["FeatureGroupArn"]) == answer

    def test_unknown_ones(self, sagemaker: Any, group: str) -> None:
        arn = describe(sagemaker, group)["FeatureGroupArn"]
        for name in ("nope", arn.replace(REGION, "eu-west-1"), arn.replace(ACCOUNT, "123456789012"), f"{arn}x", group.upper()):
            with pytest.raises(sagemaker.exceptions.ResourceNotFound, match="does not exist"):
                describe(sagemaker, name)

    def test_times_are_numbers_on_the_wire(self, http_client: Http, group: str) -> None:
        reply = http_client.control("DescribeFeatureGroup", {"FeatureGroupName": group})
        assert reply.headers["content-type"] == "application/x-amz-json-1.1"
        assert reply.headers["x-amzn-requestid"]
        assert isinstance(reply.json["CreationTime"], float)
        assert re.search(rb'"CreationTime":\d{10}\.\d{1,3}[,}]', reply.body)
        assert b"null" not in reply.body


class TestUpdate:
    def test_features_are_appended(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group()
        before = describe(sagemaker, name)
        added = definitions(new_one="Integral", new_two="String")
        answer = sagemaker.update_feature_group(FeatureGroupName=before["FeatureGroupArn"], FeatureAdditions=added)
        assert answer["FeatureGroupArn"] == before["FeatureGroupArn"]
        after = describe(sagemaker, name)
        assert after["FeatureDefinitions"] == FEATURES + added
        assert after["LastUpdateStatus"] == {"Status": "Successful"}
        assert after["LastModifiedTime"] > before["LastModifiedTime"]
        assert after["CreationTime"] == before["CreationTime"]

    def test_features_that_can_not_be_added(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group()
        before = describe(sagemaker, name)
        for addition, word in (
            (definitions(note="String"), "'note'"),
            (definitions(NOTE="String"), "'NOTE'"),
            (definitions(is_deleted="String"), "is_deleted"),
            (definitions(fine="String", new="Integral") + definitions(new="String"), "FeatureAdditions[2].FeatureName"),
            ([{"FeatureName": "x", "FeatureType": "String", "CollectionType": "List"}], "FeatureAdditions[0].CollectionType"),
            (definitions(**{f"f{number}": "String" for number in range(101)}), "1 to 100"),
        ):
            update = sagemaker.update_feature_group
            refuse(update, "FeatureAdditions", word, FeatureGroupName=name, FeatureAdditions=addition)
        assert describe(sagemaker, name) == before

    def test_no_more_than_2500_features(self, sagemaker: Any, create_group: CreateGroup) -> None:
        features = definitions(id="String", at="String", **{f"f{number}": "String" for number in range(2497)})
        name = create_group(FeatureDefinitions=features)
        two = definitions(one="String", two="String")
        update = sagemaker.update_feature_group
        refuse(update, "2500", code="ResourceLimitExceeded", FeatureGroupName=name, FeatureAdditions=two)
        sagemaker.update_feature_group(FeatureGroupName=name, FeatureAdditions=two[:1])

    def test_ttl_set_changed_kept_and_removed(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group()

        def update(config: dict[str, Any]) -> dict[str, Any]:
            sagemaker.update_feature_group(FeatureGroupName=name, OnlineStoreConfig=config)
            return dict(describe(sagemaker, name)["OnlineStoreConfig"])

        day = {"TtlDuration": {"Unit": "Days", "Value": 1}}
        assert update(day) == ONLINE | day
        assert update({}) == ONLINE | day
        assert update({"TtlDuration": {"Unit": "Hours", "Value": 5}})["TtlDuration"] == {"Unit": "Hours", "Value": 5}
        assert update({"TtlDuration": {}}) == ONLINE

    def test_storage_type_moves_one_way(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name, memory = create_group(), create_group(OnlineStoreConfig=ONLINE | {"StorageType": "InMemory"})
        update = sagemaker.update_feature_group
        refuse(update, "StorageType", FeatureGroupName=name, OnlineStoreConfig={"StorageType": "InMemory"})
        update(FeatureGroupName=name, OnlineStoreConfig={"StorageType": "Standard_V2"})
        refuse(update, "StorageType", FeatureGroupName=name, OnlineStoreConfig={"StorageType": "Standard"})
        refuse(update, "StorageType", FeatureGroupName=memory, OnlineStoreConfig={"StorageType": "Standard_V2"})
        assert describe(sagemaker, name)["OnlineStoreConfig"]["StorageType"] == "Standard_V2"

    def test_throughput(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group(
            ThroughputConfig={
                "ThroughputMode": "Provisioned",
                "ProvisionedReadCapacityUnits": 1,
                "ProvisionedWriteCapacityUnits": 2,
            }
        )
        update = sagemaker.update_feature_group
        update(FeatureGroupName=name, ThroughputConfig={"ProvisionedReadCapacityUnits": 7})
        assert describe(sagemaker, name)["ThroughputConfig"] == {
            "ThroughputMode": "Provisioned",
            "ProvisionedReadCapacityUnits": 7,
            "ProvisionedWriteCapacityUnits": 2,
        }
        refuse(
            update,
            "ProvisionedReadCapacityUnits",
            FeatureGroupName=name,
            ThroughputConfig={"ThroughputMode": "OnDemand", "ProvisionedReadCapacityUnits": 7},
        )
        update(FeatureGroupName=name, ThroughputConfig={"ThroughputMode": "OnDemand"})
        assert describe(sagemaker, name)["ThroughputConfig"] == {"ThroughputMode": "OnDemand"}

    def test_throughput_of_a_group_created_without(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group()
        update = sagemaker.update_feature_group
        refuse(update, "ThroughputMode is OnDemand", FeatureGroupName=name, ThroughputConfig={"ProvisionedReadCapacityUnits": 7})
        refuse(update, "at least one of ThroughputMode", FeatureGroupName=name, ThroughputConfig={})
        assert "ThroughputConfig" not in describe(sagemaker, name)
        config = {"ThroughputMode": "Provisioned", "ProvisionedWriteCapacityUnits": 3}
        update(FeatureGroupName=name, ThroughputConfig=config)
        assert describe(sagemaker, name)["ThroughputConfig"] == config

    def test_one_change_per_call(self, sagemaker: Any, group: str) -> None:
        update = sagemaker.update_feature_group
        refuse(update, "one of FeatureAdditions, OnlineStoreConfig and ThroughputConfig", FeatureGroupName=group)
        two = {"FeatureAdditions": definitions(z="String"), "OnlineStoreConfig": {}}
        refuse(update, "FeatureAdditions", FeatureGroupName=group, **two)

    def test_a_group_without_an_online_store_has_none_to_change(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group(OnlineStoreConfig=None)
        refuse(sagemaker.update_feature_group, "OnlineStoreConfig", FeatureGroupName=name, OnlineStoreConfig={})

    def test_an_unknown_group(self, sagemaker: Any) -> None:
        with pytest.raises(sagemaker.exceptions.ResourceNotFound):
            sagemaker.update_feature_group(FeatureGroupName="nope", FeatureAdditions=definitions(z="String"))


class TestDelete:
    def test_the_group_is_gone(self, sagemaker: Any, create_group: CreateGroup) -> None:
        name = create_group()
        arn = describe(sagemaker, name)["FeatureGroupArn"]
        sagemaker.delete_feature_group(FeatureGroupName=name)
        for call in (
            lambda: describe(sagemaker, name),
            lambda: sagemaker.delete_feature_group(FeatureGroupName=name),
            lambda: sagemaker.list_tags(ResourceArn=arn),
            lambda: sagemaker.describe_feature_metadata(FeatureGroupName=name, FeatureName="id"),
        ):
            with pytest.raises(sagemaker.exceptions.ResourceNotFound):
                call()
        assert sagemaker.list_feature_groups(NameContains=name)["FeatureGroupSummaries"] == []

    def test_it_takes_no_arn(self, sagemaker: Any, group: str) -> None:
        arn = describe(sagemaker, group)["FeatureGroupArn"]
        refuse(sagemaker.delete_feature_group, "FeatureGroupName", FeatureGroupName=arn)

    def test_offline_files_stay(
        self, sagemaker: Any, http_client: Http, service: Any, runtime: Any, create_group: CreateGroup
    ) -> None:
        name = create_group()
        runtime.put_record(FeatureGroupName=name, Record=record(id="k", at="2024-05-01T00:00:00Z"))
        http_client.request("POST", "/v1/flush")
        uri = describe(sagemaker, name)["OfflineStoreConfig"]["S3StorageConfig"]["ResolvedOutputS3Uri"]
        sagemaker.delete_feature_group(FeatureGroupName=name)
        folder = service.home / "offline" / uri.removeprefix("s3://")
        (file,) = folder.rglob("*.parquet")
        layout = r"year=2024/month=05/day=01/hour=00/20240501T000000Z_[A-Za-z0-9]{16}\.parquet"
        assert re.fullmatch(layout, file.relative_to(folder).as_posix())


class TestList:
    @pytest.fixture(scope="class")
    @classmethod
    def stem(cls, create_group: CreateGroup) -> str:
        """Seven groups that share a part of their name and nobody else has; the fourth has no offline store."""
        stem = unique_name("list")
        for letter in "dbagcfe":
            create_group(FeatureGroupName=f"{letter}-{stem}", OfflineStoreConfig=None if letter == "g" else OFFLINE)
        return stem

    @staticmethod
    def letters(pages: Any) -> str:
        summaries = [summary for page in pages for summary in page["FeatureGroupSummaries"]]
        return "".join(summary["FeatureGroupName"][0] for summary in summaries)

    def test_summaries(self, sagemaker: Any, stem: str) -> None:
        (summary,) = sagemaker.list_feature_groups(NameContains=f"a-{stem}")["FeatureGroupSummaries"]
        answer = describe(sagemaker, f"a-{stem}")
        assert summary == {
            name: answer[name]
            for name in ("FeatureGroupName", "FeatureGroupArn", "CreationTime", "FeatureGroupStatus", "OfflineStoreStatus")
        }
        (summary,) = sagemaker.list_feature_groups(NameContains=f"g-{stem}")["FeatureGroupSummaries"]
        assert "OfflineStoreStatus" not in summary

    @pytest.mark.parametrize(
        ("members", "letters"),
        [
            ({}, "efcgabd"),
            ({"SortOrder": "Ascending"}, "dbagcfe"),
            ({"SortBy": "CreationTime", "SortOrder": "Descending"}, "efcgabd"),
            ({"SortBy": "Name"}, "gfedcba"),
            ({"SortBy": "Name", "SortOrder": "Ascending"}, "abcdefg"),
            ({"SortBy": "FeatureGroupStatus", "SortOrder": "Ascending"}, "dbagcfe"),
            ({"SortBy": "OfflineStoreStatus", "SortOrder": "Ascending"}, "gdbacfe"),
            ({"OfflineStoreStatusEquals": "Active"}, "efcabd"),
            ({"OfflineStoreStatusEquals": "Blocked"}, ""),
            ({"FeatureGroupStatusEquals": "Created"}, "efcgabd"),
            ({"FeatureGroupStatusEquals": "Deleting"}, ""),
        ],
    )
    @pytest.mark.parametrize("page_size", [1, 2, 7, 100])
    def test_order_filters_and_pages(
        self, sagemaker: Any, stem: str, members: dict[str, str], letters: str, page_size: int
    ) -> None:
        pages = list(
            sagemaker.get_paginator("list_feature_groups").paginate(
                NameContains=stem, PaginationConfig={"PageSize": page_size}, **members
            )
        )
        assert self.letters(pages) == letters
        assert all(len(page["FeatureGroupSummaries"]) <= page_size for page in pages)
        assert len(pages) == max(1, -(-len(letters) // page_size))
        assert "NextToken" not in pages[-1]

    def test_times_bound_exclusively(self, sagemaker: Any, stem: str) -> None:
        created = describe(sagemaker, f"g-{stem}")["CreationTime"]
        listed = sagemaker.list_feature_groups
        assert self.letters([listed(NameContains=stem, CreationTimeAfter=created + timedelta(milliseconds=1))]) in "efc"
        assert set(self.letters([listed(NameContains=stem, CreationTimeBefore=created)])) <= set("abd")
        assert self.letters([listed(NameContains=stem, CreationTimeAfter=datetime(9999, 1, 1, tzinfo=UTC))]) == ""
        assert self.letters([listed(NameContains=stem, CreationTimeBefore=datetime(1, 1, 2, tzinfo=UTC))]) == ""

    def test_wildcards_of_sql_are_ordinary_characters(self, sagemaker: Any, stem: str) -> None:
        for pattern in ("%", "_%_", f"%{stem}", "' OR 1=1 --"):
            assert sagemaker.list_feature_groups(NameContains=pattern)["FeatureGroupSummaries"] == []

    def test_a_token_belongs_to_its_order(self, sagemaker: Any, stem: str) -> None:
        token = sagemaker.list_feature_groups(NameContains=stem, MaxResults=1)["NextToken"]
        refuse(sagemaker.list_feature_groups, "NextToken", "sorted by Name", SortBy="Name", NextToken=token)


class TestFeatureMetadata:
    @staticmethod
    def metadata(sagemaker: Any, group: str, feature: str = "amount") -> dict[str, Any]:
        return dict(sagemaker.describe_feature_metadata(FeatureGroupName=group, FeatureName=feature))

    def test_of_a_new_feature(self, sagemaker: Any, group: str) -> None:
        answer = self.metadata(sagemaker, group)
        described = describe(sagemaker, group)
        del answer["ResponseMetadata"]
        assert answer == {
            "FeatureGroupArn": described["FeatureGroupArn"],
            "FeatureGroupName": group,
            "FeatureName": "amount",
            "FeatureType": "Fractional",
            "CreationTime": described["CreationTime"],
            "LastModifiedTime": described["CreationTime"],
        }

    def test_description_and_parameters(self, sagemaker: Any, create_group: CreateGroup) -> None:
        group = create_group()
        arn = describe(sagemaker, group)["FeatureGroupArn"]

        def update(name: str = group, **members: Any) -> dict[str, Any]:
            sagemaker.update_feature_metadata(FeatureGroupName=name, FeatureName="amount", **members)
            return self.metadata(sagemaker, name)

        pairs = [{"Key": "z", "Value": "1"}, {"Key": "a", "Value": "2"}]
        answer = update(Description="in euros", ParameterAdditions=pairs, ParameterRemovals=[])
        assert (answer["Description"], answer["Parameters"]) == ("in euros", pairs)
        answer = update(arn, ParameterAdditions=[{"Key": "z", "Value": "new"}, {"Key": "m m", "Value": "3"}])
        assert answer["Description"] == "in euros"
        assert [(item["Key"], item["Value"]) for item in answer["Parameters"]] == [("z", "new"), ("a", "2"), ("m m", "3")]
        answer = update(Description="", ParameterRemovals=["z", "a", "m m", "never there"])
        assert "Description" not in answer
        assert "Parameters" not in answer
        assert "Parameters" not in self.metadata(sagemaker, group, "note")

    def test_no_more_than_25_parameters(self, sagemaker: Any, create_group: CreateGroup) -> None:
        group = create_group()
        pairs = [{"Key": f"k{number}", "Value": "v"} for number in range(26)]
        update = sagemaker.update_feature_metadata
        members = {"FeatureGroupName": group, "FeatureName": "note"}
        refuse(update, "ParameterAdditions", **members, ParameterAdditions=pairs)
        update(**members, ParameterAdditions=pairs[:25])
        refuse(update, "25", code="ResourceLimitExceeded", **members, ParameterAdditions=pairs[25:])
        update(**members, ParameterAdditions=pairs[25:], ParameterRemovals=["k0"])
        assert len(self.metadata(sagemaker, group, "note")["Parameters"]) == 25

    @pytest.mark.parametrize(
        ("members", "word"),
        [
            ({"Description": "x" * 256}, "Description"),
            ({"ParameterAdditions": [{"Key": "x" * 256, "Value": "v"}]}, "ParameterAdditions[0].Key"),
            ({"ParameterAdditions": [{"Key": "k", "Value": "<v>"}]}, "ParameterAdditions[0].Value"),
            ({"ParameterRemovals": ["a", "b;"]}, "ParameterRemovals[1]"),
        ],
    )
    def test_wrong_ones(self, sagemaker: Any, group: str, members: dict[str, Any], word: str) -> None:
        refuse(sagemaker.update_feature_metadata, word, FeatureGroupName=group, FeatureName="amount", **members)

    def test_unknown_ones(self, sagemaker: Any, group: str) -> None:
        for name, feature in ((group, "nope"), ("nope", "amount")):
            with pytest.raises(sagemaker.exceptions.ResourceNotFound, match="nope"):
                self.metadata(sagemaker, name, feature)
            with pytest.raises(sagemaker.exceptions.ResourceNotFound, match="nope"):
                sagemaker.update_feature_metadata(FeatureGroupName=name, FeatureName=feature, Description="d")
        refuse(sagemaker.describe_feature_metadata, "FeatureName", FeatureGroupName=group, FeatureName="-x")


class TestTags:
    def test_added_listed_and_deleted(self, sagemaker: Any, create_group: CreateGroup) -> None:
        arn = describe(sagemaker, create_group(Tags=[{"Key": "a", "Value": "1"}]))["FeatureGroupArn"]
        answer = sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "b", "Value": "2"}, {"Key": "a", "Value": "new"}])
        expected = [{"Key": "a", "Value": "new"}, {"Key": "b", "Value": "2"}]
        assert answer["Tags"] == expected
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == expected
        sagemaker.delete_tags(ResourceArn=arn, TagKeys=["a", "never there"])
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == expected[1:]

    def test_all_fifty_in_one_page(self, sagemaker: Any, create_group: CreateGroup) -> None:
        tags = [{"Key": f"k{number}", "Value": "ü 東 _.:/=+-@"} for number in range(50)]
        arn = describe(sagemaker, create_group(Tags=tags))["FeatureGroupArn"]
        answer = sagemaker.list_tags(ResourceArn=arn, MaxResults=50)
        assert answer["Tags"] == tags
        assert "NextToken" not in answer
        pages = list(sagemaker.get_paginator("list_tags").paginate(ResourceArn=arn))
        assert [tag for page in pages for tag in page["Tags"]] == tags
        one = [{"Key": "one more", "Value": ""}]
        refuse(sagemaker.add_tags, "50", code="ResourceLimitExceeded", ResourceArn=arn, Tags=one)
        sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "k0", "Value": "overwritten"}])

    @pytest.mark.parametrize(
        ("key", "value", "word"), [("x" * 129, "", "Key"), ("k", "x" * 257, "Value"), ("a\nb", "", "Key"), ("k", "a;b", "Value")]
    )
    def test_wrong_ones(self, sagemaker: Any, group: str, key: str, value: str, word: str) -> None:
        arn = describe(sagemaker, group)["FeatureGroupArn"]
        refuse(sagemaker.add_tags, f"Tags[0].{word}", ResourceArn=arn, Tags=[{"Key": key, "Value": value}])
        assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == []

    def test_keys(self, sagemaker: Any, create_group: CreateGroup) -> None:
        arn = describe(sagemaker, create_group())["FeatureGroupArn"]
        for key in ("aws:x", "AWS:x"):
            refuse(sagemaker.add_tags, "reserved", f"'{key}'", ResourceArn=arn, Tags=[{"Key": key, "Value": ""}])
        twice = [{"Key": "k", "Value": "1"}, {"Key": "k", "Value": "2"}]
        refuse(sagemaker.add_tags, "Tags[1].Key", "already", ResourceArn=arn, Tags=twice)
        with pytest.raises(ClientError, match=r"Tags\[1\]\.Key"):
            create_group(Tags=twice)
        cases = [{"Key": "team", "Value": "1"}, {"Key": "Team", "Value": "2"}, {"Key": "my aws:x", "Value": ""}]
        assert sagemaker.add_tags(ResourceArn=arn, Tags=cases)["Tags"] == cases
        refuse(sagemaker.delete_tags, "TagKeys[0]", ResourceArn=arn, TagKeys=["a;b"])
        with pytest.raises(sagemaker.exceptions.ResourceNotFound):
            sagemaker.delete_tags(ResourceArn=f"{arn}x", TagKeys=["team"])

    def test_of_what_is_no_group(self, sagemaker: Any, group: str) -> None:
        arn = describe(sagemaker, group)["FeatureGroupArn"]
        with pytest.raises(sagemaker.exceptions.ResourceNotFound):
            sagemaker.list_tags(ResourceArn=arn.replace(group, "nope"))
        refuse(sagemaker.list_tags, "ResourceArn", ResourceArn=arn.replace("feature-group", "endpoint"))
        refuse(sagemaker.list_tags, "ResourceArn", ResourceArn=group)
        refuse(sagemaker.add_tags, "ResourceArn", ResourceArn="", Tags=[])
