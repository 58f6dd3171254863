"""The change log: the ordered changes of each shard, as the offline writer reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from featurestore.model.change import LogEntry


class ChangeSource(Protocol):
    """Synchronous; safe to call from several threads and processes.

    Entries of a shard have offsets, from 1, that rise but need not be dense. The changes in them have `seq` numbers, dense per
    shard from 1. A log may deliver changes again: then some tail of what was delivered stands there once more, in order, at
    later offsets.
    """

    def shards(self) -> int:
        """How many shards there are: 0 to shards() - 1."""

    def ends(self) -> Mapping[int, int]:
        """Per shard the offset after its newest entry: every change acknowledged before this call is below it.

        Raises:
            StoreUnavailable
        """

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        """Up to `entries_max` entries from `offset_first` on, in order, none left out; empty at the end of the shard.

        If entries before the first remaining one are asked for, the answer starts later than `offset_first`: somebody
        else has written them offline and trimmed them. An entry that does not decode is a PoisonChange.

        Raises:
            StoreUnavailable
        """

    def trim(self, shard: int, offset_next: int) -> None:
        """Forget the entries below `offset_next`; they are in the offline store. Idempotent.

        Raises:
            StoreUnavailable
        """

    def close(self) -> None:
        """Release connections."""


class Outbox(ChangeSource, Protocol):
    """The change log that the online store writes. An entry's offset is its `seq`."""

    def trimmed(self) -> Mapping[int, int]:
        """Per shard the first offset that was not trimmed: what lies below has reached what comes after the outbox.

        Raises:
            StoreUnavailable
        """
