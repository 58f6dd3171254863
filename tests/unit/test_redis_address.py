from __future__ import annotations

import pytest

from featurestore.errors import StoreUnavailable
from featurestore.keyspace.address import Deployment, parse_redis_url


def test_one_server() -> None:
    address = parse_redis_url("redis://cache.example")
    assert (address.deployment, address.tls, address.nodes, address.db) == (
        Deployment.SERVER,
        False,
        (("cache.example", 6379),),
        0,
    )
    assert (address.username, address.password, address.prefix, address.timeout_s) == (None, None, "", 10.0)
    address = parse_redis_url("rediss://me:p%40ss%2Fword@[::1]:7000/3?prefix=a.b&timeout_s=0.5&ssl_ca_certs=/x/ca.pem")
    assert (address.tls, address.nodes, address.db) == (True, (("::1", 7000),), 3)
    assert (address.username, address.password) == ("me", "p@ss/word")
    assert (address.prefix, address.timeout_s, address.tls_files) == ("a.b", 0.5, {"ssl_ca_certs": "/x/ca.pem"})
    assert parse_redis_url("redis://:only@host/").password == "only"


def test_sentinels() -> None:
    address = parse_redis_url("redis+sentinel://u:p@one,two:1/main/2?sentinel_password=s")
    assert (address.deployment, address.nodes) == (Deployment.SENTINEL, (("one", 26379), ("two", 1)))
    assert (address.service, address.db, address.password, address.sentinel_password) == ("main", 2, "p", "s")


def test_a_cluster() -> None:
    address = parse_redis_url("rediss+cluster://one:7000,two")
    assert (address.deployment, address.tls, address.nodes) == (Deployment.CLUSTER, True, (("one", 7000), ("two", 6379)))


def test_its_text_has_no_secret() -> None:
    address = parse_redis_url("redis+sentinel://me:hush@one,[::1]:2/main?sentinel_password=hush2")
    assert str(address) == "redis+sentinel://one:26379,[::1]:2/main"
    assert "hush" not in repr(address)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://", "host"),
        ("redis:///0", "host"),
        ("redis://a,b", r"redis\+cluster:// or redis\+sentinel://"),
        ("redis://host/x", "number of a database"),
        ("redis://host:0", "host:port"),
        ("redis://host:70000", "host:port"),
        ("redis://ho st", "host:port"),
        ("redis+sentinel://host", "the service in the path"),
        ("redis+cluster://host/1", "a cluster has one database"),
        ("redis://host?prefix=a{b}", "a prefix of at most 64"),
        ("redis://host?prefix", "options as name=value"),
        ("redis://host?ssl_ca_certs=x", "no option but prefix, timeout_s"),
        ("redis://host?nope=1", "'nope' is none of them"),
        ("redis://host?timeout_s=never", "timeout_s above 0"),
        ("redis://host?timeout_s=0", "timeout_s above 0"),
        ("redis+other://host", "one of the other forms"),
    ],
)
def test_malformed_urls_say_what_was_expected(url: str, expected: str) -> None:
    with pytest.raises(StoreUnavailable, match=f"{expected}.*FEATURESTORE_ONLINE_URL"):
        parse_redis_url(url)


@pytest.mark.parametrize("url", ["redis://:hu/sh@host", "redis://me:hush@host?nope=1", "redis://:hush@", "redis://host?hush"])
def test_messages_do_not_repeat_the_url(url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        parse_redis_url(url)
    assert "hu/sh" not in str(caught.value)
    assert "hush" not in str(caught.value)
    assert caught.value.__cause__ is None
