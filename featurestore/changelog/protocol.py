"""The change log: the ordered changes of each shard, as the offline writer reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from featurestore.model.change import LoggedChange


class ChangeSource(Protocol):
    """Synchronous; safe to call from several threads and processes. Positions are `seq` numbers, dense per shard from 1."""

    def shards(self) -> int:
        """How many shards there are: 0 to shards() - 1."""

    def ends(self) -> Mapping[int, int]:
        """Per shard the position after its newest change: every change acknowledged before this call is below it.

        Raises:
            StoreUnavailable
        """

    def read(self, shard: int, offset_next: int, changes_max: int) -> Sequence[LoggedChange]:
        """Up to `changes_max` changes from `offset_next` on, in order and without gaps; empty at the end of the shard.

        If changes before the first remaining one are asked for, the answer starts later than `offset_next`: somebody
        else has written them offline and trimmed them.

        Raises:
            StoreUnavailable
            StoreCorrupt: an entry does not decode.
        """

    def trim(self, shard: int, offset_next: int) -> None:
        """Forget the changes below `offset_next`; they are in the offline store. Idempotent.

        Raises:
            StoreUnavailable
        """

    def close(self) -> None:
        """Release connections."""
