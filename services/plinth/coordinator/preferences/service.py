"""PreferenceService: tasks in, judgements in, reports and pairs out; see preferences.proto."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

from redis.asyncio import Redis

from plinth.coordinator.preferences.checks import export_position, lease_seconds
from plinth.coordinator.preferences.dataset import DEFAULT_FRACTION, publish_pairs
from plinth.coordinator.preferences.importing import import_lines
from plinth.coordinator.preferences.model_judge import check_method, judge_name
from plinth.coordinator.preferences.pairs import check_shape, judged_pairs, read_lines
from plinth.coordinator.preferences.ranking import check_judgement, tiers
from plinth.coordinator.preferences.records import Grant, PreferenceRecords
from plinth.coordinator.preferences.report import make_report, snapshot
from plinth.coordinator.preferences.sampling import find_served
from plinth.coordinator.preferences.specs import annotator_of, collection_of, make_task
from plinth.coordinator.preferences.work import PreferenceWork, work_queue
from plinth.shared.artifact_messages import artifact_message
from plinth.shared.errors import InvalidArgument, NotFound, ResourceExhausted
from plinth.shared.identity import current_principal
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.store import ArtifactStore
from plinth.v1 import preferences_pb2 as pb
from plinth.v1 import preferences_pb2_grpc as rpc

_CHUNK_BYTES = 1 << 20


class PreferenceServicer(rpc.PreferenceServiceServicer):
    """The RPCs. Requests have passed `checks.VALIDATORS`."""

    def __init__(
        self, redis: Redis, store: ArtifactStore, registry: Registry, clients: StageClients
    ) -> None:
        self._redis = redis
        self._store = store
        self._registry = registry
        self._clients = clients
        self._work = PreferenceWork(work_queue(redis))

    def _records(self, collection: str) -> PreferenceRecords:
        return PreferenceRecords(self._redis, collection_of(collection))

    # -- tasks -----------------------------------------------------------------------------

    async def CreateTasks(
        self, request: pb.CreateTasksRequest, context: Any
    ) -> pb.CreateTasksResponse:
        records = self._records(request.collection)
        tasks = [
            make_task(spec, records.collection, request.origin or "client", f"tasks.{index}")
            for index, spec in enumerate(request.tasks)
        ]
        return pb.CreateTasksResponse(tasks=[await self._create(records, task) for task in tasks])

    async def _create(
        self, records: PreferenceRecords, task: pb.PreferenceTask
    ) -> pb.PreferenceTask:
        """The work first: a task whose responses nobody samples would wait for ever."""
        if not task.samples:
            return await records.create(task)
        item = await self._work.sample(records.collection, task.task_id)
        try:
            return await records.create(task)
        except ResourceExhausted:
            await self._work.cancel(item)
            raise

    async def GetPreferenceTask(
        self, request: pb.GetPreferenceTaskRequest, context: Any
    ) -> pb.GetPreferenceTaskResponse:
        task = await self._records(request.collection).get(request.task_id)
        return pb.GetPreferenceTaskResponse(task=task)

    async def ListPreferenceTasks(
        self, request: pb.ListPreferenceTasksRequest, context: Any
    ) -> pb.ListPreferenceTasksResponse:
        records = self._records(request.collection)
        tasks = await records.newest(request.limit or 50)
        for task in tasks:  # GetPreferenceTask gives each
            task.ClearField("prompt")
            for response in task.responses:
                response.ClearField("text")
        counts = await records.counts()
        return pb.ListPreferenceTasksResponse(
            tasks=tasks,
            total=counts.total,
            open=counts.open,
            leased=counts.leased,
            judgements=counts.judgements,
        )

    async def CloseTask(self, request: pb.CloseTaskRequest, context: Any) -> pb.CloseTaskResponse:
        await self._records(request.collection).close(request.task_id)
        return pb.CloseTaskResponse()

    # -- leases and judgements -------------------------------------------------------------

    async def LeaseTask(self, request: pb.LeaseTaskRequest, context: Any) -> pb.LeaseTaskResponse:
        records = self._records(request.collection)
        annotator = _annotator(request.annotator)
        grant = await records.lease(
            annotator,
            lease_s=lease_seconds(request.lease_seconds),
            task_id=request.task_id,
            nonce=request.request_id,
        )
        if grant is None:
            raise NotFound(
                f"collection {records.collection} has no task now that {annotator} has not judged",
                reason="NO_TASK",
                retry_after_s=5.0,
            )
        return _granted(grant)

    async def RenewLease(
        self, request: pb.RenewLeaseRequest, context: Any
    ) -> pb.RenewLeaseResponse:
        until = await self._records(request.collection).renew(
            request.task_id,
            _annotator(request.annotator),
            request.fence,
            lease_s=lease_seconds(request.lease_seconds),
        )
        return pb.RenewLeaseResponse(expires_unix_ms=until)

    async def ReleaseLease(
        self, request: pb.ReleaseLeaseRequest, context: Any
    ) -> pb.ReleaseLeaseResponse:
        await self._records(request.collection).release(
            request.task_id, _annotator(request.annotator), request.fence, skip=request.skip
        )
        return pb.ReleaseLeaseResponse()

    async def SubmitJudgement(
        self, request: pb.SubmitJudgementRequest, context: Any
    ) -> pb.SubmitJudgementResponse:
        records = self._records(request.collection)
        task = await records.get(request.task_id)
        _check(request, task)
        judgement = _judgement(request, _annotator(request.annotator), pb.JUDGEMENT_SOURCE_HUMAN)
        judgement.shown.extend(await records.shown(request.task_id, request.fence))
        kept, number = await records.submit(judgement, request.fence)
        return pb.SubmitJudgementResponse(judgement=kept, revision=number)

    async def AddJudgement(
        self, request: pb.AddJudgementRequest, context: Any
    ) -> pb.AddJudgementResponse:
        records = self._records(request.collection)
        task = await records.get(request.task_id)
        _check(request, task)
        judgement = _judgement(request, request.annotator, request.source)
        if request.shown:
            ids = [response.response_id for response in task.responses]
            if sorted(request.shown) != sorted(ids):
                raise InvalidArgument(
                    f"shown: each response once, in the order in which it was shown: "
                    f"{', '.join(ids)}",
                    field="shown",
                )
            judgement.shown.extend(request.shown)
        kept, number = await records.add(judgement)
        return pb.AddJudgementResponse(judgement=kept, revision=number)

    async def RequestModelJudgements(
        self, request: pb.RequestModelJudgementsRequest, context: Any
    ) -> pb.RequestModelJudgementsResponse:
        records = self._records(request.collection)
        method, criteria = check_method(request.method, request.criteria)
        served = await find_served(self._clients, self._registry, request.model)
        name = judge_name(served.artifact, method, criteria)
        judge = pb.Judgement(annotator=name, source=pb.JUDGEMENT_SOURCE_MODEL)
        if request.task_ids:
            tasks = [await records.get(one) for one in dict.fromkeys(request.task_ids)]
        else:
            tasks = await records.newest(request.limit or 100)
        queued = 0
        for task in tasks:
            ready = len(task.responses) >= 2 and task.state != pb.PREFERENCE_TASK_STATE_FAILED
            if not ready or await records.judged_by(task.task_id, judge):
                continue
            await self._work.judge(
                records.collection,
                task.task_id,
                model=request.model,
                annotator=name,
                method=method,
                criteria=criteria,
            )
            queued += 1
        return pb.RequestModelJudgementsResponse(queued=queued, annotator=name)

    # -- what they say ---------------------------------------------------------------------

    async def GetPreferenceReport(
        self, request: pb.GetPreferenceReportRequest, context: Any
    ) -> pb.GetPreferenceReportResponse:
        records = self._records(request.collection)
        seen = await snapshot(records)
        total = (await records.counts()).total
        return await asyncio.to_thread(make_report, seen, total)

    async def ExportPairs(
        self, request: pb.ExportPairsRequest, context: Any
    ) -> AsyncIterator[pb.ExportPairsResponse]:
        shape = check_shape(request.shape)
        up_to, done = export_position(request)
        seen = await snapshot(self._records(request.collection), up_to)
        # The same judgements give the same pairs in the same order.
        pairs = await asyncio.to_thread(lambda: list(judged_pairs(seen, request.selection)))
        chunk = bytearray()
        for number, pair in enumerate(pairs[done:], done + 1):
            chunk += pair.line(shape).encode() + b"\n"
            if len(chunk) >= _CHUNK_BYTES or number == len(pairs):
                token = f"{seen.revision}-{number}"
                yield pb.ExportPairsResponse(jsonl=bytes(chunk), resume_token=token)
                chunk.clear()

    async def ImportPairs(
        self, request: pb.ImportPairsRequest, context: Any
    ) -> pb.ImportPairsResponse:
        records = self._records(request.collection)
        lines = read_lines(request, records.collection)
        key_id = current_principal().key_id
        return await import_lines(records, lines, key_id=key_id, check_only=request.check_only)

    async def PublishPairs(
        self, request: pb.PublishPairsRequest, context: Any
    ) -> pb.PublishPairsResponse:
        seen = await snapshot(self._records(request.collection), request.selection.up_to or None)
        fraction = (
            request.validation_fraction
            if request.HasField("validation_fraction")
            else DEFAULT_FRACTION
        )
        record, _ = await asyncio.to_thread(
            publish_pairs,
            self._store,
            request.name,
            seen,
            request.selection,
            at_least=request.at_least,
            validation_fraction=fraction,
        )
        pairs = int(record.manifest["metrics"]["pairs"])
        return pb.PublishPairsResponse(
            artifact=artifact_message(record), pairs=pairs, revision=seen.revision
        )

    async def DeleteCollection(
        self, request: pb.DeleteCollectionRequest, context: Any
    ) -> pb.DeleteCollectionResponse:
        gone = await self._records(request.collection).delete()
        return pb.DeleteCollectionResponse(tasks=gone)


def _annotator(given: str) -> str:
    return annotator_of(given, current_principal().key_id)


def _check(
    request: pb.SubmitJudgementRequest | pb.AddJudgementRequest, task: pb.PreferenceTask
) -> None:
    ids = [response.response_id for response in task.responses]
    check_judgement(request.ranking, request.all_bad, request.reason, ids)


def _judgement(
    request: pb.SubmitJudgementRequest | pb.AddJudgementRequest,
    annotator: str,
    source: pb.JudgementSource.ValueType,
) -> pb.Judgement:
    return pb.Judgement(
        task_id=request.task_id,
        ranking=tiers([list(tier.response_ids) for tier in request.ranking]),
        all_bad=request.all_bad,
        reason=request.reason,
        annotator=annotator,
        source=source,
        judged_unix_ms=time.time_ns() // 1_000_000,
        key_id=current_principal().key_id,
    )


def _granted(grant: Grant) -> pb.LeaseTaskResponse:
    """Ids and texts only: who wrote a response is not the annotator's to know."""
    texts = {response.response_id: response.text for response in grant.task.responses}
    return pb.LeaseTaskResponse(
        task_id=grant.task.task_id,
        prompt=grant.task.prompt,
        responses=[pb.PreferenceResponse(response_id=one, text=texts[one]) for one in grant.shown],
        annotator=grant.annotator,
        fence=grant.fence,
        expires_unix_ms=grant.expires_unix_ms,
    )
