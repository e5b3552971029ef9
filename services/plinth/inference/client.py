"""The engine on a thread of its own, seen from asyncio: one hop to the loop per step.

Everything that touches the engine happens on that thread, so the engine needs no lock. Commands
(add, abort) are taken between steps: a client that hangs up frees its blocks within one step.

A second engine may be lent to it, for bulk work on other weights. It gets the steps in which
nobody waits for the first one, and one in `LENT_TURN` where somebody always does.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from plinth.engine.engine import Engine, Load
from plinth.engine.request import Event, Finish, Request, SampledToken, TokensEvent
from plinth.shared.errors import Internal, PlinthError, Unavailable
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.inference.engine")
# A step on a busy laptop takes well under a second; a minute without one is a hang.
STALL_S = 60.0
# A rollout's step beside eight of a chat costs the chat little, and no run starves.
LENT_TURN = 8


@dataclass
class Answer:
    """All of one answer. `finish` is None until it has ended."""

    tokens: list[SampledToken] = field(default_factory=list)
    finish: Finish | None = None


class EngineClient:
    """Owns the engine's thread from `start` to `stop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lent: Engine | None = None
        self._served = 0  # steps of the first engine since the last one of the lent
        self._answers: dict[str, tuple[Answer, asyncio.Future[Answer]]] = {}
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, asyncio.Queue[Event | Exception]] = {}
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._failure: Exception | None = None
        self._moved = time.monotonic()
        self.load = Load(0, 0, 0.0, 0)
        self.blocks = (engine.pool.free, engine.pool.cached)

    def start(self) -> None:
        """Begin stepping; call from the event loop that will hear the events."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def stop(self) -> None:
        """End the thread after its present step."""
        self._commands.put(None)
        await asyncio.to_thread(self._thread.join)

    def check(self) -> None:
        """Raise Internal when the engine died, Unavailable when it stands still with work."""
        if self._failure is not None:
            raise _dead(self._failure)
        if not self._thread.is_alive():
            raise Internal("the engine's thread ended")
        still = time.monotonic() - self._moved
        if self._streams and still > STALL_S:
            raise Unavailable(f"the engine has made no step for {still:.0f} s while work waits")

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """Events of one request, the last with `finish` (or the scores).

        Leaving early aborts the request. Raises what `Engine.add` raises, and Internal when the
        engine died.
        """
        if self._failure is not None:
            raise _dead(self._failure)
        if not self._streams:
            self._moved = time.monotonic()  # standing still is counted from when there is work
        events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._streams[request.id] = events
        self._commands.put(lambda: self._add(request))
        ended = False
        try:
            while not ended:
                event = await events.get()
                if isinstance(event, Exception):
                    ended = True
                    raise event
                ended = getattr(event, "finish", None) is not None or hasattr(event, "logprobs")
                yield event
        finally:
            self._streams.pop(request.id, None)
            if not ended:
                self._commands.put(lambda: self._abort(request.id))

    async def lend(self, engine: Engine | None) -> None:
        """Step this engine too, or no second one. What still runs on the last one fails."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def exchange() -> None:
            self._fail_answers(Unavailable("the policy's engine was taken away"))
            self._lent = engine
            self._hop(_settle, done, None)

        self._commands.put(exchange)
        await done

    async def answers(self, requests: Sequence[Request]) -> list[Answer]:
        """Whole answers of the lent engine, in the order of the requests; one hop for each.

        Leaving early aborts them. Raises what `Engine.add` raises, and Internal when it died.
        """
        if self._failure is not None:
            raise _dead(self._failure)
        loop = asyncio.get_running_loop()
        futures: list[asyncio.Future[Answer]] = [loop.create_future() for _ in requests]
        for request, future in zip(requests, futures, strict=True):
            self._commands.put(partial(self._add_lent, request, future))
        try:
            return await asyncio.gather(*futures)
        finally:
            if not all(future.done() and not future.cancelled() for future in futures):
                gone: asyncio.Future[None] = loop.create_future()
                self._commands.put(lambda: self._abort_lent(requests, gone))
                await asyncio.shield(gone)  # then nothing of them is in the engine any more

    # -- on the engine's thread -------------------------------------------------------------

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except PlinthError as refusal:
            self._hop(self._refuse, request.id, refusal)

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id, Finish.CANCELLED)

    def _add_lent(self, request: Request, future: asyncio.Future[Answer]) -> None:
        try:
            if self._lent is None:
                raise Unavailable("no policy is held here")
            self._lent.add(request)
            self._answers[request.id] = (Answer(), future)
        except PlinthError as refusal:
            self._hop(_settle, future, refusal)

    def _abort_lent(self, requests: Sequence[Request], gone: asyncio.Future[None]) -> None:
        for request in requests:
            if self._answers.pop(request.id, None) and self._lent is not None:
                self._lent.abort(request.id, Finish.CANCELLED)
        self._hop(_settle, gone, None)

    def _step_lent(self, lent: Engine) -> None:
        """A step of the lent engine. Its death is not the shard's."""
        self._served = 0
        try:
            events = lent.step()
        except Exception as error:  # noqa: BLE001 - whoever waits for it is told
            _log.error("policy.engine.failed", error=repr(error), exc_info=True)
            self._lent = None
            self._fail_answers(Internal("the policy's engine failed"))
            return
        for event in events:
            assert isinstance(event, TokensEvent)
            answer, future = self._answers[event.request_id]
            answer.tokens += event.tokens
            if event.finish is not None:
                answer.finish = event.finish
                del self._answers[event.request_id]
                self._hop(_settle, future, answer)

    def _fail_answers(self, error: PlinthError) -> None:
        for _, future in self._answers.values():
            self._hop(_settle, future, error)
        self._answers.clear()

    @property
    def _busy(self) -> bool:
        return self._engine.busy or (self._lent is not None and self._lent.busy)

    def _step(self) -> None:
        """One step of whichever engine's turn it is."""
        lent = self._lent if self._lent is not None and self._lent.busy else None
        if self._engine.busy and (lent is None or self._served < LENT_TURN):
            self._served += 1
            events = self._engine.step()
            self._tell()  # before the answers: who has one finds its step counted
            self._deliver(events)
        elif lent is not None:
            self._step_lent(lent)

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._step()
                self._tell()
        except Exception as error:  # noqa: BLE001 - the thread's last words; `check` tells them
            _log.error("engine.failed", error=repr(error), exc_info=True)
            self._failure = error
            self._hop(self._fail_all, Internal("the engine failed; the request was not finished"))
            self._fail_answers(_dead(error))

    def _take_commands(self) -> bool:
        """Carry out what was asked since the last step; wait for it when there is no work."""
        while True:
            try:
                command = self._commands.get(block=not self._busy)
            except queue.Empty:
                return True
            if command is None:
                return False
            command()
            self._tell()

    def _tell(self) -> None:
        self._moved = time.monotonic()
        self.load = self._engine.load()
        self.blocks = (self._engine.pool.free, self._engine.pool.cached)

    def _deliver(self, events: list[Event]) -> None:
        if events:
            self._hop(self._hand_out, events)

    def _hop(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    # -- on the event loop ------------------------------------------------------------------

    def _hand_out(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is not None:
                stream.put_nowait(event)

    def _refuse(self, request_id: str, refusal: PlinthError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(refusal)

    def _fail_all(self, error: Exception) -> None:
        for stream in self._streams.values():
            stream.put_nowait(error)


def _settle(future: asyncio.Future[Any], outcome: Answer | Exception | None) -> None:
    if future.done():  # whoever asked has gone
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _dead(failure: Exception) -> Internal:
    return Internal(f"the engine stopped: {type(failure).__name__}")
