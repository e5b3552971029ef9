"""From the bytes of a request message to a checked message, or an error that names what is wrong.

It runs behind auth and quotas: nothing that somebody sends who may not is read. Where strangers
call, a message is counted before it is parsed, and one that is not small is counted, parsed and
checked in a thread, whose steps are short enough that streams go on meanwhile.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import Message

from plinth.shared.api.enums import check_enums
from plinth.shared.errors import InvalidArgument, PlinthError
from plinth.shared.rpc import wire
from plinth.shared.rpc.handlers import (
    Context,
    Continuation,
    Handler,
    behaviour_of,
    build,
)
from plinth.shared.rpc.status import fail
from plinth.shared.telemetry import get_logger

Validator = Callable[[Any], None]

INLINE_BYTES = 8 * 1024  # a millisecond or two to count and to parse
_CANCELLATION_S = 0.002
_log = get_logger("plinth.rpc")
# One, so that many large messages take turns with each other rather than with the streams.
_parser = ThreadPoolExecutor(1, thread_name_prefix="messages")


class ValidationInterceptor(grpc.aio.ServerInterceptor):
    """Refuses messages of more than `bounds`, bytes that are no message of the method's type,
    values that their enum does not have, and what a validator rejects. A method without a
    deserialiser gets the bytes, counted. Fields that this version does not know are dropped: parts
    of requests are kept in records, and what nobody can check has no limit.

    validators: by full method name, a function that raises InvalidArgument for a bad message.
    bounds: None where only stages call, which believe each other.
    """

    def __init__(self, validators: Mapping[str, Validator], bounds: wire.Bounds | None) -> None:
        self._validators = validators
        self._bounds = bounds

    async def intercept_service(self, continuation: Continuation, details: Any) -> Handler | None:
        handler = await continuation(details)
        if handler is None:
            return None
        reader = _Reader(
            details.method,
            handler.request_deserializer,
            self._validators.get(details.method),
            self._bounds,
        )

        inner, stream = behaviour_of(handler), bool(handler.request_streaming)

        async def run(_requests: Any, context: Context) -> Any:
            read = partial(self._next, reader, context)
            return await inner(_each(read) if stream else await _one(read, context), context)

        return build(handler, run, deserializer=bytes, reads=True)

    async def _next(self, reader: _Reader, context: Context) -> Any:
        """The next message, checked, or EOF. Nothing holds its bytes then."""
        data = await context.read()
        if data is grpc.aio.EOF:
            return data
        try:
            if self._bounds is None or len(data) <= INLINE_BYTES:
                return reader.read(data)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(_parser, partial(reader.read, data))
        except PlinthError as error:
            await fail(context, error)


async def _one(read: Callable[[], Awaitable[Any]], context: Context) -> Any:
    message = await read()
    if message is grpc.aio.EOF:  # or its caller hung up, and `fail` finds nobody
        await fail(context, InvalidArgument("the call has no message", reason="MESSAGE_MISSING"))
    return message


async def _each(read: Callable[[], Awaitable[Any]]) -> AsyncIterator[Any]:
    while (message := await read()) is not grpc.aio.EOF:
        yield message
    # So gRPC also reads of a caller that hung up, and says so in one of the loop's next turns: a
    # handler that found nothing more to do would have answered it well.
    await asyncio.sleep(_CANCELLATION_S)


@dataclass(frozen=True)
class _Reader:
    """Reads the messages of one method, in any thread."""

    method: str
    parse: Callable[[bytes], Any] | None
    validator: Validator | None
    bounds: wire.Bounds | None

    def read(self, data: bytes) -> Any:
        """InvalidArgument for what is wrong with it."""
        if self.bounds is not None:
            wire.check(data, _kind(self.method), self.bounds)
        message = data if self.parse is None else self._parsed(self.parse, data)
        if isinstance(message, Message):
            message.DiscardUnknownFields()
            check_enums(message)
        if self.validator is not None:
            self.validator(message)
        return message

    def _parsed(self, parse: Callable[[bytes], Any], data: bytes) -> Any:
        try:
            return parse(data)
        except Exception as error:  # noqa: BLE001 - whatever a parser raises on a client's bytes
            _log.info("malformed message", method=self.method, error=type(error).__name__)
            raise InvalidArgument(
                f"the message is no valid request of {self.method}", reason="MESSAGE_MALFORMED"
            ) from None


def _kind(method: str) -> Descriptor:
    """What a method ("/plinth.v1.GenerationService/Chat") takes."""
    name = method.removeprefix("/").replace("/", ".")
    kind: Descriptor = descriptor_pool.Default().FindMethodByName(name).input_type
    return kind
