"""One canary from its first shard to its last: brought up, watched, and made stable or taken down.

Everything here is found again by what stands on the store and in Redis, so a step that is taken up
after a kill goes on where it was. Knows no runs; the step "canary" calls it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from plinth.coordinator.canaries import end_canary, running
from plinth.coordinator.deployments import ready_shards, until_ready
from plinth.coordinator.steps.canary_spec import CanarySpec
from plinth.coordinator.steps.contract import Progress, StepOutcome, Tools, Work
from plinth.coordinator.verdict import Decision, figures, judge
from plinth.internal.v1 import deployments_pb2 as pb
from plinth.shared.canary import ROUTE_S, canary_name
from plinth.shared.errors import Aborted, FailedPrecondition, Unavailable
from plinth.shared.fencing import SUPERSEDED
from plinth.shared.records import DeploymentChange
from plinth.shared.store import ArtifactRecord
from plinth.shared.tasks import cancel_and_wait
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.coordinator")
_POLL_S = 0.5
# Shards tell their load every couple of seconds; a request may be on its way meanwhile.
_IDLE_S = 5.0
# Why nothing was promoted, by what was decided.
_REASONS = {"reject": "CANARY_REJECTED", "undecided": "CANARY_UNDECIDED"}


class Trial:
    """One canary of one step, as the store and Redis know it."""

    def __init__(self, work: Work, spec: CanarySpec, tools: Tools) -> None:
        self._spec = spec
        self._id = work.job_id
        self._model: ArtifactRecord = work.inputs["model"]
        self._tools = tools
        self._against = ""  # the artifact that it is measured against

    # -- looking -------------------------------------------------------------------------------

    async def stable(self) -> pb.DeploymentRecord:
        """What is wanted under the name now. FailedPrecondition when nothing is."""
        record = await self._record(self._spec.name)
        if record is None or record.deployment is None:
            raise FailedPrecondition(
                f"nothing is served as {self._spec.name!r}, so there is nothing to share requests "
                "with; a step of kind serve puts the first revision there",
                reason="NOT_SERVED",
                field="name",
            )
        return record.deployment

    async def decided(self) -> bool:
        """Whether it was decided before (by a coordinator that was killed) that it takes over."""
        state = await self._tools.canaries.state(self._spec.name)
        return state is not None and state.id == self._id and state.state == "promoted"

    async def metrics(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "name": self._spec.name,
            "alias": f"{self._model.name}:{self._spec.alias}",
            "version": self._model.version,
            "plan": self._spec.plan(),
        }
        state = await self._tools.canaries.state(self._spec.name)
        if state is not None and state.id == self._id:
            about |= {"share": self._spec.share, **figures(state, self._spec.require)}
        return about

    # -- the trial -----------------------------------------------------------------------------

    async def bring_up(self, stable: pb.DeploymentRecord) -> AsyncIterator[Progress]:
        """The canary's deployment, and its shards. FailedPrecondition: somebody else's is there."""
        name = canary_name(self._spec.name)
        record = await self._record(name)
        there = record.deployment if record is not None else None
        if there is not None and there.owner != self._id:
            raise FailedPrecondition(
                f"{self._spec.name!r} has a canary already ({there.artifact}, of {there.owner}); "
                "wait for its end, or cancel that run",
                reason="CANARY_TAKEN",
                field="name",
            )
        if there is None:
            there = pb.DeploymentRecord()
            there.CopyFrom(stable)
            there.name, there.artifact, there.shards = name, self._model.ref, self._spec.shards
            there.max_shards = 0  # its figures are compared, so its number stays
            there.canary_of, there.owner = self._spec.name, self._id
            there.traffic_share, there.stable = self._spec.share, stable.artifact
            await self._put(there, record)
        self._against = there.stable
        async for ready in until_ready(
            self._tools.registry, there, within_s=self._spec.ready_within_s
        ):
            yield Progress(0.05, f"{ready} of {there.shards} shards of the canary ready")

    @asynccontextmanager
    async def route_kept(self) -> AsyncIterator[None]:
        """The route is open, and renewed, inside."""
        await self._open()
        keeper = asyncio.create_task(self._keep_open())
        try:
            yield
        finally:
            await cancel_and_wait(keeper)

    async def watch(self) -> AsyncIterator[Progress]:
        """Until the canary has proved itself; all new requests go to it then. FailedPrecondition,
        with its route closed and its streams ended, when it has not."""
        while True:
            decision, fraction = await self._decision()
            if decision.action != "wait":
                break
            yield Progress(0.1 + 0.6 * fraction, decision.why)
            await asyncio.sleep(_POLL_S)
        if decision.action == "promote":
            await self._tools.canaries.promote(self._spec.name, self._id)
            yield Progress(0.7, f"takes over: {decision.why}")
            return
        outcome = f"{_REASONS[decision.action]} {decision.why}"
        await self._tools.canaries.close(self._spec.name, self._id, outcome)
        yield Progress(0.7, f"rolls back: {decision.why}")
        async for event in self._idle(canary_name(self._spec.name), self._model.ref, 0.7):
            yield event
        raise FailedPrecondition(
            f"{self._model.ref} is rolled back, {self._spec.name!r} stays {self._against}: "
            f"{decision.why}",
            reason=_REASONS[decision.action],
        )

    async def take_over(self) -> AsyncIterator[Progress]:
        """From all new requests at the canary's shards to the candidate under the name itself."""
        stable = await self.stable()
        if stable.artifact != self._model.ref:
            # Where load decides, there may be more now than the record's least.
            now = await ready_shards(self._tools.registry, stable)
            async for event in self._widen(max(stable.shards, now)):
                yield event
            async for event in self._idle(self._spec.name, stable.artifact, 0.8):
                yield event
            await self._replace()
        else:
            await self._mark()
        wanted = await self.stable()
        async for ready in until_ready(
            self._tools.registry, wanted, within_s=self._spec.ready_within_s
        ):
            yield Progress(0.9, f"{ready} of {wanted.shards} shards of {wanted.artifact} ready")

    async def finish(self) -> AsyncIterator[Progress | StepOutcome]:
        """The name is the candidate's: its shards, its alias, no canary, and the figures."""
        async for event in self.take_over():
            yield event
        moved = await self._move_alias()
        ended = await self.end()
        yield StepOutcome(self._model.ref, await self.metrics(), reused=not (moved or ended))

    async def _move_alias(self) -> bool:
        """Compare-and-set on the store; whether it moved now. Also where it stands there already:
        then it is marked as this run's."""
        store, alias = self._tools.store, self._spec.alias
        before = (await asyncio.to_thread(store.aliases, self._model.name)).get(alias)
        await asyncio.to_thread(
            store.set_alias, self._model.name, alias, self._model.version, expected=before
        )
        return before != self._model.version

    async def end(self) -> bool:
        """No route, no deployment of the canary; whether there was one. Another's is left alone."""
        await self._tools.canaries.close(self._spec.name, self._id)
        canary = await self._record(canary_name(self._spec.name))
        return await end_canary(self._tools, canary, self._id)

    async def roll_back(self) -> None:
        """The name and its alias stay what they are now or go back to what they were, for a
        coordinator that is late as well; no canary is left."""
        await self._tools.canaries.close(self._spec.name, self._id)
        store, alias = self._tools.store, self._spec.alias
        await asyncio.to_thread(store.claim_alias, self._model.name, alias)
        canary = await self._record(canary_name(self._spec.name))
        there = canary.deployment if canary is not None else None
        if there is not None and there.owner == self._id:
            await self._put_back(there.stable)
        await asyncio.to_thread(self._tools.deployments.claim, self._spec.name)
        if not await end_canary(self._tools, canary, self._id):
            await asyncio.to_thread(self._tools.deployments.claim, canary_name(self._spec.name))

    async def _put_back(self, artifact: str) -> None:
        """The name's deployment becomes `artifact` again, unless the alias has moved."""
        stable = await self._record(self._spec.name)
        now = stable.deployment if stable is not None else None
        aliases = await asyncio.to_thread(self._tools.store.aliases, self._model.name)
        promoted = aliases.get(self._spec.alias) == self._model.version
        if now is None or now.artifact != self._model.ref or promoted:
            return
        before = pb.DeploymentRecord()
        before.CopyFrom(now)
        before.artifact = artifact
        try:
            await self._put(before, stable)
        except FailedPrecondition as error:
            if error.reason != SUPERSEDED:
                raise  # else a later run wants it as it is

    # -- parts ---------------------------------------------------------------------------------

    async def _decision(self) -> tuple[Decision, float]:
        """What one more look says, its evidence kept; and how much of the trial is over."""
        now = await self.stable()
        if now.artifact != self._against:
            why = f"{now.name!r} became {now.artifact} while the canary was on"
            return Decision("reject", why), 1.0
        state = await self._tools.canaries.state(self._spec.name)
        if state is None or state.id != self._id:
            raise Unavailable("the canary's counts are gone; it starts over")
        spec = self._spec
        decision = judge(state, spec.require, requests=spec.requests, seconds=spec.seconds)
        if decision.action == "wait" and not state.given:
            decision = replace(decision, why=f"a decision {spec.plan()}")
        if decision.evidence != state.evidence:
            await self._tools.canaries.note(
                spec.name, self._id, decision.evidence, decision.counted
            )
        seen = state.given / spec.requests if spec.requests else 0.0
        return decision, min(1.0, max(seen, state.age_s / spec.seconds))

    async def _widen(self, shards: int) -> AsyncIterator[Progress]:
        """As many shards of the canary as the name has: it takes all new requests for a while."""
        name = canary_name(self._spec.name)
        record = await self._record(name)
        if record is None or record.deployment is None or record.deployment.owner != self._id:
            # A coordinator that was deposed finished meanwhile; the next look finds what it did.
            raise Aborted(f"{name} was taken down while it took over", reason="DEPLOYMENT_CHANGED")
        wanted = pb.DeploymentRecord()
        wanted.CopyFrom(record.deployment)
        wanted.shards = max(wanted.shards, shards)
        await self._put(wanted, record)
        async for ready in until_ready(
            self._tools.registry, wanted, within_s=self._spec.ready_within_s
        ):
            yield Progress(0.75, f"{ready} of {wanted.shards} shards of the canary ready")

    async def _idle(self, name: str, artifact: str, fraction: float) -> AsyncIterator[Progress]:
        """Returns when the shards have been idle for a moment, or time is up."""
        give_up = time.monotonic() + self._spec.drain_within_s
        since = time.monotonic()
        while time.monotonic() < give_up:
            if busy := await running(self._tools.registry, name, artifact):
                since = time.monotonic()
                yield Progress(fraction, f"{busy} streams of {artifact} go on")
            if time.monotonic() - since >= _IDLE_S:
                return
            await asyncio.sleep(_POLL_S)

    async def _replace(self) -> None:
        """The name's own deployment becomes the candidate: here it is decided for good."""
        record = await self._record(self._spec.name)
        now = record.deployment if record is not None else None
        if now is None or now.artifact != self._against:
            raise FailedPrecondition(
                f"{self._spec.name!r} was changed while its canary took over; nothing is promoted",
                reason="DEPLOYMENT_CHANGED",
            )
        wanted = pb.DeploymentRecord()
        wanted.CopyFrom(now)
        wanted.artifact = self._model.ref
        await self._put(wanted, record)

    async def _mark(self) -> None:
        """The name's deployment, which is the candidate, becomes this run's: no earlier one moves
        it back."""
        record = await self._record(self._spec.name)
        if record is not None and record.deployment is not None:
            await self._put(record.deployment, record)

    async def _open(self) -> None:
        state = await self._tools.canaries.open(
            self._spec.name,
            self._id,
            stable=self._against,
            canary=self._model.ref,
            share=self._spec.share,
            sticky=self._spec.sticky,
            requests=self._spec.requests,
        )
        if state == "closed":
            # What was decided then: a look at it now may say something else.
            ended = await self._tools.canaries.state(self._spec.name)
            reason, _, why = (ended.outcome if ended is not None else "").partition(" ")
            raise FailedPrecondition(
                f"{self._model.ref} was rolled back: "
                f"{why or 'its canary was ended before anything was decided'}",
                reason=reason or "CANARY_ENDED",
            )

    async def _keep_open(self) -> None:
        while True:
            await asyncio.sleep(ROUTE_S / 6)
            try:
                await self._open()
            except Unavailable:
                continue  # it lapses meanwhile: the stable revision answers
            except FailedPrecondition as error:
                _log.info("a canary's route is kept no longer", reason=error.message)
                return

    async def _record(self, name: str) -> DeploymentChange | None:
        return await asyncio.to_thread(self._tools.deployments.get, name)

    async def _put(self, wanted: pb.DeploymentRecord, before: DeploymentChange | None) -> None:
        revision = before.revision if before is not None else None
        await asyncio.to_thread(self._tools.deployments.put, wanted, expected=revision)
