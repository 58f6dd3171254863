"""Objects in the buckets of Amazon S3, or of any service that speaks its protocol, through boto3.

obstore, which the offline store uses, takes `a//b`, `/a` and `a/` for other keys than they are; boto3 takes every key as it is.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, Final, cast

from featurestore.buckets.names import check_bucket, check_key
from featurestore.buckets.protocol import LIST_KEYS_MAX, BucketObject
from featurestore.errors import FeatureStoreError, FileVanished, NoSuchBucket, NoSuchKey, StoreUnavailable
from featurestore.model.key_order import KEY_BYTES_MAX
from featurestore.offline.cache import ObjectCache
from featurestore.offline.s3 import CONNECT_S_MAX, READ_S_MAX, REGION, RETRIES_MAX, amazon_endpoint

PART_BYTES: Final = 16 << 20
"""Of a multipart upload: its 10,000 parts make 160 GB. So much of an object is in memory at a time."""
CHUNK_BYTES: Final = 1 << 20

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


class S3Buckets:
    """See `buckets.protocol.Buckets`. Credentials and region come from boto3's chain (environment, profiles, roles).

    Args:
        endpoint: `http[s]://host[:port]` of the service; None for Amazon S3.
        cache, cache_bytes_max: see `ObjectCache`.

    Raises:
        StoreUnavailable: the extra `s3` is not installed; there are no credentials; the endpoint does not answer.
    """

    def __init__(self, *, endpoint: str | None, cache: Path, cache_bytes_max: int) -> None:
        try:
            import boto3
            from boto3.s3.transfer import TransferConfig
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError
        except ImportError as error:
            raise StoreUnavailable(
                "open buckets", f"s3:// needs packages: {error}", hint="pip install featurestore[s3]"
            ) from error
        self._errors: Any = (BotoCoreError, ClientError)
        try:
            session = boto3.Session()
            self.endpoint = endpoint or amazon_endpoint(session.region_name or REGION)
            # The address is given, since AWS_ENDPOINT_URL may name the feature store itself.
            self._client = session.client(
                "s3",
                endpoint_url=self.endpoint,
                region_name=session.region_name or REGION,
                config=Config(
                    s3={"addressing_style": "path"},
                    connect_timeout=CONNECT_S_MAX,
                    read_timeout=READ_S_MAX,
                    retries={"mode": "standard", "total_max_attempts": RETRIES_MAX + 1},
                ),
            )
            self._transfer = TransferConfig(
                multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=1, use_threads=False
            )
            self._client.list_buckets(MaxBuckets=1)
        except (BotoCoreError, ValueError) as error:
            raise self._unavailable("open buckets", error) from error
        except ClientError as error:
            # Keys that may not list buckets (AccessDenied) may well use them.
            if _code(error) not in ("AccessDenied", "403"):
                raise self._unavailable("open buckets", error) from error
        self._cache = ObjectCache(cache, self.endpoint, cache_bytes_max, self._download, self._exists)

    def names(self) -> Sequence[str]:
        try:
            pages = self._client.get_paginator("list_buckets").paginate(PaginationConfig={"PageSize": LIST_KEYS_MAX})
            return sorted(item["Name"] for page in pages for item in page.get("Buckets", ()))
        except self._errors as error:
            raise self._unavailable("list buckets", error) from error

    def put(self, bucket: str, key: str, chunks: Iterable[bytes], *, content_type: str | None = None) -> BucketObject:
        check_bucket(bucket)
        check_key(key)
        source = _Chunks(chunks)
        extra = {} if content_type is None else {"ContentType": content_type}
        try:
            self._client.upload_fileobj(source, bucket, key, ExtraArgs=extra, Config=self._transfer)
        except self._errors as error:
            raise self._explained("write", bucket, key, error) from error
        except FeatureStoreError:
            raise
        except Exception as error:  # s3transfer and boto3 wrap what a part's upload raised in types of their own
            if source.failure is not None:
                raise source.failure from None
            cause = error.__cause__ or error.__context__ or error
            raise self._explained("write", bucket, key, cause) from error
        return self.head(bucket, key)

    @contextmanager
    def read(self, bucket: str, key: str) -> Iterator[tuple[BucketObject, BinaryIO]]:
        check_bucket(bucket)
        check_key(key)
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key)
        except self._errors as error:
            raise self._explained("read", bucket, key, error) from error
        with closing(answer["Body"]) as body:
            # The wrapper reads ahead and has what BinaryIO promises; botocore checks that all bytes arrive.
            yield _object(key, answer), cast("BinaryIO", io.BufferedReader(_Body(body, self, bucket, key), CHUNK_BYTES))

    def head(self, bucket: str, key: str) -> BucketObject:
        check_bucket(bucket)
        check_key(key)
        try:
            return _object(key, self._client.head_object(Bucket=bucket, Key=key))
        except self._errors as error:
            raise self._explained("read", bucket, key, error) from error

    def list(self, bucket: str, prefix: str = "", *, after: str = "", limit: int = LIST_KEYS_MAX) -> Sequence[BucketObject]:
        check_bucket(bucket)
        # S3 refuses to begin behind texts that are longer than keys; a shorter one leaves nothing out.
        begin = after.encode()[:KEY_BYTES_MAX].decode(errors="ignore")
        found: list[BucketObject] = []
        token: dict[str, str] = {"StartAfter": begin} if begin else {}
        try:
            while len(found) < limit:
                page = self._client.list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=min(limit, LIST_KEYS_MAX), **token)
                found.extend(_listed(item) for item in page.get("Contents", ()) if item["Key"] > after)
                if not page.get("IsTruncated"):
                    break
                token = {"ContinuationToken": page["NextContinuationToken"]}
        except self._errors as error:
            raise self._explained("list", bucket, prefix, error) from error
        return found[: min(limit, LIST_KEYS_MAX)]

    def delete(self, bucket: str, key: str) -> None:
        check_bucket(bucket)
        check_key(key)
        try:
            self._client.delete_object(Bucket=bucket, Key=key)
        except self._errors as error:
            raise self._explained("delete", bucket, key, error) from error

    def paths(self, bucket: str, keys: Sequence[str]) -> Sequence[Path]:
        # Objects here may be replaced, so a copy is known by the ETag of what it is a copy of.
        copies = [f"{bucket}/{self.head(bucket, key).etag}/{key}" for key in keys]
        try:
            return [Path(path) for path in self._cache.paths(copies)]
        except FileVanished as error:
            raise StoreUnavailable(f"read objects of bucket {bucket}", str(error), hint="repeat the call") from error

    def _download(self, name: str, file: BinaryIO) -> None:
        bucket, etag, key = name.split("/", 2)
        try:
            answer = self._client.get_object(Bucket=bucket, Key=key, IfMatch=f'"{etag}"')
            with closing(answer["Body"]) as body:
                for chunk in body.iter_chunks(CHUNK_BYTES):
                    file.write(chunk)
        except self._errors as error:
            if _code(error) in ("NoSuchKey", "404", "PreconditionFailed", "412"):
                raise FileVanished(f"read {key!r} of bucket {bucket}", "it was replaced or deleted meanwhile") from error
            raise self._explained("read", bucket, key, error) from error

    def _exists(self, name: str) -> bool:
        bucket, etag, key = name.split("/", 2)
        try:
            return self.head(bucket, key).etag == etag
        except (NoSuchKey, NoSuchBucket):
            return False

    def _explained(self, verb: str, bucket: str, key: str, error: BaseException) -> FeatureStoreError:
        code = _code(error)
        if code == "NoSuchKey":
            return NoSuchKey(bucket, key)
        if code == "NoSuchBucket":
            return NoSuchBucket(bucket)
        if code == "404":  # a HEAD says no more than that
            return NoSuchKey(bucket, key) if self._has(bucket) else NoSuchBucket(bucket)
        return self._unavailable(f"{verb} {key!r} of bucket {bucket}", error)

    def _has(self, bucket: str) -> bool:
        try:
            self._client.head_bucket(Bucket=bucket)
        except self._errors as error:
            if _code(error) in ("404", "NoSuchBucket"):
                return False
            raise self._unavailable(f"look for bucket {bucket}", error) from error
        return True

    def _unavailable(self, operation: str, error: BaseException) -> StoreUnavailable:
        return StoreUnavailable(operation, str(error)[:500], hint=f"see FEATURESTORE_BUCKETS_URL, now s3:// at {self.endpoint}")


class _Chunks(io.RawIOBase):
    """A file that is read from chunks, for an upload."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        super().__init__()
        self._chunks = iter(chunks)
        self._rest = b""
        self.failure: BaseException | None = None
        """What taking a chunk has raised."""

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        length = len(self._rest)
        try:
            while size < 0 or length < size:
                parts.append(next(self._chunks))
                length += len(parts[-1])
        except StopIteration:
            pass
        except BaseException as error:
            self.failure = error
            raise
        data = b"".join(parts)
        end = length if size < 0 else size
        self._rest = data[end:]
        return data[:end]


class _Body(io.RawIOBase):
    """The body of an answer, whose failures are ours."""

    def __init__(self, body: Any, owner: S3Buckets, bucket: str, key: str) -> None:
        super().__init__()
        self._body = body
        self._owner = owner
        self._where = (bucket, key)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._body.read(len(buffer))
        except self._owner._errors as error:
            raise self._owner._explained("read", *self._where, error) from error
        buffer[: len(data)] = data
        return len(data)


def _object(key: str, answer: Any) -> BucketObject:
    headers = {f"x-amz-meta-{name}": value for name, value in answer.get("Metadata", {}).items()}
    return BucketObject(
        key,
        answer["ContentLength"],
        answer["ETag"].strip('"'),
        (answer["LastModified"] - _EPOCH) // _MICROSECOND,
        answer.get("ContentType"),
        headers,
    )


def _listed(item: Any) -> BucketObject:
    return BucketObject(item["Key"], item["Size"], item["ETag"].strip('"'), (item["LastModified"] - _EPOCH) // _MICROSECOND)


def _code(error: BaseException) -> str:
    response = getattr(error, "response", None)
    return str(response.get("Error", {}).get("Code", "")) if isinstance(response, dict) else ""
