"""What can be a bucket's name, and a key."""

from __future__ import annotations

import re
from typing import Final

from featurestore.errors import ValidationFailed
from featurestore.model.key_order import KEY_BYTES_MAX
from featurestore.model.limits import S3_BUCKET

RESERVED: Final = frozenset({"docs", "health", "metrics", "openapi.json", "ready"})
"""First segments of the service's own paths: a bucket of that name could not be reached."""

_ADDRESS: Final = re.compile(r"\d+\.\d+\.\d+\.\d+")


def is_bucket_name(name: str) -> bool:
    """Whether there can be a bucket of that name here (S3's general purpose buckets, less the service's own paths).

    https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html
    """
    return (
        S3_BUCKET.fullmatch(name) is not None and ".." not in name and name not in RESERVED and _ADDRESS.fullmatch(name) is None
    )


def check_bucket(name: str) -> None:
    """
    Raises:
        ValidationFailed
    """
    if not is_bucket_name(name):
        expected = "3 to 63 lower-case letters, digits, '.' and '-', no address, none of " + ", ".join(sorted(RESERVED))
        raise ValidationFailed.one("bucket", expected, name)


def check_key(key: str) -> None:
    """
    Raises:
        ValidationFailed
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError as error:
        raise ValidationFailed.one("key", "text that UTF-8 can express", key) from error
    if not 0 < size <= KEY_BYTES_MAX:
        raise ValidationFailed.one("key", f"1 to {KEY_BYTES_MAX} bytes in UTF-8", key)
