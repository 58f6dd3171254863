"""S3's XML: what is read of requests, what answers and errors look like.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final, TypeAlias
from urllib.parse import quote
from xml.etree import ElementTree
from xml.sax.saxutils import escape

from api.s3_checksums import XML_MEMBERS
from api.wire import Answer, message_of, status_of
from featurestore.buckets.protocol import BucketObject
from featurestore.errors import (
    AccessForbidden,
    AccessKeyUnknown,
    BucketError,
    FeatureStoreError,
    PresignedExpired,
    RequestTimeSkewed,
    SessionExpired,
    SessionTokenInvalid,
    SignatureMalformed,
    SignatureMismatch,
    SignatureMissing,
    StoreUnavailable,
    ValidationFailed,
)

XML: Final = b"application/xml"
NAMESPACE: Final = "http://s3.amazonaws.com/doc/2006-03-01/"
DELETIONS_MAX: Final = 1000

Element: TypeAlias = "str | int | bool | Sequence[tuple[str, Element]]"

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ufffe\uffff]")
_DECLARATION: Final = re.compile(rb"<!(?:DOCTYPE|ENTITY)", re.IGNORECASE)


_REFUSALS: Final[tuple[tuple[type[FeatureStoreError], str, int], ...]] = (
    (AccessForbidden, "AccessDenied", 403),
    (SignatureMissing, "AccessDenied", 403),
    (SignatureMalformed, "AuthorizationHeaderMalformed", 400),
    (AccessKeyUnknown, "InvalidAccessKeyId", 403),
    (SessionTokenInvalid, "InvalidToken", 400),
    (SessionExpired, "ExpiredToken", 400),
    (SignatureMismatch, "SignatureDoesNotMatch", 403),
    (RequestTimeSkewed, "RequestTimeTooSkewed", 403),
    (PresignedExpired, "AccessDenied", 403),
)
"""Who calls, and whether they may: what S3 calls the errors of access keys and signatures."""

OWNER: Final = (("ID", "featurestore"), ("DisplayName", "featurestore"))
"""Of everything: objects have no owners of their own here."""
NO_CONTENT: Final = Answer(204, content_type=XML)


class S3Refused(BucketError):
    """A request that S3's rules refuse.

    Attributes:
        code: S3's error code.
        members: what else the answer's XML has.
        headers: what else the answer has.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        members: Sequence[tuple[str, Element]] = (),
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        self.code = code  # type: ignore[misc]  # of the refusal, where the other classes have one each
        self.members = members
        self.headers = headers
        super().__init__(message)


def answer(root: str, members: Element, *, headers: tuple[tuple[bytes, bytes], ...] = ()) -> Answer:
    """An answer of status 200 with one XML document."""
    document = f'<?xml version="1.0" encoding="UTF-8"?>\n<{root} xmlns="{NAMESPACE}">{_written(members)}</{root}>'
    return Answer(200, document.encode(), XML, headers)


def acl() -> Answer:
    """The access control list of anything: who has a key of the service may do what the key may."""
    grantee: Element = (("Grantee", OWNER), ("Permission", "FULL_CONTROL"))
    return answer("AccessControlPolicy", [("Owner", OWNER), ("AccessControlList", (("Grant", grantee),))])


def listed(item: BucketObject, *, encoded: bool, with_owner: bool) -> Element:
    """An object of a listing."""
    members: list[tuple[str, Element]] = [
        ("Key", url_text(item.key, encoded=encoded)),
        ("LastModified", time_text(item.modified_at_us)),
        ("ETag", f'"{item.etag}"'),
        ("Size", item.bytes),
        ("StorageClass", "STANDARD"),
    ]
    return [*members, ("Owner", OWNER)] if with_owner else members


def error_answer(error: FeatureStoreError, resource: str, identifier: bytes) -> Answer:
    """An error as S3 sends it."""
    code, status = code_of(error)
    refused = error if isinstance(error, S3Refused) else None
    members: list[tuple[str, Element]] = [("Code", code), ("Message", message_of(error)), ("Resource", resource)]
    members += [*(refused.members if refused else ()), ("RequestId", identifier.decode())]
    document = f'<?xml version="1.0" encoding="UTF-8"?>\n<Error>{_written(members)}</Error>'
    return Answer(status, document.encode(), XML, refused.headers if refused else ())


def code_of(error: FeatureStoreError) -> tuple[str, int]:
    """S3's code and status of an error."""
    if isinstance(error, ValidationFailed):
        return {"bucket": "InvalidBucketName", "key": "KeyTooLongError"}.get(error.faults[0].path, "InvalidArgument"), 400
    if isinstance(error, StoreUnavailable):
        return "ServiceUnavailable", 503
    for kind, code, status in _REFUSALS:
        if isinstance(error, kind):
            return code, status
    if error.code == "InternalFailure":
        return "InternalError", 500
    return error.code, status_of(error)


def time_text(time_us: int) -> str:
    """A time as it is in XML: to the millisecond."""
    return (_EPOCH + timedelta(microseconds=time_us)).strftime("%Y-%m-%dT%H:%M:%S.") + f"{time_us // 1000 % 1000:03d}Z"


def url_text(text: str, *, encoded: bool) -> str:
    """A key in a listing, percent-encoded where the request asks for that (encoding-type=url)."""
    return quote(text, safe="/") if encoded else text


def deletions(body: bytes) -> tuple[Sequence[str], bool]:
    """Keys of a DeleteObjects request, and whether only failures are to be told.

    Raises:
        S3Refused: MalformedXML, or NotImplemented for versions.
    """
    root = _parsed(body, "Delete")
    keys = []
    for item in root.findall("Object"):
        if (item.findtext("VersionId") or "null") != "null":
            raise S3Refused("NotImplemented", "Delete.Object.VersionId: there are no versions")
        keys.append(_text(item, "Key"))
    if not 1 <= len(keys) <= DELETIONS_MAX:
        raise S3Refused("MalformedXML", f"Delete: expected 1 to {DELETIONS_MAX} Object elements, got {len(keys)}")
    return keys, (root.findtext("Quiet") or "").strip() == "true"


def completion(body: bytes) -> Sequence[tuple[int, str, dict[str, str]]]:
    """Parts of a CompleteMultipartUpload request: number, ETag without quotes, checksums by algorithm.

    Raises:
        S3Refused: MalformedXML
    """
    parts = []
    for item in _parsed(body, "CompleteMultipartUpload").findall("Part"):
        number = _text(item, "PartNumber").strip()
        if not (number.isascii() and number.isdigit() and len(number) < 9):
            raise S3Refused("MalformedXML", f"Part.PartNumber: expected a number, got {number[:80]!r}")
        checksums = {name: found for member, name in XML_MEMBERS.items() if (found := item.findtext(member))}
        parts.append((int(number), _text(item, "ETag").strip().strip('"'), checksums))
    return parts


def check_creation(body: bytes) -> None:
    """A CreateBucket request: its place is this service, whatever it says.

    Raises:
        S3Refused: MalformedXML
    """
    if body.strip():
        _parsed(body, "CreateBucketConfiguration")


def _parsed(body: bytes, root: str) -> ElementTree.Element:
    if _DECLARATION.search(body):
        raise S3Refused("MalformedXML", "expected XML without a document type")
    try:
        found = ElementTree.fromstring(body)  # noqa: S314 - no declarations, so no entities to expand
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise S3Refused("MalformedXML", f"expected a {root} document in XML ({error})") from error
    for item in found.iter():
        item.tag = item.tag.rpartition("}")[2]  # clients send it with and without the namespace
    if found.tag != root:
        raise S3Refused("MalformedXML", f"expected {root}, got {found.tag[:80]}")
    return found


def _text(item: ElementTree.Element, member: str) -> str:
    found = item.findtext(member)
    if not found:
        raise S3Refused("MalformedXML", f"{item.tag}.{member}: expected this required member")
    return found


def _written(element: Element) -> str:
    if isinstance(element, bool):
        return "true" if element else "false"
    if isinstance(element, int):
        return str(element)
    if isinstance(element, str):
        # XML 1.0 has no way to write these characters; S3 writes them so, and clients that ask for encoded keys get none.
        return _CONTROL.sub(lambda match: f"&#x{ord(match[0]):x};", escape(element, {'"': "&quot;"}))
    return "".join(f"<{name}>{_written(member)}</{name}>" for name, member in element)
