"""The change log as a topic of Apache Kafka: partition p holds shard p, and the relay fills it from the outbox.

An entry's offset is its Kafka offset + 1, since the offsets of a change log begin at 1. How far a reader has got is its own
business: nothing is committed to Kafka, and no reader is ever moved to another place than it asked for. A topic that has lost
what is asked for is an error. `trim` does nothing, since the retention of the topic ends what it holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from featurestore.errors import SettingsInvalid, StoreCorrupt, StoreUnavailable
from featurestore.model.change import LogEntry, LoggedChange, PoisonChange, Stamp
from featurestore.model.codec import decode_change, encode_change

_log: Final = logging.getLogger(__name__)
_client_log: Final = logging.getLogger("kafka.net.manager")

MESSAGE_VERSION: Final = b"\x01"
HEADER_GROUP: Final = "group"
HEADER_OP: Final = "op"
HEADER_SEQ: Final = "seq"

CONNECT_S_MAX: Final = 5.0
"""How long it may take to find a broker that answers."""
ANSWER_S_MAX: Final = 10.0
"""How long Kafka may take to answer one request before it counts as down."""
DELIVERY_S_MAX: Final = 15.0
"""How long a batch may take to be acknowledged, repeated attempts of the client included."""
STALLED_S_MAX: Final = 15.0
"""How long entries that exist may take to arrive."""
POLL_MS: Final = 500
LINGER_MS: Final = 5
BATCH_BYTES: Final = 256 << 10
FETCH_BYTES: Final = 8 << 20
"""Of one partition in one answer; what is larger comes alone."""
MESSAGE_BYTES_MAX: Final = 8 << 20
"""A record has at most 350 KiB of text; packed, and with the largest batch of the client around it, that is far below."""
RETENTION_MS: Final = 7 * 24 * 3600 * 1000
"""Of topics made here. It must be longer than the offline writer is ever out of order."""
TAIL_ENTRIES: Final = 2_000
"""Of a shard, looked at for the newest stamp: more than a relay that died has sent twice, see `relay.CHUNK_ENTRIES`."""


@dataclass(frozen=True, slots=True)
class KafkaAddress:
    """Which topic of which cluster, and how to reach it.

    Attributes:
        servers: `host:port`, comma separated.
        security_protocol: PLAINTEXT, SSL, SASL_PLAINTEXT or SASL_SSL.
        sasl_mechanism: PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512; empty without SASL.
        ca_file: PEM file of the authorities to trust; empty for the system's.
    """

    servers: str
    topic: str
    security_protocol: str = "PLAINTEXT"
    sasl_mechanism: str = ""
    sasl_user: str = ""
    sasl_password: str = field(default="", repr=False)
    ca_file: str = ""

    def client_settings(self) -> dict[str, Any]:
        """What every client of this cluster is made with."""
        settings: dict[str, Any] = {
            "bootstrap_servers": [server.strip() for server in self.servers.split(",")],
            "client_id": "featurestore",
            "security_protocol": self.security_protocol,
            "request_timeout_ms": int(ANSWER_S_MAX * 1000),
            "bootstrap_timeout_ms": int(CONNECT_S_MAX * 1000),
            "reconnect_backoff_max_ms": 1000,
        }
        if self.security_protocol.startswith("SASL"):
            settings |= {
                "sasl_mechanism": self.sasl_mechanism,
                "sasl_plain_username": self.sasl_user,
                "sasl_plain_password": self.sasl_password,
            }
        if self.ca_file:
            settings["ssl_cafile"] = self.ca_file
        return settings


@dataclass(frozen=True, slots=True)
class Message:
    """What is sent for one log entry.

    Attributes:
        timestamp_ms: when the service took the change, milliseconds since 1970; None if nobody knows.
    """

    value: bytes
    timestamp_ms: int | None
    headers: Sequence[tuple[str, bytes]]


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


def connected(client: Callable[..., Any], address: KafkaAddress, **settings: Any) -> Any:
    """A KafkaConsumer, KafkaProducer or KafkaAdminClient that has reached a broker.

    Raises: the client's errors, with the reason why brokers were not reached, which it only logs. Its threads and sockets are
    gone then, which its constructor alone would leave behind.
    """
    from kafka.errors import KafkaConnectionError, KafkaTimeoutError
    from kafka.net.compat import KafkaNetClient

    made = []

    def net_client(**configs: Any) -> Any:
        made.append(KafkaNetClient(**configs))
        return made[-1]

    reasons = _Reasons()
    _client_log.addHandler(reasons)
    try:
        return client(**address.client_settings(), **settings, kafka_client=net_client)
    except BaseException as error:
        for one in made:
            one.close()
        if isinstance(error, KafkaTimeoutError) and reasons.told:
            raise KafkaConnectionError(reasons.told) from error
        raise
    finally:
        _client_log.removeHandler(reasons)


class _Reasons(logging.Handler):
    """Keeps why attempts to reach a broker failed, as the client logs it: a refused login or certificate is followed by attempts
    that find no connection or have no time left, and tells more.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._told: dict[int, str] = {}

    @property
    def told(self) -> str:
        """The most telling of them, or empty."""
        return self._told[min(self._told)] if self._told else ""

    def emit(self, record: logging.LogRecord) -> None:
        from kafka.errors import KafkaConnectionError, KafkaTimeoutError, RequestTimedOutError

        for argument in record.args if isinstance(record.args, tuple) else ():
            if isinstance(argument, Exception) and not isinstance(argument, KafkaTimeoutError):
                rank = 2 if isinstance(argument, RequestTimedOutError) else int(isinstance(argument, KafkaConnectionError))
                self._told[rank] = str(argument)


class KafkaProducerPort(Protocol):
    """What the relay needs of a producer. Synchronous, of one thread at a time."""

    def send(self, partition: int, messages: Sequence[Message]) -> None:
        """Append the messages to a partition; returns when all are acknowledged by all replicas in sync, in this order.

        Raises:
            StoreUnavailable: any of them may have been appended, some of them later than this returns. Send all of them again.
        """

    def close(self) -> None:
        """Release connections. What was not acknowledged is given up."""


class KafkaPythonProducer:
    """See `KafkaProducerPort`; with kafka-python.

    Idempotent, so that what the client repeats by itself is there once and in order, and with one request under way. After a
    failure the client is given up for a new one: it may still hold messages that it would send later.
    """

    def __init__(self, address: KafkaAddress) -> None:
        self._address = address
        self._client: Any = None

    def send(self, partition: int, messages: Sequence[Message]) -> None:
        with _answering("send to Kafka", self._address):
            try:
                if self._client is None:
                    self._client = self._connect()
                futures = [
                    self._client.send(
                        self._address.topic,
                        value=message.value,
                        headers=list(message.headers),
                        partition=partition,
                        timestamp_ms=message.timestamp_ms,
                    )
                    for message in messages
                ]
                deadline_s = time.monotonic() + DELIVERY_S_MAX + ANSWER_S_MAX
                for future in futures:
                    future.get(max(0.001, deadline_s - time.monotonic()))
            except BaseException:
                self.close()
                raise

    def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client._sender.force_close()  # `close` alone waits for what can't be sent, and gives up closing when that fails
            client.close(timeout=ANSWER_S_MAX)

    def _connect(self) -> Any:
        from kafka import KafkaProducer

        return connected(
            KafkaProducer,
            self._address,
            acks="all",
            enable_idempotence=True,
            max_in_flight_requests_per_connection=1,
            delivery_timeout_ms=int(DELIVERY_S_MAX * 1000),
            max_block_ms=int(ANSWER_S_MAX * 1000),
            linger_ms=LINGER_MS,
            batch_size=BATCH_BYTES,
            max_request_size=MESSAGE_BYTES_MAX,
            allow_auto_create_topics=False,
        )


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
        with self._lock, _answering(operation, self._address):
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


@contextmanager
def _answering(operation: str, address: KafkaAddress) -> Iterator[None]:
    """The client's errors as StoreUnavailable."""
    from kafka.errors import KafkaError

    try:
        yield
    except (KafkaError, OSError) as error:
        hint = "see FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS"
        raise StoreUnavailable(operation, f"{address.servers}: {error}", hint=hint) from error
