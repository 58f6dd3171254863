"""S3 and STS through plain boto3: uploads in every way that the client sends them, listings, the offline store's own files."""

from __future__ import annotations

import hashlib
import io
import os
import ssl
import urllib.parse
import urllib.request
import uuid

import boto3
import botocore
from botocore.config import Config
from calls import Calls, refused
from steps import step, wait_until

calls = Calls()
s3 = calls.watch(boto3.client("s3"))
sts = calls.watch(boto3.client("sts"))
bucket = f"objects-{uuid.uuid4().hex[:8]}"
strange = "deep/folder/a b+c&d=e%h#ü€😀~(1)'!*.csv"

with step("STS: GetCallerIdentity, AssumeRole, and what it gives can be signed with"):
    who = sts.get_caller_identity()
    assert who["Account"].isdigit(), who
    assert len(who["Account"]) == 12, who
    assert who["Arn"].split(":")[4] == who["Account"], who
    assert who["UserId"], who
    role = f"arn:aws:iam::{who['Account']}:role/FeatureStore"
    given = sts.assume_role(RoleArn=role, RoleSessionName="SagemakerExecution")["Credentials"]
    assumed = boto3.Session(given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"])
    assert assumed.client("sts").get_caller_identity()["Account"] == who["Account"]

with step("CreateBucket, HeadBucket, ListBuckets"):
    s3.create_bucket(Bucket=bucket)
    s3.head_bucket(Bucket=bucket)
    assert bucket in [entry["Name"] for entry in s3.list_buckets()["Buckets"]]

with step("PutObject, HeadObject, GetObject: whole, in part, with a name that has to be escaped"):
    body = b"id,amount\n1,0.5\n"
    etag = s3.put_object(Bucket=bucket, Key=strange, Body=body, ContentType="text/csv")["ETag"]
    head = s3.head_object(Bucket=bucket, Key=strange)
    assert (head["ContentLength"], head["ETag"]) == (len(body), etag), head
    assert head["ContentType"] == "text/csv", head
    assert head["LastModified"], head
    assert "aws-chunked" not in head.get("ContentEncoding", ""), head
    assert s3.get_object(Bucket=bucket, Key=strange)["Body"].read() == body
    part = s3.get_object(Bucket=bucket, Key=strange, Range="bytes=3-8")
    assert part["Body"].read() == body[3:9]
    assert part["ContentRange"] == f"bytes 3-8/{len(body)}", part
    assert part["ResponseMetadata"]["HTTPStatusCode"] == 206
    s3.put_object(Bucket=bucket, Key="empty", Body=b"")
    assert s3.get_object(Bucket=bucket, Key="empty")["Body"].read() == b""
    s3.put_object(Bucket=bucket, Key="/leading", Body=b"slash")
    assert s3.get_object(Bucket=bucket, Key="/leading")["Body"].read() == b"slash"
    s3.put_object(Bucket=bucket, Key=strange, Body=b"newer")
    assert s3.get_object(Bucket=bucket, Key=strange)["Body"].read() == b"newer"

with step("20 MiB in parts, down again in ranges"):
    large = hashlib.shake_256(b"seed").digest(20 << 20)
    s3.upload_fileobj(io.BytesIO(large), bucket, "large.bin")
    assert calls.succeeded >= {"CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"}, calls.succeeded
    received = io.BytesIO()
    s3.download_fileobj(bucket, "large.bin", received)
    assert hashlib.sha256(received.getvalue()).digest() == hashlib.sha256(large).digest()
    upload = s3.create_multipart_upload(Bucket=bucket, Key="given-up")["UploadId"]
    s3.upload_part(Bucket=bucket, Key="given-up", UploadId=upload, PartNumber=1, Body=b"x")
    s3.abort_multipart_upload(Bucket=bucket, Key="given-up", UploadId=upload)
    refused(s3.head_object, "404", 404, Bucket=bucket, Key="given-up")

with step("an upload in parts by hand, one of them copied; what is known of it meanwhile"):
    named = {"Bucket": bucket, "Key": "by-hand"}
    upload = s3.create_multipart_upload(**named)["UploadId"]
    assert [entry["UploadId"] for entry in s3.list_multipart_uploads(Bucket=bucket)["Uploads"]] == [upload]
    first = s3.upload_part_copy(
        **named,
        UploadId=upload,
        PartNumber=1,
        CopySource={"Bucket": bucket, "Key": "large.bin"},
        CopySourceRange="bytes=0-6291455",
    )["CopyPartResult"]["ETag"]
    second = s3.upload_part(**named, UploadId=upload, PartNumber=2, Body=b"end")["ETag"]
    parts = [(part["PartNumber"], part["ETag"]) for part in s3.list_parts(**named, UploadId=upload)["Parts"]]
    assert parts == [(1, first), (2, second)], parts
    s3.complete_multipart_upload(
        **named, UploadId=upload, MultipartUpload={"Parts": [{"PartNumber": number, "ETag": etag} for number, etag in parts]}
    )
    assert s3.get_object(**named)["Body"].read() == large[:6291456] + b"end"

with step("CopyObject, and what scripts ask of buckets and objects"):
    s3.copy_object(Bucket=bucket, Key="copy", CopySource={"Bucket": bucket, "Key": strange})
    assert s3.get_object(Bucket=bucket, Key="copy")["Body"].read() == b"newer"
    assert s3.get_bucket_location(Bucket=bucket)["LocationConstraint"] is None  # us-east-1
    assert "Status" not in s3.get_bucket_versioning(Bucket=bucket)
    assert s3.get_bucket_acl(Bucket=bucket)["Owner"]
    assert s3.get_object_acl(Bucket=bucket, Key="copy")["Owner"]
    assert s3.get_object_tagging(Bucket=bucket, Key="copy")["TagSet"] == []

with step("one megabyte and a bit in one piece, so that more than one chunk is sent"):
    piece = large[: (1 << 20) + 17]
    s3.put_object(Bucket=bucket, Key="piece.bin", Body=io.BytesIO(piece))
    assert s3.get_object(Bucket=bucket, Key="piece.bin")["Body"].read() == piece

with step("ListObjectsV2 and ListObjects: prefixes, folders, pages"):
    for number in range(5):
        s3.put_object(Bucket=bucket, Key=f"list/{number // 3}/{number}.csv", Body=b"1")
    names = [f"list/{number // 3}/{number}.csv" for number in range(5)]
    listed = s3.list_objects_v2(Bucket=bucket, Prefix="list/")
    assert [entry["Key"] for entry in listed["Contents"]] == names, listed
    assert listed["KeyCount"] == 5, listed
    assert {entry["Size"] for entry in listed["Contents"]} == {1}
    folders = s3.list_objects_v2(Bucket=bucket, Prefix="list/", Delimiter="/")
    assert [entry["Prefix"] for entry in folders["CommonPrefixes"]] == ["list/0/", "list/1/"], folders
    for operation in ("list_objects_v2", "list_objects"):
        pages = list(s3.get_paginator(operation).paginate(Bucket=bucket, Prefix="list/", PaginationConfig={"PageSize": 2}))
        assert [[entry["Key"] for entry in page["Contents"]] for page in pages] == [names[:2], names[2:4], names[4:]], pages
    after = s3.list_objects_v2(Bucket=bucket, Prefix="list/", StartAfter=names[2])
    assert [entry["Key"] for entry in after["Contents"]] == names[3:], after
    (found,) = s3.list_objects_v2(Bucket=bucket, Prefix="deep/")["Contents"]
    assert found["Key"] == strange, found
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket, Prefix="nothing/")

with step("a presigned address can be read without credentials"):
    url = boto3.client("s3", config=Config(signature_version="s3v4")).generate_presigned_url(
        "get_object", Params={"Bucket": bucket, "Key": strange}
    )
    context = ssl.create_default_context(cafile=os.environ["AWS_CA_BUNDLE"]) if url.startswith("https") else None
    with urllib.request.urlopen(url, context=context, timeout=30) as answer:
        assert answer.read() == b"newer"

with step("the offline store's files can be listed and read where DescribeFeatureGroup says"):
    sagemaker = boto3.client("sagemaker")
    runtime = boto3.client("sagemaker-featurestore-runtime")
    group = f"objects-{uuid.uuid4().hex[:8]}"
    sagemaker.create_feature_group(
        FeatureGroupName=group,
        RecordIdentifierFeatureName="id",
        EventTimeFeatureName="at",
        FeatureDefinitions=[{"FeatureName": "id", "FeatureType": "String"}, {"FeatureName": "at", "FeatureType": "String"}],
        OfflineStoreConfig={"S3StorageConfig": {"S3Uri": "s3://objects-offline/prefix"}},
    )
    values = [{"FeatureName": "id", "ValueAsString": "a"}, {"FeatureName": "at", "ValueAsString": "2026-01-02T03:04:05Z"}]
    runtime.put_record(FeatureGroupName=group, Record=values)
    config = sagemaker.describe_feature_group(FeatureGroupName=group)["OfflineStoreConfig"]["S3StorageConfig"]
    where = urllib.parse.urlparse(config["ResolvedOutputS3Uri"])
    (entry,) = wait_until(
        lambda: s3.list_objects_v2(Bucket=where.netloc, Prefix=where.path.strip("/")).get("Contents"), "the row is offline"
    )
    assert "/year=2026/month=01/day=02/hour=03/" in entry["Key"], entry
    file = s3.get_object(Bucket=where.netloc, Key=entry["Key"])["Body"].read()
    assert (file[:4], file[-4:], len(file)) == (b"PAR1", b"PAR1", entry["Size"])
    sagemaker.delete_feature_group(FeatureGroupName=group)
    assert s3.head_object(Bucket=where.netloc, Key=entry["Key"])["ContentLength"] == len(file)  # the history stays

with step("errors: NoSuchKey, NoSuchBucket, InvalidRange"):
    error = refused(s3.get_object, "NoSuchKey", 404, Bucket=bucket, Key="nothing")
    assert isinstance(error, s3.exceptions.NoSuchKey)
    refused(s3.head_object, "404", 404, Bucket=bucket, Key="nothing")
    error = refused(s3.list_objects_v2, "NoSuchBucket", 404, Bucket=f"no-{bucket}")
    assert isinstance(error, s3.exceptions.NoSuchBucket)
    refused(s3.head_bucket, "404", 404, Bucket=f"no-{bucket}")
    refused(s3.get_object, "InvalidRange", 416, Bucket=bucket, Key="list/0/0.csv", Range="bytes=5-9")

with step("DeleteObject, DeleteObjects, DeleteBucket"):
    s3.delete_object(Bucket=bucket, Key=strange)
    s3.delete_object(Bucket=bucket, Key=strange)
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=bucket)["Contents"]]
    assert strange not in keys
    answer = s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": key} for key in keys]})
    assert sorted(entry["Key"] for entry in answer["Deleted"]) == sorted(keys), answer
    assert "Contents" not in s3.list_objects_v2(Bucket=bucket)
    s3.delete_bucket(Bucket=bucket)
    refused(s3.head_bucket, "404", 404, Bucket=bucket)
    s3.create_bucket(Bucket=bucket)

if "READER_ACCESS_KEY_ID" in os.environ:
    with step("AccessDenied (403) where a key has no right"):
        reader = boto3.client(
            "s3",
            aws_access_key_id=os.environ["READER_ACCESS_KEY_ID"],
            aws_secret_access_key=os.environ["READER_SECRET_ACCESS_KEY"],
        )
        refused(reader.put_object, "AccessDenied", 403, Bucket=bucket, Key="a", Body=b"1")

with step("no operation was left out"):
    names = """
        GetCallerIdentity AssumeRole
        ListBuckets CreateBucket HeadBucket DeleteBucket GetBucketLocation GetBucketVersioning GetBucketAcl
        PutObject GetObject HeadObject CopyObject DeleteObject DeleteObjects GetObjectAcl GetObjectTagging
        ListObjects ListObjectsV2 ListParts ListMultipartUploads
        CreateMultipartUpload UploadPart UploadPartCopy CompleteMultipartUpload AbortMultipartUpload
    """
    calls.require({name: set() for name in names.split()})
print(f"botocore {botocore.__version__}")
