"""The REST door: OpenAI's endpoints, health and metrics on FastAPI.

A handler reads the body, asks the desk, and renders. Identity and request id are set around
every request by `Doorway`, which also counts it.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from plinth.gateway import metrics, sse
from plinth.gateway.bodies import read
from plinth.gateway.catalogue import ServedModel
from plinth.gateway.chooser import Chosen
from plinth.gateway.desk import Desk
from plinth.gateway.generation import Prepared, TextEvent, TextRequest
from plinth.gateway.live_preferences import CONSENT, Witness
from plinth.gateway.openai_api import ChatBody, CompletionBody
from plinth.gateway.preferences_api import PATHS, add_preferences
from plinth.gateway.responses import ChatRendering, Choose, CompletionRendering, Rendering
from plinth.gateway.revisions import MODEL_HEADER
from plinth.gateway.selection import Selection
from plinth.gateway.targets import targets
from plinth.shared import tracing
from plinth.shared.errors import Cancelled, PlinthError, to_openai_body
from plinth.shared.identity import Principal, call_scope, current_call, new_request_id
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

T = TypeVar("T")

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
TARGETS = "/v1/metrics/targets"
_KNOWN_PATHS = frozenset(
    {"/v1/models", "/v1/chat/completions", "/v1/completions", "/healthz", "/readyz", "/metrics"}
    | {TARGETS}
    | PATHS
)
_QUIET_PATHS = frozenset({"/healthz", "/readyz", "/metrics", TARGETS})  # asked every few seconds
_log = get_logger("plinth.gateway")


def build_app(desk: Desk) -> FastAPI:
    """The application over `desk`, which whoever runs it opens and closes."""
    app = FastAPI(title="Plinth", docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(Doorway)
    app.add_exception_handler(PlinthError, _on_error)
    app.add_exception_handler(HTTPException, _on_http)
    app.add_exception_handler(Exception, _on_bug)
    limit = desk.settings.gateway.max_body_bytes

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        principal = await _enter(desk, request)
        body = await read(request, ChatBody, limit)
        body.refuse_unsupported()
        sampling = body.sampling()
        if body.asked_tokens is not None:
            sampling.max_tokens = body.asked_tokens
        ask = TextRequest(
            body.model,
            [message.to_proto() for message in body.messages],
            sampling,
            tuple(body.stops),
            body.samples,
            "messages",
            body.samples_field,
            body.who,
        )
        witness = desk.preferences.witness(request.headers.get(CONSENT), ask)
        if body.selection is not None:
            witness = None  # the best of several is no sample of the model
        return await _answer(desk, request, principal, [ask], body, ChatRendering, witness)

    @app.post("/v1/completions", response_model=None)
    async def complete(request: Request) -> Response:
        principal = await _enter(desk, request)
        body = await read(request, CompletionBody, limit)
        body.refuse_unsupported()
        sampling = body.sampling()
        sampling.max_tokens = body.max_tokens or DEFAULT_COMPLETION_TOKENS
        deaths: set[str] = set()  # of shards, under any of the prompts
        asks = [
            TextRequest(
                body.model,
                prompt,
                sampling,
                tuple(body.stops),
                body.samples,
                samples_field=body.samples_field,
                user=body.who,
                deaths=deaths,
            )
            for prompt in body.prompts
        ]
        return await _answer(desk, request, principal, asks, body, CompletionRendering)

    @app.get("/v1/models", response_model=None)
    async def models(request: Request) -> dict[str, Any]:
        (await _enter(desk, request)).require("inference")
        data = [_model(model) for model in await desk.catalogue.models()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(request: Request, name: str) -> dict[str, Any]:
        (await _enter(desk, request)).require("inference")
        return _model(await desk.catalogue.get(name))

    add_preferences(app, desk, lambda request: _enter(desk, request))
    _add_conditions(app, desk)
    return app


def _add_conditions(app: FastAPI, desk: Desk) -> None:
    """How the platform is, for probes and Prometheus."""

    @app.get("/healthz", response_model=None)
    async def healthz() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/readyz", response_model=None)
    async def readyz() -> dict[str, str]:
        await desk.check_ready()
        return {"status": "ready"}

    @app.get("/metrics", response_model=None)
    async def metrics_page() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)

    @app.get(TARGETS, response_model=None)
    async def scraped(request: Request) -> list[dict[str, Any]]:
        principal = await _enter(desk, request)
        if "metrics" not in principal.scopes:  # which is all that a key for Prometheus should have
            principal.require("deployments")
        host, port = request.scope["server"]
        return await targets(desk.registry, f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


async def _enter(desk: Desk, request: Request) -> Principal:
    """Who asks; the call's context knows from here on."""
    principal = await desk.keyring.bearer(request.headers.get("authorization"))
    call = current_call()
    assert call is not None, "Doorway opens one"
    call.principal = principal
    return principal


async def _answer(
    desk: Desk,
    request: Request,
    principal: Principal,
    asks: list[TextRequest],
    body: ChatBody | CompletionBody,
    kind: type[Rendering],
    witness: Witness | None = None,
) -> Response:
    selection = body.selection
    letting_in = desk.session(principal, asks, witness, selection)
    session = await _while_connected(request, letting_in)
    rendering = kind(session, desk.texts, body.alternatives)
    if body.stream:
        include = body.stream_options is not None and body.stream_options.include_usage
        return sse.AnswerStream(session, sse.stream(session, rendering, include_usage=include))
    choose = None if selection is None else _choosing(desk, asks, selection)
    try:
        whole = await _while_connected(request, rendering.whole(session, choose))
        return JSONResponse(whole, headers={MODEL_HEADER: session.revision})
    finally:
        await session.close()


def _choosing(desk: Desk, asks: list[TextRequest], selection: Selection) -> Choose:
    async def choose(
        number: int, prepared: Prepared, answers: Sequence[Sequence[TextEvent]]
    ) -> list[Chosen]:
        return await desk.chooser.choose(prepared, asks[number].prompt, selection, answers)

    return choose


async def _while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`, which is cancelled at once when the client hangs up."""
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hung_up(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise Cancelled("the client hung up")
    finally:
        await cancel_and_wait(task, gone)


async def _hung_up(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": 0,  # OpenAI's field; a deployment has no such time
        "owned_by": "plinth",
        "artifact": model.artifact,
        "weights_digest": model.weights_digest,
        "context_length": model.context_length,
        "ready_shards": model.ready_shards,
    }


async def _on_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, PlinthError)
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, round(error.retry_after_s + 0.5)))
    if error.http == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return JSONResponse(to_openai_body(error), error.http, headers)


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router refuses: no such path, no such method."""
    assert isinstance(error, HTTPException)
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    code = {404: "unknown_url", 405: "method_not_allowed"}.get(error.status_code)
    body = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return JSONResponse({"error": body}, error.status_code, error.headers)


async def _on_bug(_request: Request, error: Exception) -> Response:
    return JSONResponse(to_openai_body(error), 500)


class Doorway:
    """Around every request: its id, its context, its place in the metrics and the log."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else new_request_id()
        status = 499  # unless an answer begins

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        path = scope["path"] if scope["path"] in _KNOWN_PATHS else "other"
        with call_scope(request_id=request_id) as call, _traced(scope, path, request_id):
            try:
                await self._app(scope, receive, answer)
            finally:
                tenant = call.principal.tenant if call.principal is not None else ""
                tracing.note("http.response.status_code", status)
                if status >= 500:
                    tracing.failed(str(status))
                metrics.REQUESTS.labels(
                    "rest", path, str(status), metrics.tenant_label(tenant)
                ).inc()
                _log.debug("request", path=path, status=status, tenant=tenant)


def _traced(scope: Scope, path: str, request_id: str) -> AbstractContextManager[None]:
    """A span around the request, below the client's own if it brings one."""
    if path in _QUIET_PATHS:
        return nullcontext()
    return tracing.span(
        f"{scope['method']} {path}",
        kind="server",
        parent=Headers(scope=scope).get(tracing.TRACEPARENT, ""),
        attributes={
            "http.request.method": scope["method"],
            "http.route": path,
            "plinth.stage": "gateway",
            "plinth.request_id": request_id,
        },
    )
