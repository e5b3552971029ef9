"""One request that was let in: its answers, what they cost, and what came of it."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager

from plinth.gateway import metrics
from plinth.gateway.answer_writer import TextEvent
from plinth.gateway.failover import Replaced
from plinth.gateway.generation import Generator, Prepared, merged
from plinth.gateway.live_preferences import AnswerRecorder
from plinth.gateway.quotas import Admission
from plinth.gateway.revisions import Choice, Revisions, at_fault
from plinth.shared.errors import PlinthError


class Session:
    """One request that was let in: its answers, and what they cost. Close it."""

    def __init__(
        self,
        generator: Generator,
        prepared: Sequence[Prepared],
        admission: Admission,
        revisions: Revisions,
        choice: Choice,
    ) -> None:
        self.prepared = prepared
        self.recorder: AnswerRecorder | None = (
            None  # of what the client is told, from the first piece on
        )
        self._admission = admission
        self._revisions = revisions
        self._choice = choice
        self._outcome = "cancelled"
        self._tokens = 0
        self._ttft_s: float | None = None
        self._closed = False
        self._made: list[TextEvent] = []
        self._answers = merged(
            [generator.answer(one, sample) for one in prepared for sample in range(one.samples)]
        )
        self._first: tuple[int, TextEvent] | None = None
        metrics.RUNNING.inc()

    async def start(self) -> None:
        """Waits for the first piece, so that what goes wrong until then has a status of its own."""
        with self._judged():
            self._first = await anext(self._answers)
        self._ttft_s = time.monotonic() - self.prepared[0].started
        # Once, however many revisions were tried before one began.
        self._spend("prompt", sum(len(one.prompt_ids) for one in self.prepared))

    @property
    def revision(self) -> str:
        """The revision that answers: "chat@8"."""
        return self._choice.model.artifact

    async def events(self) -> AsyncGenerator[tuple[int, TextEvent], None]:
        """(index of the answer, its next piece): samples of the first prompt, then the next's."""
        if self._first is not None:
            yield self._counted(self._first)
        with self._judged():
            async with aclosing(self._answers):
                async for item in self._answers:
                    yield self._counted(item)
            self._outcome = "ok"
        if self.recorder is not None:
            self.recorder.finish(self.prepared[0])

    async def close(self, *, leave: bool = True) -> None:
        """Frees the shards, books the outcome and, unless the request goes on elsewhere, settles
        the bill. Idempotent."""
        if self._closed:
            return
        self._closed = True
        metrics.RUNNING.dec()
        if leave:
            self._admission.close()
        principal = self.prepared[0].principal
        if self._outcome != "refused":
            self._revisions.book(
                self._choice,
                principal,
                self._outcome,
                tokens=self._tokens,
                ttft_s=self._ttft_s,
            )
        await self._answers.aclose()

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Takes note of what the revision is to blame for."""
        try:
            yield
        except Replaced:  # nobody's fault; it counts where it is answered
            self._outcome = "refused"
            raise
        except PlinthError as error:
            self._outcome = "error" if at_fault(error) else "refused"
            raise
        except Exception:
            self._outcome = "error"
            raise

    def _counted(self, item: tuple[int, TextEvent]) -> tuple[int, TextEvent]:
        self._tokens += len(item[1].tokens)
        self._spend("completion", len(item[1].tokens))
        if self.recorder is not None:
            self.recorder.record(*item)
        return item

    def _spend(self, kind: str, tokens: int) -> None:
        if tokens:
            self._admission.spend(tokens)
            tenant = metrics.tenant_label(self._admission.tenant)
            metrics.TOKENS.labels(kind, self.prepared[0].model.name, tenant).inc(tokens)
