"""Objects as files below one folder, under names that a person finds again.

    <bucket>/<names of `file_names`>                   the bytes of an object, nothing else
    _meta/<bucket>/<2 hex>/<62 hex of the key's hash>  what else is known of it: ETag, content type, metadata
    _uploads/<upload id>/                              parts of multipart uploads, see `uploads`
    _lock/<2 hex>                                      held while an object of the keys with that hash is exchanged
    _tmp/<random>                                      files under way

Names that begin with an underscore can't be buckets. An object is written aside, synced and renamed to its name, so a reader sees
the old or the new one. Before that, its description is written beside the old one's, each with size and modification time of
the file it is about: whichever of the two files a reader has opened, its description is there. Every put makes the modification
time later than the one before.

A file that has no description, since somebody put it there by hand, is an object too; its ETag follows from size and time.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from featurestore.beneath import file_in, folder_beneath
from featurestore.buckets.file_names import folder_path_of, is_begin, path_of, text_of
from featurestore.buckets.names import check_bucket, check_key, is_bucket_name
from featurestore.buckets.protocol import LIST_KEYS_MAX, BucketObject
from featurestore.decoding import decode_json
from featurestore.errors import BucketNotEmpty, NoSuchBucket, NoSuchKey, PreconditionFailed, StoreUnavailable, ValidationFailed
from featurestore.model.key_order import in_key_order
from featurestore.temporary import remove_leftover_files, temporary_file

META: Final = "_meta"
LOCKS: Final = "_lock"
TEMPORARY: Final = "_tmp"
ATTEMPTS_MAX: Final = 100
"""Lost races with deletions of empty folders, or with puts of an object that is being read, before giving up."""

Place = tuple[str, ...]


class _Description(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of one file beyond its bytes. `mtime_ns` and `size` say of which."""

    mtime_ns: int
    size: int
    etag: str
    content_type: str | None = None
    headers: dict[str, str] = {}


class _Descriptions(msgspec.Struct, frozen=True):
    key: str
    files: tuple[_Description, ...]


class Condition(msgspec.Struct, frozen=True):
    """What must hold at the moment an object is exchanged.

    Attributes:
        absent: there is no object of that key.
        etags: there is one with one of these ETags; None for any or no object.
    """

    absent: bool = False
    etags: tuple[str, ...] | None = None


class FolderBuckets:
    """See `buckets.protocol.Buckets`.

    Raises:
        StoreUnavailable: the folder can't be created or written.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._temporary = self._root / TEMPORARY
        try:
            for name in (META, LOCKS, TEMPORARY):
                (self._root / name).mkdir(parents=True, exist_ok=True)
            self._folding = self._takes_names_for_equal()
            self.opened_at_us = os.stat(self._root / META).st_ctime_ns // 1000
            remove_leftover_files(self._temporary)
        except OSError as error:
            raise self._unavailable("open buckets", error) from error

    @property
    def root(self) -> Path:
        return self._root

    def names(self) -> Sequence[str]:
        with self._operation("list buckets"), os.scandir(self._root) as entries:
            found = [entry.name for entry in entries if is_bucket_name(entry.name) and entry.is_dir(follow_symlinks=False)]
        return sorted(found)

    def created_at_us(self, bucket: str) -> int:
        """When a bucket was last changed, the nearest that a folder knows.

        Raises:
            NoSuchBucket
        """
        check_bucket(bucket)
        with self._operation(f"look for bucket {bucket}"):
            try:
                status = os.stat(self._root / bucket, follow_symlinks=False)
            except FileNotFoundError as error:
                raise NoSuchBucket(bucket) from error
        if not stat.S_ISDIR(status.st_mode):
            raise NoSuchBucket(bucket)
        return status.st_mtime_ns // 1000

    def has(self, bucket: str) -> bool:
        """Whether there is a bucket of that name."""
        try:
            self.created_at_us(bucket)
        except NoSuchBucket:
            return False
        return True

    def create(self, bucket: str) -> None:
        """Create a bucket; nothing happens if there is one."""
        check_bucket(bucket)
        with self._operation(f"create bucket {bucket}"), folder_beneath(self._root, (bucket,), create=True):
            pass

    def remove(self, bucket: str) -> None:
        """Delete a bucket without objects.

        Raises:
            NoSuchBucket, BucketNotEmpty
        """
        self.created_at_us(bucket)
        with self._operation(f"delete bucket {bucket}"):
            try:
                os.rmdir(self._root / bucket)
            except FileNotFoundError as error:
                raise NoSuchBucket(bucket) from error
            except OSError as error:
                if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                    raise BucketNotEmpty(bucket, "it has objects") from error
                raise
            _sync(self._root)

    def put(
        self,
        bucket: str,
        key: str,
        chunks: Iterable[bytes],
        *,
        content_type: str | None = None,
        headers: Mapping[str, str] | None = None,
        condition: Condition | None = None,
        etag: Callable[[], str] | None = None,
    ) -> BucketObject:
        """As `Buckets.put`.

        Args:
            headers: to keep with the object, lower-case names; looked at when the last chunk was taken.
            condition: checked when the last chunk was taken, in one step with the exchange.
            etag: asked when the last chunk was taken; by default it is the MD5 of the bytes.

        Raises:
            PreconditionFailed: `condition` does not hold.
        """
        check_bucket(bucket)
        check_key(key)
        with self._operation(f"write {key!r} of bucket {bucket}"), temporary_file(self._temporary) as (path, file):
            digest = hashlib.md5(usedforsecurity=False)
            size = 0
            for chunk in chunks:
                digest.update(chunk)
                size += file.write(chunk)
            file.flush()
            os.fsync(file.fileno())
            new = _Description(0, size, digest.hexdigest() if etag is None else etag(), content_type, dict(headers or {}))
            return self._exchange(bucket, key, path, file, new, condition)

    @contextmanager
    def read(self, bucket: str, key: str) -> Iterator[tuple[BucketObject, BinaryIO]]:
        operation = f"read {key!r} of bucket {bucket}"
        with self._operation(operation):
            found, file = self._open(bucket, key)
        with file:
            yield found, file

    def head(self, bucket: str, key: str) -> BucketObject:
        with self.read(bucket, key) as (found, _):
            return found

    def list(self, bucket: str, prefix: str = "", *, after: str = "", limit: int = LIST_KEYS_MAX) -> Sequence[BucketObject]:
        self.created_at_us(bucket)
        stem = prefix[: prefix.rfind("/") + 1]
        while stem == "/" or stem.endswith("//"):  # empty segments may be part of the name of more of them
            stem = stem[:-1]
        with self._operation(f"list {prefix!r} of bucket {bucket}"):
            start = (bucket, *folder_path_of(stem, folding=self._folding))
            walk = in_key_order(self._entries, start, stem, prefix=prefix, after=after)
            described = (self._described(bucket, key, place) for key, place in self._objects(bucket, walk))
            return [*islice((item for item in described if item is not None), min(limit, LIST_KEYS_MAX))]

    def delete(self, bucket: str, key: str) -> None:
        check_key(key)
        self.created_at_us(bucket)
        place = self._place(bucket, key)
        with self._operation(f"delete {key!r} of bucket {bucket}"), self._locked(bucket, key):
            try:
                with folder_beneath(self._root, place[:-1]) as folder:
                    os.unlink(place[-1], dir_fd=folder)
                    os.fsync(folder)
            except (FileNotFoundError, IsADirectoryError):
                return
            with suppress(FileNotFoundError), folder_beneath(self._root, self._meta_place(bucket, key)[:-1]) as folder:
                os.unlink(self._meta_place(bucket, key)[-1], dir_fd=folder)
        self._remove_empty(place[:-1])

    def paths(self, bucket: str, keys: Sequence[str]) -> Sequence[Path]:
        found = []
        for key in keys:
            self.head(bucket, key)
            found.append(self._root.joinpath(*self._place(bucket, key)))
        return found

    def _place(self, bucket: str, key: str) -> Place:
        return (bucket, *path_of(key, folding=self._folding))

    def _meta_place(self, bucket: str, key: str) -> Place:
        name = hashlib.sha256(key.encode()).hexdigest()
        return (META, bucket, name[:2], name[2:])

    def _exchange(
        self, bucket: str, key: str, path: Path, file: BinaryIO, new: _Description, condition: Condition | None
    ) -> BucketObject:
        """Give a file its name."""
        place = self._place(bucket, key)
        with self._locked(bucket, key):
            current = self._current(bucket, key)
            _check_condition(key, condition, None if current is None else current.etag)
            status = os.fstat(file.fileno())
            bump_ns = 1_000
            while current is not None and status.st_mtime_ns <= current.mtime_ns:
                later_ns = current.mtime_ns + bump_ns  # file systems keep times more or less precisely
                os.utime(file.fileno(), ns=(later_ns, later_ns))
                os.fsync(file.fileno())
                status = os.fstat(file.fileno())
                bump_ns *= 10
            new = msgspec.structs.replace(new, mtime_ns=status.st_mtime_ns)
            self._describe(bucket, key, [new] if current is None else [new, current])
            self._rename(path, place)
        return _object(key, new)

    def _current(self, bucket: str, key: str) -> _Description | None:
        """Of the object there is; of the caller who holds its lock."""
        place = self._place(bucket, key)
        try:
            with folder_beneath(self._root, place[:-1]) as folder, file_in(folder, place[-1]) as file:
                return self._description(bucket, key, os.fstat(file.fileno())) or _undescribed(os.fstat(file.fileno()))
        except FileNotFoundError:
            return None

    def _describe(self, bucket: str, key: str, files: Sequence[_Description]) -> None:
        with temporary_file(self._temporary) as (path, file):
            file.write(msgspec.json.encode(_Descriptions(key, tuple(files))))
            file.flush()
            os.fsync(file.fileno())
            self._rename(path, self._meta_place(bucket, key))

    def _rename(self, path: Path, place: Place) -> None:
        """Rename a temporary file to its place, whose folders are made; others may be removing them as empty meanwhile."""
        for attempt in range(ATTEMPTS_MAX):
            try:
                with folder_beneath(self._root, place[:-1], create=True) as folder:
                    os.rename(path, place[-1], dst_dir_fd=folder)
                    os.fsync(folder)
                    return
            except FileNotFoundError:
                if attempt == ATTEMPTS_MAX - 1:
                    raise

    def _open(self, bucket: str, key: str) -> tuple[BucketObject, BinaryIO]:
        check_key(key)
        self.created_at_us(bucket)
        place = self._place(bucket, key)
        try:
            for _ in range(ATTEMPTS_MAX):
                with folder_beneath(self._root, place[:-1]) as folder:
                    file = file_in(folder, place[-1])
                    status = os.fstat(file.fileno())
                    description = self._description(bucket, key, status)
                    if description is None and _replaced(status, folder, place[-1]):
                        file.close()
                        continue
                    return _object(key, description or _undescribed(status)), file
        except FileNotFoundError as error:
            raise NoSuchKey(bucket, key) from error
        raise OSError(errno.EBUSY, "it is replaced all the time")

    def _description(self, bucket: str, key: str, status: os.stat_result) -> _Description | None:
        """What was written of the file with that status."""
        place = self._meta_place(bucket, key)
        try:
            with folder_beneath(self._root, place[:-1]) as folder, file_in(folder, place[-1]) as file:
                read = decode_json(file.read(), _Descriptions)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        of_file = [item for item in read.files if (item.mtime_ns, item.size) == (status.st_mtime_ns, status.st_size)]
        return of_file[0] if of_file and read.key == key else None

    def _described(self, bucket: str, key: str, place: Place) -> BucketObject | None:
        """An object of a listing; None if it is gone."""
        try:
            with folder_beneath(self._root, place[:-1]) as folder:
                for _ in range(ATTEMPTS_MAX):
                    status = os.stat(place[-1], dir_fd=folder, follow_symlinks=False)
                    description = self._description(bucket, key, status)
                    if description is not None or not _replaced(status, folder, place[-1]):
                        return _object(key, description or _undescribed(status))
        except FileNotFoundError:
            pass
        return None

    def _entries(self, place: Place, begun: str = "") -> Iterator[tuple[str, bool, Place]]:
        """What is in a folder; the keys' segments are put together again where they are not one folder each."""
        try:
            with folder_beneath(self._root, place) as folder, os.scandir(folder) as entries:
                found = [
                    (entry.name, entry.is_dir(follow_symlinks=False))
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False) or entry.is_file(follow_symlinks=False)
                ]
        except FileNotFoundError:
            return
        for name, is_folder in found:
            text = text_of(name, is_file=not is_folder)
            if text is None:
                continue
            if is_folder and is_begin(name):
                yield from self._entries((*place, name), begun + text)
            else:
                yield begun + text, is_folder, (*place, name)

    def _objects(self, bucket: str, walk: Iterator[tuple[str, Place]]) -> Iterator[tuple[str, Place]]:
        """Those files whose names are the ones that their keys have: only they can be read."""
        for key, place in walk:
            with suppress(ValidationFailed):
                check_key(key)
                if self._place(bucket, key) == place:
                    yield key, place

    def _remove_empty(self, place: Place) -> None:
        """Remove the folders that a deletion has left empty, from below, but for the bucket's own."""
        for depth in range(len(place), 1, -1):
            try:
                with folder_beneath(self._root, place[: depth - 1]) as above:
                    os.rmdir(place[depth - 1], dir_fd=above)
            except OSError:
                return

    @contextmanager
    def _locked(self, bucket: str, key: str) -> Iterator[None]:
        """Alone among threads and processes with the right to exchange an object (or some other objects)."""
        stripe = hashlib.sha256(f"{bucket}\0{key}".encode()).hexdigest()[:2]
        descriptor = os.open(self._root / LOCKS / stripe, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _takes_names_for_equal(self) -> bool:
        with temporary_file(self._temporary) as (path, _):
            probe = path.with_name(f"{path.name}-aé")
            probe.touch()
            try:
                return any(path.with_name(f"{path.name}-{twin}").exists() for twin in ("Aé", "ae\u0301"))
            finally:
                probe.unlink()

    @contextmanager
    def _operation(self, operation: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unavailable(operation, error) from error

    def _unavailable(self, operation: str, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(operation, str(error), hint=f"see the folder {self._root}")


def _check_condition(key: str, condition: Condition | None, etag: str | None) -> None:
    if condition is None:
        return
    if condition.absent and etag is not None:
        raise PreconditionFailed(key, "no object of that key")
    if condition.etags is not None:
        if etag is None:
            raise PreconditionFailed(key, "an object of that key")
        if "*" not in condition.etags and etag not in condition.etags:
            raise PreconditionFailed(key, f"the ETag {' or '.join(condition.etags)}, it is {etag}")


def _object(key: str, file: _Description) -> BucketObject:
    return BucketObject(key, file.size, file.etag, file.mtime_ns // 1000, file.content_type, file.headers)


def _undescribed(status: os.stat_result) -> _Description:
    version = hashlib.md5(f"{status.st_size}-{status.st_mtime_ns}".encode(), usedforsecurity=False).hexdigest()
    return _Description(status.st_mtime_ns, status.st_size, f"{version}-1")


def _replaced(status: os.stat_result, folder: int, name: str) -> bool:
    now = os.stat(name, dir_fd=folder, follow_symlinks=False)
    return (now.st_ino, now.st_mtime_ns, now.st_size) != (status.st_ino, status.st_mtime_ns, status.st_size)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
