"""What is checked of a request before anything is looked up: the validators of the service."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

from plinth.coordinator.preferences.judging import WITHIN
from plinth.coordinator.preferences.model_judge import check_method
from plinth.coordinator.preferences.pairs import check_selection, read_lines
from plinth.coordinator.preferences.ranking import MAX_REASON_CHARS
from plinth.coordinator.preferences.specs import annotator_of, make_task
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.times import seconds
from plinth.shared.errors import InvalidArgument, plain
from plinth.shared.identity import REQUEST_ID
from plinth.shared.manifest import check_name
from plinth.shared.preference_names import (
    COLLECTIONS,
    JUDGEMENTS,
    REPORTS,
    check_id,
    collection_of,
    task_of,
)
from plinth.v1 import owner_pb2
from plinth.v1 import preferences_pb2 as pb

MAX_TASKS_PER_CALL = 100
MAX_TASK_IDS = 1000
MIN_LEASE_S, DEFAULT_LEASE_S, MAX_LEASE_S = 10, 900, 86_400
_ALL_TASKS = re.compile(r"collections/([^/\s]+)/tasks/-")
_NUMBER = re.compile(r"[1-9][0-9]{0,15}")
Creating = pb.CreatePreferenceTaskRequest | pb.BatchCreatePreferenceTasksRequest
Leasing = pb.LeasePreferenceTaskRequest | pb.RenewPreferenceLeaseRequest


def lease_seconds(request: Leasing) -> float:
    """With its default. InvalidArgument out of range."""
    if not request.HasField("lease_duration"):
        return DEFAULT_LEASE_S
    given = seconds(request.lease_duration)
    if not MIN_LEASE_S <= given <= MAX_LEASE_S:
        raise InvalidArgument(
            f"lease_duration: {given:g} s, between {MIN_LEASE_S} and {MAX_LEASE_S}",
            field="lease_duration",
        )
    return given


def created_tasks(
    request: Creating, owner: owner_pb2.Owner | None = None
) -> list[rec.PreferenceTaskRecord]:
    """The tasks that a request asks for. Without ids of their own they have the same ones whenever
    the owner sends the same request_id. InvalidArgument."""
    collection = collection_of(request.parent)
    _check_request_id(request.request_id)
    if isinstance(request, pb.CreatePreferenceTaskRequest):
        numbered = [("", request)]
    else:
        numbered = [(f"requests.{number}.", one) for number, one in enumerate(request.requests)]
    tasks = []
    for number, (within, one) in enumerate(numbered):
        if one.parent and collection_of(one.parent, f"{within}parent") != collection:
            raise InvalidArgument(
                f"{within}parent: {COLLECTIONS.name(collection)!r}, as the batch has it, or none; "
                f"not {plain(one.parent, 80)!r}",
                field=f"{within}parent",
            )
        if one.task_id:
            check_id(one.task_id, f"{within}task_id")
        spec = one.task.spec
        if spec.origin == pb.PREFERENCE_TASK_ORIGIN_IMPORT:
            raise InvalidArgument(
                f"{within}task.spec.origin: CLIENT or LIVE; ImportPairs adds what is imported",
                field=f"{within}task.spec.origin",
            )
        tasks.append(
            make_task(
                spec,
                collection,
                f"{within}task.spec",
                task_id=one.task_id or _id_of(request.request_id, number, owner),
                owner=owner,
            )
        )
    return tasks


def _check_request_id(request_id: str) -> None:
    if request_id and not REQUEST_ID.fullmatch(request_id):
        raise InvalidArgument(
            f"request_id {plain(request_id, 140)!r}: use 1 to 128 of A-Z a-z 0-9 . _ : -",
            field="request_id",
        )


def _id_of(request_id: str, number: int, owner: owner_pb2.Owner | None) -> str:
    """Of a task without one; empty where nothing tells the call from another."""
    if not request_id:
        return ""
    said = "\0".join([owner.tenant if owner else "", request_id, str(number)])
    return hashlib.sha256(said.encode()).hexdigest()[:32]


def judgement_parent(request: pb.ListJudgementsRequest) -> tuple[str, str]:
    """The ids of collection and task; an empty one for all tasks. InvalidArgument."""
    if (found := _ALL_TASKS.fullmatch(request.parent)) is not None:
        return check_id(found[1], "parent"), ""
    return task_of(request.parent, "parent")


def export_position(request: pb.ExportPairsRequest) -> tuple[int | None, int]:
    """(revision that the export is of, pairs that were sent); at its start None for now."""
    if not request.resume_token:
        return request.selection.max_revision or None, 0
    match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", request.resume_token, re.ASCII)
    if match is None:
        raise InvalidArgument(
            f"resume_token {request.resume_token[:40]!r} is none of ExportPairs': give the last "
            "response's as it was, or none to begin",
            field="resume_token",
        )
    return int(match[1]), int(match[2])


def _create(request: pb.CreatePreferenceTaskRequest) -> None:
    created_tasks(request)


def _create_batch(request: pb.BatchCreatePreferenceTasksRequest) -> None:
    if not 1 <= len(request.requests) <= MAX_TASKS_PER_CALL:
        raise InvalidArgument(
            f"requests: {len(request.requests)}, 1 to {MAX_TASKS_PER_CALL} in one call",
            field="requests",
        )
    created_tasks(request)


def _lease(request: pb.LeasePreferenceTaskRequest) -> None:
    collection = collection_of(request.parent)
    annotator_of(request.annotator, "key")
    lease_seconds(request)
    if request.task:
        _check_within(request.task, collection, "task")
    _check_request_id(request.request_id)


def _check_within(task: str, collection: str, field: str) -> None:
    if task_of(task, field)[0] != collection:
        raise InvalidArgument(
            f"{field}: {plain(task, 200)!r} is no task of collection {collection!r}", field=field
        )


def _held(request: pb.RenewPreferenceLeaseRequest | pb.ReleasePreferenceLeaseRequest) -> None:
    task_of(request.name)
    annotator_of(request.annotator, "key")
    if isinstance(request, pb.RenewPreferenceLeaseRequest):
        lease_seconds(request)


def _judge(request: pb.CreateJudgementRequest) -> None:
    task_of(request.parent, "parent")
    said = request.judgement.spec
    if len(said.reason) > MAX_REASON_CHARS:
        raise InvalidArgument(
            f"{WITHIN}reason: {len(said.reason)} characters, at most {MAX_REASON_CHARS}",
            field=f"{WITHIN}reason",
        )
    human = said.source in (pb.JUDGEMENT_SOURCE_UNSPECIFIED, pb.JUDGEMENT_SOURCE_HUMAN)
    annotator_of(said.annotator, "key" if human else "", f"{WITHIN}annotator")
    if human and not request.fence:
        raise InvalidArgument(
            "fence: a person's judgement needs a lease (LeasePreferenceTask); a rule's or a "
            "model's has that as its source",
            field="fence",
        )
    if human and said.shown:
        raise InvalidArgument(
            f"{WITHIN}shown: known from the lease of a person; leave it out",
            field=f"{WITHIN}shown",
        )


def _judgement(request: pb.GetJudgementRequest) -> None:
    number = JUDGEMENTS.ids(request.name)[-1]
    if not _NUMBER.fullmatch(number):
        raise InvalidArgument(
            f"name: a judgement's number is a positive integer, not {plain(number, 80)!r}",
            field="name",
        )


def _model_judgements(request: pb.RequestModelJudgementsRequest) -> None:
    collection = collection_of(request.parent)
    check_method("", request.criteria)
    if not request.model:
        raise InvalidArgument("model: name a served model", field="model")
    if len(request.tasks) > MAX_TASK_IDS:
        raise InvalidArgument(
            f"tasks: {len(request.tasks)}, at most {MAX_TASK_IDS} in one call", field="tasks"
        )
    if request.max_task_count > MAX_TASK_IDS:
        raise InvalidArgument(
            f"max_task_count: {request.max_task_count}, at most {MAX_TASK_IDS}",
            field="max_task_count",
        )
    for task in request.tasks:
        _check_within(task, collection, "tasks")


def _report(request: pb.GetPreferenceReportRequest) -> None:
    check_id(REPORTS.id(request.name), "name")


def _export(request: pb.ExportPairsRequest) -> None:
    export_position(request)
    collection_of(request.parent)
    check_selection(request.selection)


def _import(request: pb.ImportPairsRequest) -> None:
    read_lines(request, collection_of(request.parent))


def _publish(request: pb.PublishPairsRequest) -> None:
    collection_of(request.parent)
    check_selection(request.selection)
    check_name(request.artifact_id, "artifact_id")
    if request.HasField("validation_fraction") and not 0 <= request.validation_fraction < 0.5:
        raise InvalidArgument(
            f"validation_fraction: {request.validation_fraction} is not in [0, 0.5)",
            field="validation_fraction",
        )


def _named_collection(request: Any) -> None:
    collection_of(request.name, "name")


def _named_task(request: Any) -> None:
    task_of(request.name)


def _within_collection(request: Any) -> None:
    collection_of(request.parent)


def _within_task(request: pb.ListJudgementsRequest) -> None:
    judgement_parent(request)


VALIDATORS: Mapping[str, Callable[[Any], None]] = {
    "GetPreferenceCollection": _named_collection,
    "DeletePreferenceCollection": _named_collection,
    "CreatePreferenceTask": _create,
    "BatchCreatePreferenceTasks": _create_batch,
    "GetPreferenceTask": _named_task,
    "ListPreferenceTasks": _within_collection,
    "ClosePreferenceTask": _named_task,
    "DeletePreferenceTask": _named_task,
    "LeasePreferenceTask": _lease,
    "RenewPreferenceLease": _held,
    "ReleasePreferenceLease": _held,
    "CreateJudgement": _judge,
    "GetJudgement": _judgement,
    "ListJudgements": _within_task,
    "RequestModelJudgements": _model_judgements,
    "GetPreferenceReport": _report,
    "ExportPairs": _export,
    "ImportPairs": _import,
    "PublishPairs": _publish,
}
