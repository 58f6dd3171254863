"""AWS Signature Version 4: what a request's signature says, whether it holds, and how to make one.

Pure functions over the bytes of a request. Source: "AWS Signature Version 4 for API requests" (AWS IAM User Guide) and, for S3,
"Authenticating Requests" (Amazon S3 API Reference). S3 and the other services differ in two things: S3 encodes a path once and
takes it as it is, the others encode the already encoded path again and drop its dot segments; S3 takes the hash of the body
from the request, the others compute it.
"""

from __future__ import annotations

import calendar
import hashlib
import hmac
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from email.utils import parsedate_tz
from functools import lru_cache
from typing import Final, NamedTuple, Protocol
from urllib.parse import quote_from_bytes, unquote_to_bytes

import msgspec

from featurestore.errors import (
    PresignedExpired,
    RequestTimeSkewed,
    SignatureMalformed,
    SignatureMismatch,
    SignatureMissing,
)

ALGORITHM: Final = b"AWS4-HMAC-SHA256"
TERMINATOR: Final = b"aws4_request"
S3: Final = b"s3"
EMPTY_SHA256: Final = hashlib.sha256().hexdigest()
UNSIGNED_PAYLOAD: Final = "UNSIGNED-PAYLOAD"
STREAMING_UNSIGNED_TRAILER: Final = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
STREAMING_SIGNED: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"
STREAMING_SIGNED_TRAILER: Final = "STREAMING-AWS4-HMAC-SHA256-PAYLOAD-TRAILER"

SKEW_S_MAX: Final = 15 * 60
"""How far the clocks of client and service may differ: what AWS allows."""
EXPIRES_S_MAX: Final = 7 * 24 * 3600
"""Longest life of a presigned URL: what AWS allows."""
SIGNING_KEYS_MAX: Final = 1024
"""Derived keys that are kept. One is needed per secret key, day, region and service."""
CREDENTIAL_BYTES_MAX: Final = 512
SIGNED_HEADERS_BYTES_MAX: Final = 4096

_USUAL: Final = re.compile(rb"AWS4-HMAC-SHA256 Credential=([^,= ]+), ?SignedHeaders=([^,= ]+), ?Signature=")
"""How an Authorization header begins as nearly every client writes it."""
USUAL_BYTES_MAX: Final = 1024
_HEX_256: Final = re.compile(rb"[0-9a-f]{64}")
_TIMESTAMP: Final = re.compile(rb"[0-9]{8}T[0-9]{6}Z")
_DATE: Final = re.compile(rb"[0-9]{8}")
_SCOPE_PART: Final = re.compile(rb"[A-Za-z0-9_.-]{1,64}")
_ACCESS_KEY_ID: Final = re.compile(rb"[!-+\--~]{1,256}")
_PLAIN: Final = re.compile(rb"[A-Za-z0-9_.~-]*")
"""What percent-encoding leaves as it is."""
_PLAIN_PARAMETER: Final = re.compile(rb"(?!X-Amz-Signature=)[A-Za-z0-9_.~-]+=[A-Za-z0-9_.~-]*")
"""A query of one parameter, in the form in which it is signed."""
_PLAIN_PATH: Final = re.compile(rb"[A-Za-z0-9_.~/-]*")
_QUERY_NAMES: Final = (
    b"X-Amz-Algorithm",
    b"X-Amz-Credential",
    b"X-Amz-Date",
    b"X-Amz-Expires",
    b"X-Amz-SignedHeaders",
    b"X-Amz-Signature",
)


class Request(msgspec.Struct, frozen=True, gc=False):
    """A request as it was sent.

    Attributes:
        path: percent-encoded, without the query.
        query: what is behind the question mark, as sent.
        headers: names in lower case, in the order sent.
    """

    method: str
    path: bytes
    query: bytes
    headers: Sequence[tuple[bytes, bytes]]


class Scope(msgspec.Struct, frozen=True, gc=False):
    """What a signing key is derived for: a day (YYYYMMDD), a region, a service."""

    date: bytes
    region: bytes
    service: bytes

    def __bytes__(self) -> bytes:
        return b"%b/%b/%b/aws4_request" % (self.date, self.region, self.service)


class Signature(msgspec.Struct, frozen=True, gc=False):
    """What a request says of its signature; nothing of it is proven yet.

    Attributes:
        signed_headers: their names, sorted.
        timestamp: YYYYMMDDTHHMMSSZ.
        signed_at_s: the same in seconds since 1970.
        expires_s: life of a presigned URL; None for a signature in the header.
        token: of a session, or None.
        payload_hash: what the request says of its body in x-amz-content-sha256; None if nothing.
    """

    access_key_id: str
    scope: Scope
    signed_headers: tuple[bytes, ...]
    value: bytes
    timestamp: bytes
    signed_at_s: int
    expires_s: int | None
    token: str | None
    payload_hash: str | None


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a client signs with. The secret is not shown."""

    access_key_id: str
    secret_access_key: str = field(repr=False)
    session_token: str | None = field(default=None, repr=False)


class Payload(Protocol):
    """What a request, verified or of a service without keys, says of its body.

    Attributes:
        sha256: hex digest that the whole body must have; None if it is not signed.
        streaming: the body is aws-chunked (STREAMING-*).
        trailer: headers follow the last chunk (...-TRAILER).
        signed_chunks: each chunk carries a signature; `verify_chunk` must be given all of them in order, the last, empty
            one as well.
    """

    @property
    def sha256(self) -> str | None: ...
    @property
    def streaming(self) -> bool: ...
    @property
    def trailer(self) -> bool: ...
    @property
    def signed_chunks(self) -> bool: ...

    def verify_chunk(self, signature: str, data: bytes) -> None:
        """Raises SignatureMismatch: the chunk is not what was signed, or not at this place."""

    def verify_trailer(self, signature: str, trailer: bytes) -> None:
        """The trailing headers as sent, `name:value` lines without the signature's own. Raises SignatureMismatch."""


class RequestPayload:
    """See `Payload`. Without a chain (a service without keys) chunk signatures are read and not checked."""

    __slots__ = ("_chain", "sha256", "signed_chunks", "streaming", "trailer")

    def __init__(self, payload_hash: str, chain: ChunkChain | None = None) -> None:
        self.streaming = payload_hash.startswith("STREAMING-")
        self.trailer = self.streaming and payload_hash.endswith("-TRAILER")
        self.signed_chunks = payload_hash in (STREAMING_SIGNED, STREAMING_SIGNED_TRAILER)
        self.sha256 = None if self.streaming or payload_hash == UNSIGNED_PAYLOAD else payload_hash
        self._chain = chain

    def verify_chunk(self, signature: str, data: bytes) -> None:
        if self._chain is not None:
            self._chain.verify(b"PAYLOAD", signature, b"%b\n%b" % (EMPTY_SHA256.encode(), _sha256(data)))

    def verify_trailer(self, signature: str, trailer: bytes) -> None:
        if self._chain is not None:
            lines = [line.strip() for line in trailer.split(b"\n") if line.strip()]
            self._chain.verify(b"TRAILER", signature, _sha256(b"".join(line + b"\n" for line in lines)))


class ChunkChain:
    """Signatures of the chunks of one body: each covers the one before it, the first that of the request's head."""

    def __init__(self, key: bytes, signature: Signature) -> None:
        self._key = key
        self._head = b"%b\n%b" % (signature.timestamp, bytes(signature.scope))
        self._previous = signature.value

    def verify(self, kind: bytes, signature: str, rest: bytes) -> None:
        text = b"%b-%b\n%b\n%b\n%b" % (ALGORITHM, kind, self._head, self._previous, rest)
        expected = hmac.digest(self._key, text, "sha256").hex().encode()
        if not hmac.compare_digest(expected, signature.encode("utf-8", "surrogateescape")):
            raise SignatureMismatch("a chunk of the body is not what was signed, or not at this place")
        self._previous = expected


def is_signed(request: Request) -> bool:
    """Whether the request carries a signature of any kind, readable or not."""
    return any(name == b"authorization" for name, _ in request.headers) or b"X-Amz-Algorithm=" in request.query


def scoped_service(request: Request) -> bytes | None:
    """The service that a request says it is signed for; None if it says none. Nothing is proven by it."""
    for name, value in request.headers:
        if name == b"authorization":
            parts = value.partition(b"Credential=")[2].partition(b",")[0].rsplit(b"/", 2)
            return parts[1] if len(parts) == 3 else None
    if b"X-Amz-Credential=" in request.query:
        credential = request.query.partition(b"X-Amz-Credential=")[2].partition(b"&")[0]
        parts = unquote_to_bytes(credential).rsplit(b"/", 2)
        return parts[1] if len(parts) == 3 else None
    return None


def read_signature(request: Request) -> Signature:
    """What the request says of its signature, in its header or, presigned, in its query.

    Raises:
        SignatureMissing: it says nothing.
        SignatureMalformed: that can't be read, or does not cover host and every x-amz- header.
    """
    headers = dict(request.headers)
    if len(headers) < len(request.headers) and [name for name, _ in request.headers].count(b"authorization") > 1:
        raise SignatureMalformed("expected one Authorization header, got several")
    authorization = headers.get(b"authorization")
    presigned = b"X-Amz-Algorithm=" in request.query or b"X-Amz-Signature=" in request.query
    if authorization is None:
        if b"AWSAccessKeyId=" in request.query:
            hint = "boto3 presigns for S3 so in some regions, unless told Config(signature_version='s3v4')"
            raise SignatureMalformed(f"query: expected signature version 4, got version 2 ({hint})")
        if not presigned:
            raise SignatureMissing
        return _presigned(request, headers)
    if presigned:
        raise SignatureMalformed("expected a signature in the Authorization header or in the query, got both")
    return _in_header(authorization, headers)


def _in_header(authorization: bytes, headers: dict[bytes, bytes]) -> Signature:
    usual = _usual_start(authorization[:-64]) if len(authorization) <= USUAL_BYTES_MAX else None
    if usual is not None:
        access_key_id, scope, signed = usual
        value = authorization[-64:]
    else:
        credential, signed_headers, value = _fields(authorization)
        access_key_id, scope = _credential(credential)
        signed = _header_names(signed_headers)
    for name in headers:
        if name.startswith(b"x-amz-") and name not in signed:
            raise SignatureMalformed(f"SignedHeaders: expected {_shown(name)} among them, as the request has it")
    timestamp = headers.get(b"x-amz-date")
    if timestamp is None and b"date" in signed:
        timestamp = _timestamp_of(headers.get(b"date", b""))
    signed_at_s = _signed_at_s(timestamp, scope, "X-Amz-Date")
    assert timestamp is not None, "it was read"
    token = headers.get(b"x-amz-security-token")
    payload_hash = headers.get(b"x-amz-content-sha256")
    return Signature(
        access_key_id,
        scope,
        signed,
        _hex(value, "Signature"),
        timestamp,
        signed_at_s,
        None,
        None if token is None else token.decode("latin-1"),
        None if payload_hash is None else payload_hash.decode("latin-1"),
    )


@lru_cache(maxsize=SIGNING_KEYS_MAX)
def _usual_start(text: bytes) -> tuple[str, Scope, tuple[bytes, ...]] | None:
    """What an Authorization header says before the signature itself, which is the same for many requests of a client; None unless
    it is written as usual.
    """
    found = _USUAL.fullmatch(text)
    if found is None:
        return None
    credential, signed_headers = found.groups()
    return *_credential(credential), _header_names(signed_headers)


def _fields(authorization: bytes) -> tuple[bytes, bytes, bytes]:
    """Credential, SignedHeaders and Signature of an Authorization header, in whatever order they are."""
    algorithm, _, rest = authorization.partition(b" ")
    if algorithm != ALGORITHM:
        raise SignatureMalformed(f"Authorization: expected {ALGORITHM.decode()}, got {_shown(algorithm)}")
    fields: dict[bytes, bytes] = {}
    for item in rest.split(b","):
        name, _, value = item.strip().partition(b"=")
        if name in fields:
            raise SignatureMalformed(f"Authorization: expected {_shown(name)} once")
        fields[name] = value
    for name in (b"Credential", b"SignedHeaders", b"Signature"):
        if not fields.get(name):
            raise SignatureMalformed(f"Authorization: expected {name.decode()}")
    return fields[b"Credential"], fields[b"SignedHeaders"], fields[b"Signature"]


def _presigned(request: Request, headers: dict[bytes, bytes]) -> Signature:
    found: dict[bytes, bytes] = {}
    for part in request.query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name.startswith(b"X-Amz-"):
            if name in found:
                raise SignatureMalformed(f"query: expected {_shown(name)} once")
            found[name] = unquote_to_bytes(value)
    for name in _QUERY_NAMES:
        if not found.get(name):
            raise SignatureMalformed(f"query: expected {name.decode()}")
    if found[b"X-Amz-Algorithm"] != ALGORITHM:
        raise SignatureMalformed(f"X-Amz-Algorithm: expected {ALGORITHM.decode()}, got {_shown(found[b'X-Amz-Algorithm'])}")
    access_key_id, scope = _credential(found[b"X-Amz-Credential"])
    signed = _header_names(found[b"X-Amz-SignedHeaders"])
    for name in headers:
        if name.startswith(b"x-amz-") and name not in signed and name != b"x-amz-content-sha256":
            raise SignatureMalformed(f"X-Amz-SignedHeaders: expected {_shown(name)} among them, as the request has it")
    expires = found[b"X-Amz-Expires"]
    if not expires.isdigit() or len(expires) > 6 or not 1 <= int(expires) <= EXPIRES_S_MAX:
        raise SignatureMalformed(f"X-Amz-Expires: expected 1 to {EXPIRES_S_MAX} seconds, got {_shown(expires)}")
    timestamp = found[b"X-Amz-Date"]
    token = found.get(b"X-Amz-Security-Token")
    payload_hash = found.get(b"X-Amz-Content-Sha256")
    if payload_hash is None and b"x-amz-content-sha256" in signed:
        payload_hash = headers.get(b"x-amz-content-sha256")
    return Signature(
        access_key_id,
        scope,
        signed,
        _hex(found[b"X-Amz-Signature"], "X-Amz-Signature"),
        timestamp,
        _signed_at_s(timestamp, scope, "X-Amz-Date"),
        int(expires),
        None if token is None else token.decode("latin-1"),
        None if payload_hash is None else payload_hash.decode("latin-1"),
    )


def require_current(signature: Signature, now_s: float) -> None:
    """Whether the request's time is near enough.

    Raises:
        RequestTimeSkewed: signed more than SKEW_S_MAX ago (in the header), or as much in the future.
        PresignedExpired: the life of the presigned URL is over.
    """
    age_s = now_s - signature.signed_at_s
    presigned = signature.expires_s is not None
    if age_s < -SKEW_S_MAX or (not presigned and age_s > SKEW_S_MAX):
        raise RequestTimeSkewed(signature.timestamp.decode(), time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s)), SKEW_S_MAX)
    if signature.expires_s is not None and age_s > signature.expires_s:
        raise PresignedExpired(signature.timestamp.decode(), signature.expires_s)


def verify(request: Request, signature: Signature, secret_access_key: str, payload_hash: str) -> bytes:
    """Whether the signature is that of this request by this secret key; compared in constant time.

    Args:
        payload_hash: for S3 `s3_payload_hash`, for other services the hex SHA-256 of the body.

    Returns:
        The signing key, for `ChunkChain`.

    Raises:
        SignatureMismatch
    """
    same = SameHeaders(request, signature, secret_access_key)
    if not same.verify(request.method, request.path, request.query, payload_hash, signature.value):
        raise SignatureMismatch
    return same.key


class SameHeaders:
    """Verifies requests with the same headers, which differ in the signature only, and in what they are for.

    Attributes:
        signature: of the request that the headers are taken from.
        key: the signing key.
    """

    __slots__ = ("_headers", "_inner", "_is_s3", "_outer", "key", "signature")

    def __init__(self, request: Request, signature: Signature, secret_access_key: str) -> None:
        scope = signature.scope
        self.signature = signature
        self.key = signing_key(secret_access_key, scope.date, scope.region, scope.service)
        self._is_s3 = scope.service == S3
        self._headers = _canonical_headers(request, signature.signed_headers)
        # HMAC (RFC 2104) with what all these requests have in common hashed already.
        self._inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in self.key.ljust(64, b"\0")))
        self._inner.update(string_to_sign(signature.timestamp, scope, b"").rpartition(b"\n")[0] + b"\n")
        self._outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in self.key.ljust(64, b"\0")))

    def verify(self, method: str, path: bytes, query: bytes, payload_hash: str, value: bytes) -> bool:
        """Whether `value` is the signature; compared in constant time. Arguments as those of `Request` and `verify`."""
        return self.signs(_canonical(method, path, query, self._headers, payload_hash, s3=self._is_s3), value)

    def signs(self, canonical: bytes, value: bytes) -> bool:
        """Whether `value` is the signature of a canonical request; compared in constant time."""
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(_sha256(canonical))
        outer.update(inner.digest())
        return hmac.compare_digest(outer.hexdigest().encode(), value)

    def with_target(self, method: str, path: bytes, query: bytes) -> SameTarget:
        """Requests to a target that begins so, without a body."""
        whole = _canonical(method, path, b"", self._headers, EMPTY_SHA256, s3=self._is_s3)
        before = b"\n".join(whole.split(b"\n", 2)[:2])
        return SameTarget(self, b"%b\n%b" % (before, query), whole[len(before) + 1 :])


class SameTarget(NamedTuple):
    """Verifies requests with the same headers and target, but for the last parameter's value.

    Attributes:
        before, after: what is around this value in the canonical request.
    """

    headers: SameHeaders
    before: bytes
    after: bytes

    def verify(self, query: bytes, value: bytes) -> bool:
        """As `SameHeaders.verify`. `query` is what is behind its beginning, plain characters only."""
        return self.headers.signs(b"%b%b%b" % (self.before, query, self.after), value)


def s3_payload_hash(signature: Signature) -> str:
    """What a request to S3 says of its body, as it must be signed: a hex digest or one of the fixed words.

    Raises:
        SignatureMalformed: it says nothing (and is not presigned), or an unknown word.
    """
    found = signature.payload_hash
    if found is None:
        if signature.expires_s is None:
            raise SignatureMalformed("expected the header x-amz-content-sha256")
        return UNSIGNED_PAYLOAD
    known = (UNSIGNED_PAYLOAD, STREAMING_UNSIGNED_TRAILER, STREAMING_SIGNED, STREAMING_SIGNED_TRAILER)
    if found not in known and _HEX_256.fullmatch(found.encode("latin-1")) is None:
        raise SignatureMalformed(f"x-amz-content-sha256: expected a hex SHA-256 or one of {', '.join(known)}, got {found[:80]!r}")
    return found


def unverified_payload(request: Request) -> RequestPayload:
    """What a request says of its body, for a service without keys: framing and hash are honoured, signatures are not checked."""
    found = next((value for name, value in request.headers if name == b"x-amz-content-sha256"), UNSIGNED_PAYLOAD.encode())
    if found.startswith(b"STREAMING-"):
        return RequestPayload(found.decode("latin-1"))
    digest = found.lower()
    return RequestPayload(digest.decode() if _HEX_256.fullmatch(digest) else UNSIGNED_PAYLOAD)


def canonical_request(request: Request, signed_headers: Sequence[bytes], payload_hash: str, *, s3: bool) -> bytes:
    """The text whose hash is signed: method, path, query, headers, names of headers, hash of the body, a line each."""
    headers = _canonical_headers(request, signed_headers)
    return _canonical(request.method, request.path, request.query, headers, payload_hash, s3=s3)


def _canonical(method: str, path: bytes, query: bytes, headers: bytes, payload_hash: str, *, s3: bool) -> bytes:
    path = _s3_path(path) if s3 else _path(path)
    return b"\n".join((method.encode(), path, _query(query), headers, payload_hash.encode("latin-1")))


def _canonical_headers(request: Request, signed_headers: Sequence[bytes]) -> bytes:
    """A line for each, an empty line, and their names."""
    values = dict(request.headers)
    if len(values) < len(request.headers):
        values = _joined(request.headers)
    lines = b"".join([b"%b:%b\n" % (name, values.get(name, b"")) for name in signed_headers])
    if b"  " in lines or b"\t" in lines or b" \n" in lines or b": " in lines:  # perhaps surplus ones
        lines = b"".join([b"%b:%b\n" % (name, b" ".join(values.get(name, b"").split())) for name in signed_headers])
    return b"%b\n%b" % (lines, b";".join(signed_headers))


def _joined(headers: Sequence[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """By name; the values of a header that is there several times, each without surplus spaces, separated by commas."""
    values: dict[bytes, bytes] = {}
    for name, value in headers:
        trimmed = b" ".join(value.split())
        values[name] = b"%b,%b" % (values[name], trimmed) if name in values else trimmed
    return values


def string_to_sign(timestamp: bytes, scope: Scope, canonical: bytes) -> bytes:
    return b"%b\n%b\n%b\n%b" % (ALGORITHM, timestamp, _scope_text(scope.date, scope.region, scope.service), _sha256(canonical))


@lru_cache(maxsize=SIGNING_KEYS_MAX)
def _scope_text(date: bytes, region: bytes, service: bytes) -> bytes:
    return bytes(Scope(date, region, service))


@lru_cache(maxsize=SIGNING_KEYS_MAX)
def signing_key(secret_access_key: str, date: bytes, region: bytes, service: bytes) -> bytes:
    """The key that requests of one day, region and service are signed with."""
    key = b"AWS4" + secret_access_key.encode()
    for part in (date, region, service, TERMINATOR):
        key = hmac.digest(key, part, "sha256")
    return key


def sign(
    request: Request, credentials: Credentials, body_sha256: str, *, service: str, region: str, now_s: float
) -> list[tuple[str, str]]:
    """Headers to add to a request, so that it is signed with all of its present ones.

    Args:
        request: with a host header, as it will be sent.
        body_sha256: hex digest of the body; it is sent along, so that a service can check the signature before it reads the
            body.
    """
    timestamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_s))
    added = [("x-amz-date", timestamp), ("x-amz-content-sha256", body_sha256)]
    if credentials.session_token is not None:
        added.append(("x-amz-security-token", credentials.session_token))
    headers = [*request.headers, *((name.encode(), value.encode()) for name, value in added)]
    names = tuple(sorted({name for name, _ in headers}))
    scope = Scope(timestamp[:8].encode(), region.encode(), service.encode())
    whole = Request(request.method, request.path, request.query, headers)
    canonical = canonical_request(whole, names, body_sha256, s3=scope.service == S3)
    key = signing_key(credentials.secret_access_key, scope.date, scope.region, scope.service)
    value = hmac.digest(key, string_to_sign(timestamp.encode(), scope, canonical), "sha256").hex()
    signed = b";".join(names).decode()
    credential = f"{credentials.access_key_id}/{bytes(scope).decode()}"
    added.append(("authorization", f"{ALGORITHM.decode()} Credential={credential}, SignedHeaders={signed}, Signature={value}"))
    return added


def _query(query: bytes) -> bytes:
    """Parameters sorted by encoded name, then value; a presigned URL's own signature left out."""
    if not query or _PLAIN_PARAMETER.fullmatch(query):
        return query
    pairs = []
    for part in query.split(b"&"):
        name, _, value = part.partition(b"=")
        if name != b"X-Amz-Signature":
            pairs.append((_encoded(name), _encoded(value)))
    pairs.sort()  # by name, then value
    return b"&".join(b"%b=%b" % pair for pair in pairs)


def _encoded(text: bytes) -> bytes:
    """Percent-encoded in the one form that is signed, whichever form was sent."""
    if _PLAIN.fullmatch(text):
        return text
    return quote_from_bytes(unquote_to_bytes(text), safe="-_.~").encode()


def _s3_path(path: bytes) -> bytes:
    """As it is, in the one form that is signed: an encoded slash stays one."""
    return b"/".join(_encoded(segment) for segment in path.split(b"/")) or b"/"


def _path(path: bytes) -> bytes:
    path = _without_dots(path)
    return path if _PLAIN_PATH.fullmatch(path) else quote_from_bytes(path, safe="/-_.~").encode()


def _without_dots(path: bytes) -> bytes:
    """Without empty and dot segments (RFC 3986 section 5.2.4, and AWS also joins slashes)."""
    if b"//" not in path and b"/." not in path:
        return path or b"/"
    kept: list[bytes] = []
    for segment in path.split(b"/"):
        if segment == b"..":
            del kept[-1:]
        elif segment not in (b"", b"."):
            kept.append(segment)
    return b"/" + b"/".join(kept) + (b"/" if kept and path.endswith(b"/") else b"")


@lru_cache(maxsize=SIGNING_KEYS_MAX)
def _credential_parts(text: bytes) -> tuple[str, Scope]:
    parts = text.rsplit(b"/", 4)
    if len(parts) != 5 or _ACCESS_KEY_ID.fullmatch(parts[0]) is None or parts[4] != TERMINATOR:
        expected = "<access key id>/<YYYYMMDD>/<region>/<service>/aws4_request"
        raise SignatureMalformed(f"Credential: expected {expected}, got {_shown(text)}")
    access_key_id, date, region, service, _ = parts
    if _DATE.fullmatch(date) is None or not all(_SCOPE_PART.fullmatch(part) for part in (region, service)):
        raise SignatureMalformed(f"Credential: expected a date, a region and a service in its scope, got {_shown(text)}")
    return access_key_id.decode(), Scope(date, region, service)


def _credential(text: bytes) -> tuple[str, Scope]:
    if len(text) > CREDENTIAL_BYTES_MAX:
        raise SignatureMalformed(f"Credential: expected at most {CREDENTIAL_BYTES_MAX} bytes")
    return _credential_parts(text)


@lru_cache(maxsize=SIGNING_KEYS_MAX)
def _sorted_names(text: bytes) -> tuple[bytes, ...]:
    names = tuple(text.split(b";"))
    if list(names) != sorted(set(names)) or text != text.lower() or b"" in names:
        raise SignatureMalformed(f"SignedHeaders: expected sorted names in lower case, got {_shown(text)}")
    if b"host" not in names:
        raise SignatureMalformed("SignedHeaders: expected host among them")
    return names


def _header_names(text: bytes) -> tuple[bytes, ...]:
    if len(text) > SIGNED_HEADERS_BYTES_MAX:
        raise SignatureMalformed(f"SignedHeaders: expected at most {SIGNED_HEADERS_BYTES_MAX} bytes")
    return _sorted_names(text)


def _signed_at_s(timestamp: bytes | None, scope: Scope, name: str) -> int:
    if timestamp is None:
        raise SignatureMalformed(f"expected the header {name}")
    seconds = _seconds(timestamp) if len(timestamp) == 16 else None
    if seconds is None:
        raise SignatureMalformed(f"{name}: expected YYYYMMDDTHHMMSSZ, got {_shown(timestamp)}")
    if not timestamp.startswith(scope.date):
        raise SignatureMalformed(f"Credential: expected the date of {name} {timestamp.decode()}, got {scope.date.decode()}")
    return seconds


@lru_cache(maxsize=64)
def _seconds(timestamp: bytes) -> int | None:
    if _TIMESTAMP.fullmatch(timestamp) is None:
        return None
    try:
        return calendar.timegm(time.strptime(timestamp.decode(), "%Y%m%dT%H%M%SZ"))
    except ValueError:
        return None


def _timestamp_of(date: bytes) -> bytes | None:
    """A Date header (RFC 9110, or the basic ISO form) as a timestamp."""
    if _TIMESTAMP.fullmatch(date):
        return date
    parsed = parsedate_tz(date.decode("latin-1"))
    if parsed is None:
        return date
    seconds = calendar.timegm((*parsed[:6], 0, 0, 0)) - (parsed[9] or 0)
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(seconds)).encode()


def _hex(value: bytes, name: str) -> bytes:
    if _HEX_256.fullmatch(value) is None:
        raise SignatureMalformed(f"{name}: expected 64 hexadecimal digits in lower case")
    return value


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def _shown(text: bytes) -> str:
    return repr(text[:80].decode("latin-1"))
