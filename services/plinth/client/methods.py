"""What the protos say of a method that matters to who calls it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from plinth.shared.rpc.resuming import is_resumable

# Of google.protobuf.MethodOptions.IdempotencyLevel: NO_SIDE_EFFECTS, IDEMPOTENT.
_REPEATABLE = (1, 2)
_GENERATION = "plinth.v1.GenerationService"
_OF_GENERATED = {"index", "text", "tokens", "finish_reason", "seed", "weights_digest"}
# Seconds that a call has where its caller does not say.
CALL_S, GENERATION_S = 60.0, 600.0


@dataclass(frozen=True)
class Method:
    """One method of a service."""

    descriptor: MethodDescriptor

    @classmethod
    def of(cls, file: FileDescriptor, service: str, name: str) -> Method:
        return cls(file.services_by_name[service].methods_by_name[name])

    @cached_property
    def path(self) -> str:
        """ "/plinth.v1.RunService/GetRun"."""
        return f"/{self.descriptor.containing_service.full_name}/{self.descriptor.name}"

    @cached_property
    def parse(self) -> Callable[[bytes], Any]:
        """Bytes to a response."""
        kind: Any = GetMessageClass(self.descriptor.output_type)
        parse: Callable[[bytes], Any] = kind.FromString
        return parse

    @cached_property
    def resumable(self) -> bool:
        """Whether its stream can go on where it broke."""
        return is_resumable(self.descriptor)

    @cached_property
    def replayable(self) -> bool:
        """Whether its stream is text that the same seed makes again."""
        asked, told = self.descriptor.input_type, self.descriptor.output_type
        return (
            self.descriptor.server_streaming
            and "options" in asked.fields_by_name
            and set(told.fields_by_name) >= _OF_GENERATED
        )

    @cached_property
    def repeatable(self) -> bool:
        """Whether the same request twice does no more than once; of a generation, whose answer to
        the first nobody has seen, no more than be paid for."""
        level = self.descriptor.GetOptions().idempotency_level
        return level in _REPEATABLE or self.resumable or self._generates

    @property
    def _generates(self) -> bool:
        return bool(self.descriptor.containing_service.full_name == _GENERATION)

    @cached_property
    def takes_request_id(self) -> bool:
        """Whether it is by `request_id` that two requests are known to be the same one."""
        field = self.descriptor.input_type.fields_by_name.get("request_id")
        return self.repeatable and field is not None

    @property
    def timeout_s(self) -> float | None:
        """Seconds for the whole call where its caller gives none; None: as long as it takes."""
        if self._generates:
            return GENERATION_S
        streams = self.descriptor.server_streaming or self.descriptor.client_streaming
        return None if streams else CALL_S


def request(kind: type[Any], /, **fields: Any) -> Any:
    """A request with those of its fields that are given."""
    return kind(**{name: value for name, value in fields.items() if value is not None})


def mask(paths: Any) -> FieldMask | None:
    """An update's mask from the paths in it."""
    return None if paths is None else FieldMask(paths=paths)


def is_heartbeat(message: Message) -> bool:
    """Whether a watch's response says no more than where the watch is."""
    return all(field.name == "resume_token" for field, _ in message.ListFields())


def serialized(message: Message) -> bytes:
    return message.SerializeToString()
