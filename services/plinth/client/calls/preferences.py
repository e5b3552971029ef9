"""Generated from protos/plinth/v1 by `make protos`. Never edit."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Mapping
from typing import TYPE_CHECKING

from plinth.client.methods import Method, request
from plinth.v1 import preferences_pb2

if TYPE_CHECKING:
    from plinth.client.asynchronous import AsyncTransport
    from plinth.client.blocking import Transport

_CREATE_TASKS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "CreateTasks")
_GET_PREFERENCE_TASK = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "GetPreferenceTask"
)
_LIST_PREFERENCE_TASKS = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "ListPreferenceTasks"
)
_CLOSE_TASK = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "CloseTask")
_LEASE_TASK = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "LeaseTask")
_RENEW_LEASE = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "RenewLease")
_RELEASE_LEASE = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "ReleaseLease")
_SUBMIT_JUDGEMENT = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "SubmitJudgement")
_ADD_JUDGEMENT = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "AddJudgement")
_REQUEST_MODEL_JUDGEMENTS = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "RequestModelJudgements"
)
_GET_PREFERENCE_REPORT = Method.of(
    preferences_pb2.DESCRIPTOR, "PreferenceService", "GetPreferenceReport"
)
_EXPORT_PAIRS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "ExportPairs")
_IMPORT_PAIRS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "ImportPairs")
_PUBLISH_PAIRS = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "PublishPairs")
_DELETE_COLLECTION = Method.of(preferences_pb2.DESCRIPTOR, "PreferenceService", "DeleteCollection")


class PreferenceService:
    """PreferenceService."""

    def __init__(self, calls: Transport) -> None:
        self._calls = calls

    def create_tasks(
        self,
        collection: str = "",
        *,
        tasks: Iterable[preferences_pb2.TaskSpec] | None = None,
        origin: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.CreateTasksResponse:
        """Adds tasks. Idempotent by task_id; all are checked before the first is added.

        tasks: 1 to 100.
        origin: "client" (default) or "live".
        """
        response: preferences_pb2.CreateTasksResponse = self._calls.unary(
            _CREATE_TASKS,
            request(
                preferences_pb2.CreateTasksRequest,
                collection=collection,
                tasks=tasks,
                origin=origin,
            ),
            timeout,
            metadata,
        )
        return response

    def get_preference_task(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        response: preferences_pb2.GetPreferenceTaskResponse = self._calls.unary(
            _GET_PREFERENCE_TASK,
            request(
                preferences_pb2.GetPreferenceTaskRequest, collection=collection, task_id=task_id
            ),
            timeout,
            metadata,
        )
        return response.task

    def list_preference_tasks(
        self,
        collection: str = "",
        *,
        limit: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.ListPreferenceTasksResponse:
        """Newest first, without texts.

        limit: 1 to 200; default 50.
        """
        response: preferences_pb2.ListPreferenceTasksResponse = self._calls.unary(
            _LIST_PREFERENCE_TASKS,
            request(preferences_pb2.ListPreferenceTasksRequest, collection=collection, limit=limit),
            timeout,
            metadata,
        )
        return response

    def close_task(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """No more leases. A task that nobody has judged and nobody holds is removed."""
        self._calls.unary(
            _CLOSE_TASK,
            request(preferences_pb2.CloseTaskRequest, collection=collection, task_id=task_id),
            timeout,
            metadata,
        )

    def lease_task(
        self,
        collection: str = "",
        *,
        annotator: str = "",
        task_id: str = "",
        lease_seconds: int = 0,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.LeaseTaskResponse:
        """The oldest task that this annotator has not judged, for this annotator alone until the
        lease runs out. NOT_FOUND (NO_TASK) when there is none. Idempotent by request_id.

        annotator: Pseudonym of a person; by default the key's id.
        task_id: A certain task instead of the next one.
        lease_seconds: 10 to 86400; default 900.
        request_id: The same call sent again gives the same lease.
        """
        response: preferences_pb2.LeaseTaskResponse = self._calls.unary(
            _LEASE_TASK,
            request(
                preferences_pb2.LeaseTaskRequest,
                collection=collection,
                annotator=annotator,
                task_id=task_id,
                lease_seconds=lease_seconds,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response

    def renew_lease(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        fence: int = 0,
        lease_seconds: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RenewLeaseResponse:
        response: preferences_pb2.RenewLeaseResponse = self._calls.unary(
            _RENEW_LEASE,
            request(
                preferences_pb2.RenewLeaseRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                fence=fence,
                lease_seconds=lease_seconds,
            ),
            timeout,
            metadata,
        )
        return response

    def release_lease(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        fence: int = 0,
        skip: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """skip: Never offer it to this annotator again."""
        self._calls.unary(
            _RELEASE_LEASE,
            request(
                preferences_pb2.ReleaseLeaseRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                fence=fence,
                skip=skip,
            ),
            timeout,
            metadata,
        )

    def submit_judgement(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        fence: int = 0,
        ranking: Iterable[preferences_pb2.Tier] | None = None,
        all_bad: bool = False,
        reason: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.SubmitJudgementResponse:
        """A person's judgement of a task that is held. Idempotent by fence."""
        response: preferences_pb2.SubmitJudgementResponse = self._calls.unary(
            _SUBMIT_JUDGEMENT,
            request(
                preferences_pb2.SubmitJudgementRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                fence=fence,
                ranking=ranking,
                all_bad=all_bad,
                reason=reason,
            ),
            timeout,
            metadata,
        )
        return response

    def add_judgement(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        source: preferences_pb2.JudgementSource.ValueType | None | None = None,
        ranking: Iterable[preferences_pb2.Tier] | None = None,
        all_bad: bool = False,
        reason: str = "",
        shown: Iterable[str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.AddJudgementResponse:
        """A judgement by a rule or a model of the caller's own: needs no lease, and does not count
        towards what is wanted of people. Idempotent by task, source and annotator.

        annotator: The rule's or the model's name.
        source: RULE or MODEL.
        """
        response: preferences_pb2.AddJudgementResponse = self._calls.unary(
            _ADD_JUDGEMENT,
            request(
                preferences_pb2.AddJudgementRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                source=source,
                ranking=ranking,
                all_bad=all_bad,
                reason=reason,
                shown=shown,
            ),
            timeout,
            metadata,
        )
        return response

    def request_model_judgements(
        self,
        collection: str = "",
        *,
        model: str = "",
        method: str = "",
        criteria: str = "",
        task_ids: Iterable[str] | None = None,
        limit: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RequestModelJudgementsResponse:
        """Has a served model judge tasks that it has not judged; the work is queued.

        model: A served model.
        method: "pairwise" (default): which of two is better, asked in both orders, a tie when
          the answers disagree. "rubric": a score from 1 to 10 for each.
        criteria: What to look at, in words; default: helpful, correct, clear.
        task_ids: Empty: the newest tasks, up to `limit` (default 100, at most 1000).
        """
        response: preferences_pb2.RequestModelJudgementsResponse = self._calls.unary(
            _REQUEST_MODEL_JUDGEMENTS,
            request(
                preferences_pb2.RequestModelJudgementsRequest,
                collection=collection,
                model=model,
                method=method,
                criteria=criteria,
                task_ids=task_ids,
                limit=limit,
            ),
            timeout,
            metadata,
        )
        return response

    def get_preference_report(
        self,
        collection: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.GetPreferenceReportResponse:
        """Agreement, gold questions, position bias, strengths of the models."""
        response: preferences_pb2.GetPreferenceReportResponse = self._calls.unary(
            _GET_PREFERENCE_REPORT,
            request(preferences_pb2.GetPreferenceReportRequest, collection=collection),
            timeout,
            metadata,
        )
        return response

    def export_pairs(
        self,
        collection: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        shape: str = "",
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Generator[preferences_pb2.ExportPairsResponse, None, None]:
        """Judged pairs as JSON lines.

        shape: "trl" (default): conversational prompt, chosen, rejected. "hh": Anthropic HH's
          dialogues.
        resume_token: Of the last response of an export that broke: the rest of the same lines,
          whatever was judged meanwhile. Everything else in the request as it was.
        """
        return self._calls.stream(
            _EXPORT_PAIRS,
            request(
                preferences_pb2.ExportPairsRequest,
                collection=collection,
                selection=selection,
                shape=shape,
                resume_token=resume_token,
            ),
            timeout,
            metadata,
        )

    def import_pairs(
        self,
        collection: str = "",
        *,
        jsonl: bytes = b"",
        source: preferences_pb2.JudgementSource.ValueType | None | None = None,
        annotator: str = "",
        first_line: int = 0,
        check_only: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.ImportPairsResponse:
        """JSON lines in the shapes of TRL and Anthropic HH become judged tasks. Idempotent by
        content, and by line: where a call ends half-way, the same lines again are known, and
        the rest goes in.

        jsonl: At most 1000 lines and 4 MiB; send more in further calls.
        annotator: Who judged; default "import".
        first_line: The number of the first line in what the caller reads, for messages; default
          1.
        check_only: Only say what would become of the lines, and which of them is wrong; nothing
          is written.
        """
        response: preferences_pb2.ImportPairsResponse = self._calls.unary(
            _IMPORT_PAIRS,
            request(
                preferences_pb2.ImportPairsRequest,
                collection=collection,
                jsonl=jsonl,
                source=source,
                annotator=annotator,
                first_line=first_line,
                check_only=check_only,
            ),
            timeout,
            metadata,
        )
        return response

    def publish_pairs(
        self,
        collection: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        name: str = "",
        at_least: int = 0,
        validation_fraction: float | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PublishPairsResponse:
        """Judged pairs as a corpus artifact, split by prompt. Idempotent by content.

        name: The artifact's name.
        validation_fraction: Of prompts; default 0.1.
        """
        response: preferences_pb2.PublishPairsResponse = self._calls.unary(
            _PUBLISH_PAIRS,
            request(
                preferences_pb2.PublishPairsRequest,
                collection=collection,
                selection=selection,
                name=name,
                at_least=at_least,
                validation_fraction=validation_fraction,
            ),
            timeout,
            metadata,
        )
        return response

    def delete_collection(
        self,
        collection: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.DeleteCollectionResponse:
        """Forgets a collection with all its tasks and judgements; what was published of it stays.

        collection: Never implied.
        """
        response: preferences_pb2.DeleteCollectionResponse = self._calls.unary(
            _DELETE_COLLECTION,
            request(preferences_pb2.DeleteCollectionRequest, collection=collection),
            timeout,
            metadata,
        )
        return response


class AsyncPreferenceService:
    """PreferenceService."""

    def __init__(self, calls: AsyncTransport) -> None:
        self._calls = calls

    async def create_tasks(
        self,
        collection: str = "",
        *,
        tasks: Iterable[preferences_pb2.TaskSpec] | None = None,
        origin: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.CreateTasksResponse:
        """Adds tasks. Idempotent by task_id; all are checked before the first is added.

        tasks: 1 to 100.
        origin: "client" (default) or "live".
        """
        response: preferences_pb2.CreateTasksResponse = await self._calls.unary(
            _CREATE_TASKS,
            request(
                preferences_pb2.CreateTasksRequest,
                collection=collection,
                tasks=tasks,
                origin=origin,
            ),
            timeout,
            metadata,
        )
        return response

    async def get_preference_task(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PreferenceTask:
        response: preferences_pb2.GetPreferenceTaskResponse = await self._calls.unary(
            _GET_PREFERENCE_TASK,
            request(
                preferences_pb2.GetPreferenceTaskRequest, collection=collection, task_id=task_id
            ),
            timeout,
            metadata,
        )
        return response.task

    async def list_preference_tasks(
        self,
        collection: str = "",
        *,
        limit: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.ListPreferenceTasksResponse:
        """Newest first, without texts.

        limit: 1 to 200; default 50.
        """
        response: preferences_pb2.ListPreferenceTasksResponse = await self._calls.unary(
            _LIST_PREFERENCE_TASKS,
            request(preferences_pb2.ListPreferenceTasksRequest, collection=collection, limit=limit),
            timeout,
            metadata,
        )
        return response

    async def close_task(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """No more leases. A task that nobody has judged and nobody holds is removed."""
        await self._calls.unary(
            _CLOSE_TASK,
            request(preferences_pb2.CloseTaskRequest, collection=collection, task_id=task_id),
            timeout,
            metadata,
        )

    async def lease_task(
        self,
        collection: str = "",
        *,
        annotator: str = "",
        task_id: str = "",
        lease_seconds: int = 0,
        request_id: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.LeaseTaskResponse:
        """The oldest task that this annotator has not judged, for this annotator alone until the
        lease runs out. NOT_FOUND (NO_TASK) when there is none. Idempotent by request_id.

        annotator: Pseudonym of a person; by default the key's id.
        task_id: A certain task instead of the next one.
        lease_seconds: 10 to 86400; default 900.
        request_id: The same call sent again gives the same lease.
        """
        response: preferences_pb2.LeaseTaskResponse = await self._calls.unary(
            _LEASE_TASK,
            request(
                preferences_pb2.LeaseTaskRequest,
                collection=collection,
                annotator=annotator,
                task_id=task_id,
                lease_seconds=lease_seconds,
                request_id=request_id,
            ),
            timeout,
            metadata,
        )
        return response

    async def renew_lease(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        fence: int = 0,
        lease_seconds: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RenewLeaseResponse:
        response: preferences_pb2.RenewLeaseResponse = await self._calls.unary(
            _RENEW_LEASE,
            request(
                preferences_pb2.RenewLeaseRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                fence=fence,
                lease_seconds=lease_seconds,
            ),
            timeout,
            metadata,
        )
        return response

    async def release_lease(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        fence: int = 0,
        skip: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        """skip: Never offer it to this annotator again."""
        await self._calls.unary(
            _RELEASE_LEASE,
            request(
                preferences_pb2.ReleaseLeaseRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                fence=fence,
                skip=skip,
            ),
            timeout,
            metadata,
        )

    async def submit_judgement(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        fence: int = 0,
        ranking: Iterable[preferences_pb2.Tier] | None = None,
        all_bad: bool = False,
        reason: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.SubmitJudgementResponse:
        """A person's judgement of a task that is held. Idempotent by fence."""
        response: preferences_pb2.SubmitJudgementResponse = await self._calls.unary(
            _SUBMIT_JUDGEMENT,
            request(
                preferences_pb2.SubmitJudgementRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                fence=fence,
                ranking=ranking,
                all_bad=all_bad,
                reason=reason,
            ),
            timeout,
            metadata,
        )
        return response

    async def add_judgement(
        self,
        collection: str = "",
        *,
        task_id: str = "",
        annotator: str = "",
        source: preferences_pb2.JudgementSource.ValueType | None | None = None,
        ranking: Iterable[preferences_pb2.Tier] | None = None,
        all_bad: bool = False,
        reason: str = "",
        shown: Iterable[str] | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.AddJudgementResponse:
        """A judgement by a rule or a model of the caller's own: needs no lease, and does not count
        towards what is wanted of people. Idempotent by task, source and annotator.

        annotator: The rule's or the model's name.
        source: RULE or MODEL.
        """
        response: preferences_pb2.AddJudgementResponse = await self._calls.unary(
            _ADD_JUDGEMENT,
            request(
                preferences_pb2.AddJudgementRequest,
                collection=collection,
                task_id=task_id,
                annotator=annotator,
                source=source,
                ranking=ranking,
                all_bad=all_bad,
                reason=reason,
                shown=shown,
            ),
            timeout,
            metadata,
        )
        return response

    async def request_model_judgements(
        self,
        collection: str = "",
        *,
        model: str = "",
        method: str = "",
        criteria: str = "",
        task_ids: Iterable[str] | None = None,
        limit: int = 0,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.RequestModelJudgementsResponse:
        """Has a served model judge tasks that it has not judged; the work is queued.

        model: A served model.
        method: "pairwise" (default): which of two is better, asked in both orders, a tie when
          the answers disagree. "rubric": a score from 1 to 10 for each.
        criteria: What to look at, in words; default: helpful, correct, clear.
        task_ids: Empty: the newest tasks, up to `limit` (default 100, at most 1000).
        """
        response: preferences_pb2.RequestModelJudgementsResponse = await self._calls.unary(
            _REQUEST_MODEL_JUDGEMENTS,
            request(
                preferences_pb2.RequestModelJudgementsRequest,
                collection=collection,
                model=model,
                method=method,
                criteria=criteria,
                task_ids=task_ids,
                limit=limit,
            ),
            timeout,
            metadata,
        )
        return response

    async def get_preference_report(
        self,
        collection: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.GetPreferenceReportResponse:
        """Agreement, gold questions, position bias, strengths of the models."""
        response: preferences_pb2.GetPreferenceReportResponse = await self._calls.unary(
            _GET_PREFERENCE_REPORT,
            request(preferences_pb2.GetPreferenceReportRequest, collection=collection),
            timeout,
            metadata,
        )
        return response

    def export_pairs(
        self,
        collection: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        shape: str = "",
        resume_token: str = "",
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> AsyncGenerator[preferences_pb2.ExportPairsResponse, None]:
        """Judged pairs as JSON lines.

        shape: "trl" (default): conversational prompt, chosen, rejected. "hh": Anthropic HH's
          dialogues.
        resume_token: Of the last response of an export that broke: the rest of the same lines,
          whatever was judged meanwhile. Everything else in the request as it was.
        """
        return self._calls.stream(
            _EXPORT_PAIRS,
            request(
                preferences_pb2.ExportPairsRequest,
                collection=collection,
                selection=selection,
                shape=shape,
                resume_token=resume_token,
            ),
            timeout,
            metadata,
        )

    async def import_pairs(
        self,
        collection: str = "",
        *,
        jsonl: bytes = b"",
        source: preferences_pb2.JudgementSource.ValueType | None | None = None,
        annotator: str = "",
        first_line: int = 0,
        check_only: bool = False,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.ImportPairsResponse:
        """JSON lines in the shapes of TRL and Anthropic HH become judged tasks. Idempotent by
        content, and by line: where a call ends half-way, the same lines again are known, and
        the rest goes in.

        jsonl: At most 1000 lines and 4 MiB; send more in further calls.
        annotator: Who judged; default "import".
        first_line: The number of the first line in what the caller reads, for messages; default
          1.
        check_only: Only say what would become of the lines, and which of them is wrong; nothing
          is written.
        """
        response: preferences_pb2.ImportPairsResponse = await self._calls.unary(
            _IMPORT_PAIRS,
            request(
                preferences_pb2.ImportPairsRequest,
                collection=collection,
                jsonl=jsonl,
                source=source,
                annotator=annotator,
                first_line=first_line,
                check_only=check_only,
            ),
            timeout,
            metadata,
        )
        return response

    async def publish_pairs(
        self,
        collection: str = "",
        *,
        selection: preferences_pb2.PairSelection | None = None,
        name: str = "",
        at_least: int = 0,
        validation_fraction: float | None = None,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.PublishPairsResponse:
        """Judged pairs as a corpus artifact, split by prompt. Idempotent by content.

        name: The artifact's name.
        validation_fraction: Of prompts; default 0.1.
        """
        response: preferences_pb2.PublishPairsResponse = await self._calls.unary(
            _PUBLISH_PAIRS,
            request(
                preferences_pb2.PublishPairsRequest,
                collection=collection,
                selection=selection,
                name=name,
                at_least=at_least,
                validation_fraction=validation_fraction,
            ),
            timeout,
            metadata,
        )
        return response

    async def delete_collection(
        self,
        collection: str = "",
        *,
        timeout: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> preferences_pb2.DeleteCollectionResponse:
        """Forgets a collection with all its tasks and judgements; what was published of it stays.

        collection: Never implied.
        """
        response: preferences_pb2.DeleteCollectionResponse = await self._calls.unary(
            _DELETE_COLLECTION,
            request(preferences_pb2.DeleteCollectionRequest, collection=collection),
            timeout,
            metadata,
        )
        return response
