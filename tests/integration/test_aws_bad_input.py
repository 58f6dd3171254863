"""Bad requests, written byte by byte: each gets a clear error that names the field, and changes nothing.

boto3 would refuse many of these itself; other clients, proxies and people with curl do not.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.integration.conftest import FEATURES, OFFLINE, ONLINE, Http, Reply, definitions, record, unique_name
from tests.service import Service

CreateGroup = Callable[..., str]
AT = "2024-05-01T00:00:00Z"
KEY = "known"
JSON = {"Content-Type": "application/json"}
ARROW = {"Content-Type": "application/vnd.apache.arrow.stream"}
PARQUET = {"Content-Type": "application/vnd.apache.parquet"}
MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One request and what must come back. `{group}`, `{online}` and `{offline}` in path and body are real groups."""

    name: str
    method: str
    path: str
    body: bytes | str | object | None
    words: tuple[str, ...]
    code: str = "ValidationError"
    status: int = 400
    headers: dict[str, str] = field(default_factory=dict)


def put(name: str, body: object, *words: str, group: str = "{group}", **more: Any) -> Case:
    return Case(f"put {name}", "PUT", f"/FeatureGroup/{group}", body, words, **more)


def put_record(name: str, *words: str, members: dict[str, Any] | None = None, **values: Any) -> Case:
    """A PutRecord of the known record, later than it is, with some values changed; None leaves one out."""
    wanted = {"id": KEY, "at": "2024-05-02T00:00:00Z"} | values
    pairs = record(**{feature: value for feature, value in wanted.items() if value is not None})
    return put(name, {"Record": pairs} | (members or {}), *words)


def get(name: str, query: str, *words: str, group: str = "{group}", **more: Any) -> Case:
    return Case(f"get {name}", "GET", f"/FeatureGroup/{group}?{query}", None, words, **more)


def delete(name: str, query: str, *words: str, group: str = "{group}", **more: Any) -> Case:
    known = f"RecordIdentifierValueAsString={KEY}&" if "RecordIdentifier" not in query else ""
    return Case(f"delete {name}", "DELETE", f"/FeatureGroup/{group}?{known}{query}", None, words, **more)


def batch(name: str, body: object, *words: str) -> Case:
    return Case(f"batch get {name}", "POST", "/BatchGetRecord", body, words)


def update(name: str, body: object, *words: str) -> Case:
    return Case(f"update {name}", "POST", "/FeatureGroup/{group}/Record", body, words)


def listing(name: str, body: object, *words: str, group: str = "{group}", **more: Any) -> Case:
    return Case(f"list {name}", "POST", f"/FeatureGroup/{group}/ListRecords", body, words, **more)


def batch_write(name: str, body: object, *words: str) -> Case:
    return Case(f"batch write {name}", "POST", "/BatchWriteRecord", body, words)


def control(operation: str, name: str, body: object, *words: str, code: str = "ValidationException") -> Case:
    headers = {"X-Amz-Target": f"SageMaker.{operation}", "Content-Type": "application/x-amz-json-1.1"}
    return Case(f"{operation} {name}", "POST", "/", body, words, code=code, headers=headers)


def create(name: str, changes: dict[str, Any], *words: str, code: str = "ValidationException") -> Case:
    """A CreateFeatureGroup that would be right without the changes; None leaves a member out."""
    request = {
        "FeatureGroupName": "must-not-appear",
        "RecordIdentifierFeatureName": "id",
        "EventTimeFeatureName": "at",
        "FeatureDefinitions": FEATURES,
        "OnlineStoreConfig": ONLINE,
        "OfflineStoreConfig": OFFLINE,
    } | changes
    return control(
        "CreateFeatureGroup", name, {key: value for key, value in request.items() if value is not None}, *words, code=code
    )


def offline(**members: Any) -> dict[str, Any]:
    return {"OfflineStoreConfig": OFFLINE | members}


def uri(text: Any) -> dict[str, Any]:
    return {"OfflineStoreConfig": {"S3StorageConfig": {"S3Uri": text}}}


def features(**types: Any) -> dict[str, Any]:
    return {"FeatureDefinitions": definitions(**types)}


def sql(name: str, body: object, *words: str, **more: Any) -> Case:
    return Case(f"sql {name}", "POST", "/v1/sql", body, words, headers=JSON, **more)


def unknown(name: str, method: str, path: str, *words: str, body: Any = None, **more: Any) -> Case:
    return Case(f"unknown {name}", method, path, body, words or (method, path), "UnknownOperationException", 404, **more)


def token(*parts: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()


RAW_RECORD = json.dumps({"Record": record(id=KEY, at="2024-05-02T00:00:00Z", note="@")})
DEEP = "[" * 100_000
FEATURE = record(note="new")
NAMED = {"FeatureGroupName": "{group}"}
SURROGATE = RAW_RECORD.replace("@", r"\ud800")
TOO_MANY = definitions(id="String", at="String", **{f"f{number}": "String" for number in range(2499)})

PUT_VALUES = [
    put_record("text for a Fractional", "Record.amount", "Fractional", "'n/a'", amount="n/a"),
    put_record("NaN", "Record.amount", "Fractional", "'NaN'", amount="NaN"),
    put_record("Infinity", "Record.amount", "Fractional", "'-Infinity'", amount="-Infinity"),
    put_record("a double beyond all doubles", "Record.amount", "Fractional", "'1e309'", amount="1e309"),
    put_record("a hexadecimal number", "Record.amount", "Fractional", amount="0x10"),
    put_record("digits of another script", "Record.count", "Integral", count="\u0661"),
    put_record("underscores in a number", "Record.count", "Integral", "'1_000'", count="1_000"),
    put_record("a fraction for an Integral", "Record.count", "Integral", "'1.0'", count="1.0"),
    put_record("an integer beyond 64 bits", "Record.count", "Integral", "9223372036854775808", count="9223372036854775808"),
    put_record("an integer below 64 bits", "Record.count", "Integral", count="-9223372036854775809"),
    put_record("spaces around a number", "Record.count", "Integral", "' 1'", count=" 1"),
    put_record("an empty number", "Record.count", "Integral", count=""),
    put_record("an unknown feature", "Record[2].FeatureName", "a feature of", "'nope'", nope="1"),
    put_record("a feature in another case", "Record[2].FeatureName", "'NOTE'", NOTE="1"),
    put_record("a reserved feature", "Record[2].FeatureName", "'is_deleted'", is_deleted="true"),
    put_record("no identifier", "Record", "identifier feature 'id'", id=None),
    put_record("no event time", "Record", "event time feature 'at'", at=None),
    put_record("an empty identifier", "Record.id", "non-empty", id=""),
    put_record("an empty event time", "Record.at", "ISO-8601", at=""),
    put_record("an identifier too long", "Record.id", "2048 bytes", id="x" * 2049),
    put_record("an identifier of too many bytes", "Record.id", "2048 bytes", id="ü" * 1025),
    put_record("a value too long", "Record.note", "358400 characters", note="x" * 358_401),
    put_record("a record too large", "Record", "358400 bytes", note="ü" * 200_000),
    put_record("a naive time", "Record.at", "ISO-8601 UTC", "'2024-05-02T00:00:00'", at="2024-05-02T00:00:00"),
    put_record("a time with an offset", "Record.at", "ISO-8601 UTC", at="2024-05-02T00:00:00+01:00"),
    put_record("a date", "Record.at", "ISO-8601", "'2024-05-02'", at="2024-05-02"),
    put_record("a time with a space", "Record.at", "ISO-8601", at="2024-05-02 00:00:00Z"),
    put_record("February 30", "Record.at", "ISO-8601", "2024-02-30", at="2024-02-30T00:00:00Z"),
    put_record("February 29 of no leap year", "Record.at", "ISO-8601", at="2023-02-29T00:00:00Z"),
    put_record("hour 24", "Record.at", "ISO-8601", at="2024-05-02T24:00:00Z"),
    put_record("a leap second", "Record.at", "ISO-8601", at="2016-12-31T23:59:60Z"),
    put_record("year 10000", "Record.at", "ISO-8601", at="10000-01-01T00:00:00Z"),
    put_record("nanoseconds that can't be kept", "Record.at", "ISO-8601", at="2024-05-02T00:00:00.123456789Z"),
    put_record("seconds since 1970 for a text time", "Record.at", "ISO-8601", "'1714521600'", at="1714521600"),
    put_record("a list for a scalar", "ValueAsStringList", "'note'", note=["a"]),
    put_record(
        "a bad TargetStores", "TargetStores[0]", "OnlineStore, OfflineStore", "'Nope'", members={"TargetStores": ["Nope"]}
    ),
    put_record("no TargetStores", "TargetStores", "one or two", members={"TargetStores": []}),
    put_record("the same store twice", "TargetStores", "different", members={"TargetStores": ["OnlineStore", "OnlineStore"]}),
    put_record("a TargetStores text", "TargetStores", "an array", members={"TargetStores": "OnlineStore"}),
    put_record("a bad TTL unit", "TtlDuration.Unit", "Weeks", "'Years'", members={"TtlDuration": {"Unit": "Years", "Value": 1}}),
    put_record("a TTL of 0", "TtlDuration.Value", "from 1", "0", members={"TtlDuration": {"Unit": "Days", "Value": 0}}),
    put_record("a negative TTL", "TtlDuration.Value", "from 1", "-1", members={"TtlDuration": {"Unit": "Days", "Value": -1}}),
    put_record("a TTL beyond 64 bits", "TtlDuration.Value", members={"TtlDuration": {"Unit": "Days", "Value": 10**30}}),
    put_record(
        "a TTL with a fraction", "TtlDuration.Value", "an integer", members={"TtlDuration": {"Unit": "Days", "Value": 1.5}}
    ),
    put_record("a TTL text", "TtlDuration.Value", "an integer", members={"TtlDuration": {"Unit": "Days", "Value": "1"}}),
    put_record("a TTL without its unit", "TtlDuration.Unit", "required", members={"TtlDuration": {"Value": 1}}),
]

PUT_BODIES = [
    put("nothing", "", "body", "JSON"),
    put("no JSON", "{Record:[]}", "body", "JSON"),
    put("half a JSON", RAW_RECORD[:-2], "body", "JSON"),
    put("two JSONs", RAW_RECORD * 2, "body", "JSON"),
    put("an array", "[]", "body", "an object", "an array"),
    put("null", "null", "body", "an object"),
    put("no Record", "{}", "Record", "required"),
    put("a null Record", {"Record": None}, "Record", "an array", "null"),
    put("an empty Record", {"Record": []}, "Record", "at least one"),
    put("a Record that is an object", {"Record": {"id": "x"}}, "Record", "an array", "an object"),
    put("a feature that is a text", {"Record": ["id"]}, "Record[0]", "an object"),
    put("a feature without a name", {"Record": [{"ValueAsString": "x"}]}, "Record[0].FeatureName", "required"),
    put("a null name", {"Record": [{"FeatureName": None}]}, "Record[0].FeatureName", "a string", "null"),
    put("a number for a text", {"Record": [{"FeatureName": "id", "ValueAsString": 5}]}, "Record[0].ValueAsString", "a string"),
    put(
        "a null element",
        {"Record": [{"FeatureName": "note", "ValueAsStringList": ["a", None]}]},
        "Record[0].ValueAsStringList[1]",
        "a string",
        "null",
    ),
    put(
        "both kinds of value",
        {"Record": [{"FeatureName": "id", "ValueAsString": "x", "ValueAsStringList": ["x"]}]},
        "Record[0]",
        "not both",
        "'id'",
    ),
    put("a feature twice", {"Record": record(id=KEY, at=AT) + record(id=KEY)}, "Record[2].FeatureName", "once", "'id'"),
    put("invalid UTF-8", RAW_RECORD.replace("@", "\xff").encode("latin-1"), "body", "UTF-8"),
    put("a lone surrogate", SURROGATE, "body", "JSON in UTF-8"),
    put("a raw control character", RAW_RECORD.replace("@", "\x01"), "body", "JSON"),
    put("a byte order mark", b"\xef\xbb\xbf" + RAW_RECORD.encode(), "body", "JSON"),
    put("UTF-16", RAW_RECORD.encode("utf-16"), "body", "JSON"),
    put("a NaN", '{"Record":[],"TtlDuration":{"Unit":"Days","Value":NaN}}', "body", "JSON"),
    put("a number that overflows", '{"Record":[],"TtlDuration":{"Unit":"Days","Value":1e999}}', "TtlDuration.Value", "range"),
    put("deep nesting where it is ignored", '{"Ignored":' + DEEP + "}", "body", "nesting"),
    put("deep nesting where it is not", '{"Record":' + DEEP + "}", "Record[0]", "an object"),
    put("a body too large", b" " * (16 * MIB) + RAW_RECORD.encode(), "body", "16777216 bytes"),
]

GET_AND_DELETE = [
    get("no identifier", "", "RecordIdentifierValueAsString", "required"),
    get("two identifiers", "RecordIdentifierValueAsString=a&RecordIdentifierValueAsString=b", "RecordIdentifier", "once", "'b'"),
    get("an empty identifier", "RecordIdentifierValueAsString=", "RecordIdentifierValueAsString", "non-empty"),
    get("an identifier too long", f"RecordIdentifierValueAsString={'x' * 2049}", "RecordIdentifierValueAsString", "2048 bytes"),
    get("a very long identifier", f"RecordIdentifierValueAsString={'x' * 60_000}", "RecordIdentifierValueAsString", "2048"),
    get("invalid UTF-8", "RecordIdentifierValueAsString=%ff%fe", "query", "UTF-8"),
    get("an encoded surrogate", "RecordIdentifierValueAsString=%ED%A0%80", "query", "UTF-8"),
    get(
        "an unknown feature", f"RecordIdentifierValueAsString={KEY}&FeatureName=nope", "FeatureNames[0]", "a feature of", "'nope'"
    ),
    get("an empty feature", f"RecordIdentifierValueAsString={KEY}&FeatureName=", "FeatureNames[0]"),
    get(
        "a bad ExpirationTimeResponse",
        f"RecordIdentifierValueAsString={KEY}&ExpirationTimeResponse=yes",
        "ExpirationTimeResponse",
        "Enabled or Disabled",
        "'yes'",
    ),
    get("an offline group", "RecordIdentifierValueAsString=x", "FeatureGroupName", "online store", group="{offline}"),
    get("an unknown group", "RecordIdentifierValueAsString=x", "'nope'", group="nope", code="ResourceNotFound", status=404),
    get(
        "an ARN of another account",
        "RecordIdentifierValueAsString=x",
        "111122223333",
        group=quote("arn:aws:sagemaker:us-east-1:111122223333:feature-group/{group}", safe="{}"),
        code="ResourceNotFound",
        status=404,
    ),
    *(
        get(f"a group named {shown}", "RecordIdentifierValueAsString=x", "FeatureGroupName", "name or ARN", group=name)
        for shown, name in (
            ("dots", ".."),
            ("dots and an encoded slash", "..%2F..%2Fetc"),
            ("an encoded slash", "a%2Fb"),
            ("a quote", "%22"),
            ("SQL", "x%27%20OR%201%3D1%20--"),
            ("a NUL", "a%00b"),
            ("a line feed", "a%0A"),
            ("65 letters", "x" * 65),
            ("another resource", quote("arn:aws:sagemaker:us-east-1:000000000000:endpoint/x", safe="")),
            ("a trailing hyphen", "a-"),
            ("full-width letters", quote("\uff41")),
        )
    ),
    get("a group of invalid UTF-8", "RecordIdentifierValueAsString=x", "path", "UTF-8", group="%ff"),
    delete("no event time", "", "EventTime", "required"),
    delete("an empty event time", "EventTime=", "EventTime", "ISO-8601"),
    delete("a naive event time", "EventTime=2024-05-02T00:00:00", "EventTime", "ISO-8601 UTC"),
    delete("a plus read as a plus", "EventTime=2024-05-02T00:00:00+00:00", "EventTime", "ISO-8601"),
    delete("two event times", f"EventTime={AT}&EventTime={AT}", "EventTime", "once"),
    delete(
        "a bad mode", "EventTime=2024-05-02T00:00:00Z&DeletionMode=Hard", "DeletionMode", "SoftDelete or HardDelete", "'Hard'"
    ),
    delete("a bad store", "EventTime=2024-05-02T00:00:00Z&TargetStores=Nope", "TargetStores", "'Nope'"),
    delete(
        "a store twice",
        "EventTime=2024-05-02T00:00:00Z&TargetStores=OnlineStore&TargetStores=OnlineStore",
        "TargetStores",
        "different",
    ),
    delete(
        "a store that the group lacks",
        "EventTime=2024-05-02T00:00:00Z&TargetStores=OfflineStore",
        "TargetStores",
        "OnlineStore",
        group="{online}",
    ),
    delete("a stale hard delete", f"EventTime={AT}&DeletionMode=HardDelete", "EventTime", "later", AT),
    delete("an empty identifier", f"RecordIdentifierValueAsString=&EventTime={AT}", "RecordIdentifierValueAsString"),
    delete("an unknown group", f"EventTime={AT}", "'nope'", group="nope", code="ResourceNotFound", status=404),
]

ONE = {"FeatureGroupName": "{group}", "RecordIdentifiersValueAsString": [KEY]}
BATCH = [
    batch("nothing", "", "body", "JSON"),
    batch("no Identifiers", {}, "Identifiers", "required"),
    batch("empty Identifiers", {"Identifiers": []}, "Identifiers", "1 to 100"),
    batch("too many groups", {"Identifiers": [ONE] * 101}, "Identifiers", "1 to 100", "101"),
    batch("no group", {"Identifiers": [{"RecordIdentifiersValueAsString": ["x"]}]}, "Identifiers[0].FeatureGroupName"),
    batch("a null group", {"Identifiers": [ONE | {"FeatureGroupName": None}]}, "Identifiers[0].FeatureGroupName", "a string"),
    batch("a bad group", {"Identifiers": [ONE, ONE | {"FeatureGroupName": "../x"}]}, "Identifiers[1].FeatureGroupName", "../x"),
    batch(
        "no identifiers",
        {"Identifiers": [ONE | {"RecordIdentifiersValueAsString": []}]},
        "Identifiers[0].RecordIdentifiersValueAsString",
        "1 to 100",
    ),
    batch(
        "too many identifiers",
        {"Identifiers": [ONE | {"RecordIdentifiersValueAsString": ["x"] * 101}]},
        "Identifiers[0].RecordIdentifiersValueAsString",
        "101",
    ),
    batch(
        "a number for an identifier",
        {"Identifiers": [ONE | {"RecordIdentifiersValueAsString": [1]}]},
        "Identifiers[0].RecordIdentifiersValueAsString[0]",
        "a string",
    ),
    batch("no feature names", {"Identifiers": [ONE | {"FeatureNames": []}]}, "Identifiers[0].FeatureNames", "at least one"),
    batch("a bad flag", {"Identifiers": [ONE], "ExpirationTimeResponse": "On"}, "ExpirationTimeResponse", "'On'"),
]

CREATE = [
    *(
        create(f"without {name}", {name: None}, name, "required")
        for name in ("FeatureGroupName", "RecordIdentifierFeatureName", "EventTimeFeatureName", "FeatureDefinitions")
    ),
    create("a null name", {"FeatureGroupName": 5}, "FeatureGroupName", "a string"),
    create("an empty name", {"FeatureGroupName": ""}, "FeatureGroupName", "1 to 64"),
    create("a name too long", {"FeatureGroupName": "x" * 65}, "FeatureGroupName", "1 to 64"),
    create("dots for a name", {"FeatureGroupName": "../../etc"}, "FeatureGroupName", "letters", "'../../etc'"),
    create("a quote in a name", {"FeatureGroupName": "a'b"}, "FeatureGroupName", "letters"),
    create("SQL for a name", {"FeatureGroupName": '"; DROP TABLE feature_group'}, "FeatureGroupName", "letters"),
    create("a NUL in a name", {"FeatureGroupName": "a\x00b"}, "FeatureGroupName", "letters"),
    create("a line feed behind a name", {"FeatureGroupName": "a\n"}, "FeatureGroupName", "letters"),
    control("CreateFeatureGroup", "a lone surrogate in a name", r'{"FeatureGroupName":"\ud800"}', "body", "JSON in UTF-8"),
    create("the name of another group in another case", {"FeatureGroupName": "{GROUP}"}, "case", code="ResourceInUse"),
    create("a taken name", {"FeatureGroupName": "{group}"}, "exists", code="ResourceInUse"),
    create("no store", {"OnlineStoreConfig": None, "OfflineStoreConfig": None}, "OnlineStoreConfig, OfflineStoreConfig", "one"),
    create(
        "a disabled store alone", {"OnlineStoreConfig": {"EnableOnlineStore": False}, "OfflineStoreConfig": None}, "at least one"
    ),
    create(
        "a text for a flag",
        {"OnlineStoreConfig": {"EnableOnlineStore": "true"}},
        "OnlineStoreConfig.EnableOnlineStore",
        "boolean",
    ),
    create("an identifier that is no feature", {"RecordIdentifierFeatureName": "x"}, "RecordIdentifierFeatureName", "'x'"),
    create("an event time that is no feature", {"EventTimeFeatureName": "x"}, "EventTimeFeatureName", "'x'"),
    create("an Integral event time", {"EventTimeFeatureName": "count"}, "EventTimeFeatureName", "String or Fractional"),
    create("one feature for both", {"EventTimeFeatureName": "id"}, "EventTimeFeatureName", "another feature"),
    create("no features", {"FeatureDefinitions": []}, "FeatureDefinitions", "1 to 2500"),
    create("too many features", {"FeatureDefinitions": TOO_MANY}, "FeatureDefinitions", "1 to 2500", "2501"),
    create(
        "a bad type",
        features(id="String", at="String", x="Boolean"),
        "FeatureDefinitions[2].FeatureType",
        "Fractional",
        "'Boolean'",
    ),
    create("a null type", features(id="String", at=None), "FeatureDefinitions[1].FeatureType", "a string"),
    create(
        "a feature without a type",
        {"FeatureDefinitions": [{"FeatureName": "id"}]},
        "FeatureDefinitions[0].FeatureType",
        "required",
    ),
    *(
        create(
            f"the reserved feature {name}", features(id="String", at="String", **{name: "String"}), "FeatureDefinitions[2]", name
        )
        for name in ("is_deleted", "write_time", "api_invocation_time", "Is_Deleted")
    ),
    create("a feature twice", {"FeatureDefinitions": FEATURES + FEATURES[:1]}, "FeatureDefinitions[5].FeatureName", "'id'"),
    create("features that differ by case", features(id="String", at="String", ID="String"), "FeatureDefinitions[2]", "case"),
    *(
        create(
            f"a feature named {name!r}",
            features(id="String", at="String", **{name: "String"}),
            "FeatureDefinitions[2].FeatureName",
        )
        for name in ("", "_x", "x-", "a.b", "a b", "a\x00", 'a"b', "x" * 65, "ü")
    ),
    create(
        "a collection without InMemory",
        {"FeatureDefinitions": [*FEATURES, {"FeatureName": "l", "FeatureType": "String", "CollectionType": "List"}]},
        "FeatureDefinitions[5].CollectionType",
        "InMemory",
    ),
    create(
        "a bad storage type",
        {"OnlineStoreConfig": ONLINE | {"StorageType": "Disk"}},
        "OnlineStoreConfig.StorageType",
        "InMemory",
        "'Disk'",
    ),
    create("half a TTL", {"OnlineStoreConfig": ONLINE | {"TtlDuration": {"Unit": "Days"}}}, "TtlDuration", "Unit and Value"),
    create(
        "a TTL of 0",
        {"OnlineStoreConfig": ONLINE | {"TtlDuration": {"Unit": "Days", "Value": 0}}},
        "TtlDuration.Value",
        "at least 1",
    ),
    create(
        "a bad key",
        {"OnlineStoreConfig": ONLINE | {"SecurityConfig": {"KmsKeyId": "a b"}}},
        "OnlineStoreConfig.SecurityConfig.KmsKeyId",
    ),
    create("no S3Uri", {"OfflineStoreConfig": {"S3StorageConfig": {}}}, "OfflineStoreConfig.S3StorageConfig.S3Uri", "required"),
    *(
        create(f"the S3Uri {text!r}", uri(text), "OfflineStoreConfig.S3StorageConfig.S3Uri")
        for text in (
            "",
            "s3://",
            "/etc/passwd",
            "file:///etc",
            "https://bucket/prefix",
            "s3://../../etc",
            "s3://bucket/../../etc",
            "s3://bucket/a/../../b",
            "s3://bucket/./a",
            "s3://bucket//a",
            "s3://_writer/a",
            "s3://BUCKET/a",
            "s3://b/a",
            "s3://bucket/a\x00b",
            "s3://bucket/a\nb",
            "s3://bucket/a\\..\\b",
            "s3://bucket/" + "x" * 1024,
        )
    ),
    create("a bad table format", offline(TableFormat="Delta"), "OfflineStoreConfig.TableFormat", "Iceberg", "'Delta'"),
    create(
        "Iceberg without a catalog", offline(TableFormat="Iceberg", DisableGlueTableCreation=True), "DisableGlueTableCreation"
    ),
    create(
        "Iceberg with a Fractional event time",
        offline(TableFormat="Iceberg") | features(id="String", at="Fractional"),
        "EventTimeFeatureName",
        "String",
    ),
    create("half a catalog", offline(DataCatalogConfig={"TableName": "t"}), "DataCatalogConfig.Catalog", "required"),
    create(
        "another catalog",
        offline(DataCatalogConfig={"TableName": "t", "Catalog": "Hive", "Database": "d"}),
        "DataCatalogConfig.Catalog",
        "AwsDataCatalog",
    ),
    create(
        "a table name with capitals",
        offline(DataCatalogConfig={"TableName": "T", "Catalog": "AwsDataCatalog", "Database": "d"}),
        "DataCatalogConfig.TableName",
        "lower-case",
    ),
    create(
        "an empty table name",
        offline(DisableGlueTableCreation=True, DataCatalogConfig={"TableName": "", "Catalog": "c", "Database": "d"}),
        "DataCatalogConfig.TableName",
        "1 to 255",
    ),
    create(
        "a bad throughput mode", {"ThroughputConfig": {"ThroughputMode": "Fast"}}, "ThroughputConfig.ThroughputMode", "OnDemand"
    ),
    create("no throughput mode", {"ThroughputConfig": {}}, "ThroughputConfig.ThroughputMode", "required"),
    create(
        "units on demand",
        {"ThroughputConfig": {"ThroughputMode": "OnDemand", "ProvisionedReadCapacityUnits": 1}},
        "ProvisionedReadCapacityUnits",
    ),
    create(
        "negative units",
        {"ThroughputConfig": {"ThroughputMode": "Provisioned", "ProvisionedWriteCapacityUnits": -1}},
        "ProvisionedWriteCapacityUnits",
        "0 to",
    ),
    *(
        create(f"the RoleArn {text[:30]!r}", {"RoleArn": text}, "RoleArn", "arn:aws:iam")
        for text in (
            "role",
            "arn:aws:iam::123:role/x",
            "arn:aws:s3:::bucket/role/xxxxxx",
            "arn:aws:iam::000000000000:role/" + "x" * 2048,
        )
    ),
    create("a description too long", {"Description": "x" * 129}, "Description", "128"),
    create("too many tags", {"Tags": [{"Key": f"k{n}", "Value": ""} for n in range(51)]}, "Tags", "50"),
    create("a tag without a value", {"Tags": [{"Key": "k"}]}, "Tags[0].Value", "required"),
    create("a tag key too long", {"Tags": [{"Key": "k" * 129, "Value": ""}]}, "Tags[0].Key", "128"),
    create("an empty tag key", {"Tags": [{"Key": "", "Value": ""}]}, "Tags[0].Key"),
    create("a bad tag value", {"Tags": [{"Key": "k", "Value": "<b>"}]}, "Tags[0].Value", "'<b>'"),
    create("tags that are an object", {"Tags": {"k": "v"}}, "Tags", "an array"),
]

CONTROL = [
    control("CreateFeatureGroup", "nothing", "", "FeatureGroupName", "required"),
    control("CreateFeatureGroup", "no JSON", "{", "body", "JSON"),
    control("CreateFeatureGroup", "an array", "[]", "body", "an object"),
    control("CreateFeatureGroup", "invalid UTF-8", b'{"FeatureGroupName":"\xff"}', "body", "UTF-8"),
    control("CreateFeatureGroup", "deep nesting", '{"Ignored":' + DEEP, "body", "nesting"),
    control("CreateFeatureGroup", "a body too large", b" " * (8 * MIB + 1), "body", "8388608 bytes"),
    control("DescribeFeatureGroup", "no name", {}, "FeatureGroupName", "required"),
    control("DescribeFeatureGroup", "a bad name", {"FeatureGroupName": "../x"}, "FeatureGroupName", "'../x'"),
    control("DescribeFeatureGroup", "an unknown group", {"FeatureGroupName": "nope"}, "'nope'", code="ResourceNotFound"),
    control("DescribeFeatureGroup", "another case", {"FeatureGroupName": "{GROUP}"}, "does not exist", code="ResourceNotFound"),
    control("UpdateFeatureGroup", "no change", NAMED, "FeatureAdditions", "OnlineStoreConfig"),
    control("UpdateFeatureGroup", "two changes", NAMED | {"ThroughputConfig": {}, "OnlineStoreConfig": {}}, "one of"),
    control(
        "UpdateFeatureGroup", "a taken feature", NAMED | {"FeatureAdditions": definitions(note="String")}, "FeatureAdditions[0]"
    ),
    control("UpdateFeatureGroup", "no features", NAMED | {"FeatureAdditions": []}, "FeatureAdditions", "1 to 100"),
    control(
        "UpdateFeatureGroup",
        "too many features",
        NAMED | {"FeatureAdditions": definitions(**{f"f{n}": "String" for n in range(101)})},
        "FeatureAdditions",
        "1 to 100",
    ),
    control("UpdateFeatureGroup", "half a TTL", NAMED | {"OnlineStoreConfig": {"TtlDuration": {"Value": 1}}}, "TtlDuration"),
    control(
        "UpdateFeatureGroup", "no online store", {"FeatureGroupName": "{offline}", "OnlineStoreConfig": {}}, "OnlineStoreConfig"
    ),
    control("UpdateFeatureGroup", "no mode", NAMED | {"ThroughputConfig": {}}, "ThroughputConfig", "ThroughputMode"),
    control(
        "DeleteFeatureGroup",
        "an ARN",
        {"FeatureGroupName": "arn:aws:sagemaker:us-east-1:000000000000:feature-group/{group}"},
        "FeatureGroupName",
    ),
    control("DeleteFeatureGroup", "a null name", {"FeatureGroupName": None}, "FeatureGroupName", "a string", "null"),
    control("DeleteFeatureGroup", "an unknown group", {"FeatureGroupName": "nope"}, "'nope'", code="ResourceNotFound"),
    *(
        control("ListFeatureGroups", f"MaxResults {shown}", f'{{"MaxResults":{shown}}}', "MaxResults", word)
        for shown, word in (
            ("0", "1 to 100"),
            ("101", "1 to 100"),
            ("1.5", "an integer"),
            ('"1"', "an integer"),
            ("9" * 30, "1 to 100"),
        )
    ),
    control("ListFeatureGroups", "a bad order", {"SortOrder": "Up"}, "SortOrder", "Ascending, Descending", "'Up'"),
    control("ListFeatureGroups", "a bad sort", {"SortBy": "Size"}, "SortBy", "CreationTime", "'Size'"),
    control("ListFeatureGroups", "a bad status", {"FeatureGroupStatusEquals": "Gone"}, "FeatureGroupStatusEquals", "'Gone'"),
    control("ListFeatureGroups", "an empty pattern", {"NameContains": ""}, "NameContains", "1 to 64"),
    control("ListFeatureGroups", "a pattern too long", {"NameContains": "x" * 65}, "NameContains", "1 to 64"),
    control("ListFeatureGroups", "a text for a time", {"CreationTimeAfter": "2024-05-01"}, "CreationTimeAfter", "a number"),
    *(
        control("ListFeatureGroups", f"a token of {shown}", {"NextToken": text}, "NextToken", "a token")
        for shown, text in (
            ("garbage", "%%%"),
            ("another order", token("Name", "x", 1)),
            ("an integer beyond 64 bits", token("CreationTime", 10**30, 1)),
            ("a key beyond 64 bits", token("CreationTime", 1, 10**30)),
            ("too few parts", token("CreationTime")),
            ("other letters", "ü"),
        )
    ),
    control("ListFeatureGroups", "a token too long", {"NextToken": "x" * 8193}, "NextToken", "at most 8192"),
    control("DescribeFeatureMetadata", "an unknown feature", NAMED | {"FeatureName": "nope"}, "'nope'", code="ResourceNotFound"),
    control("DescribeFeatureMetadata", "a bad feature", NAMED | {"FeatureName": "a\x00"}, "FeatureName", "letters"),
    control(
        "UpdateFeatureMetadata", "a long text", NAMED | {"FeatureName": "note", "Description": "x" * 256}, "Description", "255"
    ),
    control(
        "UpdateFeatureMetadata",
        "a parameter without a value",
        NAMED | {"FeatureName": "note", "ParameterAdditions": [{"Key": "k"}]},
        "ParameterAdditions[0].Value",
        "required",
    ),
    control(
        "UpdateFeatureMetadata",
        "removals that are objects",
        NAMED | {"FeatureName": "note", "ParameterRemovals": [{"Key": "k"}]},
        "ParameterRemovals[0]",
        "a string",
    ),
    control("AddTags", "no ARN", {"ResourceArn": "{group}", "Tags": []}, "ResourceArn", "ARN"),
    control(
        "AddTags",
        "too many tags",
        {"ResourceArn": "{arn}", "Tags": [{"Key": f"k{n}", "Value": ""} for n in range(51)]},
        "Tags",
        "at most 50",
    ),
    control(
        "AddTags", "a null value", {"ResourceArn": "{arn}", "Tags": [{"Key": "k", "Value": None}]}, "Tags[0].Value", "a string"
    ),
    control("ListTags", "a small page", {"ResourceArn": "{arn}", "MaxResults": 49}, "MaxResults", "at least 50"),
    control("ListTags", "an unknown group", {"ResourceArn": "{arn}x"}, "does not exist", code="ResourceNotFound"),
    control("DeleteTags", "no keys", {"ResourceArn": "{arn}", "TagKeys": []}, "TagKeys", "1 to 50"),
    Case("no target", "POST", "/", "{}", ("X-Amz-Target", "SageMaker."), "UnknownOperationException"),
    *(
        Case(f"target {text}", "POST", "/", "{}", (repr(text),), "UnknownOperationException", headers={"X-Amz-Target": text})
        for text in (
            "SageMaker.Nope",
            "SageMaker.",
            "CreateFeatureGroup",
            "AmazonAthena.Nope",
            "sagemaker.ListFeatureGroups",
        )
    ),
]

NATIVE = [
    sql("nothing", "", "body", "JSON"),
    sql("no JSON", "SELECT 1", "body", "JSON"),
    sql("invalid UTF-8", b'{"statement":"\xff"}', "body", "JSON"),
    sql("deep nesting", DEEP, "body", "JSON"),
    sql("no statement", {}, "statement", "required"),
    sql("a null statement", {"statement": None}, "statement", "a valid string"),
    sql("an unknown member", {"statement": "SELECT 1", "fesh": True}, "fesh", "no member"),
    sql("a body too large", b" " * (2 * MIB + 1), "body", "2097152 bytes"),
    sql("an empty statement", {"statement": ""}, "SELECT"),
    sql("two statements", {"statement": "SELECT 1; SELECT 2"}, "SELECT"),
    sql("no SELECT", {"statement": 'DELETE FROM history."{group}"'}, "SELECT"),
    sql("a file", {"statement": "SELECT * FROM '/etc/passwd'"}, "passwd"),
    sql("a file function", {"statement": "SELECT * FROM read_text('/etc/passwd')"}, "read_text"),
    sql("an unknown group", {"statement": "SELECT * FROM nope"}, "'nope'", code="ResourceNotFound", status=404),
    sql("an unknown schema", {"statement": 'SELECT * FROM other."{group}"'}, "history", "latest"),
    sql("an unknown column", {"statement": 'SELECT nope FROM "{group}"'}, "nope"),
    sql("a group without an offline store", {"statement": 'SELECT * FROM "{online}"'}, "offline store"),
    sql("a failing cast", {"statement": "SELECT 'x'::INTEGER"}, "x"),
    sql("a year that JSON has no date for", {"statement": "SELECT DATE '-4000-01-01' AS d"}, "Accept", "'d'"),
    Case("ingest nothing", "POST", "/v1/groups/{group}/records", b"", ("body", "arrow"), headers=ARROW),
    Case("ingest garbage", "POST", "/v1/groups/{group}/records", b"garbage" * 100, ("body", "arrow"), headers=ARROW),
    Case("ingest no parquet", "POST", "/v1/groups/{group}/records", b"PAR1PAR1", ("body", "parquet"), headers=PARQUET),
    Case("ingest JSON", "POST", "/v1/groups/{group}/records", [{"id": "x"}], ("Content-Type", "arrow", "parquet"), headers=JSON),
    Case("ingest untyped", "POST", "/v1/groups/{group}/records", b"x", ("Content-Type",)),
    Case(
        "ingest with a bad flag", "POST", "/v1/groups/{group}/records?skip_faulty=perhaps", b"", ("skip_faulty",), headers=ARROW
    ),
    Case("training set without a request", "POST", "/v1/training-sets", b"", ("body",), headers=ARROW),
    Case(
        "training set without a spine",
        "POST",
        "/v1/training-sets",
        {"features": ["{group}.note"], "event_time": "at"},
        ("spine_sql",),
        headers=JSON,
    ),
    Case(
        "training set with a bad member",
        "POST",
        "/v1/training-sets",
        {"features": 5, "event_time": "at"},
        ("features",),
        headers=JSON,
    ),
]

UNKNOWN = [
    Case("unknown path", "GET", "/nope", None, ("'nope'",), "NoSuchBucket", 404),
    unknown("path that can be no bucket", "GET", "/Nope"),
    unknown("method on the root", "DELETE", "/"),
    unknown("native path", "GET", "/v1/nope"),
    unknown("native path with dots", "GET", "/v1/../v1/nope"),
    unknown("encoded native path", "POST", "/v1/groups/a%2Fb/records", "/v1/groups/a/b/records"),
    Case("object of an unknown bucket", "PUT", "/bucket/key", "x", ("'bucket'",), "NoSuchBucket", 404),
    unknown("method on records", "PATCH", "/FeatureGroup/{group}", body="{}"),
    unknown("POST on records", "POST", "/FeatureGroup/{group}", body="{}"),
    unknown("OPTIONS on records", "OPTIONS", "/FeatureGroup/{group}"),
    unknown("GET of a batch", "GET", "/BatchGetRecord"),
    unknown("record path without a name", "PUT", "/FeatureGroup/", body="{}"),
    unknown("record path with a slash behind", "PUT", "/FeatureGroup/{group}/", body=RAW_RECORD),
    unknown("record path with more behind", "GET", "/FeatureGroup/{group}/x/y"),
    Case("record path in lower case", "PUT", "/featuregroup/{group}", RAW_RECORD, ("'featuregroup'",), "NoSuchBucket", 404),
    unknown("record path with two slashes", "PUT", "//FeatureGroup/{group}", body=RAW_RECORD),
    unknown("record path with an encoded slash", "PUT", "/FeatureGroup%2F{group}", "PUT", body=RAW_RECORD),
    unknown("PUT of an update", "PUT", "/FeatureGroup/{group}/Record", body="{}"),
    unknown("update without a group", "POST", "/FeatureGroup//Record", body="{}"),
    unknown("GET of a list", "GET", "/FeatureGroup/{group}/ListRecords"),
    unknown("GET of a batch to write", "GET", "/BatchWriteRecord"),
    unknown("method on a native route", "DELETE", "/v1/groups"),
]

UPDATE_AND_LIST = [
    update("nothing", "", "body", "JSON"),
    update("no identifier", {"Features": FEATURE}, "RecordIdentifierValueAsString", "required"),
    update("no features", {"RecordIdentifierValueAsString": KEY}, "Features", "required"),
    update("empty features", {"RecordIdentifierValueAsString": KEY, "Features": []}, "Features", "at least one"),
    update("an empty identifier", {"RecordIdentifierValueAsString": "", "Features": FEATURE}, "non-empty"),
    update("an identifier too long", {"RecordIdentifierValueAsString": "x" * 2049, "Features": FEATURE}, "2048 bytes"),
    update(
        "two values",
        {
            "RecordIdentifierValueAsString": KEY,
            "Features": [{"FeatureName": "note", "ValueAsString": "a", "ValueAsStringList": ["a"]}],
        },
        "Features[0]",
        "not both",
    ),
    update("a group of type Standard", {"RecordIdentifierValueAsString": KEY, "Features": FEATURE}, "Standard_V2 or InMemory"),
    listing("no JSON", "{", "body", "JSON"),
    listing("a list", [], "body", "object"),
    listing("no results", {"MaxResults": 0}, "MaxResults", "1 to 100", "0"),
    listing("too many results", {"MaxResults": 101}, "MaxResults", "1 to 100", "101"),
    listing("results as text", {"MaxResults": "10"}, "MaxResults", "an integer"),
    listing("a truth for a number", {"MaxResults": True}, "MaxResults", "an integer"),
    listing("a number for a truth", {"IncludeSoftDeletedRecords": 1}, "IncludeSoftDeletedRecords", "a boolean"),
    listing("an empty token", {"NextToken": ""}, "NextToken", "1 to 8192"),
    listing("a token too long", {"NextToken": "x" * 8193}, "NextToken", "1 to 8192"),
    listing("a token of nobody", {"NextToken": "AAAA" * 16}, "NextToken", "this feature group"),
    listing("a token with a null byte", {"NextToken": "AAAA\0"}, "NextToken"),
    listing("a group without an online store", {}, "online store", group="{offline}"),
    listing("an unknown group", {}, "'nope'", group="nope", code="ResourceNotFound", status=404),
    listing("a name too long", {}, "150 characters", group="a" * 151),
]

BATCH_WRITE = [
    batch_write("nothing", "", "body", "JSON"),
    batch_write("no entries", {}, "Entries", "required"),
    batch_write("empty entries", {"Entries": []}, "Entries", "1 to 25"),
    batch_write("too many entries", {"Entries": [{}] * 26}, "Entries", "1 to 25", "26"),
    batch_write("a null entry", {"Entries": [None]}, "Entries[0]", "an object", "null"),
    batch_write("a text for an entry", {"Entries": [{}, "x"]}, "Entries[1]", "an object"),
    batch_write("a TTL of nothing", {"Entries": [{}], "TtlDuration": {"Unit": "Days", "Value": 0}}, "TtlDuration.Value"),
    batch_write("a TTL without a unit", {"Entries": [{}], "TtlDuration": {"Value": 1}}, "TtlDuration.Unit", "required"),
    batch_write("invalid UTF-8", b'{"Entries":[{"FeatureGroupName":"\xff"}]}', "body", "UTF-8"),
    batch_write("deep nesting", f'{{"Entries": [{DEEP}', "body"),
    batch_write("a body too large", b" " * (64 * MIB + 1), "body", "67108864 bytes"),
]

CASES = [*PUT_VALUES, *PUT_BODIES, *GET_AND_DELETE, *BATCH, *UPDATE_AND_LIST, *BATCH_WRITE, *CREATE, *CONTROL, *NATIVE, *UNKNOWN]


@dataclass(frozen=True)
class World:
    """Three groups with one record in the first, and everything about them that a request could change."""

    http: Http
    home: Path
    group: str
    online: str
    offline: str

    @property
    def arn(self) -> str:
        return f"arn:aws:sagemaker:us-east-1:000000000000:feature-group/{self.group}"

    def fill(self, text: str) -> str:
        for name, value in (
            ("{group}", self.group),
            ("{GROUP}", self.group.upper()),
            ("{online}", self.online),
            ("{offline}", self.offline),
            ("{arn}", self.arn),
        ):
            text = text.replace(name, value)
        return text

    def send(self, case: Case) -> Reply:
        body = case.body
        if body is not None and not isinstance(body, bytes):
            body = self.fill(body if isinstance(body, str) else json.dumps(body))
        return self.http.request(case.method, self.fill(case.path), body, case.headers)

    def snapshot(self) -> dict[str, object]:
        """Everything that is quick to look at: a row written offline is a file more."""
        groups = (self.group, self.online, self.offline)
        ask = self.http.control
        return {
            "names": sorted(group["name"] for group in self.http.request("GET", "/v1/groups").json),
            "groups": [ask("DescribeFeatureGroup", {"FeatureGroupName": name}).json for name in groups],
            "tags": ask("ListTags", {"ResourceArn": self.arn}).json,
            "metadata": ask("DescribeFeatureMetadata", {"FeatureGroupName": self.group, "FeatureName": "note"}).json,
            "record": self.http.request(
                "GET", f"/FeatureGroup/{self.group}?RecordIdentifierValueAsString={KEY}&ExpirationTimeResponse=Enabled"
            ).json,
            "flushed": self.http.request("POST", "/v1/flush").status,
            "files": [sorted(self._folder(name).rglob("*.parquet")) for name in (self.group, self.offline)],
        }

    def offline_rows(self) -> tuple[int, int]:
        return self.http.offline_rows(self.group), self.http.offline_rows(self.offline)

    def _folder(self, name: str) -> Path:
        described = self.http.control("DescribeFeatureGroup", {"FeatureGroupName": name}).json
        uri = described["OfflineStoreConfig"]["S3StorageConfig"]["ResolvedOutputS3Uri"]
        return self.home / "offline" / uri.removeprefix("s3://")


@pytest.fixture(scope="module")
def world(http_client: Http, service: Service, create_group: CreateGroup) -> World:
    world = World(
        http_client,
        service.home,
        create_group(FeatureGroupName=unique_name("bad")),
        create_group(OfflineStoreConfig=None),
        create_group(OnlineStoreConfig=None),
    )
    body = {"Record": record(id=KEY, at=AT, note="stays")}
    assert http_client.request("PUT", f"/FeatureGroup/{world.group}", body).status == 200
    return world


@pytest.fixture(scope="module")
def before(world: World) -> dict[str, object]:
    found = world.snapshot()
    assert world.offline_rows() == (1, 0)
    return found


@pytest.mark.parametrize("case", CASES, ids=[case.name[:70] for case in CASES])
def test_bad_input_is_explained_and_changes_nothing(world: World, before: dict[str, object], case: Case) -> None:
    reply = world.send(case)
    assert (reply.status, reply.code) == (case.status, case.code), reply
    assert reply.headers["x-amzn-requestid"]
    assert len(reply.message) <= 2048
    for word in case.words:
        assert world.fill(word) in reply.message
    assert world.snapshot() == before


def test_after_all_of_that_the_history_has_the_same_rows(world: World, before: dict[str, object]) -> None:
    assert world.offline_rows() == (1, 0)
