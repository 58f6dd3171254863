"""Stamped rows: changes of one group by columns, as batch ingest and rebuild load them into an online store."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.model.change import LoggedChange
from featurestore.model.plain_column import TEXT, Int64s

SCHEMA: Final = pa.schema(
    [
        pa.field("record_id", TEXT, nullable=False),
        pa.field("shard", pa.int32(), nullable=False),
        pa.field("event_time_us", pa.int64(), nullable=False),
        pa.field("api_time_us", pa.int64(), nullable=False),
        pa.field("expires_at_us", pa.int64()),
        pa.field("op", pa.uint8(), nullable=False),
        pa.field("targets", pa.uint8(), nullable=False),
        pa.field("values", pa.large_binary(), nullable=False),
    ]
)
"""The members of `Change` and `Stamp` that take part in a load."""


@dataclass(frozen=True, slots=True)
class StampedRows:
    """Changes of one group that have their api times and are kept elsewhere already.

    Attributes:
        columns: as SCHEMA says, one row for each change.
    """

    group_id: int
    columns: pa.Table

    def __len__(self) -> int:
        rows: int = self.columns.num_rows
        return rows

    @classmethod
    def of_changes(cls, items: Sequence[LoggedChange]) -> Self:
        """Changes in their order, at least one and all of one group."""
        (group_id,) = {item.change.group_id for item in items}
        members: list[list[Any]] = [
            [item.change.record_id for item in items],
            [item.stamp.shard for item in items],
            [item.change.event_time_us for item in items],
            [item.stamp.api_time_us for item in items],
            [item.change.expires_at_us for item in items],
            [item.change.op for item in items],
            [item.change.targets for item in items],
            [item.change.values for item in items],
        ]
        arrays = [pa.array(values, field.type) for values, field in zip(members, SCHEMA, strict=True)]
        return cls(group_id, pa.table(arrays, schema=SCHEMA))

    @classmethod
    def of_bytes(cls, group_id: int, data: bytes) -> Self:
        """The inverse of `to_bytes`.

        Raises:
            ValueError: the bytes are not such.
        """
        try:
            table = pa.ipc.open_file(data).read_all()
        except OSError as error:  # data that is cut off
            raise ValueError(str(error)) from error
        if table.schema != SCHEMA:
            raise ValueError(f"columns {table.schema.names} of types {[str(kind) for kind in table.schema.types]}")
        return cls(group_id, table)

    def to_bytes(self) -> bytes:
        """An Arrow IPC file of the columns."""
        buffer = io.BytesIO()
        with pa.ipc.new_file(buffer, SCHEMA) as file:
            file.write_table(self.columns)
        return buffer.getvalue()

    def slice(self, first: int, count: int) -> Self:
        return type(self)(self.group_id, self.columns.slice(first, count))

    def where(self, keep: npt.NDArray[np.bool_]) -> Self:
        return type(self)(self.group_id, self.columns.filter(pa.array(keep)))

    def int64s(self, name: str) -> Int64s:
        """A column of numbers none of which is null."""
        numbers: Int64s = self.columns[name].to_numpy().astype(np.int64, copy=False)
        return numbers
