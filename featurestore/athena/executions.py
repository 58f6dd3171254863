"""Query executions: what was asked, how far it is and what came of it, as rows of the registry's database.

The process that took a query runs it and renews its lease. When that process dies, whoever looks at the execution after
the lease has run out finds it FAILED: no client waits for ever. Times are those of the processes' clocks, as with
`registry.leases`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

import msgspec
import sqlalchemy as sa

from featurestore.athena.results import ResultColumn
from featurestore.athena.statements import StatementType
from featurestore.decoding import decode_json
from featurestore.errors import FeatureStoreError, StoreCorrupt, ValidationFailed
from featurestore.registry.sql import SqlRegistry, execution_table

EXECUTIONS_KEPT_MAX: Final = 10_000
"""Beyond it the oldest that have ended are forgotten; their results stay in the bucket."""

LEASE_S: Final = 30.0
MICROSECONDS: Final = 1_000_000


class ExecutionState(StrEnum):
    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def active(self) -> bool:
        return self in _ACTIVE


_ACTIVE: Final = frozenset({ExecutionState.QUEUED, ExecutionState.RUNNING})
_ACTIVE_VALUES: Final = tuple(state.value for state in _ACTIVE)


class ErrorCategory:
    """Whose fault a failure is, as Athena counts them."""

    SYSTEM: Final = 1
    USER: Final = 2
    OTHER: Final = 3


@dataclass(frozen=True, slots=True)
class Request:
    """What a client asked for.

    Attributes:
        query: the statement, character by character.
        database: of unqualified tables.
        output: where the result goes, `s3://bucket/key` of its file without the extension.
        parameters: literals for the `?` of the statement.
        encryption: kept and shown; the bucket's storage decides what is encrypted.
    """

    query: str
    database: str
    catalog: str
    output: str
    workgroup: str = "primary"
    parameters: tuple[str, ...] = ()
    encryption: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Failure:
    reason: str
    category: int
    retryable: bool = False


@dataclass(frozen=True, slots=True)
class Execution:
    """
    Attributes:
        submitted_at_us, started_at_us, completed_at_us: microseconds since 1970.
        planning_us: of the time between start and end, what went by before the engine began.
        engine_us: what went by while the engine ran and its rows were written.
        scanned_bytes: size of the files that the engine was given.
        rows: of the result.
        columns: of the result; none unless it is a `.csv`.
    """

    execution_id: str
    request: Request
    type: StatementType
    state: ExecutionState
    submitted_at_us: int
    output_location: str
    failure: Failure | None = None
    started_at_us: int | None = None
    completed_at_us: int | None = None
    planning_us: int = 0
    engine_us: int = 0
    scanned_bytes: int = 0
    rows: int = 0
    columns: tuple[ResultColumn, ...] = field(default=())

    def ended(self, state: ExecutionState, at_us: int, failure: Failure | None = None) -> Execution:
        return replace(self, state=state, completed_at_us=at_us, failure=failure)


class ExecutionNotFound(FeatureStoreError):
    """No query execution has that id."""

    code = "InvalidRequestException"

    def __init__(self, execution_id: str) -> None:
        super().__init__(f"QueryExecution {execution_id} was not found")


DIED: Final = Failure("the process that ran the query has ended; run it again", ErrorCategory.SYSTEM, retryable=True)


def _now_us() -> int:
    return time.time_ns() // 1000


class SqlExecutions:
    """Executions in the database of a registry. All raise StoreUnavailable. An owner is any text no other process uses."""

    def __init__(
        self,
        registry: SqlRegistry,
        owner: str,
        *,
        lease_s: float = LEASE_S,
        kept_max: int = EXECUTIONS_KEPT_MAX,
        clock_us: Callable[[], int] = _now_us,
    ) -> None:
        self._registry = registry
        self._owner = owner
        self._lease_us = int(lease_s * MICROSECONDS)
        self._kept_max = kept_max
        self._clock_us = clock_us
        self.lease_s = lease_s

    def add(self, execution: Execution, token: str | None) -> Execution:
        """Keep a new execution, owned by this process; or the one that was begun with the same token.

        Raises:
            ValidationFailed: that one asked for something else.
        """
        with self._registry.transaction() as connection:
            statement = execution_table.insert().values(
                execution_id=execution.execution_id,
                token=token,
                state=execution.state.value,
                submitted_at_us=execution.submitted_at_us,
                owner=self._owner,
                lease_expires_at_us=self._clock_us() + self._lease_us,
                document=msgspec.json.encode(execution),
            )
            try:
                with connection.begin_nested():
                    connection.execute(statement)
            except sa.exc.IntegrityError:
                same = execution_table.c.token == token
                earlier = _decode(connection.execute(sa.select(execution_table.c.document).where(same)).scalar_one())
                if replace(earlier.request, output="") != replace(execution.request, output=""):
                    raise ValidationFailed.one(
                        "ClientRequestToken", "a token that no other query was started with", token
                    ) from None
                return earlier
            self._forget_oldest(connection)
        return execution

    def get(self, execution_id: str) -> Execution:
        """
        Raises:
            ExecutionNotFound
        """
        with self._registry.reading() as connection:
            row = connection.execute(execution_table.select().where(_this(execution_id))).one_or_none()
        if row is None:
            raise ExecutionNotFound(execution_id)
        if row.state in _ACTIVE_VALUES and row.lease_expires_at_us <= self._clock_us():
            self._fail_abandoned()
            return self.get(execution_id)
        return _decode(row.document)

    def page(self, workgroup: str, *, after: tuple[int, str] | None, limit: int) -> list[Execution]:
        """The executions of a workgroup, newest first, behind the one submitted then and with that id."""
        self._fail_abandoned()
        order = (execution_table.c.submitted_at_us, execution_table.c.execution_id)
        statement = sa.select(execution_table.c.document).order_by(*(column.desc() for column in order))
        found: list[Execution] = []
        with self._registry.reading() as connection:
            while len(found) < limit:
                rows = connection.execute(
                    (statement if after is None else statement.where(sa.tuple_(*order) < sa.tuple_(*after))).limit(limit)
                ).all()
                page = [_decode(row.document) for row in rows]
                found += [execution for execution in page if execution.request.workgroup == workgroup]
                if len(rows) < limit:
                    break
                after = (page[-1].submitted_at_us, page[-1].execution_id)
        return found[:limit]

    def change(self, execution_id: str, change: Callable[[Execution], Execution]) -> Execution | None:
        """Change an execution that this process owns and that has not ended; None if it is no such one (any more)."""
        return self._change(execution_id, change, execution_table.c.owner == self._owner)

    def cancel(self, execution_id: str) -> None:
        """Make an execution CANCELLED unless it has ended, whoever owns it; its owner notices when it renews its leases.

        Raises:
            ExecutionNotFound
        """
        self.get(execution_id)
        reason = Failure("Query cancelled by user", ErrorCategory.USER)
        self._change(execution_id, lambda found: found.ended(ExecutionState.CANCELLED, self._clock_us(), reason), sa.true())

    def renew(self) -> frozenset[str]:
        """Renew the leases of what this process owns and has not ended; the ids of these."""
        mine = (execution_table.c.owner == self._owner) & execution_table.c.state.in_(_ACTIVE_VALUES)
        with self._registry.transaction() as connection:
            connection.execute(execution_table.update().where(mine).values(lease_expires_at_us=self._clock_us() + self._lease_us))
            return frozenset(connection.execute(sa.select(execution_table.c.execution_id).where(mine)).scalars())

    def _change(
        self, execution_id: str, change: Callable[[Execution], Execution], condition: sa.ColumnElement[bool]
    ) -> Execution | None:
        with self._registry.transaction() as connection:
            active = _this(execution_id) & execution_table.c.state.in_(_ACTIVE_VALUES) & condition
            row = connection.execute(sa.select(execution_table.c.document).where(active).with_for_update()).one_or_none()
            if row is None:
                return None
            changed = change(_decode(row.document))
            connection.execute(execution_table.update().where(active).values(**_values(changed)))
            return changed

    def _fail_abandoned(self) -> None:
        now_us = self._clock_us()
        abandoned = execution_table.c.state.in_(_ACTIVE_VALUES) & (execution_table.c.lease_expires_at_us <= now_us)
        ids: Sequence[str]
        with self._registry.reading() as connection:
            ids = connection.execute(sa.select(execution_table.c.execution_id).where(abandoned)).scalars().all()
        for execution_id in ids:
            self._change(execution_id, lambda found: found.ended(ExecutionState.FAILED, now_us, DIED), abandoned)

    def _forget_oldest(self, connection: sa.Connection) -> None:
        count = connection.execute(sa.select(sa.func.count()).select_from(execution_table)).scalar_one()
        if count > self._kept_max:
            oldest = (
                sa.select(execution_table.c.execution_id)
                .where(execution_table.c.state.not_in(_ACTIVE_VALUES))
                .order_by(execution_table.c.submitted_at_us)
                .limit(count - self._kept_max)
            )
            ids = connection.execute(oldest).scalars().all()
            connection.execute(execution_table.delete().where(execution_table.c.execution_id.in_(ids)))


def _this(execution_id: str) -> sa.ColumnElement[bool]:
    return execution_table.c.execution_id == execution_id


def _values(execution: Execution) -> dict[str, object]:
    return {"state": execution.state.value, "document": msgspec.json.encode(execution)}


def _decode(document: bytes) -> Execution:
    try:
        return decode_json(document, Execution)
    except msgspec.MsgspecError as error:
        raise StoreCorrupt("registry", f"query execution: {error}") from error
