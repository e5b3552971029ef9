"""The stages' own services passed through the gateway for keys with the right scopes.

A call is forwarded message by message, in the bytes that came, to a replica of its stage, with the
key's principal; the stage's errors, deadline and cancellation pass through. A stream that can be
resumed goes on at another replica when its own is gone, and its client sees nothing of it. Handlers
are made from the protos, so a new method needs nothing here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any

import grpc
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

from plinth.shared.rpc.client import StageClients
from plinth.shared.rpc.resuming import is_resumable
from plinth.shared.rpc.server import GrpcService
from plinth.shared.rpc.watching import watch
from plinth.v1 import (
    artifacts_pb2,
    deployments_pb2,
    jobs_pb2,
    preferences_pb2,
    rewards_pb2,
    runs_pb2,
)

# The services of each stage that clients reach.
_PROXIED: tuple[tuple[str, ServiceDescriptor], ...] = (
    ("trainer", jobs_pb2.DESCRIPTOR.services_by_name["JobService"]),
    ("reward", rewards_pb2.DESCRIPTOR.services_by_name["RewardService"]),
    ("coordinator", runs_pb2.DESCRIPTOR.services_by_name["RunService"]),
    ("coordinator", deployments_pb2.DESCRIPTOR.services_by_name["DeploymentService"]),
    ("coordinator", artifacts_pb2.DESCRIPTOR.services_by_name["ArtifactService"]),
    ("coordinator", preferences_pb2.DESCRIPTOR.services_by_name["PreferenceService"]),
)


def proxied_services(clients: StageClients) -> list[GrpcService]:
    """The other stages' services as pass-through."""
    return [_service(clients, stage, service) for stage, service in _PROXIED]


def _service(clients: StageClients, stage: str, service: ServiceDescriptor) -> GrpcService:
    handlers = {method.name: _handler(clients, stage, method) for method in service.methods}

    def add(server: grpc.aio.Server) -> None:
        generic = grpc.method_handlers_generic_handler(service.full_name, handlers)
        server.add_generic_rpc_handlers((generic,))

    return GrpcService(service.full_name, add)


def _handler(clients: StageClients, stage: str, method: MethodDescriptor) -> Any:
    path = f"/{method.containing_service.full_name}/{method.name}"
    kind = f"{_word(method.client_streaming)}_{_word(method.server_streaming)}"
    takes = gives = None
    if is_resumable(method):  # there is something to read in them
        takes = message_factory.GetMessageClass(method.input_type)
        gives = message_factory.GetMessageClass(method.output_type)

    def multicallable(channel: grpc.aio.Channel) -> Any:
        return getattr(channel, kind)(
            path,
            request_serializer=takes and takes.SerializeToString,
            response_deserializer=gives and gives.FromString,
        )

    async def open_call(request: Any) -> Any:
        return multicallable(clients.channel(await clients.pick(stage)))(request)

    async def one(request: Any, _context: Any) -> Any:
        return await (await open_call(request))

    async def many(request: Any, _context: Any) -> AsyncIterator[Any]:
        call = await open_call(request)
        try:
            async for message in call:
                yield message
        finally:
            call.cancel()

    async def resumed(request: Any, context: Any) -> AsyncIterator[Any]:
        async def opened() -> None:
            await context.send_initial_metadata(())  # the client learns that it is taken

        stream = watch(clients, stage, multicallable, request, opened=opened)
        async with aclosing(stream):
            async for message in stream:
                yield message

    if takes is not None:
        answer: Any = resumed
    else:
        answer = many if method.server_streaming else one
    make = getattr(grpc, f"{kind}_rpc_method_handler")
    return make(
        answer,
        request_deserializer=takes and takes.FromString,
        response_serializer=gives and gives.SerializeToString,
    )


def _word(streaming: bool) -> str:
    return "stream" if streaming else "unary"
