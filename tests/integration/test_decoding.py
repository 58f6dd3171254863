"""Types are decoded for the first time by many threads at once, each time in a new process: nothing but values comes of it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROCESSES = 12

FIRST_DECODES = """
import sys, threading
from dataclasses import dataclass
import msgspec
from featurestore.decoding import decode_json, decode_msgpack

class A(msgspec.Struct):
    a: int
    b: str = ""

@dataclass(frozen=True)
class B:
    x: A
    y: "list[A]"
    z: "dict[str, A] | None" = None

value = {"x": {"a": 1}, "y": [{"a": 2}], "z": {"k": {"a": 3}}}
packed = msgspec.msgpack.encode(value), msgspec.json.encode(value)
answers, together = [], threading.Barrier(8)

def first():
    together.wait()
    answers.append(decode_msgpack(packed[0], B))
    answers.append(decode_json(packed[1], B))

sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=first) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert answers == [B(A(1), [A(2)], {"k": A(3)})] * 16, answers
"""


def test_first_decodes_of_many_threads() -> None:
    for _ in range(PROCESSES):
        ended = subprocess.run([sys.executable, "-c", FIRST_DECODES], capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode == 0, ended


@pytest.mark.parametrize("kind", ["json", "msgpack"])
def test_what_is_wrong_is_told_as_before(kind: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", f"from featurestore.decoding import decode_{kind} as d; d(b'1', list[int])"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "msgspec.ValidationError: Expected `array`, got `int`" in ended.stderr, ended
