"""Opening a store on Redis: what its servers must be like, and that the keys are this store's."""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from redis.exceptions import ResponseError

from featurestore.errors import StoreCorrupt, StoreUnavailable
from featurestore.keyspace.address import SETTING, Deployment, RedisAddress, shown_node
from featurestore.keyspace.layout import FORMAT_VERSION, ShardKeys, load_script
from featurestore.keyspace.link import Call, RedisLink

_log: Final = logging.getLogger(__name__)

OPEN: Final = "open online store"
VERSION_MIN: Final = (6, 2)
POLICY: Final = "noeviction"
_IDENTIFY: Final = load_script("identify")


@dataclass(frozen=True, slots=True)
class Keyspace:
    """One store's part of a Redis deployment.

    Attributes:
        keys: per shard.
        salt: of `subject_of`, random, made when the store was.
    """

    address: RedisAddress
    keys: Sequence[ShardKeys]
    salt: bytes

    def link(self) -> RedisLink:
        """New connections."""
        return RedisLink(self.address, [keys.meta for keys in self.keys])


def open_keyspace(address: RedisAddress, shards: int) -> Keyspace:
    """Check the servers and make or find the store.

    Logs a warning when what is acknowledged does not survive a restart of a server.

    Raises:
        StoreUnavailable: a server does not answer, or is not fit: too old, a replica, evicting keys, of another kind.
        StoreCorrupt: the keys are of another format, or of a store with another number of shards.
    """
    keys = [ShardKeys(address.prefix, shard) for shard in range(shards)]
    link = RedisLink(address, [shard.meta for shard in keys])
    try:
        _check_servers(link)
        call = _IDENTIFY.call(0, [keys[0].store], [FORMAT_VERSION, shards, secrets.token_hex(32)])
        ((version, found, salt),) = link.run_all(OPEN, [call])
    finally:
        link.close()
    if int(version) != FORMAT_VERSION:
        raise StoreCorrupt("online store", f"format {int(version)}, this release reads {FORMAT_VERSION}")
    if int(found) != shards:
        raise StoreCorrupt("online store", f"{address} holds a store with {int(found)} shards, this one has {shards}")
    return Keyspace(address, keys, bytes.fromhex(salt.decode()))


def shard_calls(keyspace: Keyspace, *command: str, key: str = "meta") -> list[Call]:
    """One command of one key for each shard: its name, the key, what follows the key."""
    name, *rest = command
    return [Call(shard, (name, getattr(keys, key), *rest)) for shard, keys in enumerate(keyspace.keys)]


def _check_servers(link: RedisLink) -> None:
    for node in link.nodes():
        (answer,) = link.on_node(OPEN, node, ("INFO",))
        if isinstance(answer, ResponseError):
            raise StoreUnavailable(OPEN, f"{shown_node(node)}: INFO is refused: {answer}", hint="allow the user to call INFO")
        _check_server(link.address, shown_node(node), facts_of(answer))


def facts_of(info: bytes) -> Mapping[str, str]:
    """What INFO answers, by name."""
    pairs = (
        line.partition(":") for line in info.decode(errors="replace").splitlines() if ":" in line and not line.startswith("#")
    )
    return {name: value for name, _, value in pairs}


def _check_server(address: RedisAddress, node: str, facts: Mapping[str, str]) -> None:
    version = facts.get("redis_version", "")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < VERSION_MIN:
        wanted = ".".join(map(str, VERSION_MIN))
        raise StoreUnavailable(OPEN, f"{node} has version {version or 'unknown'}, Redis {wanted} or newer is needed")
    is_cluster = facts.get("cluster_enabled") == "1"
    if is_cluster and address.deployment is not Deployment.CLUSTER:
        raise StoreUnavailable(OPEN, f"{node} is a node of a cluster", hint="name it as redis+cluster://")
    if facts.get("role", "master") != "master":
        raise StoreUnavailable(OPEN, f"{node} is a replica", hint=f"name its primary; {SETTING}")
    policy = facts.get("maxmemory_policy", POLICY)
    if policy != POLICY:
        detail = f"{node} may evict records and changes that nobody has read yet: maxmemory-policy is {policy}"
        raise StoreUnavailable(OPEN, detail, hint=f"set `maxmemory-policy {POLICY}` on the server")
    if facts.get("aof_enabled", "1") == "0":
        _log.warning(
            "%s has no append-only file: acknowledged writes do not survive its restart; set `appendonly yes` on the server", node
        )
