"""Pipelines of good and broken requests, cut anywhere, to the lane and to the plain route.

`LANE_EXAMPLES` sets how many pipelines are tried (the suite's default is small), `LANE_SEED` where they begin.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.lane.harness import FINAL_ANSWER, NOT_HTTP, SEPARATOR, Client, request
from tests.lane.world import (
    ARN,
    EPOCH,
    EVOLVED,
    FAR,
    MEMORY,
    OFFLINE_ONLY,
    ONLINE_ONLY,
    STANDARD,
    T0,
    T1,
    T2,
    TEXTS,
    TTL,
    World,
    encoded,
    query,
    record,
)

EXAMPLES = int(os.environ.get("LANE_EXAMPLES", "150"))
SEED = int(os.environ.get("LANE_SEED", "20240501"))
FINALS = 40
SETTINGS = settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)
_numbers = itertools.count()

GROUPS = [STANDARD, EPOCH, MEMORY, TTL, ONLINE_ONLY, OFFLINE_ONLY, EVOLVED, ARN + STANDARD, "unknown", "wrong name", ""]
TEXT = st.one_of(st.text(max_size=12), st.sampled_from(["", "\0", "\r\n", '"', "\\", "\ud7ff", "\U0001f980", "7", "x" * 300]))
IDENTIFIERS = st.one_of(
    st.sampled_from(["one", "bare", "nobody", "deleted", "full", "live", "7", "old", "new", "@", *list(TEXTS)[:9]]), TEXT
)
"""`@` becomes a text that no other pipeline has: its records are this one's alone."""
TIMES = st.sampled_from([T0, T1, T2, FAR, "1714521600.5", "yesterday", ""])
FEATURES = st.sampled_from(["id", "at", "note", "count", "amount", "words", "numbers", "vector", "more", "nope"])


@dataclass(frozen=True)
class Item:
    """One request of a pipeline.

    Attributes:
        good: HTTP for sure, whatever the service says to it.
    """

    data: bytes
    good: bool


@st.composite
def values(draw: st.DrawFn) -> Any:
    name = draw(FEATURES)
    kind = draw(st.integers(0, 9))
    if kind == 0:
        return {"FeatureName": name}
    if kind == 1:
        return {"FeatureName": name, "ValueAsStringList": draw(st.lists(TEXT, max_size=3))}
    return {"FeatureName": name, "ValueAsString": draw(st.one_of(TEXT, st.sampled_from(["5", "-0", "1.5"])))}


@st.composite
def records(draw: st.DrawFn) -> list[Any]:
    found = record(id=f"@{draw(st.sampled_from('abc'))}", at=draw(TIMES))
    return found + draw(st.lists(values(), max_size=2, unique_by=lambda item: item["FeatureName"]))


def members() -> st.SearchStrategy[dict[str, Any]]:
    stores = st.lists(st.sampled_from(["OnlineStore", "OfflineStore", "Nope"]), max_size=2)
    ttl = st.fixed_dictionaries({"Unit": st.sampled_from(["Days", "days"]), "Value": st.integers(-1, 2)})
    return st.fixed_dictionaries({}, optional={"TargetStores": stores, "TtlDuration": ttl, "More": st.integers(0, 1)})


@st.composite
def targets_of_get(draw: st.DrawFn) -> str:
    more: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "FeatureName": st.lists(FEATURES, min_size=1, max_size=2),
                "ExpirationTimeResponse": st.sampled_from(["Enabled", "Disabled", "x"]),
            },
        )
    )
    text = query(draw(IDENTIFIERS), **more)
    if draw(st.integers(0, 4)) == 0:
        text = text.replace("o", draw(st.sampled_from(["%6f", "%6F", "%6", "+"])), draw(st.integers(0, 3)))
    return f"/FeatureGroup/{quote(draw(st.sampled_from(GROUPS)), safe=draw(st.sampled_from(['', '/:'])))}?{text}"


@st.composite
def requests(draw: st.DrawFn) -> bytes:
    headers = draw(
        st.lists(
            st.sampled_from(
                [
                    *(
                        "Accept: */*",
                        "Content-Type: application/json",
                        "User-Agent: any",
                        "X-Empty:",
                        "X-Forwarded-For: 192.0.2.1",
                    ),
                    *(
                        "amz-sdk-invocation-id: one",
                        "amz-sdk-invocation-id: two",
                        "Expect: 100-continue",
                        "Connection: keep-alive",
                    ),
                ]
            ),
            max_size=3,
            unique=True,
        )
    )
    match draw(st.integers(0, 9)):
        case 0 | 1 | 2 | 3:
            method = draw(st.sampled_from(["GET"] * 8 + ["OPTIONS", "DELETE"]))
            return request(method, draw(targets_of_get()), draw(st.sampled_from([None, None, None, b"", b"{}"])), *headers)
        case 4 | 5:
            body: Any = {"Record": draw(records())} | draw(members())
            return request("PUT", f"/FeatureGroup/{quote(draw(st.sampled_from(GROUPS)), safe='')}", encoded(body), *headers)
        case 6:
            wanted = st.fixed_dictionaries(
                {
                    "FeatureGroupName": st.sampled_from(GROUPS),
                    "RecordIdentifiersValueAsString": st.lists(IDENTIFIERS, max_size=3),
                },
                optional={"FeatureNames": st.lists(FEATURES, max_size=2)},
            )
            return request("POST", "/BatchGetRecord", encoded({"Identifiers": draw(st.lists(wanted, max_size=3))}), *headers)
        case 7:
            entry = st.tuples(
                st.fixed_dictionaries({"FeatureGroupName": st.sampled_from(GROUPS), "Record": records()}), members()
            )
            entries = [one | other for one, other in draw(st.lists(entry, max_size=3))]
            return request("POST", "/BatchWriteRecord", encoded({"Entries": entries}), *headers)
        case 8:
            return request("GET", draw(st.sampled_from(["/health", "/v1/nope", "/v1/nope/x", f"/FeatureGroup/{STANDARD}"])))
        case _:
            return request(
                "POST", "/", b'{"FeatureGroupName":"nothing"}', "X-Amz-Target: SageMaker.DescribeFeatureGroup", *headers
            )


@st.composite
def broken(draw: st.DrawFn) -> bytes:
    """A request that may not be HTTP any more. Its length does not grow by a digit: FILL_BYTES must do for it. And it does
    not become one that lists groups or buckets with the times of their creation, which are not the same in two stores.
    """
    data = draw(requests())
    head, end, body = data.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    match draw(st.integers(0, 9)):
        case 0:
            at = draw(st.integers(0, len(data) - 1).filter(lambda at: data[at - 1 : at] != b"/"))
            changed = data[at] ^ draw(st.integers(1, 255))
            return data[:at] + bytes([changed]) + data[at + 1 :]
        case 9:
            at = draw(st.integers(0, len(head) - 1))
            return data[:at] + data[at + 1 :]
        case 1:
            return data[: draw(st.integers(0, len(data)))]
        case 2:
            line = draw(st.sampled_from(lines))
            return b"\r\n".join([*lines, line]) + end + body
        case 3:
            return b"\r\n".join(draw(st.permutations(lines))) + end + body
        case 4 if not data.startswith(b"POST / "):
            name = draw(st.sampled_from([b"HEAD", b"PATCH", b"POST", b"PUT", b"GET", b"get", b"BREW", b""]))
            return name + b" " + data.partition(b" ")[2]
        case 5:
            added = draw(
                st.sampled_from(
                    [
                        *(
                            b"Connection: close",
                            b"Proxy-Connection: close",
                            b"Transfer-Encoding: chunked",
                            b"Content-Length: 3",
                            b"Host: example.com",
                        ),
                        *(b"X: a\r\n b", b"X Y: a", b"X", b": a", b"X: \0", b"Expect: x"),
                    ]
                )
            )
            return b"\r\n".join([*lines[:1], added, *lines[1:]]) + end + body
        case 6:
            return data.replace(b"\r\n", draw(st.sampled_from([b"\n", b"\r", b"\r\n ", b"\r\n\r\n"])), draw(st.integers(1, 3)))
        case 7:
            return data.replace(b"HTTP/1.1", draw(st.sampled_from([b"HTTP/1.0", b"HTTP/2.0", b"http/1.1", b""])), 1)
        case _:
            rest = b"".join(b"%x\r\n%b\r\n" % (1, body[at : at + 1]) for at in range(min(len(body), 300)))
            kept = [line for line in lines if not line.startswith(b"Content-Length")]
            return b"\r\n".join([*kept, b"Transfer-Encoding: chunked"]) + end + rest + b"0\r\n\r\n"


def items() -> st.SearchStrategy[list[Item]]:
    good = requests().map(lambda data: Item(data, True))
    bad = broken().map(lambda data: Item(data, False))
    return st.lists(st.one_of(good, good, good, bad), min_size=1, max_size=6)


@st.composite
def like_requests(draw: st.DrawFn) -> list[Item]:
    """GetRecords and PutRecords that have nearly everything in common, as those of one client have."""
    headers = draw(st.sampled_from([(), ("Accept: */*",), ("amz-sdk-invocation-id: one", "Accept: */*")]))
    plain = st.sampled_from(["one", "bare", "nobody", "deleted", "7", "live", "a.b_c-d~e", "x" * 300])
    found = []
    for _ in range(draw(st.integers(2, 8))):
        kind = draw(st.integers(0, 9))
        target = f"/FeatureGroup/{draw(st.sampled_from([STANDARD] * 6 + [TTL, 'unknown']))}"
        if kind == 0:
            body = encoded({"Record": record(id=f"@{draw(st.sampled_from('abc'))}", at=draw(TIMES))})
            data = request("PUT", target, body, *headers)
        else:
            data = request("GET", "/health" if kind == 1 else f"{target}?{query(draw(plain))}", None, *headers)
        if kind == 2:
            at = draw(st.integers(0, len(data) - 1).filter(lambda at, data=data: data[at - 1 : at] != b"/"))  # type: ignore[misc]
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        found.append(Item(data, kind != 2))
    return found


def cut(data: bytes, places: random.Random) -> list[bytes]:
    """Pieces of the bytes, few or many."""
    count = places.choice([0, 1, 3, 20])
    cuts = sorted(places.randrange(len(data) + 1) for _ in range(count))
    return [data[start:end] for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def conversation(client: Client, script: Sequence[Item], places: random.Random, *, waiting: bool) -> bytes:
    """Everything that comes back. Waiting, each good request is answered before the next, as long as there were only such."""
    found = b""
    while waiting and script and script[0].good:
        item, script = script[0], script[1:]
        client.send(*cut(item.data, places))
        if b"Expect: " in item.data:  # asked for its body, unless it was refused before
            found += client.answer()
            if not found.endswith(b" Continue\r\n\r\n"):
                return found + client.rest()
        found += client.answer() + SEPARATOR
    client.send(*cut(b"".join(item.data for item in script), places))
    return found + client.goodbye(FINALS)


@seed(SEED)
@SETTINGS
@given(st.one_of(items(), like_requests()), st.integers(0, 1 << 30), st.booleans())
def test_pipelines(twins: World, script: list[Item], places: int, waiting: bool) -> None:
    own = b"%07d" % next(_numbers)
    script = [Item(in_own_name(item.data, own), item.good) for item in script]

    def talk(client: Client) -> bytes:
        return conversation(client, script, random.Random(places), waiting=waiting)

    received = twins.pair.alike(talk)
    if all(item.good for item in script):
        assert received.endswith(FINAL_ANSWER) or b"connection: close" in received
    if NOT_HTTP not in received:  # else how much was carried out is a matter of time
        wanted = [f"{own.decode()}{letter}" for letter in "abc"]
        groups = [STANDARD, MEMORY, TTL, ONLINE_ONLY, EVOLVED]
        identifiers = [{"FeatureGroupName": group, "RecordIdentifiersValueAsString": wanted} for group in groups]
        twins.pair.ask(request("POST", "/BatchGetRecord", encoded({"Identifiers": identifiers})))


def in_own_name(data: bytes, own: bytes) -> bytes:
    """With `@` replaced by a text of the pipeline's own, and lengths that fit if they did before."""
    head, end, body = data.partition(b"\r\n\r\n")
    grown = body.replace(b"@", own)
    length = b"Content-Length: %d" % len(body)
    return head.replace(b"%40", own).replace(length, b"Content-Length: %d" % len(grown)) + end + grown
