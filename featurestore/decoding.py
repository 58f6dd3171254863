"""JSON and MessagePack as values of a known type, in any thread.

msgspec finds out what a Struct or a dataclass consists of when it is first decoded, and another thread that decodes the same type
meanwhile sees that half done: the process ends with a segmentation fault (msgspec 0.22; `tests/integration/test_decoding.py`).
So decoders are made one at a time, and decoding with a type goes through here; a test of the architecture sees to it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

_T = TypeVar("_T")
_making: Final = threading.Lock()
_json: Final[dict[Any, msgspec.json.Decoder[Any]]] = {}
_msgpack: Final[dict[Any, msgspec.msgpack.Decoder[Any]]] = {}


def decode_json(data: bytes | bytearray | memoryview | str, kind: type[_T]) -> _T:
    """JSON as a value of `kind`.

    Raises:
        msgspec.DecodeError, UnicodeDecodeError: it is not JSON.
        msgspec.ValidationError: it is not of that type.
    """
    decoder = _json.get(kind)
    if decoder is None:
        decoder = _made(kind, _json, msgspec.json.Decoder)
    value: _T = decoder.decode(data)
    return value


def decode_msgpack(data: bytes | bytearray | memoryview, kind: type[_T]) -> _T:
    """MessagePack as a value of `kind`; raises as `decode_json`."""
    decoder = _msgpack.get(kind)
    if decoder is None:
        decoder = _made(kind, _msgpack, msgspec.msgpack.Decoder)
    value: _T = decoder.decode(data)
    return value


def _made(kind: Any, made: dict[Any, Any], make: Callable[[Any], Any]) -> Any:
    with _making:
        if kind not in made:
            made[kind] = make(kind)
        return made[kind]
