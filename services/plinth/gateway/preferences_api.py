"""/v1/preferences: collecting preferences over REST, for keys with the scope `preferences`.

    POST   /v1/preferences/tasks             add tasks
    GET    /v1/preferences/tasks             the newest, without texts
    GET    /v1/preferences/tasks/{id}        one
    DELETE /v1/preferences/tasks/{id}        no more leases
    POST   /v1/preferences/leases            the next task, for one annotator alone
    POST   /v1/preferences/leases/renew      … and /release
    POST   /v1/preferences/judgements        a ranking with ties, or all bad
    POST   /v1/preferences/model-judgements  a served model is asked to judge
    GET    /v1/preferences/report            agreement, gold, position bias, strengths
    GET    /v1/preferences/export            JSON lines, in TRL's or HH's shape
    POST   /v1/preferences/import            JSON lines in
    POST   /v1/preferences/datasets          a corpus artifact of the pairs
    DELETE /v1/preferences/collections/{name}    all of it is forgotten

Each is one call of PreferenceService, whose errors come through with the same words.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from functools import partial
from typing import Any, Protocol

import grpc
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from google.protobuf.message import Message as Proto

from plinth.gateway import preference_bodies as bodies
from plinth.gateway.bodies import query, read, read_bytes, validated
from plinth.gateway.quotas import Quotas
from plinth.shared.errors import Unavailable
from plinth.shared.identity import Principal
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.status import from_rpc_error
from plinth.shared.rpc.watching import watch
from plinth.shared.settings import Settings
from plinth.shared.telemetry import get_logger
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

SCOPE = "preferences"
BASE = "/v1/preferences"
PATHS = frozenset(
    f"{BASE}/{name}"
    for name in (
        "tasks",
        "leases",
        "leases/renew",
        "leases/release",
        "judgements",
        "model-judgements",
        "report",
        "export",
        "import",
        "datasets",
    )
)
_STAGE = "coordinator"
_log = get_logger("plinth.gateway")
Enter = Callable[[Request], Awaitable[Principal]]


class PreferenceBackend(Protocol):
    """What of the core is needed here."""

    settings: Settings
    clients: StageClients
    quotas: Quotas


def add_preferences(app: FastAPI, core: PreferenceBackend, enter: Enter) -> None:
    """Adds the routes. `enter` gives the principal of a request."""
    limit = core.settings.gateway.max_body_bytes

    async def admitted(request: Request) -> AsyncIterator[None]:
        """One of its tenant's requests at a time until the answer is sent, as by gRPC."""
        principal = await enter(request)
        principal.require(SCOPE)
        async with core.quotas.admitted(principal.tenant):
            yield

    async def stub(_request: Request) -> Any:
        channel = core.clients.channel(await core.clients.pick(_STAGE))
        return rpc.PreferenceServiceStub(channel)

    router = APIRouter(dependencies=[Depends(admitted)])
    _add_tasks(router, stub, limit)
    _add_judging(router, stub, limit)
    _add_results(router, stub, limit, core.clients)
    app.include_router(router)


Stub = Callable[[Request], Awaitable[Any]]


def _add_tasks(app: APIRouter, stub: Stub, limit: int) -> None:
    @app.post(f"{BASE}/tasks", response_model=None)
    async def create(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.CreateBody), limit)
        return await _answer(service.CreateTasks(body.to_proto()))

    @app.get(f"{BASE}/tasks", response_model=None)
    async def newest(request: Request) -> Response:
        service = await stub(request)
        asked = query(request, bodies.ListQuery)
        ask = pb.ListPreferenceTasksRequest(collection=asked.collection, limit=asked.limit)
        return await _answer(service.ListPreferenceTasks(ask))

    @app.get(f"{BASE}/tasks/{{task_id:path}}", response_model=None)
    async def one(request: Request, task_id: str) -> Response:
        service = await stub(request)
        collection = query(request, bodies.CollectionQuery).collection
        ask = pb.GetPreferenceTaskRequest(collection=collection, task_id=task_id)
        return await _answer(service.GetPreferenceTask(ask))

    @app.delete(f"{BASE}/tasks/{{task_id:path}}", response_model=None)
    async def close(request: Request, task_id: str) -> Response:
        service = await stub(request)
        collection = query(request, bodies.CollectionQuery).collection
        ask = pb.CloseTaskRequest(collection=collection, task_id=task_id)
        return await _answer(service.CloseTask(ask))


def _add_judging(app: APIRouter, stub: Stub, limit: int) -> None:
    @app.post(f"{BASE}/leases", response_model=None)
    async def lease(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.LeaseBody), limit)
        return await _answer(service.LeaseTask(body.to_proto()))

    @app.post(f"{BASE}/leases/renew", response_model=None)
    async def renew(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.RenewBody), limit)
        return await _answer(service.RenewLease(body.to_proto()))

    @app.post(f"{BASE}/leases/release", response_model=None)
    async def release(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.ReleaseBody), limit)
        return await _answer(service.ReleaseLease(body.to_proto()))

    @app.post(f"{BASE}/judgements", response_model=None)
    async def judge(request: Request) -> Response:
        service = await stub(request)
        message = (await read(request, partial(validated, bodies.JudgementBody), limit)).to_proto()
        if isinstance(message, pb.SubmitJudgementRequest):
            return await _answer(service.SubmitJudgement(message))
        return await _answer(service.AddJudgement(message))

    @app.post(f"{BASE}/model-judgements", response_model=None)
    async def ask_model(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.ModelJudgementsBody), limit)
        return await _answer(service.RequestModelJudgements(body.to_proto()))


def _add_results(app: APIRouter, stub: Stub, limit: int, clients: StageClients) -> None:
    @app.get(f"{BASE}/report", response_model=None)
    async def report(request: Request) -> Response:
        service = await stub(request)
        collection = query(request, bodies.CollectionQuery).collection
        return await _answer(
            service.GetPreferenceReport(pb.GetPreferenceReportRequest(collection=collection))
        )

    @app.get(f"{BASE}/export", response_model=None)
    async def export(request: Request) -> Response:
        asked = query(request, bodies.ExportQuery)
        ask = pb.ExportPairsRequest(
            collection=asked.collection, selection=asked.selection(), shape=asked.shape
        )
        # Goes on at another coordinator, as by gRPC, when the first one is gone.
        chunks = watch(clients, _STAGE, _export_pairs, ask)
        try:
            first = await anext(chunks, None)  # what is wrong with the request still has a status
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from error
        return StreamingResponse(_lines(chunks, first), media_type="application/x-ndjson")

    @app.post(f"{BASE}/import", response_model=None)
    async def import_(request: Request) -> Response:
        service = await stub(request)
        asked = query(request, bodies.ImportQuery)
        ask = pb.ImportPairsRequest(
            collection=asked.collection,
            jsonl=await read_bytes(request, limit),
            annotator=asked.annotator,
            first_line=asked.first_line,
            check_only=asked.check_only,
        )
        if asked.source is not None:
            ask.source = bodies.SOURCES[asked.source]
        return await _answer(service.ImportPairs(ask))

    @app.post(f"{BASE}/datasets", response_model=None)
    async def publish(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.DatasetBody), limit)
        return await _answer(service.PublishPairs(body.to_proto()))

    @app.delete(f"{BASE}/collections/{{name:path}}", response_model=None)
    async def delete(request: Request, name: str) -> Response:
        service = await stub(request)
        ask = pb.DeleteCollectionRequest(collection=name)
        return await _answer(service.DeleteCollection(ask))


async def _answer(call: Awaitable[Proto]) -> Response:
    try:
        return JSONResponse(bodies.as_json(await call))
    except grpc.aio.AioRpcError as error:
        raise from_rpc_error(error) from error


def _export_pairs(channel: grpc.aio.Channel) -> Any:
    return rpc.PreferenceServiceStub(channel).ExportPairs


async def _lines(
    chunks: AsyncGenerator[pb.ExportPairsResponse, None], first: pb.ExportPairsResponse | None
) -> AsyncIterator[bytes]:
    """The export's chunks. One that breaks in the middle breaks the connection, so that half of
    the lines are not taken for all."""
    async with aclosing(chunks):
        try:
            if first is not None:
                yield first.jsonl
            async for chunk in chunks:
                yield chunk.jsonl
        except (grpc.aio.AioRpcError, Unavailable) as error:
            cause = from_rpc_error(error) if isinstance(error, grpc.aio.AioRpcError) else error
            _log.warning("an export ended in an error", error=cause.message)
            raise Unavailable(cause.message) from error
