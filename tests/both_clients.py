"""The client that blocks and asyncio's as one, for tests that both have to pass."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from patience import PATIENCE_S
from plinth.client import Pager, Policy
from plinth.client.asynchronous import AsyncTransport
from plinth.client.blocking import Transport
from plinth.client.channels import GatewayAddress
from plinth.client.pages import AsyncPager
from things import ThingServer, message, method

PATIENT = Policy(patience_s=PATIENCE_S, stream_patience_s=PATIENCE_S)


class Blocking:
    """One client's calls, awaited whichever it is."""

    def __init__(self, server: ThingServer, key: str = "", policy: Policy = PATIENT) -> None:
        self._transport = Transport(GatewayAddress.parse(server.address), key, policy)

    async def unary(self, name: str, asked: Any, timeout: float | None = None, **sent: str) -> Any:
        return await asyncio.to_thread(self._transport.unary, method(name), asked, timeout, sent)

    async def stream(self, name: str, asked: Any) -> AsyncIterator[Any]:
        messages = self._transport.stream(method(name), asked, None, None)
        while (one := await asyncio.to_thread(next, messages, None)) is not None:
            yield one

    async def upload(self, name: str, requests: list[Any]) -> Any:
        return await asyncio.to_thread(self._transport.upload, method(name), requests, None, None)

    async def listed(self, asked: Any) -> list[Any]:
        def call(asked: Any) -> Any:
            return self._transport.unary(method("ListThings"), asked, None, None)

        return await asyncio.to_thread(lambda: list(Pager(call, asked, "things")))

    async def close(self) -> None:
        self._transport.close()


class Asynchronous:
    def __init__(self, server: ThingServer, key: str = "", policy: Policy = PATIENT) -> None:
        self._transport = AsyncTransport(GatewayAddress.parse(server.address), key, policy)

    async def unary(self, name: str, asked: Any, timeout: float | None = None, **sent: str) -> Any:
        return await self._transport.unary(method(name), asked, timeout, sent)

    async def stream(self, name: str, asked: Any) -> AsyncIterator[Any]:
        async for one in self._transport.stream(method(name), asked, None, None):
            yield one

    async def upload(self, name: str, requests: list[Any]) -> Any:
        return await self._transport.upload(method(name), requests, None, None)

    async def listed(self, asked: Any) -> list[Any]:
        async def call(asked: Any) -> Any:
            return await self._transport.unary(method("ListThings"), asked, None, None)

        return [one async for one in AsyncPager(call, asked, "things")]

    async def close(self) -> None:
        await self._transport.close()


Connect = Callable[..., Any]  # takes what both classes do


def thing(name: str, size: int = 0) -> Any:
    return message("GetThingResponse", thing={"name": name, "size": size})


def get(name: str = "a") -> Any:
    return message("GetThingRequest", name=name)


def failing(times: int, error: Exception) -> Callable[..., Any]:
    """An answer that comes after `times` errors."""
    left = [times]

    def answer(request: Any, _: grpc.ServicerContext) -> Any:
        if left[0]:
            left[0] -= 1
            raise error
        return thing(request.name)

    return answer


def until_ended(context: grpc.ServicerContext) -> None:
    ended = threading.Event()
    if context.add_callback(ended.set):
        assert ended.wait(PATIENCE_S)
