"""Calls to the servers of a Redis deployment: which node has a shard, connections, and what a failure means.

Nothing is repeated that may have had an effect. A call is sent again only if its first sending can't have done anything: the node
said that it does not know the script or does not own the shard, or no connection came about. After a lost connection only calls
that the caller declares repeatable are.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from redis import exceptions as failures
from redis.backoff import NoBackoff
from redis.connection import Connection, SSLConnection
from redis.crc import key_slot
from redis.retry import Retry

from featurestore.errors import FeatureStoreError, StoreCorrupt, StoreUnavailable
from featurestore.keyspace.address import SETTING, Deployment, Node, RedisAddress, shown_node

SENDINGS_MAX: Final = 8
"""How often a call is sent to find the node that owns its shard; more than a script unknown to it and a slot on the move take."""
SENDINGS_SWIFT: Final = 2
"""After so many a redirection and an unknown script are dealt with. Nodes that still send a call to and fro do not know
yet who has the slot."""
MOVING_PAUSE_S: Final = 0.05
"""Before a call is sent again to nodes that are not agreed, or to one that has only a part of a slot which is on the move."""


class Script:
    """A Lua script. Its source is sent to a node that does not have it, and its SHA-1 from then on."""

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

    def call(self, shard: int, keys: Sequence[bytes], args: Sequence[bytes | str | int]) -> Call:
        return Call(shard, ("EVALSHA", self.sha, len(keys), *keys, *args), self)


class Call(NamedTuple):
    """One command for the node that has a shard. `packed` is what the protocol has for it, if that is known: `command` is empty
    then, and only a `RedisLink` sends it.
    """

    shard: int
    command: tuple[Any, ...]
    script: Script | None = None
    packed: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Target:
    """Whom to send a call to: the owner of its shard, or a node that was named for this call alone."""

    named: Node | None = None


@dataclass(slots=True)
class _Round:
    """One sending of calls: what has been answered, and what is to be sent again, perhaps to a node that was named for it."""

    operation: str
    repeatable: bool
    replies: list[Any]
    again: dict[int, _Target] = field(default_factory=dict)
    is_moving: bool = False
    stale: set[Node] = field(default_factory=set)


class RedisLink:
    """Connections to the nodes of a deployment, opened when needed. Of one thread at a time.

    Args:
        tags: per shard a key of it, which decides its slot in a cluster.
    """

    def __init__(self, address: RedisAddress, tags: Sequence[bytes]) -> None:
        self.address = address
        self._slots = [key_slot(tag) for tag in tags]
        self._owners: list[Node] = []
        self._connections: dict[Node, Any] = {}

    @property
    def is_cluster(self) -> bool:
        return self.address.deployment is Deployment.CLUSTER

    def owners(self) -> Sequence[Node]:
        """Per shard the node that has it.

        Raises:
            StoreUnavailable
        """
        if not self._owners:
            self._owners = self._find_owners()
        return self._owners

    def forget_owners(self) -> None:
        """Find out anew who has which shard, at the next call."""
        self._owners = []

    def run(self, operation: str, calls: Sequence[Call], *, repeatable: bool = False) -> list[Any]:
        """Send all calls, each node's together, and wait for all answers; returns these in order.

        Calls of one shard are executed in order, unless one of them has to be sent again. Never raises for a call: what went
        wrong with it stands in place of its answer, a StoreUnavailable or StoreCorrupt.

        Args:
            repeatable: the calls may be executed twice, so a lost connection is no reason to fail.
        """
        state = _Round(operation, repeatable, [None] * len(calls))
        todo = dict.fromkeys(range(len(calls)), _Target())
        for sending in range(SENDINGS_MAX):
            try:
                self._send_round(state, calls, todo, is_first=sending == 0)
            except BaseException:  # answers that nobody has read would be taken for those of the next calls
                self.close()
                raise
            if not state.again:
                return state.replies
            todo, state.again = state.again, {}
            if state.is_moving or sending >= SENDINGS_SWIFT:
                time.sleep(MOVING_PAUSE_S)
                state.is_moving = False
        for index in todo:
            detail = f"{self.address}: no server takes changes of shard {calls[index].shard} for now"
            hint = "repeat the call when the deployment is settled"
            state.replies[index] = StoreUnavailable(operation, detail, hint=hint, nothing_written=not repeatable)
        return state.replies

    def run_all(self, operation: str, calls: Sequence[Call], *, repeatable: bool = False) -> list[Any]:
        """`run`, for calls that are of no use one without the others.

        Raises:
            StoreUnavailable, StoreCorrupt: of the first call that failed. Others may have been executed.
        """
        replies = self.run(operation, calls, repeatable=repeatable)
        for reply in replies:
            if isinstance(reply, FeatureStoreError):
                raise reply
        return replies

    def nodes(self) -> Sequence[Node]:
        """The nodes that have a shard, each once.

        Raises:
            StoreUnavailable
        """
        return list(dict.fromkeys(self.owners()))

    def on_node(self, operation: str, node: Node, *commands: tuple[Any, ...]) -> list[Any]:
        """Send commands to one node; returns its answers, refusals as `redis` exceptions among them.

        Raises:
            StoreUnavailable: the node does not answer.
        """
        try:
            with self._failing(operation, node):
                connection = self._connection(node)
                connection.send_packed_command(connection.pack_commands(commands))
                return [_reply(connection) for _ in commands]
        except BaseException:
            self._drop(node)
            raise

    def close(self) -> None:
        """Close the connections; later calls open new ones."""
        connections, self._connections = self._connections, {}
        for connection in connections.values():
            connection.disconnect()

    def _send_round(self, state: _Round, calls: Sequence[Call], todo: Mapping[int, _Target], *, is_first: bool) -> None:
        by_node: dict[Node, list[int]] = {}
        try:
            owners = self.owners()
        except StoreUnavailable as error:
            failure = StoreUnavailable(state.operation, str(error), nothing_written=not state.repeatable)
            state.replies[:] = [failure if index in todo else reply for index, reply in enumerate(state.replies)]
            return
        for index, target in todo.items():
            by_node.setdefault(target.named or owners[calls[index].shard], []).append(index)
        sent = []
        for node, members in by_node.items():
            commands: list[tuple[Any, ...] | bytes] = []
            for index in members:
                if todo[index].named is not None:
                    commands.append(("ASKING",))
                commands.append(calls[index].packed or calls[index].command)
            try:
                connection = self._connection(node)
            except (failures.RedisError, OSError) as error:
                self._drop(node)
                self._settle(state, members, node, error, again=is_first, was_sent=False)
                continue
            try:
                connection.send_packed_command(_packed(connection, commands))
            except (failures.RedisError, OSError) as error:
                self._drop(node)
                self._settle(state, members, node, error, again=is_first and state.repeatable)
                continue
            sent.append((node, connection, members))
        for node, connection, members in sent:
            unanswered = list(members)
            unknown: dict[str, Script] = {}
            try:
                for index in members:
                    if todo[index].named is not None:
                        _reply(connection)
                    self._take(state, index, calls[index], node, _reply(connection), unknown)
                    unanswered.pop(0)
                for script in unknown.values():
                    connection.send_command("SCRIPT", "LOAD", script.source)
                    connection.read_response()
            except (failures.RedisError, OSError) as error:
                self._drop(node)
                self._settle(state, unanswered, node, error, again=is_first and state.repeatable)
        for node in state.stale:
            self._drop(node)

    def _take(self, state: _Round, index: int, call: Call, node: Node, reply: Any, unknown: dict[str, Script]) -> None:
        """One answer: keep it, or send the call again if it was refused for a reason that passes."""
        if isinstance(reply, failures.NoScriptError) and call.script is not None:
            unknown[call.script.sha] = call.script
            state.again[index] = _Target()
        elif isinstance(reply, failures.MovedError):
            # Other nodes may hear of it later, so the one that owned the slot is believed.
            found = _named(reply, node)
            self._owners = [
                found if slot == reply.slot_id else owner for slot, owner in zip(self._slots, self._owners, strict=False)
            ]
            state.again[index] = _Target()
        elif isinstance(
            reply, failures.ReadOnlyError
        ):  # a replica now; the name may lead to another server when it is asked again
            self.forget_owners()
            state.stale.add(node)
            state.again[index] = _Target()
            state.is_moving = True
        elif isinstance(reply, failures.AskError):
            state.again[index] = _Target(_named(reply, node))
        elif isinstance(reply, failures.TryAgainError):
            state.again[index] = _Target()
            state.is_moving = True
        elif isinstance(reply, failures.RedisError):
            if isinstance(reply, failures.ClusterDownError):
                self.forget_owners()
            state.replies[index] = failed(state.operation, node, reply)
        else:
            state.replies[index] = reply

    def _settle(
        self, state: _Round, members: Sequence[int], node: Node, error: Exception, *, again: bool, was_sent: bool = True
    ) -> None:
        """Calls that got no answer."""
        if self.address.deployment is not Deployment.SERVER:
            self.forget_owners()
        for index in members:
            if again:
                state.again[index] = _Target()
            else:
                state.replies[index] = failed(state.operation, node, error, nothing_written=not (was_sent or state.repeatable))

    def _connection(self, node: Node) -> Any:
        """A connection that was alive a moment ago, so that a server's restart is noticed before something is sent."""
        connection = self._connections.get(node)
        if connection is not None:
            try:
                is_usable = not connection.can_read(timeout=0)
            except (failures.RedisError, OSError):
                is_usable = False
            if is_usable:
                return connection
            self._drop(node)
        connection = self._connect(node, self.address.username, self.address.password, db=self.address.db)
        self._connections[node] = connection
        return connection

    def _connect(self, node: Node, username: str | None, password: str | None, *, db: int = 0) -> Any:
        host, port = node
        options: dict[str, Any] = {
            "host": host,
            "port": port,
            "db": db,
            "username": username,
            "password": password,
            "socket_timeout": self.address.timeout_s,
            "socket_connect_timeout": self.address.timeout_s,
            "socket_read_size": 1 << 18,
            "retry": Retry(NoBackoff(), 0),
            "protocol": 2,
            "driver_info": None,
        }
        kind: Any = SSLConnection if self.address.tls else Connection  # typed in parts only
        connection = kind(**options, **self.address.tls_files)
        try:
            connection.connect()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def _drop(self, node: Node) -> None:
        connection = self._connections.pop(node, None)
        if connection is not None:
            connection.disconnect()

    def _find_owners(self) -> list[Node]:
        match self.address.deployment:
            case Deployment.SERVER:
                return [self.address.nodes[0]] * len(self._slots)
            case Deployment.SENTINEL:
                return [self._primary()] * len(self._slots)
            case Deployment.CLUSTER:
                return self._slot_owners()

    def _primary(self) -> Node:
        """Raises: StoreUnavailable."""
        answers = []
        for node in self.address.nodes:
            try:
                with self._failing("ask sentinel", node):
                    connection = self._connect(node, self.address.sentinel_username, self.address.sentinel_password)
                    try:
                        connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.address.service)
                        found: Any = connection.read_response()
                    finally:
                        connection.disconnect()
                if found is not None:
                    return found[0].decode(), int(found[1])
                answers.append(f"{shown_node(node)} does not know {self.address.service!r}")
            except StoreUnavailable as error:
                answers.append(str(error))
        raise StoreUnavailable("find the primary", "; ".join(answers), hint=SETTING)

    def _slot_owners(self) -> list[Node]:
        """Raises: StoreUnavailable."""
        answers = []
        for node in dict.fromkeys([*self._connections, *self.address.nodes]):
            try:
                with self._failing("ask the cluster", node):
                    connection = self._connection(node)
                    connection.send_command("CLUSTER", "SLOTS")
                    ranges: Any = connection.read_response()
            except StoreUnavailable as error:
                self._drop(node)
                answers.append(str(error))
                continue
            owners = {
                slot: ((primary[0] or b"").decode() or node[0], int(primary[1]))
                for first, last, primary, *_ in ranges
                for slot in self._slots
                if first <= slot <= last
            }
            if all(slot in owners for slot in self._slots):
                return [owners[slot] for slot in self._slots]
            answers.append(f"{shown_node(node)} knows no owner of some slots")
        raise StoreUnavailable("find the nodes of the cluster", "; ".join(answers), hint=SETTING)

    @contextmanager
    def _failing(self, operation: str, node: Node) -> Iterator[None]:
        try:
            yield
        except (failures.RedisError, OSError) as error:
            self._drop(node)
            raise failed(operation, node, error) from error


def _packed(connection: Any, commands: Sequence[tuple[Any, ...] | bytes]) -> list[bytes]:
    """The bytes of commands, some of which may be packed."""
    if not any(isinstance(command, bytes) for command in commands):
        packed: list[bytes] = connection.pack_commands(commands)
        return packed
    return [
        part for command in commands for part in ([command] if isinstance(command, bytes) else connection.pack_command(*command))
    ]


def _reply(connection: Any) -> Any:
    """The next answer; a refusal is an answer, too. Raises when the connection is of no use any more."""
    try:
        return connection.read_response()
    except failures.ConnectionError:
        raise
    except failures.ResponseError as refusal:
        return refusal


def _named(reply: failures.AskError, node: Node) -> Node:
    """The node that a redirection names; without a host it is on the same one."""
    return reply.host or node[0], int(reply.port)


def failed(operation: str, node: Node, error: Exception, *, nothing_written: bool = False) -> FeatureStoreError:
    """What an exception of the driver means to callers. `nothing_written`: the caller is certain of it."""
    text = f"{shown_node(node)}: {error}"
    made: FeatureStoreError
    if isinstance(error, failures.OutOfMemoryError) or "OOM command not allowed" in str(error):
        hint = "nothing was written; raise `maxmemory` of the server, or let the offline writer catch up"
        made = StoreUnavailable(operation, f"{shown_node(node)} is out of memory", hint=hint, nothing_written=True)
    elif "WRONGTYPE" in str(error) or "equal or smaller than the target stream top item" in str(error):
        made = StoreCorrupt(
            "online store",
            f"{shown_node(node)}: keys of the store hold what it has not written; give each store its own `prefix` ({error})",
        )
    elif isinstance(error, failures.AuthenticationError | failures.AuthorizationError | failures.NoPermissionError):
        hint = "check user and password in FEATURESTORE_ONLINE_URL"
        made = StoreUnavailable(operation, text, hint=hint, nothing_written=nothing_written)
    elif isinstance(error, failures.TimeoutError | failures.ConnectionError | OSError):
        hint = "is the server running? see FEATURESTORE_ONLINE_URL"
        made = StoreUnavailable(operation, text, hint=hint, nothing_written=nothing_written)
    else:
        certain = nothing_written or isinstance(error, failures.ClusterDownError) or str(error).startswith("NOREPLICAS")
        made = StoreUnavailable(operation, text, nothing_written=certain)
    made.__cause__ = error
    return made
