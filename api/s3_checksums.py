"""The checksums that S3 clients send and ask for.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
"""

from __future__ import annotations

import base64
import hashlib
import zlib
from typing import Any, Final, Protocol

import google_crc32c
import numpy as np

PREFIX: Final = "x-amz-checksum-"
TYPE: Final = "x-amz-checksum-type"
ALGORITHM: Final = "x-amz-checksum-algorithm"
MODE: Final = "x-amz-checksum-mode"
FULL_OBJECT: Final = "FULL_OBJECT"
COMPOSITE: Final = "COMPOSITE"
NO_ALGORITHM: Final = frozenset({TYPE, ALGORITHM, MODE})


class Checksum(Protocol):
    def update(self, data: bytes) -> None: ...
    def digest(self) -> bytes: ...


class _Crc32:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = zlib.crc32(data, self._value)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


class _Crc32C:
    def __init__(self) -> None:
        self._value = 0

    def update(self, data: bytes) -> None:
        self._value = google_crc32c.extend(self._value, data)

    def digest(self) -> bytes:
        return self._value.to_bytes(4, "big")


Uint64s = np.ndarray[Any, np.dtype[np.uint64]]
_LANES_LOG2: Final = 10
_LANE_BYTES: Final = 1024
_BLOCK_BYTES: Final = _LANE_BYTES << _LANES_LOG2
_FEW_BYTES: Final = 16 << 10
"""Less than this is faster byte by byte."""
_ALL_ONES: Final = (1 << 64) - 1
_POLYNOMIAL: Final = 0x9A6C9329AC4BC9B5
"""Of CRC-64/NVME, reflected (NVM Express NVM Command Set Specification, 64b CRC)."""


def _byte_table() -> Uint64s:
    """What a byte becomes in eight steps of one bit."""
    values = np.arange(256, dtype=np.uint64)
    for _ in range(8):
        values = (values >> np.uint64(1)) ^ np.where(values & np.uint64(1), np.uint64(_POLYNOMIAL), np.uint64(0))
    return values


_TABLE: Final = _byte_table()


def _past_zeros(columns: Uint64s) -> Uint64s:
    """The table of a linear map of registers, by byte of the register and its value, from what it makes of each bit."""
    table = np.zeros((8, 256), np.uint64)
    for bit in range(64):
        values = np.arange(256)
        table[bit // 8] ^= np.where(values >> (bit % 8) & 1, columns[bit], np.uint64(0))
    return table


def _apply(table: Uint64s, registers: Uint64s) -> Uint64s:
    result = np.zeros_like(registers)
    for byte in range(8):
        result ^= table[byte, (registers >> np.uint64(8 * byte) & np.uint64(255)).astype(np.intp)]
    return result


def _shifts() -> list[Uint64s]:
    """Tables of what 1024, 2048, ... zero bytes make of a register, up to half a block."""
    bits = np.uint64(1) << np.arange(64, dtype=np.uint64)
    columns = (bits >> np.uint64(8)) ^ _TABLE[(bits & np.uint64(255)).astype(np.intp)]
    tables = []
    for doubling in range(_LANE_BYTES.bit_length() - 1 + _LANES_LOG2):
        table = _past_zeros(columns)
        if 1 << doubling >= _LANE_BYTES:
            tables.append(table)
        columns = _apply(table, columns)
    return tables


class Crc64Nvme:
    """CRC-64/NVME, which AWS CLI version 2 sends, over many stretches of the data at once.

    A register is linear in the data: that of two stretches is that of the first one, taken past as many zeros as the second one
    has bytes, plus that of the second one, each begun with nothing in it.
    """

    _shift_tables: list[Uint64s] = []  # noqa: RUF012 - made when first used

    def __init__(self) -> None:
        self._register = _ALL_ONES
        self._rest = bytearray()

    def update(self, data: bytes) -> None:
        self._rest += data
        while len(self._rest) >= _BLOCK_BYTES:
            self._register = self._past(self._register, bytes(self._rest[:_BLOCK_BYTES]))
            del self._rest[:_BLOCK_BYTES]

    def digest(self) -> bytes:
        rest = bytes(self._rest)
        if len(rest) >= _FEW_BYTES:
            return (self._past(self._register, rest) ^ _ALL_ONES).to_bytes(8, "big")
        register = self._register
        for byte in rest:
            register = register >> 8 ^ int(_TABLE[(register ^ byte) & 255])
        return (register ^ _ALL_ONES).to_bytes(8, "big")

    def _past(self, register: int, data: bytes) -> int:
        """The register after 8 to _BLOCK_BYTES bytes: it counts as added to the first ones; zeros before them change nothing."""
        if not self._shift_tables:
            type(self)._shift_tables = _shifts()
        begin = int.from_bytes(data[:8], "little") ^ register
        block = bytes(_BLOCK_BYTES - len(data)) + begin.to_bytes(8, "little") + data[8:]
        lanes = np.frombuffer(block, np.uint8).reshape(1 << _LANES_LOG2, _LANE_BYTES)
        registers = np.zeros(1 << _LANES_LOG2, np.uint64)
        for column in np.ascontiguousarray(lanes.T).astype(np.uint64):
            registers = registers >> np.uint64(8) ^ _TABLE[((registers ^ column) & np.uint64(255)).astype(np.intp)]
        for table in self._shift_tables:
            registers = _apply(table, registers[0::2]) ^ registers[1::2]
        return int(registers[0])


class _Sha:
    def __init__(self, name: str) -> None:
        self._hash = hashlib.new(name, usedforsecurity=False)

    def update(self, data: bytes) -> None:
        self._hash.update(data)

    def digest(self) -> bytes:
        return self._hash.digest()


_MAKERS: Final = {
    "crc32": _Crc32,
    "crc32c": _Crc32C,
    "crc64nvme": Crc64Nvme,
    "sha1": lambda: _Sha("sha1"),
    "sha256": lambda: _Sha("sha256"),
}
NAMES: Final = tuple(_MAKERS)
XML_MEMBERS: Final = {f"Checksum{name.upper()}": name for name in NAMES}
"""Members of CompleteMultipartUpload's parts."""


def checksum(name: str) -> Checksum:
    """A new one of an algorithm of NAMES."""
    maker: Any = _MAKERS[name]
    made: Checksum = maker()
    return made


def text(digest: bytes) -> str:
    return base64.b64encode(digest).decode()
