"""Step "compare": some models answer held-out prompts, a judge ranks them, and the best goes on.

The output is the winner itself, so that `publish` and `serve` take it as they take any model. A
rival wins only where it beats the baseline beyond chance: by the exact sign test of the prompts
that the two differ on, one-sided, at 2.5 % over all rivals together (Holm). Of several that do, the
one with the highest win rate goes on. Where none does, the baseline stays, or, with `require`, the
run ends here. docs/promotion.md says how many prompts a true win rate needs. A judge can be pleased
by one sentence: a rival whose answers repeat one another is out, whatever it wins.

A rival that wins goes on, with `require` or without, so the judge must be nobody's own: a policy
that has learned to please a reward model pleases it by construction. A judge that any rival was
trained against is refused, by the pipeline's text and by the rivals' lineage, unless `same_judge`
owns up to it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field

from plinth.algos.paired import LEVEL, PairedCounts, holm, pairs_needed
from plinth.coordinator.steps.contract import Input, Progress, StepOutcome, StepSpec, Tools, Work
from plinth.coordinator.steps.jobs import cancel_job, follow_job
from plinth.shared.errors import FailedPrecondition, InvalidArgument, NotFound
from plinth.shared.source_roots import SourceRoots
from plinth.shared.store import ArtifactRecord, ArtifactStore
from plinth.v1 import jobs_pb2 as pb

RIVALS = ("candidate", "candidate_2", "candidate_3")


class CompareRequire(BaseModel):
    """Conditions that the best rival must meet; those not given are not asked."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # 0.5: its win rate must lie above one half beyond chance, at 2.5 % over all rivals.
    win_rate_low_above: float | None = Field(default=None, ge=0, lt=1)
    # A rival's share of distinct trigrams, as a multiple of the baseline's; 0: any. The default
    # holds for who says nothing of it.
    trigrams_at_least: float = Field(default=0.25, ge=0)


class CompareSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {
        "dataset": frozenset({"dataset"}),
        "judge": frozenset({"reward"}),
        "baseline": frozenset({"model"}),
        **dict.fromkeys(RIVALS, frozenset({"model"})),
    }

    kind: Literal["compare"]
    dataset: Input  # its held-out prompts are answered
    judge: Input  # a reward model
    same_judge: bool = False  # a judge that a rival was trained against is taken all the same
    baseline: Input
    candidate: Input
    candidate_2: Input | None = None
    candidate_3: Input | None = None
    prompts: int = Field(default=512, ge=2, le=1_000_000)  # that are answered, at most
    max_tokens: int = Field(default=64, ge=1, le=4096)  # per answer
    temperature: float = Field(default=1.0, gt=0, le=2)
    require: CompareRequire = CompareRequire()

    def produces(self) -> str:
        return "model"

    def conflicts(self, steps: Mapping[str, StepSpec]) -> Iterator[tuple[str, str]]:
        if self.same_judge:
            return
        for rival in RIVALS:
            for step in _behind(getattr(self, rival), steps):
                if steps[step].inputs().get("reward") == self.judge:
                    yield "judge", _same_judge(f"{rival} (in the step {step})")


class CompareStep:
    spec: type[StepSpec] = CompareSpec
    pure = True

    def surroundings(self, spec: CompareSpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, CompareSpec)
        names = ["baseline", *(name for name in RIVALS if name in work.inputs)]
        judge = work.inputs["judge"]
        if not spec.same_judge:
            rivals = [work.inputs[name] for name in names[1:]]
            await asyncio.to_thread(refuse_own_judge, tools.store, rivals, judge)
        job = pb.JobSpec(
            output_name=work.output_name,
            compare=pb.CompareSpec(
                dataset=work.inputs["dataset"].ref,
                reward=judge.ref,
                models=[work.inputs[name].ref for name in names],
                max_new_tokens=spec.max_tokens,
                temperature=spec.temperature,
                prompts=spec.prompts,
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
            winner, why = choose_language(models, spec.require)
            metrics: dict[str, Any] = {
                "winner": winner,
                "why": why,
                "prompts": figures["prompts"],
                "models": models,
                "shown": [_by_name(one, names) for one in figures["shown"]],
                "report": report.ref,
            }
            yield StepOutcome(models[winner]["model"], metrics, passes_on=winner)

    async def abandon(self, work: Work, tools: Tools) -> None:
        await cancel_job(work, tools)


def _by_name(shown: Mapping[str, str], names: Sequence[str]) -> dict[str, Any]:
    """One prompt with what each model answered: the report has models by number."""
    answers = {name: shown[str(number)] for number, name in enumerate(names)}
    return {"prompt": shown["prompt"], "reference": shown.get("reference"), "answers": answers}


def _behind(reference: str | None, steps: Mapping[str, StepSpec]) -> Iterator[str]:
    """The step that makes what is referred to, and the steps that made its models."""
    seen: set[str] = set()
    waiting = [reference]
    while waiting:
        step = (waiting.pop() or "").removeprefix("$")
        if step in steps and step not in seen:
            seen.add(step)
            yield step
            waiting += [
                other
                for name, other in steps[step].inputs().items()
                if other.startswith("$") and "model" in steps[step].INPUTS[name]
            ]


def refuse_own_judge(
    store: ArtifactStore, rivals: Sequence[ArtifactRecord], judge: ArtifactRecord
) -> None:
    """InvalidArgument when a rival, or a model that it came from, was trained against the judge.
    By content: another name of the same reward model is no other judge. Blocks on the store."""
    for rival in rivals:
        waiting, seen = [rival], {rival.ref}
        while waiting:
            for reference in waiting.pop().parents:
                try:
                    parent = store.get(reference)
                except (NotFound, InvalidArgument):
                    continue  # deleted, or something outside of the store
                if parent.kind == "reward" and parent.digest == judge.digest:
                    raise InvalidArgument(
                        _same_judge(rival.ref), reason="SAME_JUDGE", field="judge"
                    )
                if parent.kind == "model" and parent.ref not in seen:
                    seen.add(parent.ref)
                    waiting.append(parent)


def _same_judge(rival: str) -> str:
    return (
        f"{rival} was trained against this judge, which would flatter it; take a reward model "
        "that it has not learned from, or say same_judge: true"
    )


def choose(models: Mapping[str, Mapping[str, Any]], require: CompareRequire) -> tuple[str, str]:
    """(which goes on, why): the rival of the highest win rate among those that are above one half,
    or above `require`'s bar where that is higher, beyond chance; else the baseline.

    FailedPrecondition, with the figures, where no rival is above `require`'s bar beyond chance.
    """
    rivals = {name: pairs_of(figures) for name, figures in models.items() if name != "baseline"}
    best = max(rivals, key=lambda name: rivals[name].rate)
    bar = require.win_rate_low_above
    if bar is not None and not _beyond(rivals, bar):
        raise FailedPrecondition(
            f"{_line(models, best, rivals[best], bar)}: not above {bar:.1%} beyond chance"
            f"{_among(rivals)}{_size(rivals[best], len(rivals), bar)}; nothing is promoted",
            reason="REQUIREMENT_NOT_MET",
            field="require.win_rate_low_above",
        )
    bar = max(0.5, bar or 0)
    if beyond := _beyond(rivals, bar):
        best = max(beyond, key=lambda name: rivals[name].rate)
        return best, f"{_line(models, best, rivals[best], bar)}: beyond chance{_among(rivals)}"
    stays = f"{models['baseline']['model']} stays, no rival is better beyond chance"
    size = _size(rivals[best], len(rivals), bar)
    return "baseline", f"{stays}{_among(rivals)}: {_line(models, best, rivals[best], bar)}{size}"


def choose_language(
    models: Mapping[str, Mapping[str, Any]], require: CompareRequire
) -> tuple[str, str]:
    """`choose`, among those whose answers are not one and the same. What it would have chosen and
    did not is named; FailedPrecondition where a gate has no other left."""
    winner, why = choose(models, require)
    ours, theirs = (models[one].get("distinct_trigrams", 1.0) for one in (winner, "baseline"))
    if winner == "baseline" or ours >= require.trigrams_at_least * theirs:
        return winner, why
    out = (
        f"{why}; but its answers repeat one another: {ours:.1%} of their trigrams are distinct, of "
        f"the baseline's {theirs:.1%}, and at least {require.trigrams_at_least:g} times that is "
        "required (require.trigrams_at_least)"
    )
    rest = {name: figures for name, figures in models.items() if name != winner}
    if len(rest) > 1:  # as Holm goes on: the one that was surest is set aside
        winner, why = choose_language(rest, require)
        return winner, f"{why}. {out}"
    if require.win_rate_low_above is None:
        return "baseline", f"{models['baseline']['model']} stays. {out}"
    raise FailedPrecondition(
        f"{out}; nothing is promoted",
        reason="REQUIREMENT_NOT_MET",
        field="require.trigrams_at_least",
    )


def pairs_of(figures: Mapping[str, Any]) -> PairedCounts:
    """From a comparison's report, whose counts may have become floats."""
    return PairedCounts(*(int(figures[name]) for name in ("wins", "losses", "ties")))


def _beyond(rivals: Mapping[str, PairedCounts], bar: float) -> set[str]:
    return holm({name: pairs.p_value(bar) for name, pairs in rivals.items()})


def _line(
    models: Mapping[str, Mapping[str, Any]], name: str, pairs: PairedCounts, bar: float
) -> str:
    of = "" if bar == 0.5 else f" of {bar:.1%} or less"
    return (
        f"{models[name]['model']} wins {pairs.rate:.1%} of {pairs.of:,} prompts against "
        f"{models['baseline']['model']} ({pairs.wins:,} won, {pairs.losses:,} lost, "
        f"{pairs.ties:,} tied; p = {pairs.p_value(bar):.2g}{of})"
    )


def _among(rivals: Mapping[str, PairedCounts]) -> str:
    return f" ({LEVEL:.1%} one-sided, over {len(rivals)} rivals)" if len(rivals) > 1 else ""


def _size(pairs: PairedCounts, rivals: int, bar: float) -> str:
    """How many prompts would show that what was seen is above the bar, if it is the truth."""
    differ = pairs.wins + pairs.losses
    if not pairs.losses or pairs.rate <= bar:
        return ""
    needed = pairs_needed(pairs.wins / differ, rivals=rivals, ties=pairs.ties / pairs.of, above=bar)
    if needed <= pairs.of:
        return ""
    return f"; if that is the truth, some {needed:,} prompts would show it"
