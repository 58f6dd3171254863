"""Which API a request is for, and whom the door lets in when there are no keys, or nobody knows."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from api.door import Api, Door, api_of
from featurestore.access.authenticator import ANYBODY
from featurestore.access.keys import Keys
from featurestore.errors import AccessForbidden, SignatureMissing, StoreUnavailable

S3 = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
SAGEMAKER = S3.replace("/s3/", "/sagemaker/")
FORM = "application/x-www-form-urlencoded; charset=utf-8"
LOOPBACK = frozenset({b"localhost"})


def scope(method: str, path: str, *, query: str = "", **headers: str) -> dict[str, Any]:
    named = {"host": "localhost"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [(name.encode(), value.encode()) for name, value in named.items()],
    }


@pytest.mark.parametrize(
    ("request_scope", "api"),
    [
        (scope("POST", "/", x_amz_target="SageMaker.Search"), Api.JSON_11),
        (scope("POST", "/", x_amz_target="AmazonAthena.StartQueryExecution"), Api.JSON_11),
        (scope("POST", "/", x_amz_target="SageMaker.Search", content_type=FORM), Api.JSON_11),
        (scope("POST", "/"), Api.JSON_11),
        (scope("POST", "/", content_type=FORM), Api.STS),
        (scope("GET", "/", query="Action=GetCallerIdentity&Version=2011-06-15"), Api.STS),
        (scope("GET", "/"), Api.S3),
        (scope("GET", "/", authorization=S3), Api.S3),
        (scope("GET", "/FeatureGroup/g"), Api.RUNTIME),
        (scope("POST", "/FeatureGroup/g/ListRecords"), Api.RUNTIME),
        (scope("POST", "/BatchGetRecord"), Api.RUNTIME),
        (scope("POST", "/BatchWriteRecord"), Api.RUNTIME),
        (scope("GET", "/FeatureGroup/g", authorization=S3), Api.RUNTIME),
        (scope("POST", "/v1/sql", authorization=SAGEMAKER), Api.NATIVE),
        (scope("GET", "/v1/nope"), Api.NATIVE),
        (scope("GET", "/v1-bucket/key"), Api.S3),
        (scope("GET", "/health"), Api.OPEN),
        (scope("GET", "/docs/swagger-ui.js"), Api.OPEN),
        (scope("GET", "/docs/report.csv", authorization=S3), Api.S3),
        (scope("GET", "/docs/report.csv", query="X-Amz-Credential=k%2F20260101%2Fus-east-1%2Fs3%2Faws4_request"), Api.S3),
        (scope("GET", "/documents/report.csv"), Api.S3),
        (scope("PUT", "/bucket/FeatureGroup/g"), Api.S3),
    ],
)
def test_the_api_of_a_request(request_scope: dict[str, Any], api: Api) -> None:
    assert api_of(request_scope) is api


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"{}"}


def admit(door: Door, api: Api, request_scope: dict[str, Any]) -> Any:
    return asyncio.run(door.admit(api, request_scope, receive))


def opened(*, required: bool, hosts: frozenset[bytes] | None = LOOPBACK) -> Door:
    return Door(lambda: Keys({}, required=required), hosts=hosts, services={}, body_bytes_max=1000)


def test_without_keys_anybody_on_loopback() -> None:
    admitted = admit(opened(required=False), Api.RUNTIME, scope("GET", "/FeatureGroup/g"))
    assert (admitted.caller, admitted.body, admitted.receive, admitted.payload) == (ANYBODY, None, receive, None)
    with pytest.raises(AccessForbidden, match="Host: expected one of localhost, got 'elsewhere.example:80'"):
        admit(opened(required=False), Api.OPEN, scope("GET", "/health", host="elsewhere.example:80"))


def test_without_keys_a_request_to_s3_still_says_what_its_body_is() -> None:
    word = "STREAMING-UNSIGNED-PAYLOAD-TRAILER"
    admitted = admit(opened(required=False), Api.S3, scope("PUT", "/bucket/key", x_amz_content_sha256=word))
    assert (admitted.payload.streaming, admitted.payload.trailer, admitted.payload.signed_chunks) == (True, True, False)


@pytest.mark.parametrize(
    "door",
    [opened(required=True), opened(required=True, hosts=None), opened(required=False, hosts=None)],
    ids=["keys on loopback", "keys", "beyond loopback"],
)
@pytest.mark.parametrize("api", [api for api in Api if api is not Api.OPEN])
def test_with_keys_or_beyond_loopback_nobody_unsigned(door: Door, api: Api) -> None:
    with pytest.raises(SignatureMissing):
        admit(door, api, scope("GET", "/x", host="elsewhere.example"))
    assert admit(door, Api.OPEN, scope("GET", "/health", host="elsewhere.example")).caller == ANYBODY


def test_while_the_keys_can_not_be_read_nobody() -> None:
    def away() -> Keys:
        raise StoreUnavailable("registry", "away")

    door = Door(away, hosts=LOOPBACK, services={}, body_bytes_max=1000)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            admit(door, Api.RUNTIME, scope("GET", "/FeatureGroup/g"))
    assert admit(door, Api.OPEN, scope("GET", "/health")).caller == ANYBODY
