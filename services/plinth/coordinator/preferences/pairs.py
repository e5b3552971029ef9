"""From judgements to preference pairs, and pairs as JSON lines out and in.

A task's judgements are counted pair by pair: where more prefer i to j than j to i, (i, j) is a
pair, and its `agreement` is the share of the judgements of these two that say so. Ties, draws and
judgements that call all bad give no pair, nor do gold questions. Every line is labelled with who
says so; readers that know only prompt, chosen and rejected pass over the labels.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from plinth.coordinator.preferences.ranking import BETTER, TIE, WORSE, outcomes, tiers
from plinth.coordinator.preferences.report import Snapshot
from plinth.coordinator.preferences.specs import annotator_of, make_task
from plinth.internal.v1 import preference_records_pb2 as rec
from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake
from plinth.shared.messages import PAGE, TO_UTF8, Messages, hh_dialogue, turns_json
from plinth.shared.rows import parse_pair, why_no_json
from plinth.v1 import chat_pb2
from plinth.v1 import preferences_pb2 as pb

MAX_IMPORT_LINES = 1000
MAX_IMPORT_BYTES = 4 << 20
SOURCES = {
    "human": pb.JUDGEMENT_SOURCE_HUMAN,
    "rule": pb.JUDGEMENT_SOURCE_RULE,
    "model": pb.JUDGEMENT_SOURCE_MODEL,
}


def source_word(source: int) -> str:
    """ "human", "rule" or "model"."""
    return next(word for word, value in SOURCES.items() if value == source)


@dataclass(frozen=True)
class JudgedPair:
    """One of two responses was preferred."""

    task_id: str
    prompt: Messages
    chosen: str
    rejected: str
    labels: dict[str, Any] = field(default_factory=dict)

    def line(self, shape: str) -> str:
        """One JSON line in the shape "trl" or "hh", without its end. InvalidArgument where HH's
        shape can't hold it."""
        sides = {"chosen": self.chosen, "rejected": self.rejected}
        if shape == "hh":
            where = f"task {self.task_id}"
            value: dict[str, Any] = {
                side: hh_dialogue((*self.prompt, ("assistant", text)), where)
                for side, text in sides.items()
            }
        else:
            value = {"prompt": turns_json(self.prompt)}
            value |= {side: turns_json([("assistant", text)]) for side, text in sides.items()}
        return json.dumps({**value, **self.labels}, ensure_ascii=False)


def check_selection(selection: pb.PairSelection) -> None:
    """InvalidArgument for what selects nothing that could be."""
    if not 0 <= selection.min_agreement <= 1:
        raise InvalidArgument(
            f"selection.min_agreement: {selection.min_agreement} is not between 0 and 1",
            field="selection.min_agreement",
        )
    if any(source not in SOURCES.values() for source in selection.sources):
        raise InvalidArgument(
            "selection.sources: human, rule and model are the sources there are",
            field="selection.sources",
        )


def judged_pairs(
    seen: Snapshot, selection: pb.PairSelection, intake: Intake | None = None
) -> Iterator[JudgedPair]:
    """In the order in which their tasks were first judged. `intake` is told which comparisons of
    two responses gave a pair, and which none."""
    wanted = set(selection.sources)
    intake = intake or comparisons()
    by_task: dict[str, list[rec.JudgementRecord]] = defaultdict(list)
    for judgement in seen.judgements:
        if seen.tasks[judgement.task_id].gold:
            intake.note("judgements of gold questions")
        elif wanted and judgement.source not in wanted:
            intake.note("judgements by other sources")
        elif judgement.all_bad:
            intake.note("judgements that call all bad")
        else:
            by_task[judgement.task_id].append(judgement)
    for task_id, judgements in by_task.items():
        yield from _pairs_of(seen.tasks[task_id], judgements, selection.min_agreement, intake)


def comparisons() -> Intake:
    """To count in how a collection's judgements become pairs."""
    return Intake("comparisons of two responses")


def _pairs_of(
    task: rec.PreferenceTaskRecord,
    judgements: Sequence[rec.JudgementRecord],
    min_agreement: float,
    intake: Intake,
) -> Iterator[JudgedPair]:
    said: dict[tuple[str, str], dict[int, list[rec.JudgementRecord]]] = defaultdict(
        lambda: {WORSE: [], TIE: [], BETTER: []}
    )
    for judgement in judgements:
        for one, other, outcome in outcomes(judgement):
            said[one, other][outcome].append(judgement)
    responses = {response.response_id: response for response in task.responses}
    for (one, other), votes in said.items():
        lead = len(votes[BETTER]) - len(votes[WORSE])
        if lead == 0:
            intake.leave_out("undecided: a tie, or as many for as against")
            continue
        winner, loser, agreeing = (
            (one, other, votes[BETTER]) if lead > 0 else (other, one, votes[WORSE])
        )
        agreement = len(agreeing) / sum(map(len, votes.values()))
        if agreement < min_agreement:
            intake.note("below min_agreement")
        else:
            intake.taken += 1
            yield _pair(task, responses[winner], responses[loser], agreeing, agreement)


def _pair(
    task: rec.PreferenceTaskRecord,
    chosen: pb.PreferenceResponse,
    rejected: pb.PreferenceResponse,
    agreeing: Sequence[rec.JudgementRecord],
    agreement: float,
) -> JudgedPair:
    sources = sorted({source_word(judgement.source) for judgement in agreeing})
    labels = {
        "source": "+".join(sources),
        "annotators": [judgement.annotator for judgement in agreeing],
        "agreement": round(agreement, 6),
        "chosen_model": chosen.model,
        "rejected_model": rejected.model,
        "reasons": [judgement.reason for judgement in agreeing if judgement.reason],
        "task_id": task.task_id,
    }
    sides = {"cut_off": chosen, "rejected_cut_off": rejected}
    labels |= {label: True for label, response in sides.items() if response.cut_off}
    prompt = tuple((message.role, message.content) for message in task.prompt)
    return JudgedPair(task.task_id, prompt, chosen.text, rejected.text, labels)


# -- in ------------------------------------------------------------------------------------


def read_lines(
    request: pb.ImportPairsRequest, collection: str
) -> list[tuple[int, rec.PreferenceTaskRecord, rec.JudgementRecord]]:
    """(number of the line, task, judgement) of each. InvalidArgument names the first line that is
    wrong. A byte order mark before the first is passed over."""
    if len(request.jsonl) > MAX_IMPORT_BYTES:
        raise InvalidArgument(
            f"jsonl: {len(request.jsonl):,} bytes, at most {MAX_IMPORT_BYTES:,}; send the lines in "
            "several calls",
            field="jsonl",
        )
    try:
        lines = request.jsonl.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        line = (request.first_line or 1) + request.jsonl.count(b"\n", 0, error.start)
        raise InvalidArgument(
            f"line {line}: not UTF-8 ({error}); {TO_UTF8}", field="jsonl"
        ) from error
    first = request.first_line or 1
    numbered = [(number, line) for number, line in enumerate(lines, first) if line.strip()]
    if not 1 <= len(numbered) <= MAX_IMPORT_LINES:
        raise InvalidArgument(
            f"jsonl: {len(numbered)} lines, 1 to {MAX_IMPORT_LINES} in one call", field="jsonl"
        )
    return [
        (number, *_read(line, request, collection, f"line {number}")) for number, line in numbered
    ]


def _read(
    line: str, request: pb.ImportPairsRequest, collection: str, where: str
) -> tuple[rec.PreferenceTaskRecord, rec.JudgementRecord]:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError) as error:
        message = f"{where}: not JSON ({why_no_json(error)}); see {PAGE}"
        raise InvalidArgument(message, field="jsonl") from error
    messages, rejected = parse_pair(value, where)[:2]
    chosen = messages[-1][1]
    prompt = [chat_pb2.ChatMessage(role=role, content=text) for role, text in messages[:-1]]
    models = {chosen: value.get("chosen_model"), rejected: value.get("rejected_model")}
    cut_off = {chosen: value.get("cut_off"), rejected: value.get("rejected_cut_off")}
    key = json.dumps([messages[:-1], *sorted(models)], ensure_ascii=False)
    spec = pb.PreferenceTaskSpec(
        prompt=prompt,
        responses=[
            pb.PreferenceResponse(
                text=text, model=str(models[text] or ""), cut_off=cut_off[text] is True
            )
            for text in sorted(models)
        ],
        wanted_judgement_count=0,
        origin=pb.PREFERENCE_TASK_ORIGIN_IMPORT,
    )
    task_id = f"import-{hashlib.sha256(key.encode()).hexdigest()[:32]}"
    task = make_task(spec, collection, where, task_id=task_id)
    name = {response.text: response.response_id for response in task.responses}
    source, annotator = _said_by(value, request, where)
    judgement = rec.JudgementRecord(
        task_id=task.task_id,
        ranking=tiers([[name[chosen]], [name[rejected]]]),
        reason=_reason(value, where),
        annotator=annotator,
        source=source,
    )
    return task, judgement


def _said_by(
    value: dict[str, Any], request: pb.ImportPairsRequest, where: str
) -> tuple[pb.JudgementSource.ValueType, str]:
    """As the request says for all lines, else as the line itself says."""
    if request.source:
        return request.source, annotator_of(request.annotator, "import")
    word, _, after = str(value.get("source") or "").partition(":")
    if word not in SOURCES:
        raise InvalidArgument(
            f"{where}: whose judgement is it? Its 'source' is {word[:40]!r}, none of "
            f"{', '.join(SOURCES)}; give the source for all lines (`--source human`)",
            reason="SOURCE_MISSING",
            field="source",
        )
    named = value.get("annotators")
    listed = str(named[0]) if isinstance(named, list) and named else ""
    return SOURCES[word], annotator_of(request.annotator or after or listed, "import")


def _reason(value: dict[str, Any], where: str) -> str:
    reasons = value.get("reasons") or value.get("reason") or ""
    text = "\n".join(map(str, reasons)) if isinstance(reasons, list) else str(reasons)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise InvalidArgument(f"{where}: the reason holds a lone surrogate", field="jsonl")
    return text[:4000]
