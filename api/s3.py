"""The part of Amazon S3's API that results, spines and readers of the offline layout need: path style, rest-xml.

    service  GET
    bucket   PUT, HEAD, DELETE; GET [location | versioning | acl | uploads]; POST delete
    object   PUT (also a copy), GET, HEAD, DELETE; GET acl | tagging
    upload   POST uploads; PUT partNumber uploadId (also a copy); GET, POST, DELETE uploadId

What is not offered answers NotImplemented with its name. Bodies are streamed, and all blocking work is done in threads of this
API's own, so that slow clients of S3 hold nobody else up.

https://docs.aws.amazon.com/AmazonS3/latest/API/API_Operations_Amazon_Simple_Storage_Service.html
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, MutableMapping
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from io import BytesIO
from typing import Any, BinaryIO, Final, TypeVar

import anyio
import anyio.to_thread

from api import s3_checksums
from api.s3_body import Body, ClientGone
from api.s3_buckets import DEFAULT_REGION, BucketOperations
from api.s3_objects import ObjectOperations, pieces
from api.s3_operation import Operations
from api.s3_request import OVERRIDES, NotModified, Request, read_range, require_read_conditions
from api.s3_uploads import UploadOperations
from api.s3_xml import S3Refused, error_answer
from api.wire import Answer, Receive, Scope, Send, request_id, send_answer
from featurestore.access.sigv4 import Payload
from featurestore.buckets.names import is_bucket_name
from featurestore.buckets.overlay import OverlaidBuckets
from featurestore.buckets.protocol import BucketObject, Buckets
from featurestore.errors import FeatureStoreError, StoreUnavailable

_log: Final = logging.getLogger(__name__)

OBJECT_BYTES_MAX: Final = 5 << 30
"""Of one PutObject or part (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
XML_BYTES_MAX: Final = 4 << 20
THREADS: Final = 32
"""Requests that read or write at a time; others wait."""
SCOPE: Final = b"/s3/aws4_request"
"""In the Authorization header of requests that are signed for S3."""
REST_BYTES_MAX: Final = 64 << 20
REST_S_MAX: Final = 5
"""How much of a refused body is waited for, and how long: a client whose connection ends while it sends does not see why."""
CONTENT_TYPE: Final = "binary/octet-stream"

_UPLOADING: Final = (("PUT",), ("PUT", "partNumber", "uploadId"))
_READING: Final = (("GET",), ("HEAD",))
_T = TypeVar("_T")


class S3:
    """Answers every request that is for S3.

    Args:
        buckets: those of the home folder. Where a real S3 service takes that part, clients are told to talk to it.
        region: of the store.
    """

    def __init__(self, buckets: Buckets, *, region: str = DEFAULT_REGION) -> None:
        self._limiter: anyio.CapacityLimiter | None = None
        self._elsewhere = getattr(buckets, "endpoint", "a service of its own")
        self._buckets: OverlaidBuckets | None = None
        self._of_service: Operations = {}
        self._of_bucket: Operations = {}
        self._of_object: Operations = {}
        if isinstance(buckets, OverlaidBuckets):
            of_buckets, of_uploads = BucketOperations(buckets, region), UploadOperations(buckets)
            self._buckets = buckets
            self._of_service = {**of_buckets.of_service}
            self._of_bucket = {**of_buckets.of_bucket, **of_uploads.of_bucket}
            self._of_object = {**ObjectOperations(buckets).of_object, **of_uploads.of_object}

    @staticmethod
    def owns(scope: Scope) -> bool:
        """Whether a request that no other API owns can be one for S3: it is signed for it, or its path begins with what can be a
        bucket's name.
        """
        path: str = scope["path"]
        if any(name == b"authorization" and SCOPE in value for name, value in scope["headers"]):
            return True
        if path == "/":
            return bool(scope["method"] == "GET")
        return is_bucket_name(path[1:].partition("/")[0])

    async def __call__(self, scope: Scope, receive: Receive, send: Send, payload: Payload) -> None:
        identifier = request_id()
        receive = incoming = _Incoming(scope, receive)
        try:
            request = Request.of(scope)
            if self._buckets is None:
                message = f"the buckets are at {self._elsewhere}: point S3 clients there (AWS_ENDPOINT_URL_S3)"
                raise S3Refused("NotImplemented", message)
            if request.key is not None and request.operation in _READING:
                await self._send_object(self._buckets, request, receive, send, identifier)
                return
            made = await self._threaded(lambda: self._answered(request, receive, payload))
        except ClientGone:
            return
        except NotModified as error:
            content_type = (error.found.content_type or CONTENT_TYPE).encode("latin-1", "replace")
            made = Answer(304, content_type=content_type, headers=_validators(error.found))
        except FeatureStoreError as error:
            made = error_answer(error, scope["path"], identifier)
            if isinstance(error, StoreUnavailable):
                _log.warning("request %s (%s %s): %s", identifier.decode(), scope["method"], scope["path"], error)
            elif error.code == "InternalFailure":
                _log.error("request %s (%s %s) failed", identifier.decode(), scope["method"], scope["path"], exc_info=error)
        except Exception:  # the client must get an answer to whatever we did not foresee; the log has the rest
            _log.exception("request %s (%s %s) failed", identifier.decode(), scope["method"], scope["path"])
            made = error_answer(FeatureStoreError(), scope["path"], identifier)
        made = made._replace(headers=(*made.headers, (b"x-amz-request-id", identifier)))
        if not await incoming.ended():
            made = made._replace(headers=(*made.headers, (b"connection", b"close")))
        await send_answer(send, made, identifier, head=scope["method"] == "HEAD")

    def _answered(self, request: Request, receive: Receive, payload: Payload) -> Answer:
        """Of a worker thread."""
        if request.bucket is None:
            place, operations = "the service", self._of_service
        elif request.key is None:
            place, operations = "a bucket", self._of_bucket
        else:
            place, operations = "an object", self._of_object
        operation = operations.get(request.operation)
        if operation is None:
            what = " ".join((request.method, *(f"?{name}" for name in request.operation[1:])))
            raise S3Refused("NotImplemented", f"{what} of {place} is not offered")
        bytes_max = OBJECT_BYTES_MAX if request.key and request.operation in _UPLOADING else XML_BYTES_MAX
        return operation(request, Body(receive, request.headers, payload, bytes_max=bytes_max))

    async def _send_object(
        self, buckets: OverlaidBuckets, request: Request, receive: Receive, send: Send, identifier: bytes
    ) -> None:
        """GetObject and HeadObject."""
        if request.method == "HEAD":  # may know without fetching the bytes
            known = await self._threaded(lambda: buckets.head(request.of_bucket, request.of_key))
            reading: AbstractContextManager[tuple[BucketObject, BinaryIO]] = nullcontext((known, BytesIO()))
        else:
            reading = buckets.read(request.of_bucket, request.of_key)
        found, file = await self._threaded(reading.__enter__)
        try:
            require_read_conditions(found, request.headers)
            first, size, is_part = read_range(found, request.headers)
            headers = _object_headers(found, request, first, size, is_part=is_part)
            headers += ((b"x-amz-request-id", identifier), (b"x-amzn-requestid", identifier))
            await send({"type": "http.response.start", "status": 206 if is_part else 200, "headers": [*headers]})
            if request.method == "GET" and not await self._send_pieces(file, found, first, size, receive, send):
                return  # without its end: the client must not take what it has for everything
            await send({"type": "http.response.body", "body": b""})
        finally:
            reading.__exit__(None, None, None)

    async def _send_pieces(
        self, file: BinaryIO, found: BucketObject, first: int, size: int, receive: Receive, send: Send
    ) -> bool:
        """Whether all were sent."""
        gone = asyncio.ensure_future(_disconnected(receive))
        try:
            remaining = pieces(file, found, first, size)
            while not gone.done() and (piece := await self._threaded(lambda: next(remaining, None))) is not None:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            return not gone.done()
        except (FeatureStoreError, OSError) as error:
            _log.warning("reading %r failed half-way: %s", found.key, error)
            return False
        finally:
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _threaded(self, call: Callable[[], _T]) -> _T:
        if self._limiter is None:
            self._limiter = anyio.CapacityLimiter(THREADS)
        return await anyio.to_thread.run_sync(call, limiter=self._limiter)


class _Incoming:
    """Receives a request, and knows whether all of its body has arrived: what has not would be taken for the next request."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        headers = dict(scope["headers"])
        self._receive = receive
        self._ended = not {b"content-length", b"transfer-encoding"} & headers.keys() or headers.get(b"content-length") == b"0"
        # A client that asks first has not sent any of it before the first byte is received.
        self._is_held_back = headers.get(b"expect", b"").lower() == b"100-continue"

    async def __call__(self) -> MutableMapping[str, Any]:
        self._is_held_back = False
        message = await self._receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            self._ended = True
        return message

    async def ended(self) -> bool:
        """Whether the body is at its end, after waiting for the rest of it."""
        size = 0
        with suppress(TimeoutError):
            async with asyncio.timeout(REST_S_MAX):
                while not self._ended and not self._is_held_back and size <= REST_BYTES_MAX:
                    size += len((await self()).get("body", b""))
        return self._ended


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _validators(found: BucketObject) -> tuple[tuple[bytes, bytes], ...]:
    modified = format_datetime(datetime.fromtimestamp(found.modified_at_us // 1_000_000, UTC), usegmt=True)
    return ((b"etag", f'"{found.etag}"'.encode()), (b"last-modified", modified.encode()), (b"accept-ranges", b"bytes"))


def _object_headers(
    found: BucketObject, request: Request, first: int, size: int, *, is_part: bool
) -> tuple[tuple[bytes, bytes], ...]:
    named = {"content-type": found.content_type or CONTENT_TYPE, **found.headers, "content-length": str(size)}
    named.pop(s3_checksums.ALGORITHM, None)
    # A checksum is of the whole object: beside a part of it clients would take it for the part's.
    if is_part or request.headers.get(s3_checksums.MODE, "").upper() != "ENABLED":
        named = {name: value for name, value in named.items() if not name.startswith(s3_checksums.PREFIX)}
    if is_part:
        named["content-range"] = f"bytes {first}-{first + size - 1}/{found.bytes}"
    for parameter, name in OVERRIDES.items():
        if value := request.query.get(parameter):
            named[name] = value
    return (*_validators(found), *((name.encode("latin-1"), _value(value)) for name, value in named.items()))


def _value(text: str) -> bytes:
    """A header's value: a response-* parameter must not bring further headers with it."""
    return text.replace("\r", " ").replace("\n", " ").encode("latin-1", "replace")
