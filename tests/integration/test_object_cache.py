"""Copies of objects on disk: fetched once, whole, bounded in total, and never deleted under a query."""

from __future__ import annotations

import fcntl
import logging
import multiprocessing
import os
import random
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from featurestore.errors import FileVanished, StoreUnavailable
from featurestore.offline.cache import LOCK, SWEEP_SHARE, TEMPORARY, ObjectCache
from featurestore.temporary import temporary_file

OBJECT_BYTES = 1000
JOIN_S_MAX = 60
HELD_S = 0.3
"""How long a lock is held against a thread that should wait for it."""


class Origin:
    """Objects as files of a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.downloads: list[str] = []

    def put(self, *keys: str) -> None:
        self.folder.mkdir(exist_ok=True)
        for key in keys:
            (self.folder / key).write_bytes(content(key))

    def download(self, key: str, file: BinaryIO) -> None:
        self.downloads.append(key)
        try:
            with (self.folder / key).open("rb") as source:
                shutil.copyfileobj(source, file)
        except FileNotFoundError as error:
            raise FileVanished("read", key) from error

    def exists(self, key: str) -> bool:
        return (self.folder / key).exists()


def content(key: str) -> bytes:
    return key.encode() * (OBJECT_BYTES // len(key))


def opened(folder: Path, origin: Origin, objects_max: int) -> ObjectCache:
    bytes_max = objects_max * OBJECT_BYTES
    assert bytes_max // SWEEP_SHARE < OBJECT_BYTES, "each fetch sweeps"
    return ObjectCache(folder, "here", bytes_max, origin.download, origin.exists)


def age(*paths: str) -> None:
    """As if they had been used long ago, the first one first."""
    for number, path in enumerate(paths):
        os.utime(path, (number, number))


def held(folder: Path) -> set[str]:
    """The keys whose copies are there."""
    return {path.read_text()[:1] for path in folder.glob("??/*")}


@pytest.fixture
def origin(tmp_path: Path) -> Origin:
    found = Origin(tmp_path / "origin")
    found.put("a", "b", "c", "d")
    return found


def test_what_was_fetched_once_stays(tmp_path: Path, origin: Origin) -> None:
    cache = opened(tmp_path / "cache", origin, 10)
    first = cache.paths(["b", "a", "b"])
    assert [Path(path).read_bytes() for path in first] == [content(key) for key in "bab"]
    assert cache.paths(["b", "a", "b"]) == first
    assert opened(tmp_path / "cache", origin, 10).paths(["b", "a", "b"]) == first
    assert sorted(origin.downloads) == ["a", "b"]
    assert list((tmp_path / "cache" / TEMPORARY).iterdir()) == []


def test_the_suffix_of_parquet_files_stays(tmp_path: Path, origin: Origin) -> None:
    origin.put("e.parquet")
    cache = opened(tmp_path / "cache", origin, 10)
    assert [Path(path).suffix for path in cache.paths(["e.parquet", "a"])] == [".parquet", ""]


def test_the_same_key_of_another_origin_is_another_object(tmp_path: Path, origin: Origin) -> None:
    other = Origin(tmp_path / "other")
    other.folder.mkdir()
    (other.folder / "a").write_text("elsewhere")
    caches = [
        ObjectCache(tmp_path / "cache", name, 1 << 20, each.download, each.exists)
        for name, each in (("here", origin), ("there", other))
    ]
    assert [Path(cache.paths(["a"])[0]).read_bytes() for cache in caches] == [content("a"), b"elsewhere"]


def test_the_least_recently_used_are_deleted_beyond_the_limit(tmp_path: Path, origin: Origin) -> None:
    cache = opened(tmp_path / "cache", origin, 2)
    a, b = cache.paths(["a", "b"])
    age(a, b)
    cache.paths(["a"])
    cache.paths(["c"])
    assert held(tmp_path / "cache") == {"a", "c"}


def test_opening_with_a_lower_limit_deletes(tmp_path: Path, origin: Origin) -> None:
    age(*opened(tmp_path / "cache", origin, 4).paths(["a", "b", "c", "d"]))
    opened(tmp_path / "cache", origin, 1)
    assert held(tmp_path / "cache") == {"d"}


def test_what_was_used_just_now_stays_whatever_the_limit(
    tmp_path: Path, origin: Origin, caplog: pytest.LogCaptureFixture
) -> None:
    cache = opened(tmp_path / "cache", origin, 1)
    with caplog.at_level(logging.WARNING):
        paths = cache.paths(["a", "b", "c", "d"])
    assert [Path(path).read_bytes() for path in paths] == [content(key) for key in "abcd"]
    assert "FEATURESTORE_OFFLINE_CACHE_BYTES_MAX" in caplog.text


def test_evicting(tmp_path: Path, origin: Origin) -> None:
    cache = opened(tmp_path / "cache", origin, 4)
    cache.paths(["a", "b"])
    cache.evict("a")
    cache.evict("never there")
    assert held(tmp_path / "cache") == {"b"}


def test_a_missing_object_says_so(tmp_path: Path, origin: Origin) -> None:
    cache = opened(tmp_path / "cache", origin, 4)
    with pytest.raises(FileVanished):
        cache.paths(["a", "z"])
    assert Path(cache.paths(["a"])[0]).read_bytes() == content("a")
    assert list((tmp_path / "cache" / TEMPORARY).iterdir()) == []


def test_an_object_that_is_deleted_while_it_is_fetched_leaves_no_copy(tmp_path: Path, origin: Origin) -> None:
    fetched, deleted = threading.Event(), threading.Event()

    def download(key: str, file: BinaryIO) -> None:
        origin.download(key, file)
        fetched.set()
        assert deleted.wait(JOIN_S_MAX)

    cache = ObjectCache(tmp_path / "cache", "here", 1 << 20, download, origin.exists)

    def delete() -> None:
        assert fetched.wait(JOIN_S_MAX)
        (origin.folder / "a").unlink()
        cache.evict("a")
        deleted.set()

    deleting = threading.Thread(target=delete)
    deleting.start()
    with pytest.raises(FileVanished):
        cache.paths(["a"])
    deleting.join()
    assert held(tmp_path / "cache") == set()


def test_threads_that_want_the_same_object_fetch_it_once(tmp_path: Path, origin: Origin) -> None:
    wanted = threading.Barrier(8)

    def want() -> None:
        wanted.wait(JOIN_S_MAX)
        assert Path(cache.paths(["a"])[0]).read_bytes() == content("a")

    cache = opened(tmp_path / "cache", origin, 4)
    threads = [threading.Thread(target=want) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert origin.downloads == ["a"]


def test_leftovers_of_dead_processes_are_removed(tmp_path: Path, origin: Origin) -> None:
    folder = tmp_path / "cache" / TEMPORARY
    folder.mkdir(parents=True)
    (folder / "leftover").write_text("")
    with temporary_file(folder) as (under_way, _):
        opened(tmp_path / "cache", origin, 4)
        assert list(folder.iterdir()) == [under_way]
    assert list(folder.iterdir()) == []


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path, origin: Origin) -> None:
    cache = opened(tmp_path / "cache", origin, 4)
    cache.paths(["a"])
    shutil.rmtree(tmp_path / "cache")
    assert Path(cache.paths(["a"])[0]).read_bytes() == content("a")


def test_a_folder_that_cannot_be_made_is_found_at_once(tmp_path: Path, origin: Origin) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="open cache"):
        opened(tmp_path / "file", origin, 4)


@contextmanager
def locked(folder: Path, kind: int) -> Iterator[None]:
    """What another process holds while it makes room (exclusively) or marks copies as used (shared)."""
    with (folder / LOCK).open() as file:
        fcntl.flock(file, kind)
        yield


def test_a_copy_that_another_process_deletes_this_moment_is_fetched_again(tmp_path: Path, origin: Origin) -> None:
    cache = opened(tmp_path / "cache", origin, 4)
    (path,) = cache.paths(["a"])
    found: list[str] = []
    asking = threading.Thread(target=lambda: found.extend(cache.paths(["a"])))
    with locked(tmp_path / "cache", fcntl.LOCK_EX):
        asking.start()
        asking.join(HELD_S)
        Path(path).unlink()
    asking.join(JOIN_S_MAX)
    assert Path(found[0]).read_bytes() == content("a")


def test_a_copy_that_another_process_uses_this_moment_is_not_deleted(tmp_path: Path, origin: Origin) -> None:
    cache = opened(tmp_path / "cache", origin, 1)
    (path,) = cache.paths(["a"])
    age(path)
    with locked(tmp_path / "cache", fcntl.LOCK_SH):
        asking = threading.Thread(target=cache.paths, args=(["b"],))
        asking.start()
        asking.join(HELD_S)
        os.utime(path)
    asking.join(JOIN_S_MAX)
    assert held(tmp_path / "cache") == {"a", "b"}


def churn(folder: Path, source: Path, keys: list[str], seed: int) -> None:
    """Use objects, let them look unused, use them again, while others make room at the same time."""
    schedule = random.Random(seed)
    cache = opened(folder, Origin(source), 3)
    for _ in range(150):
        chosen = schedule.sample(keys, 2)
        for key, path in zip(chosen, cache.paths(chosen), strict=True):
            assert Path(path).read_bytes() == content(key)
            with suppress(FileNotFoundError):
                age(path)


def test_processes_share_one_folder(tmp_path: Path, origin: Origin) -> None:
    """Each process has keys of its own: only the other one's sweeps could delete what it is about to open."""
    origin.put("e", "f")
    other = multiprocessing.get_context("spawn").Process(
        target=churn, args=(tmp_path / "cache", origin.folder, ["a", "b", "c"], 1)
    )
    other.start()
    churn(tmp_path / "cache", origin.folder, ["d", "e", "f"], 2)
    other.join(JOIN_S_MAX)
    assert other.exitcode == 0
    opened(tmp_path / "cache", origin, 3)
    assert len(held(tmp_path / "cache")) <= 3
    assert (tmp_path / "cache" / LOCK).exists()
