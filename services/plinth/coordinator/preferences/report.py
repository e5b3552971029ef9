"""What a collection's judgements say of its annotators, of themselves, and of the models.

Everything is computed from one snapshot: tasks never change, and judgements are a log.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from plinth.algos.intervals import wilson
from plinth.coordinator.preferences.agreement import krippendorff_alpha
from plinth.coordinator.preferences.ranking import BETTER, TIE, outcomes, places
from plinth.coordinator.preferences.records import PreferenceRecords
from plinth.coordinator.preferences.strengths import bradley_terry
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import Aborted
from plinth.shared.preference_names import REPORTS
from plinth.v1 import preferences_pb2 as pb

HUMAN = pb.JUDGEMENT_SOURCE_HUMAN


@dataclass(frozen=True)
class Snapshot:
    """The first `revision` judgements of a collection and the tasks that they judge."""

    collection: str
    revision: int
    judgements: Sequence[rec.JudgementRecord]
    tasks: Mapping[str, rec.PreferenceTaskRecord]


async def snapshot(records: PreferenceRecords, up_to: int | None = None) -> Snapshot:
    """Up to that revision; None is now. Aborted when the collection is deleted meanwhile."""
    revision = await records.revision()
    revision = revision if up_to is None else min(up_to, revision)
    judgements = [one async for part in records.judgements(revision) for one in part]
    ids = list(dict.fromkeys(judgement.task_id for judgement in judgements))
    tasks = await records.tasks(ids)
    if len(tasks) < len(ids):  # a judged task goes with its whole collection only
        raise Aborted(f"collection {records.collection} was deleted meanwhile")
    return Snapshot(records.collection, revision, judgements, tasks)


def make_report(seen: Snapshot, tasks: int) -> pb.PreferenceReport:
    """`tasks`: in the whole collection."""
    judgements = seen.judgements
    answer = pb.PreferenceReport(
        name=REPORTS.name(seen.collection),
        task_count=tasks,
        revision=seen.revision,
        human_agreement=agreement(j for j in judgements if j.source == HUMAN),
        overall_agreement=agreement(judgements),
        first_shown_wins=position_bias(judgements),
        annotators=_annotators(seen),
    )
    _add_strengths(answer, seen)
    return answer


def agreement(judgements: Iterable[rec.JudgementRecord]) -> pb.Agreement:
    """Alpha over the outcomes of pairs; judgements that call all bad say nothing of pairs."""
    units: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for judgement in judgements:
        for one, other, outcome in outcomes(judgement):
            units[judgement.task_id, one, other].append(outcome)
    values = list(units.values())
    return pb.Agreement(
        nominal=krippendorff_alpha(values, "nominal"),
        ordinal=krippendorff_alpha(values, "ordinal"),
        pair_count=sum(len(unit) >= 2 for unit in values),
    )


def position_bias(judgements: Iterable[rec.JudgementRecord]) -> pb.Proportion:
    """How often the response shown first is preferred to the one shown last, where one of them is:
    a half when the order does not matter. One comparison a judgement, so they are independent."""
    won = decided = 0
    for judgement in judgements:
        if not judgement.shown or judgement.all_bad:
            continue
        place = places(judgement.ranking)
        first, last = place[judgement.shown[0]], place[judgement.shown[-1]]
        won += first < last
        decided += first != last
    return share(won, decided)


def share(won: float, of: int) -> pb.Proportion:
    """With its 95 % interval; 0 of 0 is nothing known."""
    low, high = wilson(won, of)
    return pb.Proportion(value=won / of if of else 0.0, lower=low, upper=high, count=of)


def answers_gold(judgement: rec.JudgementRecord, gold: Sequence[pb.ResponseTier]) -> bool:
    """Whether it orders every two responses that the gold order tells apart as that does."""
    if judgement.all_bad:
        return False
    right, told = places(gold), places(judgement.ranking)
    return all(
        told[one] < told[other] for one in right for other in right if right[one] < right[other]
    )


def _annotators(seen: Snapshot) -> list[pb.AnnotatorReport]:
    theirs: dict[tuple[int, str], list[rec.JudgementRecord]] = defaultdict(list)
    for judgement in seen.judgements:
        theirs[judgement.source, judgement.annotator].append(judgement)
    reports = []
    for (_, name), judgements in sorted(theirs.items()):
        gold = [
            answers_gold(judgement, seen.tasks[judgement.task_id].gold)
            for judgement in judgements
            if seen.tasks[judgement.task_id].gold
        ]
        reports.append(
            pb.AnnotatorReport(
                annotator=name,
                source=judgements[0].source,
                judgement_count=len(judgements),
                gold=share(sum(gold), len(gold)),
                first_shown_wins=position_bias(judgements),
            )
        )
    return reports


def model_wins(seen: Snapshot) -> tuple[list[str], list[list[float]]]:
    """(models by name, how often each was preferred to each). Ties are half wins; gold questions
    and responses of unknown or of the same model don't count."""
    wins: dict[tuple[str, str], float] = defaultdict(float)
    for judgement in seen.judgements:
        task = seen.tasks[judgement.task_id]
        if task.gold:
            continue
        model = {one.response_id: one.model for one in task.responses}
        for one, other, outcome in outcomes(judgement):
            a, b = model[one], model[other]
            if a and b and a != b:
                half = 0.5 if outcome == TIE else float(outcome == BETTER)
                wins[a, b] += half
                wins[b, a] += 1 - half
    names = sorted({name for pair in wins for name in pair})
    return names, [[wins.get((a, b), 0.0) for b in names] for a in names]


def _add_strengths(answer: pb.PreferenceReport, seen: Snapshot) -> None:
    names, wins = model_wins(seen)
    if len(names) < 2:
        return
    fitted = bradley_terry(wins)
    answer.strengths_shrunk = fitted.shrunk
    for index, name in enumerate(names):
        games = sum(wins[index]) + sum(row[index] for row in wins)
        answer.models.add(
            model=name,
            strength=fitted.strengths[index],
            lower=fitted.lows[index],
            upper=fitted.highs[index],
            comparison_count=round(games),
        )
    answer.models.sort(key=lambda model: -model.strength)
