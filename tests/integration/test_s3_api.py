"""The S3 subset as unmodified boto3 uses it, and raw HTTP where boto3 hides things."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import socket
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import ClientError
from botocore.handlers import validate_bucket_name

from featurestore.offline.s3 import S3ObjectStore
from tests.integration.conftest import Http, Reply
from tests.service import Service

MB = 1 << 20


@pytest.fixture(scope="module")
def s3(service: Service, clean_environment: None) -> Iterator[Any]:
    client = boto3.client("s3", endpoint_url=service.url, config=Config(retries={"total_max_attempts": 1}))
    yield client
    client.close()


@pytest.fixture
def bucket(s3: Any) -> str:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    return name


def refused(call: Callable[..., Any], **parameters: Any) -> tuple[str, int]:
    """Code and status that a call is refused with."""
    with pytest.raises(ClientError) as caught:
        call(**parameters)
    response = caught.value.response
    return response["Error"]["Code"], response["ResponseMetadata"]["HTTPStatusCode"]


def content(s3: Any, bucket: str, key: str, **parameters: Any) -> bytes:
    data: bytes = s3.get_object(Bucket=bucket, Key=key, **parameters)["Body"].read()
    return data


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def code(reply: Reply) -> str:
    return reply.body.partition(b"<Code>")[2].partition(b"</Code>")[0].decode()


# Buckets


def test_buckets_come_and_go(s3: Any) -> None:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    assert refused(s3.head_bucket, Bucket=name) == ("404", 404)
    assert refused(s3.list_objects_v2, Bucket=name) == ("NoSuchBucket", 404)
    assert refused(s3.get_object, Bucket=name, Key="k") == ("NoSuchBucket", 404)
    assert refused(s3.delete_bucket, Bucket=name) == ("NoSuchBucket", 404)
    s3.create_bucket(Bucket=name)
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    assert name in [item["Name"] for item in s3.list_buckets()["Buckets"]]
    assert s3.head_bucket(Bucket=name)["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"] == "us-east-1"
    assert s3.get_bucket_location(Bucket=name)["LocationConstraint"] is None
    assert "Status" not in s3.get_bucket_versioning(Bucket=name)
    assert s3.get_bucket_acl(Bucket=name)["Grants"][0]["Permission"] == "FULL_CONTROL"
    s3.put_object(Bucket=name, Key="k", Body=b"")
    assert refused(s3.delete_bucket, Bucket=name) == ("BucketNotEmpty", 409)
    s3.delete_object(Bucket=name, Key="k")
    s3.delete_bucket(Bucket=name)
    assert name not in [item["Name"] for item in s3.list_buckets()["Buckets"]]


def test_the_services_own_paths_are_no_buckets(s3: Any, http_client: Http) -> None:
    for path in ("/health", "/ready", "/docs", "/openapi.json", "/v1/groups"):
        assert http_client.request("GET", path).status == 200
    for name in ("health", "docs", "ready", "a..b", "Capitals", "192.168.0.1"):
        anything = boto3.client("s3", endpoint_url=s3.meta.endpoint_url)
        anything.meta.events.unregister("before-parameter-build.s3", validate_bucket_name)
        assert refused(anything.create_bucket, Bucket=name) == ("InvalidBucketName", 400), name
        anything.close()
    reply = http_client.request("PUT", "/health")
    assert (reply.status, reply.code) == (404, "UnknownOperationException")
    for path in ("/Capitals/x", "/a", "/v1/unknown", "/_meta/x"):
        reply = http_client.request("GET", path)
        assert (reply.status, reply.code) == (404, "UnknownOperationException"), path


def test_nothing_is_put_into_a_bucket_that_is_not_there(s3: Any) -> None:
    where = {"Bucket": f"bucket-{uuid.uuid4().hex[:12]}", "Key": "k"}
    assert refused(s3.put_object, **where, Body=b"x") == ("NoSuchBucket", 404)
    assert refused(s3.create_multipart_upload, **where) == ("NoSuchBucket", 404)
    assert refused(s3.copy_object, **where, CopySource="a/b") == ("NoSuchBucket", 404)
    assert refused(s3.head_bucket, Bucket=where["Bucket"]) == ("404", 404)


def test_the_buckets_of_feature_groups_are_there(s3: Any, create_group: Callable[..., str]) -> None:
    """Before anything is in them, so that a client can put its spines and results there at once."""
    name = f"features-{uuid.uuid4().hex[:8]}"
    create_group(OfflineStoreConfig={"S3StorageConfig": {"S3Uri": f"s3://{name}/prefix"}})
    for bucket in (name, "sagemaker-us-east-1-000000000000"):
        s3.head_bucket(Bucket=bucket)
        assert bucket in [item["Name"] for item in s3.list_buckets()["Buckets"]]
        assert s3.list_objects_v2(Bucket=bucket)["KeyCount"] == 0
        s3.put_object(Bucket=bucket, Key="spine.csv", Body=b"1,2\n")
        assert content(s3, bucket, "spine.csv") == b"1,2\n"
    assert refused(s3.delete_bucket, Bucket=name) == ("BucketNotEmpty", 409)


# Objects


def test_what_is_put_is_got_with_everything_that_was_said_of_it(s3: Any, bucket: str) -> None:
    stored = s3.put_object(
        Bucket=bucket,
        Key="results/1.csv",
        Body=b"a,b\n1,2\n",
        ContentType="text/csv",
        ContentEncoding="identity",
        ContentDisposition='attachment; filename="x.csv"',
        CacheControl="no-cache",
        Metadata={"Origin": "test", "n": "1"},
        ServerSideEncryption="aws:kms",
        SSEKMSKeyId="some-key",
        ACL="bucket-owner-full-control",
    )
    data = b"a,b\n1,2\n"
    assert stored["ETag"] == f'"{md5(data)}"'
    assert stored["ChecksumCRC32"] == base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()
    got = s3.get_object(Bucket=bucket, Key="results/1.csv")
    assert got["Body"].read() == b"a,b\n1,2\n"
    head = s3.head_object(Bucket=bucket, Key="results/1.csv", ChecksumMode="ENABLED")
    for said in (got, head):
        assert (said["ContentLength"], said["ContentType"], said["ETag"]) == (8, "text/csv", stored["ETag"])
        assert (said["ContentEncoding"], said["CacheControl"]) == ("identity", "no-cache")
        assert (said["Metadata"], said["SSEKMSKeyId"]) == ({"origin": "test", "n": "1"}, "some-key")
        assert said["ChecksumCRC32"] == stored["ChecksumCRC32"]
        assert abs(said["LastModified"] - datetime.now(UTC)) < timedelta(minutes=1)
        assert said["AcceptRanges"] == "bytes"
        assert said["ResponseMetadata"]["RequestId"]


def test_keys_are_taken_as_they_are(s3: Any, bucket: str) -> None:
    keys = ["a", "a/", "a/b", "a//b", "/slash", "é \U0001f600", "%2F", "a+b c", "q?x=1&y#z", "x" * 1000, ".hidden", "A"]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == sorted(keys)
    assert [content(s3, bucket, key) for key in keys] == [key.encode() for key in keys]
    assert refused(s3.put_object, Bucket=bucket, Key="x" * 1025, Body=b"") == ("KeyTooLongError", 400)


def test_what_is_absent(s3: Any, bucket: str) -> None:
    assert refused(s3.get_object, Bucket=bucket, Key="absent") == ("NoSuchKey", 404)
    assert refused(s3.head_object, Bucket=bucket, Key="absent") == ("404", 404)
    assert s3.delete_object(Bucket=bucket, Key="absent")["ResponseMetadata"]["HTTPStatusCode"] == 204


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [("bytes=0-0", 0, 1), ("bytes=5-", 5, 100), ("bytes=-3", 97, 100), ("bytes=90-1000", 90, 100), ("bytes=-1000", 0, 100)],
)
def test_ranges(s3: Any, bucket: str, said: str, first: int, last: int) -> None:
    data = bytes(range(100))
    s3.put_object(Bucket=bucket, Key="k", Body=data)
    got = s3.get_object(Bucket=bucket, Key="k", Range=said)
    assert got["Body"].read() == data[first:last]
    assert got["ContentRange"] == f"bytes {first}-{last - 1}/100"
    assert (got["ContentLength"], got["ResponseMetadata"]["HTTPStatusCode"]) == (last - first, 206)
    assert s3.head_object(Bucket=bucket, Key="k", Range=said)["ContentLength"] == last - first


def test_ranges_without_a_byte(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"0123456789")
    s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    for key, said in (("k", "bytes=10-"), ("k", "bytes=10-20"), ("k", "bytes=-0"), ("empty", "bytes=0-0"), ("empty", "bytes=-1")):
        assert refused(s3.get_object, Bucket=bucket, Key=key, Range=said) == ("InvalidRange", 416), said
    for said in ("bytes=5-2", "bytes=0-1,3-4", "lines=1-2", "bytes=-"):  # what is no range does not count
        assert content(s3, bucket, "k", Range=said) == b"0123456789"


def test_conditions_of_reads(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"x")["ETag"]
    past, future = datetime.now(UTC) - timedelta(days=1), datetime.now(UTC) + timedelta(days=1)
    for parameters in ({"IfMatch": etag}, {"IfMatch": "*"}, {"IfNoneMatch": '"other"'}, {"IfModifiedSince": past}):
        assert content(s3, bucket, "k", **parameters) == b"x"
    assert content(s3, bucket, "k", IfMatch=etag, IfUnmodifiedSince=past) == b"x"
    for parameters in ({"IfNoneMatch": etag}, {"IfModifiedSince": future}, {"IfNoneMatch": etag, "IfModifiedSince": past}):
        assert refused(s3.get_object, Bucket=bucket, Key="k", **parameters)[1] == 304
    for parameters in ({"IfMatch": '"other"'}, {"IfUnmodifiedSince": past}):
        assert refused(s3.get_object, Bucket=bucket, Key="k", **parameters) == ("PreconditionFailed", 412)


def test_conditions_of_writes(s3: Any, bucket: str) -> None:
    etag = s3.put_object(Bucket=bucket, Key="k", Body=b"1", IfNoneMatch="*")["ETag"]
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"2", IfNoneMatch="*") == ("PreconditionFailed", 412)
    assert refused(s3.put_object, Bucket=bucket, Key="new", Body=b"2", IfMatch=etag) == ("PreconditionFailed", 412)
    s3.put_object(Bucket=bucket, Key="k", Body=b"3", IfMatch=etag)
    assert refused(s3.put_object, Bucket=bucket, Key="k", Body=b"4", IfMatch=etag) == ("PreconditionFailed", 412)
    assert content(s3, bucket, "k") == b"3"


def test_our_own_client_of_s3_finds_what_it_rests_on(service: Service, s3: Any, bucket: str, tmp_path: Path) -> None:
    """It refuses services that let one of several concurrent writers overwrite another."""
    store = S3ObjectStore(bucket, "prefix", endpoint=service.url, cache=tmp_path, cache_bytes_max=1 << 30)
    assert store.put_if_absent("a/b", b"first")
    assert not store.put_if_absent("a/b", b"second")
    assert store.get("a/b") == b"first"
    assert [info.key for info in store.page("a", after="", limit=10)] == ["a/b"]


def test_copies(s3: Any, bucket: str) -> None:
    s3.put_object(Bucket=bucket, Key="from é", Body=b"bytes", ContentType="text/csv", Metadata={"a": "1"})
    copied = s3.copy_object(Bucket=bucket, Key="to", CopySource={"Bucket": bucket, "Key": "from é"})
    assert copied["CopyObjectResult"]["ETag"] == f'"{md5(b"bytes")}"'
    got = s3.get_object(Bucket=bucket, Key="to")
    assert (got["Body"].read(), got["ContentType"], got["Metadata"]) == (b"bytes", "text/csv", {"a": "1"})
    same = {"Bucket": bucket, "Key": "to", "CopySource": f"{bucket}/to"}
    assert refused(s3.copy_object, **same) == ("InvalidRequest", 400)
    s3.copy_object(**same, MetadataDirective="REPLACE", Metadata={"b": "2"}, ContentType="text/plain")
    got = s3.get_object(Bucket=bucket, Key="to")
    assert (got["Body"].read(), got["ContentType"], got["Metadata"]) == (b"bytes", "text/plain", {"b": "2"})
    assert refused(s3.copy_object, Bucket=bucket, Key="x", CopySource=f"{bucket}/absent") == ("NoSuchKey", 404)
    etag = md5(b"other")
    assert refused(s3.copy_object, Bucket=bucket, Key="x", CopySource=f"{bucket}/to", CopySourceIfMatch=etag)[1] == 412


def test_deleting_many(s3: Any, bucket: str) -> None:
    keys = [f"k/{number}é<&>" for number in range(20)]
    for key in keys:
        s3.put_object(Bucket=bucket, Key=key, Body=b"")
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in [*keys[:10], "absent"]]})
    assert [item["Key"] for item in answer["Deleted"]] == [*keys[:10], "absent"]
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys[10:15]], "Quiet": True})
    assert "Deleted" not in answer
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == sorted(keys[15:])


# Listings


@pytest.fixture(scope="module")
def listed_bucket(s3: Any) -> tuple[str, list[str]]:
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    keys = ["a", "a/b", "a/b/c", "a/d", "a0", "b/x y.csv", "b/y.csv", "c//d", "é/1"]
    for key in keys:
        s3.put_object(Bucket=name, Key=key, Body=key.encode())
    return name, keys


@pytest.mark.parametrize("page", [1, 2, 3, 1000])
@pytest.mark.parametrize("operation", ["list_objects_v2", "list_objects"])
@pytest.mark.parametrize(
    ("prefix", "delimiter"), [("", ""), ("a", ""), ("", "/"), ("a/", "/"), ("b/", "/"), ("", "b"), ("zz", "/")]
)
def test_listings(s3: Any, listed_bucket: tuple[str, list[str]], operation: str, prefix: str, delimiter: str, page: int) -> None:
    bucket, keys = listed_bucket
    expected_keys, expected_prefixes = [], []
    for key in keys:
        end = key.find(delimiter, len(prefix)) if delimiter else -1
        if key.startswith(prefix):
            (expected_keys if end < 0 else expected_prefixes).append(key if end < 0 else key[: end + len(delimiter)])
    found_keys, found_prefixes = [], []
    paginator = s3.get_paginator(operation)
    for answer in paginator.paginate(Bucket=bucket, Prefix=prefix, Delimiter=delimiter, PaginationConfig={"PageSize": page}):
        found_keys += [item["Key"] for item in answer.get("Contents", ())]
        found_prefixes += [item["Prefix"] for item in answer.get("CommonPrefixes", ())]
        assert len(answer.get("Contents", ())) + len(answer.get("CommonPrefixes", ())) <= page
    assert found_keys == expected_keys
    assert found_prefixes == list(dict.fromkeys(expected_prefixes))


def test_what_a_listing_says(s3: Any, listed_bucket: tuple[str, list[str]]) -> None:
    bucket, _ = listed_bucket
    answer = s3.list_objects_v2(Bucket=bucket, StartAfter="a/b/c", MaxKeys=2, FetchOwner=True)
    assert (answer["KeyCount"], answer["IsTruncated"], answer["StartAfter"]) == (2, True, "a/b/c")
    first = answer["Contents"][0]
    assert (first["Key"], first["Size"], first["ETag"]) == ("a/d", 3, f'"{md5(b"a/d")}"')
    assert first["LastModified"] == s3.list_objects(Bucket=bucket, Prefix="a/d")["Contents"][0]["LastModified"]
    assert "Owner" in first
    empty = s3.list_objects_v2(Bucket=bucket, MaxKeys=0)
    assert (empty["KeyCount"], empty["IsTruncated"]) == (0, False)
    assert refused(s3.list_objects_v2, Bucket=bucket, ContinuationToken="nonsense") == ("InvalidArgument", 400)
    assert refused(s3.list_objects_v2, Bucket=bucket, EncodingType="base64") == ("InvalidArgument", 400)


# Multipart uploads


@pytest.mark.parametrize("seekable", [True, False])
def test_transfers_in_parts(s3: Any, bucket: str, seekable: bool) -> None:
    data = random.Random(1).randbytes(20 * MB + 17)

    class Stream(io.BytesIO):
        def seekable(self) -> bool:
            return seekable

    config = TransferConfig(multipart_threshold=8 * MB, multipart_chunksize=8 * MB)
    s3.upload_fileobj(Stream(data), bucket, "large", Config=config, ExtraArgs={"ContentType": "text/csv", "Metadata": {"a": "1"}})
    head = s3.head_object(Bucket=bucket, Key="large")
    parts = [data[start : start + 8 * MB] for start in range(0, len(data), 8 * MB)]
    expected = hashlib.md5(b"".join(bytes.fromhex(md5(part)) for part in parts), usedforsecurity=False).hexdigest()
    assert (head["ETag"], head["ContentLength"]) == (f'"{expected}-3"', len(data))
    assert (head["ContentType"], head["Metadata"]) == ("text/csv", {"a": "1"})
    into = io.BytesIO()
    s3.download_fileobj(bucket, "large", into, Config=config)
    assert into.getvalue() == data
    s3.copy({"Bucket": bucket, "Key": "large"}, bucket, "copy", Config=config)  # UploadPartCopy
    assert content(s3, bucket, "copy") == data
    s3.copy_object(Bucket=bucket, Key="in one", CopySource=f"{bucket}/large")
    copied = s3.get_object(Bucket=bucket, Key="in one", ChecksumMode="ENABLED")
    assert (copied["Body"].read(), copied["ETag"]) == (data, f'"{md5(data)}"')
    assert "ChecksumCRC32" not in copied
    assert s3.list_multipart_uploads(Bucket=bucket).get("Uploads", []) == []


def test_an_upload_step_by_step(s3: Any, bucket: str) -> None:
    where = {"Bucket": bucket, "Key": "k"}
    s3.put_object(**where, Body=b"old")
    upload = where | {"UploadId": s3.create_multipart_upload(**where, ChecksumAlgorithm="SHA256")["UploadId"]}
    first = s3.upload_part(**upload, PartNumber=1, Body=b"x" * 5 * MB, ChecksumAlgorithm="SHA256")
    s3.upload_part(**upload, PartNumber=7, Body=b"replaced", ChecksumAlgorithm="SHA256")
    last = s3.upload_part(**upload, PartNumber=7, Body=b"last", ChecksumAlgorithm="SHA256")
    s3.upload_part(**upload, PartNumber=9, Body=b"not wanted", ChecksumAlgorithm="SHA256")
    listed = s3.list_parts(**upload, MaxParts=2)
    assert [(part["PartNumber"], part["Size"]) for part in listed["Parts"]] == [(1, 5 * MB), (7, 4)]
    assert listed["IsTruncated"]
    assert [item["UploadId"] for item in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload["UploadId"]]
    assert content(s3, bucket, "k") == b"old"

    parts = [
        {"PartNumber": 1, "ETag": first["ETag"], "ChecksumSHA256": first["ChecksumSHA256"]},
        {"PartNumber": 7, "ETag": last["ETag"], "ChecksumSHA256": last["ChecksumSHA256"]},
    ]

    def complete(*wanted: dict[str, Any]) -> Any:
        return s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": [*wanted]})

    assert refused(complete) == ("MalformedXML", 400)
    for wanted, expected in (
        ([parts[1], parts[0]], "InvalidPartOrder"),
        ([parts[0], {"PartNumber": 3, "ETag": last["ETag"]}], "InvalidPart"),
        ([parts[0], {"PartNumber": 7, "ETag": first["ETag"]}], "InvalidPart"),
        ([parts[0], parts[1] | {"ChecksumSHA256": first["ChecksumSHA256"]}], "InvalidPart"),
        ([parts[1], {"PartNumber": 9, "ETag": f'"{md5(b"not wanted")}"'}], "EntityTooSmall"),
    ):
        with pytest.raises(ClientError) as caught:
            complete(*wanted)
        assert caught.value.response["Error"]["Code"] == expected
    assert content(s3, bucket, "k") == b"old"
    done = complete(*parts)
    digests = b"".join(base64.b64decode(part["ChecksumSHA256"]) for part in parts)
    assert done["ChecksumSHA256"] == f"{base64.b64encode(hashlib.sha256(digests).digest()).decode()}-2"
    assert content(s3, bucket, "k") == b"x" * 5 * MB + b"last"
    again = complete(*parts)  # as after a lost answer
    assert (again["ETag"], again["ChecksumSHA256"]) == (done["ETag"], done["ChecksumSHA256"])
    assert refused(s3.upload_part, **upload, PartNumber=1, Body=b"") == ("NoSuchUpload", 404)
    assert refused(s3.abort_multipart_upload, **upload) == ("NoSuchUpload", 404)


def test_aborted_and_unknown_uploads(s3: Any, bucket: str, service: Service) -> None:
    where = {"Bucket": bucket, "Key": "k"}
    upload = where | {"UploadId": s3.create_multipart_upload(**where)["UploadId"]}
    s3.upload_part(**upload, PartNumber=1, Body=b"x")
    assert refused(s3.upload_part, **upload, PartNumber=10_001, Body=b"x") == ("InvalidArgument", 400)
    assert refused(s3.list_parts, Bucket=bucket, Key="other", UploadId=upload["UploadId"]) == ("NoSuchUpload", 404)
    s3.abort_multipart_upload(**upload)
    for unknown in (upload["UploadId"], "x", "../../etc", "0" * 32):
        assert refused(s3.list_parts, **where, UploadId=unknown) == ("NoSuchUpload", 404)
    assert not (service.home / "buckets" / "_uploads" / upload["UploadId"]).exists()
    assert refused(s3.get_object, **where) == ("NoSuchKey", 404)


# Bodies


def chunked(*chunks: bytes, trailers: bytes = b"", signed: bool = False) -> bytes:
    extension = b";chunk-signature=" + b"0" * 64 if signed else b""
    framed = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    return framed + b"0%b\r\n%b\r\n" % (extension, trailers)


CRC = base64.b64encode(zlib.crc32(b"hello world").to_bytes(4, "big"))
TRAILER_HEADERS = {
    "X-Amz-Content-SHA256": "STREAMING-UNSIGNED-PAYLOAD-TRAILER",
    "X-Amz-Trailer": "x-amz-checksum-crc32",
    "Content-Encoding": "aws-chunked",
    "X-Amz-Decoded-Content-Length": "11",
}


def test_a_chunked_body_with_a_trailer(s3: Any, bucket: str, http_client: Http) -> None:
    """As boto3 sends it over TLS."""
    body = chunked(b"hello ", b"world", trailers=b"x-amz-checksum-crc32:" + CRC + b"\r\n")
    reply = http_client.request("PUT", f"/{bucket}/k", body, TRAILER_HEADERS)
    assert (reply.status, reply.headers["x-amz-checksum-crc32"]) == (200, CRC.decode())
    got = s3.get_object(Bucket=bucket, Key="k")
    assert got["Body"].read() == b"hello world"
    assert "ContentEncoding" not in got


def test_a_chunked_body_in_single_bytes(s3: Any, bucket: str, service: Service) -> None:
    body = chunked(b"hello ", b"world", signed=True)
    head = (
        f"PUT /{bucket}/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\nContent-Encoding: aws-chunked,gzip\r\n"
        "x-amz-content-sha256: STREAMING-AWS4-HMAC-SHA256-PAYLOAD\r\nConnection: close\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(head.encode())
        for byte in body:
            connection.sendall(bytes([byte]))
        assert connection.recv(100).startswith(b"HTTP/1.1 200")
    head_object = s3.head_object(Bucket=bucket, Key="k")
    assert (head_object["ContentEncoding"], head_object["ContentLength"]) == ("gzip", 11)


@pytest.mark.parametrize(
    ("body", "headers", "expected"),
    [
        (chunked(b"hello world", trailers=b"x-amz-checksum-crc32:AAAAAA==\r\n"), {}, "BadDigest"),
        (chunked(b"hello world"), {}, "MalformedTrailerError"),
        (chunked(b"hello")[:-2], {"X-Amz-Trailer": ""}, "IncompleteBody"),
        (b"5\r\nhel", {}, "IncompleteBody"),
        (b"5\r\nhello world\r\n0\r\n\r\n", {}, "InvalidRequest"),
        (b"zz\r\nhello\r\n0\r\n\r\n", {}, "InvalidRequest"),
        (b"-5\r\nhello\r\n0\r\n\r\n", {}, "InvalidRequest"),
        (b"x" * 20_000, {}, "InvalidRequest"),
        (chunked(b"hello world", trailers=b"nonsense\r\n"), {}, "InvalidRequest"),
        (b"ffffffffffffffff\r\nhello", {}, "IncompleteBody"),
        (chunked(b"hello world"), {"X-Amz-Decoded-Content-Length": "x"}, "InvalidArgument"),
        (chunked(b"hello world"), {"X-Amz-Decoded-Content-Length": str(6 << 30)}, "EntityTooLarge"),
        (chunked(b"hello world"), {"X-Amz-Trailer": "x-amz-checksum-md17"}, "NotImplemented"),
        (chunked(b"x"), {"X-Amz-Content-SHA256": "STREAMING-AWS4-HMAC-SHA256-PAYLOAD", "X-Amz-Trailer": ""}, "InvalidRequest"),
    ],
)
def test_chunked_bodies_that_are_wrong(
    s3: Any, bucket: str, http_client: Http, body: bytes, headers: dict[str, str], expected: str
) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"old")
    reply = http_client.request("PUT", f"/{bucket}/k", body, TRAILER_HEADERS | headers)
    assert code(reply) == expected
    assert reply.status == (501 if expected == "NotImplemented" else 400)
    assert content(s3, bucket, "k") == b"old"


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Content-MD5": base64.b64encode(b"0" * 16).decode()}, "BadDigest"),
        ({"Content-MD5": "short"}, "InvalidDigest"),
        ({"x-amz-content-sha256": "0" * 64}, "XAmzContentSHA256Mismatch"),
        ({"x-amz-checksum-crc32": "AAAAAA=="}, "BadDigest"),
        ({"x-amz-checksum-crc32c": "AAAAAA=="}, "BadDigest"),
        ({"x-amz-checksum-crc64nvme": "AAAAAAAAAAA="}, "BadDigest"),
        ({"x-amz-checksum-sha1": "nonsense"}, "BadDigest"),
        ({"x-amz-checksum-sha256": base64.b64encode(b"0" * 32).decode()}, "BadDigest"),
        ({"x-amz-server-side-encryption-customer-algorithm": "AES256"}, "NotImplemented"),
        ({"x-amz-tagging": "a=b"}, "NotImplemented"),
        ({"x-amz-meta-large": "x" * 3000}, "MetadataTooLarge"),
        ({"If-None-Match": '"x"'}, "NotImplemented"),
        ({"Content-Length": str(6 << 30)}, "EntityTooLarge"),
    ],
)
def test_bodies_that_are_not_what_was_said(
    s3: Any, bucket: str, http_client: Http, headers: dict[str, str], expected: str
) -> None:
    reply = http_client.request("PUT", f"/{bucket}/k", b"hello world", headers)
    assert code(reply) == expected
    assert refused(s3.head_object, Bucket=bucket, Key="k")[1] == 404


@pytest.mark.parametrize("algorithm", ["CRC32", "CRC32C", "SHA1", "SHA256"])
def test_checksums_are_kept_and_told(s3: Any, bucket: str, algorithm: str) -> None:
    stored = (
        s3.put_object(Bucket=bucket, Key="k", Body=b"hello world", ChecksumAlgorithm=algorithm) if algorithm != "CRC32C" else None
    )
    if stored is None:  # boto3 makes this one only with a package of its own
        stored = s3.put_object(Bucket=bucket, Key="k", Body=b"hello world", ChecksumCRC32C="yZRlqg==")
    name = f"Checksum{algorithm}"
    assert s3.get_object(Bucket=bucket, Key="k", ChecksumMode="ENABLED")[name] == stored[name]
    assert name not in s3.get_object(Bucket=bucket, Key="k", Range="bytes=0-1", ChecksumMode="ENABLED")


def test_an_upload_that_breaks_off_leaves_nothing(s3: Any, bucket: str, service: Service) -> None:
    s3.put_object(Bucket=bucket, Key="k", Body=b"old")
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.sendall(f"PUT /{bucket}/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nhalf".encode())
        temporary = service.home / "buckets" / "_tmp"
        wait_until(lambda: any(temporary.iterdir()))
    wait_until(lambda: not any(temporary.iterdir()))
    assert content(s3, bucket, "k") == b"old"


def test_expect_100_continue(bucket: str, service: Service) -> None:
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as connection:
        head = f"PUT /{bucket}/k HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
        connection.sendall(f"{head}Expect: 100-continue\r\nConnection: close\r\n\r\n".encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(b"hello")
        assert connection.recv(100).startswith(b"HTTP/1.1 200")


def wait_until(holds: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


# Requests


def test_presigned_urls(s3: Any, bucket: str) -> None:
    put = s3.generate_presigned_url("put_object", Params={"Bucket": bucket, "Key": "a/é"})
    assert httpx.put(put, content=b"bytes").status_code == 200
    parameters = {"Bucket": bucket, "Key": "a/é", "ResponseContentType": "text/x", "ResponseContentDisposition": "attachment"}
    got = httpx.get(s3.generate_presigned_url("get_object", Params=parameters))
    assert (got.status_code, got.content) == (200, b"bytes")
    assert (got.headers["content-type"], got.headers["content-disposition"]) == ("text/x", "attachment")


@pytest.mark.parametrize(
    ("method", "query", "expected"),
    [
        ("GET", "?policy", "NotImplemented"),
        ("PUT", "?versioning", "NotImplemented"),
        ("GET", "?versions", "NotImplemented"),
        ("POST", "", "NotImplemented"),
        ("PATCH", "", "NotImplemented"),
        ("GET", "?list-type=2&max-keys=-1", "InvalidArgument"),
        ("POST", "?delete", "MalformedXML"),
    ],
)
def test_what_is_not_offered_says_so(http_client: Http, bucket: str, method: str, query: str, expected: str) -> None:
    reply = http_client.request(method, f"/{bucket}{query}", b"" if method == "POST" else None)
    assert code(reply) == expected
    assert reply.headers["content-type"] == "application/xml"
    assert reply.headers["x-amz-request-id"].encode() in reply.body


@pytest.mark.parametrize(
    "body",
    [
        b"nonsense",
        b"<Delete></Delete>",
        b"<Delete><Object></Object></Delete>",
        b"<Other/>",
        b'<!DOCTYPE x [<!ENTITY a "b">]><Delete><Object><Key>&a;</Key></Object></Delete>',
        b"<Delete>" + b"<Object><Key>k</Key></Object>" * 1001 + b"</Delete>",
        b"\xff\xfe<",
    ],
)
def test_malformed_xml(http_client: Http, bucket: str, body: bytes) -> None:
    reply = http_client.request("POST", f"/{bucket}?delete", body)
    assert (reply.status, code(reply)) == (400, "MalformedXML")


def test_a_body_of_xml_is_bounded(http_client: Http, bucket: str) -> None:
    assert code(http_client.request("POST", f"/{bucket}?delete", b"x" * 5 * MB)) == "EntityTooLarge"


def test_paths_that_lead_nowhere(http_client: Http, bucket: str, service: Service) -> None:
    """Dots and slashes, plain and encoded, are part of a key."""
    secret = service.home / "registry.db"
    assert secret.exists()
    for path in (
        "../registry.db",
        "..%2Fregistry.db",
        "%2E%2E/registry.db",
        "../../registry.db",
        "/etc/passwd",
        "..%00",
        "a/../../x",
    ):
        reply = http_client.request("GET", f"/{bucket}/{path}")
        assert (reply.status, code(reply)) == (404, "NoSuchKey"), path
        assert http_client.request("PUT", f"/{bucket}/{path}", b"mine").status == 200
        assert http_client.request("GET", f"/{bucket}/{path}").body == b"mine"
        assert http_client.request("DELETE", f"/{bucket}/{path}").status == 204
    assert secret.read_bytes()[:6] == b"SQLite"
    assert not (service.home / "buckets" / "registry.db").exists()
    assert code(http_client.request("GET", f"/{bucket}/%FF")) == "InvalidURI"
    signed = {"Authorization": "AWS4-HMAC-SHA256 Credential=x/20240501/us-east-1/s3/aws4_request"}
    assert code(http_client.request("GET", "//key", headers=signed)) == "InvalidBucketName"
    os.symlink(secret, service.home / "buckets" / bucket / "link.db")
    os.symlink(service.home, service.home / "buckets" / bucket / "home")
    for path in ("link.db", "home/registry.db"):
        assert code(http_client.request("GET", f"/{bucket}/{path}")) == "NoSuchKey"
    assert b"link" not in http_client.request("GET", f"/{bucket}?list-type=2").body
    http_client.request("PUT", f"/{bucket}/home/registry.db", b"mine")
    assert secret.read_bytes()[:6] == b"SQLite"


# The offline layout


def test_the_offline_layout_is_there_to_read(
    s3: Any, sagemaker: Any, runtime: Any, create_group: Callable[..., str], http_client: Http, service: Service
) -> None:
    bucket = f"features-{uuid.uuid4().hex[:8]}"
    name = create_group(OfflineStoreConfig={"S3StorageConfig": {"S3Uri": f"s3://{bucket}/some/prefix"}})
    record = [{"FeatureName": "id", "ValueAsString": "1"}, {"FeatureName": "at", "ValueAsString": "2024-05-01T00:00:00Z"}]
    runtime.put_record(FeatureGroupName=name, Record=record)
    assert http_client.request("POST", "/v1/flush", b"").status == 200
    described = sagemaker.describe_feature_group(FeatureGroupName=name)
    uri = described["OfflineStoreConfig"]["S3StorageConfig"]["ResolvedOutputS3Uri"]
    root = uri.removeprefix(f"s3://{bucket}/")
    assert bucket in [item["Name"] for item in s3.list_buckets()["Buckets"]]
    s3.head_bucket(Bucket=bucket)
    (file,) = s3.list_objects_v2(Bucket=bucket)["Contents"]  # and no manifest
    assert file["Key"].startswith(f"{root}/year=2024/month=05/day=01/hour=00/")
    assert file["Key"].endswith(".parquet")
    data = content(s3, bucket, file["Key"])
    assert (data[:4], data[-4:], len(data)) == (b"PAR1", b"PAR1", file["Size"])
    assert content(s3, bucket, file["Key"], Range="bytes=-4") == b"PAR1"
    assert s3.head_object(Bucket=bucket, Key=file["Key"])["ETag"] == file["ETag"]
    manifests = list((service.home / "offline" / bucket).rglob("manifest/*.json"))
    hidden = manifests[0].relative_to(service.home / "offline" / bucket).as_posix()
    assert refused(s3.get_object, Bucket=bucket, Key=hidden) == ("NoSuchKey", 404)

    for key in (file["Key"], f"{root}/year=2024/mine.parquet", hidden):
        assert refused(s3.put_object, Bucket=bucket, Key=key, Body=b"x") == ("AccessDenied", 403)
        assert refused(s3.delete_object, Bucket=bucket, Key=key) == ("AccessDenied", 403)
        assert refused(s3.create_multipart_upload, Bucket=bucket, Key=key) == ("AccessDenied", 403)
        assert refused(s3.copy_object, Bucket=bucket, Key=key, CopySource=f"{bucket}/{file['Key']}") == ("AccessDenied", 403)
    (error,) = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": file["Key"]}]})["Errors"]
    assert error["Code"] == "AccessDenied"
    assert refused(s3.delete_bucket, Bucket=bucket) == ("BucketNotEmpty", 409)
    assert content(s3, bucket, file["Key"]) == data

    s3.put_object(Bucket=bucket, Key="results/1.csv", Body=b"mine")
    s3.copy_object(Bucket=bucket, Key="copy.parquet", CopySource=f"{bucket}/{file['Key']}")
    assert content(s3, bucket, "copy.parquet") == data
    keys = [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert keys == ["copy.parquet", "results/1.csv", file["Key"]]
    top = s3.list_objects_v2(Bucket=bucket, Delimiter="/")
    assert [item["Prefix"] for item in top["CommonPrefixes"]] == ["results/", "some/"]
    assert http_client.offline_rows(name) == 1


def test_a_link_among_the_offline_files_is_not_followed(
    s3: Any, create_group: Callable[..., str], sagemaker: Any, service: Service
) -> None:
    bucket = f"features-{uuid.uuid4().hex[:8]}"
    name = create_group(OfflineStoreConfig={"S3StorageConfig": {"S3Uri": f"s3://{bucket}"}})
    uri = sagemaker.describe_feature_group(FeatureGroupName=name)["OfflineStoreConfig"]["S3StorageConfig"]["ResolvedOutputS3Uri"]
    folder = service.home / "offline" / uri.removeprefix("s3://")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "mine.txt").write_text("text")
    os.symlink(service.home / "registry.db", folder / "link.txt")
    root = uri.removeprefix(f"s3://{bucket}/")
    assert [item["Key"] for item in s3.list_objects_v2(Bucket=bucket)["Contents"]] == [f"{root}/mine.txt"]
    assert refused(s3.get_object, Bucket=bucket, Key=f"{root}/link.txt") == ("NoSuchKey", 404)


# Other homes


def test_a_put_that_is_killed_leaves_the_old_object(tmp_path: Path, clean_environment: None) -> None:
    service = Service(tmp_path / "home", tmp_path / "log")
    with service:
        client = boto3.client("s3", endpoint_url=service.url)
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="k.csv", Body=b"old")
        with socket.create_connection(("127.0.0.1", service.port)) as connection:
            head = "PUT /bucket/k.csv HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10000000\r\n\r\n"
            connection.sendall(head.encode() + b"x" * 5_000_000)
            temporary = service.home / "buckets" / "_tmp"
            wait_until(lambda: any(path.stat().st_size > 1_000_000 for path in temporary.iterdir()))
            service.kill()
        client.close()
        service.start()
        client = boto3.client("s3", endpoint_url=service.url)
        assert [item["Key"] for item in client.list_objects_v2(Bucket="bucket")["Contents"]] == ["k.csv"]
        assert client.get_object(Bucket="bucket", Key="k.csv")["Body"].read() == b"old"
        assert list(temporary.iterdir()) == []
        client.close()


def test_clients_are_told_where_a_real_service_is(tmp_path: Path, s3_server: Any, clean_environment: None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_S3", s3_server.url)
        with Service(tmp_path / "home", tmp_path / "log", buckets_url="s3://") as service:
            answer = httpx.get(f"{service.url}/bucket/key")
            assert answer.status_code == 501
            assert s3_server.url in answer.text
            assert json.loads(httpx.get(f"{service.url}/health").content) == {"status": "ok"}
