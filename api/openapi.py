"""The record routes in the OpenAPI document. FastAPI does not serve them, so it can't describe them by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from fastapi import FastAPI

from api.record_arrow import ARROW_STREAM

_NAME: Final = {
    "name": "FeatureGroupName",
    "in": "path",
    "required": True,
    "schema": {"type": "string"},
    "description": "Name or ARN (percent-encoded) of the feature group.",
}
_STORES: Final = {"type": "array", "items": {"enum": ["OnlineStore", "OfflineStore"]}}
_RECORD: Final = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["FeatureName"],
        "properties": {
            "FeatureName": {"type": "string"},
            "ValueAsString": {"type": "string"},
            "ValueAsStringList": {"type": "array", "items": {"type": "string"}},
        },
    },
}
_TTL: Final = {
    "type": "object",
    "required": ["Unit", "Value"],
    "properties": {"Unit": {"enum": ["Seconds", "Minutes", "Hours", "Days", "Weeks"]}, "Value": {"type": "integer"}},
}
_GROUP_NAME: Final = {"type": "string", "maxLength": 150}
_ERROR: Final = {"type": "object", "properties": {"Message": {"type": "string"}}}


def _parameter(name: str, *, required: bool = False, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"name": name, "in": "query", "required": required, "schema": schema or {"type": "string"}}


def _operation(
    summary: str,
    parameters: list[Any],
    body: dict[str, Any] | None = None,
    *,
    statuses: tuple[str, ...] = ("400", "404", "503"),
    done: Mapping[str, Any] = {"description": "Done"},
) -> dict[str, Any]:
    error = {"description": "Error; the code is in x-amzn-ErrorType", "content": {"application/json": {"schema": _ERROR}}}
    operation: dict[str, Any] = {
        "tags": ["records"],
        "summary": summary,
        "parameters": parameters,
        "responses": {"200": done} | dict.fromkeys(statuses, error),
    }
    if body is not None:
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": body}}}
    return operation


_BATCH_GOT: Final = {
    "description": "Done. Arrow if Accept names it: a row per record, Errors and UnprocessedIdentifiers in the schema's metadata",
    "content": {
        "application/json": {
            "schema": {
                "type": "object",
                "properties": {
                    name: {"type": "array", "items": {"type": "object"}}
                    for name in ("Records", "Errors", "UnprocessedIdentifiers")
                },
            }
        },
        ARROW_STREAM: {"schema": {"type": "string", "format": "binary"}},
    },
}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


RECORD_PATHS: Final[dict[str, Any]] = {
    "/FeatureGroup/{FeatureGroupName}": {
        "put": _operation("PutRecord", [_NAME], _object(["Record"], Record=_RECORD, TargetStores=_STORES, TtlDuration=_TTL)),
        "get": _operation(
            "GetRecord",
            [
                _NAME,
                _parameter("RecordIdentifierValueAsString", required=True),
                _parameter("FeatureName", schema={"type": "array", "items": {"type": "string"}}),
                _parameter("ExpirationTimeResponse", schema={"enum": ["Enabled", "Disabled"]}),
            ],
        ),
        "delete": _operation(
            "DeleteRecord",
            [
                _NAME,
                _parameter("RecordIdentifierValueAsString", required=True),
                _parameter("EventTime", required=True),
                _parameter("TargetStores", schema=_STORES),
                _parameter("DeletionMode", schema={"enum": ["SoftDelete", "HardDelete"]}),
            ],
        ),
    },
    "/FeatureGroup/{FeatureGroupName}/Record": {
        "post": _operation(
            "UpdateRecord",
            [_NAME],
            _object(
                ["RecordIdentifierValueAsString", "Features"],
                RecordIdentifierValueAsString={"type": "string"},
                Features=_RECORD | {"minItems": 1, "maxItems": 100},
                TargetStores=_STORES,
                TtlDuration=_TTL,
            ),
            statuses=("400", "404", "409", "503"),
        )
    },
    "/FeatureGroup/{FeatureGroupName}/ListRecords": {
        "post": _operation(
            "ListRecords",
            [_NAME],
            _object(
                [],
                MaxResults={"type": "integer", "minimum": 1, "maximum": 100},
                NextToken={"type": "string", "maxLength": 8192},
                IncludeSoftDeletedRecords={"type": "boolean"},
            ),
        )
    },
    "/BatchWriteRecord": {
        "post": _operation(
            "BatchWriteRecord",
            [],
            _object(
                ["Entries"],
                Entries={
                    "type": "array",
                    "minItems": 1,
                    "maxItems": 25,
                    "items": _object(
                        ["FeatureGroupName", "Record"],
                        FeatureGroupName=_GROUP_NAME,
                        Record=_RECORD,
                        TargetStores=_STORES,
                        TtlDuration=_TTL,
                    ),
                },
                TtlDuration=_TTL,
            ),
        )
    },
    "/BatchGetRecord": {
        "post": _operation(
            "BatchGetRecord",
            [],
            _object(
                ["Identifiers"],
                Identifiers={
                    "type": "array",
                    "items": _object(
                        ["FeatureGroupName", "RecordIdentifiersValueAsString"],
                        FeatureGroupName={"type": "string"},
                        RecordIdentifiersValueAsString={"type": "array", "items": {"type": "string"}},
                        FeatureNames={"type": "array", "items": {"type": "string"}},
                    ),
                },
                ExpirationTimeResponse={"enum": ["Enabled", "Disabled"]},
            ),
            done=_BATCH_GOT,
        )
    },
}


def add_record_routes(app: FastAPI) -> None:
    """Put the record routes into the document that `/docs` shows."""
    generate = app.openapi

    def openapi() -> dict[str, Any]:
        document = generate()
        document["paths"].update(RECORD_PATHS)
        return document

    app.openapi = openapi  # type: ignore[method-assign]
