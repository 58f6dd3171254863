"""Messages of users' topics, as records."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ValidationFailed
from featurestore.model.feature_group import FeatureGroup, FeatureType, OnlineConfig, definitions
from featurestore.model.stream import REASON_CHARS_MAX, MessageFault, Stream, check_stream, json_decoder

GROUP = FeatureGroup(
    "clicks",
    "id",
    "t",
    definitions([("id", FeatureType.STRING), ("t", FeatureType.STRING), ("price", FeatureType.FRACTIONAL)]),
    online=OnlineConfig(),
)
STREAM = Stream("clicks", "web.clicks", "clicks", "web.clicks.dead")


def test_members_are_features_and_numbers_keep_their_digits() -> None:
    message = (
        b'{"id": "u1", "t": "2024-05-01T00:00:00Z", "price": 1.50, "n": 12345678901234567890, "no": null, "l": [1, 2.0, "x"]}'
    )
    assert json_decoder({})(message) == [
        ("id", "u1"),
        ("t", "2024-05-01T00:00:00Z"),
        ("price", "1.50"),
        ("n", "12345678901234567890"),
        ("l", ["1", "2.0", "x"]),
    ]


def test_paths_lead_to_members_and_nothing_else_counts() -> None:
    decode = json_decoder({"id": "user.id", "t": "at", "price": "cart.total.eur"})
    assert decode(b'{"user": {"id": 7, "name": "x"}, "at": 1.5, "other": {}}') == [("id", "7"), ("t", "1.5")]
    assert decode(b'{"user": 7, "cart": {"total": [1]}}') == []


@given(st.dictionaries(st.text(max_size=5), st.one_of(st.none(), st.text(max_size=5), st.integers(), st.lists(st.text()))))
def test_every_flat_object_is_taken_as_it_is(members: dict[str, object]) -> None:
    def text(value: object) -> object:
        return [str(one) for one in value] if isinstance(value, list) else str(value)

    expected = [(name, text(value)) for name, value in members.items() if value is not None]
    assert json_decoder({})(json.dumps(members).encode()) == expected
    assert json_decoder({})(json.dumps(members, ensure_ascii=False).encode()) == expected


FAULTY = {
    b"": "no JSON: Expecting value",
    b"\xff": "no UTF-8: byte 0",
    b"{": "no JSON: ",
    b'{"id": 1} x': "no JSON: Extra data",
    b'{"id": NaN}': "no JSON: NaN is no JSON number",
    b'{"id": 1, "id": 2}': "no JSON: member 'id' is there twice",
    b"[1]": "a JSON object is expected, got a list",
    b"1": "a JSON object is expected, got a number",
    b"null": "a JSON object is expected, got null",
    b'{"id": true}': "id: expected a text, a number or a list of these, got true or false",
    b'{"id": {"a": 1}}': "id: expected a text, a number or a list of these, got an object",
    b'{"id": ["a", null]}': "id[1]: expected a text, a number or a list of these, got null",
    b"[" * 100_000: "no JSON that is looked at: nested too deeply",
}


@pytest.mark.parametrize("message", FAULTY, ids=lambda message: repr(message[:20]))
def test_what_is_no_record_is_told_why(message: bytes) -> None:
    with pytest.raises(MessageFault) as fault:
        json_decoder({})(message)
    assert FAULTY[message] in str(fault.value)


@given(st.binary(max_size=40))
def test_any_bytes_are_records_or_faults(message: bytes) -> None:
    reason = "none"
    try:
        assert isinstance(json_decoder({"id": "a.b"})(message), list)
    except MessageFault as fault:
        reason = str(fault)
    assert 0 < len(reason) <= REASON_CHARS_MAX


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": "no_underscores"}, "name: expected"),
        ({"topic": "a b"}, "topic: expected a topic name"),
        ({"topic": ".."}, "topic: expected a topic name"),
        ({"dead_letters": "web.clicks"}, "dead_letters: expected another topic"),
        ({"fields": {"id": "a", "t": "b", "x": "c"}}, "fields.x: expected a feature of 'clicks'"),
        ({"fields": {"id": "a..b", "t": "b"}}, "fields.id: expected member names with dots between them"),
        ({"fields": {"id": "a"}}, "fields: expected a path for 't'"),
    ],
)
def test_a_stream_is_checked(changes: dict[str, object], words: str) -> None:
    check_stream(STREAM, GROUP)
    members = {name: getattr(STREAM, name) for name in STREAM.__struct_fields__} | changes
    with pytest.raises(ValidationFailed) as error:
        check_stream(Stream(**members), GROUP)
    assert words in str(error.value)


def test_a_replay_is_another_source() -> None:
    again = Stream(**{name: getattr(STREAM, name) for name in STREAM.__struct_fields__} | {"epoch": 2})
    assert len({STREAM.source(0), STREAM.source(1), again.source(0)}) == 3
