"""Step "verify": does a model keep what it is asked to keep, and is it still language?

1. Model and baseline answer the same held-out prompts, each once, with the same noise.
2. The reward stage says which answers pass their prompts' checks.
3. The baseline judges the language of both: log-probability per token, on its own answers as it
   sampled them, on the model's by scoring. Share of the model's answers below the baseline's own
   5th percentile; distinct trigrams of all answers together.
4. What `require` asks is checked: a model that falls short ends the run, and nothing is promoted.

The output is the model itself, so that `canary` and `publish` take it.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from plinth.algos.intervals import wilson
from plinth.algos.paired import LEVEL, PairedCounts
from plinth.coordinator.deployments import put, until_ready
from plinth.coordinator.respondent import Respondent, Sampled
from plinth.coordinator.rewards import CHECKS, sources_of
from plinth.coordinator.scoring import ServedModel
from plinth.coordinator.steps.contract import Input, Progress, StepOutcome, StepSpec, Tools, Work
from plinth.coordinator.steps.sample import progress_of
from plinth.internal.v1 import deployments_pb2 as pb
from plinth.shared.answer_form import distinct_trigrams
from plinth.shared.errors import FailedPrecondition, NotFound
from plinth.shared.prompt_set import Prompt, read_prompts
from plinth.shared.reward_plugins import plugins
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactRecord

SIDES = ("baseline", "model")
PERCENTILE = 0.05
_SHOWN = 5  # prompts whose answers the report shows side by side


class VerifyRequire(BaseModel):
    """Conditions that the model must meet; those not given are not asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # Of what was seen: no test.
    pass_rate_at_least: float | None = Field(default=None, ge=0, le=1)
    # The model passes more prompts than the baseline beyond chance: by the exact McNemar test of
    # the prompts that one of them passes and the other does not, one-sided, at 2.5 %.
    above_baseline: bool = False
    # Of the model's answers, below the baseline's own 5th percentile of log p per token.
    unlikely_at_most: float | None = Field(default=None, ge=0, le=1)
    # Share of distinct trigrams, as a multiple of the baseline's.
    trigrams_at_least: float | None = Field(default=None, ge=0)


class VerifySpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "model": frozenset({"model"}),
        "baseline": frozenset({"model"}),
        "prompts": frozenset({"prompts"}),
    }

    kind: Literal["verify"]
    model: Input
    baseline: Input
    prompts: Input  # its held-out half
    temperature: float = Field(default=0.7, gt=0, le=2)
    max_tokens: int = Field(default=128, ge=1, le=4096)
    seed: int = Field(default=0, ge=0, lt=1 << 63)
    require: VerifyRequire = VerifyRequire()
    ready_within_s: float = Field(default=600, gt=0, le=86_400)

    def produces(self) -> str:
        return "model"


class VerifyStep:
    spec: type[StepSpec] = VerifySpec
    pure = True

    def surroundings(self, spec: VerifySpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        return plugins()

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, VerifySpec)
        folder = await asyncio.to_thread(tools.store.fetch, work.inputs["prompts"])
        prompts = await asyncio.to_thread(lambda: list(read_prompts(folder / "validation.jsonl")))
        answers: dict[str, list[Sampled]] = {}
        for number, side in enumerate(SIDES):
            respondent = Respondent(tools, work.inputs[side], f"{work.short_id}.{side}")
            done = [0]
            sampling = asyncio.create_task(_asked(respondent, prompts, spec, done))
            async for event in progress_of(sampling, done, len(prompts)):
                fraction = 0.4 * (number + event.fraction)
                yield Progress(fraction, f"the {side}: {event.detail}")
            answers[side] = sampling.result()
        baseline = work.inputs["baseline"]
        wanted = pb.DeploymentRecord(
            name=_judge_name(work), artifact=baseline.ref, shards=1, traffic_share=1.0
        )
        await put(tools.deployments, wanted)
        async for ready in until_ready(tools.registry, wanted, within_s=spec.ready_within_s):
            yield Progress(0.85, f"{ready} of 1 shards of the baseline ready")
        likely = {
            "baseline": [_mean(one.raw_logprobs) for one in answers["baseline"] if one.ids],
            "model": await _judged(tools, wanted, baseline, answers["model"]),
        }
        metrics = figures(answers, likely)
        metrics["models"] = {side: work.inputs[side].ref for side in SIDES}
        check(spec.require, metrics)
        await self.abandon(work, tools)
        yield StepOutcome(work.inputs["model"].ref, metrics, passes_on="model")

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Takes the baseline's own deployment down; one that is gone is no error."""
        try:
            await asyncio.to_thread(tools.deployments.delete, _judge_name(work))
        except NotFound:
            return


def _judge_name(work: Work) -> str:
    key = hashlib.sha256(f"{work.run_id}\0{work.input_digest}".encode()).hexdigest()
    return f"candidate-{key[:12]}"


async def _asked(
    respondent: Respondent, prompts: Sequence[Prompt], spec: VerifySpec, done: list[int]
) -> list[Sampled]:
    answers = await respondent.answers(
        prompts,
        samples=1,
        temperature=spec.temperature,
        max_tokens=spec.max_tokens,
        seed=spec.seed,
        heard=lambda count: done.__setitem__(0, count),
    )
    return await respondent.scored(answers, sources_of(CHECKS))


async def _judged(
    tools: Tools, served: pb.DeploymentRecord, artifact: ArtifactRecord, answers: Sequence[Sampled]
) -> list[float]:
    """Mean log p per token of each answer that says anything, in the eyes of the served model."""
    model = ServedModel(tools.clients, served.name, artifact.ref)
    means = []
    for one in answers:
        if one.ids:
            (total,) = await model.continuations(one.prompt_ids, [one.ids])
            means.append(total / len(one.ids))
    return means


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def figures(
    answers: Mapping[str, Sequence[Sampled]], likely: Mapping[str, Sequence[float]]
) -> dict[str, Any]:
    """What the report says of both sides, JSON-ready."""
    bound = percentile(likely["baseline"], PERCENTILE)
    sides = {side: _side(answers[side], likely[side], bound) for side in SIDES}
    pairs = paired(answers)
    return {
        "prompts": pairs.of,
        "sides": sides,
        "model_alone_passes": pairs.wins,
        "baseline_alone_passes": pairs.losses,
        "p_value": pairs.p_value(),
        "trigrams_ratio": _ratio(sides["model"]["trigrams"], sides["baseline"]["trigrams"]),
        "shown": [
            {"prompt": before.prompt.text, "before": before.text, "after": after.text}
            for before, after in list(zip(answers["baseline"], answers["model"], strict=True))[
                :_SHOWN
            ]
        ],
    }


def paired(answers: Mapping[str, Sequence[Sampled]]) -> PairedCounts:
    """The model against the baseline, prompt by prompt; both or neither passing is a tie."""
    both = list(zip(answers["model"], answers["baseline"], strict=True))
    assert all(ours.prompt == theirs.prompt for ours, theirs in both)
    passed = [(bool(ours.reward), bool(theirs.reward)) for ours, theirs in both]
    wins, losses = passed.count((True, False)), passed.count((False, True))
    return PairedCounts(wins, losses, len(passed) - wins - losses)


def _side(answers: Sequence[Sampled], likely: Sequence[float], bound: float) -> dict[str, Any]:
    passed = [bool(one.reward) for one in answers]
    low, high = wilson(sum(passed), len(passed))
    groups: dict[str, list[bool]] = {}
    for one, good in zip(answers, passed, strict=True):
        groups.setdefault(one.prompt.group, []).append(good)
    return {
        "pass_rate": sum(passed) / len(passed),
        "pass_rate_low": low,
        "pass_rate_high": high,
        "groups": {name: sum(group) / len(group) for name, group in sorted(groups.items())},
        "logprob": _mean(likely) if likely else 0.0,
        "unlikely": sum(value < bound for value in likely) / len(likely) if likely else 1.0,
        "trigrams": distinct_trigrams([one.text for one in answers]),
        "tokens": sum(len(one.ids) for one in answers) / len(answers),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Linearly between the two values around it (numpy's default); -inf of none."""
    if not values:
        return -math.inf
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (place - low) * (ordered[high] - ordered[low])


def _ratio(ours: float, theirs: float) -> float:
    return ours / theirs if theirs else math.inf


def check(require: VerifyRequire, metrics: Mapping[str, Any]) -> None:
    """FailedPrecondition that says by how much the model falls short."""
    model, baseline = metrics["sides"]["model"], metrics["sides"]["baseline"]
    passes = f"{model['pass_rate']:.1%} of the answers pass, {baseline['pass_rate']:.1%} before"
    interval = f"95 % interval {model['pass_rate_low']:.1%} to {model['pass_rate_high']:.1%}"
    bar = require.pass_rate_at_least
    if bar is not None and model["pass_rate"] < bar:
        _refuse(
            "pass_rate_at_least",
            f"{model['pass_rate']:.1%} of the answers pass ({interval}), {bar:.1%} is required",
        )
    if require.above_baseline and metrics["p_value"] > LEVEL:
        _refuse(
            "above_baseline",
            f"{passes}: {metrics['model_alone_passes']:,} prompts are passed by the model alone, "
            f"{metrics['baseline_alone_passes']:,} by the baseline alone (p = "
            f"{metrics['p_value']:.2g}, at most {LEVEL:g} is required): not beyond chance",
        )
    most = require.unlikely_at_most
    if most is not None and model["unlikely"] > most:
        _refuse(
            "unlikely_at_most",
            f"{passes}; {model['unlikely']:.1%} of them are less likely to the baseline than 95 % "
            f"of its own, at most {most:.1%} is required: the language suffers",
        )
    least = require.trigrams_at_least
    if least is not None and metrics["trigrams_ratio"] < least:
        _refuse(
            "trigrams_at_least",
            f"{passes}; distinct trigrams are {metrics['trigrams_ratio']:.2f} times the baseline's "
            f"share, at least {least:.2f} is required: the answers repeat themselves",
        )


def _refuse(field: str, message: str) -> None:
    raise FailedPrecondition(
        f"{message}; nothing is promoted",
        reason="REQUIREMENT_NOT_MET",
        field=f"require.{field}",
    )
