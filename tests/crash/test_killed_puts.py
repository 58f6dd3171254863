"""A process that puts objects is killed with SIGKILL at random moments.

Afterwards each object is a whole one that was put, not older than what was acknowledged, with its own ETag and metadata, and
nothing else is shown. `CRASH_ROUNDS` sets the number of kills (the suite's default is small), `CRASH_SEED` the schedule.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import time
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path

from featurestore.buckets.folder import FolderBuckets
from featurestore.buckets.uploads import PART_BYTES_MIN, PartReader, Uploads
from featurestore.errors import NoSuchKey

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
SEED = int(os.environ.get("CRASH_SEED", "20240501"))
KEYS = ["a", "a/b", "a/b/c.csv", "x.csv", "parts"]


def data_of(version: int) -> bytes:
    """Content that tells which one it is, and whether it is whole."""
    return b"%d:" % version + hashlib.sha256(b"%d" % version).digest() * (1 + version % 5000)


def put(root: Path, version_next: int, acknowledge: Connection) -> None:
    """Put and delete for ever; tell of each step that is acknowledged."""
    buckets = FolderBuckets(root)
    uploads = Uploads(buckets)
    for version in range(version_next, version_next + 1_000_000):
        key = KEYS[version % len(KEYS)]
        headers = {"x-amz-meta-version": str(version)}
        if key == "parts":
            upload_id = uploads.begin("bucket", key, content_type=None, headers=headers)
            begin = b"0" * PART_BYTES_MIN
            parts = [
                uploads.put_part("bucket", key, upload_id, number, [data]) for number, data in ((1, begin), (2, data_of(version)))
            ]
            uploads.complete("bucket", key, upload_id, [(part.number, part.etag) for part in parts], PartReader())
        elif is_delete(version):
            buckets.delete("bucket", key)
        else:
            data = data_of(version)
            buckets.put("bucket", key, (data[start : start + 1000] for start in range(0, len(data), 1000)), headers=headers)
        acknowledge.send(version)


def test_no_object_is_torn_or_lost(tmp_path: Path) -> None:
    schedule = random.Random(SEED)
    root = tmp_path / "buckets"
    FolderBuckets(root).create("bucket")
    there: dict[str, int | None] = dict.fromkeys(KEYS)
    version = 0
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload([__name__])
    for _ in range(ROUNDS):
        receiver, sender = processes.Pipe(duplex=False)
        process = processes.Process(target=put, args=(root, version, sender), daemon=True)
        process.start()
        sender.close()
        version = receiver.recv()
        book(there, version)
        time.sleep(schedule.random() * 0.5)
        process.kill()
        process.join()
        with suppress(EOFError):
            while True:
                version = receiver.recv()
                book(there, version)
        receiver.close()
        there = found_as_booked(root, there, in_doubt=version + 1)
        version += 2
    assert version > 20


def is_delete(version: int) -> bool:
    return version % 11 == 0 and KEYS[version % len(KEYS)] != "parts"


def book(there: dict[str, int | None], version: int) -> None:
    there[KEYS[version % len(KEYS)]] = None if is_delete(version) else version


def found_as_booked(root: Path, there: dict[str, int | None], in_doubt: int) -> dict[str, int | None]:
    """What is there: what was booked, but for the step in doubt, which may have happened."""
    buckets = FolderBuckets(root)
    assert os.listdir(root / "_tmp") == []
    shown = {item.key: item for item in buckets.list("bucket")}
    happened = dict(there)
    book(happened, in_doubt)
    found: dict[str, int | None] = {}
    for key in KEYS:
        try:
            with buckets.read("bucket", key) as (known, file):
                data = file.read()
        except NoSuchKey:
            assert key not in shown
            found[key] = None
            continue
        assert shown.pop(key) == known
        body = data[PART_BYTES_MIN:] if key == "parts" else data
        version = found[key] = int(body.partition(b":")[0])
        assert body == data_of(version)
        assert known.headers == {"x-amz-meta-version": str(version)}
        if key != "parts":
            assert known.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert shown == {}
    assert found in (there, happened)
    return found
