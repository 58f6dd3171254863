"""The AWS CLI's commands as somebody would type them: feature groups, records, queries, and `aws s3` in both directions."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

import awscli.clidriver
from steps import step, wait_until

name = f"cli-{uuid.uuid4().hex[:8]}"
here = Path(tempfile.mkdtemp())


def aws(command: str, status: int = 0) -> str:
    """What `aws <command>` prints. The CLI runs inside of this process: its start costs more than most commands."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            ended = awscli.clidriver.create_clidriver().main(shlex.split(command))
        except SystemExit as error:  # arguments that it does not understand
            ended = error.code
        out.flush()
    printed = out.buffer.getvalue().decode()  # type: ignore[attr-defined]
    assert ended == status, f"aws {command}: status {ended}\n{printed}{err.getvalue()}"
    return str(printed or err.getvalue()) if status else str(printed)


def answer(command: str) -> Any:
    return json.loads(aws(f"{command} --output json"))


with step("the command itself, in a process of its own"):
    who = subprocess.run(
        [sys.executable, "-m", "awscli", "sts", "get-caller-identity"], capture_output=True, text=True, check=False, timeout=120
    )
    assert who.returncode == 0, who.stderr
    assert len(json.loads(who.stdout)["Account"]) == 12

with step("sagemaker create-feature-group, describe-feature-group, list-feature-groups, search"):
    arn = answer(
        f"sagemaker create-feature-group --feature-group-name {name}"
        " --record-identifier-feature-name id --event-time-feature-name at"
        " --feature-definitions FeatureName=id,FeatureType=String FeatureName=at,FeatureType=String"
        " FeatureName=amount,FeatureType=Fractional"
        " --online-store-config EnableOnlineStore=true,StorageType=Standard_V2"
        " --offline-store-config S3StorageConfig={S3Uri=s3://cli-offline/prefix}"
    )["FeatureGroupArn"]
    described = wait_until(
        lambda: (
            (got := answer(f"sagemaker describe-feature-group --feature-group-name {name}"))["FeatureGroupStatus"] == "Created"
            and got
        ),
        "Created",
    )
    assert described["FeatureGroupArn"] == arn
    listed = aws(
        f"sagemaker list-feature-groups --name-contains {name} --query FeatureGroupSummaries[].FeatureGroupName --output text"
    )
    assert listed.split() == [name]
    expression = json.dumps({"Filters": [{"Name": "FeatureGroupName", "Operator": "Equals", "Value": name}]})
    found = answer(f"sagemaker search --resource FeatureGroup --search-expression '{expression}'")
    assert [hit["FeatureGroup"]["FeatureGroupArn"] for hit in found["Results"]] == [arn]

runtime = "sagemaker-featurestore-runtime"
with step("put-record, get-record; a record that is not there prints nothing"):
    (here / "record.json").write_text(
        json.dumps(
            [
                {"FeatureName": "id", "ValueAsString": "a"},
                {"FeatureName": "at", "ValueAsString": "2026-01-02T00:00:00Z"},
                {"FeatureName": "amount", "ValueAsString": "0.10"},
            ]
        )
    )
    assert aws(f"{runtime} put-record --feature-group-name {name} --record file://{here}/record.json") == ""
    aws(
        f"{runtime} put-record --feature-group-name {name} --ttl-duration Unit=Weeks,Value=5200"
        " --target-stores OnlineStore OfflineStore"
        " --record FeatureName=id,ValueAsString=b FeatureName=at,ValueAsString=2026-01-02T00:00:00Z"
    )
    got = answer(f"{runtime} get-record --feature-group-name {arn} --record-identifier-value-as-string a")
    assert got == {"Record": json.loads((here / "record.json").read_text())}, got
    one = answer(
        f"{runtime} get-record --feature-group-name {name} --record-identifier-value-as-string b"
        " --feature-names at id --expiration-time-response Enabled"
    )
    assert one["ExpiresAt"] == "2125-08-31T00:00:00Z", one
    assert aws(f"{runtime} get-record --feature-group-name {name} --record-identifier-value-as-string nobody") == ""

with step("batch-get-record, list-records, batch-write-record, delete-record"):
    got = answer(
        f"{runtime} batch-get-record --identifiers"
        f" FeatureGroupName={name},RecordIdentifiersValueAsString=a,nobody,FeatureNames=amount"
    )
    assert [record["Record"] for record in got["Records"]] == [[{"FeatureName": "amount", "ValueAsString": "0.10"}]], got
    entries = json.dumps(
        [
            {
                "FeatureGroupName": name,
                "Record": [
                    {"FeatureName": "id", "ValueAsString": "c"},
                    {"FeatureName": "at", "ValueAsString": "2026-01-02T00:00:00Z"},
                ],
            }
        ]
    )
    assert answer(f"{runtime} batch-write-record --entries '{entries}'") == {"Errors": [], "UnprocessedEntries": []}
    assert sorted(answer(f"{runtime} list-records --feature-group-name {name}")["RecordIdentifiers"]) == ["a", "b", "c"]
    aws(
        f"{runtime} delete-record --feature-group-name {name} --record-identifier-value-as-string b"
        " --event-time 2026-01-03T00:00:00Z --deletion-mode HardDelete"
    )
    assert sorted(answer(f"{runtime} list-records --feature-group-name {name} --max-items 5")["RecordIdentifiers"]) == ["a", "c"]

with step("an error says its code and ends with 255"):
    said = aws(f"{runtime} get-record --feature-group-name no-such-group --record-identifier-value-as-string a", status=255)
    assert "(ResourceNotFound)" in said, said
    said = aws(f"{runtime} list-records --feature-group-name {name} --max-results 101 --no-paginate", status=255)
    assert "(ValidationError)" in said, said

bucket = f"cli-{uuid.uuid4().hex[:8]}"
with step("s3 mb, cp in both directions (20 MiB in parts), ls, sync, rm"):
    small, large = here / "small.csv", here / "large.bin"
    small.write_text("id,amount\n1,0.5\n")
    large.write_bytes(bytes(range(256)) * (80 << 10))
    aws(f"s3 mb s3://{bucket}")
    aws(f"s3 cp {small} 's3://{bucket}/folder/a b.csv'")
    aws(f"s3 cp {large} s3://{bucket}/large.bin --no-progress")
    aws(f"s3 cp 's3://{bucket}/folder/a b.csv' {here}/back.csv")
    aws(f"s3 cp s3://{bucket}/large.bin {here}/back.bin --no-progress")
    assert (here / "back.csv").read_bytes() == small.read_bytes()
    assert (here / "back.bin").read_bytes() == large.read_bytes()
    printed = aws(f"s3 ls s3://{bucket}/")
    assert "PRE folder/" in printed, printed
    assert f"{large.stat().st_size} large.bin" in printed, printed
    assert "a b.csv" in aws(f"s3 ls s3://{bucket} --recursive")
    assert bucket in aws("s3 ls")
    aws(f"s3 sync s3://{bucket}/folder {here}/folder")
    assert (here / "folder" / "a b.csv").read_bytes() == small.read_bytes()
    aws(f"s3 rm s3://{bucket} --recursive")
    assert aws(f"s3 ls s3://{bucket}") == ""

with step("athena start-query-execution, get-query-execution, get-query-results"):
    table = described["OfflineStoreConfig"]["DataCatalogConfig"]["TableName"]
    query = answer(
        f"""athena start-query-execution --query-string 'SELECT id, amount FROM "{table}" ORDER BY id, amount'"""
        " --query-execution-context Database=sagemaker_featurestore"
        f" --result-configuration OutputLocation=s3://{bucket}/results/"
    )["QueryExecutionId"]
    wait_until(
        lambda: (
            answer(f"athena get-query-execution --query-execution-id {query}")["QueryExecution"]["Status"]["State"] == "SUCCEEDED"
        ),
        "the query succeeds",
    )
    rows = aws(
        f"athena get-query-results --query-execution-id {query} --query ResultSet.Rows[].Data[].VarCharValue --output text"
    )
    assert rows.split()[:4] == ["id", "amount", "a", "0.1"], rows
    aws(f"s3 cp s3://{bucket}/results/{query}.csv -")

with step("sagemaker delete-feature-group"):
    aws(f"sagemaker delete-feature-group --feature-group-name {name}")
    said = aws(f"sagemaker describe-feature-group --feature-group-name {name}", status=255)
    assert "(ResourceNotFound)" in said, said
