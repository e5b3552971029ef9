"""Step "sample": a model answers a set's prompts several times, and each answer gets its reward.

The answers come from the inference shards by the rollout queue, the rewards from the reward stage
by its own. The artifact holds one JSON line per answer (`samples.jsonl`), from which a step `data`
makes pairs, or chats of the best ones.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar, Literal

from pydantic import Field, model_validator

from plinth.coordinator.respondent import Respondent, Sampled
from plinth.coordinator.rewards import CHECKS, WeightedRule, sources_of
from plinth.coordinator.steps.contract import (
    Input,
    Name,
    Progress,
    StepOutcome,
    StepSpec,
    Tools,
    Work,
)
from plinth.shared.prompt_set import read_prompts
from plinth.shared.reward_plugins import plugins
from plinth.shared.rollout_results import MAX_SAMPLES
from plinth.shared.source_roots import SourceRoots
from plinth.shared.tasks import cancel_and_wait

SAMPLES = "samples.jsonl"
_TELL_S = 0.5


class SampleSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "model": frozenset({"model"}),
        "prompts": frozenset({"prompts"}),
        "reward": frozenset({"reward"}),
    }

    kind: Literal["sample"]
    model: Input
    prompts: Input
    split: Literal["train", "validation"] = "train"
    samples: int = Field(default=4, ge=1, le=MAX_SAMPLES)  # per prompt
    temperature: float = Field(default=1.0, gt=0, le=2)
    max_tokens: int = Field(default=128, ge=1, le=4096)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    # Rules by name; and a reward model with its weight, if one is given.
    rewards: dict[Name, WeightedRule] = Field(default=dict(CHECKS), max_length=15)
    reward: Input | None = None
    reward_weight: float | None = Field(default=None, ge=-1e6, le=1e6)  # of it then; default 1

    @model_validator(mode="after")
    def _whole(self) -> SampleSpec:
        if self.reward_weight is not None and self.reward is None:
            raise ValueError("reward_weight is of a reward model: give reward, or leave it out")
        if not self.rewards and self.reward is None:
            raise ValueError("nothing would score the answers: give rewards (rules) or reward")
        return self

    def produces(self) -> str:
        return "samples"


class SampleStep:
    spec: type[StepSpec] = SampleSpec
    pure = True

    def surroundings(self, spec: SampleSpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        return plugins() if spec.rewards else {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, SampleSpec)
        folder = await asyncio.to_thread(tools.store.fetch, work.inputs["prompts"])
        path = folder / f"{spec.split}.jsonl"
        prompts = await asyncio.to_thread(lambda: list(read_prompts(path)))
        respondent = Respondent(tools, work.inputs["model"], work.short_id)
        done = [0]
        sampling = asyncio.create_task(
            respondent.answers(
                prompts,
                samples=spec.samples,
                temperature=spec.temperature,
                max_tokens=spec.max_tokens,
                seed=spec.seed,
                heard=lambda count: done.__setitem__(0, count),
            )
        )
        async for event in progress_of(sampling, done, len(prompts)):
            yield event
        yield Progress(0.95, "the answers are scored")
        weight = 1.0 if spec.reward_weight is None else spec.reward_weight
        sources = sources_of(spec.rewards, work.inputs.get("reward"), weight)
        answers = await respondent.scored(sampling.result(), sources)
        figures = summary(answers)
        record = await asyncio.to_thread(_publish, work, tools, answers, figures)
        yield StepOutcome(record, figures)

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Nothing to do: tasks that nobody waits for end with their deadline."""


async def progress_of(
    sampling: asyncio.Task[list[Sampled]], done: Sequence[int], of: int
) -> AsyncIterator[Progress]:
    """How many prompts are answered, until all are; cancels the sampling when left early."""
    try:
        told = -1
        while not sampling.done():
            await asyncio.wait({sampling}, timeout=_TELL_S)
            if done[0] != told:
                told = done[0]
                yield Progress(0.9 * told / of, f"{told:,} of {of:,} prompts answered")
    finally:
        if not sampling.done():
            await cancel_and_wait(sampling)
    sampling.result()  # or what went wrong


def summary(answers: Sequence[Sampled]) -> dict[str, Any]:
    """Counts, mean reward, and mean reward by group of prompts."""
    groups: dict[str, list[float]] = {}
    for one in answers:
        assert one.reward is not None
        groups.setdefault(one.prompt.group, []).append(one.reward)
    rewards = [reward for group in groups.values() for reward in group]
    return {
        "answers": len(answers),
        "reward": sum(rewards) / len(rewards),
        "tokens": sum(len(one.ids) for one in answers),
        "ended": sum(one.ended for one in answers) / len(answers),
        "groups": {name: sum(group) / len(group) for name, group in sorted(groups.items())},
    }


def line(answer: Sampled) -> str:
    """As the trainer reads it, with what else is known."""
    value = {
        "prompt": answer.prompt.text,
        "answer": answer.text,
        "reward": answer.reward,
        "group": answer.prompt.group,
        "parts": dict(answer.parts or {}),
        "tokens": len(answer.ids),
        "ended": answer.ended,
        "logprob": fmean(answer.raw_logprobs) if answer.raw_logprobs else None,
    }
    return json.dumps(value, ensure_ascii=False)


def _publish(work: Work, tools: Tools, answers: Sequence[Sampled], figures: dict[str, Any]) -> str:
    with tempfile.TemporaryDirectory(prefix="plinth-samples-") as name:
        text = "".join(f"{line(one)}\n" for one in answers)
        (Path(name) / SAMPLES).write_text(text, encoding="utf-8", newline="\n")
        return tools.store.publish(
            work.output_name,
            "samples",
            Path(name),
            parents=[record.ref for record in work.inputs.values()],
            config=work.spec.settings(),
            metrics=figures,
            input_digest=work.input_digest,
        ).ref
