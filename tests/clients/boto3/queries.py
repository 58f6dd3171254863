"""Athena through plain boto3: what a query answers, where its results lie, and how a bad one ends."""

from __future__ import annotations

import csv
import io
import urllib.parse
import uuid
from typing import Any

import boto3
from calls import Calls, refused
from steps import step, wait_until

calls = Calls()
athena = calls.watch(boto3.client("athena"))
s3 = boto3.client("s3")
sagemaker = boto3.client("sagemaker")
runtime = boto3.client("sagemaker-featurestore-runtime")
group = f"queries-{uuid.uuid4().hex[:8]}"
bucket = f"queries-{uuid.uuid4().hex[:8]}"
results = f"s3://{bucket}/results"


def ended(query: str) -> dict[str, Any]:
    """The execution when it has come to an end."""

    def state() -> dict[str, Any] | None:
        execution: dict[str, Any] = athena.get_query_execution(QueryExecutionId=query)["QueryExecution"]
        return execution if execution["Status"]["State"] not in ("QUEUED", "RUNNING") else None

    execution: dict[str, Any] = wait_until(state, "the query ends")
    return execution


def run(sql: str, **members: Any) -> dict[str, Any]:
    context = {"Catalog": "AwsDataCatalog", "Database": "sagemaker_featurestore"}
    started = athena.start_query_execution(
        QueryString=sql, QueryExecutionContext=context, ResultConfiguration={"OutputLocation": results}, **members
    )
    return ended(started["QueryExecutionId"])


def text(uri: str) -> str:
    where = urllib.parse.urlparse(uri)
    return str(s3.get_object(Bucket=where.netloc, Key=where.path[1:])["Body"].read().decode())


with step("a group with rows, a bucket for results"):
    s3.create_bucket(Bucket=bucket)
    sagemaker.create_feature_group(
        FeatureGroupName=group,
        RecordIdentifierFeatureName="id",
        EventTimeFeatureName="at",
        FeatureDefinitions=[
            {"FeatureName": "id", "FeatureType": "String"},
            {"FeatureName": "at", "FeatureType": "String"},
            {"FeatureName": "amount", "FeatureType": "Fractional"},
            {"FeatureName": "note", "FeatureType": "String"},
        ],
        OfflineStoreConfig={"S3StorageConfig": {"S3Uri": "s3://queries-offline/prefix"}},
    )
    table = sagemaker.describe_feature_group(FeatureGroupName=group)["OfflineStoreConfig"]["DataCatalogConfig"]["TableName"]
    rows = [
        {"id": "a", "at": "2026-01-01T00:00:00Z", "amount": "0.5", "note": 'says "hi", and\nmore'},
        {"id": "b", "at": "2026-01-02T00:00:00Z", "note": ""},
    ]
    for row in rows:
        record = [{"FeatureName": name, "ValueAsString": value} for name, value in row.items()]
        runtime.put_record(FeatureGroupName=group, Record=record)
    runtime.delete_record(FeatureGroupName=group, RecordIdentifierValueAsString="b", EventTime="2026-01-03T00:00:00Z")

with step("SELECT: the result is where it is expected, and what Athena would write"):
    sql = f'SELECT id, at, amount, note, is_deleted FROM "{table}" ORDER BY at'
    execution = run(sql)
    assert execution["Status"]["State"] == "SUCCEEDED", execution
    assert execution["Query"] == sql
    assert execution["StatementType"] == "DML"
    assert execution["QueryExecutionContext"]["Database"] == "sagemaker_featurestore"
    assert execution["Status"]["CompletionDateTime"] >= execution["Status"]["SubmissionDateTime"]
    uri = execution["ResultConfiguration"]["OutputLocation"]
    assert uri == f"{results}/{execution['QueryExecutionId']}.csv", uri
    lines = list(csv.DictReader(io.StringIO(text(uri))))
    assert lines == [
        {"id": "a", "at": "2026-01-01T00:00:00Z", "amount": "0.5", "note": 'says "hi", and\nmore', "is_deleted": "false"},
        {"id": "b", "at": "2026-01-02T00:00:00Z", "amount": "", "note": "", "is_deleted": "false"},
        {"id": "b", "at": "2026-01-03T00:00:00Z", "amount": "", "note": "", "is_deleted": "true"},
    ], lines

with step("GetQueryResults: the header is the first row"):
    answer = athena.get_query_results(QueryExecutionId=execution["QueryExecutionId"])
    first, *others = [[cell.get("VarCharValue") for cell in row["Data"]] for row in answer["ResultSet"]["Rows"]]
    assert first == ["id", "at", "amount", "note", "is_deleted"], first
    assert [row[0] for row in others] == ["a", "b", "b"], others
    assert [column["Name"] for column in answer["ResultSet"]["ResultSetMetadata"]["ColumnInfo"]] == first

with step("Trino's words: database in two parts, WITH in WITH, row_number, times, a semicolon at the end"):
    execution = run(
        f"""
        WITH outermost AS (
            WITH numbered AS (
                SELECT *, row_number() OVER (PARTITION BY "id" ORDER BY "at" DESC) AS n
                FROM "sagemaker_featurestore"."{table}" origin
            )
            SELECT id, at, from_iso8601_timestamp("at") AS moment FROM numbered WHERE n = 1 AND NOT is_deleted
        )
        SELECT id FROM outermost
        WHERE moment >= from_unixtime(0) AND moment <= from_iso8601_timestamp('2027-01-01T00:00:00Z')
        LIMIT 10;
        """
    )
    assert execution["Status"]["State"] == "SUCCEEDED", execution["Status"]
    assert text(execution["ResultConfiguration"]["OutputLocation"]).splitlines() == ['"id"', '"a"']

with step("a CSV file of the user's own as a table"):
    s3.put_object(Bucket=bucket, Key="own/file.csv", Body=b"a,7,0.5\nb,8,\n")
    own = f"own_{uuid.uuid4().hex[:8]}"
    execution = run(
        f"CREATE EXTERNAL TABLE {own} (id STRING, n INT, x DOUBLE)\n"
        "ROW FORMAT SERDE 'org.apache.hadoop.hive.serde2.OpenCSVSerde'\n"
        'WITH SERDEPROPERTIES ("separatorChar" = ",", "quoteChar" = "`", "escapeChar" = "\\\\")\n'
        f"LOCATION 's3://{bucket}/own';"
    )
    assert execution["Status"]["State"] == "SUCCEEDED", execution["Status"]
    assert execution["StatementType"] == "DDL", execution
    execution = run(f'SELECT o.id, o.n, g.amount FROM {own} o JOIN "{table}" g ON o.id = g.id WHERE NOT g.is_deleted ORDER BY 1')
    assert execution["Status"]["State"] == "SUCCEEDED", execution["Status"]
    lines = list(csv.reader(io.StringIO(text(execution["ResultConfiguration"]["OutputLocation"]))))
    assert lines == [["id", "n", "amount"], ["a", "7", "0.5"], ["b", "8", ""]], lines

with step("the same ClientRequestToken is the same execution"):
    token = {"ClientRequestToken": uuid.uuid4().hex + uuid.uuid4().hex}
    assert run("SELECT 1", **token)["QueryExecutionId"] == run("SELECT 1", **token)["QueryExecutionId"]

with step("without an OutputLocation the service has one of its own"):
    started = athena.start_query_execution(QueryString="SELECT 1 AS one")
    without = ended(started["QueryExecutionId"])
    assert text(without["ResultConfiguration"]["OutputLocation"]).splitlines() == ['"one"', '"1"'], without

with step("ListQueryExecutions"):
    assert execution["QueryExecutionId"] in athena.list_query_executions()["QueryExecutionIds"]

with step("BatchGetQueryExecution, GetWorkGroup, and what there is to ask for"):
    unknown = str(uuid.uuid4())
    answer = athena.batch_get_query_execution(QueryExecutionIds=[execution["QueryExecutionId"], unknown])
    assert [found["QueryExecutionId"] for found in answer["QueryExecutions"]] == [execution["QueryExecutionId"]], answer
    assert [lost["QueryExecutionId"] for lost in answer["UnprocessedQueryExecutionIds"]] == [unknown], answer
    assert athena.get_work_group(WorkGroup="primary")["WorkGroup"]["State"] == "ENABLED"
    catalog = {"CatalogName": "AwsDataCatalog"}
    database = catalog | {"DatabaseName": "sagemaker_featurestore"}
    assert "sagemaker_featurestore" in [found["Name"] for found in athena.list_databases(**catalog)["DatabaseList"]]
    assert athena.get_database(**database)["Database"]["Name"] == "sagemaker_featurestore"
    tables = [found["Name"] for found in athena.list_table_metadata(**database)["TableMetadataList"]]
    assert {table, own} <= set(tables), tables
    columns = athena.get_table_metadata(**database, TableName=table)["TableMetadata"]["Columns"]
    assert {"Name": "amount", "Type": "double"} in columns, columns

with step("StopQueryExecution: what has ended stays as it was"):
    athena.stop_query_execution(QueryExecutionId=execution["QueryExecutionId"])
    assert ended(execution["QueryExecutionId"])["Status"]["State"] == "SUCCEEDED"

with step("a bad query fails with a reason, and reads nothing but the tables"):
    for bad in (
        "SELECT nothing FROM nowhere",
        "SELEC 1",
        f'DROP TABLE "{table}"',
        "SELECT * FROM read_text('/etc/passwd')",
        "COPY (SELECT 1) TO '/tmp/out.csv'",
        "ATTACH '/tmp/other.db'",
    ):
        try:
            execution = run(bad)
        except athena.exceptions.InvalidRequestException:
            continue
        assert execution["Status"]["State"] == "FAILED", (bad, execution["Status"])
        assert execution["Status"]["StateChangeReason"], (bad, execution["Status"])

with step("InvalidRequestException (400)"):
    unknown = str(uuid.uuid4())
    refused(athena.get_query_execution, "InvalidRequestException", 400, QueryExecutionId=unknown)
    refused(athena.get_query_results, "InvalidRequestException", 400, QueryExecutionId=unknown)
    refused(athena.stop_query_execution, "InvalidRequestException", 400, QueryExecutionId=unknown)
    elsewhere = {"ResultConfiguration": {"OutputLocation": "/etc/results"}}
    refused(athena.start_query_execution, "InvalidRequestException", 400, QueryString="SELECT 1", **elsewhere)

sagemaker.delete_feature_group(FeatureGroupName=group)
with step("no operation and no error of the contract was left out"):
    bad_request = {"InvalidRequestException"}
    calls.require(
        {
            "StartQueryExecution": bad_request,
            "GetQueryExecution": bad_request,
            "GetQueryResults": bad_request,
            "StopQueryExecution": bad_request,
            "ListQueryExecutions": set(),
            "BatchGetQueryExecution": set(),
            "GetWorkGroup": set(),
            "ListDatabases": set(),
            "GetDatabase": set(),
            "ListTableMetadata": set(),
            "GetTableMetadata": set(),
        }
    )
