"""The S3 object store against a real service: lost answers, lesser services, bad addresses; then whole stores on a bucket."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pandas as pd
import pyarrow as pa
import pytest

import featurestore
from featurestore.errors import FileVanished, StoreUnavailable
from featurestore.offline.opening import ENDPOINT, open_object_store
from featurestore.offline.s3 import TEMPORARY, S3ObjectStore
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.integration.conftest import Cli
from tests.s3_proxy import Answer, Dropped, Request, S3Proxy, refusal
from tests.s3_server import S3Server
from tests.service import Service

CACHE_BYTES_MAX = 1 << 30
FAIL_S_MAX = 15.0
"""How long an operator waits at most to be told that an address is wrong."""
SECRET = "do-not-tell-anybody"


def opened(url: str, bucket: str, folder: Path) -> S3ObjectStore:
    return S3ObjectStore(bucket, "a/prefix", endpoint=url, cache=folder / "cache", cache_bytes_max=CACHE_BYTES_MAX)


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def puts(proxy: S3Proxy, key: str) -> int:
    return sum(method == "PUT" and path.endswith(f"/{key}") for method, path in proxy.seen)


class Once:
    """Whether it is the first request of a method for a key."""

    def __init__(self, method: str, key: str) -> None:
        self._method = method
        self._key = key
        self._left = 1

    def __call__(self, request: Request) -> bool:
        if request.method != self._method or not request.path.endswith(f"/{self._key}") or not self._left:
            return False
        self._left -= 1
        return True


# Lost answers


def test_a_create_whose_answer_is_lost_is_known_to_be_ours(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    first = Once("PUT", "k")

    def lose(request: Request, answer: Answer) -> Answer | Dropped:
        return Dropped() if first(request) else answer

    with S3Proxy(s3_server.port, after=lose) as proxy:
        objects = opened(proxy.url, s3_bucket, tmp_path)
        assert objects.put_if_absent("k", b"ours")
        assert puts(proxy, "k") == 2
        assert objects.get("k") == b"ours"
        assert not objects.put_if_absent("k", b"ours")


def test_a_create_that_failed_after_all_was_done_is_known_to_be_ours(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    first = Once("PUT", "k")

    def fail(request: Request, answer: Answer) -> Answer | Dropped:
        return refusal(500, "InternalError") if first(request) else answer

    with S3Proxy(s3_server.port, after=fail) as proxy:
        objects = opened(proxy.url, s3_bucket, tmp_path)
        objects.put_if_absent("source", b"ours")
        assert objects.move_if_absent("source", "k")
        assert puts(proxy, "k") == 2


def test_a_create_whose_request_is_lost_may_lose_to_equal_bytes(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    other = opened(s3_server.url, s3_bucket, tmp_path)
    first = Once("PUT", "k")

    def overtake(request: Request) -> Dropped | None:
        if not first(request):
            return None
        assert other.put_if_absent("k", b"same")
        return Dropped()

    with S3Proxy(s3_server.port, before=overtake) as proxy:
        assert not opened(proxy.url, s3_bucket, tmp_path).put_if_absent("k", b"same")


def test_a_conflict_that_nobody_won_is_tried_again(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    first = Once("PUT", "k")

    def conflict(request: Request) -> Answer | None:
        return refusal(409, "ConditionalRequestConflict") if first(request) else None

    with S3Proxy(s3_server.port, before=conflict) as proxy:
        objects = opened(proxy.url, s3_bucket, tmp_path)
        assert objects.put_if_absent("k", b"ours")
        assert puts(proxy, "k") == 2


def test_conflicts_without_end_give_up(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    def conflict(request: Request) -> Answer | None:
        return refusal(409, "ConditionalRequestConflict") if request.path.endswith("/k") and request.method == "PUT" else None

    with S3Proxy(s3_server.port, before=conflict) as proxy:
        objects = opened(proxy.url, s3_bucket, tmp_path)
        with pytest.raises(StoreUnavailable, match="write k: .*ConditionalRequestConflict"):
            objects.put_if_absent("k", b"ours")


def test_a_download_that_breaks_off_is_completed(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    first = Once("GET", "k")
    data = os.urandom(3_000_000)

    def cut(request: Request, answer: Answer) -> Answer | Dropped:
        return Dropped(answer) if first(request) else answer

    with S3Proxy(s3_server.port, after=cut) as proxy:
        objects = opened(proxy.url, s3_bucket, tmp_path)
        objects.put_if_absent("k", data)
        assert Path(objects.paths(["k"])[0]).read_bytes() == data


# What a service lacks or refuses


def test_a_service_that_ignores_the_condition_is_refused(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    def strip(request: Request) -> None:
        request.headers.pop("if-none-match", None)

    with S3Proxy(s3_server.port, before=strip) as proxy, pytest.raises(StoreUnavailable, match="lacks put-if-absent"):
        opened(proxy.url, s3_bucket, tmp_path)


def test_a_service_that_does_not_know_the_condition_is_refused(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    def unknown(request: Request) -> Answer | None:
        return refusal(501, "NotImplemented") if "if-none-match" in request.headers else None

    with S3Proxy(s3_server.port, before=unknown) as proxy, pytest.raises(StoreUnavailable, match="lacks put-if-absent"):
        opened(proxy.url, s3_bucket, tmp_path)


def test_a_service_that_takes_concurrent_puts_is_refused(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    """One that looks whether the object is there and then writes it, with nothing to keep others out in between."""

    def look_early(request: Request) -> None:
        if "/race-" in request.path:
            request.headers.pop("if-none-match", None)

    with (
        S3Proxy(s3_server.port, before=look_early) as proxy,
        pytest.raises(StoreUnavailable, match="took 8 of 8"),
    ):
        opened(proxy.url, s3_bucket, tmp_path)


def test_a_service_that_forgets_metadata_is_refused(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    def strip(request: Request) -> None:
        for name in [name for name in request.headers if name.startswith("x-amz-meta-")]:
            del request.headers[name]

    with S3Proxy(s3_server.port, before=strip) as proxy, pytest.raises(StoreUnavailable, match="lacks metadata"):
        opened(proxy.url, s3_bucket, tmp_path)


def test_nothing_stays_of_the_trial(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    assert opened(s3_server.url, s3_bucket, tmp_path).list(f"{TEMPORARY}/") == []


def test_a_bucket_that_is_denied(s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    denial = refusal(403, "SignatureDoesNotMatch")
    denial.body = denial.body.replace(b"</Error>", b"<StringToSign>the whole request</StringToSign></Error>")
    with S3Proxy(s3_server.port, before=lambda _: denial) as proxy, pytest.raises(StoreUnavailable) as caught:
        opened(proxy.url, s3_bucket, tmp_path)
    assert f"access to bucket {s3_bucket} is denied" in str(caught.value)
    assert "SignatureDoesNotMatch, Because." in str(caught.value)
    assert "FEATURESTORE_OFFLINE_URL" in str(caught.value)
    assert "the whole request" not in str(caught.value)
    assert SECRET not in str(caught.value)


def test_a_bucket_that_does_not_exist(s3_server: S3Server, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="bucket no-such-bucket does not exist"):
        opened(s3_server.url, "no-such-bucket", tmp_path)


def test_a_bucket_that_is_gone_is_not_an_empty_one(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    gone = False

    def vanish(_: Request) -> Answer | None:
        return refusal(404, "NoSuchBucket") if gone else None

    with S3Proxy(s3_server.port, before=vanish) as proxy:
        objects = opened(proxy.url, s3_bucket, tmp_path)
        assert objects.get("k") is None
        gone = True
        with pytest.raises(StoreUnavailable, match=f"bucket {s3_bucket} does not exist"):
            objects.get("k")
        with pytest.raises(StoreUnavailable, match=f"bucket {s3_bucket} does not exist"):
            objects.list("a/")
        with pytest.raises(StoreUnavailable, match=f"bucket {s3_bucket} does not exist") as caught:
            objects.paths(["k"])
        assert not isinstance(caught.value, FileVanished)


def test_an_endpoint_that_does_not_answer(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{closed_port()}"
    begun_s = time.monotonic()
    with pytest.raises(StoreUnavailable, match=f"open offline store: {url} can't be reached"):
        opened(url, "bucket", tmp_path)
    assert time.monotonic() - begun_s < FAIL_S_MAX


def test_without_credentials(s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreUnavailable, match="no AWS credentials were found .*AWS_ACCESS_KEY_ID"):
        opened(s3_server.url, "bucket", tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "only half of it")
    with pytest.raises(StoreUnavailable, match="missing: AWS_SECRET_ACCESS_KEY"):
        opened(s3_server.url, "bucket", tmp_path)


def test_without_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(StoreUnavailable, match=r"pip install featurestore\[s3\]"):
        open_object_store("s3://bucket", tmp_path, cache_bytes_max=CACHE_BYTES_MAX)


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "s3:",
        "s3://",
        "s3:///prefix",
        "s3:/bucket",
        "s3://UPPER",
        "s3://ab",
        "s3://key:secret@bucket",
        "s3://bucket//prefix",
        "s3://bucket/a/../b",
        "s3://bucket/a//",
        "file://relative",
        "file:",
        "gs://bucket",
        "/path",
    ],
)
def test_a_malformed_url(url: str, tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="expected .*FEATURESTORE_OFFLINE_URL") as caught:
        open_object_store(url, tmp_path, cache_bytes_max=CACHE_BYTES_MAX)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("endpoint", ["127.0.0.1:9000", "ftp://host", "http://", "http://key:secret@host", "http://host/?a=b"])
def test_a_malformed_endpoint(endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, endpoint)
    with pytest.raises(StoreUnavailable, match="expected http.*AWS_ENDPOINT_URL_S3") as caught:
        open_object_store("s3://bucket", tmp_path, cache_bytes_max=CACHE_BYTES_MAX)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["", "/", "/prefix", "/deep/prefix/"])
def test_a_url_names_bucket_and_prefix(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINT, f"{s3_server.url}/")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1/the/feature/store/itself")
    objects = open_object_store(f"s3://{s3_bucket}{suffix}", tmp_path, cache_bytes_max=CACHE_BYTES_MAX)
    objects.put_if_absent("a/k", b"bytes")
    whole = open_object_store(f"s3://{s3_bucket}", tmp_path, cache_bytes_max=CACHE_BYTES_MAX)
    prefix = suffix.strip("/")
    assert whole.get(f"{prefix}/a/k" if prefix else "a/k") == b"bytes"


def test_without_an_endpoint_it_is_amazon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told by where it wants to go: nothing leaves this machine, since its way out is a closed port."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1/the/feature/store/itself")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-west-1")
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{closed_port()}")
    with pytest.raises(StoreUnavailable, match=r"https://s3\.eu-west-1\.amazonaws\.com can't be reached"):
        open_object_store("s3://bucket", tmp_path, cache_bytes_max=CACHE_BYTES_MAX)


def test_a_store_on_disk_needs_no_cache(tmp_path: Path) -> None:
    objects = open_object_store(f"file://{tmp_path / 'root'}", tmp_path / "cache", cache_bytes_max=CACHE_BYTES_MAX)
    objects.put_if_absent("k", b"bytes")
    assert (tmp_path / "root" / "k").read_bytes() == b"bytes"
    assert not (tmp_path / "cache").exists()


# Copies on this machine


def test_many_objects_are_fetched_together_and_once(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    keys = [f"data/{number:03d}.parquet" for number in range(100)]
    with S3Proxy(s3_server.port) as proxy:
        objects = opened(proxy.url, s3_bucket, tmp_path)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda key: objects.put_if_absent(key, key.encode()), keys))
        for _ in range(2):
            assert [Path(path).read_text() for path in objects.paths(keys)] == keys
        assert sum(method == "GET" and path.endswith(".parquet") for method, path in proxy.seen) == len(keys)


def test_an_object_that_is_gone(s3_server: S3Server, s3_bucket: str, tmp_path: Path) -> None:
    objects = opened(s3_server.url, s3_bucket, tmp_path)
    objects.put_if_absent("here", b"bytes")
    with pytest.raises(FileVanished, match="gone does not exist"):
        objects.paths(["here", "gone"])


# Whole stores on a bucket

SPINE = pd.DataFrame(
    {
        "station": ["a", "b", "c", "a"],
        "when": pd.to_datetime(["2024-01-01T12", "2024-01-03T00", "2024-01-02T00", "2024-01-05T00"], utc=True),
    }
)
STATEMENT = 'SELECT station, taken, celsius, note FROM history."weather" ORDER BY taken, station'


def settings(home: Path, offline_url: str) -> Settings:
    return Settings(home=home, offline_url=offline_url, shards=2, query_threads=2)


def fill(store: FeatureStore) -> None:
    """Records one by one and a dataframe that spreads over days."""
    features = {"station": "String", "taken": "String", "celsius": "Fractional", "note": "String"}
    store.create_feature_group("weather", record_identifier="station", event_time="taken", features=features)
    store.put_record("weather", {"station": "a", "taken": "2024-01-01T00:00:00Z", "celsius": 1.5, "note": "cold"})
    store.put_record("weather", {"station": "b", "taken": "2024-01-02T00:00:00Z", "celsius": -2.25})
    days = pd.date_range("2024-01-01T06:00:00Z", periods=4, freq="D").strftime("%Y-%m-%dT%H:%M:%SZ")
    frame = pd.DataFrame({"station": ["a", "b", "a", "c"], "taken": days, "celsius": [2.0, 3.0, 4.0, 5.0], "note": list("wxyz")})
    assert store.ingest("weather", frame).rows == 4
    store.delete_record("weather", "b", "2024-01-02T12:00:00Z")
    store.flush()


def answers(store: FeatureStore) -> list[pa.Table]:
    made = store.create_training_set(SPINE, ["weather.celsius", "weather.note"], event_time="when", event_times=True)
    latest = store.sql('SELECT station, celsius FROM latest."weather" ORDER BY station')
    return [made.to_arrow(), store.sql(STATEMENT), latest]


def test_a_store_on_a_bucket_answers_as_one_on_disk(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FeatureStore(settings(tmp_path / "disk", "")) as on_disk:
        fill(on_disk)
        expected = answers(on_disk)
    assert [table.num_rows for table in expected] == [4, 7, 2]
    with S3Proxy(s3_server.port) as proxy:
        monkeypatch.setenv(ENDPOINT, proxy.url)
        home = tmp_path / "bucket"
        with FeatureStore(settings(home, f"s3://{s3_bucket}/some/prefix")) as store:
            fill(store)
            assert answers(store) == expected
        assert not (home / "offline").exists()
        on_objects = {method for method, path in proxy.seen if path.startswith(f"/{s3_bucket}/some/prefix/")}
        others = {(method, path.partition("&")[0]) for method, path in proxy.seen if not path.startswith(f"/{s3_bucket}/")}
        assert on_objects == {"GET", "HEAD", "PUT", "DELETE"}
        assert others == {("GET", f"/{s3_bucket}?list-type=2")}

        proxy.seen.clear()
        with FeatureStore(settings(home, f"s3://{s3_bucket}/some/prefix")) as store:
            assert answers(store) == expected
            assert [path for method, path in proxy.seen if method == "GET" and path.endswith(".parquet")] == []

        shutil.rmtree(home / "cache")
        with FeatureStore(settings(home, f"s3://{s3_bucket}/some/prefix")) as store:
            assert answers(store) == expected
            fetched = [path for method, path in proxy.seen if method == "GET" and path.endswith(".parquet")]
            assert len(fetched) == len(set(fetched)) > 0


def test_a_store_on_disk_can_be_copied_to_a_bucket(
    s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    with FeatureStore(settings(home, "")) as store:
        fill(store)
        expected = answers(store)
    client = boto3.client("s3", endpoint_url=s3_server.url)
    for path in (home / "offline").rglob("*"):
        if path.is_file():
            client.upload_file(str(path), s3_bucket, f"moved/{path.relative_to(home / 'offline')}")
    client.close()
    monkeypatch.setenv(ENDPOINT, s3_server.url)
    with FeatureStore(settings(home, f"s3://{s3_bucket}/moved")) as store:
        assert answers(store) == expected
        store.put_record("weather", {"station": "d", "taken": "2024-02-01T00:00:00Z", "celsius": 9.0})
        assert store.sql("SELECT count(*) AS n FROM weather").to_pylist() == [{"n": expected[1].num_rows + 1}]


def test_a_service_on_a_bucket(s3_server: S3Server, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENDPOINT, s3_server.url)
    url = f"s3://{s3_bucket}/service"
    log = tmp_path / "log"
    with Service(tmp_path / "home", log, offline_url=url) as service, featurestore.connect(service.url) as client:
        features = {"id": "Integral", "t": "Fractional", "x": "Fractional"}
        client.create_feature_group("g", record_identifier="id", event_time="t", features=features)
        client.put_record("g", {"id": 1, "t": 10.0, "x": 0.5})
        client.ingest("g", pd.DataFrame({"id": [1, 2], "t": [20.0, 20.0], "x": [1.5, 2.5]}))
        expected = [{"id": 1, "t": 10.0, "x": 0.5}, {"id": 1, "t": 20.0, "x": 1.5}, {"id": 2, "t": 20.0, "x": 2.5}]
        assert client.sql("SELECT id, t, x FROM g ORDER BY t, id").to_pylist() == expected
        spine = pd.DataFrame({"id": [1, 1, 2], "t": [15.0, 25.0, 15.0]})
        made = client.create_training_set(spine, ["g.x"], event_time="t")
        assert made.features["g.x"].to_pylist() == [0.5, 1.5, None]
    assert "Traceback" not in log.read_text()
    assert " ERROR " not in log.read_text()
    with FeatureStore(settings(tmp_path / "home", url).model_copy(update={"shards": None})) as store:
        assert store.sql("SELECT id, t, x FROM g ORDER BY t, id").to_pylist() == expected


def test_a_service_whose_bucket_does_not_exist_does_not_start(
    s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cli: Cli
) -> None:
    monkeypatch.setenv(ENDPOINT, s3_server.url)
    done = cli("serve", "--home", tmp_path, "--port", "0", offline_url="s3://no-such-bucket")
    assert done.returncode != 0
    assert "bucket no-such-bucket does not exist" in done.stderr
    assert "Traceback" not in done.stderr
