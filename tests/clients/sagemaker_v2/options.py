"""What the example of SDK v2 leaves out: other ways to ingest, faulty rows, collections, every option of datasets, and what the
SDK sends elsewhere when nobody stops it.
"""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
import sagemaker
from botocore.exceptions import EndpointConnectionError
from datasets import PRICE_AFTER_DELETE, PRICE_AGAIN, PRICES, SHOPS, check_datasets, frame
from sagemaker.feature_store.dataset_builder import DatasetBuilder, JoinComparatorEnum, JoinTypeEnum
from sagemaker.feature_store.feature_definition import FractionalFeatureDefinition
from sagemaker.feature_store.feature_group import FeatureGroup, IngestionError
from sagemaker.feature_store.feature_store import FeatureStore
from sagemaker.feature_store.feature_utils import (
    get_feature_group_as_dataframe,
    get_session_from_role,
    prepare_fg_from_dataframe_or_file,
)
from sagemaker.feature_store.inputs import (
    FeatureParameter,
    FeatureValue,
    Filter,
    Identifier,
    OnlineStoreConfigUpdate,
    OnlineStoreStorageTypeEnum,
    ResourceEnum,
    SearchOperatorEnum,
    SortOrderEnum,
    TableFormatEnum,
    TargetStoreEnum,
    ThroughputConfig,
    ThroughputConfigUpdate,
    ThroughputModeEnum,
    TtlDuration,
)
from steps import step, wait_until

session = sagemaker.Session(boto3.Session(), default_bucket="options-v2")
store = FeatureStore(session)
role = "arn:aws:iam::000000000000:role/FeatureStore"
stem = f"options-v2-{uuid.uuid4().hex[:8]}"
results = f"s3://options-v2/results-{stem}"


def create(name: str, data: pd.DataFrame, **options: Any) -> FeatureGroup:
    """A group whose first column is the identifier and whose second one is the event time."""
    group = FeatureGroup(f"{stem}-{name}", sagemaker_session=session)
    memory = {"online_storage_type": options["online_store_storage_type"]} if "online_store_storage_type" in options else {}
    group.load_feature_definitions(data, **memory)
    members = {"s3_uri": "s3://options-v2/offline", "role_arn": role, "enable_online_store": True} | options
    group.create(record_identifier_name=data.columns[0], event_time_feature_name=data.columns[1], **members)
    wait_until(lambda: group.describe()["FeatureGroupStatus"] == "Created", "Created")
    return group


with step("create with every option, describe"):
    group = create(
        "prices",
        PRICES,
        online_store_kms_key_id="alias/online",
        offline_store_kms_key_id="alias/offline",
        throughput_config=ThroughputConfig(ThroughputModeEnum.PROVISIONED, 10, 20),
        table_format=TableFormatEnum.GLUE,
    )
    described = group.describe()
    assert described["OnlineStoreConfig"]["SecurityConfig"] == {"KmsKeyId": "alias/online"}, described
    assert described["OfflineStoreConfig"]["S3StorageConfig"]["KmsKeyId"] == "alias/offline", described
    assert described["ThroughputConfig"]["ProvisionedWriteCapacityUnits"] == 20, described
    assert group.as_hive_ddl().startswith("CREATE EXTERNAL TABLE"), group.as_hive_ddl()

with step("ingest with processes and threads, without waiting; then in one thread"):
    ingestion = group.ingest(PRICES, max_workers=2, max_processes=2, wait=False)
    ingestion.wait()
    assert ingestion.failed_rows == []
    group.ingest(PRICE_AGAIN)  # the same moment again: the later call wins
    assert group.get_record("a", ["price", "shelf-label"]) == [
        {"FeatureName": "price", "ValueAsString": "30.0"},
        {"FeatureName": "shelf-label", "ValueAsString": "z"},
    ]

with step("a faulty row fails alone, and the SDK says which"):
    faulty = frame(id=["c", "d", "e"], et=["1000.0", "not a time", "1000.0"], price=["1.0", "2.0", "3.0"])
    try:
        group.ingest(faulty, max_workers=2, target_stores=[TargetStoreEnum.ONLINE_STORE])
    except IngestionError as caught:
        failed = caught.failed_rows
    else:
        failed = []
    assert failed == [1], failed
    assert group.get_record("c") is not None
    assert group.get_record("d") is None

with step("delete, and write again later"):
    group.delete_record("b", "2500.0")
    group.put_record(
        [FeatureValue(name, value) for name, value in PRICE_AFTER_DELETE.items()],
        target_stores=[TargetStoreEnum.ONLINE_STORE, TargetStoreEnum.OFFLINE_STORE],
        ttl_duration=TtlDuration("Weeks", 10_000),
    )
    (found,) = store.batch_get_record([Identifier(group.name, ["b"])], expiration_time_response="Enabled")["Records"]
    assert found["ExpiresAt"].startswith("2161-"), found

with step("update the default TTL, remove it, update throughput"):
    group.update(online_store_config=OnlineStoreConfigUpdate(ttl_duration=TtlDuration("Days", 7)))
    assert group.describe()["OnlineStoreConfig"]["TtlDuration"] == {"Unit": "Days", "Value": 7}
    group.update(online_store_config=OnlineStoreConfigUpdate(ttl_duration=TtlDuration(None, None)))
    assert "TtlDuration" not in group.describe()["OnlineStoreConfig"]
    group.update(throughput_config=ThroughputConfigUpdate(ThroughputModeEnum.ON_DEMAND))
    assert group.describe()["ThroughputConfig"]["ThroughputMode"] == "OnDemand"
    assert group.describe()["LastUpdateStatus"]["Status"] == "Successful"

with step("feature metadata: add and remove"):
    group.update_feature_metadata("price", "of one piece", [FeatureParameter("unit", "EUR"), FeatureParameter("tax", "no")])
    group.update_feature_metadata("price", parameter_removals=["tax"])
    assert group.describe_feature_metadata("price")["Description"] == "of one piece"
    assert group.list_parameters_for_feature_metadata("price") == [{"Key": "unit", "Value": "EUR"}]

with step("collections in memory, their types taken from the dataframe"):
    lists = frame(id=["a"], et=[1000.0], words=[["z", "a", "z"]], numbers=[[1, 2]], vector=[[0.5, 1.5]])
    memory = create("memory", lists, s3_uri=False, online_store_storage_type=OnlineStoreStorageTypeEnum.IN_MEMORY)
    types = {item["FeatureName"]: item.get("CollectionType") for item in memory.describe()["FeatureDefinitions"]}
    assert types == {"id": None, "et": None, "words": "List", "numbers": "List", "vector": "List"}, types
    memory.ingest(lists)
    values = {item["FeatureName"]: item.get("ValueAsStringList") for item in memory.get_record("a")}
    assert (values["words"], values["numbers"], values["vector"]) == (["z", "a", "z"], ["1", "2"], ["0.5", "1.5"]), values

with step("list_feature_groups, search with and without an expression"):
    listed = store.list_feature_groups(name_contains=stem, sort_by="Name", sort_order="Descending", max_results=1)
    assert [item["FeatureGroupName"] for item in listed["FeatureGroupSummaries"]] == [f"{stem}-prices"], listed
    rest = store.list_feature_groups(
        name_contains=stem, sort_by="Name", sort_order="Descending", max_results=1, next_token=listed["NextToken"]
    )
    assert [item["FeatureGroupName"] for item in rest["FeatureGroupSummaries"]] == [f"{stem}-memory"], rest
    assert store.search(ResourceEnum.FEATURE_GROUP)["Results"]
    assert store.search(ResourceEnum.FEATURE_GROUP, operator=SearchOperatorEnum.AND)["Results"]
    names = [Filter("FeatureGroupName", f"{stem}-memory"), Filter("FeatureGroupName", f"{stem}-prices")]
    hits = store.search(
        ResourceEnum.FEATURE_GROUP, names, SearchOperatorEnum.OR, sort_by="FeatureGroupName", sort_order=SortOrderEnum.ASCENDING
    )["Results"]
    assert [hit["FeatureGroup"]["FeatureGroupName"] for hit in hits] == [f"{stem}-memory", f"{stem}-prices"], hits

with step("helpers: a session from a role, a group as a dataframe, a group prepared from one"):
    assumed = get_session_from_role("us-east-1", role)
    everything = get_feature_group_as_dataframe(
        group.name, results, session=assumed, event_time_feature_name="et", latest_ingestion=False
    )
    assert len(everything) == 6, everything  # four rows, one twice, and one after the delete
    latest = get_feature_group_as_dataframe(group.name, results, session=session, event_time_feature_name="et")
    assert latest["id"].tolist() == ["b"], latest
    prepared = prepare_fg_from_dataframe_or_file(frame(value=[1.5]), f"{stem}-prepared", session=session)
    assert {item.feature_name for item in prepared.feature_definitions} == {"value", "record_id", "data_as_of_date"}

with step("a query that is wrong ends as FAILED"):
    query = group.athena_query()
    query.run("SELECT nothing FROM nowhere", output_location=results)
    query.wait()
    status = query.get_query_execution()["QueryExecution"]["Status"]
    assert status["State"] == "FAILED", status
    assert status["StateChangeReason"], status


shops = create("shops", SHOPS)
shops.ingest(SHOPS)


def dataset(base: Any, **options: Any) -> DatasetBuilder:
    builder: DatasetBuilder = store.create_dataset(base, output_path=results, **options)
    return builder


check_datasets(dataset, group, shops, JoinTypeEnum, JoinComparatorEnum)

with step("a new feature: its rows are there, older ones have nothing in it"):
    group.update(feature_additions=[FractionalFeatureDefinition("discount")])
    group.ingest(frame(id=["n"], et=[5000.0], price=[50.0], discount=[0.25]))
    query = group.athena_query()
    query.run(f'SELECT id, discount FROM "{query.table_name}" ORDER BY et', output_location=results)
    query.wait()
    discounts = query.as_dataframe().set_index("id")["discount"]
    assert discounts["n"] == 0.25, discounts
    assert discounts.drop("n").isna().all(), discounts

with step("without the opt-out of the configuration, the SDK reports each call to a bucket of Amazon's"):
    guard = Path(os.environ["GUARD_LOG"])
    assert not guard.exists(), guard.read_text()
    del os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"]
    talkative = sagemaker.Session(boto3.Session(), default_bucket="options-v2")
    assert FeatureGroup(group.name, sagemaker_session=talkative).describe()["FeatureGroupName"] == group.name
    tried = guard.read_text().splitlines()
    assert tried, "nothing was sent"
    assert all(line.startswith("name sm-pysdk-t-us-east-1.s3.us-east-1.amazonaws.com by ") for line in tried), tried
    guard.unlink()
with step("and it asks Amazon for the account, when it has to make up a bucket's name"):
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    with suppress(EndpointConnectionError):
        sagemaker.Session(boto3.Session()).default_bucket()
    tried = guard.read_text().splitlines()
    assert tried, "nobody was asked"
    assert all(line.startswith("name sts.us-east-1.amazonaws.com by ") for line in tried), tried
    guard.unlink()

for item in store.list_feature_groups(name_contains=stem)["FeatureGroupSummaries"]:
    FeatureGroup(item["FeatureGroupName"], sagemaker_session=session).delete()
