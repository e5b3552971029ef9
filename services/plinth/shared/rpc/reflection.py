"""Server reflection: what a server has, told to tools that know nothing of it (grpcurl, Postman).

As v1 and as v1alpha, which older tools ask for. They differ in their package's name alone:
https://github.com/grpc/grpc-proto/blob/master/grpc/reflection/v1/reflection.proto
Only files of the services that a server has are told, and what those import.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA: str = reflection.SERVICE_NAME
V1 = "grpc.reflection.v1.ServerReflection"
_METHOD = "ServerReflectionInfo"
_V1_FILE = "grpc/reflection/v1/reflection.proto"


def add_reflection(server: grpc.aio.Server, services: Sequence[str]) -> None:
    """Adds both to `server`. services: full names of all others that it has."""
    _define_v1()
    names = [*services, V1, V1ALPHA]
    servicer = reflection.aio.ReflectionServicer(names, pool=_pool_of(names))
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    for name in (V1, V1ALPHA):
        generic = grpc.method_handlers_generic_handler(name, {_METHOD: handler})
        server.add_generic_rpc_handlers((generic,))


def _define_v1() -> None:
    """In the default pool, unless it is there: grpcio-reflection has v1alpha's file alone."""
    pool = descriptor_pool.Default()
    try:
        pool.FindServiceByName(V1)
    except KeyError:
        text = text_format.MessageToString(_proto(reflection_pb2.DESCRIPTOR))
        made = descriptor_pb2.FileDescriptorProto()
        text_format.Parse(text.replace("grpc.reflection.v1alpha", "grpc.reflection.v1"), made)
        made.name = _V1_FILE
        pool.AddSerializedFile(made.SerializeToString())


def _pool_of(services: Sequence[str]) -> DescriptorPool:
    """The files that define `services`, and what they import."""
    pool, have = DescriptorPool(), set[str]()

    def add(file: FileDescriptor) -> None:
        if file.name in have:
            return
        have.add(file.name)
        for one in file.dependencies:
            add(one)
        pool.AddSerializedFile(_proto(file).SerializeToString())

    for name in services:
        add(descriptor_pool.Default().FindServiceByName(name).file)
    return pool


def _proto(file: Any) -> descriptor_pb2.FileDescriptorProto:
    made = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(made)
    return made
