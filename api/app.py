"""The service as one ASGI application: who answers which request."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Final

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_swagger import patch_fastapi
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api import athena, native, openapi
from api.control_plane import ControlPlane
from api.runtime import Runtime
from api.s3 import S3
from api.s3_body import UnsignedPayload
from api.wire import (
    AccessForbidden,
    Answer,
    Receive,
    Scope,
    Send,
    UnknownOperation,
    json_11_error,
    request_id,
    rest_error,
    send_answer,
)
from featurestore.errors import FeatureStoreError, StoreUnavailable, ValidationFailed
from featurestore.store import FeatureStore

_log: Final = logging.getLogger(__name__)

CONTROL_BODY_BYTES_MAX: Final = 8 << 20


class Service:
    """Sends record requests straight to the runtime API and everything else to FastAPI.

    Args:
        store: open for as long as the service runs; closed by whoever opened it.
        ready: says why the service should get no traffic now, or None when it may.
        hosts: names that requests may call the service by, lower case and without port; None allows any. A service that
            trusts whoever reaches it over the loopback must not answer a web page whose own host name was pointed there.
    """

    def __init__(
        self,
        store: FeatureStore,
        *,
        ready: Callable[[], str | None] = lambda: None,
        hosts: frozenset[bytes] | None = None,
    ) -> None:
        self._runtime = Runtime(store.records)
        self._s3 = S3(store.buckets, region=store.registry.identity().region)
        self._web = _web(store, ready)
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._web(scope, receive, send)
        elif self._hosts is not None and (host := _foreign_host(scope, self._hosts)) is not None:
            names = b", ".join(sorted(self._hosts)).decode()
            refusal = AccessForbidden(f"Host: expected one of {names}, got {host!r}")
            await send_answer(send, rest_error(refusal), request_id(), head=scope["method"] == "HEAD")
        elif Runtime.owns(scope["path"]):
            await self._runtime(scope, receive, send)
        elif S3.owns(scope):
            await self._s3(scope, receive, send, _unsigned(scope))
        else:
            await self._web(scope, receive, send)


def _unsigned(scope: Scope) -> UnsignedPayload:
    said = next((value for name, value in scope["headers"] if name == b"x-amz-content-sha256"), b"")
    return UnsignedPayload(said.decode("latin-1"))


def _foreign_host(scope: Scope, hosts: frozenset[bytes]) -> str | None:
    """The Host header if it names none of `hosts`; browsers always send one."""
    for name, value in scope["headers"]:
        if name == b"host":
            host: bytes = value if value.endswith(b"]") else value.rpartition(b":")[0] or value
            return None if host.lower() in hosts else value.decode("latin-1")
    return None


def _web(store: FeatureStore, ready: Callable[[], str | None]) -> FastAPI:
    control = ControlPlane(store)
    queries = athena.Athena(store)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        gc.freeze()  # what exists by now lives as long as the process: the collector need not look at it again
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

    @app.post("/", include_in_schema=False)
    async def control_plane(request: Request) -> Response:
        target = request.headers.get("x-amz-target", "")
        identifier = request_id()
        try:
            body = await native.sized_body(request, CONTROL_BODY_BYTES_MAX)
            api = queries if target.startswith(athena.TARGET_PREFIX) else control
            answer = await run_in_threadpool(api.call, target, body)
        except ValidationFailed as error:
            answer = json_11_error(error)
        except ClientDisconnect:
            raise
        except Exception:  # the client must get the contract's 500 for whatever we did not foresee; the log has the rest
            _log.exception("request %s (%s) failed", identifier.decode(), target)
            answer = json_11_error(FeatureStoreError())
        return _response(answer, identifier)

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
