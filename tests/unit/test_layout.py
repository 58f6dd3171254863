from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from featurestore.model.event_time import EVENT_TIME_US_MAX, EVENT_TIME_US_MIN, parse_iso
from featurestore.offline import layout
from featurestore.offline.layout import FileKind

PATH = re.compile(
    r"root/data/year=\d{4}/month=\d{2}/day=\d{2}/hour=\d{2}/(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})Z_[0-9A-Za-z]{16}\.parquet"
)


@given(st.integers(EVENT_TIME_US_MIN, EVENT_TIME_US_MAX))
def test_a_data_file_is_named_after_its_latest_event_time(time_us: int) -> None:
    key = layout.data_key("root", time_us, layout.token("root", FileKind.BATCH, "x"))
    match = PATH.fullmatch(key)
    assert match is not None
    assert parse_iso("{}-{}-{}T{}:{}:{}Z".format(*match.groups())) == time_us // 1_000_000 * 1_000_000
    assert "year={}/month={}/day={}/hour={}".format(*match.groups()[:4]) in key
    assert layout.latest_event_time_us(key) == time_us // 1_000_000 * 1_000_000


def test_tokens_are_a_function_of_their_parts() -> None:
    def token(*parts: object) -> str:
        return layout.token("root", FileKind.STREAM, *parts)

    assert token("a", 1) == token("a", 1)
    assert len({token("a", number) for number in range(1000)} | {token("a1"), token("a", "1", "")}) == 1002


def test_files_of_our_own_are_known_by_name() -> None:
    for kind in FileKind:
        key = layout.data_key("root", 0, layout.token("root", kind, "x"))
        assert layout.kind_of("root", key) is kind
        assert layout.kind_of("other", key) is None, "a copy from another group is none of ours"
    for name in ("data/19700101T000000Z_0123456789abcdef.parquet", "data/a.parquet", "data/x", "opt/19700101T000000Z_s.parquet"):
        assert layout.kind_of("root", name) is None


@given(
    hnp.arrays(np.int64, st.integers(1, 400), elements=st.integers(0, 40 * 365 * 24 * 3_600_000_000)),
    st.integers(1, 10_000),
)
def test_every_row_is_in_one_file_and_files_are_few(times_us: np.ndarray, shrink: int) -> None:
    times_us = times_us // shrink
    groups = layout.file_groups(times_us)
    assert sorted(np.concatenate(groups).tolist()) == list(range(len(times_us)))
    assert len(groups) <= layout.PARTITIONS_MAX
    hours = {tuple(np.unique(times_us[rows] // layout.HOUR_US)) for rows in groups}
    if len(np.unique(times_us // layout.HOUR_US)) <= layout.PARTITIONS_MAX:
        assert all(len(spanned) == 1 for spanned in hours)


def test_large_groups_are_cut() -> None:
    groups = layout.file_groups(np.zeros(2 * layout.FILE_ROWS_MAX + 5, np.int64))
    assert [len(rows) for rows in groups] == [layout.FILE_ROWS_MAX, layout.FILE_ROWS_MAX, 5]
