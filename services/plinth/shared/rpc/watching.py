"""A server stream of a stage that survives its replica: asked for again at another one, from where
it broke (see `resuming`). Knows no messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc

from plinth.shared.errors import PlinthError, Unavailable
from plinth.shared.identity import Principal
from plinth.shared.registry import Replica
from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.resuming import PATIENCE_S, Break, broken
from plinth.shared.rpc.status import raised_by_call, said
from plinth.shared.telemetry import counter, get_logger

_log = get_logger("plinth.rpc")
RESUMED = counter(
    "rpc_streams_resumed_total", "Streams that went on after they broke, by stage.", ["stage"]
)


async def watch(
    clients: StageClients,
    stage: str,
    method: Callable[[grpc.aio.Channel], Any],
    request: Any,
    *,
    principal: Principal | None = None,
    patience_s: float = PATIENCE_S,
    opened: Callable[[], Awaitable[None]] | None = None,
) -> AsyncGenerator[Any, None]:
    """The responses to `request`, each once, over as many replicas of `stage` as it takes.

    method: the multi-callable of a channel, `lambda channel: JobServiceStub(channel).WatchJob`.
    opened: called once, when a replica has taken the request.
    Raises what the stage answers; before it has begun also Unavailable and other errors of the
    connection, and after that only when nobody goes on for `patience_s`.
    """
    asked = type(request)()
    asked.CopyFrom(request)
    gap, begun, lost = Break(patience_s), False, set[str]()
    while True:
        replica: Replica | None = None
        silent = False
        try:
            replica = await _pick(clients, stage, lost)
            call = method(clients.channel(replica, principal))(asked)
            try:
                await call.initial_metadata()
                if not call.done():
                    gap.mended()
                    if not begun and opened is not None:
                        await opened()
                    begun = True
                async for message in call:
                    asked.resume_token = message.resume_token or asked.resume_token
                    begun = True
                    gap.mended()
                    yield message
                return
            finally:
                call.cancel()
        except PlinthError as raised:
            error = raised
            silent = raised_by_call(error) is not None and not said(error)
            if not broken(error) or not begun or (wait_s := gap.next_wait_s(error)) is None:
                raise
        if replica is not None:
            lost = {replica.id}
            if silent:
                clients.refused(replica)
        _log.info("a stream broke and goes on", stage=stage, error=error.message)
        RESUMED.labels(stage).inc()
        await asyncio.sleep(wait_s)


async def _pick(clients: StageClients, stage: str, lost: set[str]) -> Replica:
    """Another one than those that broke, if there is one."""
    try:
        return await clients.pick(stage, exclude=lost)
    except Unavailable:
        if not lost:
            raise
        return await clients.pick(stage)
