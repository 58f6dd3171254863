"""The service as one ASGI application: who answers which request."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import asynccontextmanager
from typing import Any, Final, Protocol

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_swagger import patch_fastapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api import athena, control_plane, native, openapi, sts
from api.control_plane import ControlPlane
from api.door import SAGEMAKER, Admitted, Api, ClientGone, Door, api_of, target_of
from api.runtime import Runtime
from api.s3 import S3
from api.s3_xml import error_answer
from api.sts import Sts
from api.wire import (
    Answer,
    Receive,
    Scope,
    Send,
    UnknownOperation,
    json_11_error,
    query_error,
    read_body,
    request_id,
    require_declared_size,
    rest_error,
    send_answer,
)
from featurestore.errors import FeatureStoreError, StoreUnavailable, ValidationFailed
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)


class JsonService(Protocol):
    """A service of the JSON 1.1 protocol."""

    @property
    def operations(self) -> tuple[str, ...]:
        """Names of the operations."""

    def call(self, target: str, body: bytes) -> Answer:
        """Carry out one request; blocks. Raises our own failures only."""


class Service:
    """One listener for every API: lets a request in, then hands it to whoever answers it.

    Attributes:
        door, runtime: for connections that answer record requests themselves.

    Args:
        store: open for as long as the service runs; closed by whoever opened it.
        ready: says why the service should get no traffic now, or None when it may.
        hosts: as for `Door`: the names of a service on loopback, or None elsewhere.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        ready: Callable[[], str | None] = lambda: None,
        hosts: frozenset[bytes] | None = None,
    ) -> None:
        self.runtime = Runtime(store.records)
        self._s3 = S3(store.buckets, region=store.registry.identity().region)
        self._sts = Sts(store.registry.identity())
        # Services of the JSON 1.1 protocol by the prefix of their targets: what requests are signed for, and who answers.
        self._json_11: dict[str, tuple[str, JsonService]] = {
            control_plane.TARGET_PREFIX: (SAGEMAKER, ControlPlane(store)),
            athena.TARGET_PREFIX: (athena.SIGNING_NAME, athena.Athena(store)),
        }
        self._web = _web(store, ready)
        services = {prefix: service for prefix, (service, _) in self._json_11.items()}
        self.door = Door(store.keys.read, hosts=hosts, services=services, body_bytes_max=store.settings.body_bytes_max)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._web(scope, receive, send)
            return
        if any(name == b"expect" for name, _ in scope["headers"]):
            receive, send = _closing_unread(receive, send)
        api = api_of(scope)
        try:
            admitted = await self.door.admit(api, scope, receive)
        except ClientGone:
            return
        except Exception as error:
            await self._refuse(api, scope, send, error, request_id())
            return
        match api:
            case Api.RUNTIME:
                await self.runtime(scope, admitted.receive, send)
            case Api.JSON_11 | Api.STS:
                await self._answer(api, scope, admitted, send)
            case Api.S3:
                assert admitted.payload is not None, "the door says it of every request to S3"
                await self._s3(scope, admitted.receive, send, admitted.payload)
            case _:
                await self._web(scope, admitted.receive, send)

    async def _answer(self, api: Api, scope: Scope, admitted: Admitted, send: Send) -> None:
        """Operations that take their whole body and answer at once."""
        identifier = request_id()
        try:
            body = admitted.body
            if body is None:
                bytes_max = self.door.body_bytes_max(api, scope["path"])
                require_declared_size(scope["headers"], bytes_max)
                body = await read_body(admitted.receive, bytes_max)
            if body is None:
                return
            if api is Api.STS:
                answer = self._sts.call(admitted.caller, body or scope["query_string"], identifier)
            else:
                target = target_of(scope)
                _, service = self._json_11.get(target.prefix, self._json_11[control_plane.TARGET_PREFIX])
                answer = await run_in_threadpool(service.call, target.prefix + target.operation, body)
        except Exception as error:
            await self._refuse(api, scope, send, error, identifier)
            return
        await send_answer(send, answer, identifier, head=scope["method"] == "HEAD")

    async def _refuse(self, api: Api, scope: Scope, send: Send, error: Exception, identifier: bytes) -> None:
        """Send an error in the form of the API. What we did not foresee is the contract's 500, and the log has the rest."""
        if not isinstance(error, FeatureStoreError) or error.code == "InternalFailure":
            _log.error("request %s (%s %s) failed", identifier.decode(), scope["method"], scope["path"], exc_info=error)
            error = FeatureStoreError()
        match api:
            case Api.JSON_11:
                answer = json_11_error(error)
            case Api.STS:
                answer = query_error(error, identifier, sts.NAMESPACE)
            case Api.S3:
                answer = error_answer(error, scope["path"], identifier)
            case _:
                answer = rest_error(error)
        await send_answer(send, answer, identifier, head=scope["method"] == "HEAD")


def _closing_unread(receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Close the connection behind an answer that comes before the body was asked for.

    A client with `Expect: 100-continue` does not send its body then; what it sends next would be taken for it.
    """
    asked = False

    async def receiving() -> MutableMapping[str, Any]:
        nonlocal asked
        asked = True
        return await receive()

    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start" and not asked:
            message["headers"] = [*message["headers"], (b"connection", b"close")]
        await send(message)

    return receiving, sending


def _web(store: FeatureStore, ready: Callable[[], str | None]) -> FastAPI:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gc.freeze()  # what exists by now lives as long as the process: the collector need not look at it again
        async with store.online.serving():
            yield
        gc.unfreeze()  # else the interpreter could not clear it up at its end, and DuckDB would report leaks

    app = FastAPI(
        title="Feature store",
        description="Speaks the Amazon SageMaker Feature Store API; `/v1` holds what that API has no operation for.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
    )
    # Swagger UI from a package, where FastAPI's own page would load it from a public network.
    patch_fastapi(
        app,
        docs_url="/docs",
        redirect_from_root_to_docs=False,
        swagger_js_url="/docs/swagger-ui.js",
        swagger_css_url="/docs/swagger-ui.css",
        swagger_favicon_url="/docs/favicon.png",
        swagger_ui_parameters={"tryItOutEnabled": False, "defaultModelsExpandDepth": -1},
    )

    @app.head("/health", include_in_schema=False)
    @app.get("/health", tags=["operations"], summary="The process is alive")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.head("/ready", include_in_schema=False)
    @app.get("/ready", tags=["operations"], summary="The stores answer")
    async def readiness() -> Response:
        reason = ready()
        if reason is None:
            try:
                waiting = await asyncio.wait_for(run_in_threadpool(store.outbox_waiting), timeout=5)
                return JSONResponse({"status": "ready", "changes_waiting": waiting})
            except (StoreUnavailable, TimeoutError) as error:
                reason = str(error) or "the stores did not answer within 5 s"
        return JSONResponse({"status": "not ready", "reason": reason}, status_code=503)

    @app.exception_handler(FeatureStoreError)
    async def refused(request: Request, error: FeatureStoreError) -> Response:
        if error.code == "InternalFailure":
            return await unforeseen(request, error)
        return _response(rest_error(error), request_id())

    @app.exception_handler(RequestValidationError)
    async def malformed(request: Request, error: RequestValidationError) -> Response:
        return _response(rest_error(ValidationFailed(native.pydantic_faults(error))), request_id())

    @app.exception_handler(HTTPException)
    async def not_found(request: Request, error: HTTPException) -> Response:
        unknown = UnknownOperation(f"no operation has method {request.method} and path {request.url.path}")
        return _response(rest_error(unknown), request_id())

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody is there to read it

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        identifier = request_id()
        _log.error("request %s (%s %s) failed", identifier.decode(), request.method, request.url.path, exc_info=error)
        return _response(rest_error(FeatureStoreError()), identifier)

    app.include_router(native.routes(store, body_bytes_max=store.settings.body_bytes_max))
    openapi.add_record_routes(app)
    return app


def _response(answer: Answer, identifier: bytes) -> Response:
    headers = {name.decode(): value.decode() for name, value in answer.headers}
    headers["x-amzn-requestid"] = identifier.decode()
    return Response(answer.body, answer.status, headers, media_type=answer.content_type.decode())
