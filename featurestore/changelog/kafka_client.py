"""How to talk to a Kafka cluster: its address, clients that have reached it, and a producer, with kafka-python."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from featurestore.errors import StoreUnavailable

_client_log: Final = logging.getLogger("kafka.net.manager")

CONNECT_S_MAX: Final = 5.0
"""How long it may take to find a broker that answers."""
ANSWER_S_MAX: Final = 10.0
"""How long Kafka may take to answer one request before it counts as down."""
DELIVERY_S_MAX: Final = 15.0
"""How long a batch may take to be acknowledged, repeated attempts of the client included."""
LINGER_MS: Final = 5
BATCH_BYTES: Final = 256 << 10
MESSAGE_BYTES_MAX: Final = 8 << 20
"""A record has at most 350 KiB of text; packed, and with the largest batch of the client around it, that is far below."""


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
        with answering("send to Kafka", self._address):
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


@contextmanager
def answering(operation: str, address: KafkaAddress) -> Iterator[None]:
    """The client's errors as StoreUnavailable."""
    from kafka.errors import KafkaError

    try:
        yield
    except (KafkaError, OSError) as error:
        hint = "see FEATURESTORE_KAFKA_BOOTSTRAP_SERVERS"
        raise StoreUnavailable(operation, f"{address.servers}: {error}", hint=hint) from error
