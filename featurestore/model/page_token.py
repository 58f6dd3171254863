"""Page tokens: where a listing of records goes on, signed, so that what clients bring back is what the store has given them.

A token belongs to one feature group of one store (a group that was created again under its name is another one) and stays valid
as long as the group is there. It does not say which process made it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from typing import Final

import msgspec

from featurestore.decoding import decode_msgpack
from featurestore.errors import ValidationFailed
from featurestore.model import limits

MAC_BYTES: Final = 16
EXPECTED: Final = "a NextToken that ListRecords has given for this feature group"


class _Body(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    group_id: int
    shard: int
    record_id: str


def encode_token(secret: bytes, group_id: int, shard: int, record_id: str) -> str:
    """The token of a place in a group; at most NEXT_TOKEN_CHARS_MAX characters."""
    body = msgspec.msgpack.encode(_Body(group_id, shard, record_id))
    return base64.urlsafe_b64encode(_mac(secret, body) + body).decode().rstrip("=")


def decode_token(secret: bytes, group_id: int, token: str, *, path: str = "NextToken") -> tuple[int, str]:
    """The inverse of `encode_token`: (shard, record id).

    Raises:
        ValidationFailed: the token is not of this store and group, or was changed.
    """
    if not 1 <= len(token) <= limits.NEXT_TOKEN_CHARS_MAX:
        raise ValidationFailed.one(path, f"1 to {limits.NEXT_TOKEN_CHARS_MAX} characters", len(token))
    try:
        data = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except ValueError as error:  # also a character beyond ASCII
        raise ValidationFailed.one(path, EXPECTED, token) from error
    mac, body = data[:MAC_BYTES], data[MAC_BYTES:]
    if not hmac.compare_digest(mac, _mac(secret, body)):
        raise ValidationFailed.one(path, EXPECTED, token)
    found = decode_msgpack(body, _Body)  # signed, so of our making
    if found.group_id != group_id:
        raise ValidationFailed.one(path, EXPECTED, token)
    return found.shard, found.record_id


def _mac(secret: bytes, body: bytes) -> bytes:
    return hashlib.blake2b(body, key=secret, digest_size=MAC_BYTES, person=b"page token").digest()
