"""What a log holds beyond the offline table, for those who need all changes: an audit, a rebuild."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from featurestore.changelog.protocol import ChangeSource
from featurestore.model.change import LogEntry
from featurestore.offline.writer import LastStep, OfflineWriter

PAGE_ENTRIES: Final = 10_000


class LogBeyondTable:
    """A log read with the offsets of the writer's steps, which manifests hold. A `ChangeSource` that trims nothing.

    It begins with the newest closed step of each shard: whatever lies below is in the manifests of its groups.
    """

    def __init__(self, source: ChangeSource, writer: OfflineWriter) -> None:
        self._source = source
        self._writer = writer

    def shards(self) -> int:
        return self._source.shards()

    def last_steps(self) -> Mapping[int, LastStep]:
        """See `OfflineWriter.last_steps`."""
        return self._writer.last_steps()

    def ends(self) -> Mapping[int, int]:
        steps = self._writer.last_steps()
        return {shard: end + steps[shard].log_base for shard, end in self._source.ends().items()}

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        return self._read(self._writer.last_steps()[shard], shard, offset_first, entries_max)

    def trim(self, shard: int, offset_next: int) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing: the source belongs to somebody else."""

    def changes(self, shard: int, step: LastStep, offset_end: int) -> Iterator[LogEntry]:
        """The entries with a place in the shard from `step` on and below `offset_end`, each change once and in order.

        Raises:
            StoreUnavailable, StoreCorrupt
        """
        offset, seq_last = step.offset_first, step.seq_before
        while offset < offset_end and (entries := self._read(step, shard, offset, PAGE_ENTRIES)):
            for entry in entries:
                stamp = entry.item.stamp
                if entry.offset < offset_end and stamp is not None and stamp.seq == seq_last + 1:
                    seq_last = stamp.seq
                    yield entry
            offset = entries[-1].offset + 1

    def _read(self, step: LastStep, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        offset = max(offset_first, step.offset_first) - step.log_base
        entries = self._source.read(shard, offset, entries_max)
        return [LogEntry(entry.offset + step.log_base, entry.item) for entry in entries]
