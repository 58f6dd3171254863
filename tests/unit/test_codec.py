from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import StoreCorrupt
from featurestore.model.change import Change, Op, shard_of
from featurestore.model.codec import decode_change, decode_values, encode_change, encode_values

VALUES = st.lists(st.one_of(st.none(), st.text(), st.lists(st.text(), min_size=1)))


@given(st.integers(1, 2**31), VALUES)
def test_values_come_back_without_trailing_absences(version: int, values: list[str | list[str] | None]) -> None:
    found_version, found = decode_values(encode_values(version, values))
    assert found_version == version
    assert found + [None] * (len(values) - len(found)) == values
    assert not found or found[-1] is not None


@given(
    st.builds(
        Change,
        st.integers(1, 2**40),
        st.integers(1, 1000),
        st.text(max_size=50),
        st.integers(-(2**60), 2**60),
        st.sampled_from(Op),
        st.integers(1, 3),
        st.one_of(st.none(), st.integers(-(2**60), 2**60)),
        st.binary(),
        st.one_of(st.none(), st.binary(min_size=16, max_size=16)),
    )
)
def test_changes_come_back(change: Change) -> None:
    assert decode_change(encode_change(change)) == change


@pytest.mark.parametrize("data", [b"", b"\x00\x91\x01", b"\x01", b"\x01\xc1", b"\x01\x93\x01", b"\x02\x91\x01"])
def test_foreign_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(StoreCorrupt):
        decode_values(data)
    with pytest.raises(StoreCorrupt):
        decode_change(data)


def test_the_formats_are_fixed() -> None:
    """The bytes of docs/formats.md: a release that changes them raises the version byte."""
    assert encode_values(1, ["a", None, "2"]).hex() == "019401a161c0a132"
    change = Change(7, 1, "k", 5, Op.PUT, 3, None, b"\x01\x91\x01")
    assert encode_change(change).hex() == "01990701a16b050103c0c403019101c0"


def test_shards_never_move() -> None:
    keys = ["a", "user-42", "é", "", "10.0"]
    assert [shard_of(key, 4) for key in keys] == [0, 3, 3, 0, 0]
