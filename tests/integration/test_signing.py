"""Signed requests as clients send them, and what must not pass, over a socket to a service with keys.

A list: what is sent, by whom it is signed, and what comes back. botocore signs; bad requests are good ones that were changed.
"""

# ruff: noqa: E501 - a list is read by its lines

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import pytest

import featurestore
from featurestore.access import sigv4
from featurestore.access.keys import ROOT, AccessKey, Right
from featurestore.access.session import SessionCredentials, issue
from featurestore.access.sigv4 import Request
from tests.integration.conftest import ANSWER_S_MAX, FEATURES, OFFLINE, ONLINE, Reply, record
from tests.service import Service
from tests.signing import Sent, signed_by_botocore

ADMIN_ID, ADMIN_SECRET = "featurestore-admin", "an administrator's secret"
ROOT_KEY = AccessKey(ROOT, ADMIN_ID, ADMIN_SECRET, Right.ADMIN, 0)
AT = "2024-05-01T00:00:00Z"
GROUP = "signed"
ARN = f"arn:aws:sagemaker:us-east-1:000000000000:feature-group/{GROUP}"
ONE = "RecordIdentifierValueAsString=k"
JSON = {"Content-Type": "application/x-amz-json-1.1"}
FORM = {"Content-Type": "application/x-www-form-urlencoded; charset=utf-8"}
IDENTITY = b"Action=GetCallerIdentity&Version=2011-06-15"
EMPTY = sigv4.EMPTY_SHA256.encode()


class Signer:
    """Signs for the service, as one of its keys or a session."""

    def __init__(self, url: str, keys: dict[str, AccessKey]) -> None:
        self.url = url
        self.keys = keys

    def __call__(self, method: str, path: str, *, by: str = ROOT, **members: Any) -> Sent:
        key = self.keys[by]
        given = {"base": self.url, "key_id": key.access_key_id, "secret": key.secret_access_key} | members
        return signed_by_botocore(method, path, **given)

    def by_session(self, method: str, path: str, session: SessionCredentials, **members: Any) -> Sent:
        credentials = {"key_id": session.access_key_id, "secret": session.secret_access_key, "token": session.token}
        return self(method, path, **credentials | members)

    def get(self, **members: Any) -> Sent:
        return self("GET", f"/FeatureGroup/{GROUP}", **{"query": ONE} | members)

    def put(self, **members: Any) -> Sent:
        body = {"Record": record(id="k", at=AT, note=members.pop("note", "x"))}
        return self("PUT", f"/FeatureGroup/{GROUP}", body=json.dumps(body, ensure_ascii=False).encode(), **members)

    def control(self, operation: str = "DescribeFeatureGroup", **members: Any) -> Sent:
        headers = JSON | {"X-Amz-Target": f"SageMaker.{operation}"}
        body = members.pop("body", json.dumps({"FeatureGroupName": GROUP}).encode())
        return self("POST", "/", headers=headers, body=body, **members)

    def sts(self, **members: Any) -> Sent:
        return self("POST", "/", **{"headers": FORM, "body": IDENTITY, "service": "sts"} | members)

    def sql(self, **members: Any) -> Sent:
        body = json.dumps({"statement": "SELECT 1 AS one"}).encode()
        return self("POST", "/v1/sql", body=body, headers={"Content-Type": "application/json"}, **members)

    def object(self, method: str = "GET", key: str = "data/a.csv", **members: Any) -> Sent:
        return self(method, f"/test-bucket/{quote(key, safe='/~')}", service="s3", **members)

    def session(self, *, ends_in_s: int = 900, parent: AccessKey = ROOT_KEY) -> SessionCredentials:
        role = "arn:aws:iam::000000000000:role/anything"
        return issue(parent, role=role, name="nightly", expires_at_us=time.time_ns() // 1000 + ends_in_s * 1_000_000)


def send(service: Service, sent: Sent) -> Reply:
    """One request exactly as it is."""
    request = sent.request
    connection = http.client.HTTPConnection("127.0.0.1", service.port, timeout=ANSWER_S_MAX)
    try:
        target = request.path + (b"?" + request.query if request.query else b"")
        connection.putrequest(request.method, target.decode("latin-1"), skip_host=True, skip_accept_encoding=True)
        names = {name for name, _ in request.headers}
        for name, value in request.headers:
            connection.putheader(name.decode(), value)
        if b"content-length" not in names and b"transfer-encoding" not in names:
            connection.putheader("content-length", str(len(sent.body)))
        connection.endheaders()
        if b"transfer-encoding" in names:
            for start in range(0, len(sent.body), 7):
                piece = sent.body[start : start + 7]
                connection.send(b"%x\r\n%b\r\n" % (len(piece), piece))
            connection.send(b"0\r\n\r\n")
        else:
            connection.send(sent.body)
        answer = connection.getresponse()
        return Reply(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()


def code_of(reply: Reply) -> str | None:
    """The error code in whatever form it is sent."""
    xml = re.search(rb"<Code>(\w+)</Code>", reply.body)
    return xml[1].decode() if xml else reply.code or None


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("signing")
    running = Service(
        folder / "home", folder / "log", "--access-log", admin_access_key_id=ADMIN_ID, admin_secret_access_key=ADMIN_SECRET
    )
    with featurestore.open(folder / "home") as store:
        for right in Right:
            KEYS[right.value] = store.keys.create(right.value, right)
        KEYS["revoked"] = store.keys.create("revoked", Right.ADMIN)
        store.keys.revoke("revoked")
    running.start()
    yield running
    assert running.stop() == 0
    log = running.log.read_text()
    assert "Traceback" not in log
    assert " ERROR " not in log
    assert "X-Amz-Signature=..." in log
    assert not re.search("X-Amz-Signature=[0-9a-f]", log)
    assert not re.search("X-Amz-Security-Token=[^.]", log)
    for key in KEYS.values():
        assert key.secret_access_key not in log


KEYS: dict[str, AccessKey] = {ROOT: ROOT_KEY}


@pytest.fixture(scope="module")
def signer(service: Service) -> Signer:
    signer = Signer(service.url, KEYS)
    members = {
        "FeatureGroupName": GROUP,
        "RecordIdentifierFeatureName": "id",
        "EventTimeFeatureName": "at",
        "FeatureDefinitions": FEATURES,
        "OnlineStoreConfig": ONLINE,
        "OfflineStoreConfig": OFFLINE,
    }
    assert send(service, signer.control("CreateFeatureGroup", body=json.dumps(members).encode())).status == 200
    assert send(service, signer.put()).status == 200
    assert send(service, signer("PUT", "/test-bucket", service="s3")).status == 200
    return signer


@dataclass(frozen=True)
class Case:
    """One request. `status` and `code` are what comes back; a code of None is an answer."""

    name: str
    make: Callable[[Signer], Sent]
    status: int = 200
    code: str | None = None

    def __str__(self) -> str:
        return self.name


def flipped(data: bytes, at: int = -1) -> bytes:
    """One hexadecimal digit changed."""
    at %= len(data)
    return data[:at] + (b"0" if data[at : at + 1] != b"0" else b"1") + data[at + 1 :]


def with_flipped_signature(sent: Sent) -> Sent:
    return sent.with_headers((b"authorization", flipped(sent.header(b"authorization"))))


def changed_authorization(sent: Sent, old: bytes, new: bytes) -> Sent:
    value = sent.header(b"authorization")
    assert old in value
    return sent.with_headers((b"authorization", value.replace(old, new)))


def changed_query(sent: Sent, old: bytes, new: bytes) -> Sent:
    assert old in sent.request.query
    return sent.altered(query=sent.request.query.replace(old, new))


def our_own(signer: Signer, *, age_s: float = 0) -> Sent:
    """Signed by the store's own client."""
    host = (b"host", signer.url.partition("//")[2].encode())
    bare = Request("GET", f"/FeatureGroup/{quote(ARN, safe='')}".encode(), ONE.encode(), [host])
    credentials = sigv4.Credentials(ADMIN_ID, ADMIN_SECRET)
    added = sigv4.sign(bare, credentials, sigv4.EMPTY_SHA256, service="sagemaker", region="us-east-1", now_s=time.time() - age_s)
    return Sent(bare).with_headers(host, *((name.encode(), value.encode()) for name, value in added))


def batch(signer: Signer, **members: Any) -> Sent:
    body = {"Identifiers": [{"FeatureGroupName": ARN, "RecordIdentifiersValueAsString": ["k", "ü"]}]}
    return signer("POST", "/BatchGetRecord", body=json.dumps(body).encode(), **members)


GOOD = [
    Case("PutRecord", lambda s: s.put()),
    Case("PutRecord with unicode in its body", lambda s: s.put(note="Zürich 東京 🌍")),
    Case("PutRecord in HTTP chunks", lambda s: s.put(note="y" * 100).with_headers((b"transfer-encoding", b"chunked"))),
    Case("PutRecord that says the hash of its body", lambda s: s.put(headers={"X-Amz-Content-SHA256": _put_hash()})),
    Case("GetRecord", lambda s: s.get()),
    Case("GetRecord with an ARN in its path", lambda s: s("GET", f"/FeatureGroup/{quote(ARN, safe='')}", query=ONE)),
    Case("GetRecord with a repeated query key", lambda s: s.get(query=f"{ONE}&FeatureName=note&FeatureName=at&FeatureName=id")),
    Case("GetRecord with a query in another order", lambda s: changed_query(s.get(query=f"A=1&{ONE}"), b"A=1&", b"").altered(query=f"{ONE}&A=1".encode())),
    Case("GetRecord with a query key without a value", lambda s: s.get(query=f"{ONE}&x&y=")),
    Case("GetRecord with an empty query key", lambda s: s.get(query=f"{ONE}&=z&&")),
    Case("GetRecord with unicode in its query", lambda s: s.get(query="RecordIdentifierValueAsString=%E6%9D%B1%F0%9F%8C%8D")),
    Case("GetRecord with spaces and signs", lambda s: s.get(query="RecordIdentifierValueAsString=a%20b%2Bc%2Fd%3D%26")),
    Case("GetRecord with signs left alone", lambda s: changed_query(s.get(query="RecordIdentifierValueAsString=a%2Ab%21"), b"%2Ab%21", b"*b!")),
    Case("GetRecord presigned", lambda s: s.get(presigned_s=60)),
    Case("GetRecord presigned for a week, six days ago", lambda s: s.get(presigned_s=604_800, age_s=6 * 86_400)),
    Case("GetRecord presigned by a session", lambda s: s.by_session("GET", f"/FeatureGroup/{GROUP}", s.session(), query=ONE, presigned_s=60)),
    Case("GetRecord by a session", lambda s: s.by_session("GET", f"/FeatureGroup/{GROUP}", s.session(), query=ONE)),
    Case("GetRecord signed for another region", lambda s: s.get(region="eu-central-1")),
    Case("GetRecord signed 14 minutes ago", lambda s: s.get(age_s=14 * 60)),
    Case("GetRecord signed 14 minutes ahead", lambda s: s.get(age_s=-14 * 60)),
    Case("GetRecord with a Date header", lambda s: s.get(headers={"Date": "now"})),
    Case("GetRecord through a proxy that adds headers", lambda s: s.get().with_headers((b"via", b"1.1 p"), (b"x-forwarded-for", b"192.0.2.1"))),
    Case("GetRecord by our own client", our_own),
    Case("GetRecord by a key that may read", lambda s: s.get(by="read")),
    Case("GetRecord with spaces in a signed header", lambda s: s.get(headers={"X-Amz-Meta-A": "  a   b  "})),
    Case("PutRecord by a key that may write", lambda s: s.put(by="write")),
    Case("DeleteRecord with TargetStores twice", lambda s: s("DELETE", f"/FeatureGroup/{GROUP}", query=f"RecordIdentifierValueAsString=gone&EventTime={quote(AT)}&TargetStores=OnlineStore&TargetStores=OfflineStore")),
    Case("BatchGetRecord", batch),
    Case("BatchGetRecord by a key that may read", lambda s: batch(s, by="read")),
    Case("DescribeFeatureGroup", lambda s: s.control()),
    Case("ListFeatureGroups with an empty body", lambda s: s.control("ListFeatureGroups", body=b"{}")),
    Case("GetCallerIdentity", lambda s: s.sts()),
    Case("GetCallerIdentity presigned", lambda s: s("GET", "/", query=IDENTITY.decode(), service="sts", presigned_s=60)),
    Case("SQL", lambda s: s.sql()),
    Case("SQL by a key that may read", lambda s: s.sql(by="read")),
    Case("list of groups", lambda s: s("GET", "/v1/groups")),
]  # fmt: skip


def _put_hash() -> str:
    return hashlib.sha256(json.dumps({"Record": record(id="k", at=AT, note="x")}).encode()).hexdigest()


CHUNKED = {"Content-Encoding": "aws-chunked", "X-Amz-Decoded-Content-Length": "5"}
CHUNKED_BODY = b"5\r\nhello\r\n0\r\nx-amz-checksum-crc32:NhCmhg==\r\n\r\n"


def streamed(signer: Signer, word: str = sigv4.STREAMING_SIGNED, *, by: str = ROOT) -> Sent:
    """An upload with signed chunks: its head by our own signer, as botocore makes none."""
    host = (b"host", signer.url.partition("//")[2].encode())
    bare = Request(
        "PUT", b"/test-bucket/chunks", b"", [host, (b"content-encoding", b"aws-chunked"), (b"x-amz-decoded-content-length", b"5")]
    )
    key = signer.keys[by]
    credentials = sigv4.Credentials(key.access_key_id, key.secret_access_key)
    added = [
        (n.encode(), v.encode())
        for n, v in sigv4.sign(bare, credentials, word, service="s3", region="us-east-1", now_s=time.time())
    ]
    sent = Sent(bare).with_headers(*bare.headers, *added)
    signature = sigv4.read_signature(sent.request)
    scope = signature.scope
    signing_key = sigv4.signing_key(key.secret_access_key, scope.date, scope.region, scope.service)
    body, previous = b"", signature.value
    for data in (b"hello", b""):
        text = b"\n".join(
            (
                b"AWS4-HMAC-SHA256-PAYLOAD",
                signature.timestamp,
                bytes(scope),
                previous,
                EMPTY,
                hashlib.sha256(data).hexdigest().encode(),
            )
        )
        previous = hmac.digest(signing_key, text, "sha256").hex().encode()
        body += b"%x;chunk-signature=%b\r\n%b\r\n" % (len(data), previous, data)
    return sent.altered(body=body)


ADMITTED = [
    Case("GetObject", lambda s: s.object()),
    Case("HeadObject", lambda s: s.object("HEAD")),
    Case("ListBuckets", lambda s: s("GET", "/", service="s3")),
    Case("GetObject with unicode and signs in its key", lambda s: s.object(key="ü/a b+c (1)*'!~/東京.csv")),
    Case("GetObject with slashes and dots in its key", lambda s: s.object(key="a//b/./../c")),
    Case("GetObject from a bucket with a name like ours", lambda s: s("GET", "/v1-docs/a", service="s3")),
    Case("GetObject presigned", lambda s: s.object(presigned_s=60)),
    Case("GetObject presigned by a session", lambda s: s.by_session("GET", "/test-bucket/a", s.session(), service="s3", presigned_s=60)),
    Case("ListObjects with empty and repeated query keys", lambda s: s("GET", "/test-bucket", service="s3", query="list-type=2&prefix=&delimiter=%2F&uploads")),
    Case("PutObject", lambda s: s.object("PUT", body=b"hello")),
    Case("PutObject by a key that may write", lambda s: s.object("PUT", body=b"hello", by="write")),
    Case("PutObject presigned", lambda s: s.object("PUT", presigned_s=60).altered(body=b"hello")),
    Case("PutObject in chunks without signatures", lambda s: s.object("PUT", headers=CHUNKED | {"X-Amz-Trailer": "x-amz-checksum-crc32"}, streaming=True).altered(body=CHUNKED_BODY)),
    Case("PutObject in signed chunks", streamed),
]  # fmt: skip
"""Requests to S3 pass the door; what becomes of them is S3's."""

UNSIGNED = [
    Case("GetRecord", lambda s: s.get().without_headers(b"authorization"), 403, "MissingAuthenticationTokenException"),
    Case("DescribeFeatureGroup", lambda s: s.control().without_headers(b"authorization"), 400, "MissingAuthenticationTokenException"),
    Case("another service", lambda s: s.control().without_headers(b"authorization").with_headers((b"x-amz-target", b"AWSGlue.GetTable")), 400, "MissingAuthenticationTokenException"),
    Case("GetCallerIdentity", lambda s: s.sts().without_headers(b"authorization"), 403, "MissingAuthenticationToken"),
    Case("SQL", lambda s: s.sql().without_headers(b"authorization"), 403, "MissingAuthenticationTokenException"),
    Case("a native route that does not exist", lambda s: s("GET", "/v1/nope").without_headers(b"authorization"), 403, "MissingAuthenticationTokenException"),
    Case("GetObject", lambda s: s.object().without_headers(b"authorization"), 403, "AccessDenied"),
    Case("the root", lambda s: s("GET", "/").without_headers(b"authorization"), 403, "AccessDenied"),
]  # fmt: skip

MISMATCH = "InvalidSignatureException"
BAD = [
    Case("wrong secret, records", lambda s: s.get(secret="another"), 403, MISMATCH),
    Case("wrong secret, feature groups", lambda s: s.control(secret="another"), 400, MISMATCH),
    Case("wrong secret, STS", lambda s: s.sts(secret="another"), 403, "SignatureDoesNotMatch"),
    Case("wrong secret, S3", lambda s: s.object(secret="another"), 403, "SignatureDoesNotMatch"),
    Case("wrong secret, own routes", lambda s: s.sql(secret="another"), 403, MISMATCH),
    Case("unknown key, records", lambda s: s.get(key_id="AKIAUNKNOWN"), 403, "UnrecognizedClientException"),
    Case("unknown key, feature groups", lambda s: s.control(key_id="AKIAUNKNOWN"), 400, "UnrecognizedClientException"),
    Case("unknown key, STS", lambda s: s.sts(key_id="AKIAUNKNOWN"), 403, "InvalidClientTokenId"),
    Case("unknown key, S3", lambda s: s.object(key_id="AKIAUNKNOWN"), 403, "InvalidAccessKeyId"),
    Case("revoked key", lambda s: s.get(by="revoked"), 403, "UnrecognizedClientException"),
    Case("changed signature", lambda s: with_flipped_signature(s.get()), 403, MISMATCH),
    Case("changed body", lambda s: s.put().altered(body=s.put(note="z").body), 403, MISMATCH),
    Case("body cut off", lambda s: s.put().altered(body=b""), 403, MISMATCH),
    Case("changed body with its hash in a header", lambda s: s.put(headers={"X-Amz-Content-SHA256": _put_hash()}).altered(body=s.put(note="z").body), 403, MISMATCH),
    Case("changed body of a feature group request", lambda s: s.control().altered(body=b'{"FeatureGroupName":"other"}'), 400, MISMATCH),
    Case("changed query", lambda s: changed_query(s.get(), b"=k", b"=l"), 403, MISMATCH),
    Case("added query key", lambda s: s.get().altered(query=f"{ONE}&FeatureName=note".encode()), 403, MISMATCH),
    Case("changed repeated query key", lambda s: changed_query(s.get(query=f"{ONE}&FeatureName=note&FeatureName=at"), b"FeatureName=at", b"FeatureName=id"), 403, MISMATCH),
    Case("changed path", lambda s: s.get().altered(path=b"/FeatureGroup/others"), 403, MISMATCH),
    Case("changed ARN", lambda s: s("GET", f"/FeatureGroup/{quote(ARN, safe='')}", query=ONE).altered(path=f"/FeatureGroup/{quote(ARN[:-1], safe='')}".encode()), 403, MISMATCH),
    Case("ARN signed with one encoding", lambda s: s.get().altered(path=f"/FeatureGroup/{quote(ARN, safe='')}".encode()), 403, MISMATCH),
    Case("changed method", lambda s: s.get().altered(method="DELETE", query=f"{ONE}&EventTime={AT}".encode()), 403, MISMATCH),
    Case("changed operation", lambda s: s.control().with_headers((b"x-amz-target", b"SageMaker.DeleteFeatureGroup")), 400, MISMATCH),
    Case("operation that is not signed", lambda s: s("POST", "/", body=b"{}").with_headers((b"x-amz-target", b"SageMaker.ListFeatureGroups")), 400, "IncompleteSignatureException"),
    Case("changed host", lambda s: s.get().with_headers((b"host", b"elsewhere.example")), 403, MISMATCH),
    Case("changed time", lambda s: s.get(age_s=120).with_headers((b"x-amz-date", s.get().header(b"x-amz-date"))), 403, MISMATCH),
    Case("changed region", lambda s: changed_authorization(s.get(), b"us-east-1", b"us-west-2"), 403, MISMATCH),
    Case("changed service", lambda s: changed_authorization(s.get(), b"/sagemaker/", b"/athena/"), 403, MISMATCH),
    Case("another service's signature", lambda s: s.get(service="athena"), 403, MISMATCH),
    Case("records signed for S3", lambda s: s.get(service="s3"), 403, MISMATCH),
    Case("signed 16 minutes ago", lambda s: s.get(age_s=16 * 60), 403, MISMATCH),
    Case("signed 16 minutes ahead", lambda s: s.get(age_s=-16 * 60), 403, MISMATCH),
    Case("signed 16 minutes ago, S3", lambda s: s.object(age_s=16 * 60), 403, "RequestTimeTooSkewed"),
    Case("signed 16 minutes ago, feature groups", lambda s: s.control(age_s=16 * 60), 400, MISMATCH),
    Case("our own client with its clock wrong", lambda s: our_own(s, age_s=3600), 403, MISMATCH),
    Case("presigned URL that has expired", lambda s: s.get(presigned_s=60, age_s=61), 403, MISMATCH),
    Case("presigned URL that has expired, S3", lambda s: s.object(presigned_s=60, age_s=61), 403, "AccessDenied"),
    Case("presigned URL prolonged", lambda s: changed_query(s.get(presigned_s=60, age_s=61), b"Expires=60", b"Expires=600"), 403, MISMATCH),
    Case("presigned URL for too long", lambda s: s.get(presigned_s=604_801), 400, "IncompleteSignatureException"),
    Case("presigned URL for another key", lambda s: s.object(presigned_s=60).altered(path=b"/test-bucket/other"), 403, "SignatureDoesNotMatch"),
    Case("presigned URL for another method", lambda s: s.object(presigned_s=60).altered(method="DELETE"), 403, "SignatureDoesNotMatch"),
    Case("presigned URL with a changed signature", lambda s: s.get(presigned_s=60).altered(query=flipped(s.get(presigned_s=60).request.query)), 403, MISMATCH),
    Case("presigned and signed", lambda s: s.get(presigned_s=60).with_headers((b"authorization", s.get().header(b"authorization"))), 400, "IncompleteSignatureException"),
    Case("basic authentication", lambda s: s.get().with_headers((b"authorization", b"Basic YTpi")), 400, "IncompleteSignatureException"),
    Case("signature version 2", lambda s: s.object().with_headers((b"authorization", b"AWS AKIA:c2ln")), 400, "AuthorizationHeaderMalformed"),
    Case("presigned in signature version 2", lambda s: s("GET", "/test-bucket/a", query="AWSAccessKeyId=a&Signature=b&Expires=9999999999", service="s3").without_headers(b"authorization"), 400, "AuthorizationHeaderMalformed"),
    Case("half a signature", lambda s: changed_authorization(s.get(), b"SignedHeaders=", b"Headers="), 400, "IncompleteSignatureException"),
    Case("host that is not signed", lambda s: changed_authorization(s.get(), b"SignedHeaders=host;", b"SignedHeaders="), 400, "IncompleteSignatureException"),
    Case("session without its token", lambda s: s.by_session("GET", f"/FeatureGroup/{GROUP}", s.session(), query=ONE, token=None), 403, "UnrecognizedClientException"),
    Case("key with a token of no session", lambda s: s.get(token="abc"), 403, "UnrecognizedClientException"),
    Case("key with a token of a session", lambda s: s.get(token=s.session().token), 403, "UnrecognizedClientException"),
    Case("session with a changed token", lambda s: s.by_session("GET", f"/FeatureGroup/{GROUP}", s.session(), query=ONE, token=flipped(s.session().token.encode()).decode()), 403, "UnrecognizedClientException"),
    Case("session with a changed token, S3", lambda s: s.object(token="abc"), 400, "InvalidToken"),
    Case("session with another secret", lambda s: s.by_session("GET", f"/FeatureGroup/{GROUP}", s.session(), query=ONE, secret="x"), 403, MISMATCH),
    Case("session that has ended", lambda s: s.by_session("GET", f"/FeatureGroup/{GROUP}", s.session(ends_in_s=-1), query=ONE), 403, "ExpiredTokenException"),
    Case("session that has ended, feature groups", lambda s: _control_by(s, s.session(ends_in_s=-1)), 400, "ExpiredTokenException"),
    Case("session that has ended, S3", lambda s: s.by_session("GET", "/test-bucket/a", s.session(ends_in_s=-1), service="s3"), 400, "ExpiredToken"),
    Case("session of a revoked key", lambda s: s.by_session("GET", f"/FeatureGroup/{GROUP}", s.session(parent=s.keys["revoked"]), query=ONE), 403, "UnrecognizedClientException"),
    Case("S3 without the body's hash", lambda s: s("GET", "/test-bucket/a", service="s3").without_headers(b"x-amz-content-sha256"), 400, "AuthorizationHeaderMalformed"),
    Case("S3 with another hash", lambda s: s.object("PUT", body=b"x").with_headers((b"x-amz-content-sha256", EMPTY)), 403, "SignatureDoesNotMatch"),
    Case("S3 with its signed body made unsigned", lambda s: s.object("PUT", body=b"x").with_headers((b"x-amz-content-sha256", b"UNSIGNED-PAYLOAD")), 403, "SignatureDoesNotMatch"),
    Case("signed chunks made unsigned ones", lambda s: streamed(s).with_headers((b"x-amz-content-sha256", sigv4.STREAMING_UNSIGNED_TRAILER.encode())), 403, "SignatureDoesNotMatch"),
    Case("signed chunks of another length", lambda s: streamed(s).with_headers((b"x-amz-decoded-content-length", b"6")), 403, "SignatureDoesNotMatch"),
    Case("signed chunks with a changed chunk", lambda s: _rechunked(s, b"\r\nhello", b"\r\nhallo"), 403, "SignatureDoesNotMatch"),
    Case("signed chunks with a changed signature", lambda s: _rechunked(s, b"5;chunk-signature=", b"5;chunk-signature=" + b"0" * 64 + b"\r\nhello\r\n5;chunk-signature="), 403, "SignatureDoesNotMatch"),
    Case("signed chunks with a changed head", lambda s: with_flipped_signature(streamed(s)), 403, "SignatureDoesNotMatch"),
    Case("PutRecord by a key that may read", lambda s: s.put(by="read"), 403, "AccessForbidden"),
    Case("DeleteRecord by a key that may read", lambda s: s("DELETE", f"/FeatureGroup/{GROUP}", by="read", query=f"{ONE}&EventTime={quote(AT)}"), 403, "AccessForbidden"),
    Case("ingest by a key that may read", lambda s: s("POST", f"/v1/groups/{GROUP}/records", by="read"), 403, "AccessForbidden"),
    Case("erase by a key that may write", lambda s: s("POST", f"/v1/groups/{GROUP}/erase", by="write"), 403, "AccessForbidden"),
    Case("DeleteFeatureGroup by a key that may write", lambda s: s.control("DeleteFeatureGroup", by="write"), 400, "AccessDeniedException"),
    Case("an operation that nobody knows by a key that may write", lambda s: s.control("DeleteEverything", by="write"), 400, "AccessDeniedException"),
    Case("PutObject by a key that may read", lambda s: s.object("PUT", by="read", body=b"x"), 403, "AccessDenied"),
    Case("PutObject presigned by a key that may read", lambda s: s.object("PUT", by="read", presigned_s=60), 403, "AccessDenied"),
    Case("an STS operation that nobody knows", lambda s: s.sts(body=b"Action=GetFederationToken"), 400, "InvalidAction"),
    Case("a body that is too long", lambda s: s.control(body=b" " * (9 << 20)), 400, "ValidationException"),
]  # fmt: skip


def _control_by(signer: Signer, session: SessionCredentials) -> Sent:
    headers = JSON | {"X-Amz-Target": "SageMaker.DescribeFeatureGroup"}
    return signer.by_session("POST", "/", session, headers=headers, body=b"{}")


def _rechunked(signer: Signer, old: bytes, new: bytes) -> Sent:
    sent = streamed(signer)
    assert old in sent.body
    return sent.altered(body=sent.body.replace(old, new, 1))


def test_there_are_enough() -> None:
    assert len(GOOD) + len(ADMITTED) >= 40
    assert len(UNSIGNED) + len(BAD) >= 40
    for cases in (GOOD, ADMITTED, UNSIGNED, BAD):
        assert len({case.name for case in cases}) == len(cases)


@pytest.mark.parametrize("case", GOOD, ids=str)
def test_good(service: Service, signer: Signer, case: Case) -> None:
    reply = send(service, case.make(signer))
    assert (reply.status, code_of(reply)) == (200, None), reply


@pytest.mark.parametrize("case", ADMITTED, ids=str)
def test_admitted(service: Service, signer: Signer, case: Case) -> None:
    reply = send(service, case.make(signer))
    refusals = {answer.code for answer in UNSIGNED + BAD if answer.code is not None}
    assert reply.status not in (400, 401, 403), reply
    assert code_of(reply) not in refusals


@pytest.mark.parametrize("case", UNSIGNED, ids=str)
def test_unsigned(service: Service, signer: Signer, case: Case) -> None:
    assert_refused(send(service, case.make(signer)), case)


@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad(service: Service, signer: Signer, case: Case) -> None:
    assert_refused(send(service, case.make(signer)), case)


def assert_refused(reply: Reply, case: Case) -> None:
    assert (reply.status, code_of(reply)) == (case.status, case.code), reply
    assert reply.headers["x-amzn-requestid"]
    assert reply.headers["date"]
    assert ADMIN_SECRET.encode() not in reply.body


def test_what_is_uploaded_in_signed_chunks_is_there(service: Service, signer: Signer) -> None:
    assert send(service, streamed(signer)).status == 200
    found = send(service, signer("GET", "/test-bucket/chunks", service="s3"))
    assert (found.status, found.body) == (200, b"hello")


def test_nothing_bad_has_changed_anything(service: Service, signer: Signer) -> None:
    """Runs behind the ones above."""
    reply = send(service, signer.get())
    assert {item["FeatureName"] for item in reply.json["Record"]} == {"id", "at", "note"}
    described = send(service, signer.control()).json
    assert described["FeatureGroupStatus"] == "Created"


@pytest.mark.parametrize("path", ["/health", "/ready", "/docs", "/docs/swagger-ui.js", "/openapi.json"])
def test_what_holds_no_data_is_open(service: Service, path: str) -> None:
    assert send(service, Sent(Request("GET", path.encode(), b"", [(b"host", b"store.example")]))).status == 200


def test_an_error_of_a_head_request_has_no_body(service: Service, signer: Signer) -> None:
    reply = send(service, signer.object("HEAD", secret="another"))
    assert (reply.status, reply.body) == (403, b"")


@pytest.mark.parametrize("secret", [ADMIN_SECRET, "another"])
def test_a_client_that_waits_with_its_body(service: Service, signer: Signer, secret: str) -> None:
    """It is told to go on, or gets its answer and a closed connection: it will not send the body that was announced."""
    sent = signer.put(secret=secret, headers={"X-Amz-Content-SHA256": _put_hash()})
    target, headers = sent.request.path, [*sent.request.headers, (b"expect", b"100-continue")]
    lines = [
        b"PUT %b HTTP/1.1" % target,
        *(b"%b: %b" % item for item in headers),
        b"content-length: %d" % len(sent.body),
        b"",
        b"",
    ]
    with socket.create_connection(("127.0.0.1", service.port), timeout=ANSWER_S_MAX) as connection:
        connection.sendall(b"\r\n".join(lines))
        stream = connection.makefile("rb")
        first = stream.readline()
        if secret == ADMIN_SECRET:
            assert first.startswith(b"HTTP/1.1 100 ")
            assert stream.readline() == b"\r\n"
            connection.sendall(sent.body)
            assert stream.readline().startswith(b"HTTP/1.1 200 ")
        else:
            assert first.startswith(b"HTTP/1.1 403 ")
            assert b"connection: close" in stream.read().lower()  # to its end: it is closed
        stream.close()


def test_a_wrong_signature_is_found_before_the_body_is_read(service: Service, signer: Signer) -> None:
    """When the request says the hash of its body: nobody can make the service take a long body without a key."""
    body = b" " * (64 << 20)
    headers = {"X-Amz-Content-SHA256": hashlib.sha256(body).hexdigest(), "Content-Length": str(len(body))}
    sent = signer("POST", f"/v1/groups/{GROUP}/records", headers=headers, body=body, secret="another")
    reply = send(service, sent.altered(body=b""))
    assert (reply.status, reply.code) == (403, MISMATCH)
