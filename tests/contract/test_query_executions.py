"""What the registry keeps for queries, on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.athena.executions import DIED, Execution, ExecutionNotFound, ExecutionState, Request, SqlExecutions
from featurestore.athena.statements import StatementType
from featurestore.athena.tables import ExternalColumn, ExternalTable, SqlTables
from featurestore.athena.translate import QueryInvalid, TableRef
from featurestore.errors import ValidationFailed
from featurestore.registry.sql import SqlRegistry, execution_table, external_table
from tests.contract.test_registry import Opener, opener

__all__ = ["opener"]  # a fixture of this module too


class Clock:
    def __init__(self) -> None:
        self.now_us = 1_000_000

    def __call__(self) -> int:
        return self.now_us


def execution(submitted_at_us: int, query: str = "SELECT 1") -> Execution:
    execution_id = str(uuid.uuid4())
    request = Request(query, "db", "AwsDataCatalog", f"s3://bucket/{execution_id}")
    return Execution(execution_id, request, StatementType.DML, ExecutionState.QUEUED, submitted_at_us, f"{request.output}.csv")


@pytest.fixture
def registry(opener: Opener) -> SqlRegistry:
    registry = opener()
    with registry.transaction() as connection:
        for table in (execution_table, external_table):
            connection.execute(table.delete())
    return registry


def test_executions_of_a_process_that_died_fail_after_their_lease(registry: SqlRegistry) -> None:
    clock = Clock()
    dead = SqlExecutions(registry, "dead", lease_s=30, clock_us=clock)
    alive = SqlExecutions(registry, "alive", lease_s=30, clock_us=clock)
    queued, running, other = (dead.add(execution(n), None) for n in range(3))
    assert dead.change(running.execution_id, lambda found: found) is not None
    mine = alive.add(execution(3), None)
    clock.now_us += 29_000_000
    assert alive.get(queued.execution_id).state is ExecutionState.QUEUED
    assert alive.renew() == {mine.execution_id}
    clock.now_us += 2_000_000
    assert alive.get(queued.execution_id).state is ExecutionState.FAILED
    assert alive.get(running.execution_id).failure == DIED
    assert [found.state for found in alive.page("primary", after=None, limit=9)] == [
        ExecutionState.QUEUED,
        *[ExecutionState.FAILED] * 3,
    ]
    # It was not dead but slow: what it has now is nobody's.
    assert dead.renew() == frozenset()
    assert dead.change(other.execution_id, lambda found: found.ended(ExecutionState.SUCCEEDED, 1)) is None
    assert alive.get(other.execution_id).state is ExecutionState.FAILED


def test_the_oldest_that_have_ended_are_forgotten(registry: SqlRegistry) -> None:
    executions = SqlExecutions(registry, "one", kept_max=3)
    kept = [executions.add(execution(n, f"SELECT {n}"), f"token-{n}" * 6) for n in range(3)]
    executions.cancel(kept[1].execution_id)
    kept.append(executions.add(execution(3), None))
    assert [found.execution_id for found in executions.page("primary", after=None, limit=9)] == [
        kept[n].execution_id for n in (3, 2, 0)
    ]
    again = executions.add(execution(4, "SELECT 1"), "token-1" * 6)
    assert again.request.query == "SELECT 1"


def test_an_execution_comes_back_as_it_was_left(registry: SqlRegistry) -> None:
    executions = SqlExecutions(registry, "one")
    kept = executions.add(execution(5), None)
    assert executions.get(kept.execution_id) == kept
    done = executions.change(kept.execution_id, lambda found: found.ended(ExecutionState.SUCCEEDED, 9))
    assert done is not None
    assert executions.get(kept.execution_id) == done
    executions.cancel(kept.execution_id)
    assert executions.get(kept.execution_id) == done
    assert executions.change(kept.execution_id, lambda found: found.ended(ExecutionState.FAILED, 9)) is None
    with pytest.raises(ExecutionNotFound):
        executions.get("nosuch")
    with pytest.raises(ExecutionNotFound):
        executions.cancel("nosuch")


def test_of_many_with_one_token_one_is_begun(registry: SqlRegistry, opener: Opener) -> None:
    others = [SqlExecutions(opener(), f"owner-{n}") for n in range(4)]
    token = uuid.uuid4().hex
    with ThreadPoolExecutor(4) as pool:
        begun = list(pool.map(lambda executions: executions.add(execution(1), token), others))
    assert len({found.execution_id for found in begun}) == 1
    with pytest.raises(ValidationFailed, match="ClientRequestToken"):
        others[0].add(execution(1, "SELECT 2"), token)
    assert len(others[0].page("primary", after=None, limit=9)) == 1


def test_external_tables(registry: SqlRegistry) -> None:
    tables = SqlTables(registry)
    table = ExternalTable(
        "db", "t", (ExternalColumn("x", "int"),), "bucket", "prefix/", quote="`", header_lines=1, created_at_us=5
    )
    tables.create(table, if_not_exists=False)
    ref = TableRef("db", "t")
    assert tables.get(ref) == table
    with pytest.raises(QueryInvalid, match="already exists"):
        tables.create(table, if_not_exists=False)
    tables.create(ExternalTable("db", "t", (), "other", ""), if_not_exists=True)
    assert tables.get(ref) == table
    assert (tables.names("db"), tables.names("other")) == (["t"], [])
    assert tables.drop(ref)
    assert not tables.drop(ref)
    assert tables.get(ref) is None
