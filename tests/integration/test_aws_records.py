"""PutRecord, GetRecord, DeleteRecord and BatchGetRecord as unmodified boto3 sees them."""

from __future__ import annotations

import time
from collections.abc import Callable
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
