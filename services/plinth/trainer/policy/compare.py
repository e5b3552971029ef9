"""Which of some models answers best, by a judge, on prompts that none of them has learned from.

Every model answers the same held-out prompts with the same noise. The first is the baseline; the
others are compared with it prompt by prompt. Two answers are a tie where they are the same, or
where the judge gives both the same score; a tie says nothing of which model is better, and counts
half in the win rate.

A judge can be pleased by answers that say little. So the report tells two things beside its scores:
how varied the answers are, and, where the dataset has an answer of its own to each prompt, whether
they speak of what was asked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import DecodeStream

from plinth.algos.paired import PairedCounts, rate_shown
from plinth.algos.reference_overlap import reference_overlap
from plinth.shared.answer_form import distinct_trigrams
from plinth.shared.errors import InvalidArgument, PlinthError
from plinth.trainer.data.shards import Split
from plinth.trainer.loop.config import TrainConfig
from plinth.trainer.loop.group import Group
from plinth.trainer.loop.job_folder import JobFolder, JobProgress
from plinth.trainer.loop.machine import choose_threads
from plinth.trainer.loop.setup import open_decoder
from plinth.trainer.policy.config import PolicyConfig
from plinth.trainer.policy.judge import Judge
from plinth.trainer.policy.prompts import Prompt, answer, prompts_of, references_of, sampler_for

REPORT = "comparison.json"
_SHOWN = 3  # prompts whose answers the report holds

AnswerScore = tuple[tuple[int, ...], float]  # an answer's ids, and the judge's score


def compare(config: TrainConfig, folder: JobFolder, group: Group) -> str:
    """Answer, judge, report; the outcome is in the folder and returned."""
    if (ended := folder.outcome()) is not None:
        return str(ended["status"])
    try:
        report = _compare(config, folder, group)
    except PlinthError as error:
        folder.end("failed", error=error)
        return "failed"
    if report is None:
        status = "paused" if folder.requested() == "pause" else "cancelled"
        folder.end(status)
        return status
    folder.model.mkdir(exist_ok=True)
    (folder.model / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False))
    folder.end("succeeded", metrics=report)
    return "succeeded"


def _compare(config: TrainConfig, folder: JobFolder, group: Group) -> dict[str, Any] | None:
    assert config.policy is not None
    policy = PolicyConfig(**config.policy)
    torch.set_num_threads(choose_threads(config.threads, 1))
    split = Split(Path(config.dataset), "validation")
    judge = Judge(Path(config.reward), policy.micro_batch, group.device)
    answers: list[list[AnswerScore]] = []
    prompts: list[Prompt] = []
    for number, place in enumerate(config.candidates):
        note = f"model {number + 1} of {len(config.candidates)} answers"
        if prompts:
            note += f" {_power(len(prompts), len(config.candidates) - 1)}"
        folder.write_progress(JobProgress(number, len(config.candidates), unit="model", note=note))
        if folder.requested() is not None:
            return None
        decoder = open_decoder(Path(place), split.info).to(group.device)
        if not prompts:
            room = decoder.config.context - policy.max_new_tokens
            prompts = prompts_of(split, room)[: policy.prompts]
            if len(prompts) < 2:
                raise InvalidArgument(
                    f"{len(prompts)} held-out prompts of at most {room} tokens; hold out more, or "
                    "make max_new_tokens smaller",
                    field="dataset",
                )
        sampler = sampler_for(decoder, len(prompts), group.device)
        sampler.renew(0)
        rollouts = answer(sampler, prompts, policy, frozenset(decoder.config.eos_ids))
        scores = judge(rollouts)
        answers.append([(one.response, score) for one, score in zip(rollouts, scores, strict=True)])
    return _report(_Texts(Path(config.dataset), prompts, references_of(split)), answers)


class _Texts:
    """Prompts, their references if they have any, and answers, as people read them."""

    def __init__(
        self, dataset: Path, prompts: Sequence[Prompt], references: Mapping[Prompt, Prompt]
    ) -> None:
        self._tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
        self.prompts = self.read(prompts)
        known = bool(prompts) and all(prompt in references for prompt in prompts)
        self.references = self.read([references[p] for p in prompts]) if known else None

    def read(self, all_ids: Sequence[Prompt]) -> list[str]:
        return [_text(self._tokenizer, ids) for ids in all_ids]


def _report(texts: _Texts, answers: Sequence[Sequence[AnswerScore]]) -> dict[str, Any]:
    models, shown = [], [{"prompt": text.strip()} for text in texts.prompts[:_SHOWN]]
    for one, reference in zip(shown, texts.references or (), strict=False):
        one["reference"] = reference
    for number, theirs in enumerate(answers):
        words = texts.read([ids for ids, _ in theirs])
        figures = against(answers[0], theirs) | {"distinct_trigrams": distinct_trigrams(words)}
        if texts.references is not None:
            overlap = reference_overlap(texts.prompts, words, texts.references)
            figures |= {f"reference_{name}": value for name, value in asdict(overlap).items()}
        models.append(figures)
        for one, answer_ in zip(shown, words, strict=False):
            one[str(number)] = answer_
    return {"prompts": len(texts.prompts), "models": models, "shown": shown}


def _power(prompts: int, rivals: int) -> str:
    """What so many prompts can show, told before it is known."""
    rate = rate_shown(prompts, rivals=rivals)
    return f"{prompts:,} prompts, which show a true win rate of {rate:.1%} (80 % power)"


def against(baseline: Sequence[AnswerScore], answers: Sequence[AnswerScore]) -> dict[str, float]:
    """Figures of a model's answers, prompt by prompt against the baseline's. win_rate_low, _high:
    the 95 % interval of this comparison by itself, ties as given."""
    wins = losses = same = 0
    for (ours, score), (theirs, other) in zip(answers, baseline, strict=True):
        # Numerical noise in the score of the same answer is no win.
        same += ours == theirs
        wins += ours != theirs and score > other
        losses += ours != theirs and score < other
    pairs = PairedCounts(wins, losses, len(answers) - wins - losses)
    low, high = pairs.interval()
    scores = [score for _, score in answers]
    return {
        "reward": float(np.mean(scores)),
        "reward_std": float(np.std(scores)),
        "wins": wins,
        "losses": losses,
        "ties": pairs.ties,
        "same_answers": same,
        "win_rate": pairs.rate,
        "win_rate_low": low,
        "win_rate_high": high,
    }


def _text(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    """The answer, without a character that it was cut off in."""
    stream = DecodeStream(ids=[], skip_special_tokens=True)
    return "".join(filter(None, (stream.step(tokenizer, id_) for id_ in ids)))
