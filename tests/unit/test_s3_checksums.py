from __future__ import annotations

import random
import zlib

import pytest

from api import s3_checksums


def crc64_by_bit(data: bytes) -> bytes:
    register = (1 << 64) - 1
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (0x9A6C9329AC4BC9B5 if register & 1 else 0)
    return (register ^ ((1 << 64) - 1)).to_bytes(8, "big")


def digest(name: str, *pieces: bytes) -> bytes:
    made = s3_checksums.checksum(name)
    for piece in pieces:
        made.update(piece)
    return made.digest()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("crc32", "cbf43926"), ("crc32c", "e3069283"), ("crc64nvme", "ae8b14860a799888")],
)
def test_check_values_of_the_catalogue(name: str, expected: str) -> None:
    """https://reveng.sourceforge.io/crc-catalogue/all.htm"""
    assert digest(name, b"123456789").hex() == expected


@pytest.mark.parametrize("size", [0, 1, 7, 8, 1024, 16_383, 16_384, 16_391, 70_001])
def test_crc64_as_it_is_defined(size: int) -> None:
    data = random.Random(size).randbytes(size)
    assert digest("crc64nvme", data) == crc64_by_bit(data)


def test_crc64_of_blocks_in_any_pieces() -> None:
    data = random.Random(1).randbytes((1 << 20) + 5_000)
    whole = digest("crc64nvme", data)
    assert whole == crc64_by_bit(data)
    assert digest("crc64nvme", *(data[start : start + 65_536] for start in range(0, len(data), 65_536))) == whole
    assert digest("crc64nvme", data[:100], b"", data[100:]) == whole


def test_pieces_make_the_same_as_the_whole() -> None:
    for name in s3_checksums.NAMES:
        assert digest(name, b"1234", b"", b"56789") == digest(name, b"123456789")
    assert digest("crc32", b"x") == zlib.crc32(b"x").to_bytes(4, "big")
