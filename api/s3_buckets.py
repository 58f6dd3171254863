"""S3's operations of the service and of buckets."""

from __future__ import annotations

import logging
from contextlib import suppress
from typing import Final

from api.s3_body import Body
from api.s3_listing import Page, after_marker, after_token, page_of
from api.s3_operation import Operations
from api.s3_request import Request, number, url_encoding
from api.s3_xml import (
    NO_CONTENT,
    OWNER,
    XML,
    Element,
    acl,
    answer,
    check_creation,
    code_of,
    deletions,
    listed,
    time_text,
    url_text,
)
from api.wire import Answer, message_of
from featurestore.buckets.overlay import OverlaidBuckets
from featurestore.buckets.protocol import LIST_KEYS_MAX
from featurestore.errors import FeatureStoreError, NoSuchBucket

_log: Final = logging.getLogger(__name__)

DEFAULT_REGION: Final = "us-east-1"


class BucketOperations:
    """Operations by method and subresource. All are called in worker threads.

    Args:
        region: of the store.
    """

    def __init__(self, buckets: OverlaidBuckets, region: str) -> None:
        self._buckets = buckets
        self._region = region
        self.of_service: Operations = {("GET",): self.list_buckets}
        self.of_bucket: Operations = {
            ("PUT",): self.create_bucket,
            ("HEAD",): self.head_bucket,
            ("DELETE",): self.delete_bucket,
            ("GET",): self.list_objects,
            ("GET", "location"): self.get_bucket_location,
            ("GET", "versioning"): self.get_bucket_versioning,
            ("GET", "acl"): self.get_bucket_acl,
            ("POST", "delete"): self.delete_objects,
        }

    def list_buckets(self, request: Request, body: Body) -> Answer:
        buckets: list[Element] = []
        for name in self._buckets.names():
            with suppress(NoSuchBucket):
                created = time_text(self._buckets.created_at_us(name))
                buckets.append((("Name", name), ("CreationDate", created)))
        members = [("Bucket", bucket) for bucket in buckets]
        return answer("ListAllMyBucketsResult", [("Owner", OWNER), ("Buckets", members)])

    def create_bucket(self, request: Request, body: Body) -> Answer:
        check_creation(body.whole())
        self._buckets.create(request.of_bucket)
        return Answer(200, content_type=XML, headers=((b"location", f"/{request.bucket}".encode()),))

    def head_bucket(self, request: Request, body: Body) -> Answer:
        self._buckets.created_at_us(request.of_bucket)
        return Answer(200, content_type=XML, headers=((b"x-amz-bucket-region", self._region.encode()),))

    def delete_bucket(self, request: Request, body: Body) -> Answer:
        self._buckets.remove(request.of_bucket)
        return NO_CONTENT

    def get_bucket_location(self, request: Request, body: Body) -> Answer:
        self._buckets.created_at_us(request.of_bucket)
        # The first region's name is not said, as it had none once.
        where = "" if self._region == DEFAULT_REGION else self._region
        return answer("LocationConstraint", where)

    def get_bucket_versioning(self, request: Request, body: Body) -> Answer:
        self._buckets.created_at_us(request.of_bucket)
        return answer("VersioningConfiguration", [])

    def get_bucket_acl(self, request: Request, body: Body) -> Answer:
        self._buckets.created_at_us(request.of_bucket)
        return acl()

    def list_objects(self, request: Request, body: Body) -> Answer:
        query = request.query
        prefix, delimiter, encoded = query.get("prefix", ""), query.get("delimiter", ""), url_encoding(query)
        limit = number(query, "max-keys", LIST_KEYS_MAX)
        wanted = min(limit, LIST_KEYS_MAX)
        v2 = query.get("list-type") == "2"
        token = query.get("continuation-token") if v2 else None
        start = query.get("start-after" if v2 else "marker", "")
        after = after_token(token) if token is not None else start if v2 else after_marker(start, prefix, delimiter)
        page = self._page(request.of_bucket, prefix, delimiter, after, wanted)
        members: list[tuple[str, Element]] = [
            ("Name", request.of_bucket),
            ("Prefix", url_text(prefix, encoded=encoded)),
            ("MaxKeys", wanted),
            ("IsTruncated", page.last is not None),
        ]
        if delimiter:
            members.append(("Delimiter", url_text(delimiter, encoded=encoded)))
        if encoded:
            members.append(("EncodingType", "url"))
        if v2:
            members.append(("KeyCount", len(page.objects) + len(page.prefixes)))
            members += [("ContinuationToken", token)] if token is not None else []
            members += [("NextContinuationToken", page.token)] if page.token is not None else []
            members += [("StartAfter", url_text(start, encoded=encoded))] if start else []
        else:
            members.append(("Marker", url_text(start, encoded=encoded)))
            members += [("NextMarker", url_text(page.last, encoded=encoded))] if page.last is not None else []
        with_owner = not v2 or query.get("fetch-owner") == "true"
        members += [("Contents", listed(item, encoded=encoded, with_owner=with_owner)) for item in page.objects]
        members += [("CommonPrefixes", (("Prefix", url_text(item, encoded=encoded)),)) for item in page.prefixes]
        return answer("ListBucketResult", members)

    def _page(self, bucket: str, prefix: str, delimiter: str, after: str, limit: int) -> Page:
        if limit == 0:
            self._buckets.created_at_us(bucket)
            return Page([], [], None)
        return page_of(self._buckets, bucket, prefix, delimiter, after, limit)

    def delete_objects(self, request: Request, body: Body) -> Answer:
        keys, quiet = deletions(body.whole())
        self._buckets.created_at_us(request.of_bucket)
        members: list[tuple[str, Element]] = []
        for key in keys:
            try:
                self._buckets.delete(request.of_bucket, key)
            except FeatureStoreError as error:
                code, status = code_of(error)
                members.append(("Error", (("Key", key), ("Code", code), ("Message", message_of(error)))))
                if status >= 500:
                    _log.error("deleting %r of bucket %s failed: %s", key, request.bucket, error)
            else:
                if not quiet:
                    members.append(("Deleted", (("Key", key),)))
        return answer("DeleteResult", members)
