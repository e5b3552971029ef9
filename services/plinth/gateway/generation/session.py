"""The answers to one request that was let in, what they cost, and what came of them."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager

from plinth.gateway import metrics
from plinth.gateway.generation.answer_writer import TextEvent
from plinth.gateway.generation.generator import Generator, Prepared, merged
from plinth.gateway.generation.retry_budget import SHARDS_DIED
from plinth.gateway.generation.revisions import Choice, Revisions, outcome_of
from plinth.gateway.preferences.live import AnswerRecorder
from plinth.gateway.quotas.tenants import Admission
from plinth.shared.errors import DeadlineExceeded, PlinthError


class Session:
    """One request's answers by one revision, and what they cost. An async context manager: it is
    entered when the first piece is there, and when it is left the shards are free.

    The admission that it pays with is its opener's.
    """

    def __init__(
        self,
        generator: Generator,
        prepared: Sequence[Prepared],
        admission: Admission,
        revisions: Revisions,
        choice: Choice,
    ) -> None:
        self.prepared = prepared
        # Of what the client is told, from the first piece on.
        self.recorder: AnswerRecorder | None = None
        self._generator = generator
        self._admission = admission
        self._revisions = revisions
        self._choice = choice
        self._prompt_tokens = sum(len(one.prompt_ids) for one in prepared)
        self._outcome = "cancelled"
        self._tokens = 0
        self._ttft_s: float | None = None
        self._answers: AsyncGenerator[tuple[int, TextEvent], None] | None = None
        self._first: tuple[int, TextEvent] | None = None

    async def __aenter__(self) -> Session:
        """Pays for the prompts and waits for the first piece, so that what goes wrong until then
        has a status of its own. RateLimited; what shards and tokenizer raise."""
        try:
            await self._admission.charge(self._prompt_tokens)
        except BaseException as error:
            self._book(outcome_of(error, began=False))
            raise
        try:
            await self._start()
        except BaseException as error:
            if not _worked_on(error):
                self._admission.spend(-self._prompt_tokens)
            await self._end()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end()

    async def _start(self) -> None:
        self._answers = merged(
            [
                self._generator.answer(one, sample)
                for one in self.prepared
                for sample in range(one.samples)
            ]
        )
        metrics.RUNNING.inc()
        with self._judged():
            self._first = await anext(self._answers)
        self._ttft_s = time.monotonic() - self.prepared[0].started
        # Once, however many revisions were tried before one began.
        self._count("prompt", self._prompt_tokens)

    @property
    def revision(self) -> str:
        """The revision that answers: "chat@8"."""
        return self._choice.model.artifact

    async def events(self) -> AsyncGenerator[tuple[int, TextEvent], None]:
        """(index of the answer, its next piece): samples of the first prompt, then the next's."""
        assert self._answers is not None and self._first is not None, "enter it first"
        yield self._counted(self._first)
        with self._judged():
            async with aclosing(self._answers):
                async for item in self._answers:
                    yield self._counted(item)
            self._outcome = "ok"
        if self.recorder is not None:
            self.recorder.finish(self.prepared[0])

    async def _end(self) -> None:
        """Books the outcome and frees the shards."""
        if self._answers is None:
            return
        answers, self._answers = self._answers, None
        metrics.RUNNING.dec()
        self._book(self._outcome)
        await answers.aclose()

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Takes note of what the revision is to blame for."""
        try:
            yield
        except Exception as error:
            self._outcome = outcome_of(error, began=self._ttft_s is not None)
            raise

    def _book(self, outcome: str) -> None:
        self._revisions.book(
            self._choice,
            self.prepared[0].principal,
            outcome,
            tokens=self._tokens,
            ttft_s=self._ttft_s,
        )

    def _counted(self, item: tuple[int, TextEvent]) -> tuple[int, TextEvent]:
        self._tokens += len(item[1].tokens)
        self._admission.spend(len(item[1].tokens))
        self._count("completion", len(item[1].tokens))
        if self.recorder is not None:
            self.recorder.record(*item)
        return item

    def _count(self, kind: str, tokens: int) -> None:
        if tokens:
            tenant = metrics.tenant_label(self.prepared[0].principal.tenant)
            metrics.TOKENS.labels(kind, self.prepared[0].model.name, tenant).inc(tokens)


def _worked_on(error: BaseException) -> bool:
    """Whether prompts that have no answer are paid for all the same: where shards worked on them
    until the client hung up or its time was over, or died of them. What the platform refuses or
    can't do is not: whoever asks again pays then."""
    if isinstance(error, PlinthError):
        return isinstance(error, DeadlineExceeded) or error.reason == SHARDS_DIED
    return not isinstance(error, Exception)
