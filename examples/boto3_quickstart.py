"""The record operations with plain boto3: what works against Amazon SageMaker Feature Store works here.

Start the service in one terminal, and run this in another:

    featurestore serve
    AWS_ENDPOINT_URL=http://127.0.0.1:8080 python examples/boto3_quickstart.py
"""

import os
import sys

import boto3

# boto3 reads this variable by itself. Without it, it would talk to Amazon.
if "AWS_ENDPOINT_URL" not in os.environ:
    sys.exit("set AWS_ENDPOINT_URL to the address that `featurestore serve` prints")

# A service without access keys takes any credentials; one that has some wants yours. boto3 finds them in the environment, and
# wants some to sign with in any case, and a region.
os.environ.setdefault("AWS_ACCESS_KEY_ID", "any")
os.environ.setdefault("AWS_SECRET_ACCESS_KEY", "any")
session = boto3.Session(region_name="us-east-1")
sagemaker = session.client("sagemaker")  # makes and describes feature groups
runtime = session.client("sagemaker-featurestore-runtime")  # writes and reads records

GROUP = "quickstart-customers"

# A feature group is a table of records. One feature identifies a record, one says when its values were true.
sagemaker.create_feature_group(
    FeatureGroupName=GROUP,
    RecordIdentifierFeatureName="customer_id",
    EventTimeFeatureName="updated_at",
    FeatureDefinitions=[
        {"FeatureName": "customer_id", "FeatureType": "String"},
        {"FeatureName": "updated_at", "FeatureType": "String"},
        {"FeatureName": "orders", "FeatureType": "Integral"},
        {"FeatureName": "spent", "FeatureType": "Fractional"},
    ],
    OnlineStoreConfig={"EnableOnlineStore": True},  # the newest record of each customer, in milliseconds
    OfflineStoreConfig={"S3StorageConfig": {"S3Uri": "s3://quickstart"}},  # all records there ever were, for training
)


def put(customer: str, updated_at: str, orders: int, spent: float) -> None:
    """Write one record. On the wire every value is text."""
    values = {"customer_id": customer, "updated_at": updated_at, "orders": str(orders), "spent": str(spent)}
    record = [{"FeatureName": name, "ValueAsString": value} for name, value in values.items()]
    runtime.put_record(FeatureGroupName=GROUP, Record=record)


def show(what: str, record: list[dict[str, str]]) -> None:
    print(what, {value["FeatureName"]: value["ValueAsString"] for value in record})


put("ada", "2026-01-01T00:00:00Z", orders=1, spent=20.0)
put("ada", "2026-03-01T00:00:00Z", orders=3, spent=74.5)
put("ada", "2026-02-01T00:00:00Z", orders=2, spent=45.0)  # arrives late: the newest event time stays the answer
put("bob", "2026-02-15T00:00:00Z", orders=1, spent=9.99)

answer = runtime.get_record(FeatureGroupName=GROUP, RecordIdentifierValueAsString="ada")
show("get ada:", answer["Record"])

# Up to 100 records of up to 100 groups at once. Who has no record is not in the answer.
wanted = {"FeatureGroupName": GROUP, "RecordIdentifiersValueAsString": ["ada", "bob", "nobody"], "FeatureNames": ["spent"]}
for found in runtime.batch_get_record(Identifiers=[wanted])["Records"]:
    show(f"batch get {found['RecordIdentifierValueAsString']}:", found["Record"])

# A delete has an event time as well. Online the record is gone, its history stays in the offline store.
runtime.delete_record(FeatureGroupName=GROUP, RecordIdentifierValueAsString="bob", EventTime="2026-03-01T00:00:00Z")
answer = runtime.get_record(FeatureGroupName=GROUP, RecordIdentifierValueAsString="bob")
print("bob after the delete:", answer.get("Record"))

sagemaker.delete_feature_group(FeatureGroupName=GROUP)  # so that this can be run again
