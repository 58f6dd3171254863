"""Clients that leave before they have their answers, and clients that do not read them, at the lane and at the plain route.

How far a request has come when its client leaves is a matter of time, so the two stores are not compared here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lane.harness import FINAL, FINAL_ANSWER, Client, LoopThread, Server, masked, open_pair, request, statuses
from tests.lane.test_http_edges import BATCH_GET, GET, KINDS, get, put
from tests.lane.world import STANDARD, TEXTS, World, encoded, query
from tests.redis_server import wait_until

MIB = 1 << 20
LONG = request("GET", f"/FeatureGroup/{STANDARD}?{query('long')}", None, f"X-Filler: {'x' * 4000}")
"""A request whose answer is 90 times as long."""
LONG_BYTES = len(TEXTS["long"])
KERNEL_BYTES_MAX = 32 * MIB
"""What the kernel holds of one connection at most: its largest buffers of a sender and a receiver are well below."""
BUFFER_BYTES_MAX = 2 * MIB
"""What a server may hold of answers that are not read: what it stops writing at, and the answer that goes beyond."""
TRIES = 20

kinds = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def apart(loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Two embedded stores that need not stay the same."""
    with open_pair(loop, tmp_path_factory.mktemp("apart")) as pair:
        world = World(pair)
        world.fill()
        yield world


class TestLeaving:
    """Nothing is written of half a request, a whole one is carried out or not, and the server goes on."""

    @kinds
    @pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.99])
    def test_in_the_middle(self, apart: World, kind: str, share: float) -> None:
        whole = KINDS[kind].replace(b"edge", b"left")
        for before in (b"", GET, BATCH_GET):
            for server in apart.pair.servers:
                with Client(server) as client:
                    client.send(before + whole[: int(len(whole) * share)])
        assert b'{"Record"' not in apart.pair.script(get("left"), get("lefts"))
        assert gone(apart)

    def test_behind_a_write(self, apart: World) -> None:
        for server in apart.pair.servers:
            for number in range(TRIES):
                with Client(server) as client:
                    client.send_some(put("written", str(number)) + put("written", f"{number} again"))
            with Client(server) as client:
                assert statuses(client.ask(get("written"))) == [200]
                assert statuses(client.ask(put("written", "at last"))) == [200]
        assert b"at last" in apart.pair.ask(get("written"))
        assert gone(apart)

    def test_with_answers_under_way(self, apart: World) -> None:
        for server in apart.pair.servers:
            for _ in range(TRIES):
                with Client(server) as client:
                    client.send_some(LONG * 50)
        apart.pair.script(GET)
        assert gone(apart)


def gone(world: World) -> bool:
    """Whether the servers forget connections that are closed."""
    return bool(wait_until(lambda: not any(server.connections for server in world.pair.servers), "all connections are closed"))


class TestHalfClosed:
    """uvicorn ends the connection when the client has ended its half: it gets what is answered by then."""

    @kinds
    def test_answered_before(self, apart: World, kind: str) -> None:
        def talk(client: Client) -> list[bytes]:
            first = client.ask(KINDS[kind])
            client.half_close()
            return [first, client.rest()]

        assert statuses(apart.pair.same(talk)) == [200]

    @kinds
    @pytest.mark.parametrize("at_once", [True, False], ids=["at once", "behind the request"])
    def test_not_yet_answered(self, apart: World, kind: str, at_once: bool) -> None:
        """The whole answer or none; and if the plain route gets to answer, so does the lane."""
        right = apart.pair.ask(KINDS[kind])

        def talk(client: Client) -> bytes:
            if at_once:
                client.send_some(KINDS[kind])
            else:
                client.send(KINDS[kind])
            client.half_close()
            return client.rest()

        found = {server.name: {apart.pair.talked(server, talk) for _ in range(TRIES)} for server in apart.pair.servers}
        assert found["lane"] <= {right, b""}
        assert found["plain"] <= {right, b""}
        assert right in found["lane"] or right not in found["plain"]

    @kinds
    def test_within_a_request(self, apart: World, kind: str) -> None:
        whole = KINDS[kind]
        for at in (1, len(whole) // 2, len(whole) - 1):

            def talk(client: Client, at: int = at) -> bytes:
                client.send(whole[:at])
                client.half_close()
                return client.rest()

            assert apart.pair.same(talk) == b""


class TestNotReading:
    """A client that asks for much and reads nothing."""

    @pytest.fixture(params=["lane", "plain"])
    def server(self, apart: World, request: pytest.FixtureRequest) -> Server:
        return next(server for server in apart.pair.servers if server.name == request.param)

    @pytest.mark.parametrize("kind", ["long", "put and long", "health and long"])
    def test_the_server_stops_reading_and_answering(self, server: Server, kind: str) -> None:
        piece = {"long": LONG, "put and long": put("unread", "x") + LONG, "health and long": request("GET", "/health") + LONG}[
            kind
        ]
        with Client(server, receive_buffer_bytes=4096) as client:
            taken = flood(client, piece)
            assert taken < KERNEL_BYTES_MAX, "the server went on reading"
            (connection,) = server.connections
            assert connection.transport.get_write_buffer_size() < BUFFER_BYTES_MAX
            whole = client.answer() if kind == "long" else client.answer() + client.answer()
            assert statuses(whole)[-1] == 200
            assert whole.count(b"x" * LONG_BYTES) == 1
            for _ in range(50):
                assert statuses(client.answer()) == [200]
            client.turn()
            assert connection.transport.get_write_buffer_size() < BUFFER_BYTES_MAX
        with Client(server) as client:
            assert client.goodbye().endswith(FINAL_ANSWER)

    def test_others_are_served_meanwhile(self, server: Server) -> None:
        with Client(server, receive_buffer_bytes=4096) as stuck:
            flood(stuck, LONG)
            with Client(server) as client:
                assert statuses(client.ask(GET) + client.ask(put("meanwhile", "x"))) == [200, 200]

    def test_a_body_that_is_not_asked_for(self, server: Server) -> None:
        """Of a request behind others that are not answered, little is read before its turn comes."""
        with Client(server, receive_buffer_bytes=4096) as client:
            head = f"PUT /FeatureGroup/{STANDARD} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999\r\n\r\n".encode()
            script = LONG * 100 + head
            while script:
                script = script[client.send_some(script) :]
                client.turn()
            assert flood(client, b" " * MIB) < KERNEL_BYTES_MAX

    def test_the_server_stops_with_it(self, loop: LoopThread, tmp_path: Path) -> None:
        """A client that reads in the end gets all of it, though the server was told to stop."""

        def talked(server: Server) -> bytes:
            with Client(server, receive_buffer_bytes=4096) as client:
                client.send_some(LONG)
                client.turn()
                server.begin_stop()
                found = client.answer()
                assert client.rest() == b""
                return masked(found)

        with open_pair(loop, tmp_path) as pair:
            world = World(pair)
            world.fill()
            lane, plain = (talked(server) for server in pair.servers)
        assert lane == plain
        assert b"x" * LONG_BYTES in lane


def flood(client: Client, piece: bytes) -> int:
    """Send the piece again and again until nothing more is taken; returns how many bytes were."""
    taken = refused = 0
    rest = b""
    while refused < 100 and taken < 2 * KERNEL_BYTES_MAX:
        rest = rest or piece
        count = client.send_some(rest)
        taken += count
        rest = rest[count:]
        refused = 0 if count else refused + 1
        if not count:
            client.turn()
    return taken


@pytest.mark.parametrize("kind", ["long", "batch"])
def test_a_slow_reader_gets_everything_in_order(apart: World, kind: str) -> None:
    batch = request("POST", "/BatchGetRecord", encoded({"Identifiers": [
        {"FeatureGroupName": STANDARD, "RecordIdentifiersValueAsString": [*TEXTS, "nobody"]}]}))  # fmt: skip
    asked = [LONG if kind == "long" else batch, GET, get("long escapes"), put("slow", "x"), request("GET", "/health")] * 3
    digests = []
    for server in apart.pair.servers:
        with Client(server, receive_buffer_bytes=65_536) as client:
            script, received = b"".join(asked) + FINAL, bytearray()
            while script:
                count = client.send_some(script)
                script = script[count:]
                if not count:
                    received += client.read_some(50_000)
            received += client.rest()
        found = masked(bytes(received))
        assert statuses(found) == [200] * (len(asked) + 1)
        digests.append(hashlib.sha256(found).hexdigest())
    assert digests[0] == digests[1]
