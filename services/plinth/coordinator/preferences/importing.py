"""Pairs that were judged elsewhere, put into a collection line by line.

Each line is whole or not there, and one that is there is known when it comes again: an import that
was cut off is repeated as it was. A line that says otherwise than its judge said before is told and
left out, whenever it comes: who was first stays.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable

from plinth.coordinator.preferences.records import PreferenceRecords, judge_field
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import AlreadyExists, PlinthError
from plinth.shared.preference_names import TASKS
from plinth.v1 import owner_pb2
from plinth.v1 import preferences_pb2 as pb

Line = tuple[int, rec.PreferenceTaskRecord, rec.JudgementRecord]


async def import_lines(
    records: PreferenceRecords,
    lines: Iterable[Line],
    *,
    owner: owner_pb2.Owner | None = None,
    check_only: bool = False,
) -> pb.ImportPairsResponse:
    """What became of the lines, which `owner` brings, or with `check_only` what would.
    Raises what Redis or a full collection does, with the line at which to go on."""
    answer = pb.ImportPairsResponse()
    here: dict[tuple[str, str], rec.JudgementRecord] = {}  # by task and judge, of these lines
    for number, task, judgement in lines:
        judgement.judged_unix_ms = time.time_ns() // 1_000_000
        if owner is not None:
            task.tenant, task.key_id = owner.tenant, owner.key_id
            judgement.tenant, judgement.key_id = owner.tenant, owner.key_id
        key = task.task_id, judge_field(judgement)
        stands = None if key in here else await records.said_by(task.task_id, judgement)
        if check_only:
            answer.lines.append(_line(number, judgement, task, stands))
        before = here.get(key) or stands
        if before is None:
            before = judgement if check_only else await _put(records, number, task, judgement)
            new = before is judgement
        else:
            new = False
        here[key] = before
        if new:
            answer.imported_count += 1
        elif list(before.ranking) == list(judgement.ranking):
            answer.known_count += 1
        else:
            answer.contradictions.add(line=number, task=_name(task), annotator=judgement.annotator)
    return answer


def _line(
    number: int,
    judgement: rec.JudgementRecord,
    task: rec.PreferenceTaskRecord,
    stands: rec.JudgementRecord | None,
) -> pb.ImportLine:
    return pb.ImportLine(
        line=number,
        task=_name(task),
        annotator=judgement.annotator,
        judge=judge_field(judgement),
        ranking_digest=_digest(judgement),
        recorded_digest="" if stands is None else _digest(stands),
    )


def _name(task: rec.PreferenceTaskRecord) -> str:
    return TASKS.name(task.collection, task.task_id)


def _digest(judgement: rec.JudgementRecord) -> str:
    ranking = rec.JudgementRecord(ranking=judgement.ranking)
    return hashlib.sha256(ranking.SerializeToString(deterministic=True)).hexdigest()[:32]


async def _put(
    records: PreferenceRecords,
    number: int,
    task: rec.PreferenceTaskRecord,
    judgement: rec.JudgementRecord,
) -> rec.JudgementRecord:
    """`judgement` itself; or what its judge said of the task in the meantime."""
    try:
        await records.ensure(task)
        await records.add(judgement)
    except AlreadyExists:
        said = await records.said_by(task.task_id, judgement)
        assert said is not None
        return said
    except PlinthError as error:
        raise type(error)(
            f"line {number}: {error.message}; the lines before it are imported",
            reason=error.reason,
            field=error.field,
            retry_after_s=error.retry_after_s,
        ) from error
    return judgement
