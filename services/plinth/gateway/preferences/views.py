"""What /v1/preferences answers: the messages of PreferenceService as REST's clients know them, and
what is wrong with a request by the names that its body has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as Proto

from plinth.shared.api.enums import word
from plinth.shared.api.structs import plain_values
from plinth.shared.api.times import unix_ms
from plinth.shared.errors import PlinthError
from plinth.shared.preference_names import TASKS
from plinth.v1 import artifacts_pb2
from plinth.v1 import preferences_pb2 as pb

# Names of fields in the service's requests → in REST's bodies; the first that fits is taken.
_NAMES = tuple(
    (re.compile(rf"^{pattern}"), ours)
    for pattern, ours in (
        (r"requests\.(\d+)\.task\.spec\.wanted_judgement_count", r"tasks.\1.wanted"),
        (r"requests\.(\d+)\.(?:task\.spec\.)?", r"tasks.\1."),
        (r"requests\b", "tasks"),
        (r"judgement\.spec\.", ""),
        (r"lease_duration\b", "lease_seconds"),
        (r"selection\.max_revision\b", "up_to"),
        (r"selection\.", ""),
        (r"min_pair_count\b", "at_least"),
        (r"max_task_count\b", "limit"),
        (r"artifact_id\b", "name"),
        (r"name\b", "task_id"),
    )
)


def in_rest_words(error: PlinthError) -> PlinthError:
    """The same error with the field that REST's clients know."""
    for pattern, ours in _NAMES:
        if pattern.match(error.field):
            return type(error)(
                pattern.sub(ours, error.message, count=1),
                reason=error.reason,
                field=pattern.sub(ours, error.field, count=1),
                metadata=error.metadata,
                retry_after_s=error.retry_after_s,
            )
    return error


def task_view(task: pb.PreferenceTask) -> dict[str, Any]:
    spec, status = task.spec, task.status
    collection, task_id = TASKS.ids(task.name)
    return {
        "task_id": task_id,
        "collection": collection,
        "prompt": [as_json(message) for message in spec.prompt],
        "responses": [as_json(one) for one in (*spec.responses, *status.sampled_responses)],
        "samples": [as_json(sample) for sample in spec.samples],
        "wanted": spec.wanted_judgement_count,
        "gold": tiers_view(spec.gold),
        "origin": word(pb.PreferenceTaskOrigin, spec.origin),
        "request_id": spec.answered_request_id,
        "created_unix_ms": unix_ms(task.create_time),
        "state": word(pb.PreferenceTaskState, status.state),
        "judged": status.human_judgement_count,
        "error": status.error,
    }


def tiers_view(tiers: Iterable[pb.ResponseTier]) -> list[list[str]]:
    return [list(tier.response_ids) for tier in tiers]


def counts_view(status: pb.PreferenceCollectionStatus) -> dict[str, int]:
    return {
        "total": status.task_count,
        "open": status.open_task_count,
        "leased": status.leased_task_count,
        "judgements": status.revision,
    }


def lease_view(lease: pb.PreferenceLease) -> dict[str, Any]:
    return {
        "task_id": TASKS.id(lease.task),
        "prompt": [as_json(message) for message in lease.prompt],
        "responses": [as_json(response) for response in lease.responses],
        "annotator": lease.annotator,
        "fence": lease.fence,
        "expires_unix_ms": unix_ms(lease.expire_time),
    }


def judgement_view(judgement: pb.Judgement) -> dict[str, Any]:
    spec = judgement.spec
    told = {
        "task_id": TASKS.id(judgement.name.rpartition("/judgements/")[0]),
        "ranking": tiers_view(spec.ranking),
        "all_bad": spec.all_bad,
        "reason": spec.reason,
        "annotator": spec.annotator,
        "source": word(pb.JudgementSource, spec.source),
        "shown": list(spec.shown),
        "judged_unix_ms": unix_ms(judgement.create_time),
        "key_id": judgement.owner.key_id,
    }
    return {"judgement": told, "revision": judgement.revision}


def report_view(report: pb.PreferenceReport) -> dict[str, Any]:
    return {
        "tasks": report.task_count,
        "judgements": report.revision,
        "revision": report.revision,
        "people": _agreement(report.human_agreement),
        "everybody": _agreement(report.overall_agreement),
        "first_shown_wins": _share(report.first_shown_wins),
        "annotators": [
            {
                "annotator": one.annotator,
                "source": word(pb.JudgementSource, one.source),
                "judgements": one.judgement_count,
                "gold": _share(one.gold),
                "first_shown_wins": _share(one.first_shown_wins),
            }
            for one in report.annotators
        ],
        "models": [
            {
                "model": one.model,
                "strength": one.strength,
                "low": one.lower,
                "high": one.upper,
                "comparisons": one.comparison_count,
            }
            for one in report.models
        ],
        "strengths_shrunk": report.strengths_shrunk,
    }


def _agreement(agreement: pb.Agreement) -> dict[str, Any]:
    known = {
        name: getattr(agreement, name)
        for name in ("nominal", "ordinal")
        if agreement.HasField(name)
    }
    return {**known, "pairs": agreement.pair_count}


def _share(share: pb.Proportion) -> dict[str, Any]:
    return {"share": share.value, "low": share.lower, "high": share.upper, "count": share.count}


def import_view(answer: pb.ImportPairsResponse) -> dict[str, Any]:
    return {
        "imported": answer.imported_count,
        "known": answer.known_count,
        "contradictions": [
            {"line": one.line, "task_id": TASKS.id(one.task), "annotator": one.annotator}
            for one in answer.contradictions
        ],
        "lines": [
            {
                "line": one.line,
                "task_id": TASKS.id(one.task),
                "annotator": one.annotator,
                "judge": one.judge,
                "says": one.ranking_digest,
                "stands": one.recorded_digest,
            }
            for one in answer.lines
        ],
    }


def artifact_view(artifact: artifacts_pb2.Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    told = {
        "config": plain_values(manifest.config),
        "metrics": plain_values(manifest.metrics),
        "extra": plain_values(manifest.extra),
        "data_digests": dict(manifest.data_digests),
        "input_digest": manifest.input_digest,
        "license": manifest.license,
        "code_version": manifest.code_version,
    }
    return {
        "name": artifact.artifact_id,
        "version": artifact.version,
        "kind": word(artifacts_pb2.ArtifactKind, artifact.kind),
        "digest": artifact.digest,
        "uri": artifact.uri,
        "parents": list(artifact.parents),
        "manifest_json": json.dumps(told, ensure_ascii=False),
        "aliases": list(artifact.aliases),
        "created_unix_ms": unix_ms(artifact.create_time),
    }


def as_json(message: Proto) -> dict[str, Any]:
    """A message as REST shows it: numbers as numbers (protobuf's own JSON makes text of 64-bit
    ones), enums as their lower-case words, what is unset left out."""
    shown: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.is_repeated:
            shown[field.name] = [_plain(field, one) for one in value]
        elif not field.has_presence or message.HasField(field.name):
            shown[field.name] = _plain(field, value)
    return shown


def _plain(field: Any, value: Any) -> Any:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return as_json(value)
    if field.type == FieldDescriptor.TYPE_ENUM:
        prefix = field.enum_type.values_by_number[0].name.removesuffix("UNSPECIFIED")
        return field.enum_type.values_by_number[value].name.removeprefix(prefix).lower()
    return value
