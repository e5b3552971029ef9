"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc

from plinth.client.address import address_of, key_of
from plinth.client.blocking import Client
from plinth.client.calls import AsyncServices
from plinth.client.channels import GatewayAddress, async_opener
from plinth.client.methods import Method, serialized
from plinth.client.policy import (
    Attempts,
    Gateway,
    Policy,
    closed,
    gone_quiet,
    seconds_of,
)
from plinth.shared.errors import FailedPrecondition, PlinthError
from plinth.v1 import artifacts_pb2 as pb


class AsyncClient(AsyncServices):
    """A gateway, with a key, for one event loop. Close it, or use it as a context."""

    def __init__(
        self,
        address: GatewayAddress | str | None = None,
        key: str | None = None,
        *,
        policy: Policy | None = None,
    ) -> None:
        """As a `Client`."""
        self.address = address_of(address)
        self._key, self._policy = key_of(key), policy or Policy()
        self._transport = AsyncTransport(self.address, self._key, self._policy)
        super().__init__(self._transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        await self._transport.close()

    async def upload(
        self, folder: Path | str, artifact_id: str, *, license: str = ""
    ) -> pb.Artifact:
        """As a `Client`'s."""
        return await self._blocking(Client.upload, folder, artifact_id, license=license)

    async def download(self, name: str, folder: Path | str) -> pb.Artifact:
        """As a `Client`'s."""
        return await self._blocking(Client.download, name, folder)

    async def _blocking(
        self, call: Callable[..., pb.Artifact], *given: Any, **named: Any
    ) -> pb.Artifact:
        """In a thread, since that is where files are read and digests made; by a connection of its
        own, which ends with this call, so that a cancelled one stops."""
        with Client(self.address, self._key, policy=self._policy) as client:
            return await asyncio.to_thread(call, client, *given, **named)


@dataclass(frozen=True)
class _Opened:
    """A channel, in its event loop. ended: set when it is closed."""

    loop: asyncio.AbstractEventLoop
    channel: grpc.aio.Channel
    ended: asyncio.Event


class AsyncTransport:
    """Calls by their methods, repeated and resumed as the policy has it."""

    def __init__(self, address: GatewayAddress, key: str, policy: Policy) -> None:
        self._gateway = Gateway(address, key, policy)
        self._open = async_opener(address)
        self._opened: _Opened | None = None
        self._closed = False

    @property
    def _channel(self) -> grpc.aio.Channel:
        """Of this event loop: gRPC's know one only, and a client may be made before there is any.
        FailedPrecondition while another loop uses it, and once it is closed."""
        if self._closed:
            raise closed()
        loop = asyncio.get_running_loop()
        if self._opened is not None and self._opened.loop is not loop:
            if not self._opened.loop.is_closed():
                raise FailedPrecondition(
                    "this client works for another event loop; make one for each",
                    reason="ANOTHER_EVENT_LOOP",
                )
            self._opened = None
        if self._opened is None:
            self._opened = _Opened(loop, self._open(), asyncio.Event())
        return self._opened.channel

    async def close(self) -> None:
        self._closed = True
        if self._opened is not None and self._opened.loop is asyncio.get_running_loop():
            self._opened.ended.set()
            await self._opened.channel.close()

    async def unary(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Any:
        """The response. Raises the PlinthError that the platform raised."""
        attempts = Attempts(self._gateway, method, request, timeout)
        while True:
            call = self._channel.unary_unary(method.path, serialized, method.parse)
            try:
                response = await call(
                    attempts.request,
                    timeout=attempts.left_s,
                    metadata=self._gateway.metadata(metadata),
                )
                attempts.answered()
                return response
            except (grpc.RpcError, asyncio.CancelledError) as raised:
                await self._wait(attempts, raised)

    async def stream(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> AsyncGenerator[Any, None]:
        """The responses; closing the iterator cancels the call."""
        attempts = Attempts(self._gateway, method, request, timeout)
        quiet_s = self._gateway.policy.quiet_s if method.resumable else None
        while True:
            call = self._channel.unary_stream(method.path, serialized, method.parse)(
                attempts.request, timeout=attempts.left_s, metadata=self._gateway.metadata(metadata)
            )
            try:
                await call.initial_metadata()  # comes when somebody has taken the request
                if not call.done():
                    attempts.answered()
                while (message := await _read(call, quiet_s)) is not grpc.aio.EOF:
                    if attempts.took(message):
                        yield message
                return
            except (grpc.RpcError, TimeoutError, asyncio.CancelledError) as raised:
                await self._wait(attempts, raised)
            finally:
                call.cancel()

    async def upload(
        self,
        method: Method,
        requests: Iterable[Any] | AsyncIterable[Any],
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Any:
        """The response to a stream of requests; it is sent once."""
        call = self._channel.stream_unary(method.path, serialized, method.parse)
        try:
            sent: Any = requests
            return await call(
                sent, timeout=seconds_of(timeout), metadata=self._gateway.metadata(metadata)
            )
        except (grpc.RpcError, asyncio.CancelledError) as raised:
            raise self._told(raised) from raised

    def _told(self, raised: BaseException) -> PlinthError:
        """What a call ended with. Where it was the channel that was closed, gRPC cancels the call,
        and that is not to look as if somebody had cancelled the task."""
        task = asyncio.current_task()
        if isinstance(raised, asyncio.CancelledError) and (
            not self._closed or (task is not None and task.cancelling())
        ):
            raise raised
        if self._closed:
            return closed()
        if isinstance(raised, grpc.RpcError):
            return self._gateway.told(raised)
        return gone_quiet(self._gateway.address)

    async def _wait(self, attempts: Attempts, raised: BaseException) -> None:
        """Until the next attempt; raises what the call ended with where there is none."""
        error = self._told(raised)
        if self._opened is None or (wait_s := attempts.next_wait_s(error)) is None:
            raise error from raised
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._opened.ended.wait()
                raise closed() from raised


async def _read(call: Any, quiet_s: float | None) -> Any:
    """The next message, or EOF. TimeoutError when nothing came for `quiet_s`."""
    if quiet_s is None:
        return await call.read()
    async with asyncio.timeout(quiet_s):
        return await call.read()
