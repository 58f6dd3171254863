"""S3 requests taken apart, and what their headers ask for.

https://docs.aws.amazon.com/AmazonS3/latest/API/RESTCommonRequestHeaders.html
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import parse_qsl, unquote_to_bytes

from api.s3_xml import S3Refused
from api.wire import Scope
from featurestore.buckets.folder import Condition
from featurestore.buckets.protocol import BucketObject
from featurestore.errors import PreconditionFailed
from featurestore.model.key_order import KEY_BYTES_MAX

METADATA_BYTES_MAX: Final = 2 << 10
"""Names and values of `x-amz-meta-*` of one object; S3's own limit."""

_SUBRESOURCES: Final = frozenset(
    {
        "accelerate",
        "acl",
        "analytics",
        "append",
        "attributes",
        "cors",
        "delete",
        "encryption",
        "intelligent-tiering",
        "inventory",
        "legal-hold",
        "lifecycle",
        "location",
        "logging",
        "metadataConfiguration",
        "metadataTable",
        "metrics",
        "notification",
        "object-lock",
        "ownershipControls",
        "partNumber",
        "policy",
        "policyStatus",
        "publicAccessBlock",
        "renameObject",
        "replication",
        "requestPayment",
        "restore",
        "retention",
        "select",
        "session",
        "tagging",
        "torrent",
        "uploadId",
        "uploads",
        "versionId",
        "versioning",
        "versions",
        "website",
    }
)
"""Query parameters that make another operation of a request."""
_KEPT: Final = ("cache-control", "content-disposition", "content-encoding", "content-language", "expires")
_KEPT_WITHOUT_EFFECT: Final = (
    "x-amz-server-side-encryption",
    "x-amz-server-side-encryption-aws-kms-key-id",
    "x-amz-server-side-encryption-bucket-key-enabled",
)
_REFUSED: Final = (
    "x-amz-server-side-encryption-customer-algorithm",
    "x-amz-tagging",
    "x-amz-object-lock-mode",
    "x-amz-object-lock-retain-until-date",
    "x-amz-object-lock-legal-hold",
    "x-amz-website-redirect-location",
    "x-amz-write-offset-bytes",
)
"""Of writes: to take them and do nothing about it would break a promise."""
OVERRIDES: Final = {
    f"response-{name}": name
    for name in ("cache-control", "content-disposition", "content-encoding", "content-language", "content-type", "expires")
}
_RANGE: Final = re.compile(r"bytes=(?P<first>\d{0,18})-(?P<last>\d{0,18})")
_COPY_RANGE: Final = re.compile(r"bytes=(?P<first>\d{1,18})-(?P<last>\d{1,18})")


@dataclass(frozen=True, slots=True)
class Request:
    """A request taken apart.

    Attributes:
        key: None for the bucket itself, as `bucket` is for the service.
        query: without what the signature of a presigned URL put there; the last of several values.
        headers: lower-case names; `x-amz-*` of presigned URLs are taken from the query.
        operation: method, and the query parameters that make another operation of it, sorted.
    """

    method: str
    path: str
    bucket: str | None
    key: str | None
    query: Mapping[str, str]
    headers: Mapping[str, str]
    operation: tuple[str, ...]

    @classmethod
    def of(cls, scope: Scope) -> Request:
        """
        Raises:
            S3Refused: the path is no UTF-8, or the key too long.
        """
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        raw = raw.partition(b"?")[0].removeprefix(b"/")
        raw_bucket, _, raw_key = raw.partition(b"/")
        try:
            bucket, key = unquote_to_bytes(raw_bucket).decode(), unquote_to_bytes(raw_key).decode()
            pairs = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True, errors="strict")
        except ValueError as error:
            raise S3Refused("InvalidURI", "expected a path and a query in UTF-8, percent-encoded") from error
        if key and not bucket:
            raise S3Refused("InvalidBucketName", "expected a bucket's name before the key")
        if len(key.encode()) > KEY_BYTES_MAX:
            raise S3Refused("KeyTooLongError", f"key: expected at most {KEY_BYTES_MAX} bytes in UTF-8, got {len(key.encode())}")
        query = dict(pairs)
        headers = {name.lower(): value for name, value in query.items() if name.lower().startswith("x-amz-")}
        headers |= {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if query.get("versionId") == "null":  # the only version there is
            del query["versionId"]
        operation = (scope["method"], *sorted(_SUBRESOURCES & query.keys()))
        return cls(scope["method"], f"/{raw.decode('latin-1')}", bucket or None, key or None, query, headers, operation)

    @property
    def of_bucket(self) -> str:
        assert self.bucket is not None, "only requests of a bucket ask"
        return self.bucket

    @property
    def of_key(self) -> str:
        assert self.key is not None, "only requests of an object ask"
        return self.key


class NotModified(Exception):
    """The client has the object already."""

    def __init__(self, found: BucketObject) -> None:
        self.found = found
        super().__init__(found.key)


def kept_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """What of a write's headers is to be kept with its object.

    Raises:
        S3Refused: a header asks for what is not offered, or there is too much metadata.
    """
    for name in _REFUSED:
        if name in headers:
            raise S3Refused("NotImplemented", f"{name} is not offered")
    kept = {name: headers[name] for name in (*_KEPT, *_KEPT_WITHOUT_EFFECT) if name in headers}
    codings = [coding.strip() for coding in kept.pop("content-encoding", "").split(",")]
    if codings := [coding for coding in codings if coding and coding != "aws-chunked"]:
        kept["content-encoding"] = ",".join(codings)
    metadata = {name: value for name, value in headers.items() if name.startswith("x-amz-meta-")}
    size = sum(len(name) - len("x-amz-meta-") + len(value) for name, value in metadata.items())
    if size > METADATA_BYTES_MAX:
        raise S3Refused("MetadataTooLarge", f"x-amz-meta-*: expected at most {METADATA_BYTES_MAX} bytes, got {size}")
    return kept | metadata


def write_condition(headers: Mapping[str, str]) -> Condition | None:
    """The condition of a write.

    Raises:
        S3Refused: NotImplemented, as S3 answers for If-None-Match with anything but `*`.
    """
    absent = headers.get("if-none-match")
    if absent is not None and absent.strip() != "*":
        raise S3Refused("NotImplemented", "If-None-Match of a write: expected *")
    etags = headers.get("if-match")
    if absent is None and etags is None:
        return None
    return Condition(absent is not None, None if etags is None else tuple(_etags(etags)))


def require_read_conditions(found: BucketObject, headers: Mapping[str, str]) -> None:
    """If-Match and its kin, in the order of RFC 9110, section 13.2.2.

    Raises:
        PreconditionFailed
        NotModified
    """
    if (wanted := headers.get("if-match")) is not None:
        if not _matches(found, wanted):
            raise PreconditionFailed(found.key, f"the ETag {wanted[:100]}, it is {found.etag}")
    elif (time := _time(headers.get("if-unmodified-since"))) is not None and _modified(found) > time:
        raise PreconditionFailed(found.key, "no change since then")
    if (known := headers.get("if-none-match")) is not None:
        if _matches(found, known):
            raise NotModified(found)
    elif (time := _time(headers.get("if-modified-since"))) is not None and _modified(found) <= time:
        raise NotModified(found)


def require_copy_conditions(source: BucketObject, headers: Mapping[str, str]) -> None:
    """The same of the source of a copy, where no answer is a failure, too.

    Raises:
        PreconditionFailed
    """
    prefix = "x-amz-copy-source-"
    of_source = {name.removeprefix(prefix): value for name, value in headers.items() if name.startswith(prefix)}
    try:
        require_read_conditions(source, of_source)
    except NotModified as error:
        raise PreconditionFailed(source.key, "another object than that") from error


def read_range(found: BucketObject, headers: Mapping[str, str]) -> tuple[int, int, bool]:
    """First byte and count of what is to be sent, and whether that is a part. More than one range is answered with everything.

    Raises:
        S3Refused: InvalidRange, as no byte is asked for that there is.
    """
    wanted = _RANGE.fullmatch(headers.get("range", "").strip())
    if wanted is None or not _range_is_meant(found, headers.get("if-range")):
        return 0, found.bytes, False
    first, last = wanted["first"], wanted["last"]
    if (not first and not last) or (first and last and int(last) < int(first)):
        return 0, found.bytes, False
    if first:
        begin, end = int(first), min(int(last) + 1 if last else found.bytes, found.bytes)
    else:
        begin, end = max(found.bytes - int(last), 0), found.bytes
    if begin >= end:
        raise S3Refused(
            "InvalidRange",
            "the requested range is not satisfiable",
            members=(("RangeRequested", headers["range"][:100]), ("ActualObjectSize", found.bytes)),
            headers=((b"content-range", f"bytes */{found.bytes}".encode()),),
        )
    return begin, end - begin, True


def copy_source(headers: Mapping[str, str]) -> tuple[str, str]:
    """Bucket and key.

    Raises:
        S3Refused: malformed, or another version than the only one.
    """
    path, _, version = headers["x-amz-copy-source"].removeprefix("/").partition("?versionId=")
    if version not in ("", "null"):
        raise S3Refused("NotImplemented", "x-amz-copy-source: there are no versions")
    try:
        bucket, _, key = unquote_to_bytes(path).decode().partition("/")
    except ValueError:
        bucket = key = ""
    if not bucket or not key:
        raise S3Refused("InvalidArgument", "x-amz-copy-source: expected <bucket>/<key>, percent-encoded")
    return bucket, key


def copy_range(source: BucketObject, headers: Mapping[str, str]) -> tuple[int, int]:
    """First byte and count of the part of a source that is to be copied.

    Raises:
        S3Refused: the source has no such part.
    """
    said = headers.get("x-amz-copy-source-range")
    if said is None:
        return 0, source.bytes
    match = _COPY_RANGE.fullmatch(said.strip())
    if match is None or not int(match["first"]) <= int(match["last"]) < source.bytes:
        message = f"x-amz-copy-source-range: expected bytes=<first>-<last> within {source.bytes} bytes, got {said[:80]!r}"
        raise S3Refused("InvalidArgument", message)
    return int(match["first"]), int(match["last"]) - int(match["first"]) + 1


def number(query: Mapping[str, str], name: str, default: int) -> int:
    """A number of the query.

    Raises:
        S3Refused: it is none.
    """
    said = query.get(name, "")
    if not said:
        return default
    if not (said.isascii() and said.isdigit() and len(said) < 10):
        raise S3Refused("InvalidArgument", f"{name}: expected a number of at least 0, got {said[:80]!r}")
    return int(said)


def choice(headers: Mapping[str, str], name: str, choices: tuple[str, ...]) -> str:
    """One of several words; the first one by default.

    Raises:
        S3Refused: it is none of them.
    """
    said = headers.get(name, choices[0])
    if said not in choices:
        raise S3Refused("InvalidArgument", f"{name}: expected {' or '.join(choices)}, got {said[:80]!r}")
    return said


def url_encoding(query: Mapping[str, str]) -> bool:
    """Whether keys in a listing are to be percent-encoded.

    Raises:
        S3Refused: another encoding is asked for.
    """
    said = query.get("encoding-type", "")
    if said not in ("", "url"):
        raise S3Refused("InvalidArgument", f"encoding-type: expected url, got {said[:80]!r}")
    return said == "url"


def _etags(text: str) -> list[str]:
    return [etag.strip().removeprefix("W/").strip('"') for etag in text.split(",")]


def _matches(found: BucketObject, wanted: str) -> bool:
    return bool({"*", found.etag} & {*_etags(wanted)})


def _modified(found: BucketObject) -> int:
    """Seconds since 1970, as precise as the header says it."""
    return found.modified_at_us // 1_000_000


def _time(text: str | None) -> float | None:
    """A time of a header; as HTTP wants it, one that can't be read does not count."""
    try:
        time = None if text is None else parsedate_to_datetime(text)
    except ValueError:
        return None
    return None if time is None else (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()


def _range_is_meant(found: BucketObject, said: str | None) -> bool:
    if said is None:
        return True
    time = _time(said)
    return _modified(found) <= time if time is not None else found.etag in _etags(said)
