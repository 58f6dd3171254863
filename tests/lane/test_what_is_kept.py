"""What the lane keeps of a connection: answers until the end of a turn of the loop, and what its requests have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.lane.harness import Client, LoopThread, request, statuses
from tests.lane.test_http_edges import GET, get, put
from tests.lane.world import STANDARD, World
from tests.redis_server import wait_until


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
        # Right after a pause the keys are read first, and that request takes the plain route.
        wait_until(lambda: statuses(client.ask(GET)) == [200] and connection._usual is not None, "the lane answers it")

        async def in_one_turn() -> None:
            state = connection.server_state
            before, state.default_headers = state.default_headers, [*state.default_headers, *headers]
            connection.data_received(GET)
            step(connection)
            state.default_headers = before

        loop.run(in_one_turn())
        assert statuses(client.rest()) == found


def test_a_body_that_looks_like_the_request_before(twins: World) -> None:
    """It is the body that was announced, and no request, even when it comes by itself."""
    head = request("PUT", f"/FeatureGroup/{STANDARD}", GET).removesuffix(GET)

    def talk(client: Client) -> list[bytes]:
        received = [client.ask(GET)]
        client.send(head)
        client.turn()
        client.send(GET)
        return [*received, client.answer(), client.ask(GET), client.goodbye()]

    assert statuses(twins.pair.same(talk)) == [200, 400, 200, 200]


def test_each_request_has_its_own_retry_token(twins: World) -> None:
    def talk(client: Client) -> list[bytes]:
        written = [("first", "token-1"), ("other", "token-2"), ("third", "token-2"), ("again", "token-1")]
        return [
            answer
            for text, token in written
            for answer in (client.ask(put("retried", text, f"amz-sdk-invocation-id: {token}")), client.ask(get("retried")))
        ]

    received = twins.pair.same(talk)
    assert [text for text in (b"first", b"other", b"third", b"again") for _ in range(received.count(text))] == [
        b"first",
        *[b"other"] * 3,
    ]
