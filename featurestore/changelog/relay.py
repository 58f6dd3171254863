"""The relay: from the outbox of the online store to the Kafka topic, shard by shard, in order.

    read     the oldest entries that the outbox still holds
    send     in order, to the partition of the shard, until all are acknowledged
    trim     the outbox forgets them; what it has forgotten is the relay's stored position

A relay that dies between sending and trimming sends a tail again, and so does one that did not know that another was at work; the
offline writer passes over what it has seen. Leases keep relays from doing so all the time, and nothing rests on them:

- An entry is trimmed only after it and all before it were acknowledged. So whoever begins to send at `seq` s knows that every
  change before s is in the topic, at earlier offsets than anything it appends.
- Of one call of `send` that succeeds the messages stand in the topic in order. A call that fails may have left any of them, even
  out of order and later than it returns; but then nothing of it was trimmed, so all of it is sent again behind a dense row.

Hence reading a partition from its start, and taking each change whose `seq` is one above the last one taken, finds every change
once, whatever else stands between them. That is how the offline writer reads (`offline/writer.py`).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final, Protocol

from featurestore.changelog.kafka import message_of
from featurestore.changelog.kafka_client import KafkaProducerPort
from featurestore.changelog.protocol import ChangeSource
from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.model.change import LogEntry, Stamp

CHUNK_ENTRIES: Final = 1_000
"""Entries of one `send`: what a relay that dies sends twice at most."""
KNOWN_MAX: Final = 4 * CHUNK_ENTRIES
"""Changes of a shard that a relay remembers having seen in the topic."""
LEASE_KIND: Final = "relay"
LEASE_S: Final = 10.0
RENEW_S: Final = LEASE_S / 4
WAIT_S_MAX: Final = 30.0
"""How long `relay_until` waits for another relay that holds a shard."""
POLL_S: Final = 0.02


class Leases(Protocol):
    """Who works on which shard. Advice: two may hold one for a while when clocks differ or a holder was paused."""

    def claim(self, kind: str, owner: str, parts: Iterable[int], ttl_s: float) -> frozenset[int]:
        """Take those of `parts` that are free, expired or held by `owner`, for `ttl_s` from now; returns these.

        Raises:
            StoreUnavailable
        """

    def release(self, kind: str, owner: str) -> None:
        """Give back all that `owner` holds. Idempotent.

        Raises:
            StoreUnavailable
        """


class RelayLog(Protocol):
    """What the relay asks the log that it fills."""

    def recent_stamps(self, shard: int) -> Sequence[Stamp]:
        """See `kafka.KafkaChangeLog`."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What waits in one shard of the outbox.

    Attributes:
        entries: how many.
        api_time_us: of the oldest one; None if there is none, or if it is no change.
    """

    entries: int
    api_time_us: int | None


class Relay:
    """Any number may run at once, anywhere; one instance is used by one thread at a time.

    Args:
        owner: of the leases that `relay_until` takes.
    """

    def __init__(self, outbox: ChangeSource, log: RelayLog, producer: KafkaProducerPort, leases: Leases, owner: str) -> None:
        self._outbox = outbox
        self._log = log
        self._producer = producer
        self._leases = leases
        self._owner = owner
        self._known: dict[int, dict[int, int]] = {}

    def relay(self, shard: int, *, entries_max: int = CHUNK_ENTRIES) -> int:
        """Move the oldest entries of a shard, at most so many; returns how many.

        Raises:
            StoreUnavailable: some may be in the topic already; they are sent again by the next call.
            StoreCorrupt: the topic has another change of the same `seq`, so the outbox is an older copy of itself.
        """
        entries = self._outbox.read(shard, 1, entries_max)
        if not entries:
            return 0
        self._require_same(shard, entries)
        try:
            self._producer.send(shard, [message_of(entry) for entry in entries])
        except StoreUnavailable:
            self._known.pop(shard, None)
            raise
        self._outbox.trim(shard, entries[-1].offset + 1)
        self._know(shard, [entry.item.stamp for entry in entries if entry.item.stamp is not None])
        return len(entries)

    def relay_until(self, ends: dict[int, int]) -> int:
        """Make sure that the entries below `ends` of each shard are in the topic; returns how many this relay has moved.

        Shards that another relay holds are left to it for a while, and taken over when its lease has ended.

        Raises:
            StoreUnavailable: Kafka or another store does not answer, or the other relay does not get on.
            StoreCorrupt: as `relay`.
        """
        moved = 0
        deadline_s = time.monotonic() + WAIT_S_MAX
        behind = self._behind(ends)
        if not behind:
            return 0
        try:
            while behind:
                renewed_s = time.monotonic()
                held = self._leases.claim(LEASE_KIND, self._owner, behind, LEASE_S)
                for shard in held:
                    while shard in self._behind({shard: ends[shard]}) and time.monotonic() < renewed_s + RENEW_S:
                        moved += self.relay(shard)
                        deadline_s = time.monotonic() + WAIT_S_MAX
                behind = self._behind({shard: ends[shard] for shard in behind})
                if behind and not held:
                    if time.monotonic() > deadline_s:
                        shards = ", ".join(map(str, behind))
                        raise StoreUnavailable("relay", f"another relay holds shard {shards} and does not get on")
                    time.sleep(POLL_S)
        finally:
            self._leases.release(LEASE_KIND, self._owner)
        return moved

    def forget(self) -> None:
        """The shards were not ours for a while: look at the topic again before sending."""
        self._known.clear()

    def close(self) -> None:
        self._producer.close()

    def _behind(self, ends: dict[int, int]) -> dict[int, int]:
        """Those of the shards whose oldest entry is below the end."""
        behind = {}
        for shard, end in ends.items():
            oldest = self._outbox.read(shard, 1, 1)
            if oldest and oldest[0].offset < end:
                behind[shard] = end
        return behind

    def _require_same(self, shard: int, entries: Sequence[LogEntry]) -> None:
        """A change that the topic has lately been sent must be the same in the outbox, if it is still or again there.

        An outbox that was replaced by an older copy of itself gives numbers anew, and the writer would pass over what has them.
        """
        if shard not in self._known:
            self._know(shard, self._log.recent_stamps(shard))
        known = self._known.get(shard, {})
        for entry in entries:
            stamp = entry.item.stamp
            if stamp is not None and known.get(stamp.seq, stamp.api_time_us) != stamp.api_time_us:
                raise StoreCorrupt(
                    f"outbox shard {shard}",
                    f"its change {stamp.seq} is not the one that was relayed before: the online store is an older copy of "
                    "itself; see docs/guides/kafka.md",
                )

    def _know(self, shard: int, stamps: Iterable[Stamp]) -> None:
        known = self._known.setdefault(shard, {})
        known.update((stamp.seq, stamp.api_time_us) for stamp in stamps)
        for seq in list(islice(known, max(0, len(known) - KNOWN_MAX))):
            del known[seq]


def outbox_waiting(outbox: ChangeSource) -> dict[int, Waiting]:
    """Per shard what waits in an outbox.

    Raises:
        StoreUnavailable
    """
    found = {}
    for shard, end in outbox.ends().items():
        oldest = outbox.read(shard, 1, 1)
        stamp = oldest[0].item.stamp if oldest else None
        entries = max(0, end - oldest[0].offset) if oldest else 0
        found[shard] = Waiting(entries, None if stamp is None else stamp.api_time_us)
    return found
