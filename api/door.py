"""The front door: which API a request is for, who sends it, and whether they may.

A store without access keys serves its own machine and asks nobody; then a request must call it by a loopback name, since a web
page could reach it under a name of its own. Once there are keys every request is signed, wherever it comes from.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import math
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, NamedTuple

from starlette.concurrency import run_in_threadpool

from api import rights, runtime, sts
from api.s3 import S3
from api.wire import Receive, Scope, read_body, require_declared_size
from featurestore.access import sigv4
from featurestore.access.authenticator import ANYBODY, Caller, Claim, claim
from featurestore.access.keys import Keys
from featurestore.access.sigv4 import Payload, Request, SameHeaders, SameTarget
from featurestore.errors import AccessForbidden, AuthenticationFailed, SignatureMismatch, StoreUnavailable

KEYS_S_MAX: Final = 0.5
"""A key that another process created or revoked is seen at most this much later."""
JSON_11_BODY_BYTES_MAX: Final = 8 << 20
SAGEMAKER: Final = "sagemaker"
OPEN_PATHS: Final = ("/health", "/ready", "/docs", "/openapi.json")
"""Answered to everybody: they hold no data, and whoever looks after the service or reads its reference has no key at hand."""
FORM: Final = b"application/x-www-form-urlencoded"


class Api(Enum):
    """Who answers a request, and so in which form errors are sent."""

    OPEN = auto()
    RUNTIME = auto()
    JSON_11 = auto()
    STS = auto()
    NATIVE = auto()
    S3 = auto()


class Target(NamedTuple):
    """What a JSON 1.1 request asks for: `SageMaker.PutRecord` has the prefix `SageMaker.`."""

    prefix: str
    operation: str


class Admitted(NamedTuple):
    """A request that may be carried out.

    Attributes:
        body: the whole of it, read and verified; None where it is still to be read from `receive`.
        receive: gives the body, whether it was read before or not.
        payload: for S3, what the request says of its body.
    """

    caller: Caller
    body: bytes | None
    receive: Receive
    payload: Payload | None


class Standing(NamedTuple):
    """What is known of a signed request whose headers another one may have as well.

    Attributes:
        keys: those at that moment.
        body_sha256: as `Claim.body_sha256`.
    """

    keys: Keys
    caller: Caller
    body_sha256: str | None
    same: SameHeaders

    def like(self, method: str, path: bytes, query: bytes) -> Like:
        """Requests with a query that begins so, and without a body."""
        return Like(self, self.same.with_target(method, path, query))


class Like(NamedTuple):
    """Requests that differ from one that was let in by the end of their query only, and so by the signature."""

    standing: Standing
    same: SameTarget


class ClientGone(Exception):
    """The client went away before the end of its request."""


def api_of(scope: Scope) -> Api:
    """The API that a request is for; docs/reference/http.md has the table."""
    path: str = scope["path"]
    if runtime.Runtime.owns(path):
        return Api.RUNTIME
    if sigv4.scoped_service(_request(scope)) == sigv4.S3:
        return Api.S3
    if path == "/":
        if scope["method"] == "POST":
            is_form = header(scope, b"content-type").partition(b";")[0].strip().lower() == FORM
            return Api.STS if is_form and not header(scope, b"x-amz-target") else Api.JSON_11
        if b"Action=" in scope["query_string"]:
            return Api.STS
    if path in OPEN_PATHS or path.startswith("/docs/"):
        return Api.OPEN
    return Api.S3 if not path.startswith("/v1/") and S3.owns(scope) else Api.NATIVE


def target_of(scope: Scope) -> Target:
    """What the header X-Amz-Target names; both are empty without it."""
    prefix, dot, operation = header(scope, b"x-amz-target").decode("latin-1").rpartition(".")
    return Target(prefix + dot, operation)


class Door:
    """Lets requests in.

    Args:
        read_keys: as `SqlKeys.read`; called at most every KEYS_S_MAX, in a worker thread.
        hosts: names that requests may call a store without keys by, lower case and without port. None if it is not on loopback:
            then nobody is let in without a key, whatever becomes of the keys.
        services: which service requests with a target prefix are signed for.
        body_bytes_max: of the store's own routes.
    """

    def __init__(
        self,
        read_keys: Callable[[], Keys],
        *,
        hosts: frozenset[bytes] | None,
        services: dict[str, str],
        body_bytes_max: int,
    ) -> None:
        self._read_keys = read_keys
        self._hosts = hosts
        self._services = services
        self._body_bytes_max = body_bytes_max
        self._keys = Keys({}, required=True)
        self._failure: StoreUnavailable | None = None
        self._read_at_s = -KEYS_S_MAX
        self._reading = asyncio.Lock()
        self.open_until_s = 0.0
        """By `time.monotonic`: until then nobody is asked for a signature; after it, requests have to be let in one by one."""
        self.stale_at_s = 0.0
        """By the same clock: when it is time for `refresh_soon`."""
        self._refreshing: asyncio.Task[None] | None = None

    async def admit(self, api: Api, scope: Scope, receive: Receive) -> Admitted:
        """Everything that comes before an operation.

        Raises:
            AccessForbidden: the Host is none of the names, or the caller's right does not cover the operation.
            AuthenticationFailed
            ValidationFailed: the body is too long.
            StoreUnavailable: the keys can't be read.
            ClientGone
        """
        if time.monotonic() - self._read_at_s >= KEYS_S_MAX:
            await self._refresh()
        if self._failure is not None:
            if api is Api.OPEN:
                return Admitted(ANYBODY, None, receive, None)
            raise self._failure.with_traceback(None)
        keys = self._keys
        if not keys.required and self._hosts is not None:
            _require_host(scope, self._hosts)
            payload = sigv4.unverified_payload(_request(scope)) if api is Api.S3 else None
            return Admitted(ANYBODY, None, receive, payload)
        if api is Api.OPEN:
            return Admitted(ANYBODY, None, receive, None)
        request = _request(scope)
        claimed = claim(request, keys, service=self._service(api, scope))
        if api is Api.S3:
            payload = claimed.verify_s3()
            rights.require(claimed.caller, f"s3:{scope['method']}")
            return Admitted(claimed.caller, None, receive, payload)
        body = await self._verified_body(self.body_bytes_max(api, scope["path"]), request, claimed, receive)
        rights.require(claimed.caller, self._operation(api, scope, body))
        return Admitted(claimed.caller, body, _Replay(body, receive), None)

    def allows(self, host: bytes) -> bool:
        """Whether requests may call a store without keys so."""
        return self._hosts is not None and _is_host(host, self._hosts)

    def admits_now(self, operation: str, request: Request, body: bytes) -> Standing | None:
        """Whether a signed request to the runtime API may enter, known without waiting. If not, `admit` says why or does."""
        if not self._knows_keys():
            return None
        try:
            claimed = claim(request, self._keys, service=SAGEMAKER.encode())
            standing = Standing(self._keys, claimed.caller, claimed.body_sha256, claimed.same_headers())
        except AuthenticationFailed:
            return None
        value = claimed.signature.value
        return standing if self._holds(standing, operation, request.method, request.path, request.query, body, value) else None

    def admits_again(
        self, standing: Standing, operation: str, method: str, path: bytes, query: bytes, body: bytes, value: bytes
    ) -> bool:
        """As `admits_now`, of a request whose headers are those of another one, but for the value of the signature."""
        return self._is_current(standing) and self._holds(standing, operation, method, path, query, body, value)

    def admits_like(self, like: Like, query: bytes, value: bytes) -> bool:
        """As `admits_again`. The operation is that of the first request; none of them has a session.

        Args:
            query: what is behind the beginning that all have; letters, digits and `-._~` only.
        """
        return self._is_current(like.standing) and like.same.verify(query, value)

    def _is_current(self, standing: Standing) -> bool:
        if standing.keys is not self._keys or standing.caller.session is not None or not self._knows_keys():
            return False
        try:
            sigv4.require_current(standing.same.signature, time.time())
        except AuthenticationFailed:
            return False
        return True

    def _knows_keys(self) -> bool:
        """Whether they are needed, and up to date."""
        return self._failure is None and self._keys.required and time.monotonic() - self._read_at_s < KEYS_S_MAX

    @staticmethod
    def _holds(standing: Standing, operation: str, method: str, path: bytes, query: bytes, body: bytes, value: bytes) -> bool:
        found = hashlib.sha256(body).hexdigest() if body else sigv4.EMPTY_SHA256
        promised = standing.body_sha256
        if promised is not None and not hmac.compare_digest(found.encode(), promised.encode("latin-1")):
            return False
        try:
            rights.require(standing.caller, operation)
        except AccessForbidden:
            return False
        return standing.same.verify(method, path, query, found, value)

    def body_bytes_max(self, api: Api, path: str) -> int:
        match api:
            case Api.RUNTIME:
                is_batch = path == f"/{runtime.BATCH_WRITE_RECORD}"
                return runtime.BATCH_BODY_BYTES_MAX if is_batch else runtime.BODY_BYTES_MAX
            case Api.JSON_11:
                return JSON_11_BODY_BYTES_MAX
            case Api.STS:
                return sts.BODY_BYTES_MAX
            case _:
                return self._body_bytes_max

    async def _verified_body(self, bytes_max: int, request: Request, claimed: Claim, receive: Receive) -> bytes:
        require_declared_size(request.headers, bytes_max)
        promised = claimed.body_sha256
        if promised is not None:  # then a wrong signature is found before a long body is read
            claimed.verify(promised)
        body = await read_body(receive, bytes_max)
        if body is None:
            raise ClientGone
        found = hashlib.sha256(body).hexdigest() if body else sigv4.EMPTY_SHA256
        if promised is None:
            claimed.verify(found)
        elif not hmac.compare_digest(found.encode(), promised.encode("latin-1")):
            raise SignatureMismatch("the body is not the one of x-amz-content-sha256")
        return body

    def _service(self, api: Api, scope: Scope) -> bytes | None:
        """What a request must be signed for; None for services that nobody answers for."""
        match api:
            case Api.S3:
                return sigv4.S3
            case Api.STS:
                return b"sts"
            case Api.JSON_11:
                prefix = target_of(scope).prefix
                return self._services[prefix].encode() if prefix in self._services else None
            case _:
                return SAGEMAKER.encode()

    def _operation(self, api: Api, scope: Scope, body: bytes) -> str:
        method: str = scope["method"]
        match api:
            case Api.RUNTIME:
                return rights.runtime_operation(method, raw_path(scope))
            case Api.JSON_11:
                target = target_of(scope)
                return f"{self._services.get(target.prefix, target.prefix.removesuffix('.'))}:{target.operation}"
            case Api.STS:
                return f"sts:{sts.Sts.action(body or scope['query_string'])}"
            case _:
                return rights.native_operation(method, scope["path"])

    def refresh_soon(self) -> None:
        """Read the keys anew beside the requests, so that none has to wait for that when they are out of date."""
        self.stale_at_s = math.inf
        self._refreshing = asyncio.get_running_loop().create_task(self._refresh(KEYS_S_MAX / 2))

    async def _refresh(self, age_s_max: float = KEYS_S_MAX) -> None:
        async with self._reading:
            if time.monotonic() - self._read_at_s < age_s_max:
                return
            started_s = time.monotonic()
            try:
                self._keys = await run_in_threadpool(self._read_keys)
                self._failure = None
            except StoreUnavailable as error:
                self._failure = error
                started_s = time.monotonic()  # who waited for it need not wait once more
            self._read_at_s = started_s
            is_open = self._failure is None and not self._keys.required and self._hosts is not None
            self.open_until_s = started_s + KEYS_S_MAX if is_open else 0.0
            self.stale_at_s = started_s + KEYS_S_MAX / 2


class _Replay:
    """Gives a body that was read before, then whatever comes after it."""

    __slots__ = ("_body", "_receive")

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> dict[str, object]:
        if self._body is None:
            return dict(await self._receive())
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}


def header(scope: Scope, name: bytes) -> bytes:
    """The first header of that name, or nothing."""
    return next((bytes(value) for found, value in scope["headers"] if found == name), b"")


def raw_path(scope: Scope) -> bytes:
    return bytes(scope.get("raw_path") or scope["path"].encode()).partition(b"?")[0]


def _request(scope: Scope) -> Request:
    return Request(scope["method"], raw_path(scope), scope["query_string"], scope["headers"])


def _require_host(scope: Scope, hosts: frozenset[bytes]) -> None:
    """Browsers always send a Host header; without one, no browser sends the request."""
    for name, value in scope["headers"]:
        if name == b"host":
            if not _is_host(value, hosts):
                names = b", ".join(sorted(hosts)).decode()
                raise AccessForbidden(f"Host: expected one of {names}, got {value.decode('latin-1')!r}")
            return


def _is_host(value: bytes, hosts: frozenset[bytes]) -> bool:
    host = value if value.endswith(b"]") else value.rpartition(b":")[0] or value
    return host.lower() in hosts
