"""The engine that is lent to a client for bulk work, and who waits for its answers.

All of it but `settle` belongs to the engine's thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from plinth.engine.engine import Engine
from plinth.engine.isolation import step_failed
from plinth.engine.request import Event, FailedEvent, Finish, Request, SampledToken, TokensEvent
from plinth.inference.step_times import StepTimes
from plinth.shared.errors import PlinthError, Unavailable
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.inference.engine")


@dataclass
class LentAnswer:
    """All of one answer. `finish` is None until it has ended."""

    tokens: list[SampledToken] = field(default_factory=list)
    finish: Finish | None = None


class LentEngine:
    """Whole answers of one engine; or of none (it broke, or there never was one), which refuses
    everything."""

    def __init__(
        self, engine: Engine | None, tell: Callable[[asyncio.Future[Any], Any], None]
    ) -> None:
        """tell: settles a future on the event loop, from this thread."""
        self.engine, self._tell, self._times = engine, tell, StepTimes()
        self._answers: dict[str, tuple[LentAnswer, asyncio.Future[LentAnswer]]] = {}

    @property
    def busy(self) -> bool:
        """Whether a step would have something to do."""
        return self.engine is not None and self.engine.busy

    def add(self, request: Request, future: asyncio.Future[LentAnswer]) -> None:
        """The future is told the answer, or why there is none."""
        try:
            if self.engine is None:
                raise Unavailable("no policy is held here")
            self.engine.add(request)
            self._answers[request.id] = (LentAnswer(), future)
        except Exception as refusal:  # noqa: BLE001 - told to the request that it belongs to
            self._tell(future, step_failed(refusal))

    def abort(self, requests: Sequence[Request]) -> None:
        """End those of them that are still here; nobody is told."""
        for request in requests:
            if self._answers.pop(request.id, None) and self.engine is not None:
                self.engine.abort(request.id, Finish.CANCELLED)

    def step(self, timed: Callable[[Engine, StepTimes], list[Event]]) -> None:
        """A step of the engine, made by `timed`. Its death is not the shard's."""
        assert self.engine is not None
        try:
            events = timed(self.engine, self._times)
        except Exception as error:  # noqa: BLE001 - whoever waits for it is told
            _log.error("policy.engine.failed", error=repr(error), exc_info=True)
            self.engine = None
            self.fail(Unavailable("the policy's engine failed", reason="ENGINE_FAILED"))
            return
        for event in events:
            if isinstance(event, FailedEvent):
                log_failure(event)
                self._end(event.request_id, event.error)
                continue
            assert isinstance(event, TokensEvent)
            answer, _ = self._answers[event.request_id]
            answer.tokens += event.tokens
            if event.finish is not None:
                answer.finish = event.finish
                self._end(event.request_id, answer)

    def _end(self, request_id: str, outcome: LentAnswer | PlinthError) -> None:
        _, future = self._answers.pop(request_id)
        self._tell(future, outcome)

    def fail(self, error: PlinthError) -> None:
        """Whoever waits is told so."""
        for request_id in tuple(self._answers):
            self._end(request_id, error)


def settle(future: asyncio.Future[Any], outcome: Any) -> None:
    """Its result, or the exception that it is; nothing where whoever asked has gone."""
    if future.done():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def log_failure(event: FailedEvent) -> None:
    """For the operator: the request's id, and what the client is not told."""
    cause = event.error.__cause__
    _log.error(
        "request.failed",
        request=event.request_id,
        error=event.error.message,
        reason=event.error.reason,
        exc_info=cause if isinstance(cause, Exception) else None,
    )
