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

Each is a call or two of PreferenceService, whose errors come through with the names of fields that
these bodies have.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Protocol

import grpc
from fastapi import APIRouter, Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from plinth.gateway.preferences import bodies, queries, views
from plinth.gateway.preferences.views import in_rest_words
from plinth.gateway.quotas.tenants import Quotas
from plinth.gateway.rest.bodies import query, read, read_bytes, validated
from plinth.shared.api.times import unix_ms
from plinth.shared.errors import FailedPrecondition, NotFound, PlinthError, Unavailable
from plinth.shared.identity import Principal
from plinth.shared.preference_names import COLLECTIONS, REPORTS, check_id
from plinth.shared.rpc.client import StageClients
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
        made = await _told(service.BatchCreatePreferenceTasks(body.to_proto()))
        return JSONResponse({"tasks": [views.task_view(task) for task in made.tasks]})

    @app.get(f"{BASE}/tasks", response_model=None)
    async def newest(request: Request) -> Response:
        service = await stub(request)
        asked = query(request, queries.ListQuery)
        name = bodies.collection_name(asked.collection)
        ask = pb.ListPreferenceTasksRequest(parent=name, page_size=asked.limit)
        listed = await _told(service.ListPreferenceTasks(ask))
        status = pb.PreferenceCollectionStatus()
        with suppress(NotFound):  # one that never had a task is empty
            get = pb.GetPreferenceCollectionRequest(name=name)
            status = (await service.GetPreferenceCollection(get)).collection.status
        tasks = [views.task_view(task) for task in listed.tasks]
        return JSONResponse({"tasks": tasks, **views.counts_view(status)})

    @app.get(f"{BASE}/tasks/{{task_id:path}}", response_model=None)
    async def one(request: Request, task_id: str) -> Response:
        service = await stub(request)
        name = bodies.task_name(query(request, queries.CollectionQuery).collection, task_id)
        found = await _told(service.GetPreferenceTask(pb.GetPreferenceTaskRequest(name=name)))
        return JSONResponse({"task": views.task_view(found.task)})

    @app.delete(f"{BASE}/tasks/{{task_id:path}}", response_model=None)
    async def close(request: Request, task_id: str) -> Response:
        service = await stub(request)
        name = bodies.task_name(query(request, queries.CollectionQuery).collection, task_id)
        try:
            await _told(service.DeletePreferenceTask(pb.DeletePreferenceTaskRequest(name=name)))
        except FailedPrecondition:  # somebody judged or holds it
            await _told(service.ClosePreferenceTask(pb.ClosePreferenceTaskRequest(name=name)))
        return JSONResponse({})


def _add_judging(app: APIRouter, stub: Stub, limit: int) -> None:
    @app.post(f"{BASE}/leases", response_model=None)
    async def lease(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.LeaseBody), limit)
        held = await _told(service.LeasePreferenceTask(body.to_proto()))
        return JSONResponse(views.lease_view(held.lease))

    @app.post(f"{BASE}/leases/renew", response_model=None)
    async def renew(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.RenewBody), limit)
        held = await _told(service.RenewPreferenceLease(body.to_proto()))
        return JSONResponse({"expires_unix_ms": unix_ms(held.expire_time)})

    @app.post(f"{BASE}/leases/release", response_model=None)
    async def release(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.ReleaseBody), limit)
        await _told(service.ReleasePreferenceLease(body.to_proto()))
        return JSONResponse({})

    @app.post(f"{BASE}/judgements", response_model=None)
    async def judge(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.JudgementBody), limit)
        made = await _told(service.CreateJudgement(body.to_proto()))
        return JSONResponse(views.judgement_view(made.judgement))

    @app.post(f"{BASE}/model-judgements", response_model=None)
    async def ask_model(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.ModelJudgementsBody), limit)
        asked = await _told(service.RequestModelJudgements(body.to_proto()))
        return JSONResponse({"queued": asked.queued_count, "annotator": asked.annotator})


def _add_results(app: APIRouter, stub: Stub, limit: int, clients: StageClients) -> None:
    @app.get(f"{BASE}/report", response_model=None)
    async def report(request: Request) -> Response:
        service = await stub(request)
        collection = bodies.collection_id(query(request, queries.CollectionQuery).collection)
        ask = pb.GetPreferenceReportRequest(name=REPORTS.name(collection))
        return JSONResponse(
            views.report_view((await _told(service.GetPreferenceReport(ask))).report)
        )

    @app.get(f"{BASE}/export", response_model=None)
    async def export(request: Request) -> Response:
        ask = query(request, queries.ExportQuery).to_proto()
        # Goes on at another coordinator, as by gRPC, when the first one is gone.
        chunks = watch(clients, _STAGE, _export_pairs, ask)
        # What is wrong with the request still has a status.
        first = await _told(anext(chunks, None))
        return StreamingResponse(_lines(chunks, first), media_type="application/x-ndjson")

    @app.post(f"{BASE}/import", response_model=None)
    async def import_(request: Request) -> Response:
        service = await stub(request)
        asked = query(request, queries.ImportQuery)
        ask = asked.to_proto(await read_bytes(request, limit))
        return JSONResponse(views.import_view(await _told(service.ImportPairs(ask))))

    @app.post(f"{BASE}/datasets", response_model=None)
    async def publish(request: Request) -> Response:
        service = await stub(request)
        body = await read(request, partial(validated, bodies.DatasetBody), limit)
        made = await _told(service.PublishPairs(body.to_proto()))
        told = {"pairs": made.pair_count, "revision": made.revision}
        return JSONResponse({"artifact": views.artifact_view(made.artifact), **told})

    @app.delete(f"{BASE}/collections/{{name:path}}", response_model=None)
    async def delete(request: Request, name: str) -> Response:
        service = await stub(request)
        collection = COLLECTIONS.name(check_id(name, "collection"))
        ask = pb.DeletePreferenceCollectionRequest(name=collection, force=True)
        try:
            gone = await service.DeletePreferenceCollection(ask)
        except NotFound as error:
            raise NotFound(error.message, reason=error.reason, field="collection") from error
        return JSONResponse({"tasks": gone.task_count})


async def _told(call: Awaitable[Any]) -> Any:
    """The answer; an error by the names of REST's fields."""
    try:
        return await call
    except PlinthError as error:
        raise in_rest_words(error) from error


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
        except PlinthError as error:
            _log.warning("an export ended in an error", error=error.message)
            raise Unavailable(error.message) from error
