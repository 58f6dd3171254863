"""Pages of a bucket's keys as S3 lists them: keys with a common prefix up to a delimiter count and show as one."""

from __future__ import annotations

import base64
import binascii
from dataclasses import dataclass
from typing import Final

import msgspec

from api.s3_xml import S3Refused
from featurestore.buckets.protocol import LIST_KEYS_MAX, BucketObject, Buckets
from featurestore.decoding import decode_json
from featurestore.model.key_order import beyond

_FORMAT: Final = "1"


@dataclass(frozen=True, slots=True)
class Page:
    """One page of a listing.

    Attributes:
        last: the key or common prefix that the page ends with; None if there is no further one.
    """

    objects: list[BucketObject]
    prefixes: list[str]
    last: str | None
    last_is_prefix: bool = False

    @property
    def token(self) -> str | None:
        """For the next page; opaque to clients."""
        if self.last is None:
            return None
        return base64.urlsafe_b64encode(msgspec.json.encode((_FORMAT, self.last, self.last_is_prefix))).decode()


def after_token(token: str) -> str:
    """Behind what the page of a token goes on.

    Raises:
        S3Refused: the token is none of ours.
    """
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        version, last, is_prefix = decode_json(data, tuple[str, str, bool])
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise S3Refused("InvalidArgument", "continuation-token: expected one of an earlier answer") from error
    if version != _FORMAT:
        raise S3Refused("InvalidArgument", "continuation-token: expected one of an earlier answer")
    return beyond(last) if is_prefix else last


def after_marker(marker: str, prefix: str, delimiter: str) -> str:
    """Behind what a listing of version 1 goes on: a marker that is a common prefix stands for all that is under it."""
    if not delimiter or not marker.startswith(prefix):
        return marker
    end = marker.find(delimiter, len(prefix))
    return beyond(marker) if end >= 0 and end + len(delimiter) == len(marker) else marker


def page_of(buckets: Buckets, bucket: str, prefix: str, delimiter: str, after: str, limit: int) -> Page:
    """The first `limit` keys and common prefixes behind `after`."""
    objects: list[BucketObject] = []
    prefixes: list[str] = []
    while True:
        # One more than is wanted tells whether there is a further page.
        found = buckets.list(bucket, prefix, after=after, limit=min(LIST_KEYS_MAX, limit - len(objects) - len(prefixes) + 1))
        for item in found:
            if item.key <= after:
                continue  # under the common prefix that was just shown
            end = item.key.find(delimiter, len(prefix)) if delimiter else -1
            if len(objects) + len(prefixes) == limit:
                return Page(objects, prefixes, *_last(objects, prefixes))
            if end < 0:
                objects.append(item)
                after = item.key
            else:
                prefixes.append(item.key[: end + len(delimiter)])
                after = beyond(prefixes[-1])
        if len(found) == 0:
            return Page(objects, prefixes, None)


def _last(objects: list[BucketObject], prefixes: list[str]) -> tuple[str | None, bool]:
    last_key = objects[-1].key if objects else ""
    last_prefix = prefixes[-1] if prefixes else ""
    if not last_key and not last_prefix:
        return None, False  # nothing was wanted
    return max(last_key, last_prefix), last_prefix > last_key
