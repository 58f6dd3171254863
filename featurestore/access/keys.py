"""Access keys: who may call the service, kept in the registry's database.

Signature Version 4 needs the secret itself on both sides, so it is stored as it is. The database file of an embedded store is
closed to other users of the machine before the first one is written.
"""

from __future__ import annotations

import base64
import re
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import sqlalchemy as sa

from featurestore.errors import AccessKeyInUse, AccessKeyNotFound, LimitExceeded, ValidationFailed
from featurestore.registry.protocol import WantedIdentity
from featurestore.registry.sql import SqlRegistry, access_key_table
from featurestore.settings import Settings

KEYS_MAX: Final = 1000
"""Live access keys; all of them are in memory in every process."""
NAME: Final = re.compile(r"[A-Za-z0-9_+=,.@-]{1,64}")
"""What a user of AWS may be called: it is a part of ARNs."""
ROOT: Final = "root"
"""Name of the key in the settings, as the owner of an AWS account is called."""


class Right(StrEnum):
    """What a key may do; each includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"

    def covers(self, needed: Right) -> bool:
        return _RANKS[self] >= _RANKS[needed]


_RANKS: Final = {right: rank for rank, right in enumerate(Right)}


@dataclass(frozen=True, slots=True)
class AccessKey:
    """A key as it is kept. The secret is empty in lists, and of a revoked key forgotten.

    Attributes:
        created_at_us: microseconds since 1970; 0 for the key of the settings.
    """

    name: str
    access_key_id: str
    secret_access_key: str = field(repr=False)
    right: Right
    created_at_us: int


@dataclass(frozen=True, slots=True)
class Keys:
    """All keys at one moment.

    Attributes:
        live: by access key id.
        required: whether requests must be signed: there is a key, or there was one. A store whose last key was revoked
            stays closed.
    """

    live: Mapping[str, AccessKey] = field(repr=False)
    required: bool


def _now_us() -> int:
    return time.time_ns() // 1000


class SqlKeys:
    """Access keys in the database of a registry, and the one of the settings. Safe for several threads and processes."""

    def __init__(self, registry: SqlRegistry, settings: Settings, *, clock_us: Callable[[], int] = _now_us) -> None:
        self._registry = registry
        self._clock_us = clock_us
        self._root = root_key(settings)

    def create(self, name: str, right: Right) -> AccessKey:
        """A new key with a random id and secret. The answer is the only one that shows the secret.

        Raises:
            ValidationFailed: the name is none.
            AccessKeyInUse: a live key has that name.
            LimitExceeded: there are KEYS_MAX keys.
            StoreUnavailable
        """
        if NAME.fullmatch(name) is None or name == ROOT:
            raise ValidationFailed.one("name", f"1 to 64 letters, digits and _+=,.@- other than {ROOT!r}", name)
        key = AccessKey(name, _new_id(), secrets.token_urlsafe(30), right, self._clock_us())
        self._registry.close_to_others()
        with self._registry.transaction() as connection:
            table = access_key_table
            live = connection.execute(sa.select(sa.func.count()).where(table.c.live == 1)).scalar_one()
            if live >= KEYS_MAX:
                raise LimitExceeded("access keys", KEYS_MAX)
            row = {
                "access_key_id": key.access_key_id,
                "name": name,
                "live": 1,
                "secret": key.secret_access_key,
                "access_right": right.value,
                "created_at_us": key.created_at_us,
            }
            try:
                with connection.begin_nested():
                    connection.execute(table.insert().values(**row))
            except sa.exc.IntegrityError as error:
                raise AccessKeyInUse(name) from error
        return key

    def list(self) -> Sequence[AccessKey]:
        """Live keys by name, that of the settings first, all without their secrets.

        Raises:
            StoreUnavailable
        """
        table = access_key_table
        columns = (table.c.name, table.c.access_key_id, table.c.access_right, table.c.created_at_us)
        with self._registry.transaction() as connection:
            rows = connection.execute(sa.select(*columns).where(table.c.live == 1).order_by(table.c.name)).all()
        root = [] if self._root is None else [AccessKey(ROOT, self._root.access_key_id, "", self._root.right, 0)]
        return root + [AccessKey(row.name, row.access_key_id, "", Right(row.access_right), row.created_at_us) for row in rows]

    def revoke(self, name: str) -> None:
        """End a key and every session of it, and forget its secret.

        Raises:
            AccessKeyNotFound, StoreUnavailable
        """
        table = access_key_table
        with self._registry.transaction() as connection:
            revoked = {"live": None, "secret": "", "revoked_at_us": self._clock_us()}
            statement = table.update().where(table.c.name == name, table.c.live == 1).values(**revoked)
            if not connection.execute(statement).rowcount:
                raise AccessKeyNotFound(name)

    def read(self) -> Keys:
        """All keys as they are now, with their secrets.

        Raises:
            StoreUnavailable
        """
        table = access_key_table
        live = {} if self._root is None else {self._root.access_key_id: self._root}
        with self._registry.reading() as connection:
            ever = connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()
            for row in connection.execute(table.select().where(table.c.live == 1)):
                if row.access_key_id not in live:
                    key = AccessKey(row.name, row.access_key_id, row.secret, Right(row.access_right), row.created_at_us)
                    live[row.access_key_id] = key
        return Keys(live, required=ever > 0 or self._root is not None)


def root_key(settings: Settings) -> AccessKey | None:
    """The key that the settings name, with the right admin."""
    if settings.admin_access_key_id is None:
        return None
    secret = settings.admin_secret_access_key
    assert secret is not None, "the settings have both or none"
    return AccessKey(ROOT, settings.admin_access_key_id, secret.get_secret_value(), Right.ADMIN, 0)


@contextmanager
def open_keys(settings: Settings) -> Iterator[SqlKeys]:
    """The keys of a store and nothing else of it; a store that does not exist is created.

    Raises:
        SettingsInvalid, StoreUnavailable
    """
    registry = SqlRegistry(settings.registry_location, WantedIdentity(settings.account_id, settings.region, settings.shards))
    try:
        yield SqlKeys(registry, settings)
    finally:
        registry.close()


def has_keys(settings: Settings) -> bool:
    """Whether requests to a store must be signed, found out without creating the store.

    Raises:
        SettingsInvalid, StoreUnavailable
    """
    if root_key(settings) is not None:
        return True
    url = sa.make_url(settings.registry_location)
    if url.get_backend_name() == "sqlite" and url.database and not Path(url.database).exists():
        return False
    with open_keys(settings) as keys:
        return keys.read().required


def _new_id() -> str:
    """20 characters like those of AWS, with a start of our own, so that nobody takes one for a key of AWS."""
    return "FSKA" + base64.b32encode(secrets.token_bytes(10)).decode()
