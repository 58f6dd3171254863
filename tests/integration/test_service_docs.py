"""docs/reference/http.md and errors.md tell the truth: every route, operation, limit and error is there, and the examples run."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

import featurestore
from api import control_plane as control
from api import door, openapi, record_arrow, rights, runtime, s3_xml, sts, wire
from api import native as native_routes
from featurestore import errors
from featurestore.errors import AccessForbidden, AuthenticationFailed, FeatureStoreError, ServiceRefused
from featurestore.model import limits
from featurestore.online.protocol import PAGE_LOOKED_AT_MAX
from featurestore.settings import Settings
from tests.integration.conftest import Http, Reply
from tests.service import Service

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
HTTP = (REFERENCE / "http.md").read_text()
ERRORS = (REFERENCE / "errors.md").read_text()
WRITTEN_URL = "http://127.0.0.1:8080"
HIDDEN = {"GET /docs", "GET /openapi.json", "POST /"}
"""Routes that an OpenAPI document does not list."""


def table_rows(text: str) -> list[list[str]]:
    """The cells of all tables of a page, heads and rules left out."""
    rows = [
        [cell.strip() for cell in line.strip().strip("|").split(" | ")] for line in text.splitlines() if line.startswith("| ")
    ]
    return [row for row in rows if set(row[0]) - set("-|")]


@pytest.fixture(scope="module")
def routes(http_client: Http) -> set[str]:
    paths = http_client.request("GET", "/openapi.json").json["paths"]
    assert paths.keys() >= openapi.RECORD_PATHS.keys()
    return {f"{method.upper()} {path}" for path, item in paths.items() for method in item}


def test_every_route_is_documented(routes: set[str]) -> None:
    for route in routes | HIDDEN:
        assert f"`{route}" in HTTP, f"{route} is not in http.md"


def test_every_documented_route_exists(routes: set[str]) -> None:
    written = set(re.findall(r"`((?:GET|PUT|POST|DELETE|PATCH) /[^`]*)`", HTTP))
    assert written == routes | HIDDEN


def test_every_operation_is_documented(tmp_path: Path) -> None:
    with featurestore.open(tmp_path / "home") as store:
        operations = control.ControlPlane(store).operations
    section = HTTP.partition("\n## Feature groups\n")[2].partition("\n## ")[0]
    assert [row[0] for row in table_rows(section)[1:]] == [f"`{name}`" for name in operations]
    for path in openapi.RECORD_PATHS.values():
        for operation in path.values():
            assert f"\n### {operation['summary']}: `" in HTTP


def test_every_member_is_documented(http_client: Http) -> None:
    paths = http_client.request("GET", "/openapi.json").json["paths"]
    for item in paths.values():
        for operation in item.values():
            names = {parameter["name"] for parameter in operation.get("parameters", ())}
            schema = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema", {})
            names |= schema.get("properties", {}).keys()
            for name in names:
                assert re.search(rf"[`{{?]{name}\b", HTTP), f"{name} is not in http.md"


def test_limits() -> None:
    mib = 1 << 20
    assert dict(row for row in table_rows(HTTP) if len(row) == 2 and row[1][:1].isdigit() and not row[1].startswith("200")) == {
        "body of a record request": f"{runtime.BODY_BYTES_MAX // mib} MiB",
        "body of a BatchWriteRecord": f"{runtime.BATCH_BODY_BYTES_MAX // mib} MiB",
        "group name or ARN in a record request": f"{limits.RECORD_GROUP_CHARS_MAX} characters",
        "body of a feature group request": f"{door.JSON_11_BODY_BYTES_MAX // mib} MiB",
        "body of an STS request": f"{sts.BODY_BYTES_MAX // 1024} KiB",
        "body of `/v1/sql`": f"{native_routes.SQL_BODY_BYTES_MAX // mib} MiB",
        "body of `/v1/groups/{name}/erase`": f"{native_routes.ERASE_BODY_BYTES_MAX // mib} MiB",
        "body of the other native routes": f"{Settings.load({}).body_bytes_max // mib} MiB, `FEATURESTORE_BODY_BYTES_MAX`",
        "names and values of a record": f"{limits.RECORD_BYTES_MAX:,} bytes",
        "a value": f"{limits.VALUE_CHARS_MAX:,} characters",
        "a record identifier": f"{limits.RECORD_IDENTIFIER_BYTES_MAX:,} bytes",
        "groups in one BatchGetRecord": f"{limits.BATCH_GET_GROUPS_MAX}",
        "identifiers per group in one BatchGetRecord": f"{limits.BATCH_GET_IDENTIFIERS_MAX}",
        "identifiers times features of one BatchGetRecord in Arrow": f"{record_arrow.CELLS_MAX:,}",
        "entries of one BatchWriteRecord": f"{limits.BATCH_WRITE_ENTRIES_MAX}",
        "features of one UpdateRecord": f"{limits.UPDATE_FEATURES_MAX}",
        "identifiers of one page of ListRecords": f"{limits.LIST_RECORDS_MAX}",
        "records that one page of ListRecords looks at": f"{PAGE_LOOKED_AT_MAX:,}",
        "features of a group": f"{limits.FEATURES_PER_GROUP_MAX:,}",
        "features added at once": f"{limits.FEATURE_ADDITIONS_MAX}",
        "feature groups": f"{limits.FEATURE_GROUPS_MAX:,}",
        "tags of a group": f"{limits.TAGS_MAX}",
        "parameters of a feature": f"{limits.FEATURE_PARAMETERS_MAX}",
        "filters, nested filters and sub-expressions of a search": f"{limits.EXPRESSION_ELEMENTS_MAX}",
    }


def error_classes(root: type[FeatureStoreError] = FeatureStoreError) -> Iterator[type[FeatureStoreError]]:
    yield root
    for child in root.__subclasses__():
        yield from error_classes(child)


def test_every_error_is_documented() -> None:
    ours = [
        kind for kind in error_classes() if kind.__module__ in (errors.__name__, wire.__name__) and kind is not ServiceRefused
    ]
    expected = {}
    for kind in ours:
        error = kind.__new__(kind)
        native, aws = wire.rest_error(error), Reply(0, {}, wire.json_11_error(error).body)
        assert dict(native.headers)[b"x-amzn-errortype"] == kind.code.encode()
        expected[f"`{kind.__name__}`"] = [
            f"`{kind.code}`",
            f"`{aws.code}`",
            str(native.status),
            str(wire.json_11_error(error).status),
            "yes" if kind.retryable else "no",
        ]
    written = {row[0]: row[1:6] for row in table_rows(ERRORS)[1:] if len(row) > 3}
    assert written == expected
    assert f"`{ServiceRefused.__name__}`" in ERRORS


def test_every_refusal_in_xml_is_documented() -> None:
    kinds = [*AuthenticationFailed.__subclasses__(), AccessForbidden]
    expected = {}
    for kind in kinds:
        error = kind.__new__(kind)
        expected[f"`{kind.__name__}`"] = [
            f"`{code}`, {status}" for code, status in (wire.query_code(error), s3_xml.code_of(error))
        ]
    assert {row[0]: row[1:] for row in table_rows(ERRORS) if len(row) == 3 and row[0] != "class"} == expected


class TestExamples:
    """The commands and the program of http.md, and what the page says that they print."""

    def test_they_print_what_the_page_says(self, tmp_path: Path) -> None:
        printed = ""
        compared = 0
        with Service(tmp_path / "home", tmp_path / "log") as service:
            http_client = Http(service.port)
            for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", HTTP, re.MULTILINE | re.DOTALL):
                if language == "sh":
                    printed = "".join(self.curl(http_client, command) for command in text.split("\ncurl "))
                elif language == "python":
                    program = text.replace(WRITTEN_URL, service.url)
                    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
                    printed = ran.stdout.strip()
                else:
                    assert printed == text.strip()
                    compared += 1
        assert compared == 5

    @staticmethod
    def curl(http_client: Http, command: str) -> str:
        """What `curl -s` prints; not every machine has it."""
        words = [word for word in shlex.split(command) if word not in ("curl", "-s")]
        method, body, headers, path = None, None, {}, ""
        while words:
            word = words.pop(0)
            if word == "-X":
                method = words.pop(0)
            elif word == "-H":
                name, _, value = words.pop(0).partition(": ")
                headers[name] = value
            elif word == "-d":
                body = words.pop(0).replace("\n", "")
                headers["Content-Type"] = "application/x-www-form-urlencoded"
            else:
                assert word.startswith(WRITTEN_URL)
                path = word.removeprefix(WRITTEN_URL)
        return http_client.request(method or ("GET" if body is None else "POST"), path, body, headers).body.decode()


def operations_in(page: str, heading: str) -> set[str]:
    """The operations in the first column of the tables below a heading of the guide."""
    section = re.split(r"\n##+ ", page.partition(f"{heading}\n")[2])[0]
    return {name.strip() for row in table_rows(section) if row[0] != "operation" for name in row[0].split(",")}


def test_the_guide_of_aws_clients_has_every_operation() -> None:
    guide = (REFERENCE.parent / "guides" / "aws-clients.md").read_text()
    documented = {
        "sagemaker": operations_in(guide, "### Records (`sagemaker-featurestore-runtime`)")
        | operations_in(guide, "### Feature groups (`sagemaker`)"),
        "athena": operations_in(guide, "### Queries (`athena`)"),
        "sts": operations_in(guide, "### Callers (`sts`)"),
    }
    for service, names in documented.items():
        offered = {name.removeprefix(f"{service}:") for name in rights.RIGHTS if name.startswith(f"{service}:")}
        assert names == offered, service
    buckets = (REFERENCE.parent / "guides" / "buckets.md").read_text()
    named = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}(?:V2)?\b", buckets.partition("## What is offered")[2].partition("\n## ")[0]))
    known = {name for name in named if name in boto3.client("s3").meta.service_model.operation_names}
    assert operations_in(guide, "### Objects (`s3`)") == known
