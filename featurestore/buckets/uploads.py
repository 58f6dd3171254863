"""Multipart uploads: parts that wait on disk until they become one object, or are given up.

    _uploads/<upload id>/upload.json              bucket, key, and what is to be kept with the object
    _uploads/<upload id>/<number>-<MD5 of part>   a part
    _uploads/<upload id>/done.json                the object it has become; the parts are gone

The folder is locked while parts are exchanged or put together. A completed upload is remembered as long as an abandoned one
stays, so a client that did not get the answer and asks again gets the same one.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import msgspec

from featurestore.buckets.folder import TEMPORARY, Condition, FolderBuckets
from featurestore.buckets.names import check_bucket, check_key
from featurestore.buckets.protocol import BucketObject
from featurestore.decoding import decode_json
from featurestore.errors import NoSuchUpload, StoreUnavailable, UploadRefused
from featurestore.temporary import temporary_file

UPLOADS: Final = "_uploads"
UPLOAD: Final = "upload.json"
DONE: Final = "done.json"
ABANDONED_S: Final = 7 * 24 * 3600
"""An upload that nobody has sent a part of for so long is given up."""
CLEANING_S: Final = 3600
"""How often a process looks for abandoned uploads, at most: it has to look at all of them."""
PARTS_MAX: Final = 10_000
PART_BYTES_MIN: Final = 5 << 20
"""Of every part but the last one (https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html)."""
COPY_BYTES: Final = 1 << 20

_ID: Final = re.compile(r"[0-9a-f]{32}")
_PART: Final = re.compile(r"(?P<number>[0-9]{5})-(?P<md5>[0-9a-f]{32})")


class _Upload(msgspec.Struct, frozen=True):
    bucket: str
    key: str
    content_type: str | None
    headers: dict[str, str]


class _Done(msgspec.Struct, frozen=True):
    parts: tuple[tuple[int, str], ...]
    bytes: int
    etag: str
    modified_at_us: int
    headers: dict[str, str]


@dataclass(frozen=True, slots=True)
class Part:
    """A part that was uploaded. `etag` is the MD5 of its bytes, without quotes."""

    number: int
    bytes: int
    etag: str
    modified_at_us: int


class PartReader:
    """Sees the bytes of all parts while they are put together."""

    def begin(self, number: int) -> None:
        """A part begins."""

    def take(self, chunk: bytes) -> None:
        """The next bytes of that part."""

    def headers(self) -> Mapping[str, str]:
        """After the last part: what else to keep with the object.

        Raises:
            UploadRefused: the bytes are not what was announced; nothing is stored.
        """
        return {}


class Uploads:
    """The multipart uploads into the buckets of one folder. Safe to use from several threads and processes."""

    def __init__(self, folder: FolderBuckets, *, clock_s: Callable[[], float] = time.time) -> None:
        self._folder = folder
        self._root = folder.root / UPLOADS
        self._temporary = folder.root / TEMPORARY
        self._clock_s = clock_s
        with _operation("open buckets"):
            self._root.mkdir(exist_ok=True)
        self.remove_abandoned()

    def begin(self, bucket: str, key: str, *, content_type: str | None, headers: Mapping[str, str]) -> str:
        """Begin an upload; its id."""
        check_bucket(bucket)
        check_key(key)
        if self._clock_s() - self._cleaned_at_s >= CLEANING_S:
            self.remove_abandoned()
        upload_id = uuid.uuid4().hex
        with _operation(f"begin a multipart upload of {key!r}"):
            # Its description is there from the first moment on, since who finds none takes it for aborted.
            staged = self._root / f"{upload_id}.new"
            staged.mkdir()
            _write(staged / UPLOAD, msgspec.json.encode(_Upload(bucket, key, content_type, dict(headers))))
            staged.rename(self._root / upload_id)
            _sync(self._root)
        return upload_id

    def put_part(self, bucket: str, key: str, upload_id: str, number: int, chunks: Iterable[bytes]) -> Part:
        """Store a part, in place of one of that number.

        Raises:
            NoSuchUpload
            UploadRefused: the number is none from 1 to PARTS_MAX.
        """
        if not 1 <= number <= PARTS_MAX:
            raise UploadRefused("InvalidArgument", f"partNumber: expected 1 to {PARTS_MAX}, got {number}")
        self._upload(bucket, key, upload_id)
        with _operation(f"write part {number} of {key!r}"), temporary_file(self._temporary) as (path, file):
            digest = hashlib.md5(usedforsecurity=False)
            for chunk in chunks:
                digest.update(chunk)
                file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            name = f"{number:05d}-{digest.hexdigest()}"
            with self._locked(upload_id) as folder:
                self._upload(bucket, key, upload_id)
                if (folder / DONE).exists():
                    raise NoSuchUpload(upload_id)
                path.rename(folder / name)
                for other in folder.glob(f"{number:05d}-*"):
                    if other.name != name:
                        other.unlink()
                _sync(folder)
                return _part(folder / name)

    def headers(self, bucket: str, key: str, upload_id: str) -> Mapping[str, str]:
        """What was to be kept with the object when the upload began.

        Raises:
            NoSuchUpload
        """
        return self._upload(bucket, key, upload_id).headers

    def parts(self, bucket: str, key: str, upload_id: str) -> Sequence[Part]:
        """The parts there are, by number.

        Raises:
            NoSuchUpload
        """
        self._upload(bucket, key, upload_id)
        with _operation(f"list the parts of {key!r}"), self._locked(upload_id) as folder:
            self._upload(bucket, key, upload_id)
            return self._parts(folder)

    def list(self, bucket: str) -> Sequence[tuple[str, str, int]]:
        """Key, id and begin (microseconds since 1970) of the uploads under way into a bucket, by key."""
        found = []
        with _operation(f"list the multipart uploads of bucket {bucket}"):
            for folder in self._root.iterdir():
                if _ID.fullmatch(folder.name) is None:
                    continue
                with suppress(FileNotFoundError):
                    upload = decode_json((folder / UPLOAD).read_bytes(), _Upload)
                    if upload.bucket == bucket and not (folder / DONE).exists():
                        found.append((upload.key, folder.name, (folder / UPLOAD).stat().st_mtime_ns // 1000))
        return sorted(found, key=lambda item: (item[0], item[2]))

    def complete(
        self,
        bucket: str,
        key: str,
        upload_id: str,
        wanted: Sequence[tuple[int, str]],
        reader: PartReader,
        *,
        condition: Condition | None = None,
    ) -> BucketObject:
        """Put parts together to the object, in one step as in `Buckets.put`. Asked again, the answer is the same.

        Args:
            wanted: number and ETag of the parts, in rising order; others are dropped.

        Raises:
            NoSuchUpload
            UploadRefused: a part is not there as `wanted` says, or too small; the upload stays.
            PreconditionFailed: `condition` does not hold; the upload stays.
        """
        self._upload(bucket, key, upload_id)
        numbers = [number for number, _ in wanted]
        if not wanted:
            raise UploadRefused("MalformedXML", "CompleteMultipartUpload: expected at least one Part")
        if any(later <= earlier for earlier, later in pairwise(numbers)):
            raise UploadRefused("InvalidPartOrder", "the parts are not in rising order of their numbers")
        with _operation(f"complete the multipart upload of {key!r}"), self._locked(upload_id) as folder:
            upload = self._upload(bucket, key, upload_id)
            with suppress(FileNotFoundError):
                done = decode_json((folder / DONE).read_bytes(), _Done)
                if done.parts != tuple(wanted):
                    raise NoSuchUpload(upload_id)
                return BucketObject(key, done.bytes, done.etag, done.modified_at_us, upload.content_type, done.headers)
            files = self._files(folder, wanted)
            headers = dict(upload.headers)
            etag = _etag_of([etag for _, etag in wanted])
            stored = self._folder.put(
                bucket,
                key,
                _chunks(files, reader, headers),
                content_type=upload.content_type,
                headers=headers,
                condition=condition,
                etag=lambda: etag,
            )
            done = _Done(tuple(wanted), stored.bytes, stored.etag, stored.modified_at_us, dict(stored.headers))
            _write(folder / f"{DONE}.new", msgspec.json.encode(done))
            (folder / f"{DONE}.new").rename(folder / DONE)
            _sync(folder)
            for part in self._parts(folder):
                (folder / _name(part)).unlink()
            return stored

    def abort(self, bucket: str, key: str, upload_id: str) -> None:
        """Give an upload up and delete its parts; whoever is putting them together finishes first.

        Raises:
            NoSuchUpload
        """
        self._upload(bucket, key, upload_id)
        with _operation(f"abort the multipart upload of {key!r}"), self._locked(upload_id) as folder:
            self._upload(bucket, key, upload_id)
            if (folder / DONE).exists():
                raise NoSuchUpload(upload_id)
            self._remove(folder)

    def remove_abandoned(self) -> None:
        """Delete the uploads that nobody has changed for ABANDONED_S seconds."""
        self._cleaned_at_s = self._clock_s()
        until_s = self._cleaned_at_s - ABANDONED_S
        with _operation("clean up multipart uploads"):
            for folder in self._root.iterdir():
                with suppress(FileNotFoundError, BlockingIOError, NoSuchUpload):
                    if folder.stat().st_mtime < until_s:
                        with self._locked(folder.name, wait=False):
                            self._remove(folder)

    def _remove(self, folder: Path) -> None:
        (folder / UPLOAD).unlink(missing_ok=True)  # first: without it there is no upload any more
        shutil.rmtree(folder)

    def _upload(self, bucket: str, key: str, upload_id: str) -> _Upload:
        if _ID.fullmatch(upload_id) is None:
            raise NoSuchUpload(upload_id)
        with _operation(f"read multipart upload {upload_id}"):
            try:
                upload = decode_json((self._root / upload_id / UPLOAD).read_bytes(), _Upload)
            except FileNotFoundError as error:
                raise NoSuchUpload(upload_id) from error
        if (upload.bucket, upload.key) != (bucket, key):
            raise NoSuchUpload(upload_id)
        return upload

    def _parts(self, folder: Path) -> Sequence[Part]:
        return [_part(folder / name) for name in sorted(os.listdir(folder)) if _PART.fullmatch(name)]

    def _files(self, folder: Path, wanted: Sequence[tuple[int, str]]) -> Sequence[tuple[int, Path]]:
        there = {part.number: part for part in self._parts(folder)}
        files = []
        for position, (number, etag) in enumerate(wanted):
            part = there.get(number)
            if part is None or part.etag != etag:
                is_there = "it was not uploaded" if part is None else f"it has the ETag {part.etag}"
                raise UploadRefused("InvalidPart", f"part {number} with the ETag {etag[:64]}: {is_there}")
            if part.bytes < PART_BYTES_MIN and position < len(wanted) - 1:
                raise UploadRefused(
                    "EntityTooSmall", f"part {number}: expected at least {PART_BYTES_MIN} bytes, got {part.bytes}"
                )
            files.append((number, folder / _name(part)))
        return files

    @contextmanager
    def _locked(self, upload_id: str, *, wait: bool = True) -> Iterator[Path]:
        """Alone among threads and processes with an upload.

        Raises:
            NoSuchUpload
            BlockingIOError: somebody else is, and `wait` is off.
        """
        folder = self._root / upload_id
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise NoSuchUpload(upload_id) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield folder
        finally:
            os.close(descriptor)


def _chunks(files: Sequence[tuple[int, Path]], reader: PartReader, headers: dict[str, str]) -> Iterator[bytes]:
    for number, path in files:
        reader.begin(number)
        with open(path, "rb") as file:
            while chunk := file.read(COPY_BYTES):
                reader.take(chunk)
                yield chunk
    headers.update(reader.headers())


def _etag_of(md5s: Sequence[str]) -> str:
    """S3's ETag of an object in parts: the MD5 of the parts' MD5s, and how many there are."""
    digest = hashlib.md5(b"".join(bytes.fromhex(md5) for md5 in md5s), usedforsecurity=False)
    return f"{digest.hexdigest()}-{len(md5s)}"


def _part(path: Path) -> Part:
    status = path.stat()
    number, _, etag = path.name.partition("-")
    return Part(int(number), status.st_size, etag, status.st_mtime_ns // 1000)


def _name(part: Part) -> str:
    return f"{part.number:05d}-{part.etag}"


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _operation(operation: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreUnavailable(operation, str(error), hint="see the folder `buckets` of the home folder") from error
