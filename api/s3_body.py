"""The body of an S3 request: taken out of its framing, checked against everything that the client said of it.

    plain         x-amz-content-sha256 is the digest of the body, UNSIGNED-PAYLOAD or missing
    aws-chunked   STREAMING-*: chunks of `<hex size>[;chunk-signature=<hex>]`, CR LF, data, CR LF; after an empty one, headers

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import anyio.from_thread

from api import s3_checksums
from api.s3_checksums import Checksum
from api.s3_xml import S3Refused
from api.wire import Receive
from featurestore.access.sigv4 import Payload

CHUNK_BYTES_MAX: Final = 16 << 20
"""Of a signed chunk, which is in memory as a whole before it counts; clients send 64 KiB to 1 MiB."""
LINE_BYTES_MAX: Final = 8 << 10
IDLE_S_MAX: Final = 60
"""How long the next piece of a body may take."""

_SIZE: Final = re.compile(rb"(?P<size>[0-9A-Fa-f]{1,16})(?P<rest>;.*)?")
_SIGNATURE: Final = re.compile(rb";\s*chunk-signature=(?P<signature>[0-9a-f]{64})\s*")
_TRAILER_SIGNATURE: Final = b"x-amz-trailer-signature"


class ClientGone(Exception):
    """The client went away before the end of its request."""


class Body:
    """A request body. `chunks` is for a worker thread of anyio's; the event loop receives meanwhile.

    Args:
        headers: of the request, lower-case names.
        bytes_max: of the content.
    """

    def __init__(self, receive: Receive, headers: Mapping[str, str], payload: Payload, *, bytes_max: int) -> None:
        self._receive = receive
        self._payload = payload
        self._bytes_max = bytes_max
        self.headers: dict[str, str] = {}
        """After the last chunk: the checksums that were sent and are right, to be kept with the object."""
        self._said = {name: value for name, value in headers.items() if _is_checksum(name)}
        self._trailers_wanted = [name.strip().lower() for name in headers.get("x-amz-trailer", "").split(",") if name.strip()]
        self._md5 = _md5(headers)
        self._length = _length(headers)
        self._checksums: dict[str, Checksum] = {}
        for name in {*self._said, *filter(_is_checksum, self._trailers_wanted)}:
            algorithm = name.removeprefix(s3_checksums.PREFIX)
            if algorithm not in s3_checksums.NAMES:
                raise S3Refused("NotImplemented", f"{name}: expected one of {', '.join(s3_checksums.NAMES)}")
            self._checksums[name] = s3_checksums.checksum(algorithm)
        whole = headers.get("content-length", "") if self._length is None and not payload.streaming else ""
        self._require_size(self._length or (int(whole) if whole.isdecimal() else 0))

    def chunks(self) -> Iterator[bytes]:
        """The content. Only if it comes to its end, all of it is as the client said.

        Raises:
            S3Refused: it is not.
            SignatureMismatch: a chunk is not what was signed.
            ClientGone
        """
        sha256 = hashlib.sha256() if self._payload.sha256 is not None else None
        md5 = hashlib.md5(usedforsecurity=False) if self._md5 is not None else None
        size = 0
        for chunk in self._content():
            size += len(chunk)
            self._require_size(size)
            if sha256 is not None:
                sha256.update(chunk)
            if md5 is not None:
                md5.update(chunk)
            for checksum in self._checksums.values():
                checksum.update(chunk)
            yield chunk
        if self._length is not None and size != self._length:
            raise S3Refused("IncompleteBody", f"the body has {size} bytes, x-amz-decoded-content-length says {self._length}")
        if sha256 is not None and not hmac.compare_digest(sha256.hexdigest(), self._payload.sha256 or ""):
            message = "x-amz-content-sha256 is not the SHA-256 of the body"
            raise S3Refused("XAmzContentSHA256Mismatch", message)
        if md5 is not None and md5.digest() != self._md5:
            raise S3Refused("BadDigest", "Content-MD5 is not the MD5 of the body")
        self._compare_checksums()

    def whole(self) -> bytes:
        """All of the content, of a body that is small enough by `bytes_max`."""
        return b"".join(self.chunks())

    def _compare_checksums(self) -> None:
        for name, checksum in self._checksums.items():
            if name not in self._said:
                raise S3Refused("MalformedTrailerError", f"{name}: expected this trailer, as x-amz-trailer announces it")
            found = s3_checksums.text(checksum.digest())
            if self._said[name] != found:
                raise S3Refused("BadDigest", f"{name}: the body has {found}, got {self._said[name][:100]!r}")
            self.headers[name] = found
        if self._checksums:
            self.headers[s3_checksums.TYPE] = s3_checksums.FULL_OBJECT

    def _require_size(self, size: int) -> None:
        if size > self._bytes_max:
            raise S3Refused("EntityTooLarge", f"expected at most {self._bytes_max} bytes")

    def _content(self) -> Iterator[bytes]:
        raw = self._received()
        if not self._payload.streaming:
            yield from raw
            return
        reader = _Reader(raw)
        while True:
            header = reader.line()
            match = _SIZE.fullmatch(header)
            if match is None:
                raise _malformed(f"expected the hexadecimal size of a chunk, got {header[:80]!r}")
            size = int(match["size"], 16)
            if self._payload.signed_chunks:
                signature = _SIGNATURE.fullmatch(match["rest"] or b"")
                if signature is None:
                    raise _malformed("expected a chunk-signature with every chunk")
                if size > CHUNK_BYTES_MAX:
                    raise _malformed(f"expected chunks of at most {CHUNK_BYTES_MAX} bytes")
                data = b"".join(reader.take(size))
                self._payload.verify_chunk(signature["signature"].decode(), data)
                if data:
                    yield data
            else:
                yield from reader.take(size)
            if size == 0:
                break
            if reader.line():
                raise _malformed("expected CR LF behind the data of a chunk")
        self._take_trailers(reader)
        if next(reader.rest(), b""):
            raise _malformed("expected nothing behind the last chunk")

    def _take_trailers(self, reader: _Reader) -> None:
        lines: list[bytes] = []
        signature = None
        while line := reader.line(at_end=True):
            name, colon, value = line.partition(b":")
            name = name.strip().lower()
            if not colon or len(lines) > 20:
                raise _malformed(f"expected headers behind the last chunk, got {line[:80]!r}")
            if name == _TRAILER_SIGNATURE:
                signature = value.strip().decode("latin-1")
                continue
            lines.append(line)
            if name.decode("latin-1") in self._trailers_wanted:
                self._said[name.decode("latin-1")] = value.strip().decode("latin-1")
        if self._payload.trailer and self._payload.signed_chunks:
            if signature is None:
                raise _malformed("expected x-amz-trailer-signature behind the last chunk")
            self._payload.verify_trailer(signature, b"".join(line + b"\n" for line in lines))

    def _received(self) -> Iterator[bytes]:
        more = True
        while more:
            message: Any = anyio.from_thread.run(self._next)
            if message["type"] == "http.disconnect":
                raise ClientGone
            more = message.get("more_body", False)
            if chunk := message.get("body", b""):
                yield chunk

    async def _next(self) -> Any:
        try:
            return await asyncio.wait_for(self._receive(), IDLE_S_MAX)
        except TimeoutError as error:
            raise S3Refused("RequestTimeout", f"nothing more of the body arrived for {IDLE_S_MAX} s") from error


class _Reader:
    """Lines and stretches of bytes out of pieces of any size."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")

    def line(self, *, at_end: bool = False) -> bytes:
        """Up to CR LF, without it; with `at_end` the end of the body ends a line as well."""
        found = b""
        while True:
            piece = bytes(self._piece[:LINE_BYTES_MAX])
            end = (found + piece).find(b"\r\n")
            if end >= 0:
                self._piece = self._piece[end + 2 - len(found) :]
                return (found + piece)[:end]
            found += piece
            if len(found) >= LINE_BYTES_MAX:
                raise _malformed(f"expected a line of at most {LINE_BYTES_MAX} bytes")
            following = next(self._pieces, None)
            if following is None:
                if at_end:
                    self._piece = memoryview(b"")
                    return found
                raise S3Refused("IncompleteBody", "the body ends within a chunk")
            self._piece = memoryview(following)

    def take(self, size: int) -> Iterator[bytes]:
        while size:
            if not self._piece:
                following = next(self._pieces, None)
                if following is None:
                    raise S3Refused("IncompleteBody", "the body ends within a chunk")
                self._piece = memoryview(following)
            taken = self._piece[:size]
            self._piece = self._piece[len(taken) :]
            size -= len(taken)
            yield bytes(taken)

    def rest(self) -> Iterator[bytes]:
        if self._piece:
            yield bytes(self._piece)
        yield from self._pieces


def _is_checksum(name: str) -> bool:
    return name.startswith(s3_checksums.PREFIX) and name not in s3_checksums.NO_ALGORITHM


def _malformed(message: str) -> S3Refused:
    return S3Refused("InvalidRequest", f"aws-chunked body: {message}")


def _md5(headers: Mapping[str, str]) -> bytes | None:
    said = headers.get("content-md5")
    if said is None:
        return None
    try:
        digest = base64.b64decode(said, validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != hashlib.md5(usedforsecurity=False).digest_size:
        raise S3Refused("InvalidDigest", f"Content-MD5: expected 16 bytes in base64, got {said[:80]!r}")
    return digest


def _length(headers: Mapping[str, str]) -> int | None:
    """The length of the content, where the client says it beside the length of the framed body."""
    said = headers.get("x-amz-decoded-content-length")
    if said is None:
        return None
    if not (said.isascii() and said.isdigit() and len(said) < 19):
        raise S3Refused("InvalidArgument", f"x-amz-decoded-content-length: expected a number, got {said[:80]!r}")
    return int(said)
