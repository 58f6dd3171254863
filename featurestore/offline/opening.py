"""Which object store a URL means: the one place that names the backends."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

from featurestore.errors import StoreUnavailable
from featurestore.model.limits import S3_BUCKET
from featurestore.offline.local import LocalObjectStore
from featurestore.offline.protocol import ObjectStore
from featurestore.offline.s3 import S3ObjectStore

ENDPOINT: Final = "AWS_ENDPOINT_URL_S3"
"""Not `AWS_ENDPOINT_URL`: that one usually names the feature store itself."""

_S3_URL: Final = re.compile(r"s3://(?P<bucket>[^/]+)(?:/(?P<prefix>.*?)/?)?")


def open_object_store(url: str, cache: Path, *, cache_bytes_max: int) -> ObjectStore:
    """The object store at `url`, taken as it is written: nothing in it is percent-decoded.

    Args:
        url: `file:///path`, or `s3://bucket[/prefix]` at the endpoint that AWS_ENDPOINT_URL_S3 names (default: AWS).
        cache: folder for copies of remote objects; processes may share it. Not used by `file:`.
        cache_bytes_max: total size of those copies.

    Raises:
        StoreUnavailable: the URL is malformed, or the storage can't be used; see `LocalObjectStore` and `S3ObjectStore`.
    """
    if url.startswith("file:///"):
        return LocalObjectStore(Path(url.removeprefix("file://")))
    if url.startswith("s3:"):
        bucket, prefix = _bucket_and_prefix(url)
        return S3ObjectStore(
            bucket, prefix, endpoint=os.environ.get(ENDPOINT) or None, cache=cache, cache_bytes_max=cache_bytes_max
        )
    raise _malformed("file:///path or s3://bucket[/prefix]")


def _bucket_and_prefix(url: str) -> tuple[str, str]:
    match = _S3_URL.fullmatch(url)
    if match is None:
        raise _malformed("s3://bucket[/prefix]")
    bucket, prefix = match["bucket"], match["prefix"] or ""
    if S3_BUCKET.fullmatch(bucket) is None or ".." in bucket:
        raise _malformed("s3://bucket[/prefix] with a bucket name of 3 to 63 lower-case letters, digits, '-' and '.'")
    segments = prefix.split("/") if prefix else []
    if any(ord(char) < 32 or char == "\\" for char in prefix) or any(segment in ("", ".", "..") for segment in segments):
        raise _malformed("a prefix without empty, '.' or '..' segments, control characters or backslashes")
    return bucket, prefix


def _malformed(expected: str) -> StoreUnavailable:
    """The URL itself is not repeated: somebody may have put a password into it."""
    return StoreUnavailable("open offline store", f"expected {expected}", hint="see FEATURESTORE_OFFLINE_URL")
