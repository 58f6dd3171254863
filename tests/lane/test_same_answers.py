"""Every record operation, right and wrong, through the lane and through the plain route: one answer, and one effect."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from featurestore.model import limits
from featurestore.model.feature_group import FeatureDefinition, FeatureType
from tests.lane.harness import FINAL_ANSWER, Client, Pair, statuses
from tests.lane.world import (
    ARN,
    EPOCH,
    EVOLVED,
    FAR,
    LOGGED,
    MEMORY,
    OFFLINE_ONLY,
    ONLINE_ONLY,
    STANDARD,
    T0,
    T1,
    T2,
    TEXTS,
    TTL,
    World,
    group,
    query,
    record,
)

ONE = query("one")
JSON = "Content-Type: application/json"
SDK = (
    "Accept-Encoding: identity",
    "User-Agent: Boto3/1.44 md/Botocore#1.44 ua/2.1 os/linux lang/python#3.11",
    "amz-sdk-request: attempt=1",
)
"""What an AWS SDK sends with every request beside its signature and the id of the call."""


AT = b'{"FeatureName":"at","ValueAsString":"2024-05-01T00:00:00Z"}'
"""An event time among the values of a record, for records that are written out."""


class Case(NamedTuple):
    """One request, and the status of its answer."""

    name: str
    status: int
    method: str
    target: str
    body: Any = None
    headers: Sequence[str] = ()


def get(name: str, status: int, text: str, *headers: str, group: str = STANDARD) -> Case:
    return Case(name, status, "GET", f"/FeatureGroup/{group}{text}", None, headers)


def put(name: str, status: int, body: Any, *headers: str, group: str = STANDARD) -> Case:
    return Case(f"put {name}", status, "PUT", f"/FeatureGroup/{group}", body, headers)


def batch_get(name: str, status: int, *identifiers: Any, **members: Any) -> Case:
    return Case(f"batch get {name}", status, "POST", "/BatchGetRecord", {"Identifiers": list(identifiers), **members})


def batch_write(name: str, status: int, *entries: Any, **members: Any) -> Case:
    return Case(f"batch write {name}", status, "POST", "/BatchWriteRecord", {"Entries": list(entries), **members})


def wanted(*identifiers: str, group: str = STANDARD, **members: Any) -> dict[str, Any]:
    return {"FeatureGroupName": group, "RecordIdentifiersValueAsString": list(identifiers), **members}


def entry(group: str = STANDARD, /, *, members: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    return {"FeatureGroupName": group, "Record": record(**values), **(members or {})}


def body(*, members: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
    return {"Record": record(**values), **(members or {})}


GETS = [
    *(get(f"of {name}", 200, f"?{query(name)}") for name in TEXTS),
    get("of one", 200, f"?{ONE}"),
    get("of a record without features", 200, f"?{query('bare')}"),
    get("of an absent record", 200, f"?{query('nobody')}"),
    get("of a deleted record", 200, f"?{query('deleted')}"),
    get("of a buried record", 200, f"?{query('buried')}"),
    get("of an encoded identifier", 200, f"?{query('mixed/ä +%&=?#')}"),
    get("with a plus that is no space", 200, "?RecordIdentifierValueAsString=o+ne"),
    get("in needless percent-encoding", 200, "?%52ecordIdentifierValueAsString=%6f%6E%65"),
    get("of an encoded group", 200, f"?{ONE}", group="st%61ndard"),
    get("by ARN", 200, f"?{ONE}", group=f"{ARN.replace('/', '%2F')}{STANDARD}"),
    get("by an ARN in lower-case encoding", 200, f"?{ONE}", group=f"{ARN.replace('/', '%2f').replace(':', '%3a')}{STANDARD}"),
    get("by an ARN of elsewhere", 404, f"?{ONE}", group=f"{ARN.replace('/', '%2F').replace('us-east', 'eu-west')}{STANDARD}"),
    get("by an ARN with a bare slash", 404, f"?{ONE}", group=f"{ARN}{STANDARD}"),
    get("of an unknown group", 404, f"?{ONE}", group="unknown"),
    get("of a group in capitals", 404, f"?{ONE}", group="STANDARD"),
    get("of a group with a wrong name", 400, f"?{ONE}", group="wrong%20name"),
    get("of a group with a long name", 400, f"?{ONE}", group="x" * 65),
    get("of a group with a very long name", 400, f"?{ONE}", group="x" * 151),
    get("of no group", 404, f"?{ONE}", group=""),
    get("of a group behind two slashes", 404, f"?{ONE}", group="/standard"),
    get("of a group with a slash behind", 404, f"/?{ONE}"),
    get("of a group without an online store", 400, f"?{ONE}", group=OFFLINE_ONLY),
    get("of a group without an offline store", 200, f"?{ONE}", group=ONLINE_ONLY),
    get("of bytes that are no UTF-8", 400, "?RecordIdentifierValueAsString=%ff"),
    get("of half an encoding", 200, "?RecordIdentifierValueAsString=%4"),
    get("of no hexadecimal", 200, "?RecordIdentifierValueAsString=%zz"),
    get("of a NUL", 200, "?RecordIdentifierValueAsString=%00"),
    get("of an empty identifier", 400, "?RecordIdentifierValueAsString="),
    get("of an identifier without a value", 400, "?RecordIdentifierValueAsString"),
    get("of nothing", 400, ""),
    get("with a question mark alone", 400, "?"),
    get("of two identifiers", 400, f"?{ONE}&{query('bare')}"),
    get("of one identifier twice", 400, f"?{ONE}&{ONE}"),
    get("with an unknown parameter", 200, f"?{ONE}&more=1"),
    get("with empty parameters", 200, f"?&&{ONE}&&"),
    get("with a second question mark", 200, f"?{ONE}?x"),
    get("with an equals sign in the identifier", 200, "?RecordIdentifierValueAsString=a=b"),
    get("with a fragment", 200, f"?{ONE}#fragment"),
    get("of the longest identifier", 200, f"?{query('x' * limits.RECORD_IDENTIFIER_BYTES_MAX)}"),
    get("of too long an identifier", 400, f"?{query('x' * (limits.RECORD_IDENTIFIER_BYTES_MAX + 1))}"),
    get("of too long an identifier in bytes", 400, f"?{query('ä' * limits.RECORD_IDENTIFIER_BYTES_MAX)}"),
    get("of one feature", 200, f"?{query('one', FeatureName='note')}"),
    get("of several features", 200, f"?{query('one', FeatureName=['note', 'id', 'count'])}"),
    get("of one feature twice", 200, f"?{query('one', FeatureName=['note', 'note'])}"),
    get("of an absent feature", 200, f"?{query('bare', FeatureName='note')}"),
    get("of an unknown feature", 400, f"?{query('one', FeatureName=['note', 'nope'])}"),
    get("of an unknown feature of an absent record", 400, f"?{query('nobody', FeatureName='nope')}"),
    get("of a feature without a name", 400, f"?{query('one', FeatureName='')}"),
    get("of a feature in other case", 400, f"?{query('one', FeatureName='Note')}"),
    get("of an encoded feature", 200, f"?{ONE}&FeatureName=%6eote"),
    get("of every feature", 200, f"?{query('one', FeatureName=['id', 'at', 'amount', 'count', 'note'])}"),
    get("of expiry of a record without one", 200, f"?{query('one', ExpirationTimeResponse='Enabled')}"),
    get("of expiry", 200, f"?{query('live', ExpirationTimeResponse='Enabled')}", group=TTL),
    get("of no expiry", 200, f"?{query('live', ExpirationTimeResponse='Disabled')}", group=TTL),
    get("without a word of expiry", 200, f"?{query('live')}", group=TTL),
    get("of a record's own expiry", 200, f"?{query('own', ExpirationTimeResponse='Enabled')}", group=TTL),
    get("of own expiry in a group without", 200, f"?{query('own ttl', ExpirationTimeResponse='Enabled')}"),
    get("of an expired record", 200, f"?{query('expired', ExpirationTimeResponse='Enabled')}", group=TTL),
    get("of wrong expiry", 400, f"?{query('live', ExpirationTimeResponse='enabled')}", group=TTL),
    get("of expiry twice", 400, f"?{query('live', ExpirationTimeResponse=['Enabled', 'Enabled'])}", group=TTL),
    get("of an empty expiry", 400, f"?{query('live', ExpirationTimeResponse='')}", group=TTL),
    get("by a number", 200, f"?{query('7')}", group=EPOCH),
    get("by the number as written", 200, f"?{query('+007')}", group=EPOCH),
    get("by no number", 400, f"?{query('seven')}", group=EPOCH),
    get("of collections", 200, f"?{query('full')}", group=MEMORY),
    get("of one collection", 200, f"?{query('full', FeatureName='numbers')}", group=MEMORY),
    get("of empty collections", 200, f"?{query('without')}", group=MEMORY),
    get("of a record older than a feature", 200, f"?{query('old')}", group=EVOLVED),
    get("of a feature that the record is older than", 200, f"?{query('old', FeatureName=['more', 'number'])}", group=EVOLVED),
    get("of added features", 200, f"?{query('new', FeatureName=['note', 'more', 'number'])}", group=EVOLVED),
    get("of a group that waits for a log", 200, f"?{ONE}", group=LOGGED),
    get("accepting JSON", 200, f"?{ONE}", "Accept: application/json"),
    get("accepting something else", 200, f"?{ONE}", "Accept: text/html;q=0.5"),
    get("with a content type", 200, f"?{ONE}", "Content-Type: text/plain"),
    get("with an empty length", 200, f"?{ONE}", "Content-Length: 0"),
    get("with all that an SDK sends", 200, f"?{ONE}", *SDK, f"amz-sdk-invocation-id: {uuid.uuid4()}"),
    get("with cookies and a range", 200, f"?{ONE}", "Cookie: a=b", "Range: bytes=0-1", "If-None-Match: *"),
    Case("get with a body", 200, "GET", f"/FeatureGroup/{STANDARD}?{ONE}", b"{}"),
    Case("get with a broken body", 200, "GET", f"/FeatureGroup/{STANDARD}?{ONE}", b"\xff{"),
]
FULL = {"id": "full", "at": T1}
PUTS = [
    *(put(f"of {name}", 200, body(id=f"put {name}", at=T1, note=text)) for name, text in TEXTS.items()),
    put("of all features", 200, body(note="n", count="-0", amount="1e3", at=T1, id="all")),
    put("of the key alone", 200, body(id="key", at=T1)),
    put(
        "in other order of members",
        200,
        b'{"Record":[{"ValueAsString":"x","FeatureName":"id"},' + AT + b"]}",
    ),
    put(
        "in much space",
        200,
        b' \r\n{ "Record" :\t[ {"FeatureName" : "id", "ValueAsString":"space"} ,' + AT + b" ] } \n",
    ),
    put(
        "of escapes",
        200,
        b'{"Record":[{"FeatureName":"\\u0069d","ValueAsString":"escapes"},'
        + AT
        + b',{"FeatureName":"note","ValueAsString":"\\u00e4\\ud83e\\udd80\\/\\b\\f\\n\\r\\t\\"\\\\\\u0000\\u001f\\u007f"}]}',
    ),
    put(
        "of a lone surrogate",
        400,
        b'{"Record":[{"FeatureName":"id","ValueAsString":"\\ud800"},' + AT + b"]}",
    ),
    put(
        "of a surrogate in UTF-8",
        400,
        b'{"Record":[{"FeatureName":"id","ValueAsString":"\xed\xa0\x80"},' + AT + b"]}",
    ),
    put(
        "of bytes that are no UTF-8",
        400,
        b'{"Record":[{"FeatureName":"id","ValueAsString":"\xff"},' + AT + b"]}",
    ),
    put(
        "of a bare control character",
        400,
        b'{"Record":[{"FeatureName":"id","ValueAsString":"a\nb"},' + AT + b"]}",
    ),
    put("behind a byte order mark", 400, b'\xef\xbb\xbf{"Record":[]}'),
    put("of unknown members", 200, body(id="unknown members", at=T1, members={"More": {"deep": [1, None]}, "record": 1})),
    put(
        "of a member twice",
        200,
        b'{"Record":[],"Record":[{"FeatureName":"id","ValueAsString":"twice"},' + AT + b"]}",
    ),
    put("of a feature without a value", 200, body(id="absent", at=T1, note=None)),
    put("of a null value", 200, {"Record": [*record(id="null", at=T1), {"FeatureName": "note", "ValueAsString": None}]}),
    put(
        "of a value as text and as list",
        400,
        {"Record": [*record(id="x", at=T1), {"FeatureName": "note", "ValueAsString": "a", "ValueAsStringList": ["a"]}]},
    ),
    put("of a list in a plain feature", 400, body(id="x", at=T1, note=["a"])),
    put("of a number as value", 400, {"Record": [*record(id="x", at=T1), {"FeatureName": "count", "ValueAsString": 5}]}),
    put("of a feature twice", 400, {"Record": record(id="x", at=T1, note="a") + record(note="b")}),
    put("of an unknown feature", 400, body(id="x", at=T1, nope="n")),
    put("of many faults", 400, body(at="yesterday", count="many", amount="much", nope="n")),
    put("without an identifier", 400, body(at=T1)),
    put("of an empty identifier", 400, body(id="", at=T1)),
    put("of too long an identifier", 400, body(id="x" * 2049, at=T1)),
    put("without an event time", 400, body(id="x")),
    put("of a wrong event time", 400, body(id="x", at="2024-05-01")),
    put("of no record", 400, {"Record": []}),
    put("of null for a record", 400, {"Record": None}),
    put("without Record", 400, {}),
    put("of a list", 400, []),
    put("of a text", 400, "Record"),
    put("of a number", 400, b"1"),
    put("of nothing", 400, b""),
    put("of half an object", 400, b'{"Record":['),
    put("of two objects", 400, b"{}{}"),
    put("of NaN", 400, b'{"Record":NaN}'),
    put("of much nesting", 400, b'{"Record":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    put("of much nesting beside", 400, b'{"More":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    put("of an integer that is none", 400, body(id="x", at=T1, count="1.5")),
    put("of too great an integer", 400, body(id="x", at=T1, count="9223372036854775808")),
    put("of an infinite number", 400, body(id="x", at=T1, amount="Infinity")),
    put("of NaN as number", 400, body(id="x", at=T1, amount="NaN")),
    put("of too long a value", 400, body(id="x", at=T1, note="x" * (limits.VALUE_CHARS_MAX + 1))),
    put("of too large a record", 400, body(id="x", at=T1, note="ä" * (limits.RECORD_BYTES_MAX // 2))),
    put("of a time with nanoseconds", 400, body(id="nano", at="2024-05-01T00:00:00.123456789Z")),
    put("of year 0", 200, body(id="zero", at="0000-01-01T00:00:00Z")),
    put("of year 9999", 200, body(id="last", at="9999-12-31T23:59:59.999999Z")),
    put("of the same again", 200, body(id="one", at=T1, amount="1.50", count="007", note="first")),
    put("of an older record", 200, body(id="one", at=T0, note="older")),
    put("behind a delete", 200, body(id="deleted", at=T0, note="stays away")),
    put("behind a hard delete", 200, body(id="buried", at=T0, note="is back")),
    put("online alone", 200, body(id="online", at=T1, members={"TargetStores": ["OnlineStore"]})),
    put("offline alone", 200, body(id="offline", at=T1, members={"TargetStores": ["OfflineStore"]})),
    put("to both", 200, body(id="both", at=T1, members={"TargetStores": ["OfflineStore", "OnlineStore"]})),
    put("to null", 200, body(id="to null", at=T1, members={"TargetStores": None, "TtlDuration": None})),
    put("to one store twice", 400, body(id="x", at=T1, members={"TargetStores": ["OnlineStore", "OnlineStore"]})),
    put("to no store", 400, body(id="x", at=T1, members={"TargetStores": []})),
    put("to an unknown store", 400, body(id="x", at=T1, members={"TargetStores": ["onlinestore"]})),
    put("to a text", 400, body(id="x", at=T1, members={"TargetStores": "OnlineStore"})),
    put("offline in a group without", 400, body(id="x", at=T1, members={"TargetStores": ["OfflineStore"]}), group=ONLINE_ONLY),
    put("online in a group without", 400, body(id="x", at=T1, members={"TargetStores": ["OnlineStore"]}), group=OFFLINE_ONLY),
    put("in a group with one store", 200, body(id="x", at=T1), group=ONLINE_ONLY),
    put("in a group without an online store", 200, body(id="x", at=T1), group=OFFLINE_ONLY),
    put("with a time to live", 200, body(id="ttl", at=FAR, members={"TtlDuration": {"Unit": "Hours", "Value": 5}})),
    put("that has expired", 200, body(id="ttl over", at=T1, members={"TtlDuration": {"Unit": "Seconds", "Value": 1}})),
    put("with a time to live of 0", 400, body(id="x", at=T1, members={"TtlDuration": {"Unit": "Hours", "Value": 0}})),
    put("with an unknown unit", 400, body(id="x", at=T1, members={"TtlDuration": {"Unit": "hours", "Value": 1}})),
    put("with a time to live as text", 400, body(id="x", at=T1, members={"TtlDuration": {"Unit": "Hours", "Value": "1"}})),
    put("with a very long time to live", 400, body(id="x", at=T1, members={"TtlDuration": {"Unit": "Weeks", "Value": 1 << 60}})),
    put("with half a time to live", 400, body(id="x", at=T1, members={"TtlDuration": {"Unit": "Hours"}})),
    put("in a group with a time to live", 200, body(id="group's", at=FAR), group=TTL),
    put("of collections", 200, body(id="c", at=T1, words=["b", "a"], numbers=["1", "01"], vector=["1", "2.50"]), group=MEMORY),
    put("of an empty collection", 200, body(id="empty", at=T1, words=[]), group=MEMORY),
    put("of a short vector", 400, body(id="x", at=T1, vector=["1"]), group=MEMORY),
    put("of a wrong element", 400, body(id="x", at=T1, numbers=["1", "x"]), group=MEMORY),
    put("of a text in a collection", 400, body(id="x", at=T1, words="a"), group=MEMORY),
    put("of null in a collection", 400, b'{"Record":[{"FeatureName":"words","ValueAsStringList":[null]}]}', group=MEMORY),
    put("of a fractional time", 200, body(id="8", at="1714521600.2500000"), group=EPOCH),
    put("of a time in other form", 400, body(id="8", at=T1), group=EPOCH),
    put("of a number in other form", 200, body(id="+7", at="1714521601", note="the same record"), group=EPOCH),
    put("of an added feature", 200, body(id="old", at=T2, more="since"), group=EVOLVED),
    put("in a group that waits for a log", 503, body(id="x", at=T1), group=LOGGED),
    put("in an unknown group", 404, body(id="x", at=T1), group="unknown"),
    put("in an unknown group and broken", 400, b"{", group="unknown"),
    put("in a group with a wrong name and broken", 400, b"{", group="wrong%20name"),
    put("by ARN", 200, body(id="by arn", at=T1), group=f"{ARN.replace('/', '%2F')}{STANDARD}"),
    put("as JSON", 200, body(id="json", at=T1), JSON),
    put("as text", 200, body(id="text", at=T1), "Content-Type: text/plain; charset=latin-1"),
    put("as a form", 200, body(id="form", at=T1), "Content-Type: application/x-www-form-urlencoded"),
    put("with all that an SDK sends", 200, body(id="sdk", at=T1), *SDK, f"amz-sdk-invocation-id: {uuid.uuid4()}"),
    put("with a long invocation id", 200, body(id="long token", at=T1), f"amz-sdk-invocation-id: {'x' * 129}"),
    put("with an empty invocation id", 200, body(id="empty token", at=T1), "amz-sdk-invocation-id: "),
    Case("put with a query", 200, "PUT", f"/FeatureGroup/{STANDARD}?a=b&TargetStores=OnlineStore", body(id="query", at=T1)),
    Case("put without a length", 400, "PUT", f"/FeatureGroup/{STANDARD}"),
]
BATCH_GETS = [
    batch_get("of one", 200, wanted("one")),
    batch_get(
        "of several", 200, wanted("one", "nobody", "deleted", "bare"), wanted("7", group=EPOCH), wanted("full", group=MEMORY)
    ),
    batch_get("of all texts", 200, wanted(*TEXTS)),
    batch_get("of one identifier twice", 200, wanted("one", "one"), wanted("one")),
    batch_get("by ARN", 200, wanted("one", group=f"{ARN}{STANDARD}")),
    batch_get("of features", 200, wanted("one", FeatureNames=["note", "id"])),
    batch_get("of features twice", 200, wanted("one", FeatureNames=["note", "note"])),
    batch_get("of an unknown feature", 200, wanted("one", FeatureNames=["nope"]), wanted("one")),
    batch_get("of no feature", 400, wanted("one", FeatureNames=[])),
    batch_get("of null features", 200, wanted("one", FeatureNames=None)),
    batch_get("of an unknown group", 200, wanted("one", group="unknown"), wanted("one")),
    batch_get("of a wrong group", 400, wanted("one", group="wrong name"), wanted("one")),
    batch_get("of a group without an online store", 200, wanted("one", group=OFFLINE_ONLY), wanted("one")),
    batch_get("of a wrong identifier", 200, wanted("seven", "7", group=EPOCH)),
    batch_get("of an empty identifier", 200, wanted("", "one")),
    batch_get("of a long identifier", 200, wanted("x" * 2049, "one")),
    batch_get("of unicode", 200, wanted("mixed/ä +%&=?#", "\0", "\U0001f980")),
    batch_get("of a lone surrogate", 400, wanted("\ud800")),
    batch_get("of expiry", 200, wanted("live", "own", "expired", group=TTL), wanted("one"), ExpirationTimeResponse="Enabled"),
    batch_get("of no expiry", 200, wanted("live", group=TTL), ExpirationTimeResponse="Disabled"),
    batch_get("of wrong expiry", 400, wanted("live", group=TTL), ExpirationTimeResponse="enabled"),
    batch_get("of null expiry", 200, wanted("live", group=TTL), ExpirationTimeResponse=None),
    batch_get("of an evolved group", 200, wanted("old", "new", group=EVOLVED, FeatureNames=["more", "note"])),
    batch_get("of none", 400),
    batch_get("of no identifier", 400, wanted()),
    batch_get("of 100 groups of 100", 200, *[wanted(*(f"absent {number}" for number in range(100)))] * 100),
    batch_get("of 101 identifiers", 400, wanted(*(f"absent {number}" for number in range(101)))),
    batch_get("of 101 groups", 400, *[wanted("one")] * 101),
    batch_get("of a number", 400, wanted(5)),
    batch_get("of null", 400, None),
    batch_get("with unknown members", 200, wanted("one", More=1), More=[1]),
    *(
        Case(f"batch get: {text[:20]!r}", 400, "POST", "/BatchGetRecord", text)
        for text in (b"", b"{", b"[]", b"null", b'{"Identifiers":{}}', b"\xff", b'{"Identifiers":[{"FeatureGroupName":"a"}]}')
    ),
]
BATCH_WRITES = [
    batch_write("of one", 200, entry(id="w one", at=T1)),
    batch_write(
        "of several groups",
        200,
        entry(id="w two", at=T1),
        entry(MEMORY, id="w", at=T1, words=["a"]),
        entry(EPOCH, id="9", at="1"),
    ),
    batch_write("of one record twice", 200, entry(id="w twice", at=T2, note="a"), entry(id="w twice", at=T1, note="b")),
    batch_write(
        "of failing entries", 200, entry("unknown", id="x", at=T1), entry(id="w three", at=T1), entry(id="x"), entry(nope="x")
    ),
    batch_write("of failing entries alone", 200, entry("unknown", id="x", at=T1), entry("wrong name", id="x", at=T1)),
    batch_write("of entries that are no objects", 400, entry(id="x", at=T1), 5),
    batch_write("of null entries", 400, None),
    batch_write("of an entry without a record", 200, {"FeatureGroupName": STANDARD}, entry(id="w four", at=T1)),
    batch_write(
        "of an entry with unknown members", 200, {**entry(id="x"), "More": [1.0, 1e3, "\u00e4"]}, entry(id="w five", at=T1)
    ),
    batch_write("for a log", 200, entry(LOGGED, id="x", at=T1), entry(id="w six", at=T1)),
    batch_write(
        "to stores",
        200,
        entry(id="w online", at=T1, members={"TargetStores": ["OnlineStore"]}),
        entry(id="w offline", at=T1, members={"TargetStores": ["OfflineStore"]}),
    ),
    batch_write(
        "to wrong stores",
        200,
        entry(id="x", at=T1, members={"TargetStores": ["Nope"]}),
        entry(id="x", at=T1, members={"TargetStores": []}),
    ),
    batch_write(
        "with a time to live",
        200,
        entry(id="w ttl", at=FAR),
        entry(id="w own ttl", at=FAR, members={"TtlDuration": {"Unit": "Days", "Value": 3}}),
        TtlDuration={"Unit": "Hours", "Value": 1},
    ),
    batch_write("with a wrong time to live", 400, entry(id="x", at=T1), TtlDuration={"Unit": "Hours", "Value": 0}),
    batch_write(
        "with an entry's wrong time to live", 200, entry(id="x", at=T1, members={"TtlDuration": {"Unit": "Hours", "Value": 0}})
    ),
    batch_write("of none", 400),
    batch_write("of 25", 200, *(entry(id=f"w many {number}", at=T1, note=str(number)) for number in range(25))),
    batch_write("of 26", 400, *(entry(id=f"w too many {number}", at=T1) for number in range(26))),
    batch_write("of long values", 200, *(entry(id=f"w long {number}", at=T1, note="\0" * 350_000) for number in range(3))),
    batch_write("of too large a record", 200, entry(id="x", at=T1, note="ä" * 180_000), entry(id="w seven", at=T1)),
    batch_write(
        "of collections",
        200,
        entry(MEMORY, id="w all", at=T1, words=["", "ä"], vector=["1", "2"]),
        entry(MEMORY, id="x", at=T1, vector=["1"]),
    ),
    Case(
        "batch write of an entry in its own spelling",
        200,
        "POST",
        "/BatchWriteRecord",
        b'{"Entries":[ {"FeatureGroupName" : "unknown","Record":[ {"FeatureName":"\\u0069d"} ],"More":"\\/"} ]}',
    ),
    Case(
        "batch write of members twice",
        200,
        "POST",
        "/BatchWriteRecord",
        b'{"Entries":[{"FeatureGroupName":"a","FeatureGroupName":"unknown","Record":[{"FeatureName":"id"}]}]}',
    ),
    *(
        Case(f"batch write: {text[:30]!r}", 400, "POST", "/BatchWriteRecord", text)
        for text in (
            b"",
            b"{",
            b"[]",
            b"null",
            b'{"Entries":{}}',
            b'{"Entries":[{}',
            b'{"Entries":["\xff"]}',
            b'{"Entries":[{"x":"\xff"}]}',
            b'{"Entries":[[]]}',
        )
    ),
]
OTHERS = [
    Case("delete", 200, "DELETE", f"/FeatureGroup/{STANDARD}?{query('key', EventTime=T2)}"),
    Case("delete of nothing", 200, "DELETE", f"/FeatureGroup/{STANDARD}?{query('nobody at all', EventTime=T2)}"),
    Case("delete without a time", 400, "DELETE", f"/FeatureGroup/{STANDARD}?{query('one')}"),
    Case("stale hard delete", 400, "DELETE", f"/FeatureGroup/{STANDARD}?{query('one', EventTime=T0, DeletionMode='HardDelete')}"),
    Case(
        "update",
        400,
        "POST",
        f"/FeatureGroup/{STANDARD}/Record",
        {"RecordIdentifierValueAsString": "one", "Features": record(note="u")},
    ),
    Case(
        "update in memory",
        200,
        "POST",
        f"/FeatureGroup/{MEMORY}/Record",
        {"RecordIdentifierValueAsString": "full", "Features": record(note="u")},
    ),
    Case("post of a record", 404, "POST", f"/FeatureGroup/{STANDARD}", body(id="x", at=T1)),
    Case("patch of a record", 404, "PATCH", f"/FeatureGroup/{STANDARD}", body(id="x", at=T1)),
    Case("put of a batch", 404, "PUT", "/BatchWriteRecord", {"Entries": []}),
    Case("get of a batch", 404, "GET", "/BatchGetRecord"),
    Case("options of a record", 404, "OPTIONS", f"/FeatureGroup/{STANDARD}?{ONE}"),
    Case("a batch with a slash behind", 404, "POST", "/BatchGetRecord/", {}),
    Case("a batch in percent-encoding", 200, "POST", "/BatchGet%52ecord", {"Identifiers": [wanted("one")]}),
    Case("a batch with a query", 200, "POST", "/BatchGetRecord?a=b", {"Identifiers": [wanted("one")]}),
    Case("a group in an encoded path", 200, "GET", f"/%46eatureGroup/{STANDARD}?{ONE}"),
    Case("a path with dots", 404, "GET", f"/FeatureGroup/../FeatureGroup/{STANDARD}?{ONE}"),
    Case("a path in other case", 404, "GET", f"/Featuregroup/{STANDARD}?{ONE}"),
    Case("an unknown native route", 404, "GET", "/v1/nope"),
    Case(
        "listing groups",
        200,
        "POST",
        "/",
        {"NameContains": "nothing has it"},
        ("X-Amz-Target: SageMaker.ListFeatureGroups", "Content-Type: application/x-amz-json-1.1"),
    ),
    Case("an unknown target", 400, "POST", "/", {}, ("X-Amz-Target: SageMaker.Nope",)),
]
CASES = [*GETS, *PUTS, *BATCH_GETS, *BATCH_WRITES, *OTHERS]
SIGNED_OTHERWISE = {
    *("with a plus that is no space", "in needless percent-encoding", "of bytes that are no UTF-8", "of half an encoding"),
    *("of no hexadecimal", "with a second question mark", "with an equals sign in the identifier", "of an encoded feature"),
}
"""Queries in a form that botocore does not give them, so that what it signs is not what is sent."""


def test_cases_have_names_of_their_own() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_answer(world: World, case: Case) -> None:
    received = world.pair.ask(world.request(case.method, case.target, case.body, *case.headers), method=case.method)
    expected = 403 if world.signed and case.name in SIGNED_OTHERWISE else case.status
    assert statuses(received) == [expected], received[:1000]


def test_all_of_it_has_had_the_same_effect(world: World) -> None:
    world.pair.same_effects()


@pytest.mark.parametrize("cases", [GETS, PUTS, BATCH_GETS, BATCH_WRITES], ids=["get", "put", "batch get", "batch write"])
def test_one_kept_connection(world: World, cases: list[Case]) -> None:
    """All of them in a row, so that nothing of one request is left for the next."""
    requests = [world.request(case.method, case.target, case.body, *case.headers) for case in cases]

    def talk(client: Client) -> list[bytes]:
        return [*(client.ask(item) for item in requests), client.goodbye()]

    received = world.pair.same(talk)
    assert received.endswith(FINAL_ANSWER)
    assert len(statuses(received)) == len(cases) + 1
    world.pair.same_effects()


class TestRepetition:
    """A repeated attempt of an SDK changes nothing the second time."""

    def test_of_a_put(self, world: World) -> None:
        token = f"amz-sdk-invocation-id: {uuid.uuid4()}"
        world.write(world.put(STANDARD, token, id="retry", at=T1, note="first"))
        world.write(world.put(STANDARD, id="retry", at=T1, note="between"))
        world.write(world.put(STANDARD, token, id="retry", at=T1, note="first"))
        assert b"between" in world.pair.ask(world.get(STANDARD, "retry"))
        world.pair.same_effects()

    def test_of_a_batch(self, world: World) -> None:
        token = f"amz-sdk-invocation-id: {uuid.uuid4()}"
        batch = {"Entries": [entry(id="retry a", at=T1), entry(id="retry b", at=T1), entry(id="retry a", at=T1)]}
        first, second = (world.pair.ask(world.request("POST", "/BatchWriteRecord", batch, token)) for _ in range(2))
        assert first == second
        world.pair.same_effects()

    @pytest.mark.parametrize("header", ["AMZ-SDK-Invocation-Id", "amz-sdk-invocation-id"])
    @pytest.mark.parametrize("token", ["caf\u00e9", " spaces \t", "x" * 128, "a,b"])
    def test_the_header_as_it_is_written(self, twins: World, header: str, token: str) -> None:
        for note in ("first", "second"):
            twins.write(twins.put(STANDARD, f"{header}: {token}", id=f"as written {token[:9]}", at=T1, note=note))
        twins.pair.same_effects()

    def test_two_tokens_of_one_request(self, twins: World) -> None:
        for token in ("one", "two"):
            two = ("amz-sdk-invocation-id: first", f"amz-sdk-invocation-id: {token}")
            twins.write(twins.put(STANDARD, *two, id="two tokens", at=T1, note=token))
        assert b'"one"' in twins.pair.ask(twins.get(STANDARD, "two tokens"))
        twins.pair.same_effects()


class TestHost:
    @pytest.mark.parametrize(
        ("host", "status"),
        [
            *(
                ("localhost", 200),
                ("localhost:8080", 200),
                ("127.0.0.1", 200),
                ("127.0.0.1:1", 200),
                ("[::1]", 200),
                ("[::1]:80", 200),
            ),
            *(
                ("LOCALHOST", 200),
                ("LocalHost:80", 200),
                ("example.com", 403),
                ("example.com:80", 403),
                ("localhost.example.com", 403),
            ),
            *(("", 403), (":80", 403), ("127.0.0.2", 403), ("user@localhost", 403), ("localhost:80:80", 403), ("caf\u00e9", 403)),
        ],
    )
    @pytest.mark.parametrize("kind", ["get", "put", "batch get", "batch write"])
    def test_names(self, twins: World, kind: str, host: str, status: int) -> None:
        received = twins.pair.ask(OF_KIND[kind](twins, host))
        assert statuses(received) == [status], received

    def test_none_and_two(self, twins: World) -> None:
        without = twins.get(STANDARD, "one").replace(b"Host: localhost\r\n", b"")
        assert statuses(twins.pair.ask(without)) == [200]
        for first, second, status in (("localhost", "example.com", 200), ("example.com", "localhost", 403)):
            both = twins.get(STANDARD, "one").replace(b"Host: localhost", f"Host: {first}\r\nHost: {second}".encode())
            assert statuses(twins.pair.ask(both)) == [status]


OF_KIND: dict[str, Callable[[World, str], bytes]] = {
    "get": lambda world, host: world.request("GET", f"/FeatureGroup/{STANDARD}?{ONE}", host=host),
    "put": lambda world, host: world.request("PUT", f"/FeatureGroup/{STANDARD}", body(id="host", at=T1), host=host),
    "batch get": lambda world, host: world.request("POST", "/BatchGetRecord", {"Identifiers": [wanted("one")]}, host=host),
    "batch write": lambda world, host: world.request(
        "POST", "/BatchWriteRecord", {"Entries": [entry(id="host", at=T1)]}, host=host
    ),
}
"""One request of each kind that the lane may answer, by the host it calls the service by."""


class TestChangedGroups:
    """Groups that change while a connection is kept."""

    def talk(self, world: World, name: str, change: Callable[[Pair], None]) -> bytes:
        """What both answer on one connection before and after a change of a group."""
        requests = [
            world.put(name, id="a", at=T1, note="1"),
            world.get(name, "a"),
            world.request("POST", "/BatchGetRecord", {"Identifiers": [wanted("a", "b", group=name)]}),
            world.request("POST", "/BatchWriteRecord", {"Entries": [entry(name, id="b", at=T1, note="2")]}),
            world.put(name, id="c", at=T1, other="3"),
            world.get(name, "c", FeatureName=["id", "other"]),
        ]
        with Client(world.pair.lane) as lane, Client(world.pair.plain) as plain:
            before = world.pair.same_of((lane, plain), requests)
            change(world.pair)
            received = [before, world.pair.same_of((lane, plain), requests)]
        world.pair.same_effects()
        return b"".join(received)

    def test_a_group_created_anew_with_other_features(self, world: World) -> None:
        features = (
            FeatureDefinition("id", FeatureType.STRING),
            FeatureDefinition("at", FeatureType.STRING),
            FeatureDefinition("other", FeatureType.INTEGRAL),
        )

        def change(pair: Pair) -> None:
            for store in pair.stores:
                store.delete_feature_group("anew")
                store.create(group("anew", features=features))

        for store in world.pair.stores:
            store.create(group("anew"))
        received = self.talk(world, "anew", change)
        assert statuses(received) == [200, 200, 200, 200, 400, 400, 400, 200, 200, 200, 200, 200]

    def test_a_group_deleted(self, world: World) -> None:
        def change(pair: Pair) -> None:
            for store in pair.stores:
                store.delete_feature_group("gone")

        for store in world.pair.stores:
            store.create(group("gone"))
        received = self.talk(world, "gone", change)
        assert statuses(received) == [200, 200, 200, 200, 400, 400, 404, 404, 200, 200, 404, 404]

    def test_features_added(self, world: World) -> None:
        def change(pair: Pair) -> None:
            for store in pair.stores:
                store.add_features("grows", [FeatureDefinition("other", FeatureType.STRING)])

        for store in world.pair.stores:
            store.create(group("grows"))
        received = self.talk(world, "grows", change)
        assert statuses(received) == [200, 200, 200, 200, 400, 400, 200, 200, 200, 200, 200, 200]
        assert json.loads(received.rpartition(b"\r\n\r\n")[2]) == {"Record": record(id="c", other="3")}
