"""Step "publish": moves an alias ("prod") of a model's name to the version that a run made."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import ClassVar, Literal

from plinth.coordinator.steps.contract import (
    Input,
    Name,
    Progress,
    StepOutcome,
    StepSpec,
    Tools,
    Work,
)
from plinth.shared.artifact_rights import check_alias
from plinth.shared.source_roots import SourceRoots


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

    def surroundings(self, spec: PublishSpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec = work.spec
        assert isinstance(spec, PublishSpec)
        model = work.inputs["model"]
        await asyncio.to_thread(check_alias, tools.store, model, spec.alias, work.principal)
        before = (await asyncio.to_thread(tools.store.aliases, model.name)).get(spec.alias)
        metrics = {"alias": f"{model.name}:{spec.alias}", "version": model.version}
        # Also where it stands there already: then it is marked as this run's.
        await asyncio.to_thread(
            tools.store.set_alias, model.name, spec.alias, model.version, expected=before
        )
        if before == model.version:
            yield StepOutcome(model.ref, metrics, reused=True)
            return
        yield StepOutcome(model.ref, metrics | ({"before": before} if before is not None else {}))

    async def abandon(self, work: Work, tools: Tools) -> None:
        """The alias stays where it is, for a coordinator that is late as well."""
        assert isinstance(work.spec, PublishSpec)
        name, alias = work.inputs["model"].name, work.spec.alias
        await asyncio.to_thread(tools.store.claim_alias, name, alias)
