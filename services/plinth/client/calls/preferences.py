"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING

from google.protobuf import duration_pb2

from plinth.client.methods import Method, request
from plinth.client.pages import AsyncPager, Pager
from plinth.v1 import preferences_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_GET_PREFERENCE_COLLECTION = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "GetPreferenceCollection"
)
_LIST_PREFERENCE_COLLECTIONS = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "ListPreferenceCollections"
)
_DELETE_PREFERENCE_COLLECTION = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "DeletePreferenceCollection"
)
_CREATE_PREFERENCE_TASK = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "CreatePreferenceTask"
)
_BATCH_CREATE_PREFERENCE_TASKS = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "BatchCreatePreferenceTasks"
)
_GET_PREFERENCE_TASK = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "GetPreferenceTask"
)
_LIST_PREFERENCE_TASKS = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "ListPreferenceTasks"
)
_CLOSE_PREFERENCE_TASK = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "ClosePreferenceTask"
)
_DELETE_PREFERENCE_TASK = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "DeletePreferenceTask"
)
_LEASE_PREFERENCE_TASK = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "LeasePreferenceTask"
)
_RENEW_PREFERENCE_LEASE = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "RenewPreferenceLease"
)
_RELEASE_PREFERENCE_LEASE = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "ReleasePreferenceLease"
)
_CREATE_JUDGEMENT = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "CreateJudgement")
_GET_JUDGEMENT = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "GetJudgement")
_LIST_JUDGEMENTS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "ListJudgements")
_REQUEST_MODEL_JUDGEMENTS = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "RequestModelJudgements"
)
_GET_PREFERENCE_REPORT = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "GetPreferenceReport"
)
_EXPORT_PAIRS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "ExportPairs")
_IMPORT_PAIRS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "ImportPairs")
_PUBLISH_PAIRS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "PublishPairs")


class PreferenceService:
    """Collects judgements on responses of models, and makes datasets of them.

    A collection is made by its first task and belongs to the tenant whose key added that;
    "live", which holds recorded answers of served models, belongs to the platform. Keys of
    other tenants may read; calls that add, judge, change or delete fail for them with
    PERMISSION_DENIED (OTHER_TENANT). In "live" each tenant adds, judges and deletes tasks of
    its own.
    """

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def get_preference_collection(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceCollection:
        """Gets a collection and the counts of its tasks. NOT_FOUND (COLLECTION_NOT_FOUND) where it
        never had a task.

        name: "collections/{collection}".
        """
        response: preferences_pb2.GetPreferenceCollectionResponse = self._calls.unary(
            _GET_PREFERENCE_COLLECTION,
            request(preferences_pb2.GetPreferenceCollectionRequest, name=name),
            timeout,
            metadata,
        )
        return response.collection

    def list_preference_collections(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[
        preferences_pb2.PreferenceCollection, preferences_pb2.ListPreferenceCollectionsResponse
    ]:
        """Lists collections by name.

        page_size: At most this many; 0 means 50, more than 1000 means 1000.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_PREFERENCE_COLLECTIONS, asked, timeout, metadata),
            request(preferences_pb2.ListPreferenceCollectionsRequest, page_size=page_size),
            "collections",
        )

    def delete_preference_collection(
        self,
        name: str = "",
        *,
        force: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.DeletePreferenceCollectionResponse:
        """Deletes a collection. FAILED_PRECONDITION while it has tasks (COLLECTION_NOT_EMPTY),
        unless `force` is set, and while a run that has not ended reads it (COLLECTION_IN_USE).
        Artifacts that were published of it stay. "live" is deleted by keys with the scope
        "admin" only.

        name: "collections/{collection}".
        force: Also delete its tasks and judgements.
        """
        response: preferences_pb2.DeletePreferenceCollectionResponse = self._calls.unary(
            _DELETE_PREFERENCE_COLLECTION,
            request(preferences_pb2.DeletePreferenceCollectionRequest, name=name, force=force),
            timeout,
            metadata,
        )
        return response

    def create_preference_task(
        self,
        parent: str = "",
        *,
        task_id: str = "",
        task: preferences_pb2.PreferenceTask | None = None,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        """Adds a task. Idempotent by its id, or by request_id: the same task sent again is
        returned as it is now, another one with that id is ALREADY_EXISTS (TASK_EXISTS).
        RESOURCE_EXHAUSTED (COLLECTION_FULL, TOO_MANY_COLLECTIONS) where there is no room.

        parent: "collections/{collection}". May be empty in a batch, which has its own.
        task_id: The task's id; made by the platform where it is empty.
        task: Its spec; what else is set of it is ignored.
        request_id: The client's own, 1 to 128 of A-Z a-z 0-9 . _ : -. Without a task_id, the
          same call sent again adds nothing. Not read in a batch, which has its own.
        """
        response: preferences_pb2.CreatePreferenceTaskResponse = self._calls.unary(
            _CREATE_PREFERENCE_TASK,
            request(
                preferences_pb2.CreatePreferenceTaskRequest,
                parent=parent,
                task_id=task_id,
                task=task,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response.task

    def batch_create_preference_tasks(
        self,
        parent: str = "",
        *,
        requests: Iterable[preferences_pb2.CreatePreferenceTaskRequest] | None = None,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.BatchCreatePreferenceTasksResponse:
        """Adds tasks. All are checked before the first is added; what can fail after that
        (ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE) leaves the tasks before it added, and
        the call may be sent again as it was.

        parent: "collections/{collection}".
        requests: 1 to 100, each with the same parent or none.
        request_id: As in CreatePreferenceTaskRequest, for the tasks without a task_id.
        """
        response: preferences_pb2.BatchCreatePreferenceTasksResponse = self._calls.unary(
            _BATCH_CREATE_PREFERENCE_TASKS,
            request(
                preferences_pb2.BatchCreatePreferenceTasksRequest,
                parent=parent,
                requests=requests,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response

    def get_preference_task(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        """Gets a task with all its texts. NOT_FOUND (TASK_NOT_FOUND).

        name: "collections/{collection}/tasks/{task}".
        """
        response: preferences_pb2.GetPreferenceTaskResponse = self._calls.unary(
            _GET_PREFERENCE_TASK,
            request(preferences_pb2.GetPreferenceTaskRequest, name=name),
            timeout,
            metadata,
        )
        return response.task

    def list_preference_tasks(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        filter: str = "",
        view: preferences_pb2.PreferenceTaskView.ValueType | None | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[preferences_pb2.PreferenceTask, preferences_pb2.ListPreferenceTasksResponse]:
        """Lists a collection's tasks, newest first.

        parent: "collections/{collection}". One that never had a task has an empty list.
        page_size: At most this many; 0 means 50, more than 200 means 200.
        filter: Comparisons joined by AND, of `state` (SAMPLING, OPEN, LEASED, DONE, FAILED),
          `origin` (CLIENT, LIVE, IMPORT), `task_id`, `human_judgement_count`, `gold` (true or
          false) and `create_time`: `state = FAILED AND create_time >= "2026-11-01T00:00:00Z"`.
        view: How much of each task is returned.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_PREFERENCE_TASKS, asked, timeout, metadata),
            request(
                preferences_pb2.ListPreferenceTasksRequest,
                parent=parent,
                page_size=page_size,
                filter=filter,
                view=view,
            ),
            "tasks",
        )

    def close_preference_task(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        """Ends the leasing of a task: it becomes DONE, and its judgements stay. An annotator who
        holds it may still judge it.

        name: "collections/{collection}/tasks/{task}".
        """
        response: preferences_pb2.ClosePreferenceTaskResponse = self._calls.unary(
            _CLOSE_PREFERENCE_TASK,
            request(preferences_pb2.ClosePreferenceTaskRequest, name=name),
            timeout,
            metadata,
        )
        return response.task

    def delete_preference_task(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Deletes a task. FAILED_PRECONDITION where it has judgements (TASK_JUDGED), which are
        part of the collection's revisions, or while an annotator holds it (TASK_HELD).

        name: "collections/{collection}/tasks/{task}".
        """
        self._calls.unary(
            _DELETE_PREFERENCE_TASK,
            request(preferences_pb2.DeletePreferenceTaskRequest, name=name),
            timeout,
            metadata,
        )

    def lease_preference_task(
        self,
        parent: str = "",
        *,
        annotator: str = "",
        task: str = "",
        lease_duration: timedelta | duration_pb2.Duration | None = None,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceLease:
        """Leases the oldest task that this annotator has neither judged nor skipped, to this
        annotator alone until the lease expires. NOT_FOUND (NO_TASK) when there is none now: ask
        again later. RESOURCE_EXHAUSTED (TOO_MANY_HELD) for an annotator who holds 16 tasks.
        Idempotent by request_id.

        parent: "collections/{collection}".
        annotator: Pseudonym of a person; default: the key's id. 1 to 64 of A-Z a-z 0-9 . _ @ /
          -.
        task: Name of a certain task instead of the next one. FAILED_PRECONDITION (TASK_DONE,
          TASK_NOT_READY, TASK_FAILED), ABORTED (TASK_HELD) or ALREADY_EXISTS (TASK_JUDGED)
          where it can't be leased.
        lease_duration: 10 s to 24 h; default 15 min.
        request_id: Made by the client for each lease that it wants: the same call sent again,
          while the lease lasts, gives the same lease. 1 to 128 of A-Z a-z 0-9 . _ : -.
        """
        response: preferences_pb2.LeasePreferenceTaskResponse = self._calls.unary(
            _LEASE_PREFERENCE_TASK,
            request(
                preferences_pb2.LeasePreferenceTaskRequest,
                parent=parent,
                annotator=annotator,
                task=task,
                lease_duration=lease_duration,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response.lease

    def renew_preference_lease(
        self,
        name: str = "",
        *,
        annotator: str = "",
        fence: int = 0,
        lease_duration: timedelta | duration_pb2.Duration | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RenewPreferenceLeaseResponse:
        """Extends a lease: it runs `lease_duration` from now. ABORTED (LEASE_EXPIRED, FENCE_STALE)
        where it has ended.

        name: Name of the task.
        annotator: Who holds it; default: the key's id.
        fence: Of the lease.
        lease_duration: From now: 10 s to 24 h; default 15 min.
        """
        response: preferences_pb2.RenewPreferenceLeaseResponse = self._calls.unary(
            _RENEW_PREFERENCE_LEASE,
            request(
                preferences_pb2.RenewPreferenceLeaseRequest,
                name=name,
                annotator=annotator,
                fence=fence,
                lease_duration=lease_duration,
            ),
            timeout,
            metadata,
        )
        return response

    def release_preference_lease(
        self,
        name: str = "",
        *,
        annotator: str = "",
        fence: int = 0,
        skip: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Gives a leased task back without a judgement. ABORTED (LEASE_EXPIRED, FENCE_STALE) where
        the lease has ended.

        name: Name of the task.
        annotator: Who holds it; default: the key's id.
        fence: Of the lease.
        skip: Never lease the task to this annotator again.
        """
        self._calls.unary(
            _RELEASE_PREFERENCE_LEASE,
            request(
                preferences_pb2.ReleasePreferenceLeaseRequest,
                name=name,
                annotator=annotator,
                fence=fence,
                skip=skip,
            ),
            timeout,
            metadata,
        )

    def create_judgement(
        self,
        parent: str = "",
        *,
        judgement: preferences_pb2.Judgement | None = None,
        fence: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.Judgement:
        """Records a judgement, which never changes afterwards. A person's needs a lease of the
        task, which it ends. A rule's or a model's needs none, and does not count towards
        `wanted_judgement_count`; a task takes at most 16 of them (RESOURCE_EXHAUSTED,
        TOO_MANY_JUDGES). RESOURCE_EXHAUSTED (COLLECTION_FULL) where there is no room.
        Idempotent by task, source and annotator: the same judgement sent again is returned as
        it was recorded, another one is ALREADY_EXISTS (TASK_JUDGED).

        parent: Name of the task.
        judgement: Its spec; what else is set of it is ignored.
        fence: Of the lease, for a person's judgement.
        """
        response: preferences_pb2.CreateJudgementResponse = self._calls.unary(
            _CREATE_JUDGEMENT,
            request(
                preferences_pb2.CreateJudgementRequest,
                parent=parent,
                judgement=judgement,
                fence=fence,
            ),
            timeout,
            metadata,
        )
        return response.judgement

    def get_judgement(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.Judgement:
        """Gets a judgement. NOT_FOUND (JUDGEMENT_NOT_FOUND).

        name: "collections/{collection}/tasks/{task}/judgements/{number}".
        """
        response: preferences_pb2.GetJudgementResponse = self._calls.unary(
            _GET_JUDGEMENT,
            request(preferences_pb2.GetJudgementRequest, name=name),
            timeout,
            metadata,
        )
        return response.judgement

    def list_judgements(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Pager[preferences_pb2.Judgement, preferences_pb2.ListJudgementsResponse]:
        """Lists judgements of a task, or of all tasks of a collection, in the order in which they
        were recorded.

        parent: Name of a task; "collections/{collection}/tasks/-" for all tasks of a
          collection.
        page_size: At most this many; 0 means 50, more than 1000 means 1000.
        filter: Comparisons joined by AND, of `source` (HUMAN, RULE, MODEL), `annotator`,
          `all_bad` (true or false), `revision` and `create_time`: `source = HUMAN AND annotator
          = "ada"`.
        """
        return Pager(
            lambda asked: self._calls.unary(_LIST_JUDGEMENTS, asked, timeout, metadata),
            request(
                preferences_pb2.ListJudgementsRequest,
                parent=parent,
                page_size=page_size,
                filter=filter,
            ),
            "judgements",
        )

    def request_model_judgements(
        self,
        parent: str = "",
        *,
        model: str = "",
        method: preferences_pb2.JudgingMethod.ValueType | None | None = None,
        criteria: str = "",
        tasks: Iterable[str] | None = None,
        max_task_count: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RequestModelJudgementsResponse:
        """Has a served model judge tasks that it has not judged yet. Returns when the work is
        queued; the judgements appear in ListJudgements as they are made. UNAVAILABLE
        (NO_REPLICA) where the model is not served.

        parent: "collections/{collection}".
        model: A served model's name ("chat").
        method: How it judges.
        criteria: By what, in words; at most 2000 characters. Default: helpful, correct, clear.
        tasks: Names of the tasks to judge, at most 1000; empty: the newest ones.
        max_task_count: Of the newest tasks look at so many, at most 1000; 0 means 100.
        """
        response: preferences_pb2.RequestModelJudgementsResponse = self._calls.unary(
            _REQUEST_MODEL_JUDGEMENTS,
            request(
                preferences_pb2.RequestModelJudgementsRequest,
                parent=parent,
                model=model,
                method=method,
                criteria=criteria,
                tasks=tasks,
                max_task_count=max_task_count,
            ),
            timeout,
            metadata,
        )
        return response

    def get_preference_report(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceReport:
        """Gets what a collection's judgements say now: agreement of the judges, gold questions,
        position bias, strengths of the models. An empty collection has an empty report.

        name: "collections/{collection}/report".
        """
        response: preferences_pb2.GetPreferenceReportResponse = self._calls.unary(
            _GET_PREFERENCE_REPORT,
            request(preferences_pb2.GetPreferenceReportRequest, name=name),
            timeout,
            metadata,
        )
        return response.report

    def export_pairs(
        self,
        parent: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        shape: preferences_pb2.PairShape.ValueType | None | None = None,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[preferences_pb2.ExportPairsResponse, None, None]:
        """Streams the judged pairs of a collection as JSON lines. Each message carries a
        `resume_token`: where the stream breaks, the request with the last token gives the rest
        of the same lines, whatever was judged meanwhile.

        parent: "collections/{collection}".
        selection: Which judgements count.
        shape: Form of the lines.
        resume_token: Of the last response of an export that broke; everything else in the
          request as it was.
        """
        return self._calls.stream(
            _EXPORT_PAIRS,
            request(
                preferences_pb2.ExportPairsRequest,
                parent=parent,
                selection=selection,
                shape=shape,
                resume_token=resume_token,
            ),
            timeout,
            metadata,
        )

    def import_pairs(
        self,
        parent: str = "",
        *,
        jsonl: bytes = b"",
        source: preferences_pb2.JudgementSource.ValueType | None | None = None,
        annotator: str = "",
        first_line: int = 0,
        validate_only: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.ImportPairsResponse:
        """Adds pairs that were judged elsewhere, as judged tasks. Idempotent by line: a line that
        is there already is counted as known. Where a call fails half-way, the error names the
        line at which to go on.

        parent: "collections/{collection}".
        jsonl: 1 to 1000 lines of JSON in one of the shapes of PairShape, at most 4 MiB; send
          more in further calls.
        source: Who judged, for all lines. Unspecified: as the `source` of each line says.
        annotator: Who judged, for all lines; default: as each line says, else "import".
        first_line: The number of the first line in what the client reads, for messages; default
          1.
        validate_only: Change nothing: only say what would become of the lines, or which of them
          is wrong.
        """
        response: preferences_pb2.ImportPairsResponse = self._calls.unary(
            _IMPORT_PAIRS,
            request(
                preferences_pb2.ImportPairsRequest,
                parent=parent,
                jsonl=jsonl,
                source=source,
                annotator=annotator,
                first_line=first_line,
                validate_only=validate_only,
            ),
            timeout,
            metadata,
        )
        return response

    def publish_pairs(
        self,
        parent: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        artifact_id: str = "",
        min_pair_count: int = 0,
        validation_fraction: float | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PublishPairsResponse:
        """Publishes the judged pairs of a collection as an artifact of kind "corpus", split by
        prompt into training and validation. Idempotent by content: the same pairs selected in
        the same way are the same version. FAILED_PRECONDITION (TOO_FEW_PAIRS) where there are
        fewer than `min_pair_count`; PERMISSION_DENIED (OTHER_TENANT) where the artifact's
        latest version is another tenant's.

        parent: "collections/{collection}".
        selection: Which judgements count.
        artifact_id: Name of the artifact ("people"): 1 to 64 of a-z 0-9 . _ -, beginning with a
          letter or a digit.
        min_pair_count: Fail where there are fewer pairs than this; 0 means 1.
        validation_fraction: Share of the prompts that go to validation, 0 to below 0.5; default
          0.1.
        """
        response: preferences_pb2.PublishPairsResponse = self._calls.unary(
            _PUBLISH_PAIRS,
            request(
                preferences_pb2.PublishPairsRequest,
                parent=parent,
                selection=selection,
                artifact_id=artifact_id,
                min_pair_count=min_pair_count,
                validation_fraction=validation_fraction,
            ),
            timeout,
            metadata,
        )
        return response


class AsyncPreferenceService:
    """Collects judgements on responses of models, and makes datasets of them.

    A collection is made by its first task and belongs to the tenant whose key added that;
    "live", which holds recorded answers of served models, belongs to the platform. Keys of
    other tenants may read; calls that add, judge, change or delete fail for them with
    PERMISSION_DENIED (OTHER_TENANT). In "live" each tenant adds, judges and deletes tasks of
    its own.
    """

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def get_preference_collection(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceCollection:
        """Gets a collection and the counts of its tasks. NOT_FOUND (COLLECTION_NOT_FOUND) where it
        never had a task.

        name: "collections/{collection}".
        """
        response: preferences_pb2.GetPreferenceCollectionResponse = await self._calls.unary(
            _GET_PREFERENCE_COLLECTION,
            request(preferences_pb2.GetPreferenceCollectionRequest, name=name),
            timeout,
            metadata,
        )
        return response.collection

    def list_preference_collections(
        self,
        page_size: int = 0,
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[
        preferences_pb2.PreferenceCollection, preferences_pb2.ListPreferenceCollectionsResponse
    ]:
        """Lists collections by name.

        page_size: At most this many; 0 means 50, more than 1000 means 1000.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_PREFERENCE_COLLECTIONS, asked, timeout, metadata),
            request(preferences_pb2.ListPreferenceCollectionsRequest, page_size=page_size),
            "collections",
        )

    async def delete_preference_collection(
        self,
        name: str = "",
        *,
        force: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.DeletePreferenceCollectionResponse:
        """Deletes a collection. FAILED_PRECONDITION while it has tasks (COLLECTION_NOT_EMPTY),
        unless `force` is set, and while a run that has not ended reads it (COLLECTION_IN_USE).
        Artifacts that were published of it stay. "live" is deleted by keys with the scope
        "admin" only.

        name: "collections/{collection}".
        force: Also delete its tasks and judgements.
        """
        response: preferences_pb2.DeletePreferenceCollectionResponse = await self._calls.unary(
            _DELETE_PREFERENCE_COLLECTION,
            request(preferences_pb2.DeletePreferenceCollectionRequest, name=name, force=force),
            timeout,
            metadata,
        )
        return response

    async def create_preference_task(
        self,
        parent: str = "",
        *,
        task_id: str = "",
        task: preferences_pb2.PreferenceTask | None = None,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        """Adds a task. Idempotent by its id, or by request_id: the same task sent again is
        returned as it is now, another one with that id is ALREADY_EXISTS (TASK_EXISTS).
        RESOURCE_EXHAUSTED (COLLECTION_FULL, TOO_MANY_COLLECTIONS) where there is no room.

        parent: "collections/{collection}". May be empty in a batch, which has its own.
        task_id: The task's id; made by the platform where it is empty.
        task: Its spec; what else is set of it is ignored.
        request_id: The client's own, 1 to 128 of A-Z a-z 0-9 . _ : -. Without a task_id, the
          same call sent again adds nothing. Not read in a batch, which has its own.
        """
        response: preferences_pb2.CreatePreferenceTaskResponse = await self._calls.unary(
            _CREATE_PREFERENCE_TASK,
            request(
                preferences_pb2.CreatePreferenceTaskRequest,
                parent=parent,
                task_id=task_id,
                task=task,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response.task

    async def batch_create_preference_tasks(
        self,
        parent: str = "",
        *,
        requests: Iterable[preferences_pb2.CreatePreferenceTaskRequest] | None = None,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.BatchCreatePreferenceTasksResponse:
        """Adds tasks. All are checked before the first is added; what can fail after that
        (ALREADY_EXISTS, RESOURCE_EXHAUSTED, UNAVAILABLE) leaves the tasks before it added, and
        the call may be sent again as it was.

        parent: "collections/{collection}".
        requests: 1 to 100, each with the same parent or none.
        request_id: As in CreatePreferenceTaskRequest, for the tasks without a task_id.
        """
        response: preferences_pb2.BatchCreatePreferenceTasksResponse = await self._calls.unary(
            _BATCH_CREATE_PREFERENCE_TASKS,
            request(
                preferences_pb2.BatchCreatePreferenceTasksRequest,
                parent=parent,
                requests=requests,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response

    async def get_preference_task(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        """Gets a task with all its texts. NOT_FOUND (TASK_NOT_FOUND).

        name: "collections/{collection}/tasks/{task}".
        """
        response: preferences_pb2.GetPreferenceTaskResponse = await self._calls.unary(
            _GET_PREFERENCE_TASK,
            request(preferences_pb2.GetPreferenceTaskRequest, name=name),
            timeout,
            metadata,
        )
        return response.task

    def list_preference_tasks(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        filter: str = "",
        view: preferences_pb2.PreferenceTaskView.ValueType | None | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[preferences_pb2.PreferenceTask, preferences_pb2.ListPreferenceTasksResponse]:
        """Lists a collection's tasks, newest first.

        parent: "collections/{collection}". One that never had a task has an empty list.
        page_size: At most this many; 0 means 50, more than 200 means 200.
        filter: Comparisons joined by AND, of `state` (SAMPLING, OPEN, LEASED, DONE, FAILED),
          `origin` (CLIENT, LIVE, IMPORT), `task_id`, `human_judgement_count`, `gold` (true or
          false) and `create_time`: `state = FAILED AND create_time >= "2026-11-01T00:00:00Z"`.
        view: How much of each task is returned.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_PREFERENCE_TASKS, asked, timeout, metadata),
            request(
                preferences_pb2.ListPreferenceTasksRequest,
                parent=parent,
                page_size=page_size,
                filter=filter,
                view=view,
            ),
            "tasks",
        )

    async def close_preference_task(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        """Ends the leasing of a task: it becomes DONE, and its judgements stay. An annotator who
        holds it may still judge it.

        name: "collections/{collection}/tasks/{task}".
        """
        response: preferences_pb2.ClosePreferenceTaskResponse = await self._calls.unary(
            _CLOSE_PREFERENCE_TASK,
            request(preferences_pb2.ClosePreferenceTaskRequest, name=name),
            timeout,
            metadata,
        )
        return response.task

    async def delete_preference_task(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Deletes a task. FAILED_PRECONDITION where it has judgements (TASK_JUDGED), which are
        part of the collection's revisions, or while an annotator holds it (TASK_HELD).

        name: "collections/{collection}/tasks/{task}".
        """
        await self._calls.unary(
            _DELETE_PREFERENCE_TASK,
            request(preferences_pb2.DeletePreferenceTaskRequest, name=name),
            timeout,
            metadata,
        )

    async def lease_preference_task(
        self,
        parent: str = "",
        *,
        annotator: str = "",
        task: str = "",
        lease_duration: timedelta | duration_pb2.Duration | None = None,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceLease:
        """Leases the oldest task that this annotator has neither judged nor skipped, to this
        annotator alone until the lease expires. NOT_FOUND (NO_TASK) when there is none now: ask
        again later. RESOURCE_EXHAUSTED (TOO_MANY_HELD) for an annotator who holds 16 tasks.
        Idempotent by request_id.

        parent: "collections/{collection}".
        annotator: Pseudonym of a person; default: the key's id. 1 to 64 of A-Z a-z 0-9 . _ @ /
          -.
        task: Name of a certain task instead of the next one. FAILED_PRECONDITION (TASK_DONE,
          TASK_NOT_READY, TASK_FAILED), ABORTED (TASK_HELD) or ALREADY_EXISTS (TASK_JUDGED)
          where it can't be leased.
        lease_duration: 10 s to 24 h; default 15 min.
        request_id: Made by the client for each lease that it wants: the same call sent again,
          while the lease lasts, gives the same lease. 1 to 128 of A-Z a-z 0-9 . _ : -.
        """
        response: preferences_pb2.LeasePreferenceTaskResponse = await self._calls.unary(
            _LEASE_PREFERENCE_TASK,
            request(
                preferences_pb2.LeasePreferenceTaskRequest,
                parent=parent,
                annotator=annotator,
                task=task,
                lease_duration=lease_duration,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response.lease

    async def renew_preference_lease(
        self,
        name: str = "",
        *,
        annotator: str = "",
        fence: int = 0,
        lease_duration: timedelta | duration_pb2.Duration | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RenewPreferenceLeaseResponse:
        """Extends a lease: it runs `lease_duration` from now. ABORTED (LEASE_EXPIRED, FENCE_STALE)
        where it has ended.

        name: Name of the task.
        annotator: Who holds it; default: the key's id.
        fence: Of the lease.
        lease_duration: From now: 10 s to 24 h; default 15 min.
        """
        response: preferences_pb2.RenewPreferenceLeaseResponse = await self._calls.unary(
            _RENEW_PREFERENCE_LEASE,
            request(
                preferences_pb2.RenewPreferenceLeaseRequest,
                name=name,
                annotator=annotator,
                fence=fence,
                lease_duration=lease_duration,
            ),
            timeout,
            metadata,
        )
        return response

    async def release_preference_lease(
        self,
        name: str = "",
        *,
        annotator: str = "",
        fence: int = 0,
        skip: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """Gives a leased task back without a judgement. ABORTED (LEASE_EXPIRED, FENCE_STALE) where
        the lease has ended.

        name: Name of the task.
        annotator: Who holds it; default: the key's id.
        fence: Of the lease.
        skip: Never lease the task to this annotator again.
        """
        await self._calls.unary(
            _RELEASE_PREFERENCE_LEASE,
            request(
                preferences_pb2.ReleasePreferenceLeaseRequest,
                name=name,
                annotator=annotator,
                fence=fence,
                skip=skip,
            ),
            timeout,
            metadata,
        )

    async def create_judgement(
        self,
        parent: str = "",
        *,
        judgement: preferences_pb2.Judgement | None = None,
        fence: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.Judgement:
        """Records a judgement, which never changes afterwards. A person's needs a lease of the
        task, which it ends. A rule's or a model's needs none, and does not count towards
        `wanted_judgement_count`; a task takes at most 16 of them (RESOURCE_EXHAUSTED,
        TOO_MANY_JUDGES). RESOURCE_EXHAUSTED (COLLECTION_FULL) where there is no room.
        Idempotent by task, source and annotator: the same judgement sent again is returned as
        it was recorded, another one is ALREADY_EXISTS (TASK_JUDGED).

        parent: Name of the task.
        judgement: Its spec; what else is set of it is ignored.
        fence: Of the lease, for a person's judgement.
        """
        response: preferences_pb2.CreateJudgementResponse = await self._calls.unary(
            _CREATE_JUDGEMENT,
            request(
                preferences_pb2.CreateJudgementRequest,
                parent=parent,
                judgement=judgement,
                fence=fence,
            ),
            timeout,
            metadata,
        )
        return response.judgement

    async def get_judgement(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.Judgement:
        """Gets a judgement. NOT_FOUND (JUDGEMENT_NOT_FOUND).

        name: "collections/{collection}/tasks/{task}/judgements/{number}".
        """
        response: preferences_pb2.GetJudgementResponse = await self._calls.unary(
            _GET_JUDGEMENT,
            request(preferences_pb2.GetJudgementRequest, name=name),
            timeout,
            metadata,
        )
        return response.judgement

    def list_judgements(
        self,
        parent: str = "",
        *,
        page_size: int = 0,
        filter: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncPager[preferences_pb2.Judgement, preferences_pb2.ListJudgementsResponse]:
        """Lists judgements of a task, or of all tasks of a collection, in the order in which they
        were recorded.

        parent: Name of a task; "collections/{collection}/tasks/-" for all tasks of a
          collection.
        page_size: At most this many; 0 means 50, more than 1000 means 1000.
        filter: Comparisons joined by AND, of `source` (HUMAN, RULE, MODEL), `annotator`,
          `all_bad` (true or false), `revision` and `create_time`: `source = HUMAN AND annotator
          = "ada"`.
        """
        return AsyncPager(
            lambda asked: self._calls.unary(_LIST_JUDGEMENTS, asked, timeout, metadata),
            request(
                preferences_pb2.ListJudgementsRequest,
                parent=parent,
                page_size=page_size,
                filter=filter,
            ),
            "judgements",
        )

    async def request_model_judgements(
        self,
        parent: str = "",
        *,
        model: str = "",
        method: preferences_pb2.JudgingMethod.ValueType | None | None = None,
        criteria: str = "",
        tasks: Iterable[str] | None = None,
        max_task_count: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RequestModelJudgementsResponse:
        """Has a served model judge tasks that it has not judged yet. Returns when the work is
        queued; the judgements appear in ListJudgements as they are made. UNAVAILABLE
        (NO_REPLICA) where the model is not served.

        parent: "collections/{collection}".
        model: A served model's name ("chat").
        method: How it judges.
        criteria: By what, in words; at most 2000 characters. Default: helpful, correct, clear.
        tasks: Names of the tasks to judge, at most 1000; empty: the newest ones.
        max_task_count: Of the newest tasks look at so many, at most 1000; 0 means 100.
        """
        response: preferences_pb2.RequestModelJudgementsResponse = await self._calls.unary(
            _REQUEST_MODEL_JUDGEMENTS,
            request(
                preferences_pb2.RequestModelJudgementsRequest,
                parent=parent,
                model=model,
                method=method,
                criteria=criteria,
                tasks=tasks,
                max_task_count=max_task_count,
            ),
            timeout,
            metadata,
        )
        return response

    async def get_preference_report(
        self,
        name: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceReport:
        """Gets what a collection's judgements say now: agreement of the judges, gold questions,
        position bias, strengths of the models. An empty collection has an empty report.

        name: "collections/{collection}/report".
        """
        response: preferences_pb2.GetPreferenceReportResponse = await self._calls.unary(
            _GET_PREFERENCE_REPORT,
            request(preferences_pb2.GetPreferenceReportRequest, name=name),
            timeout,
            metadata,
        )
        return response.report

    def export_pairs(
        self,
        parent: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        shape: preferences_pb2.PairShape.ValueType | None | None = None,
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[preferences_pb2.ExportPairsResponse, None]:
        """Streams the judged pairs of a collection as JSON lines. Each message carries a
        `resume_token`: where the stream breaks, the request with the last token gives the rest
        of the same lines, whatever was judged meanwhile.

        parent: "collections/{collection}".
        selection: Which judgements count.
        shape: Form of the lines.
        resume_token: Of the last response of an export that broke; everything else in the
          request as it was.
        """
        return self._calls.stream(
            _EXPORT_PAIRS,
            request(
                preferences_pb2.ExportPairsRequest,
                parent=parent,
                selection=selection,
                shape=shape,
                resume_token=resume_token,
            ),
            timeout,
            metadata,
        )

    async def import_pairs(
        self,
        parent: str = "",
        *,
        jsonl: bytes = b"",
        source: preferences_pb2.JudgementSource.ValueType | None | None = None,
        annotator: str = "",
        first_line: int = 0,
        validate_only: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.ImportPairsResponse:
        """Adds pairs that were judged elsewhere, as judged tasks. Idempotent by line: a line that
        is there already is counted as known. Where a call fails half-way, the error names the
        line at which to go on.

        parent: "collections/{collection}".
        jsonl: 1 to 1000 lines of JSON in one of the shapes of PairShape, at most 4 MiB; send
          more in further calls.
        source: Who judged, for all lines. Unspecified: as the `source` of each line says.
        annotator: Who judged, for all lines; default: as each line says, else "import".
        first_line: The number of the first line in what the client reads, for messages; default
          1.
        validate_only: Change nothing: only say what would become of the lines, or which of them
          is wrong.
        """
        response: preferences_pb2.ImportPairsResponse = await self._calls.unary(
            _IMPORT_PAIRS,
            request(
                preferences_pb2.ImportPairsRequest,
                parent=parent,
                jsonl=jsonl,
                source=source,
                annotator=annotator,
                first_line=first_line,
                validate_only=validate_only,
            ),
            timeout,
            metadata,
        )
        return response

    async def publish_pairs(
        self,
        parent: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        artifact_id: str = "",
        min_pair_count: int = 0,
        validation_fraction: float | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PublishPairsResponse:
        """Publishes the judged pairs of a collection as an artifact of kind "corpus", split by
        prompt into training and validation. Idempotent by content: the same pairs selected in
        the same way are the same version. FAILED_PRECONDITION (TOO_FEW_PAIRS) where there are
        fewer than `min_pair_count`; PERMISSION_DENIED (OTHER_TENANT) where the artifact's
        latest version is another tenant's.

        parent: "collections/{collection}".
        selection: Which judgements count.
        artifact_id: Name of the artifact ("people"): 1 to 64 of a-z 0-9 . _ -, beginning with a
          letter or a digit.
        min_pair_count: Fail where there are fewer pairs than this; 0 means 1.
        validation_fraction: Share of the prompts that go to validation, 0 to below 0.5; default
          0.1.
        """
        response: preferences_pb2.PublishPairsResponse = await self._calls.unary(
            _PUBLISH_PAIRS,
            request(
                preferences_pb2.PublishPairsRequest,
                parent=parent,
                selection=selection,
                artifact_id=artifact_id,
                min_pair_count=min_pair_count,
                validation_fraction=validation_fraction,
            ),
            timeout,
            metadata,
        )
        return response
