"""Purge on Redis: the outbox without what was trimmed, then the files of each server written anew."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, Final

from redis.exceptions import ResponseError

from featurestore.errors import StoreUnavailable
from featurestore.keyspace.address import Node, shown_node
from featurestore.keyspace.layout import load_script
from featurestore.keyspace.link import RedisLink
from featurestore.keyspace.opening import Keyspace, facts_of

_log: Final = logging.getLogger(__name__)

PURGE_S_MAX: Final = 600.0
"""How long a purge waits for snapshots that are read and for servers that write their files."""
PURGE_PAUSE_S: Final = 0.1
REWRITE_ENTRIES: Final = 1_000
"""Entries of one step, during which the server does nothing else."""
_PURGE: Final = "purge online store"
_END, _REWRITE = map(load_script, ("snapshot_end", "rewrite"))


def purge_keyspace(keyspace: Keyspace, purge_s_max: float) -> None:
    """Make sure that no file of a server with a shard holds bytes of what was removed or replaced before.

    Raises:
        StoreUnavailable: snapshots were read, or a server was busy with its files, for too long; or it failed to write them.
    """
    deadline_s = time.monotonic() + purge_s_max

    def wait(what: str) -> None:
        if time.monotonic() > deadline_s:
            raise StoreUnavailable(_PURGE, f"{what} for {purge_s_max:g} s", hint="repeat the call")
        time.sleep(PURGE_PAUSE_S)

    with closing(keyspace.link()) as link:
        for shard in range(len(keyspace.keys)):
            _rewrite_outbox(link, keyspace, shard, wait)
        for node in link.nodes():
            _rewrite_files(link, node, wait)


def _rewrite_outbox(link: RedisLink, keyspace: Keyspace, shard: int, wait: Callable[[str], None]) -> None:
    keys = keyspace.keys[shard]
    fixed = [keys.meta, keys.outbox, keys.snapshots]
    link.run_all(_PURGE, [_END.call(shard, fixed, [keys.base, ""])], repeatable=True)
    place = b""
    while True:
        call = _REWRITE.call(shard, [*fixed, keys.copy], [keys.base, REWRITE_ENTRIES, place])
        (place,) = link.run_all(_PURGE, [call])
        if place == b"busy":
            wait("snapshots have kept the online store busy")
            place = b""
        elif not place:
            return


def _rewrite_files(link: RedisLink, node: Node, wait: Callable[[str], None]) -> None:
    facts = _facts(link, node)
    (save,) = link.on_node(_PURGE, node, ("CONFIG", "GET", "save"))
    if isinstance(save, ResponseError):
        _log.warning("%s does not tell whether it writes RDB files; any it writes may hold erased records until the next", node)
    elif save[1:] and save[1]:
        _do(link, node, "BGSAVE", "rdb_last_bgsave_status", ("rdb_bgsave_in_progress",), wait)
    if facts.get("aof_enabled") == "1":
        in_progress = ("aof_rewrite_in_progress", "aof_rewrite_scheduled")
        _do(link, node, "BGREWRITEAOF", "aof_last_bgrewrite_status", in_progress, wait)


def _do(
    link: RedisLink, node: Node, command: str, status: str, in_progress: tuple[str, ...], wait: Callable[[str], None]
) -> None:
    """Let a server write a file anew, from the beginning, and wait until it has."""
    while True:
        facts = _facts(link, node)
        if not any(facts.get(name) == "1" for name in in_progress):
            (answer,) = link.on_node(_PURGE, node, (command,))
            if not isinstance(answer, ResponseError):
                break
            if "progress" not in str(answer) and "child process" not in str(answer):
                _log.warning(
                    "%s refuses %s (%s): its files hold erased records until it writes them anew",
                    shown_node(node),
                    command,
                    answer,
                )
                return
        wait(f"{shown_node(node)} was busy with its files")
    while True:
        facts = _facts(link, node)
        if not any(facts.get(name) == "1" for name in in_progress):
            break
        wait(f"{shown_node(node)} has been writing its files")
    if facts.get(status) != "ok":
        raise StoreUnavailable(_PURGE, f"{shown_node(node)}: {command} has failed", hint="see the server's log")


def _facts(link: RedisLink, node: Node) -> Any:
    (answer,) = link.on_node(_PURGE, node, ("INFO", "persistence"))
    if isinstance(answer, ResponseError):
        raise StoreUnavailable(_PURGE, f"{shown_node(node)}: {answer}")
    return facts_of(answer)
