"""Rows for preferences."""

from __future__ import annotations

from api_rows import OTHER, Call, kept
from plinth.v1 import chat_pb2 as chat
from plinth.v1 import preferences_pb2 as pref

_MESSAGES = [chat.ChatMessage(role="user", content="x")]
_COLLECTION = "collections/of-acme"
_TASK = f"{_COLLECTION}/tasks/t1"


def _task() -> pref.PreferenceTask:
    responses = [pref.PreferenceResponse(response_id=id, text=id) for id in "ab"]
    return pref.PreferenceTask(spec=pref.PreferenceTaskSpec(prompt=_MESSAGES, responses=responses))


def _ranking() -> list[pref.ResponseTier]:
    return [pref.ResponseTier(response_ids=[id]) for id in "ab"]


PREFERENCES = [
    Call(
        "PreferenceService.CreatePreferenceTask",
        lambda _, who: pref.CreatePreferenceTaskRequest(
            parent=f"collections/of-{who}", task_id="t1", task=_task()
        ),
    ),
    Call(
        "PreferenceService.BatchCreatePreferenceTasks",
        lambda *_: pref.BatchCreatePreferenceTasksRequest(
            parent=_COLLECTION,
            requests=[
                pref.CreatePreferenceTaskRequest(parent=_COLLECTION, task_id=id, task=_task())
                for id in ("t2", "t3")
            ],
        ),
        OTHER,
    ),
    Call(
        "PreferenceService.GetPreferenceCollection",
        lambda *_: pref.GetPreferenceCollectionRequest(name=_COLLECTION),
    ),
    Call(
        "PreferenceService.ListPreferenceCollections",
        lambda *_: pref.ListPreferenceCollectionsRequest(),
    ),
    Call(
        "PreferenceService.GetPreferenceTask",
        lambda *_: pref.GetPreferenceTaskRequest(name=_TASK),
    ),
    Call(
        "PreferenceService.ListPreferenceTasks",
        lambda *_: pref.ListPreferenceTasksRequest(parent=_COLLECTION),
    ),
    Call(
        "PreferenceService.LeasePreferenceTask",
        lambda *_: pref.LeasePreferenceTaskRequest(parent=_COLLECTION, annotator="ann", task=_TASK),
        OTHER,
        note=kept("fence", lambda answer: answer.lease.fence),
    ),
    Call(
        "PreferenceService.RenewPreferenceLease",
        lambda world, _: pref.RenewPreferenceLeaseRequest(
            name=_TASK, annotator="ann", fence=world["fence"]
        ),
        OTHER,
    ),
    Call(
        "PreferenceService.CreateJudgement",
        lambda world, _: pref.CreateJudgementRequest(
            parent=_TASK,
            judgement=pref.Judgement(
                spec=pref.JudgementSpec(
                    ranking=_ranking(), annotator="ann", source=pref.JUDGEMENT_SOURCE_HUMAN
                )
            ),
            fence=world["fence"],
        ),
        OTHER,
        note=kept("judgement", lambda answer: answer.judgement.name),
    ),
    Call(
        "PreferenceService.ReleasePreferenceLease",
        lambda world, _: pref.ReleasePreferenceLeaseRequest(
            name=_TASK, annotator="ann", fence=world["fence"]
        ),
        OTHER,
    ),
    Call(
        "PreferenceService.GetJudgement",
        lambda world, _: pref.GetJudgementRequest(name=world["judgement"]),
    ),
    Call(
        "PreferenceService.ListJudgements",
        lambda *_: pref.ListJudgementsRequest(parent=_TASK),
    ),
    Call(
        "PreferenceService.RequestModelJudgements",
        lambda *_: pref.RequestModelJudgementsRequest(
            parent=_COLLECTION, model="chat", method=pref.JUDGING_METHOD_PAIRWISE
        ),
        OTHER,
    ),
    Call(
        "PreferenceService.GetPreferenceReport",
        lambda *_: pref.GetPreferenceReportRequest(name=f"{_COLLECTION}/report"),
    ),
    Call(
        "PreferenceService.ExportPairs",
        lambda *_: pref.ExportPairsRequest(parent=_COLLECTION),
    ),
    Call(
        "PreferenceService.ImportPairs",
        lambda *_: pref.ImportPairsRequest(
            parent=_COLLECTION,
            jsonl=b'{"prompt": "p", "chosen": "c", "rejected": "r"}\n',
            source=pref.JUDGEMENT_SOURCE_HUMAN,
            annotator="them",
        ),
        OTHER,
    ),
    Call(
        "PreferenceService.PublishPairs",
        lambda _, who: pref.PublishPairsRequest(
            parent=_COLLECTION, artifact_id=f"pairs-of-{who}", min_pair_count=1
        ),
    ),
    Call(
        "PreferenceService.ClosePreferenceTask",
        lambda *_: pref.ClosePreferenceTaskRequest(name=_TASK),
        OTHER,
    ),
    Call(
        "PreferenceService.DeletePreferenceTask",
        lambda *_: pref.DeletePreferenceTaskRequest(name=_TASK),
        OTHER,
        "TASK_JUDGED",
    ),
    Call(
        "PreferenceService.DeletePreferenceCollection",
        lambda *_: pref.DeletePreferenceCollectionRequest(name=_COLLECTION, force=True),
        OTHER,
    ),
]
