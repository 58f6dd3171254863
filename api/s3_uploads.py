"""S3's operations of multipart uploads."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from api import s3_checksums
from api.s3_body import Body
from api.s3_checksums import Checksum
from api.s3_objects import pieces
from api.s3_operation import Operations
from api.s3_request import (
    Request,
    copy_range,
    copy_source,
    kept_headers,
    number,
    require_copy_conditions,
    url_encoding,
    write_condition,
)
from api.s3_xml import NO_CONTENT, XML, Element, S3Refused, answer, completion, time_text, url_text
from api.wire import Answer
from featurestore.buckets.overlay import OverlaidBuckets, refuse_layout
from featurestore.buckets.uploads import PartReader
from featurestore.errors import UploadRefused

PARTS_SHOWN_MAX: Final = 1000
_ALWAYS_FULL: Final = ("crc64nvme",)
_NEVER_FULL: Final = ("sha1", "sha256")


class UploadOperations:
    """Operations by method and subresource. All are called in worker threads."""

    def __init__(self, buckets: OverlaidBuckets) -> None:
        self._buckets = buckets
        self._uploads = buckets.uploads
        self.of_bucket: Operations = {("GET", "uploads"): self.list_uploads}
        self.of_object: Operations = {
            ("POST", "uploads"): self.create_upload,
            ("PUT", "partNumber", "uploadId"): self.upload_part,
            ("GET", "uploadId"): self.list_parts,
            ("POST", "uploadId"): self.complete_upload,
            ("DELETE", "uploadId"): self.abort_upload,
        }

    def create_upload(self, request: Request, body: Body) -> Answer:
        refuse_layout(request.of_bucket, request.of_key)
        self._buckets.created_at_us(request.of_bucket)
        body.whole()
        kept = kept_headers(request.headers) | _announced_checksum(request.headers)
        content_type = request.headers.get("content-type")
        upload_id = self._uploads.begin(request.of_bucket, request.of_key, content_type=content_type, headers=kept)
        named = (s3_checksums.ALGORITHM, s3_checksums.TYPE)
        headers = tuple((name.encode(), kept[name].encode("latin-1")) for name in named if name in kept)
        members = [("Bucket", request.of_bucket), ("Key", request.of_key), ("UploadId", upload_id)]
        return answer("InitiateMultipartUploadResult", members, headers=headers)

    def upload_part(self, request: Request, body: Body) -> Answer:
        part_number = number(request.query, "partNumber", 0)
        if "x-amz-copy-source" in request.headers:
            return self._copy_part(request, part_number)
        part = self._uploads.put_part(request.of_bucket, request.of_key, request.query["uploadId"], part_number, body.chunks())
        checksums = ((name.encode(), value.encode()) for name, value in body.headers.items() if name != s3_checksums.TYPE)
        return Answer(200, content_type=XML, headers=((b"etag", f'"{part.etag}"'.encode()), *checksums))

    def _copy_part(self, request: Request, part_number: int) -> Answer:
        with self._buckets.read(*copy_source(request.headers)) as (source, file):
            require_copy_conditions(source, request.headers)
            chunks = pieces(file, source, *copy_range(source, request.headers))
            part = self._uploads.put_part(request.of_bucket, request.of_key, request.query["uploadId"], part_number, chunks)
        members: list[tuple[str, Element]] = [("ETag", f'"{part.etag}"'), ("LastModified", time_text(part.modified_at_us))]
        return answer("CopyPartResult", members)

    def list_parts(self, request: Request, body: Body) -> Answer:
        parts = self._uploads.parts(request.of_bucket, request.of_key, request.query["uploadId"])
        after = number(request.query, "part-number-marker", 0)
        limit = min(number(request.query, "max-parts", PARTS_SHOWN_MAX), PARTS_SHOWN_MAX)
        further = [part for part in parts if part.number > after]
        page = further[:limit]
        members: list[tuple[str, Element]] = [
            ("Bucket", request.of_bucket),
            ("Key", url_text(request.of_key, encoded=url_encoding(request.query))),
            ("UploadId", request.query["uploadId"]),
            ("PartNumberMarker", after),
            ("NextPartNumberMarker", page[-1].number if page else 0),
            ("MaxParts", limit),
            ("IsTruncated", bool(page) and len(further) > limit),
        ]
        for part in page:
            modified = time_text(part.modified_at_us)
            shown = ("PartNumber", part.number), ("LastModified", modified), ("ETag", f'"{part.etag}"'), ("Size", part.bytes)
            members.append(("Part", shown))
        return answer("ListPartsResult", members)

    def list_uploads(self, request: Request, body: Body) -> Answer:
        self._buckets.created_at_us(request.of_bucket)
        encoded = url_encoding(request.query)
        prefix, marker = request.query.get("prefix", ""), request.query.get("key-marker", "")
        id_marker = request.query.get("upload-id-marker", "")
        if request.query.get("delimiter"):
            raise S3Refused("NotImplemented", "ListMultipartUploads with a delimiter is not offered")
        limit = min(number(request.query, "max-uploads", PARTS_SHOWN_MAX), PARTS_SHOWN_MAX)
        there = sorted((key, upload_id, begun) for key, upload_id, begun in self._uploads.list(request.of_bucket))
        further = [
            item
            for item in there
            if item[0].startswith(prefix) and (item[0] > marker or (id_marker and item[:2] > (marker, id_marker)))
        ]
        page = further[:limit]
        truncated = bool(page) and len(further) > limit
        members: list[tuple[str, Element]] = [
            ("Bucket", request.of_bucket),
            ("KeyMarker", url_text(marker, encoded=encoded)),
            ("UploadIdMarker", id_marker),
            ("Prefix", url_text(prefix, encoded=encoded)),
            ("MaxUploads", limit),
            ("IsTruncated", truncated),
        ]
        if encoded:
            members.append(("EncodingType", "url"))
        if truncated:
            members += [("NextKeyMarker", url_text(page[-1][0], encoded=encoded)), ("NextUploadIdMarker", page[-1][1])]
        for key, upload_id, begun in page:
            shown = ("Key", url_text(key, encoded=encoded)), ("UploadId", upload_id), ("Initiated", time_text(begun))
            members.append(("Upload", shown))
        return answer("ListMultipartUploadsResult", members)

    def complete_upload(self, request: Request, body: Body) -> Answer:
        parts = completion(body.whole())
        upload_id = request.query["uploadId"]
        kept = self._uploads.headers(request.of_bucket, request.of_key, upload_id)
        reader = _Checksums(kept, request.headers, {part: checksums for part, _, checksums in parts})
        stored = self._uploads.complete(
            request.of_bucket,
            request.of_key,
            upload_id,
            [(part, etag) for part, etag, _ in parts],
            reader,
            condition=write_condition(request.headers),
        )
        members: list[tuple[str, Element]] = [
            ("Location", f"/{request.of_bucket}/{request.of_key}"),
            ("Bucket", request.of_bucket),
            ("Key", request.of_key),
            ("ETag", f'"{stored.etag}"'),
        ]
        for member, name in s3_checksums.XML_MEMBERS.items():
            if (found := stored.headers.get(s3_checksums.PREFIX + name)) is not None:
                members += [(member, found), ("ChecksumType", stored.headers[s3_checksums.TYPE])]
        return answer("CompleteMultipartUploadResult", members)

    def abort_upload(self, request: Request, body: Body) -> Answer:
        self._uploads.abort(request.of_bucket, request.of_key, request.query["uploadId"])
        return NO_CONTENT


def _announced_checksum(headers: Mapping[str, str]) -> dict[str, str]:
    """Which checksum the object will have, of its parts' (COMPOSITE) or of all its bytes."""
    said = headers.get(s3_checksums.ALGORITHM)
    if said is None:
        return {}
    name = said.lower()
    if name not in s3_checksums.NAMES:
        expected = ", ".join(known.upper() for known in s3_checksums.NAMES)
        raise S3Refused("NotImplemented", f"{s3_checksums.ALGORITHM}: expected one of {expected}, got {said[:80]!r}")
    default = s3_checksums.FULL_OBJECT if name in _ALWAYS_FULL else s3_checksums.COMPOSITE
    kind = headers.get(s3_checksums.TYPE, default).upper()
    allowed = {s3_checksums.FULL_OBJECT} if name in _ALWAYS_FULL else {s3_checksums.COMPOSITE}
    if name not in _NEVER_FULL:
        allowed.add(s3_checksums.FULL_OBJECT)
    if kind not in allowed:
        message = f"{s3_checksums.TYPE}: expected {' or '.join(sorted(allowed))} for {said.upper()}, got {kind[:80]!r}"
        raise S3Refused("InvalidRequest", message)
    return {s3_checksums.ALGORITHM: name.upper(), s3_checksums.TYPE: kind}


class _Checksums(PartReader):
    """Checks the parts' checksums that a completion names, and makes the object's."""

    def __init__(self, kept: Mapping[str, str], headers: Mapping[str, str], wanted: Mapping[int, Mapping[str, str]]) -> None:
        name = kept.get(s3_checksums.ALGORITHM, "").lower()
        self._name = name or None
        self._full = kept.get(s3_checksums.TYPE) == s3_checksums.FULL_OBJECT
        self._wanted = wanted
        self._wanted_whole = headers.get(s3_checksums.PREFIX + name)
        self._whole = s3_checksums.checksum(name) if name else None
        self._of_part: dict[str, Checksum] = {}
        self._number = 0
        self._count = 0

    def begin(self, number: int) -> None:
        self._end_part()
        self._number = number
        self._count += 1
        names = {*self._wanted.get(number, ())} | ({self._name} if self._name and not self._full else set())
        self._of_part = {name: s3_checksums.checksum(name) for name in names}

    def take(self, chunk: bytes) -> None:
        for checksum in self._of_part.values():
            checksum.update(chunk)
        if self._whole is not None and self._full:
            self._whole.update(chunk)

    def headers(self) -> Mapping[str, str]:
        self._end_part()
        if self._whole is None:
            return {}
        found = s3_checksums.text(self._whole.digest())
        said = found if self._full else f"{found}-{self._count}"
        wanted = self._wanted_whole
        if wanted is not None and wanted not in (said, found):
            raise UploadRefused("BadDigest", f"{s3_checksums.PREFIX}{self._name}: the object has {said}, got {wanted[:100]!r}")
        return {f"{s3_checksums.PREFIX}{self._name}": said}

    def _end_part(self) -> None:
        for name, checksum in self._of_part.items():
            digest = checksum.digest()
            wanted = self._wanted.get(self._number, {}).get(name)
            if wanted is not None and wanted != s3_checksums.text(digest):
                message = f"part {self._number}: {name.upper()} is {s3_checksums.text(digest)}, got {wanted[:100]!r}"
                raise UploadRefused("InvalidPart", message)
            if name == self._name and not self._full and self._whole is not None:
                self._whole.update(digest)
        self._of_part = {}
