"""Signatures against botocore's own signer: whatever it signs is verified, whatever is changed afterwards is refused."""

from __future__ import annotations

import hashlib
import itertools
import time
from email.utils import formatdate
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from featurestore.access import sigv4
from featurestore.access.authenticator import claim
from featurestore.access.keys import AccessKey, Keys, Right
from featurestore.access.session import issue, open_token
from featurestore.access.sigv4 import ChunkChain, Credentials, Request, RequestPayload, Scope
from featurestore.errors import (
    AccessKeyUnknown,
    AuthenticationFailed,
    PresignedExpired,
    RequestTimeSkewed,
    SessionExpired,
    SessionTokenInvalid,
    SignatureMalformed,
    SignatureMismatch,
    SignatureMissing,
)
from tests.signing import Sent, signed_by_botocore

KEY_ID, SECRET = "FSKATESTTESTTESTTEST", "secret/with+signs="
KEY = AccessKey("somebody", KEY_ID, SECRET, Right.WRITE, 1)
KEYS = Keys({KEY_ID: KEY}, required=True)
HOST = "store.example:8080"
BASE = f"http://{HOST}"
ARN = "arn:aws:sagemaker:us-east-1:000000000000:feature-group/g"


def check(sent: Sent, service: str | None = None, *, keys: Keys = KEYS, now_s: float | None = None) -> None:
    """What the service does with a request."""
    clock_s = time.time if now_s is None else lambda: now_s
    claimed = claim(sent.request, keys, service=None if service is None else service.encode(), clock_s=clock_s)
    if claimed.signature.scope.service == b"s3":
        payload = claimed.verify_s3()
        if payload.sha256 is not None and payload.sha256 != hashlib.sha256(sent.body).hexdigest():
            raise SignatureMismatch
    else:
        claimed.verify(hashlib.sha256(sent.body).hexdigest())


def signed(method: str, path: str, **members: Any) -> Sent:
    """Signed by botocore with the key above, for a host that nobody is asked for."""
    return signed_by_botocore(method, path, **{"base": BASE, "key_id": KEY_ID, "secret": SECRET} | members)


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="/."), min_size=1, max_size=12)
HEADER_VALUES = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20)
SERVICES = st.sampled_from(["sagemaker", "athena", "sts", "s3"])


@st.composite
def requests(draw: st.DrawFn) -> Sent:
    segments = draw(st.lists(TEXTS, min_size=1, max_size=4))
    pairs = draw(st.lists(st.tuples(st.text(max_size=6), st.none() | st.text(max_size=8)), max_size=5))
    items = [quote(name, safe="-_.~") + ("" if value is None else "=" + quote(value, safe="-_.~")) for name, value in pairs]
    assume(not any(item.startswith("X-Amz-") for item in items))
    service = draw(SERVICES)
    presigned_s = draw(st.none() | st.integers(1, sigv4.EXPIRES_S_MAX))
    names = draw(st.lists(st.from_regex(r"x-(amz-)?[a-z]{1,8}(-[a-z]{1,5})?", fullmatch=True), max_size=4, unique=True))
    assume(not {"x-amz-date"} & set(names))
    headers = {name: draw(HEADER_VALUES) for name in names}
    return signed(
        draw(st.sampled_from(["GET", "PUT", "POST", "DELETE", "HEAD"])),
        "/" + "/".join(quote(segment, safe="~") for segment in segments) + draw(st.sampled_from(["", "/"])),
        query="&".join(items),
        body=b"" if presigned_s is not None else draw(st.binary(max_size=40)),
        headers=headers,
        service=service,
        region=draw(st.sampled_from(["us-east-1", "eu-central-1", "aws-global"])),
        token=None,
        presigned_s=presigned_s,
    )


@settings(deadline=None)
@given(requests())
def test_whatever_botocore_signs_is_verified(sent: Sent) -> None:
    check(sent)


def _meaning(request: Request, signed: tuple[bytes, ...]) -> object:
    """Two requests of equal meaning are signed alike: order of the query, percent-encoding and spaces in headers have none."""
    query = sorted((sigv4._encoded(name), sigv4._encoded(value)) for name, _, value in _parts(request.query))
    s3 = sigv4.scoped_service(request) == b"s3"
    headers = {name: b" ".join(value.split()) for name, value in request.headers if name in signed}
    path = sigv4._s3_path(request.path) if s3 else request.path
    return request.method, path, query, headers


def _parts(query: bytes) -> list[tuple[bytes, bytes, bytes]]:
    return [part.partition(b"=") for part in query.split(b"&")] if query else []


@settings(deadline=None)
@given(requests(), st.data())
def test_any_changed_byte_is_refused(sent: Sent, data: st.DataObject) -> None:
    signature = sigv4.read_signature(sent.request)
    covered = {b"authorization", *signature.signed_headers}
    places: list[tuple[str, int]] = [("path", at) for at in range(1, len(sent.request.path))]
    places += [("query", at) for at in range(len(sent.request.query))]
    places += [("method", at) for at in range(len(sent.request.method))]
    if signature.expires_s is None or signature.scope.service != b"s3":
        places += [("body", at) for at in range(len(sent.body))]
    headers = [index for index, (name, _) in enumerate(sent.request.headers) if name in covered]
    places += [(f"header {index}", at) for index in headers for at in range(len(sent.request.headers[index][1]))]
    what, at = data.draw(st.sampled_from(places))
    if what == "body":
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != sent.body[at]))
        changed = sent.altered(body=sent.body[:at] + bytes([byte]) + sent.body[at + 1 :])
    else:
        before = sent.request.method.encode() if what == "method" else getattr(sent.request, what, b"")
        index = int(what.removeprefix("header ")) if what.startswith("header ") else None
        if index is not None:
            before = sent.request.headers[index][1]
        byte = data.draw(st.integers(0x20, 0x7E).filter(lambda byte: byte != before[at]))
        after = before[:at] + bytes([byte]) + before[at + 1 :]
        if index is None:
            value: Any = after.decode() if what == "method" else after
            changed = sent.altered(**{what: value})
        else:
            items = list(sent.request.headers)
            items[index] = (items[index][0], after)
            changed = sent.altered(headers=items)
        # Only what means the same may pass; the signature itself means nothing else in any other form.
        assume(
            _meaning(changed.request, signature.signed_headers) != _meaning(sent.request, signature.signed_headers)
            or index is not None
        )
        if index is not None and items[index][0] != b"authorization":
            assume(b" ".join(after.split()) != b" ".join(before.split()))
        if what == "path" and signature.scope.service != b"s3":
            assume(b"//" not in after and b"/." not in after)
        if index is not None and items[index][0] == b"authorization":
            assume(after.split() != before.split() and after.replace(b" ", b"") != before.replace(b" ", b""))

    with pytest.raises(AuthenticationFailed):
        check(changed)


@settings(deadline=None)
@given(requests())
def test_another_secret_is_refused(sent: Sent) -> None:
    other = Keys({KEY_ID: AccessKey("other", KEY_ID, SECRET + "x", Right.READ, 1)}, required=True)
    with pytest.raises(SignatureMismatch):
        check(sent, keys=other)


PLAIN_TEXTS = st.text("abcXYZ019-._~", min_size=1, max_size=30)


@given(PLAIN_TEXTS, PLAIN_TEXTS, PLAIN_TEXTS, st.sampled_from(["GET", "DELETE"]))
def test_requests_with_the_same_headers(name: str, first: str, second: str, method: str) -> None:
    """What was made of one request verifies the other one, signed in the same second, and nothing else."""
    path, start = f"/FeatureGroup/{name}", "RecordIdentifierValueAsString="
    one = signed(method, path, query=start + first)
    other = signed(method, path, query=start + second)
    assume(one.header(b"x-amz-date") == other.header(b"x-amz-date"))
    same = claim(one.request, KEYS, service=b"sagemaker").same_headers()
    like = same.with_target(method, path.encode(), start.encode())
    values = [sent.header(b"authorization")[-64:] for sent in (one, other)]
    for verify in (
        lambda text, value: same.verify(method, path.encode(), (start + text).encode(), sigv4.EMPTY_SHA256, value),
        lambda text, value: like.verify(text.encode(), value),
    ):
        assert verify(first, values[0])
        assert verify(second, values[1])
        assert verify(second, values[0]) is verify(first, values[1]) is (first == second)
        assert not verify(first, b"0" * 64)
        assert not verify(first, values[0][:-1])


class TestForms:
    """Forms of requests that clients send."""

    @pytest.mark.parametrize("name", [ARN, "g", "ü", "a b", "a+b", "100%", "a~b", "a*b(c)'!"])
    @pytest.mark.parametrize("service", ["sagemaker", "s3"])
    def test_names_in_paths(self, name: str, service: str) -> None:
        """An ARN is one encoded segment; services other than S3 encode it once more to sign."""
        sent = signed("GET", f"/FeatureGroup/{quote(name, safe='~')}", service=service)
        check(sent, service)
        signature = sigv4.read_signature(sent.request)
        canonical = sigv4.canonical_request(sent.request, signature.signed_headers, sigv4.EMPTY_SHA256, s3=service == "s3")
        twice = b"%253A" in canonical
        assert twice is (service != "s3" and name is ARN)

    @pytest.mark.parametrize(
        "query",
        [
            "TargetStores=OnlineStore&TargetStores=OfflineStore",
            "b=2&a=1&b=1&a=0",
            "a-b=1&a=2&a.c=3&A=4",
            "uploads",
            "uploads=",
            "=value",
            "a=1&&b=2",
            "a=1&",
            "k=%E2%82%AC&k=%C3%BC",
            "k=a%2Bb&k=a%20b",
            "k=a%3Db%26c",
        ],
    )
    @pytest.mark.parametrize("service", ["sagemaker", "s3"])
    @pytest.mark.parametrize("presigned_s", [None, 60])
    def test_queries(self, query: str, service: str, presigned_s: int | None) -> None:
        check(signed("GET", "/x", query=query, service=service, presigned_s=presigned_s), service)

    @pytest.mark.parametrize("path", ["/a/../b", "/a//b", "/./a", "/a/.", "/..", "//", "/a/b/../../c/"])
    def test_dot_segments(self, path: str) -> None:
        check(signed("GET", path))
        check(signed("GET", path, service="s3"))

    def test_encodings_of_the_query_are_one(self) -> None:
        """Clients that leave signs alone, or write hexadecimal digits small, sign the form with everything encoded."""
        sent = signed("GET", "/x", query="k=a%2Ab%2Fc&m=1%3D2")
        check(sent.altered(query=b"m=1=2&k=a*b%2fc"))

    def test_a_date_header_instead_of_x_amz_date(self) -> None:
        sent = signed("GET", "/x", headers={"Date": formatdate(usegmt=True)})
        assert b"x-amz-date" not in dict(sent.request.headers)
        check(sent)
        with pytest.raises(AuthenticationFailed):
            check(sent.with_headers((b"date", formatdate(time.time() + 1, usegmt=True).encode())))

    def test_order_of_the_authorization_header(self) -> None:
        sent = signed("GET", "/x")
        algorithm, _, rest = sent.header(b"authorization").partition(b" ")
        for fields in itertools.permutations(rest.split(b", ")):
            for comma in (b",", b", "):
                check(sent.with_headers((b"authorization", algorithm + b" " + comma.join(fields))))

    def test_repeated_headers_are_joined(self) -> None:
        sent = signed("GET", "/x", headers={"x-amz-meta-a": "1,2  3"})
        kept = [item for item in sent.request.headers if item[0] != b"x-amz-meta-a"]
        twice = [*kept, (b"x-amz-meta-a", b" 1 "), (b"x-amz-meta-a", b"2 3")]
        check(sent.altered(headers=twice))

    @pytest.mark.parametrize("added", [b"user-agent", b"x-amzn-trace-id", b"amz-sdk-invocation-id", b"x-forwarded-for"])
    def test_what_is_on_the_way_may_be_added(self, added: bytes) -> None:
        check(signed("GET", "/x").with_headers((added, b"anything")))


class TestMalformed:
    @pytest.mark.parametrize(
        ("authorization", "words"),
        [
            (b"AWS AKIA:c2lnbmF0dXJl", "AWS4-HMAC-SHA256"),
            (b"Bearer token", "AWS4-HMAC-SHA256"),
            (b"AWS4-ECDSA-P256-SHA256 Credential=a/20260101/sagemaker/aws4_request", "AWS4-HMAC-SHA256"),
            (b"", "AWS4-HMAC-SHA256"),
            (b"AWS4-HMAC-SHA256", "expected Credential"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/sagemaker/aws4_request", "expected SignedHeaders"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request, SignedHeaders=host, Signature=", "expected Signature"),
            (b"AWS4-HMAC-SHA256 Credential=a, SignedHeaders=host, Signature=%b", "Credential: expected <access key id>"),
            (b"AWS4-HMAC-SHA256 Credential=a/x/r/s/aws4_request, SignedHeaders=host, Signature=%b", "expected a date"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101//s/aws4_request, SignedHeaders=host, Signature=%b", "a region"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws3_request, SignedHeaders=host, Signature=%b", "aws4_request"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request, SignedHeaders=date, Signature=%b", "host"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request, SignedHeaders=host;date, Signature=%b", "sorted"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request, SignedHeaders=host;host, Signature=%b", "sorted"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request, SignedHeaders=Host, Signature=%b", "lower"),
            (b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request, SignedHeaders=host, Signature=%b, Signature=%b", "once"),
            (
                b"AWS4-HMAC-SHA256 Credential=" + b"a" * 600 + b"/20260101/r/s/aws4_request, SignedHeaders=host, Signature=%b",
                "512",
            ),
            (
                b"AWS4-HMAC-SHA256 Credential=a/20260101/r/s/aws4_request, SignedHeaders=" + b"h" * 5000 + b", Signature=%b",
                "4096",
            ),
        ],
    )
    def test_authorization_headers(self, authorization: bytes, words: str) -> None:
        value = authorization.replace(b"%b", b"0" * 64)
        with pytest.raises(SignatureMalformed, match=words):
            sigv4.read_signature(Request("GET", b"/", b"", [(b"host", b"h"), (b"authorization", value)]))

    def test_unsigned(self) -> None:
        with pytest.raises(SignatureMissing):
            sigv4.read_signature(Request("GET", b"/", b"", [(b"host", b"h")]))

    def test_in_header_and_query(self) -> None:
        sent = signed("GET", "/x", presigned_s=60)
        with pytest.raises(SignatureMalformed, match="both"):
            check(sent.with_headers((b"authorization", b"AWS4-HMAC-SHA256 x")))

    def test_two_authorization_headers(self) -> None:
        sent = signed("GET", "/x")
        twice = [*sent.request.headers, (b"authorization", sent.header(b"authorization"))]
        with pytest.raises(SignatureMalformed, match="several"):
            check(sent.altered(headers=twice))

    @pytest.mark.parametrize("header", [b"x-amz-target", b"x-amz-content-sha256", b"x-amz-security-token", b"x-amz-meta-a"])
    def test_x_amz_headers_must_be_signed(self, header: bytes) -> None:
        with pytest.raises(SignatureMalformed, match=header.decode()):
            check(signed("GET", "/x").with_headers((header, b"SageMaker.DeleteFeatureGroup")))

    @pytest.mark.parametrize("date", [b"", b"20260101", b"2026-01-01T00:00:00Z", b"20261301T000000Z", b"20260101T000000Z\xff"])
    def test_dates(self, date: bytes) -> None:
        with pytest.raises(SignatureMalformed, match="X-Amz-Date"):
            check(signed("GET", "/x").with_headers((b"x-amz-date", date)))

    def test_the_date_of_the_scope_is_that_of_the_request(self) -> None:
        sent = signed("GET", "/x")
        changed = sent.header(b"authorization").replace(sent.header(b"x-amz-date")[:8], b"20200101")
        with pytest.raises(SignatureMalformed, match="date of X-Amz-Date"):
            check(sent.with_headers((b"authorization", changed)))

    @pytest.mark.parametrize("expires", ["0", "604801", "-1", "1e3", "", "60.5", "9" * 30])
    def test_expiry(self, expires: str) -> None:
        sent = signed("GET", "/x", presigned_s=60)
        query = sent.request.query.replace(b"X-Amz-Expires=60", f"X-Amz-Expires={expires}".encode())
        with pytest.raises(SignatureMalformed, match="X-Amz-Expires"):
            check(sent.altered(query=query))

    @pytest.mark.parametrize("name", ["Algorithm", "Credential", "Date", "Expires", "SignedHeaders", "Signature"])
    def test_a_presigned_url_without(self, name: str) -> None:
        sent = signed("GET", "/x", presigned_s=60)
        parts = [part for part in sent.request.query.split(b"&") if not part.startswith(f"X-Amz-{name}=".encode())]
        with pytest.raises(SignatureMalformed, match=f"expected X-Amz-{name}"):
            check(sent.altered(query=b"&".join(parts)))

    @settings(deadline=None)
    @given(st.binary(max_size=200), st.binary(max_size=200))
    def test_anything_else_is_refused_and_nothing_worse(self, value: bytes, query: bytes) -> None:
        for request in (
            Request("GET", b"/", query, [(b"host", b"h"), (b"authorization", b"AWS4-HMAC-SHA256 " + value)]),
            Request("GET", b"/", b"X-Amz-Algorithm=AWS4-HMAC-SHA256&" + query, [(b"host", b"h"), (b"x-amz-date", value)]),
        ):
            with pytest.raises(AuthenticationFailed):
                check(Sent(request, b""))


class TestTime:
    @pytest.mark.parametrize("skew_s", [-sigv4.SKEW_S_MAX, sigv4.SKEW_S_MAX])
    def test_skew(self, skew_s: int) -> None:
        sent = signed("GET", "/x")
        signed_at_s = sigv4.read_signature(sent.request).signed_at_s
        check(sent, now_s=signed_at_s + skew_s)
        with pytest.raises(RequestTimeSkewed, match="15 minutes"):
            check(sent, now_s=signed_at_s + skew_s + (1 if skew_s > 0 else -1))

    @pytest.mark.parametrize("expires_s", [1, 3600, sigv4.EXPIRES_S_MAX])
    def test_presigned(self, expires_s: int) -> None:
        sent = signed("GET", "/x", presigned_s=expires_s)
        signed_at_s = sigv4.read_signature(sent.request).signed_at_s
        check(sent, now_s=signed_at_s - sigv4.SKEW_S_MAX)
        check(sent, now_s=signed_at_s + expires_s)
        with pytest.raises(PresignedExpired):
            check(sent, now_s=signed_at_s + expires_s + 1)
        with pytest.raises(RequestTimeSkewed):
            check(sent, now_s=signed_at_s - sigv4.SKEW_S_MAX - 1)


class TestKeys:
    def test_unknown(self) -> None:
        with pytest.raises(AccessKeyUnknown, match="FSKAUNKNOWN"):
            check(signed("GET", "/x", key_id="FSKAUNKNOWN"))

    def test_the_scope_names_the_service(self) -> None:
        with pytest.raises(SignatureMismatch, match="'sagemaker' in the scope, got 's3'"):
            check(signed("GET", "/x", service="s3"), "sagemaker")

    def test_signing_keys_are_kept_and_bounded(self) -> None:
        sigv4.signing_key.cache_clear()
        for number in range(sigv4.SIGNING_KEYS_MAX + 10):
            sigv4.signing_key(SECRET, b"20260101", b"region-%d" % number, b"sagemaker")
        assert sigv4.signing_key.cache_info().currsize == sigv4.SIGNING_KEYS_MAX
        sigv4.signing_key.cache_clear()
        sent = signed("GET", "/x")
        for _ in range(5):
            check(sent)
        assert sigv4.signing_key.cache_info().misses == 1

    @pytest.mark.parametrize("shown", [Credentials(KEY_ID, SECRET, SECRET), KEY, KEYS])
    def test_secrets_are_not_shown(self, shown: object) -> None:
        assert SECRET not in repr(shown)


class TestSigning:
    @settings(deadline=None)
    @given(
        st.sampled_from(["GET", "PUT", "POST", "DELETE"]),
        st.lists(TEXTS, min_size=1, max_size=3),
        st.lists(st.tuples(st.text(max_size=5), st.text(max_size=5)), max_size=4),
        st.binary(max_size=30),
        st.none() | st.from_regex(r"[A-Za-z0-9+/=]{1,40}", fullmatch=True),
    )
    def test_our_signature_is_botocores(
        self, method: str, segments: list[str], pairs: list[tuple[str, str]], body: bytes, token: str | None
    ) -> None:
        path = "/" + "/".join(quote(segment, safe="~") for segment in segments)
        query = "&".join(f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}" for name, value in pairs)
        digest = hashlib.sha256(body).hexdigest()
        theirs = signed(
            method, path, query=query, body=body, headers={"X-Amz-Content-SHA256": digest, "accept": "a, b"}, token=token
        )
        now_s = sigv4.read_signature(theirs.request).signed_at_s
        bare = Request(method, path.encode(), query.encode(), [(b"host", HOST.encode()), (b"accept", b"a, b")])
        added = dict(
            sigv4.sign(
                bare, Credentials(KEY_ID, SECRET, token), digest, service="sagemaker", region="us-east-1", now_s=float(now_s)
            )
        )
        assert added["authorization"].encode() == theirs.header(b"authorization")


class TestSessions:
    NOW_US = 1_800_000_000_000_000

    def issued(self, **members: Any) -> Any:
        wanted = {"role": "arn:aws:iam::000000000000:role/r", "name": "nightly", "expires_at_us": self.NOW_US + 1} | members
        return issue(KEY, **wanted)

    def test_a_session_opens_until_it_ends(self) -> None:
        made = self.issued()
        opened, parent = open_token(made.token, made.access_key_id, KEYS.live, self.NOW_US)
        assert opened == made
        assert parent is KEY
        assert made.secret_access_key not in repr(made)
        assert made.token not in repr(made)
        with pytest.raises(SessionExpired):
            open_token(made.token, made.access_key_id, KEYS.live, self.NOW_US + 1)

    def test_two_sessions_of_one_moment_differ(self) -> None:
        one, other = self.issued(), self.issued()
        assert one.access_key_id != other.access_key_id
        assert one.secret_access_key != other.secret_access_key

    def test_without_its_parent_it_is_nothing(self) -> None:
        made = self.issued()
        with pytest.raises(AccessKeyUnknown):
            open_token(made.token, made.access_key_id, {}, self.NOW_US)
        again = {KEY_ID: AccessKey("somebody", KEY_ID, "another secret", Right.WRITE, 1)}
        with pytest.raises(SessionTokenInvalid):
            open_token(made.token, made.access_key_id, again, self.NOW_US)

    def test_of_another_access_key_id(self) -> None:
        with pytest.raises(SessionTokenInvalid, match="access key id"):
            open_token(self.issued().token, self.issued().access_key_id, KEYS.live, self.NOW_US)

    @settings(deadline=None)
    @given(st.data())
    def test_any_changed_character_is_refused(self, data: st.DataObject) -> None:
        made = self.issued()
        at = data.draw(st.integers(0, len(made.token) - 1))
        character = data.draw(st.characters(codec="utf-8").filter(lambda character: character != made.token[at]))
        token = made.token[:at] + character + made.token[at + 1 :]
        with pytest.raises(AuthenticationFailed):
            open_token(token, made.access_key_id, KEYS.live, self.NOW_US)

    @settings(deadline=None)
    @given(st.text(max_size=100))
    def test_any_other_text_is_refused(self, token: str) -> None:
        with pytest.raises(SessionTokenInvalid):
            open_token(token, KEY_ID, KEYS.live, self.NOW_US)


class TestPayload:
    """Bodies of S3 requests. The chained example and its signatures are Amazon's own (S3 API Reference, chunked uploads)."""

    SECRET = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"
    SCOPE = Scope(b"20130524", b"us-east-1", b"s3")
    SEED = b"4f232c4386841ef735655705268965c44a0e4690baa4adea153f7db9fa80a0a9"
    CHUNKS = (
        ("ad80c730a21e5b8d04586a2213dd63b9a0e99e0e2307b0ade35a65485a288648", b"a" * 65536),
        ("0055627c9e194cb4542bae2aa5492e3c1575bbb81b612b7d234b86a503ef5497", b"a" * 1024),
        ("b6c6ea8a5354eaf15b3cb7646744f4275b71ea724fed81ceb9323e279d449df9", b""),
    )

    def payload(self, word: str = sigv4.STREAMING_SIGNED) -> RequestPayload:
        signature = sigv4.Signature(
            "AKIAIOSFODNN7EXAMPLE", self.SCOPE, (b"host",), self.SEED, b"20130524T000000Z", 0, None, None, word
        )
        return RequestPayload(word, ChunkChain(sigv4.signing_key(self.SECRET, *self._scope()), signature))

    def _scope(self) -> tuple[bytes, bytes, bytes]:
        return self.SCOPE.date, self.SCOPE.region, self.SCOPE.service

    def test_amazons_chunks(self) -> None:
        payload = self.payload()
        assert (payload.streaming, payload.signed_chunks, payload.trailer, payload.sha256) == (True, True, False, None)
        for signature, data in self.CHUNKS:
            payload.verify_chunk(signature, data)

    @pytest.mark.parametrize("order", [p for p in itertools.permutations(range(3)) if p != (0, 1, 2)])
    def test_in_another_order(self, order: tuple[int, ...]) -> None:
        payload = self.payload()
        with pytest.raises(SignatureMismatch):
            for index in order:
                payload.verify_chunk(*self.CHUNKS[index])

    @pytest.mark.parametrize("signature", ["", "0" * 64, "ü", "\udc80", CHUNKS[0][0].upper(), CHUNKS[1][0]])
    def test_with_another_signature(self, signature: str) -> None:
        with pytest.raises(SignatureMismatch):
            self.payload().verify_chunk(signature, self.CHUNKS[0][1])

    def test_a_trailer_is_chained_too(self) -> None:
        signature = "d81f82fc3505edab99d459891051a732e8730629a2e4a59689829ca17fe2e435"
        seed = b"106e2a8a18243abcf37539882f36619c00e2dfc72633413f02d3b74544bfeb8e"
        chunks = (
            ("b474d8862b1487a5145d686f57f013e54db672cee1c953b3010fb58501ef5aa2", b"a" * 65536),
            ("1c1344b170168f8e65b41376b44b20fe354e373826ccbbe2c1d40a8cae51e5c7", b"a" * 1024),
            ("2ca2aba2005185cf7159c6277faf83795951dd77a3a99e6e65d5c9f85863f992", b""),
        )
        trailer = b"x-amz-checksum-crc32c:sOO8/Q==\n"
        for sent, good in ((trailer, True), (trailer.replace(b"\n", b"\r\n"), True), (trailer.replace(b"Q", b"R"), False)):
            word = sigv4.STREAMING_SIGNED_TRAILER
            head = sigv4.Signature("a", self.SCOPE, (b"host",), seed, b"20130524T000000Z", 0, None, None, word)
            payload = RequestPayload(word, ChunkChain(sigv4.signing_key(self.SECRET, *self._scope()), head))
            assert payload.trailer
            for chunk in chunks:
                payload.verify_chunk(*chunk)
            if good:
                payload.verify_trailer(signature, sent)
            else:
                with pytest.raises(SignatureMismatch):
                    payload.verify_trailer(signature, sent)

    @pytest.mark.parametrize(
        ("word", "expected"),
        [
            (sigv4.UNSIGNED_PAYLOAD, (None, False, False, False)),
            (sigv4.STREAMING_UNSIGNED_TRAILER, (None, True, True, False)),
            (sigv4.STREAMING_SIGNED, (None, True, False, True)),
            (sigv4.STREAMING_SIGNED_TRAILER, (None, True, True, True)),
            (sigv4.EMPTY_SHA256, (sigv4.EMPTY_SHA256, False, False, False)),
        ],
    )
    def test_words(self, word: str, expected: tuple[object, ...]) -> None:
        sent = signed("PUT", "/bucket/key", service="s3")
        unsigned = sigv4.unverified_payload(sent.with_headers((b"x-amz-content-sha256", word.encode())).request)
        for payload in (RequestPayload(word), unsigned):
            assert (payload.sha256, payload.streaming, payload.trailer, payload.signed_chunks) == expected
        unsigned.verify_chunk("whatever", b"data")
        unsigned.verify_trailer("whatever", b"data")

    @pytest.mark.parametrize("word", ["", "NONE", "STREAMING-AWS4-ECDSA-P256-SHA256-PAYLOAD", "E3B0" * 16])
    def test_unknown_words_are_refused(self, word: str) -> None:
        signature = sigv4.Signature("a", self.SCOPE, (b"host",), self.SEED, b"", 0, None, None, word)
        with pytest.raises(SignatureMalformed, match="x-amz-content-sha256"):
            sigv4.s3_payload_hash(signature)
