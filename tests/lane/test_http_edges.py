"""HTTP itself, through the lane and through the plain route: pieces, pipelines, framing, and what is not quite HTTP."""

from __future__ import annotations

import gzip
import random
import re
from collections.abc import Callable, Iterator, Sequence

import pytest

from tests.lane.harness import CONTINUE, FINAL, NOT_HTTP, Client, request, statuses
from tests.lane.world import EPOCH, STANDARD, T1, T2, World, encoded, query, record

MIB = 1 << 20
FINALS = 30
"""Last requests, so that bytes are left for a body that says it is longer than it is, and the connection ends all the same."""
GET = request("GET", f"/FeatureGroup/{STANDARD}?{query('one')}")
PUT = request("PUT", f"/FeatureGroup/{STANDARD}", encoded({"Record": record(id="edge", at=T1, note="\u00e4 'quoted'")}))
BATCH_GET = request(
    "POST",
    "/BatchGetRecord",
    encoded({"Identifiers": [{"FeatureGroupName": STANDARD, "RecordIdentifiersValueAsString": ["one", "x"]}]}),
)
BATCH_WRITE = request(
    "POST", "/BatchWriteRecord", encoded({"Entries": [{"FeatureGroupName": STANDARD, "Record": record(id="edges", at=T1)}]})
)
HEALTH = request("GET", "/health")
LIST = request("POST", "/", b'{"NameContains":"nothing has it"}', "X-Amz-Target: SageMaker.ListFeatureGroups")
WRONG = request("PUT", f"/FeatureGroup/{STANDARD}", b"{")
KINDS = {"get": GET, "put": PUT, "batch get": BATCH_GET, "batch write": BATCH_WRITE}
"""One request of each kind that the lane may answer."""
ALL = {**KINDS, "health": HEALTH, "list": LIST, "wrong": WRONG}

kinds = pytest.mark.parametrize("kind", KINDS)


def put(identifier: str, note: str, *headers: str) -> bytes:
    return request("PUT", f"/FeatureGroup/{STANDARD}", encoded({"Record": record(id=identifier, at=T1, note=note)}), *headers)


def get(identifier: str, *headers: str) -> bytes:
    return request("GET", f"/FeatureGroup/{STANDARD}?{query(identifier)}", None, *headers)


@pytest.fixture(scope="module", autouse=True)
def same_effects(twins: World) -> Iterator[None]:
    """Whatever was sent, nothing was written by one only."""
    yield
    twins.pair.same_effects()


class TestPieces:
    @kinds
    def test_every_place_to_split(self, twins: World, kind: str) -> None:
        whole = KINDS[kind]

        def talk(client: Client) -> list[bytes]:
            found = []
            for at in range(1, len(whole)):
                client.send(whole[:at], whole[at:])
                found.append(client.answer())
            return [*found, client.goodbye()]

        received = twins.pair.same(talk)
        assert statuses(received) == [200] * len(whole)

    def test_byte_by_byte(self, twins: World) -> None:
        script = b"".join(ALL.values())
        received = twins.pair.script(*(script[at : at + 1] for at in range(len(script))))
        assert statuses(received) == [200, 200, 200, 200, 200, 200, 400, 200]

    @pytest.mark.parametrize("seed", range(10))
    def test_pieces_across_requests(self, twins: World, seed: int) -> None:
        schedule = random.Random(seed)
        script = b"".join(schedule.choices(list(ALL.values()), k=12))
        cuts = sorted(schedule.sample(range(1, len(script)), 25))
        pieces = [script[start:end] for start, end in zip([0, *cuts], [*cuts, len(script)], strict=True)]
        assert len(statuses(twins.pair.script(*pieces))) == 13

    @kinds
    def test_line_ends_before_and_after(self, twins: World, kind: str) -> None:
        for before, after in ((b"\r\n", b""), (b"\n", b""), (b"\r\n\r\n\n", b"\r\n"), (b"", b"\r\n\r\n"), (b"\r", b"")):
            self.at_once_and_apart(twins, before + KINDS[kind] + after + KINDS[kind])

    def at_once_and_apart(self, twins: World, script: bytes) -> None:
        for pieces in ([script], [script[at : at + 11] for at in range(0, len(script), 11)]):
            broken(twins, *pieces)


class TestPipelines:
    @pytest.mark.parametrize("apart", [False, True], ids=["at once", "one by one"])
    def test_reads_see_the_writes_before_them(self, twins: World, apart: bool) -> None:
        script = []
        for number in range(20):
            script += [put(f"seen {number % 3}", f"{number} {apart}"), get(f"seen {number % 3}")]
        received = twins.pair.script(*(script if apart else [b"".join(script)]))
        assert statuses(received) == [200] * 41
        assert re.findall(rb'"note","ValueAsString":"(\d+) ', received) == [b"%d" % number for number in range(20)]

    @pytest.mark.parametrize("seed", range(10))
    def test_answers_are_in_order_on_all_routes(self, twins: World, seed: int) -> None:
        """Each asks for something else, some in threads of their own."""
        schedule = random.Random(seed)
        script = []
        for number in range(60):
            match schedule.randrange(6):
                case 0:
                    script.append(get(f"nobody {number}"))
                case 1:
                    script.append(put(f"order {seed}", str(number)))
                case 2:
                    script.append(get(f"order {seed}"))
                case 3:
                    script.append(request("GET", f"/v1/nope/{number}"))
                case 4:
                    script.append(LIST)
                case _:
                    script.append(request("GET", f"/FeatureGroup/unknown-{number}?{query('x')}"))
        assert len(statuses(twins.pair.script(b"".join(script)))) == 61

    def test_many_at_once(self, twins: World) -> None:
        received = twins.pair.script(GET * 2000 + PUT * 100 + BATCH_GET * 500 + HEALTH + GET)
        assert statuses(received) == [200] * 2603

    def test_nothing_behind_a_request_to_close_is_answered(self, twins: World) -> None:
        for kind in KINDS.values():
            closing = kind.replace(b"Host: localhost", b"Host: localhost\r\nConnection: close", 1)
            for script in (closing + GET, GET + closing + GET, HEALTH + closing + HEALTH, closing + b"rubbish", closing + PUT):
                received = twins.pair.same(lambda client, script=script: sent(client, script))
                assert received.count(b"connection: close") == 1

    def test_broken_bytes_behind_good_requests(self, twins: World) -> None:
        """Of writes at once with such bytes it is a matter of time whether they are carried out."""
        for kind, good in ALL.items():
            for bad in (b"rubbish\r\n\r\n", b"\x16\x03\x01\x02\x00", b"GET / HTTP/9.9\r\n\r\n", b"\0" * 100):
                if kind not in ("put", "batch write"):
                    broken(twins, good + bad)
                    broken(twins, good * 3 + bad + good)

                def talk(client: Client, good: bytes = good, bad: bytes = bad) -> list[bytes]:
                    client.send(good)
                    first = client.answer()
                    client.send(bad)
                    return [first, client.rest()]

                assert twins.pair.same(talk).endswith(NOT_HTTP)


def sent(client: Client, *pieces: bytes) -> bytes:
    """Everything that a server sends for these pieces, which make it end the connection."""
    client.send(*pieces)
    return client.rest()


def broken(twins: World, *pieces: bytes, finals: int = FINALS) -> bytes:
    """What both answer to pieces that may be no HTTP."""

    def talk(client: Client) -> bytes:
        client.send(*pieces)
        return client.goodbye(finals)

    return twins.pair.alike(talk)


def with_header(*lines: str | bytes) -> Callable[[bytes], bytes]:
    """More header lines, before the others."""
    added = b"".join(b"\r\n" + (line.encode("latin-1") if isinstance(line, str) else line) for line in lines)
    return lambda whole: whole.replace(b"\r\nHost", added + b"\r\nHost", 1)


def with_line(pattern: bytes, replacement: bytes) -> Callable[[bytes], bytes]:
    """Another request line."""

    def change(whole: bytes) -> bytes:
        line, end, rest = whole.partition(b"\r\n")
        changed, count = re.subn(pattern, replacement, line, count=1)
        assert count, line
        return changed + end + rest

    return change


def with_length(*lines: bytes) -> Callable[[bytes], bytes]:
    """Other lines in place of the length; `N` in them stands for it."""

    def change(whole: bytes) -> bytes:
        head, _, body = whole.partition(b"\r\n\r\n")
        kept = [line for line in head.split(b"\r\n") if not line.startswith(b"Content-Length")]
        return b"\r\n".join([*kept, *(line.replace(b"N", b"%d" % len(body)) for line in lines), b"", body])

    return change


def in_chunks(
    *headers: bytes, size: int = 9, extension: bytes = b"", end: bytes = b"0\r\n\r\n", name: bytes = b"Transfer-Encoding: chunked"
) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        head, _, body = with_length(name, *headers)(whole).partition(b"\r\n\r\n")
        pieces = [body[at : at + size] for at in range(0, len(body), size)]
        chunks = b"".join(b"%x%b\r\n%b\r\n" % (len(piece), extension, piece) for piece in pieces)
        return head + b"\r\n\r\n" + chunks + end

    return change


def in_head(old: bytes, new: bytes, count: int = -1) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        head, end, body = whole.partition(b"\r\n\r\n")
        return (head + end).replace(old, new, count) + body

    return change


def names_in(case: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    def change(whole: bytes) -> bytes:
        head, end, body = whole.partition(b"\r\n\r\n")
        return re.sub(rb"\r\n[A-Za-z-]+:", lambda found: case(found[0]), head) + end + body

    return change


VARIANTS: dict[str, Callable[[bytes], bytes]] = {
    "names in lower case": names_in(bytes.lower),
    "names in upper case": names_in(bytes.upper),
    "bare line feeds": in_head(b"\r\n", b"\n"),
    "one bare line feed": in_head(b"\r\n", b"\n", 1),
    "bare carriage returns": in_head(b"\r\n", b"\r"),
    "doubled carriage returns": in_head(b"\r\n", b"\r\r\n", 1),
    "a folded header": with_header("X-Folded: a\r\n b"),
    "a header folded with a tab": with_header("X-Folded: a\r\n\tb"),
    "a fold in the first header": in_head(b"\r\nHost", b"\r\n Host"),
    "a space before the colon": with_header("X-Space : a"),
    "a space within a name": with_header("X Space: a"),
    "no name": with_header(": a"),
    "no colon": with_header("X-Nothing"),
    "no space behind the colon": in_head(b": ", b":"),
    "much space around a value": in_head(b": localhost", b": \t  localhost \t "),
    "an empty value": with_header("X-Empty:", "X-Empty: "),
    "a NUL in a value": with_header("X-Nul: a\0b"),
    "a control character in a value": with_header("X-Control: a\x01b"),
    "a delete in a value": with_header("X-Control: a\x7fb"),
    "bytes beyond ASCII in a value": with_header(b"X-Bytes: \xc3\xa4\xff"),
    "bytes beyond ASCII in a name": with_header(b"X-\xc3\xa4: a"),
    "signs in a name": with_header("X!#$%&'*+.^_`|~9: a"),
    "wrong signs in a name": with_header("X(a): a"),
    "no host": in_head(b"Host: localhost\r\n", b""),
    "a thousand headers": with_header(*(f"X-Header-{number}: {number}" for number in range(1000))),
    "a long header": with_header(f"X-Long: {'x' * 100_000}"),
    "a very long header": with_header(f"X-Long: {'x' * 1_000_000}"),
    "a long name": with_header(f"X-{'x' * 100_000}: x"),
    "HTTP/1.0": with_line(rb"1\.1$", b"1.0"),
    "HTTP/1.0, to be kept": lambda whole: with_header("Connection: keep-alive")(with_line(rb"1\.1$", b"1.0")(whole)),
    "HTTP/1.0 in chunks": lambda whole: in_chunks()(with_line(rb"1\.1$", b"1.0")(whole)),
    "HTTP/0.9": with_line(rb" HTTP/1\.1$", b""),
    "HTTP/0.9 by name": with_line(rb"1\.1$", b"0.9"),
    "HTTP/1.2": with_line(rb"1\.1$", b"1.2"),
    "HTTP/2.0": with_line(rb"1\.1$", b"2.0"),
    "HTTP/1.10": with_line(rb"1\.1$", b"1.10"),
    "another protocol": with_line(rb"HTTP/", b"RTSP/"),
    "a protocol in lower case": with_line(rb"HTTP", b"http"),
    "a space behind the version": with_line(rb"$", b" "),
    "a space before the method": with_line(rb"^", b" "),
    "two spaces behind the method": with_line(rb" ", b"  "),
    "a tab behind the method": with_line(rb" ", b"\t"),
    "two spaces behind the target": with_line(rb" HTTP", b"  HTTP"),
    **{
        f"method {name}": with_line(rb"^\w+", name.encode())
        for name in ("HEAD", "OPTIONS", "DELETE", "PATCH", "TRACE", "CONNECT", "BREW")
    },
    **{
        f"method {name}": with_line(rb"^\w+", name.encode())
        for name in ("get", "Get", "PRI", "M-SEARCH", "PROPFIND", "QUERY", "GETT")
    },
    "GET": with_line(rb"^\w+", b"GET"),
    "POST": with_line(rb"^\w+", b"POST"),
    "PUT": with_line(rb"^\w+", b"PUT"),
    "an absolute target": with_line(rb" /", b" http://localhost/"),
    "an absolute target elsewhere": with_line(rb" /", b" http://example.com:99/"),
    "an absolute target with a user": with_line(rb" /", b" http://user:word@localhost/"),
    "an absolute target in capitals": with_line(rb" /", b" HTTP://LOCALHOST/"),
    "an absolute target of TLS": with_line(rb" /", b" https://localhost/"),
    "an absolute target of another kind": with_line(rb" /", b" ftp://localhost/"),
    "a target without a slash": with_line(rb" /", b" "),
    "a target with two slashes": with_line(rb" /", b" //"),
    "a host as target": with_line(rb" \S+ ", b" localhost:80 "),
    "a star as target": with_line(rb" \S+ ", b" * "),
    "bytes beyond ASCII in the target": with_line(rb" HTTP", b"\xc3\xa4 HTTP"),
    "a control character in the target": with_line(rb" HTTP", b"\x01 HTTP"),
    "a NUL in the target": with_line(rb" HTTP", b"\0 HTTP"),
    "a fragment in the target": with_line(rb" HTTP", b"#part HTTP"),
    "a query in the target": with_line(rb" HTTP", b"?x=y HTTP"),
    "a backslash in the target": with_line(rb" HTTP", rb"\\\\ HTTP"),
    "dots in the target": with_line(rb" /", b" /./"),
    "a long target": with_line(rb" HTTP", b"x" * 60_000 + b" HTTP"),
    "a very long target": with_line(rb" HTTP", b"x" * 70_000 + b" HTTP"),
    "a long query": with_line(rb" HTTP", b"?" + b"x=y&" * 50_000 + b" HTTP"),
    **{
        f"connection {value!r}": with_header(f"Connection: {value}")
        for value in (
            "close",
            "Close",
            "keep-alive",
            "keep-alive, close",
            "close, keep-alive",
            "Keep-Alive, TE",
            "closed",
            "x,close",
            "",
        )
    },
    "two connection headers": with_header("Connection: keep-alive", "Connection: close"),
    "the old connection header": with_header("Proxy-Connection: close", "Keep-Alive: timeout=5"),
    "an upgrade to websockets": with_header(
        "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
    ),
    "an upgrade to HTTP/2": with_header(
        "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"
    ),
    "an upgrade without a connection header": with_header("Upgrade: websocket"),
    "a connection header without an upgrade": with_header("Connection: upgrade"),
    "an upgrade and an end": with_header("Connection: close, upgrade", "Upgrade: x"),
    "no length": with_length(),
    "the length twice": with_length(b"Content-Length: N", b"Content-Length: N"),
    "two lengths": with_length(b"Content-Length: N", b"Content-Length: 5"),
    "two lengths, the wrong one first": with_length(b"Content-Length: 5", b"Content-Length: N"),
    "a list of lengths": with_length(b"Content-Length: N, N"),
    "a length with a sign": with_length(b"Content-Length: +N"),
    "a negative length": with_length(b"Content-Length: -N"),
    "a hexadecimal length": with_length(b"Content-Length: 0xN"),
    "a length with a point": with_length(b"Content-Length: N.0"),
    "a length with zeros": with_length(b"Content-Length: 000N"),
    "a length in spaces": with_length(b"Content-Length:   N\t "),
    "a length with a space within": with_length(b"Content-Length: 1 N"),
    "an empty length": with_length(b"Content-Length:"),
    "a length of 0": with_length(b"Content-Length: 0"),
    "a length too short": with_length(b"Content-Length: 1"),
    "a length too long": with_length(b"Content-Length: 1000"),
    "a length beyond 64 bits": with_length(b"Content-Length: 99999999999999999999"),
    "chunks": in_chunks(),
    "chunks of a byte": in_chunks(size=1),
    "one chunk": in_chunks(size=1 << 20),
    "chunks with extensions": in_chunks(extension=b';a="b";c'),
    "chunks with wrong extensions": in_chunks(extension=b" \x01"),
    "chunks with a trailer": in_chunks(end=b"0\r\nX-Trailer: a\r\n\r\n"),
    "chunks with a trailer of a length": in_chunks(
        end=b"0\r\nContent-Length: 5\r\nHost: example.com\r\nExpect: 100-continue\r\n\r\n"
    ),
    "chunks without an end": in_chunks(end=b""),
    "chunks with a wrong end": in_chunks(end=b"0\r\n\r"),
    "chunks with a wrong size": in_chunks(end=b"xyz\r\n\r\n"),
    "chunks with a huge size": in_chunks(end=b"fffffffffffffffff\r\n\r\n"),
    "chunks with a size in capitals": in_chunks(size=0xA, end=b"00000\r\n\r\n"),
    "chunks with bare line feeds": lambda whole: in_chunks()(whole).replace(b"\r\n9\r\n", b"\r\n9\n"),
    "chunks in capitals": in_chunks(name=b"TRANSFER-ENCODING: CHUNKED"),
    "chunks and a length": in_chunks(b"Content-Length: 5"),
    "a length and chunks": in_chunks(b"Transfer-Encoding: chunked", name=b"Content-Length: 5"),
    "chunks and a length of 0": in_chunks(b"Content-Length: 0"),
    "chunks twice": in_chunks(b"Transfer-Encoding: chunked"),
    "chunks twice in one line": in_chunks(name=b"Transfer-Encoding: chunked, chunked"),
    "chunks behind something else": in_chunks(name=b"Transfer-Encoding: gzip, chunked"),
    "chunks before something else": in_chunks(name=b"Transfer-Encoding: chunked, gzip"),
    "chunks by another name": in_chunks(name=b"Transfer-Encoding: xchunked"),
    "chunks with a parameter": in_chunks(name=b"Transfer-Encoding: chunked;q=1"),
    "chunks in strange space": in_chunks(name=b"Transfer-Encoding: \x0bchunked"),
    "an identity encoding": with_length(b"Transfer-Encoding: identity", b"Content-Length: N"),
    "an empty encoding": with_length(b"Transfer-Encoding:", b"Content-Length: N"),
    "an encoding in a name with a space": with_length(b"Transfer-Encoding : chunked", b"Content-Length: N"),
    "trailers are welcome": with_header("TE: trailers", "Trailer: X-A"),
    "it waits": with_header("Expect: 100-continue"),
    "it waits in capitals": with_header("EXPECT: 100-CONTINUE"),
    "it waits twice": with_header("Expect: 100-continue", "Expect: 100-continue"),
    "it waits in chunks": lambda whole: in_chunks()(with_header("Expect: 100-continue")(whole)),
    "it waits for something else": with_header("Expect: 200-ok"),
    "it waits in a list": with_header("Expect: 100-continue, x"),
    "it waits and then ends": with_header("Expect: 100-continue", "Connection: close"),
    "it waits in HTTP/1.0": lambda whole: with_header("Expect: 100-continue")(with_line(rb"1\.1$", b"1.0")(whole)),
    "through a proxy": with_header("X-Forwarded-For: 192.0.2.1", "X-Forwarded-Proto: https", "Via: 1.1 x"),
    "another method in a header": with_header("X-HTTP-Method-Override: DELETE", "X-Amz-Target: SageMaker.Search"),
    "a signature that nobody asks for": with_header(
        "Authorization: AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request"
    ),
    "a compressed body": lambda whole: compressed(whole),
    "answers in chunks are welcome": with_header("Accept-Encoding: gzip, br", "TE: chunked"),
    "another origin": with_header("Origin: http://example.com", "Access-Control-Request-Method: PUT"),
    "another host behind the first": with_header("Host: localhost", "Host: example.com"),
    "a host that is not ours": in_head(b"Host: localhost", b"Host: example.com"),
}


def compressed(whole: bytes) -> bytes:
    head, _, body = with_length(b"Content-Encoding: gzip")(whole).partition(b"\r\n\r\n")
    packed = gzip.compress(body)
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(packed) + packed


class TestVariants:
    """Each kind of request in each of these forms: at once, between good ones, and in pieces."""

    @kinds
    @pytest.mark.parametrize("variant", VARIANTS)
    def test_form(self, twins: World, kind: str, variant: str) -> None:
        script = VARIANTS[variant](KINDS[kind])
        broken(twins, GET + script + PUT + GET)

        def talk(client: Client) -> bytes:
            first = client.ask(GET)
            client.send(script)
            return first + client.goodbye(FINALS)

        received = twins.pair.alike(talk)
        assert statuses(received)[0] == 200
        if len(script) < 2000:
            broken(twins, *(script[at : at + 5] for at in range(0, len(script), 5)))


class TestExpectations:
    @kinds
    def test_the_body_follows_when_it_is_asked_for(self, twins: World, kind: str) -> None:
        head, end, body = with_header("Expect: 100-continue")(KINDS[kind]).partition(b"\r\n\r\n")

        def talk(client: Client) -> list[bytes]:
            client.send(head + end)
            found = [client.answer()]
            if body:
                client.send(body)
            return [*found, client.answer(), client.ask(GET), client.goodbye()]

        received = twins.pair.same(talk)
        assert received.startswith(CONTINUE)
        assert statuses(received) == [100, 200, 200, 200]

    def test_a_refused_one_is_not_asked_for_its_body(self, twins: World) -> None:
        head = (
            in_head(b"localhost", b"example.com")(with_header("Expect: 100-continue")(PUT)).partition(b"\r\n\r\n")[0]
            + b"\r\n\r\n"
        )
        for pieces in ([head], [head + FINAL], [head, FINAL]):
            received = twins.pair.same(lambda client, pieces=pieces: sent(client, *pieces))
            assert statuses(received) == [403]
            assert b"connection: close" in received

    @kinds
    def test_a_good_one_behind_it(self, twins: World, kind: str) -> None:
        """What the first one said counts for the first one alone."""
        waiting = with_header("Expect: 100-continue")(KINDS[kind])
        received = twins.pair.script(waiting + GET + waiting + PUT)
        assert received.count(CONTINUE) == 2
        assert statuses(received)[-3:] == [200, 200, 200]

    def test_a_client_that_never_sends_the_body(self, twins: World) -> None:
        head = with_header("Expect: 100-continue")(put("never", "x")).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"

        def talk(client: Client) -> bytes:
            client.send(head)
            return client.answer()

        assert twins.pair.same(talk) == CONTINUE
        assert b"never" not in twins.pair.ask(get("never"))


class TestSizes:
    def test_the_largest_record(self, twins: World) -> None:
        whole = put("largest", "\0" * 350_000)
        assert len(whole) > 2 * MIB
        for step in (len(whole), 65_536, 99_991):
            received = twins.pair.script(*(whole[at : at + step] for at in range(0, len(whole), step)), get("largest"))
            assert statuses(received) == [200, 200, 200]

    @pytest.mark.parametrize(
        ("kind", "size"), [("put", 17 * MIB), ("batch get", 17 * MIB), ("get", 17 * MIB), ("batch write", 65 * MIB)]
    )
    def test_a_body_beyond_the_limit(self, twins: World, kind: str, size: int) -> None:
        """The connection works behind it."""
        head = with_length(b"Content-Length: %d" % size)(KINDS[kind]).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        piece = b" " * MIB

        def talk(client: Client) -> list[bytes]:
            client.send(head, *[piece] * (size // MIB))
            return [client.answer(), client.goodbye()]

        received = twins.pair.same(talk)
        assert statuses(received) == [400, 200]
        assert b"at most" in received

    def test_a_body_beyond_the_limit_in_chunks(self, twins: World) -> None:
        head = with_length(b"Transfer-Encoding: chunked")(PUT).partition(b"\r\n\r\n")[0] + b"\r\n\r\n"
        chunk = b"100000\r\n" + b" " * MIB + b"\r\n"

        def talk(client: Client) -> list[bytes]:
            client.send(head, *[chunk] * 17, b"0\r\n\r\n")
            return [client.answer(), client.goodbye()]

        assert statuses(twins.pair.same(talk)) == [400, 200]

    def test_a_body_at_the_limit(self, twins: World) -> None:
        for size, status in ((16 * MIB, 200), (16 * MIB + 1, 400)):
            body = encoded({"Record": record(id="limit", at=T1)})
            whole = request("PUT", f"/FeatureGroup/{STANDARD}", body + b" " * (size - len(body)))
            assert statuses(twins.pair.ask(whole)) == [status]


class TestInterleaving:
    """Of several connections at once, each keeps to itself."""

    def test_halves_of_requests(self, twins: World) -> None:
        order: Sequence[tuple[int, bytes]] = [
            *((number, whole[: len(whole) // 2]) for number, whole in enumerate(ALL.values())),
            *((number, whole[len(whole) // 2 :]) for number, whole in reversed(list(enumerate(ALL.values())))),
        ]
        found = []
        for server in twins.pair.servers:
            clients = [Client(server) for _ in ALL]
            for number, piece in order:
                clients[number].send(piece)
            found.append([statuses(client.answer()) for client in clients])
            for client in clients:
                client.close()
        assert found[0] == found[1] == [[200]] * 6 + [[400]]

    def test_a_read_behind_a_write_on_another_connection(self, twins: World) -> None:
        for number in range(20):
            note = f"other {number}"
            for server in twins.pair.servers:
                with Client(server) as one, Client(server) as other:
                    assert statuses(one.ask(put("other", note))) == [200]
                    assert note.encode() in other.ask(get("other"))

    def test_numbers_and_times_of_another_group(self, twins: World) -> None:
        body = encoded({"Record": record(id="11", at="1714521600.5", note=T2)})
        twins.pair.script(
            request("PUT", f"/FeatureGroup/{EPOCH}", body) + request("GET", f"/FeatureGroup/{EPOCH}?{query('011')}") + GET
        )
