"""A feature group's whole life with the SageMaker Python SDK v2: what works against Amazon works here.

pip install 'sagemaker<3' 'pandas<3'
featurestore serve                                    # in another terminal

export AWS_ENDPOINT_URL=http://127.0.0.1:8080
export SAGEMAKER_USER_CONFIG_OVERRIDE=examples/sagemaker_config.yaml    # no telemetry
python examples/sagemaker_v2.py
"""

import os
import sys
import time

import boto3
import pandas as pd
import sagemaker
from sagemaker.feature_store.feature_definition import IntegralFeatureDefinition
from sagemaker.feature_store.feature_group import FeatureGroup
from sagemaker.feature_store.feature_store import FeatureStore
from sagemaker.feature_store.inputs import (
    DeletionModeEnum,
    ExpirationTimeResponseEnum,
    FeatureParameter,
    FeatureValue,
    Filter,
    FilterOperatorEnum,
    Identifier,
    ResourceEnum,
    TtlDuration,
)

# The SDK reads this variable by itself. Without it, it would talk to Amazon.
if "AWS_ENDPOINT_URL" not in os.environ:
    sys.exit("set AWS_ENDPOINT_URL to the address that `featurestore serve` prints")

# A service without access keys takes any credentials; one that has some wants yours. The SDK finds them where boto3 does.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "any")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "any")

# A default bucket and a role, since the SDK would ask Amazon for what is not given. The role can be any: none is assumed.
session = sagemaker.Session(boto3.Session(region_name="us-east-1"), default_bucket="features")
store = FeatureStore(session)
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

customers_group = FeatureGroup("customers-v2", sagemaker_session=session)
customers_group.load_feature_definitions(customers)
customers_group.create(
    s3_uri="s3://features/offline",
    record_identifier_name="customer_id",
    event_time_feature_name="updated_at",
    role_arn=role,
    enable_online_store=True,
    ttl_duration=TtlDuration(unit="Weeks", value=5200),  # a record lives for a century after its event time
    description="What is known about customers",
    tags=[{"Key": "team", "Value": "risk"}],
)
loans_group = FeatureGroup("loans-v2", sagemaker_session=session)
loans_group.load_feature_definitions(loans)
loans_group.create(
    s3_uri="s3://features/offline",
    record_identifier_name="loan_id",
    event_time_feature_name="asked_at",
    role_arn=role,
    enable_online_store=True,
)


def wait_for_status(group: FeatureGroup, member: str, wanted: str) -> None:
    """Creating and updating a group are asynchronous: Describe says when they are done."""
    while (status := group.describe()[member]) not in (wanted, {"Status": wanted}):
        assert "Failed" not in str(status), status
        time.sleep(1)


wait_for_status(customers_group, "FeatureGroupStatus", "Created")
wait_for_status(loans_group, "FeatureGroupStatus", "Created")
print(
    "created:", [group["FeatureGroupName"] for group in store.list_feature_groups(name_contains="-v2")["FeatureGroupSummaries"]]
)

# -- Write dataframes, one PutRecord per row, from two threads. Rows may arrive in any order: the newest event time wins.
customers_group.ingest(customers, max_workers=2, wait=True)
loans_group.ingest(loans, max_workers=2, wait=True)

# -- Read the newest records.
ada = {value["FeatureName"]: value["ValueAsString"] for value in customers_group.get_record("ada")}
print("ada:", ada)
assert ada == {"customer_id": "ada", "updated_at": "2026-03-10T00:00:00Z", "income": "5100.0"}

answer = store.batch_get_record(
    [Identifier("customers-v2", ["ada", "bob", "nobody"], ["income"])],
    expiration_time_response=ExpirationTimeResponseEnum.ENABLED.value,
)
for record in answer["Records"]:
    print("batch:", record["RecordIdentifierValueAsString"], record["Record"], "expires", record["ExpiresAt"])
assert [record["RecordIdentifierValueAsString"] for record in answer["Records"]] == ["ada", "bob"]  # nobody is not there
assert answer["Records"][0]["ExpiresAt"] == "2125-11-06T00:00:00Z"

# -- Add a feature, and say what another one means.
customers_group.update(feature_additions=[IntegralFeatureDefinition("children")])
wait_for_status(customers_group, "LastUpdateStatus", "Successful")
customers_group.put_record(
    [
        FeatureValue("customer_id", "bob"),
        FeatureValue("updated_at", "2026-05-01T00:00:00Z"),
        FeatureValue("income", "2200.0"),
        FeatureValue("children", "3"),
    ]
)
customers_group.update_feature_metadata(
    "income",
    description="Monthly income after tax",
    parameter_additions=[FeatureParameter("unit", "EUR")],
)
print("metadata:", customers_group.describe_feature_metadata("income")["Description"])
assert customers_group.list_parameters_for_feature_metadata("income") == [{"Key": "unit", "Value": "EUR"}]

# -- Find groups and features.
found = store.search(
    ResourceEnum.FEATURE_GROUP,
    [
        Filter("FeatureGroupName", "-v2", FilterOperatorEnum.CONTAINS),
        Filter("Tags.team", "risk", FilterOperatorEnum.EQUALS),
    ],
)
print("found:", [hit["FeatureGroup"]["FeatureGroupName"] for hit in found["Results"]])
assert [hit["FeatureGroup"]["FeatureGroupName"] for hit in found["Results"]] == ["customers-v2"]
found = store.search(
    ResourceEnum.FEATURE_METADATA,
    [
        Filter("Parameters.unit", "EUR", FilterOperatorEnum.EQUALS),
        Filter("FeatureGroupName", "customers-v2", FilterOperatorEnum.EQUALS),
    ],
)
assert [hit["FeatureMetadata"]["FeatureName"] for hit in found["Results"]] == ["income"]
assert customers_group.list_tags() == [{"Key": "team", "Value": "risk"}]

# -- Delete records. A soft delete keeps its time, so that nothing older comes back; a hard delete keeps nothing.
customers_group.delete_record("eve", "2026-03-01T00:00:00Z")
customers_group.delete_record("joe", "2026-03-01T00:00:00Z", deletion_mode=DeletionModeEnum.HARD_DELETE)
assert customers_group.get_record("eve") is None
assert customers_group.get_record("joe") is None

# -- SQL over all that was ever written. Deletes are rows as well, marked in the column is_deleted.
query = customers_group.athena_query()
query.run(
    f'SELECT customer_id, income, is_deleted FROM "{query.table_name}" ORDER BY updated_at, customer_id',
    output_location=results,
)
query.wait()
history = query.as_dataframe()
print(history.to_string())
assert len(history) == 9  # six rows, bob's second record and two deletes
assert history["is_deleted"].sum() == 2

# -- Training sets. First what the base knows of each loan, joined with the customers' records up to the moment of asking.
dataset, sql = (
    store.create_dataset(loans_group, output_path=results)
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
    store.create_dataset(
        asked,
        output_path=results,
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
assert newest["income.1"].to_dict() == {"ada": 3200.5, "bob": 2200.0}
assert newest.loc["bob", "children.1"] == 3

# A dataset can stay in the object store as well.
where, sql = store.create_dataset(customers_group, output_path=results).to_csv_file()
print("csv file:", where)
assert where.startswith(results)

# -- Delete the groups. Their history stays in the offline store.
customers_group.delete()
loans_group.delete()
while store.list_feature_groups(name_contains="-v2")["FeatureGroupSummaries"]:
    time.sleep(1)
print("done")
