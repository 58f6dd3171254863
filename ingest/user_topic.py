"""A topic of users, as the stream worker reads it: partitions of our choice, from where the stream has come to.

How far that is, is committed to Kafka as offsets of the stream's consumer group, so that Kafka's own tools show the lag.
Partitions are assigned by us and not by that group: see `ingest.streams`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final

from featurestore.changelog.kafka_client import DELIVERY_S_MAX, KafkaAddress, KafkaPythonProducer, answering, connected
from featurestore.changelog.kafka_client import Message as KafkaMessage
from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.model.stream import Stream
from featurestore.streaming import MESSAGES_MAX, Message, MessageFailure

POLL_MS: Final = 200
HEADER_REASON: Final = "reason"
HEADER_STREAM: Final = "stream"
HEADER_TOPIC: Final = "topic"
HEADER_PARTITION: Final = "partition"
HEADER_OFFSET: Final = "offset"
REPLICAS: Final = -1
"""As many as the cluster gives a topic by default."""


@dataclass(frozen=True, slots=True)
class PartitionLag:
    """How far a stream has come in one partition.

    Attributes:
        offset: of the next message.
        end: after the newest message.
    """

    partition: int
    offset: int
    end: int


class UserTopic:
    """The topic of one stream. Connects when it is first used, and anew after a failure. Of one thread at a time."""

    def __init__(self, address: KafkaAddress, stream: Stream) -> None:
        self._address = replace(address, topic=stream.topic)
        self._stream = stream
        self._consumer: Any = None
        self._assigned: frozenset[int] = frozenset()
        self._dead_letters = KafkaPythonProducer(replace(address, topic=stream.dead_letters))

    def partitions(self) -> int:
        """How many partitions the topic has now.

        Raises:
            StoreUnavailable: also when there is no such topic.
        """
        with self._session("look at topic") as consumer:
            found = consumer.partitions_for_topic(self._stream.topic)
        if not found:
            raise StoreUnavailable(f"stream {self._stream.name}", f"topic {self._stream.topic!r} does not exist")
        return len(found)

    def make_dead_letters(self) -> None:
        """Create the topic for dead letters if it is missing.

        Raises:
            StoreUnavailable
        """
        from kafka import KafkaAdminClient
        from kafka.admin import NewTopic
        from kafka.errors import TopicAlreadyExistsError

        with answering(self._operation("make topic for dead letters"), self._address):
            admin = connected(KafkaAdminClient, self._address)
            try:
                (found,) = admin.describe_topics([self._stream.dead_letters])
                if not found["partitions"]:
                    admin.create_topics([NewTopic(name=self._stream.dead_letters, num_partitions=1, replication_factor=REPLICAS)])
                    admin.wait_for_topics([self._stream.dead_letters])
            except TopicAlreadyExistsError:
                pass
            finally:
                admin.close()

    def assign(self, partitions: Iterable[int]) -> None:
        """Read these partitions from now on, each from where the stream has come to.

        Raises:
            StoreUnavailable
        """
        wanted = frozenset(partitions)
        if wanted == self._assigned:
            return
        with self._session("begin to read topic") as consumer:
            held = {part.partition: consumer.position(part) for part in consumer.assignment()}
            parts = [self._part(number) for number in sorted(wanted)]
            consumer.assign(parts)
            for part in parts:
                here = held.get(part.partition)
                consumer.seek(part, self._begin(consumer, part) if here is None else here)
            self._assigned = wanted

    def poll(self) -> Mapping[int, Sequence[Message]]:
        """The next messages by partition, at most MESSAGES_MAX in all; empty if none come within moments.

        Raises:
            StoreCorrupt: the topic does not hold the next message any more.
            StoreUnavailable
        """
        from kafka.errors import OffsetOutOfRangeError

        with self._session("read topic") as consumer:
            try:
                found = consumer.poll(POLL_MS, max_records=MESSAGES_MAX)
            except OffsetOutOfRangeError as error:
                raise StoreCorrupt(
                    f"topic {self._stream.topic!r}",
                    f"messages of stream {self._stream.name!r} are gone before they were read: the retention of the topic has "
                    f"passed it; `featurestore stream replay {self._stream.name}` begins again with those that are left",
                ) from error
        return {part.partition: [Message(one.offset, one.value) for one in messages] for part, messages in found.items()}

    def bury(self, partition: int, failures: Sequence[MessageFailure]) -> None:
        """Append messages to the topic for dead letters, acknowledged when this returns. A repetition repeats them.

        Headers tell reason, stream, topic, partition and offset; the value is the message's.

        Raises:
            StoreUnavailable
        """
        letters = [
            KafkaMessage(
                failure.message.value or b"",
                None,
                [
                    (HEADER_REASON, failure.reason.encode()),
                    (HEADER_STREAM, self._stream.name.encode()),
                    (HEADER_TOPIC, self._stream.topic.encode()),
                    (HEADER_PARTITION, str(partition).encode()),
                    (HEADER_OFFSET, str(failure.message.offset).encode()),
                ],
            )
            for failure in failures
        ]
        self._dead_letters.send(0, letters)

    def commit(self, partition: int, offset_next: int) -> None:
        """Remember that everything below `offset_next` is done.

        Raises:
            StoreUnavailable
        """
        from kafka.structs import OffsetAndMetadata

        with self._session("commit offset") as consumer:
            consumer.commit({self._part(partition): OffsetAndMetadata(offset_next, "", -1)}, timeout_ms=DELIVERY_S_MAX * 1000)

    def rewind(self) -> None:
        """Forget what was polled and not committed; `assign` begins anew."""
        self._disconnect()

    def lag(self) -> Sequence[PartitionLag]:
        """How far the stream has come.

        Raises:
            StoreUnavailable
        """
        partitions = self.partitions()
        with self._session("look at topic") as consumer:
            parts = [self._part(number) for number in range(partitions)]
            ends = consumer.end_offsets(parts)
            return [PartitionLag(part.partition, self._begin(consumer, part), ends[part]) for part in parts]

    def dead_letters(self) -> int:
        """How many messages the topic for dead letters holds; 0 if there is no such topic.

        Raises:
            StoreUnavailable
        """
        with self._session("look at topic") as consumer:
            found = consumer.partitions_for_topic(self._stream.dead_letters) or ()
            parts = [self._part(number, self._stream.dead_letters) for number in found]
            first, ends = consumer.beginning_offsets(parts), consumer.end_offsets(parts)
        return sum(ends[part] - first[part] for part in parts)

    def close(self) -> None:
        self._disconnect()
        self._dead_letters.close()

    def _operation(self, name: str) -> str:
        return f"stream {self._stream.name}: {name}"

    def _begin(self, consumer: Any, part: Any) -> int:
        """Where to go on: the committed offset, or the first message of the stream's start time, or the first there is."""
        committed = consumer.committed(part)
        if committed is not None:
            return int(committed)
        if self._stream.start_ms is not None:
            found = consumer.offsets_for_times({part: self._stream.start_ms})[part]
            return int(consumer.end_offsets([part])[part] if found is None else found.offset)
        return int(consumer.beginning_offsets([part])[part])

    def _part(self, number: int, topic: str | None = None) -> Any:
        from kafka import TopicPartition

        return TopicPartition(topic or self._stream.topic, number)

    @contextmanager
    def _session(self, operation: str) -> Iterator[Any]:
        with answering(self._operation(operation), self._address):
            try:
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
            group_id=self._stream.consumer_group,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="none",
            allow_auto_create_topics=False,
        )

    def _disconnect(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._assigned = frozenset()
        if consumer is not None:
            consumer.close(autocommit=False)
