"""What every object store promises, over every backend there is."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from featurestore.errors import StoreUnavailable
from featurestore.offline.local import TEMPORARY, LocalObjectStore
from featurestore.offline.protocol import ObjectStore


@pytest.fixture(params=["local"])
def objects(tmp_path: Path) -> ObjectStore:
    return LocalObjectStore(tmp_path / "root")


def test_an_object_is_written_once(objects: ObjectStore) -> None:
    assert objects.put_if_absent("a/b/c.json", b"first")
    assert not objects.put_if_absent("a/b/c.json", b"second")
    assert objects.get("a/b/c.json") == b"first"


def test_a_file_is_written_once(objects: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "first").write_bytes(b"1" * 10_000_000)
    (tmp_path / "second").write_bytes(b"2")
    assert objects.put_file_if_absent("a/b", tmp_path / "first")
    assert not objects.put_file_if_absent("a/b", tmp_path / "second")
    assert objects.get("a/b") == b"1" * 10_000_000
    assert (tmp_path / "first").exists()


def test_scanning_tells_sizes_and_times(objects: ObjectStore) -> None:
    before_us = time.time_ns() // 1000 - 1_000_000
    objects.put_if_absent("b/2", b"xx")
    objects.put_if_absent("b/1/z", b"x")
    found = objects.scan("b/")
    assert [(info.key, info.bytes) for info in found] == [("b/1/z", 1), ("b/2", 2)]
    assert all(before_us <= info.modified_us <= time.time_ns() // 1000 + 1_000_000 for info in found)


def test_what_is_absent_is_none(objects: ObjectStore) -> None:
    assert objects.get("a/b") is None
    assert objects.list("a/") == []
    objects.delete("a/b")


def test_of_concurrent_writers_one_wins(objects: ObjectStore) -> None:
    barrier = threading.Barrier(16)
    wins: list[int] = []

    def write(number: int) -> None:
        barrier.wait()
        if objects.put_if_absent("contested", b"%d" % number):
            wins.append(number)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert objects.get("contested") == b"%d" % wins[0]


def test_listing_is_sorted_and_deep_and_shows_no_temporary_files(objects: ObjectStore) -> None:
    for key in ("b/2", "b/1/z", "a", "b/10"):
        objects.put_if_absent(key, b"x")
    assert objects.list("b/") == ["b/1/z", "b/10", "b/2"]
    assert objects.list("c/") == []


def test_moving(objects: ObjectStore) -> None:
    objects.put_if_absent("staging/x", b"bytes")
    assert objects.move_if_absent("staging/x", "data/deep/x")
    assert not objects.move_if_absent("staging/x", "data/deep/x")
    objects.delete("staging/x")
    assert objects.get("data/deep/x") == b"bytes"
    with pytest.raises(StoreUnavailable):
        objects.move_if_absent("staging/x", "data/y")


def test_an_engine_opens_what_is_located(objects: ObjectStore) -> None:
    objects.put_if_absent("k", b"bytes")
    objects.put_if_absent("deep/l", b"more")
    assert [Path(path).read_bytes() for path in objects.paths(["deep/l", "k"])] == [b"more", b"bytes"]


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    objects = LocalObjectStore(tmp_path)
    objects.put_if_absent("a", b"1")
    objects.put_if_absent("a", b"2")
    assert os.listdir(tmp_path / TEMPORARY) == []


def test_a_root_that_is_no_folder_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="FEATURESTORE_OFFLINE_URL"):
        LocalObjectStore(tmp_path / "file")
