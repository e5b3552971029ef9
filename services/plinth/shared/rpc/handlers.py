"""Wrapping the four kinds of gRPC handler with one kind of layer.

A layer is an async context manager around the handler's run. Stream responses are written by
`context.write` from one coroutine instead of yielded from generators in generators: when the caller
hangs up, the cancellation then reaches the handler's own generator at once, and its `finally`
blocks run before anything else.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any, TypeAlias

import grpc

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Continuation: TypeAlias = "Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]"
# What it gives is the handler's context, if it gives one.
Layer: TypeAlias = "Callable[[Context], AbstractAsyncContextManager[Context | None]]"
Behaviour = Callable[[Any, Context], Any]


def behaviour_of(handler: Handler) -> Behaviour:
    """The one function that `handler` holds."""
    found: Any = (
        handler.unary_unary or handler.unary_stream or handler.stream_unary or handler.stream_stream
    )
    if found is None:
        raise TypeError("a gRPC handler without a function")
    behaviour: Behaviour = found
    return behaviour


def metadata_of(context: Context) -> list[tuple[str, str | bytes]]:
    """What came with the call."""
    return [(pair[0], pair[1]) for pair in context.invocation_metadata() or ()]


def wrap(handler: Handler, layer: Layer) -> Handler:
    """`handler` run inside `layer(context)`."""
    inner = behaviour_of(handler)

    async def unary_response(request: Any, context: Context) -> Any:
        async with layer(context) as its_own:
            answering = inner(request, its_own or context)
            del request  # as below
            return await answering

    async def stream_response(request: Any, context: Context) -> None:
        async with layer(context) as its_own:
            context = its_own or context
            responses = inner(request, context)
            del request  # a stream lasts: its handler says for how long it needs it
            if inspect.isawaitable(responses):
                await responses  # it writes by itself
                return
            async with aclosing(responses):
                async for response in responses:
                    await context.write(response)

    run = stream_response if handler.response_streaming else unary_response
    return build(handler, run)


def build(
    handler: Handler,
    run: Behaviour,
    deserializer: Callable[[bytes], Any] | None = None,
    serializer: Callable[[Any], bytes] | None = None,
    *,
    reads: bool = False,
) -> Handler:
    """A handler of the same kind and serialisers around `run`. reads: `run` gets no message, though
    there may be one alone, and reads what comes by `context.read`."""
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[reads or bool(handler.request_streaming), bool(handler.response_streaming)]
    built: Handler = make(
        run,
        request_deserializer=deserializer or handler.request_deserializer,
        response_serializer=serializer or handler.response_serializer,
    )
    return built
