"""The offline layout seen through its bucket names, read-only, beside the objects of users.

Of a group's folder `<bucket>/<prefix>/<account>/sagemaker/<region>/offline-store/<group>-<epoch>/` a client sees what readers
of the layout are meant to see: `data/`, and `iceberg/` if the group is published. What only readers of the manifest use
(`manifest/`, `opt/`) is not there for it. All keys of that form are the offline store's, in every bucket: nobody puts or
deletes one.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from heapq import merge
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final, Never

from featurestore.buckets.folder import Condition, FolderBuckets
from featurestore.buckets.names import check_bucket, check_key, is_bucket_name
from featurestore.buckets.protocol import LIST_KEYS_MAX, BucketObject
from featurestore.buckets.uploads import Uploads
from featurestore.errors import BucketNotEmpty, NoSuchBucket, NoSuchKey, ReadOnlyKey
from featurestore.model.key_order import beyond
from featurestore.offline.protocol import ObjectInfo, ObjectStore

CONTENT_TYPE: Final = "binary/octet-stream"
_LAYOUT: Final = re.compile(r"(?:.*/)?[0-9]{12}/sagemaker/[a-z0-9-]+/offline-store/.*", re.DOTALL)
_SHOWN: Final = re.compile(r"(?:.*/)?[0-9]{12}/sagemaker/[a-z0-9-]+/offline-store/[^/]+-[0-9]+/(?:data|iceberg)/.+", re.DOTALL)


class OverlaidBuckets:
    """See `buckets.protocol.Buckets`. What it has beyond that is for the S3 API.

    Args:
        known: buckets that are there without an object: those of feature groups, which AWS would have before the groups.
    """

    def __init__(self, folder: FolderBuckets, offline: ObjectStore, *, known: Callable[[], Collection[str]] = lambda: ()) -> None:
        self._folder = folder
        self._offline = offline
        self._known = known
        self._uploads = Uploads(folder)

    def names(self) -> Sequence[str]:
        return sorted({*self._folder.names(), *self._offline_names(), *self._known_names()})

    def created_at_us(self, bucket: str) -> int:
        """When a bucket was made, as far as it is known.

        Raises:
            NoSuchBucket
        """
        check_bucket(bucket)
        if self._folder.has(bucket):
            return self._folder.created_at_us(bucket)
        first = next(self._offline_objects(bucket, "", "", 1), None)
        if first is not None:
            return first.modified_at_us
        if bucket in self._known_names():
            return self._folder.opened_at_us
        raise NoSuchBucket(bucket)

    def create(self, bucket: str) -> None:
        """Create a bucket; nothing happens if there is one."""
        self._folder.create(bucket)

    def remove(self, bucket: str) -> None:
        """Delete a bucket without objects.

        Raises:
            NoSuchBucket, BucketNotEmpty
        """
        check_bucket(bucket)
        if next(self._offline_objects(bucket, "", "", 1), None) is not None:
            raise BucketNotEmpty(bucket, "it has files of the offline store")
        if bucket in self._known_names():
            raise BucketNotEmpty(bucket, "feature groups have their offline store in it")
        self._folder.remove(bucket)

    def put(
        self,
        bucket: str,
        key: str,
        chunks: Iterable[bytes],
        *,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        condition: Condition | None = None,
    ) -> BucketObject:
        """As `FolderBuckets.put`.

        Raises:
            ReadOnlyKey, PreconditionFailed
        """
        refuse_layout(bucket, key)
        return self._folder.put(bucket, key, chunks, content_type=content_type, headers=headers, condition=condition)

    @contextmanager
    def read(self, bucket: str, key: str) -> Iterator[tuple[BucketObject, BinaryIO]]:
        if not is_layout(key):
            if not self._folder.has(bucket):
                self._refuse(bucket, key)
            with self._folder.read(bucket, key) as found:
                yield found
            return
        info = self._info(bucket, key)
        file = None if info is None else self._offline.open(f"{bucket}/{key}")
        if info is None or file is None:
            self._refuse(bucket, key)
        with file:
            yield _object(bucket, info), file

    def head(self, bucket: str, key: str) -> BucketObject:
        if not is_layout(key):
            if self._folder.has(bucket):
                return self._folder.head(bucket, key)
            self._refuse(bucket, key)
        info = self._info(bucket, key)
        if info is None:
            self._refuse(bucket, key)
        return _object(bucket, info)

    def list(self, bucket: str, prefix: str = "", *, after: str = "", limit: int = LIST_KEYS_MAX) -> Sequence[BucketObject]:
        limit = min(limit, LIST_KEYS_MAX)
        if not self._folder.has(bucket):
            self.created_at_us(bucket)
            return [*islice(self._offline_objects(bucket, prefix, after, limit), limit)]
        own, offline = self._own_objects(bucket, prefix, after, limit), self._offline_objects(bucket, prefix, after, limit)
        return [*islice(merge(own, offline, key=lambda item: item.key), limit)]

    def delete(self, bucket: str, key: str) -> None:
        refuse_layout(bucket, key)
        if self._folder.has(bucket):
            self._folder.delete(bucket, key)
        else:
            self.created_at_us(bucket)

    def paths(self, bucket: str, keys: Sequence[str]) -> Sequence[Path]:
        found = []
        for key in keys:
            self.head(bucket, key)
            if is_layout(key):
                found += [Path(path) for path in self._offline.paths([f"{bucket}/{key}"])]
            else:
                found += self._folder.paths(bucket, [key])
        return found

    @property
    def uploads(self) -> Uploads:
        """Multipart uploads; whoever begins one has looked with `refuse_layout` at its key."""
        return self._uploads

    def _known_names(self) -> Collection[str]:
        return {name for name in self._known() if is_bucket_name(name)}

    def _offline_names(self) -> Iterator[str]:
        after = ""
        while page := self._offline.page("", after=after, limit=1):
            name = page[0].key.partition("/")[0]
            after = beyond(f"{name}/")
            if is_bucket_name(name) and next(self._offline_objects(name, "", "", 1), None) is not None:
                yield name

    def _own_objects(self, bucket: str, prefix: str, after: str, limit: int) -> Iterator[BucketObject]:
        """As `FolderBuckets.list`, without what somebody has put by hand where the layout is."""
        while page := self._folder.list(bucket, prefix, after=after, limit=limit):
            yield from (item for item in page if not is_layout(item.key))
            if len(page) < limit:
                return
            after = page[-1].key

    def _offline_objects(self, bucket: str, prefix: str, after: str, limit: int) -> Iterator[BucketObject]:
        """The first `limit` ones."""
        found = 0
        root = f"{bucket}/"
        place = f"{root}{after}" if after else ""
        while page := self._offline.page(root + prefix, after=place, limit=LIST_KEYS_MAX):
            for info in page:
                if _SHOWN.fullmatch(info.key.removeprefix(root)):
                    yield _object(bucket, info)
                    found += 1
                    if found == limit:
                        return
            if len(page) < LIST_KEYS_MAX:
                return
            place = page[-1].key

    def _info(self, bucket: str, key: str) -> ObjectInfo | None:
        check_bucket(bucket)
        check_key(key)
        return self._offline.info(f"{bucket}/{key}") if _SHOWN.fullmatch(key) else None

    def _refuse(self, bucket: str, key: str) -> Never:
        """
        Raises:
            NoSuchBucket, NoSuchKey
        """
        check_key(key)
        self.created_at_us(bucket)
        raise NoSuchKey(bucket, key)


def is_layout(key: str) -> bool:
    """Whether a key is one of the offline layout, shown or not."""
    return _LAYOUT.fullmatch(key) is not None


def refuse_layout(bucket: str, key: str) -> None:
    """
    Raises:
        ReadOnlyKey
    """
    if is_layout(key):
        raise ReadOnlyKey(bucket, key)


def _object(bucket: str, info: ObjectInfo) -> BucketObject:
    """Files of the layout never change, so size and time are a version; the `-` says that it is no MD5 of the bytes."""
    version = hashlib.md5(f"{info.bytes}-{info.modified_us}".encode(), usedforsecurity=False).hexdigest()
    return BucketObject(info.key.removeprefix(f"{bucket}/"), info.bytes, f"{version}-1", info.modified_us, CONTENT_TYPE)
