"""Objects as files below one folder of a local file system (`file://`).

A file is written under `_tmp/`, synced, then linked to its name: linking fails if the name exists, and a name never shows a
part of a file. Temporary files stay outside the data folders, since readers that list directories take any file there,
hidden or not, for data.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

from featurestore.beneath import file_in, folder_beneath
from featurestore.errors import StoreUnavailable
from featurestore.model.key_order import in_key_order
from featurestore.offline.protocol import ObjectInfo
from featurestore.temporary import remove_leftover_files, temporary_file

TEMPORARY: Final = "_tmp"
COPY_BYTES: Final = 4 << 20


class LocalObjectStore:
    """See `offline.protocol.ObjectStore`.

    Raises:
        StoreUnavailable: the folder can't be created or written, or its file system has no hard links.
    """

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()
        self._temporary = self._root / TEMPORARY
        self._synced: set[Path] = set()
        try:
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._probe()
            remove_leftover_files(self._temporary)
        except OSError as error:
            raise self._unavailable("open offline store", error) from error

    @property
    def root(self) -> Path:
        return self._root

    def put_if_absent(self, key: str, data: bytes) -> bool:
        return self._put(key, lambda file: file.write(data))

    def put_file_if_absent(self, key: str, path: Path) -> bool:
        def copy(file: BinaryIO) -> None:
            with open(path, "rb") as source:
                shutil.copyfileobj(source, file, COPY_BYTES)

        return self._put(key, copy)

    def get(self, key: str) -> bytes | None:
        try:
            return (self._root / key).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(f"read {key}", error) from error

    def list(self, prefix: str) -> Sequence[str]:
        found: list[str] = []
        try:
            for folder, _, names in os.walk(self._root / prefix, onerror=_raise_unless_absent):
                stem = Path(folder).relative_to(self._root).as_posix()
                found.extend(f"{stem}/{name}" for name in names)
        except OSError as error:
            raise self._unavailable(f"list {prefix}", error) from error
        return sorted(found)

    def scan(self, prefix: str) -> Sequence[ObjectInfo]:
        found = []
        for key in self.list(prefix):
            try:
                status = os.stat(self._root / key)
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._unavailable(f"list {prefix}", error) from error
            found.append(ObjectInfo(key, status.st_size, status.st_mtime_ns // 1000))
        return found

    def page(self, prefix: str, *, after: str, limit: int) -> Sequence[ObjectInfo]:
        stem = prefix[: prefix.rfind("/") + 1]
        if stem and not _is_path(stem[:-1]):
            return []
        walk = in_key_order(self._entries, tuple(stem.split("/")[:-1]), stem, prefix=prefix, after=after)
        try:
            found = (self._stated(key, place) for key, place in walk)
            return [*islice((info for info in found if info is not None), limit)]
        except OSError as error:
            raise self._unavailable(f"list {prefix}", error) from error

    def info(self, key: str) -> ObjectInfo | None:
        file = self.open(key)
        if file is None:
            return None
        with file:
            status = os.fstat(file.fileno())
        return ObjectInfo(key, status.st_size, status.st_mtime_ns // 1000)

    def open(self, key: str) -> BinaryIO | None:
        if not _is_path(key):
            return None
        *folders, name = key.split("/")
        try:
            with folder_beneath(self._root, folders) as folder:
                return file_in(folder, name)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(f"read {key}", error) from error

    def move_if_absent(self, source: str, target: str) -> bool:
        try:
            return self._link(self._root / source, target)
        except OSError as error:
            raise self._unavailable(f"move {source} to {target}", error) from error

    def delete(self, key: str) -> None:
        try:
            (self._root / key).unlink(missing_ok=True)
        except OSError as error:
            raise self._unavailable(f"delete {key}", error) from error

    def paths(self, keys: Sequence[str]) -> Sequence[str]:
        return [str(self._root / key) for key in keys]

    def url(self, key: str) -> str:
        return f"file://{self._root}/{key}"

    def remove_leftovers(self) -> None:
        try:
            remove_leftover_files(self._temporary)
        except OSError as error:
            raise self._unavailable("clean offline store", error) from error

    def _put(self, key: str, write: Callable[[BinaryIO], object]) -> bool:
        try:
            with temporary_file(self._temporary) as (temporary, file):
                write(file)
                file.flush()
                os.fsync(file.fileno())
                return self._link(temporary, key)
        except OSError as error:
            raise self._unavailable(f"write {key}", error) from error

    def _link(self, source: Path, key: str) -> bool:
        target = self._root / key
        self._make_folder(target.parent)
        try:
            os.link(source, target)
        except FileExistsError:
            return False
        _sync_folder(target.parent)
        return True

    def _make_folder(self, folder: Path) -> None:
        """Create a folder whose own directory entries are durable too."""
        if folder in self._synced:
            return
        missing = [folder]
        while not missing[-1].parent.exists():
            missing.append(missing[-1].parent)
        folder.mkdir(parents=True, exist_ok=True)
        for part in reversed(missing):
            _sync_folder(part.parent)
        self._synced.add(folder)

    def _entries(self, place: tuple[str, ...]) -> Iterator[tuple[str, bool, tuple[str, ...]]]:
        try:
            with folder_beneath(self._root, place) as folder, os.scandir(folder) as entries:
                for entry in entries:
                    is_folder = entry.is_dir(follow_symlinks=False)
                    if (is_folder or entry.is_file(follow_symlinks=False)) and _is_path(entry.name):
                        yield entry.name, is_folder, (*place, entry.name)
        except FileNotFoundError:
            return

    def _stated(self, key: str, place: tuple[str, ...]) -> ObjectInfo | None:
        try:
            status = os.lstat(self._root.joinpath(*place))
        except FileNotFoundError:
            return None
        return ObjectInfo(key, status.st_size, status.st_mtime_ns // 1000)

    def _probe(self) -> None:
        with temporary_file(self._temporary) as (probe, _):
            twin = probe.with_suffix(".twin")
            os.link(probe, twin)
            twin.unlink()

    def _unavailable(self, operation: str, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(operation, str(error), hint=f"see FEATURESTORE_OFFLINE_URL, now {self._root}")


def _is_path(key: str) -> bool:
    """Whether a key can be a path below the root."""
    try:
        key.encode()
    except UnicodeEncodeError:  # names of files that are no text
        return False
    return "\0" not in key and all(segment not in ("", ".", "..") for segment in key.split("/"))


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
