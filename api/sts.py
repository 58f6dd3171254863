"""AWS Security Token Service: GetCallerIdentity and AssumeRole (query protocol, version 2011-06-15).

A role is only a name here: a session has the right of the key that assumed it. What would narrow it (session policies) or ask
for more (MFA) is refused rather than ignored.
"""

from __future__ import annotations

import base64
import hashlib
import re
import secrets
import time
from collections.abc import Callable
from typing import Final
from urllib.parse import parse_qsl
from xml.sax.saxutils import escape

from api.wire import XML, Answer, UnknownOperation
from featurestore.access.authenticator import Caller
from featurestore.access.keys import ROOT, AccessKey, Right
from featurestore.access.session import SessionCredentials, issue
from featurestore.errors import Fault, ValidationFailed
from featurestore.model.event_time import format_iso
from featurestore.registry.protocol import StoreIdentity

NAMESPACE: Final = "https://sts.amazonaws.com/doc/2011-06-15/"
BODY_BYTES_MAX: Final = 128 << 10
DURATION_S_DEFAULT: Final = 3600
DURATION_S_MIN: Final = 900
DURATION_S_MAX: Final = 43_200
FIELDS_MAX: Final = 200

_ROLE_ARN: Final = re.compile(r"arn:aws[a-z-]*:iam::[0-9]{12}:role/((?:[!-~]+/)?[A-Za-z0-9_+=,.@-]{1,64})")
_ROLE_ARN_CHARS_MAX: Final = 2048
_SESSION_NAME: Final = re.compile(r"[A-Za-z0-9_+=,.@-]{2,64}")
_REFUSED: Final = ("Policy", "PolicyArns", "SerialNumber", "TokenCode")


class Sts:
    """The operations of one store's service."""

    def __init__(self, identity: StoreIdentity, *, clock_us: Callable[[], int] = lambda: time.time_ns() // 1000) -> None:
        self._account = identity.account_id
        self._clock_us = clock_us

    @staticmethod
    def action(form: bytes) -> str:
        """The operation that a form asks for.

        Raises:
            ValidationFailed: it is not a form.
        """
        return _fields(form).get("Action", "")

    def call(self, caller: Caller, form: bytes, identifier: bytes) -> Answer:
        """Carry out one request.

        Raises:
            ValidationFailed, UnknownOperation
        """
        fields = _fields(form)
        action = fields.get("Action", "")
        match action:
            case "GetCallerIdentity":
                result = self._identity(caller)
            case "AssumeRole":
                result = self._assume_role(caller, fields)
            case _:
                raise UnknownOperation(f"STS operation {action!r} is not supported; GetCallerIdentity and AssumeRole are")
        metadata = f"<ResponseMetadata><RequestId>{identifier.decode()}</RequestId></ResponseMetadata>"
        body = f'<{action}Response xmlns="{NAMESPACE}"><{action}Result>{result}</{action}Result>{metadata}</{action}Response>'
        return Answer(200, body.encode(), XML)

    def _identity(self, caller: Caller) -> str:
        if caller.session is not None:
            user_id, arn = self._assumed(caller.session.role, caller.session.name)
        elif caller.name == ROOT:
            user_id, arn = self._account, f"arn:aws:iam::{self._account}:root"
        else:
            assert caller.key is not None, "only the root has no key"
            user_id, arn = caller.key.access_key_id, f"arn:aws:iam::{self._account}:user/{caller.name}"
        return _tags(Arn=arn, UserId=user_id, Account=self._account)

    def _assume_role(self, caller: Caller, fields: dict[str, str]) -> str:
        role, name, duration_s = _wanted(fields)
        expires_at_us = self._clock_us() // 1_000_000 * 1_000_000 + duration_s * 1_000_000
        if caller.session is not None:  # else a session could prolong itself for ever
            expires_at_us = min(expires_at_us, caller.session.expires_at_us)
        credentials = issue(caller.key or _anybody(), role=role, name=name, expires_at_us=expires_at_us)
        user_id, arn = self._assumed(role, name)
        return (
            f"<AssumedRoleUser>{_tags(AssumedRoleId=user_id, Arn=arn)}</AssumedRoleUser>"
            f"<Credentials>{_credentials(credentials)}</Credentials>"
        )

    def _assumed(self, role: str, name: str) -> tuple[str, str]:
        """User id and ARN of a session."""
        number = base64.b32encode(hashlib.sha256(role.encode()).digest()[:10]).decode()
        return f"FSRA{number}:{name}", f"arn:aws:sts::{self._account}:assumed-role/{role.rpartition('/')[2]}/{name}"


def _anybody() -> AccessKey:
    """What a store without keys derives sessions from. Nobody will check them."""
    return AccessKey(ROOT, ROOT, secrets.token_hex(), Right.ADMIN, 0)


def _wanted(fields: dict[str, str]) -> tuple[str, str, int]:
    """Role, session name and duration of an AssumeRole."""
    expected = "no such member: a session has the right of the key that assumes the role"
    faults = [Fault(name, expected) for name in fields if name.partition(".")[0] in _REFUSED]
    role = fields.get("RoleArn", "")
    if _ROLE_ARN.fullmatch(role) is None or len(role) > _ROLE_ARN_CHARS_MAX:
        faults.append(Fault("RoleArn", "the ARN of a role, arn:aws:iam::<account>:role/<name>", role or None))
    name = fields.get("RoleSessionName", "")
    if _SESSION_NAME.fullmatch(name) is None:
        faults.append(Fault("RoleSessionName", "2 to 64 letters, digits and _+=,.@-", name or None))
    text = fields.get("DurationSeconds", str(DURATION_S_DEFAULT))
    duration_s = int(text) if re.fullmatch(r"[0-9]{1,6}", text) else 0
    if not DURATION_S_MIN <= duration_s <= DURATION_S_MAX:
        faults.append(Fault("DurationSeconds", f"{DURATION_S_MIN} to {DURATION_S_MAX}", text))
    if faults:
        raise ValidationFailed(faults)
    return role, name, duration_s


def _credentials(credentials: SessionCredentials) -> str:
    return _tags(
        AccessKeyId=credentials.access_key_id,
        SecretAccessKey=credentials.secret_access_key,
        SessionToken=credentials.token,
        Expiration=format_iso(credentials.session.expires_at_us),
    )


def _tags(**values: str) -> str:
    return "".join(f"<{name}>{escape(value)}</{name}>" for name, value in values.items())


def _fields(form: bytes) -> dict[str, str]:
    try:
        return dict(parse_qsl(form.decode(), keep_blank_values=True, errors="strict", max_num_fields=FIELDS_MAX))
    except ValueError as error:
        raise ValidationFailed.one("body", f"a form of at most {FIELDS_MAX} fields in UTF-8 ({error})") from error
