"""The engine on a thread of its own, seen from asyncio: one hop to the loop per step.

Everything that touches the engine happens on that thread, so the engine needs no lock. Commands
(add, abort) are taken between steps: a client that hangs up frees its blocks within one step.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from plinth.engine.engine import Engine, Load
from plinth.engine.request import Event, Finish, Request
from plinth.shared.errors import Internal, PlinthError, Unavailable
from plinth.shared.telemetry import get_logger

_log = get_logger("plinth.inference.engine")
# A step on a busy laptop takes well under a second; a minute without one is a hang.
STALL_S = 60.0


class EngineClient:
    """Owns the engine's thread from `start` to `stop`."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
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

    # -- on the engine's thread -------------------------------------------------------------

    def _add(self, request: Request) -> None:
        try:
            self._engine.add(request)
        except PlinthError as refusal:
            self._hop(self._refuse, request.id, refusal)

    def _abort(self, request_id: str) -> None:
        self._engine.abort(request_id, Finish.CANCELLED)

    def _run(self) -> None:
        try:
            while self._take_commands():
                if self._engine.busy:
                    self._deliver(self._engine.step())
                self._tell()
        except Exception as error:  # noqa: BLE001 - the thread's last words; `check` tells them
            _log.error("engine.failed", error=repr(error), exc_info=True)
            self._failure = error
            self._hop(self._fail_all, Internal("the engine failed; the request was not finished"))

    def _take_commands(self) -> bool:
        """Carry out what was asked since the last step; wait for it when there is no work."""
        while True:
            try:
                command = self._commands.get(block=not self._engine.busy)
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


def _dead(failure: Exception) -> Internal:
    return Internal(f"the engine stopped: {type(failure).__name__}")
