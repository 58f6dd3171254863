"""Native routes: what AWS's API has no operation for. Bulk data travels as Arrow or Parquet, small answers as JSON."""

from __future__ import annotations

import io
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq
from fastapi import APIRouter, Body, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from api.wire import UnknownOperation
from featurestore.errors import Fault, ValidationFailed
from featurestore.store import FeatureStore

ARROW_STREAM: Final = "application/vnd.apache.arrow.stream"
PARQUET: Final = "application/vnd.apache.parquet"
JSON: Final = "application/json"


class TrainingSetRequest(BaseModel):
    """What `FeatureStore.create_training_set` is asked for."""

    model_config = ConfigDict(extra="forbid")

    features: list[str] | dict[str, str] = Field(description='`"group.feature"`, `"group.*"`, or column to reference.')
    event_time: str = Field(description="The spine's column with each row's time.")
    keys: dict[str, str] = Field(default_factory=dict, description="Per group the spine's column with its identifier.")
    known_by: datetime | None = Field(None, description="See only what the service had taken by then.")
    as_served: bool = Field(False, description="See, row by row, only what the service had taken by the row's time.")
    event_times: bool = Field(False, description="Add the event time of each matched record.")
    fresh: bool = Field(True, description="First write what waits to the offline store.")
    spine_sql: str | None = Field(None, description="The spine as SQL, when the body is not the spine itself.")


class SqlRequest(BaseModel):
    """One SELECT over the offline store."""

    model_config = ConfigDict(extra="forbid")

    statement: str
    fresh: bool = True


def routes(store: FeatureStore, *, body_bytes_max: int) -> APIRouter:
    """The `/v1` routes over one store."""
    router = APIRouter(prefix="/v1", tags=["native"])

    async def sized_body(request: Request) -> bytes:
        declared = request.headers.get("content-length", "")
        if declared.isdigit() and int(declared) > body_bytes_max:
            raise ValidationFailed.one("body", f"at most {body_bytes_max} bytes", int(declared))
        chunks, size = [], 0
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > body_bytes_max:
                raise ValidationFailed.one("body", f"at most {body_bytes_max} bytes")
        return b"".join(chunks)

    @router.post(
        "/groups/{name}/records",
        summary="Ingest a dataframe",
        description="The body is an Arrow IPC stream or a Parquet file, by Content-Type. All or nothing unless skip_faulty.",
    )
    async def ingest(name: str, request: Request, skip_faulty: bool = False) -> Response:
        frame = _frame(await sized_body(request), request.headers.get("content-type", ""))
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
        "and the request is the query parameter `request` as JSON. Answers Arrow, or Parquet by Accept.",
    )
    async def create_training_set(request: Request, asked: Annotated[str | None, Query(alias="request")] = None) -> Response:
        body = await sized_body(request)
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
            event_times=wanted.event_times,
            fresh=wanted.fresh,
            progress=False,
        )
        headers = {"x-featurestore-versions": msgspec.json.encode(dict(result.manifest_versions)).decode()}
        return await run_in_threadpool(_table_answer, result.to_arrow(), request, headers)

    @router.post(
        "/sql",
        summary="Query the offline store",
        description='One SELECT over `history."<group>"` and `latest."<group>"`. Answers Arrow or Parquet by Accept, else JSON.',
    )
    async def sql(request: Request, query: Annotated[SqlRequest, Body()]) -> Response:
        table = await run_in_threadpool(store.sql, query.statement, fresh=query.fresh)
        return await run_in_threadpool(_table_answer, table, request, {})

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


def _frame(body: bytes, content_type: str) -> pa.Table:
    kind = content_type.partition(";")[0].strip()
    try:
        if kind == ARROW_STREAM:
            return pa.ipc.open_stream(body).read_all()
        if kind == PARQUET:
            return pq.read_table(io.BytesIO(body))
    except (pa.ArrowInvalid, OSError) as error:
        raise ValidationFailed.one("body", f"{kind} ({error})") from error
    raise ValidationFailed.one("Content-Type", f"{ARROW_STREAM} or {PARQUET}", content_type)


def _table_answer(table: pa.Table, request: Request, headers: Mapping[str, str]) -> Response:
    accepted = request.headers.get("accept", "")
    if JSON in accepted or (ARROW_STREAM not in accepted and PARQUET not in accepted and request.url.path.endswith("/sql")):
        rows = {"columns": table.column_names, "rows": [list(row.values()) for row in table.to_pylist()]}
        return Response(msgspec.json.encode(rows), media_type=JSON, headers=dict(headers))
    sink = io.BytesIO()
    if PARQUET in accepted:
        pq.write_table(table, sink, compression="zstd")
        return Response(sink.getvalue(), media_type=PARQUET, headers=dict(headers))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return Response(sink.getvalue(), media_type=ARROW_STREAM, headers=dict(headers))


def _checked(model: type[TrainingSetRequest], data: bytes | str | None) -> TrainingSetRequest:
    try:
        return model.model_validate_json(data or b"")
    except ValidationError as error:
        raise ValidationFailed(pydantic_faults(error)) from error


def pydantic_faults(error: Any) -> list[Fault]:
    """The faults of a pydantic (or FastAPI request) validation error, in our form."""
    return [
        Fault(".".join(str(part) for part in item["loc"]) or "body", item["msg"], item.get("input")) for item in error.errors()
    ]
