"""The folder backend against a dictionary."""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule

from featurestore.buckets.folder import FolderBuckets
from featurestore.errors import NoSuchKey

SEGMENTS = st.sampled_from(
    ["", "a", "A", "b.csv", ".", "..", "%", "%2F", "%-", "%+", "a%", "é", "e\u0301", "\0", "x" * 250, "x" * 249 + "!"]
)
KEYS = st.lists(SEGMENTS, min_size=1, max_size=4).map("/".join).filter(lambda key: 0 < len(key.encode()) <= 1024)


class FolderMachine(RuleBasedStateMachine):
    keys = Bundle("keys")

    def __init__(self) -> None:
        super().__init__()
        self.home = tempfile.TemporaryDirectory()
        self.objects: dict[str, bytes] = {}

    @initialize()
    def open(self) -> None:
        self.buckets = FolderBuckets(Path(self.home.name))
        self.buckets.create("bucket")

    @rule(target=keys, key=KEYS)
    def name(self, key: str) -> str:
        return key

    @rule(key=keys, data=st.binary(max_size=20))
    def put(self, key: str, data: bytes) -> None:
        stored = self.buckets.put("bucket", key, [data[:3], data[3:]], headers={"x-amz-meta-first": str(data[:1])})
        assert stored.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        self.objects[key] = data

    @rule(key=keys)
    def delete(self, key: str) -> None:
        self.buckets.delete("bucket", key)
        self.objects.pop(key, None)

    @rule(key=keys)
    def read(self, key: str) -> None:
        if key not in self.objects:
            with pytest.raises(NoSuchKey):
                self.buckets.head("bucket", key)
            return
        data = self.objects[key]
        with self.buckets.read("bucket", key) as (found, file):
            assert file.read() == data
        assert found.etag == hashlib.md5(data, usedforsecurity=False).hexdigest()
        assert found.headers == {"x-amz-meta-first": str(data[:1])}

    @rule(prefix=KEYS | st.just(""), after=KEYS | st.just(""), limit=st.integers(0, 5))
    def list(self, prefix: str, after: str, limit: int) -> None:
        expected = sorted(key for key in self.objects if key.startswith(prefix) and key > after)
        assert [item.key for item in self.buckets.list("bucket", prefix, after=after, limit=limit)] == expected[:limit]

    @invariant()
    def everything_is_there(self) -> None:
        found = self.buckets.list("bucket") if hasattr(self, "buckets") else []
        assert {item.key: item.bytes for item in found} == {key: len(data) for key, data in self.objects.items()}

    def teardown(self) -> None:
        self.home.cleanup()


FolderMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)
TestFolder = FolderMachine.TestCase
