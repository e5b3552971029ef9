"""Step "compare": some models answer held-out prompts, a judge ranks them, and the best goes on.

The output is the winner itself, so that `publish` and `serve` take it as they take any model. A
rival wins only where it beats the baseline beyond chance: with the lower end of its win rate's 95 %
interval above one half. Otherwise the baseline stays, or, with `require`, the run ends here.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from plinth.coordinator.steps.contract import Input, Outcome, Progress, StepSpec, Tools, Work
from plinth.coordinator.steps.jobs import cancel_job, follow_job
from plinth.shared.errors import FailedPrecondition
from plinth.v1 import trainer_pb2 as pb

RIVALS = ("candidate", "candidate_2", "candidate_3")


class Require(BaseModel):
    """Conditions that the best rival must meet; those not given are not asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 0.5: the lower end of the interval must lie above one half.
    win_rate_low_above: float | None = Field(default=None, ge=0, lt=1)


class CompareSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "dataset": frozenset({"dataset"}),
        "reward": frozenset({"reward"}),
        "baseline": frozenset({"model"}),
        **dict.fromkeys(RIVALS, frozenset({"model"})),
    }

    kind: Literal["compare"]
    dataset: Input  # its held-out prompts are answered
    reward: Input  # the judge
    baseline: Input
    candidate: Input
    candidate_2: Input | None = None
    candidate_3: Input | None = None
    max_tokens: int = Field(default=64, ge=1, le=4096)  # per answer
    temperature: float = Field(default=1.0, gt=0, le=2)
    require: Require = Require()

    def produces(self) -> str:
        return "model"


class CompareStep:
    spec: type[StepSpec] = CompareSpec
    pure = True

    def surroundings(self, spec: CompareSpec, run_id: str) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | Outcome]:
        spec = work.spec
        assert isinstance(spec, CompareSpec)
        names = ["baseline", *(name for name in RIVALS if name in work.inputs)]
        job = pb.JobSpec(
            output_name=work.output_name,
            compare=pb.CompareSpec(
                dataset=work.inputs["dataset"].ref,
                reward=work.inputs["reward"].ref,
                models=[work.inputs[name].ref for name in names],
                max_new_tokens=spec.max_tokens,
                temperature=spec.temperature,
            ),
        )
        async for event in follow_job(work, tools, job):
            if isinstance(event, Progress):
                yield event
                continue
            report = await asyncio.to_thread(tools.store.get, event.output)
            figures = report.manifest["metrics"]
            models = {
                name: {"model": work.inputs[name].ref, **figure}
                for name, figure in zip(names, figures["models"], strict=True)
            }
            winner = choose(models, spec.require)
            metrics: dict[str, Any] = {
                "winner": winner,
                "prompts": figures["prompts"],
                "models": models,
                "report": report.ref,
            }
            yield Outcome(models[winner]["model"], metrics)

    async def abandon(self, work: Work, tools: Tools) -> None:
        await cancel_job(work, tools)


def choose(models: Mapping[str, Mapping[str, Any]], require: Require) -> str:
    """The rival of the highest win rate if it is beyond chance, else the baseline.

    FailedPrecondition, with the figures, where `require` asks for more than the best rival has.
    """
    best = max((n for n in models if n != "baseline"), key=lambda n: float(models[n]["win_rate"]))
    figures = models[best]
    bar = require.win_rate_low_above
    if bar is not None and figures["win_rate_low"] <= bar:
        raise FailedPrecondition(
            f"{figures['model']} wins {figures['win_rate']:.1%} against "
            f"{models['baseline']['model']} (95 % interval {figures['win_rate_low']:.1%} to "
            f"{figures['win_rate_high']:.1%}); the lower end must be above {bar:.1%}: nothing is "
            "promoted",
            reason="REQUIREMENT_NOT_MET",
            field="require.win_rate_low_above",
        )
    return best if figures["win_rate_low"] > 0.5 else "baseline"
