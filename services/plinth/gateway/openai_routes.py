"""OpenAI's endpoints: a handler reads the body, asks the gateway's core, and renders."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse

from plinth.gateway import sse
from plinth.gateway.authentication import authenticate
from plinth.gateway.bodies import read
from plinth.gateway.catalogue import ServedModel
from plinth.gateway.chooser import Chosen
from plinth.gateway.core import GatewayCore
from plinth.gateway.generation import Prepared, TextEvent, TextRequest
from plinth.gateway.live_preferences import CONSENT, AnswerRecorder
from plinth.gateway.openai_requests import ChatBody, CompletionBody
from plinth.gateway.rendering import ChatRenderer, Choose, CompletionRenderer, Renderer
from plinth.gateway.revisions import MODEL_HEADER
from plinth.gateway.selection import Selection
from plinth.shared.errors import Cancelled
from plinth.shared.identity import Principal
from plinth.shared.tasks import cancel_and_wait

T = TypeVar("T")

DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's


def add_openai_routes(app: FastAPI, core: GatewayCore) -> None:
    """Adds chat completions, completions and models."""
    limit = core.settings.gateway.max_body_bytes

    @app.post("/v1/chat/completions", response_model=None)
    async def chat(request: Request) -> Response:
        principal = await authenticate(core, request)
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
        recorder = core.preferences.recorder(request.headers.get(CONSENT), ask)
        if body.selection is not None:
            recorder = None  # the best of several is no sample of the model
        return await _answer(core, request, principal, [ask], body, ChatRenderer, recorder)

    @app.post("/v1/completions", response_model=None)
    async def complete(request: Request) -> Response:
        principal = await authenticate(core, request)
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
                special_tokens=body.special_tokens is not False,
                deaths=deaths,
            )
            for prompt in body.prompts
        ]
        return await _answer(core, request, principal, asks, body, CompletionRenderer)

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
    letting_in = core.session(principal, asks, recorder, selection)
    session = await _while_connected(request, letting_in)
    renderer = kind(session, core.texts, body.alternatives)
    if body.stream:
        include = body.stream_options is not None and body.stream_options.include_usage
        return sse.AnswerStream(session, sse.stream(session, renderer, include_usage=include))
    choose = None if selection is None else _choosing(core, asks, selection)
    try:
        whole = await _while_connected(request, renderer.whole(session, choose))
        return JSONResponse(whole, headers={MODEL_HEADER: session.revision})
    finally:
        await session.close()


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
