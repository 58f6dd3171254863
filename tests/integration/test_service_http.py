"""HTTP itself: health, documents, HEAD, kept and pipelined connections, and clients that misbehave."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest

from tests.integration.conftest import ANSWER_S_MAX, Http, record

CreateGroup = Callable[..., str]
AT = "2024-05-01T00:00:00Z"
MIB = 1 << 20


@pytest.fixture(scope="module")
def group(create_group: CreateGroup) -> str:
    return create_group()


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_S_MAX) as connection:
        yield connection


def read_answers(connection: socket.socket, methods: list[str]) -> list[tuple[int, bytes]]:
    """(status, body) of the answers to requests of these methods, in order."""
    answers = []
    with connection.makefile("rb") as stream:
        for method in methods:
            # One answer after the other from one buffer: HTTPResponse would read ahead in a buffer of its own.
            status = int(stream.readline().split()[1])
            headers = http.client.parse_headers(stream)
            length = 0 if method == "HEAD" else int(headers["content-length"])
            answers.append((status, stream.read(length)))
    return answers


def get_bytes(path: str, *headers: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", *headers, "", ""]).encode()


def put_bytes(group: str, identifier: str, *headers: str) -> bytes:
    body = json.dumps({"Record": record(id=identifier, at=AT)}).encode()
    length = f"Content-Length: {len(body)}"
    return get_bytes(f"/FeatureGroup/{group}", length, *headers, method="PUT") + body


def alive(http_client: Http) -> bool:
    return http_client.request("GET", "/health").status == 200


def stored(http_client: Http, group: str, identifier: str) -> bool:
    reply = http_client.request("GET", f"/FeatureGroup/{group}?RecordIdentifierValueAsString={identifier}")
    assert reply.status == 200
    return "Record" in reply.json


class TestOperations:
    def test_health(self, http_client: Http) -> None:
        reply = http_client.request("GET", "/health")
        assert (reply.status, reply.json) == (200, {"status": "ok"})

    def test_readiness_counts_what_waits(self, http_client: Http, group: str) -> None:
        reply = http_client.request("GET", "/ready")
        assert reply.status == 200
        assert reply.json["status"] == "ready"
        assert isinstance(reply.json["changes_waiting"], int)
        http_client.request("POST", "/v1/flush")
        assert http_client.request("GET", "/ready").json == {"status": "ready", "changes_waiting": 0}

    def test_documentation_page(self, http_client: Http) -> None:
        reply = http_client.request("GET", "/docs")
        assert reply.status == 200
        assert reply.headers["content-type"].startswith("text/html")
        assert b"/openapi.json" in reply.body

    def test_the_openapi_document_has_every_route(self, http_client: Http) -> None:
        document = http_client.request("GET", "/openapi.json").json
        routes = {(method, path) for path, item in document["paths"].items() for method in item}
        assert routes >= {
            ("put", "/FeatureGroup/{FeatureGroupName}"),
            ("get", "/FeatureGroup/{FeatureGroupName}"),
            ("delete", "/FeatureGroup/{FeatureGroupName}"),
            ("post", "/BatchGetRecord"),
            ("post", "/v1/groups/{name}/records"),
            ("post", "/v1/training-sets"),
            ("post", "/v1/sql"),
            ("post", "/v1/flush"),
            ("get", "/v1/groups"),
            ("get", "/health"),
            ("get", "/ready"),
        }
        answer = document["paths"]["/BatchGetRecord"]["post"]["responses"]["200"]
        assert answer["content"].keys() == {"application/json", "application/vnd.apache.arrow.stream"}
        for path in ("/v1/sql", "/v1/training-sets"):
            schema = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
            assert schema["properties"]


class TestConnections:
    def test_one_connection_carries_many_requests(self, http_client: Http, group: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", http_client.port, timeout=ANSWER_S_MAX)
        connection.connect()
        local = connection.sock.getsockname()
        target = {"X-Amz-Target": "SageMaker.DescribeFeatureGroup"}
        for method, path, body, headers, status in [
            ("PUT", f"/FeatureGroup/{group}", json.dumps({"Record": record(id="kept", at=AT)}), {}, 200),
            ("GET", f"/FeatureGroup/{group}?RecordIdentifierValueAsString=kept", None, {}, 200),
            ("PUT", f"/FeatureGroup/{group}", "{", {}, 400),
            ("POST", "/", json.dumps({"FeatureGroupName": group}), target, 200),
            ("POST", "/", "{", target, 400),
            ("GET", "/nope", None, {}, 404),
            ("GET", "/v1/groups", None, {}, 200),
            ("HEAD", "/health", None, {}, 200),
            ("DELETE", f"/FeatureGroup/{group}?RecordIdentifierValueAsString=kept&EventTime={AT}", None, {}, 200),
        ] * 5:
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == status
            assert connection.sock.getsockname() == local
        connection.close()

    @pytest.mark.parametrize(
        "path", ["/health", "/ready", "/nope", "/FeatureGroup/nope?RecordIdentifierValueAsString=x", "/BatchGetRecord", "/v1/sql"]
    )
    def test_head_has_no_body(self, http_client: Http, path: str) -> None:
        with connected(http_client.port) as connection:
            connection.sendall(get_bytes(path, method="HEAD") + get_bytes("/health"))
            (head, _), (status, body) = read_answers(connection, ["HEAD", "GET"])
        assert head in (200, 404)
        assert (head == 200) is (path in ("/health", "/ready"))
        assert (status, body) == (200, b'{"status":"ok"}')

    def test_pipelined_requests_are_answered_in_order(self, http_client: Http, group: str) -> None:
        with connected(http_client.port) as connection:
            connection.sendall(
                put_bytes(group, "pipelined")
                + get_bytes(f"/FeatureGroup/{group}?RecordIdentifierValueAsString=pipelined")
                + get_bytes("/nope")
                + get_bytes(f"/FeatureGroup/{group}?RecordIdentifierValueAsString=absent")
                + get_bytes("/health")
            )
            answers = read_answers(connection, ["PUT", "GET", "GET", "GET", "GET"])
        assert [status for status, _ in answers] == [200, 200, 404, 200, 200]
        assert json.loads(answers[1][1]) == {"Record": record(id="pipelined", at=AT)}
        assert answers[3][1] == b"{}"

    def test_a_request_in_many_pieces(self, http_client: Http, group: str) -> None:
        request = put_bytes(group, "pieces")
        with connected(http_client.port) as connection:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for start in range(0, len(request), 7):
                connection.sendall(request[start : start + 7])
            assert read_answers(connection, ["PUT"]) == [(200, b"")]
        assert stored(http_client, group, "pieces")

    def test_a_chunked_body(self, http_client: Http, group: str) -> None:
        body = json.dumps({"Record": record(id="chunked", at=AT)}).encode()
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:10], body[10:]))
        head = get_bytes(f"/FeatureGroup/{group}", "Transfer-Encoding: chunked", method="PUT")
        with connected(http_client.port) as connection:
            connection.sendall(head + chunks + b"0\r\n\r\n" + get_bytes("/health"))
            assert [status for status, _ in read_answers(connection, ["PUT", "GET"])] == [200, 200]
        assert stored(http_client, group, "chunked")

    def test_a_client_that_waits_to_be_asked_for_the_body(self, http_client: Http, group: str) -> None:
        head, _, body = put_bytes(group, "continued", "Expect: 100-continue").partition(b"\r\n\r\n")
        with connected(http_client.port) as connection:
            connection.sendall(head + b"\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
            connection.sendall(body)
            assert read_answers(connection, ["PUT"]) == [(200, b"")]

    @pytest.mark.parametrize("request_line", ["GET /health HTTP/1.0", "GET /health HTTP/1.1\r\nConnection: close"])
    def test_a_connection_that_is_not_to_be_kept(self, http_client: Http, request_line: str) -> None:
        with connected(http_client.port) as connection:
            connection.sendall(f"{request_line}\r\nHost: 127.0.0.1\r\n\r\n".encode())
            with connection.makefile("rb") as stream:
                answer = stream.read()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert answer.endswith(b'{"status":"ok"}')

    @pytest.mark.parametrize(
        ("path", "method", "size"),
        [("/FeatureGroup/x", "PUT", 17 * MIB), ("/", "POST", 9 * MIB), ("/v1/sql", "POST", 3 * MIB)],
        ids=["records", "control plane", "native"],
    )
    def test_after_a_body_too_large_the_connection_still_works(
        self, http_client: Http, path: str, method: str, size: int
    ) -> None:
        with connected(http_client.port) as connection:
            connection.sendall(get_bytes(path, f"Content-Length: {size}", method=method) + b" " * size)
            connection.sendall(get_bytes("/health"))
            answers = read_answers(connection, [method, "GET"])
        assert [status for status, _ in answers] == [400, 200]
        assert b"at most" in answers[0][1]

    def test_many_connections_at_once(self, http_client: Http, group: str) -> None:
        def write(number: int) -> int:
            body = {"Record": record(id=f"parallel-{number}", at=AT)}
            return http_client.request("PUT", f"/FeatureGroup/{group}", body).status

        with ThreadPoolExecutor(32) as threads:
            assert set(threads.map(write, range(200))) == {200}
        rows = http_client.sql(f"SELECT count(*), count(DISTINCT id) FROM \"{group}\" WHERE id LIKE 'parallel-%'")
        assert rows == [[200, 200]]


class TestMisbehaviour:
    @pytest.mark.parametrize("path", ["/FeatureGroup/{group}", "/", "/v1/sql", "/v1/groups/{group}/records"])
    def test_a_client_that_leaves_within_its_body(self, http_client: Http, group: str, path: str) -> None:
        method = "PUT" if "Feature" in path else "POST"
        body = json.dumps({"Record": record(id="left", at=AT)}).encode()
        head = get_bytes(path.format(group=group), f"Content-Length: {len(body) + 1}", method=method)
        with connected(http_client.port) as connection:
            connection.sendall(head + body)
        assert alive(http_client)
        assert not stored(http_client, group, "left")

    def test_a_client_that_does_not_wait_for_the_answer(self, http_client: Http, group: str) -> None:
        with connected(http_client.port) as connection:
            connection.sendall(get_bytes("/v1/groups") + get_bytes("/openapi.json"))
        assert alive(http_client)

    @pytest.mark.parametrize(
        "request_bytes",
        [
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(100),
            b"BREW /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET\r\n\r\n",
            b"GET /health HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nBad Header: 1\r\n\r\n",
            b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: a\x00b\r\n\r\n",
            b"GET /FeatureGroup/\xff\xfe?RecordIdentifierValueAsString=x HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"GET /v1/\xc3\xa4 HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
            b"PUT /FeatureGroup/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: -1\r\n\r\n{}",
            b"PUT /FeatureGroup/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2, 3\r\n\r\n{}",
            b"PUT /FeatureGroup/x HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{} ",
            b"PUT /FeatureGroup/x HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"PUT /FeatureGroup/x HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n",
        ],
        ids=[
            "TLS",
            "an unknown method",
            "no path",
            "an unknown version",
            "a space in a header name",
            "a NUL in a header",
            "raw bytes in a record path",
            "raw bytes in a native path",
            "a negative length",
            "a list of lengths",
            "two lengths",
            "a length and chunks",
            "a bad chunk",
        ],
    )
    def test_what_is_not_http_is_refused(self, http_client: Http, request_bytes: bytes) -> None:
        with connected(http_client.port) as connection:
            connection.sendall(request_bytes)
            connection.shutdown(socket.SHUT_WR)
            with connection.makefile("rb") as stream:
                answer = stream.read()
        assert answer[:12] in (b"", b"HTTP/1.1 400", b"HTTP/1.1 404"), answer
        assert alive(http_client)

    def test_a_request_id_is_never_given_twice(self, http_client: Http) -> None:
        replies: list[Any] = [http_client.request("GET", "/nope") for _ in range(10)]
        assert len({reply.headers["x-amzn-requestid"] for reply in replies}) == 10
