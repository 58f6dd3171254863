"""The record operations as unmodified boto3 sees them."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from botocore.exceptions import ClientError

from featurestore.model.event_time import format_epoch, format_iso
from tests.integration.conftest import OFFLINE, ONLINE, Http, definitions, record, values_of

T0, T1, T2, T3 = (f"2024-05-01T00:00:0{second}Z" for second in range(4))
HOUR_US = 3_600_000_000
WAIT_S_MAX = 10.0

CreateGroup = Callable[..., str]


@pytest.fixture(scope="module")
def group(create_group: CreateGroup) -> str:
    """A group with both stores; each test uses identifiers of its own."""
    return create_group()


@pytest.fixture
def key(request: pytest.FixtureRequest) -> str:
    return str(request.node.name)


def now_us() -> int:
    return time.time_ns() // 1000


def read(runtime: Any, group: str, key: str, **members: Any) -> dict[str, Any] | None:
    answer = runtime.get_record(FeatureGroupName=group, RecordIdentifierValueAsString=key, **members)
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    return values_of(answer)


def put(runtime: Any, group: str, key: str, at: str, *, members: dict[str, Any] | None = None, **values: str) -> None:
    runtime.put_record(FeatureGroupName=group, Record=record(id=key, at=at, **values), **(members or {}))


def history(http_client: Http, group: str, key: str) -> list[list[Any]]:
    """(at, note, is_deleted) of every offline row of a record, in order of arrival."""
    where = f"WHERE id = '{key}' ORDER BY api_invocation_time"
    return http_client.sql(f'SELECT "at", note, is_deleted FROM history."{group}" {where}')


def refused(error: pytest.ExceptionInfo[ClientError], code: str, *words: str) -> None:
    assert error.value.response["Error"]["Code"] == code
    for word in words:
        assert word in error.value.response["Error"]["Message"]


class TestPutAndGet:
    def test_a_record_comes_back_in_definition_order_without_absent_features(self, runtime: Any, group: str, key: str) -> None:
        runtime.put_record(FeatureGroupName=group, Record=record(note="n", at=T0, amount="1.50", id=key))
        answer = runtime.get_record(FeatureGroupName=group, RecordIdentifierValueAsString=key)
        assert answer["Record"] == record(id=key, at=T0, amount="1.50", note="n")
        assert "ExpiresAt" not in answer

    def test_answers_carry_what_clients_read(self, runtime: Any, group: str, key: str) -> None:
        answer = runtime.put_record(FeatureGroupName=group, Record=record(id=key, at=T0))["ResponseMetadata"]
        assert answer["HTTPStatusCode"] == 200
        assert answer["RequestId"]
        assert answer["HTTPHeaders"]["content-length"] == "0"
        assert answer["HTTPHeaders"]["content-type"] == "application/json"
        assert answer["HTTPHeaders"]["date"]

    def test_a_missing_record_is_an_empty_answer(self, runtime: Any, http_client: Http, group: str) -> None:
        assert read(runtime, group, "nobody") is None
        reply = http_client.request("GET", f"/FeatureGroup/{group}?RecordIdentifierValueAsString=nobody")
        assert (reply.status, reply.body) == (200, b"{}")

    @pytest.mark.parametrize(
        "text",
        [
            "",
            " leading and trailing ",
            "line\nfeed\ttab\r",
            "quotes ' \" ; -- \\ /",
            "zażółć 東京 \U0001f980 e\u0301",
            "nul\x00inside",
            "</script>&amp;%20+%2F",
            "x" * 100_000,
        ],
        ids=["empty", "spaces", "controls", "quotes", "unicode", "nul", "markup", "long"],
    )
    def test_text_is_echoed_exactly(self, runtime: Any, http_client: Http, group: str, key: str, text: str) -> None:
        put(runtime, group, key, T0, note=text)
        found = read(runtime, group, key)
        assert found is not None
        assert found["note"] == text

    @pytest.mark.parametrize("text", ["0.0", "25", "-0", "1e3", "+7.50", ".5", "5.", "1.7976931348623157e308", "4.9e-324"])
    def test_fractional_text_is_echoed_exactly(self, runtime: Any, group: str, key: str, text: str) -> None:
        put(runtime, group, key, T0, amount=text)
        assert (read(runtime, group, key) or {})["amount"] == text

    @pytest.mark.parametrize("text", ["0", "007", "+7", "-0", "9223372036854775807", "-9223372036854775808"])
    def test_integral_text_is_echoed_exactly(self, runtime: Any, group: str, key: str, text: str) -> None:
        put(runtime, group, key, T0, count=text)
        assert (read(runtime, group, key) or {})["count"] == text

    @pytest.mark.parametrize(
        "identifier", ["a/b", "a b", "a+b", "a%2Fb", "ä東\U0001f980", "..", "?x=1&y=2#z", "'; DROP TABLE record; --", "x" * 2048]
    )
    def test_any_text_can_be_an_identifier(self, runtime: Any, group: str, identifier: str) -> None:
        put(runtime, group, identifier, T0, note=identifier)
        assert (read(runtime, group, identifier) or {})["id"] == identifier

    def test_a_newer_record_replaces_the_whole_one(self, runtime: Any, group: str, key: str) -> None:
        put(runtime, group, key, T0, note="old", count="1")
        put(runtime, group, key, T1, note="new")
        assert read(runtime, group, key) == {"id": key, "at": T1, "note": "new"}

    def test_an_older_record_goes_to_the_offline_store_alone(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T1, note="newer")
        put(runtime, group, key, T0, note="historic")
        assert read(runtime, group, key) == {"id": key, "at": T1, "note": "newer"}
        assert history(http_client, group, key) == [[T1, "newer", False], [T0, "historic", False]]

    def test_of_equal_event_times_the_later_arrival_wins(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T0, note="first")
        put(runtime, group, key, T0, note="second")
        assert (read(runtime, group, key) or {})["note"] == "second"
        assert len(history(http_client, group, key)) == 2

    def test_event_times_are_compared_as_instants(self, runtime: Any, group: str, key: str) -> None:
        put(runtime, group, key, "2024-05-01T00:00:00.500Z", note="half past")
        put(runtime, group, key, "2024-05-01T00:00:00Z", note="older, though its text sorts last")
        assert (read(runtime, group, key) or {})["note"] == "half past"
        put(runtime, group, key, "2024-05-01T00:00:00.500000000Z", note="the same instant")
        assert read(runtime, group, key) == {"id": key, "at": "2024-05-01T00:00:00.500000000Z", "note": "the same instant"}

    @pytest.mark.parametrize(
        "at", ["0000-01-01T00:00:00Z", "1969-12-31T23:59:59.999999Z", "2024-02-29T23:59:59Z", "9999-12-31T23:59:59.999999Z"]
    )
    def test_event_times_from_year_0_to_9999(self, runtime: Any, http_client: Http, group: str, key: str, at: str) -> None:
        put(runtime, group, key, at, note="edge")
        assert (read(runtime, group, key) or {})["at"] == at
        assert len(history(http_client, group, key)) == 1

    def test_fractional_event_times(self, runtime: Any, create_group: CreateGroup) -> None:
        group = create_group(FeatureDefinitions=definitions(id="String", at="Fractional", note="String"))
        put(runtime, group, "k", "1714521600.25", note="newest")
        for older in ("999999999.9", "1.7145216e9", "1714521600.249999", "-1"):
            put(runtime, group, "k", older, note="older")
        assert read(runtime, group, "k") == {"id": "k", "at": "1714521600.25", "note": "newest"}
        put(runtime, group, "k", "1714521600.2500000", note="the same instant")
        assert read(runtime, group, "k") == {"id": "k", "at": "1714521600.2500000", "note": "the same instant"}

    @pytest.mark.parametrize(
        ("kind", "written", "same", "other"),
        [
            ("Integral", "007", ["7", "+7", "007"], "70"),
            ("Fractional", "10.0", ["10.0", "10", "1e1"], "10.01"),
            ("String", "10.0", ["10.0"], "10"),
        ],
    )
    def test_identifiers_of_each_type(
        self, runtime: Any, create_group: CreateGroup, kind: str, written: str, same: list[str], other: str
    ) -> None:
        group = create_group(FeatureDefinitions=definitions(id=kind, at="String"))
        put(runtime, group, written, T0)
        for identifier in same:
            assert read(runtime, group, identifier) == {"id": written, "at": T0}
        assert read(runtime, group, other) is None

    def test_feature_names_select(self, runtime: Any, group: str, key: str) -> None:
        put(runtime, group, key, T0, note="n", count="3")
        assert read(runtime, group, key, FeatureNames=["note", "count"]) == {"count": "3", "note": "n"}
        assert read(runtime, group, key, FeatureNames=["id", "amount"]) == {"id": key}
        assert read(runtime, group, key, FeatureNames=["amount"]) == {}
        with pytest.raises(runtime.exceptions.ValidationError, match=r"FeatureNames\[1\].*'nope'"):
            read(runtime, group, key, FeatureNames=["note", "nope"])

    def test_an_arn_names_the_group(self, runtime: Any, sagemaker: Any, group: str, key: str) -> None:
        arn = sagemaker.describe_feature_group(FeatureGroupName=group)["FeatureGroupArn"]
        put(runtime, arn, key, T0)
        assert read(runtime, arn, key) == read(runtime, group, key) == {"id": key, "at": T0}
        runtime.delete_record(FeatureGroupName=arn, RecordIdentifierValueAsString=key, EventTime=T1)
        assert read(runtime, group, key) is None

    @pytest.mark.parametrize("part", [("us-east-1", "eu-west-1"), ("000000000000", "111111111111")], ids=["region", "account"])
    def test_an_arn_of_somewhere_else_names_nothing(
        self, runtime: Any, sagemaker: Any, group: str, part: tuple[str, str]
    ) -> None:
        arn = sagemaker.describe_feature_group(FeatureGroupName=group)["FeatureGroupArn"].replace(*part)
        with pytest.raises(runtime.exceptions.ResourceNotFound):
            read(runtime, arn, "k")

    def test_a_feature_without_a_value_is_absent(self, runtime: Any, group: str, key: str) -> None:
        runtime.put_record(FeatureGroupName=group, Record=[*record(id=key, at=T0), {"FeatureName": "note"}])
        assert read(runtime, group, key) == {"id": key, "at": T0}

    def test_an_unknown_group_is_not_found(self, runtime: Any) -> None:
        for call in (
            lambda: put(runtime, "nope", "k", T0),
            lambda: read(runtime, "nope", "k"),
            lambda: runtime.delete_record(FeatureGroupName="nope", RecordIdentifierValueAsString="k", EventTime=T0),
        ):
            with pytest.raises(runtime.exceptions.ResourceNotFound, match="'nope' does not exist") as error:
                call()
            assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
            assert "nope" in error.value.response["Message"]

    def test_one_bad_feature_fails_the_whole_record(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        with pytest.raises(runtime.exceptions.ValidationError) as error:
            put(runtime, group, key, T0, amount="1.0", count="many", note="n")
        refused(error, "ValidationError", "Record.count", "Integral", "'many'")
        assert read(runtime, group, key) is None
        assert history(http_client, group, key) == []

    def test_all_faults_are_named_at_once(self, runtime: Any, group: str, key: str) -> None:
        with pytest.raises(runtime.exceptions.ValidationError) as error:
            put(runtime, group, key, "yesterday", amount="NaN", count="1.5", nope="x")
        refused(error, "ValidationError", "Record.at", "Record.amount", "Record.count", "Record[4].FeatureName", "'nope'")


class TestCollections:
    @pytest.fixture(scope="class")
    @classmethod
    def group(cls, create_group: CreateGroup) -> str:
        return create_group(
            OnlineStoreConfig={"EnableOnlineStore": True, "StorageType": "InMemory"},
            FeatureDefinitions=[
                *definitions(id="String", at="String"),
                {"FeatureName": "words", "FeatureType": "String", "CollectionType": "List"},
                {"FeatureName": "numbers", "FeatureType": "Integral", "CollectionType": "Set"},
                {
                    "FeatureName": "vector",
                    "FeatureType": "Fractional",
                    "CollectionType": "Vector",
                    "CollectionConfig": {"VectorConfig": {"Dimension": 3}},
                },
            ],
        )

    def test_they_come_back_as_written(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        written = record(id=key, at=T0, words=["b", "", "b"], numbers=["2", "1", "2"], vector=["0.5", "25", "-1e0"])
        runtime.put_record(FeatureGroupName=group, Record=written)
        assert read(runtime, group, key) == {
            "id": key,
            "at": T0,
            "words": ["b", "", "b"],
            "numbers": ["2", "1"],
            "vector": ["0.5", "25", "-1e0"],
        }
        rows = http_client.sql(f"SELECT words, numbers, vector FROM \"{group}\" WHERE id = '{key}'")
        assert rows == [[["b", "", "b"], [2, 1], [0.5, 25.0, -1.0]]]

    def test_an_empty_one_is_absent(self, runtime: Any, group: str, key: str) -> None:
        runtime.put_record(FeatureGroupName=group, Record=record(id=key, at=T0, words=[]))
        assert read(runtime, group, key) == {"id": key, "at": T0}

    @pytest.mark.parametrize(
        ("values", "word"),
        [
            ({"words": "scalar"}, "ValueAsStringList"),
            ({"at": [T0]}, "ValueAsString"),
            ({"numbers": ["1", "x"]}, "Integral"),
            ({"vector": ["1", "2"]}, "Vector of 3"),
            ({"vector": ["1", "2", "NaN"]}, "Fractional"),
        ],
    )
    def test_wrong_ones_are_refused(self, runtime: Any, group: str, key: str, values: dict[str, Any], word: str) -> None:
        with pytest.raises(runtime.exceptions.ValidationError, match=word):
            runtime.put_record(FeatureGroupName=group, Record=record(**({"id": key, "at": T0} | values)))
        assert read(runtime, group, key) is None


class TestTargetStores:
    def test_online_alone(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T0, members={"TargetStores": ["OnlineStore"]})
        assert read(runtime, group, key) == {"id": key, "at": T0}
        assert history(http_client, group, key) == []

    def test_offline_alone(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T0, note="n", members={"TargetStores": ["OfflineStore"]})
        assert read(runtime, group, key) is None
        assert history(http_client, group, key) == [[T0, "n", False]]

    def test_both_in_any_order(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T0, note="n", members={"TargetStores": ["OfflineStore", "OnlineStore"]})
        assert read(runtime, group, key) == {"id": key, "at": T0, "note": "n"}
        assert history(http_client, group, key) == [[T0, "n", False]]

    def test_a_delete_of_one_store(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T0, note="n")
        delete = {"FeatureGroupName": group, "RecordIdentifierValueAsString": key}
        runtime.delete_record(**delete, EventTime=T1, TargetStores=["OfflineStore"])
        assert read(runtime, group, key) is not None
        assert history(http_client, group, key) == [[T0, "n", False], [T1, None, True]]
        runtime.delete_record(**delete, EventTime=T2, TargetStores=["OnlineStore"])
        assert read(runtime, group, key) is None
        assert len(history(http_client, group, key)) == 2

    def test_groups_with_one_store(self, runtime: Any, http_client: Http, create_group: CreateGroup) -> None:
        online, offline = create_group(OfflineStoreConfig=None), create_group(OnlineStoreConfig=None)
        put(runtime, online, "k", T0)
        assert read(runtime, online, "k") == {"id": "k", "at": T0}
        put(runtime, offline, "k", T0, note="n")
        runtime.delete_record(FeatureGroupName=offline, RecordIdentifierValueAsString="k", EventTime=T1)
        assert history(http_client, offline, "k") == [[T0, "n", False], [T1, None, True]]
        with pytest.raises(runtime.exceptions.ValidationError, match="online store"):
            read(runtime, offline, "k")
        for group, lacking in ((online, "OfflineStore"), (offline, "OnlineStore")):
            with pytest.raises(runtime.exceptions.ValidationError, match=f"TargetStores.*got '{lacking}'"):
                put(runtime, group, "k", T2, members={"TargetStores": [lacking]})
            with pytest.raises(runtime.exceptions.ValidationError, match=f"TargetStores.*got '{lacking}'"):
                runtime.delete_record(
                    FeatureGroupName=group, RecordIdentifierValueAsString="k", EventTime=T2, TargetStores=[lacking]
                )


class TestDelete:
    @pytest.fixture
    def delete(self, runtime: Any, group: str, key: str) -> Callable[..., None]:
        def delete(at: str, mode: str | None = None) -> None:
            members = {} if mode is None else {"DeletionMode": mode}
            runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString=key, EventTime=at, **members)

        return delete

    @pytest.mark.parametrize("mode", [None, "SoftDelete", "HardDelete"])
    def test_the_record_is_gone_and_a_marker_is_written(
        self, runtime: Any, http_client: Http, group: str, key: str, delete: Callable[..., None], mode: str | None
    ) -> None:
        put(runtime, group, key, T0, note="n")
        delete(T1, mode)
        assert read(runtime, group, key) is None
        assert history(http_client, group, key) == [[T0, "n", False], [T1, None, True]]
        assert http_client.sql(f"SELECT * FROM latest.\"{group}\" WHERE id = '{key}'") == []

    def test_after_a_soft_delete_an_older_record_stays_invisible(
        self, runtime: Any, http_client: Http, group: str, key: str, delete: Callable[..., None]
    ) -> None:
        put(runtime, group, key, T0)
        delete(T2)
        put(runtime, group, key, T1, note="historic")
        assert read(runtime, group, key) is None
        assert len(history(http_client, group, key)) == 3
        put(runtime, group, key, T3, note="newer")
        assert (read(runtime, group, key) or {})["note"] == "newer"

    def test_after_a_hard_delete_an_older_record_becomes_visible(
        self, runtime: Any, http_client: Http, group: str, key: str, delete: Callable[..., None]
    ) -> None:
        put(runtime, group, key, T2)
        delete(T3, "HardDelete")
        put(runtime, group, key, T0, note="older than all of it")
        assert read(runtime, group, key) == {"id": key, "at": T0, "note": "older than all of it"}
        assert http_client.sql(f"SELECT note FROM latest.\"{group}\" WHERE id = '{key}'") == [["older than all of it"]]

    @pytest.mark.parametrize("at", [T0, T1], ids=["older", "equal"])
    def test_a_stale_soft_delete_changes_nothing_online_and_writes_a_marker(
        self, runtime: Any, http_client: Http, group: str, key: str, delete: Callable[..., None], at: str
    ) -> None:
        put(runtime, group, key, T1, note="stays")
        delete(at)
        assert (read(runtime, group, key) or {})["note"] == "stays"
        assert history(http_client, group, key) == [[T1, "stays", False], [at, None, True]]
        assert http_client.sql(f"SELECT note FROM latest.\"{group}\" WHERE id = '{key}'") == [["stays"]]

    @pytest.mark.parametrize("at", [T0, T1], ids=["older", "equal"])
    def test_a_stale_hard_delete_is_an_error_and_changes_nothing(
        self, runtime: Any, http_client: Http, group: str, key: str, delete: Callable[..., None], at: str
    ) -> None:
        put(runtime, group, key, T1, note="stays")
        with pytest.raises(runtime.exceptions.ValidationError, match=r"EventTime.*later"):
            delete(at, "HardDelete")
        assert (read(runtime, group, key) or {})["note"] == "stays"
        assert history(http_client, group, key) == [[T1, "stays", False]]

    def test_a_put_at_the_time_of_a_soft_delete_brings_the_record_back(
        self, runtime: Any, group: str, key: str, delete: Callable[..., None]
    ) -> None:
        delete(T1)
        put(runtime, group, key, T1, note="same time")
        assert (read(runtime, group, key) or {})["note"] == "same time"

    @pytest.mark.parametrize(("mode", "visible"), [("SoftDelete", False), ("HardDelete", True)])
    def test_what_does_not_exist_can_be_deleted(
        self,
        runtime: Any,
        http_client: Http,
        group: str,
        key: str,
        delete: Callable[..., None],
        mode: str,
        visible: bool,
    ) -> None:
        delete(T1, mode)
        assert history(http_client, group, key) == [[T1, None, True]]
        put(runtime, group, key, T0)
        assert (read(runtime, group, key) is not None) is visible

    def test_a_hard_delete_after_a_soft_delete_forgets_the_tombstone(
        self, runtime: Any, group: str, key: str, delete: Callable[..., None]
    ) -> None:
        put(runtime, group, key, T0)
        delete(T1)
        with pytest.raises(runtime.exceptions.ValidationError):
            delete(T1, "HardDelete")
        delete(T2, "HardDelete")
        put(runtime, group, key, T0)
        assert read(runtime, group, key) is not None

    def test_the_event_time_has_the_form_of_the_groups_feature(self, runtime: Any, create_group: CreateGroup) -> None:
        group = create_group(FeatureDefinitions=definitions(id="Integral", at="Fractional"))
        put(runtime, group, "7", "100.5")
        with pytest.raises(runtime.exceptions.ValidationError, match=r"EventTime.*seconds since 1970"):
            runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString="7", EventTime=T0)
        runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString="+7", EventTime="100.6")
        assert read(runtime, group, "7") is None


class TestTtl:
    @pytest.fixture(scope="class")
    @classmethod
    def hourly(cls, create_group: CreateGroup) -> str:
        """A group whose records live for an hour."""
        return create_group(OnlineStoreConfig=ONLINE | {"TtlDuration": {"Unit": "Hours", "Value": 1}})

    @staticmethod
    def expiry(runtime: Any, group: str, key: str) -> str | None:
        answer = runtime.get_record(FeatureGroupName=group, RecordIdentifierValueAsString=key, ExpirationTimeResponse="Enabled")
        assert "Record" in answer
        return answer.get("ExpiresAt")

    def test_expires_at_is_event_time_plus_ttl_and_only_on_demand(self, runtime: Any, hourly: str, key: str) -> None:
        put(runtime, hourly, key, "2099-12-31T23:30:00.250Z")
        for members in ({}, {"ExpirationTimeResponse": "Disabled"}):
            answer = runtime.get_record(FeatureGroupName=hourly, RecordIdentifierValueAsString=key, **members)
            assert "ExpiresAt" not in answer
        assert self.expiry(runtime, hourly, key) == "2100-01-01T00:30:00.250Z"

    @pytest.mark.parametrize(
        ("unit", "expires_at"),
        [
            ("Seconds", "2099-01-01T00:00:02Z"),
            ("Minutes", "2099-01-01T00:02:00Z"),
            ("Hours", "2099-01-01T02:00:00Z"),
            ("Days", "2099-01-03T00:00:00Z"),
            ("Weeks", "2099-01-15T00:00:00Z"),
        ],
    )
    def test_a_records_own_ttl_beats_the_groups(self, runtime: Any, hourly: str, key: str, unit: str, expires_at: str) -> None:
        put(runtime, hourly, key, "2099-01-01T00:00:00Z", members={"TtlDuration": {"Unit": unit, "Value": 2}})
        assert self.expiry(runtime, hourly, key) == expires_at
        put(runtime, hourly, key, "2099-01-01T00:00:00Z")
        assert self.expiry(runtime, hourly, key) == "2099-01-01T01:00:00Z"

    def test_without_ttl_nothing_expires(self, runtime: Any, group: str, key: str) -> None:
        put(runtime, group, key, "0000-01-01T00:00:00Z")
        assert self.expiry(runtime, group, key) is None

    def test_a_fractional_event_time_expires_too(self, runtime: Any, create_group: CreateGroup) -> None:
        group = create_group(FeatureDefinitions=definitions(id="String", at="Fractional"))
        put(runtime, group, "k", "4070908800.5", members={"TtlDuration": {"Unit": "Days", "Value": 1}})
        assert self.expiry(runtime, group, "k") == "2099-01-02T00:00:00.500Z"

    @pytest.mark.parametrize("level", ["group", "record"])
    def test_a_record_is_invisible_from_the_very_moment(
        self, runtime: Any, group: str, hourly: str, key: str, level: str
    ) -> None:
        own = {"TtlDuration": {"Unit": "Hours", "Value": 1}}
        expires_us = now_us() + 1_200_000
        target, members = (hourly, {}) if level == "group" else (group, own)
        put(runtime, target, key, format_iso(expires_us - HOUR_US), members=members)
        deadline_s = time.monotonic() + WAIT_S_MAX
        seen = 0
        while True:
            asked_us = now_us()
            one = read(runtime, target, key)
            batch = runtime.batch_get_record(Identifiers=[{"FeatureGroupName": target, "RecordIdentifiersValueAsString": [key]}])[
                "Records"
            ]
            if now_us() < expires_us:
                assert one is not None
                assert batch
                seen += 1
            elif asked_us >= expires_us:
                assert one is None
                assert batch == []
                break
            assert time.monotonic() < deadline_s
            time.sleep(0.005)
        assert seen, "the record was never seen alive"

    def test_a_record_already_expired_is_taken_and_never_seen(
        self, runtime: Any, http_client: Http, hourly: str, key: str
    ) -> None:
        put(runtime, hourly, key, format_iso(now_us() - 2 * HOUR_US), note="late")
        assert read(runtime, hourly, key) is None
        assert [row[1:] for row in history(http_client, hourly, key)] == [["late", False]]
        assert http_client.sql(f"SELECT * FROM latest.\"{hourly}\" WHERE id = '{key}'") == []

    def test_an_expired_record_keeps_its_event_time(self, runtime: Any, hourly: str, key: str) -> None:
        put(runtime, hourly, key, format_iso(now_us() - 2 * HOUR_US))
        put(runtime, hourly, key, T0, note="older", members={"TtlDuration": {"Unit": "Weeks", "Value": 10_000}})
        assert read(runtime, hourly, key) is None
        put(runtime, hourly, key, format_iso(now_us()), note="newer")
        assert (read(runtime, hourly, key) or {})["note"] == "newer"

    def test_a_changed_default_holds_for_later_records(self, runtime: Any, sagemaker: Any, create_group: CreateGroup) -> None:
        group = create_group(
            OnlineStoreConfig=ONLINE | {"TtlDuration": {"Unit": "Days", "Value": 1}},
            FeatureDefinitions=definitions(id="String", at="Fractional"),
        )
        at = format_epoch(4_070_908_800_000_000)
        put(runtime, group, "before", at)
        sagemaker.update_feature_group(FeatureGroupName=group, OnlineStoreConfig={"TtlDuration": {"Unit": "Days", "Value": 2}})
        put(runtime, group, "between", at)
        sagemaker.update_feature_group(FeatureGroupName=group, OnlineStoreConfig={"TtlDuration": {}})
        put(runtime, group, "after", at)
        assert self.expiry(runtime, group, "before") == "2099-01-02T00:00:00Z"
        assert self.expiry(runtime, group, "between") == "2099-01-03T00:00:00Z"
        assert self.expiry(runtime, group, "after") is None
        assert "TtlDuration" not in sagemaker.describe_feature_group(FeatureGroupName=group)["OnlineStoreConfig"]


class TestBatchGet:
    def test_records_of_several_groups(self, runtime: Any, group: str, create_group: CreateGroup) -> None:
        other = create_group(FeatureDefinitions=definitions(id="Integral", at="Fractional", x="String"))
        put(runtime, group, "batch-1", T0, note="one", count="1")
        put(runtime, group, "batch-2", T1, note="two")
        put(runtime, other, "5", "100", x="five")
        answer = runtime.batch_get_record(
            Identifiers=[
                {
                    "FeatureGroupName": group,
                    "RecordIdentifiersValueAsString": ["batch-2", "missing", "batch-1"],
                    "FeatureNames": ["note", "count"],
                },
                {"FeatureGroupName": other, "RecordIdentifiersValueAsString": ["5"]},
            ]
        )
        assert [
            (item["FeatureGroupName"], item["RecordIdentifierValueAsString"], values_of(item)) for item in answer["Records"]
        ] == [
            (group, "batch-2", {"note": "two"}),
            (group, "batch-1", {"count": "1", "note": "one"}),
            (other, "5", {"id": "5", "at": "100", "x": "five"}),
        ]
        assert answer["Errors"] == []
        assert answer["UnprocessedIdentifiers"] == []

    def test_all_three_lists_are_always_there(self, http_client: Http, group: str) -> None:
        body = {"Identifiers": [{"FeatureGroupName": group, "RecordIdentifiersValueAsString": ["missing"]}]}
        reply = http_client.request("POST", "/BatchGetRecord", body)
        assert reply.json == {"Records": [], "Errors": [], "UnprocessedIdentifiers": []}

    def test_deleted_and_expired_records_are_left_out(self, runtime: Any, group: str, key: str) -> None:
        put(runtime, group, f"{key}-live", T0)
        put(runtime, group, f"{key}-deleted", T0)
        runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString=f"{key}-deleted", EventTime=T1)
        put(runtime, group, f"{key}-expired", T0, members={"TtlDuration": {"Unit": "Seconds", "Value": 1}})
        wanted = [f"{key}-{state}" for state in ("deleted", "expired", "live")]
        answer = runtime.batch_get_record(Identifiers=[{"FeatureGroupName": group, "RecordIdentifiersValueAsString": wanted}])
        assert [item["RecordIdentifierValueAsString"] for item in answer["Records"]] == [f"{key}-live"]

    def test_what_is_wrong_with_one_does_not_hold_up_the_others(
        self, runtime: Any, group: str, create_group: CreateGroup
    ) -> None:
        put(runtime, group, "batch-1", T0)
        offline = create_group(OnlineStoreConfig=None)
        numbered = create_group(FeatureDefinitions=definitions(id="Integral", at="String"))
        answer = runtime.batch_get_record(
            Identifiers=[
                {"FeatureGroupName": "nope", "RecordIdentifiersValueAsString": ["a", "b"]},
                {"FeatureGroupName": group, "RecordIdentifiersValueAsString": ["batch-1"], "FeatureNames": ["id"]},
                {"FeatureGroupName": group, "RecordIdentifiersValueAsString": ["batch-1"], "FeatureNames": ["x"]},
                {"FeatureGroupName": offline, "RecordIdentifiersValueAsString": ["a"]},
                {"FeatureGroupName": numbered, "RecordIdentifiersValueAsString": ["1", "one"]},
            ]
        )
        assert [values_of(item) for item in answer["Records"]] == [{"id": "batch-1"}]
        assert [
            (item["FeatureGroupName"], item["RecordIdentifierValueAsString"], item["ErrorCode"]) for item in answer["Errors"]
        ] == [
            ("nope", "a", "ResourceNotFound"),
            ("nope", "b", "ResourceNotFound"),
            (group, "batch-1", "ValidationError"),
            (offline, "a", "ValidationError"),
            (numbered, "one", "ValidationError"),
        ]
        assert "FeatureNames[0]" in answer["Errors"][2]["ErrorMessage"]
        assert "online store" in answer["Errors"][3]["ErrorMessage"]
        assert "Integral" in answer["Errors"][4]["ErrorMessage"]

    def test_an_arn_is_answered_as_an_arn(self, runtime: Any, sagemaker: Any, group: str) -> None:
        arn = sagemaker.describe_feature_group(FeatureGroupName=group)["FeatureGroupArn"]
        put(runtime, group, "batch-1", T0)
        answer = runtime.batch_get_record(Identifiers=[{"FeatureGroupName": arn, "RecordIdentifiersValueAsString": ["batch-1"]}])
        assert [item["FeatureGroupName"] for item in answer["Records"]] == [arn]

    def test_expiry_only_on_demand(self, runtime: Any, group: str, key: str) -> None:
        put(runtime, group, key, "2099-01-01T00:00:00Z", members={"TtlDuration": {"Unit": "Days", "Value": 1}})
        request = {"Identifiers": [{"FeatureGroupName": group, "RecordIdentifiersValueAsString": [key]}]}
        for members, expires_at in (
            ({}, None),
            ({"ExpirationTimeResponse": "Disabled"}, None),
            ({"ExpirationTimeResponse": "Enabled"}, "2099-01-02T00:00:00Z"),
        ):
            (item,) = runtime.batch_get_record(**request, **members)["Records"]
            assert item.get("ExpiresAt") == expires_at

    def test_the_largest_request(self, runtime: Any, group: str) -> None:
        for number in range(100):
            put(runtime, group, f"many-{number}", T0)
        identifiers = {
            "FeatureGroupName": group,
            "RecordIdentifiersValueAsString": [f"many-{number}" for number in range(100)],
        }
        answer = runtime.batch_get_record(Identifiers=[identifiers] * 100)
        assert len(answer["Records"]) == 10_000
        with pytest.raises(runtime.exceptions.ValidationError, match=r"Identifiers.*1 to 100"):
            runtime.batch_get_record(Identifiers=[identifiers] * 101)


IN_MEMORY = ONLINE | {"StorageType": "InMemory"}


@pytest.fixture(scope="module")
def updatable(create_group: CreateGroup) -> str:
    """A group whose records can be updated in part."""
    return create_group(OnlineStoreConfig=ONLINE | {"StorageType": "Standard_V2"})


class TestUpdate:
    @pytest.fixture
    def update(self, runtime: Any, updatable: str, key: str) -> Callable[..., None]:
        def update(members: dict[str, Any] | None = None, **values: Any) -> None:
            request = {"FeatureGroupName": updatable, "RecordIdentifierValueAsString": key} | (members or {})
            runtime.update_record(**request, Features=record(**values))

        return update

    def test_named_features_change_and_the_others_stay(
        self, runtime: Any, http_client: Http, updatable: str, key: str, update: Callable[..., None]
    ) -> None:
        put(runtime, updatable, key, T1, note="old", count="007")
        update(note="new", amount="1.50")
        assert read(runtime, updatable, key) == {"id": key, "at": T1, "amount": "1.50", "count": "007", "note": "new"}
        rows = http_client.sql(
            f'SELECT "at", amount, count, note, is_deleted FROM history."{updatable}" WHERE id = \'{key}\' '
            "ORDER BY api_invocation_time"
        )
        assert rows == [[T1, None, 7, "old", False], [T1, 1.5, 7, "new", False]]
        assert http_client.sql(f"SELECT note FROM latest.\"{updatable}\" WHERE id = '{key}'") == [["new"]]

    def test_the_answer_is_empty(self, http_client: Http, runtime: Any, updatable: str, key: str) -> None:
        put(runtime, updatable, key, T0)
        body = {"RecordIdentifierValueAsString": key, "Features": record(note="n")}
        reply = http_client.request("POST", f"/FeatureGroup/{updatable}/Record", body)
        assert (reply.status, reply.body, reply.headers["content-length"]) == (200, b"", "0")

    @pytest.mark.parametrize("at", ["2024-05-01T00:00:01.000Z", T2], ids=["equal", "newer"])
    def test_an_equal_or_newer_event_time_is_taken(
        self, runtime: Any, updatable: str, key: str, update: Callable[..., None], at: str
    ) -> None:
        put(runtime, updatable, key, T1, note="old", count="1")
        update(at=at, note="new")
        assert read(runtime, updatable, key) == {"id": key, "at": at, "count": "1", "note": "new"}

    def test_an_older_event_time_is_a_conflict(
        self, runtime: Any, http_client: Http, updatable: str, key: str, update: Callable[..., None]
    ) -> None:
        put(runtime, updatable, key, T1, note="stays")
        with pytest.raises(runtime.exceptions.ConflictException, match=rf"Features\.at.*{T1}.*{T0}") as error:
            update(at=T0, note="late")
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 409
        assert (read(runtime, updatable, key) or {})["note"] == "stays"
        assert history(http_client, updatable, key) == [[T1, "stays", False]]

    @pytest.mark.parametrize("state", ["never written", "soft deleted", "hard deleted", "expired"])
    def test_there_must_be_a_live_record(
        self, runtime: Any, http_client: Http, updatable: str, key: str, update: Callable[..., None], state: str
    ) -> None:
        if state != "never written":
            members = {"TtlDuration": {"Unit": "Seconds", "Value": 1}} if state == "expired" else {}
            put(runtime, updatable, key, T0, members=members)
        if state.endswith("deleted"):
            mode = "HardDelete" if state.startswith("hard") else "SoftDelete"
            runtime.delete_record(FeatureGroupName=updatable, RecordIdentifierValueAsString=key, EventTime=T1, DeletionMode=mode)
        rows = len(history(http_client, updatable, key))
        with pytest.raises(runtime.exceptions.ResourceNotFound, match="no record") as error:
            update(note="n")
        assert error.value.response["ResponseMetadata"]["HTTPStatusCode"] == 404
        assert len(history(http_client, updatable, key)) == rows

    def test_groups_that_have_no_updates(self, runtime: Any, group: str, create_group: CreateGroup) -> None:
        call = {"RecordIdentifierValueAsString": "k", "Features": record(note="n")}
        for name in (group, create_group(OnlineStoreConfig=None)):
            with pytest.raises(runtime.exceptions.ValidationError, match="Standard_V2 or InMemory"):
                runtime.update_record(FeatureGroupName=name, **call)
        with pytest.raises(runtime.exceptions.ResourceNotFound, match="'nope' does not exist"):
            runtime.update_record(FeatureGroupName="nope", **call)

    def test_an_arn_names_the_group(self, runtime: Any, sagemaker: Any, updatable: str, key: str) -> None:
        put(runtime, updatable, key, T0)
        arn = sagemaker.describe_feature_group(FeatureGroupName=updatable)["FeatureGroupArn"]
        call = {"RecordIdentifierValueAsString": key, "Features": record(note="by arn")}
        runtime.update_record(FeatureGroupName=arn, **call)
        assert (read(runtime, updatable, key) or {})["note"] == "by arn"
        with pytest.raises(runtime.exceptions.ResourceNotFound):
            runtime.update_record(FeatureGroupName=arn.replace("000000000000", "111111111111"), **call)

    def test_a_feature_without_a_value_is_taken_away(self, runtime: Any, updatable: str, key: str) -> None:
        put(runtime, updatable, key, T0, note="n", count="1")
        runtime.update_record(
            FeatureGroupName=updatable, RecordIdentifierValueAsString=key, Features=[{"FeatureName": "note"}, *record(count="2")]
        )
        assert read(runtime, updatable, key) == {"id": key, "at": T0, "count": "2"}

    @pytest.mark.parametrize(
        ("values", "words"),
        [
            ({"nope": "1"}, ["Features[0].FeatureName", "'nope'"]),
            ({"count": "1.5"}, ["Features.count", "Integral"]),
            ({"note": ["a"]}, ["Features[0]", "no collection"]),
            ({"id": "another"}, ["Features.id", "'another'"]),
            ({"at": "yesterday"}, ["Features.at", "ISO-8601"]),
            ({"note": "x" * 358_401}, ["Features.note", "358400"]),
            ({"count": "x", "amount": "y"}, ["Features.count", "Features.amount"]),
        ],
    )
    def test_wrong_features_are_refused(
        self,
        runtime: Any,
        http_client: Http,
        updatable: str,
        key: str,
        update: Callable[..., None],
        values: dict[str, Any],
        words: list[str],
    ) -> None:
        put(runtime, updatable, key, T0, note="stays")
        with pytest.raises(runtime.exceptions.ValidationError) as error:
            update(**values)
        refused(error, "ValidationError", *words)
        assert history(http_client, updatable, key) == [[T0, "stays", False]]

    def test_the_identifier_may_be_among_the_features(
        self, runtime: Any, updatable: str, key: str, update: Callable[..., None]
    ) -> None:
        put(runtime, updatable, key, T0)
        update(id=key, note="n")
        assert read(runtime, updatable, key) == {"id": key, "at": T0, "note": "n"}
        for name in ("id", "at"):
            with pytest.raises(runtime.exceptions.ValidationError, match=rf"Features\.{name}"):
                runtime.update_record(
                    FeatureGroupName=updatable, RecordIdentifierValueAsString=key, Features=[{"FeatureName": name}]
                )

    def test_at_most_100_features_each_once(self, runtime: Any, create_group: CreateGroup) -> None:
        names = [f"f{number}" for number in range(101)]
        group = create_group(
            OnlineStoreConfig=IN_MEMORY,
            FeatureDefinitions=definitions(id="String", at="String", **dict.fromkeys(names, "Integral")),
        )
        put(runtime, group, "k", T0)

        def update(features: list[dict[str, Any]]) -> None:
            runtime.update_record(FeatureGroupName=group, RecordIdentifierValueAsString="k", Features=features)

        update(record(**dict.fromkeys(names[:100], "1")))
        assert len(read(runtime, group, "k") or {}) == 102
        with pytest.raises(runtime.exceptions.ValidationError, match=r"Features: expected 1 to 100 features, got 101"):
            update(record(**dict.fromkeys(names, "2")))
        with pytest.raises(runtime.exceptions.ValidationError, match=r"Features\[1\].*at most once"):
            update([*record(f1="1"), *record(f1="2")])

    def test_target_stores(self, runtime: Any, http_client: Http, updatable: str, key: str, update: Callable[..., None]) -> None:
        put(runtime, updatable, key, T0, note="n")
        update({"TargetStores": ["OnlineStore"]}, note="online alone")
        assert (read(runtime, updatable, key) or {})["note"] == "online alone"
        assert len(history(http_client, updatable, key)) == 1
        with pytest.raises(runtime.exceptions.ValidationError, match=r"TargetStores.*OnlineStore"):
            update({"TargetStores": ["OfflineStore"]}, note="x")
        update({"TargetStores": ["OfflineStore", "OnlineStore"]}, count="1")
        assert history(http_client, updatable, key) == [[T0, "n", False], [T0, "online alone", False]]

    def test_ttl(self, runtime: Any, updatable: str, key: str, update: Callable[..., None]) -> None:
        def expiry() -> str | None:
            answer = runtime.get_record(
                FeatureGroupName=updatable, RecordIdentifierValueAsString=key, ExpirationTimeResponse="Enabled"
            )
            return answer.get("ExpiresAt")

        put(runtime, updatable, key, "2099-01-01T00:00:00Z", members={"TtlDuration": {"Unit": "Days", "Value": 1}})
        update(note="the same event time")
        assert expiry() == "2099-01-02T00:00:00Z"
        update(at="2099-02-01T00:00:00Z", note="a later one")
        assert expiry() == "2099-02-02T00:00:00Z"
        update({"TtlDuration": {"Unit": "Days", "Value": 3}}, at="2099-02-01T00:00:00Z")
        assert expiry() == "2099-02-04T00:00:00Z"
        with pytest.raises(runtime.exceptions.ValidationError, match=r"TtlDuration.*'at' in Features"):
            update({"TtlDuration": {"Unit": "Days", "Value": 3}}, note="x")

    def test_collections_are_replaced_as_a_whole(self, runtime: Any, http_client: Http, create_group: CreateGroup) -> None:
        group = create_group(
            OnlineStoreConfig=IN_MEMORY,
            FeatureDefinitions=[
                *definitions(id="String", at="String"),
                {"FeatureName": "words", "FeatureType": "String", "CollectionType": "List"},
                {"FeatureName": "numbers", "FeatureType": "Integral", "CollectionType": "Set"},
            ],
        )
        runtime.put_record(FeatureGroupName=group, Record=record(id="k", at=T0, words=["a", "b"], numbers=["1"]))
        update = {"FeatureGroupName": group, "RecordIdentifierValueAsString": "k"}
        runtime.update_record(**update, Features=record(words=["c", "", "c"], numbers=["3", "2", "3"]))
        assert read(runtime, group, "k") == {"id": "k", "at": T0, "words": ["c", "", "c"], "numbers": ["3", "2"]}
        runtime.update_record(**update, Features=record(words=[]))
        assert read(runtime, group, "k") == {"id": "k", "at": T0, "numbers": ["3", "2"]}
        rows = http_client.sql(f'SELECT words, numbers FROM history."{group}" ORDER BY api_invocation_time')
        assert rows == [[["a", "b"], [1]], [["c", "", "c"], [3, 2]], [None, [3, 2]]]

    def test_the_whole_record_stays_within_its_size(
        self, runtime: Any, updatable: str, key: str, update: Callable[..., None]
    ) -> None:
        put(runtime, updatable, key, T0, note="x" * 358_000)
        with pytest.raises(runtime.exceptions.ValidationError, match="358400 bytes.*whole record"):
            update(amount="0." + "1" * 400)
        update(note="small", amount="0." + "1" * 400)

    def test_concurrent_updates_of_different_features_all_survive(
        self, runtime: Any, http_client: Http, updatable: str, key: str, update: Callable[..., None]
    ) -> None:
        put(runtime, updatable, key, T0)
        rounds = 25
        start = threading.Barrier(3)

        def write(name: str) -> None:
            start.wait()
            for number in range(rounds):
                update(**{name: str(number)})

        with ThreadPoolExecutor(3) as pool:
            list(pool.map(write, ["amount", "count", "note"]))
        last = str(rounds - 1)
        assert read(runtime, updatable, key) == {"id": key, "at": T0, "amount": last, "count": last, "note": last}
        rows = http_client.sql(
            f"SELECT amount, count, note FROM history.\"{updatable}\" WHERE id = '{key}' ORDER BY api_invocation_time"
        )
        assert len(rows) == 1 + 3 * rounds
        for one, two in itertools.pairwise(rows):  # each is the one before it with one feature changed
            assert sum(before != after for before, after in zip(one, two, strict=True)) == 1

    def test_a_repeated_update_changes_nothing_the_second_time(
        self, runtime: Any, http_client: Http, updatable: str, key: str
    ) -> None:
        def send(token: str, **values: str) -> int:
            body = {"RecordIdentifierValueAsString": key, "Features": record(**values)}
            path, headers = f"/FeatureGroup/{updatable}/Record", {"amz-sdk-invocation-id": token}
            return http_client.request("POST", path, body, headers).status

        put(runtime, updatable, key, T0)
        assert [send("one", at=T1, note="first") for _ in range(2)] == [200, 200]
        put(runtime, updatable, key, T2, note="between")
        assert send("one", at=T1, note="first") == 200  # not a conflict: it was applied
        assert send("two", at=T1, note="other") == 409
        assert (read(runtime, updatable, key) or {})["note"] == "between"
        assert history(http_client, updatable, key) == [[T0, None, False], [T1, "first", False], [T2, "between", False]]


class TestBatchWrite:
    @staticmethod
    def entry(group: str, key: str, at: str = T0, members: dict[str, Any] | None = None, **values: Any) -> dict[str, Any]:
        return {"FeatureGroupName": group, "Record": record(id=key, at=at, **values)} | (members or {})

    def test_records_of_several_groups(
        self, runtime: Any, http_client: Http, sagemaker: Any, group: str, key: str, create_group: CreateGroup
    ) -> None:
        other = create_group(FeatureDefinitions=definitions(id="Integral", at="Fractional", note="String"))
        arn = sagemaker.describe_feature_group(FeatureGroupName=group)["FeatureGroupArn"]
        entries = [
            self.entry(group, f"{key}-1", note="one"),
            self.entry(arn, f"{key}-2", note="two"),
            self.entry(other, "5", "100", note="five"),
        ]
        answer = runtime.batch_write_record(Entries=entries)
        assert (answer["Errors"], answer["UnprocessedEntries"]) == ([], [])
        assert read(runtime, group, f"{key}-1") == {"id": f"{key}-1", "at": T0, "note": "one"}
        assert (read(runtime, group, f"{key}-2") or {})["note"] == "two"
        assert (read(runtime, other, "5") or {})["note"] == "five"
        assert history(http_client, group, f"{key}-2") == [[T0, "two", False]]

    def test_entries_of_one_record_take_effect_in_order(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        entries = [self.entry(group, key, at, note=note) for at, note in ((T1, "1"), (T1, "2"), (T0, "3"))]
        assert runtime.batch_write_record(Entries=entries)["Errors"] == []
        assert (read(runtime, group, key) or {})["note"] == "2"
        assert [row[1] for row in history(http_client, group, key)] == ["1", "2", "3"]

    def test_each_entry_is_decided_by_itself(
        self, runtime: Any, http_client: Http, group: str, key: str, create_group: CreateGroup
    ) -> None:
        online = create_group(OfflineStoreConfig=None)
        good = [self.entry(group, f"{key}-{number}", note="n") for number in range(9)]
        wrong = [
            ({"FeatureGroupName": group, "Record": record(at=T0, note="no identifier")}, "ValidationError", "identifier"),
            (self.entry("nope", key), "ResourceNotFound", "'nope' does not exist"),
            (self.entry("bad name!", key), "ValidationError", "FeatureGroupName"),
            (self.entry(group, key, nope="1"), "ValidationError", "'nope'"),
            (self.entry(group, key, count="x"), "ValidationError", "Record.count"),
            (self.entry(group, key, members={"TargetStores": ["Nope"]}), "ValidationError", "TargetStores"),
            (self.entry(online, key, members={"TargetStores": ["OfflineStore"]}), "ValidationError", "OnlineStore"),
            (self.entry(group, key, members={"TtlDuration": {"Unit": "Years", "Value": 1}}), "ValidationError", "Unit"),
            (self.entry(group, key, note="x" * 358_401), "ValidationError", "358400"),
        ]
        entries = [item for pair in zip(good, [entry for entry, _, _ in wrong], strict=True) for item in pair]
        answer = runtime.batch_write_record(Entries=entries)
        assert [(error["Entry"], error["ErrorCode"]) for error in answer["Errors"]] == [(entry, code) for entry, code, _ in wrong]
        for error, (_, _, word) in zip(answer["Errors"], wrong, strict=True):
            assert word in error["ErrorMessage"]
        assert answer["UnprocessedEntries"] == []
        for number in range(9):
            assert read(runtime, group, f"{key}-{number}") is not None
        assert read(runtime, group, key) is None
        assert history(http_client, group, key) == []

    def test_a_failed_entry_comes_back_byte_for_byte(self, http_client: Http, group: str, key: str) -> None:
        entry = (
            '{"TargetStores":["OnlineStore" , "OfflineStore"], "Unknown": {"b": 1.50, "a": null},"Record":['
            '{"ValueAsString":"\\u00e4 \\/ ä","FeatureName":"id"},{"FeatureName":"at","ValueAsString":"never"}],'
            f'"FeatureGroupName":"{group}"}}'
        )
        reply = http_client.request("POST", "/BatchWriteRecord", f'{{"Entries": [{entry}]}}')
        assert reply.status == 200
        assert reply.body.decode().startswith('{"Errors":[{"Entry":' + entry + ',"ErrorCode":"ValidationError","ErrorMessage":"')
        assert reply.json["UnprocessedEntries"] == []

    def test_both_lists_are_always_there(self, http_client: Http, group: str, key: str) -> None:
        reply = http_client.request("POST", "/BatchWriteRecord", {"Entries": [self.entry(group, key)]})
        assert (reply.status, reply.json) == (200, {"Errors": [], "UnprocessedEntries": []})

    def test_ttl_of_entry_request_and_group(self, runtime: Any, key: str, create_group: CreateGroup) -> None:
        group = create_group(OnlineStoreConfig=ONLINE | {"TtlDuration": {"Unit": "Days", "Value": 1}})
        at = "2099-01-01T00:00:00Z"
        own = self.entry(group, "own", at, {"TtlDuration": {"Unit": "Days", "Value": 3}})
        runtime.batch_write_record(Entries=[own, self.entry(group, "request", at)], TtlDuration={"Unit": "Days", "Value": 2})
        runtime.batch_write_record(Entries=[self.entry(group, "group", at)])
        wanted = {"FeatureGroupName": group, "RecordIdentifiersValueAsString": ["own", "request", "group"]}
        found = runtime.batch_get_record(Identifiers=[wanted], ExpirationTimeResponse="Enabled")["Records"]
        assert [item["ExpiresAt"][:10] for item in found] == ["2099-01-04", "2099-01-03", "2099-01-02"]

    def test_target_stores(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        entries = [
            self.entry(group, f"{key}-{stores[0]}", members={"TargetStores": stores}, note="n")
            for stores in (["OnlineStore"], ["OfflineStore"])
        ]
        assert runtime.batch_write_record(Entries=entries)["Errors"] == []
        assert read(runtime, group, f"{key}-OnlineStore") is not None
        assert history(http_client, group, f"{key}-OnlineStore") == []
        assert read(runtime, group, f"{key}-OfflineStore") is None
        assert len(history(http_client, group, f"{key}-OfflineStore")) == 1

    def test_one_to_25_entries(self, runtime: Any, group: str, key: str) -> None:
        entries = [self.entry(group, f"{key}-{number}") for number in range(26)]
        with pytest.raises(runtime.exceptions.ValidationError, match="Entries: expected 1 to 25 entries, got 26"):
            runtime.batch_write_record(Entries=entries)
        assert read(runtime, group, f"{key}-0") is None
        assert runtime.batch_write_record(Entries=entries[:25])["Errors"] == []

    def test_the_largest_records(self, runtime: Any, group: str, key: str) -> None:
        text = "ä" * 179_000
        entries = [self.entry(group, f"{key}-{number}", note=text) for number in range(25)]
        answer = runtime.batch_write_record(Entries=entries)
        assert (answer["Errors"], answer["UnprocessedEntries"]) == ([], [])
        assert (read(runtime, group, f"{key}-24") or {})["note"] == text

    def test_a_repeated_batch_changes_nothing_the_second_time(
        self, runtime: Any, http_client: Http, group: str, key: str
    ) -> None:
        entries = [self.entry(group, key, note="n"), self.entry(group, key, note="n"), self.entry("nope", key)]
        headers = {"amz-sdk-invocation-id": f"batch {key}"}
        replies = [http_client.request("POST", "/BatchWriteRecord", {"Entries": entries}, headers) for _ in range(2)]
        assert [reply.json for reply in replies] == [replies[0].json] * 2
        assert history(http_client, group, key) == [[T0, "n", False]] * 2


class TestListRecords:
    @staticmethod
    def listed(runtime: Any, group: str, **members: Any) -> list[str]:
        pages = runtime.get_paginator("list_records").paginate(FeatureGroupName=group, **members)
        return [identifier for page in pages for identifier in page["RecordIdentifiers"]]

    @pytest.mark.parametrize("size", [1, 7, 100])
    def test_all_pages_together_name_every_record_once(self, runtime: Any, create_group: CreateGroup, size: int) -> None:
        group = create_group()
        keys = [f"key-{number}" for number in range(20)]
        for key in keys:
            put(runtime, group, key, T0)
        pages, token = [], None
        while not pages or token is not None:
            more = {} if token is None else {"NextToken": token}
            answer = runtime.list_records(FeatureGroupName=group, MaxResults=size, **more)
            pages.append(answer["RecordIdentifiers"])
            token = answer.get("NextToken")
        assert sorted(key for page in pages for key in page) == sorted(keys)
        assert [len(page) for page in pages] == [size] * (20 // size) + ([20 % size] if 20 % size else [])
        assert sorted(self.listed(runtime, group, PaginationConfig={"PageSize": size})) == sorted(keys)

    def test_a_group_without_records(self, http_client: Http, create_group: CreateGroup) -> None:
        reply = http_client.request("POST", f"/FeatureGroup/{create_group()}/ListRecords", "{}")
        assert (reply.status, reply.json) == (200, {"RecordIdentifiers": []})

    def test_what_is_not_live_is_left_out(self, runtime: Any, create_group: CreateGroup) -> None:
        group = create_group()
        for key in ("live", "soft", "hard", "expired"):
            put(runtime, group, key, T0, members={"TtlDuration": {"Unit": "Seconds", "Value": 1}} if key == "expired" else {})
        for key, mode in (("soft", "SoftDelete"), ("hard", "HardDelete")):
            runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString=key, EventTime=T1, DeletionMode=mode)
        put(runtime, group, "offline", T0, members={"TargetStores": ["OfflineStore"]})
        assert self.listed(runtime, group) == ["live"]
        assert self.listed(runtime, group, IncludeSoftDeletedRecords=False) == ["live"]
        assert sorted(self.listed(runtime, group, IncludeSoftDeletedRecords=True)) == ["live", "soft"]

    @pytest.mark.parametrize(
        ("kind", "written"),
        [("Integral", ["007", "+8", "-9"]), ("Fractional", ["10.0", "1e3", ".5"]), ("String", ["10.0", "a/b", "ä\n東"])],
    )
    def test_identifiers_are_as_they_were_written(
        self, runtime: Any, create_group: CreateGroup, kind: str, written: list[str]
    ) -> None:
        group = create_group(FeatureDefinitions=definitions(id=kind, at="String"))
        for identifier in written:
            put(runtime, group, identifier, T0)
        assert sorted(self.listed(runtime, group, PaginationConfig={"PageSize": 2})) == sorted(written)
        runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString=written[0], EventTime=T1)
        assert sorted(self.listed(runtime, group, IncludeSoftDeletedRecords=True)) == sorted(written)

    def test_a_token_of_another_group_or_none_is_refused(self, runtime: Any, sagemaker: Any, create_group: CreateGroup) -> None:
        group, other = create_group(), create_group()
        for key in "ab":
            put(runtime, group, key, T0)
        token = runtime.list_records(FeatureGroupName=group, MaxResults=1)["NextToken"]
        changed = token[:-2] + ("AA" if token[-2:] != "AA" else "BB")
        for name, text in ((other, token), (group, changed), (group, "garbage"), (group, "ä"), (group, "x" * 8193)):
            with pytest.raises(runtime.exceptions.ValidationError, match="NextToken"):
                runtime.list_records(FeatureGroupName=name, NextToken=text)
        sagemaker.delete_feature_group(FeatureGroupName=group)
        create_group(FeatureGroupName=group)
        with pytest.raises(runtime.exceptions.ValidationError, match="NextToken"):
            runtime.list_records(FeatureGroupName=group, NextToken=token)

    @pytest.mark.parametrize("count", [101, 1000])
    def test_at_most_100_in_a_page(self, runtime: Any, group: str, count: int) -> None:
        with pytest.raises(runtime.exceptions.ValidationError, match="MaxResults.*1 to 100"):
            runtime.list_records(FeatureGroupName=group, MaxResults=count)

    def test_groups_that_have_no_list(self, runtime: Any, sagemaker: Any, create_group: CreateGroup) -> None:
        with pytest.raises(runtime.exceptions.ValidationError, match="online store"):
            runtime.list_records(FeatureGroupName=create_group(OnlineStoreConfig=None))
        with pytest.raises(runtime.exceptions.ResourceNotFound):
            runtime.list_records(FeatureGroupName="nope")
        group = create_group()
        put(runtime, group, "k", T0)
        arn = sagemaker.describe_feature_group(FeatureGroupName=group)["FeatureGroupArn"]
        assert self.listed(runtime, arn) == ["k"]

    def test_what_lives_all_the_time_is_not_missed_while_others_come_and_go(
        self, runtime: Any, create_group: CreateGroup
    ) -> None:
        group = create_group()
        lasting = {f"lasting-{number}" for number in range(120)}
        for key in lasting:
            put(runtime, group, key, T0)
        done = threading.Event()

        def disturb() -> int:
            number = 0
            while not done.is_set():
                key = f"{'a' if number % 2 else 'lasting-5'}-{number % 17}"
                at = format_iso(1_800_000_000_000_000 + number)
                if number % 3:
                    put(runtime, group, key, at)
                else:
                    runtime.delete_record(
                        FeatureGroupName=group, RecordIdentifierValueAsString=key, EventTime=at, DeletionMode="HardDelete"
                    )
                number += 1
            return number

        with ThreadPoolExecutor(1) as pool:
            disturbed = pool.submit(disturb)
            try:
                for _ in range(3):
                    found = self.listed(runtime, group, PaginationConfig={"PageSize": 5})
                    assert len(found) == len(set(found))
                    assert lasting <= set(found)
            finally:
                done.set()
            assert disturbed.result(30) > 10


class TestRetries:
    """AWS SDKs repeat a call whose answer they did not see, under the same invocation id."""

    @staticmethod
    def send(http_client: Http, group: str, identifier: str, token: str, note: str) -> int:
        body = {"Record": record(id=identifier, at=T0, note=note)}
        return http_client.request("PUT", f"/FeatureGroup/{group}", body, {"amz-sdk-invocation-id": token}).status

    def test_the_same_invocation_changes_nothing_the_second_time(self, http_client: Http, group: str, key: str) -> None:
        assert [self.send(http_client, group, key, "one", "n") for _ in range(3)] == [200, 200, 200]
        assert history(http_client, group, key) == [[T0, "n", False]]

    def test_two_invocations_are_two_changes(self, http_client: Http, group: str, key: str) -> None:
        assert [self.send(http_client, group, key, token, "n") for token in ("one", "two")] == [200, 200]
        assert len(history(http_client, group, key)) == 2

    def test_one_id_for_two_records_is_two_changes(self, http_client: Http, group: str, key: str) -> None:
        assert [self.send(http_client, group, f"{key}-{number}", "one", "n") for number in (1, 2)] == [200, 200]
        assert len(history(http_client, group, f"{key}-1")) == len(history(http_client, group, f"{key}-2")) == 1

    def test_a_late_repetition_does_not_undo_what_came_between(
        self, runtime: Any, http_client: Http, group: str, key: str
    ) -> None:
        self.send(http_client, group, key, "one", "first")
        put(runtime, group, key, T0, note="second")
        self.send(http_client, group, key, "one", "first")
        assert (read(runtime, group, key) or {})["note"] == "second"

    def test_a_repeated_delete_leaves_one_marker(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T0)
        path = f"/FeatureGroup/{group}?RecordIdentifierValueAsString={key}&EventTime={T1}&DeletionMode=HardDelete"
        for _ in range(2):
            assert http_client.request("DELETE", path, headers={"amz-sdk-invocation-id": "gone"}).status == 200
        assert len(history(http_client, group, key)) == 2

    def test_boto3_sends_an_id_of_its_own_with_every_call(self, runtime: Any, http_client: Http, group: str, key: str) -> None:
        put(runtime, group, key, T0)
        put(runtime, group, key, T0)
        assert len(history(http_client, group, key)) == 2


class TestGroupLife:
    def test_a_group_created_again_shares_nothing_with_its_namesake(
        self, runtime: Any, http_client: Http, sagemaker: Any, create_group: CreateGroup
    ) -> None:
        name = create_group()
        put(runtime, name, "k", T1, note="first life")
        first = sagemaker.describe_feature_group(FeatureGroupName=name)["OfflineStoreConfig"]
        sagemaker.delete_feature_group(FeatureGroupName=name)
        with pytest.raises(runtime.exceptions.ResourceNotFound):
            read(runtime, name, "k")
        with pytest.raises(runtime.exceptions.ResourceNotFound):
            put(runtime, name, "k", T2)
        create_group(FeatureGroupName=name)
        second = sagemaker.describe_feature_group(FeatureGroupName=name)["OfflineStoreConfig"]
        assert first["S3StorageConfig"]["ResolvedOutputS3Uri"] != second["S3StorageConfig"]["ResolvedOutputS3Uri"]
        assert read(runtime, name, "k") is None
        assert http_client.offline_rows(name) == 0
        put(runtime, name, "k", T0, note="second life")
        assert (read(runtime, name, "k") or {})["note"] == "second life"
        assert http_client.offline_rows(name) == 1

    def test_added_features_are_writable_at_once_and_absent_in_older_records(
        self, runtime: Any, http_client: Http, sagemaker: Any, create_group: CreateGroup
    ) -> None:
        name = create_group(FeatureDefinitions=definitions(id="String", at="String"), OfflineStoreConfig=OFFLINE)
        put(runtime, name, "old", T0)
        with pytest.raises(runtime.exceptions.ValidationError, match="'extra'"):
            put(runtime, name, "new", T0, extra="5")
        sagemaker.update_feature_group(FeatureGroupName=name, FeatureAdditions=definitions(extra="Integral"))
        put(runtime, name, "new", T0, extra="5")
        assert read(runtime, name, "old") == {"id": "old", "at": T0}
        assert read(runtime, name, "new") == {"id": "new", "at": T0, "extra": "5"}
        assert http_client.sql(f'SELECT id, extra FROM "{name}" ORDER BY id') == [["new", 5], ["old", None]]
