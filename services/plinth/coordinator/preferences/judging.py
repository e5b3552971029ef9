"""Judgements as they come in: from people under a lease, from programs, and asked of models."""

from __future__ import annotations

import time

from plinth.coordinator.preferences.access import check_task
from plinth.coordinator.preferences.model_judge import check_method, judge_name
from plinth.coordinator.preferences.ranking import check_judgement
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.sampling import find_served
from plinth.coordinator.preferences.specs import annotator_of
from plinth.coordinator.preferences.work import PreferenceWork
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.enums import word
from plinth.shared.errors import InvalidArgument
from plinth.shared.identity import Principal
from plinth.shared.preference_names import task_of
from plinth.shared.registry import Registry
from plinth.shared.rpc.client import StageClients
from plinth.v1 import preferences_pb2 as pb

WITHIN = "judgement.spec."  # where a request has what is wrong
DEFAULT_TASKS = 100  # that a model is asked about


class Judging:
    """Over any collection."""

    def __init__(self, registry: Registry, clients: StageClients, work: PreferenceWork) -> None:
        self._registry, self._clients, self._work = registry, clients, work

    async def record(
        self,
        records: PreferenceRecords,
        task: rec.PreferenceTaskRecord,
        said: pb.JudgementSpec,
        fence: int,
        principal: Principal,
    ) -> tuple[rec.JudgementRecord, int]:
        """(the judgement as it is kept, its number)."""
        ids = [response.response_id for response in task.responses]
        check_judgement(said.ranking, said.all_bad, said.reason, ids, WITHIN)
        human = said.source in (pb.JUDGEMENT_SOURCE_UNSPECIFIED, pb.JUDGEMENT_SOURCE_HUMAN)
        default = principal.key_id if human else ""
        judgement = rec.JudgementRecord(
            task_id=task.task_id,
            ranking=said.ranking,
            all_bad=said.all_bad,
            reason=said.reason,
            annotator=annotator_of(said.annotator, default, f"{WITHIN}annotator"),
            source=pb.JUDGEMENT_SOURCE_HUMAN if human else said.source,
            judged_unix_ms=time.time_ns() // 1_000_000,
            key_id=principal.key_id,
            tenant=principal.tenant,
        )
        if human:
            judgement.shown.extend(await records.shown(task.task_id, fence))
            return await records.submit(judgement, fence)
        if said.shown:
            if sorted(said.shown) != sorted(ids):
                raise InvalidArgument(
                    f"{WITHIN}shown: each response once, in the order in which it was shown: "
                    f"{', '.join(ids)}",
                    field=f"{WITHIN}shown",
                )
            judgement.shown.extend(said.shown)
        return await records.add(judgement)

    async def request(
        self,
        records: PreferenceRecords,
        request: pb.RequestModelJudgementsRequest,
        tenant: str,
        principal: Principal,
    ) -> pb.RequestModelJudgementsResponse:
        """tenant: whose tasks alone; empty: everybody's."""
        method, criteria = check_method(word(pb.JudgingMethod, request.method), request.criteria)
        served = await find_served(self._clients, self._registry, request.model)
        name = judge_name(served.artifact, method, criteria)
        judge = rec.JudgementRecord(annotator=name, source=pb.JUDGEMENT_SOURCE_MODEL)
        if request.tasks:
            named = dict.fromkeys(task_of(one, "tasks")[1] for one in request.tasks)
            tasks = [await records.get(one) for one in named]
            for task in tasks:
                check_task(task, tenant, principal)
        else:
            newest = await records.newest(request.max_task_count or DEFAULT_TASKS)
            tasks = [task for task in newest if tenant in ("", task.tenant)]
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
        return pb.RequestModelJudgementsResponse(queued_count=queued, annotator=name)
