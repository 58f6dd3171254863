"""Which online store a URL means, and the change log beside it: the one place that names the backends."""

from __future__ import annotations

from pathlib import Path

from featurestore.changelog.protocol import Outbox
from featurestore.changelog.redis import RedisChangeLog
from featurestore.changelog.sqlite import SqliteChangeLog
from featurestore.keyspace.address import parse_redis_url
from featurestore.keyspace.opening import open_keyspace
from featurestore.online.protocol import OnlineStore
from featurestore.online.redis import RedisOnlineStore
from featurestore.online.sqlite import SqliteOnlineStore


def open_online_store(url: str, shards: int, *, outbox_changes_max: int) -> tuple[OnlineStore, Outbox]:
    """The online store at `url` and the log of its changes.

    Args:
        url: `sqlite:///path`, or one of the forms of `keyspace.address`.

    Raises:
        StoreUnavailable: the URL is malformed, or the store can't be used.
        StoreCorrupt: it has another format, or another number of shards.
    """
    if url.startswith("sqlite:"):
        path = Path(url.removeprefix("sqlite:///"))
        return SqliteOnlineStore(path, shards, outbox_changes_max=outbox_changes_max), SqliteChangeLog(path, shards)
    keyspace = open_keyspace(parse_redis_url(url), shards)
    return RedisOnlineStore(keyspace, outbox_changes_max=outbox_changes_max), RedisChangeLog(keyspace)
