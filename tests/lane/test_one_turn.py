"""What happens to a connection in the very turn of the loop in which it was answered: the answer still comes, and comes first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.lane.harness import Client, LoopThread, statuses
from tests.lane.test_http_edges import GET
from tests.lane.world import World


def broken(connection: Any) -> None:
    connection.data_received(b"BROKEN\r\n\r\n")


def end_of_stream(connection: Any) -> None:
    """As the loop does it: the transport is closed unless the protocol keeps it open."""
    if not connection.eof_received():
        connection.transport.close()


def stop(connection: Any) -> None:
    connection.shutdown()


def nothing(connection: Any) -> None:
    pass


@pytest.mark.parametrize(
    ("step", "found", "headers"),
    [
        (broken, [200, 400], []),
        (end_of_stream, [200], []),
        (stop, [200], []),
        (nothing, [200], [(b"connection", b"close")]),
    ],
)
def test_the_answer_comes_first(
    loop: LoopThread, twins: World, step: Callable[[Any], None], found: list[int], headers: list[tuple[bytes, bytes]]
) -> None:
    server = twins.pair.lane
    with Client(server) as client:
        assert statuses(client.ask(GET)) == [200]
        (connection,) = [each for each in server.connections if each.client[1] == client.port]

        async def in_one_turn() -> None:
            state = connection.server_state
            before, state.default_headers = state.default_headers, [*state.default_headers, *headers]
            connection.data_received(GET)
            step(connection)
            state.default_headers = before

        loop.run(in_one_turn())
        assert statuses(client.rest()) == found
