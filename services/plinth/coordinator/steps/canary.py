"""Step "canary": a candidate takes a share of a served name's requests, and the name, or neither.

1. The candidate's shards come up as "<name>.canary", beside those of the stable revision.
2. Gateways give them the share; the step watches what comes of it (`verdict.py`).
3. Shown to be worse, or undecided when its requests or its time are used up: no more requests, the
   shards go when their streams have ended, the step fails and so does the run. Nothing was
   promoted.
4. Shown to be as good or better: all new requests go to the candidate; when the old shards' streams
   have ended the name's own deployment becomes the candidate, the alias moves, and the canary goes.

Each step of it is found again by what stands on the store and in Redis, so it can be done twice.
The canary's deployment names this step as its owner; when the run is over it is taken down.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

from plinth.coordinator.steps.canary_spec import CanarySpec
from plinth.coordinator.steps.contract import Progress, StepOutcome, StepSpec, Tools, Work
from plinth.coordinator.steps.trial import Trial
from plinth.shared.artifact_rights import check_alias
from plinth.shared.source_roots import SourceRoots


class CanaryStep:
    spec: type[StepSpec] = CanarySpec
    pure = False

    def surroundings(self, spec: CanarySpec, run_id: str, roots: SourceRoots) -> Mapping[str, str]:
        return {}

    async def execute(self, work: Work, tools: Tools) -> AsyncIterator[Progress | StepOutcome]:
        spec, model = work.spec, work.inputs["model"]
        assert isinstance(spec, CanarySpec)
        await asyncio.to_thread(tools.deployments.check_owner, spec.name, work.principal)
        await asyncio.to_thread(check_alias, tools.store, model, spec.alias, work.principal)
        trial = _trial(work, tools)
        stable = await trial.stable()
        if stable.artifact == model.ref:
            # There is nothing to compare with, or a coordinator was killed after the last step.
            async for event in trial.finish():
                yield event
            return
        async for event in trial.bring_up(stable):
            yield event
        async with trial.route_kept():
            if not await trial.decided():
                async for event in trial.watch():
                    yield event
            async for event in trial.take_over():
                yield event
        async for event in trial.finish():
            yield event

    async def abandon(self, work: Work, tools: Tools) -> None:
        """Takes the canary down, and the name back to what it was unless the alias has moved."""
        await _trial(work, tools).roll_back()


def _trial(work: Work, tools: Tools) -> Trial:
    assert isinstance(work.spec, CanarySpec)
    return Trial(work, work.spec, tools)
