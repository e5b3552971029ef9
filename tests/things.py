"""A small service for tests of the client's transport: one method of each sort, and a server whose
answers a test scripts."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent import futures
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClassesForFiles
from grpc_tools import protoc

from plinth.client.methods import Method
from plinth.shared.errors import PlinthError
from plinth.shared.rpc.status import to_status

PROTO = """
syntax = "proto3";
package things;

service ThingService {
  rpc GetThing(GetThingRequest) returns (GetThingResponse) {
    option idempotency_level = NO_SIDE_EFFECTS;
  }
  rpc CreateThing(CreateThingRequest) returns (GetThingResponse) {
    option idempotency_level = IDEMPOTENT;
  }
  rpc AddThing(GetThingRequest) returns (GetThingResponse);
  rpc ListThings(ListThingsRequest) returns (ListThingsResponse) {
    option idempotency_level = NO_SIDE_EFFECTS;
  }
  rpc WatchThing(WatchThingRequest) returns (stream WatchThingResponse);
  rpc TellThing(GetThingRequest) returns (stream GetThingResponse);
  rpc StreamText(StreamTextRequest) returns (stream StreamTextResponse);
  rpc SendThings(stream GetThingResponse) returns (GetThingResponse);
}
message Thing { string name = 1; int64 size = 2; }
message GetThingRequest { string name = 1; }
message GetThingResponse { Thing thing = 1; }
message CreateThingRequest { string name = 1; string request_id = 2; }
message ListThingsRequest { int32 page_size = 1; string page_token = 2; }
message ListThingsResponse { repeated Thing things = 1; string next_page_token = 2; }
message Sampling { optional uint64 seed = 1; }
message Options { Sampling sampling = 1; }
message Token { uint32 id = 1; }
message Usage { uint32 tokens = 1; }
message StreamTextRequest { string model = 1; Options options = 2; }
message StreamTextResponse {
  string id = 1;
  int64 create_time = 2;
  string model = 3;
  string revision = 4;
  string weights_digest = 5;
  optional uint64 seed = 6;
  uint32 index = 7;
  string text = 8;
  repeated Token tokens = 9;
  int32 finish_reason = 10;
  Usage usage = 11;
}
message WatchThingRequest { string name = 1; string resume_token = 2; }
message WatchThingResponse { Thing thing = 1; string resume_token = 2; }
"""
Answer = Callable[[Any, grpc.ServicerContext], Any]


@cache
def _file() -> tuple[Any, dict[str, Any]]:
    """(descriptor, message classes by name)."""
    include = Path(protoc.__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        Path(folder, "things.proto").write_text(PROTO)
        asked = ["protoc", f"-I{folder}", f"-I{include}", f"--descriptor_set_out={out}"]
        assert protoc.main([*asked, "things.proto"]) == 0
        files = FileDescriptorSet.FromString(out.read_bytes())
    pool = DescriptorPool()
    for file in files.file:
        pool.Add(file)
    classes = GetMessageClassesForFiles(["things.proto"], pool)
    return pool.FindFileByName("things.proto"), {
        name.removeprefix("things."): kind for name, kind in classes.items()
    }


def method(name: str) -> Method:
    return Method.of(_file()[0], "ThingService", name)


def message(kind: str, /, **fields: Any) -> Any:
    return _file()[1][kind](**fields)


class ThingServer:
    """Answers calls by functions of (request, context), by the method's name; `calls` has what was
    asked: (method, request, metadata)."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.calls: list[tuple[str, Any, dict[str, str]]] = []
        self.port = 0

    def __enter__(self) -> ThingServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """At the same port again after `kill`."""
        self._server = grpc.server(
            futures.ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)]
        )
        handlers = {name: self._handler(name) for name in self.answers}
        service = grpc.method_handlers_generic_handler("things.ThingService", handlers)
        self._server.add_generic_rpc_handlers((service,))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{self.port}")
        self._server.start()

    def kill(self) -> None:
        """Ends every connection, as a process that dies."""
        self._server.stop(0).wait()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def asked(self, name: str) -> list[Any]:
        return [request for called, request, _ in self.calls if called == name]

    def _handler(self, name: str) -> Any:
        descriptor = method(name).descriptor
        kind = _file()[1][descriptor.input_type.name]

        def note(request: Any, context: grpc.ServicerContext) -> None:
            told = {pair[0]: pair[1] for pair in context.invocation_metadata()}
            self.calls.append((name, request, told))

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if descriptor.client_streaming:
                request = list(request)
            note(request, context)
            try:
                return self.answers[name](request, context)
            except PlinthError as error:
                context.abort_with_status(to_status(error))

        def stream(request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
            note(request, context)
            try:
                yield from self.answers[name](request, context)
            except PlinthError as error:
                context.abort_with_status(to_status(error))

        if descriptor.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream, kind.FromString, _bytes)
        if descriptor.client_streaming:
            return grpc.stream_unary_rpc_method_handler(answer, kind.FromString, _bytes)
        return grpc.unary_unary_rpc_method_handler(answer, kind.FromString, _bytes)


def _bytes(said: Any) -> bytes:
    data: bytes = said.SerializeToString()
    return data
