"""A bare producer and a bare consumer of the same client. Nothing of ours is imported, so that none of it is measured."""

from __future__ import annotations

import json
import time
import zlib
from pathlib import Path
from typing import Any

import msgspec
from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.admin import NewTopic

PRODUCER = {
    "acks": "all",
    "enable_idempotence": True,
    "max_in_flight_requests_per_connection": 1,
    "linger_ms": 5,
    "batch_size": 256 << 10,
    "max_request_size": 8 << 20,
}
"""As our relay has them."""
CONSUMER = {
    "enable_auto_commit": False,
    "isolation_level": "read_committed",
    "auto_offset_reset": "none",
    "max_partition_fetch_bytes": 8 << 20,
}
POLL_MS = 500
POLL_RECORDS = 50_000
ANSWER_S_MAX = 60.0


def produce(servers: str, topic: str, partitions: int, messages: str) -> dict[str, Any]:
    """Create the topic and send chunks of messages, each to its partition, waiting for all of a chunk before the next.

    Counts from the acknowledgement of the first chunk, as a relay that is followed from outside does.
    """
    chunks = msgspec.msgpack.decode(Path(messages).read_bytes())
    admin = KafkaAdminClient(bootstrap_servers=servers)
    admin.create_topics([NewTopic(name=topic, num_partitions=partitions, replication_factor=1)])
    admin.wait_for_topics([topic])
    admin.close()
    producer = KafkaProducer(bootstrap_servers=servers, **PRODUCER)
    began_s = began_cpu_s = 0.0
    for number, (partition, some) in enumerate(chunks):
        futures = [
            producer.send(topic, value=value, partition=partition, timestamp_ms=at_ms, headers=list(map(tuple, headers)))
            for value, at_ms, headers in some
        ]
        for future in futures:
            future.get(ANSWER_S_MAX)
        if number == 0:
            began_s, began_cpu_s = time.perf_counter(), time.process_time()
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    producer.close()
    return {"amount": sum(len(some) for _, some in chunks[1:]), "took_s": took_s, "cpu_s": cpu_s}


def consume(servers: str, topic: str, partitions: int, decode: bool = False) -> dict[str, Any]:
    """Read all that a topic holds, one partition after the other; answers a checksum of the values in their order.

    Args:
        decode: parse each value as JSON besides.
    """
    parts = [TopicPartition(topic, number) for number in range(partitions)]
    consumer = KafkaConsumer(bootstrap_servers=servers, **CONSUMER)
    ends = consumer.end_offsets(parts)
    values: dict[int, list[bytes]] = {}
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    for part in parts:
        found = values.setdefault(part.partition, [])
        consumer.assign([part])
        consumer.seek(part, 0)
        while consumer.position(part) < ends[part]:
            some = [record.value for record in consumer.poll(POLL_MS, max_records=POLL_RECORDS).get(part, ())]
            if decode:
                for value in some:
                    json.loads(value)
            found += some
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    consumer.close()
    amount = sum(map(len, values.values()))
    return {"amount": amount, "took_s": took_s, "cpu_s": cpu_s, "checksum": checksum(values.values())}


def checksum(partitions: Any) -> str:
    """Of the values of each partition, in order."""
    sums = []
    for values in partitions:
        total = 0
        for value in values:
            total = zlib.crc32(value, total)
        sums.append(f"{total:08x}")
    return "".join(sums)
