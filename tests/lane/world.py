"""Feature groups of every kind with some records, in the stores of a pair."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

from featurestore.model.feature_group import (
    CollectionType,
    Durability,
    FeatureDefinition,
    FeatureGroup,
    FeatureType,
    OfflineConfig,
    OnlineConfig,
    StorageType,
    TtlDuration,
    TtlUnit,
    definitions,
)
from tests.integration.test_signing import ADMIN_ID, ADMIN_SECRET
from tests.lane.harness import Pair, request, statuses
from tests.signing import Sent, signed_by_botocore

T0, T1, T2 = (f"2024-05-01T00:00:0{second}Z" for second in range(3))
FAR = "2999-01-01T00:00:00Z"
"""An event time whose time to live does not end meanwhile."""
ADMIN = (ADMIN_ID, ADMIN_SECRET)
ARN = "arn:aws:sagemaker:us-east-1:000000000000:feature-group/"

STANDARD, EPOCH, MEMORY, TTL, ONLINE_ONLY, OFFLINE_ONLY, LOGGED, EVOLVED = (
    "standard",
    "epoch",
    "memory",
    "ttl",
    "online-only",
    "offline-only",
    "logged",
    "evolved",
)
_STRING, _FRACTIONAL, _INTEGRAL = FeatureType.STRING, FeatureType.FRACTIONAL, FeatureType.INTEGRAL
_FEATURES = definitions([("id", _STRING), ("at", _STRING), ("amount", _FRACTIONAL), ("count", _INTEGRAL), ("note", _STRING)])
_OFFLINE = OfflineConfig("s3://bucket")
GROUPS: dict[str, dict[str, Any]] = {
    STANDARD: {},
    EPOCH: {"features": definitions([("id", _INTEGRAL), ("at", _FRACTIONAL), ("note", _STRING)])},
    MEMORY: {
        "features": (
            *_FEATURES,
            FeatureDefinition("words", _STRING, CollectionType.LIST),
            FeatureDefinition("numbers", _INTEGRAL, CollectionType.SET),
            FeatureDefinition("vector", _FRACTIONAL, CollectionType.VECTOR, 2),
        ),
        "online": OnlineConfig(storage_type=StorageType.IN_MEMORY),
    },
    TTL: {"online": OnlineConfig(ttl=TtlDuration(TtlUnit.DAYS, 1))},
    ONLINE_ONLY: {"offline": None},
    OFFLINE_ONLY: {"online": None},
    LOGGED: {"durability": Durability.LOG},
    EVOLVED: {},
}
VALUE_CHARS_MAX = 350_000

TEXTS = {
    "empty": "",
    "spaces": " leading and trailing ",
    "controls": "line\nfeed\ttab\r\x01\x1f\x7f\x80\u2028\u2029",
    "quotes": "quotes ' \" ; -- \\ / \\u0041 \\n",
    "unicode": "za\u017c\u00f3\u0142\u0107 \u6771\u4eac \U0001f980 e\u0301 \ufeff\ufffd\uffff",
    "nul": "nul\x00inside",
    "markup": "</script>&amp;%20+%2F",
    "crlf": "\r\n\r\nHTTP/1.1 200 OK\r\n",
    "json": '{"a": [1, "b"]}',
    "long": "x" * VALUE_CHARS_MAX,
    "long unicode": "\u6771" * 100_000,
    "long escapes": '"' * 100_000,
}
"""Values by record of the standard group."""


def group(name: str, **members: Any) -> FeatureGroup:
    given = {"record_identifier": "id", "event_time": "at", "features": _FEATURES, "online": OnlineConfig(), "offline": _OFFLINE}
    return FeatureGroup(name=name, **given | GROUPS.get(name, {}) | members)


def record(**values: str | Sequence[str] | None) -> list[dict[str, Any]]:
    """A record as requests and answers have it; None is a feature without a value."""
    return [
        {"FeatureName": name}
        | ({} if value is None else {"ValueAsString" if isinstance(value, str) else "ValueAsStringList": value})
        for name, value in values.items()
    ]


def encoded(value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value).encode()


def query(identifier: str, **more: str | Sequence[str]) -> str:
    """Of a GetRecord or DeleteRecord; a sequence repeats its name."""
    pairs = [("RecordIdentifierValueAsString", identifier)]
    for name, value in more.items():
        pairs += [(name, text) for text in ([value] if isinstance(value, str) else value)]
    return "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)


class World:
    """A pair, and requests to it as it wants them: signed by an administrator, or not."""

    def __init__(self, pair: Pair, *, signed: bool = False) -> None:
        self.pair = pair
        self.signed = signed

    def request(self, method: str, target: str, body: object = None, *headers: str, host: str = "localhost") -> bytes:
        """A request; a body that is not bytes is sent as JSON."""
        data = None if body is None else encoded(body)
        if not self.signed:
            return request(method, target, data, *headers, host=host)
        named = dict(header.split(": ", 1) for header in headers)
        return raw(sign(method, target, data or b"", base=f"http://{host}", headers=named), with_length=data is not None)

    def get(self, name: str, identifier: str, *headers: str, **more: str | Sequence[str]) -> bytes:
        return self.request("GET", f"/FeatureGroup/{quote(name, safe='')}?{query(identifier, **more)}", None, *headers)

    def put(
        self, name: str, *headers: str, members: Mapping[str, Any] | None = None, **values: str | Sequence[str] | None
    ) -> bytes:
        body = {"Record": record(**values), **(members or {})}
        return self.request("PUT", f"/FeatureGroup/{quote(name, safe='')}", body, *headers)

    def delete(self, name: str, identifier: str, at: str, *headers: str, **more: str) -> bytes:
        target = f"/FeatureGroup/{quote(name, safe='')}?{query(identifier, EventTime=at, **more)}"
        return self.request("DELETE", target, None, *headers)

    def write(self, *requests: bytes) -> None:
        """Requests that must succeed, in both stores."""
        for item in requests:
            received = self.pair.ask(item)
            assert statuses(received) == [200], received[:1000]

    def fill(self) -> None:
        """Make the groups, and records in them."""
        for store in self.pair.stores:
            for name in GROUPS:
                store.create(group(name))
        self.write(
            self.put(STANDARD, id="one", at=T1, amount="1.50", count="007", note="first"),
            self.put(STANDARD, id="bare", at=T1),
            self.put(STANDARD, id="mixed/\u00e4 +%&=?#", at=T1, note="an identifier that must be encoded"),
            self.put(STANDARD, id="deleted", at=T1),
            self.delete(STANDARD, "deleted", T2),
            self.put(STANDARD, id="buried", at=T1),
            self.delete(STANDARD, "buried", T2, DeletionMode="HardDelete"),
            *(self.put(STANDARD, id=name, at=T1, note=text) for name, text in TEXTS.items()),
            self.put(EPOCH, id="007", at="1714521600.25", note="fractional"),
            self.put(MEMORY, id="full", at=T1, words=["a", "", "\u6771", '"'], numbers=["3", "1", "3"], vector=["1.0", "-0"]),
            self.put(MEMORY, id="without", at=T1, words=[], amount="5."),
            self.put(TTL, id="live", at=FAR, note="until the day after"),
            self.put(TTL, id="expired", at="2001-01-01T00:00:00Z", note="long ago"),
            self.put(TTL, id="own", at=FAR, members={"TtlDuration": {"Unit": "Weeks", "Value": 2}}),
            self.put(STANDARD, id="own ttl", at=FAR, members={"TtlDuration": {"Unit": "Seconds", "Value": 1}}),
            self.put(ONLINE_ONLY, id="one", at=T1, note="online"),
            self.put(OFFLINE_ONLY, id="one", at=T1, note="offline"),
            self.put(EVOLVED, id="old", at=T1, note="before"),
        )
        for store in self.pair.stores:
            store.add_features(EVOLVED, [FeatureDefinition("more", _STRING), FeatureDefinition("number", _INTEGRAL)])
        self.write(self.put(EVOLVED, id="new", at=T1, note="after", more="text", number="5"))
        self.pair.same_effects()


def sign(
    method: str, target: str, body: bytes = b"", *, key: tuple[str, str] = ADMIN, base: str = "http://localhost", **more: Any
) -> Sent:
    """A request signed by botocore, by the administrator unless told otherwise."""
    path, _, text = target.partition("?")
    return signed_by_botocore(
        method, path, **{"base": base, "key_id": key[0], "secret": key[1], "query": text, "body": body} | more
    )


def raw(sent: Sent, *, with_length: bool = True) -> bytes:
    """The bytes of a request."""
    asked = sent.request
    target = asked.path + (b"?" + asked.query if asked.query else b"")
    lines = [b"%b %b HTTP/1.1" % (asked.method.encode(), target), *(b"%b: %b" % header for header in asked.headers)]
    if with_length and not any(name == b"content-length" for name, _ in asked.headers):
        lines.append(b"content-length: %d" % len(sent.body))
    return b"\r\n".join([*lines, b"", b""]) + sent.body
