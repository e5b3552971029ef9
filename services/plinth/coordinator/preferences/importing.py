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
from plinth.shared.errors import AlreadyExists, PlinthError
from plinth.v1 import preferences_pb2 as pb

Line = tuple[int, pb.PreferenceTask, pb.Judgement]


async def import_lines(
    records: PreferenceRecords, lines: Iterable[Line], *, key_id: str = "", check_only: bool = False
) -> pb.ImportPairsResponse:
    """What became of the lines, which the key `key_id` brings, or with `check_only` what would.
    Raises what Redis or a full collection does, with the line at which to go on."""
    answer = pb.ImportPairsResponse()
    here: dict[tuple[str, str], pb.Judgement] = {}  # by task and judge, of these lines
    for number, task, judgement in lines:
        judgement.judged_unix_ms = time.time_ns() // 1_000_000
        judgement.key_id = key_id
        key = task.task_id, judge_field(judgement)
        stands = None if key in here else await records.said_by(task.task_id, judgement)
        if check_only:
            answer.lines.append(_line(number, judgement, task.task_id, stands))
        before = here.get(key) or stands
        if before is None:
            before = judgement if check_only else await _put(records, number, task, judgement)
            new = before is judgement
        else:
            new = False
        here[key] = before
        if new:
            answer.imported += 1
        elif list(before.ranking) == list(judgement.ranking):
            answer.known += 1
        else:
            answer.contradictions.add(
                line=number, task_id=task.task_id, annotator=judgement.annotator
            )
    return answer


def _line(
    number: int, judgement: pb.Judgement, task_id: str, stands: pb.Judgement | None
) -> pb.ImportLine:
    return pb.ImportLine(
        line=number,
        task_id=task_id,
        annotator=judgement.annotator,
        judge=judge_field(judgement),
        says=_digest(judgement),
        stands="" if stands is None else _digest(stands),
    )


def _digest(judgement: pb.Judgement) -> str:
    ranking = pb.Judgement(ranking=judgement.ranking)
    return hashlib.sha256(ranking.SerializeToString(deterministic=True)).hexdigest()[:32]


async def _put(
    records: PreferenceRecords, number: int, task: pb.PreferenceTask, judgement: pb.Judgement
) -> pb.Judgement:
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
