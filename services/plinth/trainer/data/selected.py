"""Scored samples made into a corpus: the best of n to learn from, or better against worse.

Samples of one prompt are compared with one another and with no others. What comes out are
`Document`s, in the forms that `messages.py` reads; `write_documents` puts them into a file for a
corpus folder. Knows neither who sampled nor who scored.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plinth.algos.selection import all_pairs, extremes, top_k
from plinth.shared.errors import InvalidArgument
from plinth.shared.intake import Intake
from plinth.shared.messages import PAGE, Messages, parse_flag, parse_string, parse_turns
from plinth.shared.rows import why_no_json
from plinth.trainer.data.documents import MAX_LINE_BYTES, Document

PAIRINGS = ("extremes", "all")
SELECTIONS = (*PAIRINGS, "best")
TIES = ("first", "likely")
SAMPLES = "samples.jsonl"  # in an artifact of kind "samples"
MAX_GAP = 1e6
MAX_SAMPLES = 4096  # of one prompt: pairs grow with the square


@dataclass(frozen=True)
class Scored:
    """One sampled answer: the turns before it, its text, its reward; and, if whoever sampled it
    told, its mean log-probability per token, and whether its length ended it."""

    prompt: Messages
    answer: str
    reward: float
    logprob: float | None = None
    cut_off: bool = False


def best_documents(
    samples: Iterable[Scored],
    *,
    keep: int = 1,
    at_least: float = -math.inf,
    intake: Intake | None = None,
) -> Iterator[Document]:
    """For each prompt, chats that end with its `keep` best answers, if they have the reward
    `at_least` (rejection sampling; Touvron et al. 2023). `intake` is told of each prompt."""
    intake = intake or of_prompts()
    for group in _groups(samples, intake):
        best = [group[index] for index in top_k([sample.reward for sample in group], keep)]
        good = [chosen for chosen in best if chosen.reward >= at_least]
        _tell(intake, bool(good), f"without an answer worth {at_least:g}")
        for chosen in good:
            messages = (*chosen.prompt, ("assistant", chosen.answer))
            yield Document(messages=messages, cut_off=chosen.cut_off)


def pair_documents(
    samples: Iterable[Scored],
    *,
    pairing: str = "extremes",
    min_gap: float = 0.0,
    ties: str = "first",
    source: str = "reward",
    intake: Intake | None = None,
) -> Iterator[Document]:
    """For each prompt, preference pairs whose rewards lie more than `min_gap` apart: the best
    against the worst, or "all". A prompt whose answers are all worth the same gives none. `ties`:
    who of equal rewards is the best or the worst, one of TIES. `intake` is told of each prompt."""
    intake = intake or of_prompts()
    if pairing not in PAIRINGS:
        raise InvalidArgument(
            f"pairing {pairing!r} is unknown; use {' or '.join(map(repr, PAIRINGS))}",
            field="pairing",
        )
    for group in _groups(samples, intake):
        rewards = [sample.reward for sample in group]
        if pairing == "all":
            found = all_pairs(rewards, min_gap)
        else:
            likelihoods = _likelihoods(group) if ties == "likely" else None
            found = [pair] if (pair := extremes(rewards, min_gap, likelihoods)) else []
        _tell(intake, bool(found), f"whose answers are worth the same within {min_gap:g}")
        for better, worse in found:
            yield Document(
                messages=(*group[better].prompt, ("assistant", group[better].answer)),
                rejected=group[worse].answer,
                source=source,
                cut_off=group[better].cut_off,
                rejected_cut_off=group[worse].cut_off,
            )


def _likelihoods(group: Sequence[Scored]) -> list[float]:
    told = [sample.logprob for sample in group if sample.logprob is not None]
    if len(told) < len(group):
        raise InvalidArgument(
            "ties 'likely' needs the log-probability of every sample; these samples don't have it: "
            "sample anew, or use 'first'",
            field="ties",
        )
    return told


def of_prompts() -> Intake:
    """To count prompts in. What a selection passes over is what was asked of it: it is noted."""
    return Intake("prompts")


def _tell(intake: Intake, taken: bool, otherwise: str) -> None:
    if taken:
        intake.taken += 1
    else:
        intake.note(otherwise)


def _groups(samples: Iterable[Scored], intake: Intake) -> list[list[Scored]]:
    """Samples by prompt, in order of first sight. An answer that was given twice counts once (a
    corpus would drop the second), and an empty one never: there is nothing to learn."""
    groups: dict[Messages, dict[str, Scored]] = {}
    for sample in samples:
        if not math.isfinite(sample.reward):
            raise InvalidArgument(
                f"the reward of {sample.answer[:40]!r} is {sample.reward}, must be a finite number",
                reason="REWARD_NOT_FINITE",
            )
        if not sample.prompt or sample.prompt[-1][0] == "assistant":
            raise InvalidArgument("a prompt must end with a turn that is not the assistant's")
        if not sample.answer.strip():
            intake.note("empty answers")
        else:
            group = groups.setdefault(sample.prompt, {})
            group.setdefault(sample.answer, sample)
            if len(group) > MAX_SAMPLES:
                raise InvalidArgument(f"a prompt has more than {MAX_SAMPLES} different answers")
    return [list(group.values()) for group in groups.values()]


def selected(
    folder: Path, selection: str, least: float, ties: str, source: str, intake: Intake
) -> Iterator[Document]:
    """Documents out of a folder of scored samples, by one of SELECTIONS and one of TIES. `intake`
    is told of each prompt."""
    samples = read_scored(folder / SAMPLES)
    if selection == "best":
        return best_documents(samples, at_least=least, intake=intake)
    return pair_documents(
        samples, pairing=selection, min_gap=least, ties=ties, source=source, intake=intake
    )


# -- files ---------------------------------------------------------------------------------------


def read_scored(path: Path) -> Iterator[Scored]:
    """JSON lines {"prompt": text or turns, "answer": text, "reward": number}, with "logprob" and
    "ended" (false: by its length) or without, and what else a line may say. InvalidArgument names
    file and line."""
    with path.open("rb") as file:
        number = 0
        while raw := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if len(raw) > MAX_LINE_BYTES:
                raise InvalidArgument(f"{path}:{number}: longer than {MAX_LINE_BYTES} bytes")
            if raw.strip():
                yield _parse(raw, f"{path}:{number}")


def _parse(raw: bytes, where: str) -> Scored:
    try:
        value: Any = json.loads(raw)
    except (ValueError, RecursionError) as wrong:
        raise InvalidArgument(f"{where}: not JSON ({why_no_json(wrong)}); see {PAGE}") from wrong
    if not isinstance(value, dict):
        raise InvalidArgument(
            f"{where}: must be an object with 'prompt', 'answer' and 'reward'; see {PAGE}"
        )
    prompt, reward = value.get("prompt"), value.get("reward")
    turns: Messages = (
        (("user", parse_string(prompt, where, "prompt")),)
        if isinstance(prompt, str)
        else parse_turns(prompt, where, "prompt")
    )
    answer = parse_string(value.get("answer"), where, "answer")
    logprob = value.get("logprob")
    return Scored(
        turns,
        answer,
        _number(reward, where, "reward"),
        None if logprob is None else _number(logprob, where, "logprob"),
        # Of samples that say nothing of it, each was ended by its model.
        cut_off=value.get("ended") is not None and not parse_flag(value, where, "ended"),
    )


def _number(value: Any, where: str, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidArgument(f"{where}: {field!r} must be a number, not {type(value).__name__}")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # a whole number too large for a float
        finite = False
    if not finite:
        raise InvalidArgument(
            f"{where}: {field!r} must be a finite number", reason=f"{field.upper()}_NOT_FINITE"
        )
    return float(value)


def write_documents(documents: Iterable[Document], path: Path) -> int:
    """Write a `.jsonl` file for a corpus folder, whole or not at all; how many documents it has."""
    count = 0
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("w", encoding="utf-8") as file:
            for document in documents:
                file.write(document.to_json() + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return count
