"""What is checked of a request before anything is looked up: the validators of the service."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from plinth.coordinator.preferences.model_judge import check_method
from plinth.coordinator.preferences.pairs import check_selection, check_shape, read_lines
from plinth.coordinator.preferences.ranking import MAX_REASON_CHARS
from plinth.coordinator.preferences.specs import ORIGINS, annotator_of, collection_of, make_task
from plinth.shared.errors import InvalidArgument
from plinth.shared.manifest import check_name
from plinth.shared.redis_keys import check_part
from plinth.v1 import preferences_pb2 as pb

MAX_TASKS_PER_CALL = 100
MAX_TASK_IDS = 1000
MIN_LEASE_S, DEFAULT_LEASE_S, MAX_LEASE_S = 10, 900, 86_400


def lease_seconds(given: int) -> int:
    """With its default. InvalidArgument out of range."""
    seconds = given or DEFAULT_LEASE_S
    if not MIN_LEASE_S <= seconds <= MAX_LEASE_S:
        raise InvalidArgument(
            f"lease_seconds: {seconds}, between {MIN_LEASE_S} and {MAX_LEASE_S}",
            field="lease_seconds",
        )
    return seconds


def _create(request: pb.CreateTasksRequest) -> None:
    collection = collection_of(request.collection)
    if not 1 <= len(request.tasks) <= MAX_TASKS_PER_CALL:
        raise InvalidArgument(
            f"tasks: {len(request.tasks)}, 1 to {MAX_TASKS_PER_CALL} in one call", field="tasks"
        )
    if request.origin not in ("", *ORIGINS):
        raise InvalidArgument(
            f"origin: {request.origin[:40]!r} is none of {', '.join(ORIGINS)}", field="origin"
        )
    for index, spec in enumerate(request.tasks):
        make_task(spec, collection, request.origin, f"tasks.{index}")


def _task(request: Any) -> None:
    collection_of(request.collection)
    check_part(request.task_id, "task_id")


def _list(request: pb.ListPreferenceTasksRequest) -> None:
    collection_of(request.collection)
    if request.limit > 200:
        raise InvalidArgument(f"limit: {request.limit}, at most 200", field="limit")


def _lease(request: pb.LeaseTaskRequest) -> None:
    collection_of(request.collection)
    annotator_of(request.annotator, "key")
    lease_seconds(request.lease_seconds)
    if request.task_id:
        check_part(request.task_id, "task_id")
    if request.request_id:
        check_part(request.request_id, "request_id")


def _held(request: pb.RenewLeaseRequest | pb.ReleaseLeaseRequest) -> None:
    _task(request)
    annotator_of(request.annotator, "key")
    if isinstance(request, pb.RenewLeaseRequest):
        lease_seconds(request.lease_seconds)


def _judgement(request: pb.SubmitJudgementRequest | pb.AddJudgementRequest) -> None:
    _task(request)
    if len(request.reason) > MAX_REASON_CHARS:
        raise InvalidArgument(
            f"reason: {len(request.reason)} characters, at most {MAX_REASON_CHARS}", field="reason"
        )
    if isinstance(request, pb.SubmitJudgementRequest):
        annotator_of(request.annotator, "key")
        return
    annotator_of(request.annotator)
    if request.source not in (pb.JUDGEMENT_SOURCE_RULE, pb.JUDGEMENT_SOURCE_MODEL):
        raise InvalidArgument(
            "source: rule or model; a person's judgement needs a lease (LeaseTask, then "
            "SubmitJudgement)",
            field="source",
        )


def _model_judgements(request: pb.RequestModelJudgementsRequest) -> None:
    collection_of(request.collection)
    check_method(request.method, request.criteria)
    if not request.model:
        raise InvalidArgument("model: name a served model", field="model")
    if len(request.task_ids) > MAX_TASK_IDS or request.limit > MAX_TASK_IDS:
        raise InvalidArgument(f"limit: at most {MAX_TASK_IDS} tasks in one call", field="limit")
    for task_id in request.task_ids:
        check_part(task_id, "task_ids")


def _report(request: pb.GetPreferenceReportRequest) -> None:
    collection_of(request.collection)


def export_position(request: pb.ExportPairsRequest) -> tuple[int | None, int]:
    """(revision that the export is of, pairs that were sent); at its start None for now."""
    if not request.resume_token:
        return request.selection.up_to or None, 0
    match = re.fullmatch(r"([0-9]{1,18})-([0-9]{1,18})", request.resume_token, re.ASCII)
    if match is None:
        raise InvalidArgument(
            f"resume_token {request.resume_token[:40]!r} is none of ExportPairs': give the last "
            "response's as it was, or none to begin",
            field="resume_token",
        )
    return int(match[1]), int(match[2])


def _export(request: pb.ExportPairsRequest) -> None:
    export_position(request)
    collection_of(request.collection)
    check_shape(request.shape)
    check_selection(request.selection)


def _import(request: pb.ImportPairsRequest) -> None:
    read_lines(request, collection_of(request.collection))


def _publish(request: pb.PublishPairsRequest) -> None:
    collection_of(request.collection)
    check_selection(request.selection)
    check_name(request.name, "name")
    if request.HasField("validation_fraction") and not 0 <= request.validation_fraction < 0.5:
        raise InvalidArgument(
            f"validation_fraction: {request.validation_fraction} is not in [0, 0.5)",
            field="validation_fraction",
        )


def _delete(request: pb.DeleteCollectionRequest) -> None:
    check_part(request.collection, "collection")


VALIDATORS: Mapping[str, Callable[[Any], None]] = {
    "CreateTasks": _create,
    "GetPreferenceTask": _task,
    "ListPreferenceTasks": _list,
    "CloseTask": _task,
    "LeaseTask": _lease,
    "RenewLease": _held,
    "ReleaseLease": _held,
    "SubmitJudgement": _judgement,
    "AddJudgement": _judgement,
    "RequestModelJudgements": _model_judgements,
    "GetPreferenceReport": _report,
    "ExportPairs": _export,
    "ImportPairs": _import,
    "PublishPairs": _publish,
    "DeleteCollection": _delete,
}
