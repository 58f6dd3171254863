"""Signed requests through the lane and through the plain route of one store with access keys."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import pytest

from api.door import KEYS_S_MAX
from featurestore.access import sigv4
from featurestore.access.keys import ROOT, AccessKey, Right
from tests.integration.test_signing import BAD, GOOD, GROUP, UNSIGNED, Case, Signer
from tests.lane.harness import CONTINUE, FINAL_ANSWER, Client, LoopThread, Pair, open_pair, request, statuses
from tests.lane.world import ADMIN, T1, encoded, group, query, raw, record, sign
from tests.redis_server import wait_until
from tests.signing import Sent

ONE = query("k")
READ = request("GET", f"/FeatureGroup/{GROUP}?{ONE}")
PUT = request("PUT", f"/FeatureGroup/{GROUP}", encoded({"Record": record(id="k", at=T1, note="unsigned")}))


@pytest.fixture(scope="module")
def pair(loop: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    keys = {"admin_access_key_id": ADMIN[0], "admin_secret_access_key": ADMIN[1]}
    with open_pair(loop, tmp_path_factory.mktemp("signatures"), shared=True, **keys) as pair:
        pair.plain.store.create(group(GROUP))
        yield pair


@pytest.fixture(scope="module")
def signer(pair: Pair) -> Signer:
    store = pair.plain.store
    keys = {ROOT: AccessKey(ROOT, *ADMIN, Right.ADMIN, 0)}
    keys |= {right.value: store.keys.create(right.value, right) for right in Right}
    keys["revoked"] = store.keys.create("revoked", Right.ADMIN)
    store.keys.revoke("revoked")
    signer = Signer("http://localhost:8080", keys)
    for server in (pair.lane, pair.plain):
        with Client(server) as client:
            for right in Right:
                asked = as_bytes(signer.get(by=right.value))
                wait_until(partial(answers, client, asked, 200), "it knows the keys")
    return signer


def answers(client: Client, request: bytes, status: int) -> bool:
    return statuses(client.ask(request)) == [status]


def asked(pair: Pair, sent: Sent) -> bytes:
    """What both answer."""
    with Client(pair.lane) as lane, Client(pair.plain) as plain:
        return pair.same_of((lane, plain), [as_bytes(sent)])


def as_bytes(sent: Sent) -> bytes:
    """The bytes of a request; with a header that says so, the body in pieces."""
    if (b"transfer-encoding", b"chunked") not in sent.request.headers:
        return raw(sent)
    pieces = [sent.body[start : start + 7] for start in range(0, len(sent.body), 7)]
    return raw(sent.altered(body=b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in [*pieces, b""])), with_length=False)


def of_records(cases: list[Case]) -> list[Case]:
    """Those whose requests are to the record API; found out with a signer of nobody."""
    nobody = AccessKey("nobody", "nobody", "a secret of nobody", Right.READ, 0)
    signer = Signer("http://localhost:8080", dict.fromkeys((ROOT, "read", "write", "admin", "revoked"), nobody))
    return [case for case in cases if case.make(signer).request.path.startswith((b"/FeatureGroup/", b"/Batch"))]


CASES = [*of_records(GOOD), *of_records(UNSIGNED), *of_records(BAD)]


@pytest.mark.parametrize("case", CASES, ids=[f"{case.status} {case}" for case in CASES])
def test_answer(pair: Pair, signer: Signer, case: Case) -> None:
    received = pair.ask(as_bytes(case.make(signer)))
    assert statuses(received) == [case.status]
    if case.code is not None:
        assert f"\r\nx-amzn-errortype: {case.code}\r\n".encode() in received


def test_there_are_enough() -> None:
    assert len(CASES) > 50


BATCH_GET = encoded({"Identifiers": [{"FeatureGroupName": GROUP, "RecordIdentifiersValueAsString": ["k", "\u00fc"]}]})
BATCH_WRITE = encoded({"Entries": [{"FeatureGroupName": GROUP, "Record": record(id="b", at=T1)}]})


@pytest.mark.parametrize(
    ("method", "target", "body", "needed"),
    [
        ("GET", f"/FeatureGroup/{GROUP}?{ONE}", b"", Right.READ),
        ("POST", "/BatchGetRecord", BATCH_GET, Right.READ),
        ("PUT", f"/FeatureGroup/{GROUP}", encoded({"Record": record(id="k", at=T1)}), Right.WRITE),
        ("POST", "/BatchWriteRecord", BATCH_WRITE, Right.WRITE),
    ],
)
class TestEachOperation:
    @pytest.mark.parametrize("right", Right)
    def test_rights(self, pair: Pair, signer: Signer, method: str, target: str, body: bytes, needed: Right, right: Right) -> None:
        path, _, text = target.partition("?")
        sent = signer(method, path, by=right.value, query=text, body=body)
        assert statuses(pair.ask(raw(sent))) == [200 if right.covers(needed) else 403]

    def test_a_changed_byte(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        """Anywhere in the head: it is refused by both in the same words, unless it is in what is not signed."""
        whole = raw(sign(method, target, body))
        version, length = whole.index(b" HTTP/1.1\r\n"), whole.index(b"content-length: ")
        for at in range(0, whole.index(b"\r\n\r\n"), 7):
            broken = whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]

            def talk(client: Client, broken: bytes = broken) -> bytes:
                client.send(broken)
                return client.goodbye(finals=10)

            received = pair.alike(talk)
            assert statuses(received)[0] != 200 or version < at < version + 11 or at > length, broken

    def test_a_changed_body(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        changed = raw(sign(method, target, body).altered(body=body[:-1] + b"\n"))
        assert statuses(pair.ask(changed)) == [403]
        for promised in (
            hashlib.sha256(body).hexdigest(),
            hashlib.sha256(b"other").hexdigest(),
            "UNSIGNED-PAYLOAD",
            "",
            "x" * 64,
        ):
            sent = sign(method, target, body, headers={"X-Amz-Content-SHA256": promised})
            pair.ask(raw(sent))
            pair.ask(raw(sent.altered(body=body + b" ")))

    def test_unsigned(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        unsigned = raw(sign(method, target, body).without_headers(b"authorization"))
        for host in (b"localhost", b"example.com"):
            assert statuses(pair.ask(unsigned.replace(b"host: localhost", b"host: " + host))) == [403]

    def test_no_host(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        assert statuses(pair.ask(raw(sign(method, target, body).without_headers(b"host")))) in ([400], [403])

    def test_headers_twice(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        sent = sign(method, target, body)
        for name, value in sent.request.headers:
            twice = sent.altered(headers=[*sent.request.headers, (name, value)])
            pair.ask(raw(twice))
            pair.ask(raw(sent.altered(headers=[(name, b"other"), *sent.request.headers])))

    def test_spellings(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        sent = sign(method, target, body)
        authorization = sent.header(b"authorization")
        for old, new in (
            (b", ", b","),
            (b", ", b" ,  "),
            (b"AWS4-HMAC-SHA256 ", b"AWS4-HMAC-SHA256  "),
            (b"AWS4", b"aws4"),
            (b"", b"\t"),
        ):
            pair.ask(raw(sent.with_headers((b"authorization", authorization.replace(old, new, 1)))))

    def test_it_waits_with_its_body(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        """Let in, it is asked for the body; refused, the connection ends, as its body would be taken for a request."""
        sent = sign(method, target, body, headers={"Expect": "100-continue"})
        wrong = sent.with_headers((b"authorization", sent.header(b"authorization")[:-64] + b"0" * 64))
        hashed = sign(
            method, target, body, headers={"Expect": "100-continue", "X-Amz-Content-SHA256": hashlib.sha256(body).hexdigest()}
        )
        hashed_wrong = hashed.with_headers((b"authorization", hashed.header(b"authorization")[:-64] + b"0" * 64))
        for item, asked_for in (
            (sent, True),
            (wrong, True),
            (hashed, True),
            (hashed_wrong, False),
            (sent.without_headers(b"authorization"), False),
        ):
            head, _, rest = raw(item).partition(b"\r\n\r\n")

            def talk(client: Client, head: bytes = head, rest: bytes = rest, asked_for: bool = asked_for) -> list[bytes]:
                client.send(head + b"\r\n\r\n")
                first = client.answer()
                if not asked_for:
                    return [first, client.rest()]
                client.send(rest)
                return [first, client.answer(), client.goodbye()]

            received = pair.same(talk)
            assert received.startswith(CONTINUE) is asked_for, received
            assert received.endswith(FINAL_ANSWER) is asked_for

    def test_a_body_that_is_too_long(self, pair: Pair, method: str, target: str, body: bytes, needed: Right) -> None:
        """Refused by what it says of its length, with or without a good signature."""
        head = raw(sign(method, target, body), with_length=False)[: -len(body) or None]
        for by in (head, head.replace(b"Signature=", b"Signature=0")):
            declared = by.replace(b"\r\n\r\n", b"\r\ncontent-length: 99999999\r\n\r\n")

            def talk(client: Client, declared: bytes = declared) -> bytes:
                client.send(declared)
                return client.answer()

            assert statuses(pair.same(talk)) in ([400], [403])


def test_a_session_that_has_ended_on_a_kept_connection(pair: Pair, signer: Signer) -> None:
    path = f"/FeatureGroup/{GROUP}"
    good, over = (as_bytes(signer.by_session("GET", path, signer.session(ends_in_s=s), query=ONE)) for s in (900, -1))

    def talk(client: Client) -> list[bytes]:
        return [client.ask(good), client.ask(over), client.ask(good), client.goodbye()]

    assert statuses(pair.same(talk)) == [200, 403, 200, 200]


class TestSameHeaders:
    """Requests of one connection whose headers are the same but for the signature, as those of one second are."""

    def signed(self, signer: Signer, target: str, *, by: str = ROOT, now_s: float) -> bytes:
        path, _, text = target.partition("?")
        bare = sigv4.Request("GET", path.encode(), text.encode(), [(b"host", b"localhost"), (b"accept", b"application/json")])
        credentials = sigv4.Credentials(signer.keys[by].access_key_id, signer.keys[by].secret_access_key)
        added = sigv4.sign(bare, credentials, sigv4.EMPTY_SHA256, service="sagemaker", region="us-east-1", now_s=now_s)
        lines = [
            f"GET {target} HTTP/1.1",
            "host: localhost",
            "accept: application/json",
            *(f"{name}: {value}" for name, value in added),
        ]
        return "\r\n".join([*lines, "", ""]).encode()

    def test_each_signature_is_checked(self, pair: Pair, signer: Signer) -> None:
        now_s = time.time()
        one, two = (self.signed(signer, f"/FeatureGroup/{GROUP}?{query(name)}", now_s=now_s) for name in ("k", "nobody"))
        head, signature = one[: one.index(b"Signature=") + 10], one[one.index(b"Signature=") + 10 :][:64]
        wrong = [
            two.replace(two[two.index(b"Signature=") + 10 :][:64], signature),
            head + b"0" * 64 + one[len(head) + 64 :],
            head + signature[:-1] + one[len(head) + 64 :],
            head + signature.upper() + one[len(head) + 64 :],
            head + b"0" * 30 + b"\r\nx-more: " + b"0" * 24 + one[len(head) + 64 :],
            one.replace(query("k").encode(), query("l").encode()),
            one.replace(query("k").encode(), b"RecordIdentifierValueAsString=k.k"),
            one.replace(query("k").encode(), b"RecordIdentifierValueAsString="),
            one.replace(query("k").encode(), query("k", FeatureName="id").encode()),
            head + b"0" * 63 + b"\n" + one[len(head) + 64 :],
            one.replace(b"accept: application/json", b"accept: application/text"),
        ]
        for broken in wrong:

            def talk(client: Client, broken: bytes = broken) -> list[bytes]:
                received = [client.ask(one), client.ask(two), client.ask(one)]
                client.send(broken)
                return [*received, client.goodbye(finals=10)]

            assert statuses(pair.alike(talk))[:4] in ([200, 200, 200, 403], [200, 200, 200, 400]), broken

    def test_more_at_once(self, pair: Pair, signer: Signer) -> None:
        """Behind some that came one by one, with other requests between them."""
        now_s = time.time()
        one, two = (self.signed(signer, f"/FeatureGroup/{GROUP}?{query(name)}", now_s=now_s) for name in ("k", "nobody"))
        health = request("GET", "/health")
        for sent in (
            one + two,
            one + two + one,
            one + health + two,
            one + one[:50],
            health + one,
            one[:-2] + b"x: y\r\n\r\n" + two,
        ):

            def talk(client: Client, sent: bytes = sent) -> list[bytes]:
                received = [client.ask(one), client.ask(two), client.ask(health), client.ask(one), client.ask(two)]
                client.send(sent)
                return [*received, client.goodbye(finals=10)]

            pair.alike(talk)

    def test_after_the_keys_were_read_again(self, pair: Pair, signer: Signer) -> None:
        """On one connection for longer than keys are kept."""
        sent = self.signed(signer, f"/FeatureGroup/{GROUP}?{ONE}", now_s=time.time())
        with Client(pair.lane) as lane, Client(pair.plain) as plain:
            end_s = time.monotonic() + 3 * KEYS_S_MAX
            while time.monotonic() < end_s:
                assert statuses(pair.same_of((lane, plain), [sent])) == [200]

    def test_what_is_too_old(self, pair: Pair, signer: Signer) -> None:
        now_s = time.time()
        target = f"/FeatureGroup/{GROUP}?{ONE}"
        good, old = self.signed(signer, target, now_s=now_s), self.signed(signer, target, now_s=now_s - 1000)

        def talk(client: Client) -> list[bytes]:
            return [client.ask(good), client.ask(old), client.ask(old), client.ask(good), client.goodbye()]

        assert statuses(pair.same(talk)) == [200, 403, 403, 200, 200]

    def test_a_key_that_is_revoked_meanwhile(self, pair: Pair, signer: Signer) -> None:
        key = pair.plain.store.keys.create("passing", Right.READ)
        signer.keys["passing"] = key
        sent = self.signed(signer, f"/FeatureGroup/{GROUP}?{ONE}", by="passing", now_s=time.time())
        with Client(pair.lane) as lane, Client(pair.plain) as plain:
            for client in (lane, plain):
                wait_until(partial(answers, client, sent, 200), "the key is known")
            pair.plain.store.keys.revoke("passing")
            for client in (lane, plain):
                wait_until(partial(answers, client, sent, 403), "the key is not known")


def connected(folder: Path) -> sqlite3.Connection:
    return sqlite3.connect(folder / "store" / "registry.db")


class TestKeysThatChange:
    """On connections that are open meanwhile; nobody but the record operations asks."""

    @contextmanager
    def opened(self, loop: LoopThread, folder: Path) -> Iterator[tuple[Pair, tuple[Client, Client]]]:
        with open_pair(loop, folder, shared=True) as pair:
            pair.plain.store.create(group(GROUP))
            with Client(pair.lane) as lane, Client(pair.plain) as plain:
                assert statuses(pair.same_of((lane, plain), [PUT, READ])) == [200, 200]
                yield pair, (lane, plain)

    def settle(self, pair: Pair, clients: tuple[Client, Client], asked: bytes, status: int) -> None:
        """Ask until each has noticed the change, then compare."""
        for client in clients:
            wait_until(partial(answers, client, asked, status), f"the answer is {status}")
        assert statuses(pair.same_of(clients, [asked])) == [status]

    def test_the_first_key_closes_the_store(self, loop: LoopThread, tmp_path: Path) -> None:
        with self.opened(loop, tmp_path) as (pair, clients):
            key = pair.plain.store.keys.create("first", Right.READ)
            self.settle(pair, clients, READ, 403)
            target = f"/FeatureGroup/{GROUP}"
            pairs = (key.access_key_id, key.secret_access_key)
            signed = raw(sign("GET", f"{target}?{ONE}", key=pairs), with_length=False)
            assert statuses(pair.same_of(clients, [PUT, READ, signed])) == [403, 403, 200]
            written = raw(sign("PUT", target, encoded({"Record": record(id="k", at=T1)}), key=pairs))
            assert statuses(pair.same_of(clients, [written])) == [403]
            pair.plain.store.keys.revoke("first")
            self.settle(pair, clients, signed, 403)
            assert statuses(pair.same_of(clients, [READ])) == [403]

    def test_keys_that_cannot_be_read(self, loop: LoopThread, tmp_path: Path) -> None:
        with self.opened(loop, tmp_path) as (pair, clients), closing(connected(tmp_path)) as registry:
            registry.execute("ALTER TABLE access_key RENAME TO lost")
            self.settle(pair, clients, READ, 503)
            assert statuses(pair.same_of(clients, [PUT, READ])) == [503, 503]
            registry.execute("ALTER TABLE lost RENAME TO access_key")
            self.settle(pair, clients, READ, 200)

    def test_a_registry_that_cannot_be_read(self, loop: LoopThread, tmp_path: Path) -> None:
        """The version of the groups is kept there, which each request rests on."""
        with self.opened(loop, tmp_path) as (pair, clients), closing(connected(tmp_path)) as registry:
            registry.execute("ALTER TABLE store RENAME TO lost")
            self.settle(pair, clients, READ, 503)
            batch = request("POST", "/BatchWriteRecord", BATCH_WRITE)
            pair.same_of(clients, [PUT, READ, batch, request("POST", "/BatchGetRecord", BATCH_GET)])
            registry.execute("ALTER TABLE lost RENAME TO store")
            self.settle(pair, clients, READ, 200)
