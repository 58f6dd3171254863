"""What becomes of queries whose process is killed or stopped, and of those that another process stops."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import boto3

from featurestore.registry.protocol import WantedIdentity
from featurestore.registry.sql import SqlRegistry, execution_table
from tests.service import Service

WAIT_S_MAX = 60.0
LONG = (
    "SELECT count(*) FROM UNNEST(sequence(1, 3000000)) AS a (x) "
    "JOIN UNNEST(sequence(1, 3000000)) AS b (y) ON a.x * 7 % 11 >= b.y * 5 % 11"
)
OUTPUT = {"OutputLocation": "s3://results/of"}


def client_of(service: Service) -> Any:
    return boto3.client("athena", endpoint_url=service.url)


def state(client: Any, execution_id: str) -> str:
    return str(client.get_query_execution(QueryExecutionId=execution_id)["QueryExecution"]["Status"]["State"])


def wait_for(client: Any, execution_id: str, *wanted: str) -> str:
    deadline_s = time.monotonic() + WAIT_S_MAX
    while (found := state(client, execution_id)) not in wanted:
        assert time.monotonic() < deadline_s, found
        time.sleep(0.05)
    return found


def let_leases_run_out(home: Path) -> None:
    """What half a minute would do."""
    registry = SqlRegistry(f"sqlite:///{home / 'registry.db'}", WantedIdentity())
    with registry.transaction() as connection:
        connection.execute(execution_table.update().values(lease_expires_at_us=0))
    registry.close()


def test_a_killed_service_leaves_no_query_running(tmp_path: Path, clean_environment: None) -> None:
    """Another process on the same store says so once the lease is over; a service that is stopped says so itself."""
    home = tmp_path / "home"
    killed = Service(home, tmp_path / "killed.log").start()
    other = Service(home, tmp_path / "other.log").start()
    try:
        client = client_of(killed)
        running = [
            client.start_query_execution(QueryString=LONG, ResultConfiguration=OUTPUT)["QueryExecutionId"] for _ in range(3)
        ]
        wait_for(client, running[0], "RUNNING")
        killed.kill()
        client = client_of(other)
        assert state(client, running[0]) == "RUNNING"
        let_leases_run_out(home)
        for execution_id in running:
            assert wait_for(client, execution_id, "FAILED", "SUCCEEDED") == "FAILED"
        reason = client.get_query_execution(QueryExecutionId=running[0])["QueryExecution"]["Status"]["StateChangeReason"]
        assert "has ended; run it again" in reason
        assert not list((home / "buckets").rglob("*.csv"))
        stopped = client.start_query_execution(QueryString=LONG, ResultConfiguration=OUTPUT)["QueryExecutionId"]
        wait_for(client, stopped, "RUNNING")
        assert other.stop() == 0
        with Service(home, tmp_path / "third.log") as third:
            found = client_of(third).get_query_execution(QueryExecutionId=stopped)["QueryExecution"]["Status"]
            assert found["State"] == "FAILED"
            assert "the service was stopped" in found["StateChangeReason"]
    finally:
        for service in (killed, other):
            if service._process is not None:
                service.kill()


def test_a_query_is_stopped_through_another_process(tmp_path: Path, clean_environment: None) -> None:
    home = tmp_path / "home"
    with Service(home, tmp_path / "one.log") as one, Service(home, tmp_path / "two.log") as two:
        running = client_of(one).start_query_execution(QueryString=LONG, ResultConfiguration=OUTPUT)["QueryExecutionId"]
        wait_for(client_of(one), running, "RUNNING")
        client_of(two).stop_query_execution(QueryExecutionId=running)
        assert state(client_of(one), running) == "CANCELLED"
        assert not list((home / "buckets").rglob("*.csv"))
