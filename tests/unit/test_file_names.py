from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from featurestore.buckets.file_names import NAME_BYTES_MAX, folder_path_of, is_begin, path_of, text_of

KEYS = st.text(st.one_of(st.sampled_from("/.%a-+AZ\0\n é"), st.characters(codec="utf-8")), min_size=1, max_size=300)


def key_of(parts: tuple[str, ...]) -> str:
    """The way back, name by name."""
    key = ""
    for position, name in enumerate(parts):
        is_file = position == len(parts) - 1
        text = text_of(name, is_file=is_file)
        assert text is not None
        key += text if is_file or is_begin(name) else f"{text}/"
    return key


@given(KEYS, st.booleans())
def test_names_lead_back_to_their_key(key: str, folding: bool) -> None:
    assert key_of(path_of(key, folding=folding)) == key


@given(KEYS, st.booleans())
def test_names_are_harmless(key: str, folding: bool) -> None:
    for name in path_of(key, folding=folding):
        assert 0 < len(name.encode()) <= NAME_BYTES_MAX
        assert not name.startswith(".")
        assert not {"/", "\0", "\n"} & {*name}
        if folding:
            plain = re.sub("%[0-9A-F]{2}", "", name)
            assert plain.isascii()
            assert plain == plain.lower()


@given(KEYS, KEYS)
def test_no_file_is_where_a_folder_is(one: str, other: str) -> None:
    parts = path_of(other, folding=False)
    assert path_of(one, folding=False) not in {parts[:depth] for depth in range(1, len(parts))}


@given(KEYS, KEYS)
def test_folding_names_differ_by_more_than_case(one: str, other: str) -> None:
    names = ["/".join(path_of(key, folding=True)).casefold() for key in (one, other)]
    assert (names[0] == names[1]) == (one == other)


@given(KEYS)
def test_keys_below_a_folder_are_below_its_path(key: str) -> None:
    stem = f"{key.rstrip('/')}/" if key.rstrip("/") else ""
    folder = folder_path_of(stem, folding=False)
    assert path_of(f"{stem}x.csv", folding=False)[: len(folder)] == folder


def test_what_a_person_sees() -> None:
    def shown(key: str) -> str:
        return "/".join(path_of(key, folding=False))

    assert shown("results/2024/report.csv") == "results/2024/report.csv"
    assert shown("README") == "README%"
    assert shown("v1.0/x.csv") == "v1%2E0/x.csv"
    assert (shown("a/"), shown("a//b"), shown("a///b")) == ("a/%", "a/%-/b%", "a/%-%-/b%")
    assert (shown(".."), shown("a/../b")) == ("%2E.", "a/%2E%2E/b%")
    assert shown("100%") == "100%25%"
    assert len(path_of("/" * 1024, folding=False)) < 16
