"""Where the objects of users live: query results, spines, whatever an S3 client uploads. One backend per kind of storage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Final, Protocol

LIST_KEYS_MAX: Final = 1000
"""Objects that one call of `Buckets.list` returns at most."""


@dataclass(frozen=True, slots=True)
class BucketObject:
    """What is known of an object without reading it.

    Attributes:
        bytes: its size.
        etag: of its content, without the quotes that HTTP puts around it. The MD5 of the bytes in hexadecimal, or a text with a
            `-` in it where the object came in several parts or was not written through this interface.
        modified_at_us: when it was written, microseconds since 1970, by the clock of the storage.
        headers: what else was stored with it, by lower-case HTTP header name: `x-amz-meta-*`, `content-encoding`, checksums.
    """

    key: str
    bytes: int
    etag: str
    modified_at_us: int
    content_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


class Buckets(Protocol):
    """Objects in buckets, replaced as a whole and read whole or not at all.

    Bucket names are S3's (3 to 63 lower-case letters, digits, `.` and `-`). Keys are any texts of 1 to KEY_BYTES_MAX bytes in
    UTF-8 (see `model.key_order`); `a`, `a/`, `a//b`, `..` and `/a` are names like any other and lead nowhere else.

    Synchronous; safe to call from several threads and processes. Every method raises StoreUnavailable when the storage does not
    answer, and ValidationFailed for a name that can't be a bucket's or a key.
    """

    def names(self) -> Sequence[str]:
        """The buckets there are, sorted."""

    def put(self, bucket: str, key: str, chunks: Iterable[bytes], *, content_type: str | None = None) -> BucketObject:
        """Store an object, durable when this returns, in place of one of that key.

        Atomic: a reader sees the old or the new object whole, and if taking a chunk raises, the old one stays. Bounded memory.
        The folder backend creates a missing bucket.

        Raises:
            NoSuchBucket: only where buckets are somebody else's to create (a real S3 service).
            ReadOnlyKey: the key belongs to the offline layout.
        """

    def read(self, bucket: str, key: str) -> AbstractContextManager[tuple[BucketObject, BinaryIO]]:
        """An object and its bytes, as they were when this was called, whatever is put meanwhile. Read them in order.

        Raises:
            NoSuchBucket, NoSuchKey
        """

    def head(self, bucket: str, key: str) -> BucketObject:
        """What is known of an object.

        Raises:
            NoSuchBucket, NoSuchKey
        """

    def list(self, bucket: str, prefix: str = "", *, after: str = "", limit: int = LIST_KEYS_MAX) -> Sequence[BucketObject]:
        """The first `limit` (at most LIST_KEYS_MAX) objects whose keys begin with `prefix` and are greater than `after`.

        Ascending by the keys' UTF-8 bytes. An object that is put or deleted meanwhile may be there or not.
        `headers` and `content_type` may be missing.

        Raises:
            NoSuchBucket
        """

    def delete(self, bucket: str, key: str) -> None:
        """Remove an object; nothing happens if there is none.

        Raises:
            NoSuchBucket
            ReadOnlyKey: the key belongs to the offline layout.
        """

    def paths(self, bucket: str, keys: Sequence[str]) -> Sequence[Path]:
        """Local files with the bytes of those objects, in the order of `keys`, for a query engine to open soon.

        Whoever puts or deletes such an object meanwhile may take the file away (opening it fails), never change it.

        Raises:
            NoSuchBucket, NoSuchKey
        """
