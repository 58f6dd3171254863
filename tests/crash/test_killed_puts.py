"""A process that puts objects is killed with SIGKILL at random moments.

Afterwards each object is a whole one that was put, not older than what was acknowledged, with its own ETag and metadata, and
nothing else is shown. `CRASH_ROUNDS` sets the number of kills (the suite's default is small), `CRASH_SEED` the schedule.
"""

from __future__ import annotations

import hashlib
import os
import random
import subprocess
import sys
import time
from pathlib import Path

from featurestore.buckets.folder import FolderBuckets
from featurestore.buckets.uploads import PART_BYTES_MIN, PartReader, Uploads
from featurestore.errors import NoSuchBucket, NoSuchKey

ROUNDS = int(os.environ.get("CRASH_ROUNDS", "8"))
SEED = int(os.environ.get("CRASH_SEED", "20240501"))
KEYS = ["a", "a/b", "a/b/c.csv", "x.csv", "parts"]


def data_of(version: int) -> bytes:
    """Content that tells which one it is, and whether it is whole."""
    return b"%d:" % version + hashlib.sha256(b"%d" % version).digest() * (1 + version % 5000)


def put(root: Path, version_next: int) -> None:
    """Put and delete for ever; a line per acknowledged step."""
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
        elif version % 11 == 0:
            buckets.delete("bucket", key)
        else:
            data = data_of(version)
            buckets.put("bucket", key, (data[start : start + 1000] for start in range(0, len(data), 1000)), headers=headers)
        print(version, flush=True)


def test_no_object_is_torn_or_lost(tmp_path: Path) -> None:
    schedule = random.Random(SEED)
    root = tmp_path / "buckets"
    FolderBuckets(root).create("bucket")
    acknowledged: dict[str, int] = {}
    version = 0
    for _ in range(ROUNDS):
        command = [sys.executable, "-m", "tests.crash.test_killed_puts", str(root), str(version)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]) as process:
            assert process.stdout is not None
            lines = [process.stdout.readline()]
            time.sleep(schedule.random() * 0.5)
            process.kill()
            lines += process.stdout.readlines()
        for line in lines:
            assert line.endswith("\n")
            version = int(line)
            acknowledged[KEYS[version % len(KEYS)]] = version
        check(root, acknowledged, in_doubt=version + 1)
        version += 2
    assert len(acknowledged) == len(KEYS)


def check(root: Path, acknowledged: dict[str, int], in_doubt: int) -> None:
    buckets = FolderBuckets(root)
    assert os.listdir(root / "_tmp") == []
    doubtful = KEYS[in_doubt % len(KEYS)]
    shown = {item.key: item for item in buckets.list("bucket")}
    for key in KEYS:
        wanted = {acknowledged[key]} if key in acknowledged else {None}
        if key == doubtful:
            wanted.add(in_doubt)
        absent_is_right = any(version is None or (version % 11 == 0 and key != "parts") for version in wanted)
        try:
            with buckets.read("bucket", key) as (found, file):
                data = file.read()
        except (NoSuchKey, NoSuchBucket):
            assert absent_is_right, key
            assert key not in shown
            continue
        assert shown[key] == found
        body = data[PART_BYTES_MIN:] if key == "parts" else data
        version = int(body.partition(b":")[0])
        assert version in wanted, key
        assert body == data_of(version)
        assert found.headers == {"x-amz-meta-version": str(version)}
        if key != "parts":
            assert found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
    assert shown.keys() <= {*KEYS}


if __name__ == "__main__":
    put(Path(sys.argv[1]), int(sys.argv[2]))
