"""What every object store promises, over every backend there is."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurestore.errors import StoreUnavailable
from featurestore.model.key_order import beyond
from featurestore.offline.local import TEMPORARY, LocalObjectStore
from featurestore.offline.protocol import ObjectStore
from featurestore.offline.s3 import S3ObjectStore
from tests.s3_server import S3Server

CACHE_BYTES_MAX = 1 << 30


@pytest.fixture(params=["local", "s3"])
def objects(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "local":
        return LocalObjectStore(tmp_path / "root")
    server: S3Server = request.getfixturevalue("s3_server")
    bucket: str = request.getfixturevalue("s3_bucket")
    return S3ObjectStore(bucket, "a/prefix", endpoint=server.url, cache=tmp_path / "cache", cache_bytes_max=CACHE_BYTES_MAX)


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


def test_pages_are_in_order_and_complete(objects: ObjectStore) -> None:
    there = sorted(["a-b/x", "a/b", "a/b0", "a/c/d", "a0", "b/1/z", "b/2", "\u00e9/\U0001f600"])
    for key in there:
        objects.put_if_absent(key, b"xx")
    for prefix in ("", "a", "a/", "a/b", "b/", "b/1/z", "b/1/z/y", "c"):
        for after in ("", "a", "a/b", "a/zz", beyond("a/"), "b/1", "z"):
            expected = [key for key in there if key.startswith(prefix) and key > after]
            for limit in (1, 2, 100):
                page = objects.page(prefix, after=after, limit=limit)
                found = [info.key for info in page if not info.key.startswith("_tmp/")]
                assert found == expected[:limit], (prefix, after, limit)
                assert all(info.bytes == 2 for info in page)


def test_an_object_by_anybodys_key(objects: ObjectStore) -> None:
    objects.put_if_absent("a/b", b"0123")
    info = objects.info("a/b")
    assert info is not None
    assert [info] == [*objects.scan("a/")]
    file = objects.open("a/b")
    assert file is not None
    objects.delete("a/b")
    with file:
        file.seek(2)
        assert file.read() == b"23"
    objects.put_if_absent("a/b", b"0123")
    for key in ("a/c", "a", "a/b/c"):
        assert objects.info(key) is None
        assert objects.open(key) is None


@pytest.mark.parametrize(
    "key", ["../outside", "a/../../outside", "/etc/passwd", "", "a//b", "a/./b", "a/b\0", "link", "folder/outside"]
)
def test_no_key_leads_out_of_a_folder(tmp_path: Path, key: str) -> None:
    objects = LocalObjectStore(tmp_path / "root")
    objects.put_if_absent("a/b", b"0123")
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "folder").symlink_to(tmp_path)
    assert objects.info(key) is None
    assert objects.open(key) is None
    assert [info.key for info in objects.page("", after="", limit=10)] == ["a/b"]
    assert objects.page(key, after="", limit=10) == ([] if key else objects.page("", after="", limit=10))


def test_what_is_absent_is_none(objects: ObjectStore) -> None:
    assert objects.get("a/b") is None
    assert objects.list("a/") == []
    objects.delete("a/b")


@pytest.mark.parametrize("equal", [False, True], ids=["different bytes", "equal bytes"])
def test_of_concurrent_writers_one_wins(objects: ObjectStore, equal: bool) -> None:
    barrier = threading.Barrier(16)
    wins: list[bytes] = []

    def write(data: bytes) -> None:
        barrier.wait()
        if objects.put_if_absent("contested", data):
            wins.append(data)

    threads = [threading.Thread(target=write, args=(b"0" if equal else b"%d" % number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert objects.get("contested") == wins[0]


def test_listing_is_sorted_and_deep_and_shows_no_temporary_files(objects: ObjectStore) -> None:
    for key in ("b/2", "b/1/z", "a", "b/10"):
        objects.put_if_absent(key, b"x")
    assert objects.list("b/") == ["b/1/z", "b/10", "b/2"]
    assert objects.list("c/") == []


def test_a_listing_is_complete(objects: ObjectStore) -> None:
    keys = [f"many/{number % 7}/{number:04d}" for number in range(1200)]
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda key: objects.put_if_absent(key, b"x"), keys))
    assert objects.list("many/") == sorted(keys)
    assert objects.list("many/3/") == sorted(key for key in keys if key.startswith("many/3/"))


def test_names_are_taken_as_they_are(objects: ObjectStore) -> None:
    keys = ["odd/#?&", "odd/%20", "odd/(a) [b] {c}", "odd/a+b=c", "odd/~*", "odd/\u00e9\U0001f600"]
    for key in keys:
        assert objects.put_if_absent(key, key.encode())
    assert objects.list("odd/") == sorted(keys)
    assert [objects.get(key) for key in keys] == [key.encode() for key in keys]
    assert [Path(path).read_bytes() for path in objects.paths(keys)] == [key.encode() for key in keys]


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


def test_a_deleted_object_is_not_read_any_more(objects: ObjectStore) -> None:
    objects.put_if_absent("k", b"bytes")
    (path,) = objects.paths(["k"])
    objects.delete("k")
    assert objects.get("k") is None
    assert not Path(path).exists()
    assert objects.put_if_absent("k", b"other")
    assert [Path(path).read_bytes() for path in objects.paths(["k"])] == [b"other"]


def test_no_temporary_file_stays(tmp_path: Path) -> None:
    objects = LocalObjectStore(tmp_path)
    objects.put_if_absent("a", b"1")
    objects.put_if_absent("a", b"2")
    assert os.listdir(tmp_path / TEMPORARY) == []


def test_what_a_killed_writer_had_under_way_goes_and_what_others_have_stays(tmp_path: Path) -> None:
    objects = LocalObjectStore(tmp_path / "root")
    os.mkfifo(tmp_path / "source")
    code = (
        "import sys; from pathlib import Path; from featurestore.offline.local import LocalObjectStore; "
        "LocalObjectStore(Path(sys.argv[1])).put_file_if_absent('b', Path(sys.argv[2]))"
    )

    command = [sys.executable, "-c", code, str(tmp_path / "root"), str(tmp_path / "source")]
    with subprocess.Popen(command) as process, open(tmp_path / "source", "wb") as source:
        source.write(b"value of the killed")
        source.flush()
        (under_way,) = (tmp_path / "root" / TEMPORARY).iterdir()
        objects.remove_leftovers()
        assert under_way.exists()
        process.kill()
        process.wait()
        objects.remove_leftovers()
    assert os.listdir(tmp_path / "root" / TEMPORARY) == []
    assert objects.get("b") is None


def test_a_root_that_is_no_folder_is_found_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable, match="FEATURESTORE_OFFLINE_URL"):
        LocalObjectStore(tmp_path / "file")
