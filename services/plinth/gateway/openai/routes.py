"""OpenAI's endpoints: a handler reads the body, asks the gateway's core, and renders."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response

from plinth.gateway import metrics
from plinth.gateway.core import GatewayCore
from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.catalogue import ServedModel
from plinth.gateway.generation.chooser import Chosen
from plinth.gateway.generation.generator import Prepared, TextRequest
from plinth.gateway.generation.revisions import MODEL_HEADER
from plinth.gateway.generation.selection import Selection
from plinth.gateway.openai import sse
from plinth.gateway.openai.answer_body import WholeAnswer
from plinth.gateway.openai.known_fields import KNOWN_WITHOUT_EFFECT
from plinth.gateway.openai.rendering import ChatRenderer, Choose, CompletionRenderer, Renderer
from plinth.gateway.openai.requests import ChatBody, CompletionBody
from plinth.gateway.preferences.live import CONSENT, AnswerRecorder
from plinth.gateway.rest.authentication import authenticate
from plinth.gateway.rest.bodies import read
from plinth.shared.errors import Cancelled
from plinth.shared.identity import Principal
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

T = TypeVar("T")
B = TypeVar("B", ChatBody, CompletionBody)

_log = get_logger("plinth.gateway")
IGNORED_HEADER = "x-plinth-ignored"  # names of the fields that had no effect


def add_openai_routes(app: FastAPI, core: GatewayCore) -> None:
    """Adds chat completions, completions and models."""
    gateway = core.settings.gateway

    async def enter(request: Request, kind: type[B]) -> tuple[Principal, B]:
        """Who asks, and for what. The body is read for those alone who may have an answer now."""
        principal = await authenticate(core, request)
        await core.check_may_generate(principal)
        of = partial(kind.of, unknown=gateway.unknown_fields)
        return principal, await read(request, of, gateway.max_body_bytes)

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        principal, body = await enter(request, ChatBody)
        (ask,) = body.asks()
        recorder = core.preferences.recorder(request.headers.get(CONSENT), ask)
        if body.selection is not None:
            recorder = None  # the best of several is no sample of the model
        return await _answer(core, request, principal, [ask], body, ChatRenderer, recorder)

    @app.post("/v1/completions", response_model=None)
    async def complete(request: Request) -> Response:
        principal, body = await enter(request, CompletionBody)
        return await _answer(core, request, principal, body.asks(), body, CompletionRenderer)

    @app.get("/v1/models", response_model=None)
    async def models(request: Request) -> dict[str, Any]:
        (await authenticate(core, request)).require("inference")
        data = [_model(model) for model in await core.catalogue.models()]
        return {"object": "list", "data": data}

    @app.get("/v1/models/{name:path}", response_model=None)
    async def model(request: Request, name: str) -> dict[str, Any]:
        (await authenticate(core, request)).require("inference")
        return _model(await core.catalogue.get(name))


async def _answer(
    core: GatewayCore,
    request: Request,
    principal: Principal,
    asks: list[TextRequest],
    body: ChatBody | CompletionBody,
    kind: type[Renderer],
    recorder: AnswerRecorder | None = None,
) -> Response:
    selection = body.selection
    async with AsyncExitStack() as owned:
        opening = owned.enter_async_context(core.session(principal, asks, recorder, selection))
        session = await _while_connected(request, opening)
        renderer = kind(session, core.texts, body.alternatives)
        if body.stream:
            events = sse.stream(session, renderer, body.usage)
            return _told(sse.AnswerStream(session.revision, events, owned.pop_all()), body)
        choose = None if selection is None else _choosing(core, asks, selection)
        whole = await _while_connected(request, renderer.whole(session, choose))
        return _told(WholeAnswer(whole, {MODEL_HEADER: session.revision}), body)


def _told(response: Response, body: ChatBody | CompletionBody) -> Response:
    """`response`, which says what of the body had no effect."""
    names = body.ignored.names
    if names:
        response.headers[IGNORED_HEADER] = body.ignored.header
        for label in {name if name in KNOWN_WITHOUT_EFFECT else "unknown" for name in names}:
            metrics.IGNORED_FIELDS.labels(label).inc()
        _log.debug("a request's fields had no effect", fields=names)
    return response


def _choosing(core: GatewayCore, asks: list[TextRequest], selection: Selection) -> Choose:
    async def choose(
        number: int, prepared: Prepared, answers: Sequence[Sequence[TextEvent]]
    ) -> list[Chosen]:
        return await core.chooser.choose(prepared, asks[number].prompt, selection, answers)

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
