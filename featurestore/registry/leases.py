"""Leases: which process works on which shard, as rows of the registry's database.

They spread work and keep two processes from doing the same; what rests on nobody else doing it must be fenced by other means.
Times are those of the processes' clocks, so machines whose clocks differ by much share badly, and nothing worse.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Final

import sqlalchemy as sa

from featurestore.registry.sql import SqlRegistry, lease_table, worker_table


def _now_us() -> int:
    return time.time_ns() // 1000


MICROSECONDS: Final = 1_000_000


class SqlLeases:
    """Leases in the database of a registry. An owner is any text that no other process uses."""

    def __init__(self, registry: SqlRegistry, *, clock_us: Callable[[], int] = _now_us) -> None:
        self._registry = registry
        self._clock_us = clock_us

    def claim(self, kind: str, owner: str, parts: Iterable[int], ttl_s: float) -> frozenset[int]:
        """Take those of `parts` that are free, expired or held by `owner`, for `ttl_s` from now; returns these.

        Raises:
            StoreUnavailable
        """
        with self._registry.transaction() as connection:
            return self._claim(connection, kind, owner, parts, ttl_s)

    def share(self, kind: str, owner: str, parts: int, ttl_s: float) -> frozenset[int]:
        """A fair share of the parts 0 to `parts` - 1, held for `ttl_s` from now: at most as many as an even split among the
        owners that called this within their `ttl_s` gives. Call it again and again, to renew and to hand over to newcomers.

        Raises:
            StoreUnavailable
        """
        now_us = self._clock_us()
        with self._registry.transaction() as connection:
            connection.execute(worker_table.delete().where(worker_table.c.expires_at_us <= now_us))
            mine = (worker_table.c.kind == kind) & (worker_table.c.owner == owner)
            expires_at_us = now_us + int(ttl_s * MICROSECONDS)
            if not connection.execute(worker_table.update().where(mine).values(expires_at_us=expires_at_us)).rowcount:
                connection.execute(worker_table.insert().values(kind=kind, owner=owner, expires_at_us=expires_at_us))
            count = sa.select(sa.func.count()).where(worker_table.c.kind == kind)
            quota = -(-parts // int(connection.execute(count).scalar_one()))
            held = set(
                connection.execute(
                    sa.select(lease_table.c.part).where(lease_table.c.kind == kind, lease_table.c.owner == owner)
                ).scalars()
            )
            surplus = sorted(held)[quota:]
            connection.execute(
                lease_table.delete().where(
                    lease_table.c.kind == kind, lease_table.c.owner == owner, lease_table.c.part.in_(surplus)
                )
            )
            kept = sorted(held)[:quota]
            taken = set(
                connection.execute(
                    sa.select(lease_table.c.part).where(
                        lease_table.c.kind == kind, lease_table.c.owner != owner, lease_table.c.expires_at_us > now_us
                    )
                ).scalars()
            )
            free = [part for part in range(parts) if part not in taken and part not in kept and part not in surplus]
            return self._claim(connection, kind, owner, [*kept, *free[: quota - len(kept)]], ttl_s)

    def release(self, kind: str, owner: str) -> None:
        """Give back all that `owner` holds. Idempotent.

        Raises:
            StoreUnavailable
        """
        with self._registry.transaction() as connection:
            for table in (lease_table, worker_table):
                connection.execute(table.delete().where(table.c.kind == kind, table.c.owner == owner))

    def _claim(self, connection: sa.Connection, kind: str, owner: str, parts: Iterable[int], ttl_s: float) -> frozenset[int]:
        now_us = self._clock_us()
        values = {"owner": owner, "expires_at_us": now_us + int(ttl_s * MICROSECONDS)}
        claimed = set()
        for part in parts:
            this = (lease_table.c.kind == kind) & (lease_table.c.part == part)
            row = connection.execute(sa.select(lease_table.c.owner, lease_table.c.expires_at_us).where(this)).one_or_none()
            if row is None:
                try:
                    with connection.begin_nested():
                        connection.execute(lease_table.insert().values(kind=kind, part=part, **values))
                except sa.exc.IntegrityError:  # somebody else took it since we looked
                    continue
            elif row.owner == owner or row.expires_at_us <= now_us:
                connection.execute(lease_table.update().where(this).values(**values))
            else:
                continue
            claimed.add(part)
        return frozenset(claimed)
