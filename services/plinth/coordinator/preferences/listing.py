"""Pages of a collection's tasks and judgements.

A page is read in small parts and ends early when it has looked at much or holds much, so that its
memory is bounded whatever the collection holds; the next one goes on behind what was looked at.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Generic, TypeVar

from plinth.coordinator.preferences.messages import judgement_message, state_word, task_message
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.api.enums import word, words
from plinth.shared.api.filters import Field, Filters
from plinth.shared.api.paging import Pages
from plinth.shared.api.times import moment
from plinth.v1 import preferences_pb2 as pb

MAX_LOOKED = 2000  # records that one page looks at
MAX_BYTES = 2 << 20  # of what one page holds, nearly
PART = 32  # records read at once

R = TypeVar("R", rec.PreferenceTaskRecord, rec.JudgementRecord)

TASK_FILTERS = Filters(
    {
        "state": Field(
            state_word, str, tuple(one.upper() for one in words(pb.PreferenceTaskState))
        ),
        "origin": Field(
            lambda task: task.origin.upper(),
            str,
            tuple(one.upper() for one in words(pb.PreferenceTaskOrigin)),
        ),
        "task_id": Field(lambda task: task.task_id, str),
        "human_judgement_count": Field(lambda task: task.judged, int),
        "gold": Field(lambda task: bool(task.gold), bool),
        "create_time": Field(lambda task: moment(task.created_unix_ms), datetime),
    }
)
# Of (revision, record).
JUDGEMENT_FILTERS = Filters(
    {
        "source": Field(
            lambda one: word(pb.JudgementSource, one[1].source).upper(),
            str,
            tuple(each.upper() for each in words(pb.JudgementSource)),
        ),
        "annotator": Field(lambda one: one[1].annotator, str),
        "all_bad": Field(lambda one: one[1].all_bad, bool),
        "revision": Field(lambda one: one[0], int),
        "create_time": Field(lambda one: moment(one[1].judged_unix_ms), datetime),
    }
)


@dataclass(frozen=True)
class Page(Generic[R]):
    """behind: where the next page begins; 0 after the last."""

    found: list[tuple[int, R]]
    behind: int


async def page(
    read: Callable[[int, int], Awaitable[tuple[Sequence[tuple[int, R]], bool]]],
    keep: Callable[[tuple[int, R]], bool],
    *,
    behind: int,
    size: int,
    weigh: Callable[[R], int],
) -> Page[R]:
    """read: (position, count) → (so many (position, record) behind it, whether there may be more).
    weigh: bytes of a record as it is returned."""
    found: list[tuple[int, R]] = []
    looked = held = 0
    while True:
        part, more = await read(behind, PART)
        for position, record in part:
            if len(found) == size or looked == MAX_LOOKED or held >= MAX_BYTES:
                return Page(found, behind)  # there is this one at least
            behind, looked = position, looked + 1
            if keep((position, record)):
                found.append((position, record))
                held += weigh(record)
        if not more:
            return Page(found, 0)


async def task_page(
    records: PreferenceRecords, request: pb.ListPreferenceTasksRequest, pages: Pages
) -> pb.ListPreferenceTasksResponse:
    full = request.view == pb.PREFERENCE_TASK_VIEW_FULL
    keep = TASK_FILTERS.parse(request.filter)
    found = await page(
        records.behind,
        lambda one: keep(one[1]),
        behind=int(pages.position(request) or 0),
        size=pages.size(request),
        weigh=lambda task: task.ByteSize() if full else 0,
    )
    return pb.ListPreferenceTasksResponse(
        tasks=[task_message(task, texts=full) for _, task in found.found],
        next_page_token=pages.token(request, str(found.behind)) if found.behind else "",
        total_size=(await records.counts()).total,
    )


async def judgement_page(
    records: PreferenceRecords, task_id: str, request: pb.ListJudgementsRequest, pages: Pages
) -> pb.ListJudgementsResponse:
    """task_id: empty for all tasks."""
    keep = JUDGEMENT_FILTERS.parse(request.filter)
    numbers = await records.judgements_of(task_id) if task_id else []

    async def of_task(
        behind: int, count: int
    ) -> tuple[list[tuple[int, rec.JudgementRecord]], bool]:
        begin = bisect_right(numbers, behind)
        part = numbers[begin : begin + count]
        return await records.numbered(part), len(part) == count

    found = await page(
        of_task if task_id else records.judgements_behind,
        keep,
        behind=int(pages.position(request) or 0),
        size=pages.size(request),
        weigh=lambda judgement: judgement.ByteSize(),
    )
    return pb.ListJudgementsResponse(
        judgements=[
            judgement_message(records.collection, record, revision)
            for revision, record in found.found
        ],
        next_page_token=pages.token(request, str(found.behind)) if found.behind else "",
    )
