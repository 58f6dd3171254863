"""S3's operations of objects, but for reading them and multipart uploads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO, Final

from api import s3_checksums
from api.s3_body import Body
from api.s3_operation import Operations
from api.s3_request import (
    Request,
    choice,
    copy_source,
    kept_headers,
    require_copy_conditions,
    write_condition,
)
from api.s3_xml import NO_CONTENT, XML, Element, S3Refused, acl, answer, time_text
from api.wire import Answer
from featurestore.buckets.overlay import OverlaidBuckets, refuse_layout
from featurestore.buckets.protocol import BucketObject
from featurestore.errors import FileVanished

PIECE_BYTES: Final = 1 << 20

HeaderList = tuple[tuple[bytes, bytes], ...]


class ObjectOperations:
    """Operations by method and subresource. All are called in worker threads."""

    def __init__(self, buckets: OverlaidBuckets) -> None:
        self._buckets = buckets
        self.of_object: Operations = {
            ("PUT",): self.put_object,
            ("DELETE",): self.delete_object,
            ("GET", "acl"): self.get_object_acl,
            ("GET", "tagging"): self.get_object_tagging,
        }

    def put_object(self, request: Request, body: Body) -> Answer:
        refuse_layout(request.of_bucket, request.of_key)
        self._buckets.created_at_us(request.of_bucket)  # a mistyped path must not look like a success
        if "x-amz-copy-source" in request.headers:
            return self._copy_object(request)
        kept = kept_headers(request.headers)
        stored = self._buckets.put(
            request.of_bucket,
            request.of_key,
            then(body.chunks(), lambda: kept.update(body.headers)),
            content_type=request.headers.get("content-type"),
            headers=kept,
            condition=write_condition(request.headers),
        )
        return Answer(200, content_type=XML, headers=stored_headers(stored))

    def delete_object(self, request: Request, body: Body) -> Answer:
        conditions = ("if-match", "x-amz-if-match-size", "x-amz-if-match-last-modified-time")
        if any(name in request.headers for name in conditions):
            raise S3Refused("NotImplemented", "DeleteObject with a condition is not offered")
        self._buckets.delete(request.of_bucket, request.of_key)
        return NO_CONTENT

    def get_object_acl(self, request: Request, body: Body) -> Answer:
        self._buckets.head(request.of_bucket, request.of_key)
        return acl()

    def get_object_tagging(self, request: Request, body: Body) -> Answer:
        self._buckets.head(request.of_bucket, request.of_key)
        return answer("Tagging", [("TagSet", "")])

    def _copy_object(self, request: Request) -> Answer:
        source_bucket, source_key = copy_source(request.headers)
        replaced = choice(request.headers, "x-amz-metadata-directive", ("COPY", "REPLACE")) == "REPLACE"
        choice(request.headers, "x-amz-tagging-directive", ("COPY", "REPLACE"))
        if (source_bucket, source_key) == (request.bucket, request.key) and not replaced:
            raise S3Refused("InvalidRequest", "x-amz-copy-source: expected another object, or x-amz-metadata-directive: REPLACE")
        own = kept_headers(request.headers)
        with self._buckets.read(source_bucket, source_key) as (source, file):
            require_copy_conditions(source, request.headers)
            kept = dict(source.headers)
            if kept.get(s3_checksums.TYPE) == s3_checksums.COMPOSITE:  # of parts, which the copy does not have
                kept = {name: value for name, value in kept.items() if not name.startswith(s3_checksums.PREFIX)}
            if replaced:  # the bytes stay the same, and so do their checksums
                kept = {name: value for name, value in kept.items() if name.startswith(s3_checksums.PREFIX)} | own
            stored = self._buckets.put(
                request.of_bucket,
                request.of_key,
                pieces(file, source, 0, source.bytes),
                content_type=request.headers.get("content-type") if replaced else source.content_type,
                headers=kept,
                condition=write_condition(request.headers),
            )
        members: list[tuple[str, Element]] = [("ETag", f'"{stored.etag}"'), ("LastModified", time_text(stored.modified_at_us))]
        return answer("CopyObjectResult", members)


def stored_headers(stored: BucketObject) -> HeaderList:
    """What the answer to a write says of the object."""
    said = [name for name in stored.headers if name.startswith(("x-amz-checksum-", "x-amz-server-side-"))]
    named = ((name.encode("latin-1"), stored.headers[name].encode("latin-1")) for name in said if name != s3_checksums.ALGORITHM)
    return ((b"etag", f'"{stored.etag}"'.encode()), *named)


def pieces(file: BinaryIO, source: BucketObject, first: int, size: int) -> Iterator[bytes]:
    """Bytes of an open object.

    Raises:
        FileVanished: it has become shorter, as files that somebody else writes may.
    """
    file.seek(first)
    while size:
        piece = file.read(min(PIECE_BYTES, size))
        if not piece:
            raise FileVanished(f"read {source.key!r}", "it became shorter meanwhile")
        size -= len(piece)
        yield piece


def then(chunks: Iterator[bytes], last: Callable[[], object]) -> Iterator[bytes]:
    """All chunks, and when they are taken without a fault, a call."""
    yield from chunks
    last()
