"""Real Redis servers as child processes: one, or three as a cluster without replicas. Each has a folder of its own and keeps an
append-only file.

They come from the Debian package `redis-server`, see tests/redis/install.sh. REDIS_URL points tests that need one plain server
at a running one instead.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import redis

BINARY = shutil.which("redis-server")
START_S_MAX = 30.0
SLOTS = 16384
MISSING = "NO REDIS SERVER: the tests of the Redis store do not run. Run tests/redis/install.sh, or install redis-server."
DURABLE = {"appendonly": "yes", "appendfsync": "everysec"}
"""Options of a server as it is in use."""


def require_redis() -> None:
    """Skip the test without a server, loudly; fail it where every service is expected to be there."""
    if BINARY is None:
        if os.environ.get("CI"):
            pytest.fail(MISSING)
        pytest.skip(MISSING)


def server_version() -> str:
    assert BINARY is not None, MISSING
    words = subprocess.run([BINARY, "--version"], capture_output=True, text=True, check=True).stdout.split()
    return f"Redis {next(word.removeprefix('v=') for word in words if word.startswith('v='))}"


def wait_until(condition: Callable[[], Any], what: str, s_max: float = START_S_MAX) -> Any:
    """The first true value of `condition`, asked again until a deadline."""
    deadline_s = time.monotonic() + s_max
    while not (found := condition()):
        assert time.monotonic() < deadline_s, f"{what} within {s_max:g} s"
        time.sleep(0.01)
    return found


def free_port() -> int:
    """A port that is free, and so is its bus port for a cluster."""
    while True:
        with socket.socket() as one, socket.socket() as bus:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port + 10_000 > 65_535:
                continue
            with suppress(OSError):
                bus.bind(("127.0.0.1", port + 10_000))
                return int(port)


class RedisServer:
    """A running server on 127.0.0.1.

    Args:
        options: settings of the server by name, beside those that make it a quiet one with an append-only file. Several values
            of one setting are separated by spaces.
    """

    def __init__(self, folder: Path, **options: str) -> None:
        assert BINARY is not None
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.port = free_port()
        self.host = f"127.0.0.1:{self.port}"
        self.url = f"redis://{self.host}"
        self._options = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "dir": str(folder),
            "logfile": str(folder / "log"),
            "appendonly": "yes",
            "appendfsync": "no",  # a killed process loses nothing by that, only a machine without power would
            "save": "",
            "daemonize": "no",
        } | {name.replace("_", "-"): value for name, value in options.items()}
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        """Start, and wait until it has read its files."""
        arguments = [text for name, value in self._options.items() for text in (f"--{name}", *(value.split() or [""]))]
        self._process = subprocess.Popen([str(BINARY), *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(self._is_ready, f"redis-server on port {self.port} is ready")
        except AssertionError as error:
            self.kill()
            log = self.folder / "log"
            raise AssertionError(f"{error}; its log:\n{log.read_text()[-3000:] if log.exists() else ''}") from None

    def kill(self) -> None:
        """End it at once, as `kill -9` does."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Let it answer nobody, until `thaw`."""
        assert self._process is not None
        self._process.send_signal(19)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(18)

    def has_slot(self, slot: int) -> bool:
        """Whether a slot of the cluster is this node's."""
        with self.client() as client:
            lines = client.execute_command("CLUSTER", "NODES").decode().splitlines()
        mine = next(line.split() for line in lines if "myself" in line.split()[2])
        ranges = [part.split("-") for part in mine[8:] if not part.startswith("[")]
        return any(int(ends[0]) <= slot <= int(ends[-1]) for ends in ranges)

    @contextmanager
    def client(self) -> Iterator[redis.Redis]:
        password = self._options.get("requirepass")
        client = redis.Redis(port=self.port, password=password, retry=None)
        try:
            yield client
        finally:
            client.close()

    def _is_ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "redis-server has ended"
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False


class RedisCluster:
    """Three nodes that share all slots."""

    def __init__(self, folder: Path) -> None:
        options = {"cluster_enabled": "yes", "cluster_node_timeout": "5000"}
        self.folder = folder
        self.nodes = [RedisServer(folder / str(number), **options) for number in range(3)]
        self.url = f"redis+cluster://{self.nodes[0].host},{self.nodes[1].host}"
        share = SLOTS // 3 + 1
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                first, last = number * share, min(SLOTS, (number + 1) * share) - 1
                # Epochs that are equal at first would be made different later, which may give slots that move back.
                client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
                client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
                client.execute_command("CLUSTER", "MEET", "127.0.0.1", self.nodes[0].port)
        wait_until(self._is_whole, "the cluster is whole")

    def kill(self) -> None:
        for node in self.nodes:
            node.kill()

    def _is_whole(self) -> bool:
        for node in self.nodes:
            with node.client() as client:
                info = client.execute_command("CLUSTER", "INFO")
                facts = info if isinstance(info, dict) else dict(line.split(":") for line in info.decode().split())
                if (facts["cluster_state"], facts["cluster_slots_ok"]) != ("ok", str(SLOTS)):
                    return False
                if (str(facts["cluster_known_nodes"]), str(facts["cluster_current_epoch"])) != ("3", "3"):
                    return False
        return True


class RedisSentinel:
    """A primary, its replica and one sentinel that watches them."""

    service = "primary"

    def __init__(self, folder: Path) -> None:
        assert BINARY is not None
        self.primary = RedisServer(folder / "primary", repl_diskless_sync_delay="0")
        self.replica = RedisServer(folder / "replica", replicaof=f"127.0.0.1 {self.primary.port}")
        port = free_port()
        settings = folder / "sentinel.conf"
        settings.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {folder}\nlogfile {folder / 'sentinel.log'}\n"
            f"sentinel monitor {self.service} 127.0.0.1 {self.primary.port} 1\n"
            f"sentinel down-after-milliseconds {self.service} 300\nsentinel failover-timeout {self.service} 3000\n"
        )
        self._process = subprocess.Popen(
            [BINARY, str(settings), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self.url = f"redis+sentinel://127.0.0.1:{port}/{self.service}"
        with closing(redis.Redis(port=port, retry=None)) as client:

            def knows_the_replica() -> bool:
                with suppress(redis.RedisError):
                    return bool(client.sentinel_slaves(self.service))
                return False

            wait_until(knows_the_replica, "the sentinel knows the replica")

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self.primary.kill()
        self.replica.kill()
