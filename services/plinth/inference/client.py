"""The engine on a thread of its own, seen from asyncio: one hop to the loop per step.

Everything that touches the engine happens on that thread, so the engine needs no lock. Commands
(add, abort) are taken between steps: a client that hangs up frees its blocks within one step.

A second engine may be lent to it, for bulk work on other weights. It gets the steps in which
nobody waits for the first one, and one in `LENT_TURN` where somebody always does.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from plinth.engine.engine import Engine, Load
from plinth.engine.isolation import step_failed
from plinth.engine.request import (
    Event,
    FailedEvent,
    Finish,
    Request,
    ScoresEvent,
    TokensEvent,
)
from plinth.inference import step_times
from plinth.inference.lent import LentAnswer, LentEngine, log_failure, settle
from plinth.inference.outbox import Outbox, ReaderBehind
from plinth.inference.step_times import StepTimes
from plinth.shared.errors import InvalidArgument, PlinthError, Unavailable
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.inference.engine")
# A rollout's step beside eight of a chat costs the chat little, and no run starves.
LENT_TURN = 8


class EngineClient:
    """Owns the engine's thread from `start` to `stop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._times = StepTimes()
        self._lent = LentEngine(None, self._settle)
        self._served = 0  # steps of the first engine since the last one of the lent
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._streams: dict[str, Outbox] = {}
        self._unfinished: set[str] = set()  # streams whose last event has not come
        self._asked: set[asyncio.Future[Any]] = set()  # what else somebody waits for
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ended: PlinthError | None = None  # why nothing is answered any more
        self._moved = time.monotonic()
        # What is stepped now, and since when.
        self._stepping: tuple[Engine, StepTimes, float] | None = None
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
        """Raise Unavailable when the engine died, or stands still: when a step takes many times as
        long as those of its size that were measured, or none begins though work waits."""
        if self._ended is not None:
            raise self._ended
        if not self._thread.is_alive():
            raise Unavailable("the engine's thread ended", reason="ENGINE_ENDED")
        now, stepping = time.monotonic(), self._stepping
        if stepping is not None:  # whether or not those who wait for it have patience left
            engine, times, since = stepping
            tokens, began = engine.under_way
            still, limit = now - max(since, began), times.limit_s(tokens)
        elif self._unfinished or self._asked:
            still, limit = now - self._moved, step_times.AT_LEAST_S
        else:
            return
        if still > limit:
            raise Unavailable(
                f"the engine has made no step for {still:.0f} s though it has work; "
                f"{limit:.0f} s are the most that it should take",
                reason="ENGINE_STALLED",
            )

    async def stream(self, request: Request) -> AsyncIterator[Event]:
        """Events of one request, the last with `finish` (or the scores).

        Leaving early aborts the request; so does falling far behind, by a last `ReaderBehind`.
        Raises what `Engine.add` raises, what the request failed with, and Unavailable when the
        engine died.
        """
        self._take_work()
        if request.id in self._streams:
            raise InvalidArgument(f"request id {request.id!r} is in use", field="request_id")
        events = self._streams[request.id] = Outbox()
        self._unfinished.add(request.id)
        self._commands.put(lambda: self._add(request))
        ended = False
        try:
            while not ended:
                event = await events.get()
                if isinstance(event, Exception):
                    ended = True
                    raise event
                ended = _last(event)
                if isinstance(event, FailedEvent):
                    raise event.error
                yield event
        finally:
            self._streams.pop(request.id, None)
            self._unfinished.discard(request.id)
            if not ended:
                self._commands.put(lambda: self._abort(request.id))

    async def lend(self, engine: Engine | None) -> None:
        """Step this engine too, or no second one. What still runs on the last one fails. Raises
        Unavailable when the engine's thread has ended, or ends."""

        def exchange() -> None:
            self._lent.fail(Unavailable("the policy's engine was taken away"))
            self._lent = LentEngine(engine, self._settle)

        await self._ask(exchange)

    @property
    def lent(self) -> Engine | None:
        """The engine that is lent to this one; None also where it broke."""
        return self._lent.engine

    async def answers(self, requests: Sequence[Request]) -> list[LentAnswer]:
        """Whole answers of the lent engine, in the order of the requests; one hop for each.

        Leaving early aborts them. Raises what `Engine.add` raises, what one of them failed with,
        and Unavailable when the engine died.
        """
        self._take_work()
        futures: list[asyncio.Future[LentAnswer]] = [self._awaited() for _ in requests]
        for request, future in zip(requests, futures, strict=True):
            self._commands.put(partial(self._add_lent, request, future))
        try:
            return await asyncio.gather(*futures)
        finally:
            if not all(future.done() and not future.cancelled() for future in futures):
                with contextlib.suppress(Unavailable):  # then nothing of them is there any more
                    await asyncio.shield(self._ask(lambda: self._lent.abort(requests)))

    async def _ask(self, command: Callable[[], None]) -> None:
        """Have it carried out on the engine's thread, and wait until it was."""
        self._take_work()
        done: asyncio.Future[None] = self._awaited()

        def carry_out() -> None:
            command()
            self._settle(done, None)

        self._commands.put(carry_out)
        await done

    def _awaited(self) -> asyncio.Future[Any]:
        """A future that is settled at the engine's end at the latest."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._asked.add(future)
        future.add_done_callback(self._asked.discard)
        return future

    def _take_work(self) -> None:
        """Raises where there is nobody to do it; standing still is counted from the first."""
        if self._ended is not None:
            raise self._ended
        if not (self._unfinished or self._asked):
            self._moved = time.monotonic()

    # -- on the engine's thread -------------------------------------------------------------

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except Exception as refusal:  # noqa: BLE001 - told to the request that it belongs to
            self._hop(self._refuse, request.id, step_failed(refusal))

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id, Finish.CANCELLED)

    def _add_lent(self, request: Request, future: asyncio.Future[LentAnswer]) -> None:
        self._lent.add(request, future)

    def _timed(self, engine: Engine, times: StepTimes) -> list[Event]:
        """A step that `check` can watch."""
        passes, began = engine.passes, time.monotonic()
        self._stepping = (engine, times, began)
        try:
            events = engine.step()
        finally:
            self._stepping = None
        if engine.passes == passes + 1:  # not one that was repeated row by row
            times.add(engine.under_way[0], time.monotonic() - began)
        return events

    @property
    def _busy(self) -> bool:
        return self._engine.busy or self._lent.busy

    def _step(self) -> None:
        """One step of whichever engine's turn it is."""
        if self._engine.busy and (not self._lent.busy or self._served < LENT_TURN):
            self._served += 1
            events = self._timed(self._engine, self._times)
            self._tell()  # before the answers: who has one finds its step counted
            self._deliver(events)
        elif self._lent.busy:
            self._served = 0
            self._lent.step(self._timed)

    def _run(self) -> None:
        try:
            while self._take_commands():
                self._step()
                self._tell()
            ended = Unavailable("the engine was stopped", reason="ENGINE_STOPPED")
        except BaseException as error:  # noqa: BLE001 - the thread's last words; `check` tells them
            _log.error("engine.failed", error=repr(error), exc_info=True)
            ended = Unavailable(
                f"the engine failed ({type(error).__name__}); the request was not finished",
                reason="ENGINE_FAILED",
            )
        self._hop(self._end, ended)

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
        for event in events:
            if isinstance(event, FailedEvent):
                log_failure(event)
        if events:
            self._hop(self._hand_out, events)

    def _settle(self, future: asyncio.Future[Any], outcome: Any) -> None:
        self._hop(settle, future, outcome)

    def _hop(self, call: Callable[..., None], *arguments: Any) -> None:
        assert self._loop is not None
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(call, *arguments)

    # -- on the event loop ------------------------------------------------------------------

    def _hand_out(self, events: list[Event]) -> None:
        for event in events:
            stream = self._streams.get(event.request_id)
            if stream is None:
                continue
            stream.put(event)
            if _last(event):
                self._unfinished.discard(event.request_id)
            elif isinstance(event, TokensEvent) and stream.full:
                self._leave_behind(stream, event)

    def _leave_behind(self, stream: Outbox, event: TokensEvent) -> None:
        """End a request whose reader doesn't keep up. What still comes of it is nobody's."""
        id_ = event.request_id
        stream.put(ReaderBehind(id_, (), Finish.CANCELLED, event.usage))
        del self._streams[id_]
        self._unfinished.discard(id_)
        self._commands.put(lambda: self._abort(id_))

    def _refuse(self, request_id: str, refusal: PlinthError) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put(refusal)

    def _end(self, error: PlinthError) -> None:
        """Nothing is answered any more: tell whoever waits, and from now on whoever asks."""
        self._ended = error
        for stream in self._streams.values():
            stream.put(error)
        for asked in tuple(self._asked):
            settle(asked, error)


def _last(event: Event) -> bool:
    """Whether nothing comes after it."""
    return isinstance(event, ScoresEvent | FailedEvent) or event.finish is not None
