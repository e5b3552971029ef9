"""The client for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

import grpc

from plinth.client.address import address_of, key_of
from plinth.client.blocking import Client
from plinth.client.calls import AsyncServices
from plinth.client.channels import GatewayAddress, open_async
from plinth.client.methods import Method, serialized
from plinth.client.policy import Attempts, Gateway, Policy
from plinth.shared.errors import Unavailable
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


class AsyncTransport:
    """Calls by their methods, repeated and resumed as the policy has it."""

    def __init__(self, address: GatewayAddress, key: str, policy: Policy) -> None:
        self._gateway = Gateway(address, key, policy)
        self._channel = open_async(address)

    async def close(self) -> None:
        await self._channel.close()

    async def unary(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> Any:
        """The response. Raises the PlinthError that the platform raised."""
        call = self._channel.unary_unary(method.path, serialized, method.parse)
        attempts = Attempts(self._gateway, method, request, timeout)
        while True:
            try:
                response = await call(
                    attempts.request,
                    timeout=attempts.left_s,
                    metadata=self._gateway.metadata(metadata),
                )
                attempts.answered()
                return response
            except grpc.RpcError as raised:
                await self._wait(attempts, raised)

    async def stream(
        self,
        method: Method,
        request: Any,
        timeout: float | None,
        metadata: Mapping[str, str] | None,
    ) -> AsyncGenerator[Any, None]:
        """The responses; closing the iterator cancels the call."""
        open_call = self._channel.unary_stream(method.path, serialized, method.parse)
        attempts = Attempts(self._gateway, method, request, timeout)
        quiet_s = self._gateway.policy.quiet_s if method.resumable else None
        while True:
            call = open_call(
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
            except (grpc.RpcError, TimeoutError) as raised:
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
            return await call(sent, timeout=timeout, metadata=self._gateway.metadata(metadata))
        except grpc.RpcError as raised:
            raise self._gateway.told(raised) from raised

    async def _wait(self, attempts: Attempts, raised: grpc.RpcError | TimeoutError) -> None:
        """Until the next attempt; raises what the call ended with where there is none."""
        if isinstance(raised, grpc.RpcError):
            error = self._gateway.told(raised)
        else:
            error = Unavailable(f"{self._gateway.address}: the stream has gone quiet")
        if (wait_s := attempts.next_wait_s(error)) is None:
            raise error from raised
        await asyncio.sleep(wait_s)


async def _read(call: Any, quiet_s: float | None) -> Any:
    """The next message, or EOF. TimeoutError when nothing came for `quiet_s`."""
    if quiet_s is None:
        return await call.read()
    async with asyncio.timeout(quiet_s):
        return await call.read()
