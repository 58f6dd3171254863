"""The change log as a topic of Apache Kafka: partition p holds shard p, and the relay fills it from the outbox.

An entry's offset is its Kafka offset + 1, since the offsets of a change log begin at 1. How far a reader has got is its own
business: nothing is committed to Kafka, and no reader is ever moved to another place than it asked for. A topic that has lost
what is asked for is an error. `trim` does nothing, since the retention of the topic ends what it holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from featurestore.changelog.kafka_client import MESSAGE_BYTES_MAX, KafkaAddress, Message, answering, connected
from featurestore.errors import SettingsInvalid, StoreCorrupt, StoreUnavailable
from featurestore.model.change import LogEntry, LoggedChange, PoisonChange, Stamp
from featurestore.model.codec import decode_change, encode_change

_log: Final = logging.getLogger(__name__)

MESSAGE_VERSION: Final = b"\x01"
HEADER_GROUP: Final = "group"
HEADER_OP: Final = "op"
HEADER_SEQ: Final = "seq"

STALLED_S_MAX: Final = 15.0
"""How long entries that exist may take to arrive."""
POLL_MS: Final = 500
FETCH_BYTES: Final = 8 << 20
"""Of one partition in one answer; what is larger comes alone."""
RETENTION_MS: Final = 7 * 24 * 3600 * 1000
"""Of topics made here. It must be longer than the offline writer is ever out of order."""
TAIL_ENTRIES: Final = 2_000
"""Of a shard, looked at for the newest stamp: more than a relay that died has sent twice, see `relay.CHUNK_ENTRIES`."""


class _Envelope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The msgpack part of a message. `body` are `codec.encode_change` bytes."""

    seq: int | None
    api_time_us: int | None
    body: bytes


_encode: Final = msgspec.msgpack.Encoder().encode
_decode: Final = msgspec.msgpack.Decoder(_Envelope).decode


def message_of(entry: LogEntry) -> Message:
    """The message for a log entry. Headers tell group id, operation and `seq`, so that others can route it without decoding."""
    item = entry.item
    stamp = item.stamp
    headers = [] if stamp is None else [(HEADER_SEQ, str(stamp.seq).encode())]
    if isinstance(item, LoggedChange):
        body = encode_change(item.change)
        headers += [(HEADER_GROUP, str(item.change.group_id).encode()), (HEADER_OP, str(int(item.change.op)).encode())]
    else:
        body = item.body
    envelope = _Envelope(None, None, body) if stamp is None else _Envelope(stamp.seq, stamp.api_time_us, body)
    return Message(MESSAGE_VERSION + _encode(envelope), None if stamp is None else stamp.api_time_us // 1000, headers)


def entry_of(shard: int, offset: int, value: bytes | None) -> LogEntry:
    """The log entry that a message is. Whatever can't be one is a PoisonChange."""
    if value is None or value[:1] != MESSAGE_VERSION:
        reason = "a message without a value" if value is None else f"unknown version byte {value[:1]!r} of a message"
        return LogEntry(offset, PoisonChange(value or b"", reason, None))
    try:
        envelope = _decode(memoryview(value)[1:])
    except msgspec.MsgspecError as error:
        return LogEntry(offset, PoisonChange(value, f"a message that does not decode: {error}", None))
    if envelope.seq is None or envelope.api_time_us is None:
        return LogEntry(offset, PoisonChange(envelope.body, "a change without a place in its shard", None))
    stamp = Stamp(shard, envelope.seq, envelope.api_time_us)
    try:
        return LogEntry(offset, LoggedChange(decode_change(envelope.body), stamp))
    except StoreCorrupt as error:
        return LogEntry(offset, PoisonChange(envelope.body, str(error), stamp))


class KafkaChangeLog:
    """See `changelog.protocol.ChangeSource`. Connects when it is first used, and anew after a failure.

    The topic is created with one partition per shard when it is missing, and checked when it is there.
    """

    def __init__(self, address: KafkaAddress, shards: int) -> None:
        self._address = address
        self._shards = shards
        self._lock = threading.Lock()
        self._consumer: Any = None
        self._is_checked = False
        self._assigned: int | None = None
        self._recent: tuple[int, int, Sequence[LogEntry]] = (0, 0, ())

    @property
    def name(self) -> str:
        """What tells this log from any other that changes may come through."""
        return f"kafka:{self._address.topic}"

    def check(self) -> None:
        """Create the topic if it is missing, else make sure that it can be this store's.

        Raises:
            SettingsInvalid: it has another number of partitions than the store has shards, or it is compacted.
            StoreUnavailable
        """
        with self._session("open Kafka topic"):
            pass

    def shards(self) -> int:
        return self._shards

    def ends(self) -> Mapping[int, int]:
        with self._session("read log ends") as consumer:
            partitions = [self._partition(shard) for shard in range(self._shards)]
            return {partition.partition: end + 1 for partition, end in consumer.end_offsets(partitions).items()}

    def read(self, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        """As the protocol says, but entries before the first remaining one are an error, unless all are asked for (offset 1).

        Waits until entries that exist have arrived. Offsets may have holes: markers of transactions that others wrote.

        Raises:
            StoreCorrupt: the topic does not hold what is asked for any more, or ends before it.
            StoreUnavailable
        """
        with self._lock:
            recent_shard, recent_first, recent = self._recent
            if (shard, offset_first) == (recent_shard, recent_first) and entries_max <= len(recent):
                return recent[:entries_max]
        with self._session("read Kafka topic") as consumer:
            entries = self._read(consumer, shard, offset_first, entries_max)
            self._recent = (shard, offset_first, entries)
            return entries

    def recent_stamps(self, shard: int) -> Sequence[Stamp]:
        """The stamps of the newest entries of a shard, at most TAIL_ENTRIES, in the order of the log, repeated ones included.

        Raises:
            StoreUnavailable
        """
        with self._session("read Kafka topic") as consumer:
            partition = self._partition(shard)
            first = consumer.beginning_offsets([partition])[partition]
            end = consumer.end_offsets([partition])[partition]
            entries = self._read(consumer, shard, max(first, end - TAIL_ENTRIES) + 1, TAIL_ENTRIES)
        return [entry.item.stamp for entry in entries if entry.item.stamp is not None]

    def trim(self, shard: int, offset_next: int) -> None:
        """Nothing: the topic's retention forgets."""

    def close(self) -> None:
        with self._lock:
            self._disconnect()

    def _read(self, consumer: Any, shard: int, offset_first: int, entries_max: int) -> Sequence[LogEntry]:
        from kafka.errors import OffsetOutOfRangeError

        partition = self._partition(shard)
        position = offset_first - 1
        end = consumer.end_offsets([partition])[partition]
        if position > end:
            raise StoreCorrupt(
                f"Kafka topic {self._address.topic!r}, partition {shard}",
                f"it ends at offset {end} although offset {position - 1} was read before: the topic was made anew or has lost "
                "messages; see docs/guides/kafka.md",
            )
        if position < end and position == 0:
            position = consumer.beginning_offsets([partition])[partition]
        if self._assigned != shard or consumer.position(partition) != position:
            consumer.assign([partition])
            consumer.seek(partition, position)
            self._assigned = shard
        entries: list[LogEntry] = []
        deadline_s = time.monotonic() + STALLED_S_MAX
        while len(entries) < entries_max and (reached := consumer.position(partition)) < end:
            try:
                found = consumer.poll(POLL_MS, max_records=entries_max - len(entries)).get(partition, ())
            except OffsetOutOfRangeError as error:
                raise self._gap(consumer, shard, position) from error
            entries += [entry_of(shard, record.offset + 1, record.value) for record in found if record.offset < end]
            if consumer.position(partition) > reached:
                deadline_s = time.monotonic() + STALLED_S_MAX
            elif time.monotonic() > deadline_s:
                raise StoreUnavailable(
                    "read Kafka topic", f"{self._address.topic!r} partition {shard} has offset {reached} and does not deliver it"
                )
        return entries

    def _gap(self, consumer: Any, shard: int, position: int) -> StoreCorrupt:
        partition = self._partition(shard)
        first = consumer.beginning_offsets([partition])[partition]
        self._assigned = None
        return StoreCorrupt(
            f"Kafka topic {self._address.topic!r}, partition {shard}",
            f"offsets {position} to {first - 1} are gone before they were written to the offline store: the retention of the "
            "topic has passed the writer; see docs/guides/kafka.md",
        )

    def _partition(self, shard: int) -> Any:
        from kafka import TopicPartition

        return TopicPartition(self._address.topic, shard)

    @contextmanager
    def _session(self, operation: str) -> Iterator[Any]:
        """A connected consumer for one operation of one thread, with the topic checked; given up after a failure."""
        with self._lock, answering(operation, self._address):
            try:
                if not self._is_checked:
                    _check_topic(self._address, self._shards)
                    self._is_checked = True
                if self._consumer is None:
                    self._consumer = self._connect()
                yield self._consumer
            except BaseException:
                self._disconnect()
                raise

    def _connect(self) -> Any:
        from kafka import KafkaConsumer

        return connected(
            KafkaConsumer,
            self._address,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="none",
            max_partition_fetch_bytes=FETCH_BYTES,
            allow_auto_create_topics=False,
        )

    def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._assigned = None
        self._recent = (0, 0, ())
        if consumer is not None:
            consumer.close(autocommit=False)


def _check_topic(address: KafkaAddress, shards: int) -> None:
    """Create the topic, or check the one there is.

    Raises:
        SettingsInvalid, and the client's errors.
    """
    from kafka import KafkaAdminClient
    from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
    from kafka.errors import TopicAlreadyExistsError

    admin = connected(KafkaAdminClient, address)
    try:
        (found,) = admin.describe_topics([address.topic])
        if not found["partitions"]:
            settings = {
                "cleanup.policy": "delete",
                "retention.ms": str(RETENTION_MS),
                "max.message.bytes": str(MESSAGE_BYTES_MAX),
                "message.timestamp.type": "CreateTime",
            }
            topic = NewTopic(name=address.topic, num_partitions=shards, replication_factor=-1, topic_configs=settings)
            try:
                admin.create_topics([topic])
            except TopicAlreadyExistsError:
                pass
            else:
                _log.info("created Kafka topic %r with %d partitions", address.topic, shards)
            admin.wait_for_topics([address.topic])
            (found,) = admin.describe_topics([address.topic])
        if (partitions := len(found["partitions"])) != shards:
            expected = f"a topic with {shards} partitions, one for each shard of this store"
            raise SettingsInvalid.one("FEATURESTORE_KAFKA_TOPIC", expected, f"{address.topic}, which has {partitions}")
        described = admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, address.topic)], config_filter="all")
        policy = described["topic"][address.topic].get("cleanup.policy", {}).get("value", "")
        if "compact" in policy:
            expected = "a topic with cleanup.policy=delete, since each message is a change and none replaces another"
            raise SettingsInvalid.one("FEATURESTORE_KAFKA_TOPIC", expected, f"{address.topic}, which has {policy}")
    finally:
        admin.close()
