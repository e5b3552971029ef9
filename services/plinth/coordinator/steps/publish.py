"""Step "publish": moves an alias ("prod") of a model's name to the version that a run made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import ClassVar, Literal

from plinth.coordinator.steps.contract import Input, Name, Outcome, Progress, StepSpec, Tools, Work


class PublishSpec(StepSpec):
    INPUTS: ClassVar[Mapping[str, frozenset[str]]] = {"model": frozenset({"model"})}

    kind: Literal["publish"]
    model: Input
    alias: Name = "prod"

    def produces(self) -> str:
        return "model"


class PublishStep:
    spec: type[StepSpec] = PublishSpec
    pure = False

    def surroundings(self, spec: PublishSpec, run_id: str) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | Outcome]:
        spec = work.spec
        assert isinstance(spec, PublishSpec)
        model = work.inputs["model"]
        before = (await asyncio.to_thread(tools.store.aliases, model.name)).get(spec.alias)
        metrics = {"alias": f"{model.name}:{spec.alias}", "version": model.version}
        if before == model.version:
            yield Outcome(model.ref, metrics, reused=True)
            return
        # Compare-and-set on the store: a leader that was deposed meanwhile loses here (Aborted).
        await asyncio.to_thread(
            tools.store.set_alias, model.name, spec.alias, model.version, expected=before
        )
        yield Outcome(model.ref, metrics | ({"before": before} if before is not None else {}))

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Nothing to do: the alias moved whole or not at all."""
