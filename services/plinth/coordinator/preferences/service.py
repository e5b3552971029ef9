"""PreferenceService: tasks in, judgements in, reports and pairs out; see preferences.proto."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.asyncio import Redis

from plinth.coordinator.preferences.access import admitted, check_task, check_whole
from plinth.coordinator.preferences.checks import (
    Creating,
    created_tasks,
    judgement_parent,
    lease_seconds,
)
from plinth.coordinator.preferences.judging import Judging
from plinth.coordinator.preferences.listing import judgement_page, task_page
from plinth.coordinator.preferences.membership import collections
from plinth.coordinator.preferences.messages import (
    collection_message,
    judgement_message,
    lease_message,
    task_message,
)
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.results import PreferenceResults
from plinth.coordinator.preferences.specs import annotator_of
from plinth.coordinator.preferences.work import PreferenceWork, work_queue
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.owners import owner_of
from plinth.shared.api.paging import Pages
from plinth.shared.api.times import timestamp
from plinth.shared.errors import FailedPrecondition, NotFound, ResourceExhausted
from plinth.shared.identity import current_principal
from plinth.shared.preference_names import JUDGEMENTS, collection_of, task_of
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.shared.store import ArtifactStore
from plinth.v1 import preferences_pb2 as pb

Uses = Callable[[str], Awaitable[Sequence[str]]]


class PreferenceServicer(PreferenceResults):
    """All its RPCs. Requests have passed `checks.VALIDATORS`."""

    def __init__(
        self,
        redis: Redis,
        store: ArtifactStore,
        registry: Registry,
        clients: StageClients,
        token: str,
        uses: Uses,
    ) -> None:
        """token: the cluster's, which page tokens are signed with. uses: what reads a collection
        and has not ended."""
        super().__init__(redis, store)
        self._work = PreferenceWork(work_queue(redis))
        self._judging = Judging(registry, clients, self._work)
        self._uses = uses
        self._pages = Pages(token)
        self._task_pages = Pages(token, most=200)

    async def _task(self, name: str) -> tuple[PreferenceRecords, rec.PreferenceTaskRecord]:
        collection, task_id = task_of(name)
        records = self._records(collection)
        return records, await records.get(task_id)

    async def _own_task(self, name: str) -> tuple[PreferenceRecords, rec.PreferenceTaskRecord]:
        """One that the caller may judge and change."""
        records, task = await self._task(name)
        principal = current_principal()
        check_task(task, await admitted(records, principal), principal)
        return records, task

    # -- collections -----------------------------------------------------------------------

    async def GetPreferenceCollection(
        self, request: pb.GetPreferenceCollectionRequest, context: Any
    ) -> pb.GetPreferenceCollectionResponse:
        records = self._records(collection_of(request.name, "name"))
        await records.check_known()
        return pb.GetPreferenceCollectionResponse(collection=await self._collection(records))

    async def _collection(self, records: PreferenceRecords) -> pb.PreferenceCollection:
        return collection_message(records.collection, await records.maker(), await records.counts())

    async def ListPreferenceCollections(
        self, request: pb.ListPreferenceCollectionsRequest, context: Any
    ) -> pb.ListPreferenceCollectionsResponse:
        size, behind = self._pages.size(request), self._pages.position(request)
        names = [name for name in await collections(self._redis) if name > behind]
        return pb.ListPreferenceCollectionsResponse(
            collections=[await self._collection(self._records(name)) for name in names[:size]],
            next_page_token=self._pages.token(request, names[size - 1])
            if len(names) > size
            else "",
        )

    async def DeletePreferenceCollection(
        self, request: pb.DeletePreferenceCollectionRequest, context: Any
    ) -> pb.DeletePreferenceCollectionResponse:
        records = self._records(collection_of(request.name, "name"))
        await records.check_known()
        await check_whole(records, current_principal())
        total = (await records.counts()).total
        if total and not request.force:
            raise FailedPrecondition(
                f"collection {records.collection!r} has {total:,} tasks: set force to delete them "
                "and their judgements with it",
                reason="COLLECTION_NOT_EMPTY",
                field="force",
            )
        if readers := await self._uses(records.collection):
            raise FailedPrecondition(
                f"collection {records.collection!r} is read by {', '.join(readers)}: delete it "
                "when that has ended, or cancel that",
                reason="COLLECTION_IN_USE",
            )
        return pb.DeletePreferenceCollectionResponse(task_count=await records.delete())

    # -- tasks -----------------------------------------------------------------------------

    async def CreatePreferenceTask(
        self, request: pb.CreatePreferenceTaskRequest, context: Any
    ) -> pb.CreatePreferenceTaskResponse:
        (task,) = await self._create(request)
        return pb.CreatePreferenceTaskResponse(task=task)

    async def BatchCreatePreferenceTasks(
        self, request: pb.BatchCreatePreferenceTasksRequest, context: Any
    ) -> pb.BatchCreatePreferenceTasksResponse:
        return pb.BatchCreatePreferenceTasksResponse(tasks=await self._create(request))

    async def _create(self, request: Creating) -> list[pb.PreferenceTask]:
        principal = current_principal()
        tasks = created_tasks(request, owner_of(principal))
        records = self._records(collection_of(request.parent))
        await admitted(records, principal, making=True)
        return [task_message(await self._add(records, task)) for task in tasks]

    async def _add(
        self, records: PreferenceRecords, task: rec.PreferenceTaskRecord
    ) -> rec.PreferenceTaskRecord:
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
        _, task = await self._task(request.name)
        return pb.GetPreferenceTaskResponse(task=task_message(task))

    async def ListPreferenceTasks(
        self, request: pb.ListPreferenceTasksRequest, context: Any
    ) -> pb.ListPreferenceTasksResponse:
        records = self._records(collection_of(request.parent))
        return await task_page(records, request, self._task_pages)

    async def ClosePreferenceTask(
        self, request: pb.ClosePreferenceTaskRequest, context: Any
    ) -> pb.ClosePreferenceTaskResponse:
        records, task = await self._own_task(request.name)
        await records.close(task.task_id)
        closed = await records.get(task.task_id)
        return pb.ClosePreferenceTaskResponse(task=task_message(closed))

    async def DeletePreferenceTask(
        self, request: pb.DeletePreferenceTaskRequest, context: Any
    ) -> pb.DeletePreferenceTaskResponse:
        records, task = await self._own_task(request.name)
        await records.remove(task.task_id)
        return pb.DeletePreferenceTaskResponse()

    # -- leases and judgements -------------------------------------------------------------

    async def LeasePreferenceTask(
        self, request: pb.LeasePreferenceTaskRequest, context: Any
    ) -> pb.LeasePreferenceTaskResponse:
        principal = current_principal()
        records = self._records(collection_of(request.parent))
        tenant = await admitted(records, principal)
        task_id = ""
        if request.task:
            task_id = task_of(request.task, "task")[1]
            check_task(await records.get(task_id), tenant, principal)
        annotator = _annotator(request.annotator)
        grant = await records.lease(
            annotator,
            lease_s=lease_seconds(request),
            task_id=task_id,
            nonce=request.request_id,
            tenant=tenant,
        )
        if grant is None:
            raise NotFound(
                f"collection {records.collection} has no task now that {annotator} has not judged",
                reason="NO_TASK",
                retry_after_s=5.0,
            )
        return pb.LeasePreferenceTaskResponse(lease=lease_message(grant))

    async def RenewPreferenceLease(
        self, request: pb.RenewPreferenceLeaseRequest, context: Any
    ) -> pb.RenewPreferenceLeaseResponse:
        records, task = await self._own_task(request.name)
        until = await records.renew(
            task.task_id,
            _annotator(request.annotator),
            request.fence,
            lease_s=lease_seconds(request),
        )
        return pb.RenewPreferenceLeaseResponse(expire_time=timestamp(until))

    async def ReleasePreferenceLease(
        self, request: pb.ReleasePreferenceLeaseRequest, context: Any
    ) -> pb.ReleasePreferenceLeaseResponse:
        records, task = await self._own_task(request.name)
        annotator = _annotator(request.annotator)
        await records.release(task.task_id, annotator, request.fence, skip=request.skip)
        return pb.ReleasePreferenceLeaseResponse()

    async def CreateJudgement(
        self, request: pb.CreateJudgementRequest, context: Any
    ) -> pb.CreateJudgementResponse:
        records, task = await self._own_task(request.parent)
        kept, number = await self._judging.record(
            records, task, request.judgement.spec, request.fence, current_principal()
        )
        return pb.CreateJudgementResponse(
            judgement=judgement_message(records.collection, kept, number)
        )

    async def GetJudgement(
        self, request: pb.GetJudgementRequest, context: Any
    ) -> pb.GetJudgementResponse:
        collection, task_id, number = JUDGEMENTS.ids(request.name)
        found = await self._records(collection).judgement(task_id, int(number))
        return pb.GetJudgementResponse(judgement=judgement_message(collection, found, int(number)))

    async def ListJudgements(
        self, request: pb.ListJudgementsRequest, context: Any
    ) -> pb.ListJudgementsResponse:
        collection, task_id = judgement_parent(request)
        return await judgement_page(self._records(collection), task_id, request, self._pages)

    async def RequestModelJudgements(
        self, request: pb.RequestModelJudgementsRequest, context: Any
    ) -> pb.RequestModelJudgementsResponse:
        principal = current_principal()
        records = self._records(collection_of(request.parent))
        tenant = await admitted(records, principal)
        return await self._judging.request(records, request, tenant, principal)


def _annotator(given: str) -> str:
    return annotator_of(given, current_principal().key_id)
