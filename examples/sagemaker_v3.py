"""A feature group's whole life with the SageMaker Python SDK v3: what works against Amazon works here.

pip install 'sagemaker>=3'
featurestore serve                                    # in another terminal

export AWS_ENDPOINT_URL=http://127.0.0.1:8080
export AWS_DEFAULT_REGION=us-east-1    # the SDK can't even be imported without one
export SAGEMAKER_USER_CONFIG_OVERRIDE=examples/sagemaker_config.yaml    # no telemetry
python examples/sagemaker_v3.py
"""

import os
import sys

import boto3
import pandas as pd
from sagemaker.core.helper.session_helper import Session
from sagemaker.core.resources import FeatureGroup, FeatureMetadata, Tag
from sagemaker.core.shapes import (
    BatchGetRecordIdentifier,
    FeatureDefinition,
    FeatureParameter,
    FeatureValue,
    OfflineStoreConfig,
    OnlineStoreConfig,
    S3StorageConfig,
    TtlDuration,
)
from sagemaker.core.shapes import Tag as TagShape
from sagemaker.core.utils.utils import Unassigned
from sagemaker.mlops.feature_store import (
    DatasetBuilder,
    create_athena_query,
    ingest_dataframe,
    list_records,
    load_feature_definitions_from_dataframe,
    update_record,
)

# The SDK reads this variable by itself. Without it, it would talk to Amazon.
if "AWS_ENDPOINT_URL" not in os.environ:
    sys.exit("set AWS_ENDPOINT_URL to the address that `featurestore serve` prints")

# A service without access keys takes any credentials; one that has some wants yours. The SDK finds them where boto3 does.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "any")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "any")

# A default bucket, since the SDK would ask Amazon for it otherwise. The role can be any: none is assumed.
session = Session(boto3.Session(), default_bucket="features")
role = "arn:aws:iam::000000000000:role/FeatureStore"
results = "s3://features/results"

# -- Two feature groups, their features taken from dataframes. Types come from the columns: text, whole and other numbers.
customers = pd.DataFrame(
    {
        "customer_id": ["ada", "ada", "ada", "bob", "eve", "joe"],
        "updated_at": [
            "2026-01-10T00:00:00Z",
            "2026-02-10T00:00:00Z",
            "2026-03-10T00:00:00Z",
            "2026-02-01T00:00:00Z",
            "2026-02-01T00:00:00Z",
            "2026-02-01T00:00:00Z",
        ],
        "income": [3000.0, 3200.5, 5100.0, 2100.0, 1000.0, 900.0],
    }
)
loans = pd.DataFrame(
    {
        "loan_id": ["1", "2", "3"],
        "asked_at": ["2026-02-09T23:59:59Z", "2026-02-10T00:00:00Z", "2026-04-01T09:30:00Z"],
        "customer_id": ["ada", "ada", "bob"],
        "amount": [500, 800, 200],
    }
)
offline = OfflineStoreConfig(s3_storage_config=S3StorageConfig(s3_uri="s3://features/offline"))

customers_group = FeatureGroup.create(
    feature_group_name="customers-v3",
    record_identifier_feature_name="customer_id",
    event_time_feature_name="updated_at",
    feature_definitions=load_feature_definitions_from_dataframe(customers),
    online_store_config=OnlineStoreConfig(
        enable_online_store=True,
        storage_type="Standard_V2",  # the tier whose records can be updated feature by feature
        ttl_duration=TtlDuration(unit="Weeks", value=5200),  # a record lives for a century after its event time
    ),
    offline_store_config=offline,
    role_arn=role,
    description="What is known about customers",
    tags=[TagShape(key="team", value="risk")],
)
loans_group = FeatureGroup.create(
    feature_group_name="loans-v3",
    record_identifier_feature_name="loan_id",
    event_time_feature_name="asked_at",
    feature_definitions=load_feature_definitions_from_dataframe(loans),
    online_store_config=OnlineStoreConfig(enable_online_store=True),
    offline_store_config=offline,
    role_arn=role,
)
customers_group.wait_for_status("Created")
loans_group.wait_for_status("Created")
print("created:", [group.feature_group_name for group in FeatureGroup.get_all(name_contains="-v3")])

# -- Write dataframes: 25 rows in one BatchWriteRecord, or one PutRecord per row. Rows may arrive in any order.
ingest_dataframe("customers-v3", customers, max_workers=2, use_batch_write_record=True)
ingest_dataframe("loans-v3", loans, max_workers=2)

# -- Read the newest records.
answer = customers_group.get_record("ada", expiration_time_response="Enabled")
ada = {value.feature_name: value.value_as_string for value in answer.record}
print("ada:", ada, "expires", answer.expires_at)
assert ada == {"customer_id": "ada", "updated_at": "2026-03-10T00:00:00Z", "income": "5100.0"}
assert answer.expires_at == "2125-11-06T00:00:00Z"

wanted = BatchGetRecordIdentifier(
    feature_group_name="customers-v3",
    record_identifiers_value_as_string=["ada", "bob", "nobody"],
    feature_names=["income"],
)
found = customers_group.batch_get_record([wanted], expiration_time_response="Enabled").records
for record in found:
    print("batch:", record.record_identifier_value_as_string, record.record[0].value_as_string, "expires", record.expires_at)
assert [record.record_identifier_value_as_string for record in found] == ["ada", "bob"]  # nobody is not there

print("identifiers:", sorted(list_records("customers-v3").record_identifiers))
assert sorted(list_records("customers-v3").record_identifiers) == ["ada", "bob", "eve", "joe"]

# -- Add a feature, and write it into a record that exists: what is not named stays.
customers_group.update(feature_additions=[FeatureDefinition(feature_name="children", feature_type="Integral")])
while customers_group.last_update_status.status == "InProgress":
    customers_group.refresh()
assert customers_group.last_update_status.status == "Successful"

update_record(
    "customers-v3",
    "bob",
    [
        FeatureValue(feature_name="updated_at", value_as_string="2026-05-01T00:00:00Z"),
        FeatureValue(feature_name="children", value_as_string="3"),
    ],
)
bob = {value.feature_name: value.value_as_string for value in customers_group.get_record("bob").record}
print("bob:", bob)
assert bob == {"customer_id": "bob", "updated_at": "2026-05-01T00:00:00Z", "income": "2100.0", "children": "3"}

# -- Say what a feature means. Groups and features are found by such properties through boto3.
income = FeatureMetadata.get(feature_group_name="customers-v3", feature_name="income")
income.update(
    description="Monthly income after tax",
    parameter_additions=[FeatureParameter(key="unit", value="EUR")],
)
print("metadata:", income.description, income.parameters)
assert (income.parameters[0].key, income.parameters[0].value) == ("unit", "EUR")

tags = [(tag.key, tag.value) for tag in Tag.get_all(resource_arn=customers_group.feature_group_arn)]
assert tags == [("team", "risk")]

hits = boto3.client("sagemaker").search(
    Resource="FeatureGroup",
    SearchExpression={
        "Filters": [
            {"Name": "FeatureGroupName", "Operator": "Contains", "Value": "-v3"},
            {"Name": "Tags.team", "Operator": "Equals", "Value": "risk"},
        ]
    },
)["Results"]
print("found:", [hit["FeatureGroup"]["FeatureGroupName"] for hit in hits])
assert [hit["FeatureGroup"]["FeatureGroupName"] for hit in hits] == ["customers-v3"]

# -- Delete records. A soft delete keeps its time, so that nothing older comes back; a hard delete keeps nothing.
customers_group.delete_record("eve", "2026-03-01T00:00:00Z")
customers_group.delete_record("joe", "2026-03-01T00:00:00Z", deletion_mode="HardDelete")
assert isinstance(customers_group.get_record("eve").record, Unassigned)
assert isinstance(customers_group.get_record("joe").record, Unassigned)
assert sorted(list_records("customers-v3").record_identifiers) == ["ada", "bob"]
assert sorted(list_records("customers-v3", include_soft_deleted_records=True).record_identifiers) == ["ada", "bob", "eve"]

# -- SQL over all that was ever written. Deletes are rows as well, marked in the column is_deleted.
query = create_athena_query("customers-v3", session)
query.run(
    f'SELECT customer_id, income, is_deleted FROM "{query.table_name}" ORDER BY updated_at, customer_id',
    output_location=results,
)
query.wait()
history = query.as_dataframe()
print(history.to_string())
assert len(history) == 9  # six rows, bob's update and two deletes
assert history["is_deleted"].sum() == 2

# -- Training sets. First what the base knows of each loan, joined with the customers' records up to the moment of asking.
dataset, sql = (
    DatasetBuilder.create(loans_group, results, session)
    .with_feature_group(
        customers_group, target_feature_name_in_base="customer_id", included_feature_names=["updated_at", "income"]
    )
    .point_in_time_accurate_join()
    .to_dataframe()
)
print(dataset.sort_values(["loan_id", "updated_at.1"]).to_string())
incomes = {(str(row["loan_id"]), row["income.1"]) for _, row in dataset.iterrows()}
assert incomes == {("1", 3000.0), ("2", 3000.0), ("2", 3200.5), ("3", 2100.0)}  # every earlier record, none of the future

# The same with a dataframe as the base, and only the newest record before each moment.
asked = pd.DataFrame({"customer_id": ["ada", "bob"], "asked_at": ["2026-02-20T00:00:00Z", "2026-06-01T00:00:00Z"]})
dataset, sql = (
    DatasetBuilder.create(
        asked,
        results,
        session,
        record_identifier_feature_name="customer_id",
        event_time_identifier_feature_name="asked_at",
    )
    .with_feature_group(customers_group, included_feature_names=["updated_at", "income", "children"])
    .point_in_time_accurate_join()
    .with_number_of_recent_records_by_record_identifier(1)
    .to_dataframe()
)
print(dataset.to_string())
newest = dataset.set_index("customer_id")
assert newest["income.1"].to_dict() == {"ada": 3200.5, "bob": 2100.0}
assert newest.loc["bob", "children.1"] == 3

# A dataset can stay in the object store as well.
where, sql = DatasetBuilder.create(customers_group, results, session).to_csv_file()
print("csv file:", where)
assert where.startswith(results)

# -- Delete the groups. Their history stays in the offline store.
for group in (customers_group, loans_group):
    group.delete()
    group.wait_for_delete()
print("done")
