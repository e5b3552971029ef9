"""One step's work as a task: an earlier result if there is one, else its kind's, until it ends.

What may pass by itself (a stage that restarts, a full queue, Redis gone) is waited out, since
every kind of step can be done twice; anything else ends the step with a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from plinth.coordinator.leader import Leadership
from plinth.coordinator.results import StepResults
from plinth.coordinator.steps import STEP_KINDS
from plinth.coordinator.steps.contract import Progress, StepOutcome, Tools, Work
from plinth.shared.errors import Aborted, Internal, PlinthError, ResourceExhausted
from plinth.shared.fencing import STALE

_FIRST_WAIT_S = 0.5
_LONGEST_WAIT_S = 5.0


def waits_for(error: PlinthError) -> bool:
    """Whether a run waits until that is over, and says so: for a disk or a queue that is full, too.
    What somebody cancelled stays so."""
    return error.transient or isinstance(error, ResourceExhausted)


class Performer:
    """Does the steps of runs under one leader's fence. Knows no run records."""

    def __init__(self, tools: Tools, results: StepResults, leadership: Leadership) -> None:
        self._tools = tools
        self._results = results
        self._leadership = leadership

    async def perform(self, work: Work) -> AsyncIterator[Progress | StepOutcome]:
        """Progress, then the StepOutcome. Raises the PlinthError that ends the step."""
        wait = _FIRST_WAIT_S
        while True:
            try:
                async for event in self._attempt(work):
                    yield event
                    wait = _FIRST_WAIT_S
                return
            except PlinthError as raised:
                if not waits_for(raised):
                    raise
                error = raised
            yield Progress(0.0, f"waits: {error.message}")
            await asyncio.sleep(max(wait, error.retry_after_s or 0))
            wait = min(2 * wait, _LONGEST_WAIT_S)

    async def abandon(self, work: Work) -> None:
        """Ends the work wherever it runs; waits for stages that are away."""
        kind = STEP_KINDS[work.spec.kind]
        await _persist(lambda: kind.abandon(work, self._fenced(work)))

    def _fenced(self, work: Work) -> Tools:
        """Tools for this step's writes. Aborted when the lease may have lapsed: another
        coordinator may do the same step now."""
        if not self._leadership.held:
            raise Aborted("this coordinator's lease has lapsed", reason=STALE)
        fenced = self._tools.under(self._leadership.fences(work.run_number))
        return fenced.owned_by(work.principal)

    async def _attempt(self, work: Work) -> AsyncIterator[Progress | StepOutcome]:
        kind = STEP_KINDS[work.spec.kind]
        if kind.pure:
            results = self._results.on(self._tools.owned_by(work.principal).store)
            found = await asyncio.to_thread(
                results.find, work.input_digest, work.output_name, work.inputs
            )
            if found is not None:
                yield found
                return
        outcome = None
        async for event in kind.execute(work, self._fenced(work)):
            if isinstance(event, StepOutcome):
                outcome = event
            else:
                yield event
        if outcome is None:
            raise Internal(f"a step of kind {work.spec.kind} ended without an outcome")
        if kind.pure:
            origin = {"run": work.run_id, "step": work.step}
            outcome = await asyncio.to_thread(
                self._results.publish,
                work.input_digest,
                outcome,
                output_name=work.output_name,
                inputs=work.inputs,
                fence=self._leadership.fence,
                origin=origin,
            )
        yield outcome


async def _persist(act: Callable[[], Awaitable[None]]) -> None:
    wait = _FIRST_WAIT_S
    while True:
        try:
            return await act()
        except PlinthError as error:
            if not waits_for(error):
                raise
            await asyncio.sleep(wait)
            wait = min(2 * wait, _LONGEST_WAIT_S)
