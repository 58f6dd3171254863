from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import StoreCorrupt
from featurestore.model.change import Change, Op, shard_of, shards_of
from featurestore.model.codec import decode_change, decode_values, encode_change, encode_columns, encode_values

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


SCALARS = st.none() | st.text(max_size=40) | st.sampled_from([31, 32, 255, 256, 65_535, 65_536]).map(lambda size: "x" * size)
LISTS = st.none() | st.lists(st.text(max_size=40), min_size=1, max_size=20)


@st.composite
def columns(draw: st.DrawFn) -> list[pa.Array]:
    rows = draw(st.integers(0, 5))
    kinds = draw(st.lists(st.booleans(), min_size=1, max_size=20))
    cells = [draw(st.lists(LISTS if is_list else SCALARS, min_size=rows, max_size=rows)) for is_list in kinds]
    types = [pa.large_list(pa.large_string()) if is_list else pa.large_string() for is_list in kinds]
    return [pa.array(column, kind) for column, kind in zip(cells, types, strict=True)]


@given(st.integers(1, 2**31), columns())
def test_columns_become_what_their_rows_become(version: int, drawn: list[pa.Array]) -> None:
    rows = zip(*(column.to_pylist() for column in drawn), strict=True)
    assert encode_columns(version, drawn).to_pylist() == [encode_values(version, row) for row in rows]


@pytest.mark.parametrize("count", [15, 16, 65_535, 65_536])
def test_long_lists_become_what_their_rows_become(count: int) -> None:
    cells = [["a"] * count, None, ["b"]]
    column = pa.array(cells, pa.large_list(pa.large_string()))
    assert encode_columns(1, [column]).to_pylist() == [encode_values(1, [cell]) for cell in cells]


@given(st.lists(st.text()), st.integers(1, 300))
def test_shards_of_a_column_are_those_of_its_keys(keys: list[str], shards: int) -> None:
    assert shards_of(pa.array(keys, pa.large_string()), shards).tolist() == [shard_of(key, shards) for key in keys]


def test_shards_never_move() -> None:
    keys = ["a", "user-42", "é", "", "10.0"]
    assert [shard_of(key, 4) for key in keys] == [3, 3, 2, 0, 0]
