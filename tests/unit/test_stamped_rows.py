from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from featurestore.model.change import Change, LoggedChange, Op, Stamp
from featurestore.model.stamped_rows import StampedRows

CHANGES = [
    LoggedChange(Change(7, 1, "a", -5, Op.PUT, 3, None, b"one"), Stamp(2, 0, 10)),
    LoggedChange(Change(7, 1, "\u00e9", 6, Op.SOFT_DELETE, 1, 99, b""), Stamp(300, 0, 11)),
    LoggedChange(Change(7, 2, "", 0, Op.HARD_DELETE, 2, None, b"\0"), Stamp(0, 5, 12)),
]


def test_rows_come_back() -> None:
    rows = StampedRows.of_changes(CHANGES)
    assert rows.columns.to_pylist()[1] == {
        "record_id": "\u00e9",
        "shard": 300,
        "event_time_us": 6,
        "api_time_us": 11,
        "expires_at_us": 99,
        "op": 2,
        "targets": 1,
        "values": b"",
    }
    assert StampedRows.of_bytes(7, rows.to_bytes()) == rows
    assert len(rows.where(rows.int64s("event_time_us") < 0)) == 1
    assert StampedRows.of_bytes(7, rows.slice(1, 2).to_bytes()) == rows.where(np.array([False, True, True]))


def test_other_bytes_are_refused() -> None:
    buffer = pa.BufferOutputStream()
    with pa.ipc.new_file(buffer, pa.schema([("a", pa.int64())])):
        pass
    for data in (b"", b"nothing of ours", buffer.getvalue().to_pybytes(), StampedRows.of_changes(CHANGES).to_bytes()[:-100]):
        with pytest.raises(ValueError):  # noqa: PT011 (Arrow words it)
            StampedRows.of_bytes(7, data)


def test_changes_of_two_groups_are_no_rows() -> None:
    other = LoggedChange(Change(8, 1, "a", 0, Op.PUT, 3, None, b""), Stamp(0, 0, 1))
    with pytest.raises(ValueError, match="too many values"):
        StampedRows.of_changes([*CHANGES, other])
