"""The routes below /v1: dataframes in, training sets and query results out."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.conftest import Http, Reply, definitions, record

CreateGroup = Callable[..., str]
ARROW = "application/vnd.apache.arrow.stream"
PARQUET = "application/vnd.apache.parquet"
JSON = "application/json"
DAY = datetime(2024, 5, 1, tzinfo=UTC)
TYPES = definitions(id="String", at="String", amount="Fractional", count="Integral", note="String")


def arrow_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue()


def parquet_bytes(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()


def table_of(reply: Reply) -> pa.Table:
    assert reply.status == 200, reply
    kind = reply.headers["content-type"]
    assert kind in (ARROW, PARQUET)
    return pa.ipc.open_stream(reply.body).read_all() if kind == ARROW else pq.read_table(io.BytesIO(reply.body))


def frame(ids: list[str], **columns: Any) -> pa.Table:
    """Rows one hour apart from DAY on."""
    times = pa.array([DAY + timedelta(hours=row) for row in range(len(ids))], pa.timestamp("us", "UTC"))
    return pa.table({"id": ids, "at": times, **columns})


@pytest.fixture(scope="module")
def shared(create_group: CreateGroup) -> str:
    return create_group(FeatureDefinitions=TYPES)


@pytest.fixture
def group(create_group: CreateGroup) -> str:
    return create_group(FeatureDefinitions=TYPES)


@pytest.fixture(scope="module")
def ingest(http_client: Http) -> Callable[..., Reply]:
    def ingest(group: str, table: pa.Table, *, skip_faulty: bool = False) -> Reply:
        path = f"/v1/groups/{group}/records" + ("?skip_faulty=true" if skip_faulty else "")
        return http_client.request("POST", path, arrow_bytes(table), {"Content-Type": ARROW})

    return ingest


Ingest = Callable[..., Reply]


def live(http_client: Http, group: str, identifier: str) -> Any:
    reply = http_client.request("GET", f"/FeatureGroup/{group}?RecordIdentifierValueAsString={quote(identifier)}")
    return reply.json.get("Record")


class TestIngest:
    @pytest.mark.parametrize(
        ("kind", "encode"), [(ARROW, arrow_bytes), (PARQUET, parquet_bytes), (f"{ARROW}; charset=binary", arrow_bytes)]
    )
    def test_a_dataframe_is_in_both_stores(
        self, http_client: Http, group: str, kind: str, encode: Callable[[pa.Table], bytes]
    ) -> None:
        table = frame(["a", "b", "a"], amount=[0.5, None, 2.0], count=[1, 2, None], note=["x", None, "z"])
        reply = http_client.request("POST", f"/v1/groups/{group}/records", encode(table), {"Content-Type": kind})
        assert reply.status == 200, reply
        report = reply.json
        assert set(report.pop("took_s")) == {"check", "encode", "write", "publish", "load"}
        assert report.pop("files") >= 1
        assert report == {"rows": 3, "online_newest": 2, "skipped": 0, "faults": []}
        assert live(http_client, group, "a") == record(id="a", at="2024-05-01T02:00:00Z", amount="2.0", note="z")
        assert live(http_client, group, "b") == record(id="b", at="2024-05-01T01:00:00Z", count="2")
        rows = http_client.sql(f'SELECT id, "at", amount, count, note, is_deleted FROM "{group}" ORDER BY "at"')
        assert rows == [
            ["a", "2024-05-01T00:00:00Z", 0.5, 1, "x", False],
            ["b", "2024-05-01T01:00:00Z", None, 2, None, False],
            ["a", "2024-05-01T02:00:00Z", 2.0, None, "z", False],
        ]

    def test_rows_and_single_records_obey_one_order(self, http_client: Http, group: str, ingest: Ingest) -> None:
        put = {"Record": record(id="a", at="2024-05-01T00:30:00Z", note="put")}
        assert http_client.request("PUT", f"/FeatureGroup/{group}", put).status == 200
        assert ingest(group, frame(["a"], note=["older"])).json["online_newest"] == 0
        assert live(http_client, group, "a")[-1]["ValueAsString"] == "put"
        assert ingest(group, frame(["b", "a"], note=["", "newer"])).json["online_newest"] == 2
        assert live(http_client, group, "a")[-1]["ValueAsString"] == "newer"
        assert http_client.offline_rows(group) == 4

    def test_a_faulty_row_fails_all_of_them(self, http_client: Http, group: str, ingest: Ingest) -> None:
        reply = ingest(group, frame(["a", "", "c"], amount=[1.0, 2.0, float("nan")], count=["1", "x", "3"]))
        assert (reply.status, reply.code) == (400, "ValidationError")
        assert "rows[1].id" in reply.message
        assert "rows[1].count" in reply.message
        assert "'x'" in reply.message
        assert live(http_client, group, "a") is None
        assert http_client.offline_rows(group) == 0

    def test_unless_they_are_to_be_skipped(self, http_client: Http, group: str, ingest: Ingest) -> None:
        table = frame(["a", "", "c"], count=["1", "x", "3"])
        report = ingest(group, table, skip_faulty=True).json
        assert (report["rows"], report["skipped"]) == (2, 1)
        assert any("rows[1].count" in fault and "'x'" in fault for fault in report["faults"])
        assert live(http_client, group, "c") is not None
        assert http_client.offline_rows(group) == 2

    def test_no_rows_are_no_fault(self, http_client: Http, group: str, ingest: Ingest) -> None:
        report = ingest(group, frame([])).json
        assert (report["rows"], report["files"]) == (0, 0)
        assert http_client.offline_rows(group) == 0

    @pytest.mark.parametrize(
        ("table", "words"),
        [
            (pa.table({"id": ["a"]}), ["at"]),
            (pa.table({"at": ["2024-05-01T00:00:00Z"]}), ["id"]),
            (frame(["a"], nope=["x"]), ["nope"]),
            (frame(["a"], NOTE=["x"]), ["NOTE"]),
            (frame(["a"], is_deleted=[True]), ["is_deleted"]),
            (pa.table({"id": ["a"], "at": pa.array([datetime(2024, 5, 1)], pa.timestamp("us"))}), ["at", "tz_localize"]),
            (pa.table({"id": ["a"], "at": ["yesterday"]}), ["rows[0].at", "'yesterday'"]),
            (frame(["a"], count=pa.array([2**63], pa.uint64())), ["rows[0].count"]),
            (frame(["a"], amount=[float("inf")]), ["rows[0].amount", "inf"]),
            (frame(["x" * 2049]), ["rows[0].id", "2048"]),
            (frame(["a"], note=["x" * 358_401]), ["rows[0].note"]),
            (frame(["a"], note=[{"x": 1}]), ["note"]),
            (pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["id", "id"]), ["id"]),
            (pa.table({}), ["id"]),
        ],
        ids=[
            "no event time",
            "no identifier",
            "an unknown column",
            "a column in another case",
            "a reserved column",
            "naive times",
            "no times",
            "beyond 64 bits",
            "infinity",
            "a long identifier",
            "a long value",
            "a struct",
            "a column twice",
            "no columns",
        ],
    )
    def test_what_is_wrong_is_named(
        self, http_client: Http, shared: str, ingest: Ingest, table: pa.Table, words: list[str]
    ) -> None:
        reply = ingest(shared, table)
        assert (reply.status, reply.code) == (400, "ValidationError"), reply
        for word in words:
            assert word in reply.message
        assert live(http_client, shared, "a") is None

    def test_an_unknown_group(self, ingest: Ingest) -> None:
        reply = ingest("nope", frame(["a"]))
        assert (reply.status, reply.code) == (404, "ResourceNotFound")

    @pytest.mark.parametrize(
        "column",
        [
            pa.nulls(2),
            pa.array([True, False]),
            pa.array([1, 2], pa.uint64()),
            pa.array([1.5, 2.5], pa.float16()),
            pa.array([Decimal("1.5"), None], pa.decimal128(10, 2)),
            pa.array([Decimal("1.5"), None], pa.decimal256(60, 2)),
            pa.array(["1", "2"], pa.large_string()),
            pa.array(["1", "2"], pa.string_view()),
            pa.array(["1", "2"]).dictionary_encode(),
            pa.array([b"\xff", b"2"]),
            pa.array([1, 2], pa.date32()),
            pa.array([86_400_000, 0], pa.date64()),
            pa.array([1, 2], pa.time64("ns")),
            pa.array([1, 2], pa.duration("us")),
            pa.array([2**62, -(2**62)], pa.timestamp("s", "UTC")),
            pa.array([1, 2], pa.timestamp("ns", "Europe/Paris")),
            pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
            pa.array([[1], None]),
            pa.array([[1.0, 2.0], None], pa.list_(pa.float64(), 2)),
            pa.array([{"a": 1}, None]),
            pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64())),
            pa.RunEndEncodedArray.from_arrays(pa.array([1, 2], pa.int32()), pa.array(["1", "2"])),
            pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["1", "2"])]),
            pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16), bytes(16)], pa.binary(16))),
        ],
        ids=lambda column: str(column.type)[:40],
    )
    @pytest.mark.parametrize("name", ["id", "at", "amount", "count", "note"])
    def test_every_arrow_type_is_taken_or_refused(
        self, http_client: Http, shared: str, ingest: Ingest, name: str, column: pa.Array
    ) -> None:
        whole = frame(["types-1", "types-2"])
        table = (whole.drop_columns(name) if name in whole.column_names else whole).append_column(name, column)
        reply = ingest(shared, table)
        assert reply.status in (200, 400), reply
        if reply.status == 400:
            assert reply.code == "ValidationError"
            assert name in reply.message

    @pytest.mark.parametrize(("kind", "encode"), [(ARROW, arrow_bytes), (PARQUET, parquet_bytes)], ids=["arrow", "parquet"])
    def test_a_damaged_body_never_harms_the_service(
        self, http_client: Http, shared: str, kind: str, encode: Callable[[pa.Table], bytes]
    ) -> None:
        table = frame(["damaged-1", "damaged-2", "damaged-1"], note=["x", None, "long " * 20], count=[1, None, 3])
        body = encode(table.append_column("amount", pa.array([1.5, None, 2.5]).dictionary_encode()))
        dice = random.Random(20240501)
        statuses = set()
        for _ in range(300):
            damaged = bytearray(body)
            for _ in range(dice.randint(1, 4)):
                damaged[dice.randrange(len(damaged))] = dice.choice([0, 1, 0x7F, 0x80, 0xFF, dice.randrange(256)])
            if dice.random() < 0.2:
                del damaged[dice.randrange(len(damaged)) :]
            reply = http_client.request("POST", f"/v1/groups/{shared}/records", bytes(damaged), {"Content-Type": kind})
            statuses.add(reply.status)
            assert reply.status in (200, 400), (reply, bytes(damaged).hex())
        assert 400 in statuses


class TestTrainingSets:
    @pytest.fixture(scope="class")
    @classmethod
    def weather(cls, create_group: CreateGroup, ingest: Ingest) -> str:
        """Two readings of one station, at hours 0 and 1."""
        group = create_group(FeatureDefinitions=TYPES)
        assert ingest(group, frame(["s", "s"], amount=[1.0, 2.0], count=[10, None], note=["calm", "windy"])).status == 200
        return group

    SPINE = pa.table(
        {
            "id": ["s", "s", "other", "s"],
            "when": pa.array([DAY + timedelta(minutes=minutes) for minutes in (90, 0, 30, -1)], pa.timestamp("us", "UTC")),
            "label": [1, 2, 3, 4],
        }
    )

    def ask(
        self,
        http_client: Http,
        request: dict[str, Any],
        *,
        body: bytes | None = None,
        kind: str = ARROW,
        accept: str | None = None,
    ) -> Reply:
        body = arrow_bytes(self.SPINE) if body is None else body
        headers = {"Content-Type": kind} | ({} if accept is None else {"Accept": accept})
        return http_client.request("POST", f"/v1/training-sets?request={quote(json.dumps(request))}", body, headers)

    def test_a_spine_gets_the_values_of_its_times(self, http_client: Http, weather: str) -> None:
        request = {"features": [f"{weather}.amount", f"{weather}.count"], "event_time": "when"}
        reply = self.ask(http_client, request)
        assert reply.headers["content-type"] == ARROW
        assert list(json.loads(reply.headers["x-featurestore-versions"])) == [weather]
        assert table_of(reply).to_pydict() == {
            "id": self.SPINE["id"].to_pylist(),
            "when": self.SPINE["when"].to_pylist(),
            "label": [1, 2, 3, 4],
            f"{weather}.amount": [2.0, 1.0, None, None],
            f"{weather}.count": [None, 10, None, None],
        }

    @pytest.mark.parametrize(
        ("accept", "kind"), [(None, ARROW), ("*/*", ARROW), (PARQUET, PARQUET), (f"{ARROW}, */*;q=0.1", ARROW)]
    )
    def test_the_answer_is_arrow_or_parquet(self, http_client: Http, weather: str, accept: str | None, kind: str) -> None:
        request = {"features": [f"{weather}.*"], "event_time": "when"}
        reply = self.ask(http_client, request, accept=accept)
        assert reply.headers["content-type"] == kind
        names = ["id", "when", "label", *(f"{weather}.{name}" for name in ("amount", "count", "note"))]
        assert table_of(reply).column_names == names

    def test_or_json(self, http_client: Http, weather: str) -> None:
        request = {"features": {"wind": f"{weather}.note"}, "event_time": "when"}
        reply = self.ask(http_client, request, accept=JSON)
        assert reply.json["columns"] == ["id", "when", "label", "wind"]
        assert reply.json["rows"][0] == ["s", "2024-05-01T01:30:00Z", 1, "windy"]

    def test_a_parquet_spine_with_another_key(self, http_client: Http, weather: str) -> None:
        spine = self.SPINE.rename_columns(["station", "when", "label"])
        request = {
            "features": {"wind": f"{weather}.note"},
            "event_time": "when",
            "keys": {weather: "station"},
            "event_times": True,
        }
        table = table_of(self.ask(http_client, request, body=parquet_bytes(spine), kind=PARQUET))
        assert table["wind"].to_pylist() == ["windy", "calm", None, None]
        assert table[f"{weather}._event_time"].to_pylist() == [DAY + timedelta(hours=1), DAY, None, None]

    def test_a_spine_in_sql(self, http_client: Http, weather: str) -> None:
        request = {
            "spine_sql": f'SELECT id, ("at"::TIMESTAMPTZ + INTERVAL 1 SECOND) AS moment FROM "{weather}" ORDER BY "at"',
            "features": [f"{weather}.note"],
            "event_time": "moment",
        }
        reply = http_client.request("POST", "/v1/training-sets", request, {"Content-Type": JSON})
        assert table_of(reply)[f"{weather}.note"].to_pylist() == ["calm", "windy"]

    def test_what_was_not_yet_known_is_not_seen(self, http_client: Http, weather: str) -> None:
        request = {"features": {"wind": f"{weather}.note"}, "event_time": "when"}
        past = self.ask(http_client, request | {"known_by": "2024-06-01T00:00:00Z"})
        assert table_of(past)["wind"].to_pylist() == [None] * 4
        now = self.ask(http_client, request | {"known_by": "2099-06-01T00:00:00+02:00"})
        assert table_of(now)["wind"].to_pylist() == ["windy", "calm", None, None]
        served = self.ask(http_client, request | {"as_served": True})
        assert table_of(served)["wind"].to_pylist() == [None] * 4

    def test_the_offline_store_as_it_was(self, http_client: Http, group: str, ingest: Ingest) -> None:
        ingest(group, frame(["s"], note=["before"]))
        between = datetime.now(UTC).isoformat()
        ingest(group, frame(["s"], note=["after"]))
        request = {"features": {"x": f"{group}.note"}, "event_time": "when"}
        for as_of, note in (("1999-01-01T00:00:00Z", None), (between, "before"), (None, "after")):
            table = table_of(self.ask(http_client, request | {"as_of": as_of}))
            assert table["x"].to_pylist() == [note, note, None, None]
        in_sql = {"spine_sql": f'SELECT id, now() AS t FROM "{group}"', "event_time": "t", "as_of": between}
        reply = http_client.request("POST", "/v1/training-sets", request | in_sql, {"Content-Type": JSON})
        assert table_of(reply)["x"].to_pylist() == ["before"], "the spine is read as of then, too"

    def test_acknowledged_writes_are_seen_at_once(self, http_client: Http, group: str) -> None:
        put = {"Record": record(id="s", at="2024-05-01T00:00:00Z", note="just now")}
        assert http_client.request("PUT", f"/FeatureGroup/{group}", put).status == 200
        table = table_of(self.ask(http_client, {"features": {"x": f"{group}.note"}, "event_time": "when"}))
        assert table["x"].to_pylist() == ["just now", "just now", None, None]

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"features": []}, ["features"]),
            ({"features": ["note"]}, ["features[0]", "group.feature"]),
            ({"features": ["{group}.nope"]}, ["features[0]", "nope"]),
            ({"features": ["{group}.note", "{group}.note"]}, ["features[1]"]),
            ({"features": {"label": "{group}.note"}}, ["features['label']", "label"]),
            ({"features": 7}, ["features"]),
            ({"event_time": "nope"}, ["event_time", "nope"]),
            ({"event_time": "id"}, ["id", "'s'"]),
            ({"event_time": None}, ["event_time"]),
            ({"keys": {"{group}": "nope"}}, ["keys", "nope"]),
            ({"known_by": "2024-05-01T00:00:00"}, ["known_by", "time zone"]),
            ({"known_by": "yesterday"}, ["known_by"]),
            ({"known_by": "2024-05-01T00:00:00Z", "as_served": True}, ["as_served"]),
            ({"as_of": "2024-05-01T00:00:00"}, ["as_of", "time zone"]),
            ({"as_of": "2099-05-01T00:00:00+02:00"}, ["as_of", "in the past", "'2099-04-30T22:00:00Z'"]),
            ({"as_of": "yesterday"}, ["as_of"]),
            ({"spine_sql": "SELECT 1"}, ["spine_sql"]),
            ({"fresch": True}, ["fresch"]),
        ],
        ids=lambda value: str(value)[:40],
    )
    def test_what_is_wrong_is_named(self, http_client: Http, weather: str, changes: dict[str, Any], words: list[str]) -> None:
        request = json.dumps({"features": ["{group}.note"], "event_time": "when"} | changes).replace("{group}", weather)
        reply = self.ask(http_client, json.loads(request))
        assert (reply.status, reply.code) == (400, "ValidationError"), reply
        for word in words:
            assert word in reply.message

    def test_an_unknown_group(self, http_client: Http) -> None:
        reply = self.ask(http_client, {"features": ["nope.x"], "event_time": "when"})
        assert (reply.status, reply.code) == (404, "ResourceNotFound")

    def test_a_group_without_an_offline_store(self, http_client: Http, create_group: CreateGroup) -> None:
        online = create_group(OfflineStoreConfig=None)
        reply = self.ask(http_client, {"features": [f"{online}.note"], "event_time": "when"})
        assert (reply.status, reply.code) == (400, "ValidationError")
        assert "offline store" in reply.message

    def test_naive_times_are_refused(self, http_client: Http, weather: str) -> None:
        spine = pa.table({"id": ["s"], "when": pa.array([datetime(2024, 5, 1)], pa.timestamp("us"))})
        request = {"features": [f"{weather}.note"], "event_time": "when"}
        reply = self.ask(http_client, request, body=arrow_bytes(spine))
        assert (reply.status, reply.code) == (400, "ValidationError")
        assert "when" in reply.message
        assert "a time with a zone" in reply.message


class TestSql:
    @staticmethod
    def ask(http_client: Http, statement: str, accept: str | None = None) -> Reply:
        headers = {"Content-Type": JSON} | ({} if accept is None else {"Accept": accept})
        return http_client.request("POST", "/v1/sql", {"statement": statement}, headers)

    def test_json_is_the_default(self, http_client: Http) -> None:
        reply = self.ask(http_client, "SELECT 1 AS a, 'x' AS b UNION ALL SELECT 2, NULL ORDER BY a")
        assert reply.headers["content-type"] == JSON
        assert reply.json == {"columns": ["a", "b"], "rows": [[1, "x"], [2, None]]}

    @pytest.mark.parametrize("accept", [ARROW, PARQUET])
    def test_arrow_and_parquet_by_accept(self, http_client: Http, accept: str) -> None:
        reply = self.ask(http_client, "SELECT 1::BIGINT AS a, 'x' AS b, TIMESTAMPTZ '2024-05-01 00:00:00+00' AS c", accept)
        assert reply.headers["content-type"] == accept
        assert table_of(reply).to_pylist() == [{"a": 1, "b": "x", "c": DAY}]

    def test_a_body_without_a_content_type_is_json(self, http_client: Http) -> None:
        reply = http_client.request("POST", "/v1/sql", '{"statement": "SELECT 1 AS one"}')
        assert reply.json == {"columns": ["one"], "rows": [[1]]}

    def test_columns_of_one_name_stay_apart(self, http_client: Http) -> None:
        assert self.ask(http_client, "SELECT 1 AS a, 2 AS a").json == {"columns": ["a", "a"], "rows": [[1, 2]]}

    def test_no_rows(self, http_client: Http) -> None:
        assert self.ask(http_client, "SELECT 1 AS a WHERE false").json == {"columns": ["a"], "rows": []}

    @pytest.mark.parametrize(
        ("expression", "value"),
        [
            ("9223372036854775807", 9223372036854775807),
            ("1.50::DECIMAL(10, 2)", "1.50"),
            ("'nan'::DOUBLE", None),
            ("'-inf'::DOUBLE", None),
            ("DATE '2024-05-01'", "2024-05-01"),
            ("TIME '12:30:00'", "12:30:00"),
            ("TIMESTAMP '2024-05-01 12:30:00.5'", "2024-05-01T12:30:00.500000"),
            ("TIMESTAMPTZ '2024-05-01 12:30:00+02'", "2024-05-01T10:30:00Z"),
            ("'2024-05-01 00:00:00.123456789'::TIMESTAMP_NS", "2024-05-01T00:00:00.123456"),
            ("[1, NULL]", [1, None]),
            ("{'a': 1}", {"a": 1}),
            ("'\\x00\\xFF'::BLOB", "AP8="),
            ("'ü东'", "ü东"),
        ],
    )
    def test_values_in_json(self, http_client: Http, expression: str, value: object) -> None:
        assert self.ask(http_client, f"SELECT {expression} AS x").json["rows"] == [[value]]

    @pytest.mark.parametrize(
        "expression", ["DATE '-4000-01-01'", "'infinity'::TIMESTAMP", "TIMESTAMPTZ '20000-01-01 00:00:00+00'"]
    )
    def test_values_without_a_json_form(self, http_client: Http, expression: str) -> None:
        statement = f"SELECT {expression} AS x"
        reply = self.ask(http_client, statement)
        assert (reply.status, reply.code) == (400, "ValidationError")
        for word in ("Accept", ARROW, "'x'"):
            assert word in reply.message
        for accept in (ARROW, PARQUET):
            assert table_of(self.ask(http_client, statement, accept)).num_rows == 1

    def test_what_parquet_can_not_hold(self, http_client: Http) -> None:
        reply = self.ask(http_client, "SELECT INTERVAL 1 MONTH AS x", PARQUET)
        assert reply.status in (200, 400)
        assert reply.status == 200 or ARROW in reply.message

    def test_history_and_latest(self, http_client: Http, group: str, ingest: Ingest) -> None:
        ingest(group, frame(["a", "a", "b"], note=["1", "2", "3"]))
        path = f"/FeatureGroup/{group}?RecordIdentifierValueAsString=b&EventTime=2024-05-02T00:00:00Z"
        assert http_client.request("DELETE", path).status == 200
        assert len(http_client.sql(f'SELECT * FROM history."{group}"')) == 4
        assert http_client.sql(f'SELECT id, note FROM latest."{group}"') == [["a", "2"]]

    def test_as_of_a_time(self, http_client: Http, group: str, ingest: Ingest) -> None:
        ingest(group, frame(["a", "b"], note=["1", "2"]))
        between = datetime.now(UTC).isoformat()
        ingest(group, frame(["a"], note=["3"]))
        for schema, notes in (("history", ["1", "2"]), ("latest", ["1", "2"])):
            body = {"statement": f'SELECT note FROM {schema}."{group}" ORDER BY 1', "as_of": between, "fresh": False}
            assert http_client.request("POST", "/v1/sql", body).json["rows"] == [[note] for note in notes]
        for as_of, words in (("2099-01-01T00:00:00Z", ["in the past"]), ("2024-05-01", ["time zone"]), ("soon", [])):
            reply = http_client.request("POST", "/v1/sql", {"statement": "SELECT 1", "as_of": as_of})
            assert (reply.status, reply.code) == (400, "ValidationError")
            for word in ("as_of", *words):
                assert word in reply.message

    def test_what_waits_is_left_out_on_request(self, http_client: Http, group: str) -> None:
        put = {"Record": record(id="s", at="2024-05-01T00:00:00Z")}
        http_client.request("PUT", f"/FeatureGroup/{group}", put)
        body = {"statement": f'SELECT count(*) FROM "{group}"', "fresh": False}
        assert http_client.request("POST", "/v1/sql", body).json["rows"] in ([[0]], [[1]])
        assert http_client.offline_rows(group) == 1


class TestTheRest:
    def test_flush(self, http_client: Http, group: str) -> None:
        for number in range(3):
            put = {"Record": record(id=str(number), at="2024-05-01T00:00:00Z")}
            http_client.request("PUT", f"/FeatureGroup/{group}", put)
        reply = http_client.request("POST", "/v1/flush")
        assert set(reply.json) == {"changes", "files"}
        assert http_client.request("GET", "/ready").json["changes_waiting"] == 0
        assert http_client.request("POST", "/v1/flush").json == {"changes": 0, "files": 0}

    def test_groups(self, http_client: Http, group: str) -> None:
        (found,) = [item for item in http_client.request("GET", "/v1/groups").json if item["name"] == group]
        assert found == {
            "name": group,
            "arn": f"arn:aws:sagemaker:us-east-1:000000000000:feature-group/{group}",
            "record_identifier": "id",
            "event_time": "at",
            "features": {"id": "String", "at": "String", "amount": "Fractional", "count": "Integral", "note": "String"},
            "status": "Created",
        }
