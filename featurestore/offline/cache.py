"""Copies of remote objects on this machine's disk, so that a query engine opens them as files.

    <2 hex digits>/<sha256 of origin and key>[.parquet]    a whole copy; its modification time is when it was last used
    _tmp/<random>                                          a copy under way
    lock                                                   held shared while copies are marked as used, and exclusively
                                                           while unused ones are deleted

Objects never change, so a copy that is there is right. Any number of processes share one folder; deleting all of it, or a
part, is harmless at any time but to queries that are just about to open what is deleted.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

from featurestore.errors import FileVanished, StoreUnavailable
from featurestore.temporary import remove_leftover_files, temporary_file

_log: Final = logging.getLogger(__name__)

FETCHES_MAX: Final = 8
"""Objects fetched at a time: enough to fill a 1 Gbit/s link with Parquet files of some MiB."""
IN_USE_S: Final = 15 * 60
"""A copy used within this time is never deleted to save space: a query may be about to open it."""
SWEEP_SHARE: Final = 32
"""Space is reclaimed whenever another 1/32 of the limit was fetched, so a process is never further than that above it."""
ROUNDS_MAX: Final = 5
"""How often the copies of one answer are fetched anew because they were deleted meanwhile."""
LOCK: Final = "lock"
TEMPORARY: Final = "_tmp"
PARQUET: Final = ".parquet"


class ObjectCache:
    """The copies below one folder. Safe to use from several threads and processes.

    Args:
        origin: what distinguishes this object store from every other one whose objects share the folder.
        bytes_max: total size of the copies, beyond which the least recently used ones are deleted.
        download: writes the object of a key to a file; raises FileVanished if there is none.
        exists: whether there is an object of that key now.
        in_use_s: see IN_USE_S.

    Raises:
        StoreUnavailable: the folder can't be made or written.
    """

    def __init__(
        self,
        folder: Path,
        origin: str,
        bytes_max: int,
        download: Callable[[str, BinaryIO], None],
        exists: Callable[[str], bool],
        *,
        in_use_s: float = IN_USE_S,
    ) -> None:
        self._folder = folder.absolute()
        self._origin = origin
        self._bytes_max = bytes_max
        self._download = download
        self._exists = exists
        self._in_use_s = in_use_s
        self._pool = ThreadPoolExecutor(FETCHES_MAX, thread_name_prefix="offline-fetch")
        # Reentrant, since a future that is done already runs its callback in the thread that adds it.
        self._mutex = threading.RLock()
        self._fetching: dict[str, Future[None]] = {}
        self._unswept_bytes = 0
        try:
            (self._folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
            remove_leftover_files(self._folder / TEMPORARY)
            self._sweep()
        except OSError as error:
            raise self._unavailable("open cache", error) from error

    def paths(self, keys: Sequence[str]) -> Sequence[str]:
        """Files with the bytes of these objects, in order; what is not here is fetched.

        None of them is deleted within `in_use_s`, unless its object is.

        Raises:
            FileVanished: an object is gone.
            StoreUnavailable
        """
        files = {key: self._file(key) for key in keys}
        try:
            for _ in range(ROUNDS_MAX):
                missing = self._use(files)
                if not missing:
                    return [str(files[key]) for key in keys]
                self._fetch(missing)
        except OSError as error:
            raise self._unavailable("read offline store", error) from error
        raise StoreUnavailable("read offline store", f"files in {self._folder} disappear as fast as they are fetched")

    def remove_leftovers(self) -> None:
        """Delete the copies that processes that died had under way.

        Raises:
            StoreUnavailable
        """
        try:
            (self._folder / TEMPORARY).mkdir(parents=True, exist_ok=True)
            remove_leftover_files(self._folder / TEMPORARY)
        except OSError as error:
            raise self._unavailable("clean cache", error) from error

    def evict(self, key: str) -> None:
        """Delete the copy of an object, if there is one. Call it after the object itself was deleted.

        Raises:
            StoreUnavailable
        """
        try:
            self._file(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._unavailable(f"delete cached {key}", error) from error

    def _file(self, key: str) -> Path:
        digest = hashlib.sha256(f"{self._origin}\0{key}".encode()).hexdigest()
        return self._folder / digest[:2] / (digest + (PARQUET if key.endswith(PARQUET) else ""))

    def _use(self, files: Mapping[str, Path]) -> dict[str, Path]:
        """Mark copies as used; returns those that are not here."""
        missing = {}
        with self._locked(fcntl.LOCK_SH):
            for key, file in files.items():
                try:
                    os.utime(file)
                except FileNotFoundError:
                    missing[key] = file
        return missing

    def _fetch(self, missing: Mapping[str, Path]) -> None:
        """Fetch these objects; what another thread fetches already is waited for."""
        ours: list[Future[None]] = []
        waiting: list[Future[None]] = []
        with self._mutex:
            for key, file in missing.items():
                fetching = self._fetching.get(key)
                if fetching is None:
                    self._fetching[key] = fetching = self._pool.submit(self._fetch_one, key, file)
                    fetching.add_done_callback(lambda _, key=key: self._forget(key))  # type: ignore[misc]
                    ours.append(fetching)
                waiting.append(fetching)
        try:
            for fetching in waiting:
                try:
                    fetching.result()
                except CancelledError:
                    continue  # the thread that wanted it first has failed; the next round fetches it
        finally:
            for fetching in ours:
                fetching.cancel()

    def _forget(self, key: str) -> None:
        with self._mutex:
            del self._fetching[key]

    def _fetch_one(self, key: str, target: Path) -> None:
        folder = self._folder / TEMPORARY
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with temporary_file(folder) as (temporary, file):
                self._download(key, file)
                file.flush()
                # A name must not outlive its bytes when the machine goes down, since nobody looks at them again.
                os.fsync(file.fileno())
                size = file.tell()
                target.parent.mkdir(exist_ok=True)
                os.replace(temporary, target)
            if not self._exists(key):
                # Deleted while it was fetched: who deleted it may have looked for a copy before there was one.
                target.unlink(missing_ok=True)
                raise FileVanished("read offline store", f"{key} was deleted meanwhile")
            self._count(size)
        except OSError as error:
            raise self._unavailable(f"cache {key}", error) from error

    def _count(self, size: int) -> None:
        with self._mutex:
            self._unswept_bytes += size
            due = self._unswept_bytes > self._bytes_max // SWEEP_SHARE
            if due:
                self._unswept_bytes = 0
        if due:
            self._sweep()

    def _sweep(self) -> None:
        """Delete the least recently used copies beyond the limit, but none that a query may be about to open."""
        with self._locked(fcntl.LOCK_EX):
            copies = sorted(self._copies())
            total = sum(size for _, size, _ in copies)
            unused_since_s = time.time() - self._in_use_s
            for used_s, size, path in copies:
                if total <= self._bytes_max or used_s > unused_since_s:
                    break
                Path(path).unlink(missing_ok=True)
                total -= size
        if total > self._bytes_max:
            _log.warning(
                "%s holds %d bytes, of at most %d, that were all used within %g s; raise FEATURESTORE_OFFLINE_CACHE_BYTES_MAX",
                self._folder,
                total,
                self._bytes_max,
                self._in_use_s,
            )

    def _copies(self) -> Iterator[tuple[float, int, str]]:
        """When each copy was last used, its size and path."""
        with os.scandir(self._folder) as folders:
            for folder in folders:
                if folder.name == TEMPORARY or not folder.is_dir():
                    continue
                with os.scandir(folder) as copies:
                    for copy in copies:
                        try:
                            status = copy.stat()
                        except FileNotFoundError:  # its object was deleted this moment
                            continue
                        yield status.st_mtime, status.st_size, copy.path

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        self._folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, kind)
            yield
        finally:
            os.close(descriptor)

    def _unavailable(self, operation: str, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(operation, str(error), hint=f"fetched files are kept in {self._folder}")
