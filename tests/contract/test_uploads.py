"""Multipart uploads into the folder backend, beyond what S3 clients see."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from featurestore.buckets.folder import Condition, FolderBuckets
from featurestore.buckets.uploads import ABANDONED_S, DONE, PART_BYTES_MIN, UPLOADS, PartReader, Uploads
from featurestore.errors import NoSuchUpload, PreconditionFailed, UploadRefused

WHERE = ("bucket", "k")


@pytest.fixture
def folder(tmp_path: Path) -> FolderBuckets:
    return FolderBuckets(tmp_path)


def begun(uploads: Uploads, *parts: bytes) -> tuple[str, list[tuple[int, str]]]:
    upload_id = uploads.begin(*WHERE, content_type="text/csv", headers={"x-amz-meta-a": "1"})
    return upload_id, [
        (number, uploads.put_part(*WHERE, upload_id, number, [data]).etag) for number, data in enumerate(parts, start=1)
    ]


def content(folder: FolderBuckets) -> bytes:
    with folder.read(*WHERE) as (_, file):
        return file.read()


def test_abandoned_uploads_go(folder: FolderBuckets) -> None:
    now_s = time.time()
    uploads = Uploads(folder, clock_s=lambda: now_s)
    old, _ = begun(uploads, b"x")
    done, parts = begun(uploads, b"y")
    uploads.complete(*WHERE, done, parts, PartReader())
    now_s += ABANDONED_S - 60
    uploads.remove_abandoned()
    assert len(uploads.parts(*WHERE, old)) == 1
    fresh, _ = begun(uploads, b"z")
    os.utime(folder.root / UPLOADS / fresh, (now_s, now_s))
    now_s += 120
    uploads.remove_abandoned()
    assert os.listdir(folder.root / UPLOADS) == [fresh]
    with pytest.raises(NoSuchUpload):
        uploads.put_part(*WHERE, old, 1, [b"x"])
    assert content(folder) == b"y"


def test_an_upload_that_died_before_it_was_booked_completes_again(folder: FolderBuckets) -> None:
    uploads = Uploads(folder)
    upload_id, parts = begun(uploads, b"x" * PART_BYTES_MIN, b"y")

    class Dies(PartReader):
        def headers(self) -> dict[str, str]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        uploads.complete(*WHERE, upload_id, parts, Dies())
    assert not folder.has("bucket")
    first = uploads.complete(*WHERE, upload_id, parts, PartReader())
    assert content(folder) == b"x" * PART_BYTES_MIN + b"y"
    assert (first.content_type, first.headers) == ("text/csv", {"x-amz-meta-a": "1"})
    assert sorted(os.listdir(folder.root / UPLOADS / upload_id)) == sorted([DONE, "upload.json"])
    folder.put(*WHERE, [b"newer"])
    assert uploads.complete(*WHERE, upload_id, parts, PartReader()) == first
    assert content(folder) == b"newer"
    with pytest.raises(NoSuchUpload):
        uploads.complete(*WHERE, upload_id, parts[:1], PartReader())


def test_concurrent_completions_are_one(folder: FolderBuckets) -> None:
    uploads = Uploads(folder)
    upload_id, parts = begun(uploads, b"x")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: uploads.complete(*WHERE, upload_id, parts, PartReader()), range(4)))
    assert len({(answer.etag, answer.modified_at_us) for answer in answers}) == 1


def test_a_condition_that_fails_leaves_the_upload(folder: FolderBuckets) -> None:
    uploads = Uploads(folder)
    folder.put(*WHERE, [b"old"])
    upload_id, parts = begun(uploads, b"x")
    with pytest.raises(PreconditionFailed):
        uploads.complete(*WHERE, upload_id, parts, PartReader(), condition=Condition(absent=True))
    assert content(folder) == b"old"
    uploads.complete(*WHERE, upload_id, parts, PartReader())
    assert content(folder) == b"x"


def test_parts_of_one_number_replace_each_other(folder: FolderBuckets) -> None:
    uploads = Uploads(folder)
    upload_id = uploads.begin(*WHERE, content_type=None, headers={})
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: uploads.put_part(*WHERE, upload_id, 1, [b"%d" % number]), range(16)))
    (part,) = uploads.parts(*WHERE, upload_id)
    uploads.complete(*WHERE, upload_id, [(1, part.etag)], PartReader())
    assert content(folder) in {b"%d" % number for number in range(16)}


def test_a_part_that_arrives_after_the_abort_is_refused(folder: FolderBuckets) -> None:
    uploads = Uploads(folder)
    upload_id = uploads.begin(*WHERE, content_type=None, headers={})
    aborted = threading.Event()

    def chunks() -> Iterator[bytes]:
        yield b"begin"
        uploads.abort(*WHERE, upload_id)
        aborted.set()
        yield b"end"

    with pytest.raises(NoSuchUpload):
        uploads.put_part(*WHERE, upload_id, 1, chunks())
    assert aborted.is_set()
    assert os.listdir(folder.root / UPLOADS) == []
    assert os.listdir(folder.root / "_tmp") == []


@pytest.mark.parametrize("number", [0, -1, 10_001])
def test_numbers_of_parts(folder: FolderBuckets, number: int) -> None:
    uploads = Uploads(folder)
    upload_id = uploads.begin(*WHERE, content_type=None, headers={})
    with pytest.raises(UploadRefused, match="partNumber: expected 1 to 10000"):
        uploads.put_part(*WHERE, upload_id, number, [b"x"])
