"""What the example of SDK v3 leaves out: other ways to ingest, faulty rows, collections, tags, every option of datasets, and what
the SDK sends elsewhere when nobody stops it.
"""

from __future__ import annotations

import os
import threading
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import pandas as pd
from botocore.exceptions import ClientError, EndpointConnectionError
from datasets import PRICE_AFTER_DELETE, PRICE_AGAIN, PRICES, SHOPS, check_datasets, frame
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.resources import FeatureGroup, FeatureMetadata, Tag
from sagemaker.core.shapes import (
    BatchWriteRecordEntry,
    FeatureDefinition,
    FeatureParameter,
    FeatureValue,
    OfflineStoreConfig,
    OnlineStoreConfig,
    OnlineStoreConfigUpdate,
    S3StorageConfig,
    ThroughputConfig,
    ThroughputConfigUpdate,
    TtlDuration,
)
from sagemaker.core.shapes import Tag as TagShape
from sagemaker.mlops.feature_store import (
    DatasetBuilder,
    IngestionError,
    IngestionManagerPandas,
    JoinComparatorEnum,
    JoinTypeEnum,
    as_hive_ddl,
    create_athena_query,
    get_session_from_role,
    ingest_dataframe,
    list_records,
    load_feature_definitions_from_dataframe,
    update_record,
)
from steps import step, wait_until

session = Session(boto3.Session(), default_bucket="options-v3")
role = "arn:aws:iam::000000000000:role/FeatureStore"
stem = f"options-v3-{uuid.uuid4().hex[:8]}"
results = f"s3://options-v3/results-{stem}"


def create(name: str, data: pd.DataFrame, tier: str = "Standard", *, offline: bool = True, **options: Any) -> FeatureGroup:
    """A group whose first column is the identifier and whose second one is the event time."""
    if offline:
        options["offline_store_config"] = OfflineStoreConfig(
            s3_storage_config=S3StorageConfig(s3_uri="s3://options-v3/offline"), table_format="Glue"
        )
    group = FeatureGroup.create(
        feature_group_name=f"{stem}-{name}",
        record_identifier_feature_name=data.columns[0],
        event_time_feature_name=data.columns[1],
        feature_definitions=load_feature_definitions_from_dataframe(data, online_storage_type=tier),
        online_store_config=OnlineStoreConfig(enable_online_store=True, storage_type=tier),
        role_arn=role,
        **options,
    )
    group.wait_for_status("Created")
    return group


def values(group: FeatureGroup, identifier: str) -> dict[str, Any]:
    record = group.get_record(identifier).record
    return {value.feature_name: value.value_as_string or value.value_as_string_list for value in record}


with step("create with throughput and tags, refresh"):
    throughput = ThroughputConfig(
        throughput_mode="Provisioned", provisioned_read_capacity_units=10, provisioned_write_capacity_units=20
    )
    group = create("prices", PRICES, throughput_config=throughput, tags=[TagShape(key="team", value="risk")])
    group.refresh()
    assert group.throughput_config.provisioned_write_capacity_units == 20, group.throughput_config
    assert group.offline_store_config.data_catalog_config.database == "sagemaker_featurestore"
    assert as_hive_ddl(group.feature_group_name).startswith("CREATE EXTERNAL TABLE")

with step("ingest with processes and threads, one PutRecord per row; then one row, by a manager"):
    ingest_dataframe(group.feature_group_name, PRICES, max_workers=2, max_processes=2)
    manager = IngestionManagerPandas(group.feature_group_name, {})
    manager.run(PRICE_AGAIN, target_stores=["OnlineStore", "OfflineStore"])
    assert values(group, "a")["price"] == "30.0"

with step("delete, and write again later"):
    group.delete_record("b", "2500.0", target_stores=["OnlineStore", "OfflineStore"])
    group.put_record([FeatureValue(feature_name=name, value_as_string=value) for name, value in PRICE_AFTER_DELETE.items()])

with step("faulty rows in a batch of 25 fail alone, and the SDK says which"):
    many = frame(
        id=[f"m{n}" for n in range(60)],
        et=[str(float(n)) if n not in (3, 30) else "not a time" for n in range(60)],
        price=["1.0"] * 60,
    )
    batch = create("batch", frame(id=["a"], et=[1.0], price=[1.0]), "Standard_V2")
    for options in ({}, {"max_workers": 2}, {"max_workers": 2, "max_processes": 2}):
        try:
            ingest_dataframe(batch.feature_group_name, many, use_batch_write_record=True, **options)
        except IngestionError as caught:
            failed = sorted(caught.failed_rows)
        else:
            failed = []
        assert failed == [3, 30], (options, failed)
    pages, token = [], None
    while token is not None or not pages:
        page = list_records(batch.feature_group_name, max_results=25, next_token=token)
        pages.append(page.record_identifiers)
        token = page.next_token if isinstance(page.next_token, str) else None
    listed = [identifier for page in pages for identifier in page]
    assert sorted(listed) == sorted(f"m{n}" for n in range(60) if n not in (3, 30)), listed

with step("batch_write_record, update_record with a time to live"):
    good = BatchWriteRecordEntry(
        feature_group_name=batch.feature_group_name,
        record=[FeatureValue(feature_name="id", value_as_string="x"), FeatureValue(feature_name="et", value_as_string="1.5")],
    )
    answer = batch.batch_write_record([good], ttl_duration=TtlDuration(unit="Weeks", value=10_000))
    assert (answer.errors, answer.unprocessed_entries) == ([], []), answer
    assert batch.get_record("x", expiration_time_response="Enabled").expires_at.startswith("2161-")
    update_record(
        batch.feature_group_name,
        "x",
        [{"FeatureName": "price", "ValueAsString": "2.5"}, {"FeatureName": "et", "ValueAsString": "2.5"}],
        ttl_duration=TtlDuration(unit="Weeks", value=5200),
    )
    assert values(batch, "x") == {"id": "x", "et": "2.5", "price": "2.5"}
    try:
        update_record(batch.feature_group_name, "nobody", [{"FeatureName": "price", "ValueAsString": "2.5"}])
    except ClientError as caught_too:
        code = caught_too.response["Error"]["Code"]
    else:
        code = "none"
    assert code == "ResourceNotFound", code

with step("update the default TTL and the throughput"):
    group.update(online_store_config=OnlineStoreConfigUpdate(ttl_duration=TtlDuration(unit="Days", value=7)))
    wait_until(lambda: group.refresh().last_update_status.status == "Successful", "the update succeeds")
    assert (group.online_store_config.ttl_duration.unit, group.online_store_config.ttl_duration.value) == ("Days", 7)
    group.update(throughput_config=ThroughputConfigUpdate(throughput_mode="OnDemand"))
    wait_until(lambda: group.refresh().throughput_config.throughput_mode == "OnDemand", "the throughput changes")

with step("feature metadata and tags"):
    price = FeatureMetadata.get(feature_group_name=group.feature_group_name, feature_name="price")
    parameters = [FeatureParameter(key="unit", value="EUR"), FeatureParameter(key="tax", value="no")]
    price.update(description="of one piece", parameter_additions=parameters)
    price.update(parameter_removals=["tax"])
    assert [(item.key, item.value) for item in price.parameters] == [("unit", "EUR")]
    Tag.add_tags(resource_arn=group.feature_group_arn, tags=[TagShape(key="stage", value="test")])
    Tag.delete_tags(resource_arn=group.feature_group_arn, tag_keys=["team"])
    assert [(tag.key, tag.value) for tag in Tag.get_all(resource_arn=group.feature_group_arn)] == [("stage", "test")]

with step("collections in memory"):
    lists = frame(id=["a"], et=[1000.0], words=[["z", "a", "z"]], numbers=[[1, 2]])
    memory = create("memory", lists, "InMemory", offline=False)
    ingest_dataframe(memory.feature_group_name, lists)
    got = values(memory, "a")
    assert (got["words"], got["numbers"]) == (["z", "a", "z"], ["1", "2"]), got
    update_record(memory.feature_group_name, "a", [FeatureValue(feature_name="words", value_as_string_list=["one"])])
    assert values(memory, "a")["words"] == ["one"]

with step("get_all describes every group; a session from a role reads"):
    listed = [
        item.feature_group_name for item in FeatureGroup.get_all(name_contains=stem, sort_by="Name", sort_order="Ascending")
    ]
    assert listed == sorted(f"{stem}-{name}" for name in ("batch", "memory", "prices")), listed
    assumed = get_session_from_role("us-east-1", role)
    described = assumed.sagemaker_client.describe_feature_group(FeatureGroupName=group.feature_group_name)
    assert described["FeatureGroupArn"] == group.feature_group_arn

with step("a query that is wrong ends as FAILED"):
    query = create_athena_query(group.feature_group_name, session)
    query.run("SELECT nothing FROM nowhere", output_location=results)
    query.wait()
    status = query.get_query_execution()["QueryExecution"]["Status"]
    assert status["State"] == "FAILED", status

shops = create("shops", SHOPS)
ingest_dataframe(shops.feature_group_name, SHOPS, use_batch_write_record=True)


def dataset(base: Any, **options: Any) -> DatasetBuilder:
    return DatasetBuilder.create(base, results, session, **options)


check_datasets(dataset, group, shops, JoinTypeEnum, JoinComparatorEnum)

with step("a new feature: its rows are there, older ones have nothing in it"):
    group.update(feature_additions=[FeatureDefinition(feature_name="discount", feature_type="Fractional")])
    wait_until(lambda: group.refresh().last_update_status.status == "Successful", "the update succeeds")
    ingest_dataframe(group.feature_group_name, frame(id=["n"], et=[5000.0], price=[50.0], discount=[0.25]))
    query = create_athena_query(group.feature_group_name, session)
    query.run(f'SELECT id, discount FROM "{query.table_name}" ORDER BY et', output_location=results)
    query.wait()
    discounts = query.as_dataframe().set_index("id")["discount"]
    assert discounts["n"] == 0.25, discounts
    assert discounts.drop("n").isna().all(), discounts

with step("without the opt-out of the configuration, the SDK reports each call to a bucket of Amazon's"):
    guard = Path(os.environ["GUARD_LOG"])
    assert not guard.exists(), guard.read_text()
    opted_out = os.environ.pop("SAGEMAKER_USER_CONFIG_OVERRIDE")
    talkative = Session(boto3.Session(), default_bucket="options-v3")
    create_athena_query(group.feature_group_name, talkative).run("SELECT 1", output_location=results)
    os.environ["SAGEMAKER_USER_CONFIG_OVERRIDE"] = opted_out
    for thread in threading.enumerate():
        if thread.name == "sagemaker-telemetry":
            thread.join()
    tried = guard.read_text().splitlines()
    assert tried, "nothing was sent"
    assert all(line.startswith("name sm-pysdk-t-us-east-1.s3.us-east-1.amazonaws.com by ") for line in tried), tried
    guard.unlink()
with step("and it asks Amazon for the account, when it has to make up a bucket's name"):
    os.environ["AWS_MAX_ATTEMPTS"] = "1"
    with suppress(EndpointConnectionError):
        Session(boto3.Session()).default_bucket()
    tried = guard.read_text().splitlines()
    assert tried, "nobody was asked"
    assert all(line.startswith("name sts.us-east-1.amazonaws.com by ") for line in tried), tried
    guard.unlink()

for item in FeatureGroup.get_all(name_contains=stem):
    item.delete()
