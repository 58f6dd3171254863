"""Athena through boto3, over a socket: queries started, waited for, read, paged, stopped and refused."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from featurestore.athena.executions import ExecutionState
from featurestore.athena.service import WATCHING_MAX
from featurestore.buckets.folder import FolderBuckets
from featurestore.buckets.protocol import Buckets
from featurestore.settings import Settings
from featurestore.store import FeatureStore
from tests.integration.conftest import ANSWER_S_MAX, definitions, record
from tests.service import Service

OUTPUT = "s3://results-of-queries/some/prefix"
LETTERS = "array_join(transform(sequence(1, 300000), x -> '{}'), '')"
ENDLESS = f"SELECT levenshtein_distance({LETTERS.format('a')}, {LETTERS.format('b')})"
"""One call of one function, minutes long."""
SERDE = (
    "ROW FORMAT SERDE 'org.apache.hadoop.hive.serde2.OpenCSVSerde' "
    'WITH SERDEPROPERTIES ("separatorChar" = ",", "quoteChar" = "`", "escapeChar" = "\\\\")'
)


@pytest.fixture(scope="module")
def athena(service: Service, clean_environment: None) -> Iterator[Any]:
    client = boto3.client("athena", endpoint_url=service.url)
    yield client
    client.close()


@pytest.fixture(scope="module")
def buckets(service: Service) -> Buckets:
    """The service's own, from another process."""
    return buckets_of(service.home)


def buckets_of(home: Path) -> Buckets:
    return FolderBuckets(home / "buckets")


def wait(athena: Any, execution_id: str) -> dict[str, Any]:
    deadline_s = time.monotonic() + ANSWER_S_MAX
    while True:
        execution: dict[str, Any] = athena.get_query_execution(QueryExecutionId=execution_id)["QueryExecution"]
        if execution["Status"]["State"] not in ("QUEUED", "RUNNING"):
            return execution
        assert time.monotonic() < deadline_s, execution
        time.sleep(0.02)


def start(athena: Any, statement: str, **members: Any) -> str:
    request = {"QueryString": statement, "ResultConfiguration": {"OutputLocation": OUTPUT}} | members
    return str(athena.start_query_execution(**request)["QueryExecutionId"])


def succeed(athena: Any, statement: str, **members: Any) -> dict[str, Any]:
    execution = wait(athena, start(athena, statement, **members))
    assert execution["Status"]["State"] == "SUCCEEDED", execution
    return execution


def fail(athena: Any, statement: str, **members: Any) -> str:
    execution = wait(athena, start(athena, statement, **members))
    assert execution["Status"]["State"] == "FAILED", execution
    assert execution["Status"]["AthenaError"]["ErrorMessage"] == execution["Status"]["StateChangeReason"]
    return str(execution["Status"]["StateChangeReason"])


def content(buckets: Buckets, execution: dict[str, Any]) -> str:
    bucket, _, key = execution["ResultConfiguration"]["OutputLocation"].removeprefix("s3://").partition("/")
    with buckets.read(bucket, key) as (_, file):
        return file.read().decode()


def rows(athena: Any, execution: dict[str, Any]) -> list[list[str | None]]:
    answer = athena.get_query_results(QueryExecutionId=execution["QueryExecutionId"])
    return [[cell.get("VarCharValue") for cell in row["Data"]] for row in answer["ResultSet"]["Rows"]]


@pytest.fixture(scope="module")
def table(sagemaker: Any, runtime: Any, create_group: Callable[..., str]) -> str:
    """A table with the rows of three puts and the marker of a delete."""
    features = definitions(id="String", at="String", Amount="Fractional", count="Integral")
    group = create_group(FeatureDefinitions=features)
    for values in (
        {"id": "a", "at": "2024-01-01T00:00:00Z", "Amount": "1.5", "count": "7"},
        {"id": "b", "at": "2024-01-01T01:00:00Z", "Amount": "2"},
        {"id": 'c "quoted", with comma', "at": "2024-01-02T00:00:00.5Z", "count": "9"},
    ):
        runtime.put_record(FeatureGroupName=group, Record=record(**values))
    runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString="b", EventTime="2024-01-03T00:00:00Z")
    described = sagemaker.describe_feature_group(FeatureGroupName=group)
    return str(described["OfflineStoreConfig"]["DataCatalogConfig"]["TableName"])


def test_a_query_and_its_result(athena: Any, buckets: Buckets, table: str) -> None:
    statement = f'SELECT id, Amount, "count", is_deleted, hour, count(*) OVER () FROM "{table}" ORDER BY at;'
    context = {"Database": "sagemaker_featurestore", "Catalog": "AwsDataCatalog"}
    execution = succeed(athena, statement, QueryExecutionContext=context)
    execution_id = execution["QueryExecutionId"]
    assert execution["Query"] == statement
    assert execution["StatementType"] == "DML"
    assert execution["WorkGroup"] == "primary"
    assert execution["QueryExecutionContext"] == context
    assert execution["ResultConfiguration"]["OutputLocation"] == f"{OUTPUT}/{execution_id}.csv"
    assert execution["Status"]["SubmissionDateTime"] <= execution["Status"]["CompletionDateTime"]
    statistics = execution["Statistics"]
    assert statistics["DataScannedInBytes"] > 1000
    assert 0 < statistics["EngineExecutionTimeInMillis"] <= statistics["TotalExecutionTimeInMillis"] <= ANSWER_S_MAX * 1000
    assert content(buckets, execution) == (
        '"id","Amount","count","is_deleted","hour","_col5"\n'
        '"a","1.5","7","false","00","4"\n'
        '"b","2.0",,"false","01","4"\n'
        '"c ""quoted"", with comma",,"9","false","00","4"\n'
        '"b",,,"true","00","4"\n'
    )
    assert b'"name":"Amount"' in metadata(buckets, execution_id)
    answer = athena.get_query_results(QueryExecutionId=execution_id)
    assert "NextToken" not in answer
    assert [[cell.get("VarCharValue") for cell in row["Data"]] for row in answer["ResultSet"]["Rows"]][2:4] == [
        ["b", "2.0", None, "false", "01", "4"],
        ['c "quoted", with comma', None, "9", "false", "00", "4"],
    ]
    types = [(column["Name"], column["Type"]) for column in answer["ResultSet"]["ResultSetMetadata"]["ColumnInfo"]]
    assert types == [
        ("id", "varchar"),
        ("Amount", "double"),
        ("count", "bigint"),
        ("is_deleted", "boolean"),
        ("hour", "varchar"),
        ("_col5", "bigint"),
    ]


def metadata(buckets: Buckets, execution_id: str) -> bytes:
    with buckets.read("results-of-queries", f"some/prefix/{execution_id}.csv.metadata") as (_, file):
        return file.read()


def test_columns_are_those_of_a_glue_table(athena: Any, table: str) -> None:
    execution = succeed(
        athena, f'SELECT * FROM awsdatacatalog."sagemaker_featurestore"."{table.upper()}" WHERE NOT is_deleted LIMIT 1'
    )
    features = ["id", "at", "amount", "count", "write_time", "api_invocation_time", "is_deleted"]
    assert rows(athena, execution)[0] == [*features, "year", "month", "day", "hour"]
    described = athena.get_table_metadata(CatalogName="AwsDataCatalog", DatabaseName="sagemaker_featurestore", TableName=table)
    assert [(column["Name"], column["Type"]) for column in described["TableMetadata"]["Columns"]] == [
        *zip(features, ["string", "string", "double", "bigint", "timestamp", "timestamp", "boolean"], strict=True)
    ]
    assert [column["Name"] for column in described["TableMetadata"]["PartitionKeys"]] == ["year", "month", "day", "hour"]
    lines = [row[0] or "" for row in rows(athena, succeed(athena, f"DESCRIBE {table}"))]
    assert [line.split()[0] for line in lines[:11]] == [*features, "year", "month", "day", "hour"]


def test_acknowledged_writes_are_seen_at_once(
    athena: Any, runtime: Any, sagemaker: Any, create_group: Callable[..., str]
) -> None:
    group = create_group()
    table = sagemaker.describe_feature_group(FeatureGroupName=group)["OfflineStoreConfig"]["DataCatalogConfig"]["TableName"]
    assert rows(athena, succeed(athena, f"SELECT count(*) FROM {table}")) == [["_col0"], ["0"]]
    runtime.put_record(FeatureGroupName=group, Record=record(id="1", at="2024-01-01T00:00:00Z"))
    assert rows(athena, succeed(athena, f"SELECT count(*) FROM {table}")) == [["_col0"], ["1"]]


def test_a_table_is_that_of_the_group_that_was_first(athena: Any, sagemaker: Any, create_group: Callable[..., str]) -> None:
    table = f"table_{uuid.uuid4().hex[:8]}"
    catalog = {"TableName": table, "Catalog": "AwsDataCatalog", "Database": "of_our_own"}
    offline = {"S3StorageConfig": {"S3Uri": "s3://test-bucket/prefix"}, "DataCatalogConfig": catalog}
    for status in ("Created", "CreateFailed"):
        group = create_group(OfflineStoreConfig=offline)
        assert sagemaker.describe_feature_group(FeatureGroupName=group)["FeatureGroupStatus"] == status
    assert rows(athena, succeed(athena, f"SELECT count(*) FROM of_our_own.{table}")) == [["_col0"], ["0"]]
    assert [table] in rows(athena, succeed(athena, "SHOW TABLES", QueryExecutionContext={"Database": "of_our_own"}))


def test_a_result_larger_than_a_page(athena: Any, buckets: Buckets) -> None:
    statement = "SELECT x, if(x % 3 = 0, null, if(x % 3 = 1, '', 'a\n\"b\",')) FROM UNNEST(sequence(1, 25000)) AS t (x)"
    execution = succeed(athena, statement)
    assert content(buckets, execution).count("\n") == 25001 + 25000 // 3
    pages = athena.get_paginator("get_query_results").paginate(QueryExecutionId=execution["QueryExecutionId"])
    found = [[cell.get("VarCharValue") for cell in row["Data"]] for page in pages for row in page["ResultSet"]["Rows"]]
    assert found[0] == ["x", "_col1"]
    assert sorted(found[1:], key=lambda row: int(row[0])) == [[str(x), (None, "", 'a\n"b",')[x % 3]] for x in range(1, 25001)]
    with pytest.raises(ClientError, match="NextToken: expected a token"):
        athena.get_query_results(QueryExecutionId=execution["QueryExecutionId"], NextToken="nonsense")


def test_a_dataframe_as_the_sdk_uploads_it(athena: Any, buckets: Buckets) -> None:
    """Written by pandas, declared with backticks: what it holds arrives as it was."""
    name = f"dataframe-base-1700000000-{uuid.uuid4().hex[:4]}"
    table = f"dataframe_{name.replace('-', '_')}"
    lines = [
        '1,2024-01-01T00:00:00Z,"a,b",1.5,True,2024-01-01 10:00:00',
        '3000000000,,"say ""x"" \\ `y`",,False,',
        '3,z,"two\nlines",-1e-07,,2024-01-01 10:00:00.250',
    ]
    buckets.put("spines", f"out/{name}/{name}.csv", ["\n".join(lines).encode()])
    buckets.put("spines", f"out/{name}0/x.csv", [b"not,of,this,table\n"])
    columns = "id INT, at STRING, txt STRING, num DOUBLE, Flag BOOLEAN, moment TIMESTAMP"
    created = succeed(athena, f"CREATE EXTERNAL TABLE {table} ({columns}) {SERDE} LOCATION 's3://spines/out/{name}';")
    assert created["StatementType"] == "DDL"
    assert created["ResultConfiguration"]["OutputLocation"].endswith(".txt")
    assert content(buckets, created) == ""
    assert rows(athena, succeed(athena, f'SELECT * FROM "sagemaker_featurestore"."{table}" ORDER BY 1')) == [
        ["id", "at", "txt", "num", "flag", "moment"],
        ["1", "2024-01-01T00:00:00Z", "a,b", "1.5", "true", "2024-01-01 10:00:00.000"],
        ["3", "z", "two\nlines", "-1.0E-7", None, "2024-01-01 10:00:00.250"],
        ["3000000000", "", 'say "x" \\ `y`', None, "false", None],
    ]
    assert "already exists" in fail(
        athena, f"CREATE EXTERNAL TABLE {table} ({columns}) {SERDE} LOCATION 's3://spines/out/{name}'"
    )
    succeed(athena, f"CREATE EXTERNAL TABLE IF NOT EXISTS {table} ({columns}) {SERDE} LOCATION 's3://spines/other'")
    assert [table] in rows(athena, succeed(athena, "SHOW TABLES IN sagemaker_featurestore 'dataframe_*'"))
    succeed(athena, f"DROP TABLE {table}")
    assert "TABLE_NOT_FOUND" in fail(athena, f"DROP TABLE {table}")
    succeed(athena, f"DROP TABLE IF EXISTS {table}")
    assert "TABLE_NOT_FOUND" in fail(athena, f"SELECT * FROM {table}")
    assert buckets.head("spines", f"out/{name}/{name}.csv").bytes > 0


def test_an_external_table_is_read_as_it_is_declared(athena: Any, buckets: Buckets) -> None:
    table = f"declared_{uuid.uuid4().hex[:8]}"
    buckets.put("spines", f"{table}/1.csv", [b"header|line\n'a|b'|1579059880000\n"])
    buckets.put("spines", f"{table}/_SUCCESS", [b"no,row"])
    serde = SERDE.replace('","', '"|"').replace('"`"', '"\'"')
    columns = "txt STRING, moment TIMESTAMP"
    skip = 'TBLPROPERTIES ("skip.header.line.count" = "1")'
    succeed(athena, f"CREATE EXTERNAL TABLE `{table}` ({columns}) {serde} LOCATION 's3://spines/{table}/' {skip}")
    assert rows(athena, succeed(athena, f"SELECT * FROM {table}"))[1:] == [["a|b", "2020-01-15 03:44:40.000"]]
    buckets.put("spines", f"{table}/2.csv", [b"header\none,two,three\n'x'|y|z\n"])
    assert "QUERY_FAILED" in fail(athena, f"SELECT * FROM {table}")


@pytest.mark.parametrize(
    ("statement", "reason"),
    [
        ("SELEC 1", "SYNTAX_ERROR"),
        ("SELECT nosuch FROM (SELECT 1 AS x)", "COLUMN_NOT_FOUND: Column 'nosuch' cannot be resolved"),
        ("SELECT * FROM nosuch", "TABLE_NOT_FOUND: Table 'awsdatacatalog.sagemaker_featurestore.nosuch' does not exist"),
        ("SELECT * FROM nosuch.t", "SCHEMA_NOT_FOUND"),
        ("SELECT 1 / 0", "QUERY_FAILED"),
        ("SELECT getenv('HOME')", "NOT_SUPPORTED: function 'getenv' is not known"),
        ("CREATE TABLE x AS SELECT 1", "NOT_SUPPORTED"),
        ("CREATE EXTERNAL TABLE t (x INT) LOCATION 's3://bucket/x'", "OpenCSVSerde"),
        (f"CREATE EXTERNAL TABLE t (x INT) {SERDE} LOCATION '/etc'", "LOCATION: expected a location s3://bucket/prefix"),
        (f"CREATE EXTERNAL TABLE t (x ARRAY<INT>) {SERDE} LOCATION 's3://bucket/x'", "columns of arrays, maps and structs"),
        (f"CREATE EXTERNAL TABLE t (x TINYINT) {SERDE} LOCATION 's3://bucket/x'", "column 'x': expected a type"),
        ("CREATE EXTERNAL TABLE t (x " + "ARRAY<" * 60 + "INT" + ">" * 60 + ")", "columns of arrays"),
        ("DROP TABLE " + "[" * 10_000, "nested too deeply"),
        ("/**/" * 60_000 + "1", "SYNTAX_ERROR"),
    ],
)
def test_what_is_wrong_shows_in_the_execution(athena: Any, statement: str, reason: str) -> None:
    assert reason in fail(athena, statement)


def test_the_contexts_database_and_catalog(athena: Any) -> None:
    assert "CATALOG_NOT_FOUND" in fail(athena, "SELECT 1", QueryExecutionContext={"Catalog": "other"})
    succeed(athena, "SELECT 1", QueryExecutionContext={"Catalog": "awsdatacatalog", "Database": "default"})


def test_parameters(athena: Any) -> None:
    execution = succeed(athena, "SELECT ? AS a, ? AS b", ExecutionParameters=["'x'", "2"])
    assert rows(athena, execution) == [["a", "b"], ["x", "2"]]
    assert execution["ExecutionParameters"] == ["'x'", "2"]


def test_the_same_token_is_the_same_execution(athena: Any) -> None:
    token = uuid.uuid4().hex
    first = start(athena, "SELECT 1", ClientRequestToken=token)
    assert start(athena, "SELECT 1", ClientRequestToken=token) == first
    with pytest.raises(ClientError, match="ClientRequestToken") as caught:
        start(athena, "SELECT 2", ClientRequestToken=token)
    assert caught.value.response["Error"]["Code"] == "InvalidRequestException"


def test_a_stopped_query(athena: Any, buckets: Buckets) -> None:
    execution_id = start(athena, ENDLESS)
    while athena.get_query_execution(QueryExecutionId=execution_id)["QueryExecution"]["Status"]["State"] == "QUEUED":
        time.sleep(0.01)
    athena.stop_query_execution(QueryExecutionId=execution_id)
    execution = wait(athena, execution_id)
    assert execution["Status"]["State"] == "CANCELLED"
    assert execution["Status"]["StateChangeReason"] == "Query cancelled by user"
    with pytest.raises(ClientError, match="a query that has SUCCEEDED"):
        athena.get_query_results(QueryExecutionId=execution_id)
    athena.stop_query_execution(QueryExecutionId=execution_id)
    done = succeed(athena, "SELECT 1")
    athena.stop_query_execution(QueryExecutionId=done["QueryExecutionId"])
    assert wait(athena, done["QueryExecutionId"])["Status"]["State"] == "SUCCEEDED"
    assert not [found.key for found in buckets.list("results-of-queries", "some/prefix/") if execution_id in found.key]


def test_a_stopped_query_that_waits_never_runs(athena: Any) -> None:
    running = [start(athena, ENDLESS) for _ in range(2)]
    waiting = start(athena, "SELECT 1")
    athena.stop_query_execution(QueryExecutionId=waiting)
    for execution_id in running:
        athena.stop_query_execution(QueryExecutionId=execution_id)
    execution = wait(athena, waiting)
    assert execution["Status"]["State"] == "CANCELLED"
    assert "QueryQueueTimeInMillis" not in execution["Statistics"]
    succeed(athena, "SELECT 1")


def test_lists_are_newest_first_and_by_workgroup(athena: Any) -> None:
    group = f"group-{uuid.uuid4().hex[:8]}"
    started = [start(athena, f"SELECT {place}", WorkGroup=group) for place in range(5)]
    pages = athena.get_paginator("list_query_executions").paginate(WorkGroup=group, PaginationConfig={"PageSize": 2})
    assert [found for page in pages for found in page["QueryExecutionIds"]] == started[::-1]
    for execution_id in started:
        wait(athena, execution_id)
    answer = athena.batch_get_query_execution(QueryExecutionIds=[started[0], "nosuch"])
    assert [found["Query"] for found in answer["QueryExecutions"]] == ["SELECT 0"]
    assert [found["QueryExecutionId"] for found in answer["UnprocessedQueryExecutionIds"]] == ["nosuch"]


@pytest.mark.parametrize(
    ("operation", "members", "code", "message"),
    [
        ("get_query_execution", {"QueryExecutionId": "nosuch"}, "InvalidRequestException", "QueryExecution nosuch was not found"),
        ("stop_query_execution", {"QueryExecutionId": "nosuch"}, "InvalidRequestException", "nosuch was not found"),
        ("start_query_execution", {"QueryString": " "}, "InvalidRequestException", "QueryString"),
        ("start_query_execution", {"QueryString": "x" * 262_145}, "InvalidRequestException", "262144"),
        (
            "start_query_execution",
            {"QueryString": "SELECT 1", "ResultConfiguration": {"OutputLocation": "some/folder"}},
            "InvalidRequestException",
            "OutputLocation: expected a location s3://",
        ),
        ("get_database", {"CatalogName": "AwsDataCatalog", "DatabaseName": "nosuch"}, "MetadataException", "nosuch"),
        (
            "get_table_metadata",
            {"CatalogName": "AwsDataCatalog", "DatabaseName": "sagemaker_featurestore", "TableName": "nosuch"},
            "MetadataException",
            "does not exist",
        ),
    ],
)
def test_refused_requests(athena: Any, operation: str, members: dict[str, Any], code: str, message: str) -> None:
    with pytest.raises(ClientError) as caught:
        getattr(athena, operation)(**members)
    assert caught.value.response["Error"]["Code"] == code
    assert message in caught.value.response["Error"]["Message"]
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == 400


def test_databases_tables_and_workgroups(athena: Any, table: str) -> None:
    assert {"Name": "sagemaker_featurestore"} in athena.list_databases(CatalogName="AwsDataCatalog")["DatabaseList"]
    pages = athena.get_paginator("list_table_metadata").paginate(
        CatalogName="AwsDataCatalog", DatabaseName="sagemaker_featurestore", PaginationConfig={"PageSize": 1}
    )
    names = [found["Name"] for page in pages for found in page["TableMetadataList"]]
    assert table in names
    assert names == sorted(names)
    found = athena.get_work_group(WorkGroup="primary")["WorkGroup"]
    default = found["Configuration"]["ResultConfiguration"]["OutputLocation"]
    execution = wait(athena, athena.start_query_execution(QueryString="SELECT 1")["QueryExecutionId"])
    assert execution["ResultConfiguration"]["OutputLocation"] == f"{default}{execution['QueryExecutionId']}.csv"


def test_a_result_that_was_deleted(athena: Any, buckets: Buckets) -> None:
    execution = succeed(athena, "SELECT 1")
    buckets.delete("results-of-queries", f"some/prefix/{execution['QueryExecutionId']}.csv")
    with pytest.raises(ClientError, match="a query whose result is still there"):
        athena.get_query_results(QueryExecutionId=execution["QueryExecutionId"])


def test_who_asks_for_a_query_is_kept_until_it_ends(tmp_path: Path) -> None:
    with FeatureStore(Settings.load({}, home=tmp_path)) as store, ThreadPoolExecutor(WATCHING_MAX + 1) as callers:
        execution_id = store.athena.start(ENDLESS, database="sagemaker_featurestore").execution_id
        asked = [callers.submit(store.athena.get, execution_id, wait_s=600) for _ in range(WATCHING_MAX + 1)]
        one_too_many = next(as_completed(asked, timeout=ANSWER_S_MAX))
        assert one_too_many.result().state in (ExecutionState.QUEUED, ExecutionState.RUNNING)
        store.athena.stop(execution_id)
        ended = [answer.result(timeout=ANSWER_S_MAX).state for answer in asked if answer is not one_too_many]
        assert ended == [ExecutionState.CANCELLED] * WATCHING_MAX
        assert store.athena.get(execution_id, wait_s=600).state is ExecutionState.CANCELLED  # has ended: nothing to wait for
