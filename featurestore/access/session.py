"""Sessions: credentials for a limited time, derived from an access key.

Nothing is stored (docs/decisions/0017-access-keys.md): the session token says whose it is and until when, under a
message authentication code by the parent key's secret, and the secret of the session follows from the token and that secret. So
whoever knows the parent key can check it, and nobody once the parent key is revoked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

import msgspec

from featurestore.access.keys import AccessKey
from featurestore.decoding import decode_msgpack
from featurestore.errors import AccessKeyUnknown, SessionExpired, SessionTokenInvalid

ID_PREFIX: Final = "FSTA"
TOKEN_CHARS_MAX: Final = 8192
MAC_BYTES: Final = 32


class Session(msgspec.Struct, frozen=True, array_like=True, kw_only=True):
    """What a token says.

    Attributes:
        parent: access key id of the key that the session is of.
        expires_at_us: microseconds since 1970.
        nonce: makes two sessions of one moment different.
    """

    parent: str
    role: str
    name: str
    expires_at_us: int
    nonce: bytes


@dataclass(frozen=True, slots=True)
class SessionCredentials:
    """What a client signs with until `session.expires_at_us`."""

    session: Session
    access_key_id: str
    secret_access_key: str = field(repr=False)
    token: str = field(repr=False)


def issue(parent: AccessKey, *, role: str, name: str, expires_at_us: int) -> SessionCredentials:
    """Credentials of a new session of a key."""
    session = Session(
        parent=parent.access_key_id, role=role, name=name, expires_at_us=expires_at_us, nonce=secrets.token_bytes(12)
    )
    body = msgspec.msgpack.encode(session)
    token = base64.urlsafe_b64encode(_mac(parent, b"token", body) + body).decode()
    return _credentials(session, parent, token)


def open_token(
    token: str, access_key_id: str, keys: Mapping[str, AccessKey], now_us: int
) -> tuple[SessionCredentials, AccessKey]:
    """The session of a token with its secret, and the key that it is of.

    Raises:
        SessionTokenInvalid: not one of this store, changed, or not of this access key id.
        AccessKeyUnknown: the parent key is unknown or revoked.
        SessionExpired
    """
    if len(token) > TOKEN_CHARS_MAX:
        raise SessionTokenInvalid(f"expected at most {TOKEN_CHARS_MAX} characters")
    try:
        data = base64.b64decode(token, altchars=b"-_", validate=True)
        session = decode_msgpack(data[MAC_BYTES:], Session)
    except (binascii.Error, ValueError, msgspec.MsgspecError) as error:
        raise SessionTokenInvalid("expected one that this service gave out") from error
    parent = keys.get(session.parent)
    if parent is None:
        raise AccessKeyUnknown(session.parent)
    if not hmac.compare_digest(_mac(parent, b"token", data[MAC_BYTES:]), data[:MAC_BYTES]):
        raise SessionTokenInvalid("expected one that this service gave out")
    credentials = _credentials(session, parent, token)
    if not hmac.compare_digest(credentials.access_key_id.encode(), access_key_id.encode()):
        raise SessionTokenInvalid("expected that of the access key id")
    if now_us >= session.expires_at_us:
        raise SessionExpired
    return credentials, parent


def _credentials(session: Session, parent: AccessKey, token: str) -> SessionCredentials:
    digest = hashlib.sha256(token.encode()).digest()
    access_key_id = ID_PREFIX + base64.b32encode(digest[:10]).decode()
    secret = base64.urlsafe_b64encode(_mac(parent, b"secret", digest)[:30]).decode()
    return SessionCredentials(session, access_key_id, secret, token)


def _mac(parent: AccessKey, purpose: bytes, data: bytes) -> bytes:
    """Each purpose has a key of its own, and none is the one that requests are signed with."""
    key = hmac.digest(parent.secret_access_key.encode(), b"featurestore session " + purpose, "sha256")
    return hmac.digest(key, data, "sha256")
