"""Calls of a stage whose replicas may be away for a moment: asked again, of another one.

For calls that can be repeated. Knows no messages.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

import grpc

from plinth.shared.errors import Cancelled, Unavailable
from plinth.shared.identity import Principal
from plinth.shared.registry import Replica
from plinth.shared.rpc.client import StageClients

POLL_S = 0.2

T = TypeVar("T")


async def with_retries(
    clients: StageClients,
    stage: str,
    work: Callable[[grpc.aio.Channel], Awaitable[T]],
    caller: Principal,
    patience_s: float,
) -> T:
    """`work` over a channel to a replica of `stage`, again over another while they are
    unavailable. Raises Unavailable after `patience_s`, and the stage's other errors at once."""
    give_up = time.monotonic() + patience_s
    lost: set[str] = set()
    while True:
        replica: Replica | None = None
        try:
            replica = await _pick(clients, stage, lost)
            return await work(clients.channel(replica, caller))
        except (Unavailable, Cancelled):
            if time.monotonic() >= give_up:
                raise
        if replica is not None:
            lost.add(replica.id)
            clients.refused(replica)
        await asyncio.sleep(POLL_S)


async def _pick(clients: StageClients, stage: str, lost: set[str]) -> Replica:
    """One that is not in `lost`, or any when there is no other."""
    try:
        return await clients.pick(stage, exclude=lost)
    except Unavailable:
        lost.clear()
        return await clients.pick(stage)
