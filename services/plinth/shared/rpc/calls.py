"""A call of another stage, as its caller sees it: what goes wrong in it is a PlinthError.

So no caller knows gRPC's own exceptions, and what the other side raised has its type here too, or
the nearest one where it could not say (`status.from_rpc_error`). Knows no messages.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, cast

import grpc

from plinth.shared.errors import PlinthError, Unavailable
from plinth.shared.rpc.status import from_rpc_error, too_large

Serialise = Callable[[Any], bytes]


class Requests:
    """What goes into the calls of one method, as bytes of a length that may be sent: of a longer
    message gRPC does not always say why it was not. where: the stage and the method."""

    def __init__(self, serialise: Serialise | None, max_bytes: int, where: str) -> None:
        self.where = where
        self._serialise = serialise
        self._max_bytes = max_bytes

    def written(self, message: Any) -> bytes:
        """InvalidArgument: it is too long."""
        data: bytes = message if self._serialise is None else self._serialise(message)
        if len(data) > self._max_bytes:
            raise too_large(self.where, len(data), self._max_bytes)
        return data

    def each(self, messages: AsyncIterable[Any] | Iterable[Any]) -> Asked:
        """Those of a stream of requests."""
        return Asked(self, messages)


class Asked:
    """The requests of one call. gRPC, which reads them, passes over what is raised in them and
    cancels the call; so it is kept."""

    def __init__(self, requests: Requests, messages: AsyncIterable[Any] | Iterable[Any]) -> None:
        self._requests = requests
        self._messages = messages
        self.raised: Exception | None = None

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        try:
            if isinstance(self._messages, AsyncIterable):
                async for message in self._messages:
                    yield self._requests.written(message)
            else:
                for message in self._messages:
                    yield self._requests.written(message)
        except Exception as error:
            self.raised = error
            raise


class StageCall:
    """A grpc.aio call, of whichever kind; what is not here is the call's own."""

    def __init__(self, call: Any, requests: Requests, asked: Asked | None) -> None:
        self._call = call
        self._requests = requests
        self._asked = asked
        self._messages: AsyncGenerator[Any, None] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._call, name)

    def __await__(self) -> Generator[Any, None, Any]:
        with self._typed():
            return (yield from self._call.__await__())

    def __aiter__(self) -> AsyncGenerator[Any, None]:
        if self._messages is None:
            self._messages = self._read_all()
        return self._messages

    async def read(self) -> Any:
        """The next message; grpc.aio.EOF where there is none."""
        with self._typed():
            return await self._call.read()

    async def write(self, message: Any) -> None:
        """Raises what the call ended with; Unavailable where it ended well."""
        data = self._requests.written(message)
        try:
            with self._typed():
                await self._call.write(data)
        except asyncio.InvalidStateError:
            if not self._call.done() or self._call.cancelled():
                raise  # of a call that its caller has ended, or said all to
            ended = await self._ended()
            raise ended from ended.__cause__

    async def done_writing(self) -> None:
        with self._typed():
            await self._call.done_writing()

    async def wait_for_connection(self) -> None:
        with self._typed():
            await self._call.wait_for_connection()

    async def _read_all(self) -> AsyncGenerator[Any, None]:
        with self._typed():
            async with aclosing(cast("AsyncGenerator[Any, None]", aiter(self._call))) as messages:
                async for message in messages:
                    yield message

    @contextmanager
    def _typed(self) -> Iterator[None]:
        try:
            yield
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error, self._requests.where) from error
        except asyncio.CancelledError:
            if self._asked is not None and self._asked.raised is not None:
                raise self._asked.raised from self._asked.raised.__cause__
            raise

    async def _ended(self) -> PlinthError:
        code, details = await self._call.code(), await self._call.details()
        where = self._requests.where
        if code is grpc.StatusCode.OK:
            return Unavailable(f"{where}: the stream has ended")
        trailers = await self._call.trailing_metadata()
        error = grpc.aio.AioRpcError(code, grpc.aio.Metadata(), trailers, details)
        return from_rpc_error(error, where)
