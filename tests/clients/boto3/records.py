"""Every operation on records, and each error it can answer with, through plain boto3."""

from __future__ import annotations

import os
import uuid
from typing import Any

import boto3
from calls import Calls, refused
from steps import step

calls = Calls()
sagemaker = boto3.client("sagemaker")
runtime = calls.watch(boto3.client("sagemaker-featurestore-runtime"))
names = [f"{kind}-{uuid.uuid4().hex[:8]}" for kind in ("standard", "tier2", "memory", "offline")]
standard, tier2, memory, offline = names


def record(**values: str | list[str]) -> list[dict[str, Any]]:
    return [
        {"FeatureName": name, "ValueAsString" if isinstance(value, str) else "ValueAsStringList": value}
        for name, value in values.items()
    ]


def values(answer: dict[str, Any]) -> dict[str, Any] | None:
    if "Record" not in answer:
        return None
    return {item["FeatureName"]: item.get("ValueAsString", item.get("ValueAsStringList")) for item in answer["Record"]}


def get(group: str, identifier: str, **members: Any) -> dict[str, Any] | None:
    return values(runtime.get_record(FeatureGroupName=group, RecordIdentifierValueAsString=identifier, **members))


with step("make groups of every kind"):
    features = [
        {"FeatureName": "id", "FeatureType": "String"},
        {"FeatureName": "at", "FeatureType": "String"},
        {"FeatureName": "amount", "FeatureType": "Fractional"},
        {"FeatureName": "count", "FeatureType": "Integral"},
    ]
    collections = [
        {"FeatureName": "words", "FeatureType": "String", "CollectionType": "List"},
        {"FeatureName": "numbers", "FeatureType": "Integral", "CollectionType": "Set"},
        {
            "FeatureName": "embedding",
            "FeatureType": "Fractional",
            "CollectionType": "Vector",
            "CollectionConfig": {"VectorConfig": {"Dimension": 3}},
        },
    ]
    kept = {"OfflineStoreConfig": {"S3StorageConfig": {"S3Uri": "s3://records/offline"}}}
    online: dict[str, Any] = {"EnableOnlineStore": True}
    options: dict[str, dict[str, Any]] = {
        standard: {"OnlineStoreConfig": online} | kept,
        tier2: {"OnlineStoreConfig": online | {"StorageType": "Standard_V2"}} | kept,
        memory: {"OnlineStoreConfig": online | {"StorageType": "InMemory"}},
        offline: kept,
    }
    arns = {}
    for name, option in options.items():
        arns[name] = sagemaker.create_feature_group(
            FeatureGroupName=name,
            RecordIdentifierFeatureName="id",
            EventTimeFeatureName="at",
            FeatureDefinitions=features + (collections if name == memory else []),
            **option,
        )["FeatureGroupArn"]
        assert sagemaker.describe_feature_group(FeatureGroupName=name)["FeatureGroupStatus"] == "Created"

with step("PutRecord, GetRecord: values come back as they were written"):
    runtime.put_record(FeatureGroupName=standard, Record=record(id="a", at="2026-01-02T00:00:00Z", amount="0.10", count="-7"))
    assert get(standard, "a") == {"id": "a", "at": "2026-01-02T00:00:00Z", "amount": "0.10", "count": "-7"}
    assert get(standard, "a", FeatureNames=["count", "amount"]) == {"amount": "0.10", "count": "-7"}
    assert get(standard, "nobody") is None

with step("an ARN instead of a name, and identifiers that a path or a query has to escape"):
    strange = "a b+c/d?e&f=g%h#ü€😀"
    runtime.put_record(FeatureGroupName=arns[standard], Record=record(id=strange, at="2026-01-02T00:00:00Z"))
    assert get(arns[standard], strange) == {"id": strange, "at": "2026-01-02T00:00:00Z"}
    runtime.delete_record(
        FeatureGroupName=arns[standard],
        RecordIdentifierValueAsString=strange,
        EventTime="2026-01-03T00:00:00Z",
        TargetStores=["OnlineStore", "OfflineStore"],
    )
    assert get(standard, strange) is None

with step("the newest event time wins, whatever comes last"):
    runtime.put_record(FeatureGroupName=standard, Record=record(id="a", at="2026-01-01T00:00:00Z", amount="9"))
    assert get(standard, "a") == {"id": "a", "at": "2026-01-02T00:00:00Z", "amount": "0.10", "count": "-7"}
    runtime.put_record(FeatureGroupName=standard, Record=record(id="a", at="2026-01-02T00:00:00.001Z", amount="9"))
    assert get(standard, "a") == {"id": "a", "at": "2026-01-02T00:00:00.001Z", "amount": "9"}

with step("TargetStores decides which store takes a record"):
    runtime.put_record(
        FeatureGroupName=standard, Record=record(id="history", at="2026-01-01T00:00:00Z"), TargetStores=["OfflineStore"]
    )
    assert get(standard, "history") is None
    runtime.put_record(FeatureGroupName=offline, Record=record(id="a", at="2026-01-01T00:00:00Z"))

with step("TtlDuration: ExpiresAt is the event time and the duration, and only given when asked for"):
    runtime.put_record(
        FeatureGroupName=standard,
        Record=record(id="t", at="2026-01-02T00:00:00Z"),
        TtlDuration={"Unit": "Weeks", "Value": 5200},
    )
    asked = {"FeatureGroupName": standard, "RecordIdentifierValueAsString": "t"}
    assert runtime.get_record(**asked, ExpirationTimeResponse="Enabled")["ExpiresAt"] == "2125-08-31T00:00:00Z"
    assert "ExpiresAt" not in runtime.get_record(**asked, ExpirationTimeResponse="Disabled")
    assert "ExpiresAt" not in runtime.get_record(**asked)
    runtime.put_record(
        FeatureGroupName=standard, Record=record(id="t", at="2026-01-03T00:00:00Z"), TtlDuration={"Unit": "Seconds", "Value": 1}
    )
    assert get(standard, "t") is None

with step("deletes: a soft one keeps its time, a hard one nothing"):
    for mode in ("SoftDelete", "HardDelete"):
        runtime.put_record(FeatureGroupName=standard, Record=record(id=mode, at="2026-01-02T00:00:00Z"))
        runtime.delete_record(
            FeatureGroupName=standard, RecordIdentifierValueAsString=mode, EventTime="2026-01-03T00:00:00Z", DeletionMode=mode
        )
        assert get(standard, mode) is None
        runtime.put_record(FeatureGroupName=standard, Record=record(id=mode, at="2026-01-01T00:00:00Z"))
    assert get(standard, "SoftDelete") is None
    assert get(standard, "HardDelete") == {"id": "HardDelete", "at": "2026-01-01T00:00:00Z"}

with step("BatchGetRecord over groups, by name and by ARN; who has no record is not in the answer"):
    runtime.put_record(FeatureGroupName=tier2, Record=record(id="b", at="2026-01-02T00:00:00Z", amount="1", count="1"))
    answer = runtime.batch_get_record(
        Identifiers=[
            {"FeatureGroupName": standard, "RecordIdentifiersValueAsString": ["a", "nobody"], "FeatureNames": ["amount"]},
            {"FeatureGroupName": arns[tier2], "RecordIdentifiersValueAsString": ["b"]},
            {"FeatureGroupName": "no-such-group", "RecordIdentifiersValueAsString": ["c"]},
        ]
    )
    found = [(item["FeatureGroupName"], item["RecordIdentifierValueAsString"], values(item)) for item in answer["Records"]]
    assert found == [
        (standard, "a", {"amount": "9"}),
        (arns[tier2], "b", {"id": "b", "at": "2026-01-02T00:00:00Z", "amount": "1", "count": "1"}),
    ], found
    (error,) = answer["Errors"]
    assert (error["FeatureGroupName"], error["ErrorCode"]) == ("no-such-group", "ResourceNotFound"), error
    assert answer["UnprocessedIdentifiers"] == []

with step("UpdateRecord writes some features and leaves the others"):
    target = {"FeatureGroupName": tier2, "RecordIdentifierValueAsString": "b"}
    runtime.update_record(**target, Features=record(amount="2.5"))
    assert get(tier2, "b") == {"id": "b", "at": "2026-01-02T00:00:00Z", "amount": "2.5", "count": "1"}
    runtime.update_record(
        FeatureGroupName=arns[tier2],
        RecordIdentifierValueAsString="b",
        Features=record(at="2026-01-03T00:00:00Z", count="2"),
        TtlDuration={"Unit": "Weeks", "Value": 5200},
    )
    assert get(tier2, "b") == {"id": "b", "at": "2026-01-03T00:00:00Z", "amount": "2.5", "count": "2"}
    answer = runtime.get_record(**target, ExpirationTimeResponse="Enabled")
    assert answer["ExpiresAt"] == "2125-09-01T00:00:00Z", answer

with step("collections in memory: List keeps order and repeats, Vector its dimension"):
    runtime.put_record(
        FeatureGroupName=memory,
        Record=record(
            id="c", at="2026-01-02T00:00:00Z", words=["z", "a", "z"], numbers=["3", "1"], embedding=["0.5", "25", "-1e-3"]
        ),
    )
    got = get(memory, "c")
    assert got is not None
    assert got["words"] == ["z", "a", "z"]
    assert sorted(got["numbers"]) == ["1", "3"]
    assert got["embedding"] == ["0.5", "25", "-1e-3"]
    runtime.update_record(FeatureGroupName=memory, RecordIdentifierValueAsString="c", Features=record(words=["only"]))
    got = get(memory, "c", FeatureNames=["words", "embedding"])
    assert got == {"words": ["only"], "embedding": ["0.5", "25", "-1e-3"]}, got

with step("BatchWriteRecord: one faulty entry fails alone, and comes back exactly as it was sent"):
    good = [{"FeatureGroupName": tier2, "Record": record(id=f"w{n}", at="2026-01-02T00:00:00Z", count=str(n))} for n in range(23)]
    good.append({"FeatureGroupName": arns[standard], "Record": record(id="w", at="2026-01-02T00:00:00Z")})
    faulty = {"FeatureGroupName": tier2, "Record": record(at="2026-01-02T00:00:00Z"), "TargetStores": ["OnlineStore"]}
    answer = runtime.batch_write_record(Entries=[faulty, *good])
    assert [(error["Entry"], error["ErrorCode"]) for error in answer["Errors"]] == [(faulty, "ValidationError")], answer
    assert answer["Errors"][0]["ErrorMessage"]
    assert answer["UnprocessedEntries"] == []
    assert get(tier2, "w22") == {"id": "w22", "at": "2026-01-02T00:00:00Z", "count": "22"}
    assert get(standard, "w") == {"id": "w", "at": "2026-01-02T00:00:00Z"}

with step("ListRecords page by page, with and without what was softly deleted"):
    pages = list(runtime.get_paginator("list_records").paginate(FeatureGroupName=tier2, PaginationConfig={"PageSize": 10}))
    listed = [identifier for page in pages for identifier in page["RecordIdentifiers"]]
    assert sorted(listed) == sorted(["b", *(f"w{n}" for n in range(23))]), listed
    assert all(len(page["RecordIdentifiers"]) <= 10 for page in pages)
    assert "NextToken" not in pages[-1]
    runtime.delete_record(FeatureGroupName=tier2, RecordIdentifierValueAsString="w0", EventTime="2026-01-03T00:00:00Z")
    assert "w0" not in runtime.list_records(FeatureGroupName=arns[tier2])["RecordIdentifiers"]
    assert "w0" in runtime.list_records(FeatureGroupName=tier2, IncludeSoftDeletedRecords=True)["RecordIdentifiers"]

with step("ValidationError (400) from every operation, with the modelled exception class"):
    named = {"FeatureGroupName": standard}
    record_a = {**named, "RecordIdentifierValueAsString": "a"}
    refused(runtime.put_record, "ValidationError", 400, **named, Record=record(id="a", at="today"))
    refused(runtime.put_record, "ValidationError", 400, **named, Record=record(id="a", at="2026-01-09T00:00:00Z", no_such="1"))
    refused(runtime.put_record, "ValidationError", 400, **named, Record=record(id="a", at="2026-01-09T00:00:00Z", count="1.5"))
    refused(runtime.put_record, "ValidationError", 400, FeatureGroupName="bad name!", Record=record(id="a"))
    many = {"TargetStores": ["Nope"], "Record": record(id="a", at="2026-01-09T00:00:00Z")}
    refused(runtime.put_record, "ValidationError", 400, **named, **many)
    refused(runtime.get_record, "ValidationError", 400, **record_a, FeatureNames=["no_such"])
    refused(runtime.get_record, "ValidationError", 400, FeatureGroupName=offline, RecordIdentifierValueAsString="a")
    refused(runtime.delete_record, "ValidationError", 400, **record_a, EventTime="today")
    stale = {"EventTime": "2026-01-01T00:00:00Z", "DeletionMode": "HardDelete"}
    refused(runtime.delete_record, "ValidationError", 400, **record_a, **stale)
    refused(runtime.update_record, "ValidationError", 400, **record_a, Features=record(amount="1"))  # not of this tier
    refused(runtime.update_record, "ValidationError", 400, **target, Features=record(count="n/a"))
    refused(runtime.update_record, "ValidationError", 400, **target, Features=record(count="1"), TargetStores=["OfflineStore"])
    refused(runtime.list_records, "ValidationError", 400, **named, MaxResults=101)
    refused(runtime.list_records, "ValidationError", 400, **named, NextToken="not one of ours")
    too_many = {"FeatureGroupName": standard, "RecordIdentifiersValueAsString": [str(n) for n in range(101)]}
    refused(runtime.batch_get_record, "ValidationError", 400, Identifiers=[too_many])
    refused(runtime.batch_write_record, "ValidationError", 400, Entries=[good[0]] * 26)
    error = refused(runtime.put_record, "ValidationError", 400, **named, Record=record(id="a"))
    assert isinstance(error, runtime.exceptions.ValidationError)
    assert "at" in error.response["Message"], error.response

with step("ResourceNotFound (404) for a group that is not there, and UpdateRecord for a record that is not"):
    absent = {"FeatureGroupName": "no-such-group"}
    absent_a = {**absent, "RecordIdentifierValueAsString": "a"}
    refused(runtime.put_record, "ResourceNotFound", 404, **absent, Record=record(id="a"))
    error = refused(runtime.get_record, "ResourceNotFound", 404, **absent_a)
    assert isinstance(error, runtime.exceptions.ResourceNotFound)
    assert "no-such-group" in error.response["Message"], error.response
    refused(runtime.delete_record, "ResourceNotFound", 404, **absent_a, EventTime="2026-01-01T00:00:00Z")
    refused(runtime.update_record, "ResourceNotFound", 404, **absent_a, Features=record(count="1"))
    nobody = {"FeatureGroupName": tier2, "RecordIdentifierValueAsString": "nobody"}
    refused(runtime.update_record, "ResourceNotFound", 404, **nobody, Features=record(count="1"))
    refused(runtime.list_records, "ResourceNotFound", 404, **absent)
with step("ConflictException (409) for an update that is older than the record"):
    old = record(at="2026-01-01T00:00:00Z", count="1")
    error = refused(runtime.update_record, "ConflictException", 409, **target, Features=old)
    assert isinstance(error, runtime.exceptions.ConflictException)


everywhere = {"ValidationError"}
wanted = {
    "PutRecord": everywhere | {"ResourceNotFound"},
    "GetRecord": everywhere | {"ResourceNotFound"},
    "DeleteRecord": everywhere | {"ResourceNotFound"},
    "UpdateRecord": everywhere | {"ResourceNotFound", "ConflictException"},
    "ListRecords": everywhere | {"ResourceNotFound"},
    "BatchGetRecord": everywhere,
    "BatchWriteRecord": everywhere,
}

if "READER_ACCESS_KEY_ID" in os.environ:
    with step("AccessForbidden (403) from every operation that a key has no right to"):
        weak = {
            "aws_access_key_id": os.environ["READER_ACCESS_KEY_ID"],
            "aws_secret_access_key": os.environ["READER_SECRET_ACCESS_KEY"],
        }
        reader = calls.watch(boto3.client("sagemaker-featurestore-runtime", **weak))
        refused(reader.put_record, "AccessForbidden", 403, **named, Record=record(id="a", at="2026-01-09T00:00:00Z"))
        refused(reader.delete_record, "AccessForbidden", 403, **record_a, EventTime="2026-01-09T00:00:00Z")
        refused(reader.update_record, "AccessForbidden", 403, **target, Features=record(count="1"))
        refused(reader.batch_write_record, "AccessForbidden", 403, Entries=good[:1])
        assert reader.get_record(**record_a)["Record"]
        assert reader.list_records(FeatureGroupName=tier2)["RecordIdentifiers"]
        assert reader.batch_get_record(Identifiers=[{**named, "RecordIdentifiersValueAsString": ["a"]}])["Records"]
        for operation in ("PutRecord", "DeleteRecord", "UpdateRecord", "BatchWriteRecord"):
            wanted[operation] = wanted[operation] | {"AccessForbidden"}

    with step("a wrong secret and an unknown key are refused"):
        wrong = boto3.client("sagemaker-featurestore-runtime", **weak | {"aws_secret_access_key": "wrong"})
        refused(wrong.get_record, "InvalidSignatureException", 403, **record_a)
        unknown = boto3.client("sagemaker-featurestore-runtime", **weak | {"aws_access_key_id": "AKIAUNKNOWN"})
        refused(unknown.get_record, "UnrecognizedClientException", 403, **record_a)

with step("no operation of the service model and no error of the contract was left out"):
    assert set(wanted) == set(runtime.meta.service_model.operation_names)
    calls.require(wanted)

for name in names:
    sagemaker.delete_feature_group(FeatureGroupName=name)
