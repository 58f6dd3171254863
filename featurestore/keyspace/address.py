"""Where a Redis deployment is: the URLs of FEATURESTORE_ONLINE_URL that mean one, taken apart.

    redis://[user:password@]host[:6379][/db]                            one server
    redis+sentinel://[user:password@]host[:26379],host/service[/db]     the primary that Sentinel names
    redis+cluster://[user:password@]host[:6379],host                    a cluster, found through any of these nodes

`rediss` in place of `redis` means TLS to every server and sentinel, verified by certificate and host name. User, password and
options are percent-decoded. Options follow a `?`, see `RedisAddress`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, TypeAlias
from urllib.parse import parse_qsl, unquote

from featurestore.errors import StoreUnavailable

PORT: Final = 6379
SENTINEL_PORT: Final = 26379
TIMEOUT_S: Final = 10.0
OPEN: Final = "open online store"
SETTING: Final = "see FEATURESTORE_ONLINE_URL"

Node: TypeAlias = tuple[str, int]
"""(host, port)"""

_URL: Final = re.compile(
    r"redis(?P<tls>s?)(?:\+(?P<kind>sentinel|cluster))?://(?:(?P<user>[^@/?]*)@)?(?P<hosts>[^@/?]+)(?P<path>[^?]*)(?:\?(?P<query>.*))?"
)
_HOST: Final = re.compile(r"(?P<host>[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
_PATHS: Final = {
    "server": re.compile(r"/?(?P<db>[0-9]{0,5})"),
    "sentinel": re.compile(r"/(?P<service>[A-Za-z0-9_.-]+)(?:/(?P<db>[0-9]{1,5}))?"),
    "cluster": re.compile(r"/?"),
}
_PREFIX: Final = re.compile(r"[A-Za-z0-9_.-]{0,64}")
_TLS_FILES: Final = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")


class Deployment(StrEnum):
    SERVER = "server"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """A Redis deployment, and whose keys in it are meant. Its text leaves out every secret.

    Attributes:
        nodes: the server; the sentinels; or some nodes of the cluster.
        service: the name that the sentinels know the primary by; else empty.
        prefix: option `prefix`: begins every key, so that several stores can share a deployment.
        timeout_s: option `timeout_s`: how long a connection or an answer is waited for.
        tls_files: options `ssl_ca_certs`, `ssl_certfile` and `ssl_keyfile`: paths.
        sentinel_username, sentinel_password: options of that name, for the sentinels themselves.
    """

    deployment: Deployment
    tls: bool
    nodes: tuple[Node, ...]
    service: str = ""
    db: int = 0
    prefix: str = ""
    timeout_s: float = TIMEOUT_S
    tls_files: dict[str, str] = field(default_factory=dict)
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        kind = "" if self.deployment is Deployment.SERVER else f"+{self.deployment}"
        hosts = ",".join(shown_node(node) for node in self.nodes)
        return f"redis{'s' if self.tls else ''}{kind}://{hosts}{f'/{self.service}' if self.service else ''}"


def shown_node(node: Node) -> str:
    host, port = node
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def parse_redis_url(url: str) -> RedisAddress:
    """The deployment that a URL means.

    Raises:
        StoreUnavailable: the URL is malformed. The message does not repeat it, since it may hold a password.
    """
    match = _URL.fullmatch(url)
    if match is None:
        raise _malformed("redis://[user:password@]host[:port][/db], or one of the other forms, with '@' and '/' as %40 and %2F")
    deployment = Deployment(match["kind"] or Deployment.SERVER)
    path = _PATHS[deployment].fullmatch(match["path"])
    if path is None:
        raise _malformed(
            {
                Deployment.SERVER: "no path but the number of a database, as in redis://host/0",
                Deployment.SENTINEL: "the service in the path, as in redis+sentinel://host:26379/service",
                Deployment.CLUSTER: "no path, since a cluster has one database",
            }[deployment]
        )
    nodes = _nodes(match["hosts"], SENTINEL_PORT if deployment is Deployment.SENTINEL else PORT)
    if deployment is Deployment.SERVER and len(nodes) > 1:
        raise _malformed("one host, or redis+cluster:// or redis+sentinel:// for several")
    username, _, password = (match["user"] or "").partition(":")
    options = _options(match["query"] or "", tls=bool(match["tls"]), sentinel=deployment is Deployment.SENTINEL)
    found = path.groupdict()
    return RedisAddress(
        deployment,
        bool(match["tls"]),
        nodes,
        found.get("service") or "",
        int(found.get("db") or 0),
        options.get("prefix", ""),
        _seconds(options.get("timeout_s", str(TIMEOUT_S))),
        {name: options[name] for name in _TLS_FILES if name in options},
        unquote(username) or None,
        unquote(password) or None,
        options.get("sentinel_username"),
        options.get("sentinel_password"),
    )


def _nodes(hosts: str, port: int) -> tuple[Node, ...]:
    nodes = []
    for text in hosts.split(","):
        match = _HOST.fullmatch(text)
        if match is None or not 0 < int(match["port"] or port) < 65536:
            raise _malformed("host or host:port, several separated by commas")
        nodes.append((match["host"].strip("[]"), int(match["port"] or port)))
    return tuple(nodes)


def _options(query: str, *, tls: bool, sentinel: bool) -> dict[str, str]:
    known = {"prefix", "timeout_s"}
    known |= set(_TLS_FILES) if tls else set()
    known |= {"sentinel_username", "sentinel_password"} if sentinel else set()
    try:
        options = dict(parse_qsl(query, strict_parsing=True)) if query else {}
    except ValueError:
        raise _malformed("options as name=value, separated by &") from None  # it would repeat the text
    unknown = sorted(options.keys() - known)
    if unknown:
        raise _malformed(f"no option but {', '.join(sorted(known))}; {unknown[0]!r} is none of them")
    if _PREFIX.fullmatch(options.get("prefix", "")) is None:
        raise _malformed("a prefix of at most 64 letters, digits, '_', '.' and '-'")
    return options


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= 3600:
        raise _malformed("timeout_s above 0 and at most 3600")
    return seconds


def _malformed(expected: str) -> StoreUnavailable:
    return StoreUnavailable(OPEN, f"expected {expected}", hint=SETTING)
