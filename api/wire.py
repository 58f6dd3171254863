"""What every answer has in common: statuses of errors, AWS's error forms, request ids.

Source of the forms: the rest-json, JSON 1.1, query and rest-xml protocols as AWS clients parse them (docs/reference/http.md).
"""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from itertools import count
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar
from xml.sax.saxutils import escape

import msgspec

from featurestore.decoding import decode_json
from featurestore.errors import (
    AccessForbidden,
    AccessKeyNotFound,
    AccessKeyUnknown,
    AuthenticationFailed,
    BucketError,
    Conflict,
    Fault,
    FeatureGroupNotFound,
    FeatureStoreError,
    PresignedExpired,
    QueryError,
    RecordNotFound,
    RequestTimeSkewed,
    SessionExpired,
    SessionTokenInvalid,
    SignatureMalformed,
    SignatureMismatch,
    SignatureMissing,
    StoreUnavailable,
    StreamNotFound,
    ValidationFailed,
)
from featurestore.model import limits

_log: Final = logging.getLogger(__name__)

Scope: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]

JSON: Final = b"application/json"
JSON_11: Final = b"application/x-amz-json-1.1"
INTERNAL_MESSAGE: Final = "internal error; the service's log has the details under this request id"

XML: Final = b"text/xml"

_BUCKET_STATUSES: Final = {
    "AccessDenied": 403,
    "BucketNotEmpty": 409,
    "InvalidRange": 416,
    "NoSuchBucket": 404,
    "NoSuchKey": 404,
    "NoSuchUpload": 404,
    "NotImplemented": 501,
    "PreconditionFailed": 412,
}
"""Of S3's codes that are not 400."""

_T = TypeVar("_T")
_NOT_XML: Final = re.compile("[^\\t\\n\\r\\x20-\\ud7ff\\ue000-\\ufffd\\U00010000-\\U0010ffff]")
_MSGSPEC_MESSAGE: Final = re.compile(r"(?P<what>.*?)(?: - at `(?P<path>\$[^`]*)`)?", re.DOTALL)
_JSON_WORDS: Final = {
    "str": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "a boolean",
    "array": "an array",
    "object": "an object",
}


class UnknownOperation(FeatureStoreError):
    """No operation has this method and path, or this target."""

    code = "UnknownOperationException"


_JSON_11_CODES: Final = ((ValidationFailed, "ValidationException"), (AccessForbidden, "AccessDeniedException"))
_QUERY_CODES: Final[tuple[tuple[type[FeatureStoreError], str, int], ...]] = (
    (AccessForbidden, "AccessDenied", 403),
    (SignatureMissing, "MissingAuthenticationToken", 403),
    (SignatureMalformed, "IncompleteSignature", 400),
    (AccessKeyUnknown, "InvalidClientTokenId", 403),
    (SessionTokenInvalid, "InvalidClientTokenId", 403),
    (SessionExpired, "ExpiredToken", 403),
    (SignatureMismatch, "SignatureDoesNotMatch", 403),
    (RequestTimeSkewed, "SignatureDoesNotMatch", 403),
    (PresignedExpired, "SignatureDoesNotMatch", 403),
    (UnknownOperation, "InvalidAction", 400),
)


class Answer(NamedTuple):
    """One HTTP answer, complete."""

    status: int
    body: bytes = b""
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()


def status_of(error: FeatureStoreError) -> int:
    """The HTTP status of an error on the runtime API and the native routes."""
    if isinstance(error, ValidationFailed | QueryError | SignatureMalformed):
        return 400
    if isinstance(error, BucketError):
        return _BUCKET_STATUSES.get(error.code, 400)
    if isinstance(error, AccessForbidden | AuthenticationFailed):
        return 403
    if isinstance(error, FeatureGroupNotFound | RecordNotFound | StreamNotFound | AccessKeyNotFound | UnknownOperation):
        return 404
    if isinstance(error, Conflict):
        return 409
    if isinstance(error, StoreUnavailable):
        return 503
    return 500 if error.code == "InternalFailure" else 400


def message_of(error: FeatureStoreError) -> str:
    """The text a client may see: everything but the details of our own failures."""
    return INTERNAL_MESSAGE if error.code == "InternalFailure" else str(error)[: limits.MESSAGE_CHARS_MAX]


def rest_error(error: FeatureStoreError) -> Answer:
    """An error as the runtime API sends it: the code in a header, the message in the body."""
    body = msgspec.json.encode({"Message": message_of(error)})
    return Answer(status_of(error), body, JSON, ((b"x-amzn-errortype", error.code.encode()),))


def json_11_error(error: FeatureStoreError) -> Answer:
    """An error as the control plane sends it: the code in the body, status 400 for all that is the client's."""
    code = next((code for kind, code in _JSON_11_CODES if isinstance(error, kind)), error.code)
    status = status_of(error)
    body = msgspec.json.encode({"__type": code, "Message": message_of(error)})
    return Answer(status if status >= 500 else 400, body, JSON_11)


def query_code(error: FeatureStoreError) -> tuple[str, int]:
    """Code and status of an error as services of the query protocol (STS) say it."""
    for kind, code, status in _QUERY_CODES:
        if isinstance(error, kind):
            return code, status
    return error.code, status_of(error)


def query_error(error: FeatureStoreError, identifier: bytes, namespace: str) -> Answer:
    """An error as services of the query protocol send it."""
    code, status = query_code(error)
    kind = "Receiver" if status >= 500 else "Sender"
    text = f"<Error><Type>{kind}</Type><Code>{code}</Code><Message>{_xml(message_of(error))}</Message></Error>"
    body = f'<ErrorResponse xmlns="{namespace}">{text}<RequestId>{identifier.decode()}</RequestId></ErrorResponse>'
    return Answer(status, body.encode(), XML)


def _xml(text: str) -> str:
    """Text between XML tags. Characters that XML 1.0 can't hold are replaced."""
    return escape(_NOT_XML.sub("\ufffd", text))


def decode(data: bytes, kind: type[_T]) -> _T:
    """A JSON body as a checked request.

    Raises:
        ValidationFailed: it is not JSON, or not of that shape; the path of the fault is named.
    """
    try:
        return decode_json(data, kind)
    except msgspec.ValidationError as error:
        raise ValidationFailed([_shape_fault(str(error), kind)]) from error
    except RecursionError as error:
        raise ValidationFailed.one("body", "JSON with fewer levels of nesting") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ValidationFailed.one("body", f"JSON in UTF-8 ({error})") from error


def _shape_fault(message: str, kind: type) -> Fault:
    """msgspec's message in our form: where, in the client's words, and what belongs there."""
    match = _MSGSPEC_MESSAGE.fullmatch(message)
    assert match is not None, "the pattern matches any text"
    what, place = match["what"], match["path"] or "$"
    path = place.removeprefix("$.").replace("$", "body")
    missing = re.fullmatch(r"Object missing required field `(.+)`", what)
    if missing:
        return Fault(missing[1] if path == "body" else f"{path}.{missing[1]}", "this required member")
    if what.startswith("Invalid enum value "):
        return Fault(path, f"one of {', '.join(_choices(kind, place))}", what.removeprefix("Invalid enum value ").strip("'\""))
    if not what.startswith("Expected "):
        return Fault(path, f"another value ({what[0].lower()}{what[1:]})")
    return Fault(path, re.sub(r"`([^`]*)`", _json_words, what.removeprefix("Expected ")))


def _json_words(match: re.Match[str]) -> str:
    """msgspec's name of a type as JSON people say it; that a member may also be null goes without saying."""
    names = [name for name in match[1].split(" | ") if name != "null"] or ["null"]
    return " or ".join(_JSON_WORDS.get(name, name) for name in names)


def _choices(kind: type, place: str) -> list[str]:
    """The texts that the enumeration at a place of a shape allows."""
    found = msgspec.inspect.type_info(kind)
    for step in ("", *re.findall(r"[A-Za-z_]\w*|\[", place.removeprefix("$"))):
        if isinstance(found, msgspec.inspect.ListType) and step == "[":
            found = found.item_type
        elif isinstance(found, msgspec.inspect.StructType) and step:
            found = next(field.type for field in found.fields if field.encode_name == step)
        if isinstance(found, msgspec.inspect.UnionType):
            found = next(option for option in found.types if not isinstance(option, msgspec.inspect.NoneType))
        if isinstance(found, msgspec.inspect.Metadata):
            found = found.type
    if isinstance(found, msgspec.inspect.EnumType):
        return [str(member.value) for member in found.cls]
    return [str(value) for value in found.values] if isinstance(found, msgspec.inspect.LiteralType) else []


REQUEST_ID: Final = str(uuid.uuid4()).encode()[:24] + b"%012x"
"""What becomes of a request's number: the form of a random UUID, random per process in its greater part, counted in the rest."""
request_numbers: Final = count(int.from_bytes(uuid.uuid4().bytes[:5], "big"))


def request_id() -> bytes:
    """Unlike any other."""
    return REQUEST_ID % next(request_numbers)


def answered(answer: Answer | bytes | Exception, identifier: bytes, what: str) -> Answer:
    """The answer itself, or an exception as the runtime API sends it. What nobody foresaw is logged, and the contract's 500.

    Args:
        answer: bytes are the JSON of a success.
        what: the request, for the log.
    """
    if isinstance(answer, Answer):
        return answer
    if isinstance(answer, bytes):
        return Answer(200, answer)
    if isinstance(answer, FeatureStoreError) and answer.code != "InternalFailure":
        return rest_error(answer)
    _log.error("request %s (%s) failed", identifier.decode(), what, exc_info=answer)
    return rest_error(FeatureStoreError())


async def send_answer(send: Send, answer: Answer, identifier: bytes, *, head: bool = False) -> None:
    """Send a complete answer with its request id."""
    headers: Iterable[tuple[bytes, bytes]] = (
        (b"content-type", answer.content_type),
        (b"content-length", str(len(answer.body)).encode()),
        (b"x-amzn-requestid", identifier),
        *answer.headers,
    )
    await send({"type": "http.response.start", "status": answer.status, "headers": list(headers)})
    await send({"type": "http.response.body", "body": b"" if head else answer.body})


def require_declared_size(headers: Iterable[tuple[bytes, bytes]], bytes_max: int) -> None:
    """Raises ValidationFailed: the declared length of the body is beyond `bytes_max`, before anything of it is read."""
    for name, value in headers:
        if name == b"content-length" and value.isdigit() and int(value) > bytes_max:
            raise ValidationFailed.one("body", f"at most {bytes_max} bytes", int(value))


async def read_body(receive: Receive, bytes_max: int) -> bytes | None:
    """The whole request body; None if the client went away before its end.

    Raises:
        ValidationFailed: it is longer than `bytes_max`.
    """
    message = await receive()
    if message["type"] == "http.disconnect":
        return None
    body: bytes = message.get("body", b"")
    if not message.get("more_body"):
        _require_size(len(body), bytes_max)
        return body
    chunks = [body]
    size = len(body)
    while message.get("more_body"):
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        _require_size(size, bytes_max)
    return b"".join(chunks)


def _require_size(size: int, bytes_max: int) -> None:
    if size > bytes_max:
        raise ValidationFailed.one("body", f"at most {bytes_max} bytes")
