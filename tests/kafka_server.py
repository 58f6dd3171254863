"""Apache Kafka as a child process: one node that is broker and controller, with its own data folder.

`tests/kafka/install.sh` has fetched it, and the JVM that runs it is the machine's. What a crash test needs can be done to it:
kill, pause, and start again with the same data and the same port.
"""

from __future__ import annotations

import base64
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

JARS = Path(os.environ.get("KAFKA_JARS", str(Path(__file__).parents[1] / "build" / "kafka")))
START_S_MAX = 60.0
STOP_S_MAX = 30.0
JVM = ("-Xms64m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")
LOGGING = ("-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "-Dorg.slf4j.simpleLogger.showDateTime=true")

WATCHDOG = """
import os, signal, sys
sys.stdin.read()
os.kill(int(sys.argv[1]), signal.SIGKILL)
"""
"""Ends a broker whose tests have died: its standard input ends with them."""


MISSING = "NO KAFKA BROKER: the tests of the Kafka log do not run. They need Java 17 and Maven, and run tests/kafka/install.sh."


def wait_until(condition: Callable[[], Any], what: str, s_max: float = 60.0) -> Any:
    """The first true value of `condition`, asked again until a deadline."""
    deadline_s = time.monotonic() + s_max
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what} within {s_max:g} s"
        time.sleep(0.02)
    return found


def require_kafka() -> None:
    """Skip the test without a broker, loudly; fail it where every service is expected to be there."""
    if shutil.which("java") is None or not (JARS / ".installed").exists():
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)


@dataclass(frozen=True)
class Login:
    """How clients of a broker prove who they are, and the broker to them who it is.

    Attributes:
        pem: its key and certificate.
    """

    user: str
    password: str
    pem: Path

    def settings(self) -> dict[str, object]:
        """For the broker, which is a client of itself."""
        module = "org.apache.kafka.common.security.scram.ScramLoginModule"
        return {
            "sasl.enabled.mechanisms": "SCRAM-SHA-512",
            "sasl.mechanism.inter.broker.protocol": "SCRAM-SHA-512",
            "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": (
                f'{module} required username="{self.user}" password="{self.password}";'
            ),
            "ssl.keystore.type": "PEM",
            "ssl.keystore.location": self.pem,
            "ssl.truststore.type": "PEM",
            "ssl.truststore.location": self.pem,
        }


class KafkaServer:
    """A broker on a port of its own. `start` it, then `stop`, `kill`, `pause`, `go_on`, and `start` it again.

    Args:
        retention_check_ms: how often it deletes what the retention of a topic has passed.
        login: clients then talk to it by TLS, and log in with SCRAM.
    """

    def __init__(self, folder: Path, *, retention_check_ms: int = 300_000, login: Login | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.log = folder / "broker.log"
        port, controller_port = _free_ports(2)
        self.address = f"127.0.0.1:{port}"
        self._port = port
        self._properties = folder / "server.properties"
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        clients = "PLAINTEXT" if login is None else "SASL_SSL"
        settings = {
            "node.id": 1,
            "process.roles": "broker,controller",
            "listeners": f"{clients}://127.0.0.1:{port},CONTROLLER://127.0.0.1:{controller_port}",
            "advertised.listeners": f"{clients}://127.0.0.1:{port}",
            "listener.security.protocol.map": f"CONTROLLER:PLAINTEXT,{clients}:{clients}",
            "inter.broker.listener.name": clients,
            "controller.listener.names": "CONTROLLER",
            "controller.quorum.voters": f"1@127.0.0.1:{controller_port}",
            "log.dirs": folder / "data",
            "num.partitions": 1,
            "default.replication.factor": 1,
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "auto.create.topics.enable": "false",
            "log.retention.check.interval.ms": retention_check_ms,
            "log.segment.delete.delay.ms": 100,
            "broker.session.timeout.ms": 1_000,  # so long the controller keeps a broker that was killed from registering anew
            "broker.heartbeat.interval.ms": 200,
            "num.network.threads": 2,
            "num.io.threads": 2,
        }
        if login is not None:
            settings |= login.settings()
        self._properties.write_text("".join(f"{name}={value}\n" for name, value in settings.items()))
        cluster_id = f"A{base64.urlsafe_b64encode(uuid.uuid4().bytes).decode()[1:22]}"  # a dash in front would be an option
        format_storage = ["kafka.tools.StorageTool", "format", "-t", cluster_id, "-c", str(self._properties)]
        if login is not None:
            format_storage += ["--add-scram", f"SCRAM-SHA-512=[name={login.user},password={login.password}]"]
        done = subprocess.run(_java(*format_storage), capture_output=True, text=True, timeout=START_S_MAX)
        assert done.returncode == 0, done.stdout + done.stderr

    def start(self) -> KafkaServer:
        """Start it and return when it answers."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(_java("kafka.Kafka", str(self._properties)), stdout=log, stderr=log)
        self._watchdog = subprocess.Popen([sys.executable, "-c", WATCHDOG, str(self._process.pid)], stdin=subprocess.PIPE)
        deadline_s = time.monotonic() + START_S_MAX
        while not self._answers():
            assert self._process.poll() is None, f"the broker ended; its log:\n{self.log.read_text()[-4000:]}"
            assert time.monotonic() < deadline_s, f"the broker does not answer; its log:\n{self.log.read_text()[-4000:]}"
            time.sleep(0.02)
        return self

    def stop(self) -> None:
        """Let it end in order."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it where it stands."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it where it stands: connections stay open and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        assert self._watchdog is not None
        assert self._watchdog.stdin is not None
        self._watchdog.kill()
        self._watchdog.wait()
        self._watchdog.stdin.close()
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        try:
            self._process.wait(STOP_S_MAX)
        finally:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=1):
                return True
        except OSError:
            return False


def _java(*arguments: str) -> list[str]:
    return ["java", *JVM, *LOGGING, "-cp", f"{JARS}/*", *arguments]


def _free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, from below those that the system gives to connections: a client that tries again and again to
    reach a broker that is down could otherwise be given the broker's own port, and keep it from starting.
    """
    found: list[int] = []
    for port in random.Random().sample(range(15_000, 30_000), 1_000):
        with socket.socket() as one:
            try:
                one.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == count:
            return found
    raise AssertionError("no free ports")
