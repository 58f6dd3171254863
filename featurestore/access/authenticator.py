"""Who sends a request: its signature against the keys."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from featurestore.access import sigv4
from featurestore.access.keys import ROOT, AccessKey, Keys, Right
from featurestore.access.session import Session, open_token
from featurestore.access.sigv4 import ChunkChain, Request, RequestPayload, SameHeaders, Signature
from featurestore.errors import AccessKeyUnknown, SignatureMismatch

MICROSECONDS: Final = 1_000_000
_NOBODY: Final = "no key has this secret"


class Caller(NamedTuple):
    """Who sends a request.

    Attributes:
        key: the access key; of a session its parent. None in a store without keys.
        session: None for a key itself.
    """

    name: str
    right: Right
    key: AccessKey | None = None
    session: Session | None = None


ANYBODY: Final = Caller(ROOT, Right.ADMIN)
"""Who calls a store without keys."""


class Claim:
    """A request's signature, read and not yet checked, with the key it claims."""

    __slots__ = ("_request", "_secret", "caller", "signature")

    def __init__(self, request: Request, signature: Signature, secret: str, caller: Caller) -> None:
        self._request = request
        self._secret = secret
        self.signature = signature
        self.caller = caller

    @property
    def body_sha256(self) -> str | None:
        """The hash of the body that the request was signed with, if it says one; the body need not be read to check that."""
        found = self.signature.payload_hash
        return found if found is not None and b"x-amz-content-sha256" in self.signature.signed_headers else None

    def verify(self, body_sha256: str) -> None:
        """Raises SignatureMismatch."""
        sigv4.verify(self._request, self.signature, self._secret, body_sha256)

    def same_headers(self) -> SameHeaders:
        """What verifies other requests with these headers."""
        return SameHeaders(self._request, self.signature, self._secret)

    def verify_s3(self) -> RequestPayload:
        """Checks the head of a request to S3; what is left to check in its body is the answer's.

        Raises:
            SignatureMalformed, SignatureMismatch
        """
        payload_hash = sigv4.s3_payload_hash(self.signature)
        key = sigv4.verify(self._request, self.signature, self._secret, payload_hash)
        return RequestPayload(payload_hash, ChunkChain(key, self.signature))


def claim(request: Request, keys: Keys, *, service: bytes | None, clock_s: Callable[[], float] = time.time) -> Claim:
    """Everything about a signature that needs no body: it can be read, is for this service, of this time, by a known key.

    Args:
        service: what the request must be signed for; None takes any.

    Raises:
        AuthenticationFailed
    """
    signature = sigv4.read_signature(request)
    now_s = clock_s()
    sigv4.require_current(signature, now_s)
    if service is not None and signature.scope.service != service:
        expected = f"the service {service.decode()!r} in the scope"
        raise SignatureMismatch(f"expected {expected}, got {signature.scope.service.decode()!r}")
    if signature.token is not None:
        token, now_us = signature.token, int(now_s * MICROSECONDS)
        credentials, parent = open_token(token, signature.access_key_id, keys.live, now_us)
        session = credentials.session
        caller = Caller(f"{parent.name}/{session.name}", parent.right, parent, session)
        return Claim(request, signature, credentials.secret_access_key, caller)
    key = keys.live.get(signature.access_key_id)
    if key is None:
        _as_if_known(request, signature)
        raise AccessKeyUnknown(signature.access_key_id)
    return Claim(request, signature, key.secret_access_key, Caller(key.name, key.right, key))


def _as_if_known(request: Request, signature: Signature) -> None:
    """The work of a wrong signature: how long an answer takes must not tell more than the answer."""
    try:
        sigv4.verify(request, signature, _NOBODY, sigv4.EMPTY_SHA256)
    except SignatureMismatch:
        return
