"""What all buckets promise, over every backend there is."""

from __future__ import annotations

import hashlib
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurestore.buckets.folder import FolderBuckets
from featurestore.buckets.overlay import OverlaidBuckets
from featurestore.buckets.protocol import Buckets
from featurestore.buckets.s3 import S3Buckets
from featurestore.errors import NoSuchBucket, NoSuchKey, ValidationFailed
from featurestore.model.key_order import beyond
from featurestore.offline.local import LocalObjectStore
from tests.s3_server import S3Server

ODD_KEYS = [
    "a",
    "a/",
    "a/b",
    "a//b",
    "a/b/",
    "a/b.csv",
    "a/b.csv/c",
    "a.csv",
    "a-b",
    "/",
    "//",
    "/a",
    "..",
    ".",
    "../x",
    "a/../b",
    "a/./b",
    ".hidden",
    "A",
    "%",
    "%2F",
    "a%2Fb",
    "100%25",
    "a b+c&d=e?f#g",
    "é",
    "e\u0301",
    "\U0001f600/\U0001f600",
    "back\\slash",
    "x" * 1024,
    "x" * 300 + "/y",
    "x" * 300,
    "x" * 239 + "!",
    "." * 500,
    "/" * 1024,
]


@pytest.fixture(params=["folder", "overlaid", "s3"])
def buckets(request: pytest.FixtureRequest, tmp_path: Path) -> Buckets:
    if request.param == "folder":
        return FolderBuckets(tmp_path / "buckets")
    if request.param == "overlaid":
        return OverlaidBuckets(FolderBuckets(tmp_path / "buckets"), LocalObjectStore(tmp_path / "offline"))
    server: S3Server = request.getfixturevalue("s3_server")
    return S3Buckets(endpoint=server.url, cache=tmp_path / "cache", cache_bytes_max=1 << 30)


@pytest.fixture
def bucket(buckets: Buckets, request: pytest.FixtureRequest) -> str:
    if isinstance(buckets, S3Buckets):
        return str(request.getfixturevalue("s3_bucket"))
    name = f"bucket-{uuid.uuid4().hex[:12]}"
    buckets.put(name, "first", [])
    buckets.delete(name, "first")
    return name


def md5(data: bytes) -> str:
    return hashlib.md5(data, usedforsecurity=False).hexdigest()


def content(buckets: Buckets, bucket: str, key: str) -> bytes:
    with buckets.read(bucket, key) as (_, file):
        return file.read()


def keys(buckets: Buckets, bucket: str, prefix: str = "") -> list[str]:
    found: list[str] = []
    while page := buckets.list(bucket, prefix, after=found[-1] if found else "", limit=7):
        found += [item.key for item in page]
    return found


def test_what_is_put_is_read(buckets: Buckets, bucket: str) -> None:
    stored = buckets.put(bucket, "results/1.csv", [b"a,b\n", b"", b"1,2\n"], content_type="text/csv")
    assert (stored.key, stored.bytes, stored.content_type) == ("results/1.csv", 8, "text/csv")
    assert stored.etag == md5(b"a,b\n1,2\n")
    with buckets.read(bucket, "results/1.csv") as (found, file):
        assert found == stored
        assert file.read(3) == b"a,b"
        assert file.read() == b"\n1,2\n"
    assert buckets.head(bucket, "results/1.csv") == stored
    assert bucket in buckets.names()


def test_a_put_replaces_everything(buckets: Buckets, bucket: str) -> None:
    buckets.put(bucket, "k", [b"first"], content_type="text/csv")
    buckets.put(bucket, "k", [b"second"])
    assert content(buckets, bucket, "k") == b"second"
    assert buckets.head(bucket, "k").etag == md5(b"second")
    assert buckets.head(bucket, "k").content_type != "text/csv"


def test_an_empty_object(buckets: Buckets, bucket: str) -> None:
    buckets.put(bucket, "empty", [])
    assert content(buckets, bucket, "empty") == b""
    assert [item.bytes for item in buckets.list(bucket)] == [0]


def test_a_large_object_in_pieces(buckets: Buckets, bucket: str) -> None:
    pieces = [bytes([number]) * 1_000_003 for number in range(40)]
    stored = buckets.put(bucket, "large", iter(pieces))
    assert stored.bytes == 40 * 1_000_003
    assert content(buckets, bucket, "large") == b"".join(pieces)
    assert [path.read_bytes() for path in buckets.paths(bucket, ["large"])] == [b"".join(pieces)]


def test_a_put_that_fails_half_way_changes_nothing(buckets: Buckets, bucket: str) -> None:
    def chunks() -> Iterator[bytes]:
        yield b"half"
        raise RuntimeError("the client went away")

    buckets.put(bucket, "k", [b"old"])
    for key in ("k", "new"):
        with pytest.raises(RuntimeError, match="went away"):
            buckets.put(bucket, key, chunks())
    assert content(buckets, bucket, "k") == b"old"
    assert keys(buckets, bucket) == ["k"]


def test_names_are_taken_as_they_are(buckets: Buckets, bucket: str) -> None:
    # moto joins slashes and resolves dots before it looks at the key
    odd = [key for key in ODD_KEYS if not isinstance(buckets, S3Buckets) or not ({"", ".", ".."} & {*key.split("/")})]
    for key in odd:
        buckets.put(bucket, key, [key.encode()])
    assert keys(buckets, bucket) == sorted(odd, key=lambda key: key.encode())
    assert [content(buckets, bucket, key) for key in odd] == [key.encode() for key in odd]
    assert [path.read_bytes() for path in buckets.paths(bucket, odd)] == [key.encode() for key in odd]
    for number, key in enumerate(odd):
        buckets.delete(bucket, key)
        assert len(keys(buckets, bucket)) == len(odd) - number - 1


def test_listing_by_prefix_and_behind_a_key(buckets: Buckets, bucket: str) -> None:
    there = sorted(["a", "a/b", "a/b/c", "a/d", "a0", "b/x.csv", "b/y.csv"])
    for key in there:
        buckets.put(bucket, key, [b"x"])
    for prefix in ("", "a", "a/", "a/b", "b/", "b/x", "c", "a/b/c/d"):
        assert keys(buckets, bucket, prefix) == [key for key in there if key.startswith(prefix)]
        assert buckets.list(bucket, prefix, limit=0) == []
        for after in ("", "a", "a/", "a/b", "a/c", beyond("a/"), "zz"):
            expected = [key for key in there if key.startswith(prefix) and key > after]
            assert [item.key for item in buckets.list(bucket, prefix, after=after)] == expected
            assert [item.key for item in buckets.list(bucket, prefix, after=after, limit=2)] == expected[:2]


def test_a_listing_tells_what_a_head_tells(buckets: Buckets, bucket: str) -> None:
    buckets.put(bucket, "k", [b"bytes"], content_type="text/plain")
    (listed,) = buckets.list(bucket)
    head = buckets.head(bucket, "k")
    assert (listed.key, listed.bytes, listed.etag) == (head.key, head.bytes, head.etag)
    assert abs(listed.modified_at_us - head.modified_at_us) <= 1_000_000  # a header has whole seconds


def test_a_long_listing_is_complete(buckets: Buckets, bucket: str) -> None:
    count = 50 if isinstance(buckets, S3Buckets) else 1100
    there = [f"many/{number % 7}/{number:04d}" for number in range(count)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: buckets.put(bucket, key, [b"x"]), there))
    page = [item.key for item in buckets.list(bucket, "many/", limit=5000)]
    assert page == sorted(there)[:1000]
    assert [item.key for item in buckets.list(bucket, "many/", after=page[-1])] == sorted(there)[1000:]


def test_what_is_absent(buckets: Buckets, bucket: str) -> None:
    calls: list[Callable[[str], object]] = [
        lambda name: buckets.head(name, "k"),
        lambda name: buckets.paths(name, ["k"]),
        lambda name: content(buckets, name, "k"),
    ]
    for call in calls:
        with pytest.raises(NoSuchKey):
            call(bucket)
        with pytest.raises(NoSuchBucket):
            call(f"absent-{uuid.uuid4().hex}")
    for other in (buckets.list, lambda name: buckets.delete(name, "k")):
        with pytest.raises(NoSuchBucket):
            other(f"absent-{uuid.uuid4().hex}")
    buckets.delete(bucket, "k")
    assert buckets.list(bucket, "k") == []


def test_deleting(buckets: Buckets, bucket: str) -> None:
    for key in ("a/b/c", "a/b", "a"):
        buckets.put(bucket, key, [b"x"])
    buckets.delete(bucket, "a/b")
    buckets.delete(bucket, "a/b")
    assert keys(buckets, bucket) == ["a", "a/b/c"]
    buckets.delete(bucket, "a/b/c")
    with pytest.raises(NoSuchKey):
        buckets.head(bucket, "a/b/c")
    assert keys(buckets, bucket) == ["a"]


@pytest.mark.parametrize("key", ["", "x" * 1025, "é" * 513, "\ud800"])
def test_what_is_no_key_is_refused(buckets: Buckets, bucket: str, key: str) -> None:
    with pytest.raises(ValidationFailed, match="key: expected"):
        buckets.put(bucket, key, [b"x"])
    with pytest.raises(ValidationFailed, match="key: expected"):
        buckets.head(bucket, key)


@pytest.mark.parametrize("name", ["", "..", "a", "Upper", "_meta", "_tmp", "a/b", "a..b", "1.2.3.4", "health", "docs", "x" * 64])
def test_what_is_no_bucket_name_is_refused(buckets: Buckets, name: str) -> None:
    with pytest.raises(ValidationFailed, match="bucket: expected"):
        buckets.put(name, "k", [b"x"])
    with pytest.raises(ValidationFailed, match="bucket: expected"):
        buckets.list(name)


def test_readers_see_whole_objects_while_writers_race(buckets: Buckets, bucket: str) -> None:
    """Each of them one of those that were put, with its own ETag."""
    contents = [bytes([65 + number]) * (100_000 + number) for number in range(4)]
    by_etag = {md5(data): data for data in contents}
    buckets.put(bucket, "k", [contents[0]])
    stop = threading.Event()
    faults: list[object] = []

    def read() -> None:
        while not stop.is_set():
            with buckets.read(bucket, "k") as (found, file):
                data = file.read()
            if by_etag.get(found.etag) != data or found.bytes != len(data):
                faults.append((found, data[:1], len(data)))

    def write(data: bytes) -> None:
        for _ in range(10):
            buckets.put(bucket, "k", [data[:1000], data[1000:]])

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, contents))
    stop.set()
    for reader in readers:
        reader.join()
    assert faults == []


def test_paths_follow_what_is_put(buckets: Buckets, bucket: str) -> None:
    buckets.put(bucket, "spine.csv", [b"old"])
    assert [path.read_bytes() for path in buckets.paths(bucket, ["spine.csv"])] == [b"old"]
    buckets.put(bucket, "spine.csv", [b"new"])
    buckets.put(bucket, "other.csv", [b"other"])
    assert [path.read_bytes() for path in buckets.paths(bucket, ["other.csv", "spine.csv"])] == [b"other", b"new"]
