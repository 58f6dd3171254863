"""Page tokens: what was given comes back, and nothing else is taken."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ValidationFailed
from featurestore.model import limits
from featurestore.model.page_token import decode_token, encode_token

SECRET = bytes(range(32))
NUMBERS = st.integers(0, 2**63 - 1)


@given(NUMBERS, st.integers(0, 1023), st.text(max_size=200))
def test_a_token_says_where_its_page_begins(group_id: int, shard: int, record_id: str) -> None:
    token = encode_token(SECRET, group_id, shard, record_id)
    assert decode_token(SECRET, group_id, token) == (shard, record_id)


@given(st.text(max_size=20), st.data())
def test_a_changed_token_is_refused(record_id: str, data: st.DataObject) -> None:
    token = encode_token(SECRET, 1, 0, record_id)
    changed = data.draw(
        st.one_of(
            st.integers(0, len(token) - 2).map(lambda at: token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]),
            st.integers(1, len(token) - 1).map(lambda end: token[:end]),
            st.text(min_size=1),
        ).filter(lambda text: text != token)
    )
    with pytest.raises(ValidationFailed, match="NextToken"):
        decode_token(SECRET, 1, changed)


def test_a_token_of_another_group_or_store_is_refused() -> None:
    token = encode_token(SECRET, 1, 0, "a")
    for secret, group_id in ((SECRET, 2), (SECRET[::-1], 1)):
        with pytest.raises(ValidationFailed, match="this feature group"):
            decode_token(secret, group_id, token)


def test_the_longest_identifier_has_a_token() -> None:
    record_id = "\U0001f980" * (limits.RECORD_IDENTIFIER_BYTES_MAX // 4)
    token = encode_token(SECRET, 2**63 - 1, 1023, record_id)
    assert len(token) <= limits.NEXT_TOKEN_CHARS_MAX
    assert decode_token(SECRET, 2**63 - 1, token) == (1023, record_id)
    for text in ("", "x" * (limits.NEXT_TOKEN_CHARS_MAX + 1)):
        with pytest.raises(ValidationFailed, match="1 to 8192 characters"):
            decode_token(SECRET, 1, text)
