"""What batches and updates answer when the online store refuses or does not answer: nothing is lost, nothing is doubled."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from tests.integration.conftest import OFFLINE, Http, definitions, record
from tests.lossy_proxy import LossyProxy
from tests.redis_server import RedisServer
from tests.service import Service

GROUP = "g"
T0, T1 = "2024-05-01T00:00:00Z", "2024-05-01T00:00:01Z"


@contextmanager
def serving(folder: Path, **more: str) -> Iterator[tuple[Any, Http]]:
    """A service with one group; a client that repeats nothing by itself, and raw HTTP."""
    with Service(folder / "home", folder / "log", flush_s="3600", **more) as service:
        http_client = Http(service.port)
        request = {
            "FeatureGroupName": GROUP,
            "RecordIdentifierFeatureName": "id",
            "EventTimeFeatureName": "at",
            "FeatureDefinitions": definitions(id="String", at="String", note="String", count="Integral"),
            "OnlineStoreConfig": {"EnableOnlineStore": True, "StorageType": "InMemory"},
            "OfflineStoreConfig": OFFLINE,
        }
        assert http_client.control("CreateFeatureGroup", request).status == 200
        yield client(service, attempts=1), http_client


def client(service: Service, *, attempts: int) -> Any:
    retries: Any = {"total_max_attempts": attempts, "mode": "standard"}
    return boto3.client("sagemaker-featurestore-runtime", endpoint_url=service.url, config=Config(retries=retries))


def entries(*keys: str) -> list[dict[str, Any]]:
    return [{"FeatureGroupName": GROUP, "Record": record(id=key, at=T0, note=f"needle {key}")} for key in keys]


def stored(http_client: Http) -> Counter[str]:
    return Counter(row[0] for row in http_client.sql(f'SELECT id FROM history."{GROUP}"'))


def test_what_the_outbox_has_no_room_for_comes_back_unprocessed(tmp_path: Path) -> None:
    with serving(tmp_path, outbox_changes_max="5") as (runtime, http_client):
        batch = [*entries(*"abc"), {"FeatureGroupName": "nope", "Record": record(id="x", at=T0)}, *entries(*"defg")]
        answer = runtime.batch_write_record(Entries=batch)
        assert answer["UnprocessedEntries"] == entries("f", "g")
        assert [error["ErrorCode"] for error in answer["Errors"]] == ["ResourceNotFound"]
        assert runtime.batch_write_record(Entries=entries("f", "g"))["UnprocessedEntries"] == entries("f", "g")
        with pytest.raises(ClientError) as error:
            runtime.update_record(FeatureGroupName=GROUP, RecordIdentifierValueAsString="a", Features=record(count="1"))
        assert error.value.response["Error"]["Code"] == "ServiceUnavailable"
        assert http_client.request("POST", "/v1/flush").status == 200
        assert runtime.batch_write_record(Entries=answer["UnprocessedEntries"])["UnprocessedEntries"] == []
        assert stored(http_client) == Counter("abcdefg")


def test_a_server_that_is_not_reached_leaves_all_entries_unprocessed(tmp_path: Path, redis_server: RedisServer) -> None:
    with serving(tmp_path, online_url=redis_server.url) as (runtime, http_client):
        runtime.batch_write_record(Entries=entries("before"))
        redis_server.kill()
        answer = runtime.batch_write_record(Entries=entries("a", "b"))
        assert (answer["Errors"], answer["UnprocessedEntries"]) == ([], entries("a", "b"))
        for call in (runtime.list_records, runtime.update_record):
            more = {} if call == runtime.list_records else {"RecordIdentifierValueAsString": "a", "Features": record(note="n")}
            with pytest.raises(runtime.exceptions.ServiceUnavailable):
                call(FeatureGroupName=GROUP, **more)
        redis_server.start()
        assert runtime.batch_write_record(Entries=answer["UnprocessedEntries"])["UnprocessedEntries"] == []
        assert stored(http_client) == Counter(["before", "a", "b"])
        assert sorted(runtime.list_records(FeatureGroupName=GROUP)["RecordIdentifiers"]) == ["a", "b", "before"]


def test_a_batch_whose_fate_is_unknown_is_an_error_and_its_repetition_writes_nothing_twice(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    with (
        closing(LossyProxy(redis_server.port)) as proxy,
        serving(tmp_path, online_url=f"redis://127.0.0.1:{proxy.port}") as (_, http_client),
    ):
        keys = [f"k{number}" for number in range(20)]
        body, headers = {"Entries": entries(*keys)}, {"amz-sdk-invocation-id": "the same"}
        proxy.lose_answer_to(b"needle k7")
        first = http_client.request("POST", "/BatchWriteRecord", body, headers)
        assert (first.status, first.code) == (503, "ServiceUnavailable")
        again = http_client.request("POST", "/BatchWriteRecord", body, headers)
        assert (again.status, again.json) == (200, {"Errors": [], "UnprocessedEntries": []})
        assert stored(http_client) == Counter(keys)
        assert proxy.lost == 1


def test_an_sdk_repeats_a_batch_and_an_update_whose_answer_was_lost_by_itself(tmp_path: Path, redis_server: RedisServer) -> None:
    with closing(LossyProxy(redis_server.port)) as proxy:
        url = f"redis://127.0.0.1:{proxy.port}"
        with serving(tmp_path, online_url=url) as (once, http_client):
            endpoint = once.meta.endpoint_url
            runtime = boto3.client("sagemaker-featurestore-runtime", endpoint_url=endpoint)
            proxy.lose_answer_to(b"needle a")
            assert runtime.batch_write_record(Entries=entries("a", "b"))["UnprocessedEntries"] == []
            proxy.lose_answer_to(b"needle update")
            runtime.update_record(
                FeatureGroupName=GROUP, RecordIdentifierValueAsString="a", Features=record(at=T1, note="needle update")
            )
            assert proxy.lost == 2
            rows = http_client.sql(f'SELECT id, "at", note FROM history."{GROUP}" ORDER BY id, "at"')
            assert rows == [["a", T0, "needle a"], ["a", T1, "needle update"], ["b", T0, "needle b"]]
