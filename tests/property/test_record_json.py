"""Records as JSON: what is put together from ready-made text is what an encoder makes of the whole."""

from __future__ import annotations

import json
from dataclasses import replace

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from api.batch_get import BatchGet, Entry
from api.record_json import RecordJson, batch_json, record_json
from featurestore.errors import StoreCorrupt, ValidationFailed
from featurestore.model.codec import encode_values
from featurestore.model.event_time import format_iso
from featurestore.model.feature_group import CollectionType, FeatureDefinition, FeatureGroup, FeatureType, OnlineConfig
from featurestore.model.record import RecordPlan
from featurestore.model.value import Value

NAMES = ["id", "at", "a", "b-c", "d_e", "tags", "f"]
GROUP = FeatureGroup(
    name="g",
    record_identifier="id",
    event_time="at",
    features=tuple(
        FeatureDefinition(name, FeatureType.STRING, CollectionType.LIST if name == "tags" else None) for name in NAMES
    ),
    online=OnlineConfig(),
    offline=None,
)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=300) | st.from_regex(r"[0-9.]{0,9}", fullmatch=True)
ROWS = st.lists(TEXTS | st.none() | st.lists(TEXTS, max_size=3), max_size=len(NAMES))


@given(
    row=ROWS,
    selected=st.none() | st.lists(st.sampled_from(range(len(NAMES))), min_size=1, unique=True).map(sorted),
    expires_at_us=st.none() | st.integers(-(10**15), 10**17),
    version=st.sampled_from([1, 127, 128, 70_000]),
)
@example(row=["x" * 0x22, "y" * 0x5C], selected=None, expires_at_us=None, version=1)  # lengths that look like what is escaped
@example(row=["1"] * 7, selected=[3], expires_at_us=0, version=1)
def test_json_is_what_an_encoder_makes(
    row: list[Value], selected: list[int] | None, expires_at_us: int | None, version: int
) -> None:
    plan = RecordPlan(GROUP)
    values = encode_values(version, row)
    text = RecordJson(plan, selected).text("{", values, expires_at_us)
    assert RecordJson(plan, selected).whole(values, expires_at_us) == text.encode()
    pairs = plan.pairs(row, selected)
    expected: dict[str, object] = {
        "Record": [
            {"FeatureName": name, "ValueAsString" if isinstance(value, str) else "ValueAsStringList": value}
            for name, value in pairs
        ]
    }
    if expires_at_us is not None:
        expected["ExpiresAt"] = format_iso(expires_at_us)
    assert json.loads(text) == expected
    assert list(json.loads(text)) == list(expected)
    assert text.isascii() or text.encode().decode() == text


PLAIN = st.from_regex("[a-z0-9 ]{1,9}", fullmatch=True)
HARD = st.sampled_from(['"', "\\", "\x00", "\x1f", "\n", "\x7f", "\x80", "\u2028", "\U0001f980", "/"])
SIMPLE_ROWS = st.lists(PLAIN, min_size=len(NAMES), max_size=len(NAMES))
SPARSE_ROWS = st.lists(PLAIN | st.none(), max_size=len(NAMES))
FULL = ["1", "2", "3", "4", "5", "6", "7"]
GAPS = ["1", "2", None, None, "5", "", None]


@given(
    asked=st.lists(
        st.tuples(PLAIN | HARD, st.lists(st.tuples(PLAIN | HARD, st.none() | SIMPLE_ROWS | SPARSE_ROWS | ROWS), max_size=5)),
        max_size=3,
    ),
    selected=st.none() | st.lists(st.sampled_from(range(len(NAMES))), min_size=1, unique=True).map(sorted),
    expires_at_us=st.none() | st.integers(-(10**15), 10**17),
    with_expiry=st.booleans(),
)
@example(
    asked=[("g", [("plain", FULL), ('a "hard" \\ one', None), ("a\nline", FULL)])],
    selected=None,
    expires_at_us=5,
    with_expiry=True,
)
@example(asked=[("empty", []), ("g", [("none", None), ("plain", FULL)])], selected=[3], expires_at_us=5, with_expiry=False)
@example(
    asked=[("g", [("all", FULL), ("gaps", GAPS), ("short", FULL[:3]), ("all", FULL)])],
    selected=None,
    expires_at_us=7,
    with_expiry=True,
)
@example(asked=[("g", [("more", [*FULL, "8"]), ("all", FULL)])], selected=None, expires_at_us=None, with_expiry=True)
@example(asked=[("g", [("more", [*FULL, "8"]), ("too", [*FULL, "9"])])], selected=None, expires_at_us=None, with_expiry=True)
@example(asked=[("g", [("gaps", GAPS), ("none", []), ("all", FULL)])], selected=[2, 5, 6], expires_at_us=None, with_expiry=True)
@example(
    asked=[("g", [("a", FULL), ("b", [*FULL[:6], 'a "hard" one']), ("c", GAPS)])],
    selected=None,
    expires_at_us=None,
    with_expiry=True,
)
@example(
    asked=[("g", [("a", FULL), ("b", [*FULL[:5], ["a", "list"]]), ("c", GAPS)])], selected=None, expires_at_us=9, with_expiry=True
)
def test_a_batch_is_what_an_encoder_makes(
    asked: list[tuple[str, list[tuple[str, list[Value] | None]]]],
    selected: list[int] | None,
    expires_at_us: int | None,
    with_expiry: bool,
) -> None:
    plan = RecordPlan(GROUP)
    form = RecordJson(plan, selected)
    entries = [Entry(place, name, [key for key, _ in found], form) for place, (name, found) in enumerate(asked)]
    batch = BatchGet(entries, [], [{"ErrorCode": "x", "ErrorMessage": 'said "no"'}], with_expiry)
    rows = [(name, identifier, row) for name, found in asked for identifier, row in found]
    # Each has an expiry of its own, and every third none.
    expiries = [None if expires_at_us is None or place % 3 == 2 else expires_at_us + place for place in range(len(rows))]
    items = [None if row is None else (encode_values(1, row), at) for (_, _, row), at in zip(rows, expiries, strict=True)]
    expected = [
        {
            "FeatureGroupName": name,
            "RecordIdentifierValueAsString": identifier,
            "Record": [
                {"FeatureName": feature, "ValueAsString" if isinstance(value, str) else "ValueAsStringList": value}
                for feature, value in plan.pairs(row, selected)
            ],
            **({"ExpiresAt": format_iso(at)} if with_expiry and at is not None else {}),
        }
        for (name, identifier, row), at in zip(rows, expiries, strict=True)
        if row is not None
    ]
    found = json.loads(batch_json(batch, items))
    assert found == {"Records": expected, "Errors": batch.errors, "UnprocessedIdentifiers": []}
    assert [list(record) for record in found["Records"]] == [list(record) for record in expected]


@given(st.lists(TEXTS, min_size=20, max_size=20))
def test_many_features(texts: list[str]) -> None:
    """More than fit the short form of an array."""
    features = (*GROUP.features[:2], *(FeatureDefinition(f"f{number}", FeatureType.STRING) for number in range(18)))
    plan = RecordPlan(replace(GROUP, features=features))
    found = json.loads(RecordJson(plan, None).text("{", encode_values(1, texts), None))
    assert [item["ValueAsString"] for item in found["Record"]] == texts


def test_a_choice_is_compiled_once_and_too_many_are_forgotten() -> None:
    plan = RecordPlan(GROUP)
    assert record_json(plan, ["a", "f"]) is record_json(plan, ["a", "f"])
    for number in range(1000):
        record_json(plan, ["a"] * (number % 5 + 1) + [NAMES[number % 7]])
    assert len(plan.compiled) <= 256
    with pytest.raises(ValidationFailed, match="nobody"):
        record_json(plan, ["nobody"])


NO_VALUES = [2.5, True, {"a": "1"}, b"x", [1.5], [["a"]], [None]]


@pytest.mark.parametrize(
    "values",
    [
        *(b"\x01\xa81234567x",),
        *(b"", b"\x02\x91\x01", b"\x01", b"\x01\x92\x01", b"\x01\x92\x01\xa2x", b"\x01\xa1x", b"\x01\x92\x01\xa1\xff"),
        *(b"\x01" + msgspec.msgpack.encode([1, "1", value]) for value in NO_VALUES),
    ],
)
def test_bytes_that_are_no_record(values: bytes) -> None:
    form = RecordJson(RecordPlan(GROUP), None)
    with pytest.raises(StoreCorrupt):
        form.text("{", values, None)
    good = encode_values(1, FULL)
    for many in ([values], [good, values], [values, good], [good, values, good]):
        with pytest.raises(StoreCorrupt):
            form.texts(["{"] * len(many), many, [None] * len(many))


def test_two_records_in_the_place_of_one_are_not_given_to_another() -> None:
    form = RecordJson(RecordPlan(GROUP), None)
    good = encode_values(1, FULL)
    with pytest.raises(StoreCorrupt):
        form.texts(["{", "{"], [good + good[1:], good[:1]], [None, None])
