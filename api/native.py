"""Native routes: what AWS's API has no operation for. Bulk data travels as Arrow or Parquet, small answers as JSON."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, TypeVar

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.record_arrow import ARROW_STREAM
from api.wire import UnknownOperation
from featurestore.errors import Fault, ValidationFailed
from featurestore.store import FeatureStore

PARQUET: Final = "application/vnd.apache.parquet"
JSON: Final = "application/json"
SQL_BODY_BYTES_MAX: Final = 2 << 20
"""Room for the longest statement, escaped."""
ERASE_BODY_BYTES_MAX: Final = 16 << 20
"""Room for the longest identifiers, escaped."""
ERASE_IDENTIFIERS_MAX: Final = 1000
"""Records of one erase."""

_Model = TypeVar("_Model", bound=BaseModel)


class TrainingSetRequest(BaseModel):
    """What `FeatureStore.create_training_set` is asked for."""

    model_config = ConfigDict(extra="forbid")

    features: list[str] | dict[str, str] = Field(description='`"group.feature"`, `"group.*"`, or column to reference.')
    event_time: str = Field(description="The spine's column with each row's time.")
    keys: dict[str, str] = Field(default_factory=dict, description="Per group the spine's column with its identifier.")
    known_by: datetime | None = Field(None, description="See only what the service had taken by then.")
    as_served: bool = Field(False, description="See, row by row, only what the service had taken by the row's time.")
    as_of: datetime | None = Field(None, description="See the offline store as it was then: rows written by that time.")
    event_times: bool = Field(False, description="Add the event time of each matched record.")
    fresh: bool = Field(True, description="First write what waits to the offline store.")
    spine_sql: str | None = Field(None, description="The spine as SQL, when the body is not the spine itself.")


class SqlRequest(BaseModel):
    """One SELECT over the offline store."""

    model_config = ConfigDict(extra="forbid")

    statement: str = Field(description="One SELECT.")
    as_of: datetime | None = Field(None, description="See the offline store as it was then: rows written by that time.")
    fresh: bool = Field(True, description="First write what waits to the offline store.")


class EraseRequest(BaseModel):
    """Which records of a group to erase."""

    model_config = ConfigDict(extra="forbid")

    identifiers: list[str | int | float] = Field(min_length=1, max_length=ERASE_IDENTIFIERS_MAX)


def routes(store: FeatureStore, *, body_bytes_max: int) -> APIRouter:
    """The `/v1` routes over one store."""
    router = APIRouter(prefix="/v1", tags=["native"])

    @router.post(
        "/groups/{name}/records",
        summary="Ingest a dataframe",
        description="The body is an Arrow IPC stream or a Parquet file, by Content-Type. All or nothing unless skip_faulty.",
    )
    async def ingest(name: str, request: Request, skip_faulty: bool = False) -> Response:
        frame = _frame(await sized_body(request, body_bytes_max), request.headers.get("content-type", ""))
        report = await run_in_threadpool(store.ingest, name, frame, skip_faulty=skip_faulty, progress=False)
        return JSONResponse(
            {
                "rows": report.rows,
                "files": report.files,
                "online_newest": report.online_newest,
                "skipped": report.skipped,
                "faults": [str(fault) for fault in report.faults],
                "took_s": dict(report.took_s),
            }
        )

    @router.post(
        "/training-sets",
        summary="Create a training set",
        description="With a JSON body, the request itself with `spine_sql`. With an Arrow or Parquet body, that is the spine "
        "and the request is the query parameter `request` as JSON. Answers Arrow, or Parquet or JSON by Accept.",
        openapi_extra=_json_body(TrainingSetRequest),
    )
    async def create_training_set(request: Request, asked: Annotated[str | None, Query(alias="request")] = None) -> Response:
        body = await sized_body(request, body_bytes_max)
        kind = request.headers.get("content-type", "").partition(";")[0].strip()
        spine: object
        if kind == JSON:
            wanted = _checked(TrainingSetRequest, body)
            if wanted.spine_sql is None:
                raise ValidationFailed.one("spine_sql", "a SELECT, as the body is no spine")
            spine = wanted.spine_sql
        else:
            wanted = _checked(TrainingSetRequest, asked)
            if wanted.spine_sql is not None:
                raise ValidationFailed.one("spine_sql", "nothing, as the body is the spine", wanted.spine_sql)
            spine = _frame(body, kind)
        result = await run_in_threadpool(
            store.create_training_set,
            spine,
            wanted.features,
            event_time=wanted.event_time,
            keys=wanted.keys,
            known_by=wanted.known_by,
            as_served=wanted.as_served,
            as_of=wanted.as_of,
            event_times=wanted.event_times,
            fresh=wanted.fresh,
            progress=False,
        )
        headers = {
            "x-featurestore-versions": msgspec.json.encode(dict(result.manifest_versions)).decode(),
            "x-featurestore-spine-columns": str(result.spine.num_columns),
        }
        return await run_in_threadpool(_table_answer, result.to_arrow(), request, headers)

    @router.post(
        "/sql",
        summary="Query the offline store",
        description='One SELECT over `history."<group>"` and `latest."<group>"`. Answers Arrow or Parquet by Accept, else JSON.',
        openapi_extra=_json_body(SqlRequest),
    )
    async def sql(request: Request) -> Response:
        query = _checked(SqlRequest, await sized_body(request, SQL_BODY_BYTES_MAX))
        table = await run_in_threadpool(store.sql, query.statement, as_of=query.as_of, fresh=query.fresh)
        return await run_in_threadpool(_table_answer, table, request, {})

    @router.post(
        "/groups/{name}/erase",
        summary="Erase records from everywhere",
        description="What is written for these identifiers afterwards is kept. Answers the receipt.",
        openapi_extra=_json_body(EraseRequest),
    )
    async def erase(name: str, request: Request) -> Response:
        wanted = _checked(EraseRequest, await sized_body(request, ERASE_BODY_BYTES_MAX))
        receipt = await run_in_threadpool(lambda: store.erase(name, *wanted.identifiers, progress=False))
        return Response(msgspec.json.encode(receipt), media_type=JSON)

    @router.post("/flush", summary="Write every acknowledged change to the offline store")
    async def flush() -> dict[str, int]:
        drained = await run_in_threadpool(store.flush)
        return {"changes": drained.changes, "files": drained.files}

    @router.get("/groups", summary="List feature groups with their definitions")
    async def groups() -> list[dict[str, Any]]:
        found = await run_in_threadpool(store.feature_groups)
        return [
            {
                "name": group.name,
                "arn": group.arn,
                "record_identifier": group.record_identifier,
                "event_time": group.event_time,
                "features": {feature.name: feature.type for feature in group.features},
                "status": group.status,
            }
            for group in found
        ]

    @router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "DELETE", "PATCH"], include_in_schema=False)
    async def unknown(path: str, request: Request) -> Response:
        raise UnknownOperation(f"no operation has method {request.method} and path /v1/{path}")

    return router


async def sized_body(request: Request, bytes_max: int) -> bytes:
    """The whole body of a request.

    Raises:
        ValidationFailed: it is longer than `bytes_max`; a declared length is believed before anything is read.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise ValidationFailed.one("body", f"at most {bytes_max} bytes", int(declared))
    chunks, size = [], 0
    async for chunk in request.stream():
        chunks.append(chunk)
        size += len(chunk)
        if size > bytes_max:
            raise ValidationFailed.one("body", f"at most {bytes_max} bytes")
    return b"".join(chunks)


def _frame(body: bytes, content_type: str) -> pa.Table:
    """The body as a table whose buffers are checked: Arrow trusts the offsets and lengths it is sent."""
    kind = content_type.partition(";")[0].strip()
    if kind not in (ARROW_STREAM, PARQUET):
        raise ValidationFailed.one("Content-Type", f"{ARROW_STREAM} or {PARQUET}", content_type)
    try:
        if kind == ARROW_STREAM:
            with pa.ipc.open_stream(body) as stream:
                table = stream.read_all()
        else:
            table = pq.read_table(io.BytesIO(body))
        table.validate(full=True)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise ValidationFailed.one("body", f"{kind} ({error})") from error
    return table


def _table_answer(table: pa.Table, request: Request, headers: Mapping[str, str]) -> Response:
    accepted = request.headers.get("accept", "")
    if JSON in accepted or (ARROW_STREAM not in accepted and PARQUET not in accepted and request.url.path.endswith("/sql")):
        return Response(_json_rows(table), media_type=JSON, headers=dict(headers))
    sink = io.BytesIO()
    if PARQUET in accepted:
        try:
            pq.write_table(table, sink, compression="zstd")
        except pa.ArrowException as error:
            raise ValidationFailed.one("Accept", f"{ARROW_STREAM}, as Parquet can't hold the result ({error})") from error
        return Response(sink.getvalue(), media_type=PARQUET, headers=dict(headers))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Response(sink.getvalue(), media_type=ARROW_STREAM, headers=dict(headers))


def _json_rows(table: pa.Table) -> bytes:
    """Column names once, then each row as an array. Times are ISO-8601 text, decimals text, NaN and infinities null.

    Raises:
        ValidationFailed: a column holds what has no JSON form, such as years beyond 9999.
    """
    columns = []
    for name, column in zip(table.column_names, table.columns, strict=True):
        try:
            if pa.types.is_timestamp(column.type) and column.type.unit == "ns":
                column = column.cast(pa.timestamp("us", column.type.tz), safe=False)
            values = column.to_pylist()
            msgspec.json.encode(values)
        except (pa.ArrowException, ArithmeticError, ValueError, TypeError) as error:
            expected = f"{ARROW_STREAM}, as column {name!r} of type {column.type} has values without a JSON form"
            raise ValidationFailed.one("Accept", expected) from error
        columns.append(values)
    rows = [list(row) for row in zip(*columns, strict=True)]
    return msgspec.json.encode({"columns": table.column_names, "rows": rows})


def _checked(model: type[_Model], data: bytes | str | None) -> _Model:
    try:
        return model.model_validate_json(data or b"")
    except ValidationError as error:
        raise ValidationFailed(pydantic_faults(error)) from error


def _json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The OpenAPI entry of a route that reads its JSON body itself, so that its size is bounded."""
    return {"requestBody": {"required": True, "content": {JSON: {"schema": model.model_json_schema()}}}}


def pydantic_faults(error: Any) -> list[Fault]:
    """The faults of a pydantic (or FastAPI request) validation error, in our form."""
    return [_pydantic_fault(item) for item in error.errors()]


def _pydantic_fault(item: Mapping[str, Any]) -> Fault:
    path = ".".join(str(part) for part in item["loc"]) or "body"
    match item["type"]:
        case "missing":
            return Fault(path, "this required member")
        case "extra_forbidden":
            return Fault(path, "no member of this name", item["input"])
        case "json_invalid":
            return Fault(path, f"JSON in UTF-8 ({item['ctx']['error']})")
        case _:
            return Fault(path, item["msg"].removeprefix("Input should be "), item["input"])
